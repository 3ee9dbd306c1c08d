"""Writes docs/losses.md: every loss, checked. `python -m docs.losses --check` checks anew, and fails where the page is stale."""

import datetime
import importlib.metadata
import sys
import tempfile
from pathlib import Path
from typing import Any

from trainer.check import HEADERS, catalogue, columns

PAGE = Path(__file__).parent / "losses.md"
_COMPARED = ("Loss", "Contract", "Verdict")  # what must not be stale; errors and seconds differ a little from machine to machine
_INTRODUCTION = """# Every loss, checked

Written by `python -m docs.losses` on {date}, which runs `python -m trainer.check` (with TensorFlow {tensorflow}).

An ulp is a unit in the last place. Errors are those of the gradient in float32, the worst over the magnitudes that the loss answers for,
large ones divided by 1 + the condition number; for a loss whose gradient is judged as a whole (structured), ulp of its norm. Next to
it, how much of the gradient is NaN, falsely infinite or falsely zero. *Analytic* is the loss's own gradient, *auto* the tape through its
value, *usual* the tape through the formula that people write or that Keras ships; "none" where there is none. Mutants are wrong
variants of the gradient, made to be caught. Seconds are those of the check and its mutants, with such a check on every core.

What the verdicts rest on, loss by loss: `python -m trainer.check loss=NAME`, and the page that it writes.
"""


def write(results: list[dict[str, Any]]) -> None:
    """Writes the page."""
    rows = [columns(result) for result in results]
    lines = [f"| {' | '.join(cells)} |" for cells in (HEADERS, ["---"] * len(HEADERS), *rows)]
    date = datetime.datetime.now(tz=datetime.UTC).date().isoformat()
    text = _INTRODUCTION.format(date=date, tensorflow=importlib.metadata.version("tensorflow"))
    PAGE.write_text("\n".join([text, *lines, ""]), encoding="utf-8")


def read() -> list[tuple[str, ...]]:
    """Name, contract and verdict of every loss, as the page has them."""
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in PAGE.read_text(encoding="utf-8").splitlines() if "|" in line]
    places = [HEADERS.index(header) for header in _COMPARED]
    return [tuple(row[place] for place in places) for row in rows[2:]]


def main() -> int:
    """Writes the page, or checks it; the exit status."""
    is_check = sys.argv[1:] == ["--check"]
    with tempfile.TemporaryDirectory() as folder:
        results = catalogue(Path(folder), mutations=not is_check)
    found = [(result["loss"], result["contract"], columns(result)[-1]) for result in results]
    if not is_check:
        write(results)
        return 0 if all(result["ok"] for result in results) else 1
    stale = sorted(set(found) ^ set(read()))
    for row in stale:
        print(f"docs/losses.md is stale at {', '.join(row)}: run python -m docs.losses")
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main())
