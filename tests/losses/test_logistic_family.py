"""Values by hand or from the literature, and where the usual formulas fail: losses of the logistic and the normal distribution."""

import math

import keras
import numpy as np
import pytest
import tensorflow as tf

import losses
from losses.modes import per_example

LOG2, LOG3 = math.log(2), math.log(3)
TABLE = [
    # loss, hyperparameters, y_true, y_pred, value, gradient
    ("log_cosh", {}, [0.0, 0.0], [LOG2, -LOG2], math.log(1.25), [0.3, -0.3]),
    ("log_cosh", {}, [1.0], [1.0], 0.0, [0.0]),
    ("pairwise_logistic", {}, 1.0, [LOG3, 0.0], math.log(4 / 3), [-0.25, 0.25]),
    ("pairwise_logistic", {}, 0.0, [LOG3, 0.0], math.log(4), [0.75, -0.75]),
    ("binary_focal", {"gamma": 0.0}, [1.0, 0.0], [LOG3, LOG3], (math.log(4 / 3) + math.log(4)) / 2, [-0.125, 0.375]),
    ("binary_focal", {"gamma": 1.0}, [1.0], [LOG3], math.log(4 / 3) / 4, [-(1 / 4 + 3 / 4 * math.log(4 / 3)) / 4]),
    ("binary_focal", {"gamma": 1.0, "alpha": 0.25}, [0.0], [0.0], 0.375 * LOG2, [0.375 * (0.5 + 0.5 * LOG2)]),
    ("categorical_focal", {"gamma": 0.0}, 1, [LOG3, 0.0], math.log(4), [0.75, -0.75]),
    ("categorical_focal", {"gamma": 1.0}, 0, [0.0, 0.0], LOG2 / 2, [-(1 + LOG2) / 4, (1 + LOG2) / 4]),
    ("categorical_focal", {"gamma": 1.0}, [0.5, 0.5], [0.0, 0.0], LOG2 / 2, [0.0, 0.0]),
    ("probit", {}, [1.0, 0.0], [0.0, 0.0], LOG2, [-1 / math.sqrt(2 * math.pi), 1 / math.sqrt(2 * math.pi)]),
    # Phi(1.96) = 0.9750021048517795
    ("probit", {}, [1.0], [1.96], -math.log(0.9750021048517795), [-0.05844094433345147 / 0.9750021048517795]),
    ("distillation_kl", {"temperature": 1.0}, [0.0, 0.0], [LOG3, 0.0], math.log(2 / math.sqrt(3)), [0.25, -0.25]),
    ("distillation_kl", {"temperature": 2.0}, [0.0, 0.0], [2 * LOG3, 0.0], 4 * math.log(2 / math.sqrt(3)), [0.5, -0.5]),
]


@pytest.mark.parametrize(("name", "hyperparameters", "y_true", "y_pred", "value", "gradient"), TABLE)
@pytest.mark.parametrize("mode", ["auto", "analytic"])
def test_by_hand(mode, name, hyperparameters, y_true, y_pred, value, gradient):
    found = evaluate(losses.find(name)(**hyperparameters), np.array([y_true]), np.array([y_pred]), mode)
    assert found[0] == pytest.approx([value], rel=1e-12, abs=1e-300)
    np.testing.assert_allclose(found[1], [gradient], rtol=1e-12, atol=1e-16)


def evaluate(loss, y_true, y_pred, mode="analytic"):
    """Value and gradient; mode "usual" is the tape through the usual formula."""
    p = tf.constant(y_pred)
    with tf.GradientTape() as tape:
        tape.watch(p)
        value = loss.usual(tf.constant(y_true), p) if mode == "usual" else per_example(loss, mode, y_true, p)
    return value.numpy(), tape.gradient(value, p).numpy()


def single(y_true, y_pred):
    """Targets and predictions of one example, in float32."""
    return np.array([y_true], np.float32), np.array([y_pred], np.float32)


def of_keras(function, y_true, y_pred):
    p = tf.constant(y_pred)
    with tf.GradientTape() as tape:
        tape.watch(p)
        value = function(y_true, p)
    return value.numpy(), tape.gradient(value, p).numpy()


def test_log_cosh_of_keras_cancels():
    for error, keras_ulp in ((1e-4, 1e3), (1e-8, 1e7)):
        y, p = single([0.0], [error])
        truth = np.tanh(p.astype(np.float64))
        ulp = np.spacing(p)
        keras_gradient = of_keras(keras.losses.LogCosh(), y, p)[1]
        assert abs(keras_gradient - truth) > keras_ulp * ulp
        assert (keras_gradient == 0) == (error == 1e-8)
        for mode in ("auto", "analytic"):
            value, gradient = evaluate(losses.find("log_cosh")(), y, p, mode)
            assert abs(gradient - truth) <= 2 * ulp
            assert value == pytest.approx(p[0].astype(np.float64) ** 2 / 2, rel=1e-6)


def test_log_of_cosh_overflows():
    y, p = single([0.0], [90.0])
    value, gradient = of_keras(lambda _, x: tf.math.log(tf.cosh(x)), y, p)
    assert value == np.inf
    assert np.isnan(gradient)
    value, gradient = evaluate(losses.find("log_cosh")(), y, p)
    assert value == pytest.approx([90 - LOG2])
    assert gradient == 1


def test_fused_softmax_kernel_loses_the_true_class():
    for gap, off in ((10.0, 500), (15.0, 1e5), (17.5, 8e6)):
        p = np.array([[gap, 0.0]], np.float32)
        truth = -1 / (1 + math.exp(gap))
        ulp = np.spacing(np.float32(-truth))
        kernel = of_keras(lambda y, x: tf.nn.sparse_softmax_cross_entropy_with_logits(y, x), np.array([0]), p)[1][0, 0]
        assert abs(kernel - truth) > off * ulp
        assert (kernel == 0) == (gap > 17)
        assert abs(evaluate(losses.find("softmax_crossentropy")(), np.array([0]), p)[1][0, 0] - truth) <= 8 * (1 + gap) * ulp


def test_distillation_cancels_near_the_teacher():
    rng = np.random.default_rng(0)
    loss = losses.find("distillation_kl")(temperature=1.0)
    teacher = rng.normal(size=(200, 10)).astype(np.float32)
    for difference, usual_error in ((1e-5, 0.005), (1e-6, 0.05)):
        student = (teacher + difference * rng.normal(size=teacher.shape)).astype(np.float32)
        y, p = teacher.astype(np.float64), student.astype(np.float64)
        share = np.exp(y) / np.exp(y).sum(axis=1, keepdims=True)
        delta = p - y - (share * (p - y)).sum(axis=1, keepdims=True)
        value = (share * delta**2).sum(axis=1) / 2  # to first order in delta, as is the gradient
        gradient = share * delta
        usual = evaluate(loss, teacher, student, "usual")
        assert np.linalg.norm(usual[1] - gradient) > usual_error * np.linalg.norm(gradient)
        assert (usual[0] < 0).any()
        for mode in ("auto", "analytic"):
            found = evaluate(loss, teacher, student, mode)
            np.testing.assert_allclose(found[0], value, rtol=20 * difference)
            assert np.linalg.norm(found[1] - gradient) <= 20 * difference * np.linalg.norm(gradient)


def test_binary_focal_of_keras_is_nan_on_well_classified_examples():
    y, p = single([1.0], [17.5])
    its = keras.losses.BinaryFocalCrossentropy(gamma=0.5, from_logits=True)
    assert np.isnan(of_keras(its, y, p)[1])
    q = 1 / (1 + math.exp(17.5))
    assert evaluate(losses.find("binary_focal")(gamma=0.5), y, p)[1] == pytest.approx(np.array([[-1.5 * q**1.5]]), rel=1e-5)


def test_binary_focal_is_that_of_keras():
    rng = np.random.default_rng(1)
    y, p = rng.integers(0, 2, (20, 3)).astype(np.float32), rng.normal(size=(20, 3)).astype(np.float32)
    its = keras.losses.BinaryFocalCrossentropy(apply_class_balancing=True, alpha=0.25, gamma=2.0, from_logits=True)
    np.testing.assert_allclose(losses.get("binary_focal", alpha=0.25)(y, p), its(y, p), rtol=1e-5)


def test_categorical_focal_of_keras_has_no_gradient_where_it_clips():
    y, p = np.array([[1.0, 0.0]], np.float32), np.array([[-20.0, 0.0]], np.float32)
    np.testing.assert_array_equal(of_keras(keras.losses.CategoricalFocalCrossentropy(alpha=1.0, from_logits=True), y, p)[1], [[0, 0]])
    for mode in ("auto", "analytic"):
        np.testing.assert_allclose(evaluate(losses.find("categorical_focal")(), np.array([0]), p, mode)[1], [[-1, 1]], rtol=1e-6)


def test_categorical_focal_is_that_of_keras():
    rng = np.random.default_rng(2)
    y, p = rng.integers(0, 4, 20), rng.normal(size=(20, 4)).astype(np.float32)
    its = keras.losses.CategoricalFocalCrossentropy(alpha=1.0, gamma=2.0, from_logits=True)
    np.testing.assert_allclose(losses.get("categorical_focal")(y, p), its(np.eye(4)[y], p), rtol=1e-5)


def test_log_sigmoid_of_a_pair_is_nan():
    y, p = np.ones(1, np.float32), np.array([[-89.0, 0.0]], np.float32)
    assert np.isnan(evaluate(losses.find("pairwise_logistic")(), y, p, "usual")[1]).any()
    value, gradient = evaluate(losses.find("pairwise_logistic")(), y, p)
    assert value == pytest.approx([89])
    np.testing.assert_allclose(gradient, [[-1, 1]])


def test_pair_metrics_and_shapes():
    loss = losses.find("pairwise_logistic")()
    scores = tf.constant([[2.0, 1.0], [1.0, 2.0], [1.0, 1.0]])
    np.testing.assert_allclose(loss.metrics(tf.constant([1.0, 1.0, 0.0]), scores)[0], [1, 0, 0.5])
    with pytest.raises(ValueError, match="y_pred must have shape"):
        per_example(loss, "analytic", [1.0], [[1.0, 2.0, 3.0]])


def test_probit_of_a_log_of_erfc_fails_in_the_tail():
    loss = losses.find("probit")()
    for m in (-14.0, -20.0):
        y, p = single([1.0], [m])
        value, gradient = evaluate(loss, y, p, "usual")
        assert value == np.inf
        assert np.isnan(gradient)
    # Mills' ratio of the normal tail at 14 and 20, and -log(Phi(-20)), Abramowitz and Stegun (1964), table 26.2
    for mode in ("auto", "analytic"):
        value, gradient = evaluate(loss, *single([1.0], [-20.0]), mode)
        assert value == pytest.approx([203.9171553710], rel=1e-6)
        assert gradient == pytest.approx(np.array([[-20.0497528]]), rel=1e-6)


@pytest.mark.parametrize(
    ("name", "hyperparameters"),
    [
        ("binary_focal", {"gamma": -1.0}),
        ("binary_focal", {"alpha": 1.0}),
        ("categorical_focal", {"gamma": math.inf}),
        ("distillation_kl", {"temperature": 0.0}),
    ],
)
def test_hyperparameters_are_checked(name, hyperparameters):
    with pytest.raises(ValueError, match=next(iter(hyperparameters))):
        losses.find(name)(**hyperparameters)
