"""Binary cross-entropy from logits."""

import dataclasses
from typing import Any

import mpmath
import tensorflow as tf

from losses import features, logistic
from losses.base import Loss


@dataclasses.dataclass(frozen=True)
class BinaryCrossentropy(Loss):
    """Cross-entropy of yes-or-no targets, each output on its own; p is the logit, log(P(1) / P(0)).

    value = mean of (1 - t) log(1 + e^p) + t log(1 + e^-p), log(1 + e^p) = max(p, 0) + log1p(e^-|p|)
    d/dp  = ((1 - t) s(p) - t s(-p)) / n, s the logistic function, n the number of elements of an example

    with t = (1 - label_smoothing) y + label_smoothing / 2.

    Auto is as accurate, since value never forms 1 - s(p); without XLA analytic needs less time and memory.

    Domain: y in [0, 1], any finite p. Shapes: y [batch, ..., dim], p the same.

    Args:
        label_smoothing: share of every target that is moved to 1/2, a fraction in [0, 1).

    Kinks: none; at p = 0 all branches agree.
    Reference: D. R. Cox (1958), doi:10.1111/j.2517-6161.1958.tb00292.x.
    """

    label_smoothing: float = 0.0

    targets = ("binary",)
    magnitudes = (1e-30, 1e30)
    invariants = ("convex", "non_negative")

    def __post_init__(self) -> None:
        self.require("label_smoothing", "a number >= 0 and < 1", lambda share: 0 <= share < 1)

    def value(self, y_true: tf.Tensor, y_pred: tf.Tensor) -> tf.Tensor:
        target = self._smoothed(y_true)
        below, above = logistic.softpluses(y_pred)  # -log P(0), -log P(1)
        return features.mean((1 - target) * below + target * above)

    def gradient(self, y_true: tf.Tensor, y_pred: tf.Tensor) -> tf.Tensor:
        target = self._smoothed(y_true)
        one, zero = logistic.sigmoids(y_pred)
        return features.mean_gradient((1 - target) * one - target * zero)

    def point(self, y_pred: tf.Tensor) -> tf.Tensor:
        """The probability of 1, [batch, ..., dim]."""
        return tf.sigmoid(y_pred)

    def reference(self, y_true: list, y_pred: list) -> Any:
        smoothing = mpmath.mpf(self.label_smoothing)
        targets = [(1 - smoothing) * y + smoothing / 2 for y in y_true]
        return sum(mpmath.log1p(mpmath.exp(p)) - t * p for t, p in zip(targets, y_pred, strict=True)) / len(y_pred)

    def _smoothed(self, y_true: tf.Tensor) -> tf.Tensor:
        return (1 - self.label_smoothing) * y_true + self.label_smoothing / 2
