"""Tables of examples, written as CSV piece by piece. Imports no TensorFlow."""

import csv
import io
from collections.abc import Iterable, Mapping
from typing import IO, Any

import numpy as np

MOST_COLUMNS = 1000  # that one array becomes


def write_csv(file: IO[bytes], pieces: Iterable[Mapping[str, np.ndarray]]) -> None:
    """Arrays [n, ...] of one example after the other, by name; an array of more axes, or columns, is several, numbered by their places.

    An array of more than 1000 columns is left out.
    """
    text = io.TextIOWrapper(file, encoding="utf-8", newline="")
    writer, is_first = csv.writer(text), True
    for piece in pieces:
        table = {name: column for key, array in piece.items() if fits(array) for name, column in _columns(key, array).items()}
        if is_first:
            writer.writerow(table)
            is_first = False
        writer.writerows(zip(*(map(_cell, column.tolist()) for column in table.values()), strict=True))
    text.flush()
    text.detach()


def fits(array: np.ndarray) -> bool:
    """Whether an array [n, ...] has no more columns than a table takes."""
    return array[0].size <= MOST_COLUMNS


def _columns(name: str, array: np.ndarray) -> dict[str, np.ndarray]:
    if array[0].size == 1:
        return {name: array.reshape(-1)}
    places = np.ndindex(*array.shape[1:])
    return {f"{name}_{'_'.join(map(str, place))}": array[(slice(None), *place)] for place in places}


def _cell(value: Any) -> str:
    """Nine digits, which are all that a float32 has."""
    return f"{value:.9g}" if isinstance(value, float) else str(value)
