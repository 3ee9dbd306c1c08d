"""Runs in processes of their own, as users start them, for tests of what breaks."""

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from trainer import snapshots
from trainer.json_files import last_row

ROOT = Path(__file__).parents[2]
# Long enough that no machine is through before a signal at two thirds of it arrives.
SETTINGS = (
    "trainer.steps=12000",
    "trainer.eval_every=2000",
    "checkpoint.every=500",
    "checkpoint.monitor=eval/accuracy",
    "checkpoint.goal=max",
)
ENDLESS = "trainer.steps=1000000"


def command(folder: Path, *overrides: str, program: list[str] | None = None) -> list[str]:
    return [sys.executable, *(program or ["-m", "trainer"]), *SETTINGS, f"hydra.run.dir={folder}", *overrides]


def finish(folder: Path, *overrides: str, largest_file: int | None = None) -> subprocess.CompletedProcess:
    """A run that nobody disturbs; no file of it grows beyond `largest_file` kilobytes, as on a disk that is full then."""
    limited = ["bash", "-c", 'ulimit -f "$0" && exec "$@"', str(largest_file)] if largest_file else []
    arguments = [*limited, *command(folder, *overrides)]
    return subprocess.run(arguments, capture_output=True, text=True, cwd=ROOT, timeout=300, check=False)


def wait_for(process: subprocess.Popen, condition: Callable[[], object]) -> None:
    """Returns when the condition holds, and fails if the process ends before."""
    while not condition():
        assert process.poll() is None, process.communicate()
        time.sleep(0.005)


def last_step(folder: Path) -> int:
    """The last step whose line is whole."""
    return last_row(folder / "metrics.jsonl").get("step", 0)


def signaled(process: subprocess.Popen, *numbers: signal.Signals, then: Callable[[], object] = lambda: None) -> tuple[int, str]:
    """Sends signals to a process that still runs, and does something `then`; its exit status and what it said."""
    assert process.poll() is None
    for number in numbers:
        process.send_signal(number)
    then()
    output, _ = process.communicate(timeout=120)
    return process.returncode, output


def assert_same(one: Path, other: Path) -> None:
    """The same metrics at every step, weights, optimizer slots and all other state, to the bit."""
    assert (one / "metrics.jsonl").read_text() == (other / "metrics.jsonl").read_text()
    (expected, _), (found, _) = snapshots.load_newest(one / "checkpoints"), snapshots.load_newest(other / "checkpoints")
    assert found.state == expected.state
    assert found.arrays.keys() == expected.arrays.keys()
    for name, array in expected.arrays.items():
        np.testing.assert_array_equal(found.arrays[name], array, err_msg=name)
