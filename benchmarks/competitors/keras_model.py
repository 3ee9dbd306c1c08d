"""The models in Keras, for `fit`, Orbit and the hand-written loop."""

import keras
from keras import layers

from benchmarks.competitors.job import NORM_EPSILON, NUM_HEADS, NUM_LAYERS, WIDTH, Job


def build(job: Job, shape: tuple[int, ...]) -> keras.Model:
    """From examples [batch, *shape] to logits [batch, (length,) num_outputs]."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input(shape, dtype="int32" if job.model == "transformer" else "float32")
    x = {"mlp": _mlp, "cnn": _cnn, "transformer": _transformer}[job.model](job, inputs)
    return keras.Model(inputs, layers.Dense(job.num_outputs)(x))


def _mlp(job: Job, inputs: keras.KerasTensor) -> keras.KerasTensor:
    x = layers.Flatten()(inputs)
    for _ in range(2):
        x = layers.Dense(128, "relu")(x)
        if job.dropout:
            x = layers.Dropout(job.dropout)(x)
    return x


def _cnn(job: Job, inputs: keras.KerasTensor) -> keras.KerasTensor:
    x = inputs
    for filters in (32, 64):
        x = layers.Conv2D(filters, 3, padding="same", activation="relu")(x)
        x = layers.MaxPooling2D()(x)
    return layers.Dense(128, "relu")(layers.Flatten()(x))


class Positions(layers.Layer):
    """Adds a learned vector for every position."""

    def build(self, input_shape: tuple[int, ...]) -> None:
        self.positions = self.add_weight(shape=tuple(input_shape[1:]), initializer=keras.initializers.RandomNormal(stddev=0.02))

    def call(self, x: keras.KerasTensor) -> keras.KerasTensor:
        return x + self.positions


def _transformer(job: Job, inputs: keras.KerasTensor) -> keras.KerasTensor:
    x = layers.Embedding(job.num_outputs, WIDTH, embeddings_initializer=keras.initializers.RandomNormal(stddev=0.02))(inputs)
    x = Positions()(x)
    for _ in range(NUM_LAYERS):
        normal = layers.LayerNormalization(epsilon=NORM_EPSILON)(x)
        x += layers.MultiHeadAttention(NUM_HEADS, WIDTH // NUM_HEADS)(normal, normal, use_causal_mask=True)
        normal = layers.LayerNormalization(epsilon=NORM_EPSILON)(x)
        x += layers.Dense(WIDTH)(layers.Dense(4 * WIDTH, "gelu")(normal))
    return layers.LayerNormalization(epsilon=NORM_EPSILON)(x)
