"""Triplet loss of embeddings."""

import dataclasses
import math
from typing import Any

import mpmath
import numpy as np
import tensorflow as tf

from losses import vectors
from losses.base import Loss


@dataclasses.dataclass(frozen=True)
class Triplet(Loss):
    """Asks that an anchor a be nearer to a positive p than to a negative n, by a margin.

    value = max(0, D - E + margin), D = ||a - p||, E = ||a - n||
    d/da  = u - v, d/dp = -u, d/dn = v where the value is > 0, else 0; u = (a - p) / D, v = (a - n) / E

    Norms scale by the largest entry (see losses.vectors); the usual sqrt(sum((a - p)^2)) has a gradient of NaN at equal pairs,
    inf below 1e-22 and 0 above 1e19. And far from a pair of near points, where D and E agree in all digits:
        D - E = (n - p) . ((a - p) + (a - n)) / (D + E)
        u - v = ((n - p) - v (D - E)) / D, and the same with u and E where D < E
    Auto through this value has the first two of these; its u - v cancels in the entries of the anchor.

    Domain: any embeddings; entries that differ by less than 1e-38 count as equal. Shapes: p [batch, 3, d] anchor, positive, negative; no y.

    Args:
        margin: by how much nearer, in units of the embeddings; > 0.

    Kinks: 0 where D - E + margin is 0; at a = p, u is 0; at a = n, v is 0.
    Reference: F. Schroff, D. Kalenichenko, J. Philbin (2015), doi:10.1109/CVPR.2015.7298682, with distances instead of their squares.
    """

    margin: float = 1.0

    contract = "sub"
    second_order = "refuse"
    targets = ("none",)
    items = True
    structured = True
    magnitudes = (1e-30, 1e30)
    invariants = ("translation", "non_negative")
    metric_names = ("accuracy",)

    def __post_init__(self) -> None:
        self.require("margin", "a finite number > 0", lambda margin: 0 < margin < math.inf)

    def value(self, y_true: None, y_pred: tf.Tensor) -> tf.Tensor:
        return tf.nn.relu(self._lag(y_pred)[:, 0] + self.margin)

    def gradient(self, y_true: None, y_pred: tf.Tensor) -> tf.Tensor:
        anchor, positive, negative = tf.unstack(y_pred, axis=1)
        near, far = anchor - positive, anchor - negative
        u, v, lag = vectors.direction(near), vectors.direction(far), self._lag(y_pred)
        longer = vectors.norm(near) >= vectors.norm(far)
        longest = tf.maximum(vectors.norm(near), vectors.norm(far))
        along = (negative - positive) - tf.where(longer, v, u) * lag
        slopes = tf.stack([tf.math.divide_no_nan(along, longest), -u, v], axis=1)
        return tf.where((lag + self.margin > 0)[:, tf.newaxis], slopes, tf.zeros_like(slopes))

    def usual(self, y_true: None, y_pred: tf.Tensor) -> tf.Tensor:
        near, far = (tf.sqrt(tf.reduce_sum(tf.square(y_pred[:, 0] - y_pred[:, item]), axis=-1)) for item in (1, 2))
        return tf.maximum(0.0, near - far + self.margin)

    def reference(self, y_true: None, y_pred: list) -> Any:
        near, far = (mpmath.norm([a - b for a, b in zip(y_pred[0], y_pred[item], strict=True)]) for item in (1, 2))
        return max(mpmath.mpf(0), near - far + self.margin)

    def metrics(self, y_true: None, y_pred: tf.Tensor) -> tuple[tf.Tensor, ...]:
        """accuracy: whether the positive is nearer than the negative."""
        return (tf.cast(self._lag(y_pred)[:, 0] < 0, y_pred.dtype),)

    def output_shape(self, target_shape: tuple[int, ...], num_classes: int | None) -> tuple[int | None, ...]:
        return (None,)

    def check_shapes(self, y_true: None, y_pred: tf.Tensor) -> None:
        self.require_shape("y_pred", y_pred, batch=None, items=3, d=None)

    def sample(self, rng: np.random.Generator, num_examples: int, scale: float) -> tuple[None, np.ndarray]:
        """Triplets in general position, and such with two points equal or nearly so."""
        p = scale * rng.normal(size=(num_examples, 3, 3))
        near = rng.choice([1.0, 1e-3, 1e-6, 0.0], num_examples, p=[0.6, 0.15, 0.15, 0.1])
        pairs = rng.choice([[0, 1], [0, 2], [1, 2]], num_examples)
        for example, (first, second) in enumerate(pairs):
            if near[example] < 1:
                p[example, second] = p[example, first] + near[example] * p[example, second]
        return None, p

    def edges(self) -> tuple[None, np.ndarray]:
        """Equal points, all at zero, and differences of distance around the margin."""
        zero, one, m = [0.0, 0.0], [1.0, 0.0], self.margin
        triplets = [[zero, zero, zero], [one, one, one], [one, one, zero], [one, zero, one], [one, zero, zero]]
        triplets += [[zero, zero, [0.0, m * factor]] for factor in (1 - 1e-6, 1.0, 1 + 1e-6)]
        return None, np.array(triplets)

    def _lag(self, y_pred: tf.Tensor) -> tf.Tensor:
        """D - E, [batch, 1]."""
        anchor, positive, negative = tf.unstack(y_pred, axis=1)
        differences = tf.stack([anchor - positive, anchor - negative, negative - positive], axis=1)
        # In units of the largest entry, a constant to the tape: XLA turns auto's (x / total) / total into x / total^2, which vanishes.
        largest = tf.stop_gradient(tf.reduce_max(tf.abs(differences), axis=[1, 2])[:, tf.newaxis])
        scale = tf.where(largest == 0, tf.ones_like(largest), largest)
        near, far, apart = tf.unstack(differences / scale[:, tf.newaxis], axis=1)
        total = vectors.norm(near) + vectors.norm(far)
        mean_direction = (near + far) / tf.where(total == 0, tf.ones_like(total), total)
        return scale * tf.reduce_sum(apart * mean_direction, axis=-1, keepdims=True)
