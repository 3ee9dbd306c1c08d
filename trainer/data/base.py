"""What a data source gives. Imports no TensorFlow."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from trainer.data.kinds import KINDS, misfit
from trainer.errors import DataError


@dataclasses.dataclass(frozen=True)
class Examples:
    """Examples in memory, one a row.

    Arrays of other dtypes are converted, and targets `[n]` that are not classes become `[n, 1]`.

    Args:
        features: float32 [n, ...], or tokens: int32 [n, length].
        targets: int32 [n], or [n, length] for sequences, indices from 0, for classes; {labels: int32 [n, length] of classes padded
            with -1, num_frames: int32 [n]}; None where there are no targets; float64 [n, ...] for all else.
        num_classes: the number of classes; None where targets are neither classes nor labels.
        weights: columns [n] of finite numbers >= 0 that can weigh the examples, by name.
        feature_names: the columns of features [n, columns]; empty where they have no names.
        class_names: one for each class; empty where they have no names.
        num_tokens: where features are tokens, how many different ones there are; they are indices from 0.
        rows: [n], the examples' places in their source, for messages; None: these are all of them.

    Raises:
        DataError: no examples; lengths, shapes or dtypes that don't belong together; classes out of range.
    """

    features: np.ndarray
    targets: Any
    num_classes: int | None = None
    weights: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
    feature_names: Sequence[str] = ()
    class_names: Sequence[str] = ()
    num_tokens: int | None = None
    rows: np.ndarray | None = None

    def __post_init__(self) -> None:
        if self.num_tokens is None:
            features = _numbers("features", self.features, np.float32)
        else:
            features = _indices("features", np.asarray(self.features), self.num_tokens, "token", rows=self.rows)
        if features.ndim < 2:
            raise DataError(
                f"features must have shape [n, ...], one row for each example; found {features.shape}: features[:, None] makes one column"
            )
        targets = _targets(self.targets, self.num_classes, self.rows)
        for array in _arrays(targets):
            if len(array) != len(features):
                raise DataError(f"{len(features)} rows of features, but {len(array)} of targets")
        if any(0 in array.shape for array in (features, *_arrays(targets))):
            shapes = [array.shape for array in _arrays(targets)]
            raise DataError(f"there is no data: features of shape {features.shape}, targets of shape {', '.join(map(str, shapes))}")
        weights = {name: _weights(name, column, len(features), self.rows) for name, column in self.weights.items()}
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
            kind: of the targets, out of KINDS.

        Raises:
            DataError: targets are not shaped as their kind; a value is not finite, or can't be of the kind; it names the row and the
                column.
        """
        counts = np.ones(len(self), bool) if weight is None else np.asarray(weight) != 0
        if not counts.any():
            raise DataError("every example has weight 0: there is nothing to learn from")
        broken = "is not finite in float32: correct it, drop the row, or give it weight 0"
        self._refuse(_infinite(self.features), counts, "features", self.features, self.feature_names, broken)
        if self.targets is not None and self.num_classes == 1:
            raise DataError("there must be at least 2 classes; found 1")
        if wrong := misfit(kind, self.targets, self.num_classes):
            raise DataError(f"targets of kind {kind} {wrong}")
        if not isinstance(self.targets, np.ndarray):
            return
        limits = KINDS[kind]
        bad = np.isnan(self.targets) if limits.infinite else _infinite(self.targets)
        self._refuse(bad, counts, "targets", self.targets, (), broken)
        if limits.bad is not None:
            self._refuse(limits.bad(self.targets), counts, "targets", self.targets, (), limits.why)

    def _refuse(self, bad: np.ndarray, counts: np.ndarray, name: str, array: np.ndarray, names: Sequence[str], why: str) -> None:
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
            raise DataError(f"{name}: {array[row][place]} in row {_place(row, self.rows)}{column} (from 0) {why}")


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

    Its examples are held in memory; those of a `StreamedSource` need not be.
    """

    @property
    def kind(self) -> str:
        """What the targets are, out of KINDS; a loss says which it can learn from. A plain class attribute does."""
        raise DataError(f"{type(self).__name__} has no kind: give it one of {', '.join(KINDS)}")

    def load(self) -> Examples:
        """Reads all examples; raises DataError where that can't be done."""
        raise DataError(f"{type(self).__name__} has no load(): define load(self) -> Examples")

    def load_features(self) -> Examples:
        """All examples without their targets, to predict these; a source whose files may lack targets reads them without."""
        return dataclasses.replace(self.load(), targets=None, weights={})


@dataclasses.dataclass(frozen=True)
class StreamedSource(Source):
    """Where examples come from that are read when they are needed, by index: they need not fit into memory.

        @dataclasses.dataclass(frozen=True)
        class Recordings(StreamedSource):
            path: str
            kind = "classes"
            num_classes = 2
            num_examples = 1_000_000

            def read(self, rows):
                return self.samples[rows], self.labels[rows], None

            @functools.cached_property
            def samples(self):
                return np.memmap(...)

    Shapes and dtypes are those of the first example. What is read is checked then: a value that is not finite, or out of range, ends
    the run with the row that has it.
    """

    num_classes = None  # the number of classes; None where targets are not classes
    class_names: ClassVar[Sequence[str]] = ()  # one for each class; empty where they have no names
    num_tokens = None  # where features are tokens, how many different ones there are
    parallel = False  # whether `read` may be called by several threads at once, and gains by it

    @property
    def num_examples(self) -> int:
        """How many there are. A plain class attribute does, or a field."""
        raise DataError(f"{type(self).__name__} has no num_examples: say how many there are")

    def read(self, rows: np.ndarray) -> tuple[np.ndarray, Any, np.ndarray | None]:
        """Some examples.

        Args:
            rows: [n] indices from 0 to num_examples - 1, in any order.

        Returns:
            Features, targets and weights as those of `Examples`, [n, ...] each; weights are numbers [n], or None for ever.

        It is called by another thread than the one that trains, and must give the same for the same row every time.
        """
        raise DataError(f"{type(self).__name__} has no read(): define read(self, rows) -> (features, targets, weights or None)")

    def read_features(self, rows: np.ndarray) -> np.ndarray:
        """Features of some examples; a source whose files may lack targets reads them without."""
        return self.read(rows)[0]

    def unlabelled(self) -> "StreamedSource":
        """The same, to be asked for features alone; a source that finds targets by where examples lie takes them from anywhere."""
        return self

    def read_targets(self, rows: np.ndarray) -> tuple[Any, np.ndarray | None]:
        """Targets and weights of some examples; a source may have a shorter way to them than `read`."""
        return self.read(rows)[1:]


def _numbers(name: str, array: Any, dtype: type) -> np.ndarray:
    array = np.asarray(array)
    if array.dtype.kind not in "fiub":
        raise DataError(f"{name} must be real numbers; found dtype {array.dtype}")
    with np.errstate(over="ignore"):  # to inf, which `check` refuses by row and column
        return array.astype(dtype)


def _infinite(array: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):
        return ~np.isfinite(array.astype(np.float32))


def _place(row: int, rows: np.ndarray | None) -> int:
    return row if rows is None else int(rows[row])


def _targets(targets: Any, num_classes: int | None, rows: np.ndarray | None) -> Any:
    if targets is None:
        return None
    if num_classes is not None and num_classes < 1:
        raise DataError(f"there must be at least 2 classes; found {num_classes}")
    if isinstance(targets, Mapping):
        arrays = {name: np.asarray(array) for name, array in targets.items()}
        return {
            name: _indices(f"targets {name}", array, num_classes, "class", lowest=-1, rows=rows)
            if name == "labels" and num_classes is not None
            else _indices(f"targets {name}", array, 2**31, "number", lowest=1, rows=rows)
            for name, array in arrays.items()
        }
    if num_classes is not None:
        indices = np.asarray(targets)
        if indices.ndim == 2 and indices.shape[1] == 1:
            raise DataError(f"class targets must have shape [n], or [n, length] for sequences; found shape {indices.shape}: targets[:, 0]")
        return _indices("targets", indices, num_classes, "class", rows=rows)
    numbers = _numbers("targets", targets, np.float64)
    return numbers[:, None] if numbers.ndim == 1 else numbers


def _arrays(targets: Any) -> list[np.ndarray]:
    if targets is None:
        return []
    return list(targets.values()) if isinstance(targets, dict) else [targets]


def _indices(name: str, indices: np.ndarray, num: int, what: str, lowest: int = 0, rows: np.ndarray | None = None) -> np.ndarray:
    if not indices.ndim or indices.dtype.kind not in "iu":
        raise DataError(f"{name} must be whole numbers, one row for each example; found dtype {indices.dtype}, shape {indices.shape}")
    bad = ((indices < lowest) | (indices >= num)).reshape(len(indices), -1)
    if bad.any():
        row = int(bad.any(axis=1).argmax())
        found = indices.reshape(len(indices), -1)[row, bad[row].argmax()]
        raise DataError(f"{name}: {what} {found} in row {_place(row, rows)} (from 0) is out of range: {lowest} to {num - 1}")
    return indices.astype(np.int32)


def _weights(name: str, column: Any, num_examples: int, rows: np.ndarray | None) -> np.ndarray:
    column = _numbers(f"weights {name!r}", column, np.float64)
    if column.shape != (num_examples,):
        raise DataError(f"weights {name!r} have shape {column.shape}; expected ({num_examples},), one for each example")
    bad = ~(np.isfinite(column) & (column >= 0))
    if bad.any():
        row = int(bad.argmax())
        raise DataError(f"weights {name!r} must be finite numbers >= 0; row {_place(row, rows)} (from 0) has {column[row]}")
    return column
