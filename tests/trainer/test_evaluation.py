"""Metrics against scikit-learn's, over every example once."""

import keras
import numpy as np
import pytest
import sklearn.metrics
import tensorflow as tf

import losses
from trainer import evaluation
from trainer.data.prepare import Prepared, Split
from trainer.learner import Learner

NUM_EXAMPLES = 1100  # more than one batch, and no multiple of it


def evaluate(loss, targets, outputs, task, weights=None, scale=1.0, num_classes=None):
    """Evaluates a model that gives `outputs` [n, k] for the examples, whose features are their numbers."""
    table = tf.constant(outputs, tf.float32)
    inputs = keras.Input([1])
    model = keras.Model(
        inputs, keras.layers.Lambda(lambda x: tf.gather(table, tf.cast(x[:, 0], tf.int32)), output_shape=outputs.shape[1:])(inputs)
    )
    part = Split(np.arange(len(targets), dtype=np.float32)[:, None], targets, weights)
    data = Prepared(part, part, task, np.full(1 if targets.ndim == 1 else targets.shape[-1], scale), num_classes)
    learner = Learner(model, losses.find(loss)(), "analytic", keras.optimizers.SGD(), None)
    found = evaluation.make_evaluate(learner, data, 32)()
    assert list(found) == evaluation.metric_names(learner.loss, task)
    return found


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def test_classes(rng):
    logits, labels = rng.normal(size=(NUM_EXAMPLES, 4)), rng.integers(0, 4, NUM_EXAMPLES).astype(np.int32)
    found = evaluate("softmax_crossentropy", labels, logits, "classes", num_classes=4)
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    assert found["eval/accuracy"] == pytest.approx(sklearn.metrics.accuracy_score(labels, logits.argmax(axis=1)))
    assert found["eval/loss"] == pytest.approx(sklearn.metrics.log_loss(labels, probabilities), rel=1e-5)
    one_hot = np.eye(4, dtype=np.float32)[labels]
    assert evaluate("mse", one_hot, logits, "classes", num_classes=4)["eval/accuracy"] == found["eval/accuracy"]


def test_two_classes_in_one_column(rng):
    logits, labels = rng.normal(size=(NUM_EXAMPLES, 1)), rng.integers(0, 2, NUM_EXAMPLES)
    found = evaluate("binary_crossentropy", labels[:, None].astype(np.float32), logits, "classes", num_classes=2)
    assert found["eval/accuracy"] == pytest.approx(np.mean((logits[:, 0] > 0) == labels))


def test_regression_in_the_units_of_the_source(rng):
    targets = rng.normal(size=(NUM_EXAMPLES, 2)).astype(np.float32)
    outputs = targets + rng.normal(size=(NUM_EXAMPLES, 2)) * 0.5
    found = evaluate("mse", targets, outputs, "real", scale=10.0)
    assert found["eval/mae"] == pytest.approx(sklearn.metrics.mean_absolute_error(targets * 10, outputs * 10), rel=1e-5)
    assert found["eval/r2"] == pytest.approx(sklearn.metrics.r2_score(targets, outputs), rel=1e-5)
    assert found["eval/loss"] == pytest.approx(sklearn.metrics.mean_squared_error(targets, outputs), rel=1e-5)


def test_counts(rng):
    rates = rng.normal(size=(NUM_EXAMPLES, 1))
    targets = rng.poisson(np.exp(rates)).astype(np.float32)
    found = evaluate("poisson_nll", targets, rates, "counts")
    assert found["eval/deviance"] == pytest.approx(sklearn.metrics.mean_poisson_deviance(targets[:, 0], np.exp(rates[:, 0])), rel=1e-5)
    assert found["eval/mae"] == pytest.approx(sklearn.metrics.mean_absolute_error(targets, np.exp(rates)), rel=1e-5)


def test_weights_count_and_a_weight_of_zero_hides_anything(rng):
    logits, labels = rng.normal(size=(NUM_EXAMPLES, 3)), rng.integers(0, 3, NUM_EXAMPLES).astype(np.int32)
    weights = rng.integers(0, 3, NUM_EXAMPLES).astype(np.float32)
    logits[weights == 0] = np.nan
    found = evaluate("softmax_crossentropy", labels, logits, "classes", weights, num_classes=3)
    seen = weights > 0
    expected = sklearn.metrics.accuracy_score(labels[seen], logits[seen].argmax(axis=1), sample_weight=weights[seen])
    assert found["eval/accuracy"] == pytest.approx(expected)
    assert np.isfinite(found["eval/loss"])
