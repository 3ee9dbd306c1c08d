"""Entmax loss with exponent 1.5: half way from softmax to sparsemax."""

import dataclasses
from collections.abc import Callable
from typing import Any

import mpmath
import numpy as np
import tensorflow as tf

from losses import softmax, sparse
from losses.base import Loss


@dataclasses.dataclass(frozen=True)
class Entmax15(Loss):
    """Fenchel-Young loss of 1.5-entmax: probabilities that may be exactly 0, but fade out smoothly; z holds the logits.

    value  = z.q - (4/3) (sum_j q_j^1.5 - 1) - z_y, q = entmax(z): q_j = max(0, z_j / 2 - tau)^2, tau such that they sum to 1
    d/dz_j = q_j - 1[j = y]

    tau comes from Newton's steps on sqrt(sum_j max(0, z_j / 2 - tau)^2) = 1, upwards from half the largest logit - 1, until another
    one changes nothing. For auto it comes from sorting and two steps on the squares' sum, which the tape can follow.
    Stable because, with roots r_j = sqrt(q_j) and o the sum of the other classes' q_j,
    value = (2/3) ((o / (1 + r_y))^2 (r_y + 2) + sum_{j != y} r_j^3) + 2 max(0, tau - z_y / 2) has no negative term, and q_y - 1 = -o.
    Auto is as accurate for few classes with a part, but loses digits with their number (float32, nearly equal logits: off by 5e-6 of its
    norm for 100, 3e-5 for 1000, 3e-4 for 10000; analytic by 1e-6), and takes 7 times as long in a graph at 256 x 10000; under XLA it
    takes minutes to compile (analytic: a second). Autodiff through the usual bisection for tau is wrong: a halved interval does not
    depend on the logits.

    Domain: logits below inf, or -inf for a class that is excluded. A class out of range gives NaN.
    Shapes: z [batch, classes]; y integers [batch].
    Kinks: none.
    Reference: B. Peters et al. (2019), doi:10.18653/v1/P19-1146; M. Blondel et al. (2020), doi:10.48550/arXiv.1901.02324.
    """

    second_order = "refuse"
    targets = ("classes",)
    magnitudes = (1e-30, 1e30)
    invariants = ("translation", "convex", "non_negative")

    def check_shapes(self, y_true: tf.Tensor, y_pred: tf.Tensor) -> None:
        super().check_shapes(y_true, y_pred)
        self.require_shape("y_pred", y_pred, batch=None, classes=None)

    def value(self, y_true: tf.Tensor, y_pred: tf.Tensor) -> tf.Tensor:
        x, t = sparse.behind(y_pred) / 2, softmax.class_weights(y_true, y_pred)
        tau, root = _roots(x)
        return _divergence(x, t, tau, root, (1 - t) * root)

    def value_and_vjp(self, y_true: tf.Tensor, y_pred: tf.Tensor, **mask: tf.Tensor) -> tuple[tf.Tensor, Callable[[tf.Tensor], tf.Tensor]]:
        x, t = sparse.behind(y_pred) / 2, softmax.class_weights(y_true, y_pred)
        tau, root = sparse.above_threshold(x, _newton)
        others = (1 - t) * root

        def vjp(dy: tf.Tensor) -> tf.Tensor:
            return tf.math.multiply_no_nan(sparse.minus_class(t, tf.square(others)), dy[:, tf.newaxis])

        return _divergence(x, t, tau, root, others), vjp

    def usual(self, y_true: tf.Tensor, y_pred: tf.Tensor) -> tf.Tensor:
        high = tf.reduce_max(y_pred, axis=-1, keepdims=True) / 2
        low = high - 1
        for _ in range(50):
            middle = (low + high) / 2
            too_low = tf.reduce_sum(tf.square(tf.nn.relu(y_pred / 2 - middle)), axis=-1, keepdims=True) >= 1
            low, high = tf.where(too_low, middle, low), tf.where(too_low, high, middle)
        root = tf.nn.relu(y_pred / 2 - low)
        terms = tf.square(root) * y_pred - 4 / 3 * root * tf.square(root)
        return tf.reduce_sum(terms, axis=-1) + 4 / 3 - tf.gather(y_pred, y_true, axis=-1, batch_dims=1)

    def reference(self, y_true: int, y_pred: list) -> Any:
        halves = sorted((z / 2 for z in y_pred), reverse=True)
        tau = next(tau for tau in (_threshold(halves, k) for k in range(len(halves), 0, -1)) if tau is not None)
        q = [max(z / 2 - tau, 0) ** 2 for z in y_pred]
        entropy = mpmath.mpf(4) / 3 * (1 - sum(a ** mpmath.mpf(1.5) for a in q))
        return sum(a * z for a, z in zip(q, y_pred, strict=True)) + entropy - y_pred[y_true]


def _divergence(x: tf.Tensor, t: tf.Tensor, tau: tf.Tensor, root: tf.Tensor, others: tf.Tensor) -> tf.Tensor:
    """The value, from the threshold [batch], the probabilities' roots and the other classes' roots [batch, classes]."""
    of_class, square = sparse.of_class(t, root), tf.square(others)
    # 1 - r_y = o / (1 + r_y)
    near = tf.square(tf.reduce_sum(square, axis=-1) / (1 + of_class)) * (of_class + 2)
    return (near + tf.reduce_sum(others * square, axis=-1)) * 2 / 3 + 2 * sparse.shortfall(tau, t, x)


def _newton(root: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """The step on |r| = 1, which is nearer to a straight line than |r|^2 = 1, and |r|, down to where one more step is exact."""
    norm = tf.sqrt(tf.reduce_sum(tf.square(root), axis=-1, keepdims=True))
    near = 1 + np.sqrt(np.finfo(root.dtype.as_numpy_dtype).eps)
    return (norm - 1) * norm / tf.reduce_sum(root, axis=-1, keepdims=True), tf.maximum(norm, near)


def _roots(x: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """The threshold tau [batch] and the probabilities' roots [batch, classes] of halved logits whose largest is 0."""
    x = tf.maximum(x, -1)  # tau is at least -1: a class that lies further behind has no part
    ordered = tf.sort(x, axis=-1, direction="DESCENDING")
    count = tf.range(1, tf.cast(tf.shape(x)[-1], x.dtype) + 1)
    # Of the k largest, sum_j (x_j - tau)^2 = 1 at tau = mean - sqrt((1 - k variance) / k); they have a part while x_k exceeds tau.
    mean = tf.cumsum(ordered, axis=-1) / count
    gap = (1 - tf.cumsum(tf.square(ordered), axis=-1)) / count + tf.square(mean)
    some = (tf.square(tf.nn.relu(mean - ordered)) < gap) | (count == 1)
    num = tf.reduce_sum(tf.cast(some, x.dtype), axis=-1, keepdims=True)
    center = tf.reduce_sum(tf.where(some, ordered, tf.zeros_like(x)), axis=-1, keepdims=True) / num
    spread = tf.reduce_sum(tf.where(some, tf.square(ordered - center), tf.zeros_like(x)), axis=-1, keepdims=True)
    tau = center - tf.sqrt(tf.maximum(1 - spread, 1e-6) / num)  # rounding may bring the difference to 0
    for _ in range(2):
        root = tf.nn.relu(x - tau)
        tau += (tf.reduce_sum(tf.square(root), axis=-1, keepdims=True) - 1) / (2 * tf.reduce_sum(root, axis=-1, keepdims=True))
    return tau[:, 0], tf.nn.relu(x - tau)


def _threshold(halves: list, k: int) -> Any:
    """The threshold tau if exactly the k largest have a part, else None."""
    mean = sum(halves[:k]) / k
    rest = 1 - sum((x - mean) ** 2 for x in halves[:k])
    if rest < 0:
        return None
    tau = mean - mpmath.sqrt(rest / k)
    return tau if halves[k - 1] >= tau else None
