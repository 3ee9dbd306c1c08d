"""Losses of embeddings and points: values by hand and from the literature, and where the usual formulas fail."""

import math

import numpy as np
import pytest
import tensorflow as tf

import losses
from losses.base import LossError
from losses.proof.evaluation import cast, evaluate


def run(name, mode, y_true, y_pred, dtype=tf.float64, **hyperparameters):
    """Value and gradient of one example."""
    y_pred = tf.nest.map_structure(lambda p: np.array(p, float), y_pred)
    return evaluate(losses.find(name)(**hyperparameters), mode, y_true, cast(y_pred, dtype))


@pytest.mark.parametrize("mode", ["analytic", "auto"])
@pytest.mark.parametrize(
    ("name", "hyperparameters", "y_true", "y_pred", "value", "gradient"),
    [
        # a - p = (3, 4) / 5, a - n = (0, -2) / 2: 5 - 2 + 1
        ("triplet", {}, None, [[3, 4], [0, 0], [3, 6]], 4.0, [[0.6, 1.8], [-0.6, -0.8], [0, -1]]),
        ("triplet", {"margin": 0.25}, None, [[3, 4], [3, 3], [3, 6]], 0.0, [[0, 0], [0, 0], [0, 0]]),
        ("triplet", {}, None, [[1, 1], [1, 1], [1, 1]], 1.0, [[0, 0], [0, 0], [0, 0]]),
        ("triplet", {"margin": 3.0}, None, [[0, 0], [0, 0], [0, 2]], 1.0, [[0, 1], [0, 0], [0, -1]]),
        ("contrastive", {}, 1.0, [[3, 4], [0, 0]], 25.0, [[6, 8], [-6, -8]]),
        ("contrastive", {"margin": 10.0}, 0.0, [[3, 4], [0, 0]], 25.0, [[-6, -8], [6, 8]]),
        ("contrastive", {"margin": 5.0}, 0.0, [[3, 4], [0, 0]], 0.0, [[0, 0], [0, 0]]),
        ("contrastive", {}, 0.0, [[1, 2], [1, 2]], 1.0, [[0, 0], [0, 0]]),
        # From the center the distance to radius r is 2 artanh r, its derivative 2 / (1 - r^2).
        ("poincare", {}, [0, 0], [0.6, 0], 2 * math.atanh(0.6), [2 / 0.64, 0]),
        # Nickel and Kiela's arcosh(1 + 2 ||p - y||^2 / (A B)), by hand at p = (1/2, 0), y = (0, 1/2).
        ("poincare", {}, [0, 0.5], [0.5, 0], math.acosh(1 + 16 / 9), None),
        ("poincare", {}, [0.3, 0.4], [0.3, 0.4], 0.0, [0, 0]),
        ("poincare", {}, [0, 0], [0, 1], math.inf, [0, 0]),
        ("poincare", {}, [0, 2], [0, 0], math.inf, [0, 0]),
    ],
)
def test_by_hand(name, mode, hyperparameters, y_true, y_pred, value, gradient):
    y_true = None if y_true is None else np.array([y_true], float)
    found, slopes = run(name, mode, y_true, [y_pred], **hyperparameters)
    np.testing.assert_allclose(found, [value], rtol=1e-12)
    if gradient is not None:
        np.testing.assert_allclose(slopes[0], gradient, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("mode", ["analytic", "auto"])
@pytest.mark.parametrize("margin", [0.0, 0.5])
def test_arcface_by_hand(mode, margin):
    """At 60 degrees from the true of two centers at right angles: logits cos(60 + margin) and cos(30), of scale 2."""
    angle, length = math.pi / 3, 5.0
    x = [length * math.cos(angle), length * math.sin(angle)]
    y_pred = {"embedding": [x], "centers": [[4, 0], [0, 0.5]]}
    value, gradient = run("arcface", mode, np.array([0]), y_pred, scale=2.0, margin=margin)
    true, other = 2 * math.cos(angle + margin), 2 * math.cos(math.pi / 2 - angle)
    np.testing.assert_allclose(value, [math.log1p(math.exp(other - true))], rtol=1e-12)
    weight = 2 / (1 + math.exp(true - other))  # scale times the other's share
    # Turning x by one radian toward the other center lowers the true logit by sin(angle + margin) and raises the other's.
    turn = weight * (math.sin(angle + margin) + math.cos(angle))
    np.testing.assert_allclose(gradient["embedding"], [[-turn * math.sin(angle) / length, turn * math.cos(angle) / length]], rtol=1e-12)
    by_centers = [[0, -weight * math.sin(angle + margin) / 4], [weight * math.sin(math.pi / 2 - angle) / 0.5, 0]]
    np.testing.assert_allclose(gradient["centers"], by_centers, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("mode", ["analytic", "auto"])
def test_arcface_beyond_pi_falls_further(mode):
    """At 165 degrees, half a radian more is beyond pi: the logit is cos(theta) - margin sin(margin), not cos(theta + margin)."""
    angle = math.radians(165)
    y_pred = {"embedding": [[math.cos(angle), math.sin(angle)]], "centers": [[1, 0], [0, 1]]}
    value, gradient = run("arcface", mode, np.array([0]), y_pred, scale=1.0, margin=0.5)
    true, other = math.cos(angle) - 0.5 * math.sin(0.5), math.sin(angle)
    np.testing.assert_allclose(value, [math.log1p(math.exp(other - true))], rtol=1e-12)
    turn = (math.sin(angle) + math.cos(angle)) / (1 + math.exp(true - other))
    np.testing.assert_allclose(gradient["embedding"], [[-turn * math.sin(angle), turn * math.cos(angle)]], rtol=1e-12)


@pytest.mark.parametrize("mode", ["analytic", "auto"])
def test_arcface_zero_vectors(mode):
    y_pred = {"embedding": [[0, 0], [1, 0]], "centers": [[0, 0], [0, 1]]}
    value, gradient = run("arcface", mode, np.array([0, 0]), y_pred, scale=1.0)
    np.testing.assert_allclose(value, [math.log1p(math.exp(math.sin(0.5)))] * 2, rtol=1e-12)  # both at a right angle
    assert not gradient["embedding"][0].any()
    assert not gradient["centers"][0].any()


def test_arcface_out_of_range_is_nan():
    value, _ = run("arcface", "analytic", np.array([2]), {"embedding": [[1, 0]], "centers": [[1, 0], [0, 1]]})
    assert np.isnan(value).all()


def fails_and_ours_holds(name, y_true, y_pred, usual, ours, **hyperparameters):
    """The usual gradient of one example in float32, and ours, in both modes, against the truth."""
    _, found = run(name, "usual", y_true, y_pred, tf.float32, **hyperparameters)
    np.testing.assert_array_equal(tf.nest.flatten(found)[0][0], usual)
    _, found = run(name, "analytic", y_true, y_pred, tf.float32, **hyperparameters)
    np.testing.assert_allclose(tf.nest.flatten(found)[0][0], ours, rtol=1e-6, atol=1e-7)


NAN, INF = math.nan, math.inf


@pytest.mark.parametrize(
    ("distance", "usual", "ours"),
    [(0.0, NAN, 0.0), (1e-23, INF, 1.0), (3e20, 0.0, 1.0)],
)
def test_usual_distances(distance, usual, ours):
    """The direction d / ||d||: NaN at equal pairs, inf at 1e-23, 0 at 3e20."""
    triplet = [[[distance], [0.0], [0.0]]] if distance < 1 else [[[distance], [0.0], [2 * distance]]]
    _, found = run("triplet", "usual", None, triplet, tf.float32)
    _, own = run("triplet", "analytic", None, triplet, tf.float32)
    if distance < 1:  # the negative lies at the positive, so that the anchor's two parts cancel
        np.testing.assert_array_equal(found[0, 1], [-usual])
        np.testing.assert_array_equal(own[0, :, 0], [0.0, -ours, ours])
    else:
        np.testing.assert_array_equal(np.nan_to_num(found), 0)
        np.testing.assert_array_equal(own[0, :, 0], [2.0, -1.0, -1.0])


def test_usual_contrastive():
    pair = [[[1.0, 2.0], [1.0, 2.0]]]
    fails_and_ours_holds("contrastive", np.array([0.0]), pair, np.full((2, 2), NAN), np.zeros((2, 2)))
    pair = [[[1e-23], [0.0]]]
    fails_and_ours_holds("contrastive", np.array([0.0]), pair, [[-INF], [INF]], [[-2.0], [2.0]])


def test_usual_arcface():
    """The arc cosine has an infinite derivative where the cosine is 1, which becomes NaN; ours is 0 at the center, finite next to it."""
    centers = [[1, 0], [0, 1]]
    for x, ours in (([1.0, 0.0], 0.0), ([1.0, 1e-6], 1.0)):
        y_pred = {"embedding": [x], "centers": centers}
        _, found = run("arcface", "usual", np.array([0]), y_pred, tf.float32, scale=1.0)
        assert not np.isfinite(found["embedding"]).all()
        _, found = run("arcface", "analytic", np.array([0]), y_pred, tf.float32, scale=1.0)
        share = 1 / (1 + math.exp(math.cos(0.5)))
        np.testing.assert_allclose(found["embedding"], [[0, share * (1 + ours * math.sin(0.5))]], rtol=1e-5, atol=1e-5)


def test_usual_poincare():
    fails_and_ours_holds("poincare", np.array([[0.3, 0.4]]), [[0.3, 0.4]], [NAN, NAN], [0, 0])
    # Next to it the usual argument of arcosh rounds to 1: its value is 0.
    near = [[1e-5, 0.0]]
    assert run("poincare", "usual", np.zeros((1, 2)), near, tf.float32)[0] == 0
    value, gradient = run("poincare", "analytic", np.zeros((1, 2)), near, tf.float32)
    np.testing.assert_allclose(value, [2e-5], rtol=1e-6)
    np.testing.assert_allclose(gradient, [[2, 0]], rtol=1e-6)


def test_poincare_tells_the_last_point_inside_from_the_sphere():
    last = float(np.float32(1 - 2**-24))
    value, _ = run("poincare", "analytic", np.zeros((1, 2)), [[last, 0.0]], tf.float32)
    np.testing.assert_allclose(value, [2 * math.atanh(last)], rtol=1e-6)
    just_in = [[0.85, 0.52678263]]  # ||p||^2 rounds to 1 in float32
    p = np.float32(just_in)
    assert np.sum(p * p, dtype=np.float32) >= 1
    assert np.isfinite(run("poincare", "analytic", np.zeros((1, 2)), just_in, tf.float32)[0]).all()


def test_triplet_far_from_a_pair_of_near_points():
    """Distances of 1e8 that agree in all digits of float32: the value is margin plus the difference along the line of sight."""
    triplet = [[[1e8, 0.0], [0.0, 0.0], [0.5, 0.5]]]
    assert abs(run("triplet", "usual", None, triplet, tf.float32)[0][0] - 1.5) >= 0.5
    value, gradient = run("triplet", "analytic", None, triplet, tf.float32)
    np.testing.assert_allclose(value, [1.5], rtol=1e-6)
    np.testing.assert_allclose(gradient[0, 0, 1], 0.5e-8, rtol=1e-6)


def test_metrics():
    triplets = tf.constant([[[0.0], [1.0], [2.0]], [[0.0], [2.0], [1.0]]])
    np.testing.assert_array_equal(losses.find("triplet")().metrics(None, triplets)[0], [1, 0])
    pairs = tf.constant([[[0.0], [0.4]], [[0.0], [0.4]], [[0.0], [0.6]], [[0.0], [0.6]]])
    np.testing.assert_array_equal(losses.find("contrastive")().metrics(tf.constant([1.0, 0, 1, 0]), pairs)[0], [1, 0, 0, 1])
    y_pred = {"embedding": tf.constant([[3.0, 1.0]]), "centers": tf.constant([[0.0, 9.0], [1.0, 0.0]])}
    assert int(tf.argmax(losses.find("arcface")().point(y_pred)[0])) == 1


@pytest.mark.parametrize(
    ("name", "y_true", "shape", "message"),
    [
        ("triplet", None, (4, 2, 5), r"y_pred must have shape \[batch, 3, d\]"),
        ("contrastive", (4,), (4, 3, 5), r"y_pred must have shape \[batch, 2, d\]"),
        ("contrastive", (4, 1), (4, 2, 5), r"y_true must have shape \[batch\]"),
        ("poincare", (4, 2), (4, 3), r"y_true must have shape \[batch, 3\]"),
    ],
)
def test_shapes_are_refused(name, y_true, shape, message):
    with pytest.raises(LossError, match=message):
        evaluate(losses.find(name)(), "analytic", None if y_true is None else np.zeros(y_true), tf.zeros(shape), how="eager")


def test_arcface_refuses():
    y_pred = {"embedding": tf.zeros([4, 3]), "centers": tf.zeros([2, 3])}
    with pytest.raises(LossError, match="integer class indices"):
        evaluate(losses.find("arcface")(), "analytic", np.zeros(4), y_pred, how="eager")
    with pytest.raises(LossError, match=r"centers must have shape \[classes, 3\]"):
        evaluate(losses.find("arcface")(), "analytic", np.zeros(4, int), y_pred | {"centers": tf.zeros([2, 4])}, how="eager")
    with pytest.raises(LossError, match="dict of embedding"):
        evaluate(losses.find("arcface")(), "analytic", np.zeros(4, int), {"hidden": tf.zeros([4, 3])}, how="eager")
    with pytest.raises(ValueError, match="margin must be a number >= 0 and < pi"):
        losses.find("arcface")(margin=3.2)
