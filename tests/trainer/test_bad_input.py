"""Bad input, of one's own and of others: what is typed, configuration files, data, checkpoints, and odd surroundings."""

import fcntl
import hashlib
import io
import itertools
import json
import os
import pickle
import pty
import re
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

import trainer
from trainer import cli, config, job, rundir, secrets, snapshots, yaml_files
from trainer.errors import CheckpointError

ROOT = Path(trainer.__file__).parents[1]
SHORT = ("trainer.steps=3", "trainer.eval_every=0", "trainer.compile=graph", "model=linear", "gradient.verify_at_start=false")
SECRET = "hunter2-correct-horse"


def command(*arguments: str, cwd: Path, program: Sequence[str] = (), **environment: str) -> subprocess.CompletedProcess[str]:
    """`python -m trainer` in a process of its own, in the folder `cwd`."""
    variables = os.environ | {"PYTHONPATH": str(ROOT)} | environment
    line = [*program, sys.executable, "-m", "trainer", *arguments]
    return subprocess.run(line, cwd=cwd, env=variables, capture_output=True, text=True, timeout=240, check=False)


def last_line(text: str) -> str:
    return text.rstrip("\n").rpartition("\n")[2]


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def files(root: Path, **texts: str) -> Path:
    """A configuration folder; loss__mine="..." becomes loss/mine.yaml."""
    for name, text in texts.items():
        path = root / "conf" / (name.replace("__", "/") + ".yaml")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root / "conf"


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty current folder."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def refused(here, capsys):
    """Runs a command in this process, and gives the line that it is refused with."""

    def refused(*arguments: str, exit_code: int = 2) -> str:
        assert cli.main(arguments) == exit_code
        errors = capsys.readouterr().err
        assert "Traceback" not in errors
        assert last_line(errors).startswith("error: ")
        return last_line(errors)

    return refused


@pytest.fixture
def no_tensorflow(tmp_path):
    """A folder for PYTHONPATH whose tensorflow and keras leave a mark when they are imported, and fail."""
    for name in ("tensorflow", "keras"):
        (tmp_path / "fake" / name).mkdir(parents=True)
        (tmp_path / "fake" / name / "__init__.py").write_text(f"open({str(tmp_path / 'imported')!r}, 'w'); raise SystemExit(99)")
    return {"PYTHONPATH": f"{tmp_path / 'fake'}{os.pathsep}{ROOT}"}


@pytest.mark.fault(rows=[7])
@pytest.mark.parametrize("where", ["read-only", "a file/run", "/proc/run", "/dev/null/run"])
def test_an_output_directory_that_cannot_be_written(here, no_tensorflow, where):
    (here / "a file").touch()
    (here / "read-only").mkdir(mode=0o555)
    if where == "read-only":
        if os.geteuid() == 0:
            pytest.skip("root writes anywhere; the other folders refuse root too")
        where = "read-only/run"
    done = command(f"hydra.run.dir='{where}'", cwd=here, **no_tensorflow)
    assert done.returncode == 2
    assert f"hydra.run.dir={where} can't be written" in last_line(done.stderr)
    assert "type hydra.run.dir=" in last_line(done.stderr)
    assert sorted(content(here)) == ["a file"]


@pytest.mark.fault(rows=[19])
def test_two_runs_at_the_same_moment_have_two_directories(here):
    line = [sys.executable, "-m", "trainer", *SHORT]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    runs = [subprocess.Popen(line, cwd=here, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) for _ in range(2)]
    assert [run.communicate(timeout=240)[1] for run in runs] == [b"", b""]
    assert [run.returncode for run in runs] == [0, 0]
    assert [json.loads(path.read_text())["state"] for path in here.glob("outputs/*/*/status.json")] == ["done", "done"]


@pytest.mark.fault(rows=[21])
@pytest.mark.parametrize(
    ("line", "answer"),
    [
        (["loss=nope"], "there is no such loss; there is adaptive_robust, "),
        (["losss=mse"], "did you mean loss?"),
        (["loss=huber", "loss.delt=1"], "did you mean loss.delta?"),
        (["loss=huber", "+loss.delt=1"], "did you mean loss.delta?"),
        (["trainer.steps=three"], "trainer.steps=three: must be a whole number >= 1, or null; type for example trainer.steps=1"),
        (["+trainer.stpes=3"], "did you mean trainer.steps?"),
        (["x=[1"], "close the bracket"),
    ],
)
def test_a_mistyped_line_is_answered_at_once(here, no_tensorflow, tmp_path, line, answer):
    before = os.times()
    done = command(*line, cwd=here, **no_tensorflow)
    after = os.times()
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert answer in done.stderr
    assert after.children_user + after.children_system - before.children_user - before.children_system < 2  # seconds of the processor
    assert not (tmp_path / "imported").exists()
    assert content(here) == {}


@pytest.mark.fault(rows=[22])
@pytest.mark.parametrize(
    ("line", "answer"),
    [
        (
            ["optimizer.learning_rate=nan"],
            "optimizer.learning_rate=nan: must be a finite number; type for example optimizer.learning_rate=0.001",
        ),
        (
            ["optimizer.learning_rate=-1"],
            "optimizer.learning_rate=-1: must be a number > 0; type for example optimizer.learning_rate=0.001",
        ),
        (["optimizer.learning_rate=1e400"], "optimizer.learning_rate=inf: must be a finite number"),
        (["data.batch_size=0"], "data.batch_size=0: must be a whole number >= 1; type for example data.batch_size=32"),
        (["data.batch_size=-3"], "data.batch_size=-3: must be a whole number >= 1"),
        (["trainer.steps=0"], "trainer.steps=0: must be a whole number >= 1"),
        (
            ["data.batch_size=100000", *SHORT],
            "data.batch_size=100000 is larger than the training part of 1438 examples: type at most data.batch_size=1438",
        ),
    ],
)
def test_numbers_beyond_their_limits(refused, here, line, answer):
    assert answer in refused(*line)
    states = [json.loads(path.read_text())["state"] for path in here.rglob("status.json")]
    assert states == (["failed"] if line[-1] == SHORT[-1] else [])


@pytest.mark.fault(rows=[22])
def test_data_without_examples(refused, here):
    (here / "empty.csv").write_text("a,y\n")
    assert "empty.csv" in refused("data=csv", "data.path=empty.csv", "data.target=y", "loss=mse", *SHORT, exit_code=5)
    np.save(here / "x.npy", np.zeros([0, 3]))
    np.save(here / "y.npy", np.zeros([0]))
    assert "there is no data" in refused("data=npy", "data.path=.", "loss=mse", *SHORT, exit_code=5)


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
    conf = files(
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
    conf = files(
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
    conf = files(tmp_path, experiment__evil=f"# @package _global_\nresume: {text}\n")
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
    conf = files(
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
    conf = files(tmp_path, config="defaults: [_self_]\nhydra:\n  searchpath: ['pkg://of_others']\n")
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
"""


@pytest.fixture
def guarded(here, tmp_path, monkeypatch):
    """Overrides that choose data of one's own with a password."""
    (here / "guarded_package.py").write_text(OWN)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setenv("DATA_TOKEN", SECRET)
    conf = files(tmp_path, data__guarded="_target_: guarded_package.Guarded\npassword: ''\noptions: {}\nwhere: ''\n")
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
    (here / "blocked").touch()  # so that its jobs end before TensorFlow
    line = ["-m", *guarded, f"data.password={SECRET}1,{SECRET}2", f"data.options={{token: {SECRET}}}", "hydra.sweep.dir=blocked"]
    done = command(*line, cwd=here)
    assert done.returncode == 1
    assert "data.password=***" in done.stdout
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
    conf = files(
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


CLOCK = """
import time
_now, _calls = time.time, 0

def _back():
    global _calls
    _calls += 1
    return _now() - 60.0 * _calls

time.time = _back
time.time_ns = lambda: int(_back() * 1e9)
"""


@pytest.mark.fault(rows=[31])
def test_odd_surroundings(tmp_path):
    """The clock goes back with every look at it, there is no locale and no home, the folder has spaces and letters beyond ASCII."""
    odd = tmp_path / "größe und 日本"
    odd.mkdir()
    (odd / "daten ü.csv").write_text("a,y\n" + "".join(f"{i},{2 * i}\n" for i in range(40)))
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(CLOCK)
    environment = {"PATH": os.environ["PATH"], "LC_ALL": "C", "LANG": "C", "PYTHONPATH": f"{tmp_path / 'site'}{os.pathsep}{ROOT}"}
    overrides = [*SHORT, "data=csv", "data.path='daten ü.csv'", "data.target=y", "data.targets=real", "loss=mse", "trainer.eval_every=1"]
    for line in (
        overrides,
        [*overrides, "hydra.run.dir='läufe/eins zwei'"],
        [*overrides, "trainer.steps=5", "hydra.run.dir='läufe/eins zwei'"],
    ):
        done = subprocess.run(
            [sys.executable, "-m", "trainer", *line], cwd=odd, env=environment, capture_output=True, timeout=240, check=False
        )
        assert (done.returncode, done.stderr) == (0, b"")
    steps = [json.loads(text)["step"] for text in (odd / "läufe" / "eins zwei" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    assert steps == [1, 2, 3, 4, 5]


@pytest.mark.fault(rows=[32])
def test_stdout_that_is_closed_or_a_pipe(here):
    closed = command(*SHORT, "hydra.run.dir=closed", cwd=here, program=["bash", "-c", 'exec "$@" >&-', "bash"])
    assert (closed.returncode, closed.stderr) == (0, "")
    assert json.loads((here / "closed" / "status.json").read_text())["state"] == "done"
    piped = command(*SHORT, "hydra.run.dir=piped", cwd=here)
    assert (piped.returncode, piped.stderr) == (0, "")
    assert "piped" in piped.stdout
    assert "\r" not in piped.stdout
    assert "\x1b" not in piped.stdout


@pytest.mark.fault(rows=[32])
def test_a_terminal_of_forty_columns(here):
    outer, inner = pty.openpty()
    fcntl.ioctl(inner, 0x5414, (24).to_bytes(2, "little") + (40).to_bytes(2, "little") + bytes(4))  # TIOCSWINSZ
    environment = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES")} | {
        "PYTHONPATH": str(ROOT),
        "TERM": "xterm",
    }
    line = [sys.executable, "-m", "trainer", *SHORT, "hydra.run.dir=run"]
    with open(here / "errors", "wb") as errors:
        process = subprocess.Popen(line, cwd=here, env=environment, stdin=inner, stdout=inner, stderr=errors)
    os.close(inner)
    shown = b""
    with os.fdopen(outer, "rb", 0) as terminal:
        try:
            while part := terminal.read(4096):
                shown += part
        except OSError:  # the other end is closed
            pass
    assert process.wait(timeout=240) == 0
    assert (here / "errors").read_bytes() == b""
    assert b"step" in shown


@pytest.mark.fault(rows=[35])
@pytest.mark.parametrize(
    "names", [["notes.txt"], ["config.yaml"], ["config.yaml", ".lock", "status.json", "checkpoints/x"], [".lock", "a/b"]]
)
def test_a_directory_of_others_is_left_alone(here, no_tensorflow, names):
    for name in names:
        (here / "theirs" / name).parent.mkdir(parents=True, exist_ok=True)
        (here / "theirs" / name).write_text("model: theirs\nseed: 1\n")
    before = content(here), (here / "theirs").stat().st_mtime_ns
    for line in (["hydra.run.dir=theirs"], ["resume=theirs"]):
        done = command(*line, cwd=here, **no_tensorflow)
        assert done.returncode == 2
        assert "not a run of this program" in last_line(done.stderr)
    assert (content(here), (here / "theirs").stat().st_mtime_ns) == before


def test_a_run_that_was_killed_early_is_ones_own(tmp_path):
    for names in ([], [".lock"], [".lock", ".config.yaml.tmp"]):
        for name in names:
            (tmp_path / name).touch()
        rundir.claim(tmp_path).release()
    (tmp_path / "config.yaml").write_text(rundir.stored_config(config.load([]).config))
    rundir.claim(tmp_path).release()
    (tmp_path / "config.yaml").write_text("")  # after a power failure
    (tmp_path / "status.json").write_text('{"state": "running", "cause": null, "exit_code": null}')
    rundir.claim(tmp_path).release()


@pytest.mark.fault(rows=[21])
@pytest.mark.parametrize("resume", ["''", "' '", "x" * 5000, "no-such-run"])
def test_a_path_to_resume_that_is_none(refused, here, resume):
    assert "type resume=auto" in refused(f"resume={resume}", exit_code=2 if "'" in resume else 4)
    assert content(here) == {}


def test_a_message_is_short_and_harmless_to_a_terminal(refused):
    said = refused(f"loss='\x1b[31m{'x' * 2000}'")
    assert said.isprintable()
    assert "\\x1b[31m" in said
    assert len(said) < 1000


def test_a_job_is_stopped_where_tensorflow_would_be(monkeypatch, here):
    monkeypatch.setattr(job, "_train", lambda *_: (0, "finished"))
    assert cli.main(["hydra.run.dir=run"]) == 0
    (here / "run" / "status.json").write_text("{")  # damaged: says nothing
    assert cli.main(["hydra.run.dir=run"]) == 0


def test_every_test_that_the_page_on_security_names_is_there():
    named = set(re.findall(r"`(test_\w+)`", (ROOT / "docs" / "security.md").read_text(encoding="utf-8")))
    texts = [path.read_text(encoding="utf-8") for path in Path(__file__).parent.glob("test_*.py")]
    assert len(named) > 20
    assert [name for name in named if not any(f"def {name}(" in text for text in texts)] == []
