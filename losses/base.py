"""The contract of a loss.

A loss is a frozen dataclass with `value` and, where it has one, a `gradient` of its own:

    @dataclasses.dataclass(frozen=True)
    class HalfSquare(Loss):
        scale: float = 1.0

        def value(self, y_true, y_pred):  # [batch]
            return self.scale * tf.reduce_mean(tf.square(y_pred - y_true) / 2, axis=-1)

        def gradient(self, y_true, y_pred):  # d value / d y_pred, shaped as y_pred: [batch, dim]
            return self.scale * (y_pred - y_true) / y_pred.shape[-1]

`losses.modes.per_example` evaluates it.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar

import tensorflow as tf

Tensors = Any  # a tensor, or a dict of tensors

MODES = ("auto", "analytic")
CONTRACTS = ("exact", "sub", "surrogate")
# What a target is, and the shape of one example's.
TARGETS = (
    "real",  # [..., dim] numbers
    "binary",  # [..., dim] numbers in [0, 1]
    "counts",  # [..., dim] whole numbers >= 0
    "classes",  # [...] indices
    "class_weights",  # [..., classes] numbers >= 0
    "logits",  # [classes] of a teacher
    "preference",  # [] 1 where the first of two items is preferred, else 0
    "same",  # [] 1 where two items belong together, else 0
    "interval",  # [2] lower and upper edge, infinite ones allowed
    "survival",  # [2] time and event (1, or 0 where censored)
    "relevance",  # [items] of the items of a list
    "ball",  # [dim] a point in the unit ball
    "points",  # [num_points, dim]
    "series",  # [time, dim]
    "labels",  # {labels: [length] indices padded with -1, num_frames: []}
    "none",  # no target: y_true is None
)
# What a loss can promise beyond its derivative; the checker tests it.
INVARIANTS = (
    "translation",  # a number added to all of an example's predictions changes nothing: its gradient sums to zero
    "joint_translation",  # nor does one added to targets and predictions alike
    "homogeneous_1",  # predictions and targets times a > 0: the value is multiplied by a
    "homogeneous_2",  # by a squared
    "convex",  # in the predictions
    "non_negative",
)


class LossError(ValueError):
    """A loss, or what was given to it, breaks the contract; the message says which, where, and what was expected."""

    __init__ = Exception.__init__  # autograph raises an exception with any other one as its own StagingError


@dataclasses.dataclass(frozen=True)
class Loss:
    """A loss with, optionally, a gradient of its own.

    Give `value` and either `gradient` or `value_and_vjp` (or neither: then only the mode "auto" is there). Inputs arrive in
    float32 or float64 with ranks and shapes checked; masked rows arrive as zeros. Hyperparameters are dataclass fields,
    checked in `__post_init__` with `ValueError`.
    """

    # exact: `gradient` is the derivative of `value`. sub: a stated subgradient at kinks. surrogate: the derivative of
    # `surrogate`, deliberately not of `value`.
    contract: ClassVar[str] = "exact"
    # auto: differentiating the gradient's code gives the right second derivative. refuse: asking raises LossError.
    second_order: ClassVar[str] = "auto"
    # Whether TensorFlow can differentiate `value`; without it there is no mode "auto".
    differentiable: ClassVar[bool] = True
    # Whether XLA can compile it (code that runs on the host can't be).
    xla: ClassVar[bool] = True
    # Whether the examples of a batch depend on each other; then `value`, `gradient` and `value_and_vjp` get `mask` as a keyword.
    coupled: ClassVar[bool] = False
    # Entries of a y_pred dict that belong to the whole batch and have no batch axis, such as an output layer's kernel.
    shared: ClassVar[tuple[str, ...]] = ()
    # Kinds of target that it can learn from, out of TARGETS.
    targets: ClassVar[tuple[str, ...]] = ("real",)
    # Magnitudes of y_pred and y_true that it answers for.
    magnitudes: ClassVar[tuple[float, float]] = (1e-6, 1e6)
    # Whether an example's gradient is accurate as a whole, to 1e-5 of its norm, instead of entry by entry, to 8 ulp of float32.
    structured: ClassVar[bool] = False
    # A larger relative error of value and gradient that it states, in any dtype: what an iteration that stops early leaves.
    relative_error: ClassVar[float] = 0.0
    # What it promises, out of INVARIANTS.
    invariants: ClassVar[tuple[str, ...]] = ()
    # The formula that people write, `usual(y_true, y_pred) -> [batch]`, for comparison only.
    usual: ClassVar[Callable[..., tf.Tensor] | None] = None
    # The value of one example in mpmath, `reference(y_true, y_pred) -> mpf` from (nested) lists of mpf; classes are ints, dicts
    # stay dicts, with shared entries whole. Of a coupled loss: the values of a batch, a list, from the lists of its examples.
    reference: ClassVar[Callable[..., Any] | None] = None
    # Random inputs of its domain, `sample(rng, num_examples, scale) -> (y_true, y_pred)`: float64 arrays (int for classes), y_pred
    # of about the magnitude `scale`, ties and near ties among them. None: drawn by `targets` and `outputs_per_target`.
    sample: ClassVar[Callable[..., Any] | None] = None
    # Inputs at the domain's edges beside those that every loss is tried at, `edges() -> (y_true, y_pred)`: one batch.
    edges: ClassVar[Callable[..., Any] | None] = None
    # Whether the second axis of y_pred (and of the features) runs over items, such as those of a pair, that one model maps one by one.
    items: ClassVar[bool] = False
    # Of a y_pred dict with shared entries, the one that the model computes for every example.
    entry: ClassVar[str] = ""
    # Names of what `metrics` gives.
    metric_names: ClassVar[tuple[str, ...]] = ()

    @property
    def name(self) -> str:
        """The name users type: that of the module for a shipped loss."""
        module = type(self).__module__.rpartition(".")
        return module[2] if module[0].split(".")[0] == "losses" else type(self).__name__

    @property
    def outputs_per_target(self) -> int:
        """Model outputs for each target value."""
        return 1

    @property
    def modes(self) -> tuple[str, ...]:
        """The gradient modes that it has."""
        overrides = {
            "auto": self.differentiable,
            "analytic": type(self).gradient is not Loss.gradient or type(self).value_and_vjp is not Loss.value_and_vjp,
        }
        return tuple(mode for mode in MODES if overrides[mode])

    def value(self, y_true: Tensors, y_pred: Tensors) -> tf.Tensor:
        """The loss of every example, `[batch]`."""
        raise LossError(f"loss {self.name} has no value: define value(self, y_true, y_pred) -> [batch]")

    def gradient(self, y_true: Tensors, y_pred: Tensors) -> Tensors:
        """The derivative of every example's value by `y_pred`, structured and shaped as `y_pred`; `dy` is not its business."""
        raise LossError(f"loss {self.name} has no gradient of its own; gradient=auto uses the tape")

    def value_and_vjp(self, y_true: Tensors, y_pred: Tensors, **mask: tf.Tensor) -> tuple[tf.Tensor, Callable[[tf.Tensor], Tensors]]:
        """`(value, vjp)`, for a backward pass that reuses forward work; `vjp(dy)` with `dy` [batch] is structured as `y_pred`."""

        def vjp(dy: tf.Tensor) -> Tensors:
            gradient = self._checked_gradient(self.gradient(y_true, y_pred, **mask), y_pred)
            # multiply_no_nan: an example of zero weight stays zero where its gradient overflowed.
            return tf.nest.map_structure(lambda g: tf.math.multiply_no_nan(g, tf.reshape(dy, [-1] + [1] * (g.shape.rank - 1))), gradient)

        return self.evaluate(y_true, y_pred, **mask), vjp

    def evaluate(self, y_true: Tensors, y_pred: Tensors, **mask: tf.Tensor) -> tf.Tensor:
        """The value where the tape does not go through it, in `measures` and beside a gradient of its own; there may be a leaner way."""
        if type(self).value is not Loss.value or type(self).value_and_vjp is Loss.value_and_vjp:
            return self.value(y_true, y_pred, **mask)
        return self.value_and_vjp(y_true, y_pred, **mask)[0]

    def surrogate(self, y_true: Tensors, y_pred: Tensors, at: Tensors) -> tf.Tensor:
        """For the contract "surrogate": the function, `[batch]`, whose derivative by `y_pred` at `y_pred = at` is `gradient`."""
        raise LossError(f"loss {self.name} declares the contract surrogate: define surrogate(self, y_true, y_pred, at) -> [batch]")

    def point(self, y_pred: Tensors) -> tf.Tensor:
        """The point prediction, in the targets' units, that evaluation compares with the targets."""
        return y_pred

    def metrics(self, y_true: Tensors, y_pred: Tensors) -> tuple[tf.Tensor, ...]:
        """Further measures for evaluation, a tuple of `[batch]` each, in the order of `metric_names`; not where `measures` gives them."""
        return ()

    def measures(self, y_true: Tensors, y_pred: Tensors, **mask: tf.Tensor) -> tuple[tf.Tensor, ...]:
        """What evaluation asks for: `evaluate`, and then `metrics`; there may be a way to find them together."""
        metrics = self.metrics(y_true, y_pred)
        return (self.evaluate(y_true, y_pred, **mask), *(metrics if isinstance(metrics, tuple | list) else [metrics]))

    def output_shape(self, target_shape: tuple[int, ...], num_classes: int | None) -> tuple[int | None, ...]:
        """The shape of what a model must give for one example, or for one item; `(None,)` where any width will do.

        Args:
            target_shape: of one example's target; `()` for a class index and for no target.
            num_classes: of class targets; None for all others.
        """
        if num_classes is not None and "classes" in self.targets:
            return (num_classes,)
        return (self.outputs_per_target * target_shape[-1],)

    def shared_shapes(self, width: int, num_classes: int) -> dict[str, tuple[int, ...]]:
        """The shapes of the shared entries of y_pred, where the model gives `width` numbers as `entry`."""
        raise LossError(f"loss {self.name} declares shared entries: define shared_shapes(self, width, num_classes)")

    def check_shapes(self, y_true: Tensors, y_pred: Tensors) -> None:
        """Refuses targets and predictions whose shapes don't belong together; raises LossError with both.

        The default serves `[batch, ..., dim]` against `[batch, ..., outputs_per_target * dim]`, class indices `[batch, ...]` and
        class weights `[batch, ..., classes]` against logits `[batch, ..., classes]`. What static shapes leave open it checks at run time.
        """
        if isinstance(y_true, dict) or isinstance(y_pred, dict) or y_true is None:
            raise LossError(f"loss {self.name} takes one tensor of targets and one of predictions")
        if "classes" in self.targets and "class_weights" not in self.targets and not y_true.dtype.is_integer:
            raise LossError(f"loss {self.name} takes integer class indices as y_true; found {y_true.dtype.name}")
        dim = y_pred.shape[-1] if y_pred.shape.rank else None
        if dim is not None and dim % self.outputs_per_target:
            raise LossError(
                f"loss {self.name} takes {self.outputs_per_target} outputs per target; y_pred's last axis, {dim}, is no multiple of that"
            )
        expected = self._target_like(y_true, y_pred).shape
        if not y_true.shape.is_compatible_with(expected):
            if y_true.shape.rank == expected.rank:
                hint = ""
            elif "classes" in self.targets:
                hint = "; class indices are integers without an axis for the classes, class weights are floats with one"
            else:
                hint = "; reshape y_true, for example y_true[:, None]"
            raise LossError(
                f"loss {self.name}: y_true of shape {tuple(y_true.shape)} does not fit y_pred of shape {tuple(y_pred.shape)}: "
                f"expected y_true of shape {tuple(expected)}{hint}"
            )

    def require_shape(self, what: str, tensor: tf.Tensor, **axes: int | None) -> None:
        """For `check_shapes`: raises LossError unless the tensor has these axes, of that length where one is given.

        `self.require_shape("y_pred", y_pred, batch=None, items=3, dim=None)` asks for [batch, 3, dim].
        """
        if not tensor.shape.is_compatible_with(list(axes.values())):
            wanted = ", ".join(name if size is None else str(size) for name, size in axes.items())
            raise LossError(f"loss {self.name}: {what} must have shape [{wanted}]; found {tuple(tensor.shape)}")

    def require(self, key: str, limit: str, holds: Callable[[Any], bool]) -> None:
        """For `__post_init__`: raises ValueError naming loss, hyperparameter, value and limit unless `holds(value)`."""
        value = getattr(self, key)
        try:
            fine = holds(value)
        except TypeError:
            fine = False
        if not fine:
            raise ValueError(f"loss {self.name}: {key} must be {limit}; found {value!r}")

    def _target_like(self, y_true: tf.Tensor, y_pred: tf.Tensor) -> tf.Tensor:
        """A tensor of the shape that y_true must have."""
        if "classes" in self.targets and y_true.dtype.is_integer:
            return y_pred[..., 0]
        return y_pred if self.outputs_per_target == 1 else y_pred[..., :: self.outputs_per_target]

    def _checked_value(self, value: Any, y_pred: Tensors) -> tf.Tensor:
        """The value as a tensor; refused unless it is one number per example."""
        first = next(p for key, p in entries(y_pred).items() if key not in self.shared)
        if value is None:
            raise LossError(f"loss {self.name}: value gives None; does it lack a return?")
        value = tf.convert_to_tensor(value)
        if value.dtype != first.dtype:
            raise LossError(f"loss {self.name}: value must be {first.dtype.name}, as y_pred; found {value.dtype.name}")
        if not value.shape.is_compatible_with(first.shape[:1]):
            raise LossError(
                f"loss {self.name}: value must give one number per example, shape {tuple(first.shape[:1])}; found {tuple(value.shape)}. "
                "Average over the other axes, for example tf.reduce_mean(..., axis=-1), and leave the batch to the framework"
            )
        return pinned(value, first.shape[:1], lambda: tf.shape(first)[:1])

    def _checked_measures(self, measures: Any, y_pred: Tensors) -> tuple[tf.Tensor, ...]:
        """The value and the metrics as tensors; refused unless all of them are one number per example."""
        names = self.metric_names
        if not isinstance(measures, tuple) or len(measures) != 1 + len(names) or any(measure is None for measure in measures[1:]):
            found = measures[1:] if isinstance(measures, tuple) else measures
            wanted = f"a tuple of {len(names)}, for {', '.join(names) or 'no name'}"
            raise LossError(f"loss {self.name}: metrics must give {wanted}; found {str(found)[:200]}")
        value = self._checked_value(measures[0], y_pred)
        metrics = [tf.convert_to_tensor(metric) for metric in measures[1:]]
        for name, metric in zip(names, metrics, strict=True):
            if not metric.shape.is_compatible_with(value.shape):
                found = f"shape {tuple(value.shape)}; found {tuple(metric.shape)}"
                raise LossError(f"loss {self.name}: the metric {name} must be one number per example, {found}")
        return value, *(pinned(metric, value.shape, lambda: tf.shape(value)) for metric in metrics)

    def _checked_gradient(self, gradient: Tensors, y_pred: Tensors) -> Tensors:
        """The gradient as tensors; refused unless structured, shaped and typed as y_pred: tf.custom_gradient would take it."""
        wanted, found = entries(y_pred), {} if gradient is None else entries(gradient)
        if set(found) != set(wanted):
            name = "None" if gradient is None else f"entries {sorted(map(str, found))}" if isinstance(gradient, dict) else "one tensor"
            expected = f"entries {sorted(map(str, wanted))}" if isinstance(y_pred, dict) else "one tensor"
            raise LossError(f"loss {self.name}: the gradient must be structured as y_pred, {expected}; found {name}")

        def checked(key: str | None, p: tf.Tensor) -> tf.Tensor:
            where = f" of {key}" if key is not None else ""
            if found[key] is None:
                raise LossError(f"loss {self.name}: the gradient{where} is None; expected a tensor of shape {tuple(p.shape)}")
            g = tf.convert_to_tensor(found[key])
            if g.dtype != p.dtype or not g.shape.is_compatible_with(p.shape):
                raise LossError(
                    f"loss {self.name}: the gradient{where} must have shape {tuple(p.shape)} and dtype {p.dtype.name}, as y_pred; "
                    f"found shape {tuple(g.shape)} and dtype {g.dtype.name}"
                )
            return pinned(g, p.shape, lambda: tf.shape(p))

        return map_entries(checked, y_pred)

    def _refuse_second_order(self, gradient: tf.Tensor) -> tf.Tensor:
        @tf.custom_gradient
        def identity(g: tf.Tensor) -> tuple[tf.Tensor, Callable]:
            def second(_: tf.Tensor) -> tf.Tensor:
                raise LossError(f"loss {self.name} has no second derivative in gradient=analytic; gradient=auto may have one")

            return tf.identity(g), second

        return identity(gradient)


def entries(tensors: Tensors) -> dict[str | None, Any]:
    """A dict of tensors, sorted, or one tensor, under the key None."""
    return dict(sorted(tensors.items())) if isinstance(tensors, dict) else {None: tensors}


def map_entries(function: Callable, tensors: Tensors) -> Tensors:
    """`function(key, tensor)` of every entry, in the structure of the tensors; the key of one tensor is None."""
    if isinstance(tensors, dict):
        return {key: function(key, tensor) for key, tensor in tensors.items()}
    return function(None, tensors)


def pinned(tensor: tf.Tensor, shape: tf.TensorShape, at_run_time: Callable[[], tf.Tensor]) -> tf.Tensor:
    """The tensor, with an InvalidArgumentError at run time unless it has that shape; never broadcast."""
    if tensor.shape.is_fully_defined() and shape.is_fully_defined():
        return tensor
    tensor, expected = tf.ensure_shape(tensor, shape), at_run_time()
    with tf.control_dependencies([tf.debugging.assert_equal(tf.shape(tensor), expected, "a shape differs from y_pred's")]):
        # XLA drops assertions, but refuses a Select (which, unlike where, does not broadcast) of different shapes.
        return tf.raw_ops.Select(condition=False, x=tf.zeros(expected, tensor.dtype), y=tensor)
