"""What the next chunk of steps takes, made by threads while the device works."""

import concurrent.futures
import math
from typing import Any

import numpy as np
import tensorflow as tf

from trainer.data.order import Order
from trainer.data.prepare import Part
from trainer.data.stream import PIECE_BYTES, ahead

CHUNK_BYTES = 2**24  # of a chunk's batches; while one is used the next is made, as arrays and then as tensors


def most_batches(part: Part, batch_size: int) -> int:
    """How many batches fit into a chunk; one at least."""
    return max(1, CHUNK_BYTES // (batch_size * sum(array.nbytes for array in part.rows(np.zeros(1, int)).arrays())))


class Feed:
    """Batches, a chunk at a time: as indices, or for examples that are not on the device the examples themselves.

    Use as a context manager.

    Args:
        order: which examples, at which step.
        num_batches: the most in a chunk.
        part: where the examples are read; None: they are on the device.
        whole: whether a chunk of examples has the shape of `num_batches`, however few it holds, so that its program is compiled once.
    """

    def __init__(self, order: Order, num_batches: int, part: Part | None = None, whole: bool = False) -> None:
        self._order, self._num_batches, self._part, self._whole = order, num_batches, part, whole
        self._thread = concurrent.futures.ThreadPoolExecutor(1, "feed")
        self._ahead: tuple[int, int, concurrent.futures.Future[tuple[np.ndarray, Any]]] | None = None

    def __enter__(self) -> "Feed":
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.shutdown(cancel_futures=True)

    def take(self, step: int, end: int, then: int) -> tuple[np.ndarray, Any]:
        """The batches of steps `step` to `end`, counted from 0, without the last; those from `end` to `then` are made meanwhile.

        Returns:
            Indices, int32 [end - step, batch_size]; and what the chunk takes: these as [num_batches, batch_size], or a list of arrays
            [end - step or num_batches, batch_size, ...], of which the first end - step are filled.
        """
        now = self._ahead[2] if self._ahead and self._ahead[:2] == (step, end) else self._thread.submit(self._make, step, end)
        self._ahead = (end, then, self._thread.submit(self._make, end, then)) if then > end else None
        return now.result()

    def _make(self, step: int, end: int) -> tuple[np.ndarray, Any]:
        indices = self._order.batches(step, end - step)
        if self._part is None:
            chunk = np.zeros([self._num_batches, indices.shape[1]], np.int32)
            chunk[: len(indices)] = indices
            return indices, tf.constant(chunk)
        return indices, [tf.constant(array) for array in self._read(self._part, indices)]

    def _read(self, part: Part, indices: np.ndarray) -> list[np.ndarray]:
        rows = indices.reshape(-1)
        like = part.rows(rows[:1]).arrays()
        length = self._num_batches if self._whole else len(indices)
        arrays = [np.zeros([length * indices.shape[1], *array.shape[1:]], array.dtype) for array in like]
        together = max(1, PIECE_BYTES // sum(array.nbytes for array in like))
        together = min(together, math.ceil(len(rows) / part.num_readers))  # so that every thread has some

        def read(start: int) -> None:
            for array, piece in zip(arrays, part.rows(rows[start : start + together]).arrays(), strict=True):
                array[start : start + len(piece)] = piece

        for _ in ahead(read, range(0, len(rows), together), part.num_readers):
            pass
        return [array.reshape(length, *indices.shape[1:], *array.shape[1:]) for array in arrays]
