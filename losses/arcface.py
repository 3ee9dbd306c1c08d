"""Softmax cross-entropy of angles to class centers, with an angular margin."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import mpmath
import numpy as np
import tensorflow as tf

from losses import vectors
from losses.base import Loss, LossError
from losses.softmax_crossentropy import SoftmaxCrossentropy

_Embedded = dict[str, tf.Tensor]


@dataclasses.dataclass(frozen=True)
class ArcFace(Loss):
    """Classes by the angle between an embedding and a learned center of each class; the true class has to win by a margin.

    value = softmax cross-entropy of the logits scale cos(theta_j), and scale cos(theta_y + margin) for the true class y
    d/dx  = sum_j G_j k_j w_j / ||x||, d/dc_j likewise with w_j = u - cos(theta_j) v_j, over ||c_j||, summed over the batch
        x, c_j  the embedding and the center of class j; u, v_j their directions, theta_j the angle between them
        G       scale times the cross-entropy's gradient by the logits
        w_j     v_j - cos(theta_j) u, at right angles to u, of length sin(theta_j)
        k_j     1, and sin(theta_y + margin) / sin(theta_y) for the true class
    Where theta_y + margin > pi, its logit is scale (cos(theta_y) - margin sin(margin)), which falls further, and k_y is 1.

    The usual acos(u . v) has an infinite derivative where the cosine rounds to 1 or -1, and a derivative of 0 where it is clipped.
    Here theta = 2 atan2(||u - v||, ||u + v||) for the true class, and w_y = (v - u) + u ||u - v||^2 / 2: differences of directions,
    not of cosines. Auto through this value is nearly as accurate.

    An angle between float32 vectors is known to some 1e-7; u and v whose entries all agree to 4 units of rounding count as equal,
    and as opposite those that agree so with the sign turned: there w_y is 0.

    Domain: any embeddings and centers; the zero vector is at a right angle to all and gets the gradient 0. y out of range gives NaN.
    Shapes: p {embedding: [batch, d], centers: [classes, d]}, y integers [batch].

    Args:
        scale: of the logits, the inverse of the temperature; > 0.
        margin: radians, >= 0 and < pi; 0 is softmax cross-entropy of cosines.

    Kinks: 0 from the true class at theta_y = 0 and pi; a jump of the value at theta_y + margin = pi.
    Reference: J. Deng, J. Guo, N. Xue, S. Zafeiriou (2019), doi:10.1109/CVPR.2019.00482.
    """

    scale: float = 64.0
    margin: float = 0.5

    contract = "sub"
    second_order = "refuse"
    targets = ("classes",)
    shared = ("centers",)
    entry = "embedding"
    structured = True
    magnitudes = (1e-30, 1e30)
    invariants = ("non_negative",)

    def __post_init__(self) -> None:
        self.require("scale", "a finite number > 0", lambda scale: 0 < scale < math.inf)
        self.require("margin", "a number >= 0 and < pi", lambda margin: 0 <= margin < math.pi)

    def value(self, y_true: tf.Tensor, y_pred: _Embedded) -> tf.Tensor:
        return SoftmaxCrossentropy().value(y_true, self._logits(y_true, y_pred))

    def value_and_vjp(self, y_true: tf.Tensor, y_pred: _Embedded, **mask: tf.Tensor) -> tuple[tf.Tensor, Callable]:
        embedding, centers = y_pred["embedding"], y_pred["centers"]
        logits = self._logits(y_true, y_pred)

        def vjp(dy: tf.Tensor) -> _Embedded:
            u, v, cosines = vectors.direction(embedding), vectors.direction(centers), self.point(y_pred)
            true, is_true = self._true_center(y_true, v), _is_true(y_true, cosines)
            pull = self.scale * dy[:, tf.newaxis] * SoftmaxCrossentropy().gradient(y_true, logits)  # dy G: [batch, classes]
            others = tf.where(is_true, tf.zeros_like(pull), pull)
            # The true class apart: its w is a difference of near directions once the model has learned.
            to_true = tf.reduce_sum(tf.where(is_true, pull, tf.zeros_like(pull)), axis=-1, keepdims=True) * self._slope(u, true)
            by_u = others @ v - tf.reduce_sum(others * cosines, axis=-1, keepdims=True) * u + to_true * _across(u, true)
            by_v = tf.matmul(others, u, transpose_a=True) - tf.reduce_sum(others * cosines, axis=0)[:, tf.newaxis] * v
            by_v += tf.matmul(tf.cast(is_true, u.dtype), to_true * _across(true, u), transpose_a=True)
            return {
                "embedding": tf.math.divide_no_nan(by_u, vectors.norm(embedding)),
                "centers": tf.math.divide_no_nan(by_v, vectors.norm(centers)),
            }

        return SoftmaxCrossentropy().evaluate(y_true, logits), vjp

    def usual(self, y_true: tf.Tensor, y_pred: _Embedded) -> tf.Tensor:
        cosines = tf.math.l2_normalize(y_pred["embedding"], axis=-1) @ tf.transpose(tf.math.l2_normalize(y_pred["centers"], axis=-1))
        angles = tf.acos(cosines)
        shifted = tf.where(angles + self.margin > math.pi, cosines - self.margin * math.sin(self.margin), tf.cos(angles + self.margin))
        logits = self.scale * tf.where(_is_true(y_true, cosines), shifted, cosines)
        return tf.nn.sparse_softmax_cross_entropy_with_logits(y_true, logits)

    def reference(self, y_true: Any, y_pred: dict) -> Any:
        embedding, y = y_pred["embedding"], int(y_true)

        def cosine(center: list) -> Any:
            lengths = mpmath.norm(embedding) * mpmath.norm(center)
            return sum(x * c for x, c in zip(embedding, center, strict=True)) / lengths if lengths else mpmath.mpf(0)

        cosines = [cosine(center) for center in y_pred["centers"]]
        margin = mpmath.mpf(self.margin)
        angle = mpmath.acos(max(min(cosines[y], mpmath.mpf(1)), mpmath.mpf(-1)))
        cosines[y] = mpmath.cos(angle + margin) if angle + margin <= mpmath.pi else cosines[y] - margin * mpmath.sin(margin)
        return mpmath.log(sum(mpmath.exp(self.scale * (c - cosines[y])) for c in cosines))

    def point(self, y_pred: _Embedded) -> tf.Tensor:
        """The cosines, [batch, classes]: the largest is that of the predicted class."""
        return tf.matmul(vectors.direction(y_pred["embedding"]), vectors.direction(y_pred["centers"]), transpose_b=True)

    def output_shape(self, target_shape: tuple[int, ...], num_classes: int | None) -> tuple[int | None, ...]:
        return (None,)

    def shared_shapes(self, width: int, num_classes: int) -> dict[str, tuple[int, ...]]:
        return {"centers": (num_classes, width)}

    def check_shapes(self, y_true: tf.Tensor, y_pred: _Embedded) -> None:
        if not isinstance(y_pred, dict) or set(y_pred) != {"embedding", "centers"}:
            raise LossError(f"loss {self.name}: y_pred must be a dict of embedding [batch, d] and centers [classes, d]")
        self.require_shape("embedding", y_pred["embedding"], batch=None, d=None)
        self.require_shape("centers", y_pred["centers"], classes=None, d=y_pred["embedding"].shape[1])
        if y_true is None or not y_true.dtype.is_integer:
            raise LossError(
                f"loss {self.name} takes integer class indices as y_true; found {'None' if y_true is None else y_true.dtype.name}"
            )
        self.require_shape("y_true", y_true, batch=None)

    def sample(self, rng: np.random.Generator, num_examples: int, scale: float) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Embeddings at every angle to their centers, some near them or opposite; lengths differ by factors of 100."""
        centers = scale * rng.normal(size=(4, 3)) * 10 ** rng.uniform(-1, 1, (4, 1))
        y = rng.integers(0, 4, num_examples)
        toward = rng.choice([1.0, -1.0], (num_examples, 1)) * centers[y] / np.linalg.norm(centers[y], axis=-1, keepdims=True)
        away = rng.choice([1e3, 1.0, 1e-2, 1e-4], (num_examples, 1), p=[0.4, 0.3, 0.15, 0.15])
        x = toward + away * rng.normal(size=(num_examples, 3))
        lengths = scale * 10 ** rng.uniform(-1, 1, (num_examples, 1))
        return y, {"embedding": lengths * x / np.linalg.norm(x, axis=-1, keepdims=True), "centers": centers}

    def edges(self) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Embeddings at their center, opposite, across, at zero, and next to the center."""
        centers = np.array([[3.0, 0.0], [0.0, 1e-3], [0.0, 0.0]])
        embedding = np.array([[7.0, 0.0], [-7.0, 0.0], [0.0, 7.0], [0.0, 0.0], [1.0, 1e-20], [1.0, 1e-6], [1.0, 1.0]])
        return np.array([0, 0, 0, 0, 0, 0, 2]), {"embedding": embedding, "centers": centers}

    def _logits(self, y_true: tf.Tensor, y_pred: _Embedded) -> tf.Tensor:
        cosines, u, v = self.point(y_pred), vectors.direction(y_pred["embedding"]), vectors.direction(y_pred["centers"])
        true = self._true_center(y_true, v)
        angle = _angle(u, true)
        shifted = tf.cos(tf.minimum(angle + self.margin, math.pi))
        beyond = tf.cos(angle) - self.margin * math.sin(self.margin)
        return self.scale * tf.where(_is_true(y_true, cosines), tf.where(angle + self.margin > math.pi, beyond, shifted), cosines)

    def _slope(self, u: tf.Tensor, v: tf.Tensor) -> tf.Tensor:
        """The true class's k, [batch, 1]; 0 where u and v are parallel."""
        angle = _angle(u, v)
        shifted = tf.math.divide_no_nan(tf.sin(angle + self.margin), vectors.norm(_across(u, v)))
        return tf.where(angle + self.margin > math.pi, tf.ones_like(shifted), shifted)

    def _true_center(self, y_true: tf.Tensor, v: tf.Tensor) -> tf.Tensor:
        # An index out of range must not stop the step: the cross-entropy makes it NaN.
        return tf.gather(v, tf.clip_by_value(y_true, 0, tf.shape(v, y_true.dtype)[0] - 1))


def _is_true(y_true: tf.Tensor, cosines: tf.Tensor) -> tf.Tensor:
    return tf.cast(y_true, tf.int64)[:, tf.newaxis] == tf.range(tf.shape(cosines, tf.int64)[1])


def _minus(a: tf.Tensor, b: tf.Tensor) -> tf.Tensor:
    """The difference of directions, 0 where all entries agree to rounding."""
    rounding = 4 * np.finfo(a.dtype.as_numpy_dtype).eps
    same = tf.reduce_all(tf.abs(a - b) <= rounding * tf.abs(a), axis=-1, keepdims=True)
    return tf.where(same, tf.zeros_like(a), a - b)


def _angle(u: tf.Tensor, v: tf.Tensor) -> tf.Tensor:
    """The angle between directions, [batch, 1]; a right one where either is the zero vector."""
    angle = 2 * tf.atan2(vectors.norm(_minus(u, v)), vectors.norm(_minus(u, -v)))
    some_zero = tf.reduce_all(u == 0, axis=-1, keepdims=True) | tf.reduce_all(v == 0, axis=-1, keepdims=True)
    return tf.where(some_zero, tf.constant(math.pi / 2, angle.dtype), angle)


def _across(u: tf.Tensor, v: tf.Tensor) -> tf.Tensor:
    """The part of v at right angles to u, v - cos(theta) u, from the shorter of v - u and v + u, so that nothing cancels."""
    apart, together = _minus(v, u), -_minus(-v, u)  # v - u, v + u
    apart_squared, together_squared = (tf.reduce_sum(tf.square(x), axis=-1, keepdims=True) for x in (apart, together))
    # cos(theta) = 1 - ||v - u||^2 / 2 = ||v + u||^2 / 2 - 1
    across = tf.where(apart_squared < together_squared, apart + u * apart_squared / 2, together - u * together_squared / 2)
    return tf.where(tf.reduce_all(v == 0, axis=-1, keepdims=True), tf.zeros_like(across), across)
