"""What runs have recorded, read from their directories. Imports no TensorFlow."""

import array
import dataclasses
import functools
import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from trainer import rundir
from trainer.encoding import first_damage
from trainer.errors import CheckpointError, ConfigError
from trainer.json_files import read_json
from trainer.progress import say


@dataclasses.dataclass(frozen=True)
class Series:
    """One scalar of a run, at the steps at which it was recorded."""

    steps: np.ndarray  # int64 [n], ascending
    values: np.ndarray  # float64 [n]

    @property
    def last(self) -> float:
        return float(self.values[-1])


@dataclasses.dataclass(frozen=True)
class Run:
    """What a run directory says."""

    path: Path
    config: dict[str, Any]  # flat
    series: dict[str, Series]  # by tag
    state: str  # done, running, failed, stopped
    summary: dict[str, Any]

    @property
    def steps(self) -> int:
        return int(max(series.steps[-1] for series in self.series.values()))

    @functools.cached_property
    def num_nonfinite(self) -> int:
        """Steps whose loss or global gradient norm is not finite."""
        parts = [self.series[tag] for tag in ("loss", "grad_norm/global") if tag in self.series]
        return len(set().union(*(part.steps[~np.isfinite(part.values)].tolist() for part in parts)))

    def figure(self, name: str) -> float:
        """The last value of a tag, or a number of the summary; NaN where there is none."""
        if name in self.series:
            return self.series[name].last
        value = self.summary.get(name)
        return float(value) if isinstance(value, int | float) else math.nan


def read(path: Path) -> list[Run]:
    """The runs in a directory: itself one, or a sweep's, of which those that have recorded no step are passed over with a warning.

    Raises:
        ConfigError: there is no run in it, or one that can't be read.
    """
    if (path / "config.yaml").is_file():
        return [_read_run(path)]
    jobs = sorted(config.parent for config in path.glob("*/config.yaml"))
    if not jobs:
        raise ConfigError(
            f"{path} is neither a run's directory nor a sweep's: type the directory that hydra.run.dir or hydra.sweep.dir named"
        )
    started = [job for job in jobs if (job / "metrics.jsonl").is_file() and (job / "metrics.jsonl").stat().st_size]
    for job in (job for job in jobs if job not in started):
        say(f"warning: the job in {job} has recorded no step, and is left out")
    return [_read_run(job) for job in started]


def _read_run(path: Path) -> Run:
    try:
        with open(path / "metrics.jsonl", encoding="utf-8") as lines:
            series = _series(lines)
        config = rundir.flat(rundir.parsed((path / "config.yaml").read_text(encoding="utf-8")))
    except (OSError, ValueError, CheckpointError) as error:
        raise ConfigError(f"the run in {path} can't be read: {error}: leave it out, or train it anew") from error
    if "loss" not in series:
        raise ConfigError(f"the run in {path} has recorded no step: leave it out, or train it by the command that made it")
    status, summary = (read_json(path / name) or {} for name in ("status.json", "summary.json"))
    state = str(status.get("state", "unknown"))
    if state != "running":  # whose files may end within a record
        _check_events(path / "tensorboard")
    return Run(path, config, series, state, summary)


def _check_events(folder: Path) -> None:
    """Warns of event files of which TensorBoard can't show all; what is read here is metrics.jsonl."""
    for file in sorted(folder.glob("*tfevents*")):
        try:
            damage = first_damage(file)
            trouble = None if damage is None else f"is cut off or damaged: TensorBoard shows nothing of it from byte {damage} on"
        except OSError as error:
            trouble = f"can't be read ({error.strerror}), by TensorBoard neither"
        if trouble:
            say(f"warning: {file} {trouble}; the figures here are those of metrics.jsonl, which has every step")


def _series(lines: Iterable[str]) -> dict[str, Series]:
    found: dict[str, tuple[array.array[int], array.array[float]]] = {}
    before = 0
    for number, line in enumerate(lines, 1):
        if not line.endswith("\n"):  # what a killed run left of a line is not one
            break
        try:
            row = json.loads(line)
            step = row.pop("step")
            if not before < step:
                raise ValueError("steps ascend")
            for tag, value in row.items():
                steps, values = found.setdefault(tag, (array.array("q"), array.array("d")))
                steps.append(step)
                values.append(float(value))  # of "NaN" and "inf" too
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
            raise ValueError(f"line {number} of metrics.jsonl is damaged") from error
        before = step
    return {tag: Series(np.array(steps), np.array(values)) for tag, (steps, values) in found.items()}
