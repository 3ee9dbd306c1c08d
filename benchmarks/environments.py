"""Virtual environments for competitors that don't share the trainer's: made on first use, kept in a cache folder."""

import shutil
import subprocess
import sys
from pathlib import Path

CACHE = Path.home() / ".cache" / "gradtrain-benchmarks"

# Each list is one call of pip. Orbit is a package inside tf-models-official, whose other requirements it has no use for.
PACKAGES = {
    "orbit": [["tensorflow==2.21.0", "keras==3.15.1"], ["--no-deps", "tf-models-official==2.20.0", "tf-keras==2.21.0"]],
    "torch": [["torch==2.13.0", "lightning==2.6.6", "numpy"]],
    "jax": [["jax==0.10.2", "optax==0.2.8", "numpy"]],
}


class NotInstalledError(Exception):
    """An environment can't be made; the message says why."""


def python_of(name: str | None, cache: Path) -> Path:
    """The interpreter of an environment, which is made where it is not there as wanted; None is the trainer's own.

    Raises:
        NotInstalledError: pip or venv failed.
    """
    if name is None:
        return Path(sys.executable)
    folder, wanted = cache.absolute() / name, repr(PACKAGES[name])
    python, complete = folder / "bin" / "python", folder / "packages.txt"
    if complete.exists() and complete.read_text() == wanted:
        return python
    shutil.rmtree(folder, ignore_errors=True)
    print(f"making {folder}: {', '.join(package for call in PACKAGES[name] for package in call)}", file=sys.stderr)
    commands = [
        [sys.executable, "-m", "venv", str(folder)],
        *([str(python), "-m", "pip", "install", "-q", *call] for call in PACKAGES[name]),
    ]
    for command in commands:
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        if done.returncode:
            raise NotInstalledError(f"not installed: {last_line(done.stdout)}")
    complete.write_text(wanted)
    return python


def last_line(text: str) -> str:
    """The last line that says something, cut to 200 characters."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("ERROR")]
    return (errors or lines or ["no message"])[-1][:200]
