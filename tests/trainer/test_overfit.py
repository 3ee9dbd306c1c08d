import json

import numpy as np
import pytest

from trainer import cli, config, job
from trainer.data.order import Order
from trainer.errors import ConfigError, UserError
from trainer.overfit import Overfit
from trainer.training import build_all

QUICK = ("debug=overfit", "trainer.compile=graph", "gradient.verify_at_start=false", "model.hidden=[32]", "optimizer.learning_rate=0.01")


def train(folder, *overrides: str) -> int:
    return job.run(config.load([*QUICK, f"hydra.run.dir={folder}", *overrides]))


def test_a_batch_that_can_be_fitted_ends_the_run_when_it_is(tmp_path, capsys):
    assert train(tmp_path) == 0
    assert "fits: eval/accuracy is " in capsys.readouterr().out
    summary, status = (json.loads((tmp_path / name).read_text()) for name in ("summary.json", "status.json"))
    assert status == {"state": "done", "cause": "fitted", "exit_code": 0}
    assert summary["steps"] < 2000
    assert summary["final"]["eval/accuracy"] >= 0.95
    evaluated = [line for line in map(json.loads, (tmp_path / "metrics.jsonl").read_text().splitlines()) if "eval/accuracy" in line]
    start = Overfit("eval/accuracy", 0.0, 32)
    assert [start.reached(line) for line in evaluated] == [False] * (len(evaluated) - 1) + [True]
    with pytest.raises(ConfigError, match="already holds a run"):
        train(tmp_path)


def test_a_gradient_that_dies_is_told(tmp_path):
    """The formula's own derivative is 0 for most outputs; the loss's is not."""
    arguments = ("loss=stable_mse", "trainer.steps=400")
    with pytest.raises(UserError, match=r"does not fit: eval/accuracy is .* type gradient=analytic, another") as raised:
        train(tmp_path / "auto", *arguments, "gradient=auto")
    assert raised.value.exit_code == 1
    assert json.loads((tmp_path / "auto" / "status.json").read_text())["state"] == "failed"
    assert train(tmp_path / "analytic", *arguments, "gradient=analytic") == 0


def test_the_command_ends_with_status_1(tmp_path, capsys):
    arguments = ["debug=overfit", "model=linear", "trainer.steps=2", "trainer.compile=graph", "gradient.verify_at_start=false"]
    assert cli.main([*arguments, f"hydra.run.dir={tmp_path}"]) == 1
    assert capsys.readouterr().err.startswith("error: does not fit: eval/accuracy is ")


@pytest.mark.parametrize("overrides", [(), ("data.stream=true",), ("loss=huber", "data=diabetes")])
def test_both_parts_are_the_first_batch_of_the_run_itself(overrides):
    _, whole, _, _ = build_all(config.load(["model=linear", "seed=3", *overrides]))
    _, data, _, num_steps = build_all(config.load(["debug=overfit", "model=linear", "seed=3", *overrides]))
    first = whole.train.rows(Order(len(whole.train), 32, 3).batches(0, 1)[0])
    assert data.resident
    assert num_steps == 2000
    for part in (data.train, data.evaluation):
        for array, expected in zip(part.arrays(), first.arrays(), strict=True):
            np.testing.assert_array_equal(array, expected)
    np.testing.assert_array_equal(data.train_rows, whole.train_rows[Order(len(whole.train), 32, 3).batches(0, 1)[0]])
    assert data.fingerprint() != whole.fingerprint()


@pytest.mark.parametrize(
    ("evaluation", "tag"),
    [
        ({"eval/loss": 2.0, "eval/accuracy": 0.1}, "eval/accuracy"),
        ({"eval/loss": 1.0, "eval/mae": 3.0, "eval/r2": -0.1}, "eval/r2"),
        ({"eval/loss": 1.0, "eval/mae": 3.0, "eval/r2": float("nan")}, "eval/loss"),  # all targets are equal
        ({"eval/loss": 1.0, "eval/deviance": 3.0, "eval/mae": 3.0}, "eval/deviance"),
        ({"eval/loss": 1.0}, "eval/loss"),
    ],
)
def test_what_is_judged(evaluation, tag):
    found = Overfit.of(evaluation, 32)
    assert found.tag == tag
    assert not found.reached(evaluation)
    best = 1.0 if tag in ("eval/accuracy", "eval/r2") else 0.0
    left = abs(best - evaluation[tag])
    assert found.reached({tag: best - 0.04 * left * (1 if best else -1)})
    assert not found.reached({tag: best - 0.06 * left * (1 if best else -1)})
    assert not found.reached({tag: float("nan")})


def test_a_loss_below_zero_has_nothing_to_come_near():
    with pytest.raises(ConfigError, match="type another loss"):
        Overfit.of({"eval/loss": -3.0}, 32)


def test_it_needs_evaluations(tmp_path):
    with pytest.raises(ConfigError, match=r"type trainer\.eval_every=STEPS"):
        train(tmp_path, "trainer.eval_every=0")
