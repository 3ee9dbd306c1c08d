"""Length and direction of vectors of any magnitude: squares of their entries neither overflow nor vanish."""

import tensorflow as tf


def norm(x: tf.Tensor) -> tf.Tensor:
    """[..., dim] -> [..., 1]: the Euclidean norm; its derivative at the zero vector is 0."""
    largest = tf.stop_gradient(tf.reduce_max(tf.abs(x), axis=-1, keepdims=True))  # constant: the norm does not depend on the scale
    is_zero = largest == 0
    scale = tf.where(is_zero, tf.ones_like(largest), largest)
    squares = tf.reduce_sum(tf.square(x / scale), axis=-1, keepdims=True)  # 1 to dim
    return tf.where(is_zero, tf.zeros_like(largest), scale * tf.sqrt(tf.where(is_zero, tf.ones_like(squares), squares)))


def direction(x: tf.Tensor) -> tf.Tensor:
    """[..., dim] -> the same: x / norm(x), which is also the norm's gradient; 0, and so its derivative, for the zero vector."""
    largest = tf.stop_gradient(tf.reduce_max(tf.abs(x), axis=-1, keepdims=True))
    is_zero = largest == 0
    scaled = x / tf.where(is_zero, tf.ones_like(largest), largest)
    return tf.where(is_zero, tf.zeros_like(x), scaled / tf.where(is_zero, tf.ones_like(largest), norm(scaled)))
