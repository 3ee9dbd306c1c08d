"""The command that evaluates a run: its metrics are those of training, on other data those of the same preparation."""

import csv
import json
import subprocess
import sys

import numpy as np
import pytest

from tests.trainer.command_line import configuration
from trainer import config, evaluate, job
from trainer.errors import CheckpointError, ConfigError, DataError

SHORT = (
    *("trainer.steps=20", "trainer.eval_every=10", "checkpoint.every=10", "trainer.compile=graph", "gradient.verify_at_start=false"),
    "trainer.steps_per_call=10",
)
WORDS = ["data=text", "data.length=8", "model=transformer", "model.width=16", "model.num_layers=1", "model.num_heads=2"]
KINDS = {
    "classes": ["model=mlp", "model.hidden=[16]", "model.batch_normalization=true", "trainer.ema_decay=0.9"],
    "real": ["data=diabetes", "loss=huber", "model=linear"],
    "likelihood": ["data=diabetes", "loss=gaussian_nll", "model=linear"],
    "one-hot": ["loss=mse", "model=linear", "data.class_weight=balanced"],
    "tokens": [*WORDS, "loss=linear_crossentropy"],
    "triplets": ["data=digit_triplets", "loss=triplet", "model=linear"],
    "lists": ["data=diabetes_lists", "loss=lambdarank", "model=linear"],
    "batches together": ["data=digit_views", "loss=infonce", "model=linear"],
    "cosines": ["loss=arcface", "model=linear"],
    "series": ["data=sunspots", "loss=soft_dtw", "model=linear"],
    "labels": ["data=digit_lines", "data.num_lines=80", "loss=ctc", "model=frames", "model.filters=[8]", "data.batch_size=8"],
    "streamed": ["data.stream=true", "model=linear"],
}
SLOW = ("lists", "batches together", "cosines", "series", "labels", "one-hot")


def trained(folder, *overrides, config_dir=None):
    assert job.run(config.load([*SHORT, f"hydra.run.dir={folder}", *overrides], config_dir)) == 0
    return folder


def rows(path):
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("kind", [pytest.param(kind, marks=pytest.mark.slow if kind in SLOW else ()) for kind in KINDS])
def test_metrics_are_the_recorded_ones_and_the_means_of_the_examples(tmp_path, capsys, kind):
    run = trained(tmp_path / "run", *KINDS[kind])
    summary = json.loads((run / "summary.json").read_text())
    assert evaluate.run([str(run), "--csv", str(tmp_path / "x.csv")]) == 0
    assert "warning" not in capsys.readouterr().out.rpartition("examples, by the model of step 20")[2]
    found = json.loads((run / "evaluation.json").read_text())
    assert (found["step"], found["is_own_evaluation_part"], found["equals_recorded"]) == (20, True, True)
    for tag, value in found["metrics"].items():
        assert value == pytest.approx(summary["final"][tag], rel=1e-6), tag
    table = rows(tmp_path / "x.csv")
    assert len(table) == found["num_examples"]
    weights = np.array([float(row.get("weight", 1)) for row in table])
    losses = np.array([float(row["loss"]) for row in table])
    assert (weights * losses).sum() / weights.sum() == pytest.approx(found["metrics"]["eval/loss"], rel=1e-5)
    assert len({row["row"] for row in table}) == len(table)
    if kind in ("classes", "cosines", "streamed"):
        assert np.mean([row["prediction"] == row["target"] for row in table]) == pytest.approx(found["metrics"]["eval/accuracy"])
    if kind in ("real", "likelihood"):
        predictions, targets = (np.array([float(row[name]) for row in table]) for name in ("prediction", "target"))
        assert np.abs(predictions - targets).mean() == pytest.approx(found["metrics"]["eval/mae"], rel=1e-5)
        assert 25 <= targets.min() <= targets.max() <= 346  # in the data's units
    if kind == "tokens":
        shares = [np.mean([row[f"prediction_{i}"] == row[f"target_{i}"] for i in range(8)]) for row in table]
        assert np.mean(shares) == pytest.approx(found["metrics"]["eval/accuracy"], abs=1e-3)  # where two are equal, neither leads
    if kind == "triplets":
        assert {f"output_{item}_{place}" for item in range(3) for place in range(16)} < table[0].keys()


def test_another_checkpoint(tmp_path):
    run = trained(tmp_path / "run", "model=linear")
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert evaluate.run([str(run), "--checkpoint", "10", "--output", str(tmp_path / "ten.json")]) == 0
    found = json.loads((tmp_path / "ten.json").read_text())
    assert found["equals_recorded"] is True
    assert found["metrics"]["eval/loss"] == pytest.approx(lines[9]["eval/loss"], rel=1e-6)
    assert not (run / "evaluation.json").exists()


@pytest.fixture
def table(tmp_path):
    rng = np.random.default_rng(0)
    x = rng.normal([3, 1000], [1, 50], [60, 2])
    y = 2 * x[:, 0] - x[:, 1] / 10 + rng.normal(size=60)
    lines = [f"{a},{b},{c}" for (a, b), c in zip(x.tolist(), y.tolist(), strict=True)]
    (tmp_path / "own.csv").write_text("a,b,y\n" + "\n".join(lines) + "\n")
    (tmp_path / "some.csv").write_text("a,b,y\n" + "\n".join(lines[30:]) + "\n")
    return tmp_path


OWN_TABLE = ("data=csv", "data.target=y", "data.targets=real", "loss=mse", "model=linear")


def test_other_data_are_prepared_as_the_runs_own(table):
    run = trained(table / "run", *OWN_TABLE, f"data.path={table / 'own.csv'}")
    (table / "own.csv").rename(table / "moved.csv")
    assert evaluate.run([str(run), f"data.path={table / 'some.csv'}", "--csv", str(table / "some_found.csv")]) == 0
    found = json.loads((run / "evaluation.json").read_text())
    assert (found["num_examples"], found["is_own_evaluation_part"], found["recorded"]) == (30, False, None)
    assert found["data"] == [f"data.path={table / 'some.csv'}"]
    assert evaluate.run([str(run), f"data.path={table / 'moved.csv'}", "--csv", str(table / "own_found.csv")]) == 0
    found = json.loads((run / "evaluation.json").read_text())
    assert (found["num_examples"], found["is_own_evaluation_part"], found["equals_recorded"]) == (12, True, True)
    own = {row["row"]: row for row in rows(table / "own_found.csv")}
    common = [(row, own[str(30 + i)]) for i, row in enumerate(rows(table / "some_found.csv")) if str(30 + i) in own]
    assert common
    for one, other in common:
        assert float(one["loss"]) == pytest.approx(float(other["loss"]), rel=1e-5)
        assert float(one["prediction"]) == pytest.approx(float(other["prediction"]), rel=1e-6)
    with pytest.raises(DataError, match=r"own\.csv can't be read"):
        evaluate.run([str(run)])


def test_data_that_have_changed_or_do_not_fit_are_refused(table):
    run = trained(table / "run", *OWN_TABLE, f"data.path={table / 'own.csv'}")
    with pytest.raises(DataError, match="there is no column 'a'; the run's features are a, b"):
        evaluate.run([str(run), "data=randhie"])
    text = (table / "own.csv").read_text()
    (table / "own.csv").write_text(text.replace(text.splitlines()[-1], "1,2,3"))
    with pytest.raises(ConfigError, match="the data are not those that the run in"):
        evaluate.run([str(run)])
    (run / "data.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"data\.json is damaged"):
        evaluate.run([str(run), f"data.path={table / 'own.csv'}"])


OWN = """
import keras


class Bottleneck(keras.Model):
    def __init__(self, num_outputs, units=4):
        super().__init__()
        self.inner = keras.layers.Dense(units, "tanh", name="inner")
        self.outer = keras.layers.Dense(num_outputs, name="outer")

    def call(self, features):
        return self.outer(self.inner(features))
"""


def test_a_model_of_ones_own_is_built_where_it_is_trusted_again(tmp_path, here, refused, capsys):
    (here / "stored_package.py").write_text(OWN)
    conf = configuration(tmp_path, model__mine="_target_: stored_package.Bottleneck\nunits: 3\n")
    own = ["--config-dir", str(conf), "trust=[stored_package]"]
    run = trained(tmp_path / "run", "data=diabetes", "loss=mse", "model=mine", "trust=[stored_package]", config_dir=conf)
    assert "type --config-dir DIR again" in refused("evaluate", str(run))
    assert "if the package stored_package is your own, type trust=[stored_package]" in refused("evaluate", str(run), *own[:2])
    assert evaluate.run([str(run), *own]) == 0
    assert json.loads((run / "evaluation.json").read_text())["equals_recorded"] is True


def test_a_secret_is_in_no_file(tmp_path, here, monkeypatch):
    (here / "secret_package.py").write_text(
        "import dataclasses\nfrom trainer.data.bundled import Diabetes\n\n\n"
        "@dataclasses.dataclass(frozen=True)\nclass Guarded(Diabetes):\n    password: str = ''\n    where: str = ''\n"
    )
    monkeypatch.setenv("MY_TOKEN", "hunter2-horse")
    conf = configuration(tmp_path, data__guarded="_target_: secret_package.Guarded\npassword: ''\nwhere: ''\n")
    own = ["data=guarded", "trust=[secret_package]"]
    run = trained(tmp_path / "run", *own, "loss=mse", "model=linear", "data.password=hunter2-horse", config_dir=conf)
    typed = ["--config-dir", str(conf), "trust=[secret_package]", "data.password=hunter2-horse", "data.where=${oc.env:MY_TOKEN}"]
    assert evaluate.run([str(run), *typed]) == 0
    found = (run / "evaluation.json").read_text()
    assert "hunter2" not in found
    assert "data.password=***" in found


def test_what_can_not_be_written_is_printed_before(tmp_path, capsys):
    run = trained(tmp_path / "run", "model=linear")
    capsys.readouterr()
    with pytest.raises(ConfigError, match=r"can't be written: .*type --output=FILE"):
        evaluate.run([str(run), "--output", str(run / "status.json" / "x.json")])
    assert "eval/accuracy" in capsys.readouterr().out


@pytest.mark.slow
def test_as_users_type_it(tmp_path):
    run = trained(tmp_path / "run", "model=linear")
    for program in (["-m", "trainer.evaluate"], ["-m", "trainer", "evaluate"]):
        done = subprocess.run([sys.executable, *program, str(run)], capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0, done.stderr
        assert done.stderr == ""
        assert "eval/accuracy" in done.stdout
        done = subprocess.run([sys.executable, *program, str(run), "--csvv=x"], capture_output=True, text=True, timeout=120, check=False)
        assert (done.returncode, done.stderr) == (2, "error: --csvv=x: there is no such option; did you mean --csv?\n")
    assert json.loads((run / "evaluation.json").read_text())["equals_recorded"] is True


@pytest.mark.parametrize(
    ("metrics", "recorded", "same"),
    [
        ({"a": 1.0}, {"a": 1.0 + 1e-8}, True),
        ({"a": 1.0}, {"a": 1.0 + 1e-6}, False),
        ({"a": float("nan")}, {"a": float("nan")}, True),
        ({"a": float("nan")}, {"a": 1.0}, False),
        ({"a": 1.0}, {}, False),
    ],
)
def test_what_counts_as_equal(metrics, recorded, same):
    assert evaluate.equal(metrics, recorded) is same
