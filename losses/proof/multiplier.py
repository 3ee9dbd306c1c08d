"""The incoming `dy`: every example's gradient is multiplied by its own, exactly, and nothing passes from one example to another."""

import numpy as np
import tensorflow as tf

from losses.base import Loss
from losses.proof.batches import draw, evaluated, num_examples, sizes, spoiled, take
from losses.proof.finding import Finding
from losses.proof.judging import Outcome, judge, outcome, unequal

_ROUNDING = {tf.float64: 1e-9, tf.float32: 1e-4}  # of an example's largest entry: sums in another order
_NORMAL = 1e-30  # below, scaling by a power of two may round


def examine(loss: Loss, rng: np.random.Generator) -> list[Finding]:
    """Tests how the gradient depends on `dy`.

    Args:
        loss: the loss.
        rng: of the samples.

    Returns:
        A finding for every check and mode.
    """
    checks = {
        "a dy of its own for every example": _own,
        "dy of 0 gives exactly 0": _zero,
        "additive in dy": _additive,
        "exact in powers of two": _homogeneous,
        "no leak between examples": _leak,
    }
    return judge(loss, "dy", checks, rng)


def _own(loss: Loss, mode: str, rng: np.random.Generator) -> Outcome:
    if loss.coupled:
        return "excepted", "its examples hang together, by declaration: dy is tested as additive, and against differences"
    y_true, y_pred = draw(loss, rng)
    dy = _weights(rng, num_examples(loss, y_pred))
    for dtype, rounding in _ROUNDING.items():
        _, ones, _ = evaluated(loss, mode, y_true, y_pred, dtype)
        _, found, found_shared = evaluated(loss, mode, y_true, y_pred, dtype, dy=dy)
        expected = dy[:, np.newaxis] * ones
        problem = unequal(
            found, expected, rounding * sizes(expected), f"the gradient for a dy that differs from example to example, {dtype.name}"
        )
        if not problem and loss.shared:
            # A batch of copies of one example: as many times its part.
            copies = (take(loss, y_true, y_pred, np.full(len(dy), i)) for i in range(len(dy)))
            alone = np.stack([evaluated(loss, mode, *batch, dtype)[2] / len(dy) for batch in copies])
            terms = dy[:, np.newaxis] * alone
            what = f"the shared gradient against the sum of dy times that of every example alone, {dtype.name}"
            problem = unequal(found_shared, terms.sum(axis=0), rounding * np.abs(terms).sum(axis=0).max(), what)
        if problem:
            return "fails", problem
    return "holds", ""


def _zero(loss: Loss, mode: str, rng: np.random.Generator) -> Outcome:
    told = ""
    for scale in (1.0, loss.magnitudes[1], 1e30):
        y_true, y_pred = draw(loss, rng, scale=scale) if scale <= loss.magnitudes[1] else _beyond(loss, rng, scale)
        dy = _weights(rng, num_examples(loss, y_pred))
        dy[::2] = 0
        if loss.coupled:
            dy[:] = 0
        _, some, _ = evaluated(loss, mode, y_true, y_pred, tf.float32, dy=dy)
        _, none, shared = evaluated(loss, mode, y_true, y_pred, tf.float32, dy=0 * dy)
        where = f" at the magnitude {scale:g}"
        problems = [
            unequal(some[dy == 0], np.zeros_like(some[dy == 0]), 0, f"the gradient of examples whose dy is 0{where}"),
            unequal(none, np.zeros_like(none), 0, f"the gradient where every dy is 0{where}"),
            unequal(shared, np.zeros_like(shared), 0, f"the shared gradient where every dy is 0{where}"),
        ]
        if any(problems) and scale > loss.magnitudes[1]:
            told = f"beyond the magnitudes that it answers for: {outcome(*problems)[1]}"
        elif any(problems):
            return outcome(*problems)
    return ("excepted", told) if told else ("holds", "")


def _additive(loss: Loss, mode: str, rng: np.random.Generator) -> Outcome:
    y_true, y_pred = draw(loss, rng)
    num = num_examples(loss, y_pred)
    first, second = _weights(rng, num), _weights(rng, num)
    for dtype, rounding in _ROUNDING.items():
        (_, a, a_shared), (_, b, b_shared), (_, both, both_shared) = (
            evaluated(loss, mode, y_true, y_pred, dtype, dy=dy) for dy in (first, second, first + second)
        )
        size = sizes(a) + sizes(b)
        problem = outcome(
            unequal(both, a + b, rounding * (size.max() if loss.coupled else size), f"the gradient for a sum of two dy, {dtype.name}"),
            unequal(
                both_shared,
                a_shared + b_shared,
                rounding * (sizes(a_shared) + sizes(b_shared)),
                f"the shared gradient for it, {dtype.name}",
            ),
        )
        if problem[0] == "fails":
            return problem
    return "holds", ""


def _homogeneous(loss: Loss, mode: str, rng: np.random.Generator) -> Outcome:
    y_true, y_pred = draw(loss, rng)
    dy = _weights(rng, num_examples(loss, y_pred))
    problems = []
    for dtype in _ROUNDING:
        _, *plain = evaluated(loss, mode, y_true, y_pred, dtype, dy=dy)
        for factor in (-1.0, 32.0, 0.125):
            _, *scaled = evaluated(loss, mode, y_true, y_pred, dtype, dy=factor * dy)
            what = f"the gradient for dy times {factor:g}, {dtype.name}"
            problems += [
                unequal(s, factor * p, np.where(np.abs(p) < _NORMAL, _NORMAL, 0), what) for s, p in zip(scaled, plain, strict=True)
            ]
    return outcome(*problems)


def _leak(loss: Loss, mode: str, rng: np.random.Generator) -> Outcome:
    if loss.coupled:
        return "excepted", "its examples hang together, by declaration"
    y_true, y_pred = draw(loss, rng)
    dy = _weights(rng, num_examples(loss, y_pred))
    value, own, _ = (part[1:] for part in evaluated(loss, mode, y_true, y_pred, tf.float32, dy=dy))
    poisoned_dy = np.where(np.arange(len(dy)) == 0, np.nan, dy)
    poisoned_y, poisoned_p = spoiled(y_true, 0, np.nan), spoiled(y_pred, 0, np.nan, loss.shared)
    cases = {"its dy": (y_true, y_pred, poisoned_dy), "its predictions": (y_true, poisoned_p, dy)}
    if poisoned_y is not None:
        cases["its targets"] = (poisoned_y, y_pred, dy)
    problems = []
    for what, (y, p, weights) in cases.items():
        found_value, found, _ = (part[1:] for part in evaluated(loss, mode, y, p, tf.float32, dy=weights))
        where = f"of the other examples, where {what} is NaN in the first"
        problems += [
            unequal(found_value, value, 1e-6 * np.abs(value), f"the value {where}"),
            unequal(found, own, 1e-6 * sizes(own), f"the gradient {where}"),
        ]
    verdict, message = outcome(*problems)
    return verdict, message or ("shared entries are excepted, by declaration" if loss.shared else "")


def _weights(rng: np.random.Generator, num: int) -> np.ndarray:
    """Random numbers of both signs, away from 0, exact in float32."""
    return (rng.uniform(0.5, 2.0, num) * rng.choice([-1, 1], num)).astype(np.float32).astype(np.float64)


def _beyond(loss: Loss, rng: np.random.Generator, scale: float) -> tuple:
    """Predictions of a larger magnitude than the loss answers for."""
    y_true, y_pred = draw(loss, rng)
    return y_true, tf.nest.map_structure(lambda p: p * scale, y_pred)
