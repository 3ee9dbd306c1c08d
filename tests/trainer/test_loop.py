"""The loop with a chunk that gives rows made up here."""

import types
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from trainer import loop
from trainer.audit import TAGS as AUDIT_TAGS
from trainer.data.feed import Feed
from trainer.data.order import Order
from trainer.errors import CheckpointError, DivergedError
from trainer.loop import Clock, Pace, Plan, State, run_loop
from trainer.profiler import Profiler
from trainer.signals import Signals

TAGS = ["loss", "grad_norm/global", "grad_norm/first", "grad_norm/second"]


class Record:
    """What the loop hands over: steps, saves, evaluations."""

    def __init__(self):
        self.steps, self.saved, self.evaluated, self.audited, self.extra = [], [], [], [], {}
        self.examined, self.held, self.summaries = [], [], {}

    def put(self, steps, rows, extra, summaries):
        assert summaries.keys() <= set(steps.tolist())
        self.steps += steps.tolist()
        self.extra |= extra
        self.summaries |= summaries

    def flush(self):
        pass

    def show(self, step, scalars, evaluation):
        pass


def run(bad=(), metric=lambda step: 1.0, state=None, parted=(), objections=(), received=None, full=False, **settings):
    """Runs steps of which those in `bad` are not finite, and at those in `parted` the gradients part.

    `metric(step)` is what evaluation gives; the audit objects to the steps in `objections`. On a `full`
    disk nothing is saved at the end.
    """
    defaults = {
        "num_steps": 20, "steps_per_call": 6, "adapts": False, "log_every": 1,
        "eval_every": 0, "save_every": 0, "monitor": "eval/loss", "goal": "min",
        "patience": 0, "min_delta": 0.0, "max_skipped": 0,
    }  # fmt: skip
    plan, state, record = Plan(**defaults | settings), state or State(), Record()

    def chunk(_, step, num_steps, skipped):
        assert int(step) == state.step
        rows, skipped = np.zeros([plan.steps_per_call, 4 + len(AUDIT_TAGS)], np.float32), int(skipped)
        for i in range(int(num_steps)):
            rows[i, 4:] = state.step + i + 1
            if state.step + i + 1 in bad:
                rows[i, :4] = [1, np.inf, 1, np.inf]
                skipped += 1
            else:
                skipped = 0
            if skipped > plan.max_skipped or state.step + i + 1 in parted:
                break
        return tf.constant(rows), i + 1, skipped, state.step + i + 1 in parted

    def evaluate():
        record.evaluated.append(state.step)
        return {"eval/loss": metric(state.step)}

    def audit(step, batch):
        record.audited.append((step, batch.tolist()))
        return "the gradient is wrong" if step in objections else None

    def histograms(step, batch):
        assert step == state.step
        return str(batch.tolist()).encode()

    def save(last):
        if full and last:
            raise CheckpointError("no room")
        record.saved.append((state.step, last))
        if state.anchor == state.step:
            record.held.append(state.step)

    def examine(step, batch, scalars, saved):
        record.examined.append((step, batch.tolist(), scalars["grad_norm/global"], saved))
        return "It was too steep"

    def go_back():
        record.held.append(-state.step)

    outcome, signals = None, Signals()
    signals.received = received
    try:
        with Feed(Order(40, 4, 0), plan.steps_per_call) as feed:
            outcome = run_loop(
                plan,
                state,
                feed,
                chunk,
                TAGS,
                evaluate,
                audit,
                histograms,
                examine,
                go_back,
                save,
                record,
                Profiler(Path(), None),
                record,
                signals,
            )
    except DivergedError as error:
        return state, record, str(error)
    return state, record, outcome


def test_borders():
    state, record, outcome = run(eval_every=8, save_every=5)
    assert record.steps == list(range(1, 21))
    assert record.evaluated == [8, 16, 20]
    assert record.saved == [(5, False), (8, False), (10, False), (15, False), (20, True)]
    assert (state.step, outcome.cause) == (20, "finished")


def test_further_borders():
    plan = Plan(100, 40, True, 1, 30, 0, "eval/loss", "min", 0, 0.0, 0, borders=(9, 20))
    assert [plan.next_border(step, 40) for step in (0, 9, 10, 20, 30, 90)] == [9, 20, 20, 30, 60, 100]


def test_audits_are_recorded_whatever_the_chunks():
    _, record, _ = run(audit_every=5, eval_every=10, log_every=4)
    assert record.extra[5] == dict.fromkeys(AUDIT_TAGS, 5.0)
    assert record.extra[20] == dict.fromkeys(AUDIT_TAGS, 20.0) | {"eval/loss": 1.0}
    assert sorted(record.extra) == [5, 10, 15, 20]
    assert record.steps == [4, 5, 8, 10, 12, 15, 16, 20]
    assert record.audited == []


@pytest.mark.parametrize("every", [1, 5, 7])
@pytest.mark.parametrize("steps_per_call", [1, 3, 20])
def test_histograms_are_of_the_batches_of_their_steps_before_their_updates(every, steps_per_call):
    """Whatever the chunks, and whatever else they end for."""
    _, record, _ = run(histogram_every=every, steps_per_call=steps_per_call, eval_every=6, save_every=4, log_every=4)
    expected = {step: str(Order(40, 4, 0).batches(step - 1, 1)[0].tolist()).encode() for step in range(every, 21, every)}
    assert record.summaries == expected
    assert set(record.steps) == {4, 6, 8, 12, 16, 18, 20, *expected}


def test_a_resumed_run_takes_the_same_histograms():
    _, record, _ = run(histogram_every=5, state=State(step=14))
    assert list(record.summaries) == [15, 20]
    _, record, _ = run(histogram_every=5, state=State(step=15))
    assert list(record.summaries) == [20]


def test_gradients_that_part_are_decided_about_on_the_batch_of_their_step():
    _, record, outcome = run(audit_every=5, parted=(5, 15))
    assert record.audited == [(step, Order(40, 4, 0).batches(step - 1, 1)[0].tolist()) for step in (5, 15)]
    assert record.steps == list(range(1, 21))
    assert outcome.cause == "finished"


def test_an_objection_ends_the_run_with_its_state_saved():
    state, record, message = run(audit_every=5, parted=(5, 10), objections=(10,))
    assert message == "the gradient is wrong"
    assert state.step == 10
    assert record.steps == list(range(1, 11))
    assert record.saved == [(10, True)]


def test_a_full_disk_does_not_hide_why_the_run_ends():
    _, record, message = run(bad=(9,), full=True)
    assert message.startswith("diverged: step 9 gave")
    assert "the state before it is not saved (no room). It was too steep" in message
    assert record.examined[0][0] == 9
    assert record.examined[0][3] is None
    assert run(audit_every=5, parted=(10,), objections=(10,), full=True)[2] == "the gradient is wrong; the state is not saved (no room)"


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
    assert message.endswith("the state before it is saved. It was too steep")
    assert record.examined == [(9, Order(40, 4, 0).batches(8, 1)[0].tolist(), np.inf, 8)]


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


@pytest.mark.parametrize("steps_per_call", [1, 3, 20])
def test_rolling_back_undoes_the_updates_since_the_last_checkpoint(steps_per_call, capsys):
    state, record, outcome = run(bad={3, 9, 10}, max_rollbacks=3, save_every=4, eval_every=10, steps_per_call=steps_per_call)
    assert (state.step, state.rollbacks, outcome.cause) == (20, 3, "finished")
    assert record.steps == list(range(1, 21))
    # Step 3 goes back to the beginning; at step 10 the evaluation is of the state gone back to, and the best so far.
    assert record.held == [-3, 4, 8, -9, -10, 10, 12, 16, 20]
    assert {step: extra["rollback"] for step, extra in record.extra.items() if "rollback" in extra} == {3: 0, 9: 8, 10: 8}
    assert [(step, saved) for step, _, _, saved in record.examined] == [(3, None), (9, None), (10, None)]
    assert "back to the state after step 8, and on after step 9 (rollback 2 of 3). It was too steep" in capsys.readouterr().out


def test_rollbacks_are_bounded():
    state, record, message = run(bad={3, 5, 6}, max_rollbacks=2, save_every=4)
    assert "step 6 gave" in message
    assert record.saved == [(4, False), (5, True)]
    assert (state.step, state.rollbacks) == (5, 0)
    _, _, message = run(bad={15}, max_rollbacks=2, state=State(step=10, rollbacks=2, anchor=8))
    assert "step 15 gave" in message


def test_a_signals_checkpoint_is_none_to_go_back_to():
    """Else a run that was stopped and resumed would go back to another state than one that was not."""
    plan = Plan(100, 40, True, 1, 30, 20, "eval/loss", "min", 0, 0.0, 0)
    assert [plan.anchors(step, False) for step in (20, 33, 100)] == [True, False, True]
    assert plan.anchors(33, True)


def test_a_signal_before_the_first_step_saves_and_begins_nothing():
    state, record, outcome = run(received=15, state=State(step=4))
    assert (state.step, outcome.cause, outcome.final) == (4, "signal", {})
    assert record.steps == []
    assert record.saved == [(4, True)]


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


def test_shares_of_time(monkeypatch):
    moments = iter([0.0, 1.0, 4.0, 5.0, 7.0, 8.0, 10.0])
    monkeypatch.setattr(loop, "time", types.SimpleNamespace(monotonic=moments.__next__))
    clock = Clock()
    with clock("step"):  # from 1 to 4
        pass
    with clock("evaluation"):  # from 5 to 7
        pass
    assert clock.last == 2
    clock.count(5)  # at 8
    assert clock.shares() == {"input": 0, "step": 0.3, "evaluation": 0.2, "checkpoint": 0, "logging": 0, "other": 0.5}  # of 10


def test_chunks_grow_to_a_fifth_of_a_second():
    pace = Pace(100, True)
    pace.count(8, 60.0)  # traced and compiled
    assert pace.num_steps == 8
    pace.count(8, 0.008)
    assert pace.num_steps == 32  # not at once
    pace.count(32, 0.064)
    assert pace.num_steps == 100  # the most
    pace.count(100, 1.0)
    assert pace.num_steps == 20
    pace.count(20, 100.0)
    assert pace.num_steps == 1
    assert Pace(100, False).num_steps == 100
    assert Pace(3, True).num_steps == 3
