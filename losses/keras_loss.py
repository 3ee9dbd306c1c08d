"""The Keras face of a loss: for `compile`, `fit` and saved models."""

import dataclasses
from typing import Any

import keras
import tensorflow as tf

import losses
from losses.base import Loss, LossError
from losses.modes import per_example

_BY_HAND = "write the training loop by hand around losses.modes.per_example(loss, mode, y_true, y_pred, mask)"


@keras.saving.register_keras_serializable(package="gradtrain")
class KerasLoss(keras.losses.Loss):
    """A loss in a gradient mode, as Keras wants it.

    Unlike Keras' own losses it keeps dtypes (float64 stays float64, class indices stay integers), and an example, or a time step,
    of weight 0 has no part in the loss or its gradient even where it holds NaN.

    Args:
        loss: a loss whose target and prediction are single tensors.
        gradient: "analytic" or "auto".
        reduction: "sum_over_batch_size", "mean", "mean_with_sample_weight", "sum", "none" or None.
        name: shown by Keras; the loss's own by default.

    Raises:
        LossError: the loss does not fit `compile`, or lacks the gradient mode.
    """

    def __init__(self, loss: Loss, gradient: str = "analytic", reduction: str | None = "sum_over_batch_size", name: str | None = None):
        super().__init__(name=name or loss.name, reduction=reduction)
        if loss.shared or "none" in loss.targets:
            what = "takes no target" if "none" in loss.targets else "takes a dict of predictions"
            raise LossError(f"loss {loss.name} {what}, which does not fit Keras' compile: {_BY_HAND}")
        if gradient not in loss.modes:
            raise LossError(f"loss {loss.name} has no gradient mode {gradient!r}: it has {' and '.join(loss.modes) or 'none'}")
        self.loss = loss
        self.gradient = gradient

    def __call__(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> tf.Tensor:
        """The reduced loss.

        Args:
            y_true: as the loss takes it, one tensor.
            y_pred: as the loss takes it, one tensor.
            sample_weight: a number, [batch] or [batch, 1]; or one weight per time step, [batch, steps], for a loss that averages
                over time steps: then they are reduced together. A mask that Keras' layers attach to y_pred is honored likewise.

        Returns:
            A scalar; for reduction none [batch], or [batch, steps] where there is a weight or a mask for every time step.
        """
        if y_true is None or isinstance(y_true, dict) or isinstance(y_pred, dict):
            raise LossError(f"loss {self.loss.name}: a dict of tensors, or no target, does not fit Keras' compile: {_BY_HAND}")
        mask = getattr(y_pred, "_keras_mask", None)
        y_true, y_pred = tf.convert_to_tensor(y_true), tf.convert_to_tensor(y_pred)
        dtype = tf.float64 if y_pred.dtype == tf.float64 else tf.float32
        rank = y_pred.shape.rank
        weights = [None if w is None else self._aligned(tf.cast(w, dtype), rank) for w in (sample_weight, mask)]
        given = [weight for weight in weights if weight is not None]
        if not given:
            return self._reduced(per_example(self.loss, self.gradient, y_true, y_pred), None, None)
        if any(weight.shape.rank == 2 for weight in given):
            if self.loss.coupled or {"series", "points"} & set(self.loss.targets):
                raise LossError(f"loss {self.loss.name} does not average over time steps: give one weight per example, [batch]")
            steps = tf.shape(y_pred)[:2]
            y_true, y_pred = _merge_steps(y_true), _merge_steps(y_pred)
        else:
            steps = tf.shape(y_pred)[:1]
        weight, mask = (None if w is None else tf.broadcast_to(w if w.shape.rank else w[tf.newaxis], steps) for w in weights)
        counted = tf.ones(steps, dtype) if weight is None else weight
        counted = counted if mask is None else tf.where(mask != 0, counted, tf.zeros_like(counted))
        values = per_example(self.loss, self.gradient, y_true, y_pred, tf.reshape(counted, [-1]) != 0)
        return self._reduced(tf.reshape(values, steps) * counted, counted, mask)

    def get_config(self) -> dict[str, Any]:
        """The loss by name, with its hyperparameters; a loss of one's own can't be found by name again and is refused."""
        if self.loss.name not in losses.names():
            raise LossError(
                f"loss {self.loss.name} is not one of gradtrain's and can't be saved with the model by name: "
                "save the weights alone, or compile after loading"
            )
        hyperparameters = {field.name: getattr(self.loss, field.name) for field in dataclasses.fields(self.loss)}
        return super().get_config() | {"loss": self.loss.name, "gradient": self.gradient, "hyperparameters": hyperparameters}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "KerasLoss":
        """The loss that `get_config` described."""
        loss = losses.find(config["loss"])(**config["hyperparameters"])
        return cls(loss, gradient=config["gradient"], reduction=config["reduction"], name=config["name"])

    def _aligned(self, weight: tf.Tensor, rank: int | None) -> tf.Tensor:
        """A weight or mask as a number, [batch], or [batch, steps] where y_pred has an axis of time steps."""
        if weight.shape.rank == 2 and weight.shape[1] == 1 and rank == 2:
            weight = tf.squeeze(weight, axis=1)
        if weight.shape.rank is None or weight.shape.rank > 2 or (weight.shape.rank == 2 and (rank is None or rank < 3)):
            raise LossError(
                f"loss {self.loss.name}: weights and masks are [batch], or [batch, steps] where y_pred is [batch, steps, ...]; "
                f"found {weight.shape} with y_pred of rank {rank}"
            )
        return weight

    def _reduced(self, values: tf.Tensor, weight: tf.Tensor | None, mask: tf.Tensor | None) -> tf.Tensor:
        """Keras' reductions: the mean divides by the number of values that Keras' mask leaves, not by the weights' sum."""
        if self.reduction in (None, "none"):
            return values
        total = tf.reduce_sum(values)
        if self.reduction == "sum":
            return total
        if self.reduction == "mean_with_sample_weight" and weight is not None:
            divisor = tf.reduce_sum(weight)
        else:
            divisor = tf.cast(tf.size(values), values.dtype) if mask is None else tf.reduce_sum(mask)
        return tf.math.divide_no_nan(total, divisor) / tf.distribute.get_strategy().num_replicas_in_sync


def _merge_steps(tensor: tf.Tensor) -> tf.Tensor:
    """[batch, steps, ...] -> [batch * steps, ...]."""
    merged = tf.reshape(tensor, tf.concat([[-1], tf.shape(tensor)[2:]], axis=0))
    return tf.ensure_shape(merged, [None, *tensor.shape[2:]])
