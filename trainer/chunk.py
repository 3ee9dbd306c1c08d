"""Chunks: up to K steps that run on the device, in a graph or as one XLA program. Nothing per step crosses to Python."""

import functools
from collections.abc import Callable
from typing import Any

import tensorflow as tf

from trainer import audit, step
from trainer.data.prepare import Split
from trainer.learner import Learner

Chunk = Callable[[tf.Tensor, tf.Tensor, tf.Tensor, tf.Tensor], tuple[tf.Tensor, tf.Tensor, tf.Tensor, tf.Tensor]]


def make_chunk(
    learner: Learner, data: Split, update: step.Update, steps_per_call: int, max_skipped: int, audit_tolerance: float = 0.0
) -> Chunk:
    """The function that runs up to `steps_per_call` steps.

    Args:
        learner: what is trained.
        data: the training part; it is put on the device, on every replica's under a strategy.
        update: how a step is computed, and compiled.
        steps_per_call: K.
        max_skipped: how many steps in a row may be not finite; the chunk ends with the one that is too many.
        audit_tolerance: relative error of an audit from which on the chunk ends with its step.

    Returns:
        chunk(indices, step, num_steps, skipped) -> (rows, num_done, skipped, parted): indices int32 [K, batch_size] into data, step
        int32 the updates before it, num_steps int32 <= K, skipped int32 the number of steps in a row, up to here, that were not finite;
        rows float32 [K, len(step.tags)] of which the first num_done are filled; parted bool, whether the last step's audit was beyond
        the tolerance.
    """
    arrays = _on_device(learner.strategy, data)
    num_columns = len(step.tags(learner, update))
    scalar = tf.TensorSpec([], tf.int32)

    # One tf.function for the whole run and no autograph: a retraced custom gradient would leak its graph.
    @tf.function(
        jit_compile=update.compiled == "chunk",
        autograph=False,
        input_signature=[tf.TensorSpec([steps_per_call, update.batch_size], tf.int32), scalar, scalar, scalar],
    )
    def chunk(indices: tf.Tensor, first: tf.Tensor, num_steps: tf.Tensor, skipped: tf.Tensor) -> tuple:
        def body(i: tf.Tensor, skipped: tf.Tensor, parted: tf.Tensor, rows: tf.TensorArray) -> tuple:
            row, finite, overflow = step.run(learner, update, functools.partial(_gather, arrays), indices[i], first + i)
            if update.audit_every:
                batch = _gather(step.local(arrays), indices[i])
                is_due = (first + i + 1) % update.audit_every == 0
                with tf.control_dependencies([row]):
                    measures, parted = audit.measure(learner, batch, is_due & finite, audit_tolerance)
                row = tf.concat([row, measures], axis=0)
            skipped = tf.where(finite, 0, tf.where(overflow, skipped, skipped + 1))
            return i + 1, skipped, parted, rows.write(i, row)

        def unfinished(i: tf.Tensor, skipped: tf.Tensor, parted: tf.Tensor, _: tf.TensorArray) -> tf.Tensor:
            return (i < num_steps) & (skipped <= max_skipped) & ~parted

        # A buffer of K rows whatever num_steps is, so that no border of logging, evaluation or saving retraces.
        rows = tf.TensorArray(tf.float32, size=steps_per_call, element_shape=[num_columns])
        start = (tf.constant(0), skipped, tf.constant(False), rows)
        num_done, skipped, parted, rows = tf.while_loop(unfinished, body, start, parallel_iterations=1)
        return rows.stack(), num_done, skipped, parted

    return chunk


def _on_device(strategy: tf.distribute.Strategy | None, data: Split) -> step.Arrays:
    """Features, targets and weights (None where all are 1) as tensors; under a strategy one copy on every replica's device."""

    def put(array: Any) -> Any:
        if strategy is None:
            return tf.constant(array)
        return strategy.experimental_distribute_values_from_function(lambda _: tf.constant(array))

    return step.each(put, (data.features, data.targets, data.weights))


def _gather(arrays: step.Arrays, indices: tf.Tensor) -> step.Arrays:
    return step.each(lambda array: tf.gather(array, indices), arrays)
