"""The rule by which `trainer.compile=auto` chooses, and what can't be chosen."""

import dataclasses
from unittest import mock

import keras
import numpy as np
import pytest
import tensorflow as tf

import losses
from trainer import compiling, config, job
from trainer.data.prepare import Prepared, Split
from trainer.errors import ConfigError
from trainer.heads import Shared
from trainer.layers import Dropout
from trainer.learner import Learner
from trainer.schema import Trainer


class Residual(keras.layers.Layer):
    """A block that holds its layers as attributes."""

    def __init__(self, **keywords):
        super().__init__(**keywords)
        self.inner = keras.layers.Conv2D(4, 3, padding="same")
        self.norm = keras.layers.BatchNormalization(synchronized=True)

    def call(self, x):
        return x + self.norm(self.inner(x))


class Blur(keras.layers.Layer):
    """A convolution without Keras' layer for it, within a loop."""

    def call(self, x):
        kernel = tf.eye(4, batch_shape=[3, 3]) / 9
        return tf.while_loop(lambda i, _: i < 2, lambda i, x: (i + 1, tf.nn.conv2d(x, kernel, 1, "SAME")), (0, x))[1]


class Draws(keras.layers.Layer):
    """Random numbers of an operation of TensorFlow's own."""

    def __init__(self, draw, **keywords):
        super().__init__(**keywords)
        self.draw = draw

    def call(self, x):
        return x + tf.cast(self.draw(), x.dtype)


class InPython(keras.layers.Layer):
    """Python code, which no XLA program can hold."""

    def call(self, x):
        return tf.ensure_shape(tf.numpy_function(np.abs, [x], tf.float32), x.shape)


def learns(*layers: keras.layers.Layer) -> tuple[Learner, Prepared]:
    """A learner of images [8, 8, 4], and data for it."""
    model = keras.Sequential([keras.Input([8, 8, 4]), *layers, keras.layers.Flatten(), keras.layers.Dense(1)])
    part = Split(np.zeros([8, 8, 8, 4], np.float32), np.zeros([8, 1], np.float32), None)
    return Learner(model, losses.find("mse")(), "analytic", keras.optimizers.SGD(), None), Prepared(part, part, "real", np.ones(1), None)


@pytest.mark.parametrize(
    ("way", "make"),
    [
        ("chunk", lambda: [keras.layers.Dense(4)]),
        ("chunk", lambda: [keras.layers.Reshape([32, 8]), keras.layers.LSTM(4)]),  # with a generator that draws nothing
        ("chunk", lambda: [Dropout(0.5)]),
        ("graph", lambda: [keras.layers.Dropout(0.5)]),
        ("graph", lambda: [keras.layers.Reshape([32, 8]), keras.layers.GRU(4, dropout=0.5)]),
        ("graph", lambda: [keras.layers.Conv2D(4, 3)]),
        ("graph", lambda: [keras.layers.TimeDistributed(keras.layers.DepthwiseConv1D(3))]),
        ("graph", lambda: [Residual()]),
        ("graph", lambda: [Blur()]),
        ("graph", lambda: [InPython()]),
        ("graph", lambda: [Draws(lambda: tf.random.stateless_truncated_normal([], [1, 2]))]),
        ("graph", lambda: [Draws(lambda: tf.random.stateless_categorical([[0.0, 0.0]], 1, [1, 2])[0, 0])]),
        ("graph", lambda: [Draws(lambda: tf.random.truncated_normal([]))]),
    ],
)
def test_the_rule_goes_by_operations(way, make):
    assert compiling.choose(Trainer(), *learns(*make()), batch_size=8) == way


def test_the_rule_goes_by_the_loss_too():
    class Blurred(losses.find("mse")):
        def value(self, y_true, y_pred):
            image = tf.reshape(y_pred, [-1, 1, 1, 1])
            return tf.reshape(tf.nn.conv2d(image, tf.ones([1, 1, 1, 1]), 1, "SAME"), [-1])

    learner, data = learns(keras.layers.Dense(4))
    learner = dataclasses.replace(learner, loss=Blurred(), gradient_mode="auto")
    assert compiling.choose(Trainer(), learner, data, batch_size=8) == "graph"


@pytest.mark.parametrize(
    ("way", "attends", "loss", "num_classes"),
    [
        ("chunk", True, "linear_crossentropy", 20_000),
        ("graph", True, "linear_crossentropy", 1_200_000),
        ("chunk", False, "linear_crossentropy", 1_200_000),
        ("chunk", True, "softmax_crossentropy", 1_200_000),
    ],
)
def test_a_large_output_layer_of_the_loss_after_attention_is_no_xla_program(way, attends, loss, num_classes):
    loss, inputs = losses.find(loss)(), keras.Input([3, 16])
    x = keras.layers.MultiHeadAttention(1, 4)(inputs, inputs) if attends else keras.layers.Dense(16)(inputs)
    last = Shared(loss.entry, loss.shared_shapes(16, num_classes)) if loss.shared else keras.layers.Dense(num_classes)
    learner = Learner(keras.Model(inputs, last(x)), loss, "analytic", keras.optimizers.SGD(), None)
    part = Split(np.zeros([8, 3, 16], np.float32), np.zeros([8, 3], np.int32), None)
    data = Prepared(part, part, "classes", np.ones(1), num_classes, want="classes")
    assert compiling.choose(Trainer(), learner, data, batch_size=8) == way


class Seen(keras.layers.Layer):
    """Keeps the shapes that it was called with."""

    def __init__(self, **keywords):
        super().__init__(**keywords)
        self.shapes = set()

    def call(self, x):
        self.shapes.add(tuple(x.shape))
        return x


def test_choosing_changes_nothing():
    """It takes parts of a batch, as training does, and leaves no loss of theirs behind."""
    seen = Seen()
    learner, data = learns(seen, keras.layers.BatchNormalization(), keras.layers.Dense(4, activity_regularizer="l2"))
    learner.model(tf.zeros([1, 8, 8, 4]))
    before = learner.capture()
    seen.shapes.clear()
    compiling.choose(Trainer(accumulate=4), learner, data, batch_size=8)
    assert seen.shapes == {(2, 8, 8, 4)}
    assert not any(map(tf.is_symbolic_tensor, learner.model.losses))
    for name, array in learner.capture().items():
        np.testing.assert_array_equal(array, before[name], err_msg=name)


def test_layers_within_layers_count():
    learner, _ = learns(Residual())
    assert compiling.normalizes(learner)
    assert compiling.synchronizes(dataclasses.replace(learner, strategy=tf.distribute.get_strategy()))


def test_what_xla_has_not_is_named(tmp_path):
    def call(self, x):
        return InPython()(x)

    with (
        mock.patch.object(keras.layers.Activation, "call", call),
        pytest.raises(ConfigError, match=r"knows no PyFunc: type trainer\.compile=graph"),
    ):
        job.run(config.load([f"hydra.run.dir={tmp_path}", "trainer.compile=chunk", "trainer.steps=2"]))
