"""The checker's score: every mutant is caught, none where the gradient is as good as right, and a blind checker is seen to be one."""

import numpy as np
import pytest
import tensorflow as tf

import losses
from losses.base import Loss
from losses.mse import MSE
from losses.proof import meaning, mutants

QUICK = ["mse"]  # two seconds; the others together minutes


@pytest.mark.parametrize("name", QUICK)
def test_all_are_caught(name):
    found = mutants.score(losses.find(name)(), np.random.default_rng(0))
    assert [mutant for mutant, caught_by in found if caught_by is None] == []
    assert len(found) >= 10


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in losses.names() if name not in QUICK])
def test_all_are_caught_in_every_loss(name):
    found = mutants.score(losses.find(name)(), np.random.default_rng(0))
    assert [mutant for mutant, caught_by in found if caught_by is None] == []
    assert len(found) >= 7


def test_what_is_no_error_is_said():
    class Constant(MSE):
        """Predictions stay small."""

        magnitudes = (1e-6, 10.0)

    verdicts = {finding.check: (finding.verdict, finding.message) for finding in mutants.examine(Constant(), np.random.default_rng(0))}
    assert verdicts["wrong only beyond 1e4"] == ("excepted", "on this loss's domain it is no error")
    assert verdicts["factor 2"][0] == "holds"


def test_one_that_passes_counts_against_the_checker(monkeypatch):
    monkeypatch.setattr(mutants, "_SECTIONS", {"blind": lambda loss, rng: []})
    found = mutants.score(MSE(), np.random.default_rng(0))
    assert found
    assert all(caught_by is None for _, caught_by in found)


def test_a_mutant_is_the_loss_but_for_its_gradient():
    loss = losses.find("huber")(delta=0.5)
    mutant = mutants.plant(loss, lambda loss, y_true, y_pred, vjp: lambda dy: 2 * vjp(dy))
    assert (mutant.name, mutant.delta, mutant.contract, mutant.modes) == ("huber", 0.5, loss.contract, ("analytic",))
    assert mutant != loss
    message = meaning.contract(mutant, np.random.default_rng(0))[0].message
    assert "it is 2 times what it should be, everywhere" in message


def test_nothing_to_mutate():
    class ValueAlone(Loss):
        def value(self, y_true, y_pred):
            return tf.reduce_mean(y_pred, axis=-1)

    assert mutants.score(ValueAlone(), np.random.default_rng(0)) == []
