"""Quantities of which only bounds are known."""

import dataclasses

import numpy as np

from trainer.data import installed
from trainer.data.base import Examples, Source
from trainer.data.bundled import Engel
from trainer.errors import ConfigError


@dataclasses.dataclass(frozen=True)
class EngelBrackets(Source):
    """`Engel` as a questionnaire would have it: food expenditure is known by its bracket alone; target: its lower and upper edge.

    Args:
        width: of a bracket, francs.
        top: francs; from here on all is one bracket without an upper edge.
    """

    width: float = 200.0
    top: float = 1200.0

    kind = "interval"

    def __post_init__(self) -> None:
        if not 0 < self.width <= self.top:
            raise ConfigError(f"data.width={self.width} must be a number > 0 and at most data.top={self.top}")

    def load(self) -> Examples:
        households = Engel().load()
        lower = np.minimum(np.floor(households.targets / self.width) * self.width, self.top)
        upper = np.where(lower < self.top, np.minimum(lower + self.width, self.top), np.inf)
        return Examples(households.features, np.concatenate([lower, upper], axis=1), feature_names=households.feature_names)


@dataclasses.dataclass(frozen=True)
class Strikes(Source):
    """n = 62 strikes in US manufacturing, 1 feature: unexpected industrial production; target: days, and whether the end was seen.

    Kennan 1985, public domain. All of them ended; observation is made to stop after `horizon` days, as in the article.

    Args:
        horizon: days; longer strikes are censored there.
    """

    horizon: float = 80.0

    kind = "survival"

    def __post_init__(self) -> None:
        if not self.horizon > 0:
            raise ConfigError(f"data.horizon={self.horizon} must be a number > 0")

    def load(self) -> Examples:
        table = installed.statsmodels("strikes")
        days = table["duration"]
        targets = np.column_stack([np.minimum(days, self.horizon), days <= self.horizon])
        return Examples(table["iprod"][:, None], targets, feature_names=["iprod"])
