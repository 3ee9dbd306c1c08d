"""From checks to findings: who is asked, and whose failure counts."""

import sys
import traceback
from collections.abc import Callable, Mapping

import numpy as np

from losses.base import Loss
from losses.proof.finding import Finding

Outcome = tuple[str, str]  # a verdict, and what there is to say
Check = Callable[[Loss, str, np.random.Generator], Outcome]


def judge(loss: Loss, section: str, checks: Mapping[str, Check], rng: np.random.Generator) -> list[Finding]:
    """Every check in every mode of a loss; one that raises has failed.

    Where a loss has a gradient of its own, that one decides: what only gradient=auto gets wrong, or leaves undecided, is told, with
    the verdict "excepted".
    """
    findings = []
    for mode in loss.modes:
        for name, check in checks.items():
            try:
                verdict, message = check(loss, mode, rng)
            except Exception as error:  # the loss's code, which may be anybody's
                verdict, message = "fails", described(loss, error)
            if verdict in ("fails", "inconclusive") and mode == "auto" and "analytic" in loss.modes:
                what = "wrong" if verdict == "fails" else "undecided"
                verdict, message = "excepted", f"gradient=auto is {what}, the analytic gradient decides: {message}"
            elif verdict == "fails":
                message = f"loss {loss.name}, gradient={mode}: {message}"
            findings.append(Finding(section, name, verdict, message, mode))
    return findings


def described(loss: Loss, error: Exception) -> str:
    """An error in one line, with the line of the loss's own module that it came through."""
    text = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
    file = getattr(sys.modules.get(type(loss).__module__), "__file__", None)
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == file]
    return f"{text} ({file}, line {lines[-1]})" if lines else text


def unequal(found: np.ndarray, expected: np.ndarray, allowed: np.ndarray | float, what: str) -> str:
    """Where two arrays part by more than is allowed, with both values; empty where they agree. NaN agrees with NaN, inf with inf."""
    found, expected = np.asarray(found, np.float64), np.asarray(expected, np.float64)
    if found.shape != expected.shape:
        return f"{what}: shape {found.shape} instead of {expected.shape}"
    with np.errstate(invalid="ignore", over="ignore"):
        off = np.abs(found - expected)
        same = (found == expected) | (np.isnan(found) & np.isnan(expected)) | (off <= allowed)
    if same.all():
        return ""
    wrong = np.where(same, -1.0, np.where(np.isfinite(off), off, np.inf))
    place = np.unravel_index(int(np.argmax(wrong)), wrong.shape)
    where = ", ".join(str(int(i)) for i in place)
    return f"{what}: {found[place]:.9g} instead of {expected[place]:.9g} at [{where}] ({int((~same).sum())} of {same.size} differ)"


def outcome(*problems: str) -> Outcome:
    """Fails with the first problem; holds where all are empty."""
    found = [problem for problem in problems if problem]
    return ("fails", found[0]) if found else ("holds", "")
