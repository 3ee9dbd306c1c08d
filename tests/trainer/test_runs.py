"""The command that lists, shows and removes runs, on directories as runs leave them, as killed ones do, and as others make them."""

import fcntl
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from trainer import config, rundir, runs
from trainer.errors import ConfigError

ROOT = Path(__file__).parents[2]
DAY = 86_400


def make(folder: Path, *overrides: str, state="done", step=3, final=None, age=0.0) -> Path:
    """A run's directory, as far as it is read."""
    job = config.load([*overrides])
    (folder / "checkpoints" / f"step-{step:08d}").mkdir(parents=True)
    (folder / "checkpoints" / f"step-{step:08d}" / "arrays.npz").write_bytes(b"x" * 1000)
    (folder / "tensorboard").mkdir()
    (folder / ".lock").touch()
    (folder / "config.yaml").write_text(rundir.stored_config(job.config))
    (folder / "overrides.txt").write_text("".join(f"{word}\n" for word in overrides))
    (folder / "metrics.jsonl").write_text(json.dumps({"step": step, "loss": 0.25}) + "\n")
    if state == "done":
        found = {"steps": step, "final": final or {"loss": 0.125, "eval/accuracy": 0.9}, "best": {"step": 2, "eval/loss": 0.1}}
        (folder / "summary.json").write_text(json.dumps(found))
    (folder / "status.json").write_text(json.dumps({"state": state, "cause": "because", "exit_code": 0}))
    for path in folder.iterdir():
        os.utime(path, (time.time() - age, time.time() - age))
    return folder


@pytest.fixture
def outputs(tmp_path):
    folder = tmp_path / "outputs"
    make(folder / "2026" / "a", "seed=1", age=5 * DAY)
    make(folder / "2026" / "b", "seed=2", "loss=mse", "gradient=auto", age=4 * DAY, final={"loss": 0.5, "eval/accuracy": 0.7})
    make(folder / "sweeps" / "x" / "c", "data=breast_cancer", "optimizer.learning_rate=0.001", state="failed", age=3 * DAY)
    make(folder / "d", "data=diabetes", "loss=huber", "model=linear", state="stopped", age=2 * DAY, step=7)
    return folder


@pytest.fixture
def listed(outputs, capsys):
    def listed(*words: str) -> list[list[str]]:
        assert runs.run([str(outputs), *words]) == 0
        return cells(capsys.readouterr().out)

    return listed


def cells(output: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.strip("│ \n").split("│")] for line in output.splitlines() if line.startswith("│")]


def names(rows: list[list[str]]) -> list[str]:
    return [row[0] for row in rows]


def test_they_are_listed_the_newest_last(listed):
    found = listed()
    assert names(found) == ["2026/a", "2026/b", "sweeps/x/c", "d"]
    assert found[0][1:10] == ["done", "softmax_crossentropy", "analytic", "mlp", "digits", "1", "3", "0.125", "0.9"]
    assert found[1][1:8] == ["done", "mse", "auto", "mlp", "digits", "2", "3"]
    assert found[2][1] == "failed"
    assert found[2][5] == "breast_cancer"
    assert found[3][1:9] == ["stopped", "huber", "analytic", "linear", "diabetes", "0", "7", "0.25"]
    assert found[0][-1].endswith(" MB")
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d", found[0][-2])


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["loss=mse"], ["2026/b"]),
        (["state=done"], ["2026/a", "2026/b"]),
        (["state=done,failed", "seed=0,1"], ["2026/a", "sweeps/x/c"]),
        (["mode=auto"], ["2026/b"]),
        (["optimizer.learning_rate=1e-3"], ["2026/a", "2026/b", "sweeps/x/c", "d"]),
        (["eval/accuracy=0.9"], ["2026/a"]),
        (["model.hidden=[128,128]"], ["2026/a", "2026/b", "sweeps/x/c"]),
        (["--sort", "steps", "--reverse"], ["d", "2026/a", "2026/b", "sweeps/x/c"]),
        (["--sort", "eval/accuracy"], ["2026/b", "2026/a", "d", "sweeps/x/c"]),
        (["--sort", "run"], ["2026/a", "2026/b", "d", "sweeps/x/c"]),
        (["seed=9"], []),
        (["eval/accuracy>0.8"], ["2026/a"]),
        (["eval/accuracy<=0.7"], ["2026/b"]),
        (["loss<0.25"], ["2026/a"]),
        (["steps>=7"], ["d"]),
        (["state!=done,failed"], ["d"]),
        (["run=2026/*"], ["2026/a", "2026/b"]),
        (["loss=*_crossentropy", "seed!=0"], ["2026/a"]),
        (["when<2020-01-01"], []),
        (["size>1e9"], []),
        (["model.hidden=[128,*]", "state!=failed"], ["2026/a", "2026/b"]),
    ],
)
def test_they_are_filtered_and_sorted(listed, words, expected):
    assert names(listed(*words)) == expected


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["sede=1"], "sede: no run has such a key; did you mean seed?"),
        (["--sort", "eval/acuracy"], "did you mean eval/accuracy?"),
        (["nowhere"], "one folder at a time"),
        (["steps>many"], "steps>many: many is not a number: type for example 'steps>0.5'"),
        (["when>yesterday"], "type for example 'when>2026-11-27'"),
        (["--yes"], "belong to prune"),
        (["--srot=x"], "did you mean --sort?"),
    ],
)
def test_what_is_typed_wrongly_is_refused(outputs, words, said):
    with pytest.raises(ConfigError, match=re.escape(said)):
        runs.run([str(outputs), *words])


def test_what_is_asked_for_has_a_column(listed):
    found = listed("optimizer.learning_rate<1", "--sort", "trainer.log_every", "steps=3,7")
    assert [row[10:12] for row in found] == [["0.001", "1"]] * 4


def test_a_value_that_no_run_has(outputs, capsys):
    assert runs.run([str(outputs), "loss=mes"]) == 0
    assert capsys.readouterr().out.endswith("is loss=mes; did you mean mse?\n")
    assert runs.run([str(outputs), "mode=tape"]) == 0
    assert capsys.readouterr().out.endswith("is mode=tape; there is analytic, auto\n")


def test_a_folder_that_is_not_there(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=r"there is no folder prun; did you mean prune\?"):
        runs.run(["prun"])
    with pytest.raises(ConfigError, match=r"there is no folder outputs; type python -m trainer\.runs FOLDER"):
        runs.run([])
    (tmp_path / "outputs").mkdir()
    assert runs.run([]) == 0
    assert capsys.readouterr().out == "there is no run in outputs\n"


def test_one_is_shown(outputs, capsys):
    assert runs.run(["show", str(outputs / "2026" / "b")]) == 0
    output = capsys.readouterr().out
    for text in ("done: because", "seed=2 loss=mse gradient=auto", "eval/accuracy", "step 3", "eval/loss 0.1"):
        assert text in output
    assert re.search(r"^ loss +mse +$", output, re.MULTILINE)
    assert re.search(r"^ final loss +0\.5 +$", output, re.MULTILINE)
    with pytest.raises(ConfigError, match="there is no run in nowhere"):
        runs.run(["show", "nowhere"])


def test_a_run_that_goes_on_and_one_that_was_killed(outputs, listed):
    running = make(outputs / "e", state="running")
    make(outputs / "f", state="running")
    with open(running / ".lock") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert {row[0]: row[1] for row in listed("state=running,killed")} == {"e": "running", "f": "killed"}
        assert rundir.claim(outputs / "f").release() is None  # which nobody holds after the look


HOSTILE = "\x1b]0;owned\x07\x1b[31m[bold]x[/bold]\r\n"


@pytest.mark.fault(rows=[24])
def test_directories_of_others(outputs, listed, capsys):
    """Whatever they hold, they are a line of the list, and steer no terminal."""
    damaged = {
        "status.json": ["", "[", "[]", '{"state": 5}', "[" * 100_000, json.dumps({"state": HOSTILE, "cause": HOSTILE})],
        "config.yaml": [
            "",
            "a: [",
            "- 1",
            "x: !!python/object/apply:os.system [true]",
            "[" * 100_000,
            "a: &a [*a]\n",
            "a" * 2_000_000,
            "2024-99-99: 1",
            "seed: &a [1, 2]\nx: [*a, *a]\n",
        ],
        "summary.json": ["", "[" * 100_000, '{"steps": "x", "final": 3}', json.dumps({"steps": 3, "final": {HOSTILE: HOSTILE}})],
        "metrics.jsonl": ["", "[" * 100_000 + "\n", '{"step": "x"}\n'],
        "overrides.txt": [HOSTILE, "loss=[", "data=" + "x" * 100_000],
    }
    for name, texts in damaged.items():
        for number, text in enumerate(texts):
            path = make(outputs / f"{name}-{number}", state="done")
            (path / name).write_text(text)
    (outputs / "bytes").mkdir()
    for name in ("config.yaml", "status.json", "metrics.jsonl", "overrides.txt"):
        (outputs / "bytes" / name).write_bytes(bytes(range(256)))
    hostile = outputs / HOSTILE.strip().replace("/", "")
    hostile.mkdir()
    for name in ("config.yaml", "status.json"):
        (hostile / name).mkdir()
    found = listed()
    states = {row[0]: row[1] for row in found if len(row) > 5}
    assert states["status.json-0"] == states["config.yaml-1"] == states["config.yaml-8"] == states["bytes"] == "damaged"
    assert states["overrides.txt-0"] == "done"
    assert runs.run([str(outputs), "--sort", "eval/accuracy"]) == 0
    for path in outputs.iterdir():
        if (path / "status.json").is_file():
            assert runs.run(["show", str(path)]) == 0
    output = capsys.readouterr().out
    assert "\x1b" not in output
    assert "\x07" not in output
    assert "\r" not in output


def test_what_is_no_run_is_not_listed(outputs, listed):
    (outputs / "other" / "conf").mkdir(parents=True)
    (outputs / "other" / "conf" / "config.yaml").write_text("model: mine\n")
    (outputs / "other" / "checkpoints").mkdir()
    (outputs / ".hidden").mkdir()
    make(outputs / ".hidden" / "run")
    (outputs / "link").symlink_to(outputs / "2026")
    assert names(listed()) == ["2026/a", "2026/b", "sweeps/x/c", "d"]


def test_prune_asks_which_and_only_lists_at_first(outputs, capsys):
    with pytest.raises(ConfigError, match="prune needs to be told which runs"):
        runs.run(["prune", str(outputs)])
    for words in (["--keep", "-1"], ["--older-than", "-1"], ["--older-than", "nan"]):
        with pytest.raises(ConfigError, match="must be"):
            runs.run(["prune", str(outputs), *words])
    assert runs.run(["prune", str(outputs), "state=failed"]) == 0
    output = capsys.readouterr().out
    assert names(cells(output)) == ["sweeps/x/c"]
    assert "1 run, 0.0 MB, would be removed: add --yes to do it" in output
    assert (outputs / "sweeps" / "x" / "c" / "status.json").exists()


@pytest.mark.parametrize(
    ("words", "left"),
    [
        (["state=failed"], ["2026/a", "2026/b", "d"]),
        (["--keep", "1"], ["d"]),
        (["state=done", "--keep", "1"], ["2026/b", "sweeps/x/c", "d"]),
        (["--older-than", "3.5"], ["sweeps/x/c", "d"]),
        (["--older-than", "3.5", "--keep", "3"], ["2026/b", "sweeps/x/c", "d"]),
        (["--keep", "0"], []),
    ],
)
def test_prune_removes_what_it_is_told(outputs, listed, capsys, words, left):
    assert runs.run(["prune", str(outputs), *words, "--yes"]) == 0
    assert " MB, removed" in capsys.readouterr().out
    assert names(listed()) == left
    assert {path for path in outputs.rglob("*") if path.name in ("a", "b", "c", "d")} == {outputs / name for name in left}


def test_prune_removes_all_that_a_run_makes(outputs):
    (outputs / "d" / "mlflow.json").write_text("{}")
    assert runs.run(["prune", str(outputs), "run=d", "--yes"]) == 0
    assert not (outputs / "d").exists()


def test_prune_leaves_a_running_one(outputs, capsys):
    with open(outputs / "d" / ".lock") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # though its status says that it has stopped
        assert runs.run(["prune", str(outputs), "--keep", "0", "--yes"]) == 0
    assert "stays: it is running" in capsys.readouterr().out
    assert (outputs / "d" / "config.yaml").exists()
    assert not (outputs / "2026" / "a").exists()


@pytest.mark.fault(rows=[24])
def test_prune_leaves_what_is_no_run(outputs, capsys):
    (outputs / "d" / "export").mkdir()
    (outputs / "d" / "export" / "step-1.keras").write_text("mine")
    (outputs / "d" / "notes.txt").write_text("mine")
    (outputs / "strange").mkdir()
    for name in ("config.yaml", "overrides.txt"):
        (outputs / "strange" / name).write_text("of: another program\n")
    assert runs.run(["prune", str(outputs), "--keep", "0", "--yes"]) == 0
    output = capsys.readouterr().out
    assert "strange stays: it is not known as a run of this program" in output
    assert "stays, with what is not the run's: export, notes.txt" in output
    left = {path.relative_to(outputs).as_posix() for path in outputs.rglob("*") if path.is_file()}
    assert left == {"d/export/step-1.keras", "d/notes.txt", "strange/config.yaml", "strange/overrides.txt"}


@pytest.mark.fault(rows=[24])
@pytest.mark.parametrize("name", ["tensorboard", "checkpoints", "metrics.jsonl", ".lock"])
def test_prune_follows_no_link(outputs, tmp_path, capsys, name):
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "precious").write_text("mine")
    path = outputs / "d" / name
    path.rename(outputs / "d" / "before")
    path.symlink_to(mine)
    (outputs / "2026" / "a" / "checkpoints" / "inner").symlink_to(mine)
    runs.run(["prune", str(outputs), "--keep", "0", "--yes"])
    assert "there are links in it" in capsys.readouterr().out
    assert (mine / "precious").read_text() == "mine"
    assert path.is_symlink()
    assert not (outputs / "2026" / "a").exists()


def test_without_tensorflow_and_quick_with_hundreds(tmp_path, outputs):
    for number in range(300):
        folder = tmp_path / "many" / f"{number:03d}"
        folder.mkdir(parents=True)
        for name in ("config.yaml", "overrides.txt", "status.json", "summary.json", "metrics.jsonl"):
            (folder / name).write_bytes((outputs / "2026" / "a" / name).read_bytes())
    before = os.times()
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "trainer", "runs", str(tmp_path / "many")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    after = os.times()
    assert done.returncode == 0, done.stderr[-500:]
    assert len(cells(done.stdout)) == 300
    assert not re.search(r"\| +(tensorflow|keras|hydra)$", done.stderr, re.MULTILINE)
    assert after.children_user + after.children_system - before.children_user - before.children_system < 20  # seconds of the processor
