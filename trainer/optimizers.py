"""Keras' optimizers whose update TensorFlow has a kernel for: one pass over a variable instead of a dozen.

The kernel rounds beta_2 before it takes 1 - beta_2, where Keras takes the difference of two Python floats: in float32 the average of
squares differs by up to 2^-25 / (1 - beta_2) of itself, 3e-5 at beta_2 = 0.999, and an update by half as much.
"""

from typing import Any

import keras
import tensorflow as tf


def _update_step(self: Any, gradient: Any, variable: Any, learning_rate: Any) -> None:
    """The update of one variable by a keras.optimizers.Adam."""
    if self.amsgrad:  # no kernel has it
        keras.optimizers.Adam.update_step(self, gradient, variable, learning_rate)
        return
    index, dtype = self._get_variable_index(variable), variable.dtype
    beta_1, beta_2, epsilon = (tf.constant(number, dtype) for number in (self.beta_1, self.beta_2, self.epsilon))
    step = tf.cast(self.iterations + 1, dtype)
    tf.raw_ops.ResourceApplyAdam(
        var=variable.handle,
        m=self._momentums[index].value.handle,
        v=self._velocities[index].value.handle,
        beta1_power=tf.pow(beta_1, step),
        beta2_power=tf.pow(beta_2, step),
        lr=tf.cast(learning_rate, dtype),
        beta1=beta_1,
        beta2=beta_2,
        epsilon=epsilon,
        grad=tf.cast(gradient, dtype),
    )


# Named as Keras' own: Keras calls an optimizer's variables by its class.
class Adam(keras.optimizers.Adam):
    """keras.optimizers.Adam."""

    update_step = _update_step


class AdamW(keras.optimizers.AdamW):
    """keras.optimizers.AdamW."""

    update_step = _update_step


_FUSED = {keras.optimizers.Adam: Adam, keras.optimizers.AdamW: AdamW}


def fused(optimizer: Any) -> Any:
    """What to make in place of a class of optimizers, or a function: a subclass of it with such a kernel, or itself."""
    return _FUSED.get(optimizer, optimizer)
