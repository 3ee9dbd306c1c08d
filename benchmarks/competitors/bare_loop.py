"""A loop that takes steps of an MLP and does nothing else, one XLA program: what a job's size costs on a machine by itself.

    python -m benchmarks.competitors.bare_loop 32 64,64

Takes the examples in a batch and the units of every hidden layer; prints the seconds of a step, the median of some calls.
"""

import os
import statistics
import sys
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import tensorflow as tf

_NUM_EXAMPLES, _NUM_FEATURES = 4096, 8
_CALLS, _SECONDS = 7, 0.5  # of one


def main(batch_size: int, hidden: list[int]) -> None:
    features, targets = tf.random.normal([_NUM_EXAMPLES, _NUM_FEATURES]), tf.random.normal([_NUM_EXAMPLES, 1])
    layers = [keras.layers.Dense(units, "relu") for units in hidden]
    model = keras.Sequential([keras.Input([_NUM_FEATURES]), *layers, keras.layers.Dense(1)])
    optimizer = keras.optimizers.Adam(1e-3)
    optimizer.build(model.trainable_variables)

    @tf.function(jit_compile=True, autograph=False, input_signature=[tf.TensorSpec([], tf.int32)])
    def steps(num_steps: tf.Tensor) -> tf.Tensor:
        def body(i: tf.Tensor, _: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            rows = (i * batch_size + tf.range(batch_size)) % _NUM_EXAMPLES
            with tf.GradientTape() as tape:
                loss = tf.reduce_mean(tf.square(model(tf.gather(features, rows), training=True) - tf.gather(targets, rows)))
            optimizer.apply(tape.gradient(loss, model.trainable_variables), model.trainable_variables)
            return i + 1, loss

        return tf.while_loop(lambda i, _: i < num_steps, body, (tf.constant(0), tf.constant(0.0)))[1]

    def seconds(num_steps: int) -> float:
        started = time.perf_counter()
        steps(tf.constant(num_steps)).numpy()
        return (time.perf_counter() - started) / num_steps

    seconds(1)
    num_steps = max(1, round(_SECONDS / seconds(16)))
    print(statistics.median(seconds(num_steps) for _ in range(_CALLS)))


if __name__ == "__main__":
    main(int(sys.argv[1]), [int(units) for units in sys.argv[2].split(",")])
