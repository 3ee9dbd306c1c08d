"""Normalized discounted cumulative gain of ranked lists, which has no gradient, trained by LambdaRank's."""

import dataclasses
import math
from typing import Any

import mpmath
import numpy as np
import tensorflow as tf

from losses import ranks
from losses.base import Loss


@dataclasses.dataclass(frozen=True)
class LambdaRank(Loss):
    """1 - NDCG@top_k of a list's scores; what counts is the order of the relevant items at the top.

    value = 1 - sum_i gain_i discount(rank_i) / ideal, gain = 2^y - 1, discount(rank) = 1 / log2(1 + rank) up to top_k, then 0
        rank    by falling score, equal scores as they stand; ideal the sum's largest value, that of the order of falling y
    gradient: every pair with y_i > y_j gives g_i -= lambda, g_j += lambda, with
        lambda = sigma |delta_ij| logistic(-sigma (p_i - p_j)), delta_ij = (gain_i - gain_j) (discount_i - discount_j) / ideal
                 by how much the value changes when i and j change places

    The value is constant between ties and has no derivative to learn from; the gradient is deliberately another one, that of
        sum over pairs with y_i > y_j of |delta_ij| log(1 + e^(-sigma (p_i - p_j))), with delta_ij held constant
    on all inputs. So there is no auto.

    Small values and far ranks keep their digits:
        ideal - sum = sum over ranks of (discount_r - discount_(r+1)) times the gain that the first r places of the ideal have more
        discount_r - discount_q = log(2) log1p((q - r) / (1 + r)) / (log(1 + r) log(1 + q))
        gain_i - gain_j = 2^y_i (1 - 2^(y_j - y_i)), all gains in units of 2^(largest y), which overflows from 128 on

    Domain: finite p, y >= 0. A list in which all y are 0 has value and gradient 0. Shapes: p and y [batch, n]; memory n^2 a list.

    Args:
        sigma: steepness of the logistic function, over units of the scores; > 0.
        top_k: the ranks that count, a whole number >= 1.

    Kinks: the gradient jumps where scores tie.
    Reference: C. J. C. Burges (2010), "From RankNet to LambdaRank to LambdaMART: An Overview", MSR-TR-2010-82.
    """

    sigma: float = 1.0
    top_k: int = 10

    contract = "surrogate"
    differentiable = False
    second_order = "refuse"
    targets = ("relevance",)
    items = True
    structured = True
    magnitudes = (1e-30, 1e30)
    invariants = ("translation", "non_negative")
    metric_names = ("ndcg",)

    def __post_init__(self) -> None:
        self.require("sigma", "a finite number > 0", lambda sigma: 0 < sigma < math.inf)
        self.require("top_k", "a whole number >= 1", lambda top_k: isinstance(top_k, int) and top_k >= 1)

    def value(self, y_true: tf.Tensor, y_pred: tf.Tensor) -> tf.Tensor:
        gain, rank = _gains(y_true), tf.range(1, tf.shape(y_pred)[1] + 1)
        best_first = tf.sort(gain, axis=-1, direction="DESCENDING")
        ahead = tf.cumsum(best_first - tf.gather(gain, ranks.ascending(-y_pred)[0], batch_dims=1), axis=-1)
        step = self._discount_gap(rank, tf.cast(rank + 1, y_pred.dtype), y_pred.dtype)
        return tf.math.divide_no_nan(tf.reduce_sum(step * tf.nn.relu(ahead), axis=-1), self._ideal(gain))

    def gradient(self, y_true: tf.Tensor, y_pred: tf.Tensor) -> tf.Tensor:
        behind = -self.sigma * (y_pred[:, :, tf.newaxis] - y_pred[:, tf.newaxis, :])
        slope = self.sigma * self._deltas(y_true, y_pred) * tf.sigmoid(behind)  # [batch, i, j]
        return tf.reduce_sum(slope, axis=1) - tf.reduce_sum(slope, axis=2)

    def surrogate(self, y_true: tf.Tensor, y_pred: tf.Tensor, at: tf.Tensor) -> tf.Tensor:
        behind = -self.sigma * (y_pred[:, :, tf.newaxis] - y_pred[:, tf.newaxis, :])
        return tf.reduce_sum(self._deltas(y_true, at) * tf.nn.softplus(behind), axis=[1, 2])

    def reference(self, y_true: list, y_pred: list) -> Any:
        def gain(order: list) -> Any:
            return sum((2**y - 1) / mpmath.log(1 + rank, 2) for rank, y in enumerate(order[: self.top_k], 1))

        ideal = gain(sorted(y_true, reverse=True))
        order = sorted(range(len(y_pred)), key=lambda item: -y_pred[item])
        return 1 - gain([y_true[item] for item in order]) / ideal if ideal else mpmath.mpf(0)

    def metrics(self, y_true: tf.Tensor, y_pred: tf.Tensor) -> tuple[tf.Tensor, ...]:
        """ndcg: 1 - value."""
        return (1 - self.value(y_true, y_pred),)

    def output_shape(self, target_shape: tuple[int, ...], num_classes: int | None) -> tuple[int | None, ...]:
        return ()

    def check_shapes(self, y_true: tf.Tensor, y_pred: tf.Tensor) -> None:
        self.require_shape("y_pred", y_pred, batch=None, items=None)
        self.require_shape("y_true", y_true, batch=None, items=y_pred.shape[1])

    def sample(self, rng: np.random.Generator, num_examples: int, scale: float) -> tuple[np.ndarray, np.ndarray]:
        """Lists of 6 with grades from 0 to 4, scores tied now and then, and every eighth list without a relevant item."""
        p = scale * rng.normal(size=(num_examples, 6))
        p[::5, 1] = p[::5, 0]
        p[1::5, 1:] = p[1::5, :1] * (1 + rng.choice([1e-6, 1e-3], (len(p[1::5]), 5)) * rng.normal(size=(len(p[1::5]), 5)))
        return rng.integers(0, 5, (num_examples, 6)) * (np.arange(num_examples) % 8 > 0)[:, None].astype(float), p

    def edges(self) -> tuple[np.ndarray, np.ndarray]:
        """All scores equal, all grades equal or 0, far apart, huge and tiny grades."""
        grades = [[0.0, 1.0, 2.0], [1.0, 1.0, 1.0], [0.0, 0.0, 0.0], [0.0, 1e-6, 0.0], [120.0, 121.0, 300.0]]
        scores = [[0.0, 0.0, 0.0], [3.0, 2.0, 1.0], [1e30, 0.0, -1e30], [1.0, 2.0, 90.0]]
        return np.repeat(grades, len(scores), axis=0), np.tile(scores, (len(grades), 1))

    def _deltas(self, y_true: tf.Tensor, y_pred: tf.Tensor) -> tf.Tensor:
        """|delta_ij| where y_i > y_j, else 0: [batch, i, j]."""
        y, other = y_true[:, :, tf.newaxis], y_true[:, tf.newaxis, :]
        log2 = tf.constant(math.log(2), y_true.dtype)
        largest = tf.reduce_max(y_true, axis=-1)[:, tf.newaxis, tf.newaxis]
        gain_gap = -tf.exp((y - largest) * log2) * tf.math.expm1((other - y) * log2)
        rank = ranks.ascending(-y_pred)[1] + 1
        first, second = (
            tf.cast(choose(rank[:, :, tf.newaxis], rank[:, tf.newaxis, :]), y_true.dtype) for choose in (tf.minimum, tf.maximum)
        )
        gaps = tf.where(y > other, gain_gap * self._discount_gap(first, second, y_true.dtype), tf.zeros_like(gain_gap))
        return tf.math.divide_no_nan(gaps, self._ideal(_gains(y_true))[:, tf.newaxis, tf.newaxis])

    def _discount_gap(self, first: tf.Tensor, second: tf.Tensor, dtype: tf.DType) -> tf.Tensor:
        """discount(first) - discount(second), for ranks first <= second."""
        first, second = tf.cast(first, dtype), tf.cast(second, dtype)
        gap = tf.math.log1p((second - first) / (1 + first)) / (tf.math.log1p(first) * tf.math.log1p(second))
        gap = tf.where(second > self.top_k, 1 / tf.math.log1p(first), gap)
        return tf.where(first > self.top_k, tf.zeros_like(gap), tf.constant(math.log(2), dtype) * gap)

    def _ideal(self, gain: tf.Tensor) -> tf.Tensor:
        best = tf.math.top_k(gain, tf.minimum(self.top_k, tf.shape(gain)[1])).values
        rank = tf.cast(tf.range(1, tf.shape(best)[1] + 1), gain.dtype)
        return tf.reduce_sum(best * (tf.constant(math.log(2), gain.dtype) / tf.math.log1p(rank)), axis=-1)


def _gains(y_true: tf.Tensor) -> tf.Tensor:
    """(2^y - 1) / 2^(largest y of the list), [batch, n]."""
    log2 = tf.constant(math.log(2), y_true.dtype)
    return -tf.exp((y_true - tf.reduce_max(y_true, axis=-1, keepdims=True)) * log2) * tf.math.expm1(-y_true * log2)
