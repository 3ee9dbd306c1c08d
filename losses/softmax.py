"""What the losses of one class out of several share: targets as weights, and sums that leave one class out."""

import tensorflow as tf

from losses import features


def class_weights(y_true: tf.Tensor, y_pred: tf.Tensor) -> tf.Tensor:
    """Class indices [batch, ...] as weights [batch, ..., classes], NaN for a class out of range; weights stay as they are."""
    if not y_true.dtype.is_integer:
        return y_true
    is_class = tf.cast(y_true, tf.int64)[..., tf.newaxis] == tf.range(tf.shape(y_pred, tf.int64)[-1])
    return tf.where(tf.reduce_any(is_class, axis=-1, keepdims=True), tf.cast(is_class, y_pred.dtype), float("nan"))


def at_largest(x: tf.Tensor) -> tf.Tensor:
    """True at the largest entry of the last axis, the first of equal ones."""
    return tf.argmax(x, axis=-1)[..., tf.newaxis] == tf.range(tf.shape(x, tf.int64)[-1])


def lead(x: tf.Tensor, largest: tf.Tensor) -> tf.Tensor:
    """By how much the entry where `largest` is True exceeds every entry; at that entry 0, with derivative 0."""
    top = tf.reduce_sum(tf.where(largest, x, tf.zeros_like(x)), axis=-1, keepdims=True)
    return tf.where(largest, tf.zeros_like(x), top - x)


def sum_without(largest: tf.Tensor, x: tf.Tensor) -> tf.Tensor:
    """The sum over the last axis, kept as an axis, without the entry where `largest` is True."""
    return tf.reduce_sum(tf.where(largest, tf.zeros_like(x), x), axis=-1, keepdims=True)


def sum_of_others(x: tf.Tensor) -> tf.Tensor:
    """Of every entry >= 0 on the last axis the sum of the others, without cancellation: only the largest can exceed half the total."""
    largest = at_largest(x)
    total = tf.reduce_sum(x, axis=-1, keepdims=True)
    return tf.where(largest, sum_without(largest, x), total - x)


def surprise(x: tf.Tensor) -> tf.Tensor:
    """-log(softmax(x)), every class relatively accurate: the largest logit's lead plus log1p of the sum of the other powers."""
    largest = at_largest(x)
    behind = lead(x, largest)
    return behind + tf.math.log1p(sum_without(largest, tf.exp(-behind)))


def mean_gradient(slopes: tf.Tensor) -> tf.Tensor:
    """[batch, ..., classes] -> the same: derivatives of the positions' values become derivatives of their mean."""
    share = features.mean_gradient(tf.ones_like(slopes[..., 0]))  # 1 / number of positions that are averaged over
    return slopes * share[..., tf.newaxis]
