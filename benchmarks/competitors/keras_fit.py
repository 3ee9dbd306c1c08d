"""Keras `fit`: by default, with steps_per_execution=32, or with jit_compile. Arrays in memory, no metrics beside the loss, no norms.

A window is one epoch of repeated data, without pauses between epochs, timed from the epoch's begin to its end.
"""

import os
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np

from benchmarks.competitors import job as jobs
from benchmarks.competitors.keras_model import build

STEPS_PER_EXECUTION = 32


class Stopwatch(keras.callbacks.Callback):
    """Times an epoch."""

    def on_epoch_begin(self, epoch: int, logs: object = None) -> None:
        self.started = time.perf_counter()

    def on_epoch_end(self, epoch: int, logs: object = None) -> None:
        self.seconds = time.perf_counter() - self.started


def main() -> None:
    job = jobs.read_job()
    features, targets = job.arrays()
    model = build(job, features.shape[1:])
    per_execution = STEPS_PER_EXECUTION if job.way == "steps_per_execution" else 1
    model.compile(
        keras.optimizers.Adam(jobs.LEARNING_RATE),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        steps_per_execution=per_execution,
        jit_compile=job.way == "jit_compile",
    )
    stopwatch = Stopwatch()

    def window(num_steps: int) -> tuple[int, float, float]:
        num_steps = -(-num_steps // per_execution) * per_execution
        rows = np.arange(num_steps * job.batch_size) % len(features)
        history = model.fit(features[rows], targets[rows], batch_size=job.batch_size, callbacks=[stopwatch], verbose=0)
        return num_steps, stopwatch.seconds, history.history["loss"][0]

    jobs.take_turns(["tensorflow", "keras"], model.count_params(), window)


if __name__ == "__main__":
    main()
