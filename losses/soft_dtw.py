"""Soft dynamic time warping."""

import dataclasses
from collections.abc import Callable
from typing import Any

import mpmath
import numpy as np
import tensorflow as tf

from losses.base import Loss


@dataclasses.dataclass(frozen=True)
class SoftDTW(Loss):
    """The cost of the best alignment of two series, softened: near gamma = 0 dynamic time warping, and smooth.

    c_ij = |p_i - y_j|^2, softmin(a, b, c) = -gamma log(e^(-a/gamma) + e^(-b/gamma) + e^(-c/gamma))
    R_ij = c_ij + softmin(R_{i,j-1}, R_{i-1,j-1}, R_{i-1,j}), value = R at the end of both
    E_ij = P_left_{i,j+1} E_{i,j+1} + P_both_{i+1,j+1} E_{i+1,j+1} + P_up_{i+1,j} E_{i+1,j}, E = 1 at the end of both
    d/dp_i = 2 sum_j E_ij (p_i - y_j)

    P are the weights of each softmin's three arguments, kept from the forward pass: they are numbers of [0, 1] that lose nothing.
    The usual backward pass takes them from exp((R_next - R - c) / gamma) again, whose difference of large numbers costs three digits.
    Both passes sweep over anti-diagonals, whose cells don't depend on each other. Costs are in units of the largest difference
    squared, so that they don't overflow. Auto is as accurate and keeps every intermediate of every diagonal.

    Domain: finite numbers. The value may be negative.
    Shapes: p [batch, time, d], y [batch, other time, d].

    Args:
        gamma: softness, in units of a squared difference; > 0.

    Kinks: none.
    Reference: M. Cuturi, M. Blondel (2017), Soft-DTW: a differentiable loss function for time-series, doi:10.48550/arXiv.1703.01541.
    """

    gamma: float = 1.0

    second_order = "refuse"
    targets = ("series",)
    magnitudes = (1e-30, 1e30)
    structured = True
    invariants = ("joint_translation",)

    def __post_init__(self) -> None:
        self.require("gamma", "a number > 0", lambda gamma: 0 < gamma < float("inf"))

    def output_shape(self, target_shape: tuple[int, ...], num_classes: int | None) -> tuple[int | None, ...]:
        return target_shape

    def check_shapes(self, y_true: tf.Tensor, y_pred: tf.Tensor) -> None:
        self.require_shape("y_pred", y_pred, batch=None, time=None, d=None)
        self.require_shape("y_true", y_true, batch=y_pred.shape[0], time=None, d=y_pred.shape[2])

    def value(self, y_true: tf.Tensor, y_pred: tf.Tensor) -> tf.Tensor:
        return self._forward(y_true, y_pred)[0]

    def value_and_vjp(self, y_true: tf.Tensor, y_pred: tf.Tensor, **mask: tf.Tensor) -> tuple[tf.Tensor, Callable[[tf.Tensor], tf.Tensor]]:
        value, weights = self._forward(y_true, y_pred)

        def vjp(dy: tf.Tensor) -> tf.Tensor:
            e = _unskewed(_visits(weights), tf.shape(y_true)[1])  # [batch, time, other time]
            slopes = y_pred * tf.reduce_sum(e, axis=2, keepdims=True) - tf.matmul(e, y_true)
            return 2 * slopes * dy[:, tf.newaxis, tf.newaxis]

        return value, vjp

    def reference(self, y_true: list, y_pred: list) -> Any:
        gamma, row = mpmath.mpf(self.gamma), [mpmath.mpf(0)] + [mpmath.inf] * len(y_true)
        for p in y_pred:
            before, row = row, [mpmath.inf]
            for j, y in enumerate(y_true):
                cost = sum((a - b) ** 2 for a, b in zip(p, y, strict=True))
                arguments = [r for r in (row[j], before[j], before[j + 1]) if r != mpmath.inf]
                least = min(arguments)
                row.append(cost + least - gamma * mpmath.log(sum(mpmath.exp((least - r) / gamma) for r in arguments)))
        return row[-1]

    def sample(self, rng: np.random.Generator, num_examples: int, scale: float) -> tuple[np.ndarray, np.ndarray]:
        """Series of 3 and 4 steps in two dimensions; every third is nearly its target, delayed."""
        y = scale * rng.normal(size=(num_examples, 4, 2)) * 10 ** rng.uniform(-0.5, 0.5, (num_examples, 1, 1))
        p = scale * rng.normal(size=(num_examples, 3, 2))
        p[::3] = y[::3, :3] * (1 + 10 ** rng.uniform(-6, -1, p[::3].shape) * rng.choice([-1, 1], p[::3].shape))
        return y, p

    def edges(self) -> tuple[np.ndarray, np.ndarray]:
        """Equal series, constant ones, and a step that is far from all of the other's."""
        y = np.array([[[0.0, 1.0]] * 4, [[0.0, 0.0]] * 4, [[1.0, 2.0], [3.0, 4.0], [5.0, 6.0], [7.0, 8.0]]])
        p = y[:, :3].copy()
        p[2, 1] = 1e4
        return y, p

    def _forward(self, y_true: tf.Tensor, y_pred: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """The value, and the weights of left, both and up in every cell, [diagonals, 3, batch, time]."""
        least, most = ([pick(x, axis=1) for x in (y_pred, y_true)] for pick in (tf.reduce_min, tf.reduce_max))
        largest = tf.reduce_max(tf.maximum(most[0] - least[1], most[1] - least[0]), axis=-1)
        unit = tf.stop_gradient(tf.maximum(largest, self.gamma**0.5))[:, tf.newaxis]
        p, y = (tf.transpose(x, [2, 0, 1]) for x in (y_pred, y_true))  # [d, batch, time]: sums over the last axis are slow under XLA
        differences = (p[..., tf.newaxis] - y[:, :, tf.newaxis]) * (1 / unit[:, :, tf.newaxis])
        softness = self.gamma / unit / unit  # gamma in the unit of costs, a square; 0 beside costs that are larger by far
        hardness = tf.minimum(unit / self.gamma * unit, unit.dtype.max)
        costs = _skewed(tf.reduce_sum(tf.square(differences), axis=0))
        num_diagonals, never = tf.shape(costs)[0], _never(unit.dtype)
        outside = tf.fill([tf.shape(y_pred)[0], 1], never)

        def step(k: tf.Tensor, before: tf.Tensor, last: tf.Tensor, weights: tf.TensorArray) -> tuple:
            arguments = last[:, 1:], before[:, :-1], last[:, :-1]  # left, both, up
            least = tf.minimum(tf.minimum(*arguments[:2]), arguments[2])
            powers = [tf.exp((least - argument) * hardness) for argument in arguments]  # apart: XLA is slow to sum over a short axis
            total = tf.add_n(powers)
            r = tf.minimum(costs[k] + (least - softness * tf.math.log(total)), never)
            return k + 1, last, tf.concat([outside, r], axis=1), weights.write(k, tf.stack([power / total for power in powers]))

        # Diagonals -2, with the 0 before the first cell, and -1, as [batch, 1 + time].
        none = tf.fill([tf.shape(y_pred)[0], tf.shape(y_pred)[1] + 1], never)
        start = 0, tf.concat([tf.zeros_like(outside), none[:, 1:]], axis=1), none, tf.TensorArray(unit.dtype, num_diagonals)
        _, _, last, weights = tf.while_loop(
            lambda k, *_: k < num_diagonals, step, start, parallel_iterations=1, maximum_iterations=num_diagonals
        )
        return last[:, -1] * unit[:, 0] * unit[:, 0], weights.stack()


def _never(dtype: tf.DType) -> tf.Tensor:
    """The cost of cells outside: finite, as inf less inf is NaN, and large enough that their weights are 0."""
    return tf.constant(dtype.max / 4, dtype)


def _skewed(cells: tf.Tensor) -> tf.Tensor:
    """[batch, time, other] -> [time + other - 1 diagonals, batch, time]: cell (i, j) goes to diagonal i + j."""
    batch, time, other = tf.unstack(tf.shape(cells))
    rows = tf.pad(cells, [[0, 0], [0, 0], [0, time]], constant_values=_never(cells.dtype))
    rows = tf.reshape(rows, [batch, time * (time + other)])[:, : time * (time + other - 1)]  # every row starts one to the right
    return tf.transpose(tf.reshape(rows, [batch, time, time + other - 1]), [2, 0, 1])


def _unskewed(diagonals: tf.Tensor, other: tf.Tensor) -> tf.Tensor:
    """The way back from `_skewed`."""
    num_diagonals, batch, time = tf.unstack(tf.shape(diagonals))
    rows = tf.reshape(tf.transpose(diagonals, [1, 2, 0]), [batch, time * num_diagonals])
    return tf.reshape(tf.pad(rows, [[0, 0], [0, time]]), [batch, time, num_diagonals + 1])[:, :, :other]


def _visits(weights: tf.Tensor) -> tf.Tensor:
    """How often a path drawn by the weights passes each cell, from the end to the start: [diagonals, batch, time]."""
    num_diagonals, _, batch, time = tf.unstack(tf.shape(weights))
    weights = tf.pad(weights, [[0, 1], [0, 0], [0, 0], [0, 0]])

    def step(k: tf.Tensor, following: tf.Tensor, after: tf.Tensor, visits: tf.TensorArray) -> tuple:
        from_above = weights[k + 1, 2] * following + weights[k + 2, 1] * after
        e = weights[k + 1, 0] * following + tf.pad(from_above[:, 1:], [[0, 0], [0, 1]])
        return k - 1, e, following, visits.write(k, e)

    none = tf.zeros([batch, time], weights.dtype)
    end = none + tf.one_hot(time - 1, time, dtype=weights.dtype)
    visits = tf.TensorArray(weights.dtype, num_diagonals).write(num_diagonals - 1, end)
    return tf.while_loop(lambda k, *_: k >= 0, step, (num_diagonals - 2, end, none, visits), parallel_iterations=1)[-1].stack()
