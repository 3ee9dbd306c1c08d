"""The models: shapes, names of variables, precision, and what they refuse."""

import keras
import numpy as np
import pytest

import losses
from trainer import models
from trainer.data.synthetic import LinearRegression
from trainer.errors import ConfigError
from trainer.layers import Dropout


def paths(model: keras.Model) -> list[str]:
    return [variable.path for variable in model.trainable_variables]


@pytest.mark.parametrize("build", [models.linear, models.mlp, models.cnn])
@pytest.mark.parametrize("shape", [(8, 8, 1), (28, 28, 3)])
def test_output_has_a_row_for_each_image(build, shape):
    assert build(shape, 10)(np.ones([2, *shape], np.float32)).shape == (2, 10)


@pytest.mark.parametrize("build", [models.linear, models.mlp])
@pytest.mark.parametrize("shape", [(13,), (7, 3)])
def test_dense_models_take_any_shape(build, shape):
    assert build(shape, 1)(np.ones([2, *shape], np.float32)).shape == (2, 1)


def test_linear_is_linear():
    model = models.linear((2, 2), 3)
    kernel = np.arange(12.0).reshape(4, 3)
    model.set_weights([kernel, np.ones(3)])
    x = np.array([[[1.0, 2], [3, 4]]], np.float32)
    np.testing.assert_allclose(model(x), x.reshape(1, 4) @ kernel + 1)


def test_linear_finds_the_known_coefficients():
    source = LinearRegression(num_examples=4000, num_features=5, num_targets=2, noise=0.1)
    examples = source.load()
    model = models.linear((5,), 2)
    model.compile(optimizer=keras.optimizers.SGD(0.1), loss=losses.get("mse"))
    model.fit(examples.features, examples.targets, batch_size=200, epochs=15, verbose=0)
    kernel, bias = model.get_weights()
    # The standard error of a coefficient is 0.1 / sqrt(4000) = 0.002; the last steps of SGD add their noise.
    np.testing.assert_allclose(kernel, source.coefficients, atol=0.02)
    np.testing.assert_allclose(bias, source.intercept, atol=0.02)


def test_variable_paths_are_readable():
    assert paths(models.linear((4,), 1)) == ["output/kernel", "output/bias"]
    assert paths(models.mlp((4,), 1, hidden=[3])) == ["hidden_1/kernel", "hidden_1/bias", "output/kernel", "output/bias"]
    assert paths(models.mlp((4,), 1, hidden=[3], batch_normalization=True))[2:4] == ["normalization_1/gamma", "normalization_1/beta"]
    assert [path for path in paths(models.cnn((8, 8, 1), 2)) if path.endswith("kernel")] == [
        "convolution_1/kernel",
        "convolution_2/kernel",
        "dense/kernel",
        "output/kernel",
    ]


def test_mlp_follows_its_arguments():
    model = models.mlp((4,), 2, hidden=(5, 6), activation="tanh")
    assert [tuple(variable.shape) for variable in model.trainable_variables] == [(4, 5), (5,), (5, 6), (6,), (6, 2), (2,)]
    x = np.random.default_rng(0).standard_normal([3, 4])
    k1, b1, k2, b2, k3, b3 = model.get_weights()
    np.testing.assert_allclose(model(x), np.tanh(np.tanh(x @ k1 + b1) @ k2 + b2) @ k3 + b3, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("build", "places"), [(models.mlp, ["dropout_1", "dropout_2"]), (models.cnn, ["dropout"])])
def test_dropout_is_before_every_dense_layer_that_follows(build, places):
    plain, random = build((8, 8, 1), 3), build((8, 8, 1), 3, dropout=0.25)
    assert [layer.name for layer in random.layers if layer not in places and not layer.name.startswith("dropout")] == [
        layer.name for layer in plain.layers
    ]
    dropouts = [layer for layer in random.layers if isinstance(layer, Dropout)]
    assert [layer.name for layer in dropouts] == places
    assert {layer.rate for layer in dropouts} == {0.25}
    assert random.layers[-2] is dropouts[-1]
    assert paths(random) == paths(plain)
    assert not random.non_trainable_variables


def test_mlp_without_hidden_layers_is_linear():
    assert paths(models.mlp((4,), 2, hidden=[])) == ["output/kernel", "output/bias"]


@pytest.mark.parametrize("build", [models.linear, models.mlp, models.cnn])
def test_output_stays_float32_in_mixed_precision(build):
    keras.mixed_precision.set_global_policy("mixed_bfloat16")
    try:
        model = build((8, 8, 1), 10)
    finally:
        keras.mixed_precision.set_global_policy("float32")
    assert model(np.ones([1, 8, 8, 1], np.float32)).dtype == "float32"
    assert model.layers[1].compute_dtype == "bfloat16"


def test_cnn_refuses_what_is_no_image():
    with pytest.raises(ConfigError, match=r"found data of shape \[13\].*data=digits"):
        models.cnn((13,), 3)
    with pytest.raises(ConfigError, match="halves height and width 4 times"):
        models.cnn((8, 8, 1), 3, filters=(2, 2, 2, 2))


@pytest.mark.parametrize(
    ("build", "key", "value"),
    [
        (models.mlp, "hidden", 64),
        (models.mlp, "hidden", [64, 0]),
        (models.mlp, "hidden", [1.5]),
        (models.mlp, "activation", "relo"),
        (models.cnn, "filters", [-1]),
        (models.cnn, "kernel_size", 0),
        (models.cnn, "dense", 0),
        (models.cnn, "activation", "relo"),
        (models.mlp, "dropout", 1.0),
        (models.mlp, "dropout", True),
        (models.cnn, "dropout", -0.1),
        (models.cnn, "dropout", "none"),
    ],
)
def test_arguments_are_checked(build, key, value):
    with pytest.raises(ConfigError, match=rf"model\.{key}="):
        build((8, 8, 1), 3, **{key: value})
