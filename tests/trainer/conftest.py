"""Runs that no test leaves behind, disks that are small, folders that are empty, and commands that are refused."""

import os
import subprocess
from pathlib import Path

import pytest

from tests.trainer import fake_jobs
from tests.trainer.command_line import last_line
from tests.trainer.processes import ROOT, command
from trainer import cli


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


@pytest.fixture
def fake(tmp_path, monkeypatch) -> Path:
    """An empty current folder; the jobs of sweeps started there end as their seeds say."""
    return fake_jobs.install(tmp_path, monkeypatch, fake_jobs.ENDINGS)


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty current folder."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def refused(here, capsys):
    """Runs a command in this process, and gives the line that it is refused with."""

    def refused(*arguments: str, exit_code: int = 2) -> str:
        assert cli.main(arguments) == exit_code
        errors = capsys.readouterr().err
        assert "Traceback" not in errors
        assert last_line(errors).startswith("error: ")
        return last_line(errors)

    return refused


@pytest.fixture
def no_tensorflow(tmp_path):
    """A folder for PYTHONPATH whose tensorflow and keras leave a mark when they are imported, and fail."""
    for name in ("tensorflow", "keras"):
        (tmp_path / "fake" / name).mkdir(parents=True)
        (tmp_path / "fake" / name / "__init__.py").write_text(f"open({str(tmp_path / 'imported')!r}, 'w'); raise SystemExit(99)")
    return {"PYTHONPATH": f"{tmp_path / 'fake'}{os.pathsep}{ROOT}"}
