"""InfoNCE: which key of the batch belongs to a query."""

import dataclasses
from collections.abc import Callable

import mpmath
import numpy as np
import tensorflow as tf

from losses.base import Loss
from losses.chunked_crossentropy import crossentropy, value_and_leads


@dataclasses.dataclass(frozen=True)
class InfoNCE(Loss):
    """Contrastive learning: a query is to be told apart by its own key from the keys of all other examples of the batch.

    value_i = logsumexp_j(q_i k_j / tau) - q_i k_i / tau, j over the examples of the batch
    d/dq_i  = dy_i (sum_j pi_ij k_j - k_i) / tau,  pi_i = softmax_j(q_i k_j / tau)
    d/dk_j  = sum_i dy_i (pi_ij - 1[i = j]) q_i / tau

    It is softmax cross-entropy with the keys as kernel, in chunks of queries: [batch, batch] is never held whole, and
    pi_ii - 1 is taken as minus the sum of the others, which keeps its digits where a query is told apart well.
    Auto holds [batch, batch] several times over. The usual formula loses the gradient of queries that are told apart well.
    The vectors are taken as they are: a model that means cosines normalizes them.

    Domain: finite vectors whose products don't overflow. Masked examples are no negatives of others.
    Shapes: p [batch, 2, d], query and key; no y.

    Args:
        temperature: tau, in units of q k; > 0.

    Kinks: none.
    Reference: A. van den Oord, Y. Li, O. Vinyals (2018), doi:10.48550/arXiv.1807.03748.
    """

    temperature: float = 0.1

    second_order = "refuse"
    coupled = True
    targets = ("none",)
    magnitudes = (1e-30, 1e17)
    structured = True
    invariants = ("non_negative",)
    items = True

    def __post_init__(self) -> None:
        self.require("temperature", "a number > 0", lambda temperature: 0 < temperature < float("inf"))

    def output_shape(self, target_shape: tuple[int, ...], num_classes: int | None) -> tuple[int | None, ...]:
        return (None,)

    def check_shapes(self, y_true: None, y_pred: tf.Tensor) -> None:
        self.require_shape("y_pred", y_pred, batch=None, items=2, d=None)

    def value(self, y_true: None, y_pred: tf.Tensor, mask: tf.Tensor | None = None) -> tf.Tensor:
        queries, kernel, bias, own = self._layer(y_pred, mask)
        scores = tf.nn.bias_add(tf.matmul(queries, kernel), bias)  # [batch, batch + 1]
        is_own = own[:, tf.newaxis] == tf.range(tf.shape(scores)[1])
        own_score = tf.reduce_sum(tf.where(is_own, scores, tf.zeros_like(scores)), axis=1)
        others = tf.where(is_own, tf.constant(-float("inf"), scores.dtype), scores)
        return tf.nn.softplus(tf.reduce_logsumexp(others, axis=1) - own_score)

    def evaluate(self, y_true: None, y_pred: tf.Tensor, **mask: tf.Tensor) -> tf.Tensor:
        return value_and_leads(*self._layer(y_pred, mask.get("mask")))[0]

    def value_and_vjp(self, y_true: None, y_pred: tf.Tensor, **mask: tf.Tensor) -> tuple[tf.Tensor, Callable[[tf.Tensor], tf.Tensor]]:
        value, layer_vjp = crossentropy(*self._layer(y_pred, mask.get("mask")))

        def vjp(dy: tf.Tensor) -> tf.Tensor:
            d_queries, d_kernel, _ = layer_vjp(dy)
            return tf.stack([d_queries, tf.transpose(d_kernel[:, :-1]) / self.temperature], axis=1)

        return value, vjp

    def usual(self, y_true: None, y_pred: tf.Tensor) -> tf.Tensor:
        queries, keys = tf.unstack(y_pred, axis=1)
        scores = tf.matmul(queries, keys, transpose_b=True) / self.temperature
        return tf.nn.sparse_softmax_cross_entropy_with_logits(tf.range(tf.shape(scores)[0]), scores)

    def reference(self, y_true: None, y_pred: list) -> list:
        scores = [[mpmath.fdot(query, key) / mpmath.mpf(self.temperature) for _, key in y_pred] for query, _ in y_pred]
        return [mpmath.log(sum(mpmath.exp(score) for score in row)) - row[i] for i, row in enumerate(scores)]

    def sample(self, rng: np.random.Generator, num_examples: int, scale: float) -> tuple[None, np.ndarray]:
        """Pairs in three dimensions whose lengths differ by factors of 10, half of them alike."""
        p = scale * rng.normal(size=(num_examples, 2, 3)) * 10 ** rng.uniform(-0.5, 0.5, (num_examples, 2, 1))
        p[::2, 1] = p[::2, 0] * (1 + 0.1 * rng.normal(size=p[::2, 0].shape))
        return None, p

    def edges(self) -> tuple[None, np.ndarray]:
        """Pairs that are told apart by far, a pair of zeros, equal and opposite ones."""
        query = np.array([[10.0, 0.0], [0.0, 3.0], [0.0, 0.0], [1.0, 1.0], [1.0, 1.0]])
        return None, np.stack([query, query * np.array([1, 1, 1, 1, -1])[:, np.newaxis]], axis=1)

    def _layer(self, y_pred: tf.Tensor, mask: tf.Tensor | None) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor, tf.Tensor]:
        """Queries, keys as a kernel, a bias that takes masked examples out of all sums, and every query's own key.

        The kernel has one key more, masked too, so that an empty batch has one.
        """
        queries, keys = tf.unstack(y_pred, axis=1)
        counts = tf.ones_like(y_pred[:, 0, 0], tf.bool) if mask is None else mask
        bias = tf.where(
            tf.pad(counts, [[0, 1]]), tf.zeros([], y_pred.dtype), y_pred.dtype.min / 4
        )  # finite, as a masked query's own score is
        return queries, tf.pad(tf.transpose(keys) / self.temperature, [[0, 0], [0, 1]]), bias, tf.range(tf.shape(y_pred)[0])
