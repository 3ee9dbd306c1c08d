"""Random command lines: each runs or is refused, leaves no half-written run, and never a traceback.

Longer hunts, and failures replayed: see `tests.trainer.fuzzing`. FUZZ_SEED in the environment is the first seed, FUZZ_COUNT and
FUZZ_TRAIN how many there are without and with TensorFlow.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.trainer import fuzzing

SEED = int(os.environ.get("FUZZ_SEED", "0"))
ROOT = Path(__file__).parents[2]


@pytest.mark.fault(rows=[21, 22, 24, 25])
def test_command_lines_up_to_tensorflow():
    count = os.environ.get("FUZZ_COUNT", "500")
    line = [sys.executable, "-m", "tests.trainer.fuzzing", f"--seed={SEED}", f"--count={count}"]
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, check=False)
    print(done.stdout)
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    assert f"seeds {SEED} to " in done.stdout


@pytest.mark.fault(rows=[21, 22])
def test_jobs_that_train(capsys):
    counts = fuzzing.hunt(SEED, int(os.environ.get("FUZZ_TRAIN", "30")), train=True)
    with capsys.disabled():
        print(f"\nseed {SEED}: {counts.ran} jobs ran, {counts.refused} were refused")
    assert counts.failures == []
    assert counts.ran > counts.refused / 4


def test_a_seed_gives_the_same_line_again():
    lines = [fuzzing.draw(seed, train) for train in (False, True) for seed in range(20)]
    assert lines == [fuzzing.draw(seed, train) for train in (False, True) for seed in range(20)]
    assert len(set(map(tuple, lines))) > 36


@pytest.mark.parametrize(
    ("exit_code", "errors", "problem"),
    [
        (0, "", ""),
        (2, "error: seed=-1: must be a whole number\n", ""),
        (2, "Traceback (most recent call last):\nerror: x; type y\n", "a traceback"),
        (1, "error: seed=-1: must be a whole number\n", "ended with 1"),
        (2, "seed must be a whole number\n", "no error"),
        (2, "error: seed\n", "nothing to do"),
        (2, "error: type \x1b[31m\n", "characters"),
    ],
)
def test_what_counts_as_a_failure(exit_code, errors, problem):
    found = fuzzing._problem(exit_code, errors)
    assert problem in found
    assert bool(problem) == bool(found)


def test_litter_is_found(tmp_path):
    (tmp_path / "run").mkdir()
    assert fuzzing._litter(tmp_path) == ""
    (tmp_path / "run" / ".lock").touch()
    assert "has the status {}" in fuzzing._litter(tmp_path)
    (tmp_path / "run" / "status.json").write_text('{"state": "running"}')
    assert "running" in fuzzing._litter(tmp_path)
    (tmp_path / "run" / "status.json").write_text('{"state": "done"}')
    assert fuzzing._litter(tmp_path) == ""
    (tmp_path / "x").touch()
    assert "left" in fuzzing._litter(tmp_path)
