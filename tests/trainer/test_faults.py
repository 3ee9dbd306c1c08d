"""What breaks, and what must happen then: real processes, real signals."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from trainer import checkpoints

pytestmark = pytest.mark.fault

SETTINGS = (
    "trainer.steps=3000",
    "trainer.eval_every=500",
    "checkpoint.every=150",
    "checkpoint.monitor=eval/accuracy",
    "checkpoint.goal=max",
)


def start(folder: Path, *overrides: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "trainer", *SETTINGS, f"hydra.run.dir={folder}", *overrides]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2])


def finish(folder: Path, *overrides: str) -> tuple[int, str]:
    process = start(folder, *overrides)
    _, errors = process.communicate(timeout=300)
    return process.returncode, errors


def wait_for_lines(process: subprocess.Popen, folder: Path, count: int) -> None:
    """Returns when the run has logged `count` steps, or has ended."""
    path = folder / "metrics.jsonl"
    while process.poll() is None and (not path.exists() or path.read_bytes().count(b"\n") < count):
        time.sleep(0.005)


def assert_same(one: Path, other: Path) -> None:
    assert (one / "metrics.jsonl").read_text() == (other / "metrics.jsonl").read_text()
    (expected, _), (found, _) = checkpoints.load_newest(one / "checkpoints"), checkpoints.load_newest(other / "checkpoints")
    assert found.state == expected.state
    assert found.arrays.keys() == expected.arrays.keys()
    for name, array in expected.arrays.items():
        np.testing.assert_array_equal(found.arrays[name], array, err_msg=name)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    assert finish(folder) == (0, "")
    return folder


def test_killed_again_and_again_the_result_is_the_same(undisturbed, tmp_path):
    draw = random.Random(0)
    killed = 0
    for _ in range(3):
        process = start(tmp_path)
        wait_for_lines(process, tmp_path, draw.randrange(100 + 900 * killed, 900 + 900 * killed))
        process.kill()
        process.communicate()
        killed += process.returncode == -signal.SIGKILL
    assert killed == 3
    assert finish(tmp_path)[0] == 0
    assert_same(undisturbed, tmp_path)


@pytest.mark.parametrize(("number", "exit_code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_saves_and_the_same_command_goes_on(undisturbed, tmp_path, number, exit_code):
    process = start(tmp_path)
    wait_for_lines(process, tmp_path, 700)
    process.send_signal(number)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == exit_code
    assert "goes on" in output
    assert finish(tmp_path)[0] == 0
    assert_same(undisturbed, tmp_path)


def test_a_signal_while_it_starts_saves_too(undisturbed, tmp_path):
    process = start(tmp_path)
    while not (tmp_path / "status.json").exists():
        time.sleep(0.005)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == 143
    assert finish(tmp_path)[0] == 0
    assert_same(undisturbed, tmp_path)


def test_damaged_checkpoints_are_passed_over_and_named(undisturbed, tmp_path):
    process = start(tmp_path)
    wait_for_lines(process, tmp_path, 1000)
    process.kill()
    process.communicate()
    newest = max((tmp_path / "checkpoints").iterdir())
    content = bytearray((newest / "arrays.npz").read_bytes())
    content[len(content) // 2] ^= 1
    (newest / "arrays.npz").write_bytes(content)
    process = start(tmp_path)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0
    assert str(newest / "arrays.npz") in output
    assert_same(undisturbed, tmp_path)


def test_no_valid_checkpoint_is_no_reason_to_start_afresh(tmp_path):
    finish(tmp_path, "trainer.steps=20", "trainer.eval_every=0")
    for path in (tmp_path / "checkpoints").iterdir():
        os.truncate(path / "arrays.npz", 100)
    for resume in ("auto", "must"):
        exit_code, errors = finish(tmp_path, "trainer.steps=40", "trainer.eval_every=0", f"resume={resume}")
        assert exit_code == 4
        assert errors.splitlines()[-1].startswith("error: no checkpoint in")


def test_one_directory_two_runs(tmp_path):
    process = start(tmp_path)
    wait_for_lines(process, tmp_path, 1)
    exit_code, errors = finish(tmp_path)
    process.kill()
    process.communicate()
    assert exit_code == 2
    assert "is locked" in errors
