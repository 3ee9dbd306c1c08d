"""What targets can be, and what they must hold. Imports no TensorFlow."""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np


@dataclasses.dataclass(frozen=True)
class Kind:
    """One kind of target.

    Args:
        axes: of one example's target.
        bad: entries that it can't have, of targets [n, *axes]; bool, shaped alike.
        why: what is wrong with these.
        infinite: whether infinite entries are allowed.
        measured: whether it has a unit, so that it can be standardized: channel by channel, or as a whole where `infinite`.
    """

    axes: tuple[str, ...]
    bad: Callable[[np.ndarray], np.ndarray] | None = None
    why: str = ""
    infinite: bool = False
    measured: bool = False


def _not_binary(y: np.ndarray) -> np.ndarray:
    return (y != 0) & (y != 1)


def _crossed(y: np.ndarray) -> np.ndarray:
    return np.repeat(~(y[:, :1] < y[:, 1:]), 2, axis=1)


def _no_survival(y: np.ndarray) -> np.ndarray:
    return np.stack([y[:, 0] < 0, _not_binary(y[:, 1])], axis=1)


def _outside_ball(y: np.ndarray) -> np.ndarray:
    return np.broadcast_to((np.linalg.norm(y.astype(np.float32), axis=1, keepdims=True) >= 1), y.shape)


# As in losses.base.TARGETS. Classes, labels and none are checked by `Examples`: they are not float arrays.
KINDS = {
    "real": Kind(("dim",), measured=True),
    "binary": Kind(("dim",), lambda y: (y < 0) | (y > 1), "is not between 0 and 1"),
    "counts": Kind(("dim",), lambda y: (y < 0) | (y != np.floor(y)), "is no count (0, 1, 2, ...)"),
    "classes": Kind(()),
    "class_weights": Kind(("classes",), lambda y: y < 0, "is negative"),
    "logits": Kind(("classes",)),
    "preference": Kind((), _not_binary, "is neither 0 nor 1"),
    "same": Kind((), _not_binary, "is neither 0 nor 1"),
    "interval": Kind(("edges",), _crossed, "is of an interval whose lower edge is not below the upper one", infinite=True, measured=True),
    "survival": Kind(("time and event",), _no_survival, "is no time >= 0, or no event (0 or 1)"),
    "relevance": Kind(("items",)),
    "ball": Kind(("dim",), _outside_ball, "is of a point outside the unit ball"),
    "points": Kind(("points", "dim")),
    "series": Kind(("time", "dim"), measured=True),
    "labels": Kind(()),
    "none": Kind(()),
}

# What a loss may want, best first, where that is not the source's own kind alone.
_FITS = {"classes": ("classes", "binary", "real"), "counts": ("counts", "real")}


def fit(kind: str, wanted: tuple[str, ...]) -> str | None:
    """As what targets of `kind` meet a loss that wants one of `wanted`; None where they don't fit."""
    return next((want for want in _FITS.get(kind, (kind,)) if want in wanted), None)


def misfit(kind: str, targets: Any, num_classes: int | None) -> str | None:
    """What is wrong with the structure of the targets, as `Examples` keeps them; None where it is right."""
    if kind == "none":
        return None if targets is None else "must be None: the data are said to have none"
    if kind == "labels":
        right = isinstance(targets, dict) and set(targets) == {"labels", "num_frames"} and num_classes is not None
        return None if right else "must be a dict of labels [n, length] and num_frames [n], with num_classes"
    if not isinstance(targets, np.ndarray):
        return f"must be an array; found {type(targets).__name__}"
    if kind == "classes":
        return None if num_classes is not None else "are classes, and num_classes is not given"
    axes = KINDS[kind].axes
    width = {"interval": 2, "survival": 2}.get(kind) if axes else 1
    if targets.ndim != 1 + max(1, len(axes)) or width not in (None, targets.shape[1]):
        return f"must have shape [{', '.join(['n', *axes])}]; found {targets.shape}"
    return None
