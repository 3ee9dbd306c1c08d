"""Whole runs, in this process."""

import dataclasses
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from trainer import __version__, config, job, rundir, snapshots
from trainer.errors import CheckpointError, ConfigError, DataError, DivergedError

QUICK = ("trainer.steps=30", "trainer.eval_every=10", "gradient.verify_at_start=false", "trainer.steps_per_call=8", "trainer.compile=graph")


def train(folder: Path, *overrides: str) -> int:
    return job.run(config.load([*QUICK, f"hydra.run.dir={folder}", *overrides]))


def lines(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def read(folder: Path, name: str) -> dict:
    return json.loads((folder / name).read_text())


def weights(folder: Path) -> dict[str, np.ndarray]:
    snapshot, problems = snapshots.load_newest(folder / "checkpoints")
    assert not problems
    return snapshot.arrays


def assert_same(one: Path, other: Path) -> None:
    assert (one / "metrics.jsonl").read_text() == (other / "metrics.jsonl").read_text()
    expected = weights(one)
    found = weights(other)
    assert expected.keys() == found.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array, err_msg=name)


def test_a_run_leaves_its_files(tmp_path):
    assert train(tmp_path) == 0
    steps = lines(tmp_path)
    assert [line["step"] for line in steps] == list(range(1, 31))
    assert {"loss", "grad_norm/global", "update_norm/global", "param_norm/global", "learning_rate"} <= steps[0].keys()
    assert {"grad_norm/hidden_1/kernel", "grad_norm/output/bias"} <= steps[0].keys()
    assert [line["step"] for line in steps if "eval/loss" in line] == [10, 20, 30]
    summary = read(tmp_path, "summary.json")
    assert summary["steps"] == 30
    assert summary["gradient_mode"] == "analytic"
    assert summary["compile"] == "graph"
    assert summary["final"]["eval/accuracy"] > 0.5
    assert summary["final"]["loss"] == pytest.approx(steps[-1]["loss"], rel=1e-6)
    assert read(tmp_path, "status.json") == {"state": "done", "cause": "finished", "exit_code": 0}
    assert read(tmp_path, "environment.json")["packages"]["tensorflow"].startswith("2.")
    assert "name: auto" in (tmp_path / "config.yaml").read_text()
    assert "trainer.steps=30\n" in (tmp_path / "overrides.txt").read_text()


def test_global_norm_is_the_norm_of_the_variables_norms(tmp_path):
    train(tmp_path, "trainer.clip_norm=0.5")
    for line in lines(tmp_path):
        parts = [
            value for tag, value in line.items() if tag.startswith("grad_norm/") and tag not in ("grad_norm/global", "grad_norm/clipped")
        ]
        assert np.linalg.norm(parts) == pytest.approx(line["grad_norm/global"], rel=1e-5)
        assert line["grad_norm/clipped"] == pytest.approx(min(0.5, line["grad_norm/global"]), rel=1e-5)


@pytest.mark.parametrize("compiled", ["graph", pytest.param("chunk", marks=pytest.mark.slow)])
def test_the_same_command_twice_is_the_same_to_the_bit(tmp_path, compiled):
    for name in ("one", "two"):
        train(tmp_path / name, f"trainer.compile={compiled}")
    assert_same(tmp_path / "one", tmp_path / "two")


@pytest.mark.parametrize(
    "overrides", [["trainer.compile=graph"], ["trainer.compile=chunk"], ["strategy=cpu_sim"], ["trainer.ema_decay=0.9"]]
)
def test_a_resumed_run_is_the_same_to_the_bit(tmp_path, overrides):
    train(tmp_path / "straight", *overrides)
    train(tmp_path / "halves", "trainer.steps=17", "trainer.eval_every=0", *overrides)
    assert train(tmp_path / "halves", *overrides) == 0
    straight, halves = lines(tmp_path / "straight"), lines(tmp_path / "halves")
    # At step 10 the first half was not evaluated.
    straight[9] = {tag: value for tag, value in straight[9].items() if not tag.startswith("eval/")}
    assert halves == straight
    for name, array in weights(tmp_path / "straight").items():
        np.testing.assert_array_equal(weights(tmp_path / "halves")[name], array, err_msg=name)


@pytest.mark.parametrize(
    "overrides",
    [
        ["schedule=warmup_cosine", "optimizer=nadam"],
        ["precision=mixed_float16", "precision.loss_scale_every=4"],
        pytest.param(
            ["trainer.early_stopping.patience=2", "trainer.early_stopping.min_delta=10", "trainer.steps=90", "trainer.compile=chunk"],
            marks=pytest.mark.slow,
        ),
        ["trainer.ema_decay=0.9", "model.batch_normalization=true", "model.dropout=0.2"],
    ],
)
def test_a_run_that_lost_its_end_finds_all_of_its_state(tmp_path, overrides):
    """Schedule, loss scale, the best evaluation and those since, averages: what is forgotten at step 25 shows at step 30."""
    train(tmp_path / "whole", "checkpoint.every=25", "checkpoint.keep=5", *overrides)
    shutil.copytree(tmp_path / "whole", tmp_path / "cut")
    shutil.rmtree(tmp_path / "cut" / "checkpoints" / "step-00000030")
    (tmp_path / "cut" / "status.json").unlink()
    (tmp_path / "cut" / "summary.json").unlink()
    assert train(tmp_path / "cut", "checkpoint.every=25", "checkpoint.keep=5", *overrides) == 0
    assert_same(tmp_path / "whole", tmp_path / "cut")
    whole, cut = (snapshots.load_newest(tmp_path / name / "checkpoints")[0] for name in ("whole", "cut"))
    assert (whole.step, whole.state, whole.about) == (30, cut.state, cut.about)
    expected = read(tmp_path / "whole", "summary.json")
    assert {key: read(tmp_path / "cut", "summary.json")[key] for key in ("best", "final", "compile")} == {
        key: expected[key] for key in ("best", "final", "compile")
    }


def test_steps_go_on_while_a_checkpoint_is_written_and_none_of_theirs_is_in_it(tmp_path, monkeypatch):
    save = snapshots.save

    def slow(folder, snapshot, *arguments):
        until = time.monotonic() + 60
        while snapshot.step == 10 and len(lines(tmp_path / "run")) < 18:
            assert time.monotonic() < until, "the loop waits"
            time.sleep(0.01)
        save(folder, snapshot, *arguments)

    train(tmp_path / "short", "trainer.steps=10", "trainer.eval_every=0")
    with monkeypatch.context() as patch:
        patch.setattr(snapshots, "save", slow)
        train(tmp_path / "run", "trainer.steps=19", "trainer.eval_every=0", "checkpoint.every=10")
    found = snapshots.load(tmp_path / "run" / "checkpoints" / "step-00000010")
    for name, array in weights(tmp_path / "short").items():
        np.testing.assert_array_equal(found.arrays[name], array, err_msg=name)
    assert found.state["loop"]["step"] == 10


def test_a_checkpoint_says_what_it_is_of_and_no_other_run_goes_on_from_it(tmp_path, capsys, monkeypatch):
    train(tmp_path, "seed=7")
    about = snapshots.load_newest(tmp_path / "checkpoints")[0].about
    assert about["seed"] == 7
    assert about["versions"].keys() == {"python", "tensorflow", "keras", "numpy", "gradtrain"}
    assert None not in about["versions"].values()
    (tmp_path / "config.yaml").unlink()
    with pytest.raises(ConfigError, match=r"step 30 in .* is of another configuration"):
        train(tmp_path, "seed=8", "trainer.steps=40")
    monkeypatch.setattr(rundir, "__version__", "9")
    train(tmp_path, "seed=7", "trainer.steps=40", "gradient=auto", "checkpoint.keep=1")
    assert f"since step 30 versions have changed (gradtrain {__version__} -> 9)" in capsys.readouterr().out


def test_any_chunk_length_gives_the_same_run(tmp_path):
    train(tmp_path / "one", "trainer.steps_per_call=1", "checkpoint.every=7")
    train(tmp_path / "two", "trainer.steps_per_call=30", "checkpoint.every=0")
    assert_same(tmp_path / "one", tmp_path / "two")


def test_resuming_a_finished_run_does_nothing(tmp_path, capsys):
    train(tmp_path)
    before = (tmp_path / "summary.json").read_text()
    assert train(tmp_path) == 0
    assert "nothing to do" in capsys.readouterr().out
    assert (tmp_path / "summary.json").read_text() == before


def test_fewer_steps_than_done_are_nothing_to_do(tmp_path, capsys):
    train(tmp_path)
    before = (tmp_path / "summary.json").read_text()
    assert train(tmp_path, "trainer.steps=20") == 0
    assert "has done 30 steps" in capsys.readouterr().out
    assert (tmp_path / "summary.json").read_text() == before
    assert len(lines(tmp_path)) == 30


def test_another_model_is_not_continued(tmp_path):
    train(tmp_path)
    with pytest.raises(ConfigError, match=r"model\.hidden"):
        train(tmp_path, "model.hidden=[16]", "trainer.steps=40")
    with pytest.raises(ConfigError, match="resume=never"):
        train(tmp_path, "resume=never")


def test_another_gradient_mode_goes_on_and_says_so(tmp_path, capsys):
    train(tmp_path)
    train(tmp_path, "gradient=auto", "trainer.steps=40")
    assert "gradient=analytic until step 30" in capsys.readouterr().out
    assert lines(tmp_path)[-1]["step"] == 40


def test_must_wants_a_checkpoint(tmp_path):
    with pytest.raises(CheckpointError, match="type resume=auto"):
        train(tmp_path / "none", "resume=must")
    with pytest.raises(CheckpointError, match="there is no run in"):
        train(tmp_path / "none", f"resume={tmp_path / 'nowhere'}")


def test_resume_names_a_run_directory(tmp_path):
    train(tmp_path / "one")
    train(tmp_path / "unused", f"resume={tmp_path / 'one'}", "trainer.steps=35")
    assert lines(tmp_path / "one")[-1]["step"] == 35
    assert not (tmp_path / "unused").exists()


def test_a_foreign_directory_is_not_touched(tmp_path):
    (tmp_path / "letter.txt").write_text("mine")
    with pytest.raises(ConfigError, match="not empty"):
        train(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["letter.txt"]


def test_replicas_give_what_one_device_gives(tmp_path):
    """Plain SGD at a high learning rate with clipping: doubled gradients or a clip before the reduction would show."""
    overrides = ("optimizer=sgd", "optimizer.learning_rate=0.5", "trainer.clip_norm=0.2", "trainer.steps=60")
    train(tmp_path / "one", *overrides)
    train(tmp_path / "two", *overrides, "strategy=cpu_sim", "strategy.num_devices=2")
    for one, two in zip(lines(tmp_path / "one"), lines(tmp_path / "two"), strict=True):
        assert two == pytest.approx(one, rel=2e-5), one["step"]


@pytest.mark.slow
def test_replicas_by_the_command(tmp_path):
    """In a fresh process, where the CPU is not divided yet."""
    command = [sys.executable, "-m", "trainer", *QUICK, f"hydra.run.dir={tmp_path}", "strategy=cpu_sim", "strategy.num_devices=2"]
    subprocess.run(command, check=True, cwd=Path(__file__).parents[2])
    assert len(read(tmp_path, "environment.json")["devices"]) == 2
    assert len(lines(tmp_path)) == 30


def test_what_xla_cannot_compile_says_what_to_type(tmp_path, monkeypatch):
    (tmp_path / "conf" / "loss").mkdir(parents=True)
    (tmp_path / "conf" / "loss" / "host.yaml").write_text("_target_: package_with_host_loss.host\n")
    (tmp_path / "package_with_host_loss.py").write_text(
        "import tensorflow as tf\n"
        "def host(y_true, y_pred):\n"
        "    return tf.reduce_mean(tf.py_function(tf.square, [y_pred - y_true], tf.float32), axis=-1)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    overrides = [*QUICK, "loss=host", "gradient=auto", "trust=[package_with_host_loss]"]
    with pytest.raises(ConfigError, match=r"type trainer\.compile=graph"):
        job.run(config.load([*overrides, "trainer.compile=chunk", f"hydra.run.dir={tmp_path / 'a'}"], tmp_path / "conf"))
    assert job.run(config.load([*overrides, f"hydra.run.dir={tmp_path / 'b'}"], tmp_path / "conf")) == 0


@pytest.mark.gpu
@pytest.mark.skipif(len(tf.config.list_physical_devices("GPU")) < 2, reason="needs two GPUs")
def test_two_gpus_give_what_one_gives(tmp_path):
    overrides = ("optimizer=sgd", "optimizer.learning_rate=0.5", "trainer.clip_norm=0.2", "trainer.steps=60")
    train(tmp_path / "one", *overrides, "strategy=one_device")
    train(tmp_path / "two", *overrides, "strategy=mirrored", "strategy.num_devices=2")
    for one, two in zip(lines(tmp_path / "one"), lines(tmp_path / "two"), strict=True):
        assert two == pytest.approx(one, rel=2e-5), one["step"]


def test_what_a_strategy_cannot_do_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="type a multiple"):
        train(tmp_path / "a", "strategy=cpu_sim", "data.batch_size=33")
    with pytest.raises(ConfigError, match="one replica only"):
        train(tmp_path / "b", "strategy=cpu_sim", "trainer.compile=chunk")
    with pytest.raises(ConfigError, match="strategy=auto"):
        train(tmp_path / "c", "strategy=mirrored", "strategy.num_devices=64")
    with pytest.raises(ConfigError, match="type one of CPU:0, CPU:1"):
        train(tmp_path / "f", "strategy=one_device", "strategy.device=GPU:7")
    with pytest.raises(ConfigError, match="strategy=cpu_sim"):
        train(tmp_path / "e", "strategy.num_devices=4")
    with pytest.raises(ConfigError, match="in a process of its own"):
        train(tmp_path / "d", "strategy=cpu_sim", "strategy.num_devices=3")


TOKENS = ["data=text", "model=transformer", "model.width=8", "data.length=8", "trainer.steps=1", "trainer.eval_every=0"]


@pytest.mark.slow
def test_the_rule_of_compile(tmp_path):
    for name, overrides, expected in [
        ("dense", [], "chunk"),
        ("convolutions", ["model=cnn", "trainer.steps=1"], "graph"),
        ("attention", TOKENS, "chunk"),
        ("output layer within the loss", [*TOKENS, "loss=linear_crossentropy"], "chunk"),
        ("host", ["loss=cubic"], "graph"),
        ("replicas", ["strategy=cpu_sim"], "graph"),
    ]:
        train(tmp_path / name, "trainer.compile=auto", *overrides)
        assert read(tmp_path / name, "summary.json")["compile"] == expected
    with pytest.raises(ConfigError, match=r"type trainer\.compile=graph"):
        train(tmp_path / "refused", "trainer.compile=chunk", "loss=cubic")


@pytest.mark.fault(rows=[16])
def test_an_unweighted_row_may_hold_anything(tmp_path):
    rng = np.random.default_rng(0)
    table = rng.normal(size=(80, 4))
    table[:, 3] = table[:, :2] @ [1, 2]
    weights = np.where(rng.uniform(size=80) < 0.2, 0, 1)
    table[weights == 0, 0] = np.nan
    rows = ["a,b,c,y,w"] + [",".join(map(str, [*row, weight])) for row, weight in zip(table, weights, strict=True)]
    (tmp_path / "table.csv").write_text("\n".join(rows) + "\n")
    overrides = ["data=csv", f"data.path={tmp_path / 'table.csv'}", "data.target=y", "data.targets=real", "data.batch_size=16", "loss=mse"]
    assert train(tmp_path / "run", *overrides, "data.sample_weight=w", "trainer.steps=300", "optimizer.learning_rate=0.01") == 0
    assert read(tmp_path / "run", "summary.json")["final"]["eval/r2"] > 0.9
    with pytest.raises(DataError, match=r"row|example"):
        train(tmp_path / "unweighted", *overrides)
    (tmp_path / "table.csv").write_text("\n".join([*rows[:-1], rows[1]]) + "\n")
    with pytest.raises(ConfigError, match="the data are not those"):
        train(tmp_path / "run", *overrides, "data.sample_weight=w", "trainer.steps=310", "optimizer.learning_rate=0.01")


@pytest.mark.fault(rows=[15])
def test_what_a_step_that_is_not_finite_did_to_other_variables_is_undone(tmp_path):
    overrides = ["model.batch_normalization=true", "data.standardize=false", "optimizer=sgd", "optimizer.learning_rate=1e38", "loss=mse"]
    with pytest.raises(DivergedError):
        train(tmp_path, *overrides)
    assert all(np.isfinite(array).all() for array in weights(tmp_path).values())


@pytest.mark.parametrize("compiled", ["graph", "chunk"])
def test_whoever_diverged_goes_on_with_another_gradient(tmp_path, compiled):
    """A loss whose tape is NaN and whose own gradient is not: what the message says to try works."""
    folder = tmp_path / "run"
    (tmp_path / "conf" / "loss").mkdir(parents=True)
    (tmp_path / "conf" / "loss" / "asin.yaml").write_text("_target_: package_with_asin_loss.Asin\n")
    (tmp_path / "package_with_asin_loss.py").write_text(ASIN)
    overrides = [*QUICK, "loss=asin", "trust=[package_with_asin_loss]", f"hydra.run.dir={folder}", f"trainer.compile={compiled}"]
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(tmp_path)
        with pytest.raises(DivergedError, match="step 1 gave grad_norm/output/bias = nan"):
            job.run(config.load([*overrides, "gradient=auto"], tmp_path / "conf"))
        assert job.run(config.load(overrides, tmp_path / "conf")) == 0
    assert [line["step"] for line in lines(folder)] == list(range(1, 31))


ASIN = """
import dataclasses
import tensorflow as tf
from losses.base import Loss

@dataclasses.dataclass(frozen=True)
class Asin(Loss):
    def value(self, y_true, y_pred):
        return tf.reduce_sum(tf.where(tf.abs(y_pred) < 0.5, tf.asin(y_pred), y_pred), axis=-1)

    def gradient(self, y_true, y_pred):
        return tf.where(tf.abs(y_pred) < 0.5, 1 / tf.sqrt(1 - tf.minimum(tf.square(y_pred), 0.25)), 1)
"""


def test_a_run_killed_before_its_summary_gets_one(tmp_path):
    train(tmp_path)
    before = read(tmp_path, "summary.json")
    (tmp_path / "summary.json").unlink()
    (tmp_path / "status.json").write_text('{"state": "running"}')
    assert train(tmp_path) == 0
    after = read(tmp_path, "summary.json")
    assert after["final"] == pytest.approx(before["final"], rel=1e-6)
    assert after["best"] == before["best"]


@pytest.mark.fault(rows=[3])
def test_damaged_files_of_a_finished_run_are_no_reason_to_end(tmp_path):
    train(tmp_path)
    (tmp_path / "summary.json").unlink()
    (tmp_path / "status.json").write_text("[1]")
    with (tmp_path / "metrics.jsonl").open("ab") as file:
        file.write(b"\0\0\n[1]\n")
    assert train(tmp_path) == 0
    assert read(tmp_path, "summary.json")["final"] == {}


@pytest.mark.fault(rows=[4])
def test_a_run_that_lost_its_checkpoints_says_that_it_begins_anew(tmp_path, capsys):
    train(tmp_path)
    shutil.rmtree(tmp_path / "checkpoints")
    assert train(tmp_path, "trainer.steps=31") == 0
    assert "the run begins anew, and so does metrics.jsonl, which went to step 30" in capsys.readouterr().out


@pytest.mark.fault(rows=[24])
@pytest.mark.parametrize("state", [{}, {"loop": {"step": "x"}}, {"loop": {"step": 30, "other": 1}}, {"loop": {"step": 9}}, []])
def test_a_checkpoint_of_another_make_is_refused(tmp_path, state):
    train(tmp_path)
    newest = snapshots.load_newest(tmp_path / "checkpoints")[0]
    shutil.rmtree(tmp_path / "checkpoints")
    state = newest.state | state if state else state
    snapshots.save(tmp_path / "checkpoints", dataclasses.replace(newest, state=state), 2, None)
    with pytest.raises(CheckpointError, match=r"the checkpoint of step 30 in .*: type another hydra\.run\.dir"):
        train(tmp_path, "trainer.steps=40")


def test_a_refused_continuation_changes_nothing(tmp_path):
    train(tmp_path)
    names = ("config.yaml", "overrides.txt", "metrics.jsonl", "summary.json")
    files = {name: (tmp_path / name).read_bytes() for name in names}
    train(tmp_path, "trainer.steps=20")
    with pytest.raises(ConfigError, match="type one of these"):
        train(tmp_path, "trainer.steps=40", "checkpoint.monitor=eval/acc")
    assert {name: (tmp_path / name).read_bytes() for name in files} == files


def test_checkpoints_without_a_log_are_not_continued_by_another_job(tmp_path):
    train(tmp_path, "trainer.log_every=1000", "trainer.eval_every=0")
    (tmp_path / "metrics.jsonl").write_bytes(b"")
    with pytest.raises(ConfigError, match="seed: 0 -> 5"):
        train(tmp_path, "seed=5", "trainer.steps=40")


@pytest.mark.fault(rows=[5])
def test_a_checkpoint_that_cannot_be_written_is_a_warning_and_at_the_end_an_error(tmp_path, capsys):
    (tmp_path / "status.json").write_text('{"state": "running", "cause": null, "exit_code": null}')
    (tmp_path / "checkpoints").mkdir()
    for step in (10, 20, 30):
        (tmp_path / "checkpoints" / f".step-{step:08d}.tmp").write_text("in the way")
    with pytest.raises(CheckpointError, match=r"can't be written.*: mend that, and the same command goes on"):
        train(tmp_path, "checkpoint.every=20")
    assert capsys.readouterr().out.count("warning: the checkpoint") == 2  # at 10, the best so far, and at 20


@pytest.mark.fault(rows=[5])
def test_a_disk_that_takes_no_status_does_not_hide_why_the_run_failed(tmp_path, capsys, monkeypatch):
    def fail(*_):
        monkeypatch.setattr(rundir.RunDir, "write_text", full)
        raise CheckpointError("the disk is full")

    def full(*_):
        raise ConfigError("status.json can't be written")

    monkeypatch.setattr(job, "_train", fail)
    with pytest.raises(CheckpointError, match="the disk is full"):
        train(tmp_path)
    assert "warning: status.json can't be written" in capsys.readouterr().out


@pytest.mark.fault(rows=[6])
@pytest.mark.fault(rows=[6])
def test_a_run_that_cannot_be_described_has_a_status(tmp_path):
    (tmp_path / ".overrides.txt.tmp").mkdir()  # in the way, as a full disk is
    with pytest.raises(ConfigError, match=r"overrides\.txt can't be written"):
        train(tmp_path)
    assert (read(tmp_path, "status.json")["state"], read(tmp_path, "status.json")["exit_code"]) == ("failed", 2)


def test_a_log_that_cannot_be_opened_is_refused_before_the_first_step(tmp_path):
    (tmp_path / "status.json").write_text('{"state": "running", "cause": null, "exit_code": null}')
    (tmp_path / "metrics.jsonl").mkdir()
    with pytest.raises(ConfigError, match=r"metrics\.jsonl can't be written"):
        train(tmp_path)
    assert not (tmp_path / "checkpoints").exists()


def test_sys_exit_in_what_a_user_brings_along_is_a_failure(tmp_path, monkeypatch):
    monkeypatch.setattr(job, "_train", lambda *_: sys.exit(0))
    with pytest.raises(RuntimeError, match=r"sys\.exit"):
        train(tmp_path)
    assert read(tmp_path, "status.json") == {"state": "failed", "cause": "SystemExit: 0", "exit_code": 1}


@pytest.mark.fault(rows=[15])
def test_a_step_that_is_not_finite_ends_the_run_before_its_update(tmp_path):
    with pytest.raises(DivergedError, match=r"step \d+ gave .* = (nan|inf)"):
        train(tmp_path, "optimizer=sgd", "optimizer.learning_rate=1e30", "loss=mse")
    assert all(np.isfinite(array).all() for array in weights(tmp_path).values())
    assert read(tmp_path, "status.json")["exit_code"] == 3
    assert {"NaN", "inf"} & set(lines(tmp_path)[-1].values())


@pytest.mark.fault(rows=[15])
def test_skipping_is_bounded(tmp_path):
    with pytest.raises(DivergedError, match="11 steps in a row"):
        train(tmp_path, "optimizer=sgd", "optimizer.learning_rate=1e30", "loss=mse", "trainer.on_nonfinite=skip")


def test_early_stopping(tmp_path):
    train(tmp_path, "trainer.early_stopping.patience=2", "trainer.early_stopping.min_delta=10", "trainer.steps=90")
    assert read(tmp_path, "summary.json")["steps"] == 30  # best at 10, then two evaluations without a gain of 10
    assert read(tmp_path, "summary.json")["best"]["step"] == 10
    assert read(tmp_path, "status.json")["cause"] == "early stopping"


def test_a_patience_that_no_evaluation_can_exhaust_is_said(tmp_path, capsys):
    train(tmp_path / "idle", "trainer.early_stopping.patience=3")
    assert "patience=3 can't stop this run: of its 30 steps there are 3 evaluations; type a smaller" in capsys.readouterr().out
    train(tmp_path / "able", "trainer.early_stopping.patience=2")
    assert "can't stop" not in capsys.readouterr().out


def test_best_and_newest_checkpoints_are_kept(tmp_path):
    train(tmp_path, "trainer.steps=60", "checkpoint.every=5", "checkpoint.keep=2", "checkpoint.monitor=eval/accuracy")
    best = int(read(tmp_path, "summary.json")["best"]["step"])
    kept = sorted(int(path.name.removeprefix("step-")) for path in (tmp_path / "checkpoints").iterdir())
    assert kept == sorted({best, 55, 60})


def test_log_every(tmp_path):
    train(tmp_path, "trainer.log_every=7")
    assert [line["step"] for line in lines(tmp_path)] == [7, 10, 14, 20, 21, 28, 30]


def test_an_unknown_monitor_is_refused_at_once(tmp_path):
    with pytest.raises(ConfigError, match="eval/accuracy"):
        train(tmp_path, "checkpoint.monitor=eval/acc")


@pytest.mark.parametrize(
    "overrides",
    [
        ["data=diabetes", "loss=mse", "model=linear"],
        ["data=diabetes", "loss=quantile", "loss.levels=[0.1,0.5,0.9]"],
        ["data=diabetes", "loss=gaussian_nll"],
        ["data=breast_cancer", "loss=binary_crossentropy"],
        ["data=wine", "loss=binary_crossentropy"],
        ["data=wine", "loss=mae", "gradient=auto"],
        ["data=digits", "model=cnn", "loss=stable_mse"],
        ["data=digits", "loss=cubic"],
        ["data=synthetic", "loss=huber", "precision=mixed_bfloat16"],
        ["data=breast_cancer", "data.class_weight=balanced"],
    ],
)
def test_loss_data_and_model_fit_together(tmp_path, overrides):
    data_steps = ["data.batch_size=32", "trainer.steps=60", "gradient.verify_at_start=true"]
    assert train(tmp_path, *data_steps, *overrides) == 0
    metrics = read(tmp_path, "summary.json")["final"]
    first, last = lines(tmp_path)[0], lines(tmp_path)[-1]
    assert metrics.keys() > {"eval/loss"}
    assert all(np.isfinite(value) for value in metrics.values())
    assert last["loss"] != first["loss"]


def test_a_pair_that_cannot_work_names_the_data_that_do(tmp_path):
    with pytest.raises(ConfigError, match="randhie"):
        train(tmp_path, "loss=poisson_nll")
    with pytest.raises(ConfigError, match="breast_cancer, digits"):
        train(tmp_path, "data=diabetes")


def test_a_missing_gradient_mode_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="type gradient=analytic"):
        train(tmp_path, "loss=cubic", "gradient=auto")
