"""What a command on a stored run reads of its directory: job, checkpoint, records; and how it writes."""

import json
import os

import numpy as np
import pytest

from trainer import config, evaluate, job, snapshots, stored
from trainer.errors import CheckpointError, ConfigError

SHORT = (
    "trainer.steps=20",
    "trainer.eval_every=10",
    "checkpoint.every=5",
    "checkpoint.keep=3",
    "gradient.verify_at_start=false",
    "model=linear",
)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained") / "run"
    assert job.run(config.load([*SHORT, "trainer.compile=graph", "seed=3", f"hydra.run.dir={folder}"])) == 0
    return folder


@pytest.fixture
def run(trained, tmp_path):
    """A copy, to be changed."""
    import shutil

    return shutil.copytree(trained, tmp_path / "run")


def read(*arguments):
    return stored.read(stored.parser("command").parse_intermixed_args(list(map(str, arguments))), "command")


def test_the_job_is_what_the_run_was_asked_for(trained):
    found = read(trained)
    assert found.job.config.seed == 3
    assert found.job.choices["model"] == "linear"
    assert found.other is None
    assert found.snapshot.step == 20


def test_other_data_change_the_data_alone(trained):
    found = read(trained, "data=npz", "data.path=x.npz", "data.batch_size=7")
    assert found.given.choices["data"] == "npz"
    assert found.given.config.data.path == "x.npz"
    assert (found.given.config.data.batch_size, found.given.config.seed) == (7, 3)
    assert found.typed == ["data=npz", "data.path=x.npz", "data.batch_size=7"]


def test_keys_of_the_runs_own_data_are_no_keys_of_others(tmp_path):
    (tmp_path / "overrides.txt").write_text("data=csv\ndata.path=a.csv\ndata.target=y\ndata.batch_size=9\nloss=mse\n")
    own = stored.job_of(tmp_path, [], None)
    assert stored.job_of(tmp_path, ["data.path=b.csv"], None, own.choices).config.data.target == "y"
    other = stored.job_of(tmp_path, ["data=diabetes"], None, own.choices)
    assert (other.choices["data"], other.config.data.batch_size) == ("diabetes", 9)


def test_a_csv_file_whose_targets_are_not_read_needs_none(trained):
    options = stored.parser("command").parse_intermixed_args([str(trained), "data=csv", "data.path=x.csv"])
    assert stored.read(options, "command", needs_targets=False).given.config.data.path == "x.csv"
    with pytest.raises(ConfigError, match=r"data\.target is required"):
        stored.read(options, "command")


def test_a_key_of_other_data_without_their_name(trained):
    with pytest.raises(ConfigError, match=r"data=digits has no such key.*other ones are typed with data=CHOICE too"):
        read(trained, "data.path=x.csv")


def test_what_is_read_is_not_written_over(run, tmp_path):
    (tmp_path / "new.csv").write_text("a\n1\n")
    (tmp_path / "arrays").mkdir()
    (tmp_path / "arrays" / "x.npy").touch()
    found = read(run, "data=npz", f"data.path={tmp_path / 'new.csv'}")
    folder = read(run, "data=npy", f"data.path={tmp_path / 'arrays'}")
    for path, given in (
        (tmp_path / "new.csv", found),
        (run / ".." / "new.csv", found),
        (run / "metrics.jsonl", found),
        (tmp_path / "arrays" / "x.npy", folder),
    ):
        with pytest.raises(ConfigError, match=r"would be overwritten: type --csv=FILE, another one"):
            stored.check_output(path, "--csv", given)
    for path in (run / "evaluation.json", tmp_path / "other.csv"):
        stored.check_output(path, "--csv", found)


@pytest.mark.parametrize(("which", "step"), [("latest", 20), ("10", 10), ("15", 15)])
def test_a_checkpoint_is_chosen(trained, which, step):
    assert stored.checkpoint(trained, which).step == step


def test_the_best_checkpoint(run):
    found = snapshots.load(run / "checkpoints" / "step-00000020")
    found.state["loop"]["best"] = {"step": 10, "eval/loss": 0.1}
    for path in (run / "checkpoints").glob("step-00000020/*"):
        path.unlink()
    (run / "checkpoints" / "step-00000020").rmdir()
    snapshots.save(run / "checkpoints", found, 9, 10)
    assert stored.checkpoint(run, "best").step == 10
    assert stored.checkpoint(run, "latest").step == 20
    os.truncate(run / "checkpoints" / "step-00000010" / "arrays.npz", 9)
    with pytest.raises(CheckpointError, match=r"step-00000010/arrays\.npz is damaged"):
        stored.checkpoint(run, "best")


def test_a_damaged_checkpoint_is_passed_over_and_stays_where_it_is(run, capsys):
    os.truncate(run / "checkpoints" / "step-00000020" / "arrays.npz", 9)
    assert stored.checkpoint(run, "latest").step == 15
    assert "arrays.npz is damaged" in capsys.readouterr().out
    assert (run / "checkpoints" / "step-00000020").is_dir()
    with pytest.raises(CheckpointError, match="damaged"):
        stored.checkpoint(run, "20")
    with pytest.raises(CheckpointError, match=r"no checkpoint of step 7 .*there is 20, 15, 10"):
        stored.checkpoint(run, "7")
    for path in (run / "checkpoints").glob("step-*/arrays.npz"):
        os.truncate(path, 9)
    with pytest.raises(CheckpointError, match=r"step-00000010/arrays\.npz"):
        stored.checkpoint(run, "latest")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["loss=mse"], "only data=CHOICE"),
        (["dta.path=x.csv"], r"did you mean data\.path\?"),
        (["another"], "command takes one run"),
        (["data.split_seed=1"], "decided by the run"),
        (["data.standardize=false"], "decided by the run"),
        (["data.nope=1"], "data.nope"),
        (["--checkpoint=bset"], "did you mean best?"),
        (["--checkpoint=-1"], "must be latest, best or a step"),
        (["--chekpoint=best"], "did you mean --checkpoint?"),
        (["trust=[os]"], "only a package of your own can be trusted"),
    ],
)
def test_what_else_is_typed_is_refused(trained, words, said):
    with pytest.raises(ConfigError, match=said):
        read(trained, *words)


def test_a_directory_without_a_run_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="which run\\? type command RUN"):
        read()
    with pytest.raises(ConfigError, match="there is no run in nowhere"):
        read("nowhere")
    (tmp_path / "config.yaml").touch()
    with pytest.raises(ConfigError, match=r"has no overrides\.txt"):
        read(".")


def test_a_run_of_other_configuration_files_is_refused(run):
    text = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(text.replace("seed: 3", "seed: 4"))
    with pytest.raises(ConfigError, match=r"other configuration files \(seed: 4 -> 3\).*--config-dir"):
        read(run)
    (run / "overrides.txt").write_text("loss=mine\n")
    with pytest.raises(ConfigError, match=r"loss=mine.*type --config-dir DIR again"):
        read(run)


@pytest.mark.fault(rows=[24])
@pytest.mark.parametrize("line", ["trust=[of_others]", " trust=[of_others]", "+trust=[of_others]", "trust.0=of_others"])
@pytest.mark.parametrize("command", ["evaluate", "predict", "export"])
def test_stored_overrides_do_not_extend_what_is_trusted(run, refused, here, command, line):
    (here / "of_others.py").write_text("open('canary', 'w')\n")
    (run / "overrides.txt").write_text(f"loss._target_=of_others.Evil\n{line}\n")
    form = ["format=keras"] if command == "export" else []
    assert "trust" in refused(command, str(run), *form)
    assert not (here / "canary").exists()


@pytest.mark.fault(rows=[24])
def test_nothing_is_written_through_a_link(run, tmp_path):
    (tmp_path / "mine").write_text("mine")
    for name in ("evaluation.json", f".evaluation.json.{os.getpid()}.tmp"):
        (run / name).symlink_to(tmp_path / "mine")
    with pytest.raises(ConfigError, match="can't be written"):
        stored.write(run / "evaluation.json", "--output", lambda file: file.write(b"of others"))
    (run / "evaluation.json").unlink(missing_ok=True)
    (run / "evaluation.json").symlink_to(tmp_path / "mine")
    stored.write(run / "evaluation.json", "--output", lambda file: file.write(b"of others"))
    assert (tmp_path / "mine").read_text() == "mine"
    assert (run / "evaluation.json").read_bytes() == b"of others"
    assert not (run / "evaluation.json").is_symlink()


def test_what_fails_half_way_leaves_what_was_there(tmp_path):
    (tmp_path / "x.csv").write_text("before")

    def fails(file):
        file.write(b"half")
        raise CheckpointError("no more")

    with pytest.raises(CheckpointError):
        stored.write(tmp_path / "x.csv", "--csv", fails)
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("x.csv", "before")]


def test_records_of_a_step(tmp_path):
    rows = [{"step": 1, "loss": 1.0}, {"step": 2, "eval/loss": 0.5, "eval/r2": "NaN", "loss": 0.4}, {"step": 4, "eval/loss": 0.3}]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"step": 2, "eval/l')
    found = stored.recorded(tmp_path, 2)
    assert found["eval/loss"] == 0.5
    assert np.isnan(found["eval/r2"])
    assert stored.recorded(tmp_path, 1) == stored.recorded(tmp_path / "nowhere", 1) == {}


def test_help_is_answered_without_a_run(capsys):
    from trainer import export, predict

    for command in (evaluate, predict, export):
        assert command.run(["--help"]) == 0
        text = capsys.readouterr().out
        assert "--checkpoint" in text
        assert max(map(len, text.splitlines())) <= 140
