"""The schedules at their first, middle and last steps, by hand."""

import math
from pathlib import Path

import keras
import pytest
from omegaconf import OmegaConf

from trainer import schedules
from trainer.errors import ConfigError


def rates(schedule, *steps: int) -> list[float]:
    return [float(schedule(step)) for step in steps]


def test_constant():
    assert schedules.constant(0.1, 100) == 0.1


def test_cosine():
    schedule = schedules.cosine(0.2, 100, final_fraction=0.5)
    assert rates(schedule, 0, 25, 50, 100) == pytest.approx([0.2, 0.1 + 0.1 * (1 + math.sqrt(0.5)) / 2, 0.15, 0.1])
    assert rates(schedules.cosine(0.2, 100, 0.0), 99, 100) == pytest.approx([0.2 * (1 - math.cos(math.pi / 100)) / 2, 0], abs=1e-8)


def test_warmup_cosine():
    schedule = schedules.warmup_cosine(0.5, 24, warmup_fraction=1 / 6, final_fraction=0.1)  # 4 steps up, 20 down
    assert rates(schedule, 0, 1, 3, 4) == pytest.approx([0.1, 0.2, 0.4, 0.5])
    assert rates(schedule, 14, 24) == pytest.approx([0.5 * 0.55, 0.05])


@pytest.mark.parametrize("num_steps", [1, 2, 3, 7])
@pytest.mark.parametrize("warmup_fraction", [0, 0.1, 0.5, 1])
def test_warmup_cosine_of_short_runs_never_wastes_a_step(num_steps, warmup_fraction):
    schedule = schedules.warmup_cosine(0.5, num_steps, warmup_fraction, final_fraction=0.0)
    assert all(0 < rate <= 0.5 for rate in rates(schedule, *range(num_steps)))
    assert max(rates(schedule, *range(num_steps))) == 0.5


def test_step():
    schedule = schedules.step(0.8, 100, boundaries=[0.5, 0.75], factor=0.5)
    assert rates(schedule, 0, 49, 50, 74, 75, 99) == pytest.approx([0.8, 0.8, 0.4, 0.4, 0.2, 0.2])


def test_exponential():
    assert rates(schedules.exponential(0.8, 100, factor=0.25), 0, 50, 100) == pytest.approx([0.8, 0.4, 0.2])


FILES = sorted((Path(__file__).parents[2] / "conf" / "schedule").glob("*.yaml"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_file_builds_and_reaches_the_optimizer(path):
    arguments = OmegaConf.to_container(OmegaConf.load(path))
    assert arguments.pop("_target_") == f"trainer.schedules.{path.stem}"
    optimizer = keras.optimizers.SGD(getattr(schedules, path.stem)(0.1, 200, **arguments))
    first = float(optimizer.learning_rate)
    assert 0 < first < 0.1001
    optimizer.iterations.assign(199)
    assert (float(optimizer.learning_rate) < 0.011) == (path.stem != "constant")


@pytest.mark.fault
@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
@pytest.mark.parametrize("learning_rate", [math.nan, -1, 0, math.inf, "fast"])
def test_learning_rate_is_checked(path, learning_rate):
    arguments = OmegaConf.to_container(OmegaConf.load(path))
    arguments.pop("_target_")
    with pytest.raises(ConfigError, match=rf"optimizer\.learning_rate={learning_rate}"):
        getattr(schedules, path.stem)(learning_rate, 200, **arguments)


@pytest.mark.parametrize(
    ("build", "arguments", "key"),
    [
        (schedules.cosine, {"final_fraction": -0.1}, "final_fraction"),
        (schedules.warmup_cosine, {"warmup_fraction": 1.5, "final_fraction": 0}, "warmup_fraction"),
        (schedules.warmup_cosine, {"warmup_fraction": 0.1, "final_fraction": math.nan}, "final_fraction"),
        (schedules.step, {"boundaries": [0.5, 0.2], "factor": 0.1}, "boundaries"),
        (schedules.step, {"boundaries": [500], "factor": 0.1}, "boundaries"),
        (schedules.step, {"boundaries": [], "factor": 0.1}, "boundaries"),
        (schedules.step, {"boundaries": [0.5], "factor": 0}, "factor"),
        (schedules.exponential, {"factor": math.inf}, "factor"),
    ],
)
def test_arguments_are_checked(build, arguments, key):
    with pytest.raises(ConfigError, match=rf"schedule\.{key}="):
        build(0.1, 100, **arguments)
