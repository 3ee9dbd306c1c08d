"""trainer.dry_run: what a run would be: shapes, parameters, memory, gradient, way of compiling, time. Trains and writes nothing."""

import math
import time
from collections.abc import Iterable, Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from rich.console import Console
from rich.table import Table

from losses.base import LossError
from losses.modes import per_example
from trainer import compiling, schema
from trainer.config import Job
from trainer.data.feed import Feed
from trainer.data.order import Order
from trainer.data.prepare import Prepared, Split
from trainer.errors import ConfigError, DivergedError
from trainer.evaluation import make_evaluate
from trainer.learner import Learner
from trainer.loop import Plan
from trainer.planning import make_plan
from trainer.progress import say
from trainer.proving import verify
from trainer.training import build_all, chunk_maker, peak_memory, xla_explained

_FIRST_STEPS = 8  # that are run from the initial weights on, as the run itself would
_MB = 2**20
# Operations whose outputs are other tensors seen anew, or exist anyway.
_NO_MEMORY = ("Const", "Identity", "Placeholder", "ReadVariableOp", "Reshape", "Squeeze", "ExpandDims", "StopGradient", "Shape", "NoOp")


def dry_run(job: Job, started: float) -> None:
    """Prints what the run would be.

    Args:
        job: what is asked for.
        started: when this command was, by time.monotonic(): a run takes as long to start.

    Raises:
        UserError: what the run itself would be refused for; or one of its first steps is not finite.
    """
    try:
        _dry_run(job, started)
    except LossError as error:
        raise ConfigError(str(error)) from error


def _dry_run(job: Job, started: float) -> None:
    before = peak_memory()
    placement, data, learner, num_steps = build_all(job)
    settings, batch_size = schema.section(schema.Trainer, job.config.trainer), job.config.data.batch_size
    plan = make_plan(job, learner, data, num_steps)
    order = Order(len(data.train), batch_size, job.config.seed)
    compiled = compiling.choose(settings, learner, data, batch_size)
    proof = verify(job, learner, data, order)
    started_up = time.monotonic() - started
    batch = data.train.rows(order.batches(0, 1)[0])
    with placement.scope(), xla_explained():
        memory = _memory(learner, data, batch, settings)
        predictions = learner.model(tf.constant(batch.features), training=False)
        with Feed(order, plan.room, None if data.resident else data.train, whole=True) as feed:
            _, batches = feed.take(0, plan.steps_per_call, then=plan.steps_per_call)
        make = chunk_maker(job, learner, data, plan)
        if compiled == "measure":
            compiled, chunk = compiling.measure(learner, make, batches, plan.steps_per_call)
        else:
            chunk = make(compiled)
        clock = time.monotonic()
        num_first = tf.constant(min(_FIRST_STEPS, plan.steps_per_call))
        rows, num_done, skipped, _ = chunk(batches, tf.constant(0), num_first, tf.constant(0))
        rows = rows.numpy()[: int(num_done)]
        first_chunk = time.monotonic() - clock
        diverged = int(skipped) > plan.max_skipped
        seconds = math.nan if diverged else compiling.step_seconds(chunk, batches, plan.steps_per_call)
        evaluation = 0.0 if diverged or not plan.eval_every else _evaluation_seconds(learner, data, batch_size)

    say("dry run: nothing is trained, and nothing is written")
    _show_layers(learner.model)
    many = learner.num_replicas
    part = f", {batch_size // many} on each of {many} replicas" if many > 1 else ""
    table = Table(show_header=False, box=None)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    facts = {
        "data": f"{len(data.train)} examples to train on, {len(data.evaluation)} to evaluate on"
        + ("" if data.resident else ", streamed, not held in memory"),
        "batch": f"{batch_size} examples{part}" + (f", in {settings.accumulate} parts" if settings.accumulate > 1 else ""),
        "input": _shapes(batch.features),
        "output": _shapes(predictions),
        "targets": "none" if batch.targets is None else _shapes(batch.targets),
        "parameters": _parameters(learner.model),
        "memory": _listed(memory, before, learner),
        "gradient": f"{learner.gradient_mode}  ({proof})",
        "compile": f"{compiled}  (trainer.compile={settings.compile})",
    }
    if not diverged:
        facts["time"] = _time(plan, started_up + first_chunk, seconds, evaluation)
    for name, text in facts.items():
        table.add_row(f"[bold]{name}[/bold]", text)
    _print(table)
    if diverged:
        tag, value = next((tag, v) for tag, v in zip(learner.tags, rows[-1].tolist(), strict=False) if not math.isfinite(v))
        raise DivergedError(f"step {len(rows)} gave {tag} = {value}, from the initial weights on: without trainer.dry_run the run says why")


def _evaluation_seconds(learner: Learner, data: Prepared, batch_size: int) -> float:
    evaluate = make_evaluate(learner, data, batch_size)
    evaluate()  # is traced
    clock = time.monotonic()
    evaluate()
    return time.monotonic() - clock


def _time(plan: Plan, start: float, seconds: float, evaluation: float) -> str:
    """Of the whole run; `seconds` are a step's, and an evaluation takes `evaluation`."""
    num_evaluations = math.ceil(plan.num_steps / plan.eval_every) if plan.eval_every else 0
    whole = start + plan.num_steps * seconds + num_evaluations * evaluation
    parts = [f"{_duration(start)} to start", f"{plan.num_steps} steps of {1e3 * seconds:.3g} ms"]
    parts += [f"{num_evaluations} evaluations of {1e3 * evaluation:.3g} ms"] if num_evaluations else []
    return f"about {_duration(whole)}: {', '.join(parts)}; checkpoints are written meanwhile"


def _duration(seconds: float) -> str:
    for limit, unit, length in ((120, "s", 1), (7200, "minutes", 60), (172_800, "hours", 3600)):
        if seconds < limit:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds / 86_400:.1f} days"


def _memory(learner: Learner, data: Prepared, batch: Split, settings: schema.Trainer) -> dict[str, float]:
    """An estimate of what a replica holds, bytes by what it is for.

    The tape keeps what the forward pass computes for the way back: all tensors of its graph are counted, though some can go earlier,
    and XLA never makes others. On the CPU the examples are there twice, as they were prepared and as tensors.
    """
    copies = 1 if _on_gpu() else 2
    resident = [array for part in (data.train, data.evaluation) if isinstance(part, Split) for array in part.arrays()]
    state = _bytes(learner.model.variables) + _bytes(learner.optimizer.variables) + _bytes(learner.ema)
    return {
        "weights": _bytes(learner.model.variables) + _bytes(learner.ema),
        "optimizer": _bytes(learner.optimizer.variables),
        "gradients": sum(4 * math.prod(variable.shape) for variable in learner.variables),
        "activations": _activations(learner, batch.rows(slice(len(batch) // (learner.num_replicas * settings.accumulate)))),
        "data": copies * sum(array.nbytes for array in resident),
        "a checkpoint's copy": 0 if _on_gpu() else state,
    }


def _on_gpu() -> bool:
    return bool(tf.config.list_logical_devices("GPU"))


def _bytes(variables: Iterable[Any]) -> int:
    return sum(math.prod(variable.shape) * tf.as_dtype(variable.dtype).size for variable in variables)


def _activations(learner: Learner, part: Split) -> int:
    """Bytes of the tensors that the forward pass of some examples computes, from the features to the loss."""

    @tf.function(autograph=False)
    def forward() -> tf.Tensor:
        predictions = learner.model(tf.constant(part.features), training=False)
        return per_example(learner.loss, learner.gradient_mode, part.targets, predictions)

    made = [operation for operation in forward.get_concrete_function().graph.get_operations() if operation.type not in _NO_MEMORY]
    outputs = [output for operation in made for output in operation.outputs if output.shape.is_fully_defined()]
    return sum(output.shape.num_elements() * output.dtype.size for output in outputs)


def _listed(memory: dict[str, float], before: float, learner: Learner) -> str:
    """What the run will take: with GPUs, the estimate, on each; else what this process has taken with its timed steps, and of what parts.

    Args:
        memory: of `_memory`.
        before: MB that TensorFlow itself takes.
        learner: for the number of replicas.
    """
    each = {name: size / _MB for name, size in memory.items() if size}
    parts = ", ".join(f"{name} {size:.3g}" for name, size in each.items())
    if _on_gpu():
        return f"about {sum(each.values()):.0f} MB on each GPU: {parts}"
    many = f"on each of {learner.num_replicas} replicas " if learner.num_replicas > 1 else ""
    known = before + learner.num_replicas * sum(each.values())
    whole = max(known, peak_memory() + memory["a checkpoint's copy"] / _MB)  # no checkpoint is made here
    rest = f"; graphs, programs, preparation {whole - known:.0f}" if whole - known >= 1 else ""
    return f"about {whole:.0f} MB: TensorFlow itself {before:.0f}; {many}{parts}{rest}"


def _parameters(model: keras.Model) -> str:
    trained, others = (sum(math.prod(v.shape) for v in group) for group in (model.trainable_variables, model.non_trainable_variables))
    return f"{trained:,}" + (f", and {others:,} that no gradient changes" if others else "")


def _show_layers(model: keras.Model) -> None:
    table = Table("layer", "kind", "output", "parameters", box=None)
    table.columns[-1].justify = "right"
    shown = list(_leaves(model))
    for layer in shown:
        table.add_row(layer.name, type(layer).__name__, _output(layer), f"{layer.count_params():,}")
    if rest := model.count_params() - sum(layer.count_params() for layer in shown):
        table.add_row(model.name, type(model).__name__, "", f"{rest:,}")  # weights of its own
    _print(table)


def _leaves(model: keras.Model) -> Iterator[keras.layers.Layer]:
    """The layers that hold no others as a model does; one that is used twice comes once."""
    within = {id(layer): layer for layer in _shown(model)}
    return (layer for layer in within.values() if not getattr(layer, "layers", None) and not isinstance(layer, keras.layers.InputLayer))


def _shown(model: keras.layers.Layer) -> Iterator[keras.layers.Layer]:
    """The layers that a model shows, and those of models within it; not what a layer of Keras' own is made of."""
    for layer in getattr(model, "layers", []):
        yield layer
        yield from _shown(layer)


def _output(layer: keras.layers.Layer) -> str:
    """The shapes that a layer gives; nothing where Keras does not know them, as within a model that is a class of its own."""
    try:
        return _shapes(layer.output)
    except (AttributeError, ValueError):
        return ""


def _shapes(tensors: Any) -> str:
    """`(32, 10) float32`; of several tensors, with their names."""
    if isinstance(tensors, dict):
        return ", ".join(f"{name} {_shapes(tensor)}" for name, tensor in tensors.items())
    if isinstance(tensors, list | tuple):
        return ", ".join(map(_shapes, tensors))
    dtype = tensors.dtype
    return f"{tuple(tensors.shape)} {dtype if isinstance(dtype, str | np.dtype) else dtype.name}"


def _print(table: Table) -> None:
    try:
        Console().print(table)
    except (OSError, ValueError):  # a closed stdout
        return
