"""The loop: chunks of steps on the device, and between them what the host has to do. It knows no configuration and no file format."""

import dataclasses
import time
from collections.abc import Callable

import numpy as np
import tensorflow as tf

from trainer.data.order import Order
from trainer.errors import DivergedError
from trainer.logs import Recorder
from trainer.progress import ProgressLine
from trainer.signals import Signals
from trainer.step import Chunk


@dataclasses.dataclass
class State:
    """Where a run stands; kept in its checkpoints beside the variables."""

    step: int = 0  # updates done
    best: dict[str, float] = dataclasses.field(default_factory=dict)  # metrics of the best evaluation, and its "step"
    stale: int = 0  # evaluations since then
    skipped: int = 0  # steps in a row that were not finite


@dataclasses.dataclass(frozen=True)
class Plan:
    """When to do what; periods in steps, 0: never."""

    num_steps: int
    steps_per_call: int
    log_every: int
    eval_every: int
    save_every: int
    monitor: str  # the metric that decides which evaluation is best
    goal: str  # "min" or "max"
    patience: int  # evaluations without improvement before stopping; 0: never stop early
    min_delta: float
    max_skipped: int  # steps in a row that may be not finite; 0: the first one ends the run
    audit_every: int = 0

    def next_border(self, step: int) -> int:
        """The next step after `step` at which the host has to do something, at most steps_per_call away."""
        periods = [period for period in (self.eval_every, self.save_every, self.audit_every) if period]
        return min([self.num_steps, step + self.steps_per_call, *((step // period + 1) * period for period in periods)])

    def is_due(self, period: int, step: int) -> bool:
        """Whether what happens every `period` steps happens after `step`; all of it happens at the end."""
        return bool(period) and (step % period == 0 or step == self.num_steps)

    def improves(self, value: float, best: float | None) -> bool:
        """Whether `value` of the monitored metric is better than the best so far by more than min_delta."""
        if best is None or not np.isfinite(value):
            return bool(np.isfinite(value))
        return value < best - self.min_delta if self.goal == "min" else value > best + self.min_delta


@dataclasses.dataclass
class Outcome:
    """How a loop ended."""

    final: dict[str, float]  # the last step's scalars, and the last evaluation
    cause: str  # "finished", "early stopping" or "signal"
    steps_per_second: float


def run_loop(
    plan: Plan,
    state: State,
    order: Order,
    chunk: Chunk,
    tags: list[str],
    evaluate: Callable[[], dict[str, float]],
    audit: Callable[[int, np.ndarray], tuple[dict[str, float], str | None]],
    save: Callable[[bool], None],
    recorder: Recorder,
    progress: ProgressLine,
    signals: Signals,
) -> Outcome:
    """Runs from `state.step` to `plan.num_steps`, or to a signal or an early stop, and leaves a checkpoint of where it ended.

    `audit(step, batch)` compares gradients on the examples of that step's batch, and objects where the run must not go on.
    `save(last)` saves `state` and the variables; `last` says that nothing comes after it.

    Raises:
        DivergedError: a loss or gradient is not finite: the step's update was not applied, and the state before it is saved. Or the
            audit objects.
    """
    final: dict[str, float] = {}
    clock = _Clock()
    cause = "finished"
    while state.step < plan.num_steps and cause == "finished":
        border = plan.next_border(state.step)
        indices = order.batches(state.step, plan.steps_per_call)
        rows, num_done, skipped = chunk(tf.constant(indices), tf.constant(border - state.step), tf.constant(state.skipped))
        rows = rows.numpy()[: int(num_done)]
        steps = np.arange(state.step + 1, state.step + len(rows) + 1)
        finite = np.isfinite(rows[:, :2]).all(axis=1)  # the loss and the global gradient norm
        state.step, state.skipped = int(steps[-1]), int(skipped)
        diverged = state.skipped > plan.max_skipped
        clock.count(len(rows))
        final |= dict(zip(tags, rows[-1].tolist(), strict=True))
        evaluation: dict[str, float] = {}
        audited: dict[str, float] = {}
        objection = None
        improved = False
        if plan.is_due(plan.eval_every, state.step) and not diverged:
            evaluation = evaluate()
            final |= evaluation
            improved = _judge(plan, state, evaluation)
        logged = (steps % plan.log_every == 0) | (steps == plan.num_steps) | ~finite
        if plan.audit_every and state.step % plan.audit_every == 0 and not diverged:
            audited, objection = audit(state.step, indices[len(rows) - 1])
        logged[-1] |= bool(evaluation or audited)
        recorder.put(steps[logged], rows[logged], evaluation | audited)
        progress.show(state.step, final, evaluation)
        if diverged:
            message = _describe(plan, state.step, tags, rows[-1])
            state.step -= 0 if plan.max_skipped else 1  # the last step was not done
            state.skipped = 0  # whoever goes on from here has changed something
            recorder.flush()
            save(True)
            raise DivergedError(message)
        if objection:
            recorder.flush()
            save(True)
            raise DivergedError(objection)
        if signals.received is not None:
            cause = "signal"
        elif plan.patience and state.stale >= plan.patience:
            cause = "early stopping"
        ends = cause != "finished" or state.step == plan.num_steps
        if improved or ends or plan.is_due(plan.save_every, state.step):
            recorder.flush()  # so that the lines up to a checkpoint are there whenever the checkpoint is
            save(ends)
    return Outcome(final, cause, clock.rate())


def _describe(plan: Plan, step: int, tags: list[str], row: np.ndarray) -> str:
    bad = [(tag, value) for tag, value in zip(tags, row.tolist(), strict=True) if not np.isfinite(value)]
    # The loss comes before the gradients, and a variable near the output before those that its gradient flows on to.
    order = [pair for pair in bad if pair[0] == "loss"] + [pair for pair in reversed(bad) if pair[0].startswith("grad_norm/")]
    tag, value = (order or bad)[0]
    again = f"{plan.max_skipped + 1} steps in a row, up to step {step}," if plan.max_skipped else f"step {step}"
    return (
        f"diverged: {again} gave {tag} = {value}; the update was not applied and the state before it is saved. "
        "Try the other gradient mode, a smaller optimizer.learning_rate, or trainer.clip_norm=1"
    )


def _judge(plan: Plan, state: State, evaluation: dict[str, float]) -> bool:
    """Whether this evaluation is the best so far; keeps the best and counts those since."""
    improved = plan.improves(evaluation[plan.monitor], state.best.get(plan.monitor))
    if improved:
        state.best = {"step": state.step} | evaluation
    state.stale = 0 if improved else state.stale + 1
    return improved


class _Clock:
    """Steps per second after the first chunk, which is traced and compiled; with a single chunk, of that one."""

    def __init__(self) -> None:
        self._started = time.monotonic()
        self._first = self._steps = 0
        self._first_ended = self._started

    def count(self, num_steps: int) -> None:
        self._steps += num_steps
        if not self._first:
            self._first, self._first_ended = num_steps, time.monotonic()

    def rate(self) -> float:
        now = time.monotonic()
        if self._steps > self._first:
            return (self._steps - self._first) / (now - self._first_ended)
        return self._steps / max(now - self._started, 1e-9)
