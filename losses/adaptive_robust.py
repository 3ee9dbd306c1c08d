"""One robust regression loss out of a family, chosen by its shape."""

import dataclasses
import math
from typing import Any

import mpmath
import numpy as np
import tensorflow as tf

from losses import features
from losses.base import Loss


@dataclasses.dataclass(frozen=True)
class AdaptiveRobust(Loss):
    """Regression loss whose robustness is a number: alpha = 2 squares errors, 1 is a smooth absolute error, -inf ignores outliers.

    value = mean of (b / alpha) ((u / b + 1)^(alpha / 2) - 1), u = ((p - y) / scale)^2, b = |alpha - 2|
            alpha = 2: u / 2; alpha = 0: log1p(u / 2); alpha = -inf: 1 - e^(-u / 2)
    d/dp  = ((p - y) / scale^2) (u / b + 1)^(alpha / 2 - 1) / n, n the number of elements of an example, and the limits of that

    Stable by way of w = sqrt(u / b + 1), scaled so that u need not be finite: the slope is (p - y) / (scale^2 w) w^(alpha - 1), whose
    power near w = 1 is exp((alpha - 1) log(w)), log(w) = log1p(u / b) / 2. The value is (b / alpha) expm1(alpha log(w)) while
    |alpha log(w)| < 1. The usual formula divides by 0 at alpha = 0 and 2, and overflows with u. Auto is nearly as accurate as
    analytic, except where the value overflows and its derivative does not (alpha > 1).

    Domain: any finite p, y, with |p - y| / scale below the largest number. A value below 1e-37 |alpha - 2| loses digits to the
    squares that TensorFlow flushes to 0. The second derivative loses digits far out: in float32, at alpha = 1, 7% at u = 1e6, all at 1e8.
    Shapes: y [batch, ..., dim], p the same.

    Args:
        alpha: shape, a number or -inf: 2 squared, 1 smooth absolute (Charbonnier), 0 Cauchy, -2 Geman-McClure, -inf Welsch.
        scale: in units of y, > 0: errors below it are treated as by a squared error.

    Kinks: none.
    Reference: J. T. Barron (2019), doi:10.1109/CVPR.2019.00446.
    """

    alpha: float = 1.0
    scale: float = 1.0

    magnitudes = (1e-30, 1e30)
    invariants = ("joint_translation", "non_negative")

    def __post_init__(self) -> None:
        self.require("alpha", "a number, or -inf", lambda alpha: alpha < math.inf)
        self.require("scale", "a finite number > 0", lambda scale: 0 < scale < math.inf)

    def value(self, y_true: tf.Tensor, y_pred: tf.Tensor) -> tf.Tensor:
        error = (y_pred - y_true) / self.scale
        if self.alpha == 2:
            return features.mean(tf.square(error) / 2)
        if self.alpha == -math.inf:
            return features.mean(-tf.math.expm1(-tf.square(error) / 2))
        b = abs(self.alpha - 2)
        w, log_w = _root(error / math.sqrt(b))
        if self.alpha == 0:
            return features.mean(b * log_w)
        exponent = self.alpha * log_w
        near = tf.abs(exponent) < 1
        # b w^alpha, by way of (b^(1 / alpha) w)^alpha where b is small and w^alpha might overflow without it.
        outer, inner = (1.0, b ** (1 / self.alpha)) if self.alpha > 1 else (b, 1.0)
        power = outer * tf.where(log_w < 0.5, inner**self.alpha * tf.exp(exponent), _power(inner * w, self.alpha))
        some = near & (exponent != 0)
        safe = tf.where(some, exponent, tf.ones_like(w))
        growth = tf.where(some, tf.math.expm1(safe) / safe, tf.ones_like(w))  # of an exponent that may underflow
        return features.mean(tf.where(near, b * log_w * growth, (power - b) / self.alpha))

    def gradient(self, y_true: tf.Tensor, y_pred: tf.Tensor) -> tf.Tensor:
        error = (y_pred - y_true) / self.scale
        if self.alpha == 2:
            return features.mean_gradient(error / self.scale)
        # Far out a falling power may underflow where its product with 1 / scale does not: both are in the square.
        if self.alpha == -math.inf:
            return features.mean_gradient(error * tf.square(tf.exp(-tf.square(error) / 4) / math.sqrt(self.scale)))
        size = math.sqrt(abs(self.alpha - 2))
        w, log_w = _root(error / size)
        # Near w = 1 the digits of w^(alpha - 1) are in its logarithm, far from it an exponential would lose them.
        steepest = error / w / self.scale
        if self.alpha < 1:
            far = error / size / w * tf.square(_power(w, (self.alpha - 1) / 2) * math.sqrt(size / self.scale))
        else:
            far = steepest * _power(w, self.alpha - 1)
        return features.mean_gradient(tf.where(log_w < 0.5, steepest * tf.exp((self.alpha - 1) * log_w), far))

    def usual(self, y_true: tf.Tensor, y_pred: tf.Tensor) -> tf.Tensor:
        b = abs(self.alpha - 2)
        u = tf.square((y_pred - y_true) / self.scale)
        zero = tf.zeros([], y_pred.dtype)  # a division by it gives inf or NaN, as in NumPy, instead of an error
        return features.mean((b / (zero + self.alpha)) * ((u / (zero + b) + 1) ** (self.alpha / 2) - 1))

    def reference(self, y_true: list, y_pred: list) -> Any:
        return sum(self._rho(((p - y) / mpmath.mpf(self.scale)) ** 2) for y, p in zip(y_true, y_pred, strict=True)) / len(y_pred)

    def _rho(self, u: Any) -> Any:
        if self.alpha == 2:
            return u / 2
        if self.alpha == 0:
            return mpmath.log1p(u / 2)
        if self.alpha == -math.inf:
            return -mpmath.expm1(-u / 2) if u < 10**6 else mpmath.mpf(1)  # what is left out is below 10^(-2e5)
        alpha = mpmath.mpf(self.alpha)
        b = abs(alpha - 2)
        return b / alpha * ((u / b + 1) ** (alpha / 2) - 1)


def _power(base: tf.Tensor, exponent: float) -> tf.Tensor:
    """A positive number to a power that float32 need not hold: what its rounding leaves is a factor of its own."""
    rounded = float(np.float32(exponent))
    # multiply_no_nan: of a huge exponent much is left, and the power 0.
    return tf.math.multiply_no_nan(tf.exp((exponent - rounded) * tf.math.log(base)), tf.pow(base, rounded))


def _root(x: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """sqrt(1 + x^2), which overflows only where x does, and its logarithm."""
    largest = tf.stop_gradient(tf.maximum(tf.abs(x), 1))  # only scales: the root does not depend on it
    root = largest * tf.sqrt(tf.square(1 / largest) + tf.square(x / largest))
    near = tf.abs(x) < 1
    return root, tf.where(near, tf.math.log1p(tf.square(tf.where(near, x, tf.zeros_like(x)))) / 2, tf.math.log(root))
