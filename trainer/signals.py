"""SIGINT and SIGTERM, noticed at the next safe point; a second one ends the process at once."""

import os
import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

NUMBERS = (signal.SIGINT, signal.SIGTERM)


class Signals:
    """Catches both signals while it is entered."""

    def __init__(self) -> None:
        self.received: int | None = None
        self.before_exit: Callable[[int], None] = lambda number: None  # called with the second signal's number
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "Signals":
        for number in NUMBERS:
            self._before[number] = signal.signal(number, self._notice)
        # Python calls its handlers only between two of its own instructions, not while the device works or a program compiles:
        # a thread reads the numbers that the interpreter's own handler writes at once.
        reading, self._writing = os.pipe()
        os.set_blocking(self._writing, False)
        self._wakeup = signal.set_wakeup_fd(self._writing)
        threading.Thread(target=self._watch, args=(reading,), name="signals", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        signal.set_wakeup_fd(self._wakeup)
        os.close(self._writing)
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _notice(self, number: int, _: FrameType | None) -> None:
        self.received = self.received or number

    def _watch(self, reading: int) -> None:
        seen = 0
        while content := os.read(reading, 1):
            seen += content[0] in NUMBERS
            if seen > 1:
                try:
                    self.before_exit(content[0])
                finally:
                    os._exit(128 + content[0])
        os.close(reading)
