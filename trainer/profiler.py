"""A window of steps recorded by TensorFlow's profiler, for TensorBoard's profile plugin."""

import contextlib
from pathlib import Path

import tensorflow as tf

from trainer.progress import say


class Profiler:
    """Records steps `first` to `last`, counted from 1, into `folder`; an empty window records nothing."""

    def __init__(self, folder: Path, window: tuple[int, int] | None) -> None:
        self._folder = folder
        self._first, self._last = window or (0, 0)
        self._runs = False
        self._recorded = (0, 0)  # the first step, and the last so far
        self._chunk = contextlib.ExitStack()

    @property
    def borders(self) -> tuple[int, ...]:
        """Steps after which a chunk must end, so that the window is of those steps alone."""
        return (self._first - 1, self._last) if self._last else ()

    def before(self, step: int) -> None:
        """The next chunk begins after `step`."""
        if not self._runs and self._first - 1 <= step < self._last:
            tf.profiler.experimental.start(str(self._folder))
            self._runs, self._recorded = True, (step + 1, step)
        if self._runs:  # what the plugin calls a step, here as many as run on the device at once
            self._chunk.enter_context(tf.profiler.experimental.Trace("chunk", step_num=step + 1, _r=1))

    def after(self, step: int) -> None:
        """A chunk has ended with `step`."""
        self._chunk.close()
        self._recorded = (self._recorded[0], step)
        if step >= self._last:
            self.close()

    def close(self) -> None:
        """Ends the window where the run ends within it."""
        self._chunk.close()
        if self._runs:
            self._runs = False
            tf.profiler.experimental.stop()
            first, last = self._recorded
            say(f"steps {first} to {last} are profiled: tensorboard --logdir {self._folder}, with tensorboard-plugin-profile")
