"""The one place where a gradient mode is applied: "auto", the tape through a loss's value, or "analytic", the loss's own gradient.

`per_example` multiplies by the incoming `dy`, masks, casts, and refuses what `tf.custom_gradient` would let slip. `measures` is for
evaluation, without a gradient.
"""

import functools
from collections.abc import Callable

import tensorflow as tf

from losses.base import Loss, LossError, Tensors, entries, map_entries, pinned


def per_example(loss: Loss, mode: str, y_true: Tensors, y_pred: Tensors, mask: tf.Tensor | None = None) -> tf.Tensor:
    """The loss of every example in a gradient mode.

    Args:
        loss: the loss.
        mode: "auto" (the tape through `loss.value`) or "analytic" (the loss's own gradient).
        y_true: targets; integers become floats unless the loss takes class indices. No gradient flows into them in either mode.
        y_pred: predictions, floating point. Half precision is computed in float32; the gradient comes back in half precision.
        mask: bool [batch]; examples where it is False have value 0 and gradient 0, whatever they hold, NaN included.

    Returns:
        [batch], in the dtype of y_pred, float32 for half precision.

    Raises:
        LossError: the loss lacks the mode, shapes or dtypes don't fit, or the loss's value or gradient breaks the contract.
    """
    if mode not in loss.modes:
        have = " and ".join(loss.modes) or "none"
        raise LossError(f"loss {loss.name} has no gradient mode {mode!r}: it has {have}")
    return _applied(loss, mode, y_true, y_pred, mask)


def measures(loss: Loss, y_true: Tensors, y_pred: Tensors, mask: tf.Tensor | None = None) -> tuple[tf.Tensor, ...]:
    """The loss of every example, and its metrics in the order of their names, `[batch]` each; takes what `per_example` takes."""
    return _applied(loss, None, y_true, y_pred, mask)


def _applied(loss: Loss, mode: str | None, y_true: Tensors, y_pred: Tensors, mask: tf.Tensor | None) -> Tensors:
    """The loss in a gradient mode, or without one its measures, of what is converted, checked and masked."""
    y_pred = map_entries(lambda _, p: tf.convert_to_tensor(p), y_pred)
    y_true = map_entries(lambda _, y: tf.convert_to_tensor(y), y_true) if y_true is not None else None
    for key, p in entries(y_pred).items():
        where = f" {key}" if key is not None else ""
        if not p.dtype.is_floating:
            raise LossError(f"loss {loss.name}: y_pred{where} must be floating point; found {p.dtype.name}")
        if not p.shape.rank:
            raise LossError(
                f"loss {loss.name}: y_pred{where} must have a batch axis and a known rank; found shape {p.shape}. "
                "In a graph, tf.ensure_shape(y_pred, [None, 10]) tells it"
            )
    compute = tf.float64 if any(p.dtype == tf.float64 for p in entries(y_pred).values()) else tf.float32
    y_pred = tf.nest.map_structure(lambda p: tf.cast(p, compute), y_pred)
    first = next(p for key, p in entries(y_pred).items() if key not in loss.shared)
    if y_true is not None:
        y_true = tf.nest.map_structure(lambda y: tf.stop_gradient(cast_target(loss, y, compute)), y_true)
    loss.check_shapes(y_true, y_pred)
    if y_true is not None:
        y_true = _pinned_target(loss, y_true, y_pred, first)
    if mask is not None:
        mask = tf.convert_to_tensor(mask)
        if mask.dtype != tf.bool or not mask.shape.is_compatible_with(first.shape[:1]):
            raise LossError(
                f"loss {loss.name}: mask must be bool of shape {tuple(first.shape[:1])}; found {mask.dtype.name} of {tuple(mask.shape)}"
            )
        mask = pinned(mask, first.shape[:1], lambda: tf.shape(first)[:1])
        # Masking the inputs too: a NaN that only the value is masked for would still reach the gradient as 0 * NaN.
        y_true = tf.nest.map_structure(lambda y: _masked(mask, y), y_true) if y_true is not None else None
        y_pred = map_entries(lambda key, p: p if key in loss.shared else _masked(mask, p), y_pred)
    dims: tuple = tuple(tuple(t.shape) if key in loss.shared else tuple(t.shape[1:]) for key, t in entries(y_pred).items())
    if y_true is not None:  # targets of another rank would make the rank unknown
        dims += tuple(y.shape.rank for y in tf.nest.flatten(y_true))
    try:
        function = _function(loss, mode, dims)
    except TypeError as error:
        raise LossError(f"loss {loss.name}: hyperparameters must be hashable, a tuple instead of a list: {error}") from error
    if mode == "auto" and tf.inside_function():
        # The tape hands shapes on from a function to its gradient; XLA then takes all that goes in for constants, weights too,
        # and compiles anew at every call.
        function = functools.partial(_evaluate, loss, mode)
    # Otherwise a function, in a graph too: forward-mode differentiation ignores a custom gradient that is not inside one.
    found = function(y_true, y_pred, mask if loss.coupled else None)
    return found if mask is None else tf.nest.map_structure(lambda each: _masked(mask, each), found)


def _evaluate(loss: Loss, mode: str | None, y_true: Tensors, y_pred: Tensors, mask: tf.Tensor | None) -> Tensors:
    keyword = {} if mask is None else {"mask": mask}
    if mode is None:
        return loss._checked_measures(loss.measures(y_true, y_pred, **keyword), y_pred)
    if mode == "auto":
        return loss._checked_value(loss.value(y_true, y_pred, **keyword), y_pred)

    @tf.custom_gradient
    def analytic(*flat: tf.Tensor) -> tuple[tf.Tensor, Callable]:
        inputs = tf.nest.pack_sequence_as(y_pred, flat)
        value, vjp = loss.value_and_vjp(y_true, inputs, **keyword)

        def grad(dy: tf.Tensor) -> list[tf.Tensor]:
            gradient = loss._checked_gradient(vjp(dy), inputs)
            if loss.second_order == "refuse":
                gradient = tf.nest.map_structure(loss._refuse_second_order, gradient)
            # identity: a gradient made before grad, as one that ignores dy can be, would not be found in the backward graph.
            return [tf.identity(g) for g in tf.nest.flatten(gradient)]

        return loss._checked_value(value, inputs), grad

    try:
        return analytic(*tf.nest.flatten(y_pred))
    except TypeError as error:
        if "'variables'" not in str(error):
            raise
        raise LossError(
            f"loss {loss.name} uses a trainable variable inside: pass weights in as entries of y_pred, so that they get a gradient"
        ) from error


@functools.lru_cache(maxsize=256)
def _function(loss: Loss, mode: str | None, dims: tuple) -> Callable:
    # One for each `dims`: reduce_retracing may then make no axis unknown but the batch.
    return tf.function(functools.partial(_evaluate, loss, mode), reduce_retracing=True, autograph=False)


def cast_target(loss: Loss, y_true: tf.Tensor, compute: tf.DType) -> tf.Tensor:
    keeps_integers = y_true.dtype.is_integer and ("classes" in loss.targets or "labels" in loss.targets)
    return y_true if keeps_integers else tf.cast(y_true, compute)


def _masked(mask: tf.Tensor, tensor: tf.Tensor) -> tf.Tensor:
    rank = tensor.shape.rank
    like = [-1] + [1] * (rank - 1) if rank is not None else tf.concat([[-1], tf.ones([tf.rank(tensor) - 1], tf.int32)], axis=0)
    return tf.where(tf.reshape(mask, like), tensor, tf.zeros_like(tensor))


def _pinned_target(loss: Loss, y_true: Tensors, y_pred: Tensors, first: tf.Tensor) -> Tensors:
    if type(loss).check_shapes is Loss.check_shapes:
        like = loss._target_like(y_true, y_pred)
        return pinned(y_true, like.shape, lambda: tf.shape(like))

    def of_batch(y: tf.Tensor) -> tf.Tensor:  # a loss with shapes of its own: only the batch is known to agree
        if not y.shape[:1].is_compatible_with(first.shape[:1]):
            raise LossError(f"loss {loss.name}: y_true of shape {tuple(y.shape)} has not the batch size of y_pred, {first.shape[0]}")
        return pinned(y, first.shape[:1].concatenate(y.shape[1:]), lambda: tf.concat([tf.shape(first)[:1], tf.shape(y)[1:]], axis=0))

    return tf.nest.map_structure(of_batch, y_true)
