"""Softmax cross-entropy together with the output layer whose logits it takes."""

import dataclasses
from collections.abc import Callable
from typing import Any

import mpmath
import numpy as np
import tensorflow as tf

from losses import features
from losses.base import Loss, LossError
from losses.chunked_crossentropy import crossentropy, value_and_leads

_Layer = dict[str, tf.Tensor]


@dataclasses.dataclass(frozen=True)
class LinearCrossentropy(Loss):
    """Cross-entropy of one class out of very many, such as a vocabulary's words, in the memory of a part of the logits.

    l = hidden kernel + bias, y the class, o = logsumexp_{j != y} l_j, pi = softmax(l)
    value     = log(1 + e^(o - l_y))
    d/dhidden = G kernel^T, d/dkernel = hidden^T diag(dy) G, d/dbias = G^T dy, where G_j = pi_j for j != y, G_y = -sum_{j != y} pi_j

    log(1 + e^(o - l_y)) = logsumexp(l) - l_y, without the difference of nearly equal numbers where the true class leads.
    Auto holds all logits and their slopes, [positions, classes] each; analytic takes a chunk of positions at a time, and computes
    its derivatives while its logits are there: in less time, a small part of the memory. With a dy that differs between positions,
    as weights of examples make it, it computes the logits twice.
    The usual formula is auto's in memory, and loses the true class's gradient as that of softmax_crossentropy does.

    Domain: finite numbers whose products, hidden kernel, don't overflow. A class out of range gives NaN.
    Shapes: hidden [batch, ..., d], kernel [d, classes], bias [classes]; y integers [batch, ...]. Axes between are averaged over.
    Kinks: none.
    Reference: E. Wijmans et al. (2025), Cut your losses in large-vocabulary language models, doi:10.48550/arXiv.2411.09009.
    """

    second_order = "refuse"
    shared = ("kernel", "bias")
    entry = "hidden"
    targets = ("classes",)
    magnitudes = (1e-30, 1e17)
    structured = True
    invariants = ("non_negative",)
    metric_names = ("accuracy",)

    def output_shape(self, target_shape: tuple[int, ...], num_classes: int | None) -> tuple[int | None, ...]:
        return (*target_shape, None)

    def shared_shapes(self, width: int, num_classes: int) -> dict[str, tuple[int, ...]]:
        return {"kernel": (width, num_classes), "bias": (num_classes,)}

    def check_shapes(self, y_true: tf.Tensor, y_pred: _Layer) -> None:
        if not isinstance(y_pred, dict) or set(y_pred) != {"hidden", "kernel", "bias"}:
            raise LossError(f"loss {self.name}: y_pred must be a dict of hidden [batch, ..., d], kernel [d, classes] and bias [classes]")
        hidden, kernel, bias = y_pred["hidden"], y_pred["kernel"], y_pred["bias"]
        if hidden.shape.rank < 2:
            raise LossError(f"loss {self.name}: hidden must have shape [batch, ..., d]; found {tuple(hidden.shape)}")
        self.require_shape("kernel", kernel, d=hidden.shape[-1], classes=None)
        self.require_shape("bias", bias, classes=kernel.shape[1])
        if not isinstance(y_true, tf.Tensor) or not y_true.dtype.is_integer:
            raise LossError(f"loss {self.name} takes integer class indices as y_true; found {getattr(y_true, 'dtype', y_true)}")
        self.require_shape("y_true", y_true, **{f"axis {axis}": size for axis, size in enumerate(hidden.shape[:-1])})

    def value(self, y_true: tf.Tensor, y_pred: _Layer) -> tf.Tensor:
        logits = tf.nn.bias_add(tf.matmul(_rows(y_pred["hidden"]), y_pred["kernel"]), y_pred["bias"])  # [positions, classes]
        is_class = tf.reshape(tf.cast(y_true, tf.int64), [-1, 1]) == tf.range(tf.shape(logits, tf.int64)[1])
        l_y = tf.reduce_sum(tf.where(is_class, logits, tf.zeros_like(logits)), axis=1)
        l_y = tf.where(tf.reduce_any(is_class, axis=1), l_y, float("nan"))
        o = tf.reduce_logsumexp(tf.where(is_class, tf.constant(-float("inf"), logits.dtype), logits), axis=1)
        return _mean(tf.nn.softplus(o - l_y), y_true)

    def measures(self, y_true: tf.Tensor, y_pred: _Layer, **mask: tf.Tensor) -> tuple[tf.Tensor, ...]:
        """The value, and the share of positions where the true class has the largest logit alone."""
        found = value_and_leads(_rows(y_pred["hidden"]), y_pred["kernel"], y_pred["bias"], tf.reshape(y_true, [-1]))
        value, leads = (_mean(tf.cast(each, y_pred["hidden"].dtype), y_true) for each in found)
        return value, leads

    def value_and_vjp(self, y_true: tf.Tensor, y_pred: _Layer, **mask: tf.Tensor) -> tuple[tf.Tensor, Callable[[tf.Tensor], _Layer]]:
        hidden = y_pred["hidden"]
        value, rows_vjp = crossentropy(_rows(hidden), y_pred["kernel"], y_pred["bias"], tf.reshape(y_true, [-1]))

        def vjp(dy: tf.Tensor) -> _Layer:
            per_position = tf.reshape(dy, [-1] + [1] * (y_true.shape.rank - 1)) * features.mean_gradient(tf.ones_like(hidden[..., 0]))
            d_rows, d_kernel, d_bias = rows_vjp(tf.reshape(per_position, [-1]))
            return {"hidden": tf.reshape(d_rows, tf.shape(hidden)), "kernel": d_kernel, "bias": d_bias}

        return _mean(value, y_true), vjp

    def point(self, y_pred: _Layer) -> tf.Tensor:
        """The logits, [batch, ..., classes], all of them: for few examples at a time."""
        return tf.matmul(y_pred["hidden"], y_pred["kernel"]) + y_pred["bias"]

    def usual(self, y_true: tf.Tensor, y_pred: _Layer) -> tf.Tensor:
        logits = tf.matmul(_rows(y_pred["hidden"]), y_pred["kernel"]) + y_pred["bias"]
        return _mean(tf.nn.sparse_softmax_cross_entropy_with_logits(tf.reshape(y_true, [-1]), logits), y_true)

    def reference(self, y_true: Any, y_pred: dict[str, Any]) -> Any:
        if isinstance(y_true, list):
            parts = [self.reference(y, y_pred | {"hidden": hidden}) for y, hidden in zip(y_true, y_pred["hidden"], strict=True)]
            return sum(parts) / len(parts)
        columns = zip(*y_pred["kernel"], strict=True)
        logits = [mpmath.fdot(y_pred["hidden"], column) + bias for column, bias in zip(columns, y_pred["bias"], strict=True)]
        return mpmath.log(sum(mpmath.exp(score) for score in logits)) - logits[int(y_true)]

    def sample(self, rng: np.random.Generator, num_examples: int, scale: float) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Two positions an example, of sizes that differ by factors of 100; every other example is classified well."""
        y = rng.integers(0, 5, (num_examples, 2))
        kernel, bias = scale * rng.normal(size=(3, 5)), scale * rng.normal(size=5)
        hidden = scale * rng.normal(size=(num_examples, 2, 3)) * 10 ** rng.uniform(-1, 1, (num_examples, 2, 1))
        hidden[::2] += 3 * np.moveaxis(kernel, 0, 1)[y[::2]] / max(scale, 1.0)
        return y, {"hidden": hidden, "kernel": kernel, "bias": bias}

    def edges(self) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Equal logits, zero positions, and leads of the true class and of another up to 100."""
        lead = np.array([0.0, 1.0, 17.0, 30.0, 80.0, 100.0, -17.0, -100.0])
        hidden = lead[:, np.newaxis, np.newaxis] * np.eye(2, 3)  # the class of the first position leads, or class 1 in the second
        return np.zeros((8, 2), np.int64), {"hidden": hidden, "kernel": np.eye(3, 5), "bias": np.zeros(5)}


def _rows(hidden: tf.Tensor) -> tf.Tensor:
    """[batch, ..., d] -> [positions, d]."""
    width = hidden.shape[-1] if hidden.shape[-1] is not None else tf.shape(hidden)[-1]
    return tf.reshape(hidden, [tf.reduce_prod(tf.shape(hidden)[:-1]), width])


def _mean(of_positions: tf.Tensor, like: tf.Tensor) -> tf.Tensor:
    """[positions] -> [batch]."""
    return features.mean(tf.reshape(of_positions, tf.shape(like)))
