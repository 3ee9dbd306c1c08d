"""The jobs of a sweep, out of what was typed, with their directories and what tells them apart. Imports no TensorFlow."""

import dataclasses
import hashlib
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException

from trainer import config, secrets
from trainer.config import Job
from trainer.errors import ConfigError

_MAX_NAME = 100  # characters of a job's directory name
_MAX_JOBS = 10_000


def expand(overrides: Sequence[str], config_dir: Path | None = None) -> list[Job]:
    """The jobs of a sweep, each validated.

    Raises:
        ConfigError: a configuration is wrong; where only some of them are, each is listed on stderr.
    """
    parsed = parse(overrides, config_dir)
    _check_count(parsed)
    try:
        (combinations,) = BasicSweeper.split_arguments(parsed, None)
    except HydraException as error:
        raise ConfigError(
            f"this sweep can't be run: {error}; type values separated by commas, or range(1,4); intervals are for sweep.optuna.trials=20"
        ) from error
    jobs: dict[str, Job] = {}
    refused: dict[str, ConfigError] = {}
    folder = None
    for number, combination in enumerate(combinations, 1):
        try:
            job = config.load(combination, config_dir)
            folder = folder or config.sweep_dir(combination, config_dir)
        except ConfigError as error:
            refused[" ".join(combination)] = error
            continue
        place = folder / name(combination, number)
        jobs[place.name] = dataclasses.replace(job, run_dir=place)
    if len(set(map(str, refused.values()))) == 1 and not jobs:  # wrong whatever is swept
        raise next(iter(refused.values()))
    if refused:
        for text, reason in refused.items():
            print(f"{text}: {reason}", file=sys.stderr)
        raise ConfigError(
            f"{len(refused)} of {len(combinations)} jobs can't be run, as listed; none was started: mend them, or leave them out"
        )
    for job in jobs.values():
        check_no_dry_run(job)
    return list(jobs.values())


def check_no_dry_run(job: Job) -> None:
    """Refuses to look at a job of many instead of running it."""
    if job.config.trainer.dry_run:
        raise ConfigError("trainer.dry_run=true looks at one job: type it without -m, and with one value of each key")


def parse(overrides: Sequence[str], config_dir: Path | None = None) -> list[Override]:
    """What was typed, by Hydra's grammar.

    Raises:
        ConfigError: it can't be read, or sweeps what can't be swept.
    """
    parsed = config.parse(overrides, config_dir)
    for override in parsed:
        if override.key_or_group == "hydra.run.dir":
            raise ConfigError(f"{override.input_line}: the jobs of a sweep have directories of their own; type hydra.sweep.dir=DIRECTORY")
        key = str(override.key_or_group)
        if override.is_sweep_override() and (override.is_hydra_override() or key == "resume" or key.startswith("sweep.")):
            raise ConfigError(
                f"{override.input_line}: Hydra's own keys, resume, and those of the sweep itself, can't be swept; type one value"
            )
    return parsed


def _check_count(parsed: Sequence[Override]) -> None:
    count = 1
    for override in parsed:
        if override.is_discrete_sweep():
            count *= sum(1 for _, _ in zip(override.sweep_iterator(), range(_MAX_JOBS + 1), strict=False))
        if count > _MAX_JOBS:
            raise ConfigError(f"this sweep has more than {_MAX_JOBS} jobs, by {override.input_line}; type fewer values")
        if not count:
            raise ConfigError(f"{override.input_line} names no value, and so the sweep has no job; type one value or more")


def name(overrides: Sequence[str], number: int) -> str:
    """A directory's name out of what was typed: `loss-stable_mse_seed-1`. No `=`, which Hydra's grammar would trip on."""
    text = "_".join(f"{key}-{number if value == '***' else value}" for key, value in settings(overrides).items()) or "default"
    plain = re.sub(r"[^A-Za-z0-9.,_+-]+", "-", text)
    if plain != text or len(plain) > _MAX_NAME:
        plain = f"{plain[:_MAX_NAME]}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"
    return plain


def labels(jobs: Sequence[Job]) -> list[str]:
    """What tells the jobs apart."""
    typed = [settings(job.overrides) for job in jobs]
    swept = [key for key in typed[0] if len({job.get(key) for job in typed}) > 1 or (len(jobs) > 1 and typed[0][key] == "***")]
    return [" ".join(f"{key}={job[key]}" for key in swept) or "one job" for job in typed]


def settings(overrides: Sequence[str]) -> dict[str, str]:
    """What was typed about the job itself, key to value; secrets are ***."""
    pairs = (secrets.masked(override.lstrip("+")).partition("=") for override in overrides)
    return {key: value for key, _, value in pairs if key not in ("trust", "resume") and not key.startswith(("hydra.", "hydra/", "sweep."))}
