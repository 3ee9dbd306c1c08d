"""Data made up by a known formula."""

import dataclasses

import numpy as np

from trainer.data.base import Examples, Source
from trainer.errors import ConfigError


@dataclasses.dataclass(frozen=True)
class LinearRegression(Source):
    """targets = features @ coefficients + intercept + noise, all drawn from normal distributions: the answer is known.

    Args:
        num_examples, num_features, num_targets: sizes.
        noise: standard deviation of what is added to the targets; the mean squared error of a perfect model is its square.
        seed: of the coefficients, the features and the noise.
    """

    num_examples: int = 1000
    num_features: int = 8
    num_targets: int = 1
    noise: float = 0.1
    seed: int = 0

    kind = "real"

    def __post_init__(self) -> None:
        for key, minimum in {"num_examples": 2, "num_features": 1, "num_targets": 1, "noise": 0, "seed": 0}.items():
            if not minimum <= getattr(self, key) < float("inf"):
                raise ConfigError(f"data.{key}={getattr(self, key)} must be a number >= {minimum}")

    @property
    def coefficients(self) -> np.ndarray:
        """The true ones, [num_features, num_targets]."""
        return self._answer[:-1]

    @property
    def intercept(self) -> np.ndarray:
        """The true one, [num_targets]."""
        return self._answer[-1]

    def load(self) -> Examples:
        rng = np.random.default_rng([self.seed, 1])
        features = rng.standard_normal([self.num_examples, self.num_features])
        noise = self.noise * rng.standard_normal([self.num_examples, self.num_targets])
        return Examples(features, features @ self.coefficients + self.intercept + noise)

    @property
    def _answer(self) -> np.ndarray:
        return np.random.default_rng([self.seed, 0]).standard_normal([self.num_features + 1, self.num_targets])
