"""The check before training, where a loss has the weights of very many classes."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import losses
from losses.proof import start
from trainer import config, job, proving
from trainer.learner import Learner
from trainer.proving import _MOST_CLASSES, _fewer_classes, _proved_on_few

NUM_CLASSES = 3000


def batch(name):
    rng = np.random.default_rng(0)
    targets = rng.integers(0, NUM_CLASSES, 8).astype(np.int32)
    targets[0] = NUM_CLASSES - 1
    loss = losses.find(name)()
    predictions = {key: tf.constant(rng.standard_normal(shape), tf.float32) for key, shape in loss.shared_shapes(5, NUM_CLASSES).items()}
    return loss, targets, predictions | {loss.entry: tf.constant(rng.standard_normal((8, 5)), tf.float32)}


@pytest.mark.parametrize("name", ["linear_crossentropy", "arcface"])
def test_targets_keep_their_own_weights(name):
    loss, targets, predictions = batch(name)
    fewer_targets, fewer = _fewer_classes(loss, targets, predictions, NUM_CLASSES)
    sizes = loss.shared_shapes(5, _MOST_CLASSES)
    assert {key: tuple(fewer[key].shape) for key in sizes} == sizes
    assert fewer_targets.dtype == targets.dtype
    whole, part = loss.point(predictions).numpy(), loss.point(fewer).numpy()  # a score for every class
    np.testing.assert_array_equal(part[np.arange(8), fewer_targets], whole[np.arange(8), targets])
    assert start.verify(loss, fewer_targets, fewer).ok


def test_a_wrong_gradient_of_the_weights_is_still_seen():
    loss, targets, predictions = batch("linear_crossentropy")

    class Wrong(type(loss)):
        def value_and_vjp(self, y_true, y_pred, **mask):
            value, vjp = super().value_and_vjp(y_true, y_pred, **mask)
            return value, lambda dy: (found := vjp(dy)) | {"kernel": 1.001 * found["kernel"]}

    fewer_targets, fewer = _fewer_classes(loss, targets, predictions, NUM_CLASSES)
    report = start.verify(Wrong(), fewer_targets, fewer)
    assert not report.ok
    assert "kernel" in report.message


def test_weights_that_are_not_one_a_class_stay_whole():
    loss, targets, predictions = batch("arcface")
    with_none = predictions | {"centers": tf.concat([predictions["centers"], tf.zeros([1, 5])], axis=0)}
    same_targets, same = _fewer_classes(loss, targets, with_none, NUM_CLASSES)
    assert same_targets is targets
    assert same is with_none
    assert _proved_on_few(loss, targets, with_none, NUM_CLASSES, 0) is None


def test_a_loss_that_counts_on_all_classes_is_proved_whole():
    loss, targets, predictions = batch("linear_crossentropy")
    assert _proved_on_few(loss, targets, predictions, NUM_CLASSES, 0).ok

    class Weighed(type(loss)):
        def value(self, y_true, y_pred):
            return super().value(y_true, y_pred | {"bias": y_pred["bias"] + tf.zeros(NUM_CLASSES, y_pred["bias"].dtype)})

    assert _proved_on_few(Weighed(), targets, predictions, NUM_CLASSES, 0) is None
    assert start.verify(Weighed(), targets, predictions).ok


def test_a_run_proves_few_classes(tmp_path, monkeypatch):
    sizes = []

    def verify(loss, y_true, y_pred, seed):
        sizes.append(len(y_pred["centers"]))
        return start.Report(True, "")

    monkeypatch.setattr(proving, "_MOST_CLASSES", 4)
    monkeypatch.setattr(proving.start, "verify", verify)
    settings = ("loss=arcface", "data.batch_size=2", "trainer.steps=1", "trainer.eval_every=0", "trainer.compile=graph")
    assert job.run(config.load([*settings, f"hydra.run.dir={tmp_path}"])) == 0
    assert sizes == [4]


def test_what_is_captured_is_a_copy():
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
    learner = Learner(model, losses.find("mse")(), "analytic", keras.optimizers.SGD(), None)
    captured = learner.capture()
    before = {name: array.copy() for name, array in captured.items()}
    for variable in [*model.variables, *learner.optimizer.variables]:
        variable.assign(variable + 1)
    for name, array in captured.items():
        np.testing.assert_array_equal(array, before[name])
