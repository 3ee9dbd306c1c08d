"""Whole runs in every way of compiling, in parts, and in half precision: what is learned is the same."""

import json
import os
import subprocess
import sys
import weakref
from pathlib import Path
from unittest import mock

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.trainer.processes import ROOT
from trainer import compiling, config, job, planning, snapshots, training
from trainer.data.prepare import Prepared, Split
from trainer.errors import ConfigError, DivergedError
from trainer.learner import LossScale

QUICK = ("trainer.steps=24", "trainer.eval_every=0", "gradient.verify_at_start=false", "optimizer=sgd", "optimizer.learning_rate=0.1")
NORMALIZED = ("model.batch_normalization=true", "model.dropout=0.2")


@pytest.fixture(autouse=True)
def _own_precision():
    yield
    keras.mixed_precision.set_global_policy("float32")


def train(folder: Path, *overrides: str) -> list[dict]:
    assert job.run(config.load([*QUICK, f"hydra.run.dir={folder}", *overrides])) == 0
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def assert_alike(lines: list[dict], expected: list[dict], rel: float, tags: tuple[str, ...] = ()) -> None:
    assert len(lines) == len(expected)
    for line, other in zip(lines, expected, strict=True):
        for tag in tags or other:
            assert line[tag] == pytest.approx(other[tag], rel=rel, abs=1e-6), (line["step"], tag)


def summary(folder: Path) -> dict:
    return json.loads((folder / "summary.json").read_text())


@pytest.mark.parametrize("way", ["step", "chunk"])
def test_every_way_learns_the_same(tmp_path, way):
    expected = train(tmp_path / "graph", "trainer.compile=graph", "trainer.clip_norm=0.5", *NORMALIZED)
    found = train(tmp_path / way, f"trainer.compile={way}", "trainer.clip_norm=0.5", *NORMALIZED)
    assert_alike(found, expected, 1e-4)
    told = summary(tmp_path / way)
    assert told["compile"] == way
    assert told["examples_per_second"] == pytest.approx(32 * told["steps_per_second"], rel=1e-3)
    assert set(told["time_shares"]) == {"input", "step", "evaluation", "checkpoint", "logging", "other"}
    assert sum(told["time_shares"].values()) == pytest.approx(1, abs=0.001)


def test_a_graph_with_loops_of_the_loss_within_is_optimized(tmp_path):
    """TensorFlow leaves a graph that it can't sort as it is, and says so on stderr alone, as an error."""
    job = (*QUICK, f"hydra.run.dir={tmp_path}", "loss=linear_crossentropy", "trainer.compile=graph", "gradient.audit_every=8")
    environment = os.environ | {"TF_CPP_MIN_LOG_LEVEL": "2"}
    line = [sys.executable, "-m", "trainer", *job]
    done = subprocess.run(line, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    assert "sort" not in done.stderr


def test_a_step_by_xla_on_replicas(tmp_path):
    expected = train(tmp_path / "one", "trainer.compile=graph", "model.dropout=0.2")
    found = train(tmp_path / "two", "trainer.compile=step", "strategy=cpu_sim", "model.dropout=0.2")
    assert_alike(found, expected, 1e-4)
    with pytest.raises(ConfigError, match=r"one replica only: type trainer\.compile=step"):
        train(tmp_path / "three", "trainer.compile=chunk", "strategy=cpu_sim")


@pytest.mark.slow
def test_state_of_layers_on_replicas(tmp_path):
    """In processes of their own: TensorFlow confuses the reductions of two models in one.

    Every replica normalizes by its own share and averages what it moves. Keras' own dropout draws other numbers under XLA, at a rate
    where that doesn't show; its generator's state goes on all the same.
    """
    (tmp_path / "conf/model").mkdir(parents=True)
    (tmp_path / "conf/model/own.yaml").write_text("_target_: package_with_state.own\n")
    (tmp_path / "package_with_state.py").write_text(
        "import keras\n"
        "def own(input_shape, num_outputs):\n"
        "    layers = keras.layers\n"
        "    return keras.Sequential([keras.Input(input_shape), layers.Flatten(), layers.Dense(16), layers.BatchNormalization(),\n"
        "        layers.Activation('relu'), layers.Dropout(1e-6, seed=1), layers.Dense(num_outputs)])\n"
    )
    lines, arrays = {}, {}
    for way in ("graph", "step"):
        folder = tmp_path / way
        overrides = ["model=own", "trust=[package_with_state]", "strategy=cpu_sim", f"trainer.compile={way}", f"hydra.run.dir={folder}"]
        command = [sys.executable, "-m", "trainer", "--config-dir", str(tmp_path / "conf"), *QUICK, *overrides]
        subprocess.run(command, check=True, cwd=Path(__file__).parents[2], env=os.environ | {"PYTHONPATH": str(tmp_path)})
        lines[way] = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        arrays[way] = snapshots.load_newest(folder / "checkpoints")[0].arrays
    assert_alike(lines["step"], lines["graph"], 1e-4)
    for name, array in arrays["graph"].items():
        np.testing.assert_allclose(arrays["step"][name], array, rtol=1e-3, atol=1e-5, err_msg=name)
    (moved,) = (array for name, array in arrays["step"].items() if name.endswith("moving_mean"))
    assert np.abs(moved).max() > 1e-3
    (drawn,) = (array for name, array in arrays["step"].items() if name.endswith("seed_generator_state"))
    assert drawn[1] == 24


def test_replicas_that_wait_for_each_other_are_no_xla_program(tmp_path):
    for overrides in (["trainer.compile=step"], ["trainer.accumulate=2"]):
        with pytest.raises(ConfigError, match=r"normalize their batches together.*: type trainer\."):
            train(tmp_path / overrides[0].replace("=", "-"), *overrides, "strategy=cpu_sim", "model.batch_normalization=true")


@pytest.mark.parametrize("overrides", [["trainer.compile=graph"], ["trainer.compile=chunk"], ["strategy=cpu_sim", "trainer.compile=graph"]])
def test_a_batch_in_parts_is_the_same_update(tmp_path, overrides):
    expected = train(tmp_path / "whole", *overrides, "model.dropout=0.2")
    assert_alike(train(tmp_path / "parts", *overrides, "model.dropout=0.2", "trainer.accumulate=4"), expected, 1e-4)


def test_parts_that_cannot_be(tmp_path):
    with pytest.raises(ConfigError, match=r"trainer\.accumulate=5: type a multiple of 5"):
        train(tmp_path / "a", "trainer.accumulate=5")
    with pytest.raises(ConfigError, match=r"type trainer\.accumulate=1"):
        train(tmp_path / "b", "trainer.accumulate=2", "loss=infonce", "data=digit_views")


def test_parts_that_are_not_the_same_update_are_told(tmp_path, capsys):
    train(tmp_path, "trainer.accumulate=2", "trainer.steps=2", "model.batch_normalization=true")
    assert "trainer.accumulate=2: batch normalization" in capsys.readouterr().out


@pytest.mark.parametrize("often", ["trainer.eval_every", "checkpoint.every", "logging.histogram_every"])
def test_a_chunk_has_no_room_beyond_a_border(tmp_path, often):
    """Its buffers, of streamed examples above all, are moved whole."""
    asked = config.load([*QUICK, f"hydra.run.dir={tmp_path}", "checkpoint.every=12", f"{often}=7", "data.stream=true"])
    _, data, learner, num_steps = training.build_all(asked)
    assert planning.make_plan(asked, learner, data, num_steps).room == 7


@pytest.mark.slow
def test_measuring_leaves_the_run_as_it_would_have_been(tmp_path, capsys):
    train(tmp_path / "measured", "trainer.compile=measure", *NORMALIZED)
    way = summary(tmp_path / "measured")["compile"]
    said = capsys.readouterr().out
    assert f"trainer.compile=measure: {way}, of chunk " in said
    assert all(f"{name} " in said.partition(", of ")[2] for name in ("chunk", "step", "graph"))
    train(tmp_path / "typed", f"trainer.compile={way}", *NORMALIZED)
    assert (tmp_path / "measured/metrics.jsonl").read_text() == (tmp_path / "typed/metrics.jsonl").read_text()


def test_measuring_holds_the_fastest_alone(monkeypatch):
    """Each has its copy of the data."""
    seconds = {"chunk": 2.0, "step": 1.0, "graph": 3.0}
    alive = weakref.WeakValueDictionary()
    at_once = []

    def make(way):
        chunk = alive[way] = tf.function(lambda: way)
        at_once.append(len(alive))
        return chunk

    monkeypatch.setattr(compiling, "possible", lambda learner: list(seconds))
    monkeypatch.setattr(compiling, "step_seconds", lambda chunk, batches, most_steps: seconds[next(k for k in alive if alive[k] is chunk)])
    way, chunk = compiling.measure(mock.Mock(), make, None, 1)
    assert way == "step"
    assert dict(alive) == {"step": chunk}
    assert at_once == [1, 2, 2]


@pytest.mark.parametrize("way", ["graph", "chunk"])
def test_chunks_of_one_step_learn_the_same_to_the_bit(tmp_path, way):
    expected = train(tmp_path / "many", f"trainer.compile={way}")
    assert train(tmp_path / "one", f"trainer.compile={way}", "trainer.steps_per_call=1") == expected


@pytest.mark.parametrize("way", ["graph", "chunk"])
def test_audits_within_a_chunk_change_nothing(tmp_path, way):
    plain = train(tmp_path / "plain", f"trainer.compile={way}", "trainer.steps=13")
    found = train(tmp_path / "audited", f"trainer.compile={way}", "trainer.steps=13", "gradient.audit_every=5", "trainer.steps_per_call=8")
    audited = {line["step"]: line for line in found if any(tag.startswith("gradient_audit/") for tag in line)}
    assert list(audited) == [5, 10]
    for line in audited.values():
        assert 0 < line["gradient_audit/relative_error"] < 1e-5
        assert line["gradient_audit/cosine"] == pytest.approx(1, abs=1e-5)
    assert [{tag: value for tag, value in line.items() if not tag.startswith("gradient_audit/")} for line in found] == plain


def test_a_run_goes_on_as_it_was_compiled(tmp_path, monkeypatch):
    train(tmp_path, "trainer.steps=10", "trainer.compile=auto")
    assert summary(tmp_path)["compile"] == "chunk"
    monkeypatch.setattr(compiling, "choose", lambda *_: "graph")  # another rule, or another machine
    train(tmp_path, "trainer.steps=16", "trainer.compile=auto")
    assert summary(tmp_path)["steps"] == 16
    assert summary(tmp_path)["compile"] == "chunk"


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
def test_half_precision_is_the_plain_run_to_its_digits(tmp_path, policy):
    expected = train(tmp_path / "plain")
    found = train(tmp_path / policy, f"precision={policy}")
    assert_alike(found, expected, 0.05, ("loss", "grad_norm/global", "param_norm/global"))


def test_an_overflow_by_the_loss_scale_is_no_divergence(tmp_path):
    lines = train(tmp_path, "precision=mixed_float16", "precision.loss_scale=1e9", "precision.loss_scale_every=4")
    overflows = [line["loss_scale/overflow"] for line in lines]
    first = overflows.index(0)
    assert first > 5
    assert [line["loss_scale"] for line in lines[:3]] == [1e9, 5e8, 2.5e8]
    assert lines[first + 4]["loss_scale"] == 2 * lines[first]["loss_scale"]  # four steps went well
    for line in lines[:first]:
        assert line["grad_norm/global"] in ("inf", "NaN")
        assert isinstance(line["loss"], float)
        assert line["update_norm/global"] == 0


def test_a_loss_scale_beyond_what_is_finite_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"precision\.loss_scale=1e\+39: must be a number >= 1 and < 1\.8"):
        train(tmp_path, "precision=mixed_float16", "precision.loss_scale=1e39")


def test_the_loss_scale_stays_finite():
    scale = LossScale(2.0**62, 1)
    for _ in range(200):
        scale.adapt(tf.constant(True))
    assert scale.scale == 2.0**64


def test_a_loss_that_is_not_finite_is_one_in_half_precision_too(tmp_path):
    with pytest.raises(DivergedError, match="diverged"):
        train(tmp_path, "precision=mixed_float16", "optimizer.learning_rate=1e30")


@pytest.mark.slow
def test_all_that_is_learned_goes_on(tmp_path):
    """The loss scale and its counter are in the checkpoint."""
    overrides = ("precision=mixed_float16", "precision.loss_scale=1e7", "precision.loss_scale_every=4")
    straight = train(tmp_path / "straight", *overrides)
    train(tmp_path / "halves", "trainer.steps=13", *overrides)
    assert train(tmp_path / "halves", *overrides) == straight


@pytest.fixture
def threads(monkeypatch):
    """What is asked of TensorFlow: threads by kind."""
    asked = {}
    for kind in ("inter", "intra"):
        monkeypatch.setattr(
            compiling.tf.config.threading, f"set_{kind}_op_parallelism_threads", lambda count, kind=kind: asked.update({kind: count})
        )

    def threads(name="auto", features=(64,), batch_size=32, **model):
        asked.clear()
        split = Split(np.zeros((1, *features), np.float32), np.zeros(1, np.int32), None)
        data = Prepared(split, split, "classes", np.ones(1), num_classes=10, want="classes")
        model = {"_target_": "trainer.models.mlp", "hidden": [128, 128], "num_outputs": None} | model
        compiling.set_threads(compiling.schema.Strategy(name=name), model, data, batch_size)
        return dict(asked)

    return threads


def test_threads_are_left_alone_where_replicas_need_them(threads, monkeypatch):
    assert threads("cpu_sim") == threads("mirrored") == {}
    assert threads() == {"inter": 1, "intra": 1}
    monkeypatch.setenv("TF_NUM_INTEROP_THREADS", "2")
    assert threads() == {"intra": 1}
    monkeypatch.setenv("TF_NUM_INTRAOP_THREADS", "2")
    assert threads() == {}


def test_only_small_shipped_models_are_computed_by_one_thread(threads):
    assert threads(hidden=[]) == threads(_target_="trainer.models.linear", hidden=[]) == {"inter": 1, "intra": 1}
    for larger in ({"batch_size": 1024}, {"hidden": [512, 512]}, {"features": (100, 100)}, {"_target_": "my_package.mlp"}):
        assert threads(**larger) == {}, larger


@pytest.mark.slow
def test_a_job_of_its_own_runs_on_the_threads_of_the_rule(tmp_path):
    program = "import sys; from trainer.cli import main; main(sys.argv[1:]); import tensorflow as tf; t = tf.config.threading; " + (
        "print('threads', t.get_inter_op_parallelism_threads(), t.get_intra_op_parallelism_threads())"
    )
    for hidden, wanted in (("[8]", "threads 1 1"), ("[2048,2048]", "threads 0 0")):
        line = [
            sys.executable,
            "-c",
            program,
            *QUICK,
            f"model.hidden={hidden}",
            "trainer.steps=1",
            f"hydra.run.dir={tmp_path / wanted[-1]}",
        ]
        variables = {key: value for key, value in os.environ.items() if not key.startswith("TF_NUM_")}
        done = subprocess.run(line, cwd=ROOT, env=variables, capture_output=True, text=True, check=True)
        assert done.stdout.splitlines()[-1] == wanted
