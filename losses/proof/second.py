"""Second derivatives, by differentiating the code of the gradient."""

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from losses.base import Loss, Tensors
from losses.modes import per_example
from losses.proof.evaluation import cast
from losses.proof.oracle import Batch


def hessian_times(batch: Batch, mode: str, direction: Tensors) -> np.ndarray:
    """The units' Hessians times a direction, [units, coordinates], in float64; raises LossError where the loss refuses."""
    product = _function(batch.loss, mode)(
        cast(batch.y_true, tf.float64), cast(batch.y_pred, tf.float64), cast(direction, tf.float64), tf.constant(batch.dy, tf.float64)
    )
    return batch.flat(tf.nest.map_structure(lambda h: h.numpy(), product))


@functools.lru_cache(maxsize=4)
def _function(loss: Loss, mode: str) -> Callable[..., Any]:
    @tf.function(autograph=False, reduce_retracing=True)
    def product(y_true: Tensors, y_pred: Tensors, direction: Tensors, dy: tf.Tensor) -> Tensors:
        with tf.GradientTape() as outer:
            outer.watch(tf.nest.flatten(y_pred))
            with tf.GradientTape() as inner:
                inner.watch(tf.nest.flatten(y_pred))
                value = per_example(loss, mode, y_true, y_pred)
            gradient = inner.gradient(value, y_pred, output_gradients=dy, unconnected_gradients="zero")
        # Of the gradient as a vector: the Hessian's transpose times the direction.
        return outer.gradient(gradient, y_pred, output_gradients=direction, unconnected_gradients="zero")

    return product
