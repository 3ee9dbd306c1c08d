"""Runs that no test leaves behind, and disks that are small."""

import os
import subprocess
from pathlib import Path

import pytest

from tests.trainer.processes import ROOT, command


@pytest.fixture
def start():
    """Starts runs, and leaves none behind."""
    processes = []

    def start(folder: Path, *overrides: str, program: list[str] | None = None, **environment: str) -> subprocess.Popen:
        pipe = subprocess.PIPE
        arguments = command(folder, *overrides, program=program)
        processes.append(subprocess.Popen(arguments, stdout=pipe, stderr=pipe, text=True, cwd=ROOT, env=os.environ | environment))
        return processes[-1]

    yield start
    for process in processes:
        process.kill()
        process.communicate()


@pytest.fixture
def small_disk(tmp_path):
    """A function that mounts a disk of so many kilobytes, or gives a mounted one another size; skips where mounting is not possible."""
    folder = tmp_path / "disk"

    def small_disk(kilobytes: int) -> Path:
        again = "remount," if folder.exists() else ""
        folder.mkdir(exist_ok=True)
        mount = ["mount", "-t", "tmpfs", "-o", f"{again}size={kilobytes}k", "tmpfs", str(folder)]
        done = subprocess.run(mount, capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"no disk can be mounted here: {done.stderr.strip()}")
        return folder

    yield small_disk
    if folder.exists():
        subprocess.run(["umount", str(folder)], capture_output=True, check=False)
