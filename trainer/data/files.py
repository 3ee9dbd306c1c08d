"""Data of one's own, from a CSV or an NPZ file, or from NPY files of any size. Nothing is ever unpickled."""

import dataclasses
import difflib
import functools
import zipfile
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from trainer.data.base import Examples, Source, StreamedSource
from trainer.data.kinds import KINDS
from trainer.data.table import one_hot, open_csv, read_columns, unreadable
from trainer.errors import ConfigError, DataError

TARGETS = ("auto", *(kind for kind in KINDS if kind not in ("labels", "none")))
MAX_AUTO_CLASSES = 20  # more different whole numbers than this are taken for quantities


@dataclasses.dataclass(frozen=True)
class Csv(Source):
    """A CSV file in UTF-8, whose first line names the columns.

    Columns of numbers are features as they are; a column of text becomes one column of 0 and 1 for each of its different texts
    (one-hot, at most 100), named `column=text`. An empty cell is a missing value (NaN), which is refused unless its row has
    weight 0. A column without a name, such as pandas' index, is left out.

    Args:
        path: of the file; relative paths count from the current folder.
        target: the column to predict, or a list of columns.
        targets: what they are, out of TARGETS: auto: text is classes, and so is one column of at most 20 different whole numbers; all
            else is real. Classes are numbered from 0 in sorted order.
        features: the columns to predict from; None: all that are neither target nor sample_weight.
        delimiter: between cells: one character, or "tab".
        sample_weight: a column that weighs the examples, or None.
    """

    path: str
    target: str | Sequence[str]
    targets: str = "auto"
    features: Sequence[str] | None = None
    delimiter: str = ","
    sample_weight: str | None = None

    def __post_init__(self) -> None:
        _check_targets(self.targets)
        if len(self.delimiter) != 1 and self.delimiter != "tab":
            raise ConfigError(f"data.delimiter={self.delimiter!r} must be one character, or tab")
        object.__setattr__(self, "target", _names(self.target))
        object.__setattr__(self, "features", None if self.features is None else _names(self.features))
        if not self.target:
            raise ConfigError("data.target=[] must name the column to predict")

    @property
    def kind(self) -> str:
        return self.targets if self.targets != "auto" else self._contents[0]

    def load(self) -> Examples:
        return self._contents[1]

    @functools.cached_property
    def _contents(self) -> tuple[str, Examples]:
        names, rows = self._opened()
        feature_names = self._feature_names(names, self._taken)
        wanted = [*feature_names, *self.target, *([self.sample_weight] if self.sample_weight else [])]
        columns, lines = read_columns(rows, names, wanted, self.path)

        def place(row: int) -> str:
            return f"{self.path}, line {lines[row]}"

        weights = {self.sample_weight: columns[self.sample_weight].numbers(place)} if self.sample_weight else {}
        ignored = weights[self.sample_weight] == 0 if self.sample_weight else np.zeros(len(lines), bool)
        label = ", ".join(self.target)
        if len(self.target) == 1:
            targets = columns[label].values(place)
        else:
            targets = np.stack([columns[name].numbers(place) for name in self.target], axis=1)
        kind, targets, class_names = _fit_targets(targets, self.targets, ignored, place, f"column {label!r}")
        features, one_hot_names = one_hot(columns, feature_names, place)
        num_classes = len(class_names) if kind == "classes" else None
        return kind, Examples(features, targets, num_classes, weights, one_hot_names, class_names)

    def load_features(self) -> Examples:
        names, rows = self._opened()
        feature_names = self._feature_names(names, {name: key for name, key in self._taken.items() if name in names})
        columns, lines = read_columns(rows, names, feature_names, self.path)
        features, one_hot_names = one_hot(columns, feature_names, lambda row: f"{self.path}, line {lines[row]}")
        return Examples(features, None, feature_names=one_hot_names)

    def _opened(self) -> tuple[list[str], Iterable[tuple[int, list[str]]]]:
        return open_csv(Path(self.path).expanduser(), "\t" if self.delimiter == "tab" else self.delimiter)

    @property
    def _taken(self) -> dict[str, str]:
        """The columns that are no features, and the keys that name them."""
        return dict.fromkeys(self.target, "data.target") | ({self.sample_weight: "data.sample_weight"} if self.sample_weight else {})

    def _feature_names(self, names: Sequence[str], taken: Mapping[str, str]) -> list[str]:
        for name, key in {**dict.fromkeys(self.features or (), "data.features"), **taken}.items():
            if name not in names:
                raise ConfigError(f"{key}={name}: {self.path} has no such column; {_did_you_mean(name, names)}{_other_delimiter(names)}")
        for name in self.features or ():
            if name in taken:
                raise ConfigError(f"data.features has {name!r}, which is {taken[name]} already")
        features = [name for name in names if name and name not in taken] if self.features is None else list(self.features)
        if not features:
            raise ConfigError(f"{self.path} has no columns to predict from: its columns are {', '.join(names)}")
        return features


@dataclasses.dataclass(frozen=True)
class Npz(Source):
    """An NPZ file, as numpy.savez writes it. Arrays of Python objects are pickled, and refused.

    Args:
        path: of the file; relative paths count from the current folder.
        features: name of the array of features, [n, ...] numbers.
        target: name of the array of targets, numbers [n, ...], or text [n].
        targets: what they are, out of TARGETS: auto: text is classes, and so are at most 20 different whole numbers [n]; all else is
            real. Classes are numbered from 0 in sorted order.
        sample_weight: name of an array [n] that weighs the examples, or None.
    """

    path: str
    features: str = "x"
    target: str = "y"
    targets: str = "auto"
    sample_weight: str | None = None

    def __post_init__(self) -> None:
        _check_targets(self.targets)

    @property
    def kind(self) -> str:
        return self.targets if self.targets != "auto" else self._contents[0]

    def load(self) -> Examples:
        return self._contents[1]

    def load_features(self) -> Examples:
        return Examples(_read_npz(self.path, {"data.features": self.features})[self.features], None)

    @functools.cached_property
    def _contents(self) -> tuple[str, Examples]:
        keys = {"data.features": self.features, "data.target": self.target}
        if self.sample_weight:
            keys["data.sample_weight"] = self.sample_weight
        arrays = _read_npz(self.path, keys)
        weights = {self.sample_weight: arrays[self.sample_weight]} if self.sample_weight else {}
        targets = arrays[self.target]
        ignored = np.zeros(len(targets), bool)
        if self.sample_weight and weights[self.sample_weight].shape == ignored.shape:  # else Examples refuses them
            ignored = weights[self.sample_weight] == 0

        def place(row: int) -> str:
            return f"{self.path}, row {row} (from 0)"

        kind, targets, class_names = _fit_targets(targets, self.targets, ignored, place, f"array {self.target!r}")
        num_classes = len(class_names) if kind == "classes" else None
        return kind, Examples(arrays[self.features], targets, num_classes, weights, class_names=class_names)


@dataclasses.dataclass(frozen=True)
class Npy(StreamedSource):
    """Two NPY files, as numpy.save writes them, or three. Features stay in their file, and are read row by row when they are needed.

    Args:
        path: the folder of the files; relative paths count from the current folder.
        features: file of the features, [n, ...] numbers; its own path where that is absolute.
        target: file of the targets, numbers [n, ...], or text [n].
        targets: what they are, as for `Npz`; of targets with more axes than one, auto is real.
        sample_weight: file of an array [n] that weighs the examples, or None.
    """

    path: str
    features: str = "x.npy"
    target: str = "y.npy"
    targets: str = "auto"
    sample_weight: str | None = None

    parallel = True

    def __post_init__(self) -> None:
        _check_targets(self.targets)

    @property
    def kind(self) -> str:
        return self._labels[0]

    @property
    def num_examples(self) -> int:
        return len(self._features)

    @property
    def num_classes(self) -> int | None:  # type: ignore[override]  # depends on the files
        return len(self._labels[2]) or None

    @property
    def class_names(self) -> Sequence[str]:  # type: ignore[override]  # depends on the files
        return self._labels[2]

    def read(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
        return self.read_features(rows), *self.read_targets(rows)

    def read_features(self, rows: np.ndarray) -> np.ndarray:
        return np.asarray(self._features[rows])

    def read_targets(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        return np.asarray(self._labels[1][rows]), None if self._weights is None else np.asarray(self._weights[rows])

    @functools.cached_property
    def _features(self) -> np.ndarray:
        features = _map_npy(Path(self.path) / self.features)
        if features.ndim < 2:
            raise DataError(
                f"{Path(self.path) / self.features}: features must have shape [n, ...], one row for each example; found {features.shape}: "
                "save features[:, None] for one column"
            )
        return features

    @functools.cached_property
    def _weights(self) -> np.ndarray | None:
        return None if self.sample_weight is None else self._beside(self.sample_weight)

    @functools.cached_property
    def _labels(self) -> tuple[str, np.ndarray, Sequence[str]]:
        """The kind of the targets, the targets, and the names of their classes where they are classes."""
        targets, path = self._beside(self.target), Path(self.path) / self.target
        if targets.ndim > 1 and self.targets != "classes" and targets.shape[1:] != (1,):
            if targets.dtype.kind not in "fiub":
                raise DataError(f"{path} must hold numbers, or text [n]; found dtype {targets.dtype}, shape {targets.shape}")
            return "real" if self.targets == "auto" else self.targets, targets, ()
        ignored = np.zeros(len(targets), bool)
        if self._weights is not None and self._weights.shape == ignored.shape:  # else it is refused when it is read
            ignored = np.asarray(self._weights) == 0

        def place(row: int) -> str:
            return f"{path}, row {row} (from 0)"

        kind, targets, class_names = _fit_targets(np.asarray(targets), self.targets, ignored, place, f"the array in {path}")
        return kind, targets, class_names

    def _beside(self, name: str) -> np.ndarray:
        """An array with a row for each of the features'."""
        array, path = _map_npy(Path(self.path) / name), Path(self.path) / name
        if array.ndim == 0 or len(array) != len(self._features):
            rows = f"{len(array)} rows" if array.ndim else "a single number"
            raise DataError(f"{path} holds {rows}, but {Path(self.path) / self.features} has {len(self._features)} rows")
        return array


def _map_npy(path: Path) -> np.ndarray:
    try:
        array = np.load(path.expanduser(), mmap_mode="r", allow_pickle=False)
    except OSError as error:
        raise unreadable(path, error) from error
    except (ValueError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(
            f"{path} holds no array of numbers or text, or is damaged. Python objects are never unpickled: save text by y.astype(str), and "
            "all by numpy.save"
        ) from error
    if not isinstance(array, np.ndarray):
        raise DataError(f"{path} holds several arrays, as numpy.savez writes them: type data=npz data.path={path}")
    if 0 in array.shape:
        raise DataError(f"{path}: there is no data: an array of shape {array.shape}")
    return array


def _other_delimiter(names: Sequence[str]) -> str:
    found = next((mark for mark in ";\t|" if len(names) == 1 and mark in names[0]), None)
    return f"; its columns seem to be separated by {found!r}: type 'data.delimiter=\"{found}\"'" if found else ""


def _read_npz(path: str, keys: dict[str, str]) -> dict[str, np.ndarray]:
    arrays = {}
    try:
        with Path(path).expanduser().open("rb") as file:
            archive = np.load(file, allow_pickle=False)
            if not isinstance(archive, np.lib.npyio.NpzFile):
                raise DataError(f"{path} holds one array; both features and targets are needed: numpy.savez(path, x=..., y=...)")
            for key, name in keys.items():
                if name not in archive:
                    raise ConfigError(f"{key}={name}: {path} has no such array; {_did_you_mean(name, archive.files)}")
                array = archive[name]
                if not isinstance(array, np.ndarray):
                    raise DataError(f"{path}: {name!r} is no array: numpy.savez(path, x=..., y=...) writes arrays alone")
                if array.ndim == 0:
                    raise DataError(f"{path}: array {name!r} is a single number; expected one row for each example")
                arrays[name] = array
    except (ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(
            f"{path} holds no arrays of numbers or text, or is damaged. Python objects are never unpickled: save text by y.astype(str), "
            "and all by numpy.savez; a table is data=csv"
        ) from error
    except OSError as error:
        raise unreadable(path, error) from error
    return arrays


def _fit_targets(
    targets: np.ndarray, kind: str, ignored: np.ndarray, place: Callable[[int], str], what: str
) -> tuple[str, np.ndarray, list[str]]:
    """The kind of the targets, the targets, and the names of their classes where they are classes.

    Args:
        targets: [n] or [n, dim], numbers or text; NaN or "" is missing.
        kind: out of TARGETS.
        ignored: bool [n], examples of weight 0, whose class may be missing.
        place: of a row, for people.
        what: the targets' name, for people.
    """
    if targets.dtype.kind not in "fiubU":
        raise DataError(f"{what} must be numbers or text; found dtype {targets.dtype}")
    if targets.ndim == 2 and targets.shape[1] == 1:
        targets = targets[:, 0]
    is_text = targets.dtype.kind == "U"
    if not is_text:
        targets = targets.astype(np.float64)
    missing = targets == "" if is_text else np.isnan(targets)
    known = targets[~missing]
    is_whole = not is_text and bool((np.isfinite(known) & (known == np.floor(known))).all())
    if kind == "auto":
        few = targets.ndim == 1 and is_whole and len(np.unique(known)) <= MAX_AUTO_CLASSES
        kind = "classes" if is_text or few else "real"
    if kind != "classes":
        if is_text:
            raise DataError(f"{what} is text, which data.targets={kind} can't be; type data.targets=classes")
        return kind, targets, []
    if targets.ndim != 1:
        raise DataError(f"{what} of shape {targets.shape} can't be classes: they take one value for each example")
    if not is_text and not is_whole:
        row = int(np.flatnonzero(~missing & ~(np.isfinite(targets) & (targets == np.floor(targets))))[0])
        raise DataError(f"{place(row)}: {what} has {targets[row]}, which is no class: whole numbers and text are")
    if (missing & ~ignored).any():
        raise DataError(f"{place(int((missing & ~ignored).argmax()))}: {what} has no value; drop the row, or give it weight 0")
    classes, indices = np.unique(known, return_inverse=True)
    numbered = np.zeros(len(targets), np.int32)
    numbered[~missing] = indices
    return kind, numbered, [str(c) if is_text else str(int(c)) for c in classes]


def _names(names: object) -> tuple[str, ...]:
    """One name or several as text: data.target=5 arrives as a number."""
    return tuple(str(name) for name in (names if isinstance(names, Sequence) and not isinstance(names, str) else [names]))


def _check_targets(targets: str) -> None:
    if targets not in TARGETS:
        raise ConfigError(f"data.targets={targets} must be one of {', '.join(TARGETS)}")


def _did_you_mean(name: str, names: Sequence[str]) -> str:
    close = difflib.get_close_matches(str(name), names, n=1)
    return f"did you mean {close[0]}?" if close else f"there are {', '.join(filter(None, names))}"
