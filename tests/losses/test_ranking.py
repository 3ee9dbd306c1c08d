"""Losses of ranked lists: values by hand and from the literature, and gradients that no tape gives."""

import math

import numpy as np
import pytest
import scipy.stats
import sklearn.metrics
import tensorflow as tf

import losses
from losses.base import LossError
from losses.modes import per_example
from losses.proof.evaluation import evaluate


def run(name, y_true, y_pred, how="graph", dtype=np.float64, **hyperparameters):
    loss = losses.find(name)(**hyperparameters)
    value, gradient = evaluate(loss, "analytic", np.array([y_true], float), np.array([y_pred], dtype), how=how)
    return value[0], gradient[0]


@pytest.mark.parametrize("name", ["soft_spearman", "lambdarank"])
def test_there_is_no_auto(name):
    with pytest.raises(LossError, match="has no gradient mode 'auto': it has analytic"):
        per_example(losses.find(name)(), "auto", tf.zeros([1, 3]), tf.zeros([1, 3]))
    with pytest.raises(LossError, match=r"y_true must have shape \[batch, 3\]"):
        per_example(losses.find(name)(), "analytic", tf.zeros([1, 4]), tf.zeros([1, 3]))


@pytest.mark.parametrize("how", ["eager", "graph", "xla"])
def test_soft_ranks_by_hand(how):
    """Three items, r = (1, 3, 2), scale 6 / 24; p = (0, 1/2, 4): the first two pool to ranks 3/2 -+ 1/4, the third has rank 3."""
    value, gradient = run("soft_spearman", [10, 30, 20], [0, 0.5, 4], how)
    np.testing.assert_allclose(value, (0.25**2 + 1.25**2 + 1) / 4, rtol=1e-14)
    # u = (R - r) / 2 = (1/8, -5/8, 1/2), the mean of the block -1/4
    np.testing.assert_allclose(gradient, [3 / 8, -3 / 8, 0], rtol=1e-14)
    value, gradient = run("soft_spearman", [10, 30, 20], [0, 0.5, 4], how, epsilon=0.25)
    np.testing.assert_allclose(value, (0 + 1 + 1) / 4, rtol=1e-14)
    assert not gradient.any()


def test_far_scores_give_spearmans_correlation():
    rng = np.random.default_rng(0)
    y, p = rng.normal(size=20), 100 * rng.permutation(20)
    value, gradient = run("soft_spearman", y, p)
    np.testing.assert_allclose(1 - value, scipy.stats.spearmanr(y, p).statistic, rtol=1e-12)
    assert not gradient.any()
    ties = rng.integers(0, 4, 20).astype(float)
    metric = losses.find("soft_spearman")().metrics(tf.constant([ties]), tf.constant([p.astype(float)]))[0]
    np.testing.assert_allclose(metric, [scipy.stats.spearmanr(ties, p).statistic], rtol=1e-12)


@pytest.mark.parametrize("epsilon", [0.1, 1.0, 30.0])
def test_soft_ranks_are_the_nearest_point_of_the_permutahedron(epsilon):
    """Against SciPy's isotonic regression, and the gradient against differences."""
    rng = np.random.default_rng(1)
    y, p = rng.permutation(12).astype(float), rng.normal(size=12) * 3
    order = np.argsort(p)
    fit = scipy.optimize.isotonic_regression(p[order] / epsilon - np.arange(1, 13)).x
    value, gradient = run("soft_spearman", y, p, epsilon=epsilon)
    ranks = p[order] / epsilon - fit
    np.testing.assert_allclose(value, 6 * np.sum((ranks - (y[order] + 1)) ** 2) / (12 * 143), rtol=1e-12)
    step = 1e-6
    moved = [
        run("soft_spearman", y, p + step * unit, epsilon=epsilon)[0] - run("soft_spearman", y, p - step * unit, epsilon=epsilon)[0]
        for unit in np.eye(12)
    ]
    np.testing.assert_allclose(gradient, np.array(moved) / (2 * step), rtol=1e-6, atol=1e-9)


def test_one_item_and_equal_scores():
    assert run("soft_spearman", [3], [5]) == (0, 0)
    value, gradient = run("soft_spearman", [1, 2, 3], [1e30, 1e30, 1e30], dtype=np.float32)
    np.testing.assert_allclose(value, 0.5, rtol=1e-6)  # every rank is 2
    np.testing.assert_allclose(gradient, [0.5, 0, -0.5], rtol=1e-6)


@pytest.mark.parametrize("how", ["eager", "graph", "xla"])
def test_lambdas_by_hand(how):
    """Two items in the wrong order: gains 3 and 0, discounts 1 and 1 / log2(3)."""
    lost = 1 - 1 / math.log2(3)
    value, gradient = run("lambdarank", [0, 2], [1, 0], how, sigma=2.0)
    np.testing.assert_allclose(value, lost, rtol=1e-14)
    np.testing.assert_allclose(gradient, np.array([1, -1]) * 2 * lost / (1 + math.exp(-2)), rtol=1e-14)


@pytest.mark.parametrize("top_k", [1, 3, 10])
def test_ndcg_is_scikit_learns(top_k):
    rng = np.random.default_rng(0)
    y, p = rng.integers(0, 5, (8, 7)).astype(float), rng.normal(size=(8, 7))
    loss = losses.find("lambdarank")(top_k=top_k)
    expected = [sklearn.metrics.ndcg_score([2**row - 1], [scores], k=top_k) for row, scores in zip(y, p, strict=True)]
    np.testing.assert_allclose(loss.metrics(tf.constant(y), tf.constant(p))[0], expected, rtol=1e-12)
    np.testing.assert_allclose(loss.value(tf.constant(y), tf.constant(p)), 1 - np.array(expected), rtol=1e-9, atol=1e-15)


def test_a_lambda_is_the_change_of_value_when_two_change_places():
    """Far behind, the logistic function is 1: the gradient of the pair is sigma times that change."""
    y, p = [0, 1, 3], [200.0, 100.0, 0.0]
    gradient = run("lambdarank", y, p)[1]
    loss = losses.find("lambdarank")()

    def change(i, j):
        swapped = list(p)
        swapped[i], swapped[j] = p[j], p[i]
        return abs(run("lambdarank", y, swapped)[0] - run("lambdarank", y, p)[0])

    expected = [change(0, 1) + change(0, 2), change(1, 2) - change(0, 1), -change(0, 2) - change(1, 2)]
    np.testing.assert_allclose(gradient, expected, rtol=1e-9)
    at = tf.constant([p], tf.float64)
    with tf.GradientTape() as tape:
        tape.watch(at)
        surrogate = loss.surrogate(tf.constant([y], tf.float64), at, tf.constant([p], tf.float64))
    np.testing.assert_allclose(tape.gradient(surrogate, at)[0], gradient, rtol=1e-12)


def test_usual_subtraction_loses_small_values():
    """Two far ranks exchanged: 1 - NDCG is 4e-6, which 1 - a float32 ratio gives to a few percent at best."""
    n = 200
    y = np.where(np.arange(n) < 150, 1.0, 0.0)
    p = -np.arange(n, dtype=float)
    p[[149, 150]] = p[[150, 149]]
    discount = 1 / np.log2(np.arange(2.0, n + 2))
    truth = (discount[149] - discount[150]) / discount[:150].sum()
    usual = 1 - np.float32(np.float32(discount[y[np.argsort(-p)] > 0].sum()) / np.float32(discount[:150].sum()))
    assert abs(usual / truth - 1) > 1e-3
    assert run("lambdarank", y, p, dtype=np.float32, top_k=n)[0] == pytest.approx(truth, rel=1e-5)


def test_lists_without_relevant_items_and_huge_grades():
    assert run("lambdarank", [0, 0], [1, 2])[0] == 0
    assert not run("lambdarank", [0, 0], [1, 2])[1].any()
    value, gradient = run("lambdarank", [300, 299], [0, 1], dtype=np.float32)
    ideal, found = 1 + 0.5 / math.log2(3), 0.5 + 1 / math.log2(3)
    np.testing.assert_allclose(value, 1 - found / ideal, rtol=1e-6)
    assert np.isfinite(gradient).all()
    assert gradient[0] < 0 < gradient[1]
