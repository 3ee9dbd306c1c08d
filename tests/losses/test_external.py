"""A function outside TensorFlow as a loss: what it computes, what it may return, and whose function a configuration may name."""

import math
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
from scipy import special

import losses
from losses.base import LossError
from losses.external import External
from losses.modes import per_example
from losses.proof.evaluation import evaluate
from trainer import build, config, job
from trainer.errors import ConfigError


def quartic(y_true, y_pred):
    error = y_pred - y_true
    return (error**4).sum(axis=1), 4 * error**3


def ranking(y_true, y_pred):
    """Of class indices: the logit of the true class, negated."""
    return -np.take_along_axis(y_pred, y_true[:, None], 1)[:, 0], -np.eye(y_pred.shape[1])[y_true]


def test_pseudo_huber_is_scipys():
    """At r = 3/4 and -4/3: sqrt(1 + r^2) is 5/4 and 5/3, the slopes 3/5 and -4/5."""
    loss = losses.find("external")()
    p = np.array([[0.75, -4 / 3], [0.0, 1.0]])
    value, gradient = evaluate(loss, "analytic", np.array([[0.0, 0.0], [0.0, 1.0]]), p)
    np.testing.assert_allclose(value, [(1 / 4 + 2 / 3) / 2, 0], rtol=1e-12)
    np.testing.assert_allclose(gradient, [[0.3, -0.4], [0, 0]], rtol=1e-12)
    np.testing.assert_allclose(value[0], special.pseudo_huber(1, p[0]).mean(), rtol=1e-15)


def test_usual_pseudo_huber_loses_small_values():
    """sqrt(1 + r^2) - 1 is 0 below 2e-4 in float32; SciPy's is r^2 / 2."""
    error = np.float32([[1e-4]])
    assert np.sqrt(1 + error**2) - 1 == 0
    value, _ = evaluate(losses.find("external")(), "analytic", np.zeros((1, 1)), tf.constant(error))
    np.testing.assert_allclose(value, [5e-9], rtol=1e-6)


@pytest.mark.parametrize("how", ["eager", "graph"])
def test_a_function_of_ones_own(how):
    dy = np.array([0.5, -3.0])
    value, gradient = evaluate(External(function=quartic), "analytic", np.zeros((2, 2)), np.array([[1.0, -2.0], [0.5, 0.0]]), dy, how)
    np.testing.assert_array_equal(value, [17, 1 / 16])
    np.testing.assert_array_equal(gradient, [[2, -16], [-1.5, 0]])


def test_class_targets():
    loss = External(function=ranking, target="classes")
    value, gradient = evaluate(loss, "analytic", np.array([2, 0]), tf.constant([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]))
    np.testing.assert_array_equal(value, [-3, -4])
    np.testing.assert_array_equal(gradient, [[0, 0, -1], [-1, 0, 0]])


def test_one_call_for_value_and_gradient_and_one_for_the_value_alone():
    calls = []

    def counted(y_true, y_pred):
        calls.append(len(y_pred))
        return quartic(y_true, y_pred)

    loss = External(function=counted)
    evaluate(loss, "analytic", np.zeros((3, 1)), np.ones((3, 1)))
    assert calls == [3]
    per_example(loss, "analytic", np.zeros((5, 1)), tf.ones([5, 1]))
    assert calls == [3, 5]


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda y, p: (np.sum(p), p), r"value of shape \(3,\); found \(\)"),
        (lambda y, p: (p[:, 0], p[:, 0]), r"gradient of shape \(3, 2\); found \(3,\)"),
        (lambda y, p: 1 / 0, "division by zero"),
    ],
)
def test_what_it_returns_is_checked(function, message):
    with pytest.raises(tf.errors.OpError, match=message):
        evaluate(External(function=function), "analytic", np.zeros((3, 2)), tf.ones([3, 2]))


def test_declarations():
    assert External().contract == "exact"
    assert External(function=quartic, derivative="sub").contract == "sub"
    assert External(target="counts").targets == ("counts",)
    assert External().modes == ("analytic",)
    assert External(function=quartic).reference is None
    assert float(External().reference([0.0], [0.75])) == pytest.approx(0.25)
    with pytest.raises(LossError, match="has no gradient mode 'auto'"):
        per_example(External(), "auto", [[0.0]], tf.ones([1, 1]))
    for wrong in ({"derivative": "surrogate"}, {"target": "labels"}, {"function": "os.system"}, {"function": 3}):
        with pytest.raises(ValueError, match=f"loss external: {next(iter(wrong))} must be"):
            External(**wrong)


@pytest.mark.slow
def test_fit():
    model = keras.Sequential([keras.Input([1]), keras.layers.Dense(1, kernel_initializer="zeros")])
    model.compile(keras.optimizers.SGD(0.5), loss=losses.get("external"), jit_compile=False)
    x = np.linspace(-1, 1, 32, dtype="float32")[:, None]
    model.fit(x, 3 * x, epochs=100, batch_size=32, verbose=0)
    assert model.get_weights()[0][0, 0] == pytest.approx(3, abs=0.05)


OWN = """
import math
from os import system

import numpy as np


def quarter(y_true, y_pred):
    return ((y_pred - y_true) ** 2 / 4).sum(axis=1), (y_pred - y_true) / 2


LIMIT = 3
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A package of the user's own, by name."""
    (tmp_path / "own_functions.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    yield "own_functions"
    sys.modules.pop("own_functions", None)


def wanted(*overrides):
    return config.load(["loss=external", "data=diabetes", "model=linear", "gradient=analytic", *overrides])


def test_from_the_command_line(own):
    loss = build.build_loss(wanted(f"loss.function={own}.quarter", f"trust=[{own}]"))
    assert loss.function.__name__ == "quarter"
    assert build.build_loss(wanted()) == External()


@pytest.mark.fault
@pytest.mark.parametrize(
    ("function", "trust", "message"),
    [
        ("own_functions.quarter", [], r"is refused.*type trust=\[own_functions\]"),
        ("own_functions.quarter", ["other_package"], r"is refused.*type trust=\[own_functions\]"),
        ("os.system", ["own_functions"], "is refused: it is not in a package of your own$"),
        ("own_functions.system", ["own_functions"], "is refused: own_functions defines no function system"),
        ("own_functions.math.sqrt", ["own_functions"], "importing own_functions.math raised"),
        ("own_functions.LIMIT", ["own_functions"], "defines no function LIMIT"),
        ("own_functions.nothing", ["own_functions"], "defines no function nothing"),
        ("losses.modes.per_example", ["own_functions"], "must be a function"),
        ("losses.base.tf.io.gfile.rmtree", ["own_functions"], "must be a function"),
        ("quarter", ["own_functions"], "is refused"),
    ],
)
def test_names_that_are_not_ones_own_are_refused(own, function, trust, message):
    asked = wanted(f"loss.function={function}", f"trust=[{','.join(trust)}]")
    with pytest.raises(ConfigError, match=message):
        build.build_loss(asked)
    assert ("own_functions" in sys.modules) == (bool(trust) and trust[0] == function.split(".")[0] == own)


def test_training_says_that_it_runs_on_the_host(own, tmp_path, capsys):
    run_dir = f"hydra.run.dir={tmp_path / 'run'}"
    asked = wanted(f"loss.function={own}.quarter", f"trust=[{own}]", "trainer.steps=20", "optimizer.learning_rate=0.1", run_dir)
    assert job.run(asked) == 0
    assert "the loss external runs on the host, at every step, and not under XLA" in "".join(capsys.readouterr())


def test_xla_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"trainer\.compile=chunk: the loss external can't be compiled by XLA"):
        job.run(wanted("trainer.compile=chunk", "trainer.steps=2", f"hydra.run.dir={tmp_path / 'run'}"))


def test_pseudo_huber_of_an_empty_batch():
    value, gradient = evaluate(External(), "analytic", np.zeros((0, 2)), np.zeros((0, 2)))
    assert value.shape == (0,)
    assert gradient.shape == (0, 2)
    assert math.isfinite(evaluate(External(), "analytic", np.zeros((1, 1)), np.full((1, 1), 1e30))[0][0])
