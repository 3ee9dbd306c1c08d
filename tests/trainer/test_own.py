"""A user's own folder: losses, models and data that the program has never seen, by the command from that folder and in this process."""

import csv
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from trainer import config, job
from trainer.errors import ConfigError, DataError

ROOT = Path(__file__).parents[2]
QUICK = ("data=diabetes", "model=linear", "optimizer.learning_rate=0.05", "trainer.steps=40", "trainer.eval_every=20")

LOSSES = '''
import dataclasses

import tensorflow as tf

from losses.base import Loss


@dataclasses.dataclass(frozen=True)
class Right(Loss):
    """A smooth absolute error."""

    scale: float = 1.0

    def value(self, y_true, y_pred):
        return tf.reduce_mean(tf.sqrt(1 + tf.square(self.scale * (y_pred - y_true))), axis=-1)

    def gradient(self, y_true, y_pred):
        error = self.scale * (y_pred - y_true)
        return self.scale * error / tf.sqrt(1 + tf.square(error)) / y_pred.shape[-1]


class SlightlyOff(Right):
    def gradient(self, y_true, y_pred):
        return 1.001 * super().gradient(y_true, y_pred)


class WrongSign(Right):
    def gradient(self, y_true, y_pred):
        return -super().gradient(y_true, y_pred)


class WrongShape(Right):
    def gradient(self, y_true, y_pred):
        return super().gradient(y_true, y_pred)[:, 0]


class WrongDtype(Right):
    def gradient(self, y_true, y_pred):
        return tf.cast(super().gradient(y_true, y_pred), tf.float64)


class IgnoresDy(Right):
    def value_and_vjp(self, y_true, y_pred):
        return self.value(y_true, y_pred), lambda dy: self.gradient(y_true, y_pred)


def plain(y_true, y_pred):
    return tf.reduce_mean(tf.math.log(tf.cosh(y_pred - y_true)), axis=-1)
'''
MODELS = """
import keras
import tensorflow as tf


class Bottleneck(keras.Model):
    def __init__(self, num_outputs, units=4):
        super().__init__()
        self.inner = keras.layers.Dense(units, "tanh", name="inner")
        self.outer = keras.layers.Dense(num_outputs, name="outer")

    def call(self, features):
        return self.outer(self.inner(features))


class Fours(keras.layers.Layer):
    def call(self, x):
        return tf.reshape(tf.reshape(x, [-1, 4 * x.shape[-1]]), [-1, x.shape[-1]])


def fours(input_shape, num_outputs):
    return keras.Sequential([keras.Input(input_shape), Fours(), keras.layers.Dense(num_outputs)])


def penalized(input_shape, num_outputs):
    layer = keras.layers.Dense(num_outputs, use_bias=False, kernel_regularizer=keras.regularizers.L2(0.01))
    outputs = keras.layers.Activation("linear", activity_regularizer=keras.regularizers.L2(1e-9))
    return keras.Sequential([keras.Input(input_shape), layer, outputs])
"""
# The file's name -> its class, and what the refusal says: what is wrong, and both values.
BOTH_VALUES = r"gradient=analytic in float64 gives (?P<found>\S+), differences of value give (?P<expected>\S+?)\."
WRONG = {
    "slightly_off": ("SlightlyOff", rf"it is 1\.001 times what it should be.*{BOTH_VALUES} "),
    "wrong_sign": ("WrongSign", rf"its sign is turned.*{BOTH_VALUES} "),
    "ignores_dy": ("IgnoresDy", rf"it ignores dy.*{BOTH_VALUES} "),
    "wrong_shape": ("WrongShape", r"must have shape \(32, 1\).*found shape \(32,\)"),
    "wrong_dtype": ("WrongDtype", r"must have shape \(32, 1\) and dtype float32.*found shape \(32, 1\) and dtype float64"),
}


SOURCES = """
import dataclasses

import numpy as np

from trainer.data.base import StreamedSource


@dataclasses.dataclass(frozen=True)
class Waves(StreamedSource):
    num_examples: int = 1000
    kind = "real"

    def read(self, rows):
        x = rows[:, None] / self.num_examples
        return x, 5 * x + 2, None
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A folder with a package and the files that name what is in it."""
    folder = tmp_path_factory.mktemp("user")
    for group in ("loss", "model", "data"):
        (folder / "conf" / group).mkdir(parents=True)
    (folder / "my_package").mkdir()
    (folder / "my_package" / "__init__.py").write_text(LOSSES)
    (folder / "my_package" / "models.py").write_text(MODELS)
    (folder / "my_package" / "sources.py").write_text(SOURCES)
    (folder / "conf" / "data" / "waves.yaml").write_text("_target_: my_package.sources.Waves\nnum_examples: 500\n")
    losses = {"right": "Right\nscale: 2.0", "plain": "plain"} | {name: target for name, (target, _) in WRONG.items()}
    for name, target in losses.items():
        (folder / "conf" / "loss" / f"{name}.yaml").write_text(f"_target_: my_package.{target}\n")
    (folder / "conf" / "model" / "bottleneck.yaml").write_text("_target_: my_package.models.Bottleneck\nunits: 3\n")
    (folder / "conf" / "model" / "penalized.yaml").write_text("_target_: my_package.models.penalized\n")
    (folder / "conf" / "model" / "fours.yaml").write_text("_target_: my_package.models.fours\n")
    return folder


@pytest.fixture
def train(folder, tmp_path, monkeypatch):
    """Trains in this process and returns the run's directory."""
    monkeypatch.syspath_prepend(folder)

    def train(*overrides: str) -> Path:
        run_dir = tmp_path / "run"
        wanted = config.load([*QUICK, "trust=[my_package]", f"hydra.run.dir={run_dir}", *overrides], folder / "conf")
        assert job.run(wanted) == 0
        return run_dir

    return train


def command(folder: Path, *overrides: str) -> subprocess.CompletedProcess:
    """The command as it is typed in the user's folder; this checkout is not installed in development, so PYTHONPATH leads to it."""
    arguments = [sys.executable, "-m", "trainer", *overrides]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    environment.pop("TF_CPP_MIN_LOG_LEVEL", None)  # training in this process sets it
    return subprocess.run(arguments, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def read(run_dir: Path, name: str) -> dict:
    return json.loads((run_dir / name).read_text())


def steps(run_dir: Path) -> list[dict]:
    metrics = run_dir / "metrics.jsonl"
    return [json.loads(line) for line in metrics.read_text().splitlines()] if metrics.exists() else []


def test_a_source_that_reads_by_index(train, capsys):
    run_dir = train("data=waves", "loss=mse", "data.stream=true", "trainer.steps=200")
    assert read(run_dir, "summary.json")["final"]["eval/r2"] > 0.99
    assert "data=waves: 500 examples" in capsys.readouterr().out


def assert_learned(run_dir: Path) -> None:
    summary = read(run_dir, "summary.json")
    assert len(steps(run_dir)) == summary["steps"] == 40
    assert summary["final"]["eval/r2"] > 0.4


def assert_refused_before_the_first_step(run_dir: Path, message: str) -> None:
    status = read(run_dir, "status.json")
    assert status == {"state": "failed", "cause": message, "exit_code": 2}
    assert not steps(run_dir)
    assert not (run_dir / "checkpoints").exists()


def check_message(name: str, message: str) -> None:
    target, pattern = WRONG[name]
    assert message.startswith(f"loss {target}: ")
    match = re.search(pattern, message)
    assert match, message
    values = match.groupdict()
    if values:
        factor = float(values["found"]) / float(values["expected"])
        wanted = {"slightly_off": 1.001, "wrong_sign": -1.0}.get(name)
        assert factor == pytest.approx(wanted, rel=1e-5) if wanted else abs(factor - 1) > 0.01


@pytest.mark.slow
def test_a_right_loss_trains_by_the_command(folder, tmp_path):
    arguments = ("--config-dir", "conf", "loss=right", "trust=[my_package]", *QUICK, f"hydra.run.dir={tmp_path}")
    result = command(folder, *arguments)
    assert (result.returncode, result.stderr) == (0, "")
    assert read(tmp_path, "status.json")["state"] == "done"
    assert "derivatives agree" in read(tmp_path, "summary.json")["gradient_check"]
    assert_learned(tmp_path)


@pytest.mark.slow
@pytest.mark.fault(rows=[17])
def test_a_wrong_loss_is_refused_by_the_command(folder, tmp_path):
    arguments = ("--config-dir", "conf", "loss=slightly_off", "trust=[my_package]", *QUICK, f"hydra.run.dir={tmp_path}")
    result = command(folder, *arguments)
    assert result.returncode == 2
    label, message = result.stderr.splitlines()[-1].split(": ", 1)
    assert label == "error"
    assert "Traceback" not in result.stderr
    check_message("slightly_off", message)
    assert_refused_before_the_first_step(tmp_path, message)


@pytest.mark.fault(rows=[17])
@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_gradient_is_refused_before_the_first_step(train, tmp_path, name):
    with pytest.raises(ConfigError) as refused:
        train(f"loss={name}")
    check_message(name, str(refused.value))
    assert_refused_before_the_first_step(tmp_path / "run", str(refused.value))


def test_a_right_gradient_trains(train):
    assert_learned(train("loss=right"))


def test_the_tape_trains_what_the_proof_refuses(train):
    run_dir = train("loss=slightly_off", "gradient=auto")
    assert read(run_dir, "summary.json")["gradient_mode"] == "auto"
    assert_learned(run_dir)


def test_a_plain_function_trains_by_the_tape(train):
    assert_learned(train("loss=plain", "gradient=auto"))


def test_a_plain_function_has_no_gradient_of_its_own(train):
    with pytest.raises(ConfigError, match=r"gradient=analytic: the loss plain has gradient=auto; type gradient=auto"):
        train("loss=plain", "gradient=analytic")


def test_a_keras_model_of_ones_own(train):
    run_dir = train("loss=right", "model=bottleneck")
    assert {"grad_norm/bottleneck/inner/kernel", "grad_norm/bottleneck/outer/bias"} <= steps(run_dir)[0].keys()
    assert_learned(run_dir)


@pytest.mark.parametrize("way", ["graph", "chunk", "auto"])
def test_penalties_of_layers_are_part_of_the_loss(train, way):
    lines = steps(train("loss=right", "model=penalized", f"trainer.compile={way}", "optimizer.learning_rate=1e-9"))
    for line in lines:
        assert line["loss/regularization"] == pytest.approx(0.01 * line["param_norm/global"] ** 2, rel=1e-3)
        assert line["loss"] > line["loss/regularization"]


def test_a_model_that_takes_no_single_example(train):
    with pytest.raises(DataError, match=r"does not take one example, .*calling Fours\.call\(\)\. .*[Rr]eshape") as caught:
        train("loss=right", "model=fours")
    assert str(caught.value).isprintable()
    assert "{{" not in str(caught.value)


@pytest.mark.slow
def test_a_csv_file_by_the_command(folder, tmp_path):
    rng = np.random.default_rng(0)
    table = rng.normal(size=(200, 2))
    with open(tmp_path / "houses.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["area", "age", "price"])
        writer.writerows([area, age, 3 * area - age] for area, age in table)
    arguments = ("data=csv", f"data.path={tmp_path / 'houses.csv'}", "data.target=price", "loss=mse", "model=linear")
    result = command(folder, *arguments, "optimizer.learning_rate=0.02", "trainer.steps=400", f"hydra.run.dir={tmp_path / 'run'}")
    assert (result.returncode, result.stderr) == (0, "")
    assert read(tmp_path / "run", "summary.json")["final"]["eval/r2"] > 0.99


@pytest.mark.slow
def test_an_npz_file_by_the_command(folder, tmp_path):
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 300)
    np.savez(tmp_path / "points.npz", x=np.eye(3)[labels] + 0.1 * rng.normal(size=(300, 3)), y=labels)
    arguments = ("data=npz", f"data.path={tmp_path / 'points.npz'}", "trainer.steps=200", f"hydra.run.dir={tmp_path / 'run'}")
    result = command(folder, *arguments)
    assert (result.returncode, result.stderr) == (0, "")
    assert read(tmp_path / "run", "summary.json")["final"]["eval/accuracy"] > 0.97
