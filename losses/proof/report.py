"""A complete check of one loss, and its report."""

import concurrent.futures
import contextlib
import dataclasses
import json
import logging
import math
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from losses.base import Loss, LossError
from losses.proof import accuracy, adversarial, declarations, meaning, multiplier, mutants, page, structure
from losses.proof.finding import Finding
from losses.proof.judging import described

_SECTIONS = {
    "contract": meaning.contract,
    "accuracy": accuracy.examine,
    "adversarial inputs": adversarial.examine,
    "dy": multiplier.examine,
    "structure": structure.examine,
    "meaning": meaning.examine,
}
_REFUSED, _RAISED = "the contract", "the loss's code"  # what a section that could not be asked fails at


@dataclasses.dataclass(frozen=True)
class Report:
    """What a check of a loss has found."""

    loss: str
    hyperparameters: dict[str, Any]
    contract: str
    second_order: str
    modes: tuple[str, ...]
    magnitudes: tuple[float, float]
    findings: tuple[Finding, ...]
    mutants: tuple[tuple[str, str | None], ...]  # name, and the check that caught it, or None; empty where none were made
    seconds: float

    @property
    def failures(self) -> list[Finding]:
        return [finding for finding in self.findings if finding.verdict == "fails"]

    @property
    def undecided(self) -> list[Finding]:
        return [finding for finding in self.findings if finding.verdict == "inconclusive"]

    @property
    def missed(self) -> list[str]:
        """The mutants that no check caught."""
        return [name for name, caught_by in self.mutants if caught_by is None]

    @property
    def verdict(self) -> str:
        """holds, fails or inconclusive, of all findings and mutants together."""
        return "fails" if self.failures or self.missed else "inconclusive" if self.undecided else "holds"

    @property
    def ok(self) -> bool:
        """Whether everything holds: nothing fails or is inconclusive, and every mutant was caught."""
        return self.verdict == "holds"

    @property
    def num_caught(self) -> int:
        return sum(caught is not None for _, caught in self.mutants)

    def map(self, dtype: str, mode: str, what: str = "gradient") -> dict[str, Any] | None:
        """The error over magnitudes in a dtype and a mode ("analytic", "auto" or "usual"); None where there is none."""
        of_maps = (finding.data for finding in self.findings if finding.section == "accuracy")
        return next((data for data in of_maps if (data.get("dtype"), data.get("mode"), data.get("what")) == (dtype, mode, what)), None)

    def to_dict(self) -> dict[str, Any]:
        """Everything, as plain numbers; what is not finite as the strings "NaN", "inf" and "-inf"."""
        return _plain(dataclasses.asdict(self) | {"ok": self.ok, "verdict": self.verdict})

    def save(self, folder: Path) -> None:
        """Writes gradcheck.json, and gradcheck.html to look at."""
        folder.mkdir(parents=True, exist_ok=True)
        text = json.dumps(self.to_dict(), indent=1, allow_nan=False)
        (folder / "gradcheck.json").write_text(f"{text}\n", encoding="utf-8")
        (folder / "gradcheck.html").write_text(page.html(self), encoding="utf-8")


def check(loss: Loss, seed: int = 0, mutations: bool = False) -> Report:
    """Checks everything about a loss's gradient.

    Args:
        loss: the loss.
        seed: of everything random.
        mutations: whether the check is also tried on wrong variants of the gradient.

    Returns:
        The report; `ok` only when everything holds.

    Raises:
        LossError: the class declares what there is not, such as a contract of another name.
    """
    if not isinstance(loss, Loss):
        raise TypeError(f"losses.check takes a Loss or the name of a shipped one; found {loss!r}")
    declarations.check(loss)
    started = time.monotonic()
    # Beside: another process; TensorFlow takes seconds to start there.
    with _no_advice_on_retracing(), concurrent.futures.ThreadPoolExecutor(1) as beside:
        reloaded = beside.submit(_findings, "structure", lambda loss, _: [structure.reload(loss)], loss, seed)
        findings: list[Finding] = []
        for name, examine in _SECTIONS.items():
            findings += _findings(name, examine, loss, seed)
        raised = any(finding.check in (_REFUSED, _RAISED) for finding in findings)  # then mutants would, too
        caught = mutants.score(loss, np.random.default_rng(seed)) if mutations and "analytic" in loss.modes and not raised else []
        findings += reloaded.result()
    return Report(
        loss=loss.name,
        hyperparameters={field.name: getattr(loss, field.name) for field in dataclasses.fields(loss)},
        contract=loss.contract,
        second_order=loss.second_order,
        modes=loss.modes,
        magnitudes=loss.magnitudes,
        findings=tuple(findings),
        mutants=tuple(caught),
        seconds=time.monotonic() - started,
    )


@contextlib.contextmanager
def _no_advice_on_retracing() -> Iterator[None]:
    """Inputs of many shapes are meant here; that a loss retraces without need is a check of its own."""

    def other(record: logging.LogRecord) -> bool:
        return "retracing" not in record.getMessage()

    logger = tf.get_logger()
    logger.addFilter(other)
    try:
        yield
    finally:
        logger.removeFilter(other)


def _findings(name: str, examine: Any, loss: Loss, seed: int) -> Iterable[Finding]:
    try:
        return examine(loss, np.random.default_rng(seed))
    except LossError as error:
        return [Finding(name, _REFUSED, "fails", str(error))]
    except Exception as error:  # the loss's own code, which may be anybody's
        return [Finding(name, _RAISED, "fails", f"raised {described(loss, error)}")]


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "inf" if value > 0 else "-inf"
    return value if value is None or isinstance(value, str | int | float | bool) else str(value)
