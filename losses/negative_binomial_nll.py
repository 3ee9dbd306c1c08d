"""Negative binomial likelihood of counts that spread wider than Poisson's."""

import dataclasses
import functools
import math
from typing import Any

import mpmath
import tensorflow as tf

from losses import features, logistic
from losses.base import Loss

_NUM_SHIFTS = 16  # by which an argument is raised before its asymptotic series is used
_DIGAMMA = [1 / 12, -1 / 120, 1 / 252, -1 / 240, 1 / 132, -691 / 32760, 1 / 12]  # log(x) - 1 / (2 x) - digamma(x), by x^-2, x^-4, ..
_STIRLING = [1 / 12, -1 / 360, 1 / 1260, -1 / 1680, 1 / 1188, -691 / 360360, 1 / 156]  # the rest of Stirling's formula, by x^-1, x^-3, ..
_REST_OF_FACTORIAL = [0.0] + [
    math.lgamma(k + 1) - (k + 0.5) * math.log(k) + k - math.log(2 * math.pi) / 2 for k in range(1, _NUM_SHIFTS + 1)
]


@dataclasses.dataclass(frozen=True)
class NegativeBinomialNLL(Loss):
    """Likelihood of counts with mean mu and variance mu + mu^2 / r: as Poisson's, with a spread that is learned too.

    value      = mean of -(lgamma(y + r) - lgamma(r) - lgamma(y + 1) + r log(r / (r + mu)) + y log(mu / (r + mu)))
    d/dlog_mu  = r (mu - y) / (r + mu) / n, n the number of elements of y in an example
    d/dlog_r   = -r (digamma(y + r) - digamma(r) + log(r / (r + mu)) + (mu - y) / (r + mu)) / n

    Stable by way of t = (y - mu) / (r + mu) and h(x) = 1 - log1p(x) / x, a series in x / (2 + x) for small x, with g = d/dlog_mu:
    d/dlog_r = -g h(t) - r D, D = digamma(y + r) - digamma(r) - log1p(y / r) = sum_{k < y} h(1 / (r + k)) / (r + k) for whole y: all
    terms are positive, and from k = 16 on an asymptotic series gives the rest. For y = 1 that less d/dlog_r at y = 0 is
    -mu / (r + mu). The value's large terms cancel by hand, after C. Loader:
    g (h(w) - h(t)) + log(2 pi y (1 + y / r)) / 2 + e(r) - e(r + y) + e(y), w = g / y, e the rest of Stirling's formula.
    Of the usual formula the differences of lgamma and digamma lose d/dlog_r: 4% at r = 1e3, all of it, sign included, at 1e8.
    Auto through this value is as good by log_mu, and by log_r while r is not much larger than mu and y; then it loses digits too.

    Domain: y whole numbers from 0 to 1e9 (others are taken for the next larger one in parts of the sum); |log_mu| and |log_r| up to 40.
    Shapes: y [batch, ..., dim], p [batch, ..., 2 dim], all log_mu first.
    Kinks: none.
    Reference: J. F. Lawless (1987), doi:10.2307/3314912; C. Loader (2000), Fast and accurate computation of binomial probabilities.
    """

    second_order = "refuse"
    targets = ("counts",)
    magnitudes = (1e-30, 40.0)
    invariants = ("non_negative",)

    @property
    def outputs_per_target(self) -> int:
        return 2

    def value(self, y_true: tf.Tensor, y_pred: tf.Tensor) -> tf.Tensor:
        log_mu, log_r = tf.split(y_pred, 2, axis=-1)
        slope, excess = _slope_and_excess(y_true, log_mu, log_r)
        none = y_true == 0
        y = tf.where(none, tf.ones_like(y_true), y_true)
        slope = tf.where(none, tf.zeros_like(y), slope)
        log_sum = _log_sum(log_mu, log_r)
        log_total = _log_sum(tf.math.log(y), log_r)  # log(y + r)
        surplus = slope / y  # of the success' share over y
        log_ratio = _log_ratio(excess, log_total - log_sum)
        of_surplus, of_excess = tf.unstack(_h(tf.stack([surplus, excess]), tf.stack([log_mu - tf.math.log(y) + log_ratio, log_ratio])))
        deviance = slope * (of_surplus - of_excess)
        spread = (math.log(2 * math.pi) + tf.math.log(y) + logistic.softpluses(tf.math.log(y) - log_r)[0]) / 2
        at_none = tf.exp(log_r) * logistic.softpluses(log_mu - log_r)[0]  # r log((r + mu) / r)
        return features.mean(tf.where(none, at_none, deviance + spread + _stirling_difference(y, log_r) + _stirling(y)))

    def gradient(self, y_true: tf.Tensor, y_pred: tf.Tensor) -> tf.Tensor:
        log_mu, log_r = tf.split(y_pred, 2, axis=-1)
        few = y_true <= 1
        y = tf.where(few, tf.zeros_like(y_true), y_true)  # of 0 the derivative by log_r is known apart from its terms' difference
        slopes, excesses = _slope_and_excess(tf.stack([y_true, y]), log_mu, log_r)
        slope, excess = slopes[0], excesses[1]
        log_total = tf.where(few, log_r, _log_sum(tf.math.log(tf.maximum(y, 1)), log_r))
        h = _h(excess, _log_ratio(excess, log_total - _log_sum(log_mu, log_r)))
        by_log_r = -slopes[1] * h - tf.where(few, -excess * y_true, _scaled_digamma_difference(y, log_r))
        return tf.concat([features.mean_gradient(slope), features.mean_gradient(by_log_r)], axis=-1)

    def usual(self, y_true: tf.Tensor, y_pred: tf.Tensor) -> tf.Tensor:
        mu, r = tf.split(tf.exp(y_pred), 2, axis=-1)
        coefficient = tf.math.lgamma(y_true + r) - tf.math.lgamma(r) - tf.math.lgamma(y_true + 1)
        return features.mean(-(coefficient + r * tf.math.log(r / (r + mu)) + y_true * tf.math.log(mu / (r + mu))))

    def point(self, y_pred: tf.Tensor) -> tf.Tensor:
        """The mean, mu: [batch, ..., dim]."""
        return tf.exp(tf.split(y_pred, 2, axis=-1)[0])

    def reference(self, y_true: list, y_pred: list) -> Any:
        dim = len(y_true)
        return sum(_one(y, a, b, mpmath.mp.prec) for y, a, b in zip(y_true, y_pred[:dim], y_pred[dim:], strict=True)) / dim


def _slope_and_excess(y: tf.Tensor, log_mu: tf.Tensor, log_r: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """The derivative by log_mu, r (mu - y) / (r + mu), and the excess t = (y - mu) / (r + mu)."""
    small, first = log_mu < 0, log_mu <= log_r
    zero = tf.zeros_like(log_mu)
    surplus = _surplus(y, tf.where(small, log_mu, zero))
    # From mu = 1 on (mu r / (r + mu)) (1 - y / mu), so that nothing overflows unless the result does.
    shortfall = _shortfall(y, tf.where(small, zero, log_mu))
    below, share = logistic.sigmoids(log_r - log_mu)  # r / (r + mu), mu / (r + mu)
    larger = tf.where(first, below, share)
    harmonic = tf.exp(tf.where(first, log_mu, log_r)) * larger  # mu r / (r + mu)
    inverse = tf.exp(-tf.where(first, log_r, log_mu)) * larger  # 1 / (r + mu)
    excess = tf.where(small & (y > 0), -surplus * inverse, tf.where(y == 0, -share, shortfall * share))
    return tf.where(small, below * surplus, -harmonic * shortfall), tf.minimum(excess, 1e30)


def _surplus(y: tf.Tensor, log_mu: tf.Tensor) -> tf.Tensor:
    """The difference mu - y, also near mu = y = 1."""
    return tf.where(y == 1, tf.math.expm1(log_mu), tf.exp(log_mu) - y)


def _shortfall(y: tf.Tensor, log_mu: tf.Tensor) -> tf.Tensor:
    """The ratio less one, y / mu - 1, also near mu = y = 1."""
    return tf.where(y == 1, tf.math.expm1(-log_mu), y * tf.exp(-log_mu) - 1)


def _log_sum(a: tf.Tensor, b: tf.Tensor) -> tf.Tensor:
    """log(e^a + e^b)."""
    return tf.maximum(a, b) + tf.math.log1p(tf.exp(-tf.abs(a - b)))


def _atanh_series(square: tf.Tensor) -> tf.Tensor:
    """(atanh(s) / s - 1) / s^2 = 1/3 + s^2/5 + s^4/7 + .. for s^2 <= 1/9."""
    num = 16 if square.dtype == tf.float64 else 8
    return _polynomial([1 / (2 * n + 3) for n in range(num)], square)


def _log_ratio(excess: tf.Tensor, difference: tf.Tensor) -> tf.Tensor:
    """log1p(t); near t = -1, where t does not tell it, the difference of log(y + r) and log(r + mu)."""
    low = excess < -0.5
    return tf.where(low, difference, tf.math.log1p(tf.where(low, tf.zeros_like(excess), excess)))


def _h(x: tf.Tensor, log1p_x: tf.Tensor) -> tf.Tensor:
    """1 - log1p(x) / x for x > -1; log1p(x) is given for x near -1, where x does not tell it."""
    near = (x > -0.5) & (x < 1)
    inside = tf.where(near, x, tf.zeros_like(x))
    square = tf.square(inside / (2 + inside))
    outside = tf.where(near, tf.ones_like(x), x)
    log1p = tf.where(x < 0, log1p_x, tf.math.log1p(tf.maximum(outside, 0)))
    # log1p(x) = 2 atanh(s), s = x / (2 + x).
    return tf.where(near, (inside - 2 * square * _atanh_series(square)) / (2 + inside), 1 - log1p / outside)


def _scaled_digamma_difference(y: tf.Tensor, log_r: tf.Tensor) -> tf.Tensor:
    """The derivative's part r D, for whole y: r times the sum over k < y of u h(u), u = 1 / (r + k)."""
    r = tf.exp(tf.maximum(log_r, -80))  # it is 1 from there on, and 1 / r still finite
    shifts = tf.range(_NUM_SHIFTS, dtype=r.dtype)
    u = 1 / (r[..., tf.newaxis] + shifts)
    terms = _h(u, u) / (1 + shifts / r[..., tf.newaxis])
    result = tf.reduce_sum(tf.where(y[..., tf.newaxis] > shifts, terms, tf.zeros_like(terms)), axis=-1)
    more = tf.maximum(y - _NUM_SHIFTS, 0)
    u, v = 1 / (r + _NUM_SHIFTS), 1 / (r + _NUM_SHIFTS + more)
    of_u, of_v = tf.unstack(_polynomial(_DIGAMMA, tf.square(tf.stack([u, v]))))
    return result + (more * v / 2 + u * of_u - v / (1 + more * u) * of_v) / (1 + _NUM_SHIFTS / r)


def _stirling_difference(y: tf.Tensor, log_r: tf.Tensor) -> tf.Tensor:
    """e(r) - e(r + y) for whole y > 0.

    It is the sum over k < y of (x + 1/2) log1p(1 / x) - 1 = atanh(s) / s - 1, x = r + k, s = 1 / (2 x + 1).
    """
    r = tf.exp(log_r)
    shifts = tf.range(_NUM_SHIFTS, dtype=r.dtype)
    square = tf.square(1 / (2 * (r[..., tf.newaxis] + shifts) + 1))
    terms = square * _atanh_series(square)
    # For k = 0 and r < 1 the series is too slow, and nothing cancels.
    first = tf.where(r < 1, (r + 0.5) * (tf.math.log1p(r) - log_r) - 1, terms[..., 0])
    result = first + tf.reduce_sum(tf.where(y[..., tf.newaxis] > shifts, terms, tf.zeros_like(terms))[..., 1:], axis=-1)
    u, v = 1 / (r + _NUM_SHIFTS), 1 / (r + tf.maximum(y, _NUM_SHIFTS))
    of_u, of_v = tf.unstack(_polynomial(_STIRLING, tf.square(tf.stack([u, v]))))
    return result + (u * of_u - v * of_v)


def _stirling(y: tf.Tensor) -> tf.Tensor:
    """e(y) of whole y > 0: log(y!) less Stirling's formula, (y + 1/2) log(y) - y + log(2 pi) / 2."""
    small = (y >= 0) & (y <= _NUM_SHIFTS)  # a negative count is NaN by its logarithm, and none of the table's
    table = tf.gather(tf.constant(_REST_OF_FACTORIAL, y.dtype), tf.cast(tf.where(small, y, tf.zeros_like(y)), tf.int32))
    return tf.where(small, table, _polynomial(_STIRLING, tf.square(1 / y)) / y)


def _polynomial(coefficients: list[float], x: tf.Tensor) -> tf.Tensor:
    """c0 + c1 x + c2 x^2 + .."""
    return tf.math.polyval(tf.unstack(tf.constant(coefficients[::-1], x.dtype)), x)


@functools.lru_cache(maxsize=64)  # only one element moves in a difference
def _one(y: Any, log_mu: Any, log_r: Any, precision: int) -> Any:
    with mpmath.workprec(precision):
        mu, r = mpmath.exp(log_mu), mpmath.exp(log_r)
        return -(_log_coefficient(y, log_r, precision) + r * mpmath.log(r / (r + mu)) + y * mpmath.log(mu / (r + mu)))


@functools.lru_cache(maxsize=64)
def _log_coefficient(y: Any, log_r: Any, precision: int) -> Any:
    """log(Gamma(y + r) / Gamma(r) / y!)."""
    whole = int(mpmath.nint(y))
    with mpmath.workprec(precision + 80):  # bits that loggamma's difference may lose, r up to e^40
        r = mpmath.exp(log_r)
        if whole <= 20:  # as a product: beyond, mpmath's loggamma takes less time
            return mpmath.log(mpmath.fprod(r + k for k in range(whole)) / mpmath.factorial(whole))
        return mpmath.loggamma(whole + r) - mpmath.loggamma(r) - mpmath.loggamma(whole + 1)
