"""Who takes turns in a benchmark: this trainer, by its own command in a fresh process every time, and competitors that stay and wait."""

import dataclasses
import json
import os
import select
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.competitors.job import Job
from benchmarks.environments import last_line

ROOT = Path(__file__).parent.parent
_MOST_SECONDS = 900  # until an answer


class FailedError(Exception):
    """An entrant has no rate; the message says why."""


@dataclasses.dataclass(frozen=True)
class Competitor:
    """One way of one framework."""

    title: str
    module: str  # in benchmarks.competitors
    environment: str | None = None  # None: the trainer's own
    way: str = ""


COMPETITORS = {
    "keras_fit": Competitor("Keras fit", "keras_fit"),
    "keras_fit_32": Competitor("Keras fit, steps_per_execution=32", "keras_fit", way="steps_per_execution"),
    "keras_fit_jit": Competitor("Keras fit, jit_compile", "keras_fit", way="jit_compile"),
    "gradient_tape": Competitor("hand-written loop, norms to tf.summary", "gradient_tape"),
    "orbit": Competitor("Orbit", "orbit_controller", "orbit"),
    "torch_eager": Competitor("PyTorch eager", "torch_eager", "torch"),
    "lightning": Competitor("Lightning", "lightning_fit", "torch"),
    "jax_step": Competitor("JAX jit, a call a step", "jax_scan", "jax", way="step"),
    "jax_scan": Competitor("JAX jit, lax.scan", "jax_scan", "jax", way="scan"),
}


class Waiting:
    """A competitor's process: ready, and then a window of steps whenever it is asked for one."""

    def __init__(self, competitor: Competitor, python: Path, job: Job, errors: Path) -> None:
        self._errors = errors
        command = [str(python), "-m", f"benchmarks.competitors.{competitor.module}", json.dumps(dataclasses.asdict(job))]
        with errors.open("w") as file:
            self._process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=file, text=True)
        try:
            self.about = self._answer()
        except FailedError:
            self.close()
            raise

    def window(self, seconds: float) -> dict[str, Any]:
        """`rate` in steps per second, `loss` and `peak_memory_mb`, of about so many seconds.

        Raises:
            FailedError: the process has ended, or doesn't answer.
        """
        assert self._process.stdin is not None
        try:
            print(seconds, file=self._process.stdin, flush=True)
        except BrokenPipeError as error:
            raise FailedError(self._reason()) from error
        return self._answer()

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()

    def _answer(self) -> dict[str, Any]:
        stdout = self._process.stdout
        assert stdout is not None
        if not select.select([stdout], [], [], _MOST_SECONDS)[0]:
            raise FailedError(f"no answer within {_MOST_SECONDS} s")
        line = stdout.readline()
        if not line:
            raise FailedError(self._reason())
        try:
            return json.loads(line)
        except ValueError as error:
            raise FailedError(f"answered {line.strip()[:100]!r}") from error

    def _reason(self) -> str:
        return f"ended with status {self._process.wait()}: {last_line(self._errors.read_text())}"


def run_trainer(overrides: list[str], folder: Path) -> dict[str, Any]:
    """The trainer's own command in a fresh process; `rate`, `loss`, `peak_memory_mb` and `compile` of its summary.json.

    Raises:
        FailedError: it ended with another status than 0, or not at all.
    """
    command = [sys.executable, "-m", "trainer", *overrides, f"hydra.run.dir={folder}"]
    environment = {name: value for name, value in os.environ.items() if name != "TF_CPP_MIN_LOG_LEVEL"}  # unset, it starts in silence
    try:
        done = subprocess.run(
            command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment, timeout=_MOST_SECONDS
        )
    except subprocess.TimeoutExpired as error:
        raise FailedError(f"not done within {_MOST_SECONDS} s") from error
    if done.returncode:
        raise FailedError(f"ended with status {done.returncode}: {last_line(done.stdout)}")
    try:
        summary = json.loads((folder / "summary.json").read_text())
        kept = {key: summary[key] for key in ("peak_memory_mb", "compile")}
        return {"rate": summary["steps_per_second"], "loss": summary["final"]["loss"], **kept}
    except (OSError, ValueError, KeyError) as error:
        raise FailedError(f"its summary.json can't be read: {error!r}") from error
