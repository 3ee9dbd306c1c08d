"""Examples that are read when they are needed: checked, standardised and weighed piece by piece. Imports no TensorFlow."""

import collections
import concurrent.futures
import dataclasses
import math
import os
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

import numpy as np

from trainer.data.base import Examples, StreamedSource
from trainer.data.kinds import KINDS
from trainer.data.prepare import (
    Prepared,
    Scale,
    Split,
    check_balance,
    checksum,
    class_balance,
    feature_axes,
    fit_targets,
    is_resident,
    split,
    target_axes,
)
from trainer.errors import ConfigError, DataError

PIECE_BYTES = 2**21  # of features that are read together
_MOST_READERS = 4
_MOST_MEASURED = 2**30  # bytes of features from which on mean and spread are those of a sample
_NUM_SAMPLED = 10_000
_NUM_FINGERPRINTED = 64

Item = TypeVar("Item")
Result = TypeVar("Result")


def ahead(function: Callable[[Item], Result], items: Iterable[Item], num_threads: int) -> Iterator[Result]:
    """The function's results, in the items' order, made by threads that are at most `num_threads` items ahead."""
    pending: collections.deque[concurrent.futures.Future[Result]] = collections.deque()
    pool = concurrent.futures.ThreadPoolExecutor(num_threads, "reader")
    try:
        for item in items:
            pending.append(pool.submit(function, item))
            if len(pending) > num_threads:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


@dataclasses.dataclass(frozen=True)
class Moments:
    """Mean and spread of finite numbers that come in pieces.

    Pieces are joined by the formula of Chan, Golub and LeVeque (1979), which keeps the digits that a sum of squares would lose.
    """

    count: Any  # of all that have come, by place
    mean: Any
    square: Any  # sum of squared differences from the mean
    largest: Any  # magnitude

    @classmethod
    def of(cls, values: np.ndarray, axes: tuple[int, ...]) -> "Moments":
        """Of one piece, over `axes`."""
        values = values.astype(np.float64)
        finite = np.isfinite(values)
        known = np.where(finite, values, 0)
        count = finite.sum(axis=axes)
        mean = known.sum(axis=axes) / np.maximum(count, 1)
        square = np.where(finite, np.square(known - mean), 0).sum(axis=axes)
        return cls(count, mean, square, np.abs(known).max(axis=axes, initial=0))

    def joined(self, other: "Moments") -> "Moments":
        count = self.count + other.count
        share = other.count / np.maximum(count, 1)
        apart = other.mean - self.mean
        return Moments(
            count,
            self.mean + apart * share,
            self.square + other.square + np.square(apart) * self.count * share,
            np.maximum(self.largest, other.largest),
        )

    @property
    def spread(self) -> np.ndarray:
        """The standard deviation; 1 for what is constant, whose mean may be off by rounding."""
        spread = np.sqrt(self.square / np.maximum(self.count, 1))
        return np.where(spread > 1e-12 * self.largest, spread, 1)


@dataclasses.dataclass(frozen=True)
class Piece:
    """Some examples as they were read, found to be right."""

    features: np.ndarray  # float32, or int32 tokens
    given: Any  # targets as `Examples` keeps them
    targets: Any  # float64, or int32, as what the loss wants
    weights: np.ndarray | None  # float64

    @property
    def shapes(self) -> tuple[tuple[int, ...], ...]:
        """Of one example's features and targets."""
        return tuple(array.shape[1:] for array in Split(self.features, self.given, None).arrays())


@dataclasses.dataclass(frozen=True)
class Streamed:
    """A part of a source's examples, read when they are asked for.

    Args:
        source: what reads.
        numbers: [n] the source's rows that are this part.
        kind: of the source's targets.
        want: what they become.
        shapes: of one example's features and targets; None: they are not known yet.
        of_features: mean and spread; None: features stay as they are.
        of_targets: the same.
        balance: [num_classes] weights; None: all classes weigh the same.
    """

    source: StreamedSource
    numbers: np.ndarray
    kind: str
    want: str
    shapes: tuple[tuple[int, ...], ...] | None = None
    of_features: Moments | Scale | None = None
    of_targets: Moments | Scale | None = None
    balance: np.ndarray | None = None

    @property
    def num_readers(self) -> int:
        return min(_MOST_READERS, os.cpu_count() or 1) if self.source.parallel else 1

    def __len__(self) -> int:
        return len(self.numbers)

    def rows(self, rows: Any) -> Split:
        """Some of the examples, by index; DataError where one can't be read or used, with its row in the source."""
        piece = self.read(rows)
        features, targets, weights = piece.features, piece.targets, piece.weights
        if self.of_features is not None:
            # Apart from the array that was read: a source may keep it.
            features = features - self.of_features.mean.astype(np.float32)
            features /= self.of_features.spread.astype(np.float32)
        if self.of_targets is not None:
            targets = (targets - self.of_targets.mean) / self.of_targets.spread
        if isinstance(targets, np.ndarray) and targets.dtype.kind == "f":
            targets = targets.astype(np.float32)
        if weights is not None:
            # Zeros instead of what an unweighted example holds: 0 * NaN would reach the weights' gradient.
            features = _zeroed(features, weights)
            targets = _zeroed(targets, weights) if isinstance(targets, np.ndarray) else targets
        if self.balance is not None:
            weights = (1 if weights is None else weights) * self.balance[piece.given]
        return Split(features, targets, None if weights is None else weights.astype(np.float32))

    def read(self, rows: Any) -> Piece:
        """Some of the examples as the source gives them, by index."""
        numbers = self.numbers[rows]
        read, targets, weights = self.source.read(numbers)
        features = self._array("features", read, numbers)
        is_token, weights = self.source.num_tokens is not None, None if weights is None else np.asarray(weights)
        # Looking for the place of a fault takes several passes over the features: only where one pass has found that there is a fault.
        right = False
        if not is_token and features.ndim > 1 and features.dtype.kind in "fiub":
            with np.errstate(over="ignore"):
                numeric = features.astype(np.float32, copy=False)
            right = features.dtype.kind != "f" or bool(np.isfinite(numeric).all())
        examples = Examples(
            np.zeros([len(numbers), 1]) if right else features,
            targets,
            self.source.num_classes,
            {} if weights is None else {"of the source": weights},
            num_tokens=self.source.num_tokens,
            rows=numbers,
        )
        weights = examples.weights.get("of the source")
        if weights is None or weights.any():
            examples.check(weights, kind=self.kind)
        piece = Piece(numeric if right else examples.features, examples.targets, fit_targets(examples, self.kind, self.want), weights)
        if self.shapes not in (None, piece.shapes):
            found, known = (" and ".join(map(str, shapes)) for shapes in (piece.shapes, self.shapes or ()))
            raise DataError(f"features and targets of rows {_listed(numbers)} (from 0) have shapes {found}; the first example has {known}")
        return piece

    def pieces(self, rows: np.ndarray, features_shape: tuple[int, ...]) -> list[np.ndarray]:
        """`rows` divided into what is read together."""
        num = max(1, PIECE_BYTES // max(1, 4 * math.prod(features_shape)))
        return [rows[start : start + num] for start in range(0, len(rows), num)]

    def resident(self) -> Split:
        """All of it, in memory."""
        first = self.rows(np.zeros(1, int))
        rows = np.arange(len(self))
        whole = first.with_arrays([np.empty([len(self), *array.shape[1:]], array.dtype) for array in first.arrays()])
        start = 0
        for piece in ahead(self.rows, self.pieces(rows, first.features.shape[1:]), self.num_readers):
            for array, part in zip(whole.arrays(), piece.arrays(), strict=True):
                array[start : start + len(piece)] = part
            start += len(piece)
        return whole

    def _array(self, name: str, read: Any, numbers: np.ndarray) -> np.ndarray:
        try:
            array = np.asarray(read)
        except ValueError as error:
            raise DataError(f"{name} of rows {_listed(numbers)} (from 0) are not of one shape: {error}") from error
        if array.shape[:1] != numbers.shape:
            raise DataError(
                f"{type(self.source).__name__}.read gave {name} of shape {array.shape} for {len(numbers)} rows, {_listed(numbers)} (from 0)"
            )
        return array


def prepare_streamed(source: StreamedSource, kind: str, want: str, settings: Any) -> Prepared:
    """As `prepare.prepare`, of a source that reads by index.

    Whether the examples are put on the device or stay where they are, they come to the same numbers: mean and spread are taken piece
    by piece either way.

    Args:
        source: what reads.
        kind: of the source's targets.
        want: what the targets become, out of `kinds.fit`.
        settings: `schema.Data`.
    """
    num_examples = source.num_examples
    if num_examples < 1:
        raise DataError(f"there is no data: {type(source).__name__} has {num_examples} examples")
    every = Streamed(source, np.arange(num_examples), kind, want)
    first = every.read(np.zeros(1, int))
    shape = first.features.shape[1:]
    every = dataclasses.replace(every, shapes=first.shapes)
    weights = None if first.weights is None else _weights(every)
    if settings.sample_weight is not None and weights is None:
        raise ConfigError(f"data.sample_weight={settings.sample_weight}: the data has no such weight column; it has none")
    train, evaluation = split(num_examples, weights, settings)
    counted = train if weights is None else train[weights[train] > 0]
    plan = _Plan(every, shape, counted)
    standardizes_features = settings.standardize and source.num_tokens is None
    standardizes_targets = settings.standardize and KINDS[kind].measured and isinstance(first.targets, np.ndarray)
    of_features, of_targets, num_sampled = None, None, None
    if standardizes_features or standardizes_targets:
        of_features, of_targets, num_sampled = plan.moments()
    balance = None
    if settings.class_weight == "balanced":
        check_balance(kind, first.given)
        balance = class_balance(plan.counts())
    every = dataclasses.replace(
        every,
        of_features=of_features if standardizes_features else None,
        of_targets=of_targets if standardizes_targets else None,
        balance=balance,
    )
    parts = [dataclasses.replace(every, numbers=rows) for rows in (train, evaluation)]
    resident = is_resident(settings, num_examples, shape)
    has_numbers = isinstance(first.targets, np.ndarray) and first.targets.dtype.kind == "f"
    scale = np.ones(first.targets.shape[-1]) if has_numbers else np.ones(1)
    # Not of every number, which would be all that there is to read: sizes, and some rows, standardised by what all or many others hold.
    some = parts[0].rows(np.linspace(0, len(train) - 1, _NUM_FINGERPRINTED).astype(int))
    return Prepared(
        train=parts[0].resident() if resident else parts[0],
        evaluation=parts[1].resident() if resident else parts[1],
        task="real" if kind == "counts" and want == "real" else kind,
        target_scale=every.of_targets.spread if every.of_targets is not None else scale,
        num_classes=source.num_classes,
        num_tokens=source.num_tokens,
        want=want,
        resident=resident,
        num_sampled=num_sampled,
        checksum=checksum([np.array([len(train), len(evaluation), *shape]), *some.arrays()]),
        train_rows=train,
        evaluation_rows=evaluation,
        of_features=_scale(every.of_features),
        of_targets=_scale(every.of_targets),
        balance=balance,
        class_names=source.class_names,
    )


@dataclasses.dataclass(frozen=True)
class _Plan:
    """What is found out about the training part before training: `counted` are its rows that weigh something."""

    every: Streamed
    shape: tuple[int, ...]
    counted: np.ndarray

    def moments(self) -> tuple[Moments, Moments | None, int | None]:
        """Of features and of targets that are numbers; and of how many examples, where not of all."""
        rows, num_sampled = self.counted, None
        if 4 * len(rows) * math.prod(self.shape) > _MOST_MEASURED and len(rows) > _NUM_SAMPLED:
            draws = np.random.Philox(key=[len(rows), 0]).random_raw(len(rows))
            rows, num_sampled = np.sort(rows[np.argsort(draws, kind="stable")[:_NUM_SAMPLED]]), _NUM_SAMPLED

        def of(piece: np.ndarray) -> tuple[Moments, Moments | None]:
            read = self.every.read(piece)
            is_number = isinstance(read.targets, np.ndarray) and read.targets.dtype.kind == "f"
            targets = Moments.of(read.targets, target_axes(self.every.kind, read.targets.ndim)) if is_number else None
            return Moments.of(read.features, feature_axes(read.features.ndim)), targets

        features: Moments | None = None
        targets: Moments | None = None
        for more, more_targets in ahead(of, self.every.pieces(rows, self.shape), self.every.num_readers):
            features = more if features is None else features.joined(more)
            targets = more_targets if targets is None or more_targets is None else targets.joined(more_targets)
        assert features is not None
        return features, targets, num_sampled

    def counts(self) -> np.ndarray:
        """Of examples, by class."""
        counts = np.zeros(self.every.source.num_classes or 0, np.int64)
        for piece in self.every.pieces(self.counted, (1,)):
            targets, _ = self.every.source.read_targets(piece)
            given = Examples(np.zeros([len(piece), 1]), targets, self.every.source.num_classes, rows=piece).targets
            counts += np.bincount(given, minlength=len(counts))
        return counts


def _scale(moments: Moments | Scale | None) -> Scale | None:
    return None if moments is None else Scale(moments.mean, moments.spread)


def _weights(every: Streamed) -> np.ndarray:
    """Of all examples, float64."""
    pieces = []
    for rows in every.pieces(every.numbers, (1,)):
        weights = every.source.read_targets(rows)[1]
        if weights is None:
            raise DataError(f"{type(every.source).__name__} gives weights for its first example, and none for rows {_listed(rows)}")
        given = Examples(np.zeros([len(rows), 1]), np.zeros(len(rows)), weights={"of the source": np.asarray(weights)}, rows=rows)
        pieces.append(given.weights["of the source"])
    return np.concatenate(pieces)


def _zeroed(array: np.ndarray, weights: np.ndarray) -> np.ndarray:
    return np.where(weights.reshape(-1, *[1] * (array.ndim - 1)) == 0, np.zeros([], array.dtype), array)


def _listed(rows: np.ndarray) -> str:
    return ", ".join(map(str, rows[:5].tolist())) + (", ..." if len(rows) > 5 else "")
