"""The checker's sections: every wrong gradient is convicted, with the right blame; right ones pass."""

import dataclasses

import mpmath
import numpy as np
import pytest
import tensorflow as tf

import losses
from losses.base import Loss, LossError
from losses.linear_crossentropy import LinearCrossentropy
from losses.mse import MSE
from losses.proof import adversarial, meaning, multiplier, structure
from losses.softmax_crossentropy import SoftmaxCrossentropy

SECTIONS = {
    "contract": meaning.contract,
    "dy": multiplier.examine,
    "meaning": meaning.examine,
    "adversarial": adversarial.examine,
    "structure": structure.examine,
}


def failures(loss, *sections):
    """Checks that convict, with what they say."""
    found = [finding for section in sections or SECTIONS for finding in SECTIONS[section](loss, np.random.default_rng(0))]
    return {finding.check: finding.message for finding in found if finding.verdict == "fails"}


def excepted(loss, section):
    return {(f.check, f.mode): f.message for f in SECTIONS[section](loss, np.random.default_rng(0)) if f.verdict == "excepted"}


class Softplus(Loss):
    """log(1 + e^x) with the gradient of `log1pexp` in TensorFlow's documentation: 0 where e^x is lost beside 1."""

    magnitudes = (1e-6, 1e4)

    def value(self, y_true, y_pred):
        return tf.reduce_mean(tf.math.softplus(y_pred - y_true), axis=-1)

    def gradient(self, y_true, y_pred):
        return (1 - 1 / (1 + tf.exp(y_pred - y_true))) / y_pred.shape[-1]

    def reference(self, y_true, y_pred):
        return sum(mpmath.log1p(mpmath.exp(p - y)) for y, p in zip(y_true, y_pred, strict=True)) / len(y_pred)


class RightSoftplus(Softplus):
    def gradient(self, y_true, y_pred):
        return tf.sigmoid(y_pred - y_true) / y_pred.shape[-1]


class IgnoresDy(MSE):
    """The second example of the article that this project grew from, as printed: no dy, and nothing for y_pred but a constant."""

    def value_and_vjp(self, y_true, y_pred, **mask):
        gradient = self.gradient(y_true, y_pred)
        return self.value(y_true, y_pred), lambda dy: gradient


class FirstTokensDy(SoftmaxCrossentropy):
    def value_and_vjp(self, y_true, y_pred, **mask):
        value, vjp = super().value_and_vjp(y_true, y_pred)
        return value, lambda dy: vjp(tf.zeros_like(dy) + tf.reduce_sum(dy[:1]))


class NoneForPredictions(MSE):
    def gradient(self, y_true, y_pred):
        return None


class PassesNaN(MSE):
    def value(self, y_true, y_pred):
        value = super().value(y_true, y_pred)
        return tf.where(tf.math.is_nan(value), tf.zeros_like(value), value)

    def gradient(self, y_true, y_pred):
        gradient = super().gradient(y_true, y_pred)
        return tf.where(tf.math.is_nan(gradient), tf.zeros_like(gradient), gradient)


class Root(Loss):
    """Distance whose usual gradient divides 0 by 0 at a tie."""

    contract = "sub"

    def value(self, y_true, y_pred):
        return tf.norm(y_pred - y_true, axis=-1)

    def gradient(self, y_true, y_pred):
        return (y_pred - y_true) / tf.norm(y_pred - y_true, axis=-1, keepdims=True)


class SafeRoot(Root):
    def gradient(self, y_true, y_pred):
        return tf.math.divide_no_nan(y_pred - y_true, tf.norm(y_pred - y_true, axis=-1, keepdims=True))


class Divides(MSE):
    """dy of 0 is not 0 any more."""

    def value_and_vjp(self, y_true, y_pred, **mask):
        gradient = self.gradient(y_true, y_pred)
        return self.value(y_true, y_pred), lambda dy: gradient * (dy[:, None] + 1e-20)


class Rounds(MSE):
    """Right to three digits more than are asked, but not linear in dy."""

    def value_and_vjp(self, y_true, y_pred, **mask):
        gradient = self.gradient(y_true, y_pred)
        return self.value(y_true, y_pred), lambda dy: gradient * tf.sinh(dy * 1e-4)[:, None] * 1e4


class Leaks(MSE):
    """The gradient's scale is that of the batch."""

    def gradient(self, y_true, y_pred):
        return super().gradient(y_true, y_pred) + 0 * tf.reduce_mean(y_pred)


class Broadcasts(MSE):
    """Takes targets without their last axis."""

    def check_shapes(self, y_true, y_pred):
        pass


class Random(MSE):
    def gradient(self, y_true, y_pred):
        return super().gradient(y_true, y_pred) * (1 + 1e-6 * tf.random.uniform(tf.shape(y_pred), dtype=y_pred.dtype))


class WrongCurvature(MSE):
    def gradient(self, y_true, y_pred):
        return tf.stop_gradient(super().gradient(y_true, y_pred))


class SecondOrderAnyway(MSE):
    second_order = "refuse"

    def value_and_vjp(self, y_true, y_pred, **mask):
        return super().value_and_vjp(y_true, y_pred)

    def _refuse_second_order(self, gradient):
        return gradient


class ClaimsExact(losses.find("stable_mse")):
    contract = "exact"


class ScalesNot(MSE):
    invariants = ("homogeneous_1",)


class NotConvex(RightSoftplus):
    invariants = ("convex", "non_negative")

    def value(self, y_true, y_pred):
        return -super().value(y_true, y_pred)

    def gradient(self, y_true, y_pred):
        return -super().gradient(y_true, y_pred)


class Translates(MSE):
    invariants = ("translation",)


class TranslatesBoth(MSE):
    invariants = ("joint_translation",)

    def value(self, y_true, y_pred):
        return super().value(2 * y_true, y_pred)

    def gradient(self, y_true, y_pred):
        return super().gradient(2 * y_true, y_pred)


class KeepsPromises(MSE):
    invariants = ("joint_translation", "homogeneous_2", "convex", "non_negative")


class ForgetsTheSum(Loss):
    """x sigmoid(beta x) with a vector beta shared by the examples: as in tf.nn.silu, beta gets the mean of what is its sum."""

    shared = ("beta",)
    targets = ("none",)
    right = False

    def sample(self, rng, num_examples, scale):
        return None, {"beta": rng.uniform(0.5, 2.0, 3), "x": scale * rng.normal(size=(num_examples, 3))}

    def check_shapes(self, y_true, y_pred):
        self.require_shape("x", y_pred["x"], batch=None, dim=y_pred["beta"].shape[0])

    def value(self, y_true, y_pred):
        return tf.reduce_sum(y_pred["x"] * tf.sigmoid(y_pred["beta"] * y_pred["x"]), axis=-1)

    def value_and_vjp(self, y_true, y_pred, **mask):
        x, beta = y_pred["x"], y_pred["beta"]
        s = tf.sigmoid(beta * x)

        def vjp(dy):
            slopes = dy[:, None] * x * x * s * (1 - s)
            total = tf.reduce_sum(slopes, axis=0)
            return {"x": dy[:, None] * s * (1 + beta * x * (1 - s)), "beta": total if self.right else slopes[0]}

        return self.value(y_true, y_pred), vjp


class RemembersTheSum(ForgetsTheSum):
    right = True


class SharedDy(LinearCrossentropy):
    """The kernel's gradient for the first token's dy."""

    def value_and_vjp(self, y_true, y_pred, **mask):
        value, vjp = super().value_and_vjp(y_true, y_pred, **mask)
        return value, lambda dy: vjp(dy) | {"kernel": vjp(tf.zeros_like(dy) + tf.reduce_sum(dy[:1]))["kernel"]}


@pytest.mark.parametrize(
    ("loss", "section", "check", "message"),
    [
        (Softplus(), "adversarial", "finite at edges", "the gradient"),
        (IgnoresDy(), "contract", "differences", "ignores dy"),
        (IgnoresDy(), "dy", "a dy of its own", "differs from example to example"),
        (FirstTokensDy(), "contract", "differences", "ignores dy, or all of dy but one example's"),
        (FirstTokensDy(), "dy", "a dy of its own", "differs from example to example"),
        (NoneForPredictions(), "structure", "shapes", "must be structured as y_pred, one tensor; found None"),
        (PassesNaN(), "adversarial", "NaN is not swallowed", "one number of y_pred"),
        (Root(), "adversarial", "finite at edges", "NaN for finite inputs"),
        (Divides(), "dy", "dy of 0", "examples whose dy is 0"),
        (Rounds(), "dy", "exact in powers of two", "dy times 32"),
        (Leaks(), "dy", "no leak", "its predictions is NaN in the first"),
        (Broadcasts(), "structure", "wrong shapes are refused", "are taken, and broadcast"),
        (Random(), "structure", "eager, graph and XLA", "the second time"),
        (WrongCurvature(), "structure", "second order", "by differences of the gradient"),
        (SecondOrderAnyway(), "structure", "second order", "declares second_order = refuse"),
        (ClaimsExact(), "meaning", "integral along lines", "not the difference of the values"),
        (ClaimsExact(), "contract", "differences", "the analytic gradient is wrong"),
        (ScalesNot(), "meaning", "homogeneous 1", "after predictions and targets times 4"),
        (Translates(), "meaning", "promise: translation", "after a number is added"),
        (NotConvex(), "meaning", "convex", "above the chord"),
        (NotConvex(), "meaning", "non negative", "negative"),
        (TranslatesBoth(), "meaning", "joint translation", "after a number is added"),
        (ForgetsTheSum(), "dy", "a dy of its own", "the shared gradient against the sum"),
        (ForgetsTheSum(), "contract", "differences", "random displacement of beta"),
        (SharedDy(), "dy", "a dy of its own", "the shared gradient against the sum"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Loss) else "",
)
def test_wrong_is_convicted(loss, section, check, message):
    found = failures(loss, section)
    said = next((text for name, text in found.items() if check in name), None)
    assert said is not None, found
    assert message in said
    assert f"loss {loss.name}" in said


@pytest.mark.parametrize(
    "loss",
    [MSE(), RightSoftplus(), SafeRoot(), KeepsPromises(), pytest.param(RemembersTheSum(), marks=pytest.mark.slow)],
    ids=lambda loss: loss.name,
)
def test_right_passes(loss):
    assert failures(loss) == {}


@pytest.mark.parametrize("outside", ["zero", "pass", "project"])
def test_at_a_clips_edge_that_float32_cannot_hold_either_side_is_right(outside):
    loss = losses.find("stable_mse")(outside=outside)
    assert failures(loss, "adversarial") == {}

    class DoubledThere(type(loss)):
        def gradient(self, y_true, y_pred):
            gradient = super().gradient(y_true, y_pred)
            return tf.where(tf.abs(y_pred - self.low) < 1e-9, 2 * gradient, gradient)

    if outside == "zero":  # the others are surrogates, whose truth is their own float64
        assert "finite at edges, ties, zeros and saturation" in failures(DoubledThere(outside=outside), "adversarial")


def test_auto_is_blamed_where_auto_is_wrong():
    at_ties = excepted(SafeRoot(), "adversarial")["finite at edges, ties, zeros and saturation", "auto"]
    assert at_ties.startswith("gradient=auto is wrong, the analytic gradient decides: NaN for finite inputs")


def test_auto_decides_where_there_is_no_other():
    class ValueAlone(Loss):
        contract = "sub"

        def value(self, y_true, y_pred):
            return tf.norm(y_pred - y_true, axis=-1)

    assert "gradient=auto: NaN for finite inputs" in failures(ValueAlone(), "adversarial")["finite at edges, ties, zeros and saturation"]


@pytest.mark.slow
def test_declared_exceptions_are_said():
    coupled = excepted(losses.find("cox")(), "dy")
    assert "by declaration" in coupled["no leak between examples", "analytic"]
    assert "refuses by declaration" in excepted(losses.find("cubic")(), "structure")["forward mode", "analytic"]
    assert "deliberately" in excepted(losses.find("stable_mse")(), "meaning")["integral along lines", "analytic"]


def test_wrong_only_far_away():
    @dataclasses.dataclass(frozen=True)
    class Far(MSE):
        factor: float = 1.001

        def gradient(self, y_true, y_pred):
            return super().gradient(y_true, y_pred) * tf.where(tf.abs(y_pred) > 1e4, tf.cast(self.factor, y_pred.dtype), 1)

    assert "integral along lines" in failures(Far(), "meaning")
    assert failures(Far(1.0), "meaning") == {}


@pytest.mark.slow
@pytest.mark.parametrize("temperature", [1e-6, 0.001, 0.01])
def test_a_bend_that_is_narrow_beside_its_line_is_no_wrong_gradient(temperature):
    loss = losses.find("distillation_kl")(temperature=temperature)
    assert failures(loss, "meaning") == {}

    class OffByAThousandth(type(loss)):
        def gradient(self, y_true, y_pred):
            return 1.001 * super().gradient(y_true, y_pred)

    assert "integral along lines" in failures(OffByAThousandth(temperature=temperature), "meaning")


def test_second_order_where_differences_cannot_resolve_the_gradients_rise():
    """At a tie the second derivative is 1, over a width that no step of differences enters."""
    assert failures(losses.find("huber")(delta=1e-20), "structure") == {}


@pytest.mark.slow
def test_reload_in_another_process():
    assert structure.reload(MSE()).verdict == "holds"
    host = structure.reload(losses.find("cubic")())
    assert host.verdict == "excepted"
    assert "host" in host.message


@pytest.mark.slow
def test_nan_at_a_tie_is_the_same_in_another_process():
    class TieIsNaN(Loss):
        def value(self, y_true, y_pred):
            return tf.reduce_mean(tf.sqrt(tf.square(y_pred - y_true)), axis=-1)

    assert structure.reload(TieIsNaN()).verdict == "holds"


@pytest.mark.parametrize("factor", [1.0, 1.001])
@pytest.mark.parametrize("where", ["small", "large"])
def test_differences_alone_judge_small_and_large_predictions_too(factor, where):
    class Own(RightSoftplus):
        magnitudes = (1e-6, 1e6)
        reference = None

        def gradient(self, y_true, y_pred):
            wrong = tf.abs(y_pred) < 1e-5 if where == "small" else y_pred > 5e5
            return super().gradient(y_true, y_pred) * tf.where(wrong, tf.cast(factor, y_pred.dtype), 1)

    found = failures(Own(), "contract")
    assert list(found) == ([] if factor == 1 else [f"exact: differences at magnitude {'1e-06' if where == 'small' else '1e+06'}"])


def test_what_differences_cannot_tell_is_inconclusive():
    class Far(RightSoftplus):
        magnitudes = (1e-30, 1.0)
        reference = None

    found = {f.check: f for f in meaning.contract(Far(), np.random.default_rng(0))}
    assert found["exact: differences at magnitude 1"].verdict == "holds"
    assert found["exact: differences at magnitude 1e-30"].verdict == "inconclusive"
    assert "Give the loss a reference" in found["exact: differences at magnitude 1e-30"].message


@pytest.mark.parametrize(
    ("key", "given"),
    [
        ("contract", "exakt"),
        ("second_order", "maybe"),
        ("targets", ("reel",)),
        ("targets", ()),
        ("targets", "real"),
        ("invariants", ("convexx",)),
        ("magnitudes", (1e6, 1e-6)),
        ("magnitudes", (0.0, 1.0)),
        ("magnitudes", (1e-6, float("inf"))),
        ("magnitudes", 1e6),
    ],
)
def test_a_declaration_that_means_nothing_is_refused(key, given):
    loss = type("Odd", (MSE,), {key: given, "__module__": __name__})()
    with pytest.raises(LossError, match=f"loss Odd declares {key} = "):
        losses.check(loss)


def test_any_error_of_a_loss_is_a_finding_with_its_line():
    class Raises(MSE):
        def gradient(self, y_true, y_pred):
            return self.nonsense

    assert "AttributeError" in failures(Raises(), "dy")["additive in dy"]
    assert f"({__file__}, line " in failures(Raises(), "dy")["additive in dy"]
