"""Quantile (pinball) loss."""

import dataclasses
from typing import Any

import tensorflow as tf

from losses import features
from losses.base import Loss


@dataclasses.dataclass(frozen=True)
class Quantile(Loss):
    """Pinball loss: fits quantiles of the target, several at once; an interval instead of a point.

    value = mean over levels t and elements of max(t (y - p), (t - 1)(y - p))
    d/dp  = (-t where y > p, 1 - t where y < p, 0 where y = p) / n, n the number of levels times elements of an example

    Auto is the same. Nothing keeps quantiles from crossing.

    Domain: all real p, y. Shapes: y [batch, ..., dim], p [batch, ..., levels * dim], all of the first level first.

    Args:
        levels: the quantiles' levels, each between 0 and 1, none twice.

    Kinks: the subgradient 0 where p = y.
    Reference: R. Koenker, G. Bassett (1978), doi:10.2307/1913643.
    """

    levels: tuple[float, ...] = (0.1, 0.5, 0.9)

    contract = "sub"
    magnitudes = (1e-30, 1e30)
    invariants = ("joint_translation", "homogeneous_1", "convex", "non_negative")

    def __post_init__(self) -> None:
        self.require("levels", "a list of different numbers, each > 0 and < 1", _are_levels)
        object.__setattr__(self, "levels", tuple(self.levels))  # a list, as YAML gives it, can't be hashed

    @property
    def outputs_per_target(self) -> int:
        return len(self.levels)

    def value(self, y_true: tf.Tensor, y_pred: tf.Tensor) -> tf.Tensor:
        above, below = self._weights(y_pred.dtype)
        error = y_true[..., tf.newaxis, :] - self._by_level(y_pred)  # [batch, ..., levels, dim]
        # max(t r, (t - 1) r) = t relu(r) + (1 - t) relu(-r), whose derivative by the tape is 0 at r = 0.
        return features.mean(above * tf.nn.relu(error) + below * tf.nn.relu(-error))

    def gradient(self, y_true: tf.Tensor, y_pred: tf.Tensor) -> tf.Tensor:
        above, below = self._weights(y_pred.dtype)
        side = tf.sign(y_true[..., tf.newaxis, :] - self._by_level(y_pred))
        slopes = below * tf.nn.relu(-side) - above * tf.nn.relu(side)
        return tf.reshape(features.mean_gradient(slopes), tf.shape(y_pred))

    def point(self, y_pred: tf.Tensor) -> tf.Tensor:
        """The quantile whose level is nearest to 0.5: [batch, ..., dim]."""
        nearest = min(range(len(self.levels)), key=lambda i: abs(self.levels[i] - 0.5))
        return self._by_level(y_pred)[..., nearest, :]

    def reference(self, y_true: list, y_pred: list) -> Any:
        errors = [(t, y - p) for (t, y), p in zip(((t, y) for t in self.levels for y in y_true), y_pred, strict=True)]
        return sum(t * r if r > 0 else (t - 1) * r for t, r in errors) / len(errors)

    def _weights(self, dtype: tf.DType) -> tuple[tf.Tensor, tf.Tensor]:
        above = [[level] for level in self.levels]
        below = [[1 - level] for level in self.levels]
        return tf.constant(above, dtype), tf.constant(below, dtype)  # [levels, 1] each

    def _by_level(self, y_pred: tf.Tensor) -> tf.Tensor:
        return tf.stack(tf.split(y_pred, len(self.levels), axis=-1), axis=-2)  # [batch, ..., levels, dim]


def _are_levels(levels: Any) -> bool:
    return len(levels) > 0 and all(0 < level < 1 for level in levels) and len(set(levels)) == len(levels)
