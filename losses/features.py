"""The mean over an example's elements, and its derivative: what all losses of one element at a time share."""

import tensorflow as tf


def mean(values: tf.Tensor) -> tf.Tensor:
    """[batch, ...] -> [batch]: the mean over all axes but the first."""
    return tf.reduce_mean(values, axis=list(range(1, values.shape.rank)))


def mean_gradient(slopes: tf.Tensor) -> tf.Tensor:
    """[batch, ...] -> the same: derivatives of the elements become derivatives of their mean."""
    num_elements = slopes.shape[1:].num_elements()
    if num_elements is None:
        num_elements = tf.cast(tf.reduce_prod(tf.shape(slopes)[1:]), slopes.dtype)
    return slopes / num_elements
