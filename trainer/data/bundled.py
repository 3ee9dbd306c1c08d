"""Real data that Python packages carry: nothing is downloaded."""

import dataclasses

import numpy as np

from trainer.data import installed
from trainer.data.base import Examples, Source


@dataclasses.dataclass(frozen=True)
class Digits(Source):
    """n = 1797 images [8, 8, 1] of pixels 0 to 16; target: the digit, 10 classes. UCI (Alpaydin, Kaynak 1998), CC BY 4.0."""

    kind = "classes"

    def load(self) -> Examples:
        pixels, digits = installed.scikit_learn("digits", "digits.csv.gz")
        return Examples(pixels.reshape(-1, 8, 8, 1), digits.astype(int), num_classes=10)


@dataclasses.dataclass(frozen=True)
class Diabetes(Source):
    """n = 442 patients, 10 features; target: disease progression, 25 to 346. Efron et al. 2004, with scikit-learn (BSD-3)."""

    kind = "real"

    def load(self) -> Examples:
        files = ("diabetes_data_raw.csv.gz", "diabetes_target.csv.gz")
        features, progression = installed.scikit_learn("diabetes", *files, delimiter=None, scaled=False)
        return Examples(features, progression, feature_names=["age", "sex", "bmi", "bp", "s1", "s2", "s3", "s4", "s5", "s6"])


@dataclasses.dataclass(frozen=True)
class BreastCancer(Source):
    """n = 569 tumors, 30 features of their cells' nuclei; target: malignant (0) or benign (1). UCI (Wolberg et al. 1993), CC BY 4.0."""

    kind = "classes"

    def load(self) -> Examples:
        features, benign = installed.scikit_learn("breast_cancer", "breast_cancer.csv", header=True)
        measures = ["radius", "texture", "perimeter", "area", "smoothness", "compactness", "concavity", "concave points", "symmetry"]
        measures.append("fractal dimension")
        names = [f"mean {name}" for name in measures] + [f"{name} error" for name in measures] + [f"worst {name}" for name in measures]
        return Examples(features, benign.astype(int), 2, feature_names=names, class_names=["malignant", "benign"])


@dataclasses.dataclass(frozen=True)
class Wine(Source):
    """n = 178 wines, 13 chemical features; target: the cultivar, 3 classes. UCI (Aeberhard, Forina 1992), CC BY 4.0."""

    kind = "classes"

    def load(self) -> Examples:
        features, cultivar = installed.scikit_learn("wine", "wine_data.csv", header=True)
        names = "alcohol malic_acid ash alcalinity_of_ash magnesium total_phenols flavanoids nonflavanoid_phenols proanthocyanins"
        names += " color_intensity hue od280/od315_of_diluted_wines proline"
        classes = ["class_0", "class_1", "class_2"]
        return Examples(features, cultivar.astype(int), 3, feature_names=names.split(), class_names=classes)


@dataclasses.dataclass(frozen=True)
class Mnist(Source):
    """n = 5000 images [28, 28, 1] of pixels 0 to 255; target: the digit, 10 classes. Part of MNIST (LeCun et al. 1998), CC BY-SA 3.0."""

    kind = "classes"

    def load(self) -> Examples:
        pixels, digits = installed.mnist()
        return Examples(pixels.reshape(-1, 28, 28, 1), digits.astype(int), num_classes=10)


@dataclasses.dataclass(frozen=True)
class RandHIE(Source):
    """n = 20190 insured persons, 9 features; target: visits to a doctor, 0 to 77. RAND Health Insurance Experiment, public domain."""

    kind = "counts"

    def load(self) -> Examples:
        return _columns(installed.statsmodels("randhie"), target="mdvis")


@dataclasses.dataclass(frozen=True)
class Engel(Source):
    """n = 235 households, 1 feature: income; target: food expenditure, spread growing with income. Engel 1857, public domain."""

    kind = "real"

    def load(self) -> Examples:
        return _columns(installed.statsmodels("engel"), target="foodexp")


@dataclasses.dataclass(frozen=True)
class StackLoss(Source):
    """n = 21 days, 3 features; target: ammonia lost, in 0.1%, with some outliers. Brownlee 1965, public domain."""

    kind = "real"

    def load(self) -> Examples:
        return _columns(installed.statsmodels("stackloss"), target="STACKLOSS")


def _columns(table: dict[str, np.ndarray], target: str) -> Examples:
    """Examples of a table's columns: one is the target, the others are features."""
    features = {name: column for name, column in table.items() if name != target}
    return Examples(np.column_stack(list(features.values())), table[target], feature_names=list(features))
