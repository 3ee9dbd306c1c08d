"""Examples of several items each, drawn from tables of single ones: pairs, triplets and views.

Every item takes part once, so that no pair of the evaluation part shares one with training.
"""

import dataclasses

import numpy as np

from trainer.data.base import Examples, Source
from trainer.data.bundled import Diabetes, Digits

_SEED = 0  # of the drawing, which is part of the data


@dataclasses.dataclass(frozen=True)
class DigitPairs(Source):
    """n = 898 pairs of digits [2, 8, 8, 1]; target: 1 where both are the same digit, about half of them. From `Digits`, CC BY 4.0."""

    kind = "same"

    def load(self) -> Examples:
        digits = Digits().load()
        order = _shuffled(len(digits))[:1796]
        first, others = order[:898], order[898:]
        # Neighbours among the sorted digits are nearly all alike, those drawn at random a tenth of the time.
        pairs = np.concatenate([_sorted(first, digits.targets), others]).reshape(-1, 2)
        return Examples(digits.features[pairs], digits.targets[pairs[:, 0]] == digits.targets[pairs[:, 1]])


@dataclasses.dataclass(frozen=True)
class DigitTriplets(Source):
    """n = 543 triplets of digits [3, 8, 8, 1]: an anchor, another image of the same digit, one of another; no target. CC BY 4.0."""

    kind = "none"

    def load(self) -> Examples:
        digits = Digits().load()
        order = _shuffled(len(digits))
        pairs = _sorted(order[:1198], digits.targets).reshape(-1, 2)
        triplets = np.column_stack([pairs, order[1198:]])
        anchor, positive, negative = digits.targets[triplets].T
        return Examples(digits.features[triplets[(anchor == positive) & (anchor != negative)]], None)


@dataclasses.dataclass(frozen=True)
class DigitViews(Source):
    """n = 1797 digits, two views of each [2, 8, 8, 1]: moved by at most a pixel, brightened or darkened; no target. CC BY 4.0."""

    kind = "none"

    def load(self) -> Examples:
        images = Digits().load().features
        rng = np.random.default_rng(_SEED)
        return Examples(np.stack([_view(images, rng), _view(images, rng)], axis=1), None)


@dataclasses.dataclass(frozen=True)
class DiabetesPairs(Source):
    """n = 221 pairs of patients [2, 10]; target: 1 where the first one's disease has progressed further, else 0. From `Diabetes`."""

    kind = "preference"

    def load(self) -> Examples:
        patients = Diabetes().load()
        pairs = _shuffled(len(patients)).reshape(-1, 2)
        first, second = patients.targets[pairs, 0].T
        told = first != second
        return Examples(patients.features[pairs[told]], first[told] > second[told])


def _shuffled(num: int) -> np.ndarray:
    return np.random.default_rng(_SEED).permutation(num)


def _sorted(rows: np.ndarray, labels: np.ndarray) -> np.ndarray:
    return rows[np.argsort(labels[rows], kind="stable")]


def _view(images: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Every image [8, 8, 1] moved by -1, 0 or 1 pixel in both directions, what comes in empty, and multiplied by 0.7 to 1.3."""
    padded = np.pad(images, [(0, 0), (1, 1), (1, 1), (0, 0)])
    moves = rng.integers(0, 3, [len(images), 2])
    moved = np.stack([image[y : y + 8, x : x + 8] for image, (y, x) in zip(padded, moves, strict=True)])
    return moved * rng.uniform(0.7, 1.3, [len(images), 1, 1, 1])
