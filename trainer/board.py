"""What a person at the terminal sees of a sweep whose jobs run at once: a live table of those that run or have failed."""

import collections
import math
import time
from collections.abc import Sequence

from rich.live import Live
from rich.table import Table

from trainer import schema
from trainer.config import Job
from trainer.json_files import last_row, read_json
from trainer.progress import is_terminal


class Board:
    """Shows job, state, step, loss and the time left, where stdout is a terminal and `wanted`. Use as a context manager."""

    def __init__(self, jobs: Sequence[Job], labels: Sequence[str], wanted: bool) -> None:
        self._jobs, self._labels = list(jobs), list(labels)
        self._states = ["waiting"] * len(jobs)
        self._totals: dict[int, int] = {}  # steps of a job, once its data are known
        self._started: dict[int, tuple[float, int]] = {}  # of a job that runs: when its first step was seen, and which that was
        self._live = Live(get_renderable=self.table, refresh_per_second=2) if wanted and is_terminal() else None

    def __enter__(self) -> "Board":
        if self._live:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live:
            self._live.stop()

    def add(self, job: Job, label: str) -> int:
        """One more job, which waits; its number."""
        self._jobs.append(job)
        self._labels.append(label)
        self._states.append("waiting")  # last: the table is drawn by another thread
        return len(self._states) - 1

    def set(self, number: int, state: str) -> None:
        """The state of a job, counted from 0."""
        self._states[number] = state

    def table(self) -> Table:
        """The jobs as they stand."""
        counts = collections.Counter(self._states)
        table = Table(
            box=None, header_style="bold", title=", ".join(f"{count} {state}" for state, count in counts.items()), title_justify="left"
        )
        for title in ("job", "state", "step", "loss", "time left"):
            table.add_column(title, justify="left" if title in ("job", "state") else "right")
        for i, (job, label, state) in enumerate(zip(self._jobs, self._labels, self._states, strict=False)):
            if state in ("running", "failed", "stopped"):
                row = last_row(job.run_dir / "metrics.jsonl")
                total = self._total(i, job)
                step = f"{row['step']}" + (f"/{total}" if total else "") if row else ""
                loss = row.get("loss", "")
                left = self._left(i, row.get("step"), total) if state == "running" else ""
                table.add_row(label, state, step, f"{loss:.4g}" if isinstance(loss, float) else str(loss), left)
        return table

    def _total(self, number: int, job: Job) -> int | None:
        if number not in self._totals:
            settings = schema.section(schema.Trainer, job.config.trainer)
            num_examples = (read_json(job.run_dir / "data.json") or {}).get("num_examples")  # which only steps can do without
            if settings.steps is None and not isinstance(num_examples, int):
                return None
            self._totals[number] = math.ceil(settings.length(num_examples or 0, job.config.data.batch_size))
        return self._totals[number]

    def _left(self, number: int, step: int | None, total: int | None) -> str:
        if step is None or total is None:
            return ""
        since, first = self._started.setdefault(number, (time.monotonic(), step))
        if step <= first:
            return ""
        seconds = round((total - step) * (time.monotonic() - since) / (step - first))
        return f"{seconds // 3600}:{seconds // 60 % 60:02}:{seconds % 60:02}"
