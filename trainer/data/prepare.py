"""From a source's examples to what is trained on: targets fitted to the loss, split, weighed, standardised."""

import dataclasses
import hashlib
from typing import Any

import numpy as np

from trainer.data.kinds import KINDS
from trainer.errors import ConfigError, DataError


@dataclasses.dataclass(frozen=True)
class Split:
    """One part of the examples."""

    features: np.ndarray  # float32 [n, ...], or int32 tokens [n, length]
    targets: Any  # int32 class indices [n, ...], float32 [n, ...], a dict of such, or None
    weights: np.ndarray | None  # float32 [n]; None: all 1

    def __len__(self) -> int:
        return len(self.features)

    def rows(self, rows: Any) -> "Split":
        """Some of the examples, by index."""
        return Split(self.features[rows], select(self.targets, rows), None if self.weights is None else self.weights[rows])

    def arrays(self) -> list[np.ndarray]:
        """All that it holds, in a fixed order."""
        targets = [self.targets[name] for name in sorted(self.targets)] if isinstance(self.targets, dict) else [self.targets]
        return [array for array in (self.features, *targets, self.weights) if array is not None]


def select(targets: Any, rows: Any) -> Any:
    """Some rows of targets, which are an array, a dict of arrays, or None."""
    if isinstance(targets, dict):
        return {name: array[rows] for name, array in targets.items()}
    return None if targets is None else targets[rows]


@dataclasses.dataclass(frozen=True)
class Prepared:
    """The examples as the model and the loss get them."""

    train: Split
    evaluation: Split
    task: str  # what the targets are to the person who reads the metrics: one of KINDS
    target_scale: np.ndarray  # float64 [dim]: what one unit of the targets is in the source's units
    num_classes: int | None
    num_tokens: int | None = None  # different ones that features may hold; None where features are numbers
    want: str = "real"  # as what kind of targets they meet the loss

    @property
    def target_shape(self) -> tuple[int, ...]:
        """Of one example's target: () for a class index, each of a sequence too, and for no target; of labels [length]."""
        targets = self.train.targets["labels"] if isinstance(self.train.targets, dict) else self.train.targets
        return () if targets is None or self.want == "classes" else targets.shape[1:]

    def fingerprint(self) -> str:
        """A checksum of what is trained on."""
        return hashlib.sha256(b"".join(np.ascontiguousarray(array).tobytes() for array in self.train.arrays())).hexdigest()


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
    weights = _sample_weights(examples, settings.sample_weight)
    examples.check(weights, kind=kind)
    train, evaluation = _split(len(examples.features), settings.eval_fraction, settings.split_seed)
    if settings.batch_size > len(train):
        raise ConfigError(
            f"data.batch_size={settings.batch_size} is larger than the training part of {len(train)} examples: "
            f"type at most data.batch_size={len(train)}"
        )
    counted = train if weights is None else train[weights[train] > 0]
    for name, rows in (("training", train), ("evaluation", evaluation)):
        if weights is not None and not weights[rows].any():
            raise DataError(f"data.sample_weight={settings.sample_weight} gives every {name} example the weight 0")
    features: np.ndarray = examples.features
    if settings.standardize and examples.num_tokens is None:
        # Columns of a table have units of their own; the pixels of an image share them, channel by channel.
        features = _standardized(features.astype(np.float64), counted, tuple(range(max(1, features.ndim - 1))))[0]
    targets, scale = _targets(examples, kind, want), np.ones(1)
    if isinstance(targets, np.ndarray) and targets.dtype.kind == "f":
        scale = np.ones(targets.shape[-1])
        if settings.standardize and KINDS[kind].measured:
            axes = tuple(range(targets.ndim if KINDS[kind].infinite else targets.ndim - 1))
            targets, scale = _standardized(targets, counted, axes)
        targets = targets.astype(np.float32)
    if weights is not None:
        # Zeros instead of what an unweighted example holds: 0 * NaN would reach the weights' gradient.
        features = np.where(weights.reshape(-1, *[1] * (features.ndim - 1)) == 0, 0, features)
        if isinstance(targets, np.ndarray):
            targets = np.where(weights.reshape(-1, *[1] * (targets.ndim - 1)) == 0, np.zeros([], targets.dtype), targets)
    if settings.class_weight == "balanced":
        balance = _class_balance(examples, kind, counted)
        weights = balance if weights is None else weights * balance

    def part(rows: np.ndarray) -> Split:
        weight = None if weights is None else weights[rows].astype(np.float32)
        numbers = features[rows] if examples.num_tokens is not None else features[rows].astype(np.float32)
        return Split(numbers, select(targets, rows), weight)

    return Prepared(
        train=part(train),
        evaluation=part(evaluation),
        task="real" if kind == "counts" and want == "real" else kind,
        target_scale=scale,
        num_classes=examples.num_classes,
        num_tokens=examples.num_tokens,
        want=want,
    )


def _split(num_examples: int, eval_fraction: float, split_seed: int) -> tuple[np.ndarray, np.ndarray]:
    draws = np.random.Philox(key=[split_seed, num_examples]).random_raw(num_examples)
    shuffled = np.argsort(draws, kind="stable")
    num_evaluation = max(1, round(eval_fraction * num_examples))
    if num_evaluation >= num_examples:
        raise DataError(f"{num_examples} examples are too few to keep data.eval_fraction={eval_fraction} of them for evaluation")
    return np.sort(shuffled[num_evaluation:]), np.sort(shuffled[:num_evaluation])


def _sample_weights(examples: Any, column: str | None) -> np.ndarray | None:
    if column is None:
        return None
    if column not in examples.weights:
        have = ", ".join(sorted(examples.weights)) or "none"
        raise ConfigError(f"data.sample_weight={column}: the data has no such weight column; it has {have}")
    return np.asarray(examples.weights[column], np.float64)


def _targets(examples: Any, kind: str, want: str) -> Any:
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


def _standardized(values: np.ndarray, counted: np.ndarray, axes: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """The values [n, ...] by mean and spread, over `axes`, of the finite ones in the rows `counted`; and that spread."""
    known = values[counted]
    known = np.where(np.isfinite(known), known, np.nan)
    mean = np.nanmean(known, axis=axes)
    spread = np.nanstd(known, axis=axes)
    # Not > 0: a constant column's mean may be off by rounding.
    spread = np.where(spread > 1e-12 * np.nanmax(np.abs(known), axis=axes), spread, 1)
    return (values - mean) / spread, spread


def _class_balance(examples: Any, kind: str, counted: np.ndarray) -> np.ndarray:
    if kind != "classes":
        raise ConfigError(f"data.class_weight=balanced needs class labels; the data has {kind} targets: type data.class_weight=null")
    if examples.targets.ndim > 1:
        raise ConfigError("data.class_weight=balanced needs one class an example; the data has sequences: type data.class_weight=null")
    counts = np.bincount(examples.targets[counted], minlength=examples.num_classes)
    return (len(counted) / (examples.num_classes * np.maximum(counts, 1)))[examples.targets]
