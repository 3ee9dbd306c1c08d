"""The command that lists runs, shows one, and removes those that are of no more use: `python -m trainer.runs`. Imports no TensorFlow.

What it reads may be of others, or damaged: such a run is listed as what it is, and what it says can't steer the terminal.
"""

import contextlib
import datetime
import fcntl
import fnmatch
import math
import operator
import os
import re
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from trainer import inventory, rundir
from trainer.arguments import Parser, main, run_folder
from trainer.errors import CheckpointError, ConfigError, printable
from trainer.inventory import Run
from trainer.json_files import read_json
from trainer.progress import is_terminal, say
from trainer.snapshots import steps
from trainer.validation import shown, suggestion

_COMMAND = "python -m trainer.runs"
_DEEPEST = 6  # folders below the one that is asked for
_MOST_METRICS = 4  # columns of the table, beside those that are asked for
_MOST_VALUES = 20  # of a key, to choose from in a message
# All that a run makes in its directory; those by which it is known last, so that what is removed by half is still known.
_MADE = ("tensorboard", "checkpoints", "evaluation.json", "predictions.csv", *rundir.FILES)
_KEYS = ("run", "state", "loss", "mode", "model", "data", "seed", "steps", "when", "size")
_FILTER = re.compile(r"([^=!<>]+)(=|!=|<=|>=|<|>)(.*)", re.DOTALL)
_ORDERS = {"<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge}


def run(arguments: Sequence[str]) -> int:
    """Lists, shows or removes; the exit status is 1 where a run could not be removed."""
    words = list(arguments)
    command = words.pop(0) if words and words[0] in ("show", "prune") else "list"
    options = _parser().parse_intermixed_args(words)
    if options.help:
        print(_HELP)
        return 0
    if command != "prune" and (options.older_than is not None or options.keep is not None or options.yes):
        raise ConfigError(f"--older-than, --keep and --yes belong to prune: type {_COMMAND} prune")
    if command == "show":
        if len(options.words) > 1:
            raise ConfigError(f"{options.words[1]}: one run is shown at a time: type {_COMMAND} show {options.words[0]}")
        _show(inventory.look(_given(options.words), Path()))
        return 0
    folder, filters = _folder(options.words), [word for word in options.words if _FILTER.fullmatch(word)]
    listed = [inventory.look(path, folder) for path in inventory.find(folder, _DEEPEST)]
    chosen = _sorted(_filtered(listed, filters), options.sort or "when", options.reverse)
    if command == "prune":
        return _prune(chosen, filters, options)
    if not listed:
        say(f"there is no run in {folder}")
    elif not chosen:
        say(printable(f"none of {_counted(len(listed))} in {folder} is {' '.join(filters)}{_meant(listed, filters)}"))
    else:
        title = f"{f'{len(chosen)} of ' if len(chosen) < len(listed) else ''}{_counted(len(listed))} in {folder}"
        _print(chosen, title, [*(_parts(word)[0] for word in filters), *([options.sort] if options.sort else [])])
    return 0


_HELP = f"""{_COMMAND} [FOLDER] [KEY=VALUE ...] [--sort KEY] [--reverse]
{_COMMAND} show RUN
{_COMMAND} prune [FOLDER] [KEY=VALUE ...] [--older-than DAYS] [--keep N] [--yes]

Lists the runs in a folder (outputs) and the folders in it; with KEY=VALUE those alone of which it holds, as in loss=mse state=done,
seed=1,2 for either, or "run=sweeps/*"; != is the contrary. KEY is one of {", ".join(_KEYS[:-2])}, a metric
such as eval/accuracy, or any key of the configuration, such as optimizer.learning_rate. Numbers are compared by <, <=, > and >=, in
quotes: "eval/accuracy>0.9", "loss<0.1" (the number), "size>1e6" (bytes), "when>=2026-11-27". show tells all of one run.

prune lists the runs that it would remove, and with --yes removes them: what a run has made in its directory, and the directory where
nothing else is in it. A running one stays, and so does what is no run of this program.

  --sort KEY         by one of the same keys, or by when (the default) or size; --reverse: the largest first
  --older-than DAYS  prune: those that nobody has written to for so long
  --keep N           prune: all but the newest N of these
  --yes              prune: do it
"""


def _parser() -> Parser:
    parser = Parser(_COMMAND)
    parser.add_argument("words", nargs="*")
    parser.add_argument("--sort")
    parser.add_argument("--reverse", action="store_true")
    parser.add_argument("--older-than", type=float)
    parser.add_argument("--keep", type=int)
    parser.add_argument("--yes", action="store_true")
    return parser


def _given(words: Sequence[str]) -> Path:
    """The run to show, which may be damaged."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        if inventory.MARKS.intersection(path.name for path in Path(words[0]).iterdir()):
            return Path(words[0])
    return run_folder(next(iter(words), None), f"{_COMMAND} show")


def _folder(words: Sequence[str]) -> Path:
    named = [word for word in words if not _FILTER.fullmatch(word)]
    folder = Path(named[0] if named else "outputs")
    if "\0" in str(folder) or not os.path.isdir(folder):  # noqa: PTH112  # False also of a name that no file system takes
        close = suggestion(str(folder), ["show", "prune"])
        raise ConfigError(f"there is no folder {folder}{close if 'mean' in close else f'; type {_COMMAND} FOLDER'}")
    if len(named) > 1:
        raise ConfigError(f"{named[1]}: one folder at a time; what is to hold of the runs is typed KEY=VALUE, as in state=done")
    return folder


def _filtered(listed: Sequence[Run], filters: Sequence[str]) -> list[Run]:
    chosen = list(listed)
    for word in filters:
        key, sign, wanted = _parts(word)
        _check_key(key, listed)
        if sign in _ORDERS:
            limit = _limit(key, sign, wanted)
            numbers = [_number(each.final.get(key) if key in inventory.GROUPS else each.value(key)) for each in chosen]
            chosen = [each for each, number in zip(chosen, numbers, strict=True) if number is not None and _ORDERS[sign](number, limit)]
            continue
        values = [wanted] if wanted.startswith("[") else wanted.split(",")
        chosen = [each for each in chosen if any(_is(each.value(key), value) for value in values) is (sign == "=")]
    return chosen


def _parts(word: str) -> tuple[str, str, str]:
    """Of a filter: the key, what stands between, and the value."""
    found = _FILTER.fullmatch(word)
    return (found[1], found[2], found[3]) if found else (word, "=", "")


def _limit(key: str, sign: str, wanted: str) -> float:
    with contextlib.suppress(ValueError, OverflowError):
        return datetime.datetime.fromisoformat(wanted).timestamp() if key == "when" else float(wanted)
    example = "2026-11-27" if key == "when" else "0.5"
    what = "a day, or a day and a time" if key == "when" else "a number"
    raise ConfigError(f"{key}{sign}{wanted}: {wanted or 'nothing'} is not {what}: type for example '{key}{sign}{example}'")


def _is(found: Any, wanted: str) -> bool:
    with contextlib.suppress(RecursionError):  # of lists nested without end
        if fnmatch.fnmatchcase(shown(found).lower(), wanted.lower().replace("[", "[[]")):
            return True
    return _number(found) is not None and _number(found) == _number(wanted)


def _meant(listed: Sequence[Run], filters: Sequence[str]) -> str:
    """What there is in the place of the first value that no run has."""
    for word in filters:
        key, sign, wanted = _parts(word)
        if sign == "=" and not _filtered(listed, [word]):
            return suggestion(wanted, sorted({_shown(each.value(key)) for each in listed} - {""})[:_MOST_VALUES])
    return ""


def _number(value: Any) -> float | None:
    if isinstance(value, bool):
        return None
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        return None


def _sorted(chosen: Sequence[Run], key: str, reverse: bool) -> list[Run]:
    _check_key(key, chosen)

    def order(each: Run) -> tuple[bool, bool, float, str]:
        number, value = _number(each.value(key)), each.value(key)
        is_number = number is not None and not math.isnan(number)
        return value is not None, is_number, number if is_number and number is not None else 0.0, str(value)

    known, unknown = ([each for each in chosen if (each.value(key) is None) is missing] for missing in (False, True))
    return [*sorted(known, key=order, reverse=reverse), *unknown]


def _check_key(key: str, runs: Sequence[Run]) -> None:
    if key in _KEYS or not runs or any(each.value(key) is not None for each in runs):
        return
    there = [*_KEYS, *dict.fromkeys(tag for each in runs for tag in each.final if "/" in tag)]
    raise ConfigError(f"{key}: no run has such a key{suggestion(key, there)}")


def _tags(runs: Sequence[Run]) -> list[str]:
    """The metrics that most runs have, the loss first."""
    counts: dict[str, int] = {}
    for each in runs:
        for tag in each.final:
            if tag.startswith("eval/"):
                counts[tag] = counts.get(tag, 0) + 1
    return ["loss", *sorted(counts, key=lambda tag: -counts[tag])[: _MOST_METRICS - 1]]


def _print(runs: Sequence[Run], title: str, asked: Sequence[str] = ()) -> None:
    """The table; it has the keys that are asked for too."""
    tags = _tags(runs)
    tags += [key for key in dict.fromkeys(asked) if key not in (*_KEYS, *tags)]
    table = Table(title=Text(printable(title)), title_justify="left")
    for heading in ("Run", "State", "Loss", "Mode", "Model", "Data"):
        table.add_column(heading, overflow="fold")
    for heading in ("Seed", "Steps", *tags, "When", "Size"):
        table.add_column(Text(printable(heading)), justify="right")
    for each in runs:
        cells = [each.value(key) for key in ("run", "state", "loss", "mode", "model", "data", "seed", "steps")]
        numbers = [_shown(each.final.get(tag) if tag == "loss" else each.value(tag)) for tag in tags]
        style = {"failed": "red", "killed": "red", "damaged": "bold red", "running": "green"}.get(each.state)
        row = [*map(_shown, cells), *numbers, _when(each.changed), _megabytes(each.num_bytes)]
        table.add_row(*(Text(cell) for cell in row), style=style)
    Console(width=None if is_terminal() else 200).print(table)


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return "" if value is None else printable(str(value))[:200]


def _counted(num: int) -> str:
    return f"{num} run" if num == 1 else f"{num} runs"


def _when(seconds: float) -> str:
    with contextlib.suppress(ValueError, OverflowError, OSError):
        return time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds))
    return ""


def _megabytes(num_bytes: int) -> str:
    return f"{num_bytes / 1e6:.1f} MB"


def _show(one: Run) -> None:
    table = Table(show_header=False, box=None)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    best = (read_json(one.path / "summary.json") or {}).get("best")
    found = []
    with contextlib.suppress(CheckpointError):
        found = [step for step, _ in steps(one.path / "checkpoints")]
    rows: dict[str, Any] = {"run": one.path, "state": f"{one.state}{f': {one.cause}' if one.cause else ''}"}
    rows |= {key: one.value(key) for key in ("loss", "mode", "model", "data", "seed", "steps")}
    rows |= {"when": _when(one.changed), "size": _megabytes(one.num_bytes)}
    rows |= {"asked for": " ".join(rundir.stored_overrides(one.path))}
    rows |= {"final loss": one.final.get("loss")} | {tag: value for tag, value in one.final.items() if tag.startswith("eval/")}
    rows |= {"best": ", ".join(f"{tag} {_shown(value)}" for tag, value in best.items()) if isinstance(best, dict) else None}
    rows |= {"checkpoints": ", ".join(f"step {step}" for step in found) or "none"}
    for name, value in rows.items():
        table.add_row(Text(printable(name)), Text(_shown(value) if name != "asked for" else printable(str(value))))
    Console(width=None if is_terminal() else 140).print(table)


def _prune(chosen: Sequence[Run], filters: Sequence[str], options: Any) -> int:
    if not filters and options.older_than is None and options.keep is None:
        raise ConfigError(
            f"prune needs to be told which runs: type for example {_COMMAND} prune state=failed, or --older-than 30, or --keep 10"
        )
    if options.keep is not None and options.keep < 0:
        raise ConfigError(f"--keep={options.keep}: must be a whole number from 0 on")
    if options.older_than is not None and not options.older_than >= 0:
        raise ConfigError(f"--older-than={options.older_than}: must be a number of days from 0 on")
    newest_first = sorted(chosen, key=lambda each: each.changed, reverse=True)
    oldest = math.inf if options.older_than is None else time.time() - 86_400 * options.older_than
    unneeded = [each for each in newest_first[options.keep or 0 :] if each.changed < oldest]
    removed, failed, num_bytes = [], False, 0
    for each in unneeded:
        reason = _reason_to_stay(each.path) if each.state != "running" else "it is running"
        size = each.num_bytes
        if not reason and options.yes:
            try:
                reason, left = _remove(each.path)
            except OSError as error:
                reason, left, failed = f"it can't be removed: {error.strerror}", [], True
            if left:
                say(printable(f"{each.path} stays, with what is not the run's: {', '.join(left[:5])}"))
        if reason:
            say(printable(f"{each.path} stays: {reason}"))
        else:
            removed.append(each)
            num_bytes += size
    if removed and not options.yes:
        _print(removed, f"{_counted(len(removed))} would be removed")
    done = "removed" if options.yes else "would be removed: add --yes to do it"
    say(f"{_counted(len(removed))}, {_megabytes(num_bytes)}, {done}" if removed else "nothing to remove")
    return int(failed)


def _reason_to_stay(path: Path) -> str:
    """Why a directory is not touched; empty where it may be removed."""
    if path.is_symlink() or any((path / name).is_symlink() for name in (*_MADE, ".lock")):
        return "there are links in it, which no run makes"
    return "" if rundir.is_ours(path) else "it is not known as a run of this program"


def _remove(path: Path) -> tuple[str, list[str]]:
    """Removes what a run has made, and its directory if that is all; why it did not, and what is left. OSError where it can't."""
    lock = os.open(path / ".lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, 0o644)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        for name in _MADE:
            _remove_one(path / name)
            _remove_one(path / f".{name}.tmp")
        _remove_one(path / ".lock")
        left = sorted(entry.name for entry in path.iterdir())
        if not left:
            path.rmdir()
        return "", left
    except BlockingIOError:
        return "it is running", []
    finally:
        os.close(lock)


def _remove_one(path: Path) -> None:
    """A file, or a folder with all in it; a link itself, and nothing that it leads to."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


if __name__ == "__main__":
    main(run)
