"""Mean squared error."""

import dataclasses
from typing import Any

import tensorflow as tf

from losses import features
from losses.base import Loss


@dataclasses.dataclass(frozen=True)
class MSE(Loss):
    """Squared error: fits the mean of the target; one outlier weighs with its square.

    value = mean of (p - y)^2
    d/dp  = 2 (p - y) / n, n the number of elements of an example

    Auto is as accurate; without XLA analytic needs less time and memory.

    Domain: all real p, y; a square that overflows is inf, its gradient still right. Shapes: y [batch, ..., dim], p the same.
    Reference: C. F. Gauss (1809), Theoria motus corporum coelestium, section 179.
    """

    magnitudes = (1e-30, 1e30)
    invariants = ("joint_translation", "homogeneous_2", "convex", "non_negative")

    def value(self, y_true: tf.Tensor, y_pred: tf.Tensor) -> tf.Tensor:
        return features.mean(tf.square(y_pred - y_true))

    def gradient(self, y_true: tf.Tensor, y_pred: tf.Tensor) -> tf.Tensor:
        return features.mean_gradient(2 * (y_pred - y_true))

    def reference(self, y_true: list, y_pred: list) -> Any:
        return sum((p - y) ** 2 for y, p in zip(y_true, y_pred, strict=True)) / len(y_pred)
