"""The audit: right gradients pass, wrong ones are named with their mode, and a surrogate may differ."""

import dataclasses

import keras
import numpy as np
import pytest
import tensorflow as tf

import losses
from losses.base import Loss
from trainer.audit import TAGS, Audit, measure
from trainer.data.base import Examples
from trainer.data.prepare import prepare
from trainer.learner import Learner
from trainer.schema import Data


@dataclasses.dataclass(frozen=True)
class NaiveLogCosh(Loss):
    """Its tape overflows from a residual of 90 on; its own gradient is `factor` times the right one."""

    factor: float = 1.0

    def value(self, y_true, y_pred):
        return tf.reduce_mean(tf.math.log(tf.cosh(y_pred - y_true)), axis=-1)

    def gradient(self, y_true, y_pred):
        return self.factor * tf.tanh(y_pred - y_true) / y_pred.shape[-1]


def audit(loss, mode="analytic", scale=1.0, stops=True, weight=None):
    """Audits eight examples whose predictions are `scale` times random numbers."""
    rng = np.random.default_rng(0)
    weights = {} if weight is None else {"weight": weight}
    examples = Examples(scale * rng.normal(size=(20, 3)), rng.normal(size=(20, 3)), weights=weights)
    settings = Data(batch_size=8, standardize=False, sample_weight="weight" if weights else None)
    data = prepare(examples, "real", "real", settings)
    inputs = keras.Input([3])
    model = keras.Model(inputs, keras.layers.Dense(3, kernel_initializer="identity")(inputs))
    learner = Learner(model, loss, mode, keras.optimizers.SGD(), None)
    batch = data.train.rows(np.arange(8))
    measures, parted = measure(learner, (batch.features, batch.targets, batch.weights), tf.constant(True), 1e-3)
    objection = Audit(learner, data.train.rows, stops)(50, np.arange(8)) if parted else None
    return dict(zip(TAGS, measures.numpy().tolist(), strict=True)), objection


def test_right_gradients_agree():
    measures, objection = audit(losses.find("log_cosh")())
    assert objection is None
    assert tuple(measures) == TAGS
    assert measures["gradient_audit/relative_error"] < 1e-5
    assert measures["gradient_audit/cosine"] == pytest.approx(1, abs=1e-6)
    assert measures["gradient_audit/norm_ratio"] == pytest.approx(1, abs=1e-5)
    assert measures["gradient_audit/nonfinite_auto"] == measures["gradient_audit/nonfinite_analytic"] == 0


def test_a_wrong_gradient_stops_the_run():
    measures, objection = audit(NaiveLogCosh(factor=1.1))
    assert measures["gradient_audit/relative_error"] == pytest.approx(0.1, abs=1e-4)
    assert measures["gradient_audit/norm_ratio"] == pytest.approx(1.1, abs=1e-4)
    assert "the analytic gradient is wrong: it is 1.1 times" in objection
    assert "gradient=analytic and is stopped" in objection


def test_or_is_said_once(capsys):
    assert audit(NaiveLogCosh(factor=1.1), stops=False)[1] is None
    assert "warning: gradient_audit at step 50" in capsys.readouterr().out


def test_the_tape_is_named_where_it_is_wrong(capsys):
    measures, objection = audit(NaiveLogCosh(), mode="auto", scale=200.0)
    assert measures["gradient_audit/nonfinite_auto"] > 0
    assert measures["gradient_audit/nonfinite_analytic"] == 0
    assert "gradient=auto is wrong" in objection
    # A run that trains by the right one is only told.
    assert audit(NaiveLogCosh(), mode="analytic", scale=200.0)[1] is None
    assert "gradient=auto is wrong" in capsys.readouterr().out


def test_a_surrogate_may_differ(capsys):
    measures, objection = audit(losses.find("stable_mse")(), scale=10.0)
    assert measures["gradient_audit/relative_error"] > 0.1
    assert objection is None
    assert not capsys.readouterr().out


def test_weights_count():
    """An example of weight 0 holds what would be a wrong gradient."""
    weight = np.ones(20)
    plain = audit(NaiveLogCosh(), weight=weight)[0]
    weight[3] = 0
    assert audit(NaiveLogCosh(), weight=weight)[0]["gradient_audit/norm_ratio"] == pytest.approx(1, abs=1e-5)
    assert plain["gradient_audit/norm_ratio"] == pytest.approx(1, abs=1e-5)
