"""Models: builders from the data's shape and the loss's number of outputs to a Keras model.

A builder of one's own is a function `(input_shape, num_outputs, **keys of its YAML) -> keras.Model`; of tokens it takes `num_tokens`
as well. `num_outputs` is None where the loss takes any width.
"""

from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from trainer.errors import ConfigError
from trainer.layers import Dropout

DEFAULT_OUTPUTS = 16  # where the loss takes any width, as of embeddings


def linear(input_shape: Sequence[int], num_outputs: int | None) -> keras.Model:
    """One dense layer, `[batch, *input_shape] -> [batch, num_outputs]`."""
    inputs = keras.Input(input_shape, name="features")
    return with_head("linear", inputs, _flat(inputs), num_outputs)


def mlp(
    input_shape: Sequence[int],
    num_outputs: int | None,
    hidden: Sequence[int] = (128, 128),
    activation: str = "relu",
    batch_normalization: bool = False,
    dropout: float = 0.0,
) -> keras.Model:
    """Dense layers one after another, `[batch, *input_shape] -> [batch, num_outputs]`.

    Args:
        input_shape: of one example; flattened.
        num_outputs: units of the output layer; None: 16.
        hidden: units of every hidden layer.
        activation: of the hidden layers, by its Keras name.
        batch_normalization: whether a hidden layer is normalized over the batch before its activation.
        dropout: share of every hidden layer's outputs that is dropped in training, in [0, 1).

    Raises:
        ConfigError: units that are no list of numbers >= 1; an unknown activation; a dropout outside of its limits.
    """
    check_sizes("hidden", hidden)
    check_activation(activation)
    check_dropout(dropout)
    inputs = keras.Input(input_shape, name="features")
    x = _flat(inputs)
    for i, units in enumerate(hidden, start=1):
        x = keras.layers.Dense(units, name=f"hidden_{i}")(x)
        if batch_normalization:
            x = keras.layers.BatchNormalization(synchronized=tf.distribute.has_strategy(), name=f"normalization_{i}")(x)
        x = keras.layers.Activation(activation, name=f"activation_{i}")(x)
        x = dropped(x, dropout, f"dropout_{i}")
    return with_head("mlp", inputs, x, num_outputs)


def cnn(
    input_shape: Sequence[int],
    num_outputs: int | None,
    filters: Sequence[int] = (32, 64),
    kernel_size: int = 3,
    dense: int = 128,
    activation: str = "relu",
    dropout: float = 0.0,
) -> keras.Model:
    """Convolutions, each followed by a pooling of 2 x 2, then a dense layer; `[batch, height, width, channels] -> [batch, num_outputs]`.

    Args:
        input_shape: (height, width, channels), height and width at least 2 ** len(filters).
        num_outputs: units of the output layer; None: 16.
        filters: of every convolution.
        kernel_size: height and width of the convolutions, pixels.
        dense: units of the layer before the output.
        activation: of all layers but the output, by its Keras name.
        dropout: share of what the output layer gets that is dropped in training, in [0, 1).

    Raises:
        ConfigError: the input is no image, or too small for so many poolings; sizes below 1; an unknown activation; a dropout outside
            of its limits.
    """
    if len(input_shape) != 3:
        raise ConfigError(
            f"model=cnn takes images [height, width, channels]; found data of shape {list(input_shape)}. Data that fit: data=digits, "
            "data=mnist, or data=npz with features [n, height, width, channels]; model=mlp takes any shape"
        )
    check_sizes("filters", filters)
    check_sizes("kernel_size", [kernel_size])
    check_sizes("dense", [dense])
    check_activation(activation)
    check_dropout(dropout)
    if min(input_shape[:2]) < 2 ** len(filters):
        raise ConfigError(f"model.filters={list(filters)} halves height and width {len(filters)} times: too often for {list(input_shape)}")
    inputs = keras.Input(input_shape, name="features")
    x = inputs
    for i, num_filters in enumerate(filters, start=1):
        x = keras.layers.Conv2D(num_filters, kernel_size, padding="same", activation=activation, name=f"convolution_{i}")(x)
        x = keras.layers.MaxPooling2D(name=f"pooling_{i}")(x)
    x = keras.layers.Dense(dense, activation=activation, name="dense")(_flat(x))
    return with_head("cnn", inputs, dropped(x, dropout, "dropout"), num_outputs)


def _flat(x: keras.KerasTensor) -> keras.KerasTensor:
    return keras.layers.Flatten(name="flatten")(x) if len(x.shape) > 2 else x


def with_head(
    name: str,
    inputs: keras.KerasTensor,
    x: keras.KerasTensor,
    num_outputs: int | None,
    dense: type[keras.layers.Dense] = keras.layers.Dense,
) -> keras.Model:
    """The model that ends with a layer `dense` of `num_outputs`, 16 where that is None."""
    # float32 in every precision: a loss in half precision loses its small differences.
    outputs = dense(DEFAULT_OUTPUTS if num_outputs is None else num_outputs, dtype="float32", name="output")(x)
    return keras.Model(inputs, outputs, name=name)


def dropped(x: keras.KerasTensor, rate: float, name: str) -> keras.KerasTensor:
    """`x` with a share of it dropped in training; at rate 0 the model has no such layer."""
    return Dropout(rate, name=name)(x) if rate else x


def check_sizes(key: str, sizes: Any) -> None:
    if not isinstance(sizes, Sequence) or not all(isinstance(size, int) and size >= 1 for size in sizes):
        raise ConfigError(f"model.{key}={sizes} must be whole numbers >= 1, a list typed as model.hidden=[64,32]")


def check_activation(activation: str) -> None:
    try:
        keras.activations.get(activation)
    except ValueError as error:
        raise ConfigError(
            f"model.activation={activation} is no Keras activation; type for example relu, gelu, silu, tanh or sigmoid"
        ) from error


def check_dropout(rate: float) -> None:
    if isinstance(rate, bool) or not isinstance(rate, int | float) or not 0 <= rate < 1:
        raise ConfigError(f"model.dropout={rate} must be a number >= 0 and < 1")
