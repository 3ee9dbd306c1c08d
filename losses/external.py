"""A function of NumPy, SciPy or C that gives value and gradient, called on the host."""

import dataclasses
from collections.abc import Callable
from typing import Any

import mpmath
import numpy as np
import tensorflow as tf

from losses.base import Loss

HostFunction = Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]


def pseudo_huber(y_true: np.ndarray, y_pred: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """SciPy's pseudo-Huber loss, sqrt(1 + r^2) - 1 with r = y_pred - y_true, averaged over an example, and its gradient."""
    from scipy import special  # here, because every job imports this module

    error = y_pred - y_true
    axes = tuple(range(1, error.ndim))
    with np.errstate(all="ignore"):  # as in TensorFlow, inf and NaN without a warning
        return special.pseudo_huber(1.0, error).mean(axis=axes), error / np.hypot(1, error) / max(error[:1].size, 1)


_SHIPPED = {f"{__name__}.{function.__name__}": function for function in (pseudo_huber,)}


@dataclasses.dataclass(frozen=True)
class External(Loss):
    """Whatever a function outside TensorFlow computes: value and gradient come from it, in one call on the host.

    value, d/dp = function(y, p), NumPy arrays as TensorFlow hands them over; function must not write to them nor keep them

    There is no auto: TensorFlow can't see into the function. It runs under Python's lock, on the CPU, not under XLA (in Keras,
    compile with jit_compile=False), and a SavedModel that holds it does not run in another process. Inputs are float32 or float64;
    what it returns is cast to that.

    Domain: that of the function; the magnitudes declared are those of pseudo_huber. Shapes: y [batch, ..., dim] and p the same, or
    classes y [batch, ...] and p [batch, ..., classes]; value [batch], gradient as p. An empty batch is passed on like any other.

    Args:
        function: `(y_true, y_pred) -> (value, gradient)`; or the name of a shipped one, losses.external.pseudo_huber.
        derivative: exact where the gradient is the derivative everywhere, sub where it is a subgradient at kinks. For a
            gradient that is deliberately another one, subclass with the contract surrogate and the function it belongs to.
        target: the kind of target it learns from: real, binary, counts or classes.

    Kinks: as the function says. Its own exceptions stop the step, as InvalidArgumentError or UnknownError with their text.
    """

    function: HostFunction | str = f"{__name__}.pseudo_huber"
    derivative: str = "exact"
    target: str = "real"

    differentiable = False
    xla = False
    second_order = "refuse"
    magnitudes = (1e-30, 1e30)

    def __post_init__(self) -> None:
        names = " or ".join(_SHIPPED)
        self.require("function", f"a function (y_true, y_pred) or {names}", lambda function: callable(function) or function in _SHIPPED)
        self.require("derivative", "exact or sub", lambda derivative: derivative in ("exact", "sub"))
        self.require("target", "real, binary, counts or classes", lambda target: target in ("real", "binary", "counts", "classes"))

    @property
    def contract(self) -> str:  # type: ignore[override]  # depends on a hyperparameter
        return self.derivative

    @property
    def targets(self) -> tuple[str, ...]:  # type: ignore[override]  # likewise
        return (self.target,)

    @property
    def reference(self) -> Callable[..., Any] | None:  # type: ignore[override]  # likewise
        return _pseudo_huber_reference if self._called() is pseudo_huber else None

    def value(self, y_true: tf.Tensor, y_pred: tf.Tensor) -> tf.Tensor:
        return self._call(y_true, y_pred)[0]

    def value_and_vjp(self, y_true: tf.Tensor, y_pred: tf.Tensor, **mask: tf.Tensor) -> tuple[tf.Tensor, Callable]:
        value, gradient = self._call(y_true, y_pred)

        def vjp(dy: tf.Tensor) -> tf.Tensor:
            return tf.math.multiply_no_nan(gradient, tf.reshape(dy, [-1] + [1] * (y_pred.shape.rank - 1)))

        return value, vjp

    def _call(self, y_true: tf.Tensor, y_pred: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        def on_host(y: np.ndarray, p: np.ndarray) -> list[np.ndarray]:
            value, gradient = self._called()(y, p)
            for what, array, shape in (("value", value, p.shape[:1]), ("gradient", gradient, p.shape)):
                if np.shape(array) != shape:
                    raise ValueError(f"loss {self.name}: function must give a {what} of shape {shape}; found {np.shape(array)}")
            return [np.asarray(array, p.dtype) for array in (value, gradient)]

        value, gradient = tf.numpy_function(on_host, [y_true, y_pred], [y_pred.dtype] * 2, stateful=False)
        return tf.ensure_shape(value, y_pred.shape[:1]), tf.ensure_shape(gradient, y_pred.shape)

    def _called(self) -> HostFunction:
        return _SHIPPED[self.function] if isinstance(self.function, str) else self.function


def _pseudo_huber_reference(y_true: list, y_pred: list) -> Any:
    return sum(mpmath.sqrt(1 + (p - y) ** 2) - 1 for y, p in zip(y_true, y_pred, strict=True)) / len(y_pred)
