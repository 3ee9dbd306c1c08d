"""Models of sequences: of tokens, and of frames."""

from collections.abc import Sequence

import keras

from trainer.errors import ConfigError
from trainer.layers import Dense
from trainer.models import check_activation, check_dropout, check_sizes, dropped, with_head


class Positions(keras.layers.Layer):
    """Adds a learned vector for every position, [batch, length, width] -> the same."""

    def build(self, input_shape: Sequence[int]) -> None:
        self.positions = self.add_weight(shape=tuple(input_shape[1:]), initializer=_small(), name="positions")

    def call(self, x: keras.KerasTensor) -> keras.KerasTensor:
        return x + self.positions


def transformer(
    input_shape: Sequence[int],
    num_outputs: int | None,
    num_tokens: int | None,
    width: int = 128,
    num_layers: int = 2,
    num_heads: int = 4,
    dropout: float = 0.0,
) -> keras.Model:
    """A causal language model, decoder only and pre-norm: tokens `[batch, length] -> [batch, length, num_outputs]`.

    What it gives at a position depends on no later token.

    Args:
        input_shape: (length,).
        num_outputs: of every position; None: its hidden state [width], without an output layer.
        num_tokens: how many different tokens there are.
        width: of the hidden states.
        num_layers: blocks of attention and a dense layer four times as wide.
        num_heads: of every attention; a divisor of width.
        dropout: share of a block's outputs that is dropped in training, in [0, 1).

    Raises:
        ConfigError: the features are no tokens; sizes below 1; width no multiple of num_heads.
    """
    if num_tokens is None:
        raise ConfigError(f"model=transformer takes tokens; found numbers of shape {list(input_shape)}. Data that fit: data=text")
    for key, size in (("width", width), ("num_layers", num_layers), ("num_heads", num_heads)):
        check_sizes(key, [size])
    if width % num_heads:
        raise ConfigError(f"model.width={width} must be a multiple of model.num_heads={num_heads}")
    check_dropout(dropout)
    inputs = keras.Input(input_shape, dtype="int32", name="features")
    x = keras.layers.Embedding(num_tokens, width, embeddings_initializer=_small(), name="embedding")(inputs)
    x = Positions(name="positions")(x)
    for i in range(1, num_layers + 1):
        normal = keras.layers.LayerNormalization(name=f"attention_norm_{i}")(x)
        attention = keras.layers.MultiHeadAttention(num_heads, width // num_heads, name=f"attention_{i}")
        seen = dropped(attention(normal, normal, use_causal_mask=True), dropout, f"attention_dropout_{i}")
        x = keras.layers.add([x, seen], name=f"attention_sum_{i}")
        normal = keras.layers.LayerNormalization(name=f"dense_norm_{i}")(x)
        wide = Dense(4 * width, "gelu", name=f"wide_{i}")(normal)
        narrow = dropped(Dense(width, name=f"narrow_{i}")(wide), dropout, f"dense_dropout_{i}")
        x = keras.layers.add([x, narrow], name=f"dense_sum_{i}")
    x = keras.layers.LayerNormalization(dtype="float32", name="norm")(x)
    return keras.Model(inputs, x, name="transformer") if num_outputs is None else with_head("transformer", inputs, x, num_outputs, Dense)


def frames(
    input_shape: Sequence[int], num_outputs: int | None, filters: Sequence[int] = (64, 64), kernel_size: int = 5, activation: str = "relu"
) -> keras.Model:
    """Convolutions over time, `[batch, time, features] -> [batch, time, num_outputs]`.

    Args:
        input_shape: (time, features).
        num_outputs: of every frame; None: 16.
        filters: of every convolution.
        kernel_size: length of the convolutions, frames.
        activation: of the convolutions, by its Keras name.

    Raises:
        ConfigError: the input is no sequence of frames; sizes below 1; an unknown activation.
    """
    if len(input_shape) != 2:
        raise ConfigError(
            f"model=frames takes sequences [time, features]; found data of shape {list(input_shape)}. Data that fit: data=digit_lines, "
            "data=sunspots"
        )
    check_sizes("filters", filters)
    check_sizes("kernel_size", [kernel_size])
    check_activation(activation)
    inputs = keras.Input(input_shape, name="features")
    x = inputs
    for i, num_filters in enumerate(filters, start=1):
        x = keras.layers.Conv1D(num_filters, kernel_size, padding="same", activation=activation, name=f"convolution_{i}")(x)
    return with_head("frames", inputs, x, num_outputs)


def _small() -> keras.Initializer:
    return keras.initializers.RandomNormal(stddev=0.02)
