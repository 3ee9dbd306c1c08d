"""Gaussian negative log-likelihood with a learned spread."""

import dataclasses
from typing import Any

import mpmath
import tensorflow as tf

from losses import features
from losses.base import Loss


@dataclasses.dataclass(frozen=True)
class GaussianNLL(Loss):
    """Gaussian likelihood: p holds mean and logarithm of the standard deviation, so that spread is learned too.

    value      = mean of log_sigma + z^2 / 2, z = (y - mu) e^-log_sigma        (log(2 pi) / 2 is left out)
    d/dmu        = -z e^-log_sigma / n, n the number of elements of y in an example
    d/dlog_sigma = (1 - z)(1 + z) / n

    Auto is as accurate: 1 - z^2 loses no more than the rounding of z does. Only at a tie with log_sigma < -177 (float32) its slope
    by log_sigma is NaN, not 1 / n. Without XLA analytic needs less time and memory.

    Domain: any finite mu, log_sigma, y; what truly overflows, as z^2 does for a small sigma, is inf, never NaN.
    Shapes: y [batch, ..., dim], p [batch, ..., 2 dim], all mu first.
    Kinks: none.
    Reference: D. A. Nix, A. S. Weigend (1994), doi:10.1109/ICNN.1994.374138.
    """

    magnitudes = (1e-30, 1e30)

    @property
    def outputs_per_target(self) -> int:
        return 2

    def value(self, y_true: tf.Tensor, y_pred: tf.Tensor) -> tf.Tensor:
        mu, log_sigma = tf.split(y_pred, 2, axis=-1)
        z = _scaled(y_true - mu, tf.exp(-log_sigma / 2))
        return features.mean(log_sigma + tf.square(z) / 2)

    def gradient(self, y_true: tf.Tensor, y_pred: tf.Tensor) -> tf.Tensor:
        mu, log_sigma = tf.split(y_pred, 2, axis=-1)
        root = tf.exp(-log_sigma / 2)
        z = _scaled(y_true - mu, root)
        slopes = [-_scaled(z, root), (1 - z) * (1 + z)]
        return tf.concat([features.mean_gradient(slope) for slope in slopes], axis=-1)

    def point(self, y_pred: tf.Tensor) -> tf.Tensor:
        """The mean, [batch, ..., dim]."""
        return tf.split(y_pred, 2, axis=-1)[0]

    def reference(self, y_true: list, y_pred: list) -> Any:
        dim = len(y_true)
        terms = zip(y_true, y_pred[:dim], y_pred[dim:], strict=True)
        return sum(log_sigma + ((y - mu) * mpmath.exp(-log_sigma)) ** 2 / 2 for y, mu, log_sigma in terms) / dim


def _scaled(x: tf.Tensor, root: tf.Tensor) -> tf.Tensor:
    """The product x root^2, in two steps, so that neither a large nor a small root^2 leaves the range of floats before it does."""
    return tf.math.multiply_no_nan(root, tf.math.multiply_no_nan(root, x))  # no_nan: 0 stays 0 where root is inf
