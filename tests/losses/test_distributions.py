"""Losses of forecast distributions, and of a robust family: values known by hand, and where the usual formulas fail."""

import math

import mpmath
import numpy as np
import pytest
import tensorflow as tf

import losses
from losses.base import LossError
from losses.modes import per_example

SQRT_PI = math.sqrt(math.pi)


def evaluate(loss, y_true, y_pred, mode="analytic", dtype=tf.float32):
    """Value and gradient; "usual" is the tape through the usual formula."""
    y, p = tf.constant(y_true, dtype), tf.constant(y_pred, dtype)
    with tf.GradientTape() as tape:
        tape.watch(p)
        value = loss.usual(y, p) if mode == "usual" else per_example(loss, mode, y, p)
    return value.numpy(), tape.gradient(value, p).numpy()


BY_HAND = [
    ("gaussian_crps", {}, [1.0], [1.0, 0.0], (math.sqrt(2) - 1) / SQRT_PI, [0.0, (math.sqrt(2) - 1) / SQRT_PI]),
    ("gaussian_crps", {}, [3.0, 50.0], [3.0, 0.0, 0.0, 0.0], None, [0.0, -0.5, (math.sqrt(2) - 1) / SQRT_PI / 2, -0.5 / SQRT_PI]),
    ("beta_nll", {}, [3.0], [1.0, math.log(2)], 2 * math.log(2) + 1, [-1.0, 0.0]),
    ("beta_nll", {"beta": 0.0}, [3.0], [1.0, 0.0], 2.0, [-2.0, -3.0]),
    ("beta_nll", {"beta": 1.0}, [3.0], [1.0, math.log(4)], 16 * math.log(4) + 2, [-2.0, 12.0]),
    ("adaptive_robust", {}, [0.0], [math.sqrt(3)], 1.0, [math.sqrt(3) / 2]),
    ("adaptive_robust", {"alpha": 2.0, "scale": 2.0}, [1.0], [5.0], 2.0, [1.0]),
    ("adaptive_robust", {"alpha": 0.0}, [0.0], [2.0], math.log(3), [2 / 3]),
    ("adaptive_robust", {"alpha": -2.0}, [0.0], [2.0], 1.0, [0.5]),
    ("adaptive_robust", {"alpha": -math.inf}, [0.0], [1.0], 1 - math.exp(-0.5), [math.exp(-0.5)]),
    ("interval_logistic", {}, [-1.0, 1.0], [0.0, 0.0], -math.log(math.tanh(0.5)), [0.0, 1 / math.sinh(1)]),
    ("interval_logistic", {}, [-math.inf, 0.0], [0.0, 0.0], math.log(2), [0.5, 0.0]),
    ("interval_logistic", {}, [math.log(3), math.inf], [0.0, 0.0], math.log(4), [-0.75, -0.75 * math.log(3)]),
    ("interval_logistic", {}, [-math.inf, math.inf], [2.0, 1.0], 0.0, [0.0, 0.0]),
    # r = 1 is the geometric distribution: probabilities 1/2, 1/4, 1/8 for mu = 1.
    ("negative_binomial_nll", {}, [0.0], [0.0, 0.0], math.log(2), [0.5, math.log(2) - 0.5]),
    ("negative_binomial_nll", {}, [2.0], [0.0, 0.0], 3 * math.log(2), [-0.5, math.log(2) - 1]),
    ("ensemble_crps", {}, [0.0], [1.0, 3.0], 1.5, [0.75, 0.25]),
    ("ensemble_crps", {"fair": True}, [0.0], [1.0, 3.0], 1.0, [1.0, 0.0]),
    ("ensemble_crps", {}, [2.0], [3.0, 2.0, 3.0], 4 / 9, [2 / 9, 2 / 9, 2 / 9]),
    ("ensemble_crps", {}, [1.0], [4.0], 3.0, [1.0]),
]


@pytest.mark.parametrize(("name", "hyperparameters", "y_true", "y_pred", "value", "gradient"), BY_HAND)
def test_by_hand(name, hyperparameters, y_true, y_pred, value, gradient):
    found, slopes = evaluate(losses.find(name)(**hyperparameters), [y_true], [y_pred], dtype=tf.float64)
    if value is not None:
        assert found == pytest.approx([value], rel=1e-12, abs=1e-15)
    np.testing.assert_allclose(slopes[0], gradient, rtol=1e-11, atol=1e-15)


def test_usual_formulas_are_the_same_functions():
    rng = np.random.default_rng(0)
    y, p = rng.normal(size=(6, 2)), rng.normal(size=(6, 4))
    cases = [
        ("gaussian_crps", y, p),
        ("negative_binomial_nll", rng.integers(0, 9, (6, 2)), p),
        ("adaptive_robust", p, p + rng.normal(size=(6, 4))),
        ("interval_logistic", np.sort(y, axis=1), p[:, :2]),
        ("ensemble_crps", y[:, :1], p),
    ]
    for name, y_true, y_pred in cases:
        loss = losses.find(name)()
        for ours, usual in zip(
            evaluate(loss, y_true, y_pred, dtype=tf.float64), evaluate(loss, y_true, y_pred, "usual", tf.float64), strict=True
        ):
            np.testing.assert_allclose(ours, usual, rtol=1e-8, atol=1e-12, err_msg=name)


def test_gaussian_crps_far_from_the_mean():
    """d/dlog_sigma is -1 / sqrt(pi) there; the usual formula's is a difference of numbers as large as z."""
    loss = losses.find("gaussian_crps")()
    for z, wrong_by in ((1e4, 1e-4), (1e8, 0.99)):
        for mode in ("auto", "analytic"):
            assert evaluate(loss, [[z]], [[0.0, 0.0]], mode)[1][0, 1] == pytest.approx(-1 / SQRT_PI, rel=3e-7)
        usual = evaluate(loss, [[z]], [[0.0, 0.0]], "usual")[1][0, 1]
        assert abs(usual * SQRT_PI + 1) > wrong_by


@pytest.mark.parametrize(("size", "wrong_by"), [(1e3, 0.01), (1e4, 1.0), (1e8, 1.0)])
def test_negative_binomial_of_nearly_poisson_counts(size, wrong_by):
    """d/dlog_r is ((y - mu)^2 - y) / (2 r) in the limit; lgamma and digamma of r have no digits left for it."""
    loss, y, p = losses.find("negative_binomial_nll")(), [[5.0]], np.log(np.array([[4.0, size]])).astype(np.float32)
    with mpmath.workdps(60):
        log_mu, log_r = (mpmath.mpf(float(x)) for x in p[0])
        true = float(mpmath.diff(lambda x: loss.reference([mpmath.mpf(5)], [log_mu, x]), log_r))
    if size > 1e4:
        assert true == pytest.approx(-2 / size, rel=1e-3)
    assert evaluate(loss, y, p)[1][0, 1] == pytest.approx(true, rel=2e-6)
    assert abs(evaluate(loss, y, p, "usual")[1][0, 1] / true - 1) > wrong_by


def test_negative_binomial_near_its_special_cases():
    """Few failures: d/dlog_r of a geometric count in closed form, by digamma(3) - digamma(1) = 3/2. No count: r log1p(mu / r)."""
    loss = losses.find("negative_binomial_nll")()
    p = [[math.log(2), 0.0]]
    assert evaluate(loss, [[2.0]], p, dtype=tf.float64)[1][0, 1] == pytest.approx(-(1.5 - math.log(3)), rel=1e-12)
    value, gradient = evaluate(loss, [[0.0]], [[-20.0, 20.0]])
    assert value == pytest.approx(math.exp(-20), rel=1e-5)
    np.testing.assert_allclose(gradient, [[math.exp(-20), math.exp(-60) / 2]], rtol=1e-5)
    value, gradient = evaluate(loss, [[1.0]], [[1e-6, 30.0]])  # mu near y = 1: mu - y has all its digits
    np.testing.assert_allclose(gradient[0, 0], 1e-6, rtol=1e-5)


def test_negative_binomial_beyond_its_domain():
    """A size that float32 has not: the derivatives' limits, not NaN. A negative count is NaN to itself and stops nothing."""
    loss = losses.find("negative_binomial_nll")()
    value, gradient = evaluate(loss, [[5.0]] * 3 + [[-1.0]], [[1.0, -89.0], [1.0, -1e30], [88.0, -88.0], [0.0, 0.0]])
    np.testing.assert_allclose(gradient[:3], [[0, -1], [0, -1], [0, -1]], atol=1e-30)
    assert np.isfinite(value[:3]).all()
    assert np.isnan(value[3])


def test_interval_logistic_in_the_tail():
    """The interval lies 20 scales off: both sigmoids are 1."""
    loss, y, p = losses.find("interval_logistic")(), [[20.0, 21.0]], [[0.0, 0.0]]
    value, gradient = evaluate(loss, y, p, "usual")
    assert value == math.inf
    assert np.isnan(gradient).any()
    for mode in ("auto", "analytic"):
        value, gradient = evaluate(loss, y, p, mode)
        assert value == pytest.approx([20 - math.log1p(-math.exp(-1))], rel=1e-6)
        np.testing.assert_allclose(gradient, [[-1.0, -20 + 1 / math.expm1(1)]], rtol=1e-6)


def test_interval_logistic_under_a_wide_scale():
    """The slope by mu is (2 mu - lower - upper) / (4 s^2) for s large: its two sigmoids are equal in float32."""
    y, p = [[0.0, 1e-6]], [[1e-5, 0.0]]
    assert evaluate(losses.find("interval_logistic")(), y, p)[1][0, 0] == pytest.approx(1.9e-5 / 4, rel=1e-5)


@pytest.mark.parametrize("alpha", [0.0, 2.0])
def test_adaptive_robust_at_the_limits_of_its_formula(alpha):
    loss = losses.find("adaptive_robust")(alpha=alpha)
    assert np.isnan(evaluate(loss, [[0.0]], [[1.0]], "usual")[0])
    near = losses.find("adaptive_robust")(alpha=alpha + 1e-9)
    for mode in ("auto", "analytic"):
        for ours, its in zip(evaluate(loss, [[0.0]], [[1.0]], mode), evaluate(near, [[0.0]], [[1.0]], mode), strict=True):
            np.testing.assert_allclose(ours, its, rtol=1e-6)


def test_adaptive_robust_of_a_huge_error():
    loss = losses.find("adaptive_robust")()
    assert not np.isfinite(evaluate(loss, [[0.0]], [[1e25]], "usual")[0])
    value, gradient = evaluate(loss, [[0.0]], [[1e25]])
    np.testing.assert_allclose([value[0], gradient[0, 0]], [1e25, 1.0], rtol=1e-6)


@pytest.mark.parametrize(
    ("hyperparameters", "error", "slope"),
    [
        ({"alpha": -2.0, "scale": 1e-5}, 1.4e9, 16e-10 / 1.4e9**3),
        ({"alpha": 0.0, "scale": 1e-8}, 4e29, 0.5e-29),
        ({"alpha": -math.inf, "scale": 1e-3}, 13.4e-3, 13.4e3 * math.exp(-(13.4**2) / 2)),
        ({"alpha": -1234567891.0}, 1e6, 0.0),
        ({"alpha": -1e30}, 1e16, 0.0),
    ],
)
def test_adaptive_robust_far_out(hyperparameters, error, slope):
    """Powers that underflow where their product with 1 / scale does not, and exponents that float32 does not hold."""
    value, gradient = evaluate(losses.find("adaptive_robust")(**hyperparameters), [[0.0]], [[error]])
    assert np.isfinite(value).all()
    np.testing.assert_allclose(gradient, [[slope]], rtol=1e-4 if math.isinf(hyperparameters["alpha"]) else 1e-6)


def test_beta_nll_is_an_exact_likelihood_without_a_weight():
    rng = np.random.default_rng(0)
    y, p = rng.normal(size=(5, 2)), rng.normal(size=(5, 4))
    loss = losses.find("beta_nll")(beta=0.0)
    assert loss.contract == "exact"
    for ours, its in zip(evaluate(loss, y, p), evaluate(losses.find("gaussian_nll")(), y, p), strict=True):
        np.testing.assert_allclose(ours, its, rtol=1e-5, atol=1e-6)


def test_beta_nll_differs_from_the_derivative_by_what_it_says():
    loss, y, p = losses.find("beta_nll")(beta=0.25), [[1.0]], [[0.5, -0.3]]
    value, gradient = evaluate(loss, y, p, dtype=tf.float64)
    auto = evaluate(loss, y, p, "auto", tf.float64)[1]
    np.testing.assert_allclose(auto - gradient, [[0.0, 2 * 0.25 * value[0]]], rtol=1e-12, atol=1e-15)


def test_ensemble_crps_between_two_members_is_exactly_zero():
    """The fair score of two members around y is 0; the usual difference leaves rounding, with a sign."""
    loss = losses.find("ensemble_crps")(fair=True)
    y, x = np.full((50, 1), 0.3), np.random.default_rng(0).uniform([-1, 1], [0, 2], (50, 2))
    assert (evaluate(loss, y, x)[0] == 0).all()
    usual = evaluate(loss, y, x, "usual")[0]
    assert (usual != 0).any()
    assert np.isclose(usual, 0, atol=1e-6).all()


def test_ensemble_crps_tells_what_fits():
    loss = losses.find("ensemble_crps")
    np.testing.assert_array_equal(per_example(loss(), "analytic", tf.zeros([2]), tf.ones([2, 3])), [1.0, 1.0])
    with pytest.raises(LossError, match="at least 2 members"):
        per_example(loss(fair=True), "analytic", tf.zeros([2]), tf.ones([2, 1]))
    with pytest.raises(LossError, match="y_true"):
        per_example(loss(), "analytic", tf.zeros([2, 3]), tf.ones([2, 3]))
    assert loss().output_shape((1,), None) == (None,)


@pytest.mark.parametrize(
    ("name", "hyperparameters", "match"),
    [
        ("beta_nll", {"beta": 1.5}, "beta must be"),
        ("adaptive_robust", {"alpha": math.inf}, "alpha must be"),
        ("adaptive_robust", {"scale": 0.0}, "scale must be"),
        ("ensemble_crps", {"fair": 1}, "fair must be"),
    ],
)
def test_limits_of_hyperparameters(name, hyperparameters, match):
    with pytest.raises(ValueError, match=match):
        losses.find(name)(**hyperparameters)
