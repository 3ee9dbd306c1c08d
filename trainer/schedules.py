"""Learning-rate schedules: builders from the optimizer's learning_rate and the run's number of steps.

`k` below is the number of steps done: 0 at the first step, num_steps - 1 at the last.
A builder of one's own is a function `(learning_rate, num_steps, **keys of its YAML)`.
"""

import math
from collections.abc import Sequence

from keras.optimizers import schedules

from trainer.errors import ConfigError


def constant(learning_rate: float, num_steps: int) -> float:
    """learning_rate at every step."""
    _check_rate(learning_rate)
    return learning_rate


def cosine(learning_rate: float, num_steps: int, final_fraction: float) -> schedules.LearningRateSchedule:
    """learning_rate * (f + (1 - f) * (1 + cos(pi * k / num_steps)) / 2), where f is final_fraction."""
    _check_rate(learning_rate)
    _check_fraction("final_fraction", final_fraction)
    return schedules.CosineDecay(learning_rate, num_steps, alpha=final_fraction)


def warmup_cosine(
    learning_rate: float, num_steps: int, warmup_fraction: float, final_fraction: float
) -> float | schedules.LearningRateSchedule:
    """learning_rate * (k + 1) / (w + 1) for the first w = round(warmup_fraction * num_steps) steps, then `cosine` over the others."""
    _check_rate(learning_rate)
    _check_fraction("warmup_fraction", warmup_fraction)
    _check_fraction("final_fraction", final_fraction)
    warmup_steps = min(round(warmup_fraction * num_steps), num_steps - 1)
    if warmup_steps == 0:
        return cosine(learning_rate, num_steps, final_fraction)
    return schedules.CosineDecay(
        learning_rate / (warmup_steps + 1),  # not 0, which would waste the first step
        num_steps - warmup_steps,
        alpha=final_fraction,
        warmup_target=learning_rate,
        warmup_steps=warmup_steps,
    )


def step(learning_rate: float, num_steps: int, boundaries: Sequence[float], factor: float) -> schedules.LearningRateSchedule:
    """learning_rate * factor ** (how many of the boundaries, fractions of num_steps, are passed: k >= round(b * num_steps))."""
    _check_rate(learning_rate)
    _check_factor(factor)
    if not boundaries or any(not 0 < b < 1 for b in boundaries) or sorted(boundaries) != list(boundaries):
        raise ConfigError(f"schedule.boundaries={list(boundaries)} must be rising fractions between 0 and 1, such as [0.5,0.75]")
    # Keras changes the rate after a boundary, not at it.
    last_steps = [round(b * num_steps) - 1 for b in boundaries]
    return schedules.PiecewiseConstantDecay(last_steps, [learning_rate * factor**i for i in range(len(boundaries) + 1)])


def exponential(learning_rate: float, num_steps: int, factor: float) -> schedules.LearningRateSchedule:
    """learning_rate * factor ** (k / num_steps)."""
    _check_rate(learning_rate)
    _check_factor(factor)
    return schedules.ExponentialDecay(learning_rate, num_steps, factor)


def _check_rate(learning_rate: float) -> None:
    if not isinstance(learning_rate, int | float) or not 0 < learning_rate < math.inf:
        raise ConfigError(f"optimizer.learning_rate={learning_rate} must be a finite number > 0, such as 0.001")


def _check_fraction(key: str, fraction: float) -> None:
    if not 0 <= fraction <= 1:
        raise ConfigError(f"schedule.{key}={fraction} must be between 0 and 1")


def _check_factor(factor: float) -> None:
    if not 0 < factor < math.inf:
        raise ConfigError(f"schedule.factor={factor} must be a finite number > 0, such as 0.1")
