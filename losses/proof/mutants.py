"""The checker's own score: how many gradients, made wrong on purpose, it convicts."""

from collections.abc import Callable

import numpy as np
import tensorflow as tf

from losses.base import Loss, Tensors, entries, map_entries
from losses.proof import accuracy, adversarial, meaning, multiplier, structure
from losses.proof.batches import draw, evaluated, num_examples
from losses.proof.finding import Finding

Vjp = Callable[[tf.Tensor], Tensors]
# Gives a wrong vjp in place of the right one, from the loss, y_true, y_pred and the right vjp.
Wrong = Callable[[Loss, Tensors, Tensors, Vjp], Vjp]

_SHOWS = 1e-6  # relative difference from which on a mutant is one
_Section = Callable[[Loss, np.random.Generator], list[Finding]]
# In the order in which they are asked until one convicts.
_SECTIONS: dict[str, _Section] = {
    "contract": meaning.contract,
    "dy": multiplier.examine,
    "meaning": meaning.examine,
    "accuracy": lambda loss, rng: accuracy.examine(loss, rng, quick=True),
    "adversarial": adversarial.examine,
    "structure": structure.examine,
}


def examine(loss: Loss, rng: np.random.Generator) -> list[Finding]:
    """Plants every kind of error in a loss's gradient and lets the checker's sections find it.

    Args:
        loss: the loss.
        rng: of the samples.

    Returns:
        A finding for every mutant: "holds" where it is caught, "fails" where it passes for right, "excepted" where it is not wrong
        for this loss.
    """
    if "analytic" not in loss.modes:
        return []
    return [_examine(loss, name, wrong, rng) for name, wrong in _MUTANTS.items()]


def score(loss: Loss, rng: np.random.Generator) -> list[tuple[str, str | None]]:
    """The mutants that are wrong for this loss, each with the section that catches it, or None."""
    return [(finding.check, finding.data["caught_by"]) for finding in examine(loss, rng) if finding.verdict != "excepted"]


def plant(loss: Loss, wrong: Wrong) -> Loss:
    """The loss with a wrong gradient; it has no mode but "analytic", so that nothing else is looked at."""

    def value_and_vjp(self: Loss, y_true: Tensors, y_pred: Tensors, **mask: tf.Tensor) -> tuple[tf.Tensor, Vjp]:
        value, vjp = loss.value_and_vjp(y_true, y_pred, **mask)
        return value, wrong(loss, y_true, y_pred, vjp)

    kind = type(loss)
    attributes = {"value_and_vjp": value_and_vjp, "differentiable": False, "__module__": kind.__module__, "__qualname__": kind.__qualname__}
    mutant: Loss = object.__new__(type(kind.__name__, (kind,), attributes))
    mutant.__dict__.update(vars(loss))
    return mutant


def _examine(loss: Loss, name: str, wrong: Wrong, rng: np.random.Generator) -> Finding:
    mutant = plant(loss, wrong)
    try:
        if not _differs(loss, mutant, rng):
            return Finding("mutants", name, "excepted", "on this loss's domain it is no error", "analytic")
    except (TypeError, ValueError, tf.errors.OpError):
        return Finding("mutants", name, "excepted", "shapes don't allow it", "analytic")
    for section, check in _SECTIONS.items():
        for finding in check(mutant, rng):
            if finding.verdict == "fails":
                data = {"caught_by": section, "check": finding.check}
                return Finding("mutants", name, "holds", f"caught by {section}: {finding.message}", "analytic", data)
    return Finding("mutants", name, "fails", f"loss {loss.name}: this wrong gradient passes", "analytic", {"caught_by": None})


def _differs(loss: Loss, mutant: Loss, rng: np.random.Generator) -> bool:
    for scale in (1.0, 1e6):
        y_true, y_pred = draw(loss, rng, scale=scale)
        dy = rng.uniform(0.5, 2.0, num_examples(loss, y_pred)) * rng.choice([-1, 1], num_examples(loss, y_pred))
        for dtype in (tf.float64, tf.float32):
            right, found = (
                np.concatenate([p.ravel() for p in evaluated(each, "analytic", y_true, y_pred, dtype, dy=dy)[1:]])
                for each in (loss, mutant)
            )
            finite = np.isfinite(right)
            if np.linalg.norm(found[finite] - right[finite]) > _SHOWS * np.linalg.norm(right[finite]):
                return True
    return False


def _scaled(factor: Callable[[Loss, Tensors, tf.Tensor], tf.Tensor | float]) -> Wrong:
    """Every entry of the gradient times a factor of the loss, y_pred's entry and its gradient's."""

    def wrong(loss: Loss, y_true: Tensors, y_pred: Tensors, vjp: Vjp) -> Vjp:
        predictions = entries(y_pred)
        return lambda dy: map_entries(lambda key, g: g * tf.cast(factor(loss, key, predictions[key]), g.dtype), vjp(dy))

    return wrong


def _with_dy(change: Callable[[tf.Tensor], tf.Tensor]) -> Wrong:
    return lambda loss, y_true, y_pred, vjp: lambda dy: vjp(change(dy))


def _swapped(loss: Loss, y_true: Tensors, y_pred: Tensors, vjp: Vjp) -> Vjp:
    if y_true is None:
        return vjp
    if tf.is_tensor(y_true) and tf.is_tensor(y_pred) and y_true.dtype == y_pred.dtype and y_true.shape.rank == y_pred.shape.rank:
        return loss.value_and_vjp(y_pred, y_true)[1]
    # Where they are unlike, the next example's target stands for its own.
    return loss.value_and_vjp(tf.nest.map_structure(lambda y: tf.roll(y, 1, axis=0), y_true), y_pred)[1]


def _dropped_term(loss: Loss, y_true: Tensors, y_pred: Tensors, vjp: Vjp) -> Vjp:
    last = max(entries(y_pred), key=str)

    def without_last(key: str | None, g: tf.Tensor) -> tf.Tensor:
        is_last = tf.range(tf.shape(g)[-1]) == tf.shape(g)[-1] - 1
        return tf.where(is_last, tf.zeros_like(g), g) if key == last else g

    return lambda dy: map_entries(without_last, vjp(dy))


def _mean_of_batch(loss: Loss, y_true: Tensors, y_pred: Tensors, vjp: Vjp) -> Vjp:
    def repeated(key: str | None, g: tf.Tensor) -> tf.Tensor:
        return g if key in loss.shared else tf.zeros_like(g) + tf.reduce_mean(g, axis=0, keepdims=True)

    return lambda dy: map_entries(repeated, vjp(dy))


def _size_of_example(loss: Loss, key: str | None, p: tf.Tensor) -> float:
    return float(p.shape.num_elements() if key in loss.shared else p.shape[1:].num_elements())


def _in(dtype: tf.DType) -> Wrong:
    return _scaled(lambda loss, key, p: 2.0 if p.dtype == dtype else 1.0)


# Half precision is computed in float32 before a loss sees it: no gradient can be wrong there alone.
_MUTANTS: dict[str, Wrong] = {
    "dy dropped": _with_dy(tf.ones_like),
    "the first dy for all": _with_dy(lambda dy: tf.zeros_like(dy) + tf.reduce_sum(dy[:1])),
    "sign turned": _scaled(lambda loss, key, p: -1.0),
    "factor 2": _scaled(lambda loss, key, p: 2.0),
    "mean forgotten": _scaled(_size_of_example),
    "targets swapped": _swapped,
    "a term dropped": _dropped_term,
    "the batch's mean gradient for all": _mean_of_batch,
    "0.1% too large": _scaled(lambda loss, key, p: 1.001),
    "wrong only beyond 1e4": _scaled(lambda loss, key, p: tf.where(tf.abs(p) > 1e4, 2.0, 1.0)),
    "wrong only in float32": _in(tf.float32),
    "wrong only in float64": _in(tf.float64),
}
