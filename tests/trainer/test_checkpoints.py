import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from trainer import checkpoints, snapshots
from trainer.errors import CheckpointError, ConfigError
from trainer.snapshots import Snapshot

ROOT = Path(__file__).parents[2]


def save(folder, step, best_step=None):
    snapshots.save(folder, Snapshot(step, {"w": np.arange(6, dtype=np.float32)}, {"step": step}), keep=2, best_step=best_step)


def damage(path):
    os.truncate(path / "arrays.npz", 100)


@pytest.fixture
def run(tmp_path):
    """A run's directory with checkpoints of steps 1 to 3, the first one the best."""
    for step in (1, 2, 3):
        save(tmp_path / "run" / "checkpoints", step, best_step=1)
    return tmp_path / "run"


def listed(capsys, monkeypatch, *arguments):
    monkeypatch.setenv("COLUMNS", "200")
    exit_code = checkpoints.run(list(map(str, arguments)))
    return exit_code, capsys.readouterr().out


def rows(output):
    return [[cell.strip() for cell in line.strip("│ ").split("│")] for line in output.splitlines() if line.startswith("│")]


def test_they_are_listed(run, capsys, monkeypatch):
    exit_code, output = listed(capsys, monkeypatch, run)
    assert exit_code == 0
    assert listed(capsys, monkeypatch, run / "checkpoints") == (0, output)
    assert [[row[0], row[3], row[4]] for row in rows(output)] == [["3", "newest", "yes"], ["2", "", "yes"], ["1", "best", "yes"]]


def test_the_command_says_what_is_wrong_with_an_older_one(run, capsys, monkeypatch):
    (run / "checkpoints" / "step-00000002" / "manifest.json").unlink()
    exit_code, output = listed(capsys, monkeypatch, run)
    assert exit_code == 0
    assert rows(output)[1][4] == "no: manifest.json is missing"


def test_the_command_ends_as_the_newest_one_is(run, capsys, monkeypatch):
    damage(run / "checkpoints" / "step-00000003")
    with pytest.raises(CheckpointError, match=r"arrays.npz is damaged.*goes on from step 2"):
        listed(capsys, monkeypatch, run)
    assert "no: arrays.npz is damaged" in rows(capsys.readouterr().out)[0][4]
    snapshots.load_newest(run / "checkpoints")  # sets it aside
    exit_code, output = listed(capsys, monkeypatch, run)
    assert exit_code == 0
    assert [row[3] for row in rows(output)] == ["newest", "best", "set aside"]
    for path in (run / "checkpoints").glob("step-*"):
        damage(path)
    with pytest.raises(CheckpointError, match="no other is valid either"):
        listed(capsys, monkeypatch, run)


def test_the_command_while_the_run_goes_on_and_removes_older_ones(run, capsys, monkeypatch):
    problem, looked_at = checkpoints.problem, []

    def meanwhile(path):
        reason = problem(path)
        if not looked_at:  # all that are seen in the first look are gone after it
            for step in (4, 5):
                save(run / "checkpoints", step)
        looked_at.append(path)
        return reason

    monkeypatch.setattr(checkpoints, "problem", meanwhile)
    exit_code, output = listed(capsys, monkeypatch, run)
    assert exit_code == 0
    assert [[row[0], row[4]] for row in rows(output)] == [["5", "yes"], ["4", "yes"]]


@pytest.mark.parametrize("saved", ["yesterday", 1e300, -1e300, None])
def test_the_command_takes_no_time_that_is_none(run, capsys, monkeypatch, saved):
    path = run / "checkpoints" / "step-00000003" / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"saved": saved}))
    with pytest.raises(CheckpointError, match=r"manifest\.json is damaged"):
        listed(capsys, monkeypatch, run)


def test_the_command_says_what_to_type_where_there_is_no_run(run, capsys, monkeypatch):
    monkeypatch.chdir(run.parent)
    with pytest.raises(ConfigError, match=r"there is no run in nowhere: type python -m trainer.checkpoints RUN"):
        listed(capsys, monkeypatch, "nowhere")
    (run.parent / "outputs").mkdir()
    run.rename(run.parent / "outputs" / "mine")
    for arguments in (["nowhere"], [], ["outputs"]):
        with pytest.raises(ConfigError, match=r"type python -m trainer.checkpoints outputs/mine"):
            listed(capsys, monkeypatch, *arguments)
    (run.parent / "config.yaml").touch()
    with pytest.raises(CheckpointError, match="there is no checkpoint in"):
        listed(capsys, monkeypatch, run.parent)


def test_the_command_as_users_type_it_imports_no_tensorflow(run):
    for command in ([sys.executable, "-X", "importtime", "-m", "trainer.checkpoints"], [sys.executable, "-m", "trainer", "checkpoints"]):
        done = subprocess.run([*command, str(run)], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True)
        assert "newest" in done.stdout
        assert not re.search(r"\| +(tensorflow|keras|hydra|omegaconf)$", done.stderr, re.MULTILINE)
    done = subprocess.run([*command, "nowhere"], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("error: there is no run in nowhere: type python -m trainer.checkpoints ")
