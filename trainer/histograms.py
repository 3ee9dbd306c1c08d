"""Histograms of the raw gradient of every variable, of every N-th step, for TensorBoard.

Before such a step the chunk ends, and the gradient of the batch that comes next, at the weights that it meets, is computed once more,
outside of the chunk. Within a step, XLA would count at every step, or pay for a condition at every step, and every way of compiling would
need its own counting; outside, one plain graph serves all of them, and a run without histograms is compiled and run as if there were none.
The price is one more forward and backward pass every N steps. It changes nothing of what is learned: the pass is a function of weights and
batch alone. Where XLA compiles the steps, its gradients may differ from these in their last bits.
"""

import dataclasses
from collections.abc import Callable

import numpy as np
import tensorflow as tf

from trainer import step
from trainer.data.prepare import Prepared
from trainer.learner import Learner

NUM_BUCKETS = 30  # as many as TensorBoard shows


def make_histograms(learner: Learner, data: Prepared, update: step.Update) -> Callable[[int, np.ndarray], dict[str, np.ndarray]]:
    """The function that counts.

    Args:
        learner: what is trained.
        data: its training part gives the examples.
        update: how a step is computed; parts and replicas are those of the step.

    Returns:
        histograms(step, indices): of the batch of examples int [batch_size], after `step` updates, before clipping: "gradient/" and the
        variable's path to buckets float64 [NUM_BUCKETS, 3] of left edge, right edge and count, between the least and the largest value.
        What is not finite is not counted.
    """
    update = dataclasses.replace(update, compiled="graph")
    examples = [tf.TensorSpec([update.batch_size, *array.shape[1:]], array.dtype) for array in data.first.arrays()]

    @tf.function(autograph=False, input_signature=[examples, tf.TensorSpec([], tf.int32)])
    def counted(arrays: list[tf.Tensor], done: tf.Tensor) -> tf.Tensor:
        part = data.first.with_arrays(arrays)
        batch = (part.features, part.targets, part.weights)

        def gather(indices: tf.Tensor) -> step.Arrays:
            return step.each(lambda array: tf.gather(array, indices), batch)

        gradients, _, _ = step.backward(learner, update, gather, tf.range(update.batch_size), done)
        return tf.stack([_buckets(gradient) for gradient in gradients])

    def histograms(done: int, indices: np.ndarray) -> dict[str, np.ndarray]:
        found = counted([tf.constant(array) for array in data.train.rows(indices).arrays()], tf.constant(done)).numpy()
        return {f"gradient/{variable.path}": buckets for variable, buckets in zip(learner.variables, found, strict=True)}

    return histograms


def _buckets(values: tf.Tensor) -> tf.Tensor:
    """Float64 [NUM_BUCKETS, 3]; of equal values the last bucket has all, as TensorBoard wants it."""
    values = tf.reshape(values, [-1])
    values = tf.boolean_mask(values, tf.math.is_finite(values))
    low, high = (tf.where(tf.size(values) > 0, edge(values), 0.0) for edge in (tf.reduce_min, tf.reduce_max))
    above = tf.where(low < high, high, low + tf.abs(low) + 1)  # an empty range is refused
    counts = tf.histogram_fixed_width(values, [low, above], NUM_BUCKETS)
    counts = tf.cast(tf.where(low < high, counts, tf.reverse(counts, [0])), tf.float64)
    edges = tf.linspace(tf.cast(low, tf.float64), tf.cast(high, tf.float64), NUM_BUCKETS + 1)
    return tf.stack([edges[:-1], edges[1:], counts], axis=1)
