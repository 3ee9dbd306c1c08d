"""Divergence of a student's softmax from a teacher's."""

import dataclasses
import math
from typing import Any

import mpmath
import tensorflow as tf

from losses import features, softmax
from losses.base import Loss

_MOST = 5.0  # of an exponent; e^5 is beyond every threshold here, and finite


@dataclasses.dataclass(frozen=True)
class DistillationKL(Loss):
    """Knowledge distillation: the student's class probabilities learn the teacher's, both softened by a temperature T.

    value  = T^2 sum_j a_j log(a_j / b_j), a = softmax(y / T), b = softmax(p / T)
    d/dp_j = T (b_j - a_j)

    A good student is where b and a agree and these differences cancel. With u_j = (p_j - y_j - (p_k - y_k)) / T, k the class
    with the largest a_k b_k, and W = sum_{j != k} a_j expm1(u_j), the ratio b_j / a_j is e^l_j, l_j = u_j - log1p(W), so that

    d/dp_j = T a_j expm1(l_j)                          where l_j and W are small; T (b_j - a_j) where they differ clearly
    value  = T^2 log1p(sum_j a_j (expm1(d_j) - d_j)),  d_j = u_j - sum_i a_i u_i, every term >= 0, as long as the sum is at most 1;
             T^2 (sum_j a_j (-log b_j) - sum_j a_j (-log a_j)) beyond.

    Measuring from class k keeps the digits of gradient and value where the teacher is nearly certain, too. The usual formula's
    gradient is 1% off where logits around 1 differ by 1e-5, 10% at 1e-6, and its value is as often negative as not. The gain is the
    stable formula: auto through this value agrees, but for up to 1e2 units of rounding at classes that happen to agree far out.

    Domain: all finite y and p; a value below 1e-35, or 1e-37 T^2 if that is more, loses digits to the subnormal terms that TensorFlow
    flushes to 0, and so do differences of logits below 1e-37 T.
    Shapes: teacher's logits y [batch, ..., classes], student's p the same. Axes between are averaged over.

    Args:
        temperature: T > 0 divides both logits; the factor T^2 keeps the gradient's size.

    Kinks: none.
    Reference: G. Hinton, O. Vinyals, J. Dean (2015), arXiv:1503.02531.
    """

    temperature: float = 2.0

    targets = ("logits",)
    magnitudes = (1e-30, 1e30)
    invariants = ("translation", "convex", "non_negative")

    def __post_init__(self) -> None:
        self.require("temperature", "a finite number > 0", lambda temperature: 0 < temperature < math.inf)

    def value(self, y_true: tf.Tensor, y_pred: tf.Tensor) -> tf.Tensor:
        teacher, student = y_true / self.temperature, y_pred / self.temperature
        surprise, student_surprise = softmax.surprise(teacher), softmax.surprise(student)  # -log a, -log b
        top = softmax.at_largest(-surprise - student_surprise)
        root = tf.exp(-surprise / 2)  # of a: root (root x) is right where a alone would underflow
        u = -softmax.lead(y_pred - y_true, top) / self.temperature
        mean = tf.reduce_sum(root * (root * u), axis=-1, keepdims=True)
        d = u - mean
        near = d <= 1
        small, large = tf.minimum(d, 1), tf.maximum(d, 1)
        # a e^d, from the student's own logits: log(a) + d would cancel where the teacher excludes what the student does not.
        exponent = -softmax.lead(student, top) - _at(surprise, top) - mean
        power = tf.exp(tf.minimum(exponent, _MOST))
        terms = tf.where(near, root * (root * _expm1_minus(small)), power - root * (root * tf.where(exponent < _MOST, 1 + large, 0)))
        close = tf.reduce_sum(terms, axis=-1)
        apart = tf.reduce_sum(root * (root * student_surprise), axis=-1) - tf.reduce_sum(root * (root * surprise), axis=-1)
        is_close = close <= 1
        divergence = tf.where(is_close, tf.math.log1p(tf.where(is_close, close, tf.zeros_like(close))), apart)
        return self.temperature**2 * features.mean(divergence)

    def gradient(self, y_true: tf.Tensor, y_pred: tf.Tensor) -> tf.Tensor:
        teacher, student = y_true / self.temperature, y_pred / self.temperature
        surprise, student_surprise = softmax.surprise(teacher), softmax.surprise(student)
        top = softmax.at_largest(-surprise - student_surprise)
        a, b = tf.exp(-surprise), tf.exp(-student_surprise)
        u = -softmax.lead(y_pred - y_true, top) / self.temperature
        # a_j e^u_j = a_k e^(p_j - p_k): exact where u_j is large, and a_j may be 0.
        power = _at(a, top) * tf.exp(tf.minimum(-softmax.lead(student, top), _MOST))
        is_small = tf.abs(u) < 1
        change = tf.where(is_small, a * tf.math.expm1(tf.where(is_small, u, tf.zeros_like(u))), power - a)
        w = softmax.sum_without(top, change)
        is_close = tf.abs(w) < 0.5
        log_ratio = u - tf.math.log1p(tf.where(is_close, w, tf.zeros_like(w)))
        is_close &= tf.abs(log_ratio) < 0.5
        difference = tf.where(is_close, a * tf.math.expm1(tf.where(is_close, log_ratio, tf.zeros_like(u))), b - a)
        return softmax.mean_gradient(self.temperature * difference)

    def usual(self, y_true: tf.Tensor, y_pred: tf.Tensor) -> tf.Tensor:
        teacher = tf.nn.softmax(y_true / self.temperature)
        log_ratio = tf.nn.log_softmax(y_true / self.temperature) - tf.nn.log_softmax(y_pred / self.temperature)
        return self.temperature**2 * features.mean(tf.reduce_sum(teacher * log_ratio, axis=-1))

    def reference(self, y_true: list, y_pred: list) -> Any:
        temperature = mpmath.mpf(self.temperature)

        def log_softmax(logits: list) -> list:
            log_sum = mpmath.log(sum(mpmath.exp(x / temperature) for x in logits))
            return [x / temperature - log_sum for x in logits]

        pairs = zip(log_softmax(y_true), log_softmax(y_pred), strict=True)
        return temperature**2 * sum(mpmath.exp(log_a) * (log_a - log_b) for log_a, log_b in pairs)


def _at(x: tf.Tensor, where: tf.Tensor) -> tf.Tensor:
    """The entry of the last axis where `where` is True, kept as an axis."""
    return tf.reduce_sum(tf.where(where, x, tf.zeros_like(x)), axis=-1, keepdims=True)


def _expm1_minus(x: tf.Tensor) -> tf.Tensor:
    """e^x - 1 - x for x <= 1, without cancellation: near 0 by its series."""
    near = tf.abs(x) <= 1
    small = tf.where(near, x, tf.zeros_like(x))
    coefficients = [1 / math.factorial(k) for k in range(19 if x.dtype == tf.float64 else 11, 1, -1)]
    series = tf.math.polyval(tf.unstack(tf.constant(coefficients, x.dtype)), small)
    far = tf.where(near, tf.zeros_like(x), x)
    return tf.where(near, tf.square(small) * series, tf.math.expm1(far) - far)
