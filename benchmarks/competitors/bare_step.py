"""What a script can't do without to take one step: import TensorFlow and Keras, load the digits, build the MLP, trace a step, take it."""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import tensorflow as tf
from sklearn.datasets import load_digits

features, labels = load_digits(return_X_y=True)
model = keras.Sequential([keras.Input((64,)), *(keras.layers.Dense(128, "relu") for _ in range(2)), keras.layers.Dense(10)])
optimizer = keras.optimizers.Adam(1e-3)


@tf.function
def train_step(x: tf.Tensor, y: tf.Tensor) -> tf.Tensor:
    with tf.GradientTape() as tape:
        loss = tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(y, model(x, training=True)))
    optimizer.apply(tape.gradient(loss, model.trainable_variables), model.trainable_variables)
    return loss


print(float(train_step(tf.constant(features[:32] / 16, tf.float32), tf.constant(labels[:32], tf.int32))))
