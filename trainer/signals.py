"""SIGINT and SIGTERM, noticed at the next safe point; a second one ends the process at once."""

import os
import signal
from collections.abc import Callable
from types import FrameType
from typing import Any


class Signals:
    """Catches both signals while it is entered."""

    def __init__(self) -> None:
        self.received: int | None = None
        self.before_exit: Callable[[int], None] = lambda number: None  # called with the second signal's number
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "Signals":
        for number in (signal.SIGINT, signal.SIGTERM):
            self._before[number] = signal.signal(number, self._notice)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _notice(self, number: int, _: FrameType | None) -> None:
        if self.received is not None:
            self.before_exit(number)
            os._exit(128 + number)
        self.received = number
