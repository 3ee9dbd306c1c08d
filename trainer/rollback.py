"""The state that `trainer.on_nonfinite=rollback` goes back to."""

import dataclasses

import numpy as np

from trainer.learner import Learner


@dataclasses.dataclass
class Rollback:
    """Holds the state of the last checkpoint made by plan, in memory: going back needs no disk, and waits for no save.

    Args:
        learner: whose state it is.
        wanted: whether it will ever be asked for; if not, nothing is held.
        arrays: held from the beginning.
    """

    learner: Learner
    wanted: bool
    arrays: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)

    def hold(self) -> None:
        """Takes the present state."""
        if self.wanted:
            self.arrays = self.learner.capture()

    def back(self) -> None:
        """Puts the state that is held back."""
        self.learner.restore(self.arrays)
