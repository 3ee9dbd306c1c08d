"""The command that lists a run's checkpoints: `python -m trainer.checkpoints RUN`. Imports no TensorFlow."""

import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from trainer.arguments import Parser, main, run_folder
from trainer.errors import CheckpointError, printable
from trainer.json_files import read_json
from trainer.snapshots import ASIDE, MANIFEST, problem, steps

_MOST_LOOKS = 10  # at checkpoints that a run removes faster than they are read
_LATEST = 2**40  # seconds since 1970 that are a date


def run(arguments: Sequence[str]) -> int:
    """Lists a run's checkpoints, newest first. Exit status 0 if the newest is good.

    Raises:
        ConfigError: there is no such run.
        CheckpointError: the newest checkpoint is damaged, or there is none.
    """
    options = _parser().parse_args(arguments)
    if options.help:
        print(_HELP)
        return 0
    path = run_folder(options.run, "python -m trainer.checkpoints")
    folder = path / "checkpoints"
    found = []
    for _ in range(_MOST_LOOKS):  # a run that goes on meanwhile removes its older ones
        found = [_look(step, one) for prefix in ("", ASIDE) for step, one in steps(folder, prefix)]
        if not found or found[0]:
            break
    rows = [row for row in found if row]
    _print(path, rows)
    newest_first = [(row.step, row.problem) for row in rows if not row.is_aside]
    if not newest_first:
        raise CheckpointError(f"there is no checkpoint in {folder}")
    if newest_first[0][1]:
        good = [step for step, reason in newest_first if not reason]
        rest = f"the same command that made the run goes on from step {good[0]}" if good else "no other is valid either"
        raise CheckpointError(f"{newest_first[0][1]}; {rest}")
    return 0


_HELP = """python -m trainer.checkpoints RUN

Lists the checkpoints of the run in the directory RUN, the newest first: step, time, size, whether each is valid, and why not.
Exit status 0 if the newest one is valid, 4 if it is not, or if there is none.
"""


def _parser() -> Parser:
    parser = Parser("python -m trainer.checkpoints")
    parser.add_argument("run", nargs="?")
    return parser


@dataclasses.dataclass(frozen=True)
class _Listed:
    """What the list tells of a checkpoint."""

    step: int
    path: Path
    problem: str | None
    saved: float  # seconds since 1970
    num_bytes: int
    best_step: int | None  # of the run so far

    @property
    def is_aside(self) -> bool:
        return self.path.name.startswith(ASIDE)


def _look(step: int, path: Path) -> _Listed | None:
    """None where it has been removed meanwhile."""
    reason = problem(path)
    manifest = read_json(path / MANIFEST) or {}  # for people to see; not checked
    saved, num_bytes = 0.0, 0
    try:
        saved = path.stat().st_mtime
        num_bytes = sum(file.stat().st_size for file in path.iterdir())
    except PermissionError:
        pass
    except OSError:
        return None
    if isinstance(known := manifest.get("saved"), int | float) and 0 < known < _LATEST:  # of a damaged manifest it may be anything
        saved = known
    return _Listed(step, path, reason, saved, num_bytes, manifest.get("best_step"))


def _print(run: Path, rows: Sequence[_Listed]) -> None:
    table = Table("Step", "Saved", "Size", "Kept as", "Valid", title=f"Checkpoints of {run}")
    best = next((row.best_step for row in rows if not row.problem), None)
    for i, row in enumerate(rows):
        kept_as = ["set aside"] if row.is_aside else [name for name, holds in (("newest", i == 0), ("best", row.step == best)) if holds]
        reason = row.problem and row.problem.replace(f"{row.path}/", "").replace(f"{row.path} ", "")
        valid = Text(printable(f"no: {reason}"), "bold red") if reason else Text("yes", "green")
        saved = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(row.saved))
        table.add_row(str(row.step), saved, f"{row.num_bytes / 1e6:.1f} MB", ", ".join(kept_as), valid)
    Console().print(table)


if __name__ == "__main__":
    main(run)
