"""Cubed absolute error, whose cube is an operation that TensorFlow can't differentiate."""

import dataclasses
from typing import Any

import numpy as np
import tensorflow as tf

from losses import features
from losses.base import Loss


@dataclasses.dataclass(frozen=True)
class Cubic(Loss):
    """Cubed absolute error through an operation in NumPy: an example of an operation that has no gradient of its own.

    value = mean of op(x), x = |p - y|, op(x) = x^3 run by NumPy on the host
    d/dp  = 3 x^2 sign(p - y) / n, n the number of elements of an example

    There is no auto: TensorFlow can't see into op.

    XLA can't compile it: in Keras, compile with jit_compile=False. A SavedModel that holds it does not run in another process
    (the Python function is not saved).

    Domain: all real p, y; a cube that overflows is inf. Shapes: y [batch, ..., dim], p the same.
    Kinks: none.
    """

    differentiable = False
    xla = False
    second_order = "refuse"
    magnitudes = (1e-11, 1e12)

    def value(self, y_true: tf.Tensor, y_pred: tf.Tensor) -> tf.Tensor:
        size = tf.abs(y_pred - y_true)
        cubes = tf.numpy_function(_cube, [size], size.dtype, stateful=False)
        return features.mean(tf.ensure_shape(cubes, size.shape))

    def gradient(self, y_true: tf.Tensor, y_pred: tf.Tensor) -> tf.Tensor:
        error = y_pred - y_true
        return features.mean_gradient(3 * error * tf.abs(error))  # 3 x^2 sign(p - y)

    def reference(self, y_true: list, y_pred: list) -> Any:
        return sum(abs(p - y) ** 3 for y, p in zip(y_true, y_pred, strict=True)) / len(y_pred)


def _cube(x: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore", under="ignore"):  # as in TensorFlow, inf and 0 without a warning
        return x**3
