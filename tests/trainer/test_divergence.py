"""A step that is not finite: what ends, is left out or undone, what is told of it, and that the same step can be looked at again.

And data that would lead to one, or to no step at all.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from trainer import cli, config, schema, snapshots, training
from trainer.data.order import Order
from trainer.data.prepare import split
from trainer.forensics import Forensics

ROOT = Path(__file__).parents[2]
NUM_EXAMPLES, BATCH_SIZE, NUM_STEPS = 80, 8, 30
SPIKE = 42.0  # a target that the losses below can't stand
ROW = 37  # of the example that has it, in the training part

PACKAGE = '''
import dataclasses

import keras
import numpy as np
import tensorflow as tf

from losses.base import Loss
from trainer.data.base import Examples, Source


@dataclasses.dataclass(frozen=True)
class Fine(Loss):
    def value(self, y_true, y_pred):
        return tf.reduce_mean(tf.square(y_pred - y_true) / 2, axis=-1)

    def gradient(self, y_true, y_pred):
        return (y_pred - y_true) / y_pred.shape[-1]


class NoValue(Fine):
    """NaN at the spike, in both modes; its gradient is finite."""

    def value(self, y_true, y_pred):
        return super().value(y_true, y_pred) + tf.reduce_mean(0 * tf.sqrt(20 - y_true), axis=-1)


class NaiveValue(Fine):
    """NaN at the spike through its formula; not in what it gives for training."""

    def value(self, y_true, y_pred):
        return super().value(y_true, y_pred) + tf.reduce_mean(0 * y_pred * tf.sqrt(20 - y_true), axis=-1)

    def value_and_vjp(self, y_true, y_pred):
        y_true = tf.minimum(y_true, 3.0)
        return Fine.value(self, y_true, y_pred), lambda dy: dy[:, None] * Fine.gradient(self, y_true, y_pred)


class NoGradient(Fine):
    """A finite value with an infinite gradient at the spike."""

    def gradient(self, y_true, y_pred):
        return tf.where(y_true > 20, float("inf"), super().gradient(y_true, y_pred))


class Huge(Fine):
    def gradient(self, y_true, y_pred):
        return 1e25 * super().gradient(y_true, y_pred)


class Never(Fine):
    def value(self, y_true, y_pred):
        return super().value(y_true, y_pred) * float("nan")


class Root(keras.layers.Layer):
    def call(self, x):
        return tf.sqrt(x)


def rooted(input_shape, num_outputs):
    """The root of what is negative here and there."""
    inputs = keras.Input(input_shape)
    return keras.Model(inputs, keras.layers.Dense(num_outputs, name="output")(Root(name="root")(inputs)))


def steep(input_shape, num_outputs):
    """The root of 0, whose derivative is infinite."""
    inputs = keras.Input(input_shape)
    return keras.Model(inputs, Root(name="root")(keras.layers.Dense(num_outputs, kernel_initializer="zeros", name="hidden")(inputs)))


def narrow(input_shape, num_outputs):
    inputs = keras.Input([5])
    return keras.Model(inputs, keras.layers.Dense(num_outputs)(inputs))


@dataclasses.dataclass(frozen=True)
class Wrong(Source):
    """Sixty examples of three features and three classes, or of three features and two numbers, with a fault."""

    kind: str = "classes"
    fault: str = ""

    def load(self):
        x, y = np.arange(180.0).reshape(60, 3), np.arange(60) % 3
        if self.kind == "real":
            y = x[:, :2]
        if self.fault in ("above", "below"):
            y[41] = 3 if self.fault == "above" else -1
        if self.fault == "rank":
            y = y[:, None]
        if self.fault == "dtype":
            y = y.astype(float if self.kind == "classes" else complex)
        if self.fault == "text":
            x = x.astype(str)
        return Examples(x, y, num_classes=3 if self.kind == "classes" else None)
'''


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A user's folder: a package of losses and models, their configuration, and data with a spike."""
    folder = tmp_path_factory.mktemp("user")
    (folder / "divergent_package.py").write_text(PACKAGE)
    names = {"loss": ("Fine", "NoValue", "NaiveValue", "NoGradient", "Huge", "Never"), "model": ("rooted", "steep", "narrow")}
    for group, targets in names.items():
        (folder / "conf" / group).mkdir(parents=True)
        for target in targets:
            (folder / "conf" / group / f"{target.lower()}.yaml").write_text(f"_target_: divergent_package.{target}\n")
    (folder / "conf" / "data").mkdir()
    (folder / "conf" / "data" / "wrong.yaml").write_text("_target_: divergent_package.Wrong\nkind: classes\nfault: none\n")
    rng = np.random.default_rng(0)
    x = rng.normal(size=(NUM_EXAMPLES, 3))
    y = x @ [[1.0], [2.0], [-1.0]]
    y[source_row()] = SPIKE
    np.savez(folder / "spike.npz", x=x, y=y)
    return folder


def source_row() -> int:
    return int(split(NUM_EXAMPLES, None, schema.Data(batch_size=BATCH_SIZE))[0][ROW])


def spikes() -> list[int]:
    """The steps whose batches hold it, counted from 1."""
    batches = Order(64, BATCH_SIZE, 0).batches(0, NUM_STEPS)
    return (np.flatnonzero((batches == ROW).any(axis=1)) + 1).tolist()


def arguments(folder: Path, run_dir: Path, *overrides: str) -> list[str]:
    return [
        *("--config-dir", str(folder / "conf"), "trust=[divergent_package]", f"hydra.run.dir={run_dir}"),
        *("data=npz", f"data.path={folder / 'spike.npz'}", "data.targets=real", "data.standardize=false", "model=linear"),
        *(f"data.batch_size={BATCH_SIZE}", f"trainer.steps={NUM_STEPS}", "trainer.eval_every=0", "trainer.compile=graph"),
        *("trainer.steps_per_call=4", "gradient.verify_at_start=false", "optimizer=sgd", "optimizer.learning_rate=0.01"),
        *overrides,
    ]


@pytest.fixture
def train(folder, tmp_path, monkeypatch, capsys):
    """Runs the command in this process: the exit status, what it said, and the last line on stderr."""
    monkeypatch.syspath_prepend(folder)

    def train(*overrides: str, run_dir: Path = tmp_path / "run") -> tuple[int, str, str]:
        exit_code = cli.main(arguments(folder, run_dir, *overrides))
        output, errors = capsys.readouterr()
        assert "Traceback" not in errors
        return exit_code, output, errors.splitlines()[-1] if errors else ""

    return train


@pytest.fixture
def command(folder, tmp_path):
    """The same in a process of its own."""

    def command(*overrides: str, run_dir: Path = tmp_path / "run", words: tuple[str, ...] = ()) -> tuple[int, str, str]:
        environment = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{folder}", "COLUMNS": "200"}
        environment.pop("TF_CPP_MIN_LOG_LEVEL", None)  # training in this process sets it
        words = words or arguments(folder, run_dir, *overrides)
        result = subprocess.run([sys.executable, "-m", "trainer", *words], env=environment, capture_output=True, text=True, check=False)
        assert result.stderr.count("\n") == (result.returncode != 0), result.stderr
        return result.returncode, result.stdout, result.stderr.strip()

    return command


def read(run_dir: Path, name: str = "divergence.json") -> dict:
    return json.loads((run_dir / name).read_text())


def lines(run_dir: Path) -> list[dict]:
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


def newest(run_dir: Path) -> snapshots.Snapshot:
    snapshot, problems = snapshots.load_newest(run_dir / "checkpoints")
    assert not problems
    assert all(np.isfinite(array).all() for array in snapshot.arrays.values())
    return snapshot


def assert_same(one: Path, other: Path) -> None:
    assert lines(one) == lines(other)
    expected, found = newest(one), newest(other)
    assert found.state == expected.state
    for name, array in expected.arrays.items():
        np.testing.assert_array_equal(found.arrays[name], array, err_msg=name)


STOPS = {
    "a value that is NaN in both modes": (
        ["loss=novalue"],
        "the loss of an example",
        r"The loss NoValue has a value of NaN in gradient=analytic at y_pred \S+, y_true 42 of example {row}, where the gradient of "
        r"gradient=auto is finite and its value is not: rewrite its value so that it is finite for such predictions",
    ),
    "a value that is NaN by the tape alone": (
        ["loss=naivevalue", "gradient=auto"],
        "the loss of an example",
        r"The loss NaiveValue has a value of NaN in gradient=auto at y_pred \S+, y_true 42 of example {row}, gradient=analytic is finite "
        r"there: try gradient=analytic",
    ),
    "a finite loss with an infinite gradient": (
        ["loss=nogradient"],
        "the gradient of the loss by the predictions",
        r"The loss NoGradient has a gradient of inf in gradient=analytic at y_pred \S+, y_true 42 of example {row}, gradient=auto is "
        r"finite there: try gradient=auto",
    ),
    "in one XLA program": (
        ["loss=nogradient", "trainer.compile=chunk"],
        "the gradient of the loss by the predictions",
        "try gradient=auto",
    ),
    "streamed": (["loss=nogradient", "data.stream=true"], "the gradient of the loss by the predictions", "of example {row}, gradient=auto"),
}
# In a process of its own: TensorFlow confuses the reductions of two models in one process.
REPLICAS = "in parts, on two replicas"
STOPS[REPLICAS] = (
    ["loss=nogradient", "strategy=cpu_sim", "trainer.accumulate=2", "model=mlp", "model.hidden=[8]", "model.dropout=0.5"],
    "the gradient of the loss by the predictions",
    "of example {row}, gradient=auto is finite there: try gradient=auto",
)


@pytest.mark.fault(rows=[15])
@pytest.mark.parametrize("name", [pytest.param(name, marks=pytest.mark.slow if name == REPLICAS else ()) for name in STOPS])
def test_it_ends_before_the_update_and_is_looked_into(request, tmp_path, name):
    train = request.getfixturevalue("command" if name == REPLICAS else "train")
    overrides, tensor, advice = STOPS[name]
    overrides = ["checkpoint.every=2", *overrides]
    run_dir, step = tmp_path / "run", spikes()[0]
    exit_code, _, message = train(*overrides)
    assert exit_code == read(run_dir, "status.json")["exit_code"] == 3
    assert message.startswith(f"error: diverged: step {step} gave ")
    assert re.search(advice.format(row=source_row()), message), message
    assert str(run_dir / "divergence.json") in message
    snapshot = newest(run_dir)
    assert snapshot.step == step - 1
    straight = tmp_path / "straight"
    assert train(*overrides, f"trainer.steps={step - 1}", run_dir=straight)[0] == 0
    for key, array in newest(straight).arrays.items():
        np.testing.assert_array_equal(snapshot.arrays[key], array, err_msg=key)
    *before, last = lines(run_dir)
    assert before == lines(straight)
    assert last["update_norm/global"] == 0
    assert last["param_norm/global"] == pytest.approx(before[-1]["param_norm/global"], rel=1e-6)

    report = read(run_dir)
    assert (report["step"], report["checkpoint"]) == (step, step - 1)
    assert report["indices"] == Order(64, BATCH_SIZE, 0).batches(step - 1, 1)[0].tolist()
    assert report["examples"] == split(NUM_EXAMPLES, None, schema.Data(batch_size=BATCH_SIZE))[0][report["indices"]].tolist()
    first = report["first_nonfinite"]
    assert (first["tensor"], first["num_nonfinite"], first["examples"]) == (tensor, 1, [source_row()])
    assert report["advice"][1:] in message
    logged, told = lines(run_dir)[-1]["loss"], next(seen for seen in report["tensors"] if seen["tensor"] == "the loss")
    assert told["value"] == "NaN" if logged == "NaN" else told["largest_finite"] == pytest.approx(logged, rel=1e-6)
    mode = report["gradient_mode"]
    bad = "nonfinite_losses" if tensor == "the loss of an example" else "nonfinite_gradients"
    assert report["gradients"][mode][bad] == [source_row()]
    given = report["gradients"][mode]["inputs"][0]
    assert (given["example"], given["y_true"]) == (source_row(), [SPIKE])
    place = report["indices"].index(ROW)
    assert {i for i, value in enumerate(report["losses"][mode]) if value == "NaN"} == ({place} if bad == "nonfinite_losses" else set())


@pytest.mark.fault(rows=[15])
def test_what_the_advice_says_works(train, tmp_path):
    assert train("loss=nogradient")[0] == 3
    assert train("loss=nogradient", "gradient=auto")[0] == 0
    assert len(lines(tmp_path / "run")) == NUM_STEPS
    newest(tmp_path / "run")


@pytest.mark.fault(rows=[15])
@pytest.mark.parametrize("loss", ["novalue", "nogradient"])
def test_skipping_leaves_the_updates_out(train, tmp_path, loss):
    exit_code, _, _ = train(f"loss={loss}", "trainer.on_nonfinite=skip")
    assert exit_code == 0
    left_out = [line["step"] for line in lines(tmp_path / "run") if line["update_norm/global"] == 0]
    assert left_out == spikes()
    assert newest(tmp_path / "run").step == NUM_STEPS


@pytest.mark.fault(rows=[15])
def test_a_run_that_skipped_goes_on_without_skipping(train, tmp_path):
    """Its checkpoint is of the very step whose update was left out."""
    first = spikes()[0]
    train("loss=nogradient", "trainer.on_nonfinite=skip", f"trainer.steps={first}", "trainer.epochs=null")
    assert newest(tmp_path / "run").state["loop"]["skipped"] == 1
    exit_code, output, _ = train("loss=nogradient", "trainer.on_nonfinite=stop")
    assert exit_code == 3, output
    assert lines(tmp_path / "run")[-1]["step"] == spikes()[1]


@pytest.mark.fault(rows=[15])
@pytest.mark.parametrize("loss", ["novalue", "nogradient"])
def test_rolling_back_undoes_updates(train, tmp_path, loss):
    """The result is that of a run that never made them: steps 1 to the last checkpoint before a spike, and on after it."""
    exit_code, output, _ = train(f"loss={loss}", "trainer.on_nonfinite=rollback", "checkpoint.every=5")
    assert exit_code == 0
    back = {line["step"]: int(line["rollback"]) for line in lines(tmp_path / "run") if "rollback" in line}
    assert back == {step: (step - 1) // 5 * 5 for step in spikes()}
    for step, anchor in back.items():
        assert f"step {step} gave" in output
        assert f"back to the state after step {anchor}, and on after step {step}" in output
    snapshot = newest(tmp_path / "run")
    assert (snapshot.step, snapshot.state["loop"]["rollbacks"]) == (NUM_STEPS, len(spikes()))
    undone = {step for spike, anchor in back.items() for step in range(anchor + 1, spike + 1)}
    assert snapshot.arrays["optimizer/0000/iteration"] == NUM_STEPS - len(undone)
    assert read(tmp_path / "run")["checkpoint"] is None


@pytest.mark.fault(rows=[15])
def test_a_run_that_rolls_back_and_is_stopped_ends_the_same(train, tmp_path):
    """Stopped between a checkpoint and the spike, where what is saved is no state to go back to; and killed after it."""
    settings = ["loss=nogradient", "trainer.on_nonfinite=rollback", "checkpoint.every=4", "checkpoint.keep=1", "trainer.ema_decay=0.9"]
    assert train(*settings, run_dir=tmp_path / "straight")[0] == 0
    early, late = spikes()[0], spikes()[1]
    assert (early - 1) % 4
    assert (late - 1) % 4 > 1
    for end, lost in ((early - 1, False), (early, True), (late - 2, False), (late - 1, False), (late + 1, True)):
        assert train(*settings, f"trainer.steps={end}")[0] == 0
        if lost:
            shutil.rmtree(tmp_path / "run" / "checkpoints" / f"step-{end:08d}")
    assert train(*settings)[0] == 0
    assert_same(tmp_path / "straight", tmp_path / "run")


@pytest.mark.fault(rows=[15])
def test_rolling_back_is_bounded(train, tmp_path):
    exit_code, output, message = train("loss=never", "trainer.on_nonfinite=rollback")
    assert exit_code == 3
    assert output.count("(rollback ") == 10
    assert message.startswith("error: diverged: step 11 gave loss = nan; the update was not applied")
    assert newest(tmp_path / "run").step == 10


@pytest.mark.fault(rows=[15])
@pytest.mark.parametrize(
    ("overrides", "tensor", "advice"),
    [
        (["model=rooted"], "the output of layer root", "layer root, with inputs up to .*, has no finite output for some of them: mend it"),
        (["model=steep"], "the gradient by the output of layer hidden", "layer root, with inputs up to 0, has no finite derivative"),
        (["optimizer.learning_rate=1e25"], "the loss of an example", r"try a smaller optimizer\.learning_rate \(it was 1e\+25\)"),
        (["loss=huge"], "the norm of the gradient", r"their squares are not: .* or trainer\.clip_norm=1"),
        (["model=mlp", "optimizer.learning_rate=1e30"], "the output of layer hidden_2", "layer hidden_2, .*, overflows: try a smaller"),
        (
            ["model=mlp", "precision=mixed_float16", "optimizer.learning_rate=1e4"],
            "the output of layer hidden_2",
            "computes in float16: try precision=float32",
        ),
    ],
    ids=["a layer's formula", "a layer's derivative", "the loss overflows", "the norm overflows", "a layer overflows", "half precision"],
)  # fmt: skip
def test_the_advice_tells_where_it_began(train, tmp_path, overrides, tensor, advice):
    exit_code, _, message = train("loss=fine", *overrides)
    assert exit_code == 3
    assert read(tmp_path / "run")["first_nonfinite"]["tensor"] == tensor
    assert re.search(advice, message), message


@pytest.mark.slow
@pytest.mark.parametrize(
    "overrides",
    [
        ["model.dropout=0.5"],
        ["model.dropout=0.5", "trainer.accumulate=4", "trainer.compile=chunk"],
        ["model.dropout=0.5", "trainer.accumulate=4"],
        ["model.batch_normalization=true", "trainer.accumulate=2"],
        ["data.stream=true", "trainer.clip_norm=0.1"],
        ["precision=mixed_float16"],
        ["precision=mixed_bfloat16"],
    ],
    ids=" ".join,
)
def test_the_step_is_the_one_that_was_trained(tmp_path, overrides):
    """Its loss and the norm of every variable's gradient, computed anew in the state before it, are those that were logged."""
    settings = ["trainer.eval_every=0", "gradient.verify_at_start=false", "trainer.compile=graph", f"hydra.run.dir={tmp_path}", *overrides]
    assert cli.main([*settings, "trainer.steps=3"]) == 0
    shutil.rmtree(tmp_path / "checkpoints")
    assert cli.main([*settings, "trainer.steps=2"]) == 0
    job = config.load([*settings, "trainer.steps=3"])
    placement, data, learner, _ = training.build_all(job)
    learner.restore(newest(tmp_path).arrays)
    assert cli.main([*settings, "trainer.steps=3"]) == 0
    logged = lines(tmp_path)[2]
    with placement.scope():
        forensics = Forensics(learner, data, job.config.trainer.accumulate, "graph")
        report = forensics(3, Order(len(data.train), 32, 0).batches(2, 1)[0], logged)
    tensors = {seen["tensor"]: seen for seen in report["tensors"]}
    tolerance = 1e-2 if "precision=mixed_bfloat16" in overrides else 1e-3 if "precision=mixed_float16" in overrides else 1e-5
    assert report["first_nonfinite"] is None
    assert "computed anew" in report["advice"]
    assert tensors["the loss"]["largest_finite"] == pytest.approx(logged["loss"], rel=tolerance)
    assert tensors["the norm of the gradient"]["largest_finite"] == pytest.approx(logged["grad_norm/global"], rel=tolerance)
    assert {f"the gradient by {tag.removeprefix('grad_norm/')}" for tag in logged if "/kernel" in tag} <= tensors.keys()


def test_the_order_is_that_of_computation(train, tmp_path):
    train("loss=nogradient", "model=mlp", "model.hidden=[4]")
    assert [seen["tensor"] for seen in read(tmp_path / "run")["tensors"]] == [
        "the output of layer hidden_1",
        "the output of layer activation_1",
        "the output of layer output",
        "the predictions",
        "the loss of an example",
        "the loss",
        "the gradient of the loss by the predictions",
        "the gradient by the output of layer output",
        "the gradient by output/bias",
        "the gradient by output/kernel",
        "the gradient by the output of layer activation_1",
        "the gradient by the output of layer hidden_1",
        "the gradient by hidden_1/bias",
        "the gradient by hidden_1/kernel",
        "the norm of the gradient",
    ]


def test_what_cannot_be_looked_into_still_ends_as_it_should(train, tmp_path, monkeypatch):
    monkeypatch.setattr("trainer.forensics._recorded", None)
    exit_code, _, message = train("loss=nogradient")
    assert exit_code == 3
    assert "The step can't be computed anew on the host (TypeError: " in message
    assert "try gradient=auto, a smaller optimizer.learning_rate or trainer.clip_norm=1" in message
    assert read(tmp_path / "run")["first_nonfinite"] is None


@pytest.mark.slow
@pytest.mark.fault(rows=[15])
def test_by_the_command(command, folder, tmp_path):
    run_dir = tmp_path / "run"
    exit_code, _, message = command("loss=nogradient")
    assert exit_code == 3
    assert f"step {spikes()[0]} gave grad_norm/" in message
    assert f"more is in {run_dir / 'divergence.json'}" in message
    files = {path: path.read_bytes() for path in run_dir.rglob("*") if path.is_file()}
    words = ("--config-dir", str(folder / "conf"), "trust=[divergent_package]", "debug=nonfinite", f"hydra.run.dir={run_dir}")
    exit_code, output, _ = command(words=words)
    assert exit_code == 0
    assert re.search(r"gradient of the loss by the predictions +\(8, 1\) +inf at 1 of 8", output), output
    assert read(run_dir)["advice"] in " ".join(output.split())
    assert {path: path.read_bytes() for path in run_dir.rglob("*") if path.is_file()} == files


def test_the_replay_may_take_the_other_gradient(train):
    train("loss=nogradient")
    exit_code, output, _ = train("loss=nogradient", "debug=nonfinite", "gradient=auto")
    assert exit_code == 0
    assert "by gradient=auto" in output
    assert "the step is finite everywhere" in output


@pytest.mark.fault(rows=[24])
def test_a_run_s_overrides_do_not_extend_what_is_trusted(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(folder)
    (tmp_path / "config.yaml").touch()
    for line in ("trust=[divergent_package]", " trust=[divergent_package]", "+trust=[divergent_package]", "trust.0=divergent_package"):
        (tmp_path / "overrides.txt").write_text(f"loss=nogradient\n{line}\n")
        assert cli.main(["--config-dir", str(folder / "conf"), "debug=nonfinite", f"hydra.run.dir={tmp_path}"]) == 2
        assert "trust" in capsys.readouterr().err


@pytest.mark.slow
def test_the_replay_refuses_where_there_is_nothing_to_replay(train, tmp_path):
    exit_code, _, message = train("loss=nogradient", "debug=nonfinite")
    assert exit_code == 2
    assert "holds no run: type hydra.run.dir=DIRECTORY of one that has diverged" in message
    assert not (tmp_path / "run").exists()
    train("loss=fine", "trainer.steps=2")
    assert "has no divergence.json, as a run has that diverged" in train("loss=fine", "trainer.steps=2", "debug=nonfinite")[2]
    train("loss=nogradient", run_dir=tmp_path / "on")
    train("loss=nogradient", "gradient=auto", "checkpoint.keep=1", run_dir=tmp_path / "on")
    assert "has gone on since step" in train("loss=nogradient", "debug=nonfinite", run_dir=tmp_path / "on")[2]
    assert "loss._target_: " in train("loss=fine", "debug=nonfinite", run_dir=tmp_path / "on")[2]
    train("loss=nogradient", "trainer.on_nonfinite=rollback", run_dir=tmp_path / "back")
    assert "there is no checkpoint: it was rolled back" in train("loss=nogradient", "debug=nonfinite", run_dir=tmp_path / "back")[2]
    (tmp_path / "back" / "divergence.json").write_text('{"step": 3}')
    assert "divergence.json in" in train("loss=nogradient", "debug=nonfinite", run_dir=tmp_path / "back")[2]


@pytest.mark.fault(rows=[16])
@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("array", ["x", "y"])
def test_data_that_are_not_finite_are_refused_by_their_row(train, tmp_path, value, array):
    """Where the row weighs something; else it may hold anything."""
    rng = np.random.default_rng(0)
    arrays = {"x": rng.normal(size=(80, 3)), "y": rng.normal(size=(80, 1)), "w": np.ones(80)}
    arrays[array][57, -1] = value
    np.savez(tmp_path / "data.npz", **arrays)
    data = [f"data.path={tmp_path / 'data.npz'}", "loss=fine", "trainer.steps=12"]
    exit_code, _, message = train(*data, run_dir=tmp_path / "counts")
    assert exit_code == read(tmp_path / "counts", "status.json")["exit_code"] == 5
    assert re.search(r"row 57\b.*\(from 0\)", message), message
    assert not (tmp_path / "counts" / "metrics.jsonl").exists()
    arrays["w"][57] = 0
    np.savez(tmp_path / "data.npz", **arrays)
    assert train(*data, "data.sample_weight=w")[0] == 0
    assert newest(tmp_path / "run").step == 12


@pytest.mark.fault(rows=[23])
@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["data.fault=above"], r"targets: class 3 in row 41 \(from 0\) is out of range: 0 to 2"),
        (["data.fault=below"], r"targets: class -1 in row 41 \(from 0\) is out of range: 0 to 2"),
        (["data.fault=rank"], r"class targets must have shape \[n\], .*; found shape \(60, 1\)"),
        (["data.fault=dtype"], r"targets must be whole numbers, .*; found dtype float64"),
        (["data.fault=text"], "features must be real numbers; found dtype <U32"),
        (["data.kind=real", "data.fault=rank", "loss=mse"], r"must have shape \[n, dim\]; found \(60, 1, 2\)"),
        (["data.kind=real", "data.fault=dtype", "loss=mse"], "targets must be real numbers; found dtype complex128"),
        (["model=narrow"], r"features of shape \(3,\).*expected shape=\(None, 5\), found shape=\(1, 3\)"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_data_that_do_not_fit_are_refused(folder, tmp_path, monkeypatch, capsys, overrides, message):
    monkeypatch.syspath_prepend(folder)
    words = ["--config-dir", str(folder / "conf"), "trust=[divergent_package]", f"hydra.run.dir={tmp_path / 'run'}", "trainer.steps=2"]
    assert cli.main([*words, "data=wrong", "data.batch_size=8", *overrides]) == 5
    errors = capsys.readouterr().err
    assert re.search(f"^error: .*{message}", errors), errors
    assert errors.count("\n") == 1
    assert not (tmp_path / "run" / "metrics.jsonl").exists()
