"""A hand-written loop: tf.function for the step, tf.data for batches, tf.summary for loss, accuracy and every norm of every step."""

import os
import tempfile
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import tensorflow as tf

from benchmarks.competitors import job as jobs
from benchmarks.competitors.keras_model import build


def main(folder: str) -> None:
    job = jobs.read_job()
    features, targets = job.arrays()
    model = build(job, features.shape[1:])
    optimizer = keras.optimizers.Adam(jobs.LEARNING_RATE)
    data = tf.data.Dataset.from_tensor_slices((features, targets)).shuffle(len(features)).repeat()
    batches = iter(data.batch(job.batch_size, drop_remainder=True).prefetch(tf.data.AUTOTUNE))
    writer = tf.summary.create_file_writer(folder)
    step = 0

    @tf.function
    def train_step(x: tf.Tensor, y: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor, list[tf.Tensor]]:
        with tf.GradientTape() as tape:
            logits = model(x, training=True)
            loss = tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(y, logits))
        gradients = tape.gradient(loss, model.trainable_variables)
        optimizer.apply(gradients, model.trainable_variables)
        accuracy = tf.reduce_mean(tf.cast(tf.argmax(logits, -1, tf.int32) == y, tf.float32))
        return loss, accuracy, tf.linalg.global_norm(gradients), [tf.norm(tf.convert_to_tensor(g)) for g in gradients]

    def window(num_steps: int) -> tuple[int, float, float]:
        nonlocal step
        started = time.perf_counter()
        with writer.as_default():
            for _ in range(num_steps):
                loss, accuracy, norm, norms = train_step(*next(batches))
                step += 1
                tf.summary.scalar("loss", loss, step)
                tf.summary.scalar("accuracy", accuracy, step)
                tf.summary.scalar("grad_norm/global", norm, step)
                for variable, value in zip(model.trainable_variables, norms, strict=True):
                    tf.summary.scalar(f"grad_norm/{variable.path}", value, step)
        writer.flush()
        return num_steps, time.perf_counter() - started, float(loss)

    jobs.take_turns(["tensorflow", "keras"], model.count_params(), window)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        main(temporary)
