"""Batches in NumPy, whatever their structure: drawn, cut, evaluated, laid flat, and followed along lines."""

from typing import Any

import numpy as np
import tensorflow as tf

from losses.base import Loss, Tensors, entries, map_entries
from losses.proof.evaluation import cast, evaluate
from losses.proof.oracle import Batch
from losses.proof.sampling import sample

NUM = 16  # examples


def draw(loss: Loss, rng: np.random.Generator, num: int = NUM, scale: float = 1.0) -> tuple[Tensors, Tensors]:
    """Sampled targets and predictions, float64 and exact in float32, so that every precision gets the same ones."""
    low, high = loss.magnitudes
    # What is drawn is up to 10 ** 0.5 times smaller or larger.
    y_true, y_pred = sample(loss, rng, num, min(max(scale, low * 10**0.5), high / 10**0.5))
    return narrowed(y_true), narrowed(y_pred)


def narrowed(tensors: Tensors) -> Tensors:
    """The same, rounded to what float32 holds."""
    if tensors is None:
        return None
    with np.errstate(over="ignore"):
        return tf.nest.map_structure(lambda a: a if a.dtype.kind in "iub" else a.astype(np.float32).astype(np.float64), tensors)


def num_examples(loss: Loss, y_pred: Tensors) -> int:
    """The batch size."""
    return next(len(p) for key, p in entries(y_pred).items() if key not in loss.shared)


def take(loss: Loss, y_true: Tensors, y_pred: Tensors, rows: Any) -> tuple[Tensors, Tensors]:
    """Some of the examples."""
    chosen = None if y_true is None else tf.nest.map_structure(lambda y: y[rows], y_true)
    return chosen, map_entries(lambda key, p: p if key in loss.shared else p[rows], y_pred)


def spoiled(tensors: Tensors, rows: Any, number: float, shared: tuple[str, ...] = ()) -> Tensors:
    """Some examples' floating point numbers, in all entries that are not shared, replaced by one; None where there are none."""
    if tensors is None or all(np.asarray(a).dtype.kind in "iub" for a in entries(tensors).values()):
        return None

    def replaced(key: str | None, array: np.ndarray) -> np.ndarray:
        array = array.copy()
        if key not in shared and array.dtype.kind == "f":
            array[rows] = number
        return array

    return map_entries(replaced, tensors)


def evaluated(
    loss: Loss, mode: str, y_true: Tensors, y_pred: Tensors, dtype: tf.DType = tf.float64, **options: Any
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Value [batch], the examples' own part of the gradient [batch, numbers] and the shared part [numbers], all as float64."""
    value, gradient = evaluate(loss, mode, cast(y_true, dtype), cast(y_pred, dtype), **options)
    parts = {key: g.astype(np.float64) for key, g in entries(gradient).items()}
    own = [g.reshape(len(g), int(np.prod(g.shape[1:]))) for key, g in parts.items() if key not in loss.shared]
    shared = [g.ravel() for key, g in parts.items() if key in loss.shared]
    return value.astype(np.float64), np.concatenate(own, axis=1), np.concatenate([np.zeros(0), *shared])


def sizes(rows: np.ndarray) -> np.ndarray:
    """The largest magnitude in each row, kept as an axis."""
    return np.max(np.abs(rows), axis=-1, keepdims=True, initial=0.0)


def units(loss: Loss, rng: np.random.Generator, y_true: Tensors, y_pred: Tensors) -> Batch:
    """What can be looked at alone: the examples, or a batch of them weighted at random where they hang together."""
    num = num_examples(loss, y_pred)
    together = loss.coupled or bool(loss.shared)
    dy = rng.uniform(0.5, 1.5, num) * rng.choice([-1.0, 1.0], num) if together else np.ones(num)
    return Batch(loss, y_true, y_pred, dy)


def direction(batch: Batch, rng: np.random.Generator) -> Tensors:
    """A random displacement, every coordinate by about its example's size."""
    largest = max(float(np.max(np.abs(p), initial=0.0)) for p in entries(batch.y_pred).values())

    def drawn(p: np.ndarray) -> np.ndarray:
        size = np.max(np.abs(p), axis=tuple(range(1, p.ndim)), keepdims=True) if p.ndim > 1 else np.abs(p)
        return rng.uniform(0.5, 1.0, p.shape) * rng.choice([-1.0, 1.0], p.shape) * np.where(size, size, largest or 1.0)

    return tf.nest.map_structure(drawn, batch.y_pred)


def along(batch: Batch, mode: str, displacement: Tensors, t: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Values [k, units] and gradients [k, units, coordinates] at y_pred + t * displacement, for t [k, units], in float64."""
    loss = batch.loss
    if batch.together:
        found = []
        for step in t[:, 0]:
            p = tf.nest.map_structure(lambda p, d, step=step: p + step * d, batch.y_pred, displacement)
            value, gradient = evaluate(loss, mode, cast(batch.y_true, tf.float64), cast(p, tf.float64), batch.dy)
            found.append((batch.values(value), batch.flat(gradient)))
        return np.stack([value for value, _ in found]), np.stack([gradient for _, gradient in found])

    def moved(p: np.ndarray, d: np.ndarray) -> np.ndarray:
        return (p + t.reshape(*t.shape, *[1] * (p.ndim - 1)) * d).reshape(-1, *p.shape[1:])

    y_true = None if batch.y_true is None else tf.nest.map_structure(lambda y: np.concatenate([y] * len(t)), batch.y_true)
    y_pred = tf.nest.map_structure(moved, batch.y_pred, displacement)
    value, gradient = evaluate(loss, mode, cast(y_true, tf.float64), cast(y_pred, tf.float64))
    return value.reshape(t.shape), batch.flat(gradient).reshape(*t.shape, -1)
