"""What the commands share: how arguments are read, and how a command ends."""

import argparse
import difflib
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

from trainer.errors import ConfigError, report


class Parser(argparse.ArgumentParser):
    """Reads a command's arguments; a mistake in them is a ConfigError. --help is an option like any other, for the command to answer."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog=prog, add_help=False, allow_abbrev=False)
        self.add_argument("-h", "--help", action="store_true")

    def error(self, message: str) -> NoReturn:
        """Says what is wrong, and what to type instead."""
        unknown = re.search(r"unrecognized arguments: (\S+)", message)
        hint = f"{self.prog} --help shows what there is"
        if unknown:
            close = difflib.get_close_matches(unknown[1], self._option_string_actions, n=1)
            message, hint = f"{unknown[1]}: there is no such option", f"did you mean {close[0]}?" if close else hint
        raise ConfigError(f"{message}; {hint}")


def run_folder(given: str | None, command: str, rest: str = "") -> Path:
    """The directory of the run that a command was given; `rest` is what else the command wants.

    Raises:
        ConfigError: none was given, it can't be read, or there is no run in it; with what to type.
    """
    if not given:
        raise ConfigError(f"which run? {_for_example(Path('outputs'), command, rest)}")
    path = Path(given).parent if Path(given).name == "checkpoints" else Path(given)
    try:
        is_run = (path / "checkpoints").is_dir() or (path / "config.yaml").is_file()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(f"the run in {path} can't be read: {reason}: type a directory that you may read") from error
    if not is_run:
        raise ConfigError(f"there is no run in {path}: {_for_example(path if path.is_dir() else Path('outputs'), command, rest)}")
    return path


def _for_example(folder: Path, command: str, rest: str) -> str:
    """What to type: the newest run within a folder, where there is any."""
    found = [path.parent for depth in ("*", "*/*", "*/*/*") for path in folder.glob(f"{depth}/checkpoints")]
    run = max(found, key=lambda path: path.stat().st_mtime, default="RUN")
    return f"type {command} {run}{rest and f' {rest}'}" + (", with RUN the directory of a run" if run == "RUN" else "")


def main(run: Callable[[Sequence[str]], int]) -> NoReturn:
    """Runs a command on this process's arguments, and ends the process with its exit status."""
    try:
        sys.exit(run(sys.argv[1:]))
    except (Exception, KeyboardInterrupt) as error:
        sys.exit(report(error))
