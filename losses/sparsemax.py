"""Sparsemax loss: classification with probabilities that may be exactly 0."""

import dataclasses
from collections.abc import Callable
from typing import Any

import tensorflow as tf

from losses import softmax, sparse
from losses.base import Loss


@dataclasses.dataclass(frozen=True)
class Sparsemax(Loss):
    """Fenchel-Young loss of sparsemax: as softmax cross-entropy, but it is done once the true class leads by 1; z holds the logits.

    value  = z.q - |q|^2 / 2 + 1/2 - z_y, q = sparsemax(z) the point of the simplex nearest to z: q_j = max(0, z_j - tau)
    d/dz_j = q_j - 1[j = y]

    tau comes from Newton's steps on sum_j max(0, z_j - tau) = 1, upwards from the largest logit - 1: the last step is the one that
    finds the same classes above tau as the step before. For auto it comes from sorting and one such step, which the tape can follow.
    Stable because value = |q - t|^2 / 2 + max(0, tau - z_y), t the class as a vector, has no difference of large numbers, and q_y - 1
    is minus the sum of the others. Auto is as accurate for few classes with a part, but loses digits with their number (float32, nearly
    equal logits: off by 1e-5 of its norm for 100, 5e-4 for 1000, 1e-2 for 10000; analytic by 1e-6), and takes 7 times as long in a
    graph at 256 x 10000; under XLA it runs as fast, after minutes of compiling (analytic: a second). Autodiff through the usual
    bisection for tau is wrong: a halved interval does not depend on the logits.

    Domain: logits below inf, or -inf for a class that is excluded. A class out of range gives NaN.
    Shapes: z [batch, classes]; y integers [batch].
    Kinks: none in the value; the gradient has kinks where a probability becomes 0.
    Reference: A. Martins, R. Astudillo (2016), doi:10.48550/arXiv.1602.02068; M. Blondel et al. (2020), doi:10.48550/arXiv.1901.02324.
    """

    second_order = "refuse"
    targets = ("classes",)
    magnitudes = (1e-30, 1e30)
    invariants = ("translation", "convex", "non_negative")

    def check_shapes(self, y_true: tf.Tensor, y_pred: tf.Tensor) -> None:
        super().check_shapes(y_true, y_pred)
        self.require_shape("y_pred", y_pred, batch=None, classes=None)

    def value(self, y_true: tf.Tensor, y_pred: tf.Tensor) -> tf.Tensor:
        x, t = sparse.behind(y_pred), softmax.class_weights(y_true, y_pred)
        tau, q = _project(x)
        return _divergence(x, t, tau, (1 - t) * q)

    def value_and_vjp(self, y_true: tf.Tensor, y_pred: tf.Tensor, **mask: tf.Tensor) -> tuple[tf.Tensor, Callable[[tf.Tensor], tf.Tensor]]:
        x, t = sparse.behind(y_pred), softmax.class_weights(y_true, y_pred)
        tau, q = sparse.above_threshold(x, _newton)
        others = (1 - t) * q
        return _divergence(x, t, tau, others), lambda dy: tf.math.multiply_no_nan(sparse.minus_class(t, others), dy[:, tf.newaxis])

    def usual(self, y_true: tf.Tensor, y_pred: tf.Tensor) -> tf.Tensor:
        high = tf.reduce_max(y_pred, axis=-1, keepdims=True)
        low = high - 1
        for _ in range(50):
            middle = (low + high) / 2
            too_low = tf.reduce_sum(tf.nn.relu(y_pred - middle), axis=-1, keepdims=True) >= 1
            low, high = tf.where(too_low, middle, low), tf.where(too_low, high, middle)
        q = tf.nn.relu(y_pred - low)
        return tf.reduce_sum(q * y_pred - tf.square(q) / 2, axis=-1) + 0.5 - tf.gather(y_pred, y_true, axis=-1, batch_dims=1)

    def reference(self, y_true: int, y_pred: list) -> Any:
        ordered = sorted(y_pred, reverse=True)
        tau = max((sum(ordered[:k]) - 1) / k for k in range(1, len(ordered) + 1))
        q = [max(z - tau, 0) for z in y_pred]
        return sum(a * z - a * a / 2 for a, z in zip(q, y_pred, strict=True)) + 0.5 - y_pred[y_true]


def _divergence(x: tf.Tensor, t: tf.Tensor, tau: tf.Tensor, others: tf.Tensor) -> tf.Tensor:
    """The value, from the threshold [batch] and the other classes' probabilities [batch, classes]."""
    distance = tf.square(tf.reduce_sum(others, axis=-1)) + tf.reduce_sum(tf.square(others), axis=-1)  # |q - t|^2
    return distance / 2 + sparse.shortfall(tau, t, x)


def _newton(q: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """The step on sum_j q_j = 1, exact once all classes without a part have left, and the number of classes."""
    num = tf.reduce_sum(tf.sign(q), axis=-1, keepdims=True)
    return (tf.reduce_sum(q, axis=-1, keepdims=True) - 1) / num, num


def _project(x: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """The threshold tau [batch] and the probabilities [batch, classes] of logits whose largest is 0."""
    x = tf.maximum(x, -1)  # tau is at least -1: a class that lies further behind has no part
    ordered = tf.sort(x, axis=-1, direction="DESCENDING")
    count = tf.range(1, tf.cast(tf.shape(x)[-1], x.dtype) + 1)
    some = 1 + count * ordered > tf.cumsum(ordered, axis=-1)
    num = tf.reduce_sum(tf.cast(some, x.dtype), axis=-1, keepdims=True)
    tau = (tf.reduce_sum(tf.where(some, ordered, tf.zeros_like(x)), axis=-1, keepdims=True) - 1) / num
    q = tf.nn.relu(x - tau)
    tau += (tf.reduce_sum(q, axis=-1, keepdims=True) - 1) / tf.reduce_sum(tf.cast(q > 0, x.dtype), axis=-1, keepdims=True)
    return tau[:, 0], tf.nn.relu(x - tau)
