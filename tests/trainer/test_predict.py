"""The command that predicts: each example, in the data's units and names, with and without targets."""

import csv
import json
import shutil

import numpy as np
import pytest

from trainer import config, evaluate, job, predict
from trainer.errors import ConfigError, DataError

SHORT = (
    "trainer.steps=20",
    "trainer.eval_every=10",
    "trainer.compile=graph",
    "gradient.verify_at_start=false",
    "trainer.steps_per_call=10",
)


def trained(folder, *overrides):
    assert job.run(config.load([*SHORT, f"hydra.run.dir={folder}", *overrides])) == 0
    return folder


def rows(path):
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def houses(tmp_path_factory):
    """A run on a table with a column of text and targets in thousands, and the table without its targets."""
    folder = tmp_path_factory.mktemp("houses")
    rng = np.random.default_rng(0)
    size, town = rng.uniform(50, 200, 80), rng.integers(0, 3, 80)
    price = 3000 * size + 50_000 * town
    lines = [f"{a},{['x', 'y', 'z'][b]},{c}" for a, b, c in zip(size.tolist(), town.tolist(), price.tolist(), strict=True)]
    (folder / "houses.csv").write_text("size,town,price\n" + "\n".join(lines) + "\n")
    (folder / "new.csv").write_text("size,town\n" + "\n".join(line.rpartition(",")[0] for line in lines[:7]) + "\n")
    own = ["data=csv", f"data.path={folder / 'houses.csv'}", "data.target=price", "loss=mse", "model=linear", "data.targets=real"]
    trained(folder / "run", *own, "optimizer.learning_rate=0.1", "trainer.steps=300", "trainer.eval_every=0")
    return folder


def test_a_table_without_targets_in_their_units(houses):
    assert predict.run([str(houses / "run"), f"data.path={houses / 'new.csv'}"]) == 0
    found = rows(houses / "run" / "predictions.csv")
    assert [list(found[0]), [row["row"] for row in found]] == [["row", "prediction"], [str(row) for row in range(7)]]
    prices = [float(row["price"]) for row in rows(houses / "houses.csv")[:7]]
    assert [float(row["prediction"]) for row in found] == pytest.approx(prices, rel=0.05)


def test_the_same_as_evaluation_finds(houses, tmp_path):
    run = houses / "run"
    assert predict.run([str(run), "--output", str(tmp_path / "p.csv")]) == 0
    assert evaluate.run([str(run), "--output", str(tmp_path / "e.json"), "--csv", str(tmp_path / "e.csv")]) == 0
    one, other = rows(tmp_path / "p.csv"), rows(tmp_path / "e.csv")
    assert [row["row"] for row in one] == [row["row"] for row in other]
    assert [float(row["prediction"]) for row in one] == pytest.approx([float(row["prediction"]) for row in other], rel=1e-6)


def test_the_file_that_is_predicted_is_not_written_over(houses):
    before = (houses / "new.csv").read_text()
    with pytest.raises(ConfigError, match="would be overwritten"):
        predict.run([str(houses / "run"), f"data.path={houses / 'new.csv'}", "--output", str(houses / "new.csv")])
    assert (houses / "new.csv").read_text() == before


def test_without_data_json_its_own_data_tell(houses, tmp_path, capsys):
    run = shutil.copytree(houses / "run", tmp_path / "run")
    (run / "data.json").unlink()
    given = f"data.path={houses / 'new.csv'}"
    assert predict.run([str(run), given, "--output", str(tmp_path / "without.csv")]) == 0
    assert "data.json, which says what the run's data were, is missing or damaged" in capsys.readouterr().out
    assert predict.run([str(houses / "run"), given, "--output", str(tmp_path / "with.csv")]) == 0
    assert rows(tmp_path / "without.csv") == rows(tmp_path / "with.csv")


def test_outputs_that_are_not_finite_are_said(capsys):
    pieces = [[np.array([[1.0, np.nan], [1.0, 2.0]])], [np.array([[np.inf, np.nan], [0.0, 0.0]])]]
    assert len(list(predict._watched(iter(pieces)))) == 2
    assert capsys.readouterr().out == "warning: the outputs for 2 of the examples are not finite\n"
    list(predict._watched(iter([[np.zeros([2, 1])]])))
    assert capsys.readouterr().out == ""


def test_arrays(houses, tmp_path):
    run, given = str(houses / "run"), f"data.path={houses / 'new.csv'}"
    for name in ("p.csv", "p.npy", "p.npz"):
        assert predict.run([run, given, "--output", str(tmp_path / name)]) == 0
    expected = [float(row["prediction"]) for row in rows(tmp_path / "p.csv")]
    np.testing.assert_allclose(np.load(tmp_path / "p.npy")[:, 0], expected, rtol=1e-8)
    with np.load(tmp_path / "p.npz") as found:
        assert set(found) == {"row", "prediction", "output"}
        np.testing.assert_allclose(found["prediction"][:, 0], expected, rtol=1e-8)
        assert np.abs(found["output"]).max() < 10  # standardized
    with pytest.raises(ConfigError, match=r"--output=p\.txt: must end in \.csv, \.npy, \.npz"):
        predict.run([run, given, "--output", "p.txt"])
    with pytest.raises(DataError, match=r"nowhere\.csv can't be read"):
        predict.run([run, "data.path=nowhere.csv"])
    with pytest.raises(ConfigError, match=r"nowhere/p\.csv can't be written|Not a directory"):
        predict.run([run, given, "--output", f"{houses / 'new.csv'}/nowhere/p.csv"])


def test_classes_by_name_with_their_logits(tmp_path):
    run = trained(tmp_path / "run", "data=wine", "model=linear", "trainer.steps=200", "trainer.eval_every=0")
    assert predict.run([str(run)]) == 0
    found = rows(run / "predictions.csv")
    assert list(found[0]) == ["row", "prediction", "output_0", "output_1", "output_2"]
    for row in found:
        logits = [float(row[f"output_{i}"]) for i in range(3)]
        assert row["prediction"] == f"class_{np.argmax(logits)}"
    assert predict.run([str(run), "data=wine", "--output", str(tmp_path / "all.csv")]) == 0
    assert len(rows(tmp_path / "all.csv")) == 178


def test_yes_or_no(tmp_path):
    run = trained(tmp_path / "run", "data=breast_cancer", "loss=binary_crossentropy", "model=linear")
    assert predict.run([str(run)]) == 0
    for row in rows(run / "predictions.csv"):
        assert row["prediction"] == ("benign" if float(row["output"]) > 0 else "malignant")


def test_tokens_by_name_and_their_logits_in_an_array(tmp_path, capsys):
    (tmp_path / "own.txt").write_text("abcdefghijklmnopqrstuvwxyz0123456789" * 60)
    small = ["model=transformer", "model.width=16", "model.num_layers=1", "model.num_heads=2", "loss=linear_crossentropy"]
    run = trained(tmp_path / "run", "data=text", f"data.path={tmp_path / 'own.txt'}", "data.length=32", *small)
    assert predict.run([str(run)]) == 0
    assert "the model gives 1152 numbers for an example, which are left out: --output NAME.npz has them" in capsys.readouterr().out
    found = rows(run / "predictions.csv")
    assert list(found[0]) == ["row", *(f"prediction_{i}" for i in range(32))]
    assert {len(cell) for cell in list(found[0].values())[1:]} == {1}
    assert predict.run([str(run), "--output", str(tmp_path / "p.npz")]) == 0
    with np.load(tmp_path / "p.npz") as arrays:
        assert arrays["output"].shape == (len(found), 32, 36)
        names = arrays["class_names"][arrays["output"].argmax(axis=-1)]
    assert [list(row.values())[1:] for row in found] == names.tolist()


@pytest.mark.parametrize(
    ("overrides", "columns"),
    [
        (["data=digit_triplets", "loss=triplet"], [f"output_{item}_{i}" for item in range(3) for i in range(16)]),
        (["data=diabetes_pairs", "loss=pairwise_logistic"], ["output_0", "output_1"]),
        (["data=engel", "loss=gaussian_nll"], ["prediction", "output_0", "output_1"]),
        (["data=randhie", "loss=poisson_nll"], ["prediction", "output"]),
    ],
)
def test_outputs_where_predictions_are_not_all(tmp_path, overrides, columns):
    run = trained(tmp_path / "run", *overrides, "model=linear")
    assert predict.run([str(run)]) == 0
    found = rows(run / "predictions.csv")
    assert list(found[0]) == ["row", *columns]
    if "loss=poisson_nll" in overrides:
        assert float(found[0]["prediction"]) == pytest.approx(np.exp(float(found[0]["output"])), rel=1e-5)
    if "loss=gaussian_nll" in overrides:
        described = json.loads((run / "data.json").read_text())["targets"]
        expected = float(found[0]["output_0"]) * described["spread"][0] + described["mean"][0]
        assert float(found[0]["prediction"]) == pytest.approx(expected, rel=1e-6)
