"""Data whose targets are what another model says."""

import dataclasses

from trainer.data.base import Examples, Source
from trainer.data.bundled import Digits
from trainer.data.installed import package
from trainer.errors import ConfigError


@dataclasses.dataclass(frozen=True)
class DigitsTeacher(Source):
    """`Digits`; target: the 10 logits of a teacher, scikit-learn's logistic regression, fitted to all of them when they are loaded.

    Args:
        strength: of the teacher, scikit-learn's C: the larger, the surer it is.
    """

    strength: float = 1.0

    kind = "logits"

    def __post_init__(self) -> None:
        if not 0 < self.strength < float("inf"):
            raise ConfigError(f"data.strength={self.strength} must be a finite number > 0")

    def load(self) -> Examples:
        with package("scikit-learn"):
            from sklearn.linear_model import LogisticRegression
        digits = Digits().load()
        pixels = digits.features.reshape(len(digits), 64) / 16
        teacher = LogisticRegression(C=self.strength, solver="newton-cg", max_iter=1000).fit(pixels, digits.targets)
        return Examples(digits.features, teacher.decision_function(pixels))
