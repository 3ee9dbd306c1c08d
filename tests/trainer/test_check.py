"""`python -m trainer.check`: what it prints, writes and answers, for shipped losses and a user's own."""

import json
import os
import subprocess
import sys

import pytest

from trainer import check
from trainer.errors import ConfigError

PACKAGE = """
from losses.mse import MSE


class Off(MSE):
    def gradient(self, y_true, y_pred):
        return 1.01 * super().gradient(y_true, y_pred)
"""


@pytest.mark.slow
def test_a_shipped_loss_with_a_hyperparameter(tmp_path, capsys):
    assert check.run(["loss=huber", "loss.delta=0.5", f"--output={tmp_path}"]) == 0
    printed = capsys.readouterr().out
    assert "Gradient check: huber, contract exact" in printed
    assert "huber: everything holds" in printed
    saved = json.loads((tmp_path / "huber" / "gradcheck.json").read_text())
    assert saved["hyperparameters"] == {"delta": 0.5}
    assert {(f["data"]["dtype"], f["mode"]) for f in saved["findings"] if f["section"] == "accuracy"} == {
        (dtype, mode) for dtype in ("float64", "float32", "bfloat16", "float16") for mode in ("auto", "analytic")
    }
    assert (tmp_path / "huber" / "gradcheck.html").exists()


@pytest.mark.slow
def test_a_wrong_loss_of_ones_own(tmp_path, capsys, monkeypatch):
    (tmp_path / "off_package.py").write_text(PACKAGE)
    (tmp_path / "conf" / "loss").mkdir(parents=True)
    (tmp_path / "conf" / "loss" / "off.yaml").write_text("_target_: off_package.Off\n")
    monkeypatch.syspath_prepend(tmp_path)
    arguments = ["loss=off", f"--config-dir={tmp_path / 'conf'}", "trust=[off_package]", f"--output={tmp_path / 'out'}"]
    assert check.run(arguments) == 1
    printed = capsys.readouterr().out
    assert "the gradient is not proved" in printed
    assert "1.01 times what it should be" in printed


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["loss=hubr"], "did you mean huber"),
        (["loss=huber", "loss.dleta=1"], "did you mean loss.delta"),
        (["loss=huber", "--mutant"], "--mutant: there is no such option; did you mean --mutants"),
        (["loss=huber", "--zzz"], "--zzz: there is no such option; python -m trainer.check --help shows what there is"),
        (["loss=huber", "--seed=x"], "--seed"),
        (["loss=huber", "--seed=-1"], "--seed=-1: must be a whole number from 0 on"),
        (["loss=huber", f"--output={__file__}/in_a_file"], "in_a_file: Not a directory; type a folder"),
        (["loss=huber", "loss.delta=-1"], "loss.delta=-1: must be"),
    ],
)
def test_a_mistake_is_answered(arguments, said):
    with pytest.raises(ConfigError, match=said):
        check.run(arguments)


def test_help_needs_no_tensorflow():
    code = "import sys; from trainer import check; check.run(['--help']); assert 'tensorflow' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert "--mutants" in done.stdout


@pytest.mark.slow
def test_the_command_says_nothing_but_the_report(tmp_path):
    environment = {name: value for name, value in os.environ.items() if name != "TF_CPP_MIN_LOG_LEVEL"}
    command = [sys.executable, "-m", "trainer.check", "loss=poincare", f"--output={tmp_path}"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=200)
    assert done.returncode == 0
    assert "poincare: everything holds" in done.stdout
    assert "WARNING" not in done.stderr
    assert "retracing" not in done.stderr
    assert "cuda" not in done.stderr.lower()
    wrong = subprocess.run([*command[:3], "loss=poincar"], env=environment, capture_output=True, text=True, check=False, timeout=60)
    assert wrong.returncode == 2
    assert wrong.stderr.startswith("error: ")
    assert "Traceback" not in wrong.stderr
