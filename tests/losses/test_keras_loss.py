"""The package's front door, and the Keras face: dtypes, weights, masks, reductions, saving."""

import subprocess
import sys
import types

import keras
import numpy as np
import pytest
import tensorflow as tf

import losses
from losses.base import Loss, LossError
from losses.keras_loss import KerasLoss
from losses.modes import per_example
from losses.mse import MSE

REDUCTIONS = ["sum_over_batch_size", "mean", "mean_with_sample_weight", "sum", "none", None]


def data(*shape, dtype=np.float32):
    rng = np.random.default_rng(0)
    return rng.normal(size=shape).astype(dtype), rng.normal(size=shape).astype(dtype)


def test_names_and_help_import_no_tensorflow():
    script = "import losses, sys; assert 'mse' in losses.names() and 'base' not in losses.names(); sys.exit('tensorflow' in sys.modules)"
    subprocess.run([sys.executable, "-c", script], check=True, env={"PYTHONPATH": str(losses.__path__[0] + "/..")})


def test_mistakes_are_named():
    with pytest.raises(ValueError, match="no loss 'hubr'; did you mean 'huber'"):
        losses.get("hubr")
    with pytest.raises(ValueError, match="loss huber has no hyperparameter 'delt'; did you mean 'delta'"):
        losses.get("huber", delt=1.0)
    with pytest.raises(ValueError, match="loss mse has no hyperparameter 'delta': it has none"):
        losses.get("mse", delta=1.0)
    with pytest.raises(ValueError, match="loss cubic has no gradient mode 'auto': it has analytic"):
        losses.get("cubic", gradient="auto")
    with pytest.raises(ValueError, match="reduction"):
        losses.get("mse", reduction="average")


@pytest.mark.parametrize(
    ("name", "wrong", "message"),
    [
        ("huber", {"delta": 0}, "loss huber: delta must be a finite number > 0; found 0"),
        ("huber", {"delta": float("inf")}, "delta must be a finite number > 0; found inf"),
        ("huber", {"delta": "one"}, "delta must be a finite number > 0; found 'one'"),
        ("quantile", {"levels": []}, "loss quantile: levels must be a list of different numbers"),
        ("quantile", {"levels": [0.5, 0.5]}, r"found \[0.5, 0.5\]"),
        ("quantile", {"levels": [0.5, 1.0]}, "each > 0 and < 1"),
        ("quantile", {"levels": 0.5}, "levels must be a list"),
        ("binary_crossentropy", {"label_smoothing": 1.0}, "label_smoothing must be a number >= 0 and < 1; found 1.0"),
        ("softmax_crossentropy", {"label_smoothing": -0.1}, "label_smoothing must be a number >= 0 and < 1; found -0.1"),
        ("stable_mse", {"low": 0.0}, "low must be a number > 0; found 0.0"),
        ("stable_mse", {"low": 2.0}, "high must be a finite number > low=2.0; found 1.0"),
        ("sinkhorn", {"num_iterations": float("inf")}, "num_iterations must be a whole number > 0; found inf"),
        ("sinkhorn", {"num_iterations": 1.5}, "num_iterations must be a whole number > 0; found 1.5"),
        ("stable_mse", {"outside": "clip"}, "outside must be zero, pass or project; found 'clip'"),
    ],
)
def test_hyperparameters_have_limits(name, wrong, message):
    with pytest.raises(ValueError, match=message):
        losses.get(name, **wrong)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("weights", [None, "number", "examples", "column"])
def test_reductions_are_those_of_keras(reduction, weights):
    y, p = data(6, 3)
    examples = np.arange(6, dtype=np.float32)
    # For Keras a number's sum is itself, where an example's weight is meant: given to all examples, they agree.
    its, given = {
        None: (None, None),
        "number": (np.full(6, 0.5, np.float32), 0.5),
        "examples": (examples, examples),
        "column": (examples, examples[:, None]),
    }[weights]
    expected = keras.losses.MeanSquaredError(reduction=reduction)(y, p, its)
    np.testing.assert_allclose(losses.get("mse", reduction=reduction)(y, p, given), expected, rtol=1e-6)


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_weights_and_masks_of_time_steps_are_those_of_keras(reduction):
    y, p = data(4, 5, 3)
    weights = np.random.default_rng(1).uniform(size=(4, 5)).astype(np.float32)
    mine, its = losses.get("mse", reduction=reduction), keras.losses.MeanSquaredError(reduction=reduction)
    np.testing.assert_allclose(mine(y, p, weights), its(y, p, weights), rtol=1e-6)
    masked = tf.constant(p)
    masked._keras_mask = tf.constant(np.arange(20).reshape(4, 5) % 3 != 0)
    np.testing.assert_allclose(mine(y, masked, weights), its(y, masked, weights), rtol=1e-6)
    np.testing.assert_allclose(mine(y, masked), its(y, masked), rtol=1e-6)
    y[0, 0] = np.nan
    assert np.isfinite(mine(y, masked, weights)).all()


def test_classes_of_time_steps():
    rng = np.random.default_rng(0)
    y, p = rng.integers(0, 3, (4, 5)), rng.normal(size=(4, 5, 3)).astype(np.float32)
    weights = rng.integers(0, 2, (4, 5)).astype(np.float32)
    expected = keras.losses.SparseCategoricalCrossentropy(from_logits=True)(y, p, weights)
    np.testing.assert_allclose(losses.get("softmax_crossentropy")(y, p, weights), expected, rtol=1e-6)


def test_weights_that_do_not_fit_are_refused():
    y, p = data(4, 3)
    with pytest.raises(LossError, match=r"weights and masks are \[batch\]"):
        losses.get("mse")(y, p, np.ones((4, 3), np.float32))

    class Series(MSE):
        targets = ("series",)

    y, p = data(4, 5, 3)
    with pytest.raises(LossError, match="does not average over time steps"):
        KerasLoss(Series())(y, p, np.ones((4, 5), np.float32))


@pytest.mark.parametrize("gradient", ["auto", "analytic"])
def test_weight_zero_hides_nan(gradient):
    y, p = data(4, 3)
    y[1] = np.nan
    p = tf.constant(p)
    with tf.GradientTape() as tape:
        tape.watch(p)
        value = losses.get("mse", gradient)(y, p, np.array([1, 0, 2, 1], np.float32))
    assert np.isfinite(value)
    assert not tape.gradient(value, p)[1].numpy().any()


def test_dtypes_are_kept():
    y, p = data(4, 3, dtype=np.float64)
    assert losses.get("mse")(y, p).dtype == tf.float64
    assert losses.get("mse")(y, p.astype(np.float32)).dtype == tf.float32
    assert losses.get("mse")(y, tf.cast(p, tf.bfloat16)).dtype == tf.float32
    large = np.array([16777217, 3])  # not a float32; classes stay integers
    assert np.isnan(losses.get("softmax_crossentropy", reduction="none")(large, np.zeros((2, 4), np.float32))).tolist() == [True, False]


def test_what_does_not_fit_compile_is_told_so():
    class Pairs(Loss):
        targets = ("none",)

    class Shared(Loss):
        shared = ("kernel",)

    for loss in (Pairs(), Shared()):
        with pytest.raises(LossError, match=r"does not fit Keras' compile: .*losses\.modes\.per_example"):
            KerasLoss(loss)
    y, p = data(4, 3)
    for arguments in [(None, p), (y, {"p": p}), ({"y": y}, p)]:
        with pytest.raises(LossError, match=r"losses\.modes\.per_example"):
            losses.get("mse")(*arguments)


@pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning")  # Keras saving
def test_saved_with_its_model(tmp_path):
    y, x = data(8, 3)
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(6)])
    model.compile(loss=losses.get("quantile", gradient="auto", reduction="sum", levels=[0.25, 0.75]), optimizer="sgd", jit_compile=False)
    model.fit(x, y, verbose=0)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert loaded.loss.loss == model.loss.loss
    assert (loaded.loss.gradient, loaded.loss.reduction, loaded.loss.name) == ("auto", "sum", "quantile")
    np.testing.assert_allclose(loaded.evaluate(x, y, verbose=0), model.evaluate(x, y, verbose=0))


def test_loss_of_ones_own_says_that_it_is_not_saved_by_name():
    class Mine(MSE):
        pass

    Mine.__module__ = "elsewhere"
    y, p = data(4, 3)
    assert KerasLoss(Mine())(y, p) == losses.get("mse")(y, p)
    with pytest.raises(LossError, match="compile after loading"):
        KerasLoss(Mine()).get_config()


def test_replicas_share_the_mean(monkeypatch):
    y, p = data(4, 3)
    monkeypatch.setattr(tf.distribute, "get_strategy", lambda: types.SimpleNamespace(num_replicas_in_sync=2))
    assert float(losses.get("mse")(y, p)) == pytest.approx(float(tf.reduce_mean(per_example(MSE(), "auto", y, p))) / 2)
    assert float(losses.get("mse", reduction="sum")(y, p)) == pytest.approx(float(tf.reduce_sum(per_example(MSE(), "auto", y, p))))
