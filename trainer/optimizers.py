"""Keras' optimizers whose update TensorFlow has a kernel for: one pass over a variable instead of a dozen.

The kernel rounds 1 - beta in the variable's dtype, as both round beta's powers, where Keras multiplies by the difference of two Python
floats. In float32 the first update differs by 6e-6 of itself at beta_2 = 0.999, by 8e-5 at 0.9999.
"""

from typing import Any

import keras
import tensorflow as tf


class _Fused:
    """The update of one variable, for subclasses of keras.optimizers.Adam."""

    def update_step(self: Any, gradient: Any, variable: Any, learning_rate: Any) -> None:
        if self.amsgrad:  # no kernel has it
            super().update_step(gradient, variable, learning_rate)  # type: ignore[misc]
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
class Adam(_Fused, keras.optimizers.Adam):
    """keras.optimizers.Adam."""


class AdamW(_Fused, keras.optimizers.AdamW):
    """keras.optimizers.AdamW."""


_FUSED = {keras.optimizers.Adam: Adam, keras.optimizers.AdamW: AdamW}


def fused(optimizer: Any) -> Any:
    """What to make in place of a class of optimizers, or a function: a subclass of it with such a kernel, or itself."""
    return _FUSED.get(optimizer, optimizer)
