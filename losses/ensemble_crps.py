"""Continuous ranked probability score of an ensemble."""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from losses.base import Loss, LossError


@dataclasses.dataclass(frozen=True)
class EnsembleCRPS(Loss):
    """Score of m members x that together are the forecast of one number y: near y, and as spread as the truth is.

    value  = mean_i |x_i - y| - sum_ij |x_i - x_j| / (2 m^2); fair: m (m - 1) instead of m^2, which does not reward a small ensemble
             for too little spread
    d/dx_i = sign(x_i - y) / m - (2 r_i - m - 1) / m^2; fair: m (m - 1) instead of m^2; r the ranks from 1, of equal members their average

    By sorting, m log m instead of the usual m^2 pairs in time and memory, forward and backward. Stable because the value is the sum
    over the gaps between sorted members of the part below y times (k / m)^2 and the part above y times (1 - k / m)^2, k members below
    the gap (fair: k (k - 1) / (m (m - 1)), likewise with m - k), and the distance of y outside: no difference of large numbers; and
    because the gradient's numerator is a whole number. Auto gives the same, except among equal members, which it tells apart.

    Domain: any finite y, x; fair: at least 2 members.
    Shapes: y [batch] or [batch, 1], x [batch, m].

    Args:
        fair: whether the score estimates that of the distribution that the members are drawn from.

    Kinks: where members are equal, or equal to y, the mean of the slopes on both sides.
    Reference: T. Gneiting, A. E. Raftery (2007), doi:10.1198/016214506000001437; fair: C. A. T. Ferro (2014), doi:10.1002/qj.2270.
    """

    fair: bool = False

    contract = "sub"
    second_order = "refuse"
    magnitudes = (1e-30, 1e30)
    invariants = ("joint_translation", "homogeneous_1", "non_negative")

    def __post_init__(self) -> None:
        self.require("fair", "true or false", lambda fair: isinstance(fair, bool))

    def output_shape(self, target_shape: tuple[int, ...], num_classes: int | None) -> tuple[int | None, ...]:
        return (None,)

    def check_shapes(self, y_true: tf.Tensor, y_pred: tf.Tensor) -> None:
        self.require_shape("y_pred", y_pred, batch=None, members=None)
        if y_true.shape.rank == 1:
            self.require_shape("y_true", y_true, batch=None)
        else:
            self.require_shape("y_true", y_true, batch=None, dim=1)
        if self.fair and y_pred.shape[-1] == 1:
            raise LossError(f"loss {self.name}: fair=true needs at least 2 members; found y_pred of shape {tuple(y_pred.shape)}")

    def value(self, y_true: tf.Tensor, y_pred: tf.Tensor) -> tf.Tensor:
        return self._score(tf.reshape(y_true, [-1, 1]), tf.sort(y_pred, axis=-1))

    def value_and_vjp(self, y_true: tf.Tensor, y_pred: tf.Tensor, **mask: tf.Tensor) -> tuple[tf.Tensor, Callable[[tf.Tensor], tf.Tensor]]:
        y = tf.reshape(y_true, [-1, 1])
        num = tf.shape(y_pred)[-1]
        descending, order = tf.math.top_k(-y_pred, num)
        x = -descending

        def vjp(dy: tf.Tensor) -> tf.Tensor:
            m = tf.cast(num, x.dtype)
            rest = m - 1 if self.fair else m
            whole = rest * tf.sign(x - y) - (_twice_ranks(x) - m - 1)
            slopes = dy[:, tf.newaxis] * (whole / (m * rest))
            rows = tf.range(tf.shape(x)[0])[:, tf.newaxis] + tf.zeros_like(order)
            return tf.scatter_nd(tf.stack([rows, order], axis=-1), slopes, tf.shape(y_pred))

        return self._score(y, x), vjp

    def usual(self, y_true: tf.Tensor, y_pred: tf.Tensor) -> tf.Tensor:
        m = tf.cast(tf.shape(y_pred)[-1], y_pred.dtype)
        pairs = tf.reduce_sum(tf.abs(y_pred[:, :, tf.newaxis] - y_pred[:, tf.newaxis, :]), axis=[1, 2])
        error = tf.reduce_mean(tf.abs(y_pred - tf.reshape(y_true, [-1, 1])), axis=-1)
        return error - pairs / (2 * m * (m - 1 if self.fair else m))

    def point(self, y_pred: tf.Tensor) -> tf.Tensor:
        """The members' mean, [batch, 1]."""
        return tf.reduce_mean(y_pred, axis=-1, keepdims=True)

    def reference(self, y_true: Any, y_pred: list) -> Any:
        y, m = y_true[0] if isinstance(y_true, list) else y_true, len(y_pred)
        pairs = sum(abs(a - b) for a in y_pred for b in y_pred)
        return sum(abs(x - y) for x in y_pred) / m - pairs / (2 * m * (m - 1 if self.fair else m))

    def sample(self, rng: np.random.Generator, num: int, scale: float) -> tuple[np.ndarray, np.ndarray]:
        """Ensembles of 5 around and far from y, of even and mixed sizes, with equal members and members equal to y."""
        x = scale * rng.normal(size=(num, 5)) * 10.0 ** rng.choice([0, 0, -3], (num, 1)) + scale * rng.choice([0.0, 3.0], (num, 1))
        x[::4] *= 10 ** rng.uniform(-6, 0, x[::4].shape)
        x[1::6, 1] = x[1::6, 0]
        y = np.where(rng.random(num) < 0.5, x.mean(axis=1), scale * rng.normal(size=num))
        y[2::6] = x[2::6, 2]
        return y[:, np.newaxis], x

    def edges(self) -> tuple[np.ndarray, np.ndarray]:
        """All members equal, equal to y, zeros of both signs, y at either end."""
        x = [
            [0.0] * 5,
            [-0.0, 0.0, 0.0, -0.0, 1.0],
            [1.0] * 5,
            [1.0, 2.0, 3.0, 4.0, 5.0],
            [5.0, 4.0, 3.0, 2.0, 1.0],
            [1e6, 1e6, 1e6, 1e6, -1e6],
        ]
        return np.array([[0.0], [0.0], [2.0], [1.0], [5.0], [1e6]]), np.array(x)

    def _score(self, y: tf.Tensor, x: tf.Tensor) -> tf.Tensor:
        m = tf.cast(tf.shape(x)[-1], x.dtype)
        below = tf.range(1, m)  # members below each gap
        above = m - below
        # sum_ij |x_i - x_j| / 2 is the sum over the gaps of k (m - k): with k above y and m - k below, the squares remain.
        weights = [k * (k - 1) / (m * (m - 1)) if self.fair else tf.square(k / m) for k in (below, above)]
        middle = tf.minimum(tf.maximum(y, x[:, :-1]), x[:, 1:])
        inside = tf.reduce_sum(weights[0] * (middle - x[:, :-1]) + weights[1] * (x[:, 1:] - middle), axis=-1)
        return inside + tf.reduce_sum(tf.nn.relu(x[:, :1] - y) + tf.nn.relu(y - x[:, -1:]), axis=-1)


def _twice_ranks(x: tf.Tensor) -> tf.Tensor:
    """Twice the rank of every member of sorted ensembles, from 1, of equal ones their average: the first's plus the last's."""
    batch, m = tf.unstack(tf.shape(x))
    differs = tf.pad(tf.cast(x[:, 1:] != x[:, :-1], tf.int32), [[0, 0], [1, 0]])
    group = tf.cumsum(differs, axis=-1) + m * tf.range(batch)[:, tf.newaxis]
    rank = tf.zeros_like(group) + tf.range(1, m + 1)
    first = tf.math.unsorted_segment_min(rank, group, batch * m)
    last = tf.math.unsorted_segment_max(rank, group, batch * m)
    return tf.cast(tf.gather(first, group) + tf.gather(last, group), x.dtype)
