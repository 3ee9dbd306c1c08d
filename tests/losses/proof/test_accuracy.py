"""The map of errors: what is inaccurate, NaN, infinite or falsely zero is convicted where the loss answers for it, with who is wrong."""

import dataclasses

import mpmath
import numpy as np
import pytest
import tensorflow as tf

import losses
from losses.base import Loss
from losses.mse import MSE
from losses.proof import accuracy


@dataclasses.dataclass(frozen=True)
class Spoiled(MSE):
    """Its gradient is `wrong` where predictions are larger than 100, in one dtype alone."""

    wrong: float = 1.0
    dtype: str = "float32"

    def gradient(self, y_true, y_pred):
        gradient = super().gradient(y_true, y_pred)
        return tf.where(tf.abs(y_pred) > 100, self.wrong * gradient, gradient) if y_pred.dtype == self.dtype else gradient


class ValueAlone(Loss):
    """A smooth absolute error as people write it, whose value loses its digits beside 1; the tape's gradient does not."""

    def value(self, y_true, y_pred):
        return tf.reduce_sum(tf.sqrt(1 + tf.square(y_pred - y_true)) - 1, axis=-1)

    def reference(self, y_true, y_pred):
        return sum((p - y) ** 2 / (1 + mpmath.sqrt(1 + (p - y) ** 2)) for y, p in zip(y_true, y_pred, strict=True))


class NobodyKnows(MSE):
    def reference(self, y_true, y_pred):
        return mpmath.nan


def gradients(loss, quick=True):
    """Of every dtype and mode, what was found about the gradient."""
    found = accuracy.examine(loss, np.random.default_rng(0), quick=quick)
    return {(f.data["dtype"], f.mode): f for f in found if f.data["what"] == "gradient"}


def test_right_holds():
    assert {f.verdict for f in gradients(Spoiled(), quick=False).values()} == {"holds"}


@pytest.mark.parametrize(
    ("wrong", "said"), [(1.001, "inaccurate"), (float("nan"), "NaN"), (float("inf"), "infinite"), (0.0, "zero")], ids=str
)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_wrong_in_one_dtype_is_convicted_there_alone(wrong, said, dtype):
    found = gradients(Spoiled(wrong, dtype))
    other = {"float32": "float64", "float64": "float32"}[dtype]
    assert found[dtype, "analytic"].verdict == "fails"
    assert found[other, "analytic"].verdict == "holds"
    message = found[dtype, "analytic"].message
    assert f"gradient=analytic is wrong in {dtype}: " in message
    assert said in message
    assert "150-digit arithmetic" in message
    assert "differences in float64" in message


@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
def test_what_is_no_number_is_no_ulp_off(wrong):
    found = gradients(Spoiled(wrong))["float32", "analytic"]
    assert "ulp off" not in found.message
    assert found.data["nan_share"] + found.data["inf_share"] > 0.1


def test_the_size_of_the_error_is_said():
    message = gradients(Spoiled(1.5))["float32", "analytic"].message
    off = float(message.split(" ulp off")[0].rpartition("(")[2])
    assert 0.5 * 2**23 <= off <= 2**23


def test_beyond_what_it_answers_for_it_is_told():
    class Modest(Spoiled):
        magnitudes = (1e-6, 10.0)

    found = gradients(Modest(1.5))["float32", "analytic"]
    assert found.verdict == "holds"
    assert "outside, " in found.message
    assert found.data["worst"] < 8


def test_the_tape_is_judged_where_there_is_no_other():
    assert gradients(ValueAlone())["float32", "auto"].verdict == "holds"
    value = accuracy.examine(ValueAlone(), np.random.default_rng(0), quick=True)[1]
    assert (value.data["what"], value.data["dtype"], value.verdict) == ("value", "float32", "fails")
    assert "zero" in value.message


def test_the_usual_formula_is_told_and_fails_nobody():
    found = gradients(losses.find("poincare")(), quick=False)["float32", "usual"]
    assert found.verdict == "excepted"
    assert "the usual formula is wrong" in found.message


def test_kinds_of_one_unit_are_counted_once():
    data = gradients(losses.find("poincare")(), quick=False)["float32", "usual"].data
    kinds = [data[f"{kind}_share"] for kind in ("nan", "inf", "zero")]
    assert max(kinds) <= data["bad_share"] <= min(1, sum(kinds))


def test_an_unknown_truth_is_inconclusive():
    found = gradients(NobodyKnows())
    assert {f.verdict for f in found.values()} == {"inconclusive"}


class OwnSoftplus(Loss):
    """Nothing but a value and a gradient, `factor` times too large between 1000 and 2000."""

    factor = 2.0

    def value(self, y_true, y_pred):
        return tf.reduce_mean(tf.math.softplus(y_pred - y_true), axis=-1)

    def gradient(self, y_true, y_pred):
        gradient = tf.sigmoid(y_pred - y_true) / y_pred.shape[-1]
        return tf.where((y_pred > 1e3) & (y_pred < 2e3), self.factor * gradient, gradient)


class OwnRight(OwnSoftplus):
    factor = 1.0


class FalseReference(OwnRight):
    def reference(self, y_true, y_pred):
        return 2 * sum(mpmath.log1p(mpmath.exp(p - y)) for y, p in zip(y_true, y_pred, strict=True)) / len(y_pred)


def test_without_a_reference_differences_say_who_is_wrong():
    found = gradients(OwnSoftplus(), quick=False)["float64", "auto"]
    assert found.verdict == "fails"
    assert found.message.startswith("gradient=analytic is wrong in float64: differences side with gradient=auto")
    assert "fails" not in {f.verdict for f in gradients(OwnRight(), quick=False).values()}


def test_a_false_reference_is_blamed():
    found = gradients(FalseReference())["float64", "analytic"]
    assert found.verdict == "fails"
    assert found.message.startswith("its reference, if not its value, is wrong in float64: differences side with gradient=analytic")


def test_wrong_for_a_dict_of_predictions():
    class Product(Loss):
        def check_shapes(self, y_true, y_pred):
            pass

        def sample(self, rng, num_examples, scale):
            return rng.normal(size=(num_examples, 3)), {key: scale * rng.normal(size=(num_examples, 3)) for key in "ab"}

        def value(self, y_true, y_pred):
            return tf.reduce_sum(y_pred["a"] * y_pred["b"], axis=-1)

        def gradient(self, y_true, y_pred):
            return {"a": y_pred["b"], "b": y_pred["b"]}

    found = gradients(Product(), quick=False)["float64", "auto"]
    assert found.message.startswith("gradient=analytic is wrong in float64: differences side with gradient=auto")
    assert "At y_pred['b']" in found.message
