"""Runs that no test leaves behind."""

import subprocess
from pathlib import Path

import pytest

from tests.trainer.processes import ROOT, command


@pytest.fixture
def start():
    """Starts runs, and leaves none behind."""
    processes = []

    def start(folder: Path, *overrides: str) -> subprocess.Popen:
        pipe = subprocess.PIPE
        processes.append(subprocess.Popen(command(folder, *overrides), stdout=pipe, stderr=pipe, text=True, cwd=ROOT))
        return processes[-1]

    yield start
    for process in processes:
        process.kill()
        process.communicate()
