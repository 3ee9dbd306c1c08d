"""What can go wrong for a user, each with the exit status that the command ends with."""

import re
import sys
import sysconfig
import traceback
from pathlib import Path


class UserError(Exception):
    """A mistake or a fault that the user can act on: the message says what is wrong, where, and what to type instead."""

    exit_code = 1


class ConfigError(UserError):
    """Bad configuration: an unknown key, a value beyond its limit, a pair that can't work."""

    exit_code = 2


class DivergedError(UserError):
    """A loss or a gradient is not finite."""

    exit_code = 3


class CheckpointError(UserError):
    """A checkpoint is missing, damaged, or of another job."""

    exit_code = 4


class DataError(UserError):
    """Bad data: missing, not finite, of the wrong shape or kind."""

    exit_code = 5


def report(error: BaseException) -> int:
    """Says what went wrong, in the last line on stderr, and returns the exit status.

    A traceback comes before it only where the error is not the user's mistake.
    """
    if isinstance(error, UserError):
        line, exit_code = str(error), error.exit_code
    elif isinstance(error, KeyboardInterrupt):
        line, exit_code = "interrupted", 130
    else:
        traceback.print_exception(error)
        where = _own_code(error)
        advice = f"it comes from {where}: mend it there" if where else "nobody foresaw this: the lines above show where, please report them"
        line, exit_code = f"{describe(error)}; {advice}", 1
    line = "; ".join(part.strip() for part in line.splitlines() if part.strip())
    line = re.sub(r"(\S{60})\S{200,}(\S{20})", r"\1 ... \2", line)  # nobody reads more of one value
    # What was typed, or read from a file of others, stands in the message: a terminal must not act on it.
    print(f"error: {printable(line)}", file=sys.stderr, flush=True)
    return exit_code


def printable(text: str) -> str:
    """Text that no terminal acts on: control characters are written out."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def describe(error: BaseException) -> str:
    """The error: a user's mistake in its own words, any other with its type."""
    return str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {uncoloured(error)}".removesuffix(": ")


def uncoloured(error: BaseException) -> str:
    """What an error says, without the colours that Keras writes."""
    return re.sub(r"\x1b\[[0-9;]*m", "", str(error))


def _own_code(error: BaseException) -> str | None:
    """The place in the user's own code, where the error passed through any: neither this program's, nor a library's."""
    foreign = [str(Path(__file__).parent), str(Path(__file__).parent.parent / "losses"), *sysconfig.get_paths().values()]
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if Path(frame.filename).is_file()]
    own = [frame for frame in frames if not any(frame.filename.startswith(folder) for folder in foreign)]
    return f"{own[-1].filename}, line {own[-1].lineno}" if own else None
