"""conf/optimizer: every Keras optimizer, with its own arguments and defaults, and that it trains."""

import inspect
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from omegaconf import OmegaConf

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


def build(path):
    arguments = OmegaConf.to_container(OmegaConf.load(path))
    return getattr(keras.optimizers, arguments.pop("_target_").rpartition(".")[2])(**arguments)


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
