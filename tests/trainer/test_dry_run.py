import json
import re
import subprocess
import sys
from pathlib import Path

import keras
import pytest

from tests.trainer.command_line import command
from trainer import cli, config, job
from trainer.errors import ConfigError, DivergedError

ROOT = Path(__file__).parents[2]
QUICK = ("trainer.dry_run=true", "model.hidden=[7]", "trainer.steps=30", "trainer.eval_every=10", "trainer.compile=graph")


@pytest.fixture(autouse=True)
def _own_precision():
    yield
    keras.mixed_precision.set_global_policy("float32")


@pytest.fixture
def shown(here, capsys):
    """Runs a dry run in an empty folder, and gives what it shows, each line without the blanks that make columns."""

    def shown(*overrides: str, quick: tuple[str, ...] = QUICK) -> str:
        assert job.run(config.load([*quick, *overrides])) == 0
        assert list(here.iterdir()) == []
        return "\n".join(" ".join(line.split()) for line in capsys.readouterr().out.splitlines())

    return shown


def test_it_shows_what_the_run_would_be_and_writes_nothing(shown):
    text = shown()
    assert "dry run: nothing is trained, and nothing is written" in text
    assert "data 1438 examples to train on, 359 to evaluate on" in text
    assert "batch 32 examples\n" in text
    assert "output (32, 10) float32" in text
    assert "targets (32,) int32" in text
    assert re.search(r"^hidden_1 Dense \(None, 7\) float32 455$", text, re.MULTILINE)
    assert re.search(r"^output Dense \(None, 10\) float32 80$", text, re.MULTILINE)
    assert "parameters 535" in text
    assert re.search(r"memory about \d+ MB: TensorFlow itself \d+", text)
    assert re.search(r"gradient analytic \(\d+ derivatives agree to", text)
    assert "compile graph (trainer.compile=graph)" in text
    assert re.search(r"time about [\d.]+ s: [\d.]+ s to start, 30 steps of [\d.]+ ms, 3 evaluations of [\d.]+ ms", text.replace("\n", " "))


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["trainer.compile=auto"], ["compile chunk (trainer.compile=auto)"]),
        (["trainer.compile=measure"], ["trainer.compile=measure: ", "(trainer.compile=measure)"]),
        (["gradient=auto"], ["gradient auto (not checked: the tape's)"]),
        (["trainer.accumulate=4"], ["in 4 parts"]),
        (["data.stream=true"], ["streamed, not held in memory"]),
        (["precision=mixed_float16"], ["hidden_1 Dense"]),
        (["trainer.eval_every=0"], ["30 steps of"]),
        (["gradient.audit_every=2", "trainer.ema_decay=0.9", "trainer.on_nonfinite=rollback"], ["30 steps of"]),
        (["debug=overfit"], ["data 32 examples to train on, 32 to evaluate on"]),
        (["data=diabetes_pairs", "loss=pairwise_logistic"], ["output (32, 2"]),
    ],
)
def test_whatever_the_job(shown, overrides, words):
    text = shown(*overrides)
    assert [word for word in words if word not in text.replace("\n", " ")] == []


@pytest.mark.slow
def test_replicas(here):
    """In a process of its own: TensorFlow confuses the reductions of two models in one process."""
    done = command(*QUICK, "strategy=cpu_sim", "strategy.num_devices=2", cwd=here)
    assert (done.returncode, done.stderr, list(here.iterdir())) == (0, "", [])
    text = " ".join(done.stdout.split())
    assert "16 on each of 2 replicas" in text
    assert "on each of 2 replicas weights" in text


@pytest.mark.slow
def test_weights_that_belong_to_the_loss_and_layers_within_models(shown):
    quick = ("trainer.dry_run=true", "data=text", "model=transformer", "model.width=8", "data.length=8", "loss=linear_crossentropy")
    text = shown("trainer.steps=2", "trainer.eval_every=0", quick=quick)
    assert "hidden (32, 8, 8) float32, kernel (8, " in text.replace("\n", " ")


def test_what_the_run_is_refused_for_is_refused(here, capsys):
    assert cli.main([*QUICK, "gradient=auto", "loss=cubic"]) == 2
    assert cli.main([*QUICK, "data.batch_size=33", "trainer.accumulate=2"]) == 2
    assert "type a multiple of 2" in capsys.readouterr().err
    assert list(here.iterdir()) == []


def test_a_wrong_gradient_is_found(tmp_path, monkeypatch):
    (tmp_path / "conf" / "loss").mkdir(parents=True)
    (tmp_path / "conf" / "loss" / "off.yaml").write_text("_target_: package_slightly_off.Off\n")
    (tmp_path / "package_slightly_off.py").write_text(
        "import dataclasses\n"
        "from losses.mse import MSE\n"
        "@dataclasses.dataclass(frozen=True)\n"
        "class Off(MSE):\n"
        "    def gradient(self, y_true, y_pred):\n"
        "        return 1.001 * super().gradient(y_true, y_pred)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    wanted = config.load([*QUICK, "loss=off", "trust=[package_slightly_off]"], tmp_path / "conf")
    with pytest.raises(ConfigError, match=r"the analytic gradient is wrong.* The run has not begun"):
        job.run(wanted)


def test_a_step_that_is_not_finite_is_told(here):
    diverging = ("loss=mse", "optimizer=sgd", "optimizer.learning_rate=1e30", "gradient.verify_at_start=false")
    with pytest.raises(DivergedError, match=r"step \d gave loss = ") as raised:
        job.run(config.load([*QUICK, *diverging]))
    assert raised.value.exit_code == 3
    assert list(here.iterdir()) == []


def test_a_sweep_is_refused(refused, here):
    assert "type it without -m" in refused("-m", "seed=1,2", "trainer.dry_run=true")
    assert list(here.iterdir()) == []


def test_the_directory_of_a_run_is_as_it_was(tmp_path):
    run = [*QUICK, "trainer.dry_run=false", "gradient.verify_at_start=false", f"hydra.run.dir={tmp_path}"]
    assert job.run(config.load(run)) == 0
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert job.run(config.load([*run, "trainer.dry_run=true"])) == 0
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


# What makes a job large: weights with their slots; activations of a convolution; examples.
LARGE = {
    "weights": ["model.hidden=[4096,4096]"],
    "activations": ["model=cnn", "data=mnist", "data.batch_size=1024"],
    "data": ["data=synthetic", "data.num_examples=400000", "data.num_features=64", "loss=mse", "model=linear", "data.batch_size=64"],
}


@pytest.mark.slow
@pytest.mark.parametrize("what", LARGE)
def test_memory_is_estimated_to_within_a_quarter(tmp_path, what):
    """Of the peak of a run in a process of its own; and what of it is not TensorFlow itself, to within a half."""
    arguments = [
        sys.executable,
        "-m",
        "trainer",
        *LARGE[what],
        "trainer.steps=20",
        "trainer.eval_every=10",
        f"hydra.run.dir={tmp_path}/run",
    ]
    dry = subprocess.run([*arguments, "trainer.dry_run=true"], cwd=ROOT, capture_output=True, text=True, timeout=240, check=True)
    estimate, alone = map(int, re.search(r"about (\d+) MB: TensorFlow itself (\d+)", " ".join(dry.stdout.split())).groups())
    subprocess.run(arguments, cwd=ROOT, capture_output=True, timeout=240, check=True)
    measured = json.loads((tmp_path / "run" / "summary.json").read_text())["peak_memory_mb"]
    assert measured / 1.25 < estimate < measured * 1.25
    assert (measured - alone) / 1.5 < estimate - alone < (measured - alone) * 1.5
