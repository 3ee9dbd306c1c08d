"""The logistic function and softplus on both sides of 0, without cancellation and with right derivatives by the tape, at 0 too."""

import tensorflow as tf


def sigmoids(x: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """`(s(x), s(-x))`, s(x) = 1 / (1 + e^-x); the smaller one is never 1 minus the larger."""
    positive = x >= 0
    decay = tf.exp(tf.where(positive, -x, x))  # e^-|x|
    near, far = 1 / (1 + decay), decay / (1 + decay)  # s(|x|), s(-|x|)
    return tf.where(positive, near, far), tf.where(positive, far, near)


def softpluses(x: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """`(log(1 + e^x), log(1 + e^-x))`, which are -log s(-x) and -log s(x)."""
    positive = x >= 0
    size = tf.where(positive, x, -x)  # |x|, but with the slope of one side at 0, so that the tape's sum is right there
    rest = tf.math.log1p(tf.exp(-size))
    zero = tf.zeros_like(x)
    return tf.where(positive, size, zero) + rest, tf.where(positive, zero, size) + rest
