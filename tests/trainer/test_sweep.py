import contextlib
import faulthandler
import fcntl
import json
import multiprocessing
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.trainer.fake_jobs import FAILURES, install, is_alive, wait_until
from tests.trainer.processes import ROOT
from trainer import cli, expansion
from trainer.json_files import read_json


@pytest.mark.slow
@pytest.mark.fault(rows=[20])
def test_failing_jobs_show_themselves_and_leave_the_others_running(fake, capfd):
    assert cli.main(["-m", "seed=0,1,2,3,4,5,7", "hydra.sweep.dir=here"]) == 1
    out, err = capfd.readouterr()
    failures = [line for line in err.splitlines() if line.startswith("[")]
    assert failures == FAILURES
    assert "Traceback" in err
    assert out.index("training 7") > out.index("[7/7] seed=7")
    table = [line.split() for line in out.partition("job ")[2].splitlines()]
    assert table[0] == ["state", "steps", "loss", "eval/accuracy", "steps/s", "seconds"]
    assert ["seed=0", "done", "10", "0.25", "0.5", "6.7", "1.5"] in table
    assert ["seed=7", "done", "10", "0.25", "0.57", "6.7", "1.5"] in table
    assert ["seed=3", "failed"] in table
    assert "2 of 7 jobs done, in here" in out


@pytest.mark.slow
def test_a_sweep_without_failures(fake, capfd):
    assert cli.main(["-m", "seed=0,7", "loss=mse"]) == 0
    assert capfd.readouterr().err == ""
    assert multiprocessing.active_children() == []


@pytest.mark.slow
@pytest.mark.fault(rows=[14])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_job_once_and_the_sweep_after_it(fake, number):
    parent = subprocess.Popen(
        [sys.executable, "-m", "trainer", "-m", "seed=6,0", "hydra.sweep.dir=here"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    job_dir = fake / "here" / "seed-6"
    wait_until((job_dir / "ready").exists)
    parent.send_signal(number)
    out, err = parent.communicate(timeout=60)
    assert parent.returncode == 128 + number
    assert (job_dir / "caught").read_text() == str(int(number))
    assert "seed=6 stopped" in err
    assert "not run" in out
    assert not (fake / "here" / "seed-0").exists()
    assert not is_alive(int((job_dir / "pid").read_text()))


@pytest.mark.slow
@pytest.mark.fault(rows=[14])
@pytest.mark.parametrize("parallel", [1, 2])
def test_an_interrupt_while_a_job_is_still_imported_is_no_traceback(tmp_path, monkeypatch, capfd, parallel):
    early = "import os, signal, sys\nif any('spawn_main' in word for word in sys.orig_argv):\n    os.kill(os.getpid(), signal.SIGINT)\n"
    install(tmp_path, monkeypatch, early)  # as Ctrl-C does, which every process of a terminal hears
    assert cli.main(["-m", "seed=1", "loss=mse,mae", f"sweep.parallel={parallel}", "hydra.sweep.dir=here"]) == 1
    failures = sorted(capfd.readouterr().err.splitlines())
    assert failures == [f"[{i}/2] loss={loss} failed: interrupted  (here/seed-1_loss-{loss})" for i, loss in ((1, "mse"), (2, "mae"))]


@pytest.mark.fault(rows=[7])
@pytest.mark.parametrize("parallel", [1, 2])
def test_a_directory_that_takes_no_files_is_refused_before_any_job(tmp_path, capfd, parallel):
    (tmp_path / "file").touch()
    assert cli.main(["-m", "seed=1,2", f"sweep.parallel={parallel}", f"hydra.sweep.dir={tmp_path / 'file'}"]) == 2
    out, err = capfd.readouterr()
    assert out == ""
    assert err.splitlines() == [f"error: hydra.sweep.dir={tmp_path / 'file'} can't be written: File exists; type a directory you may write"]


@pytest.mark.slow
def test_jobs_run_at_once_and_are_listed_in_order(fake, capfd):
    assert cli.main(["-m", "seed=20,21,7", "sweep.parallel=2", "hydra.sweep.dir=here"]) == 0  # the first two wait for each other
    out, err = capfd.readouterr()
    assert err == ""
    assert [line.split()[0] for line in out.partition("job ")[2].splitlines() if line.strip().startswith("seed=")] == [
        "seed=20",
        "seed=21",
        "seed=7",
    ]
    assert "training" not in out
    assert (fake / "here" / "seed-20.log").read_text() == "training 20\n"
    assert (fake / "here" / "seed-21" / "threads").read_text() == str(max(1, os.cpu_count() // 2))
    assert multiprocessing.active_children() == []


@pytest.mark.slow
@pytest.mark.fault(rows=[14])
def test_a_signal_ends_all_jobs_that_run(fake):
    command = [
        sys.executable,
        "-m",
        "trainer",
        "-m",
        "seed=6",
        "loss=mse,mae",
        "model=mlp,linear",
        "sweep.parallel=2",
        "hydra.sweep.dir=here",
    ]
    parent = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    wait_until(lambda: len(list((fake / "here").glob("*/ready"))) == 2)
    parent.send_signal(signal.SIGTERM)
    out, err = parent.communicate(timeout=60)
    assert parent.returncode == 143
    assert err.count(" stopped: ") == 2
    assert out.count("not run") == 2
    assert len(list((fake / "here").glob("*/caught"))) == 2
    assert not any(is_alive(int(path.read_text())) for path in (fake / "here").glob("*/pid"))


@pytest.mark.fault(rows=[20])
def test_the_same_command_runs_what_is_missing_only(tmp_path, capfd):
    overrides = ["-m", "seed=1,2", "model.hidden=[8]", "trainer.steps=20", "trainer.compile=graph", f"hydra.sweep.dir={tmp_path}"]
    process = subprocess.Popen([sys.executable, "-m", "trainer", *overrides], cwd=ROOT, stdout=subprocess.DEVNULL)
    wait_until(lambda: (tmp_path / name(1) / "summary.json").exists() and (tmp_path / name(2) / "status.json").exists())
    process.kill()
    process.wait(timeout=60)
    first = (tmp_path / name(1) / "summary.json").stat().st_mtime_ns
    wait_until(lambda: not _is_locked(tmp_path / name(2)))  # its job ends when it sees that the sweep is gone
    assert cli.main(overrides) == 0
    out, _ = capfd.readouterr()
    assert f"seed=1  is done, in {tmp_path}" in out
    assert (tmp_path / name(1) / "summary.json").stat().st_mtime_ns == first
    assert "2 of 2 jobs done" in out
    assert cli.main([*overrides, "sweep.parallel=2"]) == 0
    assert capfd.readouterr().out.count("is done") == 2


def name(seed: int) -> str:
    return expansion.expand([f"seed={seed}", "model.hidden=[8]", "trainer.steps=20", "trainer.compile=graph"])[0].run_dir.name


def _is_locked(path: Path) -> bool:
    with open(path / ".lock") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return True
    return False


@pytest.mark.slow
def test_a_sweep_ends_in_its_comparison(tmp_path, capfd):
    overrides = [
        "-m",
        "gradient=auto,analytic",
        "seed=1,2",
        "loss=stable_mse",
        "model.hidden=[8]",
        "trainer.steps=20",
        "trainer.compile=graph",
    ]
    assert cli.main([*overrides, "sweep.compare=true", f"hydra.sweep.dir={tmp_path}"]) == 0
    assert "gradient.mode=analytic" in capfd.readouterr().out
    assert "(2 pairs of runs)" in (tmp_path / "comparison.html").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("model", ["mlp", "cnn"])
def test_results_are_the_same_whatever_runs_beside_them(tmp_path, monkeypatch, model):
    if model == "cnn":  # whose sums on the CPU are taken apart by the number of threads, of which jobs at once have a share each
        monkeypatch.setenv("TF_NUM_INTRAOP_THREADS", "1")
    for parallel in (1, 2):
        overrides = ["-m", "seed=1,2", f"model={model}", "trainer.steps=60", "trainer.eval_every=30", f"sweep.parallel={parallel}"]
        assert cli.main([*overrides, f"hydra.sweep.dir={tmp_path / str(parallel)}"]) == 0
    for path in (tmp_path / "1").glob("*/metrics.jsonl"):
        assert path.read_bytes() == (tmp_path / "2" / path.parent.name / path.name).read_bytes()


@pytest.mark.slow
@pytest.mark.fault(rows=[14])
def test_a_sweep_that_is_killed_leaves_no_orphan(fake):
    parent = subprocess.Popen([sys.executable, "-m", "trainer", "-m", "seed=6,0", "hydra.sweep.dir=here"], stdout=subprocess.DEVNULL)
    job_dir = fake / "here" / "seed-6"
    wait_until((job_dir / "ready").exists)
    parent.kill()
    parent.wait(timeout=60)
    wait_until((job_dir / "caught").exists)
    assert (job_dir / "caught").read_text() == str(int(signal.SIGTERM))


NUM_JOBS, NUM_STEPS = 40, 20
TINY = (
    "-m",
    f"seed=range(0,{NUM_JOBS})",
    "model=linear",
    f"trainer.steps={NUM_STEPS}",
    "trainer.steps_per_call=1",
    "trainer.eval_every=0",
    "trainer.compile=graph",
    "gradient.verify_at_start=false",
    "checkpoint.every=5",
    "logging.tensorboard=false",
    "sweep.parallel=2",
)


@pytest.mark.slow
@pytest.mark.fault(rows=[14, 20])
def test_forty_jobs_killed_twice_run_once_each(tmp_path):
    faulthandler.dump_traceback_later(
        1500, exit=True, file=sys.__stderr__
    )  # forty times TensorFlow's start is longer than other tests may take
    folder = tmp_path / "sweep"
    command = [sys.executable, "-m", "trainer", *TINY, f"hydra.sweep.dir={folder}"]
    environment = os.environ | {"SWEEP_OF": str(tmp_path)}  # which its processes inherit: by this they are found
    done: dict[Path, dict[str, tuple[int, bytes]]] = {}
    for num_before_kill in (6, 17):
        with open(tmp_path / "output", "a") as output:
            sweep_process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=output, stderr=output)
        wait_until(lambda count=num_before_kill: len(_jobs_done(folder)) >= count, seconds=600)
        assert len(_processes_of(tmp_path)) > 2
        sweep_process.kill()
        assert sweep_process.wait(timeout=60) == -signal.SIGKILL
        wait_until(lambda: not _processes_of(tmp_path))  # those that it had started end by themselves
        assert num_before_kill <= len(_jobs_done(folder)) < NUM_JOBS
        assert {path: _written(path) for path in done} == done  # they were not started again
        done = {path: _written(path) for path in _jobs_done(folder)}
    last = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=1200, check=False)
    assert last.returncode == 0, last.stderr
    assert last.stdout.count("  is done, in ") == len(done)
    assert f"{NUM_JOBS} of {NUM_JOBS} jobs done" in last.stdout
    assert {path: _written(path) for path in done} == done
    wait_until(lambda: not _processes_of(tmp_path))
    jobs = _jobs_done(folder)
    assert len(jobs) == NUM_JOBS
    for path in jobs:
        assert json.loads((path / "status.json").read_text()) == {"state": "done", "cause": "finished", "exit_code": 0}
        assert json.loads((path / "summary.json").read_text())["steps"] == NUM_STEPS
        steps = [json.loads(line)["step"] for line in (path / "metrics.jsonl").read_text().splitlines()]
        assert steps == list(range(1, NUM_STEPS + 1)), path


def _jobs_done(folder: Path) -> list[Path]:
    return [path.parent for path in sorted(folder.glob("*/status.json")) if (read_json(path) or {}).get("state") == "done"]


def _written(job: Path) -> dict[str, tuple[int, bytes]]:
    """When and what a job has written, by file; its output, in a file beside its directory, too."""
    files = [*(path for path in job.rglob("*") if path.is_file()), job.with_name(f"{job.name}.log")]
    return {path.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in files if path.exists()}


def _processes_of(mark: Path) -> list[int]:
    """All that run, and were started with this mark in their environment."""
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):  # it has ended meanwhile
            if f"SWEEP_OF={mark}".encode() in path.read_bytes().split(b"\0"):
                found.append(int(path.parent.name))
    return found
