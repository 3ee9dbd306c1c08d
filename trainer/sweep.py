"""`-m`: every combination of the swept values, or a search among them, and a table at the end. Imports no TensorFlow."""

import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from trainer import expansion
from trainer.errors import ConfigError
from trainer.isolation import Outcome
from trainer.progress import is_terminal, say
from trainer.runner import Runner, shown


def run(overrides: Sequence[str], config_dir: Path | None = None) -> int:
    """Runs every combination of the swept values, or searches among them where `sweep.optuna.trials` says so.

    Returns:
        0 if every job is done, 1 if one failed, 128 + the signal that stopped the sweep.

    Raises:
        ConfigError: a job's configuration is wrong; then none is started. Or the jobs can't be compared, as `sweep.compare` asks for.
    """
    if any(override.lstrip("+").startswith("sweep.optuna") for override in overrides):
        return _search(overrides, config_dir)
    jobs = expansion.expand(overrides, config_dir)
    if jobs[0].config.sweep.optuna.trials is not None:  # a configuration file says so
        return _search(overrides, config_dir)
    _check_writable(jobs[0].run_dir.parent)
    labels, runner = expansion.labels(jobs), Runner(jobs[0], len(jobs), jobs[0].config.sweep.parallel)
    with runner:
        outcomes = runner.run_all(jobs, labels)
    _print_table(labels, outcomes)
    say(f"{sum(outcome.state == 'done' for outcome in outcomes)} of {len(jobs)} jobs done, in {jobs[0].run_dir.parent}")
    if runner.signals.received is not None:
        return 128 + runner.signals.received
    if jobs[0].config.sweep.compare:
        from trainer import compare  # which imports NumPy

        compare.run([str(jobs[0].run_dir.parent)])
    return int(any(outcome.state != "done" for outcome in outcomes))


def _check_writable(folder: Path) -> None:
    """Refuses a sweep's directory that takes no files, once, and not in each of its jobs."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ConfigError(f"hydra.sweep.dir={folder} can't be written: {error.strerror}; type a directory you may write") from error


def _search(overrides: Sequence[str], config_dir: Path | None) -> int:
    try:
        from trainer import search
    except ModuleNotFoundError as error:
        if error.name != "optuna":
            raise
        raise ConfigError(
            'sweep.optuna: the package optuna is not installed: install it by pip install "gradtrain[optuna]", or from a checkout by '
            'pip install -e ".[optuna]"'
        ) from error
    return search.run(overrides, config_dir)


def _print_table(labels: Sequence[str], outcomes: Sequence[Outcome]) -> None:
    finals = [outcome.summary.get("final", {}) for outcome in outcomes]
    metrics = sorted(set.intersection(*(set(final) for final in finals if final))) if any(finals) else []
    tags = ["loss", *(tag for tag in metrics if tag.startswith("eval/"))]
    table = Table(box=None, header_style="bold")
    table.add_column("job", overflow="fold")
    table.add_column("state")
    for title in ("steps", *tags, "steps/s", "seconds"):
        table.add_column(title, justify="right")
    for label, outcome, final in zip(labels, outcomes, finals, strict=True):
        numbers = [outcome.summary.get("steps"), *(final.get(tag) for tag in tags)]
        numbers += [outcome.summary.get(key) for key in ("steps_per_second", "wall_seconds")]
        table.add_row(label, outcome.state, *map(shown, numbers))
    if sys.stdout is not None:
        wide = None if is_terminal() else max(80, sum(map(len, tags)) + max(map(len, labels)) + 80)
        Console(width=wide).print(table)
