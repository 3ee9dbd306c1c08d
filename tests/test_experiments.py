"""Every experiment composes, says how it is run and what came out, and trains."""

import json
import re
from pathlib import Path

import pytest
import yaml

from trainer import config, job

EXPERIMENTS = {path.stem: path for path in sorted((Path(__file__).parents[1] / "conf/experiment").glob("*.yaml")) if path.stem != "none"}


def header(name: str) -> str:
    """The comments at the top of an experiment's file."""
    lines = EXPERIMENTS[name].read_text().splitlines()
    assert lines[0] == "# @package _global_"
    return "\n".join(line for line in lines[1 : lines.index("defaults:")] if line.startswith("# "))


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_a_header_has_the_command_and_the_result(name):
    (arguments,) = re.findall(r"^#   python -m trainer(?: -m)? (.*)$", header(name), re.MULTILINE)
    chosen, *overrides = arguments.split()
    assert chosen == f"experiment={name}"
    for override in overrides:
        key, _, values = override.partition("=")
        for value in values.split(","):
            config.load([chosen, f"{key}={value}"])
    result = header(name).partition(arguments)[2]
    assert result.startswith("\n# Expect ")
    assert re.search(r"\d", result)
    assert "2 cores" in result


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_an_experiment_chooses_what_it_names(name):
    choices = config.load([f"experiment={name}"]).choices
    for override in yaml.safe_load(EXPERIMENTS[name].read_text())["defaults"]:
        ((group, choice),) = override.items()
        assert choices[group.removeprefix("override /")] == choice


@pytest.mark.slow
@pytest.mark.parametrize("name", EXPERIMENTS)
def test_an_experiment_trains(tmp_path, name):
    steps = ("trainer.steps=3", "trainer.eval_every=0", "trainer.compile=graph")
    assert job.run(config.load([f"experiment={name}", *steps, f"hydra.run.dir={tmp_path}"])) == 0
    assert json.loads((tmp_path / "summary.json").read_text())["steps"] == 3
