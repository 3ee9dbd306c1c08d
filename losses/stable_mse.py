"""Squared error of a prediction clipped to a range, by way of its logarithm."""

import dataclasses
import math
from typing import Any

import tensorflow as tf

from losses import features
from losses.base import Loss


@dataclasses.dataclass(frozen=True)
class StableMSE(Loss):
    """Squared error through exp(log(clip(p))): the tape's gradient dies outside the range; the analytic one need not.

    value = mean of (exp(log c) - y)^2, c = clip(p, low, high)
    d/dp  = g / n, n the number of elements of an example, and by `outside`
        zero:    g = 2 (c - y) inside the range, 0 outside: the derivative, and a dead zone that a prediction never leaves
        pass:    g = 2 (c - y) everywhere
        project: as pass, but 0 where a descent step would lead further out

    Auto gives `zero` up to rounding. `pass` and `project` are, on p outside the range only, deliberately not the derivative of
    value but that of (c - y)^2 + g (p - c) with the slope g held constant: another gradient, not a more exact one.

    Domain: all real p, y; sensible where y lies in the range. Shapes: y [batch, ..., dim], p the same.

    Args:
        low, high: the range, in units of y; 0 < low < high.
        outside: which gradient p gets outside the range: zero, pass or project.

    Kinks: at the range's edges the gradient is that of the inside.
    """

    low: float = 1e-6
    high: float = 1.0
    outside: str = "project"

    def __post_init__(self) -> None:
        self.require("low", "a number > 0", lambda low: 0 < low < math.inf)
        self.require("high", f"a finite number > low={self.low}", lambda high: self.low < high < math.inf)
        self.require("outside", "zero, pass or project", lambda outside: outside in ("zero", "pass", "project"))

    @property
    def contract(self) -> str:  # type: ignore[override]  # depends on a hyperparameter
        return "sub" if self.outside == "zero" else "surrogate"

    def value(self, y_true: tf.Tensor, y_pred: tf.Tensor) -> tf.Tensor:
        clipped = tf.clip_by_value(y_pred, self.low, self.high)
        return features.mean(tf.square(tf.exp(tf.math.log(clipped)) - y_true))

    def gradient(self, y_true: tf.Tensor, y_pred: tf.Tensor) -> tf.Tensor:
        return features.mean_gradient(self._slope(y_true, y_pred))

    def surrogate(self, y_true: tf.Tensor, y_pred: tf.Tensor, at: tf.Tensor) -> tf.Tensor:
        clipped = tf.clip_by_value(y_pred, self.low, self.high)
        return features.mean(tf.square(clipped - y_true) + self._slope(y_true, at) * (y_pred - clipped))

    def reference(self, y_true: list, y_pred: list) -> Any:
        clipped = [min(max(p, self.low), self.high) for p in y_pred]
        return sum((c - y) ** 2 for y, c in zip(y_true, clipped, strict=True)) / len(y_pred)

    def _slope(self, y_true: tf.Tensor, y_pred: tf.Tensor) -> tf.Tensor:
        slope = 2 * (tf.clip_by_value(y_pred, self.low, self.high) - y_true)
        below, above = y_pred < self.low, y_pred > self.high
        if self.outside == "pass":
            return slope
        leads_out = (below & (slope > 0)) | (above & (slope < 0))
        dead = leads_out if self.outside == "project" else below | above
        return tf.where(dead, tf.zeros_like(slope), slope)
