"""Every loss, found through conf/loss/*.yaml: a new one is tested here, by the checker's own sections, without a test of its own."""

import dataclasses
import functools
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
import yaml

import losses
from docs import losses as page
from losses.base import Loss, LossError
from losses.modes import measures, per_example
from losses.proof import accuracy, adversarial, meaning, multiplier, structure
from losses.proof.batches import draw, evaluated
from losses.proof.evaluation import cast
from losses.proof.sampling import edges, sample

FOLDER = Path(__file__).parents[2] / "conf" / "loss"
FILES = sorted(FOLDER.glob("*.yaml"))
SECTIONS = {
    "contract": meaning.contract,
    "dy": multiplier.examine,
    "meaning": meaning.examine,
    "adversarial": adversarial.examine,
    "structure": structure.examine,
    "accuracy": lambda loss, rng: accuracy.examine(loss, rng, quick=True),
}
QUICK = ("dy",)
# Hyperparameters with branches that the YAML's values don't reach.
VARIANTS = [
    ("binary_crossentropy", {"label_smoothing": 0.2}),
    ("huber", {"delta": 0.5}),
    ("quantile", {"levels": [0.5]}),
    ("softmax_crossentropy", {"label_smoothing": 0.2}),
    ("stable_mse", {"outside": "pass"}),
    ("stable_mse", {"outside": "zero", "low": 0.25, "high": 0.75}),
]
# What the sample must contain, by loss: both sides of every branch, and the branch itself.
BRANCHES = {
    "mae": {"above": lambda y, p: p > y, "below": lambda y, p: p < y, "tie": lambda y, p: p == y},
    "quantile": {"above": lambda y, p: p > y, "below": lambda y, p: p < y, "tie": lambda y, p: p == y},
    "huber": {
        "square": lambda y, p: abs(p - y) < 1,
        "edge": lambda y, p: abs(p - y) == 1,
        "absolute, above": lambda y, p: p - y > 1,
        "absolute, below": lambda y, p: p - y < -1,
    },
    "stable_mse": {
        "inside": lambda y, p: (p > 1e-6) & (p < 1),
        "at the upper edge": lambda y, p: p == 1,
        "below, a step would lead in": lambda y, p: (p < 1e-6) & (y > 1e-6),
        "below, a step would lead out": lambda y, p: (p < 1e-6) & (y < 1e-6),
        "above, a step would lead in": lambda y, p: (p > 1) & (y < 1),
        "above, a step would lead out": lambda y, p: (p > 1) & (y > 1),
    },
    "binary_crossentropy": {
        "positive": lambda y, p: p > 0,
        "zero": lambda y, p: p == 0,
        "negative": lambda y, p: p < 0,
        "soft": lambda y, p: (y > 0) & (y < 1),
    },
    "softmax_crossentropy": {
        "true class largest": lambda y, p: np.take_along_axis(p, y[:, None], 1)[:, 0] == p.max(axis=1),
        "another largest": lambda y, p: np.take_along_axis(p, y[:, None], 1)[:, 0] < p.max(axis=1),
        "tie": lambda y, p: np.sort(p, axis=1)[:, -1] == np.sort(p, axis=1)[:, -2],
    },
}


def make(name, **hyperparameters):
    options = yaml.safe_load((FOLDER / f"{name}.yaml").read_text())
    del options["_target_"]
    return losses.find(name)(**(options | hyperparameters))


@pytest.fixture(params=FILES, ids=lambda path: path.stem)
def path(request):
    return request.param


@pytest.fixture
def loss(path):
    return make(path.stem)


def assert_holds(findings):
    assert not [f"{finding.check}: {finding.message}" for finding in findings if finding.verdict not in ("holds", "excepted")]


def default_shapes(loss):
    return type(loss).check_shapes is Loss.check_shapes


def test_file_is_complete(path):
    text = path.read_text()
    options = yaml.safe_load(text)
    loss = make(path.stem)
    assert options.pop("_target_") == f"losses.{path.stem}.{type(loss).__name__}"
    for name, default in vars(type(loss)()).items():
        line = next(line for line in text.splitlines() if line.startswith(f"{name}:"))
        assert getattr(loss, name) == default or f"losses.get has {default:g}" in line, "a default that is not the class's says so"
    assert set(options) == {field.name for field in dataclasses.fields(loss)}
    assert loss.name == path.stem
    assert loss.reference is not None
    first, *rest = text.splitlines()
    assert first.startswith("# ")
    assert all("#" in line for line in rest[1:]), "every hyperparameter has a unit or a reason"


def test_every_loss_has_a_file():
    assert [path.stem for path in FILES] == losses.names()


def test_the_page_of_all_losses_is_not_stale():
    # Names and contracts; `python -m docs.losses --check` compares verdicts with a new check.
    assert page.read() == [(name, losses.find(name)().contract, "holds") for name in losses.names()]


@pytest.mark.parametrize("name", BRANCHES)
def test_sample_reaches_every_branch(name):
    loss = losses.find(name)()
    batches = [sample(loss, np.random.default_rng(0), 48), *edges(loss)]
    for branch, holds in BRANCHES[name].items():
        reached = (holds(np.tile(y, loss.outputs_per_target) if loss.outputs_per_target > 1 else y, p) for y, p in batches)
        assert sum(np.sum(found) for found in reached) >= 2, branch


@pytest.mark.parametrize("section", [pytest.param(name, marks=[] if name in QUICK else pytest.mark.slow) for name in SECTIONS])
def test_checker_finds_no_fault(loss, section):
    findings = SECTIONS[section](loss, np.random.default_rng(0))
    assert_holds(findings)
    assert findings


def test_evaluation_takes_the_same_value(loss):
    y_true, y_pred = (cast(arrays, tf.float32) for arrays in draw(loss, np.random.default_rng(0)))
    expected = per_example(loss, loss.modes[-1], y_true, y_pred)
    np.testing.assert_allclose(measures(loss, y_true, y_pred)[0], expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("name", "hyperparameters"), VARIANTS)
def test_hyperparameters_with_other_branches(name, hyperparameters):
    loss = make(name, **hyperparameters)
    for section in ("contract", "meaning", "accuracy"):
        assert_holds(SECTIONS[section](loss, np.random.default_rng(0)))


def test_unknown_static_shape(loss):
    if not default_shapes(loss):
        pytest.skip("it asks for shapes of its own")
    y, p = (cast(tensors, tf.float64) for tensors in draw(loss, np.random.default_rng(0)))
    signature = [tf.TensorSpec(None, y.dtype), tf.TensorSpec([None, None], p.dtype)]
    function = tf.function(functools.partial(per_example, loss, loss.modes[-1]), input_signature=signature, autograph=False)
    np.testing.assert_allclose(function(y, p), evaluated(loss, loss.modes[-1], y, p)[0], rtol=1e-12)
    for wrong in (y[:1], y[:-1], y[..., None]):
        with pytest.raises((LossError, tf.errors.InvalidArgumentError)):
            function(wrong, p)


def test_unknown_static_shape_under_xla():
    """One loss stands for all that take the default shapes."""
    loss = losses.find("mse")()
    signature = [tf.TensorSpec(None, tf.float32), tf.TensorSpec([None, None], tf.float32)]
    function = tf.function(functools.partial(per_example, loss, "analytic"), input_signature=signature, jit_compile=True)
    np.testing.assert_allclose(function([[1.0, 2.0]], [[3.0, 2.0]]), [2.0])
    for wrong in ([[1.0]], [1.0], [[[1.0], [2.0]]]):
        with pytest.raises(tf.errors.InvalidArgumentError):
            function(wrong, [[3.0, 2.0]])


@pytest.mark.slow
def test_axes_between_are_averaged_over(loss):
    if not default_shapes(loss):
        pytest.skip("it asks for shapes of its own")
    y, p = draw(loss, np.random.default_rng(0), num=24)
    for mode in loss.modes:
        flat_value, flat_gradient, _ = evaluated(loss, mode, y, p, how="eager")
        value, gradient, _ = evaluated(loss, mode, y.reshape(6, 4, *y.shape[1:]), p.reshape(6, 4, -1), how="eager")
        np.testing.assert_allclose(value, flat_value.reshape(6, 4).mean(axis=1), rtol=1e-12)
        np.testing.assert_allclose(gradient, flat_gradient.reshape(gradient.shape) / 4, rtol=1e-12, atol=1e-300)


def test_inside_keras_fit(loss):
    """One epoch; an example of weight 0 holds NaN."""
    if loss.shared or "none" in loss.targets or "labels" in loss.targets:
        pytest.skip("a dict of tensors, or no target, does not fit Keras' compile")
    keras.utils.set_random_seed(0)
    y, p = draw(loss, np.random.default_rng(0), num=8)
    y, weights = y.astype(np.int32 if y.dtype.kind == "i" else np.float32), np.ones(8, np.float32)
    weights[3] = 0
    if y.dtype.kind == "f":
        y[3] = np.nan
    x = np.random.default_rng(6).normal(size=(8, 4)).astype(np.float32) / 8
    layers = [keras.Input((4,)), keras.layers.Dense(p[0].size), keras.layers.Reshape(p.shape[1:])]
    model = keras.Sequential(layers)
    mode = loss.modes[-1]
    hyperparameters = {field.name: getattr(loss, field.name) for field in dataclasses.fields(loss)}
    before = model.get_weights()[0]
    model.compile(optimizer=keras.optimizers.SGD(0.01), loss=losses.get(loss.name, mode, **hyperparameters), jit_compile=False)
    expected = per_example(loss, mode, y, model(x), tf.constant(weights != 0)).numpy().sum() / 8
    history = model.fit(x, y, sample_weight=weights, batch_size=8, epochs=1, verbose=0)
    np.testing.assert_allclose(history.history["loss"], [expected], rtol=1e-5)
    after = model.get_weights()[0]
    assert np.isfinite(after).all()
    assert (after != before).any()


def test_inside_keras_fit_by_xla():
    """One loss stands for all: that XLA compiles each is tested above."""
    x = np.random.default_rng(7).normal(size=(32, 4)).astype(np.float32)
    y = x.sum(axis=1, keepdims=True)
    histories = []
    for jit_compile in (False, True):
        keras.utils.set_random_seed(0)
        model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
        model.compile(optimizer=keras.optimizers.SGD(0.1), loss=losses.get("huber", "analytic"), jit_compile=jit_compile)
        histories.append(model.fit(x, y, batch_size=8, epochs=3, shuffle=False, verbose=0).history["loss"])
    np.testing.assert_allclose(*histories, rtol=1e-5)
    assert histories[1][-1] < 0.8 * histories[1][0]
