"""Command lines in folders of their own, and the configuration files that they name."""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from tests.trainer.processes import ROOT

SHORT = ("trainer.steps=3", "trainer.eval_every=0", "trainer.compile=graph", "model=linear", "gradient.verify_at_start=false")


def command(*arguments: str, cwd: Path, program: Sequence[str] = (), **environment: str) -> subprocess.CompletedProcess[str]:
    """`python -m trainer` in a process of its own, in the folder `cwd`."""
    variables = os.environ | {"PYTHONPATH": str(ROOT)} | environment
    line = [*program, sys.executable, "-m", "trainer", *arguments]
    return subprocess.run(line, cwd=cwd, env=variables, capture_output=True, text=True, timeout=240, check=False)


def last_line(text: str) -> str:
    return text.rstrip("\n").rpartition("\n")[2]


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def configuration(root: Path, **texts: str) -> Path:
    """A configuration folder; loss__mine="..." becomes loss/mine.yaml."""
    for name, text in texts.items():
        path = root / "my conf" / (name.replace("__", "/") + ".yaml")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root / "my conf"
