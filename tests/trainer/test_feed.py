"""Batches made ahead: the right ones, in bounded number."""

import threading

import numpy as np
import pytest

from trainer.data.feed import CHUNK_BYTES, Feed, most_batches
from trainer.data.order import Order
from trainer.data.prepare import Split
from trainer.errors import DataError

ORDER = Order(40, 4, 0)


class Part:
    """Example i is [i, i]; it counts what is asked for, and waits where it is told to."""

    num_readers = 2

    def __init__(self):
        self.asked, self.lock = [], threading.Lock()
        self.open = threading.Event()
        self.open.set()

    def __len__(self):
        return 40

    def rows(self, rows):
        self.open.wait()
        rows = np.asarray(rows)
        with self.lock:
            self.asked += rows.tolist()
        if (rows == 99).any():
            raise DataError("row 99 is damaged")
        return Split(np.stack([rows, rows], axis=1).astype(np.float32), rows.astype(np.int32), None)


def test_a_chunk_takes_always_as_many_indices():
    with Feed(ORDER, 6) as feed:
        for step, end, then in ((0, 6, 12), (6, 12, 15), (12, 15, 15), (3, 5, 9)):
            indices, batches = feed.take(step, end, then)
            np.testing.assert_array_equal(indices, ORDER.batches(step, end - step))
            assert len(batches) == 6
            np.testing.assert_array_equal(batches[: end - step], indices)


@pytest.mark.parametrize("whole", [False, True])
def test_examples_are_those_of_the_order_whatever_the_chunks(whole):
    # As made ahead; another end, and another beginning, than was made ahead; the last.
    with Feed(ORDER, 6, Part(), whole) as feed:
        for step, end, then in ((0, 6, 12), (6, 12, 15), (12, 14, 20), (13, 17, 23), (17, 23, 23)):
            indices, (features, targets) = feed.take(step, end, then)
            expected = ORDER.batches(step, end - step)
            np.testing.assert_array_equal(indices, expected)
            assert len(features) == len(targets) == (6 if whole else end - step)
            np.testing.assert_array_equal(targets[: end - step], expected)
            np.testing.assert_array_equal(features[: end - step], np.stack([expected] * 2, axis=-1))


def test_a_slow_source_loses_and_repeats_nothing():
    part = Part()
    part.open.clear()
    taken = []
    with Feed(ORDER, 5, part) as feed:
        threading.Timer(0, part.open.set).start()  # at some moment from here on
        for step in range(0, 50, 5):
            taken.append(np.array(feed.take(step, step + 5, step + 10)[1][1]))
    np.testing.assert_array_equal(np.concatenate(taken), ORDER.batches(0, 50))


def test_no_more_than_the_next_chunk_is_read_ahead():
    part = Part()
    with Feed(ORDER, 5, part) as feed:
        for step in range(0, 30, 5):
            feed.take(step, step + 5, step + 10)
    # A row more for each chunk, which shapes are taken from. The last one ahead may have been dropped.
    assert 6 * (5 * 4 + 1) <= len(part.asked) <= 7 * (5 * 4 + 1)


def test_what_a_reader_raises_reaches_who_takes():
    damaged = Order(40, 4, 0)
    damaged.batches = lambda first, num: np.full([num, 4], 99 if first >= 5 else 1, np.int32)
    with Feed(damaged, 5, Part()) as feed:
        feed.take(0, 5, 10)
        with pytest.raises(DataError, match="row 99"):
            feed.take(5, 10, 15)


def test_a_chunk_has_a_size():
    assert most_batches(Part(), 4) == CHUNK_BYTES // (4 * 12)
    assert most_batches(Part(), CHUNK_BYTES) == 1
