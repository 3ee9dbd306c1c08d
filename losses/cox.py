"""Cox's partial likelihood of times to an event, some of them censored."""

import dataclasses
from collections.abc import Callable
from typing import Any

import mpmath
import numpy as np
import tensorflow as tf

from losses.base import Loss

_MOST_DOUBLINGS = 30  # where the batch's size is not known beforehand


@dataclasses.dataclass(frozen=True)
class Cox(Loss):
    """Proportional hazards (ties by Breslow): those who had an event should have had the highest hazard of all still at risk.

    value_i = delta_i (log S_i - eta_i), S_i = sum_{j: t_j >= t_i} e^eta_j, eta the log hazard, delta_i 1 for an event, else 0
    d/deta_k of sum_i dy_i value_i = -dy_k delta_k (1 - pi_kk) + sum_{i != k: delta_i = 1, t_i <= t_k} dy_i pi_ik, pi_ik = e^eta_k / S_i

    In order of falling time, S_i is a running sum, kept as a running maximum m and the sum s of the other terms over e^m:
        log S_i - eta_i = (m - eta_i) + log1p(s), a sum of terms >= 0; 1 - pi_kk = s / (1 + s) where eta_k = m
    The second sum of the gradient runs over falling time too, from the end, always relative to the term at hand; sums over i != k
    leave k out instead of subtracting it. Doubling the span of such sums gives them all in log2(n) vectorized passes, without the
    usual [n, n] mask of who is at risk, whose e^eta overflows from 89 on. Auto through this value keeps every pass, and has the 1 of
    1 - pi as a term of its own: what is below 1e-7 of an event's weight is lost in it.

    The sums run over the batch: the value of a batch is not a mean of values of its parts, and risk sets are those of the batch.

    Domain: finite times and log hazards. Shapes: y [batch, 2] time and event (1, or 0 for censored), p [batch, 1].
    Kinks: none.
    Reference: D. R. Cox (1972), doi:10.1111/j.2517-6161.1972.tb00899.x; ties: N. E. Breslow (1974), doi:10.2307/2529620.
    """

    second_order = "refuse"
    coupled = True
    targets = ("survival",)
    structured = True
    magnitudes = (1e-30, 1e30)
    invariants = ("convex", "non_negative")

    def value(self, y_true: tf.Tensor, y_pred: tf.Tensor, mask: tf.Tensor | None = None) -> tf.Tensor:
        order, _, event, ends = _ordered(y_true, mask)
        return _restored(_value(tf.gather(y_pred[:, 0], order), event, ends)[0], order)

    def value_and_vjp(self, y_true: tf.Tensor, y_pred: tf.Tensor, **mask: tf.Tensor) -> tuple[tf.Tensor, Callable]:
        order, group, event, ends = _ordered(y_true, mask.get("mask"))
        eta = tf.gather(y_pred[:, 0], order)
        value, largest, others = _value(eta, event, ends)

        def vjp(dy: tf.Tensor) -> tf.Tensor:
            share = tf.exp(eta - largest)  # pi_kk (1 + s)
            without_own = tf.where(eta == largest, others, 1 + others - share) / (1 + others)  # 1 - pi_kk
            weight = tf.math.multiply_no_nan(tf.gather(dy, order), event)
            # In order of falling time, i with t_i <= t_k: those after k, and those before it in its group of equal times.
            after = _sum_after(weight / (1 + others), lambda k, i: tf.exp(tf.gather(largest, k) - tf.gather(largest, i)))
            tied = _sum_after(weight[::-1], lambda k, i: tf.cast(tf.gather(group[::-1], k) == tf.gather(group[::-1], i), eta.dtype))
            return _restored(share * (after + tied[::-1] / (1 + others)) - weight * without_own, order)[:, tf.newaxis]

        return _restored(value, order), vjp

    def usual(self, y_true: tf.Tensor, y_pred: tf.Tensor) -> tf.Tensor:
        time, event, eta = y_true[:, 0], y_true[:, 1], y_pred[:, 0]
        at_risk = tf.cast(time >= time[:, tf.newaxis], eta.dtype)
        return event * (tf.math.log(tf.linalg.matvec(at_risk, tf.exp(eta))) - eta)

    def reference(self, y_true: list, y_pred: list) -> list:
        def value(time: Any, event: Any, eta: Any) -> Any:
            return event * (mpmath.log(sum(mpmath.exp(p) for (t, _), (p,) in zip(y_true, y_pred, strict=True) if t >= time)) - eta)

        return [value(time, event, eta) for (time, event), (eta,) in zip(y_true, y_pred, strict=True)]

    def output_shape(self, target_shape: tuple[int, ...], num_classes: int | None) -> tuple[int | None, ...]:
        return (1,)

    def check_shapes(self, y_true: tf.Tensor, y_pred: tf.Tensor) -> None:
        self.require_shape("y_pred", y_pred, batch=None, log_hazard=1)
        self.require_shape("y_true", y_true, batch=None, time_and_event=2)

    def sample(self, rng: np.random.Generator, num_examples: int, scale: float) -> tuple[np.ndarray, np.ndarray]:
        """Times that tie often, two thirds events; log hazards of one size, some equal or nearly so."""
        eta = scale * rng.normal(size=(num_examples, 1))
        eta[::4] = eta[:1] * (1 + rng.choice([0.0, 1e-6, 1e-3], (len(eta[::4]), 1)))
        return np.stack([rng.integers(1, 2 + num_examples, num_examples), rng.random(num_examples) < 2 / 3], axis=1).astype(float), eta

    def edges(self) -> tuple[np.ndarray, np.ndarray]:
        """Equal times, times of 0, log hazards that dominate or vanish."""
        time = [5.0, 5.0, 5.0, 4.0, 3.0, 3.0, 0.0, 0.0]
        return np.stack([time, [1.0, 1.0, 0.0, 1.0, 1.0, 0.0, 1.0, 1.0]], axis=1), np.array([[0, 90, -90, 200, -1e4, 0, 17, 1e4]], float).T


def _ordered(y_true: tf.Tensor, mask: tf.Tensor | None) -> tuple[tf.Tensor, ...]:
    """The order of falling time, and in it: the group of equal times, the event, and the last position of the group."""
    time, event = tf.unstack(y_true, axis=1)
    event = tf.where(tf.math.is_nan(time), time, event)  # a time that is no number has no order: its example is NaN
    if mask is not None:  # at risk before all others only, and with no event
        time = tf.where(mask, time, tf.constant(-np.inf, time.dtype))
        event = tf.where(mask, event, tf.zeros_like(event))
    order = tf.argsort(time, direction="DESCENDING", stable=True)
    time = tf.gather(time, order)
    size = tf.size(time)
    position = tf.range(size)
    group = tf.cumsum(tf.cast(time != tf.gather(time, tf.maximum(position - 1, 0)), tf.int32))
    ends = tf.gather(tf.math.unsorted_segment_max(position, group, size), group)
    return order, group, tf.gather(event, order), ends


def _restored(x: tf.Tensor, order: tf.Tensor) -> tf.Tensor:
    return tf.gather(x, tf.argsort(order))


def _value(eta: tf.Tensor, event: tf.Tensor, ends: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """In order of falling time the value, and of the risk set the largest eta, m, and the sum of the other e^(eta - m)."""

    def add(m: tf.Tensor, s: tf.Tensor, span: int) -> tuple[tf.Tensor, tf.Tensor]:
        there, before = _shifted(eta, -span)
        m_before, s_before = tf.gather(m, before), tf.gather(s, before)
        ahead = m >= m_before
        high, low = tf.where(ahead, m, m_before), tf.where(ahead, m_before, m)
        s_high, s_low = tf.where(ahead, s, s_before), tf.where(ahead, s_before, s)
        return tf.where(there, high, m), tf.where(there, s_high + (1 + s_low) * tf.exp(low - high), s)

    m, s = _doubling(add, eta, tf.zeros_like(eta))
    m, s = tf.gather(m, ends), tf.gather(s, ends)
    return event * ((m - eta) + tf.math.log1p(s)), m, s


def _sum_after(x: tf.Tensor, decay: Callable[[tf.Tensor, tf.Tensor], tf.Tensor]) -> tf.Tensor:
    """sum_{i > k} x_i decay(k, i) for every k, where decay(k, j) decay(j, i) = decay(k, i)."""

    def shifted(total: tf.Tensor, span: int) -> tf.Tensor:
        there, later = _shifted(x, span)
        return tf.where(there, decay(tf.range(tf.size(x)), later) * tf.gather(total, later), tf.zeros_like(x))

    (total,) = _doubling(lambda total, span: (total + shifted(total, span),), x)
    return shifted(total, 1)


def _doubling(add: Callable[..., tuple[tf.Tensor, ...]], *state: tf.Tensor) -> tuple[tf.Tensor, ...]:
    """Runs `add(*state, span)` for spans 1, 2, 4, ...: what stands for one position comes to stand for all before or after it."""
    size = state[0].shape[0]
    # Unrolled: XLA can't compile the gradient of a loop over a batch of unknown size.
    for doubling in range(_MOST_DOUBLINGS if size is None else max(size - 1, 0).bit_length()):
        state = add(*state, 2**doubling)
    return state


def _shifted(like: tf.Tensor, span: int) -> tuple[tf.Tensor, tf.Tensor]:
    """For every position whether there is one `span` further on, and its index (clipped to the range)."""
    position = tf.range(tf.size(like)) + span
    last = tf.size(like) - 1
    return (position >= 0) & (position <= last), tf.clip_by_value(position, 0, last)
