"""Mean absolute error."""

import dataclasses
from typing import Any

import tensorflow as tf

from losses import features
from losses.base import Loss


@dataclasses.dataclass(frozen=True)
class MAE(Loss):
    """Absolute error: fits the median of the target; outliers count no more than their number.

    value = mean of |p - y|
    d/dp  = sign(p - y) / n, n the number of elements of an example

    Auto is the same.

    Domain: all real p, y. Shapes: y [batch, ..., dim], p the same.
    Kinks: the subgradient 0 where p = y.
    Reference: R. J. Boscovich (1757), De litteraria expeditione per pontificiam ditionem.
    """

    contract = "sub"
    magnitudes = (1e-30, 1e30)
    invariants = ("joint_translation", "homogeneous_1", "convex", "non_negative")

    def value(self, y_true: tf.Tensor, y_pred: tf.Tensor) -> tf.Tensor:
        return features.mean(tf.abs(y_pred - y_true))

    def gradient(self, y_true: tf.Tensor, y_pred: tf.Tensor) -> tf.Tensor:
        return features.mean_gradient(tf.sign(y_pred - y_true))

    def reference(self, y_true: list, y_pred: list) -> Any:
        return sum(abs(p - y) for y, p in zip(y_true, y_pred, strict=True)) / len(y_pred)
