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

    Auto is as accurate: 1 - z^2 loses no more than the rounding of z does. Without XLA analytic needs less time and memory.

    Domain: any mu, y; e^-log_sigma must not overflow (float32: log_sigma > -88.7).
    Shapes: y [batch, ..., dim], p [batch, ..., 2 dim], all mu first.
    Kinks: none.
    Reference: D. A. Nix, A. S. Weigend (1994), doi:10.1109/ICNN.1994.374138.
    """

    magnitudes = (1e-6, 20.0)

    @property
    def outputs_per_target(self) -> int:
        return 2

    def value(self, y_true: tf.Tensor, y_pred: tf.Tensor) -> tf.Tensor:
        mu, log_sigma = tf.split(y_pred, 2, axis=-1)
        z = (y_true - mu) * tf.exp(-log_sigma)
        return features.mean(log_sigma + tf.square(z) / 2)

    def gradient(self, y_true: tf.Tensor, y_pred: tf.Tensor) -> tf.Tensor:
        mu, log_sigma = tf.split(y_pred, 2, axis=-1)
        precision = tf.exp(-log_sigma)
        z = (y_true - mu) * precision
        slopes = [-z * precision, (1 - z) * (1 + z)]
        return tf.concat([features.mean_gradient(slope) for slope in slopes], axis=-1)

    def point(self, y_pred: tf.Tensor) -> tf.Tensor:
        """The mean, [batch, ..., dim]."""
        return tf.split(y_pred, 2, axis=-1)[0]

    def reference(self, y_true: list, y_pred: list) -> Any:
        dim = len(y_true)
        terms = zip(y_true, y_pred[:dim], y_pred[dim:], strict=True)
        return sum(log_sigma + ((y - mu) * mpmath.exp(-log_sigma)) ** 2 / 2 for y, mu, log_sigma in terms) / dim
