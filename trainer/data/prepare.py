"""From a source's examples to what is trained on: targets fitted to the loss, split, weighed, standardised."""

import dataclasses
import hashlib
from typing import Any

import numpy as np

from trainer.errors import ConfigError, DataError

# What a loss may want, best first, for each kind of target that a source may have.
_FITS = {
    "classes": ("classes", "binary", "real"),
    "counts": ("counts", "real"),
    "real": ("real",),
    "series": ("series",),
}


@dataclasses.dataclass(frozen=True)
class Split:
    """One part of the examples."""

    features: np.ndarray  # float32 [n, ...]
    targets: Any  # int32 [n] class indices, or float32 [n, dim]
    weights: np.ndarray | None  # float32 [n]; None: all 1

    def __len__(self) -> int:
        return len(self.features)


@dataclasses.dataclass(frozen=True)
class Prepared:
    """The examples as the model and the loss get them."""

    train: Split
    evaluation: Split
    task: str  # what the targets are to the person who reads the metrics: classes, counts or real
    target_scale: np.ndarray  # float64 [dim]: what one unit of the targets is in the source's units
    num_classes: int | None
    target_dim: int  # values of one target; 1 for class indices

    def fingerprint(self) -> str:
        """A checksum of what is trained on."""
        arrays = (self.train.features, self.train.targets, self.train.weights)
        return hashlib.sha256(b"".join(np.ascontiguousarray(array).tobytes() for array in arrays if array is not None)).hexdigest()


def fit(kind: str, wanted: tuple[str, ...]) -> str | None:
    """As what targets of `kind` meet a loss that wants one of `wanted`; None where they don't fit."""
    return next((want for want in _FITS[kind] if want in wanted), None)


def prepare(examples: Any, kind: str, want: str, settings: Any) -> Prepared:
    """Weighs, splits and standardises.

    Args:
        examples: of a source (`trainer.data.base.Examples`).
        kind: of the source's targets.
        want: what the targets become, out of `fit`.
        settings: `schema.Data`.

    Features, and real targets, are standardised to mean 0 and standard deviation 1 of the training part (a constant column
    only to mean 0): features [n, columns] column by column, those with more axes channel by channel, the last axis. An example of
    weight 0 takes no part, whatever it holds.
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
    features = np.asarray(examples.features, np.float64)
    targets, scale = _targets(examples, want), np.ones(1)
    if settings.standardize:
        # Columns of a table have units of their own; the pixels of an image share them, channel by channel.
        axes = tuple(range(max(1, features.ndim - 1)))
        features = (features - features[counted].mean(axis=axes)) / _spread(features[counted], axes)
    if targets.dtype.kind == "f":
        scale = np.ones(targets.shape[-1])
        if settings.standardize and kind == "real":
            scale = _spread(targets[counted], (0,))
            targets = (targets - targets[counted].mean(axis=0)) / scale
        targets = targets.astype(np.float32)
    if weights is not None:
        # Zeros instead of what an unweighted example holds: 0 * NaN would reach the weights' gradient.
        features[weights == 0] = 0
        targets[weights == 0] = 0
    if settings.class_weight == "balanced":
        balance = _class_balance(examples, kind, counted)
        weights = balance if weights is None else weights * balance

    def part(rows: np.ndarray) -> Split:
        weight = None if weights is None else weights[rows].astype(np.float32)
        return Split(features[rows].astype(np.float32), targets[rows], weight)

    return Prepared(
        train=part(train),
        evaluation=part(evaluation),
        task="real" if kind == "counts" and want == "real" else kind,
        target_scale=scale,
        num_classes=examples.num_classes,
        target_dim=1 if targets.ndim == 1 else targets.shape[-1],
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


def _targets(examples: Any, want: str) -> np.ndarray:
    targets = np.array(examples.targets)
    if examples.num_classes is None:
        return targets.astype(np.float64)
    if want == "classes":
        return targets.astype(np.int32)
    if want == "binary" and examples.num_classes == 2:
        return targets.astype(np.float64)[:, None]
    return np.eye(examples.num_classes)[targets]


def _spread(values: np.ndarray, axes: tuple[int, ...]) -> np.ndarray:
    spread = values.std(axis=axes)
    # Not > 0: a constant column's mean may be off by rounding.
    return np.where(spread > 1e-12 * np.abs(values).max(axis=axes), spread, 1)


def _class_balance(examples: Any, kind: str, counted: np.ndarray) -> np.ndarray:
    if kind != "classes":
        raise ConfigError(f"data.class_weight=balanced needs class labels; the data has {kind} targets: type data.class_weight=null")
    counts = np.bincount(examples.targets[counted], minlength=examples.num_classes)
    return (len(counted) / (examples.num_classes * np.maximum(counts, 1)))[examples.targets]
