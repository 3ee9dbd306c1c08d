"""What the losses of one class out of several share: targets as weights, and sums that leave one class out."""

import tensorflow as tf

from losses import features


def class_weights(y_true: tf.Tensor, y_pred: tf.Tensor) -> tf.Tensor:
    """Class indices [batch, ...] as weights [batch, ..., classes], NaN for a class out of range; weights stay as they are."""
    if not y_true.dtype.is_integer:
        return y_true
    return tf.where(_known(y_true, y_pred)[..., tf.newaxis], tf.cast(is_class(y_true, y_pred), y_pred.dtype), float("nan"))


def is_class(y_true: tf.Tensor, y_pred: tf.Tensor) -> tf.Tensor:
    """True on the last axis of y_pred at the class out of y_true [batch, ...], integers of any width."""
    classes = _index(y_true)
    return classes[..., tf.newaxis] == tf.range(tf.shape(y_pred, classes.dtype)[-1])


def at_class(y_true: tf.Tensor, y_pred: tf.Tensor) -> tf.Tensor:
    """The entry of y_pred's last axis, kept as an axis, at the class out of y_true [batch, ...]; NaN for a class out of range."""
    known, classes = _known(y_true, y_pred), _index(y_true)
    found = tf.gather(y_pred, tf.where(known, classes, tf.zeros_like(classes)), axis=-1, batch_dims=y_true.shape.rank)
    return tf.where(known, found, float("nan"))[..., tf.newaxis]


def _known(y_true: tf.Tensor, y_pred: tf.Tensor) -> tf.Tensor:
    classes = _index(y_true)
    return (classes >= 0) & (classes < tf.shape(y_pred, classes.dtype)[-1])


def _index(y_true: tf.Tensor) -> tf.Tensor:
    """Class indices in a type that counts and gathers; int32 as it is, which compares sooner than int64."""
    return y_true if y_true.dtype == tf.int32 else tf.cast(y_true, tf.int64)


def at_largest(x: tf.Tensor) -> tf.Tensor:
    """True at the largest entry of the last axis, the first of equal ones."""
    return tf.argmax(x, axis=-1)[..., tf.newaxis] == tf.range(tf.shape(x, tf.int64)[-1])


def lead(x: tf.Tensor, largest: tf.Tensor) -> tf.Tensor:
    """By how much the entry where `largest` is True exceeds every entry; at that entry 0, with derivative 0."""
    top = tf.reduce_sum(tf.where(largest, x, tf.zeros_like(x)), axis=-1, keepdims=True)
    return tf.where(largest, tf.zeros_like(x), top - x)


def sum_without(largest: tf.Tensor, x: tf.Tensor) -> tf.Tensor:
    """The sum over the last axis, kept as an axis, without the entries where `largest` is True."""
    return tf.reduce_sum(tf.where(largest, tf.zeros_like(x), x), axis=-1, keepdims=True)


def sum_of_others(x: tf.Tensor) -> tf.Tensor:
    """Of every entry >= 0 on the last axis the sum of the others, without cancellation: only the largest can exceed half the total."""
    is_largest = x == tf.reduce_max(x, axis=-1, keepdims=True)
    ties = tf.reduce_sum(tf.where(is_largest, x, tf.zeros_like(x)), axis=-1, keepdims=True)
    return sum_without(is_largest, x) + (ties - x)


def surprise(x: tf.Tensor) -> tf.Tensor:
    """-log(softmax(x)), every class relatively accurate: the largest logit's lead plus log1p of the sum of the other powers."""
    largest = at_largest(x)
    behind = lead(x, largest)
    return behind + tf.math.log1p(sum_without(largest, tf.exp(-behind)))


def mean_gradient(slopes: tf.Tensor) -> tf.Tensor:
    """[batch, ..., classes] -> the same: derivatives of the positions' values become derivatives of their mean."""
    share = features.mean_gradient(tf.ones_like(slopes[..., 0]))  # 1 / number of positions that are averaged over
    return slopes * share[..., tf.newaxis]
