"""What value and gradient truly are: by 150-digit arithmetic from a loss's `reference`, else by its own formula in float64.

The unit is what can be looked at alone: an example, or, where examples hang together or share inputs, a batch, whose function is
sum(dy * value).
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any

import mpmath
import numpy as np
import tensorflow as tf

from losses.base import Loss, Tensors
from losses.proof.evaluation import cast, evaluate

OWN_FORMULA = "its own formula in float64"
DIGITS = 150  # so that a difference over a step of 1e-40 keeps 50 digits of values up to 1e60
_STEP = mpmath.mpf(10) ** -40  # of a coordinate's size
_CHANGE = mpmath.mpf(10) ** -20  # relative, of the inputs, for condition numbers
_FEW = 12  # inputs that are changed one at a time
_LOST = mpmath.mpf(10) ** -20  # relative error of a slope from which on it is not known
_NOTHING = mpmath.mpf(10) ** -60  # absolute error far below float32's normal numbers, where nothing is judged: a flat function's too
_JUMP = 1e-3  # relative change of a gradient by the last place of float32
_KINK = 1e-6  # relative difference of the one-sided slopes from which on they are two


@dataclasses.dataclass(frozen=True)
class Batch:
    """Inputs, float64 arrays, as one batch; `dy` weighs the examples where they hang together, and is ones elsewhere."""

    loss: Loss
    y_true: Tensors
    y_pred: Tensors
    dy: np.ndarray

    @property
    def together(self) -> bool:
        return self.loss.coupled or bool(self.loss.shared)

    def flat(self, tensors: Tensors) -> np.ndarray:
        """What is structured as y_pred, as float64 [units, coordinates]."""
        parts = [np.asarray(tensors[key], np.float64) for key in sorted(tensors)] if isinstance(tensors, dict) else [_wide(tensors)]
        if self.together:
            return np.concatenate([part.ravel() for part in parts])[np.newaxis]
        return np.concatenate([part.reshape(len(part), -1) for part in parts], axis=1)

    def values(self, value: np.ndarray) -> np.ndarray:
        """The units' values, float64 [units]."""
        value = _wide(value)
        return np.sum(value * self.dy, keepdims=True) if self.together else value

    def describe(self, unit: int, coordinate: int) -> str:
        """A coordinate with its target and prediction, for a message."""
        entries = self.y_pred if isinstance(self.y_pred, dict) else {None: self.y_pred}
        for key in sorted(entries, key=str):
            array = entries[key]
            size = array.size if self.together else array[0].size
            if coordinate < size:
                break
            coordinate -= size
        shown = array if self.together else array[unit]
        index = [int(i) for i in np.unravel_index(coordinate, shown.shape)]
        name = "y_pred" if key is None else f"y_pred[{key!r}]"
        text = f"{name}{index} = {shown[tuple(index)]:.9g}"
        if self.y_true is None or isinstance(self.y_true, dict):
            return text
        y = self.y_true if self.together else self.y_true[unit]
        same = not self.together and np.shape(y) == shown.shape
        target = f"{y[tuple(index)]:.9g}" if same else np.array2string(np.asarray(y), threshold=8, precision=6).replace("\n", "")
        rest = "" if shown.size > 8 or shown.size == 1 else f", y_pred = {np.array2string(shown, precision=9).replace(chr(10), '')}"
        return f"{text}, y_true = {target}{rest}"


@dataclasses.dataclass(frozen=True)
class Truth:
    """Values [units] and gradients [units, coordinates], between `low` and `high` (which are one where it is smooth); NaN: unknown."""

    by: str  # the oracle
    value: np.ndarray
    low: np.ndarray
    high: np.ndarray
    # Condition numbers of a unit's value, [], and gradient, [coordinates]: what relative changes of the inputs do to them.
    condition: Callable[[int], tuple[float, np.ndarray]]


def truth(batch: Batch) -> Truth:
    """By 150 digits where the loss has a reference for what its gradient differentiates, else by its own float64."""
    if batch.loss.reference is None:
        return _float64(batch)
    exact = _by_digits(batch)
    if batch.loss.contract != "surrogate":
        return exact
    own = _float64(batch)  # the reference is the value's, and the gradient another function's
    return dataclasses.replace(own, value=exact.value)


def _by_digits(batch: Batch) -> Truth:
    units = [_Unit(*inputs) for inputs in _units(batch)]
    with mpmath.workdps(DIGITS):
        rows = [unit.derivatives() for unit in units]
    value, low, high = (np.array([row[i] for row in rows], np.float64) for i in range(3))
    return Truth(f"{DIGITS}-digit arithmetic", value, low, high, functools.cache(lambda i: units[i].condition()))


class _Unit:
    """A function of one flat list of numbers, the targets' and then the predictions'."""

    def __init__(self, function: Callable[[Any, Any], Any], y_true: Tensors, y_pred: Tensors):
        self._function = function
        self._targets, self._predictions = _Packed(y_true), _Packed(y_pred)

    def derivatives(self) -> tuple[float, list[float], list[float]]:
        """Value, and the lower and the higher of the one-sided slopes by every prediction."""
        x, n = [*self._targets.numbers, *self._predictions.numbers], len(self._targets.numbers)
        center = self._at(x)
        low, high = [], []
        for i in range(n, len(x)):
            left, right, noise = self._slopes(x, i, center)
            if noise > max(_LOST * max(abs(left), abs(right)), _NOTHING):
                left = right = mpmath.nan  # another term is so large that this one's digits are lost
            elif not abs(left - right) > _KINK * (abs(left) + abs(right)):
                left = right = (left + right) / 2
            low.append(float(min(left, right)))
            high.append(float(max(left, right)))
        return float(center), low, high

    def condition(self) -> tuple[float, np.ndarray]:
        with mpmath.workdps(DIGITS):
            x, n = [*self._targets.numbers, *self._predictions.numbers], len(self._targets.numbers)
            center = self._at(x)
            ahead = [self._moved(x, j, 1) for j in range(n, len(x))]
            slopes = [(self._at(a) - center) / (a[j + n] - x[j + n]) for j, a in enumerate(ahead)]
            of_value, of_slopes = mpmath.mpf(0), [mpmath.mpf(0) for _ in slopes]
            # A larger step than that of the slopes: their own error must not show in their change.
            for moved in self._changes(x):
                change = self._at(moved)
                moves_value = abs(change - center) / _CHANGE
                moves = []
                for j, slope in enumerate(slopes):
                    a = self._moved(moved, j + n, 1)
                    moves.append(abs((self._at(a) - change) / (a[j + n] - moved[j + n]) - slope) / _CHANGE)
                both = zip([of_value, *of_slopes], [moves_value, *moves], strict=True)
                of_value, *of_slopes = [sum(pair) if len(x) <= _FEW else max(pair) for pair in both]
            value_condition = float(of_value / abs(center)) if center else 0.0
            return value_condition, np.array([float(s / abs(g)) if g else 0.0 for s, g in zip(of_slopes, slopes, strict=True)])

    @staticmethod
    def _changes(x: list[Any]) -> Iterator[list[Any]]:
        """Inputs changed one at a time, whose effects add up; or all of many in random directions, of which the largest counts."""
        if len(x) <= _FEW:
            for i in range(len(x)):
                yield [v * (1 + _CHANGE * (i == j)) for j, v in enumerate(x)]
            return
        rng = np.random.default_rng(0)
        for _ in range(_FEW // 2):
            yield [v * (1 + _CHANGE * int(sign)) for v, sign in zip(x, rng.choice([-1, 1], len(x)), strict=True)]

    def _at(self, x: list[Any]) -> Any:
        n = len(self._targets.numbers)
        try:
            found = self._function(self._targets.unpacked(x[:n]), self._predictions.unpacked(x[n:]))
        except (ZeroDivisionError, ValueError, OverflowError):
            return mpmath.nan
        return mpmath.nan if isinstance(found, mpmath.mpc) else mpmath.mpf(found)

    @staticmethod
    def _moved(x: list[Any], i: int, way: int) -> list[Any]:
        moved = [*x]
        moved[i] = x[i] + way * _STEP * (abs(x[i]) or 1)
        return moved

    def _slopes(self, x: list[Any], i: int, center: Any) -> tuple[Any, Any, Any]:
        """The slopes to the left and to the right, and by how much rounding may move them."""
        ahead, behind = self._moved(x, i, 1), self._moved(x, i, -1)
        step = ahead[i] - x[i]
        noise = abs(center) * mpmath.mpf(10) ** (3 - DIGITS) / step
        return (center - self._at(behind)) / step, (self._at(ahead) - center) / step, noise


class _Packed:
    """Nested arrays, and their floating point numbers as one list of mpf; whole numbers of classes stay out of it."""

    def __init__(self, arrays: Tensors):
        self._arrays = arrays
        self.numbers = [mpmath.mpf(float(v)) for a in self._leaves() if not _is_whole(a) for v in np.ravel(a)]

    def _leaves(self) -> list[np.ndarray]:
        if self._arrays is None:
            return []
        return [self._arrays[key] for key in sorted(self._arrays)] if isinstance(self._arrays, dict) else [self._arrays]

    def unpacked(self, numbers: list[Any]) -> Any:
        """The structure with other numbers, as nested lists."""
        if self._arrays is None:
            return None
        rest = iter(numbers)
        lists = [_nested(a, rest) for a in self._leaves()]
        return dict(zip(sorted(self._arrays), lists, strict=True)) if isinstance(self._arrays, dict) else lists[0]


def _nested(array: np.ndarray, numbers: Iterator[Any]) -> Any:
    if np.ndim(array) == 0:
        return int(array) if _is_whole(array) else next(numbers)
    return [_nested(row, numbers) for row in array]


def _is_whole(array: np.ndarray) -> bool:
    return np.asarray(array).dtype.kind in "iu"


def _units(batch: Batch) -> Iterator[tuple[Callable[[Any, Any], Any], Tensors, Tensors]]:
    loss = batch.loss
    reference: Any = loss.reference
    if not batch.together:
        for i in range(len(batch.dy)):
            yield reference, _row(batch.y_true, i), _row(batch.y_pred, i)
        return
    weights = [mpmath.mpf(float(w)) for w in batch.dy]

    def total(y_true: Any, y_pred: Any) -> Any:
        if loss.coupled:
            values = reference(y_true, y_pred)
        else:
            values = [reference(_row(y_true, i), _row(y_pred, i, loss.shared)) for i in range(len(weights))]
        return mpmath.fsum(w * v for w, v in zip(weights, values, strict=True))

    yield total, batch.y_true, batch.y_pred


def _row(tensors: Any, i: int, shared: tuple[str, ...] = ()) -> Any:
    if tensors is None:
        return None
    if isinstance(tensors, dict):
        return {key: rows if key in shared else rows[i] for key, rows in tensors.items()}
    return tensors[i]


def _float64(batch: Batch) -> Truth:
    loss, mode = batch.loss, "analytic" if "analytic" in batch.loss.modes else "auto"

    def at(y_true: Tensors, y_pred: Tensors) -> tuple[np.ndarray, np.ndarray]:
        dy = batch.dy if batch.together else None
        value, gradient = evaluate(loss, mode, cast(y_true, tf.float64), cast(y_pred, tf.float64), dy)
        return batch.values(value), batch.flat(gradient)

    value, gradient = at(batch.y_true, batch.y_pred)
    low, high = gradient, gradient
    for way in (-1, 1):  # at a jump, such as a clip's edge that float32 can't hold, either side is right
        _, beside = at(batch.y_true, tf.nest.map_structure(functools.partial(np.multiply, 1 + way * 2.0**-23), batch.y_pred))
        with np.errstate(invalid="ignore"):
            jumps = np.abs(beside - gradient) > _JUMP * np.maximum(np.abs(beside), np.abs(gradient))
        low, high = np.where(jumps, np.minimum(low, beside), low), np.where(jumps, np.maximum(high, beside), high)
    spreads: list[tuple[np.ndarray, np.ndarray]] = []

    def condition(unit: int) -> tuple[float, np.ndarray]:
        if not spreads:
            spreads.append(_spread(batch, at, value, gradient))
        of_value, of_gradient = spreads[0]
        return float(of_value[unit]), of_gradient[unit]

    return Truth(OWN_FORMULA, value, low, high, condition)


def _spread(batch: Batch, at: Callable[..., tuple[np.ndarray, np.ndarray]], value: np.ndarray, gradient: np.ndarray) -> tuple:
    """Condition numbers by moving all inputs at once, up or down: the largest of 16 draws."""
    rng, change = np.random.default_rng(0), 2.0**-24
    of_value, of_gradient = np.zeros_like(value), np.zeros_like(gradient)

    def moved(array: np.ndarray) -> np.ndarray:
        return array if _is_whole(array) else array * (1 + change * rng.choice([-1, 1], np.shape(array)))

    with np.errstate(all="ignore"):
        for _ in range(16):
            targets = None if batch.y_true is None else tf.nest.map_structure(moved, batch.y_true)
            v, g = at(targets, tf.nest.map_structure(moved, batch.y_pred))
            of_value = np.fmax(of_value, np.abs(v / value - 1) / change)
            of_gradient = np.fmax(of_gradient, np.abs(g / gradient - 1) / change)
    return of_value, of_gradient


def _wide(array: Any) -> np.ndarray:
    return np.asarray(array).astype(np.float64)
