"""The gradient check: every kind of wrong gradient, planted, is found; a right one never is."""

import dataclasses

import numpy as np
import pytest
import tensorflow as tf

import losses
from losses.base import Loss
from losses.mse import MSE
from losses.proof import differences, start
from losses.proof.batches import draw
from losses.proof.evaluation import cast


def data(num=16, dim=5, dtype=tf.float32):
    rng = np.random.default_rng(0)
    return rng.normal(size=(num, dim)).astype(np.float32), tf.constant(rng.normal(size=(num, dim)), dtype)


@dataclasses.dataclass(frozen=True)
class Scaled(MSE):
    factor: float = 1.0

    def gradient(self, y_true, y_pred):
        return self.factor * super().gradient(y_true, y_pred)


class OneCoordinate(MSE):
    def gradient(self, y_true, y_pred):
        return super().gradient(y_true, y_pred) * tf.constant([1, 1, 1.001, 1, 1], y_pred.dtype)


class OneExample(MSE):
    def gradient(self, y_true, y_pred):
        factor = tf.where(tf.range(tf.shape(y_pred)[0]) == 7, 1.001, 1.0)
        return super().gradient(y_true, y_pred) * tf.cast(factor, y_pred.dtype)[:, None]


class MissingMean(MSE):
    def gradient(self, y_true, y_pred):
        return 2 * (y_pred - y_true)


class IgnoresDy(MSE):
    def value_and_vjp(self, y_true, y_pred, **mask):
        gradient = self.gradient(y_true, y_pred)
        return self.value(y_true, y_pred), lambda dy: gradient


class FirstDy(MSE):
    def value_and_vjp(self, y_true, y_pred, **mask):
        gradient = self.gradient(y_true, y_pred)
        return self.value(y_true, y_pred), lambda dy: gradient * dy[0]


class WrongShape(MSE):
    def gradient(self, y_true, y_pred):
        return super().gradient(y_true, y_pred)[:, :1]


class NotFinite(MSE):
    def gradient(self, y_true, y_pred):
        return tf.where(y_pred > 1, np.nan, super().gradient(y_true, y_pred))


class Unstable(MSE):
    """Right in float64, useless in float32."""

    def gradient(self, y_true, y_pred):
        large = 1e7 * (2 + tf.sin(y_true))
        return (large + super().gradient(y_true, y_pred)) - large


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (Scaled(1.001), "1.001 times what it should be"),
        (Scaled(0.999), "0.999 times what it should be"),
        (Scaled(-1.0), "its sign is turned"),
        (Scaled(2.0), "2 times what it should be"),
        (MissingMean(), "5 times what it should be"),
        (OneCoordinate(), r"coordinate \[2\]"),
        (OneExample(), r"example 7, coordinate"),
        (IgnoresDy(), "ignores dy"),
        (FirstDy(), "ignores dy"),
        (WrongShape(), r"must have shape \(16, 5\)"),
        (NotFinite(), "gives nan"),
        (Unstable(), "In float64 the same formula is right"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Loss) else "",
)
def test_wrong_gradient_is_found(loss, message):
    report = start.verify(loss, *data())
    assert not report.ok
    assert f"loss {loss.name}" in report.message
    assert message.replace("\\", "") in report.message


def test_message_shows_where():
    y, p = data()
    message = start.verify(Scaled(2.0), y, p).message
    example, column = (int(message.split(before)[1].split(after)[0]) for before, after in [("example ", ","), ("coordinate [", "]")])
    assert f"y_true={y[example, column]:.9g}, y_pred={p.numpy()[example, column]:.9g}, dy=" in message
    dy = float(message.split("dy=")[1].split(":")[0])
    right = dy * 2 * (float(p[example, column]) - float(y[example, column])) / 5
    gives, differences_give = (float(message.split(word)[1].split(",")[0].split()[0]) for word in ("gives ", "value give "))
    assert gives == pytest.approx(2 * right, rel=1e-4)
    assert differences_give == pytest.approx(right, rel=1e-4)


@pytest.mark.parametrize("dtype", [tf.float16, tf.bfloat16, tf.float32, tf.float64], ids=lambda dtype: dtype.name)
def test_right_gradient_passes_in_every_dtype(dtype):
    for name in ("mse", "quantile", "gaussian_nll", "softmax_crossentropy", "cubic", "triplet", "arcface"):
        loss = losses.find(name)()
        for num in (16, 1):
            y, p = draw(loss, np.random.default_rng(1), num)
            report = start.verify(loss, cast(y, tf.float32), cast(p, dtype), seed=num)
            assert report.ok, report.message


@pytest.mark.parametrize("seed", range(5))
def test_kinks_never_convict(seed):
    rng = np.random.default_rng(seed)
    y = rng.normal(size=(16, 3)).astype(np.float32)
    distance = rng.choice([0, 1e-7, 1e-5, 1e-3, 1e-1], y.shape) * rng.choice([-1, 1], y.shape)
    for loss in (losses.find("mae")(), losses.find("stable_mse")(outside="zero", low=0.25, high=0.75)):
        p = tf.constant((y if loss.name == "mae" else rng.choice([0.25, 0.75], y.shape)) + distance, tf.float32)
        report = start.verify(loss, y, p, seed)
        assert report.ok, report.message
        assert report.num_inconclusive > 0
    wrong = dataclasses.make_dataclass("Wrong", [], bases=(type(losses.find("mae")()),), frozen=True)
    wrong.gradient = lambda self, y_true, y_pred: -tf.sign(y_pred - y_true) / y_pred.shape[-1]
    assert not start.verify(wrong(), y, tf.constant(y + distance, tf.float32), seed).ok


def test_all_at_kinks_is_said():
    y, _ = data()
    report = start.verify(losses.find("mae")(), y, tf.constant(y))
    assert report.ok
    assert report.num_checked == 0
    assert "not proved" in report.message


def test_examples_must_be_independent():
    class Centered(MSE):
        def value(self, y_true, y_pred):
            return super().value(y_true, y_pred - tf.reduce_mean(y_pred))

    report = start.verify(Centered(), *data())
    assert not report.ok
    assert "declare coupled = True" in report.message


@dataclasses.dataclass(frozen=True)
class Projection(Loss):
    """Squared error of hidden @ kernel, the kernel shared by all examples."""

    factor: float = 1.0

    shared = ("kernel",)

    def check_shapes(self, y_true, y_pred):
        pass

    def value(self, y_true, y_pred):
        return tf.reduce_sum(tf.square(y_pred["hidden"] @ y_pred["kernel"] - y_true), axis=-1)

    def value_and_vjp(self, y_true, y_pred, **mask):
        error = 2 * (y_pred["hidden"] @ y_pred["kernel"] - y_true)

        def vjp(dy):
            g = dy[:, None] * error
            kernel = self.factor * tf.linalg.matmul(y_pred["hidden"], g, transpose_a=True)
            return {"hidden": tf.linalg.matmul(g, y_pred["kernel"], transpose_b=True), "kernel": kernel}

        return self.value(y_true, y_pred), vjp


def test_shared_entries():
    y, hidden = data()
    p = {"hidden": hidden, "kernel": tf.constant(np.random.default_rng(2).normal(size=(5, 5)), tf.float32)}
    assert start.verify(Projection(), y, p).ok
    report = start.verify(Projection(1.001), y, p)
    assert not report.ok
    assert "a random displacement of kernel" in report.message


def test_float32_inside_is_said_and_checked_coarsely():
    class Hard(MSE):
        def value(self, y_true, y_pred):
            return super().value(tf.cast(y_true, tf.float32), tf.cast(y_pred, tf.float32))

    class Back(Hard):
        def value(self, y_true, y_pred):
            return tf.cast(super().value(y_true, y_pred), y_pred.dtype)

    class Mixed(MSE):
        def value(self, y_true, y_pred):
            return super().value(y_true, y_pred) * tf.constant(1.0)

    class MixedGradient(Scaled):
        def gradient(self, y_true, y_pred):
            return super().gradient(y_true, y_pred) * tf.constant(1.0)

    class HardDouble(Back):
        def gradient(self, y_true, y_pred):
            return 2 * super().gradient(y_true, y_pred)

    for loss in (Hard(), Back(), Mixed(), MixedGradient()):
        report = start.verify(loss, *data())
        assert report.ok, report.message
        assert "remove the casts to float32" in report.message
    assert not start.verify(HardDouble(), *data()).ok
    assert not start.verify(MixedGradient(1.001), *data()).ok


def test_auto_is_compared_with_the_same_differences():
    class Stopped(MSE):
        def value(self, y_true, y_pred):
            error = y_pred - y_true
            return tf.reduce_mean(error * tf.stop_gradient(error), axis=-1)

    class BothWrong(Stopped):
        def gradient(self, y_true, y_pred):
            return (y_pred - y_true) / y_pred.shape[-1]

    y, p = data()
    assert start.verify(MSE(), y, p).auto_message == "loss mse: gradient=auto agrees with the same differences"
    stopped = start.verify(Stopped(), y, p)
    assert stopped.ok
    assert "the analytic gradient is right, gradient=auto is wrong" in stopped.auto_message
    both = start.verify(BothWrong(), y, p)
    assert not both.ok
    assert "gradient=auto is wrong too" in both.auto_message
    assert "agrees" in start.verify(Scaled(2.0), y, p).auto_message
    surrogate = start.verify(losses.find("stable_mse")(), y, p)
    assert surrogate.ok
    assert "another gradient, as the contract surrogate says" in surrogate.auto_message
    assert start.verify(losses.find("cubic")(), y, p).auto_message == ""


def test_nothing_to_check():
    class ValueOnly(Loss):
        def value(self, y_true, y_pred):
            return tf.reduce_mean(y_pred, axis=-1)

    assert "no gradient of its own" in start.verify(ValueOnly(), *data()).message
    assert "empty batch" in start.verify(MSE(), *data(num=0)).message


def test_many_outputs_are_sampled():
    y, p = data(num=4, dim=3000)
    report = start.verify(MSE(), y, p)
    assert report.ok
    assert 4 * 8 <= report.num_checked + report.num_inconclusive <= 4 * 70
    assert not start.verify(Scaled(1.001), y, p).ok


def test_differences_bound_their_error():
    x = np.array([-3.0, 0.1, 1.0, 20.0])
    for function, slope in [(np.exp, np.exp), (np.tanh, lambda x: np.cosh(x) ** -2.0), (lambda x: x**3, lambda x: 3 * x**2)]:
        with np.errstate(over="ignore"):
            found, error = differences.along(lambda t, f=function: f(x + t[:, None]), 4e-16 * abs(function(x)))
        assert (abs(found - slope(x)) <= error).all()
        assert (error <= 1e-6 * np.maximum(abs(slope(x)), abs(function(x)))).all()
    found, error = differences.along(lambda t: np.abs(x * 0 + t[:, None]), 0 * x)
    assert (abs(found) + error >= 1).all(), "both one-sided slopes at a kink"


def test_no_factor_is_told_where_the_rest_is_right():
    class Hole(MSE):
        def gradient(self, y_true, y_pred):
            gradient = super().gradient(y_true, y_pred)
            return tf.where(tf.range(5) == 3, gradient * float("nan"), gradient)

    assert "times what it should be" not in start.verify(Hole(), *data()).message


def test_a_derivative_beside_one_that_overflows_is_told():
    class Steep(MSE):
        def value(self, y_true, y_pred):
            return y_pred[:, 0] + tf.exp(y_pred[:, 1])

        def gradient(self, y_true, y_pred):
            return tf.concat([tf.ones_like(y_pred[:, :1]), tf.exp(y_pred[:, 1:])], axis=-1)

    found = start.verify(Steep(), np.zeros((2, 2), np.float32), tf.constant([[1.0, 200.0], [1.0, 1.0]]))
    assert "coordinate [0]" not in found.message


def test_differences_do_not_tell_the_derivative_of_a_jump():
    """Nor of a rise that is too steep for the smallest step; one that is not is told."""
    for width, known in ((0.0, False), (1e-20, False), (1e-3, True)):
        found, error = differences.along(lambda t, w=width: np.clip(t[:, None], -w, w) if w else np.sign(t[:, None]), np.zeros(1))
        assert np.isfinite(error).all() == known
        if known:
            assert abs(found[0] - 1) <= error[0] < 1e-6
