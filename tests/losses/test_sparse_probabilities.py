"""Sparsemax and entmax: probabilities known by hand, and autodiff through bisection, which is wrong."""

import numpy as np
import pytest
import tensorflow as tf

import losses
from losses.base import LossError, per_example

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
