"""From a source's examples to what is trained on: targets fitted to the loss, split, weighed, standardised."""

import dataclasses
import functools
import hashlib
import math
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from trainer.data.kinds import KINDS
from trainer.errors import ConfigError, DataError


@dataclasses.dataclass(frozen=True)
class Split:
    """One part of the examples."""

    features: np.ndarray  # float32 [n, ...], or int32 tokens [n, length]
    targets: Any  # int32 class indices [n, ...], float32 [n, ...], a dict of such, or None
    weights: np.ndarray | None  # float32 [n]; None: all 1

    num_readers = 1  # threads that ask for rows at once

    def __len__(self) -> int:
        return len(self.features)

    def rows(self, rows: Any) -> "Split":
        """Some of the examples, by index."""
        return Split(self.features[rows], select(self.targets, rows), None if self.weights is None else self.weights[rows])

    def arrays(self) -> list[np.ndarray]:
        """All that it holds, in a fixed order."""
        targets = [self.targets[name] for name in sorted(self.targets)] if isinstance(self.targets, dict) else [self.targets]
        return [array for array in (self.features, *targets, self.weights) if array is not None]

    def with_arrays(self, arrays: Sequence[Any]) -> "Split":
        """Others in the place of `arrays()`."""
        features, *others = arrays
        weights = None if self.weights is None else others.pop()
        if isinstance(self.targets, dict):
            return Split(features, dict(zip(sorted(self.targets), others, strict=True)), weights)
        return Split(features, others[0] if others else None, weights)


class Part(Protocol):
    """What training and evaluation need of their part of the examples: a `Split`, or what reads them when they are asked for."""

    @property
    def num_readers(self) -> int:
        """Threads that may ask for rows at once, and gain by it."""

    def __len__(self) -> int: ...

    def rows(self, rows: Any) -> Split:
        """Some of the examples, by index."""


def select(targets: Any, rows: Any) -> Any:
    """Some rows of targets, which are an array, a dict of arrays, or None."""
    if isinstance(targets, dict):
        return {name: array[rows] for name, array in targets.items()}
    return None if targets is None else targets[rows]


@dataclasses.dataclass(frozen=True)
class Scale:
    """Mean and spread by which numbers are standardized, on their last axis or as a whole; float64."""

    mean: np.ndarray
    spread: np.ndarray

    def standardized(self, values: np.ndarray) -> np.ndarray:
        return (values - self.mean) / self.spread

    def in_units(self, values: np.ndarray) -> np.ndarray:
        """Standardized values as they were before."""
        return values * self.spread + self.mean


@dataclasses.dataclass(frozen=True)
class Prepared:
    """The examples as the model and the loss get them."""

    train: Part
    evaluation: Part
    task: str  # what the targets are to the person who reads the metrics: one of KINDS
    target_scale: np.ndarray  # float64 [dim]: what one unit of the targets is in the source's units
    num_classes: int | None
    num_tokens: int | None = None  # different ones that features may hold; None where features are numbers
    want: str = "real"  # as what kind of targets they meet the loss
    resident: bool = True  # whether they are put on the device, as `Split`s; otherwise batches are made ahead of the loop
    num_sampled: int | None = None  # examples that mean and spread are taken from; None: all of the training part
    checksum: str | None = None  # of what is trained on, where not of every number
    train_rows: np.ndarray | None = None  # [len(train)] the rows of the source that the training part is; None: its first ones
    evaluation_rows: np.ndarray | None = None  # [len(evaluation)] the same of the evaluation part
    of_features: Scale | None = None  # what they were standardized by; None: they are as the source gives them
    of_targets: Scale | None = None
    balance: np.ndarray | None = None  # float64 [num_classes] by which data.class_weight weighs
    feature_names: Sequence[str] = ()
    class_names: Sequence[str] = ()

    @functools.cached_property
    def first(self) -> Split:
        """The first example, for shapes and dtypes."""
        return self.train.rows(np.zeros(1, int))

    @property
    def features_shape(self) -> tuple[int, ...]:
        """Of one example."""
        return self.first.features.shape[1:]

    @property
    def target_shape(self) -> tuple[int, ...]:
        """Of one example's target: () for a class index, each of a sequence too, and for no target; of labels [length]."""
        targets = self.first.targets["labels"] if isinstance(self.first.targets, dict) else self.first.targets
        return () if targets is None or self.want == "classes" else targets.shape[1:]

    def only(self, rows: np.ndarray) -> "Prepared":
        """Some examples of the training part, by index, as the whole of both parts, in memory; in units of all that there are."""
        some = self.train.rows(rows)
        numbers = rows if self.train_rows is None else self.train_rows[rows]
        parts = dataclasses.replace(self, train=some, evaluation=some, train_rows=numbers, evaluation_rows=numbers)
        return dataclasses.replace(parts, resident=True, num_sampled=None, checksum=None)

    def fingerprint(self) -> str:
        """A checksum of what is trained on."""
        if self.checksum is not None:
            return self.checksum
        assert isinstance(self.train, Split)
        return checksum(self.train.arrays())


def checksum(arrays: Sequence[np.ndarray]) -> str:
    return hashlib.sha256(b"".join(np.ascontiguousarray(array).tobytes() for array in arrays)).hexdigest()


def is_resident(settings: Any, num_examples: int, features_shape: Sequence[int]) -> bool:
    """Whether features of four bytes a number are put on the device."""
    if settings.stream != "auto":
        return not settings.stream
    return 4 * num_examples * math.prod(features_shape) <= settings.max_resident_mb * 2**20


def prepare(examples: Any, kind: str, want: str, settings: Any) -> Prepared:
    """Weighs, splits and standardises.

    Args:
        examples: of a source (`trainer.data.base.Examples`).
        kind: of the source's targets.
        want: what the targets become, out of `kinds.fit`.
        settings: `schema.Data`.

    Features that are numbers, and targets that have a unit (real, interval, series), are standardised to mean 0 and standard deviation 1
    of the training part (a constant column only to mean 0): [n, columns] column by column, what has more axes channel by channel, the
    last axis, and the edges of intervals together, by the finite ones. An example of weight 0 takes no part, whatever it holds.
    """
    weights = sample_weights(examples, settings.sample_weight)
    examples.check(weights, kind=kind)
    train, evaluation = split(len(examples.features), weights, settings)
    counted = train if weights is None else train[weights[train] > 0]
    targets = fit_targets(examples, kind, want)
    is_number = isinstance(targets, np.ndarray) and targets.dtype.kind == "f"
    of_features, of_targets, balance = None, None, None
    if settings.standardize and examples.num_tokens is None:
        of_features = _scale(examples.features[counted], feature_axes(examples.features.ndim))
    if settings.standardize and is_number and KINDS[kind].measured:
        of_targets = _scale(targets[counted], target_axes(kind, targets.ndim))
    if settings.class_weight == "balanced":
        check_balance(kind, examples.targets)
        balance = class_balance(np.bincount(examples.targets[counted], minlength=examples.num_classes))
    whole = standardized(examples, targets, weights, of_features, of_targets, balance)
    scale = np.ones(targets.shape[-1]) if is_number else np.ones(1)
    rows = np.arange(len(examples.features)) if examples.rows is None else examples.rows
    return Prepared(
        train=whole.rows(train),
        evaluation=whole.rows(evaluation),
        task="real" if kind == "counts" and want == "real" else kind,
        target_scale=scale if of_targets is None else of_targets.spread,
        num_classes=examples.num_classes,
        num_tokens=examples.num_tokens,
        want=want,
        resident=is_resident(settings, len(examples.features), examples.features.shape[1:]),
        train_rows=rows[train],
        evaluation_rows=rows[evaluation],
        of_features=of_features,
        of_targets=of_targets,
        balance=balance,
        feature_names=examples.feature_names,
        class_names=examples.class_names,
    )


def standardized(
    examples: Any, targets: Any, weights: np.ndarray | None, of_features: Scale | None, of_targets: Scale | None, balance: np.ndarray | None
) -> Split:
    """All examples of a source as the model and the loss get them.

    Args:
        examples: of the source.
        targets: of `fit_targets`.
        weights: float64 [n].
        of_features: what features are standardized by; None: they stay as they are.
        of_targets: the same of targets.
        balance: [num_classes] what the weights of a class's examples are multiplied by.
    """
    features = examples.features
    if of_features is not None:
        features = of_features.standardized(features.astype(np.float64))
    if isinstance(targets, np.ndarray) and targets.dtype.kind == "f":
        targets = (targets if of_targets is None else of_targets.standardized(targets)).astype(np.float32)
    if weights is not None:
        # Zeros instead of what an unweighted example holds: 0 * NaN would reach the weights' gradient.
        features = np.where(weights.reshape(-1, *[1] * (features.ndim - 1)) == 0, 0, features)
        if isinstance(targets, np.ndarray):
            targets = np.where(weights.reshape(-1, *[1] * (targets.ndim - 1)) == 0, np.zeros([], targets.dtype), targets)
    if balance is not None:
        weights = (1 if weights is None else weights) * balance[examples.targets]
    numbers = features if examples.num_tokens is not None else features.astype(np.float32)
    return Split(numbers, targets, None if weights is None else weights.astype(np.float32))


def split(num_examples: int, weights: np.ndarray | None, settings: Any) -> tuple[np.ndarray, np.ndarray]:
    """The rows of the training and of the evaluation part, in order; refuses parts that can't be trained or evaluated on."""
    draws = np.random.Philox(key=[settings.split_seed, num_examples]).random_raw(num_examples)
    shuffled = np.argsort(draws, kind="stable")
    num_evaluation = max(1, round(settings.eval_fraction * num_examples))
    if num_evaluation >= num_examples:
        raise DataError(f"{num_examples} examples are too few to keep data.eval_fraction={settings.eval_fraction} of them for evaluation")
    train, evaluation = np.sort(shuffled[num_evaluation:]), np.sort(shuffled[:num_evaluation])
    if settings.batch_size > len(train):
        raise ConfigError(
            f"data.batch_size={settings.batch_size} is larger than the training part of {len(train)} examples: "
            f"type at most data.batch_size={len(train)}"
        )
    for name, rows in (("training", train), ("evaluation", evaluation)):
        if weights is not None and not weights[rows].any():
            raise DataError(f"data.sample_weight={settings.sample_weight} gives every {name} example the weight 0")
    return train, evaluation


def feature_axes(rank: int) -> tuple[int, ...]:
    """Over which mean and spread are taken: a table's columns have units of their own, an image's pixels share them, channel by channel."""
    return tuple(range(max(1, rank - 1)))


def target_axes(kind: str, rank: int) -> tuple[int, ...]:
    return tuple(range(rank if KINDS[kind].infinite else rank - 1))


def sample_weights(examples: Any, column: str | None) -> np.ndarray | None:
    if column is None:
        return None
    if column not in examples.weights:
        have = ", ".join(sorted(examples.weights)) or "none"
        raise ConfigError(f"data.sample_weight={column}: the data has no such weight column; it has {have}")
    return np.asarray(examples.weights[column], np.float64)


def fit_targets(examples: Any, kind: str, want: str) -> Any:
    """The targets of `Examples` as `want`: float64, or int32 where they stay indices."""
    if examples.targets is None or isinstance(examples.targets, dict):
        return examples.targets
    targets = np.array(examples.targets)
    if kind != "classes":
        targets = targets.astype(np.float64)
        return targets if KINDS[kind].axes else targets[:, 0]
    if want == "classes":
        return targets.astype(np.int32)
    if targets.ndim > 1:
        raise DataError(f"sequences of classes are not made {want} targets, which would be as wide as there are classes: type another loss")
    if want == "binary" and examples.num_classes == 2:
        return targets.astype(np.float64)[:, None]
    return np.eye(examples.num_classes)[targets]


def _scale(values: np.ndarray, axes: tuple[int, ...]) -> Scale:
    """Mean and spread of the finite values, over `axes`."""
    known = values.astype(np.float64)
    known = np.where(np.isfinite(known), known, np.nan)
    mean = np.nanmean(known, axis=axes)
    spread = np.nanstd(known, axis=axes)
    # Not > 0: a constant column's mean may be off by rounding.
    return Scale(mean, np.where(spread > 1e-12 * np.nanmax(np.abs(known), axis=axes), spread, 1))


def check_balance(kind: str, targets: Any) -> None:
    """Refuses data.class_weight=balanced where it makes no sense."""
    if kind != "classes":
        raise ConfigError(f"data.class_weight=balanced needs class labels; the data has {kind} targets: type data.class_weight=null")
    if targets.ndim > 1:
        raise ConfigError("data.class_weight=balanced needs one class an example; the data has sequences: type data.class_weight=null")


def class_balance(counts: np.ndarray) -> np.ndarray:
    """The weight of every class, by how many examples it has."""
    return counts.sum() / (len(counts) * np.maximum(counts, 1))
