"""Derivatives of black-box functions by central differences, each with an estimate of its own error."""

from collections.abc import Callable

import numpy as np

STEPS = 16.0 * 4.0 ** -np.arange(19)  # of the line's parameter, largest first: 16 to 2e-10
_NUM_ALIKE = 8


def along(line: Callable[[np.ndarray], np.ndarray], noise: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The derivatives at t = 0 of n functions of one parameter, and bounds of their errors.

    Args:
        line: `line(t)` for t [k] gives the values, [k, n].
        noise: [n], by how much a value may be off through rounding.

    Returns:
        derivative [n], error [n] (inf where no step gives finite values, and at a jump). At a kink the error covers both one-sided slopes.
    """
    values = line(np.concatenate([[0.0], STEPS, -STEPS]))
    center, plus, minus = values[0], values[1 : len(STEPS) + 1], values[len(STEPS) + 1 :]
    steps = STEPS[:, np.newaxis]
    with np.errstate(all="ignore"):  # a far step may overflow
        central = (plus - minus) / (2 * steps)  # [steps, n]
        # Steps shrink by 4, so the leading error, of order steps^2, by 16: Richardson's extrapolation removes it.
        extrapolated = (16 * central[1:] - central[:-1]) / 15
        bend = np.abs(plus + minus - 2 * center) / steps  # between the one-sided slopes; at a kink it does not shrink with the step
        error = np.abs(extrapolated - central[1:]) + bend[1:] + 2 * noise / steps[1:]
        # What the smallest steps change alike by, whichever of them, is a jump, or a rise too steep for them.
        rise = np.abs(plus - minus)[-_NUM_ALIKE:]
        jumps = (rise.min(axis=0) > rise.max(axis=0) / 2) & (rise.min(axis=0) > 4 * noise)
    error = np.where(np.isfinite(error) & ~jumps, error, np.inf)
    best = np.argmin(error, axis=0)
    columns = np.arange(len(best))
    # Far from a kink values may saturate and seem smooth again: the smallest step that sees a bend has the last word, unless the
    # next one would have seen it too, had it been a kink at 0.
    sees = np.where(bend[1:] * steps[1:] > 4 * noise, np.arange(1, len(STEPS))[:, np.newaxis], 0).max(axis=0)
    kink = bend[sees, columns]
    hidden_from_next = (kink * STEPS[np.minimum(sees + 1, len(STEPS) - 1)] <= 8 * noise) | (sees == len(STEPS) - 1)
    kinked = (sees > 0) & hidden_from_next & (kink > error[best, columns])
    derivative = np.where(kinked, central[sees, columns], extrapolated[best, columns])
    return derivative, np.where(kinked, kink, error[best, columns])
