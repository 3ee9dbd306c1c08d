"""The order in which examples are seen: a pure function of (seed, epoch, step), so that resuming needs no iterator state."""

import functools

import numpy as np


class Order:
    """Batches of example indices out of an endless stream of permutations.

    The epochs' permutations stand one after the other; batch k is positions k*B to k*B + B - 1 of that stream and may cross
    epochs: no partial batch, nothing seen twice or missed within an epoch. It knows nothing of replicas or compile modes.
    """

    def __init__(self, num_examples: int, batch_size: int, seed: int) -> None:
        self.num_examples = num_examples
        self.batch_size = batch_size
        self.seed = seed
        self._permutation = functools.lru_cache(maxsize=2)(self._draw)

    def batches(self, first: int, num_batches: int) -> np.ndarray:
        """Indices of batches first, first + 1, ..., counted from 0; int32 [num_batches, batch_size]."""
        position, end = first * self.batch_size, (first + num_batches) * self.batch_size
        pieces = []
        while position < end:
            epoch, offset = divmod(position, self.num_examples)
            piece = self._permutation(epoch)[offset : offset + end - position]
            pieces.append(piece)
            position += len(piece)
        return np.concatenate(pieces).reshape(num_batches, self.batch_size)

    def _draw(self, epoch: int) -> np.ndarray:
        # Sorting raw draws instead of Generator.permutation: NumPy promises the raw stream to stay the same over its versions.
        draws = np.random.Philox(key=[self.seed, epoch]).random_raw(self.num_examples)
        return np.argsort(draws, kind="stable").astype(np.int32)
