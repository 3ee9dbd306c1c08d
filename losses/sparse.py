"""What the losses of sparse probabilities share: logits behind the largest, and probabilities less the true class."""

import tensorflow as tf


def behind(logits: tf.Tensor) -> tf.Tensor:
    """Logits minus the largest, [batch, classes]."""
    return logits - tf.reduce_max(logits, axis=-1, keepdims=True)


def of_class(t: tf.Tensor, x: tf.Tensor) -> tf.Tensor:
    """The entry of x at the class, [batch]; t holds 1 there and 0 elsewhere."""
    return tf.reduce_sum(tf.math.multiply_no_nan(x, t), axis=-1)


def others(t: tf.Tensor, x: tf.Tensor) -> tf.Tensor:
    """The sum over all other classes, [batch]."""
    return tf.reduce_sum((1 - t) * x, axis=-1)


def minus_class(p: tf.Tensor, t: tf.Tensor) -> tf.Tensor:
    """The difference p - t of probabilities p, which sum to 1: at the class minus the sum of the others, without cancellation."""
    return (1 - t) * p - t * others(t, p)[:, tf.newaxis]
