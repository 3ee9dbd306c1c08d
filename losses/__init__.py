"""Losses with gradients of their own, one a module. Importing this package, or listing them, imports no TensorFlow."""

import dataclasses
import difflib
import importlib
import pkgutil
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from losses.base import Loss
    from losses.keras_loss import KerasLoss
    from losses.proof.report import Report

_MACHINERY = {
    "base",
    "chunked_crossentropy",
    "features",
    "keras_loss",
    "logistic",
    "modes",
    "proof",
    "ranks",
    "softmax",
    "sparse",
    "vectors",
}  # modules that are no losses


def names() -> list[str]:
    """The names of the losses there are, sorted."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__) if module.name not in _MACHINERY)


def find(name: str) -> "type[Loss]":
    """The class of the loss of that name; raises ValueError naming the nearest ones where there is none."""
    if name not in names():
        raise ValueError(f"no loss {name!r}{_did_you_mean(name, names())}")
    module = importlib.import_module(f"losses.{name}")
    base = importlib.import_module("losses.base").Loss
    found = [c for c in vars(module).values() if isinstance(c, type) and issubclass(c, base) and c.__module__ == module.__name__]
    if len(found) != 1:
        raise ValueError(f"module losses.{name} must define one subclass of Loss; found {[c.__name__ for c in found]}")
    return found[0]


def get(name: str, gradient: str = "analytic", reduction: str | None = "sum_over_batch_size", **hyperparameters: Any) -> "KerasLoss":
    """A Keras loss, for `model.compile(loss=losses.get("huber", delta=2.0))`.

    Args:
        name: one of `names()`.
        gradient: "analytic" (the loss's own derivative) or "auto" (the tape through its value).
        reduction: as in Keras: "sum_over_batch_size", "mean", "mean_with_sample_weight", "sum", "none" or None.
        **hyperparameters: of the loss; the others keep their defaults.

    Raises:
        ValueError: no such loss, hyperparameter, gradient mode or reduction, or a value beyond its limit.
    """
    loss = find(name)
    known = [field.name for field in dataclasses.fields(loss)]
    for key in hyperparameters:
        if key not in known:
            raise ValueError(f"loss {name} has no hyperparameter {key!r}{_did_you_mean(key, known)}")
    from losses.keras_loss import KerasLoss

    return KerasLoss(loss(**hyperparameters), gradient=gradient, reduction=reduction)


def check(loss: "Loss | str", seed: int = 0, mutations: bool = False) -> "Report":
    """Checks everything about a loss's gradient; `report.ok` only when all of it holds, `report.save(folder)` writes it down.

    Args:
        loss: a loss, one's own or shipped, or a shipped one's name, which stands for its default hyperparameters.
        seed: of the random inputs.
        mutations: whether the check is also tried on wrong variants of the gradient, all of which it must catch.
    """
    from losses.proof.report import check as complete

    return complete(find(loss)() if isinstance(loss, str) else loss, seed, mutations)


def _did_you_mean(word: str, known: list[str]) -> str:
    near = difflib.get_close_matches(word, known, n=1)
    guess = f"; did you mean {near[0]!r}?" if near else "."
    return f"{guess} There are {', '.join(known)}" if known else ": it has none"
