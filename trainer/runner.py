"""Runs the jobs of a sweep, so many at once, here or by a launcher, and says how each goes and ends. Imports no TensorFlow."""

import concurrent.futures
import contextlib
import math
import os
import queue
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from trainer import isolation, rundir
from trainer.board import Board
from trainer.config import Job
from trainer.errors import CheckpointError
from trainer.isolation import Forwarding, Outcome
from trainer.json_files import read_json
from trainer.progress import say
from trainer.submission import Submission


class Runner:
    """Where a sweep's jobs run. Use as a context manager: while it is entered, a signal ends the jobs, and no further one starts.

    Args:
        first: one of the jobs, whose launcher is that of all, and whose directory is beside the others'.
        num_jobs: that there will be.
        parallel: how many run at once; None: one, or as the launcher says.
    """

    def __init__(self, first: Job, num_jobs: int, parallel: int | None) -> None:
        self.signals, self._num_jobs = Forwarding(), num_jobs
        self._submission = Submission(first.launcher, first.run_dir.parent, parallel, self.signals) if first.launcher else None
        self.at_once = min(num_jobs, self._submission.at_once if self._submission else parallel or 1)
        self._slots: queue.SimpleQueue[dict[str, str]] = queue.SimpleQueue()
        shares_machine = self._submission is None or self._submission.is_here
        for slot in _slots(self.at_once) if shares_machine else [{}] * self.at_once:
            self._slots.put(slot)
        self._board = Board([], [], self.at_once > 1)
        self._pool = concurrent.futures.ThreadPoolExecutor(self.at_once)
        self._entered = contextlib.ExitStack()

    def __enter__(self) -> "Runner":
        self._entered.enter_context(self.signals)
        if self._submission:
            self._entered.enter_context(self._submission)
        self._entered.enter_context(self._board)
        self._entered.enter_context(self._pool)
        return self

    def __exit__(self, *error: Any) -> None:
        self._entered.__exit__(*error)

    def run_all(self, jobs: Sequence[Job], labels: Sequence[str]) -> list[Outcome]:
        """Runs jobs to their end; those that are done are not run again."""
        if self._submission:
            self._submission.announce([job for job in jobs if _done(job) is None])
        futures = [self.start(number, job, label) for number, (job, label) in enumerate(zip(jobs, labels, strict=True), 1)]
        return [future.result() for future in futures]

    def start(self, number: int, job: Job, label: str) -> concurrent.futures.Future[Outcome]:
        """Runs a job as soon as there is a place for it; number is its own, from 1 on."""
        place = self._board.add(job, label)
        return self._pool.submit(self._run, place, job, f"[{number}/{self._num_jobs}] {label}")

    def _run(self, place: int, job: Job, name: str) -> Outcome:
        if (done := _done(job)) is not None:
            self._board.set(place, "done")
            say(f"{name}  is done, in {job.run_dir}")
            return done
        slot = self._slots.get()
        try:
            if self.signals.received is not None:
                return Outcome("not run")
            say(f"{name}  in {job.run_dir}")
            self._board.set(place, "running")
            if self._submission:
                outcome = self._submission.run(job, slot)
            else:
                outcome = isolation.run_one(job, self.signals, slot, quiet=self.at_once > 1)
        finally:
            self._slots.put(slot)
        self._board.set(place, outcome.state)
        if outcome.state != "done":
            print(f"{name} {outcome.state}: {outcome.cause}  ({job.run_dir})\n", end="", file=sys.stderr, flush=True)
        elif self.at_once > 1 or self._submission:
            say(f"{name}  done: loss {shown(outcome.summary.get('final', {}).get('loss'))}")
        return outcome


def _slots(parallel: int) -> list[dict[str, str]]:
    """What the environment of each of the jobs that run at once says: its share of the cores, and its GPU."""
    if parallel == 1:
        return [{}]
    threads = {"TF_NUM_INTRAOP_THREADS": str(max(1, (os.cpu_count() or 1) // parallel))}
    gpus = _gpus()
    return [threads | ({"CUDA_VISIBLE_DEVICES": gpus[i % len(gpus)]} if gpus else {}) for i in range(parallel)]


def _gpus() -> list[str]:
    """What names the GPUs that this process may use."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [name for name in visible.split(",") if name.strip()]
    return [str(i) for i, _ in enumerate(Path("/proc/driver/nvidia/gpus").glob("*"))]


def _done(job: Job) -> Outcome | None:
    """How a job ended that the same command has done before; None if it has not, or is to be done anew."""
    if job.config.resume != "auto":
        return None
    summary = read_json(job.run_dir / "summary.json")
    with contextlib.suppress(OSError, CheckpointError):  # the job itself says what is wrong
        stored, current = (job.run_dir / "config.yaml").read_text(encoding="utf-8"), rundir.stored_config(job.config)
        if summary and not rundir.differing_keys(stored, current) and rundir.is_finished(job.run_dir, stored, current):
            return Outcome("done", summary=summary)
    return None


def shown(value: Any) -> str:
    """A number as tables and lines show it."""
    if isinstance(value, float) and math.isfinite(value):
        return f"{value:.4g}" if abs(value) < 1000 else f"{value:.0f}"
    return "" if value is None else str(value)
