"""The loop with a chunk that gives rows made up here."""

import numpy as np
import pytest
import tensorflow as tf

from trainer.data.order import Order
from trainer.errors import DivergedError
from trainer.loop import Plan, State, run_loop
from trainer.signals import Signals

TAGS = ["loss", "grad_norm/global", "grad_norm/first", "grad_norm/second"]


class Record:
    """What the loop hands over: steps, saves, evaluations."""

    def __init__(self):
        self.steps, self.saved, self.evaluated, self.audited = [], [], [], []

    def put(self, steps, rows, evaluation):
        self.steps += steps.tolist()

    def flush(self):
        pass

    def show(self, step, scalars, evaluation):
        pass


def run(bad=(), metric=lambda step: 1.0, state=None, objections=(), **settings):
    """Runs steps of which those in `bad` are not finite; `metric(step)` is what evaluation gives; audits in `objections` object."""
    defaults = {
        "num_steps": 20, "steps_per_call": 6, "log_every": 1, "eval_every": 0, "save_every": 0, "monitor": "eval/loss", "goal": "min",
        "patience": 0, "min_delta": 0.0, "max_skipped": 0,
    }  # fmt: skip
    plan, state, record = Plan(**defaults | settings), state or State(), Record()

    def chunk(_, num_steps, skipped):
        rows, skipped = np.zeros([plan.steps_per_call, 4], np.float32), int(skipped)
        for i in range(int(num_steps)):
            if state.step + i + 1 in bad:
                rows[i] = [1, np.inf, 1, np.inf]
                skipped += 1
            else:
                skipped = 0
            if skipped > plan.max_skipped:
                break
        return tf.constant(rows), i + 1, skipped

    def evaluate():
        record.evaluated.append(state.step)
        return {"eval/loss": metric(state.step)}

    def audit(step, batch):
        record.audited.append((step, batch.tolist()))
        return {"gradient_audit/cosine": 1.0}, "the gradient is wrong" if step in objections else None

    def save(last):
        record.saved.append((state.step, last))

    outcome = None
    try:
        outcome = run_loop(plan, state, Order(40, 4, 0), chunk, TAGS, evaluate, audit, save, record, record, Signals())
    except DivergedError as error:
        return state, record, str(error)
    return state, record, outcome


def test_borders():
    state, record, outcome = run(eval_every=8, save_every=5)
    assert record.steps == list(range(1, 21))
    assert record.evaluated == [8, 16, 20]
    assert record.saved == [(5, False), (8, False), (10, False), (15, False), (20, True)]
    assert (state.step, outcome.cause) == (20, "finished")


def test_audits_see_the_batch_of_their_step():
    _, record, _ = run(audit_every=5)
    assert record.audited == [(step, Order(40, 4, 0).batches(step - 1, 1)[0].tolist()) for step in (5, 10, 15, 20)]


def test_an_objection_ends_the_run_with_its_state_saved():
    state, record, message = run(audit_every=5, objections=(10,))
    assert message == "the gradient is wrong"
    assert state.step == 10
    assert record.steps == list(range(1, 11))
    assert record.saved == [(10, True)]


def test_steps_that_are_logged():
    _, record, _ = run(log_every=7, eval_every=10)
    assert record.steps == [7, 10, 14, 20]


@pytest.mark.parametrize("steps_per_call", [1, 3, 20])
def test_the_first_step_that_is_not_finite_ends_the_run(steps_per_call):
    state, record, message = run(bad={9}, steps_per_call=steps_per_call)
    assert record.steps == list(range(1, 10))
    assert record.saved == [(8, True)]
    assert (state.step, state.skipped) == (8, 0)
    assert "step 9 gave grad_norm/second = inf" in message


@pytest.mark.parametrize("steps_per_call", [1, 3, 20])
def test_skipping_is_bounded_whatever_the_chunks(steps_per_call):
    state, record, outcome = run(bad={3, 4, 7, 8}, max_skipped=2, steps_per_call=steps_per_call)
    assert (state.step, outcome.cause) == (20, "finished")
    state, record, message = run(bad={3, 4, 5}, max_skipped=2, steps_per_call=steps_per_call)
    assert record.steps == [1, 2, 3, 4, 5]
    assert record.saved == [(5, True)]
    assert state.skipped == 0
    assert "3 steps in a row, up to step 5, gave grad_norm/second = inf" in message


def test_skipped_steps_are_counted_over_a_resume():
    _, _, message = run(bad={11}, max_skipped=2, state=State(step=10, skipped=2))
    assert "up to step 11" in message


def test_early_stopping_and_the_best():
    values = {2: 3.0, 4: 1.0, 6: 2.0, 8: 0.999, 10: 1.5}
    state, record, outcome = run(metric=values.get, eval_every=2, patience=3, min_delta=0.01)
    assert (state.step, outcome.cause) == (10, "early stopping")
    assert state.best == {"step": 4, "eval/loss": 1.0}
    assert record.saved == [(2, False), (4, False), (10, True)]


def test_a_metric_that_is_not_finite_is_never_the_best():
    state, _, _ = run(metric=lambda step: float("nan") if step < 8 else 5.0, eval_every=2, goal="max")
    assert state.best["step"] == 8
    state, _, _ = run(metric=lambda _: float("nan"), eval_every=2)
    assert state.best == {}
