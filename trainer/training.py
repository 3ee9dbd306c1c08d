"""A run's training: objects, restored state, gradient check, loop, summary."""

import contextlib
import dataclasses
import re
import resource
import time
from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from losses.base import LossError
from trainer import build, compiling, resuming, rundir, schema, secrets, snapshots
from trainer.audit import TAGS, Audit
from trainer.chunk import Chunk, make_chunk
from trainer.config import Job
from trainer.dashboards import Dashboards, histogram_summary
from trainer.data.described import described
from trainer.data.feed import Feed
from trainer.data.order import Order
from trainer.data.prepare import Prepared
from trainer.errors import ConfigError
from trainer.evaluation import make_evaluate, metric_names
from trainer.forensics import Forensics
from trainer.histograms import make_histograms
from trainer.json_files import last_row
from trainer.learner import Learner
from trainer.logs import Recorder, plain
from trainer.loop import Outcome, Plan, State, run_loop
from trainer.overfit import Overfit
from trainer.planning import make_plan, window
from trainer.profiler import Profiler
from trainer.progress import ProgressLine, closing_table, say
from trainer.proving import verify
from trainer.rollback import Rollback
from trainer.rundir import RunDir
from trainer.saver import Saver
from trainer.signals import Signals
from trainer.silence import quiet
from trainer.step import Update
from trainer.tracking import Tracker


def train(job: Job, run: RunDir, resume: str, signals: Signals) -> tuple[int, str]:
    """Trains from the start or from the newest checkpoint; returns the exit status and why it ended.

    Raises:
        UserError: what the user has asked for or brought along is wrong.
    """
    try:
        return _train(job, run, resume, signals)
    except LossError as error:
        raise ConfigError(str(error)) from error


def build_all(
    job: Job, data: Prepared | None = None, placement: build.Placement | None = None
) -> tuple[build.Placement, Prepared, Learner, int]:
    """Where tensors and replicas live, the data, what is trained on them, and for how many steps.

    Args:
        job: the job.
        data: instead of the job's own.
        placement: instead of the job's own.
    """
    keras.utils.clear_session()  # so that variables have the same names whatever this process has built before
    keras.utils.set_random_seed(job.config.seed)
    keras.mixed_precision.set_global_policy(job.config.precision.policy)
    strategy = schema.section(schema.Strategy, job.config.strategy)
    if strategy.name == "cpu_sim":  # the CPU is divided before data of one's own may start TensorFlow
        placement = placement or build.build_placement(strategy)
    loss = build.build_loss(job)
    if data is None:
        data = build.build_data(job, loss)
        if job.config.trainer.overfit:
            data = data.only(Order(len(data.train), job.config.data.batch_size, job.config.seed).batches(0, 1)[0])
    if placement is None:
        with quiet():  # TensorFlow starts here: its threads are set when the data are known
            compiling.set_threads(strategy, job.config.model, data, job.config.data.batch_size)
        placement = build.build_placement(strategy)
    num_steps = build.num_steps(schema.section(schema.Trainer, job.config.trainer), len(data.train), job.config.data.batch_size)
    return placement, data, build.build_learner(job, placement, loss, data, num_steps), num_steps


def _train(job: Job, run: RunDir, resume: str, signals: Signals) -> tuple[int, str]:
    settings = schema.section(schema.Trainer, job.config.trainer)
    saving = schema.section(schema.Checkpoint, job.config.checkpoint)
    batch_size = job.config.data.batch_size
    placement, data, learner, num_steps = build_all(job)
    run.write("environment.json", rundir.environment(build.devices()))
    loss = learner.loss
    order = Order(len(data.train), batch_size, job.config.seed)
    logging = schema.section(schema.Logging, job.config.logging)
    profiler = Profiler(run.file("tensorboard"), window(logging.profile_steps, num_steps))
    plan = make_plan(job, learner, data, num_steps, profiler.borders)
    overfit = None
    if settings.overfit:  # judged from the initial weights on, before a checkpoint is restored
        with placement.scope():
            overfit = Overfit.of(make_evaluate(learner, data, batch_size)(), len(data.train))
        plan = dataclasses.replace(plan, enough=overfit.reached)

    if not loss.xla:
        say(f"the loss {loss.name} runs on the host, at every step, and not under XLA")
    rollback = Rollback(learner, settings.on_nonfinite == "rollback")
    rollback.hold()
    state, kept_way = resuming.restore(job, run, resume, learner, num_steps, data)
    compiled = kept_way or compiling.choose(settings, learner, data, batch_size)
    if state.step >= num_steps:
        say(f"nothing to do: the run in {run.path} has done {state.step} steps, and {num_steps} are asked for; type more trainer.steps")
        if run.read("summary.json") is None:  # it was killed after its last checkpoint
            run.write("summary.json", _summary(run, learner, state, batch_size, compiled, "unknown", Outcome({}, "finished", 0.0)))
        return 0, "finished"
    if not plan.max_skipped:
        state.skipped = 0  # trainer.on_nonfinite may have been skip before
    if state.step:
        say(f"going on from step {state.step} of {num_steps} in {run.path}")
    if rollback.wanted and state.step:
        resuming.hold_anchor(run, state, rollback)
    proof = verify(job, learner, data, order)
    config = rundir.stored_config(job.config)
    rundir.describe(run, config, job.overrides)
    told = secrets.hide(rundir.hyperparameters(config, job.choices), run.hidden)
    charts = [*learner.tags, *(metric_names(loss, data.task) if plan.eval_every else []), *(TAGS if plan.audit_every else [])]
    folder = run.file("tensorboard") if logging.tensorboard else None
    dashboards = Dashboards(folder, told, secrets.hide(config, run.hidden), charts)
    tracker = Tracker(run, logging, told, learner.gradient_mode, continues=state.step > 0)
    about, fingerprint = resuming.about(job), data.fingerprint()
    run.write("data.json", described(data, fingerprint))

    def save(last: bool) -> None:
        kept = {
            "loop": dataclasses.asdict(state),
            "compile": compiled,
            "gradient_mode": learner.gradient_mode,
            "num_steps": num_steps,
            "data": fingerprint,
        }
        best_step = int(state.best["step"]) if state.best else None
        arrays = learner.capture()  # copies: the variables change while they are written
        if rollback.wanted and state.anchor == state.step:
            rollback.arrays = arrays  # nobody changes them
        anchor = state.anchor if rollback.wanted else None
        saver.put(snapshots.Snapshot(state.step, arrays, kept, about, learner.not_finite(arrays), anchor), best_step, last)

    def histograms(step: int, indices: np.ndarray) -> bytes:
        return histogram_summary(buckets(step, indices))

    with placement.scope():
        make = chunk_maker(job, learner, data, plan)
        handed = None if data.resident else data.train
        if compiled == "measure":
            with Feed(order, plan.room, handed, whole=True) as feed:
                _, batches = feed.take(0, plan.steps_per_call, then=plan.steps_per_call)
                compiled, chunk = compiling.measure(learner, make, batches, plan.steps_per_call)
        else:
            chunk = make(compiled)
        evaluate = make_evaluate(learner, data, batch_size)
        audit = Audit(learner, data.train.rows, job.config.gradient.on_audit == "stop")
        buckets = make_histograms(learner, data, Update(batch_size, compiled, settings.accumulate))
        examine = _examine(run, Forensics(learner, data, settings.accumulate, compiled))
    with (
        dashboards,
        tracker,
        placement.scope(),
        Feed(order, plan.room, handed, compiled == "chunk") as feed,
        Recorder(run.path, learner.tags, logging.tensorboard, state.step) as recorder,
        Saver(run.file("checkpoints"), saving.keep, recorder.flush) as saver,
        contextlib.closing(profiler),
        ProgressLine(num_steps, state.step) as progress,
        xla_explained(),
    ):
        tracker.follow()
        outcome = run_loop(
            plan,
            state,
            feed,
            chunk,
            learner.tags,
            evaluate,
            audit,
            histograms,
            examine,
            rollback.back,
            save,
            recorder,
            profiler,
            progress,
            signals,
        )
        if outcome.cause != "signal":
            dashboards.finished()
        best = {f"best/{tag}": value for tag, value in state.best.items()}
        tracker.ended(outcome.cause, {"steps_per_second": outcome.steps_per_second} | best)

    summary = _summary(run, learner, state, batch_size, compiled, proof, outcome)
    run.write("summary.json", summary)
    if outcome.cause == "signal":
        say(f"stopped at step {state.step} of {num_steps}; the same command with hydra.run.dir={run.path} goes on")
        return 128 + (signals.received or 0), f"signal {signals.received}"
    closing_table(str(run.path), summary)
    if overfit is not None:
        overfit.judge(outcome.final, state.step, loss, learner.gradient_mode)
    return 0, outcome.cause


def chunk_maker(job: Job, learner: Learner, data: Prepared, plan: Plan) -> Callable[[str], Chunk]:
    """The job's chunk, by how it is compiled."""
    batch_size, accumulate, tolerance = job.config.data.batch_size, job.config.trainer.accumulate, job.config.gradient.audit_tolerance

    def make(way: str) -> Chunk:
        update = Update(batch_size, way, accumulate, plan.audit_every)
        return make_chunk(learner, data, update, plan.room, plan.max_skipped, tolerance)

    return make


@contextlib.contextmanager
def xla_explained() -> Iterator[None]:
    """Within it, a ConfigError says what XLA can't compile, and what to type instead."""
    try:
        yield
    except tf.errors.InvalidArgumentError as error:
        if "tf2xla conversion failed" not in str(error):
            raise
        missing = sorted(set(re.findall(r"No registered '(\w+)' OpKernel", str(error))))
        reason = f"it knows no {' and no '.join(missing)}" if missing else str(error).splitlines()[0].partition("{{")[0]
        raise ConfigError(f"XLA can't compile this job: {reason}: type trainer.compile=graph") from error


def _examine(run: RunDir, forensics: Forensics) -> Callable[[int, np.ndarray, dict[str, float], int | None], str]:
    """What the loop asks about a step that is not finite: says what was found, and writes all of it to divergence.json."""

    def examine(step: int, indices: np.ndarray, scalars: dict[str, float], saved: int | None) -> str:
        report = forensics(step, indices, scalars) | {"checkpoint": saved}
        known = report["advice"][0].upper() + report["advice"][1:]
        try:
            run.write("divergence.json", report)
        except ConfigError as error:  # a full disk is no reason to hide why the run ends
            return f"{known} ({error})"
        return f"{known}; more is in {run.file('divergence.json')}"

    return examine


def peak_memory() -> float:
    """The most that this process has had in memory so far, MB."""
    with contextlib.suppress(OSError), open("/proc/self/status") as file:  # of this program alone: getrusage counts what was before exec
        for line in file:
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _summary(run: RunDir, learner: Learner, state: State, batch_size: int, compiled: str, proof: str, outcome: Outcome) -> dict[str, Any]:
    return {
        "steps": state.step,
        "wall_seconds": round(time.monotonic() - run.claimed, 3),
        "steps_per_second": float(f"{outcome.steps_per_second:.4g}"),
        "examples_per_second": float(f"{outcome.steps_per_second * batch_size:.4g}"),
        "peak_memory_mb": round(peak_memory(), 1),
        "gradient_mode": learner.gradient_mode,
        "gradient_check": proof,
        "compile": compiled,
        "time_shares": {activity: round(share, 4) for activity, share in outcome.time_shares.items()},
        "final": {tag: plain(value) for tag, value in (outcome.final or last_row(run.file("metrics.jsonl"))).items() if tag != "step"},
        "best": {tag: plain(value) for tag, value in state.best.items()},
    }
