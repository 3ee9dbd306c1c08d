"""Contrastive loss of pairs of embeddings."""

import dataclasses
import math
from typing import Any

import mpmath
import numpy as np
import tensorflow as tf

from losses import vectors
from losses.base import Loss


@dataclasses.dataclass(frozen=True)
class Contrastive(Loss):
    """Pulls pairs that belong together to one point, and pushes others apart up to a margin.

    value  = y d^2 + (1 - y) max(0, margin - d)^2, d = ||a - b||
    d/da   = 2 (y (a - b) - (1 - y) max(0, margin - d) u), u = (a - b) / d; d/db = -d/da

    The entries of a - b are divided by the largest before they are squared (the norm is homogeneous), so that it neither
    overflows nor vanishes; the usual sqrt(sum((a - b)^2)) has a gradient of NaN at equal pairs, inf below 1e-22, 0 above 1e19.
    Auto through this value has the same norm, and is as accurate where d^2 is a normal number; where it underflows auto is 0.

    Domain: any embeddings; y in [0, 1], 1 for a pair that belongs together. A square that overflows is inf.
    Shapes: p [batch, 2, d], y [batch].

    Args:
        margin: the distance up to which other pairs are pushed apart, in units of the embeddings; > 0.

    Kinks: at a = b, u is 0.
    Reference: R. Hadsell, S. Chopra, Y. LeCun (2006), doi:10.1109/CVPR.2006.100.
    """

    margin: float = 1.0

    contract = "sub"
    second_order = "refuse"
    targets = ("same",)
    items = True
    magnitudes = (1e-30, 1e30)
    invariants = ("translation", "non_negative")
    metric_names = ("accuracy",)

    def __post_init__(self) -> None:
        self.require("margin", "a finite number > 0", lambda margin: 0 < margin < math.inf)

    def value(self, y_true: tf.Tensor, y_pred: tf.Tensor) -> tf.Tensor:
        distance = self._distance(y_pred)
        # multiply_no_nan: a square that overflows has no part where its weight is 0.
        pull = tf.math.multiply_no_nan(tf.square(distance), y_true)
        return pull + (1 - y_true) * tf.square(tf.nn.relu(self.margin - distance))

    def gradient(self, y_true: tf.Tensor, y_pred: tf.Tensor) -> tf.Tensor:
        difference = y_pred[:, 0] - y_pred[:, 1]  # [batch, d]
        y = y_true[:, tf.newaxis]
        push = (1 - y) * tf.nn.relu(self.margin - vectors.norm(difference)) * vectors.direction(difference)
        slope = 2 * (y * difference - push)
        return tf.stack([slope, -slope], axis=1)

    def usual(self, y_true: tf.Tensor, y_pred: tf.Tensor) -> tf.Tensor:
        distance = tf.sqrt(tf.reduce_sum(tf.square(y_pred[:, 0] - y_pred[:, 1]), axis=-1))
        return y_true * tf.square(distance) + (1 - y_true) * tf.square(tf.maximum(0.0, self.margin - distance))

    def reference(self, y_true: Any, y_pred: list) -> Any:
        distance = mpmath.norm([a - b for a, b in zip(*y_pred, strict=True)])
        return y_true * distance**2 + (1 - y_true) * max(mpmath.mpf(0), self.margin - distance) ** 2

    def metrics(self, y_true: tf.Tensor, y_pred: tf.Tensor) -> tuple[tf.Tensor, ...]:
        """accuracy: whether "closer than half the margin" tells what belongs together."""
        return (tf.cast((self._distance(y_pred) < self.margin / 2) == (y_true > 0.5), y_pred.dtype),)

    def output_shape(self, target_shape: tuple[int, ...], num_classes: int | None) -> tuple[int | None, ...]:
        return (None,)

    def check_shapes(self, y_true: tf.Tensor, y_pred: tf.Tensor) -> None:
        self.require_shape("y_pred", y_pred, batch=None, items=2, d=None)
        self.require_shape("y_true", y_true, batch=None)

    def sample(self, rng: np.random.Generator, num_examples: int, scale: float) -> tuple[np.ndarray, np.ndarray]:
        """Pairs of every distance: independent, nearly equal, equal."""
        p = scale * rng.normal(size=(num_examples, 2, 3))
        near = rng.choice([1.0, 1e-1, 1e-3, 0.0], num_examples, p=[0.5, 0.2, 0.2, 0.1])
        p[:, 1] = np.where(near[:, None] == 1, p[:, 1], p[:, 0] + near[:, None] * p[:, 1])
        return rng.choice([0.0, 1.0], num_examples), p

    def edges(self) -> tuple[np.ndarray, np.ndarray]:
        """Equal pairs, zero vectors, and distances of margin and around."""
        steps = self.margin * np.array([0.0, 1e-30, 1 - 1e-7, 1.0, 1 + 1e-6, 1e20])
        ends = np.stack([np.zeros((6, 2)), np.stack([steps, np.zeros(6)], axis=1)], axis=1)
        pairs = np.concatenate([ends, np.ones((1, 2, 2))])
        return np.tile([0.0, 1.0], 7), np.repeat(pairs, 2, axis=0)

    def _distance(self, y_pred: tf.Tensor) -> tf.Tensor:
        return vectors.norm(y_pred[:, 0] - y_pred[:, 1])[:, 0]
