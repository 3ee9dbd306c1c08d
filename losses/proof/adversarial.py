"""Inputs that break formulas: edges of the domain, ties, zeros, saturation, nothing at all, NaN and infinity."""

import functools
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow as tf

from losses.base import Loss, Tensors, map_entries
from losses.proof.batches import draw, evaluated, narrowed, num_examples, sizes, spoiled, take
from losses.proof.evaluation import cast, evaluate
from losses.proof.finding import Finding
from losses.proof.judging import Check, Outcome, judge, outcome, unequal
from losses.proof.oracle import Batch, Truth, truth
from losses.proof.sampling import edges

_LARGEST = float(np.finfo(np.float32).max) / 16  # a mean sums before it divides
_SMALLEST = float(np.finfo(np.float32).tiny)
_COARSE = 1e-3  # of an example's size; how many ulp is asked elsewhere
_JUMP = 0.5  # relative change of a derivative by the last place of float32
_LAST = 64 * 2.0**-24  # times the condition number, where one is large
_MOST_CONDITIONS = 8  # that are worth their time

_Case = tuple[str, Batch, Truth]


def examine(loss: Loss, rng: np.random.Generator) -> list[Finding]:
    """Tries the loss at what breaks formulas.

    Args:
        loss: the loss.
        rng: of the samples.

    Returns:
        A finding for every check and mode.
    """
    batches = [(name, Batch(loss, y, p, np.ones(num_examples(loss, p)))) for name, y, p in _finite(loss, rng)]
    cases = [(name, batch, truth(batch)) for name, batch in batches]
    checks: dict[str, Check] = {
        "finite at edges, ties, zeros and saturation": functools.partial(_at_edges, cases=cases),
        "an empty batch": _empty,
        "a masked batch": _masked,
        "NaN is not swallowed": _nan,
        "infinite predictions": _infinite,
    }
    return judge(loss, "adversarial", checks, rng)


def _finite(loss: Loss, rng: np.random.Generator) -> Iterator[tuple[str, Tensors, Tensors]]:
    """Batches of finite inputs, exact in float32, by name."""
    for y_true, y_pred in edges(loss):
        yield "the domain's edges", narrowed(y_true), narrowed(y_pred)
    y_true, y_pred = draw(loss, rng, 4)
    yield "predictions of 0", y_true, tf.nest.map_structure(np.zeros_like, y_pred)
    yield "predictions of -0", y_true, tf.nest.map_structure(lambda p: -np.zeros_like(p), y_pred)
    yield "equal predictions in an example", y_true, tf.nest.map_structure(lambda p: 0 * p + p[..., :1], y_pred)
    yield "equal examples", y_true, map_entries(lambda key, p: p if key in loss.shared else 0 * p + p[:1], y_pred)
    if _like(y_true, y_pred):
        yield "predictions equal to the targets", y_true, y_true.copy()
    for scale in loss.magnitudes:
        yield f"the magnitude {scale:g}", *draw(loss, rng, 8, scale)


def _like(y_true: Tensors, y_pred: Tensors) -> bool:
    return (
        isinstance(y_true, np.ndarray) and isinstance(y_pred, np.ndarray) and (y_true.dtype, y_true.shape) == (y_pred.dtype, y_pred.shape)
    )


def _at_edges(loss: Loss, mode: str, rng: np.random.Generator, cases: list[_Case]) -> Outcome:
    for name, batch, known in cases:
        for dtype in (tf.float64, tf.float32):
            value, gradient = evaluate(loss, mode, cast(batch.y_true, dtype), cast(batch.y_pred, dtype), batch.dy)
            value, own = batch.values(value), batch.flat(gradient)
            missing = np.isnan(own) | np.isnan(value)[:, np.newaxis]
            if missing.any():
                unit, column = (int(i) for i in np.argwhere(missing)[0])
                found = f"value {value[unit]:.6g}, gradient {own[unit, column]:.6g}"
                return "fails", f"NaN for finite inputs, {name}, {dtype.name}: {found} at {batch.describe(unit, column)}"
            if dtype == tf.float32:
                problem = _against(batch, known, value, own, name, with_gradient=mode == "analytic" or loss.contract != "surrogate")
                if problem:
                    return "fails", problem
    return "holds", f"{len(cases)} batches against {', '.join(dict.fromkeys(known.by for _, _, known in cases))}"


def _against(batch: Batch, known: Truth, value: np.ndarray, own: np.ndarray, name: str, with_gradient: bool) -> str:
    """What is wrong with a float32 result, coarsely; empty where the truth is unknown or beyond float32."""
    with np.errstate(all="ignore"):
        expected = np.where(np.isfinite(known.value) & (np.abs(known.value) < _LARGEST), known.value, value)
        allowed = _COARSE * np.abs(expected) + _SMALLEST
        # Where the truth is 0 it has no condition number: what the predictions' last places may do counts.
        allowed += np.where(expected == 0, _LAST * np.abs(batch.flat(batch.y_pred)).max(axis=1, initial=0), 0)
        for unit in np.flatnonzero(np.abs(value - expected) > allowed)[:_MOST_CONDITIONS]:
            # To second order: a square near 0 is nothing else.
            allowed[unit] += ((1 + _LAST * known.condition(int(unit))[0]) ** 2 - 1) * np.abs(expected[unit])
        problem = unequal(value, expected, allowed, f"the value, {name}, example")
        if problem or not with_gradient:
            return problem
        size = np.maximum(sizes(known.low), sizes(known.high))
        fits = np.isfinite(known.low) & np.isfinite(known.high) & (size < _LARGEST)
        expected = np.where(fits, np.clip(own, known.low, known.high), own)
        allowed = (_COARSE * np.where(fits, size, 0) + _SMALLEST) * np.ones_like(own)
        for unit in np.flatnonzero((np.abs(own - expected) > allowed).any(axis=1))[:_MOST_CONDITIONS]:
            allowed[unit] += _LAST * np.nan_to_num(known.condition(int(unit))[1]) * np.abs(expected[unit])
            if (np.abs(own - expected)[unit] > allowed[unit]).any() and not batch.together:
                expected[unit] = _either_side(batch, int(unit), own[unit], expected[unit])
        return unequal(own, expected, allowed, f"the gradient, {name}, example and coordinate")


def _either_side(batch: Batch, unit: int, own: np.ndarray, expected: np.ndarray) -> np.ndarray:
    """What is expected of an example where float32 can't hold a jump's place, such as a clip's edge: either side is right there."""
    y_true, y_pred = take(batch.loss, batch.y_true, batch.y_pred, slice(unit, unit + 1))
    for way in (-1, 1):
        moved = tf.nest.map_structure(functools.partial(np.multiply, 1 + way * 2.0**-23), y_pred)
        beside = truth(Batch(batch.loss, y_true, moved, np.ones(1)))
        jumps = np.abs(beside.low[0] - expected) > _JUMP * np.maximum(np.abs(beside.low[0]), np.abs(expected))
        expected = np.where(jumps & (np.abs(own - beside.low[0]) <= _COARSE * np.abs(beside.low[0])), own, expected)
    return expected


def _empty(loss: Loss, mode: str, rng: np.random.Generator) -> Outcome:
    y_true, y_pred = draw(loss, rng, 4)
    y_true, y_pred = take(loss, y_true, y_pred, slice(0))
    for how in ("eager", "graph"):
        value, own, shared = evaluated(loss, mode, y_true, y_pred, tf.float32, how=how)
        if value.shape != (0,) or len(own):
            return "fails", f"{how}: of an empty batch the value has shape {value.shape}, the gradient {own.shape}"
        if shared.any():
            return "fails", f"{how}: the shared gradient of an empty batch is not 0 but up to {np.abs(shared).max():.6g}"
    return "holds", ""


def _masked(loss: Loss, mode: str, rng: np.random.Generator) -> Outcome:
    y_true, y_pred = draw(loss, rng)
    num = num_examples(loss, y_pred)
    keep = np.arange(num) % 3 != 0
    bad_p = spoiled(y_pred, ~keep, np.nan, loss.shared)
    bad_y = spoiled(y_true, ~keep, np.nan)
    bad_y = y_true if bad_y is None else bad_y
    value, own, shared = evaluated(loss, mode, bad_y, bad_p, mask=keep)
    alone_value, alone, alone_shared = evaluated(loss, mode, *take(loss, y_true, y_pred, keep))
    allowed = 1e-9 * (sizes(alone).max(initial=0) if loss.coupled else sizes(alone))
    none = evaluated(loss, mode, y_true, y_pred, mask=np.zeros(num, bool))
    what = "with NaN in the masked examples, against the others alone"
    return outcome(
        unequal(value[keep], alone_value, 1e-9 * np.abs(alone_value), f"the value {what}"),
        unequal(own[keep], alone, allowed, f"the gradient {what}"),
        unequal(shared, alone_shared, 1e-9 * sizes(alone_shared), f"the shared gradient {what}"),
        unequal(value[~keep], np.zeros_like(value[~keep]), 0, "the value of masked examples"),
        unequal(own[~keep], np.zeros_like(own[~keep]), 0, "the gradient of masked examples"),
        *(unequal(part, np.zeros_like(part), 0, "value or gradient where all is masked") for part in none),
    )


def _nan(loss: Loss, mode: str, rng: np.random.Generator) -> Outcome:
    y_true, y_pred = draw(loss, rng)
    cases: list[tuple[str, Tensors, Tensors]] = []
    for name, index in [("one number", (0,)), ("all numbers", (0, ...))]:
        for what, tensors in [("y_pred", y_pred), ("y_true", y_true)]:
            for key in sorted(tensors) if isinstance(tensors, dict) else [None]:
                array = None if tensors is None else tensors[key] if isinstance(tensors, dict) else tensors
                if array is None or array.dtype.kind != "f":
                    continue
                poisoned = _poisoned(tensors, key, index if name == "all numbers" else (0,) * array.ndim)
                where = f"{name} of {what}" + ("" if key is None else f"[{key!r}]")
                cases.append((where, poisoned if what == "y_true" else y_true, poisoned if what == "y_pred" else y_pred))
    for where, y, p in cases:
        value, own, shared = evaluated(loss, mode, y, p, tf.float32)
        if all(np.isfinite(part).all() for part in (value, own, shared)):
            return "fails", f"NaN in {where} is swallowed: value {value[0]:.6g}, gradient {own[0]}"
    return "holds", ""


def _poisoned(tensors: Tensors, key: str | None, index: Any) -> Tensors:
    def changed(other: str | None, array: np.ndarray) -> np.ndarray:
        array = array.copy()
        if other == key:
            array[index] = np.nan
        return array

    return map_entries(changed, tensors)


def _infinite(loss: Loss, mode: str, rng: np.random.Generator) -> Outcome:
    y_true, y_pred = draw(loss, rng)
    clean_value, clean, _ = evaluated(loss, mode, y_true, y_pred, tf.float32)
    problems, told = [], []
    for number in (np.inf, -np.inf):
        value, own, _ = evaluated(loss, mode, y_true, spoiled(y_pred, 0, number, loss.shared), tf.float32)
        told.append(f"{number}: value {value[0]:.6g}")
        if not loss.coupled:
            what = f"of the other examples, where the first's predictions are {number}"
            problems.append(unequal(value[1:], clean_value[1:], 1e-6 * np.abs(clean_value[1:]), f"the value {what}"))
            problems.append(unequal(own[1:], clean[1:], 1e-6 * sizes(clean[1:]), f"the gradient {what}"))
    verdict, message = outcome(*problems)
    return verdict, message or "; ".join(told)
