"""Lists of items with graded relevance, to be ranked."""

import dataclasses

import numpy as np

from trainer.data import installed
from trainer.data.base import Examples, Source
from trainer.data.bundled import Diabetes
from trainer.errors import ConfigError


@dataclasses.dataclass(frozen=True)
class TravelChoice(Source):
    """n = 210 travellers, 4 ways each [4, 9]: air, train, bus and car; target: 1 for the one chosen, 0 for the others.

    Features: minutes at the terminal, cost and time of the journey by this way, the traveller's income and party, and which way it is.
    Greene 2000, public domain.
    """

    kind = "relevance"

    def load(self) -> Examples:
        table = installed.statsmodels("modechoice")
        ways = np.eye(4)[table["mode"].astype(int) - 1]
        features = np.column_stack([*(table[name] for name in ("ttme", "invc", "invt", "hinc", "psize")), ways])
        return Examples(features.reshape(-1, 4, features.shape[1]), table["choice"].reshape(-1, 4))


@dataclasses.dataclass(frozen=True)
class DiabetesLists(Source):
    """Lists of patients [num_items, 10]; target: a grade from 0 to 4, by fifths of all patients' disease progression. From `Diabetes`.

    Every patient is in one list.

    Args:
        num_items: patients in a list.
    """

    num_items: int = 8

    kind = "relevance"

    def __post_init__(self) -> None:
        if not 2 <= self.num_items <= 100:
            raise ConfigError(f"data.num_items={self.num_items} must be a whole number from 2 to 100")

    def load(self) -> Examples:
        patients = Diabetes().load()
        progression = patients.targets[:, 0]
        grades = np.searchsorted(np.quantile(progression, [0.2, 0.4, 0.6, 0.8]), progression)
        rows = np.random.default_rng(0).permutation(len(patients))
        lists = rows[: len(rows) // self.num_items * self.num_items].reshape(-1, self.num_items)
        return Examples(patients.features[lists], grades[lists])
