"""A loss's value and gradient on arrays, as training gets them: through the one adapter, in any mode and way of compiling."""

import functools
from typing import Any

import numpy as np
import tensorflow as tf

from losses.base import Loss, Tensors, entries, map_entries
from losses.modes import per_example

WAYS = ("eager", "graph", "xla")


def cast(arrays: Tensors, dtype: tf.DType) -> Tensors:
    """Arrays as tensors, floating point ones in `dtype`."""
    if arrays is None:
        return None
    return tf.nest.map_structure(
        lambda a: tf.constant(a) if np.asarray(a).dtype.kind in "iub" else tf.cast(tf.constant(np.asarray(a, np.float64)), dtype), arrays
    )


def evaluate(
    loss: Loss, mode: str, y_true: Tensors, y_pred: Tensors, dy: Any = None, how: str = "graph", mask: Any = None
) -> tuple[np.ndarray, Any]:
    """Value, and gradient of sum(dy * value).

    Args:
        loss: the loss.
        mode: "analytic", "auto", or "usual" for the tape through `loss.usual`.
        y_true: tensors or arrays, as the loss takes them.
        y_pred: tensors in the dtype that is meant.
        dy: [batch]; ones by default.
        how: out of WAYS.
        mask: bool [batch], or None.

    Returns:
        The value, [batch], and the gradient, structured as y_pred: arrays in the dtypes that training gets; zeros where the tape
        finds no path.
    """
    y_true = None if y_true is None else map_entries(lambda _, y: tf.convert_to_tensor(y), y_true)
    y_pred = map_entries(lambda _, p: tf.convert_to_tensor(p), y_pred)
    batch = next(len(p) for key, p in entries(y_pred).items() if key not in loss.shared)
    dy = tf.constant(np.ones(batch) if dy is None else dy, tf.float64)
    mask = None if mask is None else tf.convert_to_tensor(mask)
    function = _function(loss, mode, how)
    if how != "eager" and not (loss.coupled or loss.structured or loss.shared):  # where a size that is not known is no more work
        # Traced once for all batch sizes.
        function.get_concrete_function(
            None if y_true is None else map_entries(_any_batch, y_true),
            map_entries(_any_batch, y_pred),
            _any_batch(None, dy),
            None if mask is None else _any_batch(None, mask),
        )
    value, gradient = function(y_true, y_pred, dy, mask)
    return value.numpy(), tf.nest.map_structure(lambda g: g.numpy(), gradient)


def _any_batch(_: str | None, tensor: tf.Tensor) -> tf.TensorSpec:
    return tf.TensorSpec([None, *tensor.shape[1:]], tensor.dtype)


@functools.lru_cache(maxsize=16)  # a function for every shape it has met; those of mutants are soon forgotten
def _function(loss: Loss, mode: str, how: str) -> Any:
    def value_and_gradient(y_true: Tensors, y_pred: Tensors, dy: tf.Tensor, mask: tf.Tensor | None) -> tuple[tf.Tensor, Tensors]:
        with tf.GradientTape() as tape:
            tape.watch(tf.nest.flatten(y_pred))
            value = _usual(loss, y_true, y_pred) if mode == "usual" else per_example(loss, mode, y_true, y_pred, mask)
        gradient = tape.gradient(value, y_pred, output_gradients=tf.cast(dy, value.dtype), unconnected_gradients="zero")
        return value, tf.nest.map_structure(tf.convert_to_tensor, gradient)

    if how == "eager":
        return value_and_gradient
    return tf.function(value_and_gradient, jit_compile=how == "xla", autograph=False, reduce_retracing=True)


def _usual(loss: Loss, y_true: Tensors, y_pred: Tensors) -> tf.Tensor:
    assert loss.usual is not None
    dtype = tf.nest.flatten(y_pred)[0].dtype
    if y_true is not None:
        y_true = tf.nest.map_structure(lambda y: y if tf.as_dtype(y.dtype).is_integer else tf.cast(y, dtype), y_true)
    return loss.usual(y_true, y_pred)
