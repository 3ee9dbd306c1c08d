"""Fitting targets to losses, the split, standardizing, and weights."""

import dataclasses

import numpy as np
import pytest

from trainer.data.base import Examples
from trainer.data.kinds import KINDS, fit
from trainer.data.prepare import prepare
from trainer.errors import ConfigError, DataError
from trainer.schema import Data

RNG = np.random.default_rng(0)
FEATURES = RNG.standard_normal([50, 3]) * [1, 10, 100] + [0, 5, -7]
REAL = Examples(FEATURES, FEATURES @ RNG.standard_normal([3, 2]) + 1000)
CLASSES = Examples(FEATURES, np.arange(50) % 3, num_classes=3)
TWO_CLASSES = Examples(FEATURES, np.arange(50) % 2, num_classes=2)
COUNTS = Examples(FEATURES, RNG.poisson(3, 50))


def settings(**keys) -> Data:
    return dataclasses.replace(Data(batch_size=4), **keys)


@pytest.mark.parametrize(
    ("kind", "wanted", "want"),
    [
        ("classes", ("classes", "class_weights"), "classes"),
        ("classes", ("real",), "real"),
        ("classes", ("real", "binary"), "binary"),
        ("classes", ("counts",), None),
        ("counts", ("real",), "real"),
        ("counts", ("real", "counts"), "counts"),
        ("real", ("real",), "real"),
        ("real", ("classes",), None),
        ("real", ("counts",), None),
        ("real", ("binary",), None),
        ("series", ("real",), None),
    ],
)
def test_fit(kind, wanted, want):
    assert fit(kind, wanted) == want


def test_every_kind_fits_something():
    assert all(fit(kind, (kind,)) == kind for kind in KINDS)


def test_classes_stay_indices():
    prepared = prepare(CLASSES, "classes", "classes", settings())
    assert (prepared.num_classes, prepared.target_shape, prepared.task) == (3, (), "classes")
    assert prepared.train.targets.dtype == np.int32
    assert sorted(np.concatenate([prepared.train.targets, prepared.evaluation.targets])) == sorted(CLASSES.targets)


@pytest.mark.parametrize("want", ["real", "binary"])
def test_classes_become_one_hot(want):
    one_hot = prepare(CLASSES, "classes", want, settings())
    indices = prepare(CLASSES, "classes", "classes", settings())
    assert one_hot.target_shape == (3,)
    np.testing.assert_array_equal(one_hot.train.targets, np.eye(3)[indices.train.targets])
    assert one_hot.train.targets.dtype == np.float32


def test_two_classes_become_one_binary_column():
    prepared = prepare(TWO_CLASSES, "classes", "binary", settings())
    assert prepared.train.targets.shape == (40, 1)
    assert set(prepared.train.targets[:, 0]) == {0, 1}
    assert prepare(TWO_CLASSES, "classes", "real", settings()).train.targets.shape == (40, 2)


def test_split_has_every_example_once():
    prepared = prepare(REAL, "real", "real", settings(standardize=False, eval_fraction=0.3))
    assert (len(prepared.train), len(prepared.evaluation)) == (35, 15)
    rows = np.concatenate([prepared.train.features, prepared.evaluation.features])
    np.testing.assert_array_equal(rows[np.argsort(rows[:, 0])], REAL.features[np.argsort(REAL.features[:, 0])])
    # Rows keep their targets.
    where = {row[0]: target for row, target in zip(REAL.features, REAL.targets, strict=True)}
    np.testing.assert_array_equal(prepared.train.targets, np.float32([where[row[0]] for row in prepared.train.features]))


def test_split_depends_on_its_own_seed_alone():
    first, again, other = (prepare(REAL, "real", "real", settings(split_seed=seed)).evaluation.features for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


def test_standardized_by_the_training_part():
    prepared = prepare(REAL, "real", "real", settings())
    for values in (prepared.train.features, prepared.train.targets):
        np.testing.assert_allclose(values.mean(axis=0), 0, atol=1e-6)
        np.testing.assert_allclose(values.std(axis=0), 1, rtol=1e-6)
    assert abs(prepared.evaluation.features.mean(axis=0)).max() > 1e-3
    raw = prepare(REAL, "real", "real", settings(standardize=False))
    np.testing.assert_allclose(prepared.target_scale, raw.train.targets.std(axis=0), rtol=1e-5)
    np.testing.assert_array_equal(raw.target_scale, 1)


def test_images_are_standardized_channel_by_channel():
    images = RNG.standard_normal([50, 4, 4, 2]) * [3, 50] + [10, 0]
    images[:, 0, 0, 0] = 10  # a pixel that never changes stays finite
    train = prepare(Examples(images, REAL.targets), "real", "real", settings()).train.features
    np.testing.assert_allclose(train.mean(axis=(0, 1, 2)), 0, atol=1e-6)
    np.testing.assert_allclose(train.std(axis=(0, 1, 2)), 1, rtol=1e-6)
    # Pixels keep their spread relative to each other.
    spread = images.std(axis=0)[..., 1]
    assert np.corrcoef(train.std(axis=0)[..., 1].ravel(), spread.ravel())[0, 1] > 0.8


def test_counts_and_class_indicators_are_not_standardized():
    assert prepare(COUNTS, "counts", "counts", settings()).train.targets.min() >= 0
    counts = prepare(COUNTS, "counts", "counts", settings()).train.targets
    np.testing.assert_array_equal(counts, np.round(counts))
    assert set(prepare(CLASSES, "classes", "real", settings()).train.targets.ravel()) == {0, 1}


@pytest.mark.parametrize("constant", [0.0, 0.1, 1e6 + 0.1])
def test_constant_feature_becomes_zero(constant):
    examples = Examples(np.column_stack([FEATURES, np.full(50, constant)]), REAL.targets)
    prepared = prepare(examples, "real", "real", settings())
    np.testing.assert_allclose(prepared.train.features[:, 3], 0, atol=1e-6)
    np.testing.assert_allclose(prepared.evaluation.features[:, 3], 0, atol=1e-6)


def test_constant_target_becomes_zero():
    # The mean of 80 times 0.7 is not 0.7 exactly: the standard deviation comes out as 1e-16.
    prepared = prepare(Examples(np.ones([100, 1]), np.full(100, 0.7)), "real", "real", settings())
    np.testing.assert_allclose(prepared.train.targets, 0, atol=1e-6)
    assert prepared.target_scale.tolist() == [1]


def test_examples_of_weight_zero_take_no_part():
    weights = np.ones(50)
    weights[::5] = 0
    clean = Examples(FEATURES, REAL.targets, weights={"w": weights})
    features, targets = FEATURES.copy(), REAL.targets.copy()
    features[::5], targets[::5] = np.nan, np.inf
    dirty = Examples(features, targets, weights={"w": weights})
    expected = prepare(clean, "real", "real", settings(sample_weight="w"))
    found = prepare(dirty, "real", "real", settings(sample_weight="w"))
    for name in ("train", "evaluation"):
        for part in ("features", "targets", "weights"):
            np.testing.assert_array_equal(getattr(getattr(found, name), part), getattr(getattr(expected, name), part))
    assert np.isfinite(found.train.features).all()
    with pytest.raises(DataError, match="row 0"):
        prepare(dirty, "real", "real", settings())


def test_sample_weights_follow_their_examples():
    examples = Examples(FEATURES, REAL.targets, weights={"w": np.arange(50.0) + 1})
    prepared = prepare(examples, "real", "real", settings(sample_weight="w", standardize=False))
    where = {np.float32(row[0]): weight for row, weight in zip(FEATURES, examples.weights["w"], strict=True)}
    assert prepared.train.weights.tolist() == [where[row[0]] for row in prepared.train.features]
    assert prepare(examples, "real", "real", settings()).train.weights is None


def test_balanced_classes_weigh_the_same():
    examples = Examples(FEATURES, np.repeat([0, 1], [40, 10]), num_classes=2)
    train = prepare(examples, "classes", "classes", settings(class_weight="balanced")).train
    totals = [train.weights[train.targets == c].sum() for c in (0, 1)]
    np.testing.assert_allclose(totals, len(train) / 2, rtol=1e-6)


@pytest.mark.parametrize(
    ("examples", "kind", "keys", "error", "message"),
    [
        (REAL, "real", {"batch_size": 41}, ConfigError, r"data\.batch_size=41 is larger .* 40 examples"),
        (REAL, "real", {"sample_weight": "w"}, ConfigError, r"data\.sample_weight=w: .* it has none"),
        (REAL, "real", {"class_weight": "balanced"}, ConfigError, r"data\.class_weight=balanced needs class"),
        (Examples([[1.0]], [1.0]), "real", {"batch_size": 1}, DataError, "too few"),
        (Examples(FEATURES, -COUNTS.targets), "counts", {}, DataError, "no count"),
        (Examples(FEATURES, np.where(np.arange(50) == 9, np.nan, 1.0)), "real", {}, DataError, "targets: nan in row 9"),
    ],
)
@pytest.mark.fault
def test_refused(examples, kind, keys, error, message):
    with pytest.raises(error, match=message):
        prepare(examples, kind, kind, settings(**keys))
