"""Sparsemax and entmax: probabilities known by hand, and autodiff through bisection, which is wrong."""

import numpy as np
import pytest
import tensorflow as tf

import losses
from losses.base import LossError
from losses.modes import per_example

NAMES = ["sparsemax", "entmax15"]


def evaluate(loss, y_true, y_pred, mode="analytic", dtype=tf.float64):
    """Value and gradient; "usual" is the tape through the usual formula."""
    y, p = tf.constant(y_true), tf.constant(y_pred, dtype)
    with tf.GradientTape() as tape:
        tape.watch(p)
        value = loss.usual(y, p) if mode == "usual" else per_example(loss, mode, y, p)
    return value.numpy(), tape.gradient(value, p).numpy()


@pytest.mark.parametrize(
    ("name", "y_true", "y_pred", "value", "gradient"),
    [
        ("sparsemax", 0, [0.5, 0.0, -3.0], 0.0625, [-0.25, 0.25, 0.0]),  # two classes: (1 - lead)^2 / 4
        ("sparsemax", 1, [0.5, 0.0, -3.0], 0.5625, [0.75, -0.75, 0.0]),
        ("sparsemax", 2, [0.5, 0.0, -3.0], 3.5625, [0.75, 0.25, -1.0]),
        ("sparsemax", 0, [1.0, 0.0], 0.0, [0.0, 0.0]),
        ("sparsemax", 0, [7.0, 7.0, 7.0, 7.0], 0.375, [-0.75, 0.25, 0.25, 0.25]),
        ("entmax15", 0, [7.0, 7.0, 7.0, 7.0], 2 / 3, [-0.75, 0.25, 0.25, 0.25]),
        ("entmax15", 0, [2.0, 0.0], 0.0, [0.0, 0.0]),
        ("entmax15", 1, [5.0, 0.0], 5.0, [1.0, -1.0]),
        # tau = -0.8: 0.8^2 + 0.6^2 = 1.
        ("entmax15", 0, [0.0, -0.4, -9.0], 4 / 3 * (1 - 0.728) - 0.4 * 0.36, [-0.36, 0.36, 0.0]),
    ],
)
@pytest.mark.parametrize("mode", ["auto", "analytic"])
def test_by_hand(name, y_true, y_pred, value, gradient, mode):
    found, slopes = evaluate(losses.find(name)(), [y_true], [y_pred], mode)
    assert found == pytest.approx([value], rel=1e-12, abs=1e-15)
    np.testing.assert_allclose(slopes[0], gradient, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("name", NAMES)
def test_autodiff_through_bisection_is_wrong(name):
    loss, rng = losses.find(name)(), np.random.default_rng(0)
    y, z = rng.integers(0, 4, 20), rng.normal(size=(20, 4))
    value, gradient = evaluate(loss, y, z)
    usual_value, usual_gradient = evaluate(loss, y, z, "usual")
    np.testing.assert_allclose(usual_value, value, atol=1e-12)
    assert abs(usual_gradient - gradient).max() > 0.1
    np.testing.assert_allclose(evaluate(loss, y, z, "auto")[1], gradient, atol=1e-12)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("offset", [0.0, 0.9])
def test_probabilities_of_many_classes(name, offset):
    """Rounding of the cumulative sums over 10000 classes does not reach the gradient."""
    rng = np.random.default_rng(0)
    z = (rng.normal(size=(4, 10000)) * 1e-3).astype(np.float32)
    z[:, 0] += offset
    y = rng.integers(0, 10000, 4)
    loss = losses.find(name)()
    gradient = evaluate(loss, y, z, dtype=tf.float32)[1]
    true = evaluate(loss, y, z.astype(np.float64))[1]
    assert (np.linalg.norm(gradient - true, axis=1) <= 2e-5 * np.linalg.norm(true, axis=1)).all()
    np.testing.assert_allclose(true.sum(axis=1), 0, atol=1e-12)
    assert ((true >= 0).sum(axis=1) == 9999).all()


@pytest.mark.parametrize("name", NAMES)
def test_excluded_huge_and_impossible_classes(name):
    loss = losses.find(name)()
    for mode in ("auto", "analytic"):
        value, gradient = evaluate(loss, [0, 1], [[1.0, -np.inf, 1.0], [1e30, -1e30, 0.0]], mode, tf.float32)
        np.testing.assert_allclose(value, [0.25 if name == "sparsemax" else 4 / 3 * (1 - 0.5**0.5), 2e30], rtol=1e-6)
        np.testing.assert_allclose(gradient, [[-0.5, 0.0, 0.5], [1.0, -1.0, 0.0]], rtol=1e-6)
    assert np.isnan(per_example(loss, "analytic", [3, -1], tf.zeros([2, 3]))).all()
    with pytest.raises(LossError, match="classes"):
        per_example(loss, "analytic", [[0]], tf.zeros([1, 1, 3]))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("num_classes", [1, 2, 7, 1000])
@pytest.mark.parametrize("batch", [0, 1, 40])
def test_threshold_by_steps_and_by_sorting(name, num_classes, batch):
    """Both modes have the same probabilities, of spread, nearly equal, tied, and wholly equal logits, a tie at the threshold among them."""
    loss, rng = losses.find(name)(), np.random.default_rng(0)
    z = rng.normal(size=(batch, num_classes)) * 10.0 ** rng.uniform(-8, 3, (batch, 1))
    z[1::4] = np.round(z[1::4])
    z[2::8] = 0.3
    z[6::8] = [0.0] + [-1.0 if name == "sparsemax" else -2.0] * (num_classes - 1)
    y = rng.integers(0, num_classes, batch)
    z = z.astype(np.float32).astype(np.float64)
    value, gradient = evaluate(loss, y, z)
    size = np.linalg.norm(gradient, axis=1)
    for mode, dtype, relative in (("auto", tf.float64, 1e-10), ("analytic", tf.float32, 2e-6)):
        found, slopes = evaluate(loss, y, z, mode, dtype)
        np.testing.assert_allclose(found, value, rtol=relative, atol=relative)
        assert (np.linalg.norm(slopes - gradient, axis=1) <= relative * size).all()


@pytest.mark.parametrize("name", NAMES)
def test_threshold_where_classes_leave_one_after_the_other(name):
    """Gaps that shrink geometrically let steps drop few classes at a time; the probabilities still sum to 1, in a graph and under XLA."""
    loss, z = losses.find(name)(), np.concatenate([[0.0], -1 + 2.0 ** -np.arange(1, 40), [-np.inf]])[np.newaxis].astype(np.float32)
    function = tf.function(lambda y, p: loss.value_and_vjp(y, p)[1](tf.ones([1])))
    compiled = tf.function(lambda y, p: loss.value_and_vjp(y, p)[1](tf.ones([1])), jit_compile=True)
    expected = evaluate(loss, [40], z, "auto", tf.float64)[1]
    for way in (function, compiled):
        gradient = way(tf.constant([40]), tf.constant(z)).numpy()
        np.testing.assert_allclose(gradient, expected, rtol=1e-5, atol=1e-7)
        assert gradient[0, :40].sum() == pytest.approx(1, rel=1e-6)
