"""Huber's loss."""

import dataclasses
import math
from typing import Any

import tensorflow as tf

from losses import features
from losses.base import Loss


@dataclasses.dataclass(frozen=True)
class Huber(Loss):
    """Squared error near the target, absolute error far from it: an outlier's pull is bounded by delta.

    value = mean of q^2 / 2 + delta (|r| - q), r = p - y, q = min(|r|, delta)
    d/dp  = clip(r, -delta, delta) / n, n the number of elements of an example

    Auto is as accurate, since value takes cases; without XLA analytic needs less time and memory.

    Domain: all real p, y. Shapes: y [batch, ..., dim], p the same.

    Args:
        delta: where square turns into absolute error, in units of y; > 0.

    Kinks: none; the second derivative jumps at |r| = delta.
    Reference: P. J. Huber (1964), doi:10.1214/aoms/1177703732.
    """

    delta: float = 1.0

    magnitudes = (1e-30, 1e30)
    invariants = ("joint_translation", "convex", "non_negative")

    def __post_init__(self) -> None:
        self.require("delta", "a finite number > 0", lambda delta: 0 < delta < math.inf)

    def value(self, y_true: tf.Tensor, y_pred: tf.Tensor) -> tf.Tensor:
        error = y_pred - y_true
        size, q = tf.abs(error), tf.clip_by_value(error, -self.delta, self.delta)  # q with its sign: |r| has no second derivative at 0
        # q^2 / 2 + delta (|r| - q), but by cases: the tape's sum q + delta - delta would lose the digits of a small q.
        return features.mean(tf.where(size <= self.delta, tf.square(q) / 2, self.delta * (size - self.delta / 2)))

    def gradient(self, y_true: tf.Tensor, y_pred: tf.Tensor) -> tf.Tensor:
        return features.mean_gradient(tf.clip_by_value(y_pred - y_true, -self.delta, self.delta))

    def reference(self, y_true: list, y_pred: list) -> Any:
        sizes = [abs(p - y) for y, p in zip(y_true, y_pred, strict=True)]
        return sum(r**2 / 2 if r <= self.delta else self.delta * (r - self.delta / 2) for r in sizes) / len(sizes)
