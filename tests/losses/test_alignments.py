"""Alignments: soft_dtw and ctc against every path, one by one, and against TensorFlow's own."""

import itertools
import math

import numpy as np
import pytest
import tensorflow as tf

import losses
from losses.base import LossError
from losses.proof.evaluation import cast, evaluate

CTC = losses.find("ctc")()


def warping_paths(i, j):
    """All paths of cells from (0, 0) to (i, j)."""
    if i == j == 0:
        return [[(0, 0)]]
    before = [(i - 1, j), (i, j - 1), (i - 1, j - 1)]
    return [[*path, (i, j)] for a, b in before if a >= 0 and b >= 0 for path in warping_paths(a, b)]


@pytest.mark.parametrize("how", ["graph", "xla"])
@pytest.mark.parametrize(("time", "other"), [(1, 1), (1, 4), (4, 1), (3, 4), (4, 3)])
def test_soft_dtw_is_the_softmin_over_all_paths(time, other, how):
    rng, gamma = np.random.default_rng(0), 0.7
    p, y, dy = rng.normal(size=(2, time, 2)), rng.normal(size=(2, other, 2)), np.array([1.0, -2.0])
    value, gradient = evaluate(losses.find("soft_dtw")(gamma=gamma), "analytic", y, tf.constant(p), dy, how)
    for b in range(2):
        costs = ((p[b][:, None] - y[b]) ** 2).sum(axis=-1)
        paths = warping_paths(time - 1, other - 1)
        powers = np.array([math.exp(-sum(costs[cell] for cell in path) / gamma) for path in paths])
        assert value[b] == pytest.approx(-gamma * math.log(powers.sum()), rel=1e-10)
        expected = np.zeros_like(p[b])
        for path, share in zip(paths, powers / powers.sum(), strict=True):
            for i, j in path:
                expected[i] += 2 * share * (p[b, i] - y[b, j])
        np.testing.assert_allclose(gradient[b], dy[b] * expected, rtol=1e-8, atol=1e-12)


def test_soft_dtw_of_huge_and_tiny_series():
    """Costs of 1e60 don't overflow on the way to a gradient of 1e30; those of 1e-60 leave the number of paths."""
    loss, y = losses.find("soft_dtw")(), np.zeros((1, 2, 1))
    value, gradient = evaluate(loss, "analytic", y, tf.constant([[[1e30], [3e30]]]))
    assert np.isposinf(value)
    np.testing.assert_allclose(gradient, [[[2e30], [6e30]]], rtol=1e-5)
    value, gradient = evaluate(loss, "analytic", y, tf.constant([[[1e-30], [3e-30]]]))
    np.testing.assert_allclose(value, [-math.log(3)], rtol=1e-6)
    np.testing.assert_allclose(gradient, [[[2 * 4 / 3 * 1e-30], [2 * 4 / 3 * 3e-30]]], rtol=1e-5)


def usual_soft_dtw_gradient(p, y, gamma):
    """Of two series [time], by weights taken from e^((R_next - R - c) / gamma) once more, in the dtype of p."""
    costs = np.pad((p[:, None] - y) ** 2, [(1, 1), (1, 1)]).astype(p.dtype)
    r = np.full_like(costs, np.inf)
    r[0, 0] = 0
    end = len(p), len(y)
    cells = list(itertools.product(range(1, end[0] + 1), range(1, end[1] + 1)))
    for i, j in cells:
        before = np.array([r[i, j - 1], r[i - 1, j - 1], r[i - 1, j]])
        r[i, j] = costs[i, j] + before.min() - gamma * np.log(np.exp((before.min() - before) / gamma).sum())
    visits = np.zeros_like(costs)
    visits[end] = 1
    for i, j in reversed(cells[:-1]):
        after = [cell for cell in ((i, j + 1), (i + 1, j + 1), (i + 1, j)) if np.isfinite(r[cell])]
        visits[i, j] = sum(np.exp((r[cell] - r[i, j] - costs[cell]) / gamma) * visits[cell] for cell in after)
    return 2 * (visits[1:-1, 1:-1] * (p[:, None] - y)).sum(axis=1)


def test_usual_soft_dtw_gradient_loses_three_digits():
    """Its weights are the exponentials of differences of numbers as large as the whole cost."""
    gamma = np.float32(0.1)
    p, y = np.random.default_rng(0).normal(size=(2, 96)).cumsum(axis=1).astype(np.float32)
    exact = usual_soft_dtw_gradient(p.astype(float), y.astype(float), float(gamma))
    assert np.linalg.norm(usual_soft_dtw_gradient(p, y, gamma) - exact) > 1e-3 * np.linalg.norm(exact)
    loss = losses.find("soft_dtw")(gamma=float(gamma))
    gradient = evaluate(loss, "analytic", y[None, :, None], tf.constant(p[None, :, None]))[1][0, :, 0]
    np.testing.assert_allclose(gradient, exact, atol=1e-5 * np.linalg.norm(exact))


def ctc_by_paths(labels, num_frames, p):
    """The value, and its gradient by central differences."""

    def value(p):
        pi = np.exp(p) / np.exp(p).sum(axis=1, keepdims=True)
        total, blank = 0.0, p.shape[1] - 1
        for path in itertools.product(range(p.shape[1]), repeat=num_frames):
            if [k for k, _ in itertools.groupby(path) if k != blank] == labels:
                total += np.prod([pi[t, k] for t, k in enumerate(path)])
        return -math.log(total) if total else 0.0

    gradient, step = np.zeros_like(p), 1e-5
    for at in np.ndindex(p.shape):
        change = np.zeros_like(p)
        change[at] = step
        gradient[at] = (value(p + change) - value(p - change)) / (2 * step)
    return value(p), gradient


@pytest.mark.parametrize("how", ["graph", "xla"])
def test_ctc_is_the_sum_over_all_alignments(how):
    rng = np.random.default_rng(0)
    labels = [[], [0], [0, 1], [1, 1], [0, 1, 0], [1, 0], [0, 0, 1], [1]]
    num_frames, dy = np.array([4, 4, 2, 3, 3, 4, 4, 1]), rng.normal(size=8)
    padded, p = np.array([label + [-1] * (3 - len(label)) for label in labels]), rng.normal(size=(8, 4, 3))
    y = {"labels": padded, "num_frames": num_frames}
    value, gradient = evaluate(CTC, "analytic", cast(y, tf.float64), tf.constant(p), dy, how)
    auto, slopes = evaluate(CTC, "auto", cast(y, tf.float64), tf.constant(p), dy, how)
    for b in range(8):
        expected, slope = ctc_by_paths(labels[b], num_frames[b], p[b])
        assert value[b] == pytest.approx(expected, rel=1e-10)
        np.testing.assert_allclose(gradient[b], dy[b] * slope, rtol=1e-6, atol=1e-8)
    np.testing.assert_allclose(auto, value, rtol=1e-10)
    np.testing.assert_allclose(slopes, gradient, rtol=1e-8, atol=1e-10)


def test_ctc_agrees_with_tensorflow():
    rng = np.random.default_rng(0)
    y = {
        "labels": np.where(np.arange(6) < rng.integers(0, 7, (5, 1)), rng.integers(0, 9, (5, 6)), -1),
        "num_frames": rng.integers(13, 31, 5),
    }
    y, p = cast(y, tf.float32), tf.constant(rng.normal(size=(5, 30, 10)), tf.float32)
    value, gradient = evaluate(CTC, "analytic", y, p)
    usual, slopes = evaluate(CTC, "usual", y, p)
    np.testing.assert_allclose(value, usual, rtol=1e-5)
    np.testing.assert_allclose(gradient, slopes, atol=1e-4)


@pytest.mark.parametrize("mode", ["analytic", "auto"])
def test_ctc_infeasible_labels_count_and_do_nothing(mode):
    y = {"labels": np.array([[0, 1], [0, 0], [0, 0], [0, -1]]), "num_frames": np.array([1, 2, 3, 0])}
    p = np.random.default_rng(0).normal(size=(4, 3, 3))
    value, gradient = evaluate(CTC, mode, cast(y, tf.float64), tf.constant(p))
    (infeasible,) = CTC.metrics(cast(y, tf.float64), tf.constant(p))
    np.testing.assert_array_equal(infeasible, [1, 1, 0, 1])
    np.testing.assert_array_equal(value != 0, [False, False, True, False])
    np.testing.assert_array_equal(gradient.any(axis=(1, 2)), [False, False, True, False])


def test_ctc_frames_that_are_certain_keep_their_gradient():
    """Of a labeling that is right by 30: TensorFlow's difference of softmax and occupancy is rounding, its value 0."""
    p = np.zeros((1, 2, 3), np.float32)
    p[0, [0, 1], [0, 2]] = 30.0
    y = cast({"labels": np.array([[0]]), "num_frames": np.array([2])}, tf.float32)
    value, gradient = evaluate(CTC, "analytic", y, tf.constant(p))
    expected, slopes = evaluate(CTC, "analytic", y, tf.constant(p, tf.float64))
    # Wrong are 1 and blank in the first frame, and 1 in the second, e^-30 each.
    np.testing.assert_allclose(expected, [3 * math.exp(-30)], rtol=1e-3)
    np.testing.assert_allclose(value, expected, rtol=1e-4)
    np.testing.assert_allclose(gradient, slopes, rtol=1e-4, atol=1e-20)
    assert evaluate(CTC, "usual", y, tf.constant(p))[0] == 0


def test_ctc_label_out_of_range_is_nan_for_its_example_alone():
    y = {"labels": np.array([[0], [2], [1]]), "num_frames": np.array([3, 3, 3])}
    value, gradient = evaluate(CTC, "analytic", cast(y, tf.float32), tf.zeros([3, 3, 3]))
    np.testing.assert_array_equal(np.isnan(value), [False, True, False])
    np.testing.assert_array_equal(np.isnan(gradient).any(axis=(1, 2)), [False, True, False])


def test_ctc_refuses_other_targets():
    p = tf.zeros([2, 5, 3])
    with pytest.raises(LossError, match="must be a dict of labels"):
        CTC.check_shapes(tf.zeros([2, 2], tf.int32), p)
    with pytest.raises(LossError, match=r"labels must have shape \[2, length\]"):
        CTC.check_shapes({"labels": tf.zeros([3, 2], tf.int32), "num_frames": tf.zeros([2], tf.int32)}, p)
    with pytest.raises(LossError, match="takes integers as num_frames"):
        CTC.check_shapes({"labels": tf.zeros([2, 2], tf.int32), "num_frames": tf.zeros([2])}, p)
    assert CTC.output_shape((7,), 26) == (27,)
