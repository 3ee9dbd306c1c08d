"""Random words: a pure function in every mode, uniform, and independent of their neighbours."""

import itertools
import threading

import numpy as np
import pytest
import tensorflow as tf

from trainer import randomness

SHAPE = (6, 5, 4)
STEP, PLACES = tf.constant(9), tf.range(6)


def draw(step=STEP, places=PLACES, shape=SHAPE, seed=3, key="dropout"):
    with randomness.at(seed, step, places):
        return randomness.bits(key, tf.zeros(shape))


def test_the_numbers_stay_the_same_over_versions():
    np.testing.assert_array_equal(draw(shape=(6, 1))[:3, 0], FIRST_WORDS)


FIRST_WORDS = [998140159, 1781802148, 967544850]


@pytest.mark.parametrize("xla", [False, True])
def test_a_graph_draws_as_eager_does(xla):
    traced = tf.function(draw, jit_compile=xla, autograph=False)
    np.testing.assert_array_equal(traced(STEP, PLACES), draw())
    np.testing.assert_array_equal(traced(tf.constant(9, tf.int64), PLACES), draw())


@pytest.mark.parametrize("xla", [False, True])
def test_a_loop_of_steps_draws_as_each_step_alone(xla):
    @tf.function(jit_compile=xla, autograph=False)
    def loop(first):
        def body(i, rows):
            return i + 1, rows.write(i, draw(first + i))

        rows = tf.TensorArray(tf.uint32, size=3, element_shape=SHAPE)
        return tf.while_loop(lambda i, _: i < 3, body, (0, rows))[1].stack()

    np.testing.assert_array_equal(loop(tf.constant(100)), [draw(tf.constant(step)) for step in (100, 101, 102)])


def test_shapes_known_at_run_time_only():
    @tf.function(autograph=False, input_signature=[tf.TensorSpec([None], tf.int32), tf.TensorSpec([None, None, None])])
    def dynamic(places, like):
        with randomness.at(3, STEP, places):
            return randomness.bits("dropout", like)

    np.testing.assert_array_equal(dynamic(PLACES, tf.zeros(SHAPE)), draw())
    np.testing.assert_array_equal(dynamic(PLACES[:2], tf.zeros(SHAPE)), draw(places=PLACES[:2]))
    with pytest.raises(tf.errors.InvalidArgumentError, match="reshape"):
        dynamic(PLACES[:4], tf.zeros(SHAPE))


def test_an_example_has_its_numbers_wherever_it_is():
    np.testing.assert_array_equal(draw(places=tf.constant([4, 1]), shape=(2, 5, 4)), draw().numpy()[[4, 1]])


def test_replicas_draw_what_one_device_draws():
    strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])

    def replica():
        share = tf.range(3) + 3 * tf.distribute.get_replica_context().replica_id_in_sync_group
        return draw(places=share, shape=(3, 5, 4))

    parts = tf.function(lambda: strategy.run(replica), autograph=False)().values
    np.testing.assert_array_equal(tf.concat(parts, axis=0), draw())


def test_items_beside_each_other_belong_to_their_example():
    folded = draw(shape=(18, 4)).numpy().reshape(6, 3, 4)  # three items each
    np.testing.assert_array_equal(folded, draw(shape=(6, 3, 4)))
    np.testing.assert_array_equal(folded[[4, 1]].reshape(6, 4), draw(places=tf.constant([4, 1]), shape=(6, 4)))


@pytest.mark.parametrize("rows", [7, 3])
def test_rows_that_are_no_multiple_of_the_batch_are_refused(rows):
    with pytest.raises(ValueError, match=rf"noise draws .* shape \({rows}, 2\).* the batch of 6 examples, or a multiple of it"):
        draw(shape=(rows, 2), key="noise")


def test_each_draw_of_a_pass_is_another_and_each_pass_begins_anew():
    with randomness.at(3, STEP, PLACES):
        first, second = randomness.bits("dropout", tf.zeros(SHAPE)), randomness.bits("dropout", tf.zeros(SHAPE))
        with randomness.at(3, STEP + 1, PLACES):
            inner = randomness.bits("dropout", tf.zeros(SHAPE))
        third = randomness.bits("dropout", tf.zeros(SHAPE))
    np.testing.assert_array_equal(first, draw())
    np.testing.assert_array_equal(inner, draw(STEP + 1))
    for one, other in itertools.combinations([first, second, third, inner], 2):
        assert not np.any(one == other)


def test_active_within_and_in_this_thread_alone():
    seen = []
    with randomness.at(3, STEP, PLACES):
        thread = threading.Thread(target=lambda: seen.append(randomness.active()))
        thread.start()
        thread.join()
        assert randomness.active()
    assert seen == [False]


def test_a_pass_that_fails_leaves_nothing():
    with pytest.raises(ValueError, match="multiple"):
        draw(shape=(7, 1))
    assert not randomness.active()


def test_steps_beyond_32_bits_differ():
    assert not np.any(draw(tf.constant(9 + 2**32, tf.int64)) == draw())
    assert not np.any(draw(seed=-3) == draw())


AXES = ("seed", "step", "layer", "place", "element")


@pytest.fixture(scope="module")
def words():
    """Of two seeds, 16 steps, 3 layers, 64 places and 256 elements: 1.6 million."""

    @tf.function(jit_compile=True, autograph=False)
    def one(step):
        both = []
        for seed in (1, 2):
            with randomness.at(seed, step, tf.range(64)):
                both.append(tf.stack([randomness.bits(key, tf.zeros([64, 256])) for key in ("dropout", "dropout", "noise")]))
        return tf.stack(both)

    return np.stack([one(tf.constant(step)).numpy() for step in range(16)], axis=1)


def deviations(words):
    """Of the mean of each of the 32 bits from 1/2, in standard errors."""
    ones = np.array([np.mean((words >> bit) & 1) for bit in range(32)])
    return np.abs(ones - 0.5) * 2 * np.sqrt(words.size)


def chi_square(cells, num_cells):
    """How far counts are from equal ones, in standard deviations."""
    expected = cells.size / num_cells
    statistic = np.sum((np.bincount(cells.ravel(), minlength=num_cells) - expected) ** 2) / expected
    return abs(statistic - (num_cells - 1)) / np.sqrt(2 * (num_cells - 1))


def neighbours(words, axis):
    return np.take(words, range(words.shape[axis] - 1), axis), np.take(words, range(1, words.shape[axis]), axis)


def test_words_are_uniform(words):
    assert deviations(words).max() < 5
    for shift in (0, 8, 16, 24):
        assert chi_square((words >> shift) & 255, 256) < 5
    assert np.unique(words).size > words.size * (1 - 1.1 * words.size / 2**33)  # as many coincide as by chance


@pytest.mark.parametrize("axis", range(5), ids=AXES)
def test_neighbours_are_independent(words, axis):
    one, other = neighbours(words, axis)
    assert deviations(one ^ other).max() < 5
    assert chi_square((one >> 28) * 16 + (other >> 28), 256) < 5
    assert chi_square((other - one) >> 24, 256) < 5


@pytest.mark.parametrize(("first", "second"), list(itertools.combinations(range(5), 2)), ids=lambda axis: AXES[axis])
def test_neighbours_in_two_ways_at_once_are_independent(words, first, second):
    one, other = neighbours(words, first)
    one, other = neighbours(one ^ other, second)
    assert deviations(one ^ other).max() < 5


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_as_many_are_kept_as_in_independent_draws(words, rate):
    kept = randomness.kept(tf.constant(words), rate).numpy()
    assert abs(kept.mean() - (1 - rate)) < 5 * np.sqrt(rate * (1 - rate) / kept.size)
    for axis in range(5):
        counts = kept.sum(axis=axis)
        size = kept.shape[axis]
        variance = np.mean((counts - size * (1 - rate)) ** 2) / (size * rate * (1 - rate))
        assert abs(variance - 1) < 5 * np.sqrt(3 / counts.size)


def test_kept_is_exact_at_its_edge():
    edges = tf.constant([0, 2**30 - 1, 2**30, 2**32 - 1], tf.uint32)
    np.testing.assert_array_equal(randomness.kept(edges, 0.25), [False, False, True, True])
    np.testing.assert_array_equal(randomness.kept(edges, 1 - 1e-12), [False, False, False, True])


def test_normal_numbers_are_normal(words):
    x = randomness.normal(tf.constant(words)).numpy().astype(np.float64)
    for power, moment, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        assert abs(np.mean(x**power) - moment) < 5 * np.sqrt(variance / x.size)
    assert abs(np.mean(x > 1.959964) - 0.025) < 5 * np.sqrt(0.025 / x.size)


def test_normal_numbers_are_symmetric_and_finite():
    extremes = tf.constant([0, 2**32 - 1, 2**31 - 1, 2**31], tf.uint32)
    low, high, below, above = randomness.normal(extremes).numpy()
    assert -5.4 < low == -high < -5.2
    assert -1e-6 < below == -above < 0
