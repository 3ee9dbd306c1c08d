"""Checkpoints: directories with the arrays and a manifest, written beside and renamed, found by scanning. Imports no TensorFlow.

    checkpoints/step-00000500/arrays.npz      every variable's value, by name; never pickled
    checkpoints/step-00000500/manifest.json   step, the arrays file's size and SHA-256, the run's seed, configuration hash and versions,
                                              and the loop's own state

A directory counts only if its manifest and checksum hold and its weights are finite; the newest that does is loaded.
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

from trainer.errors import CheckpointError

_ARRAYS, MANIFEST = "arrays.npz", "manifest.json"
ASIDE = "damaged-"  # before the names of directories that are set aside
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
    except (OSError, zipfile.BadZipFile) as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise CheckpointError(f"the checkpoint {final} can't be written: {error}: mend that, and the same command goes on") from error
    try:
        _rotate(folder, keep, (best_step, snapshot.anchor), final, not snapshot.not_finite)
    except OSError as error:
        raise CheckpointError(f"old checkpoints in {folder} can't be removed: {error}: mend that, and the same command goes on") from error


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
    with open(folder / MANIFEST, "w", encoding="utf-8") as manifest_file:
        json.dump(manifest | {"manifest_sha256": _digest(manifest)}, manifest_file, indent=2)
        manifest_file.flush()
        os.fsync(manifest_file.fileno())
    _sync_folder(folder)


def _rotate(folder: Path, keep: int, spared: Collection[int | None], written: Path, is_good: bool) -> None:
    """Removes what is older than the `keep` newest good ones, but for `spared`. What is damaged or not finite pushes no good one out.

    Of the one just `written` it is known whether it is good; the others are read.
    """
    found, num_good = steps(folder), 0
    for step, path in found if len(found) > keep else ():
        if num_good < keep:
            num_good += is_good if path == written else problem(path) is None
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
    for _, path in steps(folder):
        try:
            snapshot = load(path)
        except CheckpointError as error:
            problems[path] = str(error)
            continue
        for damaged in problems:  # not in the way of a good one of the same step
            aside = damaged.with_name(f"{ASIDE}{damaged.name}")
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
    manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
    if manifest.pop("manifest_sha256") != _digest(manifest):
        raise CheckpointError(f"{path / MANIFEST} is damaged: it does not have the checksum that it names")
    if hashlib.file_digest(file, "sha256").hexdigest() != manifest["sha256"]:
        size = f"{file.tell()} of {manifest['size']} bytes"
        raise CheckpointError(f"{path / _ARRAYS} is damaged: its {size} don't have the checksum that {MANIFEST} names")
    file.seek(0)
    if path.name.removeprefix(ASIDE) != _name(manifest["step"]):
        raise CheckpointError(f"{path} is damaged: {MANIFEST} is of step {manifest['step']}")
    if manifest[_NOT_FINITE]:
        raise CheckpointError(f"{path} is of no use: {', '.join(manifest[_NOT_FINITE][:3])} held NaN or infinities when it was saved")
    return dict(manifest)


def clean(folder: Path) -> None:
    """Removes what an interrupted save has left."""
    for litter in folder.glob(".step-*"):
        shutil.rmtree(litter, ignore_errors=True)


def steps(folder: Path, prefix: str = "") -> list[tuple[int, Path]]:
    """The steps of a folder's checkpoints and their directories, newest first; with ASIDE as prefix, of those that are set aside."""
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
