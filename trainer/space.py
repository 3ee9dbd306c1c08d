"""What a search may try: the keys that were typed with several values, and the job of some of these. Imports no TensorFlow."""

import dataclasses
import math
from collections.abc import Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from trainer import config, expansion, secrets
from trainer.config import Job
from trainer.errors import ConfigError

_MOST_PROBED = 100  # choices of a key that are tried before the first trial


class Space:
    """What was typed: keys that are searched, and the others."""

    def __init__(self, parsed: Sequence[Override], config_dir: Path | None) -> None:
        self._typed = {override.get_key_element(): override for override in parsed}  # the last one of a key counts
        self._config_dir = config_dir
        self.distributions = {key: distribution_of(override) for key, override in self._typed.items() if override.is_sweep_override()}
        for key in self.distributions:
            text = str(self._typed[key].input_line)
            if secrets.masked(text) != text:
                raise ConfigError(f"{key}: a secret can't be searched: its values would stand in the study; type one value")
        self.storage_is_typed = any(override.key_or_group == "sweep.optuna.storage" for override in parsed)

    def overrides(self, params: dict[str, Any]) -> list[str]:
        """As an ordinary command line, in the order in which they were typed; searched keys that `params` lacks are left out."""
        values = {key: override.get_value_element_as_str() for key, override in self._typed.items() if key not in self.distributions}
        values |= {key: str(params[key]) for key in self.distributions if key in params}
        return [f"{key}={values[key]}" for key in self._typed if key in values]

    def fixed(self) -> dict[str, str]:
        return expansion.settings(self.overrides({}))

    def label(self, params: dict[str, Any]) -> str:
        return " ".join(f"{key}={params[key]}" for key in self.distributions)

    def directory(self, folder: Path, params: dict[str, Any], number: int) -> Path:
        return folder / expansion.name(self.overrides(params), number + 1)

    def job(self, params: dict[str, Any], number: int, folder: Path) -> Job:
        job = config.load(self.overrides(params), self._config_dir)
        return dataclasses.replace(job, run_dir=self.directory(folder, params, number))

    def check(self) -> Job:
        """The job at one corner of the space; ConfigError if it, or another end or choice of one key, is none."""
        ends = {key: _ends(distribution) for key, distribution in self.distributions.items()}
        corner = {key: values[0] for key, values in ends.items()}
        first = config.load(self.overrides(corner), self._config_dir)
        for key, values in ends.items():
            for value in values[1:]:
                config.load(self.overrides(corner | {key: value}), self._config_dir)
        return first


def distribution_of(override: Override) -> BaseDistribution:
    """Of interval(a,b), range(a,b,step) and choices, as hydra-optuna-sweeper reads them; a range ends before its end, as in every sweep."""
    value: Any = override.value()
    log = "log" in getattr(value, "tags", ())
    try:
        if override.is_interval_sweep():
            whole = isinstance(value.start, int) and isinstance(value.end, int)  # int(interval(1,9))
            return IntDistribution(value.start, value.end, log=log) if whole else FloatDistribution(value.start, value.end, log=log)
        if override.is_range_sweep() and not value.shuffle:
            start, stop, step = (Decimal(str(number)) for number in (value.start, value.stop, value.step))
            if not step:
                raise ValueError("its step is 0")
            count = math.ceil((stop - start) / step)
            if count < 1:
                raise ValueError("has no value")
            low, high = sorted((start, start + (count - 1) * step))
            if all(isinstance(number, int) for number in (value.start, value.stop, value.step)):
                return IntDistribution(int(low), int(high), log=log, step=abs(int(step)))
            return FloatDistribution(float(low), float(high), log=log, step=abs(float(step)))
        return CategoricalDistribution(tuple(dict.fromkeys(override.sweep_string_iterator())))
    except (ValueError, ArithmeticError, HydraException) as error:
        raise ConfigError(
            f"{override.input_line}: {error}; type {override.key_or_group}=interval(LOW,HIGH), tag(log,interval(LOW,HIGH)) with LOW > 0, "
            "range(FIRST,END,STEP) or choice(A,B)"
        ) from error


def _ends(distribution: BaseDistribution) -> Sequence[Any]:
    if isinstance(distribution, CategoricalDistribution):
        return distribution.choices[:_MOST_PROBED]
    assert isinstance(distribution, IntDistribution | FloatDistribution)
    return [distribution.low, distribution.high]
