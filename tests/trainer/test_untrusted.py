"""What others may have made: configurations, run directories and data that must call, read and tell nothing."""

import hashlib
import io
import itertools
import json
import os
import pickle
import re
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

from tests.trainer.command_line import SHORT, command, configuration, content, last_line
from tests.trainer.processes import ROOT
from trainer import cli, config, rundir, secrets, snapshots, yaml_files
from trainer.errors import CheckpointError

SECRET = "hunter2-correct-horse"

# What hostile configurations have named, and paths by which the same is reached through another module.
TARGETS = [
    *("os.system", "subprocess.run", "numpy.load", "builtins.eval", "tensorflow.io.write_file", "asyncio.create_subprocess_shell"),
    *("distutils.spawn.spawn", "tf.io.gfile.rmtree", "tensorflow.io.gfile.rmtree", "logging.os.system", "losses.base.pathlib.Path.touch"),
    *(
        "trainer.config.os.system",
        "trainer.data.files.Path.touch",
        "keras.models.load_model",
        "keras.utils.get_file",
        "keras.layers.Lambda",
    ),
    *("losses.external.special.os.system", "trainer.models.keras.saving.load_model", "trainer.data.bundled.Path", "posix.system"),
]
CALL = "command: touch canary\ncmd: touch canary\nargs: [touch, canary]\npath: canary\nfile: canary\nfilename: canary\n"


@pytest.mark.fault(rows=[24])
@pytest.mark.parametrize("target", TARGETS)
def test_what_is_on_no_list_is_never_called(refused, here, tmp_path, target):
    whole = "# @package _global_\n"
    conf = configuration(
        tmp_path,
        loss__evil=f"_target_: {target}\n{CALL}",
        model__evil=f"_target_: trainer.models.mlp\nhidden:\n- _target_: {target}\n",
        experiment__evil=f"{whole}optimizer:\n  _target_: {target}\n",
        experiment__through=f"{whole}resume: {target}\nloss:\n  _target_: ${{resume}}\n",
        experiment__trusting=f"{whole}trust: [{target.split('.')[0]}]\nloss:\n  _target_: {target}\n",
        experiment__callback=f"{whole}hydra:\n  callbacks:\n    x:\n      _target_: {target}\n",
    )
    of_files = ["--config-dir", str(conf)]
    lines = [["loss=evil"], ["model=evil"], ["experiment=evil"], ["experiment=through"], ["experiment=trusting"], ["experiment=callback"]]
    for line in lines:
        assert "is refused" in (said := refused(*of_files, *line)) or "must be written out" in said or "command line alone" in said
    assert f"loss._target_={target} is refused" in refused(f"loss._target_={target}")
    assert "is refused" in refused(f"+loss.inner={{_target_: {target}, command: touch canary}}")
    assert "must be written out" in refused(f'loss._target_="${{oc.decode:{target}}}"')
    assert content(here) == {}


@pytest.mark.fault(rows=[24])
@pytest.mark.parametrize("package", ["os", "builtins", "subprocess", "posix", "keras", "tensorflow", "numpy", "losses", "trainer", "hydra"])
def test_trust_is_for_packages_of_ones_own(refused, package):
    assert "only a package of your own can be trusted" in refused(f"trust=[{package}]")


@pytest.mark.fault(rows=[24])
def test_keras_builds_nothing_for_a_shipped_model(refused, tmp_path):
    called = "{class_name: function, config: system, module: os, registered_name: system}"
    conf = configuration(
        tmp_path,
        model__section=f"_target_: trainer.models.mlp\nactivation: {called}\n",
        model__list=f"_target_: trainer.models.mlp\nhidden: [{called}]\n",
        model__optimizer=f"_target_: keras.applications.MobileNetV2\nweights: {called}\n",
    )
    for name in ("section", "list", "optimizer"):
        assert "takes numbers, text and lists" in refused("--config-dir", str(conf), f"model={name}")


@pytest.mark.fault(rows=[24])
@pytest.mark.parametrize(
    "text", ["!!python/object/apply:os.system ['touch canary']", "!!python/name:os.system ''", "!!python/module:os ''"]
)
def test_yaml_makes_no_objects(refused, here, tmp_path, text):
    conf = configuration(tmp_path, experiment__evil=f"# @package _global_\nresume: {text}\n")
    assert "could not determine a constructor" in refused("--config-dir", str(conf), "experiment=evil")
    assert content(here) == {}


@pytest.fixture
def run(tmp_path):
    """A run's directory, as one that came from others may be; gives a function that replaces text of its config.yaml."""
    folder = tmp_path / "run"
    stored = rundir.stored_config(config.load(SHORT).config)

    def replaced(before: str, after: str) -> Path:
        folder.mkdir()
        assert before in stored
        (folder / "config.yaml").write_text(stored.replace(before, after))
        (folder / "metrics.jsonl").write_text('{"step": 1}\n')
        return folder

    return replaced


@pytest.mark.fault(rows=[24])
@pytest.mark.parametrize(
    ("before", "after", "answer"),
    [
        (
            "_target_: losses.softmax_crossentropy.SoftmaxCrossentropy",
            "_target_: os.system",
            "another configuration (loss._target_: os.system",
        ),
        ("resume: auto", "resume: !!python/object/apply:os.system ['touch canary']", "config.yaml of the run is damaged"),
        ("seed: 0\nresume", "seed: ${oc.env:HOME}\nresume", "another configuration (seed: ${oc.env:HOME}"),
        ("steps: 3", "steps: [", "config.yaml of the run is damaged"),
    ],
)
def test_a_runs_stored_configuration_is_compared_and_never_built(refused, here, run, before, after, answer):
    folder = run(before, after)
    assert answer in refused(*SHORT, f"hydra.run.dir={folder}", exit_code=4 if "damaged" in answer else 2)
    assert content(here) == {}


@pytest.mark.fault(rows=[24])
def test_a_runs_stored_trust_counts_nothing(refused, here, run):
    (here / "of_others.py").write_text("open('canary', 'w')\nclass Evil: pass\n")
    folder = run("trust: []", "trust:\n- of_others")
    assert "if the package of_others is your own" in refused("loss._target_=of_others.Evil", f"hydra.run.dir={folder}")
    assert not (here / "canary").exists()


@pytest.mark.fault(rows=[25])
def test_files_outside_of_the_folder_are_not_read(refused, tmp_path):
    conf = configuration(
        tmp_path,
        loss__mine="_target_: losses.mse.MSE\n",
        experiment__evil="# @package _global_\ndefaults:\n- override /loss: ../../evil\n",
        experiment__relative="# @package _global_\ndefaults:\n- ../../evil\n",
    )
    (tmp_path / "evil.yaml").write_text("_target_: losses.mse.MSE\n")
    of_files = ["--config-dir", str(conf)]
    for line in (["loss=../../evil"], ["loss='../../evil'"], [f"loss={tmp_path}/evil"], ["experiment=evil"], ["experiment=relative"]):
        assert "is refused" in refused(*of_files, *line)


@pytest.mark.fault(rows=[25])
def test_a_search_path_of_files_is_refused(refused, here, tmp_path):
    (here / "of_others").mkdir()
    (here / "of_others" / "__init__.py").write_text("open('canary', 'w')\n")
    conf = configuration(tmp_path, config="defaults: [_self_]\nhydra:\n  searchpath: ['pkg://of_others']\n")
    assert "hydra.searchpath is refused" in refused("--config-dir", str(conf))
    assert not (here / "canary").exists()


@pytest.mark.fault(rows=[25])
@pytest.mark.parametrize("name", ["../x", "a/../../x", "'a\0b'", "'a\nb'", "'\x1b[31m'", "''", "'~nobody-of-this-name/x'"])
def test_names_of_runs(refused, here, name):
    for key in ("hydra.run.dir", "hydra.sweep.dir"):
        assert key in refused(f"{key}={name}", *(["-m"] if key == "hydra.sweep.dir" else []))
    assert content(here.parent) == {}


OWN = """
from trainer.data.bundled import Digits
import dataclasses

@dataclasses.dataclass(frozen=True)
class Guarded(Digits):
    password: str = ""
    options: dict = dataclasses.field(default_factory=dict)
    where: str = ""

    def __post_init__(self):
        if self.where == "nowhere":
            raise ValueError(f"{self.password} does not open {self.options}")

    def load(self):
        if self.where == "lost":
            raise RuntimeError(f"{self.password} was no help")
        return super().load()
"""


@pytest.fixture
def guarded(here, tmp_path, monkeypatch):
    """Overrides that choose data of one's own with a password."""
    (here / "guarded_package.py").write_text(OWN)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setenv("DATA_TOKEN", SECRET)
    conf = configuration(tmp_path, data__guarded="_target_: guarded_package.Guarded\npassword: ''\noptions: {}\nwhere: ''\n")
    yield ["--config-dir", str(conf), "data=guarded", "trust=[guarded_package]", *SHORT]
    sys.modules.pop("guarded_package", None)


@pytest.mark.fault(rows=[26])
@pytest.mark.parametrize(
    "overrides",
    [
        ["data.where=${oc.env:DATA_TOKEN}"],
        ['data.where="${ oc.env: DATA_TOKEN }/x"'],
        ["\"data.where='${oc.env:DATA_TOKEN}'\"".strip('"')],
        ['data.where="${oc.${data.password}:DATA_TOKEN}"', "data.password=env"],
        [f"data.password={SECRET}", "data.where=${data.password}"],
        [f"data.options={{token: {SECRET}, inner: {{api_key: {SECRET}}}}}"],
        [f"data.options={{secret: [{SECRET}]}}"],
    ],
)
def test_a_runs_files_hold_no_secret(guarded, here, overrides):
    assert cli.main([*guarded, *overrides, "hydra.run.dir=run"]) == 0
    for name, found in content(here / "run").items():
        assert SECRET not in name
        assert SECRET.encode() not in found, name
    assert (here / "run" / "checkpoints").exists()


@pytest.mark.fault(rows=[26])
def test_a_failed_runs_status_holds_no_secret(guarded, refused, here):
    line = [*guarded, "data.password=${oc.env:DATA_TOKEN}", f"data.options={{token: {SECRET}}}", "data.where=nowhere", "hydra.run.dir=run"]
    assert SECRET not in refused(*line)
    status = json.loads((here / "run" / "status.json").read_text())
    assert status["state"] == "failed"
    assert status["cause"].startswith("data=guarded: *** does not open")
    assert [name for name, found in content(here / "run").items() if SECRET.encode() in found] == []


@pytest.mark.fault(rows=[26])
def test_a_secret_names_no_directory_however_it_is_spelt(refused, here, monkeypatch):
    monkeypatch.setenv("DATA_TOKEN", SECRET)
    spelt = [
        "${oc.env:DATA_TOKEN}",
        "\"${oc.env:'DATA_TOKEN'}\"",
        '"${ oc.env:DATA_TOKEN}"',
        '"${oc.env:${resume}}"',
        '"${oc.${resume}:DATA_TOKEN}"',
    ]
    for text, resume in zip(spelt, ["auto", "auto", "auto", "DATA_TOKEN", "env"], strict=True):
        said = refused(f"hydra.run.dir={text}", f"resume={resume}")
        assert "would show the value of a secret" in said
        assert SECRET not in said
    assert content(here) == {}


@pytest.mark.fault(rows=[26])
def test_a_sweeps_names_and_table_hold_no_secret(guarded, here):
    line = ["-m", *guarded, "data.where=lost", f"data.password={SECRET}1,{SECRET}2", f"data.options={{token: {SECRET}}}"]
    done = command(*line, cwd=here)
    assert done.returncode == 1
    assert "data.password=***" in done.stdout
    assert SECRET not in done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.fault(rows=[26])
def test_what_is_written_beside_a_sweeps_directories_holds_no_secret(guarded, here):
    line = ["-m", *guarded, f"data.password={SECRET}", "data.where=lost", "seed=1,2", "sweep.parallel=2", "hydra.sweep.dir=jobs"]
    done = command(*line, cwd=here)
    assert done.returncode == 1
    assert done.stderr.count("RuntimeError: *** was no help") == 2
    logs = list((here / "jobs").glob("*.log"))
    assert len(logs) == 2
    assert all("RuntimeError: *** was no help" in log.read_text() for log in logs)
    assert SECRET.encode() not in b"".join(content(here / "jobs").values())
    assert SECRET not in done.stdout + done.stderr


def test_overrides_are_masked_where_a_secret_key_stands():
    for override in ("+data.password=x", "data={path: a, token: x}", "data.options={inner: {'api_key': x}}", "a.credentials=[x]"):
        assert secrets.masked(override) == override.partition("=")[0] + "=***"
    for override in ("data.path=${oc.env:MY_TOKEN}", "data.path=tokens.csv", "model.hidden=[1,2]", "data={path: x}", "seed"):
        assert secrets.masked(override) == override


def test_a_number_of_tokens_is_no_secret():
    assert not secrets.is_hidden("num_tokens", 128)
    assert secrets.is_hidden("token", "x")
    assert secrets.is_hidden("password", 1234)


class Evil:
    """Touches a canary when it is unpickled."""

    def __reduce__(self):
        return Path("canary").touch, ()


@pytest.mark.fault(rows=[27])
def test_pickled_data_are_refused(refused, here):
    np.save(here / "x.npy", np.ones([20, 3]))
    np.save(here / "y.npy", np.array([Evil()] * 20), allow_pickle=True)
    np.savez(here / "data.npz", x=np.ones([20, 3]), y=np.array([Evil()] * 20))
    (here / "plain.npy").write_bytes(pickle.dumps(Evil()))
    lines = [
        ["data=npy", "data.path=."],
        ["data=npy", "data.path=.", "data.target=plain.npy"],
        ["data=npy", "data.path=.", "data.features=plain.npy"],
        ["data=npz", "data.path=data.npz"],
        ["data=npz", "data.path=plain.npy"],
    ]
    for line in lines:
        assert "never unpickled" in refused(*line, "loss=mse", *SHORT, exit_code=5)
    assert not (here / "canary").exists()


@pytest.mark.fault(rows=[27])
def test_a_crafted_keras_file_is_never_opened(refused, here):
    config_of_model = {"module": "builtins", "class_name": "function", "config": "exec", "registered_name": "exec"}
    with zipfile.ZipFile(here / "evil.keras", "w") as archive:
        archive.writestr("config.json", json.dumps(config_of_model))
        archive.writestr("metadata.json", "{}")
        archive.writestr("x.npy", pickle.dumps(Evil()))
    member = ["data=npz", "data.path=evil.keras", "data.features=config.json", "data.target=config.json"]
    assert "is no array" in refused(*member, "loss=mse", *SHORT, exit_code=5)
    for line in (["data=npz", "data.path=evil.keras"], ["data=npy", "data.path=.", "data.features=evil.keras", "data.target=evil.keras"]):
        refused(*line, "loss=mse", *SHORT, exit_code=5)
    assert "there is no run in" in refused("resume=evil.keras", exit_code=4)
    for target in ("keras.models.load_model", "keras.saving.load_model"):
        assert "is refused" in refused(f"model._target_={target}", "+model.filepath=evil.keras")
    assert not (here / "canary").exists()


@pytest.mark.fault(rows=[27])
def test_a_crafted_checkpoint_is_never_unpickled(here):
    snapshots.save(here, snapshots.Snapshot(1, {"w": np.ones(3)}, {}), keep=1, best_step=None)
    (folder,) = here.glob("step-*")
    evil = io.BytesIO()
    np.savez(evil, w=np.array([Evil()]))
    (folder / "arrays.npz").write_bytes(evil.getvalue())
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest |= {"size": len(evil.getvalue()), "sha256": hashlib.sha256(evil.getvalue()).hexdigest()}
    del manifest["manifest_sha256"]
    (folder / "manifest.json").write_text(json.dumps(manifest | {"manifest_sha256": snapshots._digest(manifest)}))
    with pytest.raises(CheckpointError, match="is damaged: ValueError: Object arrays cannot be loaded"):
        snapshots.load(folder)
    assert not (here / "canary").exists()


@pytest.mark.fault(rows=[28])
def test_a_large_configuration(here, no_tensorflow, tmp_path):
    whole = "# @package _global_\n"
    aliases = "a: &a [x,x,x,x,x,x,x,x,x,x]\n" + "".join(
        f"{new}: &{new} [{','.join([f'*{old}'] * 10)}]\n" for old, new in itertools.pairwise("abcdefghi")
    )
    conf = configuration(
        tmp_path,
        experiment__large=whole + "\n".join(f"key{number}: {number}" for number in range(700_000)),
        other__large="x: 1\n" * 2_000_000,
        experiment__unlisted=whole + "defaults: [/other/large]\n",
        experiment__aliases=whole + aliases,
        experiment__deep=whole + "resume: " + "[" * 100_000,
    )
    lines = {"large": "bytes", "unlisted": "bytes", "aliases": "aliases", "deep": "recursion"}
    for name, word in lines.items():
        before = os.times()
        done = command("--config-dir", str(conf), f"experiment={name}", cwd=here, **no_tensorflow)
        after = os.times()
        assert done.returncode == 2
        assert word in last_line(done.stderr)
        assert after.children_user + after.children_system - before.children_user - before.children_system < 2  # seconds of the processor
    assert content(here) == {}


def test_values_are_counted_with_aliases_written_out():
    assert yaml_files.num_values(b"{a: 1, b: [2, 3]}") == 7
    assert yaml_files.num_values(b"a: &a [1, 2]\nb: *a\nc: *a\n") == 1 + 3 + 3 * 3  # the section, its keys, three lists of three
    assert yaml_files.num_values(b"a: &a [*a]\n") == 4
    assert yaml_files.num_values(b"a: [1") >= 0


def test_every_test_that_the_page_on_security_names_is_there():
    named = set(re.findall(r"`(test_\w+)`", (ROOT / "docs" / "security.md").read_text(encoding="utf-8")))
    texts = [path.read_text(encoding="utf-8") for path in Path(__file__).parent.glob("test_*.py")]
    assert len(named) > 20
    assert [name for name in named if not any(f"def {name}(" in text for text in texts)] == []
