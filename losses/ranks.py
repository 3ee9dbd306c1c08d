"""Orders and ranks of the items of lists."""

import tensorflow as tf


def ascending(x: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """The order that sorts every list [batch, n], equal items as they stand, and the order back; both for gather with batch_dims=1."""
    order = tf.argsort(x, axis=-1, stable=True)
    return order, tf.argsort(order, axis=-1)


def mean_ranks(x: tf.Tensor) -> tf.Tensor:
    """The ranks, from 1, of the items of every list [batch, n]; equal ones share the mean of theirs, and NaN has none."""
    smaller, equal = (
        tf.reduce_sum(tf.cast(relation(x[:, tf.newaxis, :], x[:, :, tf.newaxis]), x.dtype), axis=-1) for relation in (tf.less, tf.equal)
    )
    return tf.where(tf.math.is_nan(x), x, smaller + (equal + 1) / 2)
