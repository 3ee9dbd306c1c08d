"""Likelihood of intervals under a logistic distribution."""

import dataclasses
from typing import Any

import mpmath
import numpy as np
import tensorflow as tf

from losses import logistic
from losses.base import Loss


@dataclasses.dataclass(frozen=True)
class IntervalLogistic(Loss):
    """Likelihood of a value known to lie in an interval: ordered classes between thresholds, rounded, binned or censored values.

    value    = -log(sigmoid(b) - sigmoid(a)), a = (lower - mu) / s, b = (upper - mu) / s
    d/dmu    = (sigmoid(-b) - sigmoid(a)) / s
    d/dlog_s = -a sigmoid(a) + b sigmoid(-b) + d / expm1(d), d = (upper - lower) / s

    Stable because sigmoid(b) - sigmoid(a) = sigmoid(b) sigmoid(-a) (1 - e^-d), so that value = softplus(-b) + softplus(a) - log(1 - e^-d),
    with log(d) = log(upper - lower) - log_s for small d. The difference in d/dmu is, with v = -b,
    sigmoid(v) - sigmoid(a) = tanh((v - a) / 2) (sigmoid(v) sigmoid(-a) + sigmoid(-v) sigmoid(a)), v - a = (2 mu - lower - upper) / s.
    The usual formula is inf, its gradient NaN, once both sigmoids round to 1 (float32: an interval of length 1 that lies 17 scales
    above mu; 37 in float64). Auto through this value is as accurate by log_s, but subtracts both terms of d/dmu: where s is much wider
    than mu and the edges that is off by about 5e-8 s (2e-5 at s = 400), and all noise from s = 1e7 on; it is NaN where 1 / s overflows.

    Domain: lower < upper, either may be infinite; any finite mu; 1 / s must not overflow (float32: log_s > -88.7).
    Shapes: y [batch, 2], lower and upper edge; p [batch, 2], mu and log_s.
    Kinks: none.
    Reference: P. McCullagh (1980), doi:10.1111/j.2517-6161.1980.tb01109.x; T. Salimans et al. (2017), doi:10.48550/arXiv.1701.05517.
    """

    targets = ("interval",)
    magnitudes = (1e-30, 1e30)
    invariants = ("non_negative",)

    def check_shapes(self, y_true: tf.Tensor, y_pred: tf.Tensor) -> None:
        self.require_shape("y_true", y_true, batch=None, edges=2)
        self.require_shape("y_pred", y_pred, batch=None, outputs=2)

    def value(self, y_true: tf.Tensor, y_pred: tf.Tensor) -> tf.Tensor:
        a, b, d = _ends(y_true, y_pred)
        lower, upper = tf.unstack(y_true, axis=-1)
        log_width = tf.math.log(tf.where(d < 1, upper - lower, tf.ones_like(d))) - y_pred[:, 1]  # log(d), also where d underflows
        safe = tf.where((d > 0) & (d < 1), d, tf.ones_like(d))
        share = tf.where(d > 0, tf.math.log(-tf.math.expm1(-safe) / safe), tf.zeros_like(d))  # log((1 - e^-d) / d)
        log_mass = tf.where(d < 1, log_width + share, tf.math.log1p(-tf.exp(-tf.where(d < 1, tf.ones_like(d), d))))
        return logistic.softpluses(b)[1] + logistic.softpluses(a)[0] - log_mass

    def gradient(self, y_true: tf.Tensor, y_pred: tf.Tensor) -> tf.Tensor:
        a, b, d = _ends(y_true, y_pred)
        lower, upper = tf.unstack(y_true, axis=-1)
        precision = tf.exp(-y_pred[:, 1])
        middle = tf.where(tf.math.is_inf(lower) & tf.math.is_inf(upper), tf.zeros_like(a), (lower + upper) / 2)
        lead = tf.math.tanh(tf.math.multiply_no_nan(precision, y_pred[:, 0] - middle))
        (below_a, above_a), (below_b, above_b) = logistic.sigmoids(a), logistic.sigmoids(b)
        both = above_a * above_b + below_a * below_b
        far = 1e3  # beyond, x sigmoid(-x) and x / expm1(x) are 0 in every precision, and may be infinity times 0
        near = tf.minimum(d, far)
        width = tf.where(near > 0, near / tf.math.expm1(tf.where(near > 0, near, tf.ones_like(d))), tf.ones_like(d))
        slope = -tf.maximum(a, -far) * below_a + tf.minimum(b, far) * above_b + width
        return tf.stack([tf.math.multiply_no_nan(precision, lead * both), slope], axis=-1)

    def usual(self, y_true: tf.Tensor, y_pred: tf.Tensor) -> tf.Tensor:
        z = (y_true - y_pred[:, :1]) * tf.exp(-y_pred[:, 1:])
        return -tf.math.log(tf.sigmoid(z[:, 1]) - tf.sigmoid(z[:, 0]))

    def point(self, y_pred: tf.Tensor) -> tf.Tensor:
        """The mean, once for each edge: [batch, 2]."""
        return tf.repeat(y_pred[:, :1], 2, axis=-1)

    def reference(self, y_true: list, y_pred: list) -> Any:
        a, b = ((edge - y_pred[0]) / mpmath.exp(y_pred[1]) for edge in y_true)
        if a > 0:  # the other tail, where both are small: 1 - sigmoid would need as many digits as the edges are far
            a, b = -b, -a
        return -mpmath.log(_sigmoid(b) - _sigmoid(a))

    def sample(self, rng: np.random.Generator, num: int, scale: float) -> tuple[np.ndarray, np.ndarray]:
        """Intervals around, near and far from mu, narrow and wide against s, a fifth of them open at one end."""
        mu = scale * rng.choice([-1, 1], num) * 10 ** rng.uniform(-0.5, 0.5, num)
        log_s = rng.choice([np.log(scale), min(scale, 20.0), 0.0], num) + rng.normal(size=num)
        size = np.where(rng.random(num) < 0.5, scale, np.exp(log_s))
        lower = mu + size * rng.normal(size=num) * 10 ** rng.uniform(-2, 1, num)
        upper = lower + size * 10 ** rng.uniform(-3, 1, num)
        upper = np.maximum(upper, lower + 1e-6 * np.abs(lower))  # still an interval in float32
        kind = rng.random(num)
        y = np.stack([np.where(kind < 0.1, -np.inf, lower), np.where(kind > 0.9, np.inf, upper)], axis=1)
        return y, np.stack([mu, log_s], axis=1)

    def edges(self) -> tuple[np.ndarray, np.ndarray]:
        """Edges at mu, far off, open at both ends; scales from tiny to huge."""
        y = [[0.0, 1.0], [-1.0, 0.0], [-1.0, 1.0], [90.0, 91.0], [-1e4, -9999.0], [-np.inf, np.inf], [0.0, np.inf], [-np.inf, 0.0]]
        scales = [0.0, -0.0, 20.0, -20.0, 60.0, -60.0]
        return np.array([edges for edges in y for _ in scales]), np.array([[0.0, log_s] for _ in y for log_s in scales])


def _ends(y_true: tf.Tensor, y_pred: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """a, b and d; infinite edges are kept from the tape, which would multiply them by 0."""
    lower, upper = tf.unstack(y_true, axis=-1)
    mu, precision = y_pred[:, 0], tf.exp(-y_pred[:, 1])

    def standardized(edge: tf.Tensor) -> tf.Tensor:
        open_end = tf.math.is_inf(edge)
        # multiply_no_nan: 0 at the edge, whatever the scale.
        inside = tf.math.multiply_no_nan(precision, tf.where(open_end, tf.zeros_like(edge), edge) - mu)
        return tf.where(open_end, edge, inside)

    width = upper - lower
    finite = tf.math.is_finite(width)
    d = tf.where(
        finite, tf.where(finite, width, tf.zeros_like(width)) * precision, tf.fill(tf.shape(width), tf.constant(np.inf, width.dtype))
    )
    return standardized(lower), standardized(upper), d


def _sigmoid(x: Any) -> Any:
    return 1 / (1 + mpmath.exp(-x)) if mpmath.isfinite(x) else mpmath.mpf(x > 0)
