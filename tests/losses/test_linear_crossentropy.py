"""Cross-entropies in chunks: values known otherwise, borders of chunks, and what the usual formula loses."""

import math

import numpy as np
import pytest
import tensorflow as tf

import losses
from losses import chunked_crossentropy
from losses.base import LossError
from losses.proof.evaluation import cast, evaluate

LINEAR, INFONCE = losses.find("linear_crossentropy")(), losses.find("infonce")(temperature=0.5)


def layer(rng, *positions, width=3, num_classes=7):
    hidden, kernel = rng.normal(size=(*positions, width)), rng.normal(size=(width, num_classes))
    return rng.integers(0, num_classes, positions), {"hidden": hidden, "kernel": kernel, "bias": rng.normal(size=num_classes)}


def test_linear_crossentropy_by_hand():
    p = {"hidden": [[1.0, 2.0]], "kernel": [[math.log(3), 0.0], [0.0, 0.0]], "bias": [0.0, 0.0]}
    value, gradient = evaluate(LINEAR, "analytic", np.array([0]), cast(p, tf.float64), [2.0])
    np.testing.assert_allclose(value, [math.log(4 / 3)], rtol=1e-12)
    np.testing.assert_allclose(gradient["hidden"], [[-0.5 * math.log(3), 0.0]], rtol=1e-12)
    np.testing.assert_allclose(gradient["kernel"], [[-0.5, 0.5], [-1.0, 1.0]], rtol=1e-12)
    np.testing.assert_allclose(gradient["bias"], [-0.5, 0.5], rtol=1e-12)


@pytest.mark.parametrize("how", ["graph", "xla"])
@pytest.mark.parametrize("weighted", [True, False])
@pytest.mark.parametrize("num_scores", [1, 14, 21, 10**6])
def test_linear_crossentropy_in_chunks_of_any_size(monkeypatch, num_scores, weighted, how):
    """Of one row, of two (dividing the ten rows), of three (not dividing them) and of all."""
    monkeypatch.setattr(chunked_crossentropy, "_CHUNK_SCORES", num_scores)
    rng = np.random.default_rng(0)
    y, p = layer(rng, 5, 2)
    dy, loss = rng.normal(size=5) if weighted else np.full(5, 0.7), type(LINEAR)()

    @tf.function(jit_compile=how == "xla")
    def found():
        value, vjp = loss.value_and_vjp(tf.constant(y), cast(p, tf.float64))
        return value, vjp(tf.constant(dy)), loss.measures(tf.constant(y), cast(p, tf.float64))

    value, gradient, (measured, accuracy) = found()
    expected, slopes = evaluate(loss, "usual", y, cast(p, tf.float64), dy)
    np.testing.assert_allclose(value, expected, rtol=1e-12)
    np.testing.assert_array_equal(measured, value)
    for key, slope in slopes.items():
        np.testing.assert_allclose(gradient[key], slope, rtol=1e-10, atol=1e-12)
    correct = (p["hidden"] @ p["kernel"] + p["bias"]).argmax(axis=-1) == y
    np.testing.assert_array_equal(accuracy, correct.mean(axis=1))


@pytest.mark.parametrize("how", ["graph", "xla"])
def test_sums_over_rows_that_overflow_unweighted(how):
    """What is summed for dy = 1 alone doesn't count where the dy differ."""
    p = cast({"hidden": np.full((6, 1), 2e38), "kernel": [[0.0, 0.0]], "bias": [0.0, 0.0]}, tf.float32)
    found = tf.function(lambda dy: LINEAR.value_and_vjp(tf.zeros(6, tf.int32), p)[1](dy), jit_compile=how == "xla")
    dy = np.linspace(0.01, 0.02, 6, dtype=np.float32)
    assert np.isinf(found(tf.ones(6))["kernel"]).all()
    np.testing.assert_allclose(found(tf.constant(dy))["kernel"], [[-1e38 * dy.sum(), 1e38 * dy.sum()]], rtol=1e-5)


@pytest.mark.parametrize("how", ["graph", "xla"])
@pytest.mark.parametrize(("num_rows", "num_classes"), [(3, 1), (0, 4)])
def test_one_class_and_no_rows(num_rows, num_classes, how):
    p = cast({"hidden": np.ones((num_rows, 2)), "kernel": np.ones((2, num_classes)), "bias": np.zeros(num_classes)}, tf.float32)

    @tf.function(jit_compile=how == "xla")
    def found():
        value, vjp = LINEAR.value_and_vjp(tf.zeros(num_rows, tf.int32), p)
        return value, vjp(tf.ones(num_rows))

    value, gradient = found()
    np.testing.assert_array_equal(value, np.zeros(num_rows))
    for key, slope in gradient.items():
        np.testing.assert_array_equal(slope, np.zeros(p[key].shape))


def test_narrow_labels_are_those_of_wide_ones():
    y, p = layer(np.random.default_rng(0), 5, num_classes=256)
    expected = LINEAR.value_and_vjp(tf.constant(y), cast(p, tf.float64))[0]
    np.testing.assert_array_equal(LINEAR.value_and_vjp(tf.constant(y, tf.uint8), cast(p, tf.float64))[0], expected)


@pytest.mark.parametrize("lead", [18.0, 30.0, 80.0])
def test_linear_crossentropy_keeps_the_gradient_of_what_is_learned(lead):
    p = cast({"hidden": [[lead]], "kernel": [[1.0, 0.0, 0.0]], "bias": [0.0, 0.0, 0.0]}, tf.float32)
    truth = -2 * math.exp(-lead) / (1 + 2 * math.exp(-lead))
    value, gradient = evaluate(LINEAR, "analytic", np.array([0]), p)
    np.testing.assert_allclose(value, [math.log1p(2 * math.exp(-lead))], rtol=1e-5)
    np.testing.assert_allclose(gradient["hidden"], [[truth]], rtol=1e-5)
    usual, slopes = evaluate(LINEAR, "usual", np.array([0]), p)
    assert usual == 0
    assert slopes["bias"][0] == 0


def test_a_class_out_of_range_gives_nan_to_its_example_alone():
    y, p = layer(np.random.default_rng(0), 3)
    y[1] = 7
    value, gradient = evaluate(LINEAR, "analytic", y, cast(p, tf.float32))
    np.testing.assert_array_equal(np.isnan(value), [False, True, False])
    np.testing.assert_array_equal(np.isnan(gradient["hidden"]).all(axis=1), [False, True, False])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kernel": np.zeros((4, 7))}, r"kernel must have shape \[3, classes\]"),
        ({"bias": np.zeros(6)}, r"bias must have shape \[7\]"),
        ({"hidden": np.zeros(3)}, r"hidden must have shape \[batch, ..., d\]"),
    ],
)
def test_linear_crossentropy_refuses_other_shapes(change, message):
    y, p = layer(np.random.default_rng(0), 5)
    with pytest.raises(LossError, match=message):
        LINEAR.check_shapes(tf.constant(y), cast(p | change, tf.float32))
    with pytest.raises(LossError, match="must be a dict of hidden"):
        LINEAR.check_shapes(tf.constant(y), tf.zeros([5, 7]))
    with pytest.raises(LossError, match="integer class indices"):
        LINEAR.check_shapes(tf.zeros([5]), cast(p, tf.float32))


def test_infonce_by_hand():
    # Scores q k / tau: [[2, 0], [0, 2]].
    p = tf.constant([[[1.0, 0.0], [1.0, 0.0]], [[0.0, 1.0], [0.0, 1.0]]], tf.float64)
    value, gradient = evaluate(INFONCE, "analytic", None, p)
    other = 1 / (1 + math.e**2)
    np.testing.assert_allclose(value, [math.log1p(math.e**-2)] * 2, rtol=1e-12)
    np.testing.assert_allclose(gradient, 2 * other * np.array([[[-1, 1], [-1, 1]], [[1, -1], [1, -1]]]), rtol=1e-12)


def test_infonce_masked_examples_are_no_negatives():
    rng = np.random.default_rng(0)
    p, dy, mask = rng.normal(size=(6, 2, 3)), rng.normal(size=6), np.array([True, False, True, True, False, False])
    p[~mask] = np.nan
    expected, slopes = evaluate(INFONCE, "analytic", None, tf.constant(p[mask]), dy[mask])
    for mode in INFONCE.modes:
        value, gradient = evaluate(INFONCE, mode, None, tf.constant(p), dy, mask=mask)
        np.testing.assert_allclose(value[mask], expected, rtol=1e-12)
        np.testing.assert_allclose(gradient[mask], slopes, rtol=1e-10)
        assert not value[~mask].any()
        assert not gradient[~mask].any()


def test_infonce_alone_or_all_masked_is_zero():
    p = np.random.default_rng(0).normal(size=(3, 2, 3))
    for mode in INFONCE.modes:
        for part, mask in ((p[:1], None), (p, [False] * 3), (p, [True, False, False])):
            value, gradient = evaluate(INFONCE, mode, None, tf.constant(part, tf.float32), mask=mask)
            assert not value.any()
            assert not gradient.any()


def test_sums_of_equal_and_of_different_weights_belong_together():
    y_true, y_pred = (cast(arrays, tf.float64) for arrays in LINEAR.sample(np.random.default_rng(0), 6, 1.0))
    some = np.array([0.5, 0.0, -1.0, 2.0, 0.25, 3.0])
    parts = [evaluate(LINEAR, "analytic", y_true, y_pred, dy, "eager")[1] for dy in (some, 0.75 - some, np.full(6, 0.75))]
    for key in parts[0]:
        np.testing.assert_allclose(parts[0][key] + parts[1][key], parts[2][key], rtol=1e-9, atol=1e-12)
