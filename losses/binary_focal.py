"""Focal loss of yes-or-no targets."""

import dataclasses
import math
from typing import Any

import keras
import mpmath
import tensorflow as tf

from losses import features, logistic
from losses.base import Loss


@dataclasses.dataclass(frozen=True)
class BinaryFocal(Loss):
    """Cross-entropy in which well-classified examples count less, for rare positives; p is the logit, log(P(1) / P(0)).

    value = mean of w_1 y f(p) + w_0 (1 - y) f(-p), f(x) = q^gamma log(1 + e^-x), q = s(-x) the probability missed, s logistic
    d/dp  = (w_1 y f'(p) - w_0 (1 - y) f'(-p)) / n, n the number of elements of an example
    f'(x) = -q^gamma (q + gamma (1 - q) log(1 + e^-x))

    with w_1 = alpha and w_0 = 1 - alpha, or both 1 without alpha. q^gamma is e^(-gamma log(1 + e^x)): no 1 - s(x), which is 0 from
    x = 17 on, and whose power's slope there is infinite for gamma < 1. Auto through this value is as accurate.
    Keras takes the power of 1 - s(x) and, for gamma < 1, gives NaN on well-classified examples.

    Domain: y in [0, 1], any finite p. Shapes: y [batch, ..., dim], p the same.
    Accuracy: within 8 ulp up to gamma = 5; beyond, a power loses about gamma ulp (gamma = 20: the gradient 20, the value 10, near p = 0).

    Args:
        gamma: how much less they count, an exponent >= 0; 0 is cross-entropy.
        alpha: weight of the positives, of (0, 1); the negatives' is 1 - alpha. None: both weigh 1.

    Kinks: none.
    Reference: T.-Y. Lin et al. (2017), doi:10.1109/ICCV.2017.324.
    """

    gamma: float = 2.0
    alpha: float | None = None

    targets = ("binary",)
    magnitudes = (1e-30, 1e30)
    invariants = ("non_negative",)

    def __post_init__(self) -> None:
        self.require("gamma", "a finite number >= 0", lambda gamma: 0 <= gamma < math.inf)
        self.require("alpha", "a number > 0 and < 1, or None", lambda alpha: alpha is None or 0 < alpha < 1)

    def value(self, y_true: tf.Tensor, y_pred: tf.Tensor) -> tf.Tensor:
        below, above = logistic.softpluses(y_pred)  # log(1 + e^p), log(1 + e^-p)
        positive, negative = self._weights(y_true)
        return features.mean(positive * tf.exp(-self.gamma * below) * above + negative * tf.exp(-self.gamma * above) * below)

    def gradient(self, y_true: tf.Tensor, y_pred: tf.Tensor) -> tf.Tensor:
        below, above = logistic.softpluses(y_pred)
        one, zero = logistic.sigmoids(y_pred)
        positive, negative = self._weights(y_true)
        at_one = tf.exp(-self.gamma * below) * (zero + self.gamma * one * above)  # -f'(p), q = zero
        at_zero = tf.exp(-self.gamma * above) * (one + self.gamma * zero * below)  # -f'(-p), q = one
        return features.mean_gradient(negative * at_zero - positive * at_one)

    def point(self, y_pred: tf.Tensor) -> tf.Tensor:
        """The probability of 1, [batch, ..., dim], that the logit stands for; focal training bends it towards 1/2."""
        return tf.sigmoid(y_pred)

    def usual(self, y_true: tf.Tensor, y_pred: tf.Tensor) -> tf.Tensor:
        balance = {} if self.alpha is None else {"apply_class_balancing": True, "alpha": self.alpha}
        columns = y_true[..., tf.newaxis], y_pred[..., tf.newaxis]
        return features.mean(keras.losses.binary_focal_crossentropy(*columns, gamma=self.gamma, from_logits=True, **balance))

    def reference(self, y_true: list, y_pred: list) -> Any:
        gamma = mpmath.mpf(self.gamma)
        one, zero = (1, 1) if self.alpha is None else (mpmath.mpf(self.alpha), 1 - mpmath.mpf(self.alpha))

        def focal(x: Any) -> Any:
            odds = mpmath.exp(-x)
            return (odds / (1 + odds)) ** gamma * mpmath.log1p(odds)

        return sum(one * y * focal(p) + zero * (1 - y) * focal(-p) for y, p in zip(y_true, y_pred, strict=True)) / len(y_pred)

    def _weights(self, y_true: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Of the positive and of the negative part."""
        return (y_true, 1 - y_true) if self.alpha is None else (self.alpha * y_true, (1 - self.alpha) * (1 - y_true))
