"""Focal loss of one class out of several."""

import dataclasses
import math
from typing import Any

import keras
import mpmath
import tensorflow as tf

from losses import features, softmax
from losses.base import Loss


@dataclasses.dataclass(frozen=True)
class CategoricalFocal(Loss):
    """Cross-entropy in which well-classified examples count less, for uneven classes; p holds the logits.

    value  = -sum_y t_y q_y^gamma log(pi_y), pi = softmax(p), q_y = sum_{j != y} pi_j, t the weights of the classes
    d/dp_j = pi_j sum_{y != j} t_y c_y - t_j q_j c_j, c_y = q_y^gamma (1 - gamma pi_y log(pi_y) / q_y)

    A class y is the weights t_y = 1, t_j = 0 elsewhere: the gradient is -q_y c_y there, and is shared out by pi_j c_y elsewhere.
    The sum of the other classes' probabilities keeps the digits that 1 - pi_y loses at the largest logit, and -log(pi_y) is that
    logit's lead plus log1p of a sum. Auto through this value is as good for few classes, and loses up to three times their number in
    units of rounding at the largest logit. Keras clips pi instead, and so has no gradient where a
    class is as good as excluded: at the logits [-20, 0] and class 0 it is [0, 0] instead of [-1, 1].

    Domain: finite logits, or -inf for a class that is excluded; weights >= 0. A class out of range gives NaN.
    Shapes: p [batch, ..., classes]; y integers [batch, ...], or weights [batch, ..., classes]. Axes between are averaged over.
    Accuracy: within 8 ulp up to gamma = 5; beyond, a power loses about gamma ulp (gamma = 20: gradient and value 18, near equal logits).

    Args:
        gamma: how much less they count, an exponent >= 0; 0 is cross-entropy.

    Kinks: none.
    Reference: T.-Y. Lin et al. (2017), doi:10.1109/ICCV.2017.324.
    """

    gamma: float = 2.0

    targets = ("classes", "class_weights")
    magnitudes = (1e-30, 1e30)
    invariants = ("translation", "non_negative")

    def __post_init__(self) -> None:
        self.require("gamma", "a finite number >= 0", lambda gamma: 0 <= gamma < math.inf)

    def value(self, y_true: tf.Tensor, y_pred: tf.Tensor) -> tf.Tensor:
        t = softmax.class_weights(y_true, y_pred)
        _, missed, surprise = _probabilities(y_pred)
        # multiply_no_nan: an excluded class, infinitely surprising, has no part where its weight is 0.
        return features.mean(tf.reduce_sum(tf.math.multiply_no_nan(surprise, t * self._power(missed)), axis=-1))

    def gradient(self, y_true: tf.Tensor, y_pred: tf.Tensor) -> tf.Tensor:
        t = softmax.class_weights(y_true, y_pred)
        pi, missed, surprise = _probabilities(y_pred)
        sure = missed == 0
        ratio = tf.math.multiply_no_nan(surprise, pi) / tf.where(sure, tf.ones_like(pi), missed)
        ratio = tf.where(sure, tf.ones_like(pi), ratio)  # -log(pi) / q tends to 1 as q does to 0
        c = self._power(missed) * (1 + self.gamma * ratio)
        return softmax.mean_gradient(pi * softmax.sum_of_others(t * c) - t * missed * c)

    def usual(self, y_true: tf.Tensor, y_pred: tf.Tensor) -> tf.Tensor:
        t = softmax.class_weights(y_true, y_pred)
        return features.mean(keras.losses.categorical_focal_crossentropy(t, y_pred, alpha=1.0, gamma=self.gamma, from_logits=True))

    def reference(self, y_true: Any, y_pred: list) -> Any:
        weights = list(y_true) if isinstance(y_true, list) else [mpmath.mpf(int(j == int(y_true))) for j in range(len(y_pred))]
        powers = [mpmath.exp(p) for p in y_pred]
        pi = [power / sum(powers) for power in powers]
        missed = [sum(pi[:j] + pi[j + 1 :]) for j in range(len(pi))]
        gamma = mpmath.mpf(self.gamma)
        return -sum(t * q**gamma * mpmath.log(probability) for t, q, probability in zip(weights, missed, pi, strict=True) if t)

    def _power(self, missed: tf.Tensor) -> tf.Tensor:
        if not self.gamma:
            return tf.ones_like(missed)
        sure = missed == 0  # at 0 the tape's slope of a power below 1 would be infinite
        return tf.where(sure, tf.zeros_like(missed), tf.pow(tf.where(sure, tf.ones_like(missed), missed), self.gamma))


def _probabilities(y_pred: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Of every class the probability pi, that of the others, and -log(pi)."""
    # The largest logit's power, 1, is known exactly, and so is its derivative. Only its class can have more than half.
    largest = softmax.at_largest(y_pred)
    lead = softmax.lead(y_pred, largest)
    powers = tf.exp(-lead)
    others = softmax.sum_without(largest, powers)
    pi = powers / (1 + others)
    return pi, tf.where(largest, others / (1 + others), 1 - pi), lead + tf.math.log1p(others)
