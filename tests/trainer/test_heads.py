"""What a loss asks around a model: items mapped, outputs shaped, weights of its own; and which pairs don't fit."""

import dataclasses

import keras
import numpy as np
import pytest
import tensorflow as tf

from losses.base import Loss
from losses.modes import per_example
from trainer import heads, models


@dataclasses.dataclass(frozen=True)
class Squares(Loss):
    """As many shapes as there are to try: half the sum of squares of what the model gives."""

    def value(self, y_true, y_pred):
        return tf.reduce_sum(tf.square(y_pred), axis=list(range(1, y_pred.shape.rank))) / 2

    def check_shapes(self, y_true, y_pred):
        pass


class OfItems(Squares):
    items = True


@dataclasses.dataclass(frozen=True)
class OfSharedWeights(Loss):
    shared = ("kernel", "offset")
    entry = "hidden"

    def value(self, y_true, y_pred):
        return tf.reduce_sum(tf.square(tf.matmul(y_pred["hidden"], y_pred["kernel"]) + y_pred["offset"]), axis=-1)

    def shared_shapes(self, width, num_classes):
        return {"kernel": (width, num_classes), "offset": (num_classes,)}

    def check_shapes(self, y_true, y_pred):
        pass


class OfItemsWithSharedWeights(OfSharedWeights):
    items = True


def attach(model, loss, features_shape, shape, kind="real", num_classes=None):
    return heads.attach(model, loss, keras.Input(features_shape), shape, True, kind, num_classes)


def test_a_model_that_fits_is_left_alone():
    model = models.mlp((3,), 2)
    assert attach(model, Squares(), (3,), (2,)) is model


@pytest.mark.parametrize(("shape", "num_outputs"), [((), 1), ((5,), 5), ((2, 3), 6), ((None,), None)])
def test_items_are_mapped_one_by_one(shape, num_outputs):
    model = models.mlp((4, 4, 1), num_outputs)
    mapped = attach(model, OfItems(), (3, 4, 4, 1), shape)
    x = np.random.default_rng(0).standard_normal([2, 3, 4, 4, 1]).astype(np.float32)
    out = mapped(x).numpy()
    assert out.shape == (2, 3, *((16,) if None in shape else shape))
    for item in range(3):
        np.testing.assert_allclose(out[:, item].reshape(2, -1), model(x[:, item]), rtol=1e-5, atol=1e-6)
    assert [v.path for v in mapped.trainable_variables] == [v.path for v in model.trainable_variables]


@pytest.mark.parametrize(("shape", "num_outputs"), [((), 1), ((2, 3), 6)])
def test_outputs_are_shaped(shape, num_outputs):
    model = models.linear((3,), num_outputs)
    x = np.random.default_rng(0).standard_normal([5, 3]).astype(np.float32)
    out = attach(model, Squares(), (3,), shape)(x)
    assert out.shape == (5, *shape)
    np.testing.assert_array_equal(out.numpy().ravel(), model(x).numpy().ravel())


def test_shared_weights_are_owned_and_learn():
    model = attach(models.linear((3,), None), OfSharedWeights(), (3,), (None,), num_classes=7)
    x = np.random.default_rng(0).standard_normal([5, 3]).astype(np.float32)
    with tf.GradientTape() as tape:
        predictions = model(x, training=True)
        total = tf.reduce_sum(per_example(OfSharedWeights(), "auto", tf.zeros([5, 1]), predictions))
    assert {name: tuple(p.shape) for name, p in predictions.items()} == {"hidden": (5, 16), "kernel": (16, 7), "offset": (7,)}
    variables = {v.path: v for v in model.trainable_variables}
    assert set(variables) == {"output/kernel", "output/bias", "shared/kernel", "shared/offset"}
    gradients = tape.gradient(total, [v.value for v in variables.values()])
    assert all(np.abs(g).max() > 0 for g in gradients)


def test_items_with_shared_weights():
    model = attach(models.linear((3,), None), OfItemsWithSharedWeights(), (2, 3), (None,), num_classes=4)
    assert {name: tuple(p.shape) for name, p in model(np.ones([5, 2, 3])).items()} == {
        "hidden": (5, 2, 16),
        "kernel": (16, 4),
        "offset": (4,),
    }


@pytest.mark.parametrize("scale", [0.0, 1e-3, 1.0, 1e3])
def test_points_of_the_ball_are_within_it(scale):
    x = tf.constant(scale * np.random.default_rng(0).standard_normal([100, 3]), tf.float32)
    with tf.GradientTape() as tape:
        tape.watch(x)
        points = heads.UnitBall()(x)
        total = tf.reduce_sum(points)
    norms = np.linalg.norm(points, axis=-1)
    assert (norms < 1).all()
    assert np.isfinite(tape.gradient(total, x)).all()
    # On the hyperboloid a point at distance r from the origin has |x| = sinh(r), and in the ball tanh(r / 2).
    np.testing.assert_allclose(norms, np.tanh(np.arcsinh(np.linalg.norm(x, axis=-1)) / 2), rtol=1e-5)


def test_heads_are_float32_in_mixed_precision():
    keras.mixed_precision.set_global_policy("mixed_bfloat16")
    try:
        shared = attach(models.linear((3,), None), OfSharedWeights(), (3,), (None,), num_classes=7)
        ball = attach(models.linear((3,), 2), Squares(), (3,), (2,), kind="ball")
    finally:
        keras.mixed_precision.set_global_policy("float32")
    assert {p.dtype for p in shared(np.ones([1, 3])).values()} == {tf.float32}
    assert ball(np.ones([1, 3])).dtype == tf.float32
