"""Checkpoints: directories with the arrays and a manifest, written beside and renamed, found by scanning. Imports no TensorFlow.

    checkpoints/step-00000500/arrays.npz      every variable's value, by name; never pickled
    checkpoints/step-00000500/manifest.json   step, the arrays file's size and SHA-256, and the loop's own state

A directory counts only if its manifest and checksum hold; the newest that does is loaded.
"""

import dataclasses
import hashlib
import io
import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from trainer.errors import CheckpointError

_ARRAYS, _MANIFEST = "arrays.npz", "manifest.json"


@dataclasses.dataclass(frozen=True)
class Snapshot:
    """A run at the end of a step."""

    step: int
    arrays: dict[str, np.ndarray]
    state: dict[str, Any]  # the loop's own, plain JSON


def save(folder: Path, snapshot: Snapshot, keep: int, best_step: int | None) -> None:
    """Writes a checkpoint and removes those that are neither among the `keep` newest nor the best. Durable when it returns.

    Raises:
        CheckpointError: it can't be written; the older ones are as they were.
    """
    final = folder / f"step-{snapshot.step:08d}"
    temporary = folder / f".{final.name}.tmp"
    if final.exists():  # saved already, and the same: a step's state is a function of the configuration
        return
    try:
        temporary.mkdir(parents=True)
        _write(temporary, snapshot)
        temporary.rename(final)
        _sync_folder(folder)
    except OSError as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise CheckpointError(f"the checkpoint {final} can't be written: {error}") from error
    for step, path in _steps(folder)[keep:]:
        if step != best_step:
            shutil.rmtree(path)


def _write(folder: Path, snapshot: Snapshot) -> None:
    with open(folder / _ARRAYS, "wb") as file:
        np.savez(file, allow_pickle=False, **{name: _plain(array) for name, array in snapshot.arrays.items()})
        file.flush()
        os.fsync(file.fileno())
    content = (folder / _ARRAYS).read_bytes()
    manifest = {
        "step": snapshot.step,
        "size": len(content),
        "sha256": hashlib.sha256(content).hexdigest(),
        "dtypes": {name: array.dtype.name for name, array in snapshot.arrays.items()},
        "state": snapshot.state,
    }
    with open(folder / _MANIFEST, "w", encoding="utf-8") as file:
        json.dump(manifest | {"manifest_sha256": _digest(manifest)}, file, indent=2)
        file.flush()
        os.fsync(file.fileno())


def _digest(manifest: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def load_newest(folder: Path) -> tuple[Snapshot | None, list[str]]:
    """The newest valid checkpoint, None where there is none at all; and what was wrong with newer ones, which are set aside.

    Raises:
        CheckpointError: there are checkpoints, and none is valid; all stay as they are.
    """
    problems: dict[Path, str] = {}
    for _, path in _steps(folder):
        try:
            snapshot = load(path)
        except CheckpointError as error:
            problems[path] = str(error)
            continue
        for damaged in problems:  # not counted among those to keep, and not in the way of a good one of the same step
            shutil.rmtree(damaged.with_name(f"damaged-{damaged.name}"), ignore_errors=True)
            damaged.rename(damaged.with_name(f"damaged-{damaged.name}"))
        return snapshot, list(problems.values())
    if problems:
        raise CheckpointError(
            f"no checkpoint in {folder} is valid: {'; '.join(problems.values())}. "
            "Type another hydra.run.dir to start afresh, and keep this one to look into"
        )
    return None, []


def load(path: Path) -> Snapshot:
    """One checkpoint; CheckpointError names the file that is missing or damaged."""
    try:
        manifest = json.loads((path / _MANIFEST).read_text(encoding="utf-8"))
        if manifest.pop("manifest_sha256") != _digest(manifest):
            raise CheckpointError(f"{path / _MANIFEST} is damaged: it does not have the checksum that it names")
        content = (path / _ARRAYS).read_bytes()
        if hashlib.sha256(content).hexdigest() != manifest["sha256"]:
            size = f"{len(content)} of {manifest['size']} bytes"
            raise CheckpointError(f"{path / _ARRAYS} is damaged: its {size} don't have the checksum that {_MANIFEST} names")
        with np.load(io.BytesIO(content), allow_pickle=False) as stored:
            arrays = {name: _typed(stored[name], dtype) for name, dtype in manifest["dtypes"].items()}
        return Snapshot(manifest["step"], arrays, manifest["state"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path} is damaged: {type(error).__name__}: {error}") from error


def clean(folder: Path) -> None:
    """Removes what an interrupted save has left."""
    for litter in folder.glob(".step-*.tmp"):
        shutil.rmtree(litter)


def _steps(folder: Path) -> list[tuple[int, Path]]:
    found = [(int(match[1]), path) for path in folder.glob("step-*") if (match := re.fullmatch(r"step-(\d+)", path.name))]
    return sorted(found, reverse=True)


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
