"""Checkpoints are written while the run goes on."""

import concurrent.futures
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

from trainer import snapshots
from trainer.errors import CheckpointError
from trainer.progress import say

_MOST_FAILURES = 3  # saves in a row that may fail


class Saver:
    """Writes one checkpoint at a time in a thread of its own. Use as a context manager.

    Args:
        folder: of the checkpoints.
        keep: how many of the newest stay.
        flush: returns when what belongs beside a checkpoint of the given step is on the disk; called before the checkpoint counts.
    """

    def __init__(self, folder: Path, keep: int, flush: Callable[[int], None]) -> None:
        self._folder, self._keep, self._flush = folder, keep, flush
        self._thread = concurrent.futures.ThreadPoolExecutor(1, "saver")
        self._pending: concurrent.futures.Future[None] | None = None
        self._failures = 0  # in a row

    def __enter__(self) -> "Saver":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self._thread.shutdown()
        if kind is None:
            self._wait()

    def put(self, snapshot: snapshots.Snapshot, best_step: int | None, last: bool) -> None:
        """Hands over what nobody changes any more. Returns when the checkpoint before it is written; the last one is waited for too.

        Raises:
            CheckpointError: the last one, or several in a row, can't be written; the older ones are as they were.
        """
        self._wait()
        self._pending = self._thread.submit(self._save, snapshot, best_step, last)
        if last or self._failures == _MOST_FAILURES - 1:  # the run ends if this one fails
            self._wait()

    def _wait(self) -> None:
        pending, self._pending = self._pending, None
        if pending:
            pending.result()

    def _save(self, snapshot: snapshots.Snapshot, best_step: int | None, last: bool) -> None:
        try:
            snapshots.save(self._folder, snapshot, self._keep, best_step, self._flush)
            self._failures = 0
        except CheckpointError as error:
            self._failures += 1
            if last or self._failures == _MOST_FAILURES:
                raise
            say(f"warning: {error}; older ones are as they were, and training goes on")
