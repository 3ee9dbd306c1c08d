"""What the next chunk of steps takes, made by a thread while the device works."""

import concurrent.futures

import numpy as np

from trainer.data.order import Order


class Feed:
    """Batches of example indices, `num_batches` at a time. Use as a context manager."""

    def __init__(self, order: Order, num_batches: int) -> None:
        self._order, self._num_batches = order, num_batches
        self._thread = concurrent.futures.ThreadPoolExecutor(1, "feed")
        self._ahead: tuple[int, concurrent.futures.Future[np.ndarray]] | None = None

    def __enter__(self) -> "Feed":
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.shutdown(cancel_futures=True)

    def take(self, step: int, then: int) -> np.ndarray:
        """The batches from `step` on, counted from 0, int32 [num_batches, batch_size]; those from `then` on are made meanwhile."""
        ahead, self._ahead = self._ahead, (then, self._thread.submit(self._order.batches, then, self._num_batches))
        return ahead[1].result() if ahead and ahead[0] == step else self._order.batches(step, self._num_batches)
