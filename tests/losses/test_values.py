"""Values and gradients computed by hand, or known from the literature, one table for all losses."""

import math

import keras
import numpy as np
import pytest
import tensorflow as tf

import losses
from losses.modes import measures, per_example

LOG3 = math.log(3)
TABLE = [
    # loss, hyperparameters, y_true, y_pred, value, gradient
    ("mse", {}, [1.0, 2.0], [3.0, 2.0], 2.0, [2.0, 0.0]),
    ("mae", {}, [1.0, 2.0, 5.0], [3.0, 2.0, 1.0], 2.0, [1 / 3, 0.0, -1 / 3]),
    ("huber", {"delta": 2.0}, [0.0, 0.0], [1.0, -5.0], (0.5 + 8.0) / 2, [0.5, -1.0]),
    ("quantile", {"levels": [0.1, 0.9]}, [2.0], [1.0, 4.0], (0.1 + 0.2) / 2, [-0.05, 0.05]),
    ("quantile", {"levels": [0.1, 0.9]}, [2.0], [2.0, 1.0], 0.9 / 2, [0.0, -0.45]),
    ("poisson_nll", {}, [2.0, 0.0], [math.log(3), 0.0], (3 - 2 * LOG3 + 1) / 2, [0.5, 0.5]),
    ("gaussian_nll", {}, [3.0], [1.0, math.log(2)], math.log(2) + 0.5, [-0.5, 0.0]),
    ("gaussian_nll", {}, [5.0, 0.0], [1.0, 0.0, math.log(2), 0.0], (math.log(2) + 2) / 2, [-0.5, 0.0, -1.5, 0.5]),
    ("binary_crossentropy", {}, [1.0, 0.0], [LOG3, LOG3], (math.log(4 / 3) + math.log(4)) / 2, [-0.125, 0.375]),
    ("binary_crossentropy", {}, [1.0], [0.0], math.log(2), [-0.5]),
    ("binary_crossentropy", {"label_smoothing": 0.5}, [1.0], [0.0], math.log(2), [-0.25]),
    ("softmax_crossentropy", {}, 0, [LOG3, 0.0], math.log(4 / 3), [-0.25, 0.25]),
    ("softmax_crossentropy", {}, 1, [LOG3, 0.0], math.log(4), [0.75, -0.75]),
    ("softmax_crossentropy", {}, [0.5, 1.5], [LOG3, 0.0], 0.5 * math.log(4 / 3) + 1.5 * math.log(4), [1.0, -1.0]),
    ("softmax_crossentropy", {"label_smoothing": 0.5}, 0, [LOG3, 0.0], 0.75 * math.log(4 / 3) + 0.25 * math.log(4), [0.0, 0.0]),
    ("stable_mse", {}, [0.5, 1.0, 0.0, 0.25], [0.25, -1.0, -1.0, 2.0], None, [-0.125, -0.4999995, 0.0, 0.375]),
    ("stable_mse", {"outside": "pass"}, [0.5, 1.0, 0.0, 0.25], [0.25, -1.0, -1.0, 2.0], None, [-0.125, -0.4999995, 5e-7, 0.375]),
    ("stable_mse", {"outside": "zero"}, [0.5, 1.0, 0.0, 0.25], [0.25, -1.0, -1.0, 2.0], None, [-0.125, 0.0, 0.0, 0.0]),
    ("stable_mse", {}, [0.5, 0.25], [0.25, 2.0], (0.0625 + 0.5625) / 2, [-0.25, 0.75]),
    ("cubic", {}, [1.0, 1.0], [3.0, 0.0], 4.5, [6.0, -1.5]),
]


@pytest.mark.parametrize(("name", "hyperparameters", "y_true", "y_pred", "value", "gradient"), TABLE)
def test_by_hand(name, hyperparameters, y_true, y_pred, value, gradient):
    loss = losses.find(name)(**hyperparameters)
    p = tf.constant([y_pred], tf.float64)
    with tf.GradientTape() as tape:
        tape.watch(p)
        found = per_example(loss, "analytic", np.array([y_true]), p)
    if value is not None:
        assert found.numpy() == pytest.approx([value], rel=1e-12)
    np.testing.assert_allclose(tape.gradient(found, p).numpy()[0], gradient, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize(
    ("name", "y_pred", "point"),
    [
        ("mse", [1.0, 2.0], [1.0, 2.0]),
        ("quantile", [1.0, 2.0, 3.0, 4.0, 5.0, 6.0], [3.0, 4.0]),
        ("poisson_nll", [LOG3], [3.0]),
        ("gaussian_nll", [1.0, 2.0, 3.0, 4.0], [1.0, 2.0]),
        ("binary_crossentropy", [LOG3, 0.0], [0.75, 0.5]),
        ("softmax_crossentropy", [1.0, 2.0], [1.0, 2.0]),
    ],
)
def test_point_prediction(name, y_pred, point):
    np.testing.assert_allclose(losses.find(name)().point(tf.constant([y_pred], tf.float64)), [point], rtol=1e-12)


def test_outputs_per_target():
    assert {name: losses.find(name)().outputs_per_target for name in losses.names() if losses.find(name)().outputs_per_target != 1} == {
        "quantile": 3,
        "gaussian_nll": 2,
        "gaussian_crps": 2,
        "beta_nll": 2,
        "negative_binomial_nll": 2,
    }


def test_poisson_overflows_to_inf_never_nan():
    p = tf.constant([[100.0]])
    for mode in ("auto", "analytic"):
        with tf.GradientTape() as tape:
            tape.watch(p)
            value = per_example(losses.find("poisson_nll")(), mode, [[3]], p)
        assert value.numpy() == np.inf
        assert tape.gradient(value, p).numpy() == np.inf


@pytest.mark.parametrize("num_classes", [2, 10, 100])
def test_softmax_crossentropy_keeps_its_digits(num_classes):
    """Within 8 units of rounding times 1 + the condition, from leads of 1e-3 to 1e2, where the usual formula rounds to 0."""
    rng = np.random.default_rng(num_classes)
    lead = 10 ** rng.uniform(-3, 2, 400)
    p = rng.normal(size=(400, num_classes)) * 10 ** rng.uniform(-3, 1, (400, 1))
    y = rng.integers(0, num_classes, 400)
    p[np.arange(400), y] = p.max(axis=1) + lead * rng.choice([1, -1], 400, p=[0.8, 0.2])
    p = p.astype(np.float32)
    loss = losses.find("softmax_crossentropy")()
    value, gradient = loss.value(tf.constant(y), tf.constant(p)).numpy(), loss.gradient(tf.constant(y), tf.constant(p)).numpy()

    wide = p.astype(np.float64)
    others = wide - wide[np.arange(400), y][:, None]
    others[np.arange(400), y] = -np.inf
    largest = np.maximum(others.max(axis=1), 0)
    total = np.exp(others - largest[:, None]).sum(axis=1)  # without the true class
    true_value = np.where(largest > 0, largest + np.log(total + np.exp(-largest)), np.log1p(total))
    pi = np.exp(others - largest[:, None]) / (total + np.exp(-largest))[:, None]
    true_gradient = pi.copy()
    true_gradient[np.arange(400), y] = -pi.sum(axis=1)

    eps = 2.0**-24
    condition = (abs(wide) * abs(true_gradient)).sum(axis=1) / true_value
    assert (abs(value - true_value) <= 8 * 2 * eps * (1 + condition) * true_value + 1e-37).all()
    # d pi_j / d p_i = pi_j (1[i=j] - pi_i): relative change of pi_j by p.
    shift = abs(wide).max(axis=1)[:, None] * 2
    assert (abs(gradient - true_gradient) <= 8 * 2 * eps * (1 + shift) * abs(true_gradient) + 1e-37).all()
    usual = tf.nn.softmax(p).numpy()[np.arange(400), y] - 1
    assert (usual[lead > 20] == 0).any()
    assert (gradient[np.arange(400), y][(lead > 20) & (lead < 80)] != 0).all()


def test_softmax_crossentropy_of_excluded_and_impossible_classes():
    loss = losses.find("softmax_crossentropy")()
    p = tf.constant([[1.0, -np.inf, 1.0]])
    for mode in ("auto", "analytic"):
        with tf.GradientTape() as tape:
            tape.watch(p)
            value = per_example(loss, mode, [0], p)
        assert value.numpy() == pytest.approx([math.log(2)])
        np.testing.assert_allclose(tape.gradient(value, p), [[-0.5, 0.0, 0.5]], rtol=1e-6)
    assert np.isnan(per_example(loss, "analytic", [3, -1], tf.zeros([2, 3]))).all()


def test_usual_formula_is_the_same_function():
    loss = losses.find("softmax_crossentropy")(label_smoothing=0.1)
    y, p = tf.constant([0, 2]), tf.constant([[1.0, 2.0, 3.0], [0.0, 0.5, 0.2]], tf.float64)
    np.testing.assert_allclose(loss.usual(y, p), loss.value(y, p), rtol=1e-12)


def test_label_smoothing_is_that_of_keras():
    rng = np.random.default_rng(0)
    p = rng.normal(size=(5, 3)).astype(np.float32)
    hot = np.eye(3, dtype=np.float32)[[0, 1, 2, 0, 1]]
    pairs = {"softmax_crossentropy": keras.losses.CategoricalCrossentropy, "binary_crossentropy": keras.losses.BinaryCrossentropy}
    for name, its in pairs.items():
        expected = its(from_logits=True, label_smoothing=0.2)(hot, p)
        np.testing.assert_allclose(losses.get(name, label_smoothing=0.2)(hot, p), expected, rtol=1e-6)


@pytest.mark.parametrize("mode", ["auto", "analytic"])
def test_second_derivative_of_huber(mode):
    """1 inside, a tie included, where that of |r| is 0; 0 beyond delta."""
    p = tf.constant([[0.0], [0.5], [-0.5], [2.0], [-2.0]])
    with tf.GradientTape() as outer:
        outer.watch(p)
        with tf.GradientTape() as inner:
            inner.watch(p)
            value = per_example(losses.find("huber")(), mode, tf.zeros([5, 1]), p)
        gradient = inner.gradient(value, p)
    np.testing.assert_array_equal(outer.gradient(gradient, p)[:, 0], [1, 1, 1, 0, 0])


@pytest.mark.parametrize("name", ["softmax_crossentropy", "categorical_focal", "sparsemax", "entmax15"])
@pytest.mark.parametrize("mode", ["analytic", "auto", None])
def test_classes_are_integers_of_any_width(name, mode):
    p = tf.constant(np.random.default_rng(0).normal(size=(4, 3)), tf.float32)
    loss, classes = losses.find(name)(), [0, 2, 1, 100]  # the last one is out of range

    def value(y):
        return per_example(loss, mode, y, p) if mode else measures(loss, y, p)[0]

    expected = value(tf.constant(classes, tf.int32))
    assert np.isnan(expected).tolist() == [False, False, False, True]
    for dtype in ("int8", "uint8", "int16", "uint16", "uint32", "int64", "uint64"):
        np.testing.assert_array_equal(value(np.array(classes, dtype)), expected, err_msg=dtype)
