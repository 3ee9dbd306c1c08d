"""How accurate value and gradient are over magnitudes and dtypes, in units in the last place (ulp), and who is wrong where."""

import dataclasses
import math
from typing import Any

import numpy as np
import tensorflow as tf

from losses.base import Loss, Tensors, entries
from losses.proof import differences
from losses.proof.evaluation import cast, evaluate
from losses.proof.finding import Finding
from losses.proof.oracle import OWN_FORMULA, Batch, Truth, truth
from losses.proof.sampling import sample

# Bits of precision, the largest number and the smallest normal one.
_FORMATS = {
    "float64": (53, float(np.finfo(np.float64).max), 2.0**-1022),
    "float32": (24, float(np.finfo(np.float32).max), 2.0**-126),
    "bfloat16": (8, 3.3895313892515355e38, 2.0**-126),
    "float16": (11, 65504.0, 2.0**-14),
}
# Judged are truths in float32's range, and of narrower dtypes in theirs, away from its ends by the number of elements that a mean sums.
_MARGIN = 16.0
_ULP = 8.0  # in float32
_STRUCTURED = 1e-5  # of an example's norm, in float32
_WIDE = 4096.0  # ulp in float64: 1e-12
_HALF = 2.0  # ulp of a result that was computed in float32 and rounded once
_MOST_CONDITIONS = 100  # of the worst errors
_MOST_DIFFERENCES = 24  # of the worst errors
_NEAR = 1e-6  # relative, of differences


@dataclasses.dataclass(frozen=True)
class _Inputs:
    """Batches over all magnitudes, and the truth about them."""

    batches: list[Batch]
    truths: list[Truth]
    exponents: np.ndarray  # [units], of the magnitudes; the units of all batches one after the other

    @property
    def by(self) -> str:
        return self.truths[0].by

    def place(self, unit: int) -> tuple[int, int]:
        """The batch of a unit, and its number there."""
        for k, known in enumerate(self.truths):
            if unit < len(known.value):
                return k, unit
            unit -= len(known.value)
        raise AssertionError

    def condition(self, unit: int, what: str, structured: bool) -> Any:
        """The condition number of a unit's value, or of its gradient's entries; of the gradient as a whole where it is structured."""
        k, i = self.place(unit)
        of_value, of_gradient = self.truths[k].condition(i)
        if what == "value":
            return np.array([of_value])
        if not structured:
            return of_gradient
        g = np.nan_to_num(self.truths[k].low[i])
        return np.array([_norm(of_gradient * np.abs(g)) / (_norm(g) or 1.0)])


@dataclasses.dataclass(frozen=True)
class _Errors:
    """Of every unit (rows) and entry (columns; one where the unit is looked at as a whole)."""

    ulp: np.ndarray  # NaN where the truth is unknown or no normal number of the dtype; infinite where only the truth is finite
    nan: np.ndarray
    inf: np.ndarray  # though the truth is not
    zero: np.ndarray  # though the truth is not

    @property
    def bad(self) -> np.ndarray:
        return self.nan | self.inf | self.zero


def examine(loss: Loss, rng: np.random.Generator, quick: bool = False) -> list[Finding]:
    """Maps the error of every mode, and of the usual formula, over magnitudes, and judges what trains.

    Args:
        loss: the loss.
        rng: of the samples.
        quick: only what trains, in float64 and float32, on fewer examples.

    Returns:
        A finding for the value and the gradient in every dtype and mode; its `data` is the map. Modes that don't train, and magnitudes
        that the loss does not answer for, never fail.
    """
    judged = "analytic" if "analytic" in loss.modes else "auto"
    modes = [judged] if quick else [*loss.modes, *(["usual"] if loss.usual is not None else [])]
    fine = _inputs(loss, rng, "float32", quick)
    found = _all(fine, ("float64", "float32"), modes)
    findings = [_judge(loss, fine, found, dtype, judged, "value", judged) for dtype in ("float64", "float32")]
    findings += [_judge(loss, fine, found, dtype, mode, "gradient", judged) for dtype, mode in found]
    if not quick:
        coarse = _inputs(loss, rng, "bfloat16", quick)
        found = _all(coarse, ("bfloat16", "float16"), [mode for mode in modes if mode != "usual"])
        findings += [_judge(loss, coarse, found, dtype, mode, "gradient", judged) for dtype, mode in found]
    return findings


def _inputs(loss: Loss, rng: np.random.Generator, dtype: str, quick: bool) -> _Inputs:
    together = loss.coupled or bool(loss.shared)
    costly = together or loss.structured or loss.sample is not None
    num = 4 if costly else 8
    step = 3 if costly else 1
    if dtype != "float32":
        num, step = num // 2, 2 * step
    elif quick:
        num, step = num // 2, 3 * step
    batches, exponents = [], []
    lowest, highest = (math.log10(limit) for limit in loss.magnitudes)
    for exponent in sorted({*map(float, range(-30, 31, step)), lowest, highest}):
        # What is drawn is up to 10 ** 0.5 times smaller or larger.
        inner = min(max(exponent, lowest + 0.5), highest - 0.5) if lowest <= exponent <= highest else exponent
        y_true, y_pred = (_rounded(tensors, dtype) for tensors in sample(loss, rng, num, 10.0**inner))
        batches.append((y_true, y_pred))
        exponents += [exponent] if together else [exponent] * num
    if not together:
        y_trues, y_preds = zip(*batches, strict=True)
        batches = [(_joined(y_trues), _joined(y_preds))]
    made = []
    for y_true, y_pred in batches:
        size = num if together else len(exponents)
        dy = rng.uniform(0.5, 1.5, size) * rng.choice([-1, 1], size) if together else np.ones(size)
        made.append(Batch(loss, y_true, y_pred, dy.astype(np.float32).astype(np.float64)))
    return _Inputs(made, [truth(batch) for batch in made], np.array(exponents))


def _joined(parts: tuple[Tensors, ...]) -> Tensors:
    return None if parts[0] is None else tf.nest.map_structure(lambda *arrays: np.concatenate(arrays), *parts)


def _rounded(tensors: Tensors, dtype: str) -> Tensors:
    if tensors is None:
        return None

    def rounded(array: np.ndarray) -> np.ndarray:
        return array if array.dtype.kind in "iu" else tf.cast(tf.cast(array, dtype), tf.float64).numpy()

    return tf.nest.map_structure(rounded, tensors)


def _all(inputs: _Inputs, dtypes: tuple[str, ...], modes: list[str]) -> dict[tuple[str, str], tuple[np.ndarray, np.ndarray]]:
    found = {}
    for dtype in dtypes:
        for mode in modes:
            try:
                found[dtype, mode] = _evaluate(inputs, dtype, mode)
            except (TypeError, ValueError, tf.errors.OpError):
                if mode != "usual":  # a formula as people write it may know float32 alone
                    raise
    return found


def _evaluate(inputs: _Inputs, dtype: str, mode: str) -> tuple[np.ndarray, np.ndarray]:
    """Values [units] and gradients [units, entries]."""
    values, gradients = [], []
    for batch in inputs.batches:
        targets = cast(batch.y_true, tf.float64 if dtype == "float64" else tf.float32)
        dy = batch.dy if batch.together else None
        value, gradient = evaluate(batch.loss, mode, targets, cast(batch.y_pred, tf.as_dtype(dtype)), dy)
        values.append(batch.values(value))
        gradients.append(batch.flat(gradient))
    return np.concatenate(values), np.concatenate(gradients)


def _representable(inputs: _Inputs, dtype: str) -> np.ndarray:
    """[units]: whether the dtype holds a unit's predictions exactly, as normal numbers."""
    _, largest, smallest = _FORMATS[dtype]
    rows = []
    for batch in inputs.batches:
        p = np.abs(batch.flat(batch.y_pred))
        rows.append(((p == 0) | ((p >= smallest) & (p <= largest))).all(axis=1))
    return np.concatenate(rows)


def _measure(found: np.ndarray, low: np.ndarray, high: np.ndarray, dtype: str, structured: bool) -> _Errors:
    """Errors of `found` [units, entries] against what lies between `low` and `high`."""
    bits = _FORMATS[dtype][0]
    largest, smallest = (end(limit, own) for end, limit, own in zip((min, max), _FORMATS["float32"][1:], _FORMATS[dtype][1:], strict=True))
    largest, smallest = largest / _MARGIN, smallest * _MARGIN
    size = np.maximum(np.abs(low), np.abs(high))
    known = np.isfinite(low) & np.isfinite(high)
    nan = known & np.isnan(found)
    inf = known & np.isinf(found) & (size <= largest)
    off = np.maximum(0, np.maximum(low - found, found - high))
    off = np.where(off > smallest, off, 0.0)  # parts of a sum that are no normal numbers are flushed to zero
    off = np.where(np.isfinite(found), off, np.inf)
    if structured:
        norm = _norm(np.where(known, size, 0))[:, np.newaxis]
        fits = known.all(axis=1, keepdims=True) & (norm >= smallest) & (norm <= largest)
        ulp = _norm(off)[:, np.newaxis] / norm * 2.0 ** (bits - 1)
        zero = fits & ~found.any(axis=1, keepdims=True) & ((low > smallest) | (high < -smallest)).any(axis=1, keepdims=True)
        nan, inf = (flag.any(axis=1, keepdims=True) for flag in (nan, inf))
    else:
        fits = known & (size >= smallest) & (size <= largest)
        ulp = off / 2.0 ** (np.floor(np.log2(np.where(fits, size, 1.0))) - bits + 1)
        zero = fits & (found == 0) & ((low > smallest) | (high < -smallest))
    return _Errors(np.where(fits, ulp, np.nan), nan, inf, zero)


def _judge(
    loss: Loss,
    inputs: _Inputs,
    found: dict[tuple[str, str], tuple[np.ndarray, np.ndarray]],
    dtype: str,
    mode: str,
    what: str,
    judged: str,
) -> Finding:
    with np.errstate(all="ignore"):
        truths = inputs.truths
        low, high = (
            (np.concatenate([t.value for t in truths])[:, np.newaxis],) * 2
            if what == "value"
            else (np.concatenate([t.low for t in truths]), np.concatenate([t.high for t in truths]))
        )
        values, gradients = found[dtype, mode]
        structured = loss.structured and what == "gradient"
        errors = _measure(values[:, np.newaxis] if what == "value" else gradients, low, high, dtype, structured)
        fits = _representable(inputs, dtype)[:, np.newaxis]
        errors = _Errors(np.where(fits, errors.ulp, np.nan), errors.nan & fits, errors.inf & fits, errors.zero & fits)
        limit = _limit(loss, dtype)
        smallest, largest = (math.log10(size) for size in loss.magnitudes)
        inside = ((inputs.exponents >= smallest) & (inputs.exponents <= largest))[:, np.newaxis]
        beyond, worst = _beyond(inputs, errors, limit, what, structured, inside)
    wrong = errors.bad | beyond
    data = _map(inputs.exponents, errors, inside) | {
        "dtype": dtype,
        "mode": mode,
        "what": what,
        "limit": limit,
        "oracle": inputs.by,
        "structured": structured,
        "worst": float(np.nanmax(np.where(inside, worst, 0.0), initial=0.0)),
    }
    unit = "of its norm's last place" if structured else "ulp"
    check = f"{what} in {dtype}"
    unknown = int((np.isnan(low) & inside).sum()) if inside.any() else 0
    if unknown > 0.5 * low[inside[:, 0]].size:
        verdict = "inconclusive" if mode == judged else "excepted"
        return Finding("accuracy", check, verdict, f"the truth is unknown at {unknown} of {low[inside[:, 0]].size}", mode, data)
    own = inputs.by == OWN_FORMULA and what == "gradient"
    if own and (dtype, mode) == ("float64", judged):
        return Finding("accuracy", check, "excepted", "it has no reference in mpmath: differences are its judge", mode, data)
    if not (wrong & inside).any():
        message = f"at most {data['worst']:.3g} {unit} beyond its condition, from {loss.magnitudes[0]:g} to {loss.magnitudes[1]:g}"
        if wrong.any():
            message += f"; outside, {_summary(wrong & ~inside, errors)}: {_describe(inputs, found, dtype, mode, what, wrong, errors)}"
        return Finding("accuracy", check, "holds", message, mode, data)
    # Two formulas part, or a formula and what the loss itself says is the truth: differences decide who is wrong.
    if what == "gradient" and dtype == "float64" and mode == ("auto" if own else judged):
        sided = _sided(inputs, gradients, wrong & inside & ~errors.bad, errors)
        if sided.any():
            accused = _named(judged) if own else "its reference, if not its value,"
            message = f"{accused} is wrong in {dtype}: differences side with {_named(mode)}. "
            message += _describe(inputs, found, dtype, mode, what, sided, errors)
            return Finding("accuracy", check, "fails", message, mode, data)
    who = "the value" if what == "value" else _named(mode)
    parts = f"parts from {inputs.by}" if own and mode != judged else "is wrong"
    message = f"{who} {parts} in {dtype}: {_summary(wrong & inside, errors)}. "
    message += _describe(inputs, found, dtype, mode, what, wrong & inside, errors)
    return Finding("accuracy", check, "fails" if mode == judged else "excepted", message, mode, data)


def _sided(inputs: _Inputs, gradients: np.ndarray, wrong: np.ndarray, errors: _Errors) -> np.ndarray:
    """Where differences side with `gradients`, which are counted as wrong, and against the loss's own formula; of the worst ones."""
    sided = np.zeros_like(wrong)
    if inputs.batches[0].together or inputs.batches[0].loss.contract == "surrogate":
        return sided
    places = np.argwhere(wrong)
    for row, column in places[np.argsort(-errors.ulp[wrong])][:_MOST_DIFFERENCES]:
        k, i = inputs.place(int(row))
        expected, found = inputs.truths[k].low[i], gradients[row]
        # Of a unit as a whole the worst entry.
        entry = int(column) if errors.ulp.shape[1] > 1 else int(np.nanargmax(np.abs(found - expected)))
        derivative, error = _difference(inputs.batches[k], i, entry)
        near = 10 * error + _NEAR * abs(derivative)
        sided[row, column] = abs(found[entry] - derivative) <= near < abs(expected[entry] - derivative)
    return sided


def _limit(loss: Loss, dtype: str) -> float:
    """Errors allowed, in ulp times (1 + the condition number)."""
    limit = {"float64": _WIDE, "float32": max(_ULP, loss.structured * _STRUCTURED * 2.0**23)}.get(dtype, _HALF)
    return max(limit, loss.relative_error * 2.0 ** (_FORMATS[dtype][0] - 1))


def _beyond(
    inputs: _Inputs, errors: _Errors, limit: float, what: str, structured: bool, inside: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Which errors exceed the limit times (1 + condition number), and all errors, the large ones divided by that: those inside first."""
    worst = np.nan_to_num(errors.ulp, nan=0.0, posinf=0.0)
    large = np.argwhere(worst > limit)
    order = np.lexsort((-worst[tuple(large.T)], ~inside[large[:, 0], 0]))
    for row, column in large[order][:_MOST_CONDITIONS]:
        condition = np.nan_to_num(inputs.condition(int(row), what, structured), nan=0.0)
        worst[row, column] /= 1 + condition[min(column, len(condition) - 1)]
    return worst > limit, worst


def _map(exponents: np.ndarray, errors: _Errors, inside: np.ndarray) -> dict[str, Any]:
    """By magnitude the largest error, its 99th percentile, and the shares of what is no number at all or a false one."""
    data: dict[str, Any] = {"exponents": [], "max": [], "p99": [], "nan": [], "inf": [], "zero": []}
    for exponent in np.unique(exponents):
        rows = exponents == exponent
        known = errors.ulp[rows][np.isfinite(errors.ulp[rows])]
        data["exponents"].append(round(float(exponent), 2))
        data["max"].append(float(known.max()) if known.size else None)
        data["p99"].append(float(np.quantile(known, 0.99)) if known.size else None)
        for name in ("nan", "inf", "zero"):
            data[name].append(float(getattr(errors, name)[rows].mean()))
    known = errors.ulp[inside & np.isfinite(errors.ulp)]
    data |= {"max_inside": float(known.max(initial=0.0)), "p99_inside": float(np.quantile(known, 0.99)) if known.size else 0.0}
    num = max(1, int(np.broadcast_to(inside, errors.nan.shape).sum()))
    kinds = {"nan": errors.nan, "inf": errors.inf, "zero": errors.zero, "bad": errors.bad}  # a unit as a whole can be of several
    return data | {f"{name}_share": float((flags & inside).sum() / num) for name, flags in kinds.items()}


def _summary(wrong: np.ndarray, errors: _Errors) -> str:
    kinds = {"NaN": errors.nan, "infinite": errors.inf, "zero": errors.zero, "inaccurate": ~errors.bad}
    counts = {name: int((wrong & flags).sum()) for name, flags in kinds.items()}
    return ", ".join(f"{count} {name}" for name, count in counts.items() if count) + f" of {wrong.size}"


def _describe(
    inputs: _Inputs,
    found: dict[tuple[str, str], tuple[np.ndarray, np.ndarray]],
    dtype: str,
    mode: str,
    what: str,
    wrong: np.ndarray,
    errors: _Errors,
) -> str:
    """The clearest of the wrong entries: the input there, and what every judge says."""
    size = np.where(errors.bad, np.inf, np.nan_to_num(errors.ulp, nan=0.0))
    # Of equally wrong ones that at the most ordinary magnitude.
    rank = np.where(wrong, size, -1.0)
    candidates = np.argwhere(rank == rank.max())
    row, column = candidates[np.argmin(np.abs(inputs.exponents[candidates[:, 0]]))]
    k, i = inputs.place(int(row))
    batch, known = inputs.batches[k], inputs.truths[k]
    if what == "gradient" and errors.ulp.shape[1] == 1:  # the unit as a whole: its worst entry stands for it
        with np.errstate(all="ignore"):
            column = int(np.argmax(np.nan_to_num(np.abs(found[dtype, mode][1][row] - known.low[i]), nan=np.inf)))

    def entry(values: tuple[np.ndarray, np.ndarray]) -> float:
        return float(values[0][row] if what == "value" else values[1][row, column])

    expected = known.value[i] if what == "value" else known.low[i, column]
    parts = [f"{_named(mode)} gives {entry(found[dtype, mode]):.9g}", f"{known.by} {expected:.9g}"]
    ulp = errors.ulp[row, column if errors.ulp.shape[1] > 1 else 0]
    if np.isfinite(ulp):
        parts[0] += f" ({ulp:.3g} ulp off)"
    parts += [f"{_named(other)} {entry(found[d, other]):.9g}" for d, other in found if d == dtype and other != mode]
    if what == "gradient" and not batch.together and batch.loss.contract != "surrogate":
        derivative, error = _difference(batch, i, int(column))
        parts.append(
            f"differences in float64 {derivative:.9g} +- {error:.1g}" if error < abs(derivative) else "differences are inconclusive"
        )
    return f"At {batch.describe(i, int(column) if what == 'gradient' else 0)}: {', '.join(parts)}"


def _difference(batch: Batch, unit: int, coordinate: int) -> tuple[float, float]:
    """The derivative of one example's value by one coordinate, by differences in float64, with its error."""
    predictions, mode = entries(batch.y_pred), "auto" if "auto" in batch.loss.modes else "analytic"
    key, column = None, coordinate
    for key in predictions:
        if column < predictions[key][unit].size:
            break
        column -= predictions[key][unit].size
    scale = abs(predictions[key][unit].ravel()[column]) or 1.0

    def line(t: np.ndarray) -> np.ndarray:
        def repeated(array: np.ndarray) -> np.ndarray:
            return np.repeat(array[unit : unit + 1], len(t), axis=0)

        targets = None if batch.y_true is None else tf.nest.map_structure(repeated, batch.y_true)
        moved = tf.nest.map_structure(repeated, batch.y_pred)
        entries(moved)[key].reshape(len(t), -1)[:, column] += t * scale
        return evaluate(batch.loss, mode, cast(targets, tf.float64), cast(moved, tf.float64))[0][:, np.newaxis]

    center = line(np.zeros(1))[0]
    derivative, error = differences.along(line, 4 * 2.0**-52 * np.abs(center))
    return float(derivative[0] / scale), float(error[0] / scale)


def _named(mode: str) -> str:
    return "the usual formula" if mode == "usual" else f"gradient={mode}"


def _norm(values: np.ndarray) -> np.ndarray:
    """Of the last axis, without overflow."""
    largest = np.max(np.abs(values), axis=-1, initial=0.0)
    scale = np.where((largest > 0) & np.isfinite(largest), largest, 1.0)
    return scale * np.sqrt(np.sum(np.square(values / scale[..., np.newaxis]), axis=-1))
