"""Logistic loss of a pair's order: BPR, RankNet, and the loss inside DPO."""

import dataclasses
from typing import Any

import mpmath
import numpy as np
import tensorflow as tf

from losses import logistic
from losses.base import Loss


@dataclasses.dataclass(frozen=True)
class PairwiseLogistic(Loss):
    """Learns scores from preferences: the item that was preferred of two shall have the larger score.

    value  = y log(1 + e^-D) + (1 - y) log(1 + e^D), D = p_0 - p_1
    d/dp_0 = (1 - y) s(D) - y s(-D), s the logistic function
    d/dp_1 = -d/dp_0

    With y = 1 that is -log s(D), as BPR, RankNet and DPO write it. log(1 + e^D) = max(D, 0) + log1p(e^-|D|) never forms s(D), which
    is 0 from D = -88 on in float32, its logarithm -inf and the tape's slope there NaN. Auto through this value is as accurate as
    analytic.

    Domain: all real p; y in [0, 1]: 1 where the first is preferred, 0 where the second is, between where opinions are divided.
    Shapes: y [batch], p scores [batch, 2].
    Kinks: none.
    Reference: C. Burges et al. (2005), doi:10.1145/1102351.1102363; S. Rendle et al. (2009), arXiv:1205.2618.
    """

    targets = ("preference",)
    magnitudes = (1e-30, 1e30)
    invariants = ("translation", "convex", "non_negative")
    items = True
    metric_names = ("accuracy",)

    def check_shapes(self, y_true: tf.Tensor, y_pred: tf.Tensor) -> None:
        self.require_shape("y_true", y_true, batch=None)
        self.require_shape("y_pred", y_pred, batch=None, items=2)

    def output_shape(self, target_shape: tuple[int, ...], num_classes: int | None) -> tuple[int, ...]:
        """One score for each item."""
        return ()

    def value(self, y_true: tf.Tensor, y_pred: tf.Tensor) -> tf.Tensor:
        second, first = logistic.softpluses(y_pred[:, 0] - y_pred[:, 1])  # -log P(second is preferred), -log P(first is)
        return y_true * first + (1 - y_true) * second

    def gradient(self, y_true: tf.Tensor, y_pred: tf.Tensor) -> tf.Tensor:
        first, second = logistic.sigmoids(y_pred[:, 0] - y_pred[:, 1])
        slope = (1 - y_true) * first - y_true * second
        return tf.stack([slope, -slope], axis=1)

    def metrics(self, y_true: tf.Tensor, y_pred: tf.Tensor) -> tuple[tf.Tensor, ...]:
        """1 where the larger score is that of the preferred item, 1/2 for equal scores, else 0."""
        return (tf.abs(y_true - (1 - tf.sign(y_pred[:, 0] - y_pred[:, 1])) / 2),)

    def usual(self, y_true: tf.Tensor, y_pred: tf.Tensor) -> tf.Tensor:
        difference = y_pred[:, 0] - y_pred[:, 1]
        return -tf.math.log(tf.sigmoid(tf.where(y_true > 0, difference, -difference)))

    def reference(self, y_true: Any, y_pred: list) -> Any:
        difference = y_pred[0] - y_pred[1]
        first, second = mpmath.log1p(mpmath.exp(-difference)), mpmath.log1p(mpmath.exp(difference))
        return y_true * first + (1 - y_true) * second

    def sample(self, rng: np.random.Generator, num_examples: int, scale: float) -> tuple[np.ndarray, np.ndarray]:
        scores = rng.choice([-1.0, 1.0], (num_examples, 2)) * scale * 10 ** rng.uniform(-0.5, 0.5, (num_examples, 2))
        near = scores[::3]  # nearly tied, every other one of them tied
        near[:, 1] = near[:, 0] * (1 + 10 ** rng.uniform(-6.5, -1.5, len(near)) * (np.arange(len(near)) % 2))
        return rng.choice([0.0, 1.0], num_examples), scores

    def edges(self) -> tuple[np.ndarray, np.ndarray]:
        difference = np.repeat([0.0, 1e-6, 17.0, 88.0, 104.0, 1e4, 1e30], 2)
        return np.resize([0.0, 1.0], 14), np.stack([difference, np.zeros(14)], axis=1)
