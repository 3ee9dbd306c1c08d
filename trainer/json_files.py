"""JSON that a run has written, read while it may still be writing, or after it was killed. Imports no more than Python's own."""

import json
import os
from pathlib import Path
from typing import Any

_TAIL = 1 << 14  # bytes at the end of metrics.jsonl in which its last line is looked for at first


def read_json(path: Path) -> dict[str, Any] | None:
    """A file of a run that holds a JSON object; None where there is none, or it is damaged."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def last_row(path: Path) -> dict[str, Any]:
    """The last whole line of metrics.jsonl, as a dict with "step"; empty where there is none yet, or it is damaged."""
    try:
        with open(path, "rb") as file:
            size, tail, lines = os.fstat(file.fileno()).st_size, 0, [b""]
            while len(lines) < 3 and tail < size:  # a line is as long as a model has variables
                tail = min(size, 4 * tail or _TAIL)
                file.seek(size - tail)
                lines = file.read(tail).split(b"\n")
        row = json.loads(lines[-2]) if len(lines) > 1 else {}
    except (OSError, ValueError, RecursionError):
        return {}
    return row if isinstance(row, dict) and "step" in row else {}
