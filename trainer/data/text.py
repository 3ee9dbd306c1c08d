"""Text as tokens, each to be predicted from those before it."""

import collections
import dataclasses
import re
from pathlib import Path

import numpy as np

from trainer.data.base import Examples, Source
from trainer.data.table import unreadable
from trainer.errors import ConfigError, DataError

UNITS = ("char", "byte", "word")
UNKNOWN = "(unknown)"  # the name of the token that stands for words that have none
_BUNDLED = Path(__file__).with_name("python_topics.txt")
_WORDS = re.compile(r"\w+|[^\w\s]")


@dataclasses.dataclass(frozen=True)
class Text(Source):
    """Windows of a text, one after the other: tokens [length]; target: at every position the next token, a class.

    The bundled text is Python's own help on its language, of version 3.11, 464,000 characters, under the PSF licence beside it.

    Args:
        path: of a file in UTF-8, or for bytes any file; relative paths count from the current folder; None: the bundled text.
        unit: of a token: char, byte, or word (letters and digits in a row, or one other sign; white space only divides).
        length: tokens in a window. What is left over at the end is left out.
        max_words: different words at most; 0, a token of its own, stands for all but the most frequent ones.
    """

    path: str | None = None
    unit: str = "char"
    length: int = 64
    max_words: int = 8192

    kind = "classes"

    def __post_init__(self) -> None:
        if self.unit not in UNITS:
            raise ConfigError(f"data.unit={self.unit} must be one of {', '.join(UNITS)}")
        for key, minimum in {"length": 2, "max_words": 2}.items():
            value = getattr(self, key)
            if not isinstance(value, int) or value < minimum:
                raise ConfigError(f"data.{key}={value} must be a whole number >= {minimum}")

    def load(self) -> Examples:
        tokens, names = self._tokens()
        num_windows = (len(tokens) - 1) // self.length
        if num_windows < 2:
            raise DataError(
                f"the text has {len(tokens)} tokens, too few for two windows of data.length={self.length}: "
                f"type at most data.length={max(2, (len(tokens) - 1) // 2)}, or another data.path"
            )
        end = num_windows * self.length
        features, targets = tokens[:end].reshape(num_windows, -1), tokens[1 : end + 1].reshape(num_windows, -1)
        return Examples(features, targets, len(names), class_names=names, num_tokens=len(names))

    def _tokens(self) -> tuple[np.ndarray, list[str]]:
        """The whole text as indices, and what each index stands for."""
        raw = self._read()
        if self.unit == "byte":
            return np.frombuffer(raw, np.uint8), [f"{byte:02x}" for byte in range(256)]
        try:
            text = raw.decode()
        except UnicodeDecodeError as error:
            raise DataError(f"{self.path} is no UTF-8 text ({error.reason} at byte {error.start}): type data.unit=byte") from error
        units = _WORDS.findall(text) if self.unit == "word" else list(text)
        names = sorted(set(units))
        if self.unit == "word":
            counts = collections.Counter(units)
            # The most frequent first; those of equal frequency by the alphabet.
            names = [UNKNOWN, *sorted(names, key=lambda word: -counts[word])[: self.max_words - 1]]
        if len(names) < 2:
            raise DataError(f"data.path={self.path}: a text needs two different tokens at least; found {names}")
        index = {name: i for i, name in enumerate(names)}
        return np.array([index.get(unit, 0) for unit in units]), names

    def _read(self) -> bytes:
        path = _BUNDLED if self.path is None else Path(self.path).expanduser()
        try:
            return path.read_bytes()
        except OSError as error:
            raise unreadable(path, error) from error
