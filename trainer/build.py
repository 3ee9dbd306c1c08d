"""From configuration to objects; the only place that instantiates what a configuration names."""

import contextlib
import dataclasses
import inspect
import math
import re
from collections.abc import Callable, Iterator
from typing import Any

import keras
import tensorflow as tf
from omegaconf import DictConfig, OmegaConf

from losses.base import Loss, LossError, Tensors
from losses.external import External
from losses.modes import cast_target
from trainer import heads, schema, trust
from trainer.config import Job, config_dirs, groups
from trainer.data.base import Examples, Source, StreamedSource
from trainer.data.kinds import KINDS, fit
from trainer.data.prepare import Prepared, prepare
from trainer.data.stream import prepare_streamed
from trainer.errors import ConfigError, DataError, uncoloured
from trainer.learner import Learner, LossScale
from trainer.optimizers import fused
from trainer.progress import say
from trainer.silence import quiet
from trainer.validation import shown


@dataclasses.dataclass(frozen=True)
class Placement:
    """Where a run's tensors and replicas live."""

    strategy: tf.distribute.Strategy | None
    device: str | None = None

    @contextlib.contextmanager
    def scope(self) -> Iterator[None]:
        """Within it, variables are made where they belong."""
        with self.strategy.scope() if self.strategy else tf.device(self.device):
            yield


@dataclasses.dataclass(frozen=True)
class FunctionLoss(Loss):
    """A plain function `(y_true, y_pred) -> [batch]` of a user's own: it has the gradient mode auto alone."""

    function: Callable[..., tf.Tensor]
    wanted: tuple[str, ...] = ("real",)

    @property
    def name(self) -> str:
        return self.function.__name__

    @property
    def targets(self) -> tuple[str, ...]:  # type: ignore[override]  # depends on the data
        return self.wanted

    def value(self, y_true: Tensors, y_pred: Tensors) -> tf.Tensor:
        return self.function(y_true, y_pred)


def devices() -> list[str]:
    """The names of the devices that TensorFlow sees."""
    return [device.name for device in tf.config.list_logical_devices()]


def build_placement(settings: schema.Strategy) -> Placement:
    """The strategy over the devices there are; none on one device, where it would only cost."""
    with quiet():  # TensorFlow starts here
        return _place(settings)


def _place(settings: schema.Strategy) -> Placement:
    count = settings.num_devices
    if settings.name == "cpu_sim":  # first of all: listing logical devices starts TensorFlow, and then it can't divide the CPU
        return Placement(tf.distribute.MirroredStrategy(_logical_cpus(count or 2)))
    gpus = tf.config.list_logical_devices("GPU")
    if settings.name == "one_device":
        device = settings.device or ("GPU:0" if gpus else "CPU:0")
        there = [name.removeprefix("/device:") for name in devices()]
        if device not in there:
            raise ConfigError(f"strategy.device={device}: there is no such device here; type one of {', '.join(there)}")
        return Placement(None, device)
    if settings.name == "auto" and (count or 1) > max(1, len(gpus)):
        raise ConfigError(
            f"strategy.num_devices={count}: there are {len(gpus)} GPUs here; type strategy=cpu_sim to simulate replicas on the CPU"
        )
    if settings.name == "mirrored" or (settings.name == "auto" and len(gpus[:count]) > 1):
        if len(gpus) < (count or 1):
            raise ConfigError(
                f"strategy=mirrored strategy.num_devices={count or 1}: there are {len(gpus)} GPUs here. "
                "Type strategy=auto, or strategy=cpu_sim to simulate replicas on the CPU"
            )
        return Placement(tf.distribute.MirroredStrategy([device.name for device in gpus[:count]]))
    return Placement(None)


def _logical_cpus(count: int) -> list[str]:
    cpu = tf.config.list_physical_devices("CPU")[0]
    if len(tf.config.get_logical_device_configuration(cpu) or []) < count:
        try:
            tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * count)
        except RuntimeError as error:
            raise ConfigError(
                "strategy=cpu_sim divides the CPU before TensorFlow starts: run it in a process of its own, or type strategy=auto"
            ) from error
    return [device.name for device in tf.config.list_logical_devices("CPU")[:count]]


def build_loss(job: Job) -> Loss:
    """The loss, with its hyperparameters checked and the gradient mode there."""
    arguments = _arguments(job.config.loss)
    found = trust.find(job.config.loss._target_, "loss", job.trust)
    if not inspect.isclass(found):
        wanted = arguments.pop("targets", ("real",))
        return _with_mode(FunctionLoss(_bound(found, arguments), (wanted,) if isinstance(wanted, str) else tuple(wanted)), job)
    named = arguments.get("function")
    if issubclass(found, External) and isinstance(named, str) and not named.startswith("losses."):
        arguments["function"] = trust.find_function(named, "loss.function", job.trust)
    return _with_mode(_call(found, arguments, f"loss={job.choices['loss']}"), job)


def _bound(function: Callable[..., Any], arguments: dict[str, Any]) -> Callable[..., Any]:
    if not arguments:
        return function

    def bound(y_true: Tensors, y_pred: Tensors) -> tf.Tensor:
        return function(y_true, y_pred, **arguments)

    bound.__name__ = function.__name__
    return bound


def _with_mode(loss: Loss, job: Job) -> Loss:
    mode = job.config.gradient.mode
    if mode not in loss.modes:
        have = " and ".join(f"gradient={name}" for name in loss.modes) or "no gradient at all"
        raise ConfigError(f"gradient={mode}: the loss {loss.name} has {have}" + (f"; type {have}" if len(loss.modes) == 1 else ""))
    return loss


def build_source(job: Job) -> tuple[Source, schema.Data]:
    """What the examples come from, and the keys that every source shares."""
    names = {field.name for field in dataclasses.fields(schema.Data)}
    arguments = _arguments(job.config.data)
    shared = schema.Data(**{name: arguments.pop(name) for name in names & arguments.keys()})
    found = trust.find(job.config.data._target_, "data", job.trust)
    if "sample_weight" in inspect.signature(found).parameters:
        arguments["sample_weight"] = shared.sample_weight  # a source of a table must know which column is no feature
    return _call(found, arguments, f"data={job.choices['data']}"), shared


def build_data(job: Job, loss: Loss, tell: bool = True) -> Prepared:
    """The examples, fitted to what the loss wants; what a user should know of them is said, unless `tell` is false."""
    source, shared = build_source(job)
    want = fitted(job, source, loss)
    if isinstance(source, StreamedSource):
        data = prepare_streamed(source, source.kind, want, shared)
    else:
        examples = source.load()
        if not isinstance(examples, Examples):
            raise ConfigError(
                f"{_name(job.config.data)}.load() must return trainer.data.base.Examples; it returned {type(examples).__name__}"
            )
        data = prepare(examples, source.kind, want, shared)
    if tell:
        _tell(job, source, data)
    return data


def fitted(job: Job, source: Source, loss: Loss) -> str:
    """As what the source's targets meet the loss; ConfigError where they don't fit."""
    if source.kind not in KINDS:
        raise ConfigError(f"{_name(job.config.data)}.kind is {source.kind!r}; it must be one of {', '.join(KINDS)}")
    want = fit(source.kind, loss.targets)
    if want is None:
        advice = f"type data= one of {', '.join(_fitting_data(loss)) or '(none of the bundled)'}"
        if "targets" in job.config.data:
            advice = f"if they are meant so, type data.targets= one of {', '.join(sorted(loss.targets))}; or {advice}"
        raise ConfigError(
            f"data={job.choices['data']} has {source.kind} targets; the loss {loss.name} takes {' or '.join(loss.targets)}: {advice}"
        )
    return want


def _tell(job: Job, source: Source, data: Prepared) -> None:
    if job.config.data.get("targets") == "auto":
        say(f"{job.config.data.path}: the targets are read as {source.kind}; data.targets= says otherwise")
    if data.num_sampled is not None:
        say(f"data={job.choices['data']}: mean and spread are those of {data.num_sampled} examples, drawn from the training part")
    if not data.resident:
        num_examples = len(data.train) + len(data.evaluation)
        size = num_examples * data.first.features.nbytes / 2**20
        say(f"data={job.choices['data']}: {num_examples} examples, {size:.0f} MB of features, are streamed")


def _fitting_data(loss: Loss) -> list[str]:
    """The shipped data that the loss can learn from. A source whose files decide the kind of its targets is left out."""
    folder, *_ = config_dirs(None)
    found = {name: trust.find(OmegaConf.load(folder / "data" / f"{name}.yaml")._target_, "data", ()) for name in groups([folder])["data"]}
    return [name for name, source in found.items() if isinstance(source.kind, str) and fit(source.kind, loss.targets)]


def build_model(job: Job, loss: Loss, data: Prepared) -> keras.Model:
    """The model, its head as loss and data ask."""
    what, on = f"model={job.choices['model']}", f"data={job.choices['data']}"
    found = trust.find(job.config.model._target_, "model", job.trust)
    features_shape, tokens = data.features_shape, data.num_tokens is not None
    if loss.items and len(features_shape) < 2:
        raise ConfigError(
            f"the loss {loss.name} takes several items an example, features [n, items, ...]; those of {on} have shape {features_shape}"
        )
    input_shape = features_shape[1:] if loss.items else features_shape
    num_classes = data.num_classes if data.want in ("classes", "labels") else None
    shape = loss.output_shape(data.target_shape, num_classes)
    num_outputs = None if None in shape else math.prod(size for size in shape if size is not None)
    given = {"input_shape": input_shape, "num_outputs": num_outputs, "num_tokens": data.num_tokens}
    parameters = inspect.signature(found).parameters
    if tokens and "num_tokens" not in parameters:
        raise ConfigError(f"{what} takes numbers, and the features of {on} are tokens: type model=transformer")
    typed = {name: value for name, value in _arguments(job.config.model).items() if name != "num_outputs" or value is not None}
    width = typed.get("num_outputs", 1)
    if "num_outputs" in parameters and (isinstance(width, bool) or not isinstance(width, int) or width < 1):
        raise ConfigError(
            f"model.num_outputs={shown(width)}: must be a whole number >= 1, or null; type for example model.num_outputs=null"
        )
    arguments = {name: value for name, value in given.items() if name in parameters} | typed
    model = _call(found, arguments, what)
    if not isinstance(model, keras.Model):
        raise ConfigError(f"{what}: {_name(job.config.model)} must give a keras.Model; it gave {type(model).__name__}")
    try:
        outputs = model(tf.zeros([1, *input_shape], tf.int32 if tokens else tf.float32), training=False)
    except (ValueError, TypeError, tf.errors.InvalidArgumentError) as error:
        raise DataError(f"{what} does not take one example, features of shape {input_shape}, of {on}: {_plain(error)}") from error
    if not isinstance(outputs, tf.Tensor):
        raise ConfigError(f"{what} must give one tensor, for the loss {loss.name}; it gives {type(outputs).__name__}")
    fits = {num_outputs, shape[-1] if shape else 1}  # a model may shape its outputs itself
    if outputs.shape.rank < 2 or (num_outputs is not None and outputs.shape[-1] not in fits):
        raise ConfigError(
            f"{what} gives outputs of shape {tuple(outputs.shape[1:])}; the loss {loss.name} on {on} takes {num_outputs}: "
            "let the model take num_outputs as an argument, it is given"
        )
    inputs = keras.Input(features_shape, dtype="int32" if tokens else None, name="features")
    model = heads.attach(model, loss, inputs, shape, outputs.shape.rank == 2, data.want, num_classes)
    _check_fit(model, loss, data, f"{what} {on}")
    return model


def _check_fit(model: keras.Model, loss: Loss, data: Prepared, what: str) -> None:
    """Refuses a model whose predictions for the first examples are not shaped as the loss takes them."""
    first = data.train.rows(slice(2))
    predictions = model(tf.constant(first.features), training=False)
    targets = first.targets
    try:
        if targets is not None:
            targets = tf.nest.map_structure(lambda y: cast_target(loss, tf.constant(y), tf.float32), targets)
        loss.check_shapes(targets, predictions)
    except LossError as error:
        shapes = tf.nest.map_structure(lambda p: tuple(p.shape[1:]), predictions)
        raise ConfigError(f"{what}: the model gives outputs of shape {shapes}, and they don't fit: {error}") from error


def num_steps(settings: schema.Trainer, num_examples: int, batch_size: int) -> int:
    """The length of the run in updates."""
    steps = settings.length(num_examples, batch_size)
    if steps >= 2**31:
        raise ConfigError(f"the run would have {steps:.3g} steps, more than 2**31: type fewer trainer.steps or trainer.epochs")
    return math.ceil(steps)


def build_optimizer(job: Job, steps: int) -> keras.optimizers.Optimizer:
    """The optimizer, at its schedule's learning rate."""
    arguments = _arguments(job.config.optimizer)
    scheduled = trust.find(job.config.schedule._target_, "schedule", job.trust)
    schedule = {"learning_rate": arguments["learning_rate"], "num_steps": steps} | _arguments(job.config.schedule)
    arguments["learning_rate"] = _call(scheduled, schedule, f"schedule={job.choices['schedule']}")
    found = fused(trust.find(job.config.optimizer._target_, "optimizer", job.trust))
    return _call(found, arguments, f"optimizer={job.choices['optimizer']}")


def build_learner(job: Job, placement: Placement, loss: Loss, data: Prepared, steps: int) -> Learner:
    """Model, loss and optimizer with all their variables made."""
    trainer = job.config.trainer
    if loss.coupled and placement.strategy and placement.strategy.num_replicas_in_sync > 1:
        raise ConfigError(
            f"the loss {loss.name} takes the examples of a batch together, and a batch is divided among "
            f"{placement.strategy.num_replicas_in_sync} replicas: type strategy=one_device"
        )
    with placement.scope():
        model = build_model(job, loss, data)
        optimizer = build_optimizer(job, steps)
        optimizer.build(model.trainable_variables)
        ema = [tf.Variable(weight.value, trainable=False) for weight in model.trainable_variables] if trainer.ema_decay else []
        precision = job.config.precision
        scaler = LossScale(precision.loss_scale, precision.loss_scale_every) if precision.policy == "mixed_float16" else None
    if not model.trainable_variables:
        raise ConfigError(f"model={job.choices['model']} has no trainable variable")
    if placement.strategy:
        # The gradients are summed already, in one packed reduction; Keras' own sum over replicas would double them.
        optimizer._all_reduce_sum_gradients = lambda gradients_and_weights: gradients_and_weights
    return Learner(
        model,
        loss,
        job.config.gradient.mode,
        optimizer,
        placement.strategy,
        trainer.clip_norm,
        trainer.ema_decay,
        ema,
        job.config.logging.per_variable,
        scaler,
        job.config.seed,
        bool(model.losses),  # of the examples that `build_model` has tried it on
    )


def _plain(error: Exception) -> str:
    """The error's first line, with the reason where Keras says first in which layer it was; no colours, no printed arrays."""
    lines = [line for line in re.sub(r"\{\{.*?\}\}", "", uncoloured(error)).splitlines() if line.strip()]
    num_lines = 2 if lines and lines[0].startswith("Exception encountered") else 1
    return " ".join(lines[:num_lines])[:300]


def _name(node: DictConfig) -> str:
    return str(node._target_)


def _arguments(node: DictConfig) -> dict[str, Any]:
    container = OmegaConf.to_container(node, resolve=True)
    assert isinstance(container, dict)
    return {str(key): value for key, value in container.items() if key != "_target_"}


def _call(found: Callable[..., Any], arguments: dict[str, Any], what: str) -> Any:
    """Calls a class or builder; a mistake in its arguments is the user's, with what was typed."""
    arguments = {name: tuple(value) if isinstance(value, list) else value for name, value in arguments.items()}
    try:
        inspect.signature(found).bind(**arguments)
    except TypeError as error:
        raise ConfigError(f"{what}: {error}; {found.__name__} takes {', '.join(inspect.signature(found).parameters)}") from error
    try:
        return found(**arguments)
    except LossError:
        raise
    except (ConfigError, TypeError, ValueError) as error:
        raise ConfigError(_with_example(uncoloured(error), found, arguments, what)) from error


def _with_example(message: str, found: Callable[..., Any], arguments: dict[str, Any], what: str) -> str:
    """What a class or builder says of one of its arguments, with the key, the value, and one to type instead."""
    group = what.partition("=")[0]
    if required := re.fullmatch(r"loss \w+: (\w+) must be (.*); found .*", message, re.DOTALL):
        name, limit = required.groups()
        message = f"{group}.{name}={shown(arguments.get(name))}: must be {limit}"
    elif not message.startswith(f"{group}."):
        return f"{what}: {message}"
    key = re.match(rf"{group}\.(\w+)", message)
    parameter = inspect.signature(found).parameters.get(key[1]) if key else None
    if key is None or parameter is None or parameter.default is inspect.Parameter.empty or re.search(r"\btype(d as)? ", message):
        return message
    return f"{message}; type for example {group}.{key[1]}={shown(parameter.default)}"
