"""Probit loss of yes-or-no targets."""

import dataclasses
import functools
import math
from typing import Any

import mpmath
import numpy as np
import tensorflow as tf

from losses import features
from losses.base import Loss

_TAIL = 3.0  # from here on the continued fraction is at least as good as erfc


@dataclasses.dataclass(frozen=True)
class Probit(Loss):
    """Probit regression: yes or no is whether p plus a standard normal error is positive; p is the score Phi^-1(P(1)).

    value = mean of -y log(Phi(p)) - (1 - y) log(Phi(-p)), Phi the normal distribution function
    d/dp  = ((1 - y) h(-p) - y h(p)) / n, h = phi / Phi the inverse Mills ratio, n the number of elements of an example

    For m < -3, t = -m, h(m) is the continued fraction t + 1/(t + 2/(t + 3/(t + ...))), and -log(Phi(m)) is
    t^2 / 2 + log(2 pi) / 2 + log(h(m)); otherwise h(m) = sqrt(2 / pi) e^(-m^2 / 2) / erfc(-m / sqrt(2)). For m > 0, -log(Phi(m)) is
    log1p of minus the small tail, Phi(-m). The usual -log(erfc(-m / sqrt(2)) / 2) is inf at m = -13.2 in float32, and its slope NaN
    below. The gain is the stable formula: auto through this value is accurate as well.

    Domain: y in [0, 1], any finite p; where p^2 / 2 overflows, the value is inf, the gradient still right.
    Shapes: y [batch, ..., dim], p the same.
    Kinks: none.
    Reference: C. I. Bliss (1934), doi:10.1126/science.79.2037.38.
    """

    targets = ("binary",)
    magnitudes = (1e-30, 1e30)
    invariants = ("convex", "non_negative")

    def value(self, y_true: tf.Tensor, y_pred: tf.Tensor) -> tf.Tensor:
        # multiply_no_nan: a value that overflows has no part where its weight is 0.
        yes = tf.math.multiply_no_nan(_surprise(y_pred), y_true)
        return features.mean(yes + tf.math.multiply_no_nan(_surprise(-y_pred), 1 - y_true))

    def gradient(self, y_true: tf.Tensor, y_pred: tf.Tensor) -> tf.Tensor:
        return features.mean_gradient((1 - y_true) * _mills(-y_pred) - y_true * _mills(y_pred))

    def point(self, y_pred: tf.Tensor) -> tf.Tensor:
        """The probability of 1, [batch, ..., dim]."""
        return _cumulative(y_pred)

    def usual(self, y_true: tf.Tensor, y_pred: tf.Tensor) -> tf.Tensor:
        yes, no = (-tf.math.log(_cumulative(m)) for m in (y_pred, -y_pred))
        return features.mean(tf.where(y_true > 0, y_true * yes, 0.0) + tf.where(y_true < 1, (1 - y_true) * no, 0.0))

    def reference(self, y_true: list, y_pred: list) -> Any:
        return sum(_one(y, p, mpmath.mp.prec) for y, p in zip(y_true, y_pred, strict=True)) / len(y_pred)


def _mills(m: tf.Tensor) -> tf.Tensor:
    """phi(m) / Phi(m)."""
    tail = m < -_TAIL
    body = tf.where(tail, tf.zeros_like(m), m)
    inside = math.sqrt(2 / math.pi) * tf.exp(-tf.square(body) / 2) / tf.math.erfc(-body / math.sqrt(2))
    return tf.where(tail, _fraction(tf.where(tail, -m, _TAIL)), inside)


def _surprise(m: tf.Tensor) -> tf.Tensor:
    """-log(Phi(m))."""
    tail, positive = m < -_TAIL, m > 0
    t = tf.where(tail, -m, _TAIL)
    # 2 (t / 2)^2: a square that overflows no sooner than its half does.
    beyond = 2 * tf.square(t / 2) + (math.log(2 * math.pi) / 2 + tf.math.log(_fraction(t)))
    body = tf.where(tail, tf.zeros_like(m), m)
    rare = tf.math.erfc(tf.where(positive, body, -body) / math.sqrt(2)) / 2  # Phi(-|m|)
    inside = tf.where(positive, -tf.math.log1p(-rare), -tf.math.log(tf.where(positive, tf.ones_like(m), rare)))
    return tf.where(tail, beyond, inside)


def _fraction(t: tf.Tensor) -> tf.Tensor:
    """phi(t) / Phi(-t) for t >= 3, the continued fraction t + 1/(t + 2/(t + ...)), to the last digit of its dtype.

    Cut off after n terms, its reciprocal is Gauss and Hermite's quadrature of the mean of t / (t^2 + x^2) over normal x with n nodes: all
    terms are positive, and a sum is a graph of a few operations where the fraction is one of hundreds.
    """
    nodes, weights = _quadrature(48 if t.dtype == tf.float64 else 16)
    terms = tf.constant(weights, t.dtype) / (1 + tf.square(tf.constant(nodes, t.dtype) / t[..., tf.newaxis]))
    return t / tf.reduce_sum(terms, axis=-1)


@functools.cache
def _quadrature(num_nodes: int) -> tuple[np.ndarray, np.ndarray]:
    """Positive nodes and their weights, for the mean of an even function of a normal variable."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(num_nodes)
    half = num_nodes // 2
    return nodes[half:], 2 * weights[half:] / math.sqrt(2 * math.pi)


def _cumulative(m: tf.Tensor) -> tf.Tensor:
    """Phi(m)."""
    return tf.math.erfc(-m / math.sqrt(2)) / 2


@functools.lru_cache(maxsize=64)  # only one element moves in a difference
def _one(y: Any, p: Any, precision: int) -> Any:
    with mpmath.workprec(precision):
        return -(y * mpmath.log(mpmath.ncdf(p)) + (1 - y) * mpmath.log(mpmath.ncdf(-p)))
