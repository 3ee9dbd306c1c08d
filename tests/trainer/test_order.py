"""The order of the data: every example once an epoch, whatever the chunks, the same for the same seed."""

import numpy as np
import pytest

from trainer.data.order import Order


@pytest.mark.parametrize(("num_examples", "batch_size"), [(10, 3), (10, 5), (7, 7), (5, 1), (3, 8)])
def test_every_example_is_seen_once_an_epoch(num_examples, batch_size):
    stream = Order(num_examples, batch_size, seed=0).batches(0, 6 * num_examples).ravel()
    epochs = stream.reshape(-1, num_examples)
    assert (np.sort(epochs, axis=1) == np.arange(num_examples)).all()


def test_batches_are_full_and_cross_epochs():
    batches = Order(10, 4, seed=0).batches(0, 5)
    assert batches.shape == (5, 4)
    assert batches.dtype == np.int32
    # The third batch has the last two of the first epoch and the first two of the second.
    assert set(batches[:2].ravel()) | set(batches[2, :2]) == set(range(10))
    assert set(batches[2, 2:]) | set(batches[3:].ravel()) == set(range(10))


@pytest.mark.parametrize("chunks", [[12], [1] * 12, [5, 7], [7, 3, 2]])
def test_chunks_do_not_matter(chunks):
    order, first, parts = Order(10, 3, seed=4), 0, []
    for num_batches in chunks:
        parts.append(order.batches(first, num_batches))
        first += num_batches
    np.testing.assert_array_equal(np.concatenate(parts), Order(10, 3, seed=4).batches(0, 12))


def test_a_resumed_run_needs_no_state():
    fresh = Order(100, 7, seed=2)
    np.testing.assert_array_equal(fresh.batches(1000, 3), Order(100, 7, seed=2).batches(0, 1003)[1000:])


def test_epochs_and_seeds_differ():
    first, second = Order(100, 100, seed=0).batches(0, 2)
    assert (first != second).any()
    assert (first != Order(100, 100, seed=1).batches(0, 1)[0]).any()
    # Neighboring seeds don't share later epochs either.
    assert (second != Order(100, 100, seed=1).batches(0, 1)[0]).any()


def test_order_is_shuffled():
    permutations = Order(4, 4, seed=0).batches(0, 4800)
    counts = np.array([(permutations == example).sum(axis=0) for example in range(4)])  # [example, place]
    assert abs(counts - 1200).max() < 5 * np.sqrt(4800 * 0.25 * 0.75)


def test_order_stays_the_same_over_versions():
    assert Order(8, 8, seed=3).batches(0, 2).tolist() == [[6, 1, 5, 2, 7, 4, 3, 0], [7, 3, 5, 6, 4, 0, 2, 1]]
