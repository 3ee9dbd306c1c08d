"""What every competitor is given, and how it takes turns with the others. Needs NumPy alone: competitors have environments of their own.

A competitor is a process that builds and compiles once and then waits: `benchmarks.loop` asks it for a window of steps by a line
on its standard input, and gets a line of JSON for it.
"""

import dataclasses
import importlib.metadata
import json
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

_FIRST_SECONDS = 0.5  # a rate counted over less is no guide to the size of a window

LEARNING_RATE, EPSILON = 1e-3, 1e-7  # of Adam
WIDTH, NUM_LAYERS, NUM_HEADS = 128, 2, 4  # of the transformer
NORM_EPSILON = 1e-3  # of its layer normalizations

Window = Callable[[int], tuple[int, float, float]]  # steps that are asked for -> (steps done, seconds, loss)


@dataclasses.dataclass(frozen=True)
class Job:
    """One model on one data set.

    Args:
        model: mlp, cnn or transformer.
        num_outputs: classes, or different tokens.
        data: path of an NPZ file with features [n, ...] and targets [n] or [n, length], as this trainer prepares them.
        batch_size: examples in a step.
        dropout: after every hidden layer of the mlp.
        steps_per_call: in one call of a compiled function, for those who run several.
        way: which of the competitor's own ways.
    """

    model: str
    num_outputs: int
    data: str
    batch_size: int
    dropout: float
    steps_per_call: int
    way: str

    def arrays(self) -> tuple[np.ndarray, np.ndarray]:
        """Features, float32 or int32 tokens, and targets int32."""
        with np.load(self.data) as file:
            return file["features"], file["targets"]


def read_job() -> Job:
    """The job on the command line, as JSON."""
    return Job(**json.loads(sys.argv[1]))


class Order:
    """Which examples are in which batch: every example once an epoch, epochs one after the other without a partial batch."""

    def __init__(self, num_examples: int, batch_size: int) -> None:
        self._num_examples, self._batch_size = num_examples, batch_size
        self._rng = np.random.default_rng(0)
        self._left = np.empty(0, np.int32)

    def batches(self, num_steps: int) -> np.ndarray:
        """Of the next steps, int32 [num_steps, batch_size]."""
        needed = num_steps * self._batch_size
        while len(self._left) < needed:
            self._left = np.concatenate([self._left, self._rng.permutation(self._num_examples).astype(np.int32)])
        taken, self._left = self._left[:needed], self._left[needed:]
        return taken.reshape(num_steps, self._batch_size)


def take_turns(packages: list[str], num_parameters: int, window: Window) -> None:
    """Says that it is ready after a first step, then does a window of the length in seconds that each line of input asks for."""
    # Answers go to what was standard output; whatever a framework prints goes to standard error from here on.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def answer(**fields: Any) -> None:
        print(json.dumps(fields), file=answers, flush=True)

    window(1)
    num_steps, seconds = 1, 0.0
    while seconds < _FIRST_SECONDS:
        num_steps, seconds, _ = window(num_steps if not seconds else 4 * num_steps)
    rate = num_steps / seconds
    versions = ", ".join(f"{package} {importlib.metadata.version(package)}" for package in packages)
    answer(versions=versions, num_parameters=num_parameters)
    for line in sys.stdin:
        num_steps, seconds, loss = window(max(1, round(rate * float(line))))
        rate = num_steps / seconds
        answer(rate=rate, loss=loss, peak_memory_mb=_peak_memory())


def _peak_memory() -> float | None:
    """MB that were resident at most since the program began, where Linux tells; getrusage counts what the parent had, too."""
    status = Path("/proc/self/status")
    found = re.search(r"VmHWM:\s+(\d+)", status.read_text()) if status.exists() else None
    return int(found[1]) / 1024 if found else None
