"""Whether a loss's own gradient is right: on one batch, against differences of its value in float64.

The analytic gradient passes through the adapter that trains (`per_example`), with a random `dy` that differs from example to
example, in the working dtype and in float64. It is compared with central differences of `value` (contracts exact and sub) or of
`surrogate` (contract surrogate): one output coordinate at a time, of all examples at once, and along random directions.
"""

import dataclasses

import ml_dtypes
import numpy as np
import tensorflow as tf

from losses.base import Loss, LossError, Tensors, entries, map_entries
from losses.modes import cast_target
from losses.proof import declarations
from losses.proof.evaluation import evaluate
from losses.proof.probes import Arrays, Function, Probes, probe

RELATIVE = 3e-4  # an error of 0.1% must show
RELATIVE_WORKING = 2e-3  # in the working dtype, where rounding adds up
NEGLIGIBLE = 1e-4  # of the largest derivative: an error of the working dtype alone that is smaller does no harm
STRUCTURED = 1e-5  # of the largest derivative: what losses that are accurate as a whole promise, those that iterate in float64 too


@dataclasses.dataclass(frozen=True)
class Report:
    """What a check found."""

    ok: bool
    message: str  # what was checked, or what is wrong, where, and both values
    auto_message: str = ""  # how gradient=auto compares; empty for a loss without it
    auto_agrees: bool = True  # with the differences; also for a loss without it
    max_error: float = 0.0  # the largest relative error of a derivative checked
    num_checked: int = 0  # derivatives
    num_inconclusive: int = 0  # derivatives that differences don't tell to 0.1%: at kinks, or where rounding hides them


def verify(loss: Loss, y_true: Tensors, y_pred: Tensors, seed: int = 0, how: str = "eager") -> Report:
    """Checks the analytic gradient of a loss on one batch.

    Args:
        loss: the loss.
        y_true: targets, as the loss takes them.
        y_pred: predictions, in the dtype that training uses.
        seed: of `dy`, the sampled coordinates and the directions.
        how: out of evaluation.WAYS; a graph is worth its tracing where more is asked of it.

    Returns:
        The report; `ok` is False for a wrong gradient, and for a loss that breaks its contract.
    """
    if "analytic" not in loss.modes:
        return Report(True, f"loss {loss.name} has no gradient of its own: nothing to check")
    try:
        declarations.check(loss)
        with np.errstate(over="ignore", invalid="ignore"):  # a wrong gradient may be anything
            return _verify(loss, y_true, y_pred, np.random.default_rng(seed), how)
    except LossError as error:
        return Report(False, str(error))


def _verify(loss: Loss, y_true: Tensors, y_pred: Tensors, rng: np.random.Generator, how: str) -> Report:
    y_pred = map_entries(lambda _, p: tf.convert_to_tensor(p), y_pred)
    first = next(p for key, p in entries(y_pred).items() if key not in loss.shared)
    working, compute = first.dtype, tf.float64 if first.dtype == tf.float64 else tf.float32
    if y_true is not None:
        y_true = map_entries(lambda _, y: cast_target(loss, tf.convert_to_tensor(y), compute), y_true)
    if not first.shape[0]:
        return Report(True, f"loss {loss.name}: an empty batch, nothing to check")
    dy = (rng.uniform(0.5, 1.5, first.shape[0]) * rng.choice([-1, 1], first.shape[0])).astype(np.float32)

    names = {mode: f"gradient={mode} in {working.name}" for mode in loss.modes}
    gradients = {names[mode]: _gradient(loss, mode, y_true, y_pred, dy, how) for mode in loss.modes}
    wide, exact, narrow = tf.float64, "gradient=analytic in float64", []
    try:
        function = Function(loss, _cast(y_true, wide), _cast(y_pred, wide))
        if function.is_narrow(rng):
            narrow.append("value is computed in float32 inside even when given float64")
    except (TypeError, ValueError, tf.errors.OpError) as error:
        narrow.append(f"{function.what} can't be evaluated in float64 ({' '.join(str(error).split())[:200]})")
    if narrow:
        function = Function(loss, _cast(y_true, compute), _cast(y_pred, compute), eps=2.0**-23)
    try:
        gradients[exact] = _gradient(loss, "analytic", _cast(y_true, wide), _cast(y_pred, wide), dy, how)
    except (TypeError, ValueError, tf.errors.OpError) as error:
        narrow.append(f"the gradient can't be evaluated in float64 ({' '.join(str(error).split())[:200]})")
        wide, exact = compute, names["analytic"]
    note = f". Only coarsely: {'; '.join(narrow)}; remove the casts to float32" if narrow else ""
    function.check_independence(rng)

    limits = ml_dtypes.finfo(working.as_numpy_dtype)
    rounding = _rounding(loss, _cast(y_true, wide), _cast(y_pred, wide), dy, float(limits.eps), rng, how)
    probes = probe(function, dy, gradients | {"rounding": rounding}, rng)
    floor = probes.found.pop("rounding") + NEGLIGIBLE * probes.largest + float(limits.smallest_normal)

    def wrong(name: str) -> np.ndarray:
        exact_floor = floor if narrow else (STRUCTURED if loss.structured else 1e-9) * probes.largest
        fine = (RELATIVE, exact_floor) if name == exact else (RELATIVE_WORKING, floor)
        return probes.wrong(name, *fine)

    checked = probes.error <= np.maximum(RELATIVE * np.abs(probes.expected), 1e-6 * probes.largest)
    size = np.maximum(np.abs(probes.expected), 1e-3 * probes.largest)
    off = np.abs(probes.found[exact] - probes.expected)[checked & (size > 0)] / size[checked & (size > 0)]
    max_error, num_checked = float(off.max(initial=0.0)), int(checked.sum())
    num_inconclusive = checked.size - num_checked

    auto_wrong = wrong(names["auto"]) if "auto" in names else np.zeros_like(checked)
    for name in dict.fromkeys([exact, names["analytic"]]):
        if wrong(name).any():
            where = _describe(probes, name, wrong(name), function)
            message = f"loss {loss.name}: the analytic gradient is wrong{_guess(probes, name, checked)}. {where}"
            if name != exact:
                message += ". In float64 the same formula is right: rewrite it so that it keeps its digits"
            auto = _compare_auto(loss, probes, names, auto_wrong, function, analytic_right=False)
            return Report(False, message + note, auto, not auto_wrong.any(), max_error, num_checked, num_inconclusive)
    message = f"loss {loss.name}: the analytic gradient agrees with differences of {function.what} at {num_checked} derivatives"
    message += f", largest relative error {max_error:.1e}" if num_checked else ", so that it is not proved"
    if num_inconclusive:
        message += f"; {num_inconclusive} lie at kinks or are lost in rounding, and none contradicts"
    auto = _compare_auto(loss, probes, names, auto_wrong, function, analytic_right=True)
    return Report(True, message + note, auto, not auto_wrong.any(), max_error, num_checked, num_inconclusive)


def _gradient(loss: Loss, mode: str, y_true: Tensors, y_pred: Tensors, dy: np.ndarray, how: str) -> Arrays:
    """The derivative of sum(dy * value), as training gets it; zeros where the tape finds no path."""
    _, gradient = evaluate(loss, mode, y_true, y_pred, dy, how)
    return {key: g.astype(np.float64) for key, g in entries(gradient).items()}


def _rounding(loss: Loss, y_true: Tensors, y_pred: Tensors, dy: np.ndarray, eps: float, rng: np.random.Generator, how: str) -> Arrays:
    """How far off the gradient may be: what a change of the inputs' last float32 digits changes in it, and its own rounding to `eps`."""
    change = 2.0**-16

    def moved(tensor: tf.Tensor) -> tf.Tensor:
        return tensor if tensor.dtype.is_integer else tensor * (1 + change * tf.cast(rng.choice([-1, 1], tensor.shape), tensor.dtype))

    center = _gradient(loss, "analytic", y_true, y_pred, dy, how)
    spread = {key: np.zeros_like(g) for key, g in center.items()}
    for _ in range(4):
        targets = None if y_true is None else tf.nest.map_structure(moved, y_true)
        for key, g in _gradient(loss, "analytic", targets, tf.nest.map_structure(moved, y_pred), dy, how).items():
            spread[key] = np.fmax(spread[key], np.abs(g - center[key]))
    return {key: 8 * 2.0**-23 / change * s + eps * np.abs(center[key]) for key, s in spread.items()}


def _guess(probes: Probes, name: str, checked: np.ndarray) -> str:
    """What kind of mistake it looks like."""
    clear = checked & (np.abs(probes.expected) > 1e-3 * probes.largest) & np.isfinite(probes.found[name])
    if clear.sum() < 2:
        return ""
    dy = np.broadcast_to(probes.dy if len(probes.examples) else 1.0, clear.shape)[clear]
    factors = probes.found[name][clear] / probes.expected[clear]

    def alike(numbers: np.ndarray) -> bool:
        return bool(np.ptp(numbers) <= 1e-3 * np.abs(np.median(numbers)))

    factor = float(np.median(factors))
    if alike(factors) and abs(factor - 1) > 5e-5:  # else what is wrong is elsewhere, at a NaN or where 0 is right
        return ": its sign is turned" if abs(factor + 1) < 1e-3 else f": it is {factor:.5g} times what it should be, everywhere"
    if np.ptp(dy) and alike(factors * dy):
        return ": it ignores dy, or all of dy but one example's; vjp(dy) must multiply every example's gradient by its own dy"
    return ""


def _describe(probes: Probes, name: str, wrong: np.ndarray, function: Function) -> str:
    """The clearest of the wrong derivatives: where it is, and both values."""
    off = np.abs(probes.found[name] - probes.expected) / np.maximum(np.abs(probes.expected), 1e-3 * probes.largest + 1e-300)
    off = np.where(np.isfinite(off), off, 1e300)
    coordinates = np.array([isinstance(place, tuple) for place in probes.places])[:, np.newaxis]
    candidates = wrong & coordinates if (wrong & coordinates).any() else wrong
    row, example = np.unravel_index(np.argmax(np.where(candidates, off, -1.0)), off.shape)
    expected, found = probes.expected[row, example], probes.found[name][row, example]
    place = function.place(probes.places[row], probes.examples[example]) if len(probes.examples) else probes.places[row]
    dy = f", dy={probes.dy[example]:.6g}" if len(probes.examples) else ""
    return f"At {place}{dy}: {name} gives {found:.9g}, differences of {function.what} give {expected:.9g}"


def _compare_auto(loss: Loss, probes: Probes, names: dict[str, str], wrong: np.ndarray, function: Function, *, analytic_right: bool) -> str:
    if "auto" not in names:
        return ""
    if not wrong.any():
        return f"loss {loss.name}: gradient=auto agrees with the same differences"
    where = _describe(probes, names["auto"], wrong, function)
    if loss.contract == "surrogate":
        differs = f"gradient=auto is another gradient, as the contract surrogate says, at {wrong.sum()} of {wrong.size}"
        return f"loss {loss.name}: {differs}. {where}"
    blame = "the analytic gradient is right, gradient=auto is wrong" if analytic_right else "gradient=auto is wrong too"
    return f"loss {loss.name}: {blame} at {wrong.sum()} of {wrong.size}. {where}"


def _cast(tensors: Tensors, dtype: tf.DType) -> Tensors:
    if tensors is None:
        return None
    return tf.nest.map_structure(lambda t: t if t.dtype.is_integer else tf.cast(t, dtype), tensors)
