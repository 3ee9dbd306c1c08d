"""Softmax cross-entropy from logits."""

import dataclasses
from typing import Any

import mpmath
import tensorflow as tf

from losses import features, softmax
from losses.base import Loss


@dataclasses.dataclass(frozen=True)
class SoftmaxCrossentropy(Loss):
    """Cross-entropy of one class out of several, or of weights over classes; p holds the logits.

    value = sum_j t_j (p_a - p_j) + T log1p(sum_{j != a} e^(p_j - p_a)), a the largest logit, t the weights of the classes, T their sum
    d/dp_j = pi_j sum_{k != j} t_k - t_j sum_{i != j} pi_i, pi = softmax(p)

    A class y is the weights t_y = 1, t_j = 0 elsewhere: the gradient is pi_j for j != y, and at y minus the sum of the others. That
    stays accurate where the usual pi_y - 1 of the fused kernel does not: it is exactly 0 from a lead of 17 on in float32.
    Auto through this value keeps it too, and loses up to the number of classes in units of rounding at the largest logit.

    Domain: finite logits, or -inf for a class that is excluded; weights >= 0. A class out of range gives NaN. Where softmax(p) comes
    near weights that are nearly even (a label_smoothing near 1), the gradient is a difference of them, and known to the rounding of these.
    Shapes: p [batch, ..., classes]; y integers [batch, ...], or weights [batch, ..., classes]. Axes between are averaged over.

    Args:
        label_smoothing: share of the weight that is spread evenly over all classes, a fraction in [0, 1).

    Kinks: none.
    Reference: J. S. Bridle (1990), doi:10.1007/978-3-642-76153-9_28; label smoothing: C. Szegedy et al. (2016), doi:10.1109/CVPR.2016.308.
    """

    label_smoothing: float = 0.0

    targets = ("classes", "class_weights")
    magnitudes = (1e-30, 1e30)
    invariants = ("translation", "convex", "non_negative")

    def __post_init__(self) -> None:
        self.require("label_smoothing", "a number >= 0 and < 1", lambda share: 0 <= share < 1)

    def value(self, y_true: tf.Tensor, y_pred: tf.Tensor) -> tf.Tensor:
        t = self._weights(y_true, y_pred)
        # The largest logit is left out of both sums: its terms, 0 and 1, are known exactly, and so are their derivatives.
        largest = softmax.at_largest(y_pred)
        lead = softmax.lead(y_pred, largest)
        others = softmax.sum_without(largest, tf.exp(-lead))[..., 0]
        # multiply_no_nan: an excluded class, inf behind, has no part where its weight is 0.
        return features.mean(tf.reduce_sum(tf.math.multiply_no_nan(lead, t), axis=-1) + tf.reduce_sum(t, axis=-1) * tf.math.log1p(others))

    def evaluate(self, y_true: tf.Tensor, y_pred: tf.Tensor, **mask: tf.Tensor) -> tf.Tensor:
        if not y_true.dtype.is_integer:
            return self.value(y_true, y_pred)
        top, power, _, others = _around(y_true, y_pred)
        lead = (1 - self.label_smoothing) * (top - softmax.at_class(y_true, y_pred))
        if self.label_smoothing:
            lead += self.label_smoothing * tf.reduce_mean(top - y_pred, axis=-1, keepdims=True)
        return features.mean((lead + tf.math.log1p(others + (power - 1)))[..., 0])

    def gradient(self, y_true: tf.Tensor, y_pred: tf.Tensor) -> tf.Tensor:
        if y_true.dtype.is_integer:
            # As below. The weights sum to 1, so that it is pi_j - t_j off the class, where t_j is the share of the smoothing.
            _, power, powers, others = _around(y_true, y_pred)
            total, share = others + power, self.label_smoothing / tf.cast(tf.shape(y_pred)[-1], y_pred.dtype)
            at_class = (power * (self.label_smoothing - share) - others * (1 - self.label_smoothing + share)) / total
            return softmax.mean_gradient(tf.where(softmax.is_class(y_true, y_pred), at_class, powers / total - share))
        t = self._weights(y_true, y_pred)
        powers = tf.exp(y_pred - tf.reduce_max(y_pred, axis=-1, keepdims=True))
        pi = powers / tf.reduce_sum(powers, axis=-1, keepdims=True)
        # T pi_j - t_j = pi_j sum_{k != j} t_k - t_j sum_{i != j} pi_i: for a class, no difference of nearly equal numbers.
        return softmax.mean_gradient(pi * softmax.sum_of_others(t) - t * softmax.sum_of_others(pi))

    def usual(self, y_true: tf.Tensor, y_pred: tf.Tensor) -> tf.Tensor:
        return features.mean(tf.nn.softmax_cross_entropy_with_logits(self._weights(y_true, y_pred), y_pred))

    def reference(self, y_true: Any, y_pred: list) -> Any:
        num_classes = len(y_pred)
        weights = list(y_true) if isinstance(y_true, list) else [mpmath.mpf(int(j == int(y_true))) for j in range(num_classes)]
        total, smoothing = sum(weights), mpmath.mpf(self.label_smoothing)
        weights = [(1 - smoothing) * t + smoothing * total / num_classes for t in weights]
        log_sum = mpmath.log(sum(mpmath.exp(p) for p in y_pred))
        return sum(t * (log_sum - p) for t, p in zip(weights, y_pred, strict=True) if t)

    def _weights(self, y_true: tf.Tensor, y_pred: tf.Tensor) -> tf.Tensor:
        t = softmax.class_weights(y_true, y_pred)
        if self.label_smoothing:
            t = (1 - self.label_smoothing) * t + self.label_smoothing * tf.reduce_mean(t, axis=-1, keepdims=True)
        return t


def _around(y_true: tf.Tensor, y_pred: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor, tf.Tensor]:
    """Of a class y [batch, ...]: the largest logit p_a, e^(p_y - p_a), the other e^(p_j - p_a), 0 at y, and their sum; axes are kept."""
    top = tf.reduce_max(y_pred, axis=-1, keepdims=True)
    # y is left out before the power, not after: no more than one array of all powers.
    powers = tf.exp(tf.where(softmax.is_class(y_true, y_pred), tf.constant(-float("inf"), y_pred.dtype), y_pred - top))
    return top, tf.exp(softmax.at_class(y_true, y_pred) - top), powers, tf.reduce_sum(powers, axis=-1, keepdims=True)
