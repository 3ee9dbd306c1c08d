"""Chunks: up to K steps that run on the device, in a graph or as one XLA program. Nothing per step crosses to Python."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from trainer import audit, step
from trainer.data.prepare import Prepared, Split
from trainer.learner import Learner

Chunk = Callable[[Any, tf.Tensor, tf.Tensor, tf.Tensor], tuple[tf.Tensor, tf.Tensor, tf.Tensor, tf.Tensor]]

_FEW_BYTES = 2**26  # of all that learning changes: copied in a fraction of the time that a chunk takes, where no border cuts it short


def make_chunk(
    learner: Learner, data: Prepared, update: step.Update, steps_per_call: int, max_skipped: int, audit_tolerance: float = 0.0
) -> Chunk:
    """The function that runs up to `steps_per_call` steps.

    Args:
        learner: what is trained.
        data: its training part is put on the device, on every replica's under a strategy, if it is to be there.
        update: how a step is computed, and compiled.
        steps_per_call: K, 2 at least.
        max_skipped: how many steps in a row may be not finite; the chunk ends with the one that is too many.
        audit_tolerance: relative error of an audit from which on the chunk ends with its step.

    Returns:
        chunk(batches, step, num_steps, skipped) -> (rows, num_done, skipped, parted): batches int32 [K, batch_size] indices into data on
        the device, or of other data `Split.arrays()`, [K, batch_size, ...] (fewer than K too where not compiled as "chunk"); step int32
        the updates before it, num_steps int32 <= K, skipped int32 the number of steps in a row, up to here, that were not finite;
        rows float32 [K, tags of the learner, and of audits where there are any] of which the first num_done are filled; parted bool,
        whether the last step's audit was beyond the tolerance.

    To ask before every update whether it is finite holds a small model up: all gradients have to be there, and old values kept. Where the
    first update that is not ends the chunk, and little has to be copied, it is made, the state from before the chunk put back, and the
    other steps done again.
    """
    speculates = not (max_skipped or learner.scaler or learner.strategy) and learner.num_bytes <= _FEW_BYTES
    update = dataclasses.replace(update, guarded=not speculates)
    batches, batch = (_gathered if data.resident else _handed)(learner, data, update, steps_per_call)
    scalar = tf.TensorSpec([], tf.int32)

    # One tf.function for the whole run and no autograph: a retraced custom gradient would leak its graph.
    @tf.function(
        jit_compile=update.compiled == "chunk",
        autograph=False,
        input_signature=[batches, scalar, scalar, scalar],
    )
    def chunk(given: Any, first: tf.Tensor, num_steps: tf.Tensor, skipped: tf.Tensor) -> tuple:
        def body(i: tf.Tensor, skipped: tf.Tensor, rows: tf.TensorArray) -> tuple:
            gather, indices, _ = batch(given, i)
            row, finite, overflow = step.run(learner, update, gather, indices, first + i)
            return i + 1, tf.where(finite, 0, tf.where(overflow, skipped, skipped + 1)), rows.write(i, row)

        def steps(end: tf.Tensor, i: tf.Tensor, skipped: tf.Tensor, rows: tf.TensorArray) -> tuple:
            return tf.while_loop(
                lambda i, skipped, _: (i < end) & (skipped <= max_skipped), body, (i, skipped, rows), parallel_iterations=1
            )

        def audited(i: tf.Tensor, skipped: tf.Tensor, _: tf.Tensor, rows: tf.TensorArray, audits: tf.TensorArray) -> tuple:
            """Steps up to the next one with an audit, and that: a condition in every step would cost more than the audits."""
            until = update.audit_every - (first + i) % update.audit_every
            i, skipped, rows = steps(tf.minimum(num_steps, i + until), i, skipped, rows)
            is_due = ((first + i) % update.audit_every == 0) & (skipped == 0)
            measures, parted = audit.measure(learner, batch(given, i - 1)[2](), is_due, audit_tolerance)
            return i, skipped, parted, rows, audits.write(i - 1, measures)

        def unfinished(i: tf.Tensor, skipped: tf.Tensor, parted: tf.Tensor, *_: tf.TensorArray) -> tf.Tensor:
            return (i < num_steps) & (skipped <= max_skipped) & ~parted

        # Buffers of K rows whatever num_steps is, so that no border of logging, evaluation or saving retraces.
        rows = tf.TensorArray(tf.float32, size=steps_per_call, element_shape=[len(learner.tags)])
        if not update.audit_every:
            num_done, skipped, rows = steps(num_steps, tf.constant(0), skipped, rows)
            return rows.stack(), num_done, skipped, tf.constant(False)
        audits = tf.TensorArray(tf.float32, size=steps_per_call, element_shape=[len(audit.TAGS)])
        start = (tf.constant(0), skipped, tf.constant(False), rows, audits)
        num_done, skipped, parted, rows, audits = tf.while_loop(unfinished, audited, start, parallel_iterations=1)
        return tf.concat([rows.stack(), audits.stack()], axis=1), num_done, skipped, parted

    return _undoing(learner, _concrete(chunk)) if speculates else _concrete(chunk)


def _concrete(function: Any) -> Callable[..., Any]:
    """A tf.function of one signature, traced at its first call, and called in half the time that it takes itself."""
    traced = functools.cache(function.get_concrete_function)
    return lambda *arguments: traced()(*arguments)


def _undoing(learner: Learner, chunk: Chunk) -> Chunk:
    """A chunk without its last update, where that is not finite: the others are made again, to the bit, and its row says so."""
    variables = list(learner.named_variables().values())
    # Tensors instead of learner.capture(), which reads one variable after the other: values don't change with the variables.
    read = _concrete(tf.function(lambda: [tf.convert_to_tensor(variable) for variable in variables], autograph=False))

    def undoing(given: Any, first: tf.Tensor, num_steps: tf.Tensor, skipped: tf.Tensor) -> tuple:
        before = read()
        rows, num_done, skipped, parted = chunk(given, first, num_steps, skipped)
        if int(skipped):
            for variable, value in zip(variables, before, strict=True):
                variable.assign(value)
            chunk(given, first, num_done - 1, tf.constant(0))
            told = rows.numpy().copy()
            last = told[int(num_done) - 1]
            last[learner.tags.index("update_norm/global")] = 0
            squares = (np.square(weight.numpy(), dtype=np.float64).sum() for weight in learner.variables)
            last[learner.tags.index("param_norm/global")] = np.sqrt(sum(squares))
            rows = tf.constant(told)
        return rows, num_done, skipped, parted

    return undoing


# What a chunk is called with, and what of it is one step's: a function that gathers examples, their indices, and all of them at once.
_Batches = tuple[Any, Callable[[Any, tf.Tensor], tuple[step.Gather, tf.Tensor, Callable[[], step.Arrays]]]]


def _gathered(learner: Learner, data: Prepared, update: step.Update, steps_per_call: int) -> _Batches:
    """Batches are indices into examples on the device."""
    assert isinstance(data.train, Split)
    arrays = _on_device(learner.strategy, data.train)

    def batch(given: tf.Tensor, i: tf.Tensor) -> tuple:
        return functools.partial(_gather, arrays), given[i], lambda: _gather(step.local(arrays), given[i])

    return tf.TensorSpec([steps_per_call, update.batch_size], tf.int32), batch


def _handed(learner: Learner, data: Prepared, update: step.Update, steps_per_call: int) -> _Batches:
    """Batches are examples; a step's indices are their places in its batch, of which every replica gathers its share."""
    length = steps_per_call if update.compiled == "chunk" else None  # XLA would compile every length anew

    def batch(given: list[tf.Tensor], i: tf.Tensor) -> tuple:
        part = data.first.with_arrays([array[i] for array in given])
        whole = (part.features, part.targets, part.weights)
        gather = functools.partial(_gather, whole) if learner.strategy else lambda _: whole
        return gather, tf.range(update.batch_size), lambda: whole

    return [tf.TensorSpec([length, update.batch_size, *array.shape[1:]], array.dtype) for array in data.first.arrays()], batch


def _on_device(strategy: tf.distribute.Strategy | None, data: Split) -> step.Arrays:
    """Features, targets and weights (None where all are 1) as tensors; under a strategy one copy on every replica's device."""

    def put(array: Any) -> Any:
        if strategy is None:
            return tf.constant(array)
        return strategy.experimental_distribute_values_from_function(lambda _: tf.constant(array))

    return step.each(put, (data.features, data.targets, data.weights))


def _gather(arrays: step.Arrays, indices: tf.Tensor) -> step.Arrays:
    return step.each(lambda array: tf.gather(array, indices), arrays)
