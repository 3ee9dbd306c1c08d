"""Runs that differ in one key, matched by all others, and what their metrics say of it. Imports no TensorFlow."""

import dataclasses
import functools
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy import special

from trainer import rundir, trust
from trainer.errors import ConfigError
from trainer.recorded import Run

CONFIDENCE = 0.95
SUMMARIZED = {"steps_per_second": "steps per second", "peak_memory_mb": "peak memory, MB"}  # numbers of summary.json that are compared
_SAME_SPREAD = 1e-4  # of the mean: differences of pairs that are nearer to each other are one and the same
_SEED, _RUN = "seed", "run"
_NO_MATTER = ("resume", "trust", "logging", "checkpoint", "sweep", "trainer.log_every", "trainer.steps_per_call", "trainer.replay")


@dataclasses.dataclass(frozen=True)
class Interval:
    """A mean over pairs of runs, and the interval that holds the true one with a confidence of 95%, by Student's distribution."""

    mean: float
    low: float  # NaN of one pair
    high: float
    num: int

    @property
    def excludes_zero(self) -> bool:
        return self.low > 0 or self.high < 0


def interval(values: Sequence[float]) -> Interval:
    """Of differences that are independent and about normal; those that are not finite are left out."""
    kept = np.array([value for value in values if math.isfinite(value)])
    if not len(kept):
        return Interval(math.nan, math.nan, math.nan, 0)
    if len(kept) == 1:
        return Interval(float(kept[0]), math.nan, math.nan, 1)
    half = float(special.stdtrit(len(kept) - 1, 0.5 + CONFIDENCE / 2)) * float(kept.std(ddof=1)) / math.sqrt(len(kept))
    return Interval(float(kept.mean()), float(kept.mean()) - half, float(kept.mean()) + half, len(kept))


@dataclasses.dataclass(frozen=True)
class Parting:
    """Where two runs' records differ by more than a tolerance."""

    step: int  # the first one
    tag: str
    values: tuple[float, float]
    largest: float  # relative difference of the loss over all common steps


@dataclasses.dataclass(frozen=True)
class Tolerance:
    """By how much two recorded numbers may differ and still count as the same."""

    relative: float = 1e-5  # of the baseline's
    absolute: float = 1e-8


@dataclasses.dataclass(frozen=True)
class Pair:
    """Two runs that differ in the compared key alone."""

    seed: Any
    baseline: Run
    other: Run
    tolerance: Tolerance

    @functools.cached_property
    def is_identical(self) -> bool:
        """Whether they have recorded the same steps, and the same numbers to the last digit."""
        return self.baseline.steps == self.other.steps and self._parting(Tolerance(0.0, 0.0)) is None

    @functools.cached_property
    def parting(self) -> Parting | None:
        """The first step at which a common tag is not the same within the tolerance; None if there is none."""
        return self._parting(self.tolerance)

    def _parting(self, tolerance: Tolerance) -> Parting | None:
        firsts = []
        for tag in self.baseline.series.keys() & self.other.series.keys():
            steps, before, after = self.common(tag)
            different = np.flatnonzero(~np.isclose(after, before, rtol=tolerance.relative, atol=tolerance.absolute, equal_nan=True))
            if len(different):
                firsts.append((int(steps[different[0]]), tag != "loss", tag, (float(before[different[0]]), float(after[different[0]]))))
        if not firsts:
            return None
        step, _, tag, values = min(firsts)
        _, before, after = self.common("loss")
        with np.errstate(all="ignore"):
            relative = np.abs(after - before) / np.maximum(np.abs(before), np.abs(after))
        return Parting(step, tag, values, float(np.nanmax(relative, initial=0.0)))

    def common(self, tag: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Steps that both have recorded, and both runs' values there."""
        one, other = self.baseline.series[tag], self.other.series[tag]
        steps, i, j = np.intersect1d(one.steps, other.steps, assume_unique=True, return_indices=True)
        return steps, one.values[i], other.values[j]

    def difference(self, name: str) -> float:
        return self.other.figure(name) - self.baseline.figure(name)

    def log_ratio(self, name: str) -> float:
        before, after = self.baseline.figure(name), self.other.figure(name)
        return math.log(after / before) if before > 0 and after > 0 else math.nan


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Two values of the compared key, under one setting of everything else."""

    key: str
    setting: str  # what else varies between the runs given, such as loss=huber; "" if nothing does
    baseline: str
    value: str
    pairs: list[Pair]
    unmatched: list[Run]  # runs of either value that have no partner

    @property
    def sides(self) -> tuple[list[Run], list[Run]]:
        """The runs of the baseline, and their partners."""
        return [pair.baseline for pair in self.pairs], [pair.other for pair in self.pairs]

    @property
    def tags(self) -> list[str]:
        """What is compared by its last value: the loss and the evaluations that all runs have."""
        return ["loss", *sorted(tag for tag in self.shared if tag.startswith("eval/"))]

    @property
    def shared(self) -> list[str]:
        """The tags that all runs have, in the order of the first one's."""
        runs = [run for side in self.sides for run in side]
        return [tag for tag in runs[0].series if all(tag in run.series for run in runs)]

    @property
    def metric(self) -> str:
        """What the verdict is about: what the runs watched for their best checkpoint, if all have recorded it, else the loss.

        Where the losses themselves are compared, what they give are different quantities: then the first other metric; "" if there is none.
        """
        own = ("loss", "eval/loss") if rundir.is_within(self.key, ("loss",)) else ()
        told = [tag for tag in self.tags if tag not in own]
        monitored = str(self.pairs[0].baseline.config.get("checkpoint.monitor"))
        return monitored if monitored in told else next(iter(told), "")

    def means(self, name: str) -> list[float]:
        """Of the baseline's runs, and of the others'."""
        return [float(np.mean([run.figure(name) for run in side])) for side in self.sides]

    def differences(self, name: str) -> Interval:
        return interval([pair.difference(name) for pair in self.pairs])

    def ratio(self, name: str) -> Interval:
        """Of the other run's number over the baseline's: the geometric mean, and its interval."""
        found = interval([pair.log_ratio(name) for pair in self.pairs])
        return Interval(math.exp(found.mean), math.exp(found.low), math.exp(found.high), found.num)


def compare(
    runs: Sequence[Run], key: str | None = None, baseline: str | None = None, tolerance: Tolerance = Tolerance()
) -> list[Comparison]:
    """Every value of a key against one of them, the baseline.

    Args:
        runs: at least two.
        key: in which they are compared; by default gradient.mode, if they differ in it, or the only key in which they do.
        baseline: the value that others are compared with; by default "auto" for gradient.mode, otherwise the first run's.
        tolerance: of what counts as the same.

    Raises:
        ConfigError: there is no such key or value, no pair, or it can't be told what to compare.
    """
    if len(runs) < 2:
        raise ConfigError("there is nothing to compare: type two or more runs, or a sweep of them")
    described, varying = _varying(runs)
    key = _key(key, varying)
    if key == _RUN:
        described = [each | {_RUN: str(run.path)} for each, run in zip(described, runs, strict=True)]
    values = list(dict.fromkeys(str(each[key]) for each in described))
    if baseline is None:
        baseline = "auto" if key == "gradient.mode" and "auto" in values else values[0]
    if baseline not in values:
        raise ConfigError(f"--baseline={baseline}: no run has {key}={baseline}; type one of {', '.join(values)}")
    groups: dict[str, dict[tuple[str, Any], Run]] = {}
    for each, run in zip(described, runs, strict=True):
        setting = ", ".join(f"{name}={each[name]}" for name in varying if name not in (key, _SEED))
        place = (str(each[key]), None if key in (_RUN, _SEED) else each.get(_SEED))
        taken = groups.setdefault(setting, {}).setdefault(place, run)
        if taken is not run:
            raise ConfigError(f"{taken.path} and {run.path} have the same configuration: leave one of them out")
    found = [
        comparison
        for setting, group in groups.items()
        for value in values
        if value != baseline and (comparison := _matched(key, setting, baseline, value, group, tolerance)).pairs
    ]
    if not found:
        raise ConfigError(f"no two of these runs differ in {key} alone: {', '.join(varying)} differ too; type runs that share all but one")
    return found


def _matched(key: str, setting: str, baseline: str, value: str, group: Mapping[tuple[str, Any], Run], tolerance: Tolerance) -> Comparison:
    of = {each: {seed: run for (found, seed), run in group.items() if found == each} for each in (baseline, value)}
    seeds = [seed for seed in of[baseline] if seed in of[value]]
    pairs = [Pair(seed, of[baseline][seed], of[value][seed], tolerance) for seed in sorted(seeds, key=str)]
    unmatched = [run for each in of.values() for seed, run in each.items() if seed not in seeds]
    return Comparison(key, setting, baseline, value, pairs, unmatched)


def _key(key: str | None, varying: Sequence[str]) -> str:
    others = [name for name in varying if name != _SEED]
    if key is not None:
        if key not in varying:
            differ = f"they differ in {', '.join(varying)}" if varying else "they differ in nothing"
            raise ConfigError(f"--key={key}: these runs don't differ in it; {differ}")
        return key
    if not varying:
        return _RUN  # the same, done twice
    if "gradient.mode" in others:
        return "gradient.mode"
    if len(others) == 1 or varying == [_SEED]:
        return (others or varying)[0]
    raise ConfigError(f"these runs differ in {', '.join(others)}: type --key KEY with the one to compare")


def _varying(runs: Sequence[Run]) -> tuple[list[dict[str, Any]], list[str]]:
    """The runs' configurations, and the keys in which they differ; a group of which different choices were made counts as one key."""
    configs = [{key: value for key, value in run.config.items() if not rundir.is_within(key, _NO_MATTER)} for run in runs]
    for group in trust.KINDS:
        target = f"{group}._target_"
        if len({config.get(target) for config in configs}) > 1:
            configs = _folded(configs, group)
    keys = list(dict.fromkeys(key for config in configs for key in config))
    return configs, [key for key in keys if len({json.dumps(config.get(key), default=str) for config in configs}) > 1]


def _folded(configs: list[dict[str, Any]], group: str) -> list[dict[str, Any]]:
    """Replaces a group's keys by one, whose value is the choice's name, with the settings that tell two of the same name apart."""
    own = [{key.removeprefix(f"{group}."): config[key] for key in config if key.startswith(f"{group}.")} for config in configs]
    named = []
    for config, section in zip(configs, own, strict=True):
        alike = [other for other in own if other.get("_target_") == section.get("_target_")]
        apart = [key for key in section if any(other.get(key) != section[key] for other in alike)]
        parts = str(section.get("_target_")).split(".")
        name = parts[-2] if group == "loss" and len(parts) > 1 else parts[-1]
        name += f"({', '.join(f'{key}={section[key]}' for key in apart)})" if apart else ""
        named.append({key: value for key, value in config.items() if not key.startswith(f"{group}.")} | {group: name})
    return named


def figures(comparison: Comparison) -> list[list[str]]:
    """Rows of a table: what is compared, both means, what the pairs differ by, and the interval of that."""
    rows = []
    for tag in comparison.tags:
        found = comparison.differences(tag)
        bounds = "" if math.isnan(found.low) else f"{found.low:+.3g} to {found.high:+.3g}"
        rows.append([tag, *(f"{mean:.4g}" for mean in comparison.means(tag)), f"{found.mean:+.3g}", bounds])
    for name, title in SUMMARIZED.items():
        found = comparison.ratio(name)
        bounds = "" if math.isnan(found.low) else f"{found.low:.3g} to {found.high:.3g} times"
        rows.append([title, *(f"{mean:.4g}" for mean in comparison.means(name)), f"{found.mean:.3g} times", bounds])
    counts = [sum(run.num_nonfinite for run in side) for side in comparison.sides]
    return [*rows, ["steps that are not finite", *map(str, counts), f"{counts[1] - counts[0]:+d}", ""]]


def verdict(comparison: Comparison) -> str:
    """One sentence, which claims no more than the figures carry."""
    runs = [run for side in comparison.sides for run in side]
    early = sum(run.state in ("running", "stopped", "failed") for run in runs)
    return _verdict(comparison) + (f"; {early} of these {len(runs)} runs have not come to their end." if early else ".")


def _verdict(comparison: Comparison) -> str:
    key, value, baseline, pairs = comparison.key, comparison.value, comparison.baseline, comparison.pairs
    one, other = (name if key == _RUN else f"{key}={name}" for name in (baseline, value))
    seeds = f"{len(pairs)} pairs of runs" if len(pairs) > 1 else "one pair of runs"
    broken = [sum(run.num_nonfinite > 0 for run in side) for side in comparison.sides]
    if any(broken):
        return f"{other} has steps that are not finite in {broken[1]} and {one} in {broken[0]} of {len(pairs)} runs each"
    if all(pair.is_identical for pair in pairs):
        return f"{other} and {one} are equal in every recorded number ({seeds})"
    if all(pair.parting is None and pair.baseline.steps == pair.other.steps for pair in pairs):
        return f"{other} and {one} agree to {pairs[0].tolerance.relative:g} in every recorded number ({seeds})"
    metric = comparison.metric
    if not metric:
        return f"{other} and {one} have recorded nothing but what each loss gives, and one loss's values say nothing of another's"
    found = comparison.differences(metric)
    finals = comparison.means(metric)
    ends = f"{metric} ends at {finals[1]:.4g} with {other} and at {finals[0]:.4g} with {one}"
    if found.num < 2:
        return f"{ends}, in one pair of runs: more seeds would tell whether that is chance"
    # As where the seed changes nothing, or a metric takes few values.
    if float(np.ptp([pair.difference(metric) for pair in pairs])) < _SAME_SPREAD * abs(found.mean):
        return f"{ends}: the same difference of {found.mean:+.3g} in all of {seeds}, whose spread then tells nothing of chance"
    bounds = f"the difference is {found.mean:+.3g}, with 95% confidence between {found.low:+.3g} and {found.high:+.3g} ({seeds})"
    says = "a difference that chance does not explain" if found.excludes_zero else "no difference that chance could not explain"
    return f"{ends}: {says}; {bounds}"
