"""Histograms: of the raw gradient of their step, in every way of compiling, and of no consequence for what is learned."""

import json
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.util import tensor_util

import losses
from tests.trainer.command_line import command
from trainer import config, job, snapshots
from trainer.data.base import Examples
from trainer.data.prepare import prepare
from trainer.errors import ConfigError
from trainer.histograms import NUM_BUCKETS, _buckets, make_histograms
from trainer.learner import Learner
from trainer.schema import Data
from trainer.step import Update

QUICK = ("trainer.steps=12", "trainer.eval_every=6", "gradient.verify_at_start=false", "model.hidden=[8]", "trainer.compile=graph")


def train(folder: Path, *overrides: str) -> Path:
    assert job.run(config.load([*QUICK, f"hydra.run.dir={folder}", *overrides])) == 0
    return folder


def found(folder: Path) -> dict[str, dict[int, np.ndarray]]:
    """Tag to step to buckets, as TensorBoard reads them."""
    events = EventAccumulator(str(folder / "tensorboard"), size_guidance={"tensors": 0})
    events.Reload()
    tags = events.summary_metadata
    return {
        tag: {event.step: tensor_util.make_ndarray(event.tensor_proto) for event in events.Tensors(tag)}
        for tag in tags
        if tags[tag].plugin_data.plugin_name == "histograms"
    }


def assert_learned_the_same(one: Path, other: Path) -> None:
    assert (one / "metrics.jsonl").read_text() == (other / "metrics.jsonl").read_text()
    expected, actual = (snapshots.load_newest(run / "checkpoints")[0].arrays for run in (one, other))
    for name, array in expected.items():
        np.testing.assert_array_equal(actual[name], array, err_msg=name)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_counts_are_those_of_the_gradient(accumulate):
    rng = np.random.default_rng(0)
    examples = Examples(rng.normal(size=(40, 3)), rng.normal(size=(40, 2)), weights={"weight": rng.uniform(1, 2, 40)})
    data = prepare(examples, "real", "real", Data(batch_size=8, sample_weight="weight"))
    inputs = keras.Input([3])
    model = keras.Model(inputs, keras.layers.Dense(2, name="output")(keras.layers.Dense(16, "tanh", name="hidden")(inputs)))
    learner = Learner(model, losses.find("mse")(), "analytic", keras.optimizers.SGD(), None)
    indices = np.array([3, 1, 4, 15, 9, 2, 6, 5], np.int32)
    batch = data.train.rows(indices)
    with tf.GradientTape() as tape:
        errors = tf.reduce_mean(tf.square(model(batch.features) - batch.targets), axis=-1)
        loss = tf.reduce_sum(errors * batch.weights) / 8
    gradients = tape.gradient(loss, model.trainable_variables)
    counted = make_histograms(learner, data, Update(8, "chunk", accumulate))(0, indices)
    assert list(counted) == ["gradient/hidden/kernel", "gradient/hidden/bias", "gradient/output/kernel", "gradient/output/bias"]
    for (tag, table), gradient in zip(counted.items(), gradients, strict=True):
        values = gradient.numpy()
        assert table.shape == (NUM_BUCKETS, 3)
        edges = np.append(table[:, 0], table[-1, 1])
        np.testing.assert_allclose(edges, np.linspace(values.min(), values.max(), NUM_BUCKETS + 1), rtol=1e-4, atol=1e-6, err_msg=tag)
        assert table[:, 2].sum() == values.size
        # A value beside an edge may be on either side of it.
        expected, _ = np.histogram(values, NUM_BUCKETS)
        assert np.abs(np.cumsum(table[:, 2]) - np.cumsum(expected)).max() <= 1


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([1.0, 1.0, 1.0], (1.0, 1.0, 3, 0)),
        ([0.0], (0.0, 0.0, 1, 0)),
        ([-1e20, -1e20], (-1e20, -1e20, 2, 0)),
        ([np.nan, 2.0, np.inf, 5.0, -np.inf], (2.0, 5.0, 1, 1)),
        ([np.nan, np.inf], (0.0, 0.0, 0, 0)),
    ],
)
def test_buckets_of_odd_values(values, expected):
    table = tf.function(_buckets)(tf.constant(values)).numpy()
    low, high, last, first = expected
    assert (table[0, 0], table[-1, 1]) == (np.float32(low), np.float32(high))
    assert (table[-1, 2], table[0, 2], table[1:-1, 2].sum()) == (last, first, 0)


@pytest.mark.parametrize("compiled", ["graph", pytest.param("step", marks=pytest.mark.slow), pytest.param("chunk", marks=pytest.mark.slow)])
def test_they_change_nothing_of_what_is_learned(tmp_path, compiled):
    overrides = (f"trainer.compile={compiled}", "model.dropout=0.5", "trainer.clip_norm=0.01")
    without = train(tmp_path / "without", *overrides)
    watched = train(tmp_path / "watched", *overrides, "logging.histogram_every=5")
    assert_learned_the_same(without, watched)
    assert found(without) == {}
    rows = [json.loads(line) for line in (watched / "metrics.jsonl").read_text().splitlines()]
    histograms = found(watched)
    assert set(histograms) == {f"gradient/{layer}/{kind}" for layer in ("hidden_1", "output") for kind in ("kernel", "bias")}
    for tag, tables in histograms.items():
        assert list(tables) == [5, 10]
        for step, table in tables.items():
            norm, largest = rows[step - 1][tag.replace("gradient/", "grad_norm/")], max(-table[0, 0], table[-1, 1])
            assert largest <= norm * 1.001  # before clipping
            assert norm <= largest * np.sqrt(table[:, 2].sum()) * 1.001


def test_a_resumed_run_has_one_of_each(tmp_path):
    overrides = ("trainer.eval_every=0", "logging.histogram_every=4")
    straight = train(tmp_path / "straight", *overrides)
    train(tmp_path / "halves", *overrides, "trainer.steps=7")
    halves = train(tmp_path / "halves", *overrides)
    assert_learned_the_same(straight, halves)
    expected = found(straight)
    for tag, tables in found(halves).items():
        assert list(tables) == [4, 8, 12]
        for step, table in tables.items():
            np.testing.assert_array_equal(table, expected[tag][step])


def assert_like_one_device(one: Path, plain: Path) -> None:
    tables = found(one)
    assert tables
    for tag, steps in tables.items():
        assert list(steps) == [6, 12]
        np.testing.assert_allclose(steps[6][:, :2], found(plain)[tag][6][:, :2], rtol=1e-3, atol=1e-6)


@pytest.mark.slow
def test_they_come_with_replicas(tmp_path):
    """In a process of its own: TensorFlow confuses the reductions of two models in one process."""
    overrides = [*QUICK, "logging.histogram_every=6", "strategy=cpu_sim", "strategy.num_devices=2", "hydra.run.dir=two"]
    done = command(*overrides, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert_like_one_device(tmp_path / "two", train(tmp_path / "plain", "logging.histogram_every=6"))


@pytest.mark.slow
@pytest.mark.parametrize(
    "overrides",
    [
        ["data.stream=true"],
        ["precision=mixed_float16"],
        ["data=diabetes", "loss=external"],
    ],
    ids=lambda overrides: overrides[0],
)
def test_they_come_with_streams_half_precision_and_losses_of_the_host(tmp_path, overrides):
    one = train(tmp_path / "one", "logging.histogram_every=6", *overrides)
    plain = (text for text in overrides if not text.startswith("data.stream"))
    assert_like_one_device(one, train(tmp_path / "plain", "logging.histogram_every=6", *plain))


def test_without_tensorboard_they_are_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"logging\.histogram_every=5: .* type logging\.tensorboard=true"):
        train(tmp_path, "logging.histogram_every=5", "logging.tensorboard=false")
