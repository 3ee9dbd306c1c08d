"""The loop: chunks of steps on the device, and between them what the host has to do. It knows no configuration and no file format."""

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator

import numpy as np
import tensorflow as tf

from trainer.audit import TAGS
from trainer.chunk import Chunk
from trainer.data.feed import Feed
from trainer.errors import CheckpointError, DivergedError
from trainer.logs import Recorder
from trainer.profiler import Profiler
from trainer.progress import ProgressLine, say
from trainer.signals import Signals

ACTIVITIES = ("input", "step", "evaluation", "checkpoint", "logging")
_FIRST_STEPS = 8  # in the first chunk, whose time says nothing
_CHUNK_SECONDS = 0.2


@dataclasses.dataclass
class State:
    """Where a run stands; kept in its checkpoints beside the variables."""

    step: int = 0  # updates done
    best: dict[str, float] = dataclasses.field(default_factory=dict)  # metrics of the best evaluation, and its "step"
    stale: int = 0  # evaluations since then
    skipped: int = 0  # steps in a row that were not finite
    anchor: int = 0  # the step of the last checkpoint made by plan, not by a signal: what a rollback goes back to
    rollbacks: int = 0  # done so far


@dataclasses.dataclass(frozen=True)
class Plan:
    """When to do what; periods in steps, 0: never."""

    num_steps: int
    steps_per_call: int  # at most, in a chunk
    adapts: bool  # whether chunks may be shorter, by the time that they take
    log_every: int
    eval_every: int
    save_every: int
    monitor: str  # the metric that decides which evaluation is best
    goal: str  # "min" or "max"
    patience: int  # evaluations without improvement before stopping; 0: never stop early
    min_delta: float
    max_skipped: int  # steps in a row that may be not finite; 0: the first one ends the run, or is rolled back
    audit_every: int = 0
    max_rollbacks: int = 0  # in the whole run; 0: none
    histogram_every: int = 0
    borders: tuple[int, ...] = ()  # further steps after which a chunk must end
    enough: Callable[[dict[str, float]], bool] | None = None  # whether an evaluation is good enough to end the run

    @property
    def room(self) -> int:
        """Steps that a chunk has room for: XLA takes the loop away where there is room for one, and rounds in another way."""
        return max(2, self.steps_per_call)

    def next_border(self, step: int, most: int) -> int:
        """The next step after `step` at which the host has to do something, at most `most` away."""
        periods = [period for period in (self.eval_every, self.save_every) if period]
        further = [border for border in self.borders if border > step]
        if self.histogram_every:  # before such a step
            further.append(((step + 1) // self.histogram_every + 1) * self.histogram_every - 1)
        return min([self.num_steps, step + most, *further, *((step // period + 1) * period for period in periods)])

    def is_due(self, period: int, step: int) -> bool:
        """Whether what happens every `period` steps happens after `step`; all of it happens at the end."""
        return bool(period) and (step % period == 0 or step == self.num_steps)

    def anchors(self, step: int, improved: bool) -> bool:
        """Whether the checkpoint after `step` is one to roll back to: a resumed run makes the same ones, wherever it was stopped."""
        return improved or (self.save_every > 0 and step % self.save_every == 0)

    def improves(self, value: float, best: float | None) -> bool:
        """Whether `value` of the monitored metric is better than the best so far by more than min_delta."""
        if best is None or not np.isfinite(value):
            return bool(np.isfinite(value))
        return value < best - self.min_delta if self.goal == "min" else value > best + self.min_delta


@dataclasses.dataclass
class Outcome:
    """How a loop ended."""

    final: dict[str, float]  # the last step's scalars, and the last evaluation
    cause: str  # "finished", "fitted", "early stopping" or "signal"
    steps_per_second: float
    time_shares: dict[str, float] = dataclasses.field(default_factory=dict)  # of the loop's time, by activity


def run_loop(
    plan: Plan,
    state: State,
    feed: Feed,
    chunk: Chunk,
    tags: list[str],
    evaluate: Callable[[], dict[str, float]],
    audit: Callable[[int, np.ndarray], str | None],
    histograms: Callable[[int, np.ndarray], bytes],
    examine: Callable[[int, np.ndarray, dict[str, float], int | None], str],
    go_back: Callable[[], None],
    save: Callable[[bool], None],
    recorder: Recorder,
    profiler: Profiler,
    progress: ProgressLine,
    signals: Signals,
) -> Outcome:
    """Runs from `state.step` to `plan.num_steps`, or to a signal or an early stop, and leaves a checkpoint of where it ended.

    `audit(step, indices)` is asked about a step at which the gradients of both modes have parted, and the examples of its batch; it
    says why the run must not go on. `histograms(step, indices)` is asked before every `plan.histogram_every`-th step: after `step`, about
    the batch that comes next; what it gives is recorded with that one. `examine(step, indices, scalars, saved)` is asked about a step that
    is not finite, before anything of the state changes, and says what is known of it; `saved` is the checkpoint of that state, None where
    there is none. `save(last)` takes a copy of `state` and the variables and saves it while the loop goes on; `last` says that nothing
    comes after it: it returns when that is saved. `go_back()` brings back the variables as they were saved at `state.anchor`.

    A rollback undoes the updates since `state.anchor`: the run goes on with the state of that checkpoint, but after the step that was
    not finite, so that the batches in between are not seen again.

    Raises:
        DivergedError: a loss or gradient is not finite: the step's update was not applied, and the state before it is saved. Or the
            audit objects.
    """
    final: dict[str, float] = {}
    clock, pace = Clock(), Pace(plan.steps_per_call, plan.adapts)
    cause = "finished"
    border = plan.next_border(state.step, pace.num_steps)
    if signals.received is not None:  # while all was built: the first chunk, whose compilation may take long, is not begun
        cause = "signal"
        with clock("checkpoint"):
            save(True)
    while state.step < plan.num_steps and cause == "finished":
        following = plan.next_border(border, pace.num_steps)  # what is made ahead is what is taken: the pace works a chunk later
        with clock("input"):
            indices, batches = feed.take(state.step, border, following)
        waited = clock.last
        summaries: dict[int, bytes] = {}
        if plan.histogram_every and (state.step + 1) % plan.histogram_every == 0:
            with clock("logging"):
                summaries[state.step + 1] = histograms(state.step, indices[0])
        profiler.before(state.step)
        with clock("step"):
            rows, num_done, skipped, parted = chunk(batches, *map(tf.constant, (state.step, border - state.step, state.skipped)))
            rows = rows.numpy()[: int(num_done)]
        del batches  # before more are made
        clock.count(len(rows))
        pace.count(len(rows), waited + clock.last)
        steps = np.arange(state.step + 1, state.step + len(rows) + 1)
        rows, measures = rows[:, : len(tags)], rows[:, len(tags) :]
        finite = np.isfinite(rows[:, :2]).all(axis=1)  # the loss and the global gradient norm
        state.step, state.skipped = int(steps[-1]), int(skipped)
        border = following if state.step == border else plan.next_border(state.step, pace.num_steps)
        profiler.after(state.step)
        diverged = state.skipped > plan.max_skipped
        final |= dict(zip(tags, rows[-1].tolist(), strict=True))
        logged = (steps % plan.log_every == 0) | (steps == plan.num_steps) | ~finite
        logged[0] |= bool(summaries)
        extra: dict[int, dict[str, float]] = {}
        if plan.audit_every:
            audited = np.flatnonzero((steps % plan.audit_every == 0) & finite)
            extra = {int(steps[i]): dict(zip(TAGS, measures[i].tolist(), strict=True)) for i in audited}
            logged[audited] = True
        objection = audit(state.step, indices[len(rows) - 1]) if parted else None
        if diverged and state.rollbacks < plan.max_rollbacks:
            known = examine(state.step, indices[len(rows) - 1], final, None)
            go_back()
            state.rollbacks, state.skipped, diverged = state.rollbacks + 1, 0, False
            extra[state.step] = {"rollback": state.anchor}
            say(
                f"warning: {_describe(plan, state.step, tags, rows[-1])}; back to the state after step {state.anchor}, and on after step "
                f"{state.step} (rollback {state.rollbacks} of {plan.max_rollbacks}). {known}"
            )
        improved = enough = False
        if plan.is_due(plan.eval_every, state.step) and not diverged:
            with clock("evaluation"):
                evaluation = evaluate()
            final |= evaluation
            improved = _judge(plan, state, evaluation)
            enough = plan.enough is not None and plan.enough(evaluation)
            logged[-1] = True
            extra[state.step] = extra.get(state.step, {}) | evaluation
        with clock("logging"):
            recorder.put(steps[logged], rows[logged], extra, summaries)
            progress.show(state.step, final, {tag: value for tag, value in extra.get(state.step, {}).items() if tag not in TAGS})
        if diverged:
            step, message = state.step, _describe(plan, state.step, tags, rows[-1])
            state.step -= 0 if plan.max_skipped else 1  # the last step was not done
            state.skipped = state.rollbacks = 0  # whoever goes on from here has changed something
            unsaved = _saved_at_the_end(save)
            known = examine(step, indices[len(rows) - 1], final, None if unsaved else state.step)
            raise DivergedError(f"{message}; the update was not applied and the state before it is {unsaved or 'saved'}. {known}")
        if objection:
            unsaved = _saved_at_the_end(save)
            raise DivergedError(f"{objection}; the state is {unsaved}" if unsaved else objection)
        if signals.received is not None:
            cause = "signal"
        elif enough:
            cause = "fitted"
        elif plan.patience and state.stale >= plan.patience:
            cause = "early stopping"
        ends = cause != "finished" or state.step == plan.num_steps
        if improved or ends or plan.is_due(plan.save_every, state.step):
            with clock("checkpoint"):
                if plan.anchors(state.step, improved):
                    state.anchor = state.step
                save(ends)
    return Outcome(final, cause, clock.rate(), clock.shares())


def _saved_at_the_end(save: Callable[[bool], None]) -> str:
    """Why the state of a run that must not go on is not saved; empty if it is. A full disk is no reason to hide why the run ends."""
    try:
        save(True)
    except CheckpointError as error:
        return f"not saved ({error})"
    return ""


def _describe(plan: Plan, step: int, tags: list[str], row: np.ndarray) -> str:
    bad = [(tag, value) for tag, value in zip(tags, row.tolist(), strict=True) if not np.isfinite(value)]
    # The loss comes before the gradients, and a variable near the output before those that its gradient flows on to.
    order = [pair for pair in bad if pair[0] == "loss"] + [pair for pair in reversed(bad) if pair[0].startswith("grad_norm/")]
    tag, value = (order or bad)[0]
    again = f"{plan.max_skipped + 1} steps in a row, up to step {step}," if plan.max_skipped else f"step {step}"
    return f"diverged: {again} gave {tag} = {value}"


def _judge(plan: Plan, state: State, evaluation: dict[str, float]) -> bool:
    """Whether this evaluation is the best so far; keeps the best and counts those since."""
    improved = plan.improves(evaluation[plan.monitor], state.best.get(plan.monitor))
    if improved:
        state.best = {"step": state.step} | evaluation
    state.stale = 0 if improved else state.stale + 1
    return improved


class Clock:
    """Where the time goes, and steps per second after the first chunk, which is traced and compiled; with a single chunk, of that one."""

    def __init__(self) -> None:
        self._started = time.monotonic()
        self._first = self._steps = 0
        self._first_ended = self._started
        self._seconds = dict.fromkeys(ACTIVITIES, 0.0)
        self.last = 0.0  # seconds that the last activity took

    @contextlib.contextmanager
    def __call__(self, activity: str) -> Iterator[None]:
        """Within it, time is counted as that of an activity."""
        started = time.monotonic()
        try:
            yield
        finally:
            self.last = time.monotonic() - started
            self._seconds[activity] += self.last

    def count(self, num_steps: int) -> None:
        """After a chunk."""
        self._steps += num_steps
        if not self._first:
            self._first, self._first_ended = num_steps, time.monotonic()

    def rate(self) -> float:
        now = time.monotonic()
        if self._steps > self._first:
            return (self._steps - self._first) / (now - self._first_ended)
        return self._steps / max(now - self._started, 1e-9)

    def shares(self) -> dict[str, float]:
        """Of the loop's time so far, by activity, its start (tracing, compilation) included; "other" is what none of them took."""
        total = max(time.monotonic() - self._started, 1e-9)
        found = {activity: seconds / total for activity, seconds in self._seconds.items()}
        return found | {"other": max(0.0, 1 - sum(found.values()))}


class Pace:
    """How many steps the next chunk takes: as many as fill a fifth of a second, so that progress shows and signals are noticed.

    What a step computes does not depend on it.

    Args:
        most: steps in a chunk.
        adapts: whether it may be fewer.
    """

    def __init__(self, most: int, adapts: bool) -> None:
        self._most, self._adapts = most, adapts
        self._compiled = False
        self.num_steps = min(_FIRST_STEPS, most) if adapts else most

    def count(self, num_steps: int, seconds: float) -> None:
        """After a chunk that took so long."""
        if self._adapts and self._compiled:  # the first one was traced and compiled
            wanted = int(_CHUNK_SECONDS / max(seconds, 1e-9) * num_steps)
            self.num_steps = max(1, min(wanted, 4 * self.num_steps, self._most))
        self._compiled = True
