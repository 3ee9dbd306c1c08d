"""One update, and chunks of them that run on the device.

A step: gather, forward, tape, one packed reduction over replicas, finiteness test, norms, clip, apply. Its scalars come back as
one row; a chunk stacks the rows of its steps, so that nothing per step crosses to Python.
"""

from collections.abc import Callable
from typing import Any

import tensorflow as tf

from losses.modes import per_example
from trainer.data.prepare import Split
from trainer.learner import Learner

Arrays = tuple[Any, ...]  # features, targets (a dict of them, or None) and weights (or None), of all examples or of a batch
Chunk = Callable[[tf.Tensor, tf.Tensor, tf.Tensor], tuple[tf.Tensor, tf.Tensor, tf.Tensor]]


def make_chunk(learner: Learner, data: Split, batch_size: int, steps_per_call: int, jit_compile: bool, max_skipped: int) -> Chunk:
    """The function that runs up to `steps_per_call` steps.

    Args:
        learner: what is trained.
        data: the training part; it is put on the device, on every replica's under a strategy.
        batch_size: global, divisible by the number of replicas.
        steps_per_call: K.
        jit_compile: whether the whole chunk becomes one XLA program.
        max_skipped: how many steps in a row may be not finite; the chunk ends with the one that is too many. The update of a step
            that is not finite is never applied, and what its forward pass did to other variables is undone.

    Returns:
        chunk(indices, num_steps, skipped) -> (rows, num_done, skipped): indices int32 [K, batch_size] into data, num_steps int32 <= K,
        skipped int32 the number of steps in a row, up to here, that were not finite; rows float32 [K, len(learner.tags)] of which the
        first num_done are filled.
    """
    arrays = _on_device(learner.strategy, data)
    num_columns = len(learner.tags)

    scalar = tf.TensorSpec([], tf.int32)

    # One tf.function for the whole run and no autograph: a retraced custom gradient would leak its graph.
    @tf.function(
        jit_compile=jit_compile,
        autograph=False,
        input_signature=[tf.TensorSpec([steps_per_call, batch_size], tf.int32), scalar, scalar],
    )
    def chunk(indices: tf.Tensor, num_steps: tf.Tensor, skipped: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        def body(i: tf.Tensor, skipped: tf.Tensor, rows: tf.TensorArray) -> tuple[tf.Tensor, tf.Tensor, tf.TensorArray]:
            row, finite = _step(learner, arrays, indices[i], batch_size, jit_compile)
            return i + 1, tf.where(finite, 0, skipped + 1), rows.write(i, row)

        def unfinished(i: tf.Tensor, skipped: tf.Tensor, _: tf.TensorArray) -> tf.Tensor:
            return (i < num_steps) & (skipped <= max_skipped)

        # A buffer of K rows whatever num_steps is, so that no border of logging, evaluation or saving retraces.
        rows = tf.TensorArray(tf.float32, size=steps_per_call, element_shape=[num_columns])
        num_done, skipped, rows = tf.while_loop(unfinished, body, (tf.constant(0), skipped, rows), parallel_iterations=1)
        return rows.stack(), num_done, skipped

    return chunk


def _on_device(strategy: tf.distribute.Strategy | None, data: Split) -> Arrays:
    """Features, targets and weights (None where all are 1) as tensors; under a strategy one copy on every replica's device."""

    def put(array: Any) -> Any:
        if strategy is None:
            return tf.constant(array)
        return strategy.experimental_distribute_values_from_function(lambda _: tf.constant(array))

    return tuple(None if part is None else tf.nest.map_structure(put, part) for part in (data.features, data.targets, data.weights))


def _step(learner: Learner, arrays: Arrays, indices: tf.Tensor, batch_size: int, jit_compile: bool) -> tuple[tf.Tensor, tf.Tensor]:
    """One update on the examples at `indices` [batch_size]; its row and whether it was finite, that is, applied."""
    others = [variable.value for variable in learner.model.non_trainable_variables]  # moving averages, states of random generators
    others_before = [tf.identity(_read(variable)) for variable in others]
    if learner.strategy is None:
        gradients, scalars = _gradients(learner, _gather(arrays, indices), batch_size)
    else:
        gradients, scalars = _local(learner.strategy.run(_replica_gradients, args=(learner, arrays, indices, batch_size)))
    squares = [_sum_of_squares(g, jit_compile) for g in gradients]
    norm = tf.sqrt(tf.add_n(squares))
    loss = scalars[0]
    finite = tf.math.is_finite(norm) & tf.math.is_finite(loss)
    learning_rate = tf.cast(learner.optimizer.learning_rate, tf.float32)
    if learner.clip_norm:
        scale = tf.minimum(1.0, learner.clip_norm / tf.maximum(norm, learner.clip_norm))
        gradients = [g * scale for g in gradients]
    before = [tf.identity(_read(w)) for w in learner.weights]
    applied = tf.cond(finite, lambda: _apply(learner, gradients), lambda: _undo(others, others_before))
    with tf.control_dependencies([applied]):
        after = [tf.identity(_read(w)) for w in learner.weights]
    updates = [_sum_of_squares(a - b, jit_compile) for a, b in zip(after, before, strict=True)]
    row = [loss, norm, tf.sqrt(tf.add_n(updates)), tf.sqrt(tf.add_n([_sum_of_squares(a, jit_compile) for a in after])), learning_rate]
    row += [norm * scale] if learner.clip_norm else []
    row += [scalars[1]] if learner.model.losses else []
    row += [tf.sqrt(square) for square in squares] if learner.per_variable else []
    return tf.stack(row), finite


def _gather(arrays: Arrays, indices: tf.Tensor) -> Arrays:
    return tuple(None if part is None else tf.nest.map_structure(lambda array: tf.gather(array, indices), part) for part in arrays)


def _gradients(learner: Learner, batch: Arrays, batch_size: int) -> tuple[list[tf.Tensor], list[tf.Tensor]]:
    """Gradients of the total loss by every trainable variable, and its scalars [total, regularization], of one replica.

    Both are scaled by the global batch, so that their sum over replicas is what one device would have.
    """
    features, targets, weights = batch
    with tf.GradientTape() as tape:
        predictions = learner.model(features, training=True)
        mask = None if weights is None else weights > 0
        values = tf.cast(per_example(learner.loss, learner.gradient_mode, targets, predictions, mask), tf.float32)
        total = tf.reduce_sum(values if weights is None else values * weights) / batch_size
        regularization = tf.add_n(learner.model.losses) / learner.num_replicas if learner.model.losses else tf.constant(0.0)
        total += regularization
    gradients = tape.gradient(total, learner.weights, unconnected_gradients=tf.UnconnectedGradients.ZERO)
    # A host function leaves shapes open.
    shaped = [tf.ensure_shape(tf.convert_to_tensor(g), w.shape) for g, w in zip(gradients, learner.weights, strict=True)]
    return [tf.cast(g, tf.float32) for g in shaped], [total, regularization]


def _replica_gradients(learner: Learner, arrays: Arrays, indices: tf.Tensor, batch_size: int) -> tuple[list, list]:
    """`_gradients` of this replica's share of the batch, summed over the replicas in one packed reduction."""
    context = tf.distribute.get_replica_context()
    share = tf.reshape(indices, [learner.num_replicas, -1])[context.replica_id_in_sync_group]
    gradients, scalars = _gradients(learner, _gather(arrays, share), batch_size)
    parts = [*gradients, *scalars]
    packed = context.all_reduce(tf.distribute.ReduceOp.SUM, tf.concat([tf.reshape(part, [-1]) for part in parts], axis=0))
    pieces = tf.split(packed, [part.shape.num_elements() for part in parts])
    reduced = [tf.reshape(piece, part.shape) for piece, part in zip(pieces, parts, strict=True)]
    return reduced[: len(gradients)], reduced[len(gradients) :]


def _apply(learner: Learner, gradients: list[tf.Tensor]) -> tf.Tensor:
    if learner.strategy is None:
        _update(learner, gradients)
    else:
        learner.strategy.run(_update, args=(learner, gradients))
    return tf.constant(1)


def _undo(variables: list[Any], values: list[tf.Tensor]) -> tf.Tensor:
    for variable, value in zip(variables, values, strict=True):
        variable.assign(value)
    return tf.constant(0)


def _update(learner: Learner, gradients: list[tf.Tensor]) -> None:
    weights = learner.model.trainable_variables
    learner.optimizer.apply([tf.cast(g, w.dtype) for g, w in zip(gradients, weights, strict=True)], weights)
    if learner.ema_decay:
        for average, weight in zip(learner.ema, weights, strict=True):
            average.assign(learner.ema_decay * average + (1 - learner.ema_decay) * tf.cast(weight.value, average.dtype))


def _sum_of_squares(tensor: tf.Tensor, jit_compile: bool) -> tf.Tensor:
    tensor = tf.cast(tensor, tf.float32)
    if not jit_compile:
        return 2 * tf.nn.l2_loss(tensor)  # one fused pass
    # XLA on the CPU sums one after the other in float32; a product with ones sums row by row, several times faster, and errs less.
    squares = tf.square(tensor)
    if tensor.shape.rank > 1:
        squares = tf.linalg.matvec(tf.reshape(squares, [-1, tensor.shape[-1]]), tf.ones([tensor.shape[-1]]))
    return tf.reduce_sum(squares)


def _local(values: Any) -> Any:
    """This host's first copy of per-replica values that are equal on all replicas."""
    return tf.nest.map_structure(lambda v: v.values[0] if isinstance(v, tf.distribute.DistributedValues) else v, values)


def _read(weight: Any) -> tf.Tensor:
    return weight.values[0] if isinstance(weight, tf.distribute.DistributedValues) else weight
