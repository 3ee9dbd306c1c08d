"""conf/optimizer: every Keras optimizer, with its own arguments and defaults, and that it trains."""

import inspect
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from omegaconf import OmegaConf

from trainer import optimizers

FOLDER = Path(__file__).parents[2] / "conf" / "optimizer"
FILES = sorted(FOLDER.glob("*.yaml"))

# These wrap other optimizers, or are the base of all.
NOT_STANDALONE = {"Optimizer", "LossScaleOptimizer", "MultiOptimizer"}
# The loop does this itself: after the reduction over replicas, and for every optimizer the same way.
REFUSED = {
    *("clipnorm", "clipvalue", "global_clipnorm", "loss_scale_factor", "gradient_accumulation_steps"),
    *("use_ema", "ema_momentum", "ema_overwrite_frequency"),
}


def test_every_keras_optimizer_has_a_file():
    classes = {
        name for name, value in vars(keras.optimizers).items() if inspect.isclass(value) and issubclass(value, keras.optimizers.Optimizer)
    }
    targets = [OmegaConf.load(path)._target_ for path in FILES]
    assert sorted(targets) == sorted(f"keras.optimizers.{name}" for name in classes - NOT_STANDALONE)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_file_lists_the_arguments_and_defaults_of_keras(path):
    config = OmegaConf.to_container(OmegaConf.load(path))
    name = config.pop("_target_").removeprefix("keras.optimizers.")
    assert path.stem.replace("_", "") == name.lower()
    assert path.read_text().startswith(f"# {name}: ")
    parameters = inspect.signature(getattr(keras.optimizers, name)).parameters
    assert config == {key: p.default for key, p in parameters.items() if key not in REFUSED | {"name", "kwargs"}}
    assert set(parameters) >= REFUSED


def keras_own(path):
    return getattr(keras.optimizers, OmegaConf.load(path)._target_.rpartition(".")[2])


def arguments_of(path):
    arguments = OmegaConf.to_container(OmegaConf.load(path))
    del arguments["_target_"]
    return arguments


def build(path):
    return optimizers.fused(keras_own(path))(**arguments_of(path))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_variables_are_all_of_the_state(path):
    """What a checkpoint keeps of an optimizer is its `variables`: another one that gets them goes on to the bit."""
    gradients = [tf.constant(g, tf.float32) for g in np.random.default_rng(0).standard_normal((6, 4, 3))]
    weights, others = keras.Variable(np.ones((4, 3), np.float32)), keras.Variable(np.ones((4, 3), np.float32))
    first, second = build(path), build(path)
    for optimizer, variable in ((first, weights), (second, others)):
        optimizer.build([variable])
    for gradient in gradients[:3]:
        first.apply([gradient], [weights])
    for mine, theirs in zip([others, *second.variables], [weights, *first.variables], strict=True):
        mine.assign(theirs)
    for gradient in gradients[3:]:
        first.apply([gradient], [weights])
        second.apply([gradient], [others])
    np.testing.assert_array_equal(others.numpy(), weights.numpy())


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_three_steps_change_every_weight(path):
    optimizer = build(path)
    rng = np.random.default_rng(0)
    variables = [keras.Variable(rng.standard_normal(shape), dtype="float32") for shape in ([4, 3], [3])]
    optimizer.build(variables)
    before = [variable.numpy() for variable in variables]
    gradients = [tf.constant(rng.standard_normal(variable.shape), tf.float32) for variable in variables]

    @tf.function(autograph=False)
    def step():
        optimizer.apply_gradients(zip(gradients, variables, strict=True))

    for _ in range(3):
        step()
    for variable, start in zip(variables, before, strict=True):
        assert np.isfinite(variable.numpy()).all()
        assert (variable.numpy() != start).all()
    assert optimizer.iterations.numpy() == 3


def trained(optimizer, dtype, jit_compile):
    """The weights and the optimizer's variables after 20 steps on gradients of very different sizes."""
    rng = np.random.default_rng(0)
    weights = [keras.Variable(rng.standard_normal(shape), dtype=dtype) for shape in ([40, 3], [3])]
    gradients = rng.standard_normal((20, 40, 3)) * 10.0 ** rng.integers(-8, 3, (20, 40, 3))
    optimizer.build(weights)

    @tf.function(autograph=False, jit_compile=jit_compile)
    def step(gradient):
        optimizer.apply([gradient, gradient[0]], weights)

    for gradient in gradients:
        step(tf.constant(gradient, dtype))
    return [np.asarray(variable.numpy(), np.float64) for variable in [*weights, *optimizer.variables]]


@pytest.mark.parametrize("jit_compile", [False, True])
@pytest.mark.parametrize(
    "overrides",
    [{}, {"weight_decay": 0.1}, {"amsgrad": True}, {"beta_1": 0.5, "beta_2": 0.9, "epsilon": 1e-3}],
    ids=["plain", "decay", "amsgrad", "others"],
)
@pytest.mark.parametrize("name", ["adam", "adamw"])
def test_one_kernel_gives_what_keras_gives(name, overrides, jit_compile):
    path = FOLDER / f"{name}.yaml"
    fused = optimizers.fused(keras_own(path))
    assert fused is not keras_own(path)
    arguments = arguments_of(path) | overrides
    for found, expected in zip(
        trained(fused(**arguments), "float32", jit_compile), trained(keras_own(path)(**arguments), "float32", jit_compile), strict=True
    ):
        np.testing.assert_allclose(found, expected, rtol=2.0**-25 / (1 - arguments["beta_2"]) + 2e-6, atol=1e-9)


def test_float64_is_exact():
    """The formula of the paper, in NumPy; Keras' own rounds beta's powers to float32."""
    found = trained(optimizers.fused(keras.optimizers.Adam)(), "float64", False)[0]
    rng = np.random.default_rng(0)
    weight, _ = (rng.standard_normal(shape) for shape in ([40, 3], [3]))
    gradients = rng.standard_normal((20, 40, 3)) * 10.0 ** rng.integers(-8, 3, (20, 40, 3))
    m = v = np.zeros_like(weight)
    for t, gradient in enumerate(gradients, start=1):
        m, v = 0.9 * m + 0.1 * gradient, 0.999 * v + 0.001 * gradient**2
        rate = np.float64(np.float32(0.001)) * np.sqrt(1 - 0.999**t) / (1 - 0.9**t)
        weight = weight - rate * m / (np.sqrt(v) + 1e-7)
    np.testing.assert_allclose(found, weight, rtol=1e-10, atol=1e-12)


def test_names_of_variables_are_keras_own():
    for mine, theirs in ((optimizers.Adam, keras.optimizers.Adam), (optimizers.AdamW, keras.optimizers.AdamW)):
        made = []
        for optimizer in (mine(name="x"), theirs(name="x")):
            optimizer.build([keras.Variable(np.ones(2), name="w")])
            made.append([variable.path for variable in optimizer.variables])
        assert made[0] == made[1]
        assert mine.__name__ == theirs.__name__
