"""Layers that are cheap under XLA where Keras' own are not.

Those that are random in training have no state: in a training step of the trainer they draw as `trainer.randomness.at` says. Elsewhere,
as in Keras' own `fit`, Keras' global generator draws, which `keras.utils.set_random_seed` seeds and no model saves; under a strategy it
can't, and they refuse. A saved model that has any of them loads after `import trainer.layers`.
"""

import math
import re
from collections.abc import Callable, Sequence
from typing import Any

import keras
import tensorflow as tf

from trainer import randomness


def within(layer: keras.layers.Layer) -> list[keras.layers.Layer]:
    """All layers that a model or another layer is made of, those too that it holds as attributes, as a wrapper does."""
    return layer._flatten_layers(include_self=False)


class _Random(keras.layers.Layer):
    """Changes nothing outside of training."""

    def __init__(self, **keywords: Any) -> None:
        super().__init__(**keywords)
        self.supports_masking = True

    @property
    def key(self) -> str:
        """Its name without Keras' count of the layers that this process has made; `randomness` counts those of a forward pass."""
        return re.sub(r"_\d+$", "", self.name)

    def check_outside(self) -> None:
        """Refuses what Keras' global generator can't do: make its variable in a replica."""
        if tf.distribute.has_strategy():
            raise ValueError(
                f"{self.name}: random numbers under a strategy need to know the examples' places: enter "
                "trainer.randomness.at(seed, step, places) on the replica, around the forward pass, or take Keras' own layer"
            )

    def compute_output_shape(self, input_shape: Sequence[int | None]) -> Sequence[int | None]:
        return input_shape


@keras.saving.register_keras_serializable(package="gradtrain")
class Dropout(_Random):
    """In training, every element is 0 with probability `rate`, and divided by 1 - rate otherwise; [batch, ...] -> the same.

    Args:
        rate: in [0, 1); 0: no operation at all.
        **keywords: of every Keras layer.
    """

    def __init__(self, rate: float, **keywords: Any) -> None:
        if isinstance(rate, bool) or not 0 <= rate < 1:
            raise ValueError(f"rate={rate} must be a number >= 0 and < 1")
        super().__init__(**keywords)
        self.rate = rate

    def call(self, x: tf.Tensor, training: bool = False) -> tf.Tensor:
        if not training or not self.rate:
            return x
        if not randomness.active():
            self.check_outside()
            return keras.random.dropout(x, self.rate)
        kept = randomness.kept(randomness.bits(self.key, x), self.rate)
        # In float32 at least: half precision would round 1 / (1 - rate), and move the mean by up to 0.4%.
        wide = tf.cast(x, tf.float32) if x.dtype.size < 4 else x
        return tf.where(kept, tf.cast(wide * (1 / (1 - self.rate)), x.dtype), tf.zeros([], x.dtype))

    def get_config(self) -> dict[str, Any]:
        return super().get_config() | {"rate": self.rate}


@keras.saving.register_keras_serializable(package="gradtrain")
class GaussianNoise(_Random):
    """In training, normal noise of mean 0 is added to every element; [batch, ...] -> the same.

    Args:
        stddev: of the noise, in the units of what it is added to, >= 0; 0: no operation at all.
        **keywords: of every Keras layer.
    """

    def __init__(self, stddev: float, **keywords: Any) -> None:
        if isinstance(stddev, bool) or not 0 <= stddev < math.inf:
            raise ValueError(f"stddev={stddev} must be a finite number >= 0")
        super().__init__(**keywords)
        self.stddev = stddev

    def call(self, x: tf.Tensor, training: bool = False) -> tf.Tensor:
        if not training or not self.stddev:
            return x
        if not randomness.active():
            self.check_outside()
            return x + keras.random.normal(tf.shape(x), stddev=self.stddev, dtype=x.dtype)
        return x + tf.cast(self.stddev * randomness.normal(randomness.bits(self.key, x)), x.dtype)

    def get_config(self) -> dict[str, Any]:
        return super().get_config() | {"stddev": self.stddev}


@keras.saving.register_keras_serializable(package="gradtrain")
class Dense(keras.layers.Dense):
    """Keras' dense layer, [batch, ..., n] -> [batch, ..., units], which gets the gradients of kernel and bias in one product.

    On the CPU, XLA takes longer for the sum that is the bias' gradient, over the positions of wide outputs, than for the product that is
    the kernel's. Here the input has a column of ones more.
    """

    def call(self, x: tf.Tensor, training: bool = False) -> tf.Tensor:
        if self.bias is None:
            return super().call(x, training)
        x = _affine(x, tf.convert_to_tensor(self.kernel), tf.convert_to_tensor(self.bias))
        return x if self.activation is None else self.activation(x)


@tf.custom_gradient
def _affine(
    x: tf.Tensor, kernel: tf.Tensor, bias: tf.Tensor
) -> tuple[tf.Tensor, Callable[[tf.Tensor], tuple[tf.Tensor, tf.Tensor, tf.Tensor]]]:
    def gradient(dy: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        rows, dy_rows = (tf.reshape(t, [-1, t.shape[-1]]) for t in (x, dy))
        with_one = tf.concat([rows, tf.ones([tf.shape(rows)[0], 1], rows.dtype)], axis=1)
        both = tf.matmul(with_one, dy_rows, transpose_a=True)
        return tf.reshape(tf.matmul(dy_rows, kernel, transpose_b=True), tf.shape(x)), both[:-1], both[-1]

    return tf.matmul(x, kernel) + bias, gradient
