"""Images whose targets are points: those that they are drawn with, or their place in a hierarchy."""

import dataclasses

import numpy as np

from trainer.data.base import Examples, Source
from trainer.data.bundled import Digits
from trainer.data.installed import package
from trainer.errors import ConfigError

_PARENT_DISTANCE = 1.5  # hyperbolic, between a node of the tree and its children: far enough for branches not to overlap


@dataclasses.dataclass(frozen=True)
class DigitPoints(Source):
    """`Digits`; target: the image as a set of points [num_points, 2], height and width in [-1, 1], dense where there is much ink.

    Args:
        num_points: of every image.
    """

    num_points: int = 16

    kind = "points"

    def __post_init__(self) -> None:
        if not 1 <= self.num_points <= 1024:
            raise ConfigError(f"data.num_points={self.num_points} must be a whole number from 1 to 1024")

    def load(self) -> Examples:
        images = Digits().load().features
        ink = images.reshape(len(images), 64).cumsum(axis=1)  # row by row
        # Equal amounts of ink from point to point.
        levels = (np.arange(self.num_points) + 0.5) / self.num_points
        pixels = np.stack([np.searchsorted(sums, levels * sums[-1]) for sums in ink])
        return Examples(images, np.stack([pixels // 8, pixels % 8], axis=-1) / 3.5 - 1)


@dataclasses.dataclass(frozen=True)
class DigitTree(Source):
    """`Digits`; target: the digit's place in a hierarchy, a point of the unit disk under Poincare's metric.

    The hierarchy is that of the digits' mean images, joined by Ward's method; Sarkar's construction (2011) puts its root into the
    middle and every child at the same hyperbolic distance from its parent, so that similar digits are near each other.
    """

    kind = "ball"

    def load(self) -> Examples:
        with package("scikit-learn"):
            from scipy.cluster.hierarchy import to_tree, ward
        digits = Digits().load()
        means = np.stack([digits.features[digits.targets == digit].mean(axis=0).ravel() for digit in range(10)])
        places = np.zeros(10, complex)
        nodes = [(to_tree(ward(means)), 0j, 0.0)]  # a node, its place, and the direction away from its parent
        while nodes:
            node, place, away = nodes.pop()
            if node.is_leaf():
                places[node.id] = place
                continue
            turn = np.pi / 2 if place == 0 else np.pi / 3
            for child, angle in ((node.left, away - turn), (node.right, away + turn)):
                step = np.tanh(_PARENT_DISTANCE / 2) * np.exp(1j * angle)
                moved = (step + place) / (1 + np.conj(place) * step)
                back = (place - moved) / (1 - np.conj(moved) * place)  # the parent, seen from the child
                nodes.append((child, moved, np.angle(-back)))
        chosen = places[digits.targets]
        return Examples(digits.features, np.column_stack([chosen.real, chosen.imag]))
