"""Bad input of one's own: what is typed, directories, and odd surroundings."""

import fcntl
import json
import os
import pty
import subprocess
import sys

import numpy as np
import pytest

from tests.trainer.command_line import SHORT, command, content, last_line
from tests.trainer.processes import ROOT
from trainer import cli, config, job, rundir


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
