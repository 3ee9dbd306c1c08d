"""A CSV file as columns of numbers or text."""

import array
import csv
import io
import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np

from trainer.errors import DataError

MAX_CATEGORIES = 100  # different texts of a column that becomes features


class Column:
    """One column of a CSV file: numbers, with NaN where there is none, and the text that stands there instead."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._numbers = array.array("d")
        self._texts: dict[int, str] = {}

    def append(self, cell: str) -> None:
        cell = cell.strip()
        try:
            number = float(cell) if "_" not in cell else None  # float("1_2") is 12
        except ValueError:
            number = None
        if number is None and cell:
            self._texts[len(self._numbers)] = cell
        self._numbers.append(math.nan if number is None else number)

    def values(self, place: Callable[[int], str]) -> np.ndarray:
        """Text [n], empty where it is missing, for a column without numbers; else float64 [n]."""
        if not self._texts or not np.isnan(self._numbers).all():
            return self.numbers(place)
        texts = [self._texts.get(row, "") for row in range(len(self._numbers))]
        return np.array(texts)

    def numbers(self, place: Callable[[int], str]) -> np.ndarray:
        """float64 [n]."""
        if self._texts:
            row, text = next(iter(self._texts.items()))
            raise DataError(f"{place(row)}, column {self.name!r}: {text[:40]!r} is no number; leave the cell of an unknown value empty")
        return np.array(self._numbers)


def open_csv(path: Path, delimiter: str) -> tuple[list[str], Iterable[tuple[int, list[str]]]]:
    """The names of the columns, and the rows, each with the number of its (last) line."""
    try:
        # -sig: Excel begins a UTF-8 file with a byte order mark.
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise unreadable(path, error) from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is no UTF-8 text ({error.reason} at byte {error.start}): save it as UTF-8; arrays are data=npz") from error
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)

    def rows() -> Iterable[tuple[int, list[str]]]:
        try:
            for row in reader:
                if row:
                    yield reader.line_num, row
        except csv.Error as error:
            raise DataError(f"{path}, line {reader.line_num}: {error}") from error

    remaining = iter(rows())
    _, header = next(remaining, (0, []))
    names = [name.strip() for name in header]
    if not any(names):
        raise DataError(f"{path} is empty: its first line must name the columns")
    if all(_is_number(name) for name in names if name):
        raise DataError(f"{path}: the first line must name the columns; found numbers: {', '.join(names[:5])}")
    doubled = [name for i, name in enumerate(names) if name and name in names[:i]]
    if doubled:
        raise DataError(f"{path} has two columns named {doubled[0]!r}")
    return names, remaining


def read_columns(
    rows: Iterable[tuple[int, list[str]]], names: Sequence[str], wanted: Sequence[str], path: str
) -> tuple[dict[str, Column], array.array]:
    columns = {name: Column(name) for name in wanted}
    places = [(names.index(name), column) for name, column in columns.items()]
    lines = array.array("q")
    for line, row in rows:
        if len(row) != len(names):
            raise DataError(f"{path}, line {line}: {len(row)} cells, but {len(names)} columns are named")
        for index, column in places:
            column.append(row[index])
        lines.append(line)
    if not lines:
        raise DataError(f"{path} has no rows, only the names of columns")
    return columns, lines


def one_hot(columns: dict[str, Column], names: Sequence[str], place: Callable[[int], str]) -> tuple[np.ndarray, list[str]]:
    """Features [n, columns] and their names."""
    features: list[np.ndarray] = []
    feature_names: list[str] = []
    for name in names:
        values = columns[name].values(place)
        if values.dtype.kind == "f":
            features.append(values)
            feature_names.append(name)
            continue
        texts = sorted(set(values.tolist()) - {""})
        if len(texts) > MAX_CATEGORIES:
            raise DataError(
                f"column {name!r} has {len(texts)} different texts, more than the {MAX_CATEGORIES} that become features: "
                "leave it out by listing the others in data.features=[...]"
            )
        for text in texts:
            features.append(np.where(values == "", np.nan, values == text))
            feature_names.append(f"{name}={text}")
    return np.stack(features, axis=1), feature_names


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def unreadable(path: str | Path, error: OSError) -> DataError:
    return DataError(f"data.path={path} can't be read: {error.strerror or error}; relative paths count from {Path.cwd()}")
