"""Orbit: its Controller with a StandardTrainer, whose steps run in a loop in the graph.

Loss, accuracy and global norm of every step are summed over a call and come back as means, as Orbit's users have them.
"""

import os
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import orbit
import tensorflow as tf

from benchmarks.competitors import job as jobs
from benchmarks.competitors.keras_model import build


class Trainer(orbit.StandardTrainer):
    """One model, its optimizer, and the sums of the current call's scalars."""

    def __init__(self, job: jobs.Job) -> None:
        features, targets = job.arrays()
        self.model = build(job, features.shape[1:])
        self.optimizer = keras.optimizers.Adam(jobs.LEARNING_RATE)
        self.optimizer.build(self.model.trainable_variables)
        self.global_step = tf.Variable(0, dtype=tf.int64)
        self.sums = tf.Variable(tf.zeros(3))
        self.steps_per_call = job.steps_per_call
        self.loss = float("nan")
        data = tf.data.Dataset.from_tensor_slices((features, targets)).shuffle(len(features)).repeat()
        super().__init__(data.batch(job.batch_size, drop_remainder=True).prefetch(tf.data.AUTOTUNE))

    def train_loop_begin(self) -> None:
        self.sums.assign(tf.zeros(3))

    def train_step(self, iterator: tf.data.Iterator) -> None:
        x, y = next(iterator)
        with tf.GradientTape() as tape:
            logits = self.model(x, training=True)
            loss = tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(y, logits))
        gradients = tape.gradient(loss, self.model.trainable_variables)
        self.optimizer.apply(gradients, self.model.trainable_variables)
        accuracy = tf.reduce_mean(tf.cast(tf.argmax(logits, -1, tf.int32) == y, tf.float32))
        self.sums.assign_add([loss, accuracy, tf.linalg.global_norm(gradients)])
        self.global_step.assign_add(1)

    def train_loop_end(self) -> dict[str, tf.Tensor]:
        loss, accuracy, norm = self.sums.numpy() / self.steps_per_call
        self.loss = float(loss)
        return {"loss": loss, "accuracy": accuracy, "grad_norm": norm}


def main() -> None:
    job = jobs.read_job()
    trainer = Trainer(job)
    controller = orbit.Controller(global_step=trainer.global_step, trainer=trainer, steps_per_loop=job.steps_per_call)

    def window(num_steps: int) -> tuple[int, float, float]:
        num_steps = -(-num_steps // job.steps_per_call) * job.steps_per_call
        started = time.perf_counter()
        controller.train(int(trainer.global_step.numpy()) + num_steps)
        return num_steps, time.perf_counter() - started, trainer.loss

    jobs.take_turns(["tf-models-official", "tensorflow", "keras"], trainer.model.count_params(), window)


if __name__ == "__main__":
    main()
