"""What the losses of sparse probabilities share: logits behind the largest, their threshold, and probabilities less the true class."""

from collections.abc import Callable

import tensorflow as tf


def behind(logits: tf.Tensor) -> tf.Tensor:
    """Logits minus the largest, [batch, classes]."""
    return logits - tf.reduce_max(logits, axis=-1, keepdims=True)


def of_class(t: tf.Tensor, x: tf.Tensor) -> tf.Tensor:
    """The entry of x at the class, [batch]; t holds 1 there and 0 elsewhere."""
    return tf.reduce_sum(tf.math.multiply_no_nan(x, t), axis=-1)


def shortfall(tau: tf.Tensor, t: tf.Tensor, x: tf.Tensor) -> tf.Tensor:
    """By how much the class lies below the threshold, [batch]; at the threshold, where it has no part, with the slope of below."""
    return tf.maximum(tau - of_class(t, x), 0)  # relu's slope would be 0 there, and the probability's is 0 too


def minus_class(t: tf.Tensor, others: tf.Tensor) -> tf.Tensor:
    """The difference p - t of probabilities p that sum to 1, from the other classes' p: at the class minus their sum, no cancellation."""
    return others - t * tf.reduce_sum(others, axis=-1, keepdims=True)


def above_threshold(x: tf.Tensor, step: Callable[[tf.Tensor], tuple[tf.Tensor, tf.Tensor]]) -> tuple[tf.Tensor, tf.Tensor]:
    """The threshold tau, and how far each class exceeds it, max(0, x - tau), in a few passes over the data instead of a sort.

    Newton's method on a function of tau that is convex and falls comes from below, tau = -1, without passing the root.

    Args:
        x: [batch, classes], the largest entry 0.
        step: of how far each class exceeds tau, Newton's step of tau, and a number that falls as long as steps are needed; [batch, 1] both.

    Returns:
        [batch], and [batch, classes].
    """

    def body(tau: tf.Tensor, left: tf.Tensor, _: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        rise, still_left = step(tf.nn.relu(x - tau))
        return tau + rise, tf.minimum(left, still_left), still_left < left

    start = tf.fill([tf.shape(x)[0], 1], tf.constant(-1, x.dtype))
    going = tf.fill([tf.shape(x)[0], 1], True)
    tau, _, _ = tf.while_loop(lambda tau, left, going: tf.reduce_any(going), body, (start, tf.fill(tf.shape(start), x.dtype.max), going))
    return tau[:, 0], tf.nn.relu(x - tau)
