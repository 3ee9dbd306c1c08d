"""Binary cross-entropy from logits."""

import dataclasses
from typing import Any

import mpmath
import tensorflow as tf

from losses import features
from losses.base import Loss


@dataclasses.dataclass(frozen=True)
class BinaryCrossentropy(Loss):
    """Cross-entropy of yes-or-no targets, each output on its own; p is the logit, log(P(1) / P(0)).

    value = mean of (1 - t) max(p, 0) + t max(-p, 0) + log1p(e^-|p|), t = (1 - label_smoothing) y + label_smoothing / 2
    d/dp  = ((1 - t) s(p) - t s(-p)) / n, s the logistic function, n the number of elements of an example

    Auto is as accurate, since value never forms 1 - s(p); without XLA analytic needs less time and memory.

    Domain: y in [0, 1], any finite p. Shapes: y [batch, ..., dim], p the same.

    Args:
        label_smoothing: share of every target that is moved to 1/2, a fraction in [0, 1).

    Kinks: none; at p = 0 all branches agree.
    Reference: D. R. Cox (1958), doi:10.1111/j.2517-6161.1958.tb00292.x.
    """

    label_smoothing: float = 0.0

    targets = ("binary",)

    def __post_init__(self) -> None:
        self.require("label_smoothing", "a number >= 0 and < 1", lambda share: 0 <= share < 1)

    def value(self, y_true: tf.Tensor, y_pred: tf.Tensor) -> tf.Tensor:
        target = self._smoothed(y_true)
        positive = y_pred >= 0
        size = tf.where(positive, y_pred, -y_pred)  # |p|, but with the slope of one side at 0, so that the tape's sum is right there
        # max(p, 0) - t p = (1 - t) max(p, 0) + t max(-p, 0): no difference of large numbers.
        linear = tf.where(positive, 1 - target, target) * size
        return features.mean(linear + tf.math.log1p(tf.exp(-size)))

    def gradient(self, y_true: tf.Tensor, y_pred: tf.Tensor) -> tf.Tensor:
        target = self._smoothed(y_true)
        positive = y_pred >= 0
        decay = tf.exp(tf.where(positive, -y_pred, y_pred))  # e^-|p|
        near, far = 1 / (1 + decay), decay / (1 + decay)  # s(|p|), s(-|p|)
        slopes = (1 - target) * tf.where(positive, near, far) - target * tf.where(positive, far, near)
        return features.mean_gradient(slopes)

    def point(self, y_pred: tf.Tensor) -> tf.Tensor:
        """The probability of 1, [batch, ..., dim]."""
        return tf.sigmoid(y_pred)

    def reference(self, y_true: list, y_pred: list) -> Any:
        smoothing = mpmath.mpf(self.label_smoothing)
        targets = [(1 - smoothing) * y + smoothing / 2 for y in y_true]
        return sum(mpmath.log1p(mpmath.exp(p)) - t * p for t, p in zip(targets, y_pred, strict=True)) / len(y_pred)

    def _smoothed(self, y_true: tf.Tensor) -> tf.Tensor:
        return (1 - self.label_smoothing) * y_true + self.label_smoothing / 2
