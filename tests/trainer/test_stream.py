"""Streamed sources: they come to the same run as data on the device, and no fault in them passes in silence."""

import dataclasses
import json
import threading
import tracemalloc

import numpy as np
import pytest

from trainer import config, job, snapshots
from trainer.audit import Audit
from trainer.data.base import Examples, StreamedSource
from trainer.data.order import Order
from trainer.data.prepare import Split, prepare
from trainer.data.stream import Moments, Streamed, ahead, prepare_streamed
from trainer.errors import ConfigError, DataError
from trainer.schema import Data

RNG = np.random.default_rng(0)
X = RNG.standard_normal([60, 3]) * [1, 10, 100] + [0, 5, -7]
CLASSES = np.arange(60) % 3


@dataclasses.dataclass(frozen=True)
class Rows(StreamedSource):
    """Arrays, read as if they were far away."""

    features: np.ndarray
    targets: np.ndarray
    weights: np.ndarray | None = None
    num_classes: int | None = None
    num_tokens: int | None = None
    kind: str = "real"
    parallel: bool = False

    @property
    def num_examples(self):
        return len(self.features)

    def read(self, rows):
        return self.features[rows], self.targets[rows], None if self.weights is None else self.weights[rows]


def streamed(source, want=None, **keys):
    return prepare_streamed(source, source.kind, want or source.kind, Data(**{"batch_size": 4, "stream": True} | keys))


def every(prepared):
    """All examples of both parts."""
    return [part.rows(np.arange(len(part))) for part in (prepared.train, prepared.evaluation)]


def assert_equal(found, expected, **tolerance):
    for one, other in zip(every(found), every(expected), strict=True):
        assert [array.dtype for array in one.arrays()] == [array.dtype for array in other.arrays()]
        for array, wanted in zip(one.arrays(), other.arrays(), strict=True):
            np.testing.assert_allclose(array, wanted, **tolerance)


WEIGHTS = np.where(np.arange(60) % 5 == 0, 0.0, 1 + np.arange(60) / 60)


@pytest.mark.parametrize(
    ("kind", "want", "targets", "num_classes", "keys"),
    [
        ("real", "real", X[:, :2] * 3 + 1000, None, {}),
        ("real", "real", X[:, 0], None, {"sample_weight": "w"}),
        ("real", "real", X[:, 0], None, {"standardize": False}),
        ("counts", "real", RNG.poisson(3, 60), None, {}),
        ("classes", "classes", CLASSES, 3, {"class_weight": "balanced", "sample_weight": "w"}),
        ("classes", "real", CLASSES, 3, {"class_weight": "balanced"}),
        ("classes", "binary", CLASSES % 2, 2, {}),
        ("interval", "interval", np.stack([np.where(np.arange(60) % 3, X[:, 0], -np.inf), X[:, 0] + 1], axis=1), None, {}),
    ],
)
def test_streamed_examples_are_prepared_as_those_in_memory(kind, want, targets, num_classes, keys):
    features = X.copy()
    if "sample_weight" in keys:
        features[::5] = np.nan
    weights = WEIGHTS if "sample_weight" in keys else None
    examples = Examples(features, targets, num_classes, {} if weights is None else {"w": weights})
    expected = prepare(examples, kind, want, Data(batch_size=4, **keys))
    found = streamed(Rows(features, targets, weights, num_classes, kind=kind), want, **keys)
    assert_equal(found, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found.target_scale, expected.target_scale)
    assert (found.target_shape, found.features_shape, found.task) == (expected.target_shape, expected.features_shape, expected.task)
    assert isinstance(found.train, Streamed)


def test_what_is_put_on_the_device_is_the_same_to_the_bit(monkeypatch):
    monkeypatch.setattr("trainer.data.stream.PIECE_BYTES", 100)  # pieces of 8 rows
    source = Rows(X, CLASSES, num_classes=3, kind="classes", parallel=True)
    resident, apart = streamed(source, stream=False), streamed(source)
    assert isinstance(resident.train, Split)
    assert resident.resident
    assert_equal(resident, apart, rtol=0)
    assert resident.fingerprint() == apart.fingerprint()


def test_size_decides_where_examples_are():
    source = Rows(X, X[:, 0])  # 60 * 3 * 4 bytes
    assert streamed(source, stream="auto").resident
    assert streamed(source, stream="auto", max_resident_mb=720 / 2**20).resident
    assert not streamed(source, stream="auto", max_resident_mb=719 / 2**20).resident
    examples = Examples(X, X[:, 0])
    assert prepare(examples, "real", "real", Data(batch_size=4)).resident
    assert not prepare(examples, "real", "real", Data(batch_size=4, max_resident_mb=719 / 2**20)).resident


def test_images_and_tokens():
    images = RNG.integers(0, 256, [60, 4, 4, 2]).astype(np.uint8)
    expected = prepare(Examples(images, X[:, 0]), "real", "real", Data(batch_size=4))
    assert_equal(streamed(Rows(images, X[:, 0])), expected, rtol=1e-5, atol=1e-6)
    tokens = RNG.integers(0, 7, [60, 5])
    found = streamed(Rows(tokens, tokens, num_classes=7, num_tokens=7, kind="classes"))
    expected = prepare(Examples(tokens, tokens, 7, num_tokens=7), "classes", "classes", Data(batch_size=4))
    assert_equal(found, expected, rtol=0)


@pytest.mark.parametrize("offset", [0.0, 1e6])
def test_moments_of_pieces_are_those_of_the_whole(offset):
    values = RNG.standard_normal([1000, 3]) * [1, 10, 0] + offset + 0.1
    values[::7, 1] = np.inf
    moments = Moments.of(values[:1], (0,))
    for start, end in ((1, 2), (2, 500), (500, 1000)):
        moments = moments.joined(Moments.of(values[start:end], (0,)))
    known = np.where(np.isfinite(values), values, np.nan)
    np.testing.assert_allclose(moments.mean, np.nanmean(known, axis=0), rtol=1e-12)
    np.testing.assert_allclose(moments.spread, [*np.nanstd(known, axis=0)[:2], 1], rtol=1e-9)


def test_mean_and_spread_of_very_many_are_a_samples(monkeypatch):
    monkeypatch.setattr("trainer.data.stream._MOST_MEASURED", 100)
    monkeypatch.setattr("trainer.data.stream._NUM_SAMPLED", 20)
    found, again = (streamed(Rows(X, CLASSES, num_classes=3, kind="classes")) for _ in range(2))
    assert found.num_sampled == 20
    assert_equal(found, again, rtol=0)
    assert 0.01 < abs(every(found)[0].features.mean(axis=0)).max() < 1  # near 0, and not 0
    assert streamed(Rows(X, X[:, 0]), standardize=False).num_sampled is None


def test_the_fingerprint_is_of_what_is_trained_on():
    source = Rows(X, X[:, 0])
    known = streamed(source).fingerprint()
    assert streamed(source, batch_size=8).fingerprint() == known
    assert streamed(Rows(X[:-1], X[:-1, 0])).fingerprint() != known
    assert streamed(source, split_seed=1).fingerprint() != known
    other = X.copy()
    other[streamed(source).train.numbers[7]] += 1  # not among the rows of the sample where there are many: mean and spread tell
    assert streamed(Rows(other, X[:, 0])).fingerprint() != known


def spoiled(value, row=41, place=0, array=X):
    array = np.array(array, float if isinstance(value, float) else None)
    array[row, place] = value
    return array


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (Rows(spoiled(np.nan, place=2), X[:, 0]), r"features: nan in row 41, column 2 \(from 0\) is not finite"),
        (Rows(spoiled(1e39), X[:, 0]), "features: inf in row 41, column 0"),
        (Rows(X, spoiled(np.inf)), "targets: inf in row 41, column 0"),
        (Rows(X, np.where(np.arange(60) == 41, 3, CLASSES), num_classes=3, kind="classes"), "class 3 in row 41 .* 0 to 2"),
        (Rows(X, np.where(np.arange(60) == 41, 0.5, 1.0), kind="counts"), "0.5 in row 41.*no count"),
        (Rows(X, X[:, 0], np.where(np.arange(60) == 41, -1.0, 1.0)), "row 41 .* has -1"),
        (Rows(spoiled(7, array=CLASSES[:, None]), CLASSES, num_classes=3, num_tokens=3, kind="classes"), "token 7 in row 41"),
        (Rows(X[:, 0], X[:, 0]), r"features\[:, None\]"),
        (Rows(X.astype(str), X[:, 0]), "real numbers; found dtype <U"),
        (Rows(X, X[:30, 0].repeat(2)[:, None][:, :, None]), r"\[n, dim\]; found"),
    ],
)
@pytest.mark.parametrize("parallel", [False, True])
def test_faults_are_found_as_they_are_read(source, message, parallel):
    with pytest.raises(DataError, match=message):
        every(streamed(dataclasses.replace(source, parallel=parallel)))


def test_rows_of_weight_zero_may_hold_anything():
    weights = np.where(np.arange(60) == 41, 0.0, 1.0)
    found = streamed(Rows(spoiled(np.nan), X[:, 0], weights), sample_weight="w")
    assert all(np.isfinite(part.features).all() for part in every(found))


@dataclasses.dataclass(frozen=True)
class Wrong(Rows):
    """Gives what it should not."""

    fault: str = ""

    def read(self, rows):
        features, targets, weights = super().read(rows)
        if self.fault == "ragged" and len(rows) > 1:
            return [[0.0] * (2 + i % 2) for i in range(len(rows))], targets, weights
        if self.fault == "short" and len(rows) > 1:
            return features[1:], targets, weights
        if self.fault == "targets" and len(rows) > 1:
            return features, targets[1:], weights
        if self.fault == "wide" and len(rows) > 1:
            return np.repeat(features, 2, axis=1), targets, weights
        return features, targets, weights


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("ragged", "features of rows .* are not of one shape"),
        ("short", r"read gave features of shape \(\d+, 3\) for \d+ rows"),
        ("targets", "rows of features, but"),
        ("wide", r"of rows .* have shapes \(6,\) and \(1,\); the first example has \(3,\) and \(1,\)"),
    ],
)
def test_shapes_are_those_of_the_first_example(fault, message):
    with pytest.raises(DataError, match=message):
        every(streamed(Wrong(X, X[:, 0], fault=fault)))


def test_what_a_source_lacks_is_said():
    class Bare(StreamedSource):
        kind = "real"

    with pytest.raises(DataError, match="Bare has no num_examples"):
        streamed(Bare())

    class NoRead(Bare):
        num_examples = 5

    with pytest.raises(DataError, match=r"NoRead has no read\(\)"):
        streamed(NoRead())
    with pytest.raises(DataError, match="there is no data"):
        streamed(Rows(X[:0], X[:0, 0]))
    with pytest.raises(ConfigError, match=r"data\.sample_weight=w: the data has no such"):
        streamed(Rows(X, X[:, 0]), sample_weight="w")
    with pytest.raises(ConfigError, match=r"data\.batch_size=49 is larger"):
        streamed(Rows(X, X[:, 0]), batch_size=49)
    with pytest.raises(DataError, match="every training example the weight 0"):
        streamed(Rows(X, X[:, 0], np.zeros(60)), sample_weight="w")
    with pytest.raises(ConfigError, match="class_weight=balanced needs class labels"):
        streamed(Rows(X, X[:, 0]), class_weight="balanced")


def test_ahead_keeps_the_order_and_its_distance():
    done, release = [], threading.Event()

    def slow(item):
        release.wait()
        done.append(item)
        return item * 10

    results = ahead(slow, iter(range(100)), 3)
    release.set()
    assert next(results) == 0
    assert [next(results) for _ in range(20)] == [10 * i for i in range(1, 21)]
    results.close()
    assert max(done) <= 20 + 4
    with pytest.raises(ZeroDivisionError):
        list(ahead(lambda item: 1 / item, [1, 0, 2], 2))


# Whole runs.

QUICK = ("trainer.steps=30", "trainer.eval_every=10", "trainer.compile=graph", "gradient.verify_at_start=false", "trainer.steps_per_call=8")


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    from trainer.data.bundled import Digits

    folder, examples = tmp_path_factory.mktemp("digits"), Digits().load()
    np.save(folder / "x.npy", examples.features)
    np.save(folder / "y.npy", examples.targets)
    np.save(folder / "w.npy", 1 + np.arange(len(examples)) % 3)
    return folder


def train(folder, data, *overrides):
    data = (data,) if data == "data=digits" else ("data=npy", f"data.path={data}")
    return job.run(config.load([*QUICK, *data, f"hydra.run.dir={folder}", *overrides]))


def lines(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def weights(folder):
    return snapshots.load_newest(folder / "checkpoints")[0].arrays


def assert_same_run(one, other):
    assert lines(one) == lines(other)
    for name, array in weights(one).items():
        np.testing.assert_array_equal(weights(other)[name], array, err_msg=name)


@pytest.mark.parametrize(
    "overrides",
    [
        ("gradient.verify_at_start=true",),
        pytest.param(("trainer.compile=chunk",), marks=pytest.mark.slow),
        pytest.param(("trainer.compile=step", "trainer.accumulate=2"), marks=pytest.mark.slow),
        ("data.sample_weight=w.npy", "data.class_weight=balanced"),
        ("loss=stable_mse", "data.batch_size=48"),
    ],
)
def test_resident_and_streamed_are_the_same_run(tmp_path, digits, overrides):
    for stream in ("true", "false"):
        assert train(tmp_path / stream, digits, f"data.stream={stream}", *overrides) == 0
    assert_same_run(tmp_path / "true", tmp_path / "false")


def test_examples_in_memory_are_streamed_too(tmp_path):
    for stream in ("true", "false"):
        train(tmp_path / stream, "data=digits", f"data.stream={stream}")
    assert_same_run(tmp_path / "true", tmp_path / "false")


def test_resident_and_streamed_agree_on_two_replicas(tmp_path, digits):
    train(tmp_path / "one", digits, "data.stream=false")
    train(tmp_path / "two", digits, "data.stream=true", "strategy=cpu_sim")
    for found, expected in zip(lines(tmp_path / "two"), lines(tmp_path / "one"), strict=True):
        for tag, value in expected.items():
            assert found[tag] == pytest.approx(value, rel=1e-4, abs=1e-5), tag


@pytest.mark.parametrize("compiled", ["graph", pytest.param("chunk", marks=pytest.mark.slow)])
def test_a_streamed_run_is_resumed_to_the_bit_at_an_uneven_step(tmp_path, digits, compiled):
    how = ("data.stream=true", f"trainer.compile={compiled}", "trainer.eval_every=0")
    train(tmp_path / "straight", digits, *how)
    train(tmp_path / "halves", digits, "trainer.steps=17", *how)
    train(tmp_path / "halves", digits, *how)
    assert_same_run(tmp_path / "halves", tmp_path / "straight")


def test_a_resident_run_goes_on_streamed(tmp_path, digits):
    train(tmp_path / "straight", digits, "trainer.eval_every=0")
    train(tmp_path / "halves", digits, "trainer.eval_every=0", "trainer.steps=17", "data.stream=false")
    train(tmp_path / "halves", digits, "trainer.eval_every=0", "data.stream=true")
    assert_same_run(tmp_path / "halves", tmp_path / "straight")


@pytest.mark.slow
def test_a_run_measures_its_way_of_compiling_on_streamed_batches(tmp_path, digits, capsys):
    assert train(tmp_path, digits, "data.stream=true", "trainer.compile=measure") == 0
    assert "trainer.compile=measure:" in capsys.readouterr().out


def test_audits_see_the_batch_of_their_step(tmp_path, digits, monkeypatch):
    seen = {}
    ask = Audit.__call__

    def asked(self, step, indices):
        seen.setdefault(step, []).append(self.examples(indices).features)
        return ask(self, step, indices)

    monkeypatch.setattr(Audit, "__call__", asked)
    for stream in ("true", "false"):
        # A surrogate's gradients part on purpose.
        train(tmp_path / stream, digits, f"data.stream={stream}", "loss=stable_mse", "gradient.audit_every=7", "trainer.steps_per_call=5")
    assert_same_run(tmp_path / "true", tmp_path / "false")
    assert {"gradient_audit/relative_error"} <= lines(tmp_path / "true")[6].keys()
    assert seen
    for one, other in seen.values():
        np.testing.assert_array_equal(one, other)


def test_a_damaged_row_ends_the_run(tmp_path, digits, monkeypatch):
    """It is not among those that mean and spread are taken from."""
    monkeypatch.setattr("trainer.data.stream._MOST_MEASURED", 0)
    monkeypatch.setattr("trainer.data.stream._NUM_SAMPLED", 40)
    features, targets = np.load(digits / "x.npy"), np.load(digits / "y.npy")
    order, kept = Order(1438, 32, 0), streamed(Rows(features, targets, num_classes=10, kind="classes")).train.numbers
    row = kept[order.batches(20, 1)[0, 5]]  # step 21 is the first to see it
    features[row, 3, 5, 0] = np.nan
    np.save(tmp_path / "x.npy", features)
    np.save(tmp_path / "y.npy", targets)
    with pytest.raises(DataError, match=rf"features: nan in row {row}, at \(3, 5, 0\)") as error:
        train(tmp_path / "run", tmp_path, "data.stream=true")
    assert error.value.exit_code == 5
    assert json.loads((tmp_path / "run" / "status.json").read_text())["exit_code"] == 5
    assert [line["step"] for line in lines(tmp_path / "run")] == list(range(1, 21))  # chunks end at 8, 10, 18, 20, 28


@dataclasses.dataclass(frozen=True)
class Vast(StreamedSource):
    """3 GB of numbers that no file holds."""

    kind = "real"
    num_examples = 200_000

    def read(self, rows):
        features = np.sin(rows[:, None] + np.arange(4096, dtype=np.float32))
        return features, features[:, 0], None


def test_memory_does_not_grow_with_the_data():
    tracemalloc.start()
    try:
        prepared = streamed(Vast(), stream="auto", eval_fraction=0.001)
        assert not prepared.resident
        assert prepared.num_sampled == 10_000
        for start in range(0, 4000, 500):
            prepared.train.rows(np.arange(start, start + 500))
        assert tracemalloc.get_traced_memory()[1] < 200 * 2**20
    finally:
        tracemalloc.stop()
