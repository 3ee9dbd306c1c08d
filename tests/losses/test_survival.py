"""Cox's partial likelihood: values by hand, and where the usual formula fails."""

import math

import numpy as np
import pytest
import tensorflow as tf

import losses
from losses.base import LossError
from losses.proof.evaluation import cast, evaluate

COX = losses.find("cox")()


def run(mode, time, event, eta, dtype=tf.float64, dy=None, how="graph", mask=None):
    y_true, y_pred = np.stack([time, event], axis=1).astype(float), np.array(eta, float)[:, None]
    value, gradient = evaluate(COX, mode, y_true, cast(y_pred, dtype), dy, how, mask)
    return value, gradient[:, 0]


@pytest.mark.parametrize("mode", ["analytic", "auto"])
def test_equal_hazards_count_who_is_at_risk(mode):
    """Times 1 to 4, the third censored: log 4, log 3, 0 and 0; each event lowers its own hazard and raises those at risk alike."""
    value, gradient = run(mode, [1, 2, 3, 4], [1, 1, 0, 1], [0.5] * 4)
    np.testing.assert_allclose(value, [math.log(4), math.log(3), 0, 0], rtol=1e-12, atol=1e-15)
    np.testing.assert_allclose(gradient, [1 / 4 - 1, 1 / 4 + 1 / 3 - 1, 1 / 4 + 1 / 3, 1 / 4 + 1 / 3 + 1 - 1], rtol=1e-12)


@pytest.mark.parametrize("mode", ["analytic", "auto"])
def test_breslow_ties_and_any_order(mode):
    """Two events at time 2 share the risk set of three: e^eta of 1, 2, 3, so that each has log 6 - eta."""
    value, gradient = run(mode, [5, 2, 2], [0, 1, 1], np.log([3.0, 1.0, 2.0]), dy=np.array([7.0, 1.0, 10.0]))
    np.testing.assert_allclose(value, [0, math.log(6), math.log(3)], rtol=1e-12)
    np.testing.assert_allclose(gradient, [11 * 3 / 6, 11 * 1 / 6 - 1, 11 * 2 / 6 - 10], rtol=1e-12)


@pytest.mark.parametrize("how", ["eager", "graph", pytest.param("xla", marks=pytest.mark.slow)])
@pytest.mark.parametrize("mode", ["analytic", "auto"])
def test_against_the_definition(mode, how):
    """More examples than one doubling reaches, many of them tied, against the [n, n] mask in float64."""
    rng = np.random.default_rng(0)
    n = 37
    time, event, eta, dy = rng.integers(1, 12, n), rng.integers(0, 2, n), rng.normal(size=n) * 3, rng.normal(size=n)
    at_risk = time[None] >= time[:, None]
    share = at_risk * np.exp(eta) / (at_risk @ np.exp(eta))[:, None]
    value, gradient = run(mode, time, event, eta, dy=dy, how=how)
    np.testing.assert_allclose(value, event * (np.log(at_risk @ np.exp(eta)) - eta), rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(gradient, (dy * event) @ share - dy * event, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("mode", ["analytic", "auto"])
def test_masked_examples_are_at_risk_with_nobody(mode):
    time, event, eta = np.array([1.0, 9, 2, 2]), np.array([1, 1, 1, 0]), np.array([0.1, 5, -0.3, 2])
    mask = np.array([True, False, True, True])
    value, gradient = run(mode, time, event, eta, mask=mask)
    kept_value, kept_gradient = run(mode, time[mask], event[mask], eta[mask])
    np.testing.assert_allclose(value[mask], kept_value, rtol=1e-14)
    np.testing.assert_allclose(gradient[mask], kept_gradient, rtol=1e-13)
    assert value[1] == gradient[1] == 0
    assert not run(mode, time, event, eta, mask=np.zeros(4, bool))[1].any()


def test_usual_overflows():
    """e^eta overflows from 89 on."""
    data = [1, 2, 3], [1, 1, 1], [89.0, 88.0, 20.0]
    assert not np.isfinite(run("usual", *data, dtype=tf.float32)[0]).all()
    assert np.isnan(run("usual", *data, dtype=tf.float32)[1]).any()
    for mode in ("analytic", "auto"):
        value, gradient = run(mode, *data, dtype=tf.float32)
        np.testing.assert_allclose(value, [math.log1p(math.exp(-1)), math.exp(-68), 0], rtol=1e-6)
        rest = 1 / (1 + math.e)
        last = math.exp(-69) / (1 + math.exp(-1)) + math.exp(-68) if mode == "analytic" else 0  # auto: 1 - 1
        np.testing.assert_allclose(gradient, [-rest, rest - math.exp(-68), last], rtol=1e-6)


def test_usual_loses_a_leader():
    """20 ahead of the only other one at risk: log S - eta rounds to 0 in float32, and so does 1 - pi."""
    data = [1, 2], [1, 0], [20.0, 0.0]
    value, gradient = run("usual", *data, dtype=tf.float32)
    assert value[0] == gradient[0] == 0
    value, gradient = run("analytic", *data, dtype=tf.float32)
    np.testing.assert_allclose(value, [math.exp(-20), 0], rtol=1e-6)
    np.testing.assert_allclose(gradient, [-math.exp(-20), math.exp(-20)], rtol=1e-6)


def test_shapes_are_refused():
    with pytest.raises(LossError, match=r"y_true must have shape \[batch, 2\]"):
        evaluate(COX, "analytic", np.ones(4), tf.zeros([4, 1]), how="eager")
    with pytest.raises(LossError, match=r"y_pred must have shape \[batch, 1\]"):
        evaluate(COX, "analytic", np.ones((4, 2)), tf.zeros([4, 2]), how="eager")
