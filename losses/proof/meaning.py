"""What a gradient means: its integral along a line is the difference of the values, and what the loss promises holds."""

from collections.abc import Callable

import numpy as np
import tensorflow as tf

from losses.base import Loss, Tensors
from losses.proof import start
from losses.proof.batches import along, direction, draw, evaluated, num_examples, units
from losses.proof.evaluation import cast
from losses.proof.finding import Finding
from losses.proof.judging import Check, Outcome, judge, outcome, unequal
from losses.proof.oracle import Batch
from losses.proof.second import hessian_times

_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(4)
_NUM_PANELS = 16
_NUM_ZOOMS = 5  # into the worst panel: a kink ends up in one small panel, a bend is resolved, a wrong gradient is wrong in all
_MOST_ZOOMS = 10  # where a bend is so steep that the panels' integrals still change as they are divided; float64 resolves no more
_LARGEST = 1e250  # a value whose products with gradients and displacements stay finite
_INTEGRAL = 1e-5  # of the integral of the gradient's magnitude; an error of 0.1% must show
_EPS = 2.0**-52
_SMALLEST = 1e-290  # what is below loses digits to the terms that TensorFlow flushes to 0
_EXACT = 1e-9  # of float64
_SHIFT = 0.75


def examine(loss: Loss, rng: np.random.Generator) -> list[Finding]:
    """Tests what the gradient and the value promise.

    Args:
        loss: the loss.
        rng: of the samples.

    Returns:
        A finding for every check and mode.
    """
    checks: dict[str, Check] = {"integral along lines": _integral, "symmetric second derivative": _symmetric}
    checks |= {f"promise: {name.replace('_', ' ')}": _PROMISES[name] for name in loss.invariants}
    return judge(loss, "meaning", checks, rng)


def contract(loss: Loss, rng: np.random.Generator) -> list[Finding]:
    """Compares the analytic gradient with differences of what its contract says that it differentiates, blame included."""
    if "analytic" not in loss.modes:
        return []
    findings = []
    for scale, dtype in _scales(loss).items():
        y_true, y_pred = draw(loss, rng, scale=scale)
        report = start.verify(loss, cast(y_true, dtype), cast(y_pred, dtype), seed=int(rng.integers(1 << 30)), how="graph")
        verdict = "fails" if not report.ok else "holds" if report.num_checked else "inconclusive"
        message = ". ".join(part for part in (report.message, report.auto_message) if part)
        if verdict == "inconclusive" and loss.reference is None:
            message += ". Give the loss a reference in mpmath, or magnitudes that differences can tell apart from rounding"
        data = {"max_error": report.max_error, "num_checked": report.num_checked, "num_inconclusive": report.num_inconclusive}
        check = f"{loss.contract}: differences at magnitude {scale:g}"
        findings.append(Finding("contract", check, verdict, message, "analytic", data))
    return findings


def _scales(loss: Loss) -> dict[float, tf.DType]:
    """Magnitudes of the predictions with the dtype that is looked at: more where differences are the only judge there is."""
    if loss.contract == "surrogate":
        scales = {1.0: tf.float32, 1e5: tf.float32}
    elif loss.reference is None:
        scales = {1.0: tf.float32, 1e5: tf.float64}
    else:
        return {1.0: tf.float32}
    # In float64: far out float32 may overflow, and is compared with float64 everywhere.
    smallest, largest = loss.magnitudes
    return scales | {scale: tf.float64 for scale in (1e-3, smallest, largest) if scale not in scales and smallest <= scale <= largest}


def _integral(loss: Loss, mode: str, rng: np.random.Generator) -> Outcome:
    if mode == "analytic" and loss.contract == "surrogate":
        return "excepted", "its gradient is deliberately not the value's derivative; differences of its surrogate judge it"
    num_checked = num_kinked = 0
    for scale in sorted({1.0, min(loss.magnitudes[1], 1e5)}):
        y_true, y_pred = draw(loss, rng, scale=scale)
        other = draw(loss, rng, scale=scale)[1]
        for fraction in (1.0, 2.0**-8):  # far, and so near that most lines meet no kink
            batch = units(loss, rng, y_true, y_pred)
            displacement = tf.nest.map_structure(lambda p, q, f=fraction: f * (q - p), y_pred, other)
            holds, wrong, message = _follow(batch, mode, displacement)
            if wrong.any():
                return "fails", f"the gradient's integral along a line is not the difference of the values{message}"
            num_checked += int(holds.sum())
            num_kinked += int((~holds).sum())
    message = f"{num_checked} lines" + (f"; {num_kinked} with kinks or lost in rounding" if num_kinked else "")
    return ("holds" if num_checked else "inconclusive"), message


def _follow(batch: Batch, mode: str, displacement: Tensors) -> tuple[np.ndarray, np.ndarray, str]:
    """Which units' lines hold, which are wrong, and the worst of these."""
    num = 1 if batch.together else num_examples(batch.loss, batch.y_pred)
    start_, width = np.zeros(num), np.ones(num)
    holds, whole = None, np.full(num, np.nan)
    for zoom in range(1, _MOST_ZOOMS + 1):
        integral, difference, allowed = _panels(batch, mode, displacement, start_, width)
        known = np.isfinite(difference)
        with np.errstate(invalid="ignore"):
            off = np.abs(integral - difference) - allowed
        off = np.where(known & ~np.isfinite(integral), np.inf, np.where(known, off, -np.inf))
        bad = off > 0
        if holds is None:
            holds = ~bad.any(axis=0) & known.all(axis=0)
        wrong = bad.sum(axis=0) > _NUM_PANELS // 2
        with np.errstate(invalid="ignore"):  # a panel may be infinite
            settled = np.abs(integral.sum(axis=0) - whole) <= allowed.sum(axis=0)  # as the panel that they are parts of
        worst = np.argmax(np.where(bad, off, -np.inf), axis=0)
        if not bad.any() or (zoom >= _NUM_ZOOMS and ((wrong & settled).any() or not wrong.any())):
            break
        whole = integral[worst, np.arange(num)]
        width = width / _NUM_PANELS
        start_ = start_ + worst * width
    message = ""
    if wrong.any():
        unit = int(np.argmax(wrong * (1 + settled)))
        panel = worst[unit]
        message = (
            f": {integral[panel, unit]:.9g} instead of {difference[panel, unit]:.9g}, from {start_[unit]:.6g} to "
            f"{start_[unit] + width[unit]:.6g} of the way at {batch.describe(unit, 0)}"
        )
    assert holds is not None
    return holds & ~wrong, wrong, message


def _panels(
    batch: Batch, mode: str, displacement: Tensors, start_: np.ndarray, width: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of every panel and unit the gradient's integral, the difference of the values, and by how much they may part."""
    borders = start_ + width * np.arange(_NUM_PANELS + 1)[:, np.newaxis] / _NUM_PANELS  # [panels + 1, units]
    half = width / _NUM_PANELS / 2
    nodes = (borders[:-1] + half)[:, np.newaxis] + half * _NODES[:, np.newaxis]  # [panels, nodes, units]
    flat = nodes.reshape(-1, len(start_))
    values, gradients = along(batch, mode, displacement, np.concatenate([borders, flat]))
    with np.errstate(all="ignore"):
        values, gradients = values[: len(borders)], gradients[len(borders) :]
        products = gradients * batch.flat(displacement)  # [panels * nodes, units, coordinates]
        weights = half * _WEIGHTS[:, np.newaxis]

        def integrated(slopes: np.ndarray) -> np.ndarray:
            return (slopes.reshape(nodes.shape) * weights).sum(axis=1)

        integral, magnitude = integrated(products.sum(axis=-1)), integrated(np.abs(products).sum(axis=-1))
        # A border is known to a last place of the predictions only; the gradient tells what that does to the value.
        rounding = (np.abs(gradients) * np.abs(batch.flat(batch.y_pred))).sum(axis=-1).reshape(nodes.shape).max(axis=1)
        noise = 64 * _EPS * (np.abs(values[1:]) + np.abs(values[:-1]) + rounding)
        fits = np.maximum(np.abs(values[1:]), np.abs(values[:-1])) < _LARGEST
        return integral, np.where(fits, np.diff(values, axis=0), np.nan), _INTEGRAL * magnitude + noise + _SMALLEST


def _symmetric(loss: Loss, mode: str, rng: np.random.Generator) -> Outcome:
    if loss.second_order == "refuse":
        return "excepted", "it has no second derivative, by declaration"
    if mode == "analytic" and loss.contract == "surrogate":
        return "excepted", "its gradient is deliberately no function's derivative everywhere"
    batch = units(loss, rng, *draw(loss, rng))
    first, second = direction(batch, rng), direction(batch, rng)
    a, b = (batch.flat(d) for d in (first, second))
    ha, hb = (hessian_times(batch, mode, d) for d in (first, second))
    size = np.abs(ha * b).sum(axis=1) + np.abs(hb * a).sum(axis=1)
    return outcome(unequal((ha * b).sum(axis=1), (hb * a).sum(axis=1), 1e-7 * size, "the second derivative along b after a and a after b"))


def _translated(loss: Loss, mode: str, rng: np.random.Generator, *, joint: bool) -> Outcome:
    y_true, y_pred = draw(loss, rng)
    value, own, _ = evaluated(loss, mode, y_true, y_pred)
    targets = y_true if not joint or y_true is None else tf.nest.map_structure(lambda y: y + _SHIFT, y_true)
    moved_value, moved, _ = evaluated(loss, mode, targets, tf.nest.map_structure(lambda p: p + _SHIFT, y_pred))
    axis = None if loss.coupled else 1
    total = np.atleast_1d(np.abs(own).sum(axis=axis))
    problems = [unequal(moved_value, value, _EXACT * (np.abs(value) + total), "the value after a number is added")]
    if joint:
        problems.append(unequal(moved, own, 1e-6 * total[:, np.newaxis], "the gradient after a number is added"))
    else:
        problems.append(unequal(np.atleast_1d(own.sum(axis=axis)), np.zeros_like(total), _EXACT * total, "the sum of the gradient"))
    return outcome(*problems)


def _homogeneous(loss: Loss, mode: str, rng: np.random.Generator, *, degree: int) -> Outcome:
    y_true, y_pred = draw(loss, rng)
    value, own, shared = evaluated(loss, mode, y_true, y_pred)
    problems = []
    for a in (4.0, 3.0):
        targets = None if y_true is None else tf.nest.map_structure(lambda t, a=a: a * t, y_true)
        found, found_own, found_shared = evaluated(loss, mode, targets, tf.nest.map_structure(lambda t, a=a: a * t, y_pred))
        what = f"after predictions and targets times {a:g}"
        for name, x, y in [("value", found, a * value), ("gradient", found_own, own), ("shared gradient", found_shared, shared)]:
            expected = a ** (degree - 1) * y
            problems.append(unequal(x, expected, 1e-9 * np.abs(expected).max(initial=0), f"the {name} {what}"))
    return outcome(*problems)


def _convex(loss: Loss, mode: str, rng: np.random.Generator) -> Outcome:
    y_true, y_pred = draw(loss, rng)
    batch = Batch(loss, y_true, y_pred, np.ones(num_examples(loss, y_pred)))
    displacement = tf.nest.map_structure(lambda p, q: q - p, y_pred, draw(loss, rng)[1])
    t = np.linspace(0, 1, 9)[:, np.newaxis] * np.ones(1 if batch.together else len(batch.dy))
    values, gradients = along(batch, mode, displacement, t)
    slopes = (gradients * batch.flat(displacement)).sum(axis=-1)
    allowed = _EXACT * (np.abs(values).max(axis=0) + np.abs(gradients * batch.flat(displacement)).sum(axis=-1).max(axis=0))
    sag = values[1:-1] - (values[2:] + values[:-2]) / 2
    return outcome(
        unequal(np.maximum(sag, 0), np.zeros_like(sag), allowed, "by how much a value lies above the chord of its neighbors"),
        unequal(np.maximum(-np.diff(slopes, axis=0), 0), np.zeros_like(slopes[1:]), allowed, "by how much the slope falls along a line"),
    )


def _non_negative(loss: Loss, mode: str, rng: np.random.Generator) -> Outcome:
    problems = []
    for scale in (loss.magnitudes[0], 1e-3, 1.0, loss.magnitudes[1]):
        for dtype in (tf.float64, tf.float32):
            value, _, _ = evaluated(loss, mode, *draw(loss, rng, scale=scale), dtype)
            what = f"by how much a value is negative, {dtype.name}, at the magnitude {scale:g}"
            problems.append(unequal(np.minimum(value, 0), np.zeros_like(value), 0, what))
    return outcome(*problems)


_PROMISES: dict[str, Callable[..., Outcome]] = {
    "translation": lambda *a: _translated(*a, joint=False),
    "joint_translation": lambda *a: _translated(*a, joint=True),
    "homogeneous_1": lambda *a: _homogeneous(*a, degree=1),
    "homogeneous_2": lambda *a: _homogeneous(*a, degree=2),
    "convex": _convex,
    "non_negative": _non_negative,
}
