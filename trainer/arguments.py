"""What the commands share: how arguments are read, and how a command ends."""

import argparse
import difflib
import re
import sys
from collections.abc import Callable, Sequence
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


def main(run: Callable[[Sequence[str]], int]) -> NoReturn:
    """Runs a command on this process's arguments, and ends the process with its exit status."""
    try:
        sys.exit(run(sys.argv[1:]))
    except (Exception, KeyboardInterrupt) as error:
        sys.exit(report(error))
