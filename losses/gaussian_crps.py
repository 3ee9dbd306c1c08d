"""Continuous ranked probability score of a normal distribution."""

import dataclasses
import math
from typing import Any

import mpmath
import tensorflow as tf

from losses import features
from losses.base import Loss

_SQRT_2_OVER_PI = math.sqrt(2 / math.pi)
_FAR = 40.0  # beyond, erf is 1 and the density 0 in float64 too; of infinity erf may be NaN
_AT_CENTER = (math.sqrt(2) - 1) / math.sqrt(math.pi)  # the score at z = 0 and sigma = 1


@dataclasses.dataclass(frozen=True)
class GaussianCRPS(Loss):
    """Score of a forecast distribution, in units of y: absolute error that rewards honest spread, and is robust to outliers.

    value        = mean of sigma (z erf(z / sqrt(2)) + 2 phi(z) - 1 / sqrt(pi)), z = (y - mu) / sigma, phi the normal density
    d/dmu        = -erf(z / sqrt(2)) / n, n the number of elements of y in an example
    d/dlog_sigma = sigma (2 phi(z) - 1 / sqrt(pi)) / n

    Stable because sigma z erf(..) = |y - mu| erf(|z| / sqrt(2)) does not overflow, and 2 phi(z) - 1 / sqrt(pi) =
    expm1((log(2) - z^2) / 2) / sqrt(pi) keeps its digits at its root. Of the usual formula the tape adds and subtracts terms as large
    as z^2 to get d/dlog_sigma: 4e3 units of rounding at z = 1e4, exactly 0 at 1e8. Auto through this value has no such terms
    and is nearly as accurate as analytic, but is NaN where sigma or e^(-log_sigma / 2) overflows (float32: log_sigma > 88.7 or < -177).

    Domain: any finite mu, log_sigma, y; where sigma overflows (float32: log_sigma > 88.7) so does the value, to inf.
    Shapes: y [batch, ..., dim], p [batch, ..., 2 dim], all mu first.
    Kinks: none.
    Reference: T. Gneiting et al. (2005), doi:10.1175/MWR2904.1.
    """

    magnitudes = (1e-30, 1e30)
    invariants = ("non_negative",)

    @property
    def outputs_per_target(self) -> int:
        return 2

    def value(self, y_true: tf.Tensor, y_pred: tf.Tensor) -> tf.Tensor:
        error, z, sigma = _parts(y_true, y_pred)
        # 2 phi(z) - 1 / sqrt(pi) = sqrt(2 / pi) expm1(-z^2 / 2) + (sqrt(2) - 1) / sqrt(pi): exact at z = 0.
        rest = _SQRT_2_OVER_PI * tf.math.expm1(-tf.square(z) / 2) + _AT_CENTER
        return features.mean(tf.abs(error) * tf.math.erf(tf.abs(z) * math.sqrt(0.5)) + sigma * rest)

    def gradient(self, y_true: tf.Tensor, y_pred: tf.Tensor) -> tf.Tensor:
        _, z, sigma = _parts(y_true, y_pred)
        slopes = [-tf.math.erf(z * math.sqrt(0.5)), sigma * tf.math.expm1((math.log(2) - tf.square(z)) / 2) / math.sqrt(math.pi)]
        return tf.concat([features.mean_gradient(slope) for slope in slopes], axis=-1)

    def usual(self, y_true: tf.Tensor, y_pred: tf.Tensor) -> tf.Tensor:
        mu, log_sigma = tf.split(y_pred, 2, axis=-1)
        sigma = tf.exp(log_sigma)
        z = (y_true - mu) / sigma
        density = tf.exp(-tf.square(z) / 2) / math.sqrt(2 * math.pi)
        return features.mean(sigma * (z * tf.math.erf(z / math.sqrt(2)) + 2 * density - 1 / math.sqrt(math.pi)))

    def point(self, y_pred: tf.Tensor) -> tf.Tensor:
        """The mean, [batch, ..., dim]."""
        return tf.split(y_pred, 2, axis=-1)[0]

    def reference(self, y_true: list, y_pred: list) -> Any:
        dim = len(y_true)
        return sum(_score(y - mu, mpmath.exp(log_sigma)) for y, mu, log_sigma in zip(y_true, y_pred[:dim], y_pred[dim:], strict=True)) / dim


def _parts(y_true: tf.Tensor, y_pred: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """The error y - mu, z and sigma."""
    mu, log_sigma = tf.split(y_pred, 2, axis=-1)
    error = y_true - mu
    # 1 / sigma in two halves: it may overflow where z does not. multiply_no_nan: z is 0 where y = mu, whatever sigma.
    half = tf.exp(-log_sigma / 2)
    z = tf.math.multiply_no_nan(half, tf.math.multiply_no_nan(half, error))
    return error, tf.clip_by_value(z, -_FAR, _FAR), tf.exp(log_sigma)


def _score(error: Any, sigma: Any) -> Any:
    z = error / sigma
    density = mpmath.npdf(z) if abs(z) < 10**4 else 0  # below 10^(-2e7), which mpmath can't do in reasonable time for any z
    return sigma * (z * mpmath.erf(z / mpmath.sqrt(2)) + 2 * density - 1 / mpmath.sqrt(mpmath.pi))
