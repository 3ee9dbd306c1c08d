"""When the loop does what: the plan that a configuration asks for, or why it can't be."""

import math

from trainer import compiling, schema
from trainer.config import Job
from trainer.data.feed import most_batches
from trainer.data.prepare import Prepared
from trainer.errors import ConfigError
from trainer.evaluation import metric_names
from trainer.learner import Learner
from trainer.loop import Plan
from trainer.progress import say

_MOST_STEPS, _MOST_INDICES = 4096, 2**18  # in a chunk
_MOST_SKIPPED = 10  # steps in a row that on_nonfinite=skip leaves out
_MOST_ROLLBACKS = 10  # of on_nonfinite=rollback, in a run


def make_plan(job: Job, learner: Learner, data: Prepared, num_steps: int, borders: tuple[int, ...] = ()) -> Plan:
    """When the loop does what; `borders` are further steps after which a chunk must end. ConfigError where that can't be done."""
    settings = schema.section(schema.Trainer, job.config.trainer)
    saving = schema.section(schema.Checkpoint, job.config.checkpoint)
    batch_size = job.config.data.batch_size
    histogram_every = _histogram_every(schema.section(schema.Logging, job.config.logging))
    # No chunk passes a border, and its buffers are moved whole.
    often = [period for period in (settings.eval_every, saving.every, histogram_every) if period]
    plan = Plan(
        num_steps=num_steps,
        steps_per_call=min([_most_steps(settings, data, batch_size), num_steps, *often]),
        adapts=settings.steps_per_call is None,
        log_every=settings.log_every,
        eval_every=settings.eval_every,
        save_every=saving.every,
        monitor=saving.monitor,
        goal=saving.goal or ("max" if saving.monitor in schema.LARGER_IS_BETTER else "min"),
        patience=settings.early_stopping.patience,
        min_delta=settings.early_stopping.min_delta,
        max_skipped=_MOST_SKIPPED if settings.on_nonfinite == "skip" else 0,
        audit_every=job.config.gradient.audit_every,
        max_rollbacks=_MOST_ROLLBACKS if settings.on_nonfinite == "rollback" else 0,
        histogram_every=histogram_every,
        borders=borders,
    )
    _check_plan(plan, learner, data, batch_size, settings)
    return plan


def _histogram_every(logging: schema.Logging) -> int:
    if logging.histogram_every and not logging.tensorboard:
        raise ConfigError(
            f"logging.histogram_every={logging.histogram_every}: histograms are for TensorBoard alone: type logging.tensorboard=true, or "
            "logging.histogram_every=0"
        )
    return logging.histogram_every


def window(steps: list[int], num_steps: int) -> tuple[int, int] | None:
    """First and last step of a profile; None without. ConfigError where a run of so many steps has no such window."""
    if steps and (len(steps) != 2 or not 1 <= steps[0] <= steps[1]):
        raise ConfigError(
            f"logging.profile_steps={steps}: must be the first and the last step, counted from 1, or empty; type for example "
            "logging.profile_steps=[101,200]"
        )
    if steps and steps[0] > num_steps:
        raise ConfigError(
            f"logging.profile_steps={steps}: the run has {num_steps} steps, and would end before; type trainer.steps={steps[1]}, or "
            f"logging.profile_steps=[1,{num_steps}]"
        )
    return (steps[0], steps[1]) if steps else None


def _most_steps(settings: schema.Trainer, data: Prepared, batch_size: int) -> int:
    """In a chunk, whose buffers of indices, or of examples, stay small."""
    typed = settings.steps_per_call
    if data.resident:
        return typed or max(1, min(_MOST_STEPS, _MOST_INDICES // batch_size))
    most = most_batches(data.train, batch_size)
    if typed and typed > most:
        say(f"trainer.steps_per_call={typed}: {most} steps at once, for the memory that their streamed batches take")
    return min(typed or _MOST_STEPS, most)


def _check_plan(plan: Plan, learner: Learner, data: Prepared, batch_size: int, settings: schema.Trainer) -> None:
    accumulate = settings.accumulate
    parts = learner.num_replicas * accumulate
    if batch_size % parts:
        numbers = {"{} replicas": learner.num_replicas, "trainer.accumulate={}": accumulate}
        among = " times ".join(name.format(number) for name, number in numbers.items() if number > 1)
        raise ConfigError(f"data.batch_size={batch_size} can't be divided by {among}: type a multiple of {parts}")
    if accumulate > 1 and learner.loss.coupled:
        raise ConfigError(
            f"trainer.accumulate={accumulate}: the loss {learner.loss.name} takes the examples of a batch together: "
            "type trainer.accumulate=1"
        )
    if accumulate > 1 and compiling.synchronizes(learner):
        raise ConfigError(
            f"trainer.accumulate={accumulate}: replicas normalize their batches together, which can't be done in parts: "
            "type trainer.accumulate=1"
        )
    if accumulate > 1 and compiling.normalizes(learner):
        say(
            f"warning: trainer.accumulate={accumulate}: batch normalization takes mean and variance of a part of the batch, not of all of "
            "it: the updates are not those of a whole batch"
        )
    if plan.audit_every and len(learner.loss.modes) < 2:
        raise ConfigError(
            f"gradient.audit_every={plan.audit_every}: the loss {learner.loss.name} has gradient={learner.loss.modes[0]} alone, and "
            "nothing to compare it with: type gradient.audit_every=0"
        )
    metrics = metric_names(learner.loss, data.task)
    if plan.eval_every and plan.monitor not in metrics:
        raise ConfigError(f"checkpoint.monitor={plan.monitor}: evaluation gives {', '.join(metrics)}; type one of these")
    if plan.patience and not plan.eval_every:
        raise ConfigError("trainer.early_stopping.patience needs evaluations: type trainer.eval_every=STEPS")
    if plan.patience and (num := math.ceil(plan.num_steps / plan.eval_every)) <= plan.patience:
        say(
            f"warning: trainer.early_stopping.patience={plan.patience} can't stop this run: of its {plan.num_steps} steps there are {num} "
            f"evaluations; type a smaller trainer.eval_every than {plan.eval_every}"
        )
    if settings.overfit and not plan.eval_every:
        raise ConfigError("debug=overfit is judged by evaluations: type trainer.eval_every=STEPS")
