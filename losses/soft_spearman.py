"""Spearman's rank correlation, with soft ranks that have a gradient."""

import dataclasses
import itertools
import math
from typing import Any

import mpmath
import numpy as np
import tensorflow as tf

from losses import ranks
from losses.base import Loss


@dataclasses.dataclass(frozen=True)
class SoftSpearman(Loss):
    """Distance of the soft ranks of a list's scores from the ranks of its targets: 1 minus Spearman's correlation for small epsilon.

    value = 6 ||R - r||^2 / (n (n^2 - 1)), r = rank(y), equal targets sharing their mean rank; 0 for a list of one item
    R     = the point of the permutahedron, the convex hull of all orders of (1, ..., n), that is nearest to p / epsilon
    d/dp  = (u - mean of u over the item's block) / epsilon, u = 12 (R - r) / (n (n^2 - 1))

    Items fall into blocks by isotonic regression of sort(p) - epsilon (1, ..., n): neighbors with falling means are pooled, all
    such pairs at once, until there are none. An item of rank k alone in its block has R = k and no gradient; in a block the scores
    count by their differences, and its mean rank is a multiple of 1/2 that drops out of the gradient:
        R_i - mean rank = mean_j (p_i - p_j) / epsilon, j over the block
        u_i - mean u    = 12 / (n (n^2 - 1)) (mean_j (p_i - p_j) / epsilon - mean_j (r_i - r_j))
    Nothing cancels but what p and r themselves make cancel. Memory is n^2 for each list. There is no auto: blocks are discrete.

    Domain: finite p and y. Shapes: p and y [batch, n].

    Args:
        epsilon: in units of the scores; > 0. Scores further apart than that get whole ranks and no gradient; as it grows, the
            value's optimum in p drifts from ordering to matching p / epsilon to the ranks.

    Kinks: where blocks just touch the gradient is that of either side.
    Reference: M. Blondel, O. Teboul, Q. Berthet, J. Djolonga (2020), "Fast Differentiable Sorting and Ranking", arXiv:2002.08871.
    """

    epsilon: float = 1.0

    differentiable = False
    second_order = "refuse"
    targets = ("relevance",)
    items = True
    structured = True
    magnitudes = (1e-30, 1e30)
    invariants = ("translation", "non_negative")
    metric_names = ("spearman",)

    def __post_init__(self) -> None:
        self.require("epsilon", "a finite number > 0", lambda epsilon: 0 < epsilon < math.inf)

    def value(self, y_true: tf.Tensor, y_pred: tf.Tensor) -> tf.Tensor:
        order, _ = ranks.ascending(y_pred)
        s, r = (tf.gather(x, order, batch_dims=1) for x in (y_pred, ranks.mean_ranks(y_true)))
        same = self._same_block(s)
        position = tf.range(1, tf.shape(s)[1] + 1)
        mean_rank = _mean(same, tf.cast(position, s.dtype)[tf.newaxis, tf.newaxis, :])
        soft = mean_rank + _mean(same, _differences(s)) / self.epsilon
        return _scale(y_pred) * tf.reduce_sum(tf.square(soft - r), axis=-1)

    def gradient(self, y_true: tf.Tensor, y_pred: tf.Tensor) -> tf.Tensor:
        order, back = ranks.ascending(y_pred)
        s, r = (tf.gather(x, order, batch_dims=1) for x in (y_pred, ranks.mean_ranks(y_true)))
        same = self._same_block(s)
        u = _mean(same, _differences(s)) / self.epsilon - _mean(same, _differences(r))
        return tf.gather(2 * _scale(y_pred) / self.epsilon * u, back, batch_dims=1)

    def reference(self, y_true: list, y_pred: list) -> Any:
        n = len(y_pred)
        if n == 1:
            return mpmath.mpf(0)
        rank = [sum(other < y for other in y_true) + mpmath.mpf(sum(other == y for other in y_true) + 1) / 2 for y in y_true]
        order = sorted(range(n), key=lambda item: y_pred[item])
        excess = [y_pred[item] / mpmath.mpf(self.epsilon) - k for k, item in enumerate(order, 1)]
        sums = list(itertools.accumulate(excess, initial=mpmath.mpf(0)))

        def mean(j: int, k: int) -> Any:
            return (sums[k] - sums[j]) / (k - j)

        # The min-max theorem of isotonic regression, over all intervals that hold i.
        fit = [max(min(mean(j, k) for k in range(i + 1, n + 1)) for j in range(i + 1)) for i in range(n)]
        soft = [y_pred[item] / mpmath.mpf(self.epsilon) - f for item, f in zip(order, fit, strict=True)]
        return 6 * sum((s - rank[item]) ** 2 for s, item in zip(soft, order, strict=True)) / (n * (n * n - 1))

    def metrics(self, y_true: tf.Tensor, y_pred: tf.Tensor) -> tuple[tf.Tensor, ...]:
        """spearman: the rank correlation itself, of mean ranks; 0 where all scores, or all targets, are equal."""
        r, q = (ranks.mean_ranks(x) - (tf.cast(tf.shape(x)[1], y_pred.dtype) + 1) / 2 for x in (y_true, y_pred))
        length = tf.sqrt(tf.reduce_sum(tf.square(r), axis=-1) * tf.reduce_sum(tf.square(q), axis=-1))
        return (tf.math.divide_no_nan(tf.reduce_sum(r * q, axis=-1), length),)

    def output_shape(self, target_shape: tuple[int, ...], num_classes: int | None) -> tuple[int | None, ...]:
        return ()

    def check_shapes(self, y_true: tf.Tensor, y_pred: tf.Tensor) -> None:
        self.require_shape("y_pred", y_pred, batch=None, items=None)
        self.require_shape("y_true", y_true, batch=None, items=y_pred.shape[1])

    def sample(self, rng: np.random.Generator, num_examples: int, scale: float) -> tuple[np.ndarray, np.ndarray]:
        """Lists of 5 with ties in scores and targets; scores apart by about epsilon, and by the scale."""
        p = scale * rng.normal(size=(num_examples, 5))
        near = min(scale, self.epsilon) * rng.normal(size=(num_examples, 5)) * rng.choice([0.0, 1e-3, 0.3, 1.0], (num_examples, 1))
        p = np.where(rng.random((num_examples, 1)) < 0.5, p, p[:, :1] + near)
        p[::5, 1] = p[::5, 0]
        return rng.choice([0.0, 1.0, 2.0, 3.5, -1.25], (num_examples, 5)), p

    def edges(self) -> tuple[np.ndarray, np.ndarray]:
        """All equal, of any size, far apart, and in blocks that just touch."""
        steps = np.arange(4.0)
        p = [0 * steps, 1e30 + 0 * steps, 1e30 * steps, -steps, *(self.epsilon * steps * factor for factor in (1 - 1e-6, 1.0, 1 + 1e-6))]
        return np.tile([2.0, 0.0, 1.0, 1.0], (len(p), 1)), np.array(p)

    def _same_block(self, s: tf.Tensor) -> tf.Tensor:
        """Of ascending scores, [batch, n]: which are in one block, bool [batch, n, n]."""
        position = tf.cast(tf.range(1, tf.shape(s)[1] + 1), s.dtype)
        excess = (s - self.epsilon * position)[:, tf.newaxis, :]

        def same_block(is_start: tf.Tensor) -> tf.Tensor:
            block = tf.cumsum(tf.cast(is_start, tf.int32), axis=1)
            return block[:, :, tf.newaxis] == block[:, tf.newaxis, :]

        def pool(is_start: tf.Tensor, _: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            means = _mean(same_block(is_start), excess)
            rising = tf.concat([tf.ones_like(means[:, :1], tf.bool), means[:, 1:] > means[:, :-1]], axis=1)
            return is_start & rising, tf.reduce_any(is_start & ~rising)

        is_start, _ = tf.while_loop(lambda _, changed: changed, pool, (tf.ones_like(s, tf.bool), tf.constant(True)))
        return same_block(is_start)


def _differences(x: tf.Tensor) -> tf.Tensor:
    return x[:, :, tf.newaxis] - x[:, tf.newaxis, :]


def _mean(same: tf.Tensor, x: tf.Tensor) -> tf.Tensor:
    """The mean over an item's block, [batch, n], of x [batch, n, n] or broadcast to it."""
    number = tf.reduce_sum(tf.cast(same, x.dtype), axis=-1)
    return tf.reduce_sum(tf.where(same, x, tf.zeros_like(x)), axis=-1) / number


def _scale(y_pred: tf.Tensor) -> tf.Tensor:
    """6 / (n (n^2 - 1)); of a list of one item any number, for its ranks agree."""
    n = tf.cast(tf.shape(y_pred)[1], y_pred.dtype)
    return 6 / tf.maximum(n * (tf.square(n) - 1), 1)
