"""What a person at the terminal sees of a run: one live line there, plain lines elsewhere, and a closing table."""

import sys
import time
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.table import Table

_WIDE = 80  # characters that the whole live line needs
_PLAIN_SECONDS = 5.0  # between two plain lines, where there is no terminal


class ProgressLine:
    """Shows step, loss, gradient norm, steps/s and the time left. Use as a context manager."""

    def __init__(self, num_steps: int, first_step: int) -> None:
        self._num_steps = num_steps
        self._started, self._first = time.monotonic(), first_step  # of what the rate is counted from
        self._printed = self._started
        self._compiled = False
        self._live = None
        if is_terminal():
            console = Console()
            columns: list[ProgressColumn] = [TextColumn("step {task.completed}/{task.total}"), TextColumn("{task.description}")]
            if console.width >= _WIDE:
                columns = [columns[0], BarColumn(bar_width=20), TaskProgressColumn(), columns[1], TimeRemainingColumn()]
            self._live = Progress(*columns, console=console)
            self._task = self._live.add_task("", total=num_steps, completed=first_step)

    def __enter__(self) -> "ProgressLine":
        if self._live:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live:
            self._live.stop()

    def show(self, step: int, scalars: dict[str, float], evaluation: dict[str, float]) -> None:
        """The state after `step`."""
        now = time.monotonic()
        rate = (step - self._first) / max(now - self._started, 1e-9)
        if not self._compiled:  # the first chunk was traced and compiled: the rate is that of those after it
            self._compiled, self._started, self._first = True, now, step
        text = f"loss {scalars['loss']:.4g}  grad norm {scalars['grad_norm/global']:.3g}  {rate:.0f} steps/s"
        metrics = "  ".join(f"{tag} {value:.4g}" for tag, value in evaluation.items())
        if self._live:
            if self._live.console.width < _WIDE:
                text = text.partition("  ")[0]
            self._live.update(self._task, completed=step, description=text, refresh=True)
            if metrics:
                self._live.console.print(f"step {step}  {metrics}")
        elif metrics or now - self._printed >= _PLAIN_SECONDS:
            self._printed = now
            say(f"step {step}/{self._num_steps}  {text}  {metrics}".rstrip())


def is_terminal() -> bool:
    """Whether somebody sees stdout at a terminal."""
    return sys.stdout is not None and not sys.stdout.closed and sys.stdout.isatty()


def say(line: str) -> None:
    """One plain line; a closed stdout is no reason to stop training."""
    try:
        print(f"{line}\n", end="", flush=True)  # in one piece, as several threads of a sweep may be saying something
    except (OSError, ValueError):
        sys.stdout = None


def closing_table(run_dir: str, summary: dict[str, Any]) -> None:
    """The run's result."""
    table = Table(show_header=False, box=None)
    table.add_column()
    table.add_column(overflow="fold")  # a path cut short is of no use
    rate = summary["steps_per_second"]
    rows = {
        "steps": f"{summary['steps']}  ({rate:.{0 if rate >= 10 else 2}f} steps/s, {summary['wall_seconds']:.1f} s)",
        "gradient": f"{summary['gradient_mode']}  ({summary['gradient_check']})",
    }
    rows |= {
        tag: f"{value:.4f}" if isinstance(value, float) else str(value)
        for tag, value in summary["final"].items()
        if tag.startswith(("loss", "eval/"))
    }
    rows["run"] = run_dir
    for name, text in rows.items():
        table.add_row(f"[bold]{name}[/bold]", text)
    try:
        Console().print(table)
    except (OSError, ValueError):
        sys.stdout = None
