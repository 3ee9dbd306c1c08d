"""Logarithm of the hyperbolic cosine."""

import dataclasses
import math
from typing import Any

import keras
import mpmath
import tensorflow as tf

from losses import features
from losses.base import Loss


@dataclasses.dataclass(frozen=True)
class LogCosh(Loss):
    """Squared error near the target, absolute error far from it, smooth in between: outliers pull with a force of 1 at most.

    value  = mean of log(cosh(r)), r = p - y
    d/dp   = tanh(r) / n, n the number of elements of an example
    d2/dp2 = sech(r)^2 / n

    The value is log1p(2 sinh(r / 2)^2) for |r| < 1 and |r| + log1p(e^(-2 |r|)) - log(2) beyond: cosh(r) = 1 + 2 sinh(r / 2)^2
    keeps the square of a small r, and no e^|r| can overflow. The gradient is -m / (2 + m) with m = expm1(-2 |r|) and the sign of r,
    whose own derivative keeps its digits too, where 1 - tanh(r)^2 cancels.

    Auto through this value is as accurate. Keras' r + softplus(-2 r) - log(2) is not: its terms cancel for small r, and so do the
    tape's, 1 - 2 s(-2 r), s the logistic function: 2e3 units of rounding at r = 1e-4, and exactly 0 at 1e-8.

    Domain: all real p, y. Shapes: y [batch, ..., dim], p the same.
    Kinks: none.
    Reference: P. Chen, G. Chen, S. Zhang (2019), Log hyperbolic cosine loss improves variational auto-encoder.
    """

    magnitudes = (1e-30, 1e30)
    invariants = ("joint_translation", "convex", "non_negative")

    def value(self, y_true: tf.Tensor, y_pred: tf.Tensor) -> tf.Tensor:
        error = y_pred - y_true
        near = tf.abs(error) < 1
        small = tf.where(near, error, tf.zeros_like(error))
        large = tf.where(near, tf.ones_like(error), tf.abs(error))
        beyond = large + tf.math.log1p(tf.exp(-2 * large)) - math.log(2)
        return features.mean(tf.where(near, tf.math.log1p(2 * tf.square(tf.sinh(small / 2))), beyond))

    def gradient(self, y_true: tf.Tensor, y_pred: tf.Tensor) -> tf.Tensor:
        error = y_pred - y_true
        negative = error < 0
        m = tf.math.expm1(-2 * tf.where(negative, -error, error))
        slope = -m / (2 + m)  # tanh(|r|)
        return features.mean_gradient(tf.where(negative, -slope, slope))

    def usual(self, y_true: tf.Tensor, y_pred: tf.Tensor) -> tf.Tensor:
        return features.mean(keras.losses.log_cosh(y_true[..., tf.newaxis], y_pred[..., tf.newaxis]))

    def reference(self, y_true: list, y_pred: list) -> Any:
        return sum(mpmath.log(mpmath.cosh(p - y)) for y, p in zip(y_true, y_pred, strict=True)) / len(y_pred)
