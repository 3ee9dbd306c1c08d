"""Distance in the Poincaré ball."""

import dataclasses
from typing import Any

import mpmath
import numpy as np
import tensorflow as tf

from losses import vectors
from losses.base import Loss

_LARGE = 2.0**24  # points times this: differences of tiny near ones are not flushed to 0


@dataclasses.dataclass(frozen=True)
class Poincare(Loss):
    """Hyperbolic distance of points in the unit ball, in which trees embed with little distortion.

    value = 2 asinh(delta / sqrt(A B)), A = 1 - ||p||^2, B = 1 - ||y||^2, delta = ||p - y||
    d/dp  = 2 / sqrt(A B + delta^2) ((p - y) / delta + (delta / A) p)

    The same as arcosh(1 + 2 delta^2 / (A B)), as which it is usually written: near p = y that argument rounds to 1, so that the
    distance is 0 below 2e-4 in float32 and its gradient NaN. Norms scale by the largest entry (see losses.vectors); A and B are
    summed in float64, so that float32 points next to the sphere are not taken for points on it.
    Auto through this value is as accurate.

    Domain: the open unit ball. At or outside the sphere the value is inf and the gradient 0: let the model end in a map into the
    ball, such as p tanh(||p||) / ||p||. Shapes: p and y [batch, d].
    Kinks: the gradient is 0 at p = y.
    Reference: M. Nickel, D. Kiela (2017), "Poincaré Embeddings for Learning Hierarchical Representations", arXiv:1705.08039.
    """

    contract = "sub"
    second_order = "refuse"
    targets = ("ball",)
    structured = True
    magnitudes = (1e-30, 1.0)
    invariants = ("non_negative",)

    def value(self, y_true: tf.Tensor, y_pred: tf.Tensor) -> tf.Tensor:
        inside, a, b = _gaps(y_true, y_pred)
        root = vectors.norm(_LARGE * y_pred - _LARGE * y_true) / _LARGE / tf.sqrt(a * b)
        # asinh(w) = log1p(w + w^2 / (1 + sqrt(1 + w^2)))
        distance = 2 * tf.math.log1p(root + tf.square(root) / (1 + tf.sqrt(1 + tf.square(root))))
        return tf.where(inside, distance, tf.constant(np.inf, distance.dtype))[:, 0]

    def gradient(self, y_true: tf.Tensor, y_pred: tf.Tensor) -> tf.Tensor:
        inside, a, b = _gaps(y_true, y_pred)
        difference = _LARGE * y_pred - _LARGE * y_true
        delta = vectors.norm(difference) / _LARGE
        slopes = 2 / tf.sqrt(a * b + tf.square(delta)) * (vectors.direction(difference) + delta / a * y_pred)
        return tf.where(inside, slopes, tf.zeros_like(slopes))

    def usual(self, y_true: tf.Tensor, y_pred: tf.Tensor) -> tf.Tensor:
        a, b = (1 - tf.reduce_sum(tf.square(x), axis=-1) for x in (y_pred, y_true))
        return tf.acosh(1 + 2 * tf.reduce_sum(tf.square(y_pred - y_true), axis=-1) / (a * b))

    def reference(self, y_true: list, y_pred: list) -> Any:
        a, b = (1 - sum(entry**2 for entry in x) for x in (y_pred, y_true))
        if a <= 0 or b <= 0:
            return mpmath.inf
        return mpmath.acosh(1 + 2 * sum((p - y) ** 2 for p, y in zip(y_pred, y_true, strict=True)) / (a * b))

    def check_shapes(self, y_true: tf.Tensor, y_pred: tf.Tensor) -> None:
        self.require_shape("y_pred", y_pred, batch=None, d=None)
        self.require_shape("y_true", y_true, batch=None, d=y_pred.shape[1])

    def sample(self, rng: np.random.Generator, num_examples: int, scale: float) -> tuple[np.ndarray, np.ndarray]:
        """Points in the ball, some near the sphere, some near each other or equal."""
        radius = rng.choice([0.5, 0.9, 0.999, 1 - 1e-5], (2, num_examples, 1)) * min(scale, 1.0)
        y, p = (
            r * x / np.linalg.norm(x, axis=-1, keepdims=True) for r, x in zip(radius, rng.normal(size=(2, num_examples, 3)), strict=True)
        )
        near = rng.choice([1.0, 1e-3, 1e-6, 0.0], (num_examples, 1), p=[0.6, 0.15, 0.15, 0.1])
        return y, np.where(near == 1, p, y * (1 - near * rng.random((num_examples, 3))))

    def edges(self) -> tuple[np.ndarray, np.ndarray]:
        """Equal points, zero vectors, points on the sphere, next to it and beyond."""
        y = np.array([[0.0, 0.0]] * 5 + [[0.5, 0.5], [0.0, 1.0], [0.0, 1 - 2**-24]])
        p = np.array([[0.0, 0.0], [1 - 2**-24, 0.0], [1.0, 0.0], [3.0, 0.0], [1e-30, 0.0], [0.5, 0.5], [0.0, 0.5], [0.0, 2**-24 - 1]])
        return y, p


def _gaps(y_true: tf.Tensor, y_pred: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Whether both points are inside the ball, A and B, all [batch, 1]; A and B are 1 where it is not so."""

    def gap(x: tf.Tensor) -> tf.Tensor:
        return tf.cast(1 - tf.reduce_sum(tf.square(tf.cast(x, tf.float64)), axis=-1, keepdims=True), x.dtype)

    a, b = gap(y_pred), gap(y_true)
    inside = ~((a <= 0) | (b <= 0))  # a NaN is not outside: it goes on into value and gradient
    return inside, tf.where(inside, a, tf.ones_like(a)), tf.where(inside, b, tf.ones_like(b))
