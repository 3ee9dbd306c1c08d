"""Checkpoints: directories with the arrays and a manifest, written beside and renamed, found by scanning. Imports no TensorFlow.

    checkpoints/step-00000500/arrays.npz      every variable's value, by name; never pickled
    checkpoints/step-00000500/manifest.json   step, the arrays file's size and SHA-256, the run's seed, configuration hash and versions,
                                              and the loop's own state

A directory counts only if its manifest and checksum hold and its weights are finite; the newest that does is loaded.

    python -m trainer.checkpoints RUN         lists those of a run
"""

import contextlib
import dataclasses
import hashlib
import io
import json
import os
import re
import shutil
import time
import zipfile
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from trainer.arguments import Parser, main
from trainer.errors import CheckpointError, ConfigError

_ARRAYS, _MANIFEST = "arrays.npz", "manifest.json"
_ASIDE = "damaged-"  # before the names of directories that are set aside
_MOST_LOOKS = 10  # at checkpoints that a run removes faster than they are read
_LATEST = 2**40  # seconds since 1970 that are a date
_NOT_FINITE = "not_finite"  # in a manifest: the weights that are not


@dataclasses.dataclass(frozen=True)
class Snapshot:
    """A run at the end of a step."""

    step: int
    arrays: dict[str, np.ndarray]
    state: dict[str, Any]  # the loop's own, plain JSON
    about: dict[str, Any] = dataclasses.field(default_factory=dict)  # the run: seed, configuration, versions
    not_finite: Sequence[str] = ()  # names of weights that hold NaN or infinities: nobody can go on from there
    anchor: int | None = None  # the step of an older one that the run may roll back to


def save(
    folder: Path, snapshot: Snapshot, keep: int, best_step: int | None, before_it_counts: Callable[[int], None] = lambda step: None
) -> None:
    """Writes a checkpoint and removes those that are neither among the `keep` newest good ones nor the best. Durable when it returns.

    `before_it_counts(step)` is called when all is written and nothing can be loaded yet.

    Raises:
        CheckpointError: it can't be written; the older ones are as they were.
    """
    final = folder / _name(snapshot.step)
    temporary = folder / f".{final.name}.tmp"
    if final.exists():  # saved already, and the same: a step's state is a function of the configuration
        return
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        _write(temporary, snapshot, best_step)
        before_it_counts(snapshot.step)
        temporary.rename(final)
        _sync_folder(folder)
        _rotate(folder, keep, (best_step, snapshot.anchor))
    except (OSError, zipfile.BadZipFile) as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise CheckpointError(f"the checkpoint {final} can't be written: {error}: mend that, and the same command goes on") from error


def _name(step: int) -> str:
    return f"step-{step:08d}"


def _write(folder: Path, snapshot: Snapshot, best_step: int | None) -> None:
    with open(folder / _ARRAYS, "w+b") as file:
        np.savez(file, allow_pickle=False, **{name: _plain(array) for name, array in snapshot.arrays.items()})
        file.flush()
        os.fsync(file.fileno())
        size = os.fstat(file.fileno()).st_size
        file.seek(0)
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        with zipfile.ZipFile(file) as arrays:  # read back: their own checksums were made from memory
            if damaged := arrays.testzip():
                raise OSError(f"{damaged} is not what was written")
    manifest = {
        "step": snapshot.step,
        "best_step": best_step,  # so far
        "saved": time.time(),  # seconds since 1970
        "size": size,
        "sha256": sha256,
        "about": snapshot.about,
        _NOT_FINITE: list(snapshot.not_finite),
        "dtypes": {name: array.dtype.name for name, array in snapshot.arrays.items()},
        "state": snapshot.state,
    }
    with open(folder / _MANIFEST, "w", encoding="utf-8") as manifest_file:
        json.dump(manifest | {"manifest_sha256": _digest(manifest)}, manifest_file, indent=2)
        manifest_file.flush()
        os.fsync(manifest_file.fileno())
    _sync_folder(folder)


def _rotate(folder: Path, keep: int, spared: Collection[int | None]) -> None:
    """Removes what is older than the `keep` newest good ones, but for `spared`. What is damaged or not finite pushes no good one out."""
    num_good = 0
    for step, path in _steps(folder):
        if num_good < keep:
            num_good += problem(path) is None
        elif step not in spared:
            removed = path.with_name(f".{path.name}.old")  # at once: what is removed by half would look damaged
            path.rename(removed)
            shutil.rmtree(removed)


def _digest(manifest: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def load_newest(folder: Path) -> tuple[Snapshot | None, list[str]]:
    """The newest good checkpoint, None where there is none at all; and what was wrong with newer ones, which are set aside.

    Raises:
        CheckpointError: there are checkpoints, and none is good; all stay as they are.
    """
    problems: dict[Path, str] = {}
    for _, path in _steps(folder):
        try:
            snapshot = load(path)
        except CheckpointError as error:
            problems[path] = str(error)
            continue
        for damaged in problems:  # not in the way of a good one of the same step
            aside = damaged.with_name(f"{_ASIDE}{damaged.name}")
            shutil.rmtree(aside, ignore_errors=True)
            try:
                damaged.rename(aside)
            except OSError as error:
                raise CheckpointError(f"{damaged}, which is damaged, can't be renamed: {error.strerror}: move it away") from error
        return snapshot, list(problems.values())
    if problems:
        raise CheckpointError(
            f"no checkpoint in {folder} is valid: {'; '.join(problems.values())}. "
            "Type another hydra.run.dir to start afresh, and keep this one to look into"
        )
    return None, []


def load(path: Path) -> Snapshot:
    """One checkpoint; CheckpointError names the file that is missing or damaged, or the weights that are not finite."""
    with _explained(path), open(path / _ARRAYS, "rb") as file:
        manifest = _checked(path, file)
        with np.load(file, allow_pickle=False) as stored:
            arrays = {name: _typed(stored[name], dtype) for name, dtype in manifest["dtypes"].items()}
        return Snapshot(manifest["step"], arrays, manifest["state"], manifest["about"])


def problem(path: Path) -> str | None:
    """Why a checkpoint can't be gone on from; None if it can. Reads all of it, and keeps nothing in memory."""
    try:
        with _explained(path), open(path / _ARRAYS, "rb") as file:
            _checked(path, file)
    except CheckpointError as error:
        return str(error)
    return None


@contextlib.contextmanager
def _explained(path: Path) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as error:
        raise CheckpointError(f"{error.filename} is missing") from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{path} is damaged: {type(error).__name__}: {error}") from error


def _checked(path: Path, file: io.BufferedReader) -> dict[str, Any]:
    """The manifest, where it and the arrays' open file are whole and the weights finite."""
    manifest = json.loads((path / _MANIFEST).read_text(encoding="utf-8"))
    if manifest.pop("manifest_sha256") != _digest(manifest):
        raise CheckpointError(f"{path / _MANIFEST} is damaged: it does not have the checksum that it names")
    if hashlib.file_digest(file, "sha256").hexdigest() != manifest["sha256"]:
        size = f"{file.tell()} of {manifest['size']} bytes"
        raise CheckpointError(f"{path / _ARRAYS} is damaged: its {size} don't have the checksum that {_MANIFEST} names")
    file.seek(0)
    if path.name.removeprefix(_ASIDE) != _name(manifest["step"]):
        raise CheckpointError(f"{path} is damaged: {_MANIFEST} is of step {manifest['step']}")
    if manifest[_NOT_FINITE]:
        raise CheckpointError(f"{path} is of no use: {', '.join(manifest[_NOT_FINITE][:3])} held NaN or infinities when it was saved")
    return dict(manifest)


def clean(folder: Path) -> None:
    """Removes what an interrupted save has left."""
    for litter in folder.glob(".step-*"):
        shutil.rmtree(litter, ignore_errors=True)


def _steps(folder: Path, prefix: str = "") -> list[tuple[int, Path]]:
    """Newest first."""
    matches = [(re.fullmatch(rf"{prefix}step-(\d+)", path.name), path) for path in _entries(folder)]
    return sorted(((int(match[1]), path) for match, path in matches if match), reverse=True)


def _entries(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())  # a glob is silent, and empty, where a directory can't be read
    except FileNotFoundError:
        return []
    except OSError as error:
        raise CheckpointError(
            f"the checkpoints in {folder} can't be read: {error.strerror}: mend that, or type another hydra.run.dir"
        ) from error


def _plain(array: np.ndarray) -> np.ndarray:
    # NumPy's file format has no bfloat16: it is kept as the integers of the same width.
    return array.view(f"u{array.itemsize}") if array.dtype.kind == "V" else array


def _typed(array: np.ndarray, dtype: str) -> np.ndarray:
    if array.dtype.name == dtype:
        return array
    import ml_dtypes

    return array.view(getattr(ml_dtypes, dtype))


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def run(arguments: Sequence[str]) -> int:
    """The command: lists a run's checkpoints, newest first. Exit status 0 if the newest is good.

    Raises:
        ConfigError: there is no such run.
        CheckpointError: the newest checkpoint is damaged, or there is none.
    """
    options = _parser().parse_args(arguments)
    if options.help:
        print(_HELP)
        return 0
    if not options.run:
        raise ConfigError(f"which run? {_for_example(Path('outputs'))}")
    path = Path(options.run).parent if Path(options.run).name == "checkpoints" else Path(options.run)
    folder = path / "checkpoints"
    try:
        is_run = folder.is_dir() or (path / "config.yaml").is_file()
    except OSError as error:
        raise ConfigError(f"the run in {path} can't be read: {error.strerror}: type a directory that you may read") from error
    if not is_run:
        raise ConfigError(f"there is no run in {path}: {_for_example(path if path.is_dir() else Path('outputs'))}")
    found = []
    for _ in range(_MOST_LOOKS):  # a run that goes on meanwhile removes its older ones
        found = [_look(step, one) for prefix in ("", _ASIDE) for step, one in _steps(folder, prefix)]
        if not found or found[0]:
            break
    rows = [row for row in found if row]
    _print(path, rows)
    steps = [(row.step, row.problem) for row in rows if not row.is_aside]
    if not steps:
        raise CheckpointError(f"there is no checkpoint in {folder}")
    if steps[0][1]:
        good = [step for step, reason in steps if not reason]
        rest = f"the same command that made the run goes on from step {good[0]}" if good else "no other is valid either"
        raise CheckpointError(f"{steps[0][1]}; {rest}")
    return 0


_HELP = """python -m trainer.checkpoints RUN

Lists the checkpoints of the run in the directory RUN, the newest first: step, time, size, whether each is valid, and why not.
Exit status 0 if the newest one is valid, 4 if it is not, or if there is none.
"""


def _parser() -> Parser:
    parser = Parser("python -m trainer.checkpoints")
    parser.add_argument("run", nargs="?")
    return parser


def _for_example(folder: Path) -> str:
    """What to type: the newest run within a folder, where there is any."""
    found = [path.parent for depth in ("*", "*/*", "*/*/*") for path in folder.glob(f"{depth}/checkpoints")]
    run = max(found, key=lambda path: path.stat().st_mtime, default="RUN")
    return f"type python -m trainer.checkpoints {run}" + (", with RUN the directory of a run" if run == "RUN" else "")


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
        return self.path.name.startswith(_ASIDE)


def _look(step: int, path: Path) -> _Listed | None:
    """None where it has been removed meanwhile."""
    reason = problem(path)
    manifest = _manifest(path)
    num_bytes = 0
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
        valid = Text(f"no: {reason}", "bold red") if reason else Text("yes", "green")
        saved = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(row.saved))
        table.add_row(str(row.step), saved, f"{row.num_bytes / 1e6:.1f} MB", ", ".join(kept_as), valid)
    Console().print(table)


def _manifest(path: Path) -> dict[str, Any]:
    """What can be read of it, for people to see; not checked."""
    try:
        found = json.loads((path / _MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


if __name__ == "__main__":
    main(run)
