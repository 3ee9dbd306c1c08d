"""Poisson negative log-likelihood."""

import dataclasses
from typing import Any

import mpmath
import tensorflow as tf

from losses import features
from losses.base import Loss


@dataclasses.dataclass(frozen=True)
class PoissonNLL(Loss):
    """Poisson likelihood of counts: p is the logarithm of the expected count.

    value = mean of e^p - y p        (log y! is left out: it does not depend on p)
    d/dp  = (e^p - y) / n = (expm1(p) - (y - 1)) / n, n the number of elements of an example

    Auto is as accurate, but where y = 1 and |p| is so small that e^p rounds to 1: there its gradient is 0 instead of about p.

    Domain: y >= 0, any finite p; where e^p overflows (float32: p > 88.7), value and gradient are inf, never NaN.
    Shapes: y [batch, ..., dim], p the same.
    Kinks: none.
    Reference: J. A. Nelder, R. W. M. Wedderburn (1972), doi:10.2307/2344614.
    """

    targets = ("counts",)
    magnitudes = (1e-30, 1e30)
    invariants = ("convex",)

    def value(self, y_true: tf.Tensor, y_pred: tf.Tensor) -> tf.Tensor:
        return features.mean(tf.exp(y_pred) - y_true * y_pred)

    def gradient(self, y_true: tf.Tensor, y_pred: tf.Tensor) -> tf.Tensor:
        # e^p - 1 - (y - 1): a single event that was expected leaves a gradient of about p, which e^p - y rounds to 0.
        near = tf.abs(y_pred) < 0.5
        small = tf.math.expm1(tf.where(near, y_pred, tf.zeros_like(y_pred)))
        return features.mean_gradient(tf.where(near, small - (y_true - 1), tf.exp(y_pred) - y_true))

    def point(self, y_pred: tf.Tensor) -> tf.Tensor:
        """The expected count, e^p."""
        return tf.exp(y_pred)

    def reference(self, y_true: list, y_pred: list) -> Any:
        return sum(mpmath.exp(p) - y * p for y, p in zip(y_true, y_pred, strict=True)) / len(y_pred)
