"""Gaussian likelihood whose gradient is weighted by the predicted variance."""

import dataclasses
from typing import Any

import mpmath
import tensorflow as tf

from losses import features
from losses.base import Loss
from losses.gaussian_nll import GaussianNLL


@dataclasses.dataclass(frozen=True)
class BetaNLL(Loss):
    """Gaussian likelihood that does not give up on what it finds hard: examples weigh by their predicted variance to the power beta.

    value        = mean of sigma^(2 beta) (log_sigma + z^2 / 2), z = (y - mu) / sigma        (log(2 pi) / 2 is left out)
    d/dmu        = -sigma^(2 beta) z / sigma / n, n the number of elements of y in an example
    d/dlog_sigma = sigma^(2 beta) (1 - z^2) / n

    For beta > 0 deliberately not the derivative of value but that of w (log_sigma + z^2 / 2) with the weight w = sigma^(2 beta) held
    constant. The two differ in d/dlog_sigma, by 2 beta times the element's value: wherever that is not 0. Auto is the derivative
    of value, which learns a wrong spread (with beta = 1 sigma = e^-0.5, whatever the data); the surrogate's minimum is that of the
    likelihood. beta = 0 is gaussian_nll, beta = 1 gives mu the gradient of a squared error.

    Stable because sigma^(2 beta) (1 - z^2) = (w - w z)(w + w z) with w = sigma^beta, w z = (y - mu) sigma^(beta - 1), neither of
    which overflows unless the product does.

    Domain: any finite mu, log_sigma, y. Shapes: y [batch, ..., dim], p [batch, ..., 2 dim], all mu first.

    Args:
        beta: power of the variance that an example weighs with, in [0, 1].

    Kinks: none.
    Reference: M. Seitzer et al. (2022), doi:10.48550/arXiv.2203.09168.
    """

    beta: float = 0.5

    magnitudes = (1e-30, 1e30)
    metric_names = ("nll",)

    def __post_init__(self) -> None:
        self.require("beta", "a number >= 0 and <= 1", lambda beta: 0 <= beta <= 1)

    @property
    def contract(self) -> str:  # type: ignore[override]  # depends on a hyperparameter
        return "surrogate" if self.beta else "exact"

    @property
    def outputs_per_target(self) -> int:
        return 2

    def value(self, y_true: tf.Tensor, y_pred: tf.Tensor) -> tf.Tensor:
        log_sigma, w, wz = self._parts(y_true, y_pred)
        return features.mean(w * (w * log_sigma) + tf.square(wz) / 2)

    def gradient(self, y_true: tf.Tensor, y_pred: tf.Tensor) -> tf.Tensor:
        log_sigma, w, wz = self._parts(y_true, y_pred)
        slopes = [-tf.math.multiply_no_nan(tf.exp((self.beta - 1) * log_sigma), wz), (w - wz) * (w + wz)]
        return tf.concat([features.mean_gradient(slope) for slope in slopes], axis=-1)

    def surrogate(self, y_true: tf.Tensor, y_pred: tf.Tensor, at: tf.Tensor) -> tf.Tensor:
        """The mean of w^2 (log_sigma + z^2 / 2), w taken from `at`."""
        mu, log_sigma = tf.split(y_pred, 2, axis=-1)
        weighted = self.beta * tf.split(at, 2, axis=-1)[1]
        w, wz = tf.exp(weighted), tf.math.multiply_no_nan(tf.exp(weighted - log_sigma), y_true - mu)
        return features.mean(w * (w * log_sigma) + tf.square(wz) / 2)

    def point(self, y_pred: tf.Tensor) -> tf.Tensor:
        """The mean, [batch, ..., dim]."""
        return tf.split(y_pred, 2, axis=-1)[0]

    def metrics(self, y_true: tf.Tensor, y_pred: tf.Tensor) -> tuple[tf.Tensor, ...]:
        """nll: the likelihood, as gaussian_nll gives it, which unlike value compares one beta with another."""
        return (GaussianNLL().value(y_true, y_pred),)

    def reference(self, y_true: list, y_pred: list) -> Any:
        dim = len(y_true)
        terms = zip(y_true, y_pred[:dim], y_pred[dim:], strict=True)
        return sum(mpmath.exp(2 * self.beta * s) * (s + ((y - mu) * mpmath.exp(-s)) ** 2 / 2) for y, mu, s in terms) / dim

    def _parts(self, y_true: tf.Tensor, y_pred: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        """log_sigma, w and w z."""
        mu, log_sigma = tf.split(y_pred, 2, axis=-1)
        # multiply_no_nan: z is 0 where y = mu, whatever sigma.
        wz = tf.math.multiply_no_nan(tf.exp((self.beta - 1) * log_sigma), y_true - mu)
        return log_sigma, tf.exp(self.beta * log_sigma), wz
