"""One run, from start to end: directory, objects, gradient check, loop, summary."""

import contextlib
import dataclasses
import os
import resource
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from trainer import checkpoints, rundir, schema
from trainer.config import Job
from trainer.errors import CheckpointError, ConfigError, UserError
from trainer.progress import ProgressLine, closing_table, say
from trainer.rundir import RunDir
from trainer.signals import Signals


def run(job: Job) -> int:
    """Trains, and returns the exit status.

    Raises:
        UserError: the user's mistake, or a fault that the user can act on; the run directory's status.json says the same.
    """
    resume, path = job.config.resume, job.run_dir
    if resume not in ("auto", "never", "must"):
        path, resume = Path(resume), "must"
        if not path.is_dir():
            raise CheckpointError(f"resume={path}: there is no such run directory; type auto, never, must, or the path of one")
    with Signals() as signals:
        run = rundir.claim(path)
        try:
            config = rundir.stored_config(job.config)
            if _is_done(run, config, resume):
                say(f"nothing to do: the run in {path} is done; type another hydra.run.dir, or more trainer.steps")
                return 0
            rundir.describe(run, config, job.overrides)
            run.status("running")
            try:
                exit_code, cause = _train(job, run, resume, signals)
            except UserError as error:
                run.status("failed", str(error), error.exit_code)
                raise
            except BaseException as error:
                run.status("failed", f"{type(error).__name__}: {error}", 1)
                raise
            run.status("stopped" if exit_code else "done", cause, exit_code)
            return exit_code
        finally:
            run.release()


def _is_done(run: RunDir, config: str, resume: str) -> bool:
    """Whether the directory's run is finished; refuses a directory that `resume` or a different configuration forbids to go on in."""
    stored = run.file("config.yaml")
    if not stored.exists():
        if resume == "must":
            raise CheckpointError(f"resume=must: {run.path} holds no run; type resume=auto to start one")
        return False
    if resume == "never":
        raise ConfigError(f"resume=never: {run.path} already holds a run; type another hydra.run.dir, or resume=auto to go on")
    metrics = run.file("metrics.jsonl")
    if not metrics.exists() or metrics.stat().st_size == 0:  # it ended before its first step: nothing to go on with, nothing to lose
        return False
    before = stored.read_text(encoding="utf-8")
    if differing := rundir.differing_keys(before, config):
        raise ConfigError(f"{run.path} holds a run of another configuration ({'; '.join(differing)}): type those values, or another hydra.run.dir")
    status = run.read("status.json") or {}
    length = [OmegaConf.select(OmegaConf.create(text), "trainer", default={}) for text in (before, config)]
    same_length = all(length[0].get(key) == length[1].get(key) for key in ("steps", "epochs"))
    return status.get("state") == "done" and same_length


def _train(job: Job, run: RunDir, resume: str, signals: Signals) -> tuple[int, str]:
    started = time.monotonic()
    # TensorFlow is imported here and not above: nothing that is refused before this line has to wait for it.
    with _quiet():
        import keras

        from trainer import build

        placement = build.build_placement(OmegaConf.to_object(OmegaConf.merge(schema.Strategy, job.config.strategy)))
        devices = build.devices()
    from trainer.data.order import Order
    from trainer.evaluation import make_evaluate, metric_names
    from trainer.logs import Recorder
    from trainer.loop import Plan, State, train
    from trainer.step import make_chunk

    settings: schema.Trainer = OmegaConf.to_object(OmegaConf.merge(schema.Trainer, job.config.trainer))
    saving: schema.Checkpoint = OmegaConf.to_object(OmegaConf.merge(schema.Checkpoint, job.config.checkpoint))
    keras.utils.clear_session()  # so that variables have the same names whatever this process has built before
    keras.utils.set_random_seed(job.config.seed)
    keras.mixed_precision.set_global_policy(job.config.precision.policy)
    run.write("environment.json", rundir.environment(devices))

    loss = build.build_loss(job)
    data = build.build_data(job, loss)
    batch_size = job.config.data.batch_size
    steps = build.num_steps(settings, len(data.train), batch_size)
    learner = build.build_learner(job, placement, loss, data, steps)
    if batch_size % learner.num_replicas:
        raise ConfigError(f"data.batch_size={batch_size} can't be divided among {learner.num_replicas} replicas: type a multiple")
    order = Order(len(data.train), batch_size, job.config.seed)

    state, compiled = State(), build.choose_compile(settings.compile, learner)
    snapshot = _restore(run, resume)
    if snapshot is not None:
        learner.restore(snapshot.arrays)
        state, compiled = State(**snapshot.state["loop"]), snapshot.state["compile"]
        if snapshot.state["gradient_mode"] != learner.gradient_mode:
            say(f"the run went by gradient={snapshot.state['gradient_mode']} until step {state.step}; from here by gradient={learner.gradient_mode}")
        if state.step >= steps:
            say(f"nothing to do: the run in {run.path} has done {state.step} steps, and {steps} are asked for; type more trainer.steps")
            return 0, "finished"
        say(f"going on from step {state.step} of {steps} in {run.path}")
    if settings.eval_every and saving.monitor not in metric_names(data.task):
        raise ConfigError(f"checkpoint.monitor={saving.monitor}: evaluation gives {', '.join(metric_names(data.task))}; type one of these")
    check = _verify(job, learner, data, order)

    plan = Plan(
        num_steps=steps,
        steps_per_call=settings.steps_per_call,
        log_every=settings.log_every,
        eval_every=settings.eval_every,
        save_every=saving.every,
        monitor=saving.monitor,
        goal=saving.goal,
        patience=settings.early_stopping.patience,
        min_delta=settings.early_stopping.min_delta,
        skip_nonfinite=settings.on_nonfinite == "skip",
    )
    chunk = make_chunk(learner, data.train, batch_size, settings.steps_per_call, compiled == "chunk", plan.skip_nonfinite)

    def save() -> None:
        kept = {"loop": dataclasses.asdict(state), "compile": compiled, "gradient_mode": learner.gradient_mode}
        best_step = int(state.best["step"]) if state.best else None
        checkpoints.save(run.file("checkpoints"), checkpoints.Snapshot(state.step, learner.capture(), kept), saving.keep, best_step)

    with (
        placement.scope(),
        Recorder(run.path, learner.tags, job.config.logging.tensorboard, state.step) as recorder,
        ProgressLine(steps, state.step) as progress,
    ):
        outcome = train(plan, state, order, chunk, learner.tags, make_evaluate(learner, data), save, recorder, progress, signals)

    summary = {
        "steps": state.step,
        "wall_seconds": round(time.monotonic() - started, 3),
        "steps_per_second": round(outcome.steps_per_second, 1),
        "peak_memory_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1),
        "gradient_mode": learner.gradient_mode,
        "gradient_check": check,
        "compile": compiled,
        "cause": outcome.cause,
        "final": outcome.final,
        "best": state.best,
    }
    run.write("summary.json", summary)
    if outcome.cause == "signal":
        say(f"stopped at step {state.step} of {steps}; the same command with hydra.run.dir={run.path} goes on")
        return 128 + (signals.received or 0), f"signal {signals.received}"
    closing_table(str(run.path), summary)
    return 0, outcome.cause


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps back what TensorFlow's native code writes to stderr while it starts, which no log level of its own silences.

    It is shown if the start fails, or if TF_CPP_MIN_LOG_LEVEL says that it is wanted.
    """
    if "TF_CPP_MIN_LOG_LEVEL" in os.environ:
        yield
        return
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "2"
    sys.stderr.flush()
    shown = os.dup(2)
    with tempfile.TemporaryFile() as kept:
        os.dup2(kept.fileno(), 2)
        try:
            yield
        except BaseException:
            kept.seek(0)
            os.write(shown, kept.read())
            raise
        finally:
            os.dup2(shown, 2)
            os.close(shown)


def _restore(run: RunDir, resume: str) -> checkpoints.Snapshot | None:
    folder = run.file("checkpoints")
    checkpoints.clean(folder)
    snapshot, problems = checkpoints.load_newest(folder)
    for problem in problems:
        say(f"warning: {problem}; going back to an older checkpoint")
    if snapshot is None and resume == "must":
        raise CheckpointError(f"resume=must: there is no checkpoint in {folder}; type resume=auto to start afresh")
    return snapshot


def _verify(job: Job, learner: Any, data: Any, order: Any) -> str:
    """Proves the analytic gradient on the first real batch; what it found, for the summary. Refuses a wrong one."""
    if learner.gradient_mode != "analytic":
        return "none: gradient=auto"
    if not job.config.gradient.verify_at_start:
        return "off"
    from losses import check

    rows = order.batches(0, 1)[0]
    if data.train.weights is not None:
        rows = rows[data.train.weights[rows] > 0]
    predictions = learner.model(data.train.features[rows], training=False)
    report = check.verify(learner.loss, data.train.targets[rows], predictions, job.config.seed)
    if not report.ok:
        raise ConfigError(f"{report.message}. The run has not begun; python -m trainer gradient=auto trains by the tape instead")
    say(report.message if report.auto_agrees else f"{report.message}\n{report.auto_message}")
    return f"{report.num_checked} derivatives agree, {report.num_inconclusive} inconclusive, largest relative error {report.max_error:.1e}"
