"""Entropic transport against a long run in float64, and against what is known of its limits."""

import numpy as np
import pytest
import tensorflow as tf

import losses
from losses.proof.evaluation import evaluate


def long_run(y, p, epsilon):
    """Value and gradient of one example after 20000 iterations in NumPy."""
    costs = ((p[:, None] - y) ** 2).sum(axis=-1)
    kernel, v = np.exp(-costs / epsilon), np.ones(len(y))
    for _ in range(20000):
        u = 1 / len(p) / (kernel @ v)
        v = 1 / len(y) / (kernel.T @ u)
    plan = u[:, None] * kernel * v
    value = (plan * costs).sum() + epsilon * (plan * np.log(plan * plan.size)).sum()
    return value, 2 * (plan[:, :, None] * (p[:, None] - y)).sum(axis=1)


@pytest.mark.parametrize("how", ["graph", "xla"])
@pytest.mark.parametrize("epsilon", [0.1, 1.0])
def test_sinkhorn_is_the_long_run(epsilon, how):
    rng = np.random.default_rng(0)
    p, y, dy = rng.normal(size=(3, 5, 2)) / 2, rng.normal(size=(3, 4, 2)) / 2, rng.normal(size=3)
    loss = losses.find("sinkhorn")(epsilon=epsilon, num_iterations=5000, tolerance=1e-12)
    value, gradient = evaluate(loss, "analytic", y, tf.constant(p), dy, how)
    for b in range(3):
        expected, slopes = long_run(y[b], p[b], epsilon)
        assert value[b] == pytest.approx(expected, rel=1e-9)
        np.testing.assert_allclose(gradient[b], dy[b] * slopes, rtol=1e-8, atol=1e-10)
    assert not loss.metrics(y, tf.constant(p))[0].numpy().any()


def test_sinkhorn_auto_and_analytic_agree_once_converged():
    rng = np.random.default_rng(0)
    p, y = rng.normal(size=(2, 6, 2)) / 2, rng.normal(size=(2, 6, 2)) / 2
    loss = losses.find("sinkhorn")(tolerance=1e-13, num_iterations=1000)
    (value, gradient), (auto, slopes) = (evaluate(loss, mode, y, tf.constant(p)) for mode in ("analytic", "auto"))
    np.testing.assert_array_equal(value, auto)
    np.testing.assert_allclose(gradient, slopes, rtol=1e-8, atol=1e-11)


def test_sinkhorn_reports_that_it_has_not_converged():
    """The first example's clouds are at the same place, the second's need more than three iterations."""
    rng = np.random.default_rng(0)
    y = rng.normal(size=(2, 4, 2))
    p = np.stack([np.zeros((3, 2)), rng.normal(size=(3, 2))])
    loss = losses.find("sinkhorn")(epsilon=0.05, num_iterations=3)
    np.testing.assert_array_equal(loss.metrics(y, tf.constant(p))[0], [0, 1])


def test_sinkhorn_of_single_points_is_their_squared_distance():
    value, gradient = evaluate(losses.find("sinkhorn")(), "analytic", np.zeros((1, 1, 2)), tf.constant([[[3.0, 4.0]]]))
    np.testing.assert_allclose(value, [25.0], rtol=1e-6)
    np.testing.assert_allclose(gradient, [[[6.0, 8.0]]], rtol=1e-6)


def test_sinkhorn_an_example_does_not_depend_on_the_others():
    rng = np.random.default_rng(0)
    p, y = rng.normal(size=(3, 4, 2)), rng.normal(size=(3, 4, 2))
    p[1] = np.nan
    loss = losses.find("sinkhorn")()
    value, gradient = evaluate(loss, "analytic", y, tf.constant(p))
    for b in (0, 2):
        alone, slopes = evaluate(loss, "analytic", y[b : b + 1], tf.constant(p[b : b + 1]))
        np.testing.assert_allclose(value[b], alone[0], rtol=1e-14)
        np.testing.assert_allclose(gradient[b], slopes[0], rtol=1e-13)
    assert np.isnan(value[1])
