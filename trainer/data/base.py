"""What a data source gives. Imports no TensorFlow."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from trainer.errors import DataError

KINDS = ("real", "counts", "classes", "series")


@dataclasses.dataclass(frozen=True)
class Examples:
    """Examples in memory, one a row.

    Arrays of other dtypes are converted, and targets `[n]` that are not classes become `[n, 1]`.

    Args:
        features: float32 [n, ...].
        targets: int32 [n], indices from 0, for classes; float64 [n, dim] for all else.
        num_classes: the number of classes; None where targets are not classes.
        weights: columns [n] of finite numbers >= 0 that can weigh the examples, by name.
        feature_names: the columns of features [n, columns]; empty where they have no names.
        class_names: one for each class; empty where they have no names.

    Raises:
        DataError: no examples; lengths, shapes or dtypes that don't belong together; classes out of range.
    """

    features: np.ndarray
    targets: np.ndarray
    num_classes: int | None = None
    weights: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
    feature_names: Sequence[str] = ()
    class_names: Sequence[str] = ()

    def __post_init__(self) -> None:
        features = _numbers("features", self.features, np.float32)
        if features.ndim < 2:
            raise DataError(
                f"features must have shape [n, ...], one row for each example; found {features.shape}: features[:, None] makes one column"
            )
        if self.num_classes is None:
            targets = _numbers("targets", self.targets, np.float64)
            targets = targets[:, None] if targets.ndim == 1 else targets
            if targets.ndim != 2:
                raise DataError(f"targets must have shape [n] or [n, dim]; found {targets.shape}")
        else:
            targets = _class_indices(np.asarray(self.targets), self.num_classes)
        if len(targets) != len(features):
            raise DataError(f"{len(features)} rows of features, but {len(targets)} of targets")
        if 0 in features.shape or 0 in targets.shape:
            raise DataError(f"there is no data: features of shape {features.shape}, targets of shape {targets.shape}")
        weights = {name: _weights(name, column, len(features)) for name, column in self.weights.items()}
        if self.feature_names and (features.ndim != 2 or len(self.feature_names) != features.shape[1]):
            raise DataError(f"{len(self.feature_names)} feature names for features of shape {features.shape}")
        if self.class_names and len(self.class_names) != self.num_classes:
            raise DataError(f"{len(self.class_names)} class names for {self.num_classes} classes")
        for name, value in (("features", features), ("targets", targets), ("weights", weights)):
            object.__setattr__(self, name, value)

    def __len__(self) -> int:
        return len(self.features)

    def check(self, weight: np.ndarray | None = None, *, kind: str = "real") -> None:
        """Refuses values that training can't use, in the rows that count.

        Args:
            weight: [n]; rows of weight 0 may hold anything, NaN included. None: every row counts.
            kind: of the targets, out of KINDS; counts must be whole and not negative.

        Raises:
            DataError: a value is not finite, or not a count; it names the row and the column.
        """
        counts = np.ones(len(self), bool) if weight is None else np.asarray(weight) != 0
        if not counts.any():
            raise DataError("every example has weight 0: there is nothing to learn from")
        for name, array, names in (("features", self.features, self.feature_names), ("targets", self.targets, ())):
            with np.errstate(over="ignore"):
                bad = ~np.isfinite(array.astype(np.float32))
            self._refuse(bad, counts, name, array, names, "is not finite in float32: correct it, drop the row, or give it weight 0")
        if kind == "counts":
            bad = (self.targets < 0) | (self.targets != np.floor(self.targets))
            self._refuse(bad, counts, "targets", self.targets, (), "is no count (0, 1, 2, ...)")

    @staticmethod
    def _refuse(bad: np.ndarray, counts: np.ndarray, name: str, array: np.ndarray, names: Sequence[str], why: str) -> None:
        rows = bad.reshape(len(bad), -1).any(axis=1) & counts
        if rows.any():
            row = int(rows.argmax())
            place = tuple(int(i) for i in np.argwhere(bad[row])[0])
            column = (
                f", column {names[place[0]]!r}"
                if names
                else f", column {place[0]}"
                if len(place) == 1
                else f", at {place}"
                if place
                else ""
            )
            raise DataError(f"{name}: {array[row][place]} in row {row}{column} (from 0) {why}")


@dataclasses.dataclass(frozen=True)
class Source:
    """Where examples come from.

    A source of one's own is a frozen dataclass whose fields are its keys in YAML:

        @dataclasses.dataclass(frozen=True)
        class Waves(Source):
            num_examples: int = 200
            kind = "real"

            def load(self):
                x = np.linspace(0, 10, self.num_examples)[:, None]
                return Examples(features=x, targets=np.sin(x))

    in `conf/data/waves.yaml`: `_target_: my_package.Waves` and `num_examples: 200`.

    Examples are held in memory. Streamed data has its place beside `load`: a source that gives `num_examples` and rows by index
    is all that the order of the data needs.
    """

    @property
    def kind(self) -> str:
        """What the targets are, out of KINDS; a loss says which it can learn from. A plain class attribute does."""
        raise DataError(f"{type(self).__name__} has no kind: give it one of {', '.join(KINDS)}")

    def load(self) -> Examples:
        """Reads all examples; raises DataError where that can't be done."""
        raise DataError(f"{type(self).__name__} has no load(): define load(self) -> Examples")


def _numbers(name: str, array: Any, dtype: type) -> np.ndarray:
    array = np.asarray(array)
    if array.dtype.kind not in "fiub":
        raise DataError(f"{name} must be real numbers; found dtype {array.dtype}")
    with np.errstate(over="ignore"):  # to inf, which `check` refuses by row and column
        return array.astype(dtype)


def _class_indices(targets: np.ndarray, num_classes: int) -> np.ndarray:
    if num_classes < 2:
        raise DataError(f"there must be at least 2 classes; found {num_classes}")
    if targets.ndim != 1 or targets.dtype.kind not in "iu":
        raise DataError(f"class targets must be whole numbers of shape [n]; found dtype {targets.dtype}, shape {targets.shape}")
    bad = (targets < 0) | (targets >= num_classes)
    if bad.any():
        row = int(bad.argmax())
        raise DataError(
            f"targets: class {targets[row]} in row {row} (from 0) is out of range: {num_classes} classes are 0 to {num_classes - 1}"
        )
    return targets.astype(np.int32)


def _weights(name: str, column: Any, num_examples: int) -> np.ndarray:
    column = _numbers(f"weights {name!r}", column, np.float64)
    if column.shape != (num_examples,):
        raise DataError(f"weights {name!r} have shape {column.shape}; expected ({num_examples},), one for each example")
    bad = ~(np.isfinite(column) & (column >= 0))
    if bad.any():
        row = int(bad.argmax())
        raise DataError(f"weights {name!r} must be finite numbers >= 0; row {row} (from 0) has {column[row]}")
    return column
