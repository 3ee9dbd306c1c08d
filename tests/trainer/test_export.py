"""The command that writes a run's model alone: read again without this program, it gives the same."""

import importlib.util
import json
import shutil
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.trainer.command_line import configuration
from trainer import config, export, exported, job, predict, snapshots
from trainer.errors import ConfigError

SHORT = (
    "trainer.steps=20",
    "trainer.eval_every=10",
    "trainer.compile=graph",
    "gradient.verify_at_start=false",
    "trainer.steps_per_call=10",
)
WORDS = ["data=text", "data.length=8", "model=transformer", "model.width=16", "model.num_layers=1", "model.num_heads=2"]
KINDS = {
    "images": ["model=cnn", "model.filters=[4]", "model.dense=8", "model.dropout=0.2"],
    "table": ["data=diabetes", "loss=huber", "model=mlp", "model.hidden=[8]", "model.dropout=0.5", "model.batch_normalization=true"],
    "likelihood": ["data=engel", "loss=gaussian_nll", "model=linear"],
    "tokens": [*WORDS, "loss=linear_crossentropy", "model.dropout=0.1"],
    "logits of tokens": [*WORDS, "loss=softmax_crossentropy"],
    "triplets": ["data=digit_triplets", "loss=triplet", "model=mlp", "model.hidden=[8]", "model.dropout=0.5"],
    "pairs": ["data=diabetes_pairs", "loss=pairwise_logistic", "model=linear"],
    "cosines": ["loss=arcface", "model=linear"],
    "ball": ["data=digit_tree", "loss=poincare", "model=linear"],
    "series": ["data=sunspots", "loss=soft_dtw", "model=linear"],
    "averaged": ["model=linear", "trainer.ema_decay=0.9"],
    "half precision": ["model=mlp", "model.hidden=[8]", "precision=mixed_bfloat16"],
    "not standardized": ["model=linear", "data.standardize=false"],
}
HAS_ONNX = all(importlib.util.find_spec(name) for name in ("tf2onnx", "onnx", "onnxruntime"))


def trained(folder, *overrides, config_dir=None):
    assert job.run(config.load([*SHORT, f"hydra.run.dir={folder}", *overrides], config_dir)) == 0
    return folder


@pytest.fixture
def in_this_process(monkeypatch):
    """Models are read again here: quick, and as far from this program as Keras' registry lets them be."""

    def read(form, path, rows, folder):
        registered = keras.saving.get_custom_objects().copy()
        keras.saving.get_custom_objects().clear()
        try:
            if form == "keras":
                model = keras.models.load_model(path, compile=False)
            else:
                loaded = tf.saved_model.load(str(path))
                model = loaded.serve
            return np.concatenate([np.asarray(model(tf.constant(part))) for part in (rows[:1], rows[1:]) if len(part)])
        finally:
            keras.saving.get_custom_objects().update(registered)

    monkeypatch.setattr(exported, "_read_again", read)


@pytest.mark.parametrize("kind", [pytest.param(kind, marks=pytest.mark.slow if i > 4 else ()) for i, kind in enumerate(KINDS)])
def test_what_is_written_gives_the_same(tmp_path, in_this_process, kind):
    run = trained(tmp_path / "run", *KINDS[kind])
    assert export.run([str(run), "format=keras"]) == 0
    path = run / "export" / "step-00000020.keras"
    told = json.loads((run / "export" / "step-00000020.keras.json").read_text())
    assert told["checked"]["read_again_in_a_new_process"]["to_the_bit"] is True
    assert told["checked"]["beside_the_run"]["largest_difference"] <= 1e-5
    assert sorted(entry.name for entry in path.parent.iterdir()) == [path.name, f"{path.name}.json"]
    model = keras.models.load_model(path, compile=False)
    assert predict.run([str(run), "--output", str(tmp_path / "p.npz")]) == 0
    predicted = dict(np.load(tmp_path / "p.npz"))
    source = job_source(run)
    features = source.features[predicted["row"]]
    if kind in ("triplets", "pairs"):
        features = features.reshape(-1, *features.shape[2:])
    found = np.asarray(model(features, training=False))
    expected = predicted["prediction" if kind in ("table", "series") else "output"]
    tolerance = 2e-2 if kind == "half precision" else 1e-5
    np.testing.assert_allclose(found.ravel(), expected.ravel(), rtol=tolerance, atol=tolerance * np.abs(expected).max())
    if kind == "table":
        assert told["outputs"]["are"] == "predictions, in the units of the data's targets"
        assert told["inputs"]["names"][:2] == ["age", "sex"]
        assert found.mean() > 20
    if kind == "images":
        assert told["inputs"]["shape"] == [None, 8, 8, 1]
        assert told["inputs"]["standardized_inside_by"]["spread"][0] > 1
    if kind == "likelihood":
        assert told["outputs"]["target_spread"][0] > 1
    if kind == "tokens":
        assert len(told["inputs"]["tokens"]) == found.shape[-1]


def test_half_precision_may_round_elsewhere_in_a_graph(tmp_path, monkeypatch):
    run = trained(tmp_path / "run", *KINDS["half precision"])
    given = []

    def off(share):
        def read(form, path, rows, folder):
            outputs = given[-1]
            return outputs * (1 + share)

        return read

    difference = exported._difference
    monkeypatch.setattr(exported, "_difference", lambda found, expected: given.append(expected) or difference(found, expected))
    monkeypatch.setattr(exported, "_read_again", off(0.01))
    assert export.run([str(run), "format=savedmodel"]) == 0
    with pytest.raises(ConfigError, match=r"differ by 1\.0e-02 of the largest one \(at most 1e-06\)"):
        export.run([str(run), "format=keras"])
    shutil.rmtree(run / "export")
    monkeypatch.setattr(exported, "_read_again", off(0.1))
    with pytest.raises(ConfigError, match=r"differ by 1\.0e-01 of the largest one \(at most 0\.03\)"):
        export.run([str(run), "format=savedmodel"])


def test_a_model_that_has_diverged_is_not_written(tmp_path):
    run = trained(tmp_path / "run", "data=diabetes", "loss=mse", "model=linear")
    found = snapshots.load(run / "checkpoints" / "step-00000020")
    weights = next(name for name, array in found.arrays.items() if array.dtype.kind == "f" and array.ndim == 2)
    found.arrays[weights] = np.full_like(found.arrays[weights], np.inf)
    shutil.rmtree(run / "checkpoints" / "step-00000020")
    snapshots.save(run / "checkpoints", found, 9, None)
    with pytest.raises(ConfigError, match=r"the outputs of the model are not finite .* type --checkpoint STEP of an earlier one"):
        export.run([str(run), "format=keras"])


def test_the_hint_for_a_run_that_is_not_there_has_the_format():
    with pytest.raises(ConfigError, match=r"there is no run in nowhere: type python -m trainer\.export \S+ format=onnx"):
        export.run(["nowhere", "format=onnx"])


def job_source(run):
    from trainer import build, stored

    return build.build_source(stored.job_of(run, [], None))[0].load()


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    return trained(tmp_path_factory.mktemp("table") / "run", *KINDS["table"])


@pytest.mark.slow
@pytest.mark.parametrize(
    "form", ["keras", "savedmodel", pytest.param("onnx", marks=pytest.mark.skipif(not HAS_ONNX, reason="needs the extra onnx"))]
)
def test_a_new_process_reads_it(table, tmp_path, capsys, form):
    path = tmp_path / f"model{ {'keras': '.keras', 'onnx': '.onnx'}.get(form, '') }"
    assert export.run([str(table), f"format={form}", "--output", str(path), "--checkpoint", "best"]) == 0
    assert "a new process, without this program, read it and gave the same outputs for 64 examples" in capsys.readouterr().out
    assert path.exists()
    told = json.loads((tmp_path / f"{path.name}.json").read_text())
    assert told["checked"]["read_again_in_a_new_process"]["largest_difference"] <= (1e-5 if form == "onnx" else 1e-6)
    with pytest.raises(ConfigError, match="is there already: remove it"):
        export.run([str(table), f"format={form}", "--output", str(path)])


@pytest.mark.slow
@pytest.mark.skipif(not HAS_ONNX, reason="needs the extra onnx")
@pytest.mark.parametrize("kind", ["images", "triplets", "cosines", "series"])
def test_onnx_of_many_models(tmp_path, kind):
    run = trained(tmp_path / "run", *KINDS[kind])
    assert export.run([str(run), "format=onnx"]) == 0
    assert (run / "export" / "step-00000020.onnx").is_file()


@pytest.mark.slow
@pytest.mark.skipif(not HAS_ONNX, reason="needs the extra onnx")
def test_an_operation_that_onnx_lacks_is_said(tmp_path):
    """Keras' exact gelu is made of Erfc, which tf2onnx hands on as it is."""
    run = trained(tmp_path / "run", *KINDS["tokens"])
    with pytest.raises(ConfigError, match=r"format=onnx: .*: ONNX has no operation Erfc: type another format"):
        export.run([str(run), "format=onnx"])
    assert list((run / "export").iterdir()) == []


def test_a_file_that_gives_something_else_is_not_left(table, tmp_path, monkeypatch):
    monkeypatch.setattr(exported, "_read_again", lambda form, path, rows, folder: np.ones([len(rows), 1], np.float32))
    with pytest.raises(ConfigError, match=r"read again, the model gives other outputs: .* nothing is left of it"):
        export.run([str(table), "format=keras", "--output", str(tmp_path / "out" / "x.keras")])
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.slow
def test_a_file_that_can_not_be_read_is_not_left(table, tmp_path, monkeypatch):
    monkeypatch.setattr(exported, "_write", lambda model, form, path: path.write_bytes(b"no model"))
    with pytest.raises(ConfigError, match="the model can't be read again, and nothing is left of it: "):
        export.run([str(table), "format=keras", "--output", str(tmp_path / "x.keras")])
    assert list(tmp_path.iterdir()) == []


def test_a_model_of_ones_own(tmp_path, here, in_this_process, refused):
    (here / "exported_package.py").write_text(
        "import keras\nimport tensorflow as tf\n\n\n"
        "class Bent(keras.Model):\n"
        "    def __init__(self, num_outputs):\n        super().__init__()\n        self.outer = keras.layers.Dense(num_outputs)\n\n"
        "    def call(self, features):\n        return self.outer(tf.math.asinh(features))\n\n\n"
        "def plain(input_shape, num_outputs):\n"
        "    return keras.Sequential([keras.Input(input_shape), keras.layers.Dense(3, 'tanh'), keras.layers.Dense(num_outputs)])\n"
    )
    conf = configuration(tmp_path, model__bent="_target_: exported_package.Bent\n", model__plain="_target_: exported_package.plain\n")
    own = ["--config-dir", str(conf), "trust=[exported_package]"]
    data = ["data=diabetes", "loss=mse"]
    run = trained(tmp_path / "bent", *data, "model=bent", "trust=[exported_package]", config_dir=conf)
    assert "exported_package.Bent), which a .keras file only names: type format=savedmodel" in refused(
        "export", str(run), "format=keras", *own
    )
    assert "type trust=[exported_package]" in refused("export", str(run), "format=savedmodel", *own[:2])
    assert export.run([str(run), "format=savedmodel", *own]) == 0
    run = trained(tmp_path / "plain", *data, "model=plain", "trust=[exported_package]", config_dir=conf)
    assert export.run([str(run), "format=keras", *own]) == 0


def test_onnx_without_its_packages_is_refused(table, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "tf2onnx" else find(name, *rest))
    with pytest.raises(ConfigError, match=r"format=onnx needs the packages .*tf2onnx.*pip install 'gradtrain\[onnx\]'"):
        export.run([str(table), "format=onnx"])


def test_onnx_in_half_precision_is_refused(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: True)
    with pytest.raises(ConfigError, match="takes models of precision=float32; this one has mixed_bfloat16"):
        exported.check_possible("onnx", "mixed_bfloat16")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], r"type one format, out of format=keras, format=savedmodel, format=onnx"),
        (["fromat=keras"], r"did you mean format\?"),
        (["format=kears"], r"there is no such format; did you mean keras\?"),
        (["format=keras", "format=onnx"], "type one format"),
        (["format=keras", "loss=mse"], "only data=CHOICE"),
        (["format=keras", "--output", "x.h5"], r"must end in \.keras; type --output x\.keras"),
    ],
)
def test_what_is_typed_wrongly_is_refused(table, words, said):
    with pytest.raises(ConfigError, match=said):
        export.run([str(table), *words])


def test_rows_of_other_data_may_be_those_that_it_is_tried_on(table, tmp_path, in_this_process):
    x = np.random.default_rng(0).normal(size=[5, 10])
    np.savez(tmp_path / "rows.npz", x=x)
    typed = ["data=npz", f"data.path={tmp_path / 'rows.npz'}"]
    assert export.run([str(table), "format=keras", *typed, "--output", str(tmp_path / "x.keras")]) == 0
    assert json.loads((tmp_path / "x.keras.json").read_text())["checked"]["num_rows"] == 5


def test_a_folder_that_is_a_link_is_not_written_to(table, tmp_path):
    (tmp_path / "mine").mkdir()
    (table / "export").symlink_to(tmp_path / "mine")
    try:
        with pytest.raises(ConfigError, match="is a link: type --output PATH"):
            export.run([str(table), "format=keras"])
    finally:
        (table / "export").unlink()
    assert list((tmp_path / "mine").iterdir()) == []


@pytest.mark.slow
def test_as_users_type_it(table, tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "trainer", "export", str(table), "format=savedmodel", "--output", str(tmp_path / "x")],
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "gave the same outputs for 64 examples" in done.stdout
    assert "Traceback" not in done.stderr
