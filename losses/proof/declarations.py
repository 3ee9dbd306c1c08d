"""What a loss says of itself must be among what it can say: a contract misspelt would be taken for another, magnitudes for none."""

import math

from losses.base import CONTRACTS, INVARIANTS, TARGETS, Loss, LossError

_ONE = {"contract": CONTRACTS, "second_order": ("auto", "refuse")}
_SEVERAL = {"targets": TARGETS, "invariants": INVARIANTS}


def check(loss: Loss) -> None:
    """Raises LossError with the declaration and what it may be, unless all are known."""
    for key, allowed in _ONE.items():
        _require(loss, key, getattr(loss, key) in allowed, f"one of {', '.join(map(repr, allowed))}")
    for key, allowed in _SEVERAL.items():
        given = getattr(loss, key)
        known = isinstance(given, tuple) and all(name in allowed for name in given)
        _require(loss, key, known and bool(given or key != "targets"), f"a tuple, such as ({allowed[0]!r},), out of {', '.join(allowed)}")
    _require(
        loss, "magnitudes", _spans(loss.magnitudes), "(smallest, largest), both > 0 and finite, the largest at least 10 times the smallest"
    )


def _spans(magnitudes: object) -> bool:
    if not isinstance(magnitudes, tuple) or len(magnitudes) != 2 or not all(isinstance(size, int | float) for size in magnitudes):
        return False
    smallest, largest = magnitudes
    return smallest > 0 and 10 * smallest <= largest < math.inf


def _require(loss: Loss, key: str, holds: bool, what: str) -> None:
    if not holds:
        raise LossError(f"loss {loss.name} declares {key} = {getattr(loss, key)!r}; it must be {what}")
