"""The contract and the adapter: everything that tf.custom_gradient would let slip, planted."""

import dataclasses
import functools
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

import losses
from losses.base import MODES, Loss, LossError
from losses.modes import measures, per_example
from losses.proof import start

ROOT = Path(__file__).parents[2]


@dataclasses.dataclass(frozen=True)
class Square(Loss):
    """(p - y)^2 with a gradient three times too large, so that the two modes can be told apart."""

    def value(self, y_true, y_pred):
        return tf.reduce_mean(tf.square(y_pred - y_true), axis=-1)

    def gradient(self, y_true, y_pred):
        return 3 * 2 * (y_pred - y_true) / y_pred.shape[-1]


def data(num=4, dim=3, dtype=tf.float32):
    rng = np.random.default_rng(0)
    return tf.constant(rng.normal(size=(num, dim)), dtype), tf.constant(rng.normal(size=(num, dim)), dtype)


def gradient_of(loss, mode, y, p, dy=None, mask=None):
    with tf.GradientTape() as tape:
        tape.watch(p)
        value = per_example(loss, mode, y, p, mask)
    return tape.gradient(value, p, output_gradients=dy)


def faulty(fault):
    """A loss whose gradient is spoiled by `fault(gradient)`."""

    class Faulty(Square):
        def gradient(self, y_true, y_pred):
            return fault(super().gradient(y_true, y_pred))

    return Faulty()


@pytest.mark.parametrize("how", ["eager", "graph"])
@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (lambda g: g[:, :1], r"must have shape \(.*, 3\) .* found shape \(.*, 1\)"),
        (lambda g: tf.concat([g, g], -1), r"found shape \(.*, 6\)"),
        (lambda g: tf.reduce_sum(g), r"found shape \(\)"),
        (lambda g: tf.cast(g, tf.float16), "found .* dtype float16"),
        (lambda g: tf.cast(g, tf.float64), "found .* dtype float64"),
        (lambda g: None, "found None"),
        (lambda g: {"p": g}, "expected|structured as y_pred, one tensor; found entries"),
    ],
    ids=["one column", "six columns", "scalar", "float16", "float64", "None", "dict"],
)
def test_wrong_gradient_is_refused(fault, message, how):
    run = gradient_of if how == "eager" else tf.function(gradient_of, autograph=False)
    with pytest.raises(LossError, match=message):
        run(faulty(fault), "analytic", *data())


def projection(extra):
    """A loss of two entries whose gradient has that of hidden and the extra ones."""

    class Projection(Loss):
        shared = ("kernel",)

        def check_shapes(self, y_true, y_pred):
            pass

        def value(self, y_true, y_pred):
            return tf.reduce_sum(y_pred["hidden"] @ y_pred["kernel"], axis=-1)

        def value_and_vjp(self, y_true, y_pred, **mask):
            return self.value(y_true, y_pred), lambda dy: {"hidden": y_pred["hidden"], **extra}

    return Projection()


def test_wrong_entries_are_refused():
    y, hidden = data()
    p = {"hidden": hidden, "kernel": tf.ones([3, 2])}
    for extra, message in [
        ({}, r"structured as y_pred, entries \['hidden', 'kernel'\]; found entries \['hidden'\]"),
        ({"kernel": None}, "the gradient of kernel is None"),
        ({"kernel": tf.ones([2, 3])}, r"of kernel must have shape \(3, 2\)"),
    ]:
        with pytest.raises(LossError, match=message):
            gradient_of(projection(extra), "analytic", y, p)
    assert gradient_of(projection({"kernel": tf.ones([3, 2])}), "analytic", y, p)["kernel"].shape == (3, 2)


def test_gradient_is_multiplied_by_dy_and_a_vjp_that_forgets_it_is_found():
    class Forgetful(Square):
        def value_and_vjp(self, y_true, y_pred, **mask):
            gradient = 2 * (y_pred - y_true) / y_pred.shape[-1]
            return self.value(y_true, y_pred), lambda dy: gradient

    y, p = data()
    dy = tf.constant([1.0, -2.0, 0.0, 0.5])
    np.testing.assert_allclose(gradient_of(Square(), "analytic", y, p, dy), dy[:, None] * (2 * (p - y)), rtol=1e-6)
    assert "ignores dy" in start.verify(Forgetful(), y, p).message


@pytest.mark.parametrize(
    ("metrics", "message"),
    [
        (lambda y, p: p[:, 0], "metrics must give a tuple of 2, for first, largest; found .*Tensor"),
        (lambda y, p: (p[:, 0],), "a tuple of 2, for first, largest; found .*Tensor"),
        (lambda y, p: (p[:, 0], None), "a tuple of 2, for first, largest; found .*None"),
        (lambda y, p: (p[:, 0], tf.reduce_mean(p)), r"the metric largest must be .*, shape \(4,\); found \(\)"),
    ],
)
def test_metrics_are_one_number_per_example_for_every_name(metrics, message):
    class Measured(Square):
        metric_names = ("first", "largest")

        def metrics(self, y_true, y_pred):
            return metrics(y_true, y_pred)

    with pytest.raises(LossError, match=message):
        measures(Measured(), *data())


@pytest.mark.parametrize("mode", MODES)
def test_value_must_be_one_number_per_example(mode):
    class Mean(Square):
        def value(self, y_true, y_pred):
            return tf.reduce_mean(tf.square(y_pred - y_true))

    class Half(Square):
        def value(self, y_true, y_pred):
            return tf.cast(super().value(y_true, y_pred), tf.float16)

    with pytest.raises(LossError, match=r"one number per example, shape \(4,\); found \(\)"):
        per_example(Mean(), mode, *data())
    with pytest.raises(LossError, match="value must be float32, as y_pred; found float16"):
        per_example(Half(), mode, *data())


@pytest.mark.parametrize("mode", MODES)
def test_shapes_never_broadcast(mode):
    for y, p in [([4], [4, 1]), ([4, 1], [4]), ([4, 1], [4, 3]), ([1, 3], [4, 3]), ([], [4, 3]), ([4, 3], [4, 2, 3])]:
        with pytest.raises(LossError, match="does not fit y_pred of shape"):
            per_example(Square(), mode, tf.zeros(y), tf.zeros(p))


@pytest.mark.parametrize("compiler", ["graph", "xla"])
def test_shapes_never_broadcast_at_run_time(compiler):
    signature = [tf.TensorSpec([None, None]), tf.TensorSpec([None, None])]
    function = tf.function(lambda y, p: per_example(Square2(), "analytic", y, p), input_signature=signature, jit_compile=compiler == "xla")
    function(tf.zeros([4, 3]), tf.zeros([4, 3]))
    for y in ([4, 1], [1, 3]):
        with pytest.raises((tf.errors.InvalidArgumentError, LossError)):
            function(tf.zeros(y), tf.zeros([4, 3]))


class Square2(Square):
    """As Square, where static shapes are unknown, with a gradient that may turn out to be too narrow."""

    def gradient(self, y_true, y_pred):
        return tf.reshape(y_pred - y_true, [-1, tf.shape(y_pred)[1]])


def test_wrong_gradient_is_refused_at_run_time():
    class Narrow(Square2):
        def gradient(self, y_true, y_pred):
            return tf.reshape((y_pred - y_true)[:, :1], [-1, tf.minimum(tf.shape(y_pred)[1], 1)])

    signature = [tf.TensorSpec([None, None]), tf.TensorSpec([None, None])]
    y, p = data()
    tf.function(lambda y, p: gradient_of(Square2(), "analytic", y, p), input_signature=signature)(y, p)
    with pytest.raises(tf.errors.InvalidArgumentError, match="shape differs"):
        tf.function(lambda y, p: gradient_of(Narrow(), "analytic", y, p), input_signature=signature)(y, p)


def test_unknown_rank():
    y, p = data()
    function = tf.function(
        lambda y, p: per_example(Square(), "analytic", y, p), input_signature=[tf.TensorSpec(None), tf.TensorSpec([None, 3])]
    )
    np.testing.assert_allclose(function(y, p), per_example(Square(), "auto", y, p))
    with pytest.raises(tf.errors.InvalidArgumentError):
        function(y[:, 0], p)
    with pytest.raises(LossError, match="known rank"):
        tf.function(lambda y, p: per_example(Square(), "auto", y, p), input_signature=[tf.TensorSpec(None), tf.TensorSpec(None)])(y, p)


def test_mask_must_be_bool_per_example():
    y, p = data()
    for mask in (tf.ones([4]), tf.ones([4, 1], tf.bool), tf.ones([3], tf.bool)):
        with pytest.raises(LossError, match=r"mask must be bool of shape \(4,\)"):
            per_example(Square(), "auto", y, p, mask)


def test_captured_trainable_variable_is_refused():
    weight = tf.Variable(2.0)

    class Captured(Square):
        def value(self, y_true, y_pred):
            return weight * super().value(y_true, y_pred)

    for run in (per_example, tf.function(per_example, autograph=False)):
        with pytest.raises(LossError, match="pass weights in as entries of y_pred"):
            run(Captured(), "analytic", *data())


@pytest.mark.parametrize("mode", MODES)
def test_nan_target_of_weight_zero(mode):
    y, p = data()
    spoiled = tf.where(tf.constant([[False], [True], [False], [False]]), np.nan, y)
    mask = tf.constant([True, False, True, True])
    value = per_example(Square(), mode, spoiled, p, mask)
    gradient = gradient_of(Square(), mode, spoiled, p, mask=mask)
    np.testing.assert_allclose(value, tf.where(mask, per_example(Square(), mode, y, p), 0))
    np.testing.assert_allclose(gradient, tf.where(mask[:, None], gradient_of(Square(), mode, y, p), 0))


@pytest.mark.parametrize("mode", MODES)
def test_no_gradient_flows_into_targets(mode):
    y, p = data()
    with tf.GradientTape() as tape:
        tape.watch([y, p])
        value = per_example(Square(), mode, y, p)
    into_target, into_prediction = tape.gradient(value, [y, p])
    assert into_target is None
    assert into_prediction is not None


def test_example_of_dy_zero_stays_zero_where_its_gradient_overflows():
    y, p = data()
    loss = faulty(lambda g: g / 0)
    gradient = gradient_of(loss, "analytic", y, p, tf.constant([0.0, 1.0, 0.0, 1.0])).numpy()
    assert not gradient[::2].any()
    assert np.isinf(gradient[1::2]).all()


@pytest.mark.parametrize("dtype", [tf.float16, tf.bfloat16])
def test_half_precision_is_computed_in_float32(dtype):
    """1 - 1e-7 rounds to 1 in half precision: an epsilon inside a formula would be lost."""

    class Epsilon(Loss):
        def value(self, y_true, y_pred):
            assert y_pred.dtype == tf.float32
            return tf.reduce_mean((1 - 1e-7) * y_pred, axis=-1)

        def gradient(self, y_true, y_pred):
            return tf.ones_like(y_pred) / y_pred.shape[-1]

    p = tf.ones([2, 2], dtype)
    for mode in MODES:
        value = per_example(Epsilon(), mode, p, p)
        assert value.dtype == tf.float32
        assert (value.numpy() < 1).all()
        assert gradient_of(Epsilon(), mode, p, p).dtype == dtype


@pytest.mark.parametrize("mode", MODES)
def test_many_calls_trace_a_few_times(mode):
    traced = []

    @dataclasses.dataclass(frozen=True)
    class Counted(Square):
        def value(self, y_true, y_pred):
            traced.append(y_pred.shape)
            return super().value(y_true, y_pred)

    for call in range(60):
        num = 2 + call % 20
        gradient_of(Counted(), mode, tf.zeros([num, 3]), tf.ones([num, 3]))
    assert len(traced) <= 4, traced


def test_last_axis_stays_known_whatever_was_called_before():
    for dim in (1, 2, 3, 4):
        per_example(Square(), "analytic", tf.zeros([5, dim]), tf.zeros([5, dim]))
        assert gradient_of(Square(), "analytic", tf.zeros([5 + dim, dim]), tf.ones([5 + dim, dim])).shape == (5 + dim, dim)


@pytest.mark.parametrize("how", ["eager", "graph", "inside a graph"])
@pytest.mark.parametrize(("mode", "factor"), [("auto", 1), ("analytic", 3)])
def test_forward_mode_uses_the_gradient_of_the_mode(mode, factor, how):
    y, p = data()
    direction = data()[1] + 1
    function = functools.partial(per_example, Square(), mode)

    def slope(evaluate):
        with tf.autodiff.ForwardAccumulator(p, direction) as accumulator:
            value = evaluate(y, p)
        return accumulator.jvp(value)

    if how == "inside a graph":
        found = tf.function(lambda: slope(function))()
    else:
        found = slope(function if how == "eager" else tf.function(function))
    np.testing.assert_allclose(found, factor * tf.reduce_mean(2 * (p - y) * direction, axis=-1), rtol=1e-5)


def test_unhashable_hyperparameter_is_refused():
    @dataclasses.dataclass(frozen=True)
    class Listed(Square):
        levels: tuple = ()

    with pytest.raises(LossError, match="a tuple instead of a list"):
        per_example(Listed(levels=[1]), "auto", *data())


def test_modes():
    class ValueOnly(Loss):
        def value(self, y_true, y_pred):
            return tf.reduce_mean(y_pred, axis=-1)

    assert ValueOnly().modes == ("auto",)
    assert Square().modes == ("auto", "analytic")
    with pytest.raises(LossError, match="no gradient mode 'analytic': it has auto"):
        per_example(ValueOnly(), "analytic", *data())
    with pytest.raises(LossError, match="no gradient mode 'auto': it has analytic"):
        per_example(losses.find("cubic")(), "auto", *data())
    with pytest.raises(LossError, match="has no value"):
        per_example(Loss(), "auto", *data())


def test_predictions_must_be_floating_point():
    with pytest.raises(LossError, match="y_pred must be floating point; found int32"):
        per_example(Square(), "auto", tf.zeros([2, 1]), tf.zeros([2, 1], tf.int32))


SAVE = """
import tensorflow as tf, losses
from losses.modes import per_example
from tests_base import Square
signature = [tf.TensorSpec([None, 3]), tf.TensorSpec([None, 3])]

def function(loss):
    return tf.function(lambda y, p: per_example(loss, "analytic", y, p), input_signature=signature)

for name, loss in (("square", Square()), ("cubic", losses.find("cubic")())):
    module = tf.Module()
    module.f = function(loss)
    tf.saved_model.save(module, name, options=tf.saved_model.SaveOptions(experimental_custom_gradients=True))
"""
LOAD = """
import tensorflow as tf
p = tf.ones([2, 3])
f = tf.saved_model.load("square").f
with tf.GradientTape() as tape:
    tape.watch(p)
    value = f(tf.zeros([2, 3]), p)
print(tape.gradient(value, p).numpy()[0].tolist())
try:
    print(tf.saved_model.load("cubic").f(tf.zeros([2, 3]), p))
except tf.errors.OpError as error:
    print("refused:", "pyfunc" in str(error))
"""


@pytest.mark.slow
def test_saved_model_keeps_the_gradient_and_a_numpy_loss_fails_loudly(tmp_path):
    (tmp_path / "tests_base.py").write_text(
        "import tensorflow as tf\nfrom losses.base import Loss\n\n\nclass Square(Loss):\n"
        "    def value(self, y, p):\n        return tf.reduce_mean(tf.square(p - y), axis=-1)\n"
        "    def gradient(self, y, p):\n        return 6 * (p - y) / p.shape[-1]\n"
    )
    outputs = []
    for script in (SAVE, LOAD):
        command = [sys.executable, "-c", script]
        environment = {"PYTHONPATH": f"{ROOT}:{tmp_path}", "PATH": "/usr/bin:/bin", "TF_CPP_MIN_LOG_LEVEL": "2"}
        outputs.append(subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True).stdout)
    assert outputs[1].splitlines() == ["[2.0, 2.0, 2.0]", "refused: True"]
    assert "not run in another process" in " ".join(losses.find("cubic").__doc__.split())


@pytest.mark.parametrize("mode", MODES)
def test_xla_takes_weights_for_variables(mode):
    loss, weight = losses.find("beta_nll")(), tf.Variable(tf.ones([3, 2]))

    @tf.function(jit_compile=True, autograph=False)
    def slope():
        with tf.GradientTape() as tape:
            value = per_example(loss, mode, tf.ones([4, 1]), tf.ones([4, 3]) @ weight)
        return tape.gradient(value, weight)

    program = slope.experimental_get_compiler_ir()(stage="hlo")
    # As a constant it would be named so; the program would then be compiled anew whenever the weight changes.
    assert "dot(" in program
    assert 'op_type="ReadVariableOp"' not in program
