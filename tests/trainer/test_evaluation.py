"""Metrics against scikit-learn's, over every example once."""

import dataclasses

import keras
import numpy as np
import pytest
import sklearn.metrics
import tensorflow as tf

import losses
from losses.base import Loss
from trainer import evaluation
from trainer.data.prepare import Prepared, Split
from trainer.learner import Learner

NUM_EXAMPLES = 1100  # more than one batch, and no multiple of it


def evaluate(loss, targets, outputs, task, weights=None, scale=1.0, num_classes=None, batch_size=32):
    """Evaluates a model that gives `outputs` [n, ...] for the examples, whose features are their numbers."""
    table = tf.constant(outputs, tf.float32)
    inputs = keras.Input([1])
    model = keras.Model(
        inputs, keras.layers.Lambda(lambda x: tf.gather(table, tf.cast(x[:, 0], tf.int32)), output_shape=outputs.shape[1:])(inputs)
    )
    part = Split(np.arange(len(outputs), dtype=np.float32)[:, None], targets, weights)
    data = Prepared(part, part, task, np.full(targets.shape[-1] if task == "real" else 1, scale), num_classes)
    loss = losses.find(loss)() if isinstance(loss, str) else loss
    learner = Learner(model, loss, loss.modes[-1], keras.optimizers.SGD(), None)
    found = evaluation.make_evaluate(learner, data, batch_size)()
    assert list(found) == evaluation.metric_names(learner.loss, task)
    return found


@dataclasses.dataclass(frozen=True)
class Measured(Loss):
    """Half the square of every prediction; it measures the first output, and the target or 1."""

    metric_names = ("first", "target")

    def value(self, y_true, y_pred):
        return tf.reduce_sum(tf.square(y_pred), axis=-1) / 2

    def metrics(self, y_true, y_pred):
        if isinstance(y_true, dict):
            y_true = tf.cast(y_true["num_frames"], y_pred.dtype)
        return y_pred[:, 0], tf.ones_like(y_pred[:, 0]) if y_true is None else y_true

    def check_shapes(self, y_true, y_pred):
        pass


@dataclasses.dataclass(frozen=True)
class Together(Loss):
    """For every example the sum of all predictions of the batch but the masked ones'."""

    coupled = True

    def value(self, y_true, y_pred, mask=None):
        total = tf.reduce_sum(tf.where(mask[:, tf.newaxis], y_pred, 0.0))
        return tf.fill(tf.shape(y_pred)[:1], total)

    def check_shapes(self, y_true, y_pred):
        pass


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


@pytest.mark.parametrize("kind", ["none", "labels", "same"])
def test_a_loss_measures_what_it_names(rng, kind):
    outputs, numbers = rng.normal(size=(NUM_EXAMPLES, 2)), rng.integers(1, 9, NUM_EXAMPLES).astype(np.int32)
    targets = {"none": None, "labels": {"labels": numbers[:, None], "num_frames": numbers}, "same": numbers.astype(np.float32)}[kind]
    weights = rng.integers(0, 3, NUM_EXAMPLES).astype(np.float32)
    found = evaluate(Measured(), targets, outputs, kind, weights)
    assert list(found) == ["eval/loss", "eval/first", "eval/target"]
    assert found["eval/first"] == pytest.approx(np.average(outputs[:, 0], weights=weights), abs=1e-6)
    assert found["eval/target"] == pytest.approx(1 if kind == "none" else np.average(numbers, weights=weights), rel=1e-6)
    assert found["eval/loss"] == pytest.approx(np.average((outputs**2).sum(axis=1) / 2, weights=weights), rel=1e-5)


def test_a_loss_measures_the_tasks_metric_itself(rng):
    class MeasuresAccuracy(Measured):
        metric_names = ("accuracy", "target")

    labels = np.ones(NUM_EXAMPLES, np.float32)
    found = evaluate(MeasuresAccuracy(), labels, rng.normal(size=(NUM_EXAMPLES, 2)), "classes")
    assert list(found) == ["eval/loss", "eval/accuracy", "eval/target"]


def test_sequences_of_classes(rng):
    logits, labels = rng.normal(size=(NUM_EXAMPLES, 5, 4)), rng.integers(0, 4, (NUM_EXAMPLES, 5)).astype(np.int32)
    found = evaluate("softmax_crossentropy", labels, logits, "classes", num_classes=4)
    assert found["eval/accuracy"] == pytest.approx(np.mean(logits.argmax(axis=-1) == labels))


def test_examples_taken_together_are_evaluated_in_batches_of_training():
    outputs = np.arange(70.0)[:, None]
    found = evaluate(Together(), None, outputs, "none", batch_size=30)
    # Every example has its batch's sum: of 30, 30 and the last 10, which are padded and masked.
    sums = [outputs[:30].sum(), outputs[30:60].sum(), outputs[60:].sum()]
    assert found["eval/loss"] == pytest.approx((30 * sums[0] + 30 * sums[1] + 10 * sums[2]) / 70)
