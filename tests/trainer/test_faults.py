"""What breaks, and what must happen then: real processes, real signals, full disks, damaged files.

Disks are full in two ways: a small tmpfs, where mounting is possible, and a limit of file sizes (RLIMIT_FSIZE), which is always.
"""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.trainer.processes import ENDLESS, ROOT, assert_same, finish, last_step, signaled, wait_for
from trainer import snapshots
from trainer.snapshots import Snapshot

pytestmark = pytest.mark.fault


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    result = finish(folder)
    assert (result.returncode, result.stderr) == (0, "")
    return folder


@pytest.mark.fault(rows=[1])
def test_killed_again_and_again_the_result_is_the_same(undisturbed, start, tmp_path):
    draw = random.Random(0)
    for begin in (1, 3000, 6000):
        process, step = start(tmp_path), draw.randrange(begin, begin + 2500)
        wait_for(process, lambda step=step: last_step(tmp_path) >= step)
        assert signaled(process, signal.SIGKILL)[0] == -signal.SIGKILL
        assert last_step(tmp_path) < 12000
    assert finish(tmp_path).returncode == 0
    assert_same(undisturbed, tmp_path)


@pytest.mark.fault(rows=[13])
@pytest.mark.parametrize(("number", "exit_code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_saves_and_the_same_command_goes_on(undisturbed, start, tmp_path, number, exit_code):
    process = start(tmp_path)
    wait_for(process, lambda: last_step(tmp_path) >= 3200)
    found, output = signaled(process, number)
    assert found == exit_code
    assert "goes on" in output
    assert snapshots.load_newest(tmp_path / "checkpoints")[0].step == last_step(tmp_path) < 12000
    if number == signal.SIGTERM:  # both go on alike
        assert finish(tmp_path).returncode == 0
        assert_same(undisturbed, tmp_path)


@pytest.mark.fault(rows=[13])
def test_a_signal_while_it_starts_saves_too(undisturbed, start, tmp_path):
    process = start(tmp_path)
    wait_for(process, (tmp_path / "status.json").exists)
    assert signaled(process, signal.SIGTERM)[0] == 143
    assert snapshots.load_newest(tmp_path / "checkpoints")[0].step < 12000
    assert finish(tmp_path).returncode == 0
    assert_same(undisturbed, tmp_path)


@pytest.mark.fault(rows=[13])
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


# Thirty steps, a checkpoint after every fifth.
SHORT = ("trainer.steps=30", "trainer.eval_every=10", "checkpoint.every=5", "checkpoint.keep=9", "gradient.verify_at_start=false")


@pytest.fixture(scope="module")
def short(tmp_path_factory):
    folder = tmp_path_factory.mktemp("short")
    result = finish(folder, *SHORT)
    assert (result.returncode, result.stderr) == (0, "")
    assert steps_of(folder) == [30, 25, 20, 15, 10, 5]
    return folder


def steps_of(folder: Path) -> list[int]:
    """Of the checkpoints, the newest first; those that are set aside left out."""
    return sorted((int(path.name.removeprefix("step-")) for path in (folder / "checkpoints").glob("step-*")), reverse=True)


def cut_off(run: Path, folder: Path, step: int) -> Path:
    """A copy of a run as it is when it is killed after the checkpoint of `step`."""
    shutil.copytree(run, folder, dirs_exist_ok=True)
    (folder / "summary.json").unlink()
    (folder / "status.json").write_text('{"state": "running", "cause": null, "exit_code": null}')
    for later in steps_of(folder):
        if later > step:
            shutil.rmtree(folder / "checkpoints" / f"step-{later:08d}")
    return folder


def content(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def flip(path: Path) -> None:
    """One bit, in the middle."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.fault(rows=[3])
def test_damaged_checkpoints_are_passed_over_and_named(short, tmp_path):
    folder = cut_off(short, tmp_path / "run", 30)
    path = {step: folder / "checkpoints" / f"step-{step:08d}" for step in steps_of(folder)}
    os.truncate(path[30] / "arrays.npz", 1000)
    flip(path[25] / "arrays.npz")
    (path[20] / "arrays.npz").unlink()
    (path[15] / "manifest.json").unlink()
    flip(path[10] / "manifest.json")
    result = finish(folder, *SHORT)
    assert (result.returncode, result.stderr) == (0, "")
    warnings = [line for line in result.stdout.splitlines() if line.startswith("warning: ")]
    assert len(warnings) == 5
    for step, line in zip((30, 25, 20, 15, 10), warnings, strict=True):
        assert str(path[step] / ("manifest.json" if step < 20 else "arrays.npz")) in line
    assert "going on from step 5 of 30" in result.stdout
    assert_same(short, folder)


@pytest.mark.fault(rows=[4])
@pytest.mark.parametrize("resume", ["auto", "must"])
def test_no_valid_checkpoint_is_no_reason_to_start_afresh(short, tmp_path, resume):
    folder = cut_off(short, tmp_path / "run", 10)
    for step in steps_of(folder):
        os.truncate(folder / "checkpoints" / f"step-{step:08d}" / "arrays.npz", 100)
    before = content(folder / "checkpoints")
    result = finish(folder, *SHORT, f"resume={resume}")
    assert result.returncode == 4
    assert result.stderr.splitlines()[-1].startswith("error: no checkpoint in")
    assert content(folder / "checkpoints") == before


@pytest.mark.fault(rows=[5])
@pytest.mark.parametrize("way", ["tmpfs", "limit"])
def test_a_full_disk_leaves_the_older_checkpoints_and_the_run_goes_on_when_there_is_room(short, tmp_path, small_disk, way):
    folder = cut_off(short, (small_disk(8000) if way == "tmpfs" else tmp_path) / "run", 10)
    size = (folder / "checkpoints" / "step-00000010" / "arrays.npz").stat().st_size
    if way == "tmpfs":
        used = sum(path.stat().st_blocks for path in folder.rglob("*")) // 2
        small_disk(used + size // 2048)  # half a checkpoint is left
        result = finish(folder, *SHORT)
    else:
        result = finish(folder, *SHORT, largest_file=size // 2048)
    assert result.returncode == 4
    assert result.stdout.count("warning: the checkpoint") == 2
    last = result.stderr.splitlines()[-1]
    assert last.startswith(f"error: the checkpoint {folder / 'checkpoints' / 'step-00000025'} can't be written: ")
    assert "Traceback" not in result.stderr
    assert steps_of(folder) == [10, 5]
    assert not [path for path in (folder / "checkpoints").iterdir() if path.name.startswith(".")]
    assert snapshots.load_newest(folder / "checkpoints")[0].step == 10
    if way == "tmpfs":
        small_disk(8000)
    result = finish(folder, *SHORT)
    assert (result.returncode, result.stderr) == (0, "")
    assert_same(short, folder)


@pytest.mark.fault(rows=[6])
def test_a_log_that_cannot_be_written_is_one_warning_and_training_goes_on(tmp_path):
    """Files may have 64 kB: a checkpoint of this model has less, 600 steps have more."""
    overrides = ("model=linear", "trainer.steps=600", "trainer.steps_per_call=20", "trainer.eval_every=0", "checkpoint.every=200")
    result = finish(tmp_path, *overrides, largest_file=64)
    assert result.returncode == 0
    (line,) = result.stderr.splitlines()
    assert line.startswith("warning: metrics can't be written: ")
    assert json.loads((tmp_path / "status.json").read_text())["state"] == "done"
    assert snapshots.load_newest(tmp_path / "checkpoints")[0].step == 600
    steps = [json.loads(line)["step"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert steps == list(range(1, len(steps) + 1))
    assert 50 < len(steps) < 600


PLAIN = ("trainer.eval_every=0", "checkpoint.every=0", "gradient.verify_at_start=false")
TWO = ("strategy=cpu_sim", "strategy.num_devices=2")


@pytest.fixture(scope="module")
def halves(tmp_path_factory):
    """By the number of replicas: a run of 30 steps, and one of 17."""
    found = {}
    for num_replicas, overrides in ((1, ()), (2, TWO)):
        found[num_replicas] = [tmp_path_factory.mktemp(f"{num_replicas}_{steps}") for steps in (30, 17)]
        for folder, steps in zip(found[num_replicas], (30, 17), strict=True):
            assert finish(folder, *PLAIN, *overrides, f"trainer.steps={steps}").returncode == 0
    return found


@pytest.mark.fault(rows=[8])
@pytest.mark.parametrize("num_replicas", [1, 2])
def test_a_run_in_two_parts_is_the_same_to_the_bit(halves, tmp_path, num_replicas):
    straight, part = halves[num_replicas]
    folder = shutil.copytree(part, tmp_path / "run")
    assert finish(folder, *PLAIN, *(TWO if num_replicas == 2 else ()), "trainer.steps=30").returncode == 0
    assert_same(straight, folder)


@pytest.mark.fault(rows=[9])
def test_a_run_goes_on_on_two_replicas(halves, tmp_path):
    """The same batches: losses and norms of every step are those of one replica, but for the order of sums."""
    straight, part = halves[1]
    folder = shutil.copytree(part, tmp_path / "run")
    assert finish(folder, *PLAIN, *TWO, "trainer.steps=30").returncode == 0
    lines = [[json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()] for path in (straight, folder)]
    assert lines[0][:17] == lines[1][:17]
    for expected, found in zip(*lines, strict=True):
        assert found == pytest.approx(expected, rel=2e-5), expected["step"]
    arrays = [snapshots.load_newest(path / "checkpoints")[0].arrays for path in (straight, folder)]
    for name, array in arrays[0].items():
        np.testing.assert_allclose(arrays[1][name], array, rtol=1e-3, atol=1e-6, err_msg=name)


@pytest.mark.fault(rows=[10])
@pytest.mark.parametrize(
    ("override", "keys"),
    [
        ("model=linear", ["model._target_", "model.hidden"]),
        ("loss=mse", ["loss._target_"]),
        ("data=wine", ["data._target_"]),
        ("data.batch_size=16", ["data.batch_size: 32 -> 16"]),
        ("optimizer=sgd", ["optimizer._target_"]),
        ("seed=1", ["seed: 0 -> 1"]),
        ("precision=mixed_bfloat16", ["precision.policy: float32 -> mixed_bfloat16"]),
    ],
)
def test_another_job_does_not_go_on_in_this_one(short, override, keys):
    before = content(short)
    result = finish(short, *SHORT, "trainer.steps=40", override)
    assert result.returncode == 2
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: ")
    assert all(key in line for key in keys)
    assert content(short) == before


@pytest.mark.fault(rows=[10, 11])
def test_what_may_change_changes_and_the_gradient_mode_is_said(short, tmp_path):
    folder = cut_off(short, tmp_path / "run", 30)
    changed = ("trainer.steps=33", "gradient=auto", "logging.tensorboard=false", "trainer.log_every=3", "checkpoint.keep=1", *TWO)
    result = finish(folder, *SHORT, *changed)
    assert (result.returncode, result.stderr) == (0, "")
    assert "the run went by gradient=analytic until step 30; from here by gradient=auto" in result.stdout
    assert last_step(folder) == 33


@pytest.mark.fault(rows=[12, 35])
def test_a_finished_run_has_nothing_to_do(short):
    before = content(short)
    result = finish(short, *SHORT)
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.startswith("nothing to do")
    assert content(short) == before


@pytest.mark.fault(rows=[35])
def test_a_directory_of_somebody_else_is_not_touched(tmp_path):
    (tmp_path / "letter.txt").write_text("mine")
    (tmp_path / "checkpoints").mkdir()
    before = {path: path.stat() for path in (tmp_path, *tmp_path.rglob("*"))}
    result = finish(tmp_path, *SHORT)
    assert result.returncode == 2
    (line,) = result.stderr.splitlines()
    assert "is not empty and not a run of this program" in line
    after = {path: path.stat() for path in (tmp_path, *tmp_path.rglob("*"))}
    assert {path: (found.st_mtime_ns, found.st_size) for path, found in after.items()} == {
        path: (found.st_mtime_ns, found.st_size) for path, found in before.items()
    }


@pytest.mark.fault(rows=[30, 35])
def test_one_directory_two_runs(start, tmp_path):
    process = start(tmp_path, ENDLESS)
    wait_for(process, lambda: last_step(tmp_path) >= 1)
    result = finish(tmp_path, ENDLESS)
    assert process.poll() is None
    assert result.returncode == 2
    assert "is locked" in result.stderr


# A run on a disk that takes nothing from its n-th fsync on, before a file named "go" is there; "stuck" says that it has come to that.
STUCK = """
import os, pathlib, sys, threading, time
from trainer import cli

folder, number = pathlib.Path(os.environ["AT"]), int(os.environ["CALL"])
fsync, lock, calls = os.fsync, threading.Lock(), 0

def stuck(descriptor):
    global calls
    with lock:
        calls += 1
    if calls >= number:
        (folder / "stuck").touch()
        until = time.monotonic() + 100
        while not (folder / "go").exists() and time.monotonic() < until:
            time.sleep(0.01)
    return fsync(descriptor)

os.fsync = stuck
sys.exit(cli.main())
"""
# Of a save: the arrays, the manifest, their directory, metrics.jsonl; and, when it is renamed, the directory of all.
CALLS_OF_A_SAVE = 5


@pytest.fixture
def start_stuck(start, tmp_path):
    """Starts a run on a disk that is stuck from a call on, and returns it when it is, with what lets it go on."""

    def start_stuck(folder: Path, call: int, *overrides: str) -> tuple[subprocess.Popen, Path]:
        at = tmp_path / f"at_{call}"
        at.mkdir()
        process = start(folder, *overrides, program=["-c", STUCK], AT=str(at), CALL=str(call), PYTHONPATH=str(ROOT))
        wait_for(process, (at / "stuck").exists)
        return process, at / "go"

    return start_stuck


@pytest.mark.fault(rows=[2])
def test_killed_in_the_middle_of_a_save_and_before_its_rename(undisturbed, start, start_stuck, tmp_path):
    folder = tmp_path / "run"
    for num_saved, (call, litter) in enumerate([(CALLS_OF_A_SAVE + 1, ["arrays.npz"]), (4, ["arrays.npz", "manifest.json"])], start=1):
        # The first run has one whole save before; the second one goes on from there, and is killed in its first.
        process, _ = start_stuck(folder, call if num_saved == 1 else 1 + call)  # that one cuts metrics.jsonl first
        assert signaled(process, signal.SIGKILL)[0] == -signal.SIGKILL
        (temporary,) = (folder / "checkpoints").glob(".step-*.tmp")
        assert sorted(path.name for path in temporary.iterdir()) == litter
        assert snapshots.load_newest(folder / "checkpoints")[0].step == 500
    assert finish(folder).returncode == 0
    assert not list((folder / "checkpoints").glob(".*"))
    assert_same(undisturbed, folder)


@pytest.mark.fault(rows=[13])
def test_a_signal_while_a_save_is_slow_and_the_loop_goes_on_meanwhile(start_stuck, tmp_path):
    folder = tmp_path / "run"
    process, go = start_stuck(folder, CALLS_OF_A_SAVE + 1, ENDLESS, "trainer.eval_every=0")
    wait_for(process, lambda: last_step(folder) >= 1500)  # the second save, of step 1000, is stuck, and the loop is at its third
    assert steps_of(folder) == [500]
    exit_code, output = signaled(process, signal.SIGTERM, then=go.touch)
    assert exit_code == 143
    assert "goes on" in output
    assert steps_of(folder)[0] == last_step(folder) >= 1500
    assert snapshots.problem(folder / "checkpoints" / f"step-{last_step(folder):08d}") is None


@pytest.mark.fault(rows=[13])
def test_a_second_signal_ends_it_at_once_while_the_disk_is_stuck(start_stuck, tmp_path):
    folder = tmp_path / "run"
    process, go = start_stuck(folder, CALLS_OF_A_SAVE + 1, ENDLESS, "trainer.eval_every=0")
    exit_code, _ = signaled(process, signal.SIGTERM, signal.SIGINT)
    assert exit_code in (130, 143)
    assert not go.exists()
    assert json.loads((folder / "status.json").read_text())["state"] == "stopped"
    assert snapshots.load_newest(folder / "checkpoints")[0].step == 500


# A model with a layer that waits, until a file named "go" is there, while a step is traced or while an evaluation is computed.
WAITING = """
import os, pathlib, time
import keras, tensorflow as tf

folder, phase = pathlib.Path(os.environ["AT"]), os.environ["PHASE"]

def wait():
    (folder / "waiting").touch()
    until = time.monotonic() + 100
    while not (folder / "go").exists() and time.monotonic() < until:
        time.sleep(0.01)

class Waiting(keras.layers.Layer):
    def call(self, x, training=None):
        if tf.executing_eagerly():  # while it is built
            return x
        if phase == "trace" and training:
            wait()
        if phase == "evaluation" and training is False:
            y = tf.py_function(lambda x: (wait(), x)[1], [x], x.dtype)
            y.set_shape(x.shape)
            return y
        return x

def model(input_shape, num_outputs):
    return keras.Sequential([keras.Input(input_shape), keras.layers.Flatten(), Waiting(), keras.layers.Dense(num_outputs)])
"""


@pytest.mark.fault(rows=[13])
@pytest.mark.parametrize("phase", ["trace", "evaluation"])
def test_a_signal_during_the_first_trace_and_during_an_evaluation(start, tmp_path, phase):
    folder = tmp_path / "run"
    (tmp_path / "conf" / "model").mkdir(parents=True)
    (tmp_path / "conf" / "model" / "waiting.yaml").write_text("_target_: waiting_package.model\n")
    (tmp_path / "waiting_package.py").write_text(WAITING)
    overrides = ("--config-dir", str(tmp_path / "conf"), "model=waiting", "trust=[waiting_package]", "gradient.verify_at_start=false")
    overrides += (ENDLESS, "trainer.eval_every=20", "trainer.compile=graph")
    environment = {"AT": str(tmp_path), "PHASE": phase, "PYTHONPATH": os.pathsep.join([str(ROOT), str(tmp_path)])}
    process = start(folder, *overrides, **environment)
    wait_for(process, (tmp_path / "waiting").exists)
    exit_code, output = signaled(process, signal.SIGTERM, then=(tmp_path / "go").touch)
    assert exit_code == 143
    assert "goes on" in output
    (step,) = steps_of(folder)
    assert step == last_step(folder)
    assert step == 20 if phase == "evaluation" else 1 <= step <= 20
    assert snapshots.load_newest(folder / "checkpoints")[0].step == step


@pytest.mark.fault(rows=[34])
def test_a_run_that_had_logged_more_than_it_saved_has_one_line_and_one_point_a_step(start_stuck, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder, overrides = tmp_path / "run", ("trainer.eval_every=0", "checkpoint.every=400")
    process, _ = start_stuck(folder, CALLS_OF_A_SAVE + 1, *overrides, "trainer.steps=437")
    wait_for(process, lambda: last_step(folder) == 437)
    assert signaled(process, signal.SIGKILL)[0] == -signal.SIGKILL
    assert steps_of(folder) == [400]
    result = finish(folder, *overrides, "trainer.steps=450")
    assert (result.returncode, result.stderr) == (0, "")
    assert "going on from step 400 of 450" in result.stdout
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, 451))
    events = EventAccumulator(str(folder / "tensorboard"), size_guidance={"tensors": 0, "scalars": 0})
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("loss")] == [(line["step"], np.float32(line["loss"])) for line in lines]


# What a continued run does with its checkpoints, in a process that kills itself before the n-th call that changes the file system.
SAVE = """
import os, shutil, signal, sys
from pathlib import Path
import numpy as np
from trainer import snapshots

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
snapshots.clean(folder)
snapshots.load_newest(folder)
snapshots.save(folder, snapshots.Snapshot(step, {"w": np.full(1000, step, np.float32)}, {"loop": step}), keep=2, best_step=None)
"""


def save(folder: Path, step: int) -> None:
    snapshots.save(folder, Snapshot(step, {"w": np.full(1000, step, np.float32)}, {"loop": step}), keep=2, best_step=None)


@pytest.mark.fault(rows=[2])
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

        snapshots.clean(folder)
        assert not list(folder.glob(".*"))
        snapshot, _ = snapshots.load_newest(folder)
        assert snapshot.step in ((step,) if returncode == 0 else (1, step) if damaged else (2, step))
        np.testing.assert_array_equal(snapshot.arrays["w"], np.full(1000, snapshot.step, np.float32))
        save(folder, 4)
        kept = sorted(folder.glob("step-*"))
        assert [snapshots.load(path).step for path in kept] == [snapshot.step, 4]
        if returncode == 0:
            break
        calls += 1
    assert calls >= at_least
