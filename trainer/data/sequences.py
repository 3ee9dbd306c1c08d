"""Series to forecast, and frames to read."""

import dataclasses

import numpy as np

from trainer.data import installed
from trainer.data.base import Examples, Source
from trainer.data.bundled import Digits
from trainer.errors import ConfigError


@dataclasses.dataclass(frozen=True)
class Sunspots(Source):
    """Yearly sunspots, 1700 to 2008: windows [past, 1]; target: the years after each, [future, 1]. Public domain (NOAA).

    Windows begin `stride` years apart; where that is less than past + future, they overlap, those of the evaluation part too.

    Args:
        past, future: years; a cycle has about 11.
        stride: years from a window's beginning to that of the next.
    """

    past: int = 33
    future: int = 11
    stride: int = 1

    kind = "series"

    def __post_init__(self) -> None:
        for key in ("past", "future", "stride"):
            if not 1 <= getattr(self, key) <= 150:
                raise ConfigError(f"data.{key}={getattr(self, key)} must be a whole number from 1 to 150")

    def load(self) -> Examples:
        series = installed.statsmodels("sunspots")["SUNACTIVITY"]
        windows = np.lib.stride_tricks.sliding_window_view(series, self.past + self.future)[:: self.stride, :, None]
        return Examples(windows[:, : self.past], windows[:, self.past :])


@dataclasses.dataclass(frozen=True)
class DigitLines(Source):
    """Lines of handwritten digits, read from left to right: frames [8 * most, 8], the columns of pixels; target: the digits.

    A line has `fewest` to `most` digits out of `Digits`, CC BY 4.0; frames after its end are empty, and not counted in num_frames. Lines
    of the evaluation part may share images with training, in another order.

    Args:
        num_lines: how many.
        fewest, most: digits in a line.
        seed: of the choice.
    """

    num_lines: int = 2000
    fewest: int = 2
    most: int = 5
    seed: int = 0

    kind = "labels"

    def __post_init__(self) -> None:
        if not 1 <= self.fewest <= self.most <= 100:
            raise ConfigError(f"data.fewest={self.fewest} data.most={self.most} must be whole numbers, 1 <= fewest <= most <= 100")
        if self.num_lines < 2 or self.seed < 0:
            raise ConfigError(f"data.num_lines={self.num_lines} data.seed={self.seed} must be whole numbers >= 2 and >= 0")

    def load(self) -> Examples:
        digits = Digits().load()
        rng = np.random.default_rng(self.seed)
        chosen = rng.integers(0, len(digits), [self.num_lines, self.most])
        lengths = rng.integers(self.fewest, self.most + 1, self.num_lines)
        there = np.arange(self.most) < lengths[:, None]  # [lines, most]
        images = np.where(there[:, :, None, None], digits.features[chosen, :, :, 0], 0)  # [lines, most, height, width]
        frames = images.transpose(0, 1, 3, 2).reshape(self.num_lines, 8 * self.most, 8)
        return Examples(frames, {"labels": np.where(there, digits.targets[chosen], -1), "num_frames": 8 * lengths}, num_classes=10)
