"""What breaks, and what must happen then: real processes, real signals."""

import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.trainer.processes import ENDLESS, ROOT, assert_same, finish, last_step, signaled, wait_for
from trainer import checkpoints
from trainer.checkpoints import Snapshot

pytestmark = pytest.mark.fault


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    result = finish(folder)
    assert (result.returncode, result.stderr) == (0, "")
    return folder


def test_killed_again_and_again_the_result_is_the_same(undisturbed, start, tmp_path):
    draw = random.Random(0)
    for begin in (1, 3000, 6000):
        process, step = start(tmp_path), draw.randrange(begin, begin + 2500)
        wait_for(process, lambda step=step: last_step(tmp_path) >= step)
        assert signaled(process, signal.SIGKILL)[0] == -signal.SIGKILL
        assert last_step(tmp_path) < 12000
    assert finish(tmp_path).returncode == 0
    assert_same(undisturbed, tmp_path)


@pytest.mark.parametrize(("number", "exit_code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_saves_and_the_same_command_goes_on(undisturbed, start, tmp_path, number, exit_code):
    process = start(tmp_path)
    wait_for(process, lambda: last_step(tmp_path) >= 3200)
    found, output = signaled(process, number)
    assert found == exit_code
    assert "goes on" in output
    assert checkpoints.load_newest(tmp_path / "checkpoints")[0].step == last_step(tmp_path) < 12000
    assert finish(tmp_path).returncode == 0
    assert_same(undisturbed, tmp_path)


def test_a_signal_while_it_starts_saves_too(undisturbed, start, tmp_path):
    process = start(tmp_path)
    wait_for(process, (tmp_path / "status.json").exists)
    assert signaled(process, signal.SIGTERM)[0] == 143
    assert checkpoints.load_newest(tmp_path / "checkpoints")[0].step < 12000
    assert finish(tmp_path).returncode == 0
    assert_same(undisturbed, tmp_path)


def test_a_second_signal_ends_it_at_once(start, tmp_path):
    """While it builds and compiles; two different signals, because two of the same may arrive as one. Either may come first."""
    process = start(tmp_path, ENDLESS)
    wait_for(process, (tmp_path / "environment.json").exists)
    exit_code, _ = signaled(process, signal.SIGINT, signal.SIGTERM)
    assert exit_code in (130, 143)
    assert last_step(tmp_path) == 0
    status = json.loads((tmp_path / "status.json").read_text())
    assert (status["state"], status["exit_code"]) == ("stopped", exit_code)
    assert "the second" in status["cause"]


def test_damaged_checkpoints_are_passed_over_and_named(undisturbed, start, tmp_path):
    process = start(tmp_path)
    wait_for(process, lambda: last_step(tmp_path) >= 3200)
    assert signaled(process, signal.SIGKILL)[0] == -signal.SIGKILL
    newest = max((tmp_path / "checkpoints").glob("step-*"))
    content = bytearray((newest / "arrays.npz").read_bytes())
    content[len(content) // 2] ^= 1
    (newest / "arrays.npz").write_bytes(content)
    result = finish(tmp_path)
    assert result.returncode == 0
    assert str(newest / "arrays.npz") in result.stdout
    assert_same(undisturbed, tmp_path)


def test_no_valid_checkpoint_is_no_reason_to_start_afresh(tmp_path):
    assert finish(tmp_path, "trainer.steps=20", "trainer.eval_every=0").returncode == 0
    for path in (tmp_path / "checkpoints").iterdir():
        os.truncate(path / "arrays.npz", 100)
    for resume in ("auto", "must"):
        result = finish(tmp_path, "trainer.steps=40", "trainer.eval_every=0", f"resume={resume}")
        assert result.returncode == 4
        assert result.stderr.splitlines()[-1].startswith("error: no checkpoint in")


def test_one_directory_two_runs(start, tmp_path):
    process = start(tmp_path, ENDLESS)
    wait_for(process, lambda: last_step(tmp_path) >= 1)
    result = finish(tmp_path, ENDLESS)
    assert process.poll() is None
    assert result.returncode == 2
    assert "is locked" in result.stderr


# What a continued run does with its checkpoints, in a process that kills itself before the n-th call that changes the file system.
SAVE = """
import os, shutil, signal, sys
from pathlib import Path
import numpy as np
from trainer import checkpoints

folder, step, last = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
calls = 0

def deadly(function):
    def call(*arguments, **keywords):
        global calls
        calls += 1
        if calls == last:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*arguments, **keywords)
    return call

for name in ("mkdir", "fsync", "rename", "replace", "unlink", "rmdir"):
    setattr(os, name, deadly(getattr(os, name)))
checkpoints.clean(folder)
checkpoints.load_newest(folder)
checkpoints.save(folder, checkpoints.Snapshot(step, {"w": np.full(1000, step, np.float32)}, {"loop": step}), keep=2, best_step=None)
"""


def save(folder: Path, step: int) -> None:
    checkpoints.save(folder, Snapshot(step, {"w": np.full(1000, step, np.float32)}, {"loop": step}), keep=2, best_step=None)


@pytest.mark.parametrize(
    ("step", "damaged", "at_least"),
    [(3, False, 7), (2, False, 0), (2, True, 5)],
    ids=["a new step", "a step saved already", "a step whose checkpoint is damaged"],
)
def test_a_save_that_is_killed_leaves_a_valid_checkpoint(tmp_path, step, damaged, at_least):
    calls = 0
    while True:
        folder = tmp_path / str(calls)
        for earlier in (1, 2):
            save(folder, earlier)
        if damaged:
            os.truncate(folder / "step-00000002" / "arrays.npz", 100)
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        arguments = [sys.executable, "-c", SAVE, str(folder), str(step), str(calls + 1)]
        returncode = subprocess.run(arguments, env=environment, timeout=60, check=False).returncode
        assert returncode in (0, -signal.SIGKILL)

        checkpoints.clean(folder)
        assert not list(folder.glob(".*"))
        snapshot, _ = checkpoints.load_newest(folder)
        assert snapshot.step in ((step,) if returncode == 0 else (1, step) if damaged else (2, step))
        np.testing.assert_array_equal(snapshot.arrays["w"], np.full(1000, snapshot.step, np.float32))
        save(folder, 4)
        kept = sorted(folder.glob("step-*"))
        assert [checkpoints.load(path).step for path in kept] == [snapshot.step, 4]
        if returncode == 0:
            break
        calls += 1
    assert calls >= at_least
