"""Every loss in every gradient mode, found through conf/loss/*.yaml: a new loss is tested here without a test of its own."""

import contextlib
import dataclasses
import functools
import math
from pathlib import Path

import keras
import mpmath
import numpy as np
import pytest
import tensorflow as tf
import yaml

import losses
from losses.base import LossError, per_example
from losses.proof import start

FOLDER = Path(__file__).parents[2] / "conf" / "loss"
FILES = sorted(FOLDER.glob("*.yaml"))
# Hyperparameters with branches that the YAML's values don't reach.
VARIANTS = {
    "binary_crossentropy": [{"label_smoothing": 0.2}],
    "huber": [{"delta": 0.5}],
    "quantile": [{"levels": [0.5]}],
    "softmax_crossentropy": [{"label_smoothing": 0.2}],
    "stable_mse": [{"outside": "pass"}, {"outside": "zero", "low": 0.25, "high": 0.75}],
}
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


@dataclasses.dataclass(frozen=True)
class Case:
    """A loss in a mode, with data."""

    loss: losses.base.Loss
    mode: str
    y_true: np.ndarray
    y_pred: np.ndarray  # float64, exact in bfloat16 and float16

    def evaluate(self, y_true, y_pred, dy=None, how="eager"):
        """Value and gradient of sum(dy * value)."""
        dy = np.ones(len(y_pred)) if dy is None else dy
        return compiled(self.loss, self.mode, how)(y_true, y_pred, tf.cast(dy, tf.float64 if y_pred.dtype == tf.float64 else tf.float32))

    def rounding(self, eps):
        """How far off value and gradient may be in a precision: what a change of the inputs in it changes, and their own rounding."""
        rng, change = np.random.default_rng(1), 2.0**-24
        center = [t.numpy() for t in self.evaluate(self.y_true, tf.constant(self.y_pred))]
        spread = [np.zeros_like(t) for t in center]
        for _ in range(6):
            p = self.y_pred * (1 + change * rng.choice([-1, 1], self.y_pred.shape))
            y = self.y_true if self.y_true.dtype.kind == "i" else self.y_true * (1 + change * rng.choice([-1, 1], self.y_true.shape))
            spread = [np.maximum(s, abs(t.numpy() - c)) for s, t, c in zip(spread, self.evaluate(y, tf.constant(p)), center, strict=True)]
        return [16 * eps * (s / change + abs(c)) + 1e-37 for s, c in zip(spread, center, strict=True)]


@functools.cache
def compiled(loss, mode, how):
    def evaluate(y_true, y_pred, dy):
        with tf.GradientTape() as tape:
            tape.watch(y_pred)
            value = per_example(loss, mode, y_true, y_pred)
        return value, tape.gradient(value, y_pred, output_gradients=dy, unconnected_gradients="zero")

    return evaluate if how == "eager" else tf.function(evaluate, jit_compile=how == "xla", reduce_retracing=True)


def sample(loss, rng, num=48, dim=3):
    """Targets and predictions around every branch: grids that tie often, and normal numbers, all exact in bfloat16."""

    def mixed(shape, grid, width):
        normal = tf.cast(tf.cast(rng.normal(size=shape) * width, tf.bfloat16), tf.float64).numpy()
        return np.where(rng.random(shape) < 0.5, rng.choice(grid, shape), normal)

    if "classes" in loss.targets:
        logits = mixed((num, dim), [-24.0, -1.0, 0.0, 0.5, 12.0], 3)
        logits[::6] = np.sort(logits[::6], axis=1)
        logits[::6, -2] = logits[::6, -1]  # two largest
        return rng.integers(0, dim, num), logits
    shape, wide = (num, dim), (num, dim * loss.outputs_per_target)
    if "binary" in loss.targets:
        return rng.choice([0.0, 1.0, 0.25], shape), mixed(wide, [-40.0, -5.0, 0.0, 5.0, 40.0], 2)
    if "counts" in loss.targets:
        return rng.choice([0.0, 1.0, 2.0, 7.0], shape), mixed(wide, [-10.0, 0.0, 3.0], 1)
    return mixed(shape, [0.0, 0.5, 1.0, 3.0], 1), mixed(wide, [-2.0, 0.0, 0.5, 1.0, 2.0, 4.0], 1)


def make(path, **hyperparameters):
    options = yaml.safe_load(path.read_text())
    del options["_target_"]
    return losses.find(path.stem)(**(options | hyperparameters))


def cases(variants):
    for path in FILES:
        for variant in [{}, *(variants.get(path.stem, []))]:
            loss = make(path, **variant)
            for mode in loss.modes:
                yield pytest.param((loss, mode), id="-".join([path.stem, *map(str, variant.values()), mode]))


@pytest.fixture(params=cases(VARIANTS))
def case(request):
    loss, mode = request.param
    return Case(loss, mode, *sample(loss, np.random.default_rng(0)))


@pytest.fixture(params=cases({}))
def plain(request):
    """A case with the YAML's own values, for what takes seconds to compile."""
    loss, mode = request.param
    return Case(loss, mode, *sample(loss, np.random.default_rng(0)))


@pytest.fixture(params=FILES, ids=lambda path: path.stem)
def path(request):
    return request.param


def test_file_is_complete(path):
    text = path.read_text()
    options = yaml.safe_load(text)
    loss = make(path)
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


@pytest.mark.parametrize("name", BRANCHES)
def test_sample_reaches_every_branch(name):
    loss = losses.find(name)()
    y, p = sample(loss, np.random.default_rng(0))
    if loss.outputs_per_target > 1:
        y = np.tile(y, loss.outputs_per_target)
    for branch, holds in BRANCHES[name].items():
        assert holds(y, p).sum() >= 2, branch


def test_against_fifty_digits(case):
    """The value, and the gradient between the one-sided slopes of the reference (which are one slope where it is smooth)."""
    value, gradient = (t.numpy() for t in case.evaluate(case.y_true, tf.constant(case.y_pred)))
    with mpmath.workdps(60):
        step = mpmath.mpf(10) ** -25
        for y, p, v, g in zip(case.y_true[:24], case.y_pred, value, gradient, strict=False):
            y = int(y) if np.ndim(y) == 0 else [mpmath.mpf(float(element)) for element in y]
            p = [mpmath.mpf(element) for element in p.tolist()]
            center = case.loss.reference(y, p)
            assert abs(v - center) <= 1e-13 * abs(center) + 1e-14
            if case.loss.contract == "surrogate" and case.mode == "analytic":
                continue  # not value's derivative; test_check_agrees compares it with the surrogate's
            for i, found in enumerate(g):
                left, right = (
                    (case.loss.reference(y, [*p[:i], p[i] + h, *p[i + 1 :]]) - center) / h for h in (-step, step)
                )  # fmt: skip
                slack = 1e-12 * (abs(left) + abs(right)) + 1e-15
                assert min(left, right) - slack <= found <= max(left, right) + slack, (y, p, i)


def test_check_agrees(case):
    if case.mode == "analytic":
        report = start.verify(case.loss, case.y_true, tf.constant(case.y_pred, tf.float32))
        assert report.ok, report.message
        assert report.num_checked > report.num_inconclusive


def test_gradient_is_multiplied_by_dy(case):
    dy = np.random.default_rng(2).uniform(-2, 2, len(case.y_pred))
    dy[::5] = 0
    p = tf.constant(case.y_pred)
    plain, weighted = (case.evaluate(case.y_true, p, weights)[1].numpy() for weights in (None, dy))
    np.testing.assert_allclose(weighted, dy[:, None] * plain, rtol=1e-12, atol=1e-15)
    assert not weighted[::5].any()


def test_nan_under_the_mask_is_harmless(case):
    mask = np.arange(len(case.y_pred)) % 3 != 0
    p, y = case.y_pred.copy(), case.y_true.copy()
    p[~mask] = np.nan
    y[~mask] = -1 if y.dtype.kind == "i" else np.nan
    p = tf.constant(p)
    with tf.GradientTape() as tape:
        tape.watch(p)
        value = per_example(case.loss, case.mode, y, p, tf.constant(mask))
    gradient = tape.gradient(value, p).numpy()
    expected = [t.numpy() for t in case.evaluate(case.y_true, tf.constant(case.y_pred))]
    assert not gradient[~mask].any()
    assert not value.numpy()[~mask].any()
    np.testing.assert_allclose(value.numpy()[mask], expected[0][mask], rtol=1e-13)
    np.testing.assert_allclose(gradient[mask], expected[1][mask], rtol=1e-13)


def test_nan_is_not_swallowed(case):
    p = case.y_pred.copy()
    p[0, 0] = np.nan
    value, _ = case.evaluate(case.y_true, tf.constant(p))
    assert np.isnan(value[0])
    assert np.isfinite(value[1:]).all()


@pytest.mark.parametrize("dtype", [tf.float32, tf.float16, tf.bfloat16], ids=lambda dtype: dtype.name)
def test_precision(case, dtype):
    exact = [t.numpy() for t in case.evaluate(case.y_true, tf.constant(case.y_pred))]
    value, gradient = case.evaluate(case.y_true, tf.constant(case.y_pred, dtype))
    assert value.dtype == tf.float32
    assert gradient.dtype == dtype
    value_slack, gradient_slack = case.rounding(2.0**-24)
    own = {tf.float32: 0.0, tf.float16: 2.0**-11, tf.bfloat16: 2.0**-8}[dtype]  # rounding of the result to half precision
    smallest = {tf.float32: 0.0, tf.float16: 2.0**-14, tf.bfloat16: 2.0**-126}[dtype]
    assert (abs(value.numpy() - exact[0]) <= value_slack).all()
    assert (abs(tf.cast(gradient, tf.float64).numpy() - exact[1]) <= gradient_slack + own * abs(exact[1]) + smallest).all()


def test_eager_graph_and_xla_agree(plain):
    dy = np.random.default_rng(3).uniform(0.5, 2, len(plain.y_pred))
    p = tf.constant(plain.y_pred, tf.float32)
    y = tf.constant(plain.y_true if plain.y_true.dtype.kind == "i" else plain.y_true.astype(np.float32))
    eager = [t.numpy() for t in plain.evaluate(y, p, dy)]
    slack = plain.rounding(2.0**-24)
    for how in ["graph", "xla"] if plain.loss.xla else ["graph"]:
        for found, expected, allowed in zip(plain.evaluate(y, p, dy, how), eager, slack, strict=True):
            assert (abs(found.numpy() - expected) <= 2 * allowed).all(), how


def test_empty_batch(plain):
    for how in ("eager", "graph", "xla") if plain.loss.xla else ("eager", "graph"):
        value, gradient = plain.evaluate(plain.y_true[:0], tf.constant(plain.y_pred[:0], tf.float32), how=how)
        assert value.shape == (0,)
        assert gradient.shape == (0, plain.y_pred.shape[1])


@pytest.mark.parametrize("xla", [False, True], ids=["graph", "xla"])
def test_unknown_static_shape(plain, xla):
    if xla and not plain.loss.xla:
        pytest.skip("XLA can't compile it")
    y = plain.y_true if plain.y_true.dtype.kind == "i" else plain.y_true.astype(np.float32)
    signature = [
        tf.TensorSpec(None, y.dtype),
        tf.TensorSpec([None, None], tf.float32),
        tf.TensorSpec([None], tf.float32),
    ]
    function = tf.function(compiled(plain.loss, plain.mode, "eager"), input_signature=signature, jit_compile=xla)
    p, dy = plain.y_pred.astype(np.float32), np.ones(len(y), np.float32)
    for found, expected, allowed in zip(function(y, p, dy), plain.evaluate(y, tf.constant(p)), plain.rounding(2.0**-24), strict=True):
        assert (abs(found.numpy() - expected.numpy()) <= 2 * allowed).all()
    for wrong in (y[:1], y[:-1], y[..., None]):
        with pytest.raises(tf.errors.InvalidArgumentError):
            function(wrong, p, dy)


def test_axes_between_are_averaged_over(case):
    num, steps = 6, len(case.y_pred) // 6
    flat_value, flat_gradient = (t.numpy() for t in case.evaluate(case.y_true, tf.constant(case.y_pred)))
    y, p = case.y_true.reshape(num, steps, *case.y_true.shape[1:]), case.y_pred.reshape(num, steps, -1)
    value, gradient = case.evaluate(y, tf.constant(p))
    np.testing.assert_allclose(value, flat_value.reshape(num, steps).mean(axis=1), rtol=1e-12)
    np.testing.assert_allclose(gradient, flat_gradient.reshape(p.shape) / steps, rtol=1e-12, atol=1e-300)


def test_second_order(case):
    rng = np.random.default_rng(4)
    p = tf.constant(case.y_pred + 0.01 * rng.normal(size=case.y_pred.shape))  # off the kinks
    direction = rng.normal(size=p.shape)
    refused = case.mode == "analytic" and case.loss.second_order == "refuse"
    with pytest.raises(LossError, match="no second derivative") if refused else contextlib.nullcontext():
        with tf.GradientTape() as outer:
            outer.watch(p)
            gradient = case.evaluate(case.y_true, p)[1]
        found = outer.gradient(gradient, p, output_gradients=direction, unconnected_gradients="zero").numpy()
    if refused:
        return
    step = 1e-6
    ahead, behind = (case.evaluate(case.y_true, p + s * direction)[1].numpy() for s in (step, -step))
    # The Hessian is symmetric: its product with the direction is the gradient's slope along it.
    np.testing.assert_allclose(found, (ahead - behind) / (2 * step), rtol=1e-5, atol=1e-6 * abs(found).max(initial=1e-6))


def test_magnitudes(case):
    rng = np.random.default_rng(5)
    low, high = (math.log10(limit) for limit in case.loss.magnitudes)

    def wide(shape):
        return (rng.choice([-1, 1], shape) * 10 ** rng.uniform(low, high, shape)).astype(np.float32).astype(np.float64)

    y = case.y_true if {"binary", "classes"} & set(case.loss.targets) else wide(case.y_true.shape)
    y = abs(y) if "counts" in case.loss.targets else y
    spread = dataclasses.replace(case, y_true=y, y_pred=wide(case.y_pred.shape))
    exact = spread.evaluate(y, tf.constant(spread.y_pred))
    found = spread.evaluate(y, tf.constant(spread.y_pred, tf.float32))
    for f, e, slack in zip(found, exact, spread.rounding(2.0**-24), strict=True):
        assert np.isfinite(f).all()
        assert (abs(f.numpy() - e.numpy()) <= slack).all()


def test_inside_keras_fit(plain):
    """One epoch; an example of weight 0 holds NaN."""
    keras.utils.set_random_seed(0)
    y, weights = plain.y_true[:8].copy(), np.ones(8, np.float32)
    weights[3] = 0
    x = np.random.default_rng(6).normal(size=(8, 4)).astype(np.float32)
    if y.dtype.kind == "f":
        y[3] = np.nan
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(plain.y_pred.shape[1])])
    hyperparameters = {field.name: getattr(plain.loss, field.name) for field in dataclasses.fields(plain.loss)}
    loss = losses.get(plain.loss.name, plain.mode, **hyperparameters)
    before = model.get_weights()[0]
    model.compile(optimizer=keras.optimizers.SGD(0.01), loss=loss, jit_compile=False)
    expected = per_example(plain.loss, plain.mode, y, model(x), tf.constant(weights != 0)).numpy().sum() / 8
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
