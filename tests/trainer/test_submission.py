"""Sweeps by submitit: on this machine, and on a cluster that is played (tests.trainer.fake_slurm)."""

import os
import pickle
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from tests.trainer import fake_slurm
from tests.trainer.command_line import configuration
from tests.trainer.fake_jobs import FAILURES, is_alive, wait_until
from trainer import cli, config, expansion, submission
from trainer.errors import ConfigError
from trainer.isolation import Forwarding

LOCAL = "hydra/launcher=submitit_local"
SLURM = "hydra/launcher=submitit_slurm"
SWEEP = [sys.executable, "-m", "trainer", "-m"]


@pytest.fixture
def cluster(tmp_path, monkeypatch) -> Path:
    """A cluster's commands are on PATH."""
    folder = fake_slurm.install(tmp_path / "slurm")
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(submission, "_POLL_SECONDS", 0.05)
    return folder


def start(*overrides: str) -> subprocess.Popen:
    """A sweep in a session of its own, as in a terminal of its own."""
    return subprocess.Popen([*SWEEP, *overrides], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)


def left_of(folder: Path) -> list[str]:
    """Command lines of processes that have this folder's name in theirs."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:  # it has ended meanwhile
            continue
        if str(folder) in line:
            found.append(line)
    return found


def parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


@pytest.mark.slow
@pytest.mark.fault(rows=[20])
@pytest.mark.parametrize("launcher", [LOCAL, SLURM])
def test_failing_jobs_show_themselves_and_leave_the_others_running(fake, cluster, capfd, launcher):
    line = ["-m", launcher, "seed=0,1,2,3,4,5,7", "sweep.parallel=2", "hydra.sweep.dir=here"]
    assert cli.main(line) == 1
    out, err = capfd.readouterr()
    failures = sorted(line for line in err.splitlines() if line.startswith("["))
    assert failures == FAILURES
    table = [line.split() for line in out.partition("job ")[2].splitlines()]
    assert ["seed=7", "done", "10", "0.25", "0.57", "6.7", "1.5"] in table
    assert ["seed=3", "failed"] in table
    assert "2 of 7 jobs done, in here" in out
    assert "training 7" in (fake / "here" / "seed-7.log").read_text()
    assert list((fake / "here" / ".submitit").rglob("*.pkl")) == []
    if launcher == SLURM:
        assert "--array=0-6%2" in (cluster / "100.sh").read_text()
        assert len(list(cluster.glob("*.sh"))) == 1


@pytest.mark.slow
@pytest.mark.fault(rows=[14])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_jobs_once_and_the_sweep_after_them(fake, number):
    sweep = start(LOCAL, "seed=6", "loss=mse,mae,huber", "sweep.parallel=2", "hydra.sweep.dir=here")
    wait_until(lambda: len(list((fake / "here").glob("*/ready"))) == 2)
    os.killpg(sweep.pid, number)  # as Ctrl-C does
    out, err = sweep.communicate(timeout=60)
    assert sweep.returncode == 128 + number
    assert [path.read_text() for path in (fake / "here").glob("*/caught")] == [str(int(signal.SIGINT))] * 2
    assert err.count(" stopped: ") == 2
    assert out.count("not run") == 1
    assert not any(is_alive(int(path.read_text())) for path in (fake / "here").glob("*/pid"))
    assert left_of(fake) == []


@pytest.mark.slow
@pytest.mark.fault(rows=[14])
def test_a_sweep_that_is_killed_leaves_no_orphan(fake):
    sweep = start(LOCAL, "seed=6", "hydra.sweep.dir=here")
    job_dir = fake / "here" / "seed-6"
    wait_until((job_dir / "ready").exists)
    sweep.kill()
    sweep.communicate(timeout=60)
    wait_until(lambda: left_of(fake) == [])
    assert (job_dir / "caught").read_text() == str(int(signal.SIGINT))
    assert not is_alive(int((job_dir / "pid").read_text()))


@pytest.mark.slow
@pytest.mark.fault(rows=[14])
def test_a_signal_cancels_the_jobs_of_a_cluster(fake, cluster):
    sweep = start(SLURM, "seed=6", "loss=mse,mae,huber", "sweep.parallel=2", "hydra.sweep.dir=here")
    wait_until(lambda: len(list((fake / "here").glob("*/ready"))) == 2)
    sweep.send_signal(signal.SIGTERM)
    _, err = sweep.communicate(timeout=60)
    assert sweep.returncode == 143
    assert "stopped: cancelled, as job 100_0" in err
    wait_until(lambda: not any(fake_slurm.processes(f"100_{i}") for i in range(3)))
    # The cluster has sent SIGTERM to every process; the training got one signal.
    assert [path.read_text() for path in (fake / "here").glob("*/caught")] == [str(int(signal.SIGINT))] * 2
    wait_until(lambda: {path.read_text() for path in cluster.glob("*.state")} == {"CANCELLED"})
    assert len((cluster / "started").read_text().splitlines()) == 2


@pytest.mark.slow
def test_a_preempted_job_is_requeued_and_goes_on(fake, cluster):
    sweep = start(SLURM, "seed=8", "hydra.sweep.dir=here")
    wait_until((fake / "here" / "seed-8" / "ready").exists)
    fake_slurm.send("100", signal.SIGUSR2)
    out, err = sweep.communicate(timeout=60)
    assert (sweep.returncode, err) == (0, "")
    assert (cluster / "started").read_text() == "100\n100\n"
    assert (fake / "here" / "seed-8" / "caught").read_text() == str(int(signal.SIGINT))
    assert "1 of 1 jobs done" in out


@pytest.mark.slow
def test_a_preempted_job_goes_on_here_too(fake):
    sweep = start(LOCAL, "seed=8", "hydra.sweep.dir=here")
    job_dir = fake / "here" / "seed-8"
    wait_until((job_dir / "ready").exists)
    os.kill(parent_of(int((job_dir / "pid").read_text())), signal.SIGUSR2)
    sweep.communicate(timeout=60)
    assert sweep.returncode == 0
    assert (job_dir / "caught").read_text() == str(int(signal.SIGINT))


@pytest.mark.slow
def test_a_job_whose_time_is_up_has_saved_and_is_stopped(fake, cluster):
    sweep = start(SLURM, "seed=8", "hydra.launcher.timeout_min=1", "hydra.sweep.dir=here")
    wait_until((fake / "here" / "seed-8" / "ready").exists)
    fake_slurm.send("100", signal.SIGUSR2)
    _, err = sweep.communicate(timeout=60)
    assert sweep.returncode == 1
    assert "stopped: Job not requeued because: timed-out too many times" in err
    assert "hydra.launcher.timeout_min" in err
    assert (fake / "here" / "seed-8" / "caught").read_text() == str(int(signal.SIGINT))


@pytest.mark.slow
@pytest.mark.fault(rows=[20])
def test_a_job_whose_process_of_submitit_is_killed_has_failed(fake):
    sweep = start(LOCAL, "seed=6,0", "hydra.sweep.dir=here")
    job_dir = fake / "here" / "seed-6"
    wait_until((job_dir / "ready").exists)
    os.kill(parent_of(int((job_dir / "pid").read_text())), signal.SIGKILL)
    out, err = sweep.communicate(timeout=60)
    assert sweep.returncode == 1
    assert "ended without a word; its last words are in " in err
    assert "1 of 2 jobs done" in out
    wait_until(lambda: not is_alive(int((job_dir / "pid").read_text())))


@pytest.mark.slow
def test_what_a_job_computes_is_what_it_computes_here_and_is_not_run_again(tmp_path, capfd):
    line = ["-m", "seed=1", "model.hidden=[8]", "trainer.steps=20", "trainer.compile=graph"]
    assert cli.main([*line, f"hydra.sweep.dir={tmp_path / 'here'}"]) == 0
    assert cli.main([*line, LOCAL, f"hydra.sweep.dir={tmp_path / 'there'}"]) == 0
    here, there = (next((tmp_path / name).glob("*/metrics.jsonl")) for name in ("here", "there"))
    assert here.parent.name == there.parent.name
    assert here.read_bytes() == there.read_bytes()
    capfd.readouterr()
    assert cli.main([*line, LOCAL, f"hydra.sweep.dir={tmp_path / 'there'}"]) == 0
    assert "is done, in" in capfd.readouterr().out


def test_keys_are_those_of_the_plugin():
    job = config.load([SLURM, "hydra.launcher.partition=gpu", "hydra.launcher.timeout_min=30", "hydra.launcher.gpus_per_node=2"])
    assert job.launcher is not None
    assert job.launcher.cluster == "slurm"
    assert {"partition": "gpu", "timeout_min": 30, "gpus_per_node": 2, "max_num_timeout": 0, "name": "gradtrain"}.items() <= (
        job.launcher.settings.items()
    )
    setup = config.load([SLURM, "hydra.launcher.setup=['module load cuda']", "+hydra.launcher.additional_parameters.mail-type=END"])
    assert setup.launcher is not None
    assert setup.launcher.settings["setup"] == ["module load cuda"]
    assert setup.launcher.settings["additional_parameters"] == {"mail-type": "END"}
    shown = config.show("hydra", [LOCAL, "hydra.launcher.timeout_min=7"], package="hydra.launcher")
    assert shown.timeout_min == 7


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["hydra.launcher.partition=gpu"], "type hydra/launcher=submitit_slurm as well"),
        ([SLURM, "hydra.launcher.partion=gpu"], "did you mean partition?"),
        ([SLURM, "hydra.launcher.timeout_min=soon"], "hydra.launcher.timeout_min=soon"),
        ([SLURM, "hydra.launcher.nodes=2"], "a job is one process"),
        ([SLURM, "hydra.launcher.tasks_per_node=4"], "a job is one process"),
        ([SLURM, "hydra.launcher._target_=os.system"], "is refused"),
        ([SLURM, "++hydra.launcher._target_=os.system"], "is refused"),
        (["hydra/launcher=submitit_slrum"], "submitit_slurm or submitit_local"),
        ([SLURM, "hydra/launcher=submitit_local,submitit_slurm"], "several values"),
    ],
)
def test_mistakes_are_refused(overrides, words):
    with pytest.raises(ConfigError) as refused:
        config.load(overrides)
    assert words in str(refused.value)


@pytest.mark.fault(rows=[24])
@pytest.mark.parametrize(
    "text",
    [
        "hydra:\n  launcher:\n    setup: [touch canary]\n",
        "defaults:\n- override /hydra/launcher: submitit_local\n",
        "hydra:\n  launcher:\n    _target_: hydra_plugins.hydra_submitit_launcher.submitit_launcher.LocalLauncher\n",
    ],
)
def test_a_file_says_nothing_of_a_launcher(refused, here, tmp_path, text):
    conf = configuration(tmp_path, experiment__evil=f"# @package _global_\n{text}")
    for typed in ([], [LOCAL]):
        said = refused("--config-dir", str(conf), "experiment=evil", "-m", *typed, "seed=1,2", "hydra.sweep.dir=sweep")
        assert "set in a configuration file" in said or "can't be composed" in said
    assert list(here.iterdir()) == []


def test_a_launcher_is_for_a_sweep(refused):
    assert "add -m" in refused(LOCAL)
    assert "can't be swept" in refused("-m", "hydra/launcher=submitit_local,submitit_slurm", "seed=1,2")


def test_where_there_is_no_cluster(refused, monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert "there is no srun here" in refused("-m", SLURM, "seed=1,2")


@pytest.mark.parametrize(
    ("name", "package"), [("hydra_plugins.hydra_submitit_launcher.config", "hydra-submitit-launcher"), ("submitit", "submitit")]
)
def test_what_is_missing_is_named_with_its_extra(refused, monkeypatch, name, package):
    config.load([])  # Hydra looks for plugins once
    monkeypatch.setitem(sys.modules, name, None)
    said = refused("-m", LOCAL, "seed=1,2")
    assert f"{package} is not installed" in said
    assert 'pip install "gradtrain[slurm]"' in said


def test_a_cluster_that_takes_no_job(refused, cluster):
    (cluster / "sbatch").write_text("#!/bin/sh\necho 'sbatch: error: invalid partition specified: nope' >&2\nexit 1\n")
    said = refused("-m", SLURM, "hydra.launcher.partition=nope", "seed=1,2")
    assert "invalid partition specified: nope; mend what you type" in said


class Evil:
    """Touches a canary when it is unpickled."""

    def __reduce__(self):
        return Path("canary").touch, ()


@pytest.mark.fault(rows=[27])
def test_what_lay_in_the_folder_before_is_not_read(here):
    (here / "sweep" / ".submitit" / "100").mkdir(parents=True)
    for path in ("100/100_0_result.pkl", "100/100_submitted.pkl"):
        (here / "sweep" / ".submitit" / path).write_bytes(pickle.dumps(Evil()))
    launcher = config.load([LOCAL]).launcher
    made = [submission.Submission(launcher, here / "sweep", None, Forwarding())._folder for _ in range(2)]
    assert made[0] != made[1]
    for folder in made:
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        assert list(folder.iterdir()) == []
        assert folder.parent == (here / "sweep" / ".submitit").absolute()
    elsewhere = config.load([LOCAL, f"hydra.launcher.submitit_folder={here}/elsewhere/%j"]).launcher
    assert submission.Submission(elsewhere, here / "sweep", None, Forwarding())._folder.parent == here / "elsewhere"
    assert not (here / "canary").exists()


@pytest.mark.slow
def test_jobs_find_the_modules_that_the_sweep_finds_and_no_others(fake):
    (fake / "cloudpickle.py").write_text("open('canary', 'w'); raise SystemExit(99)")  # the current folder is not looked into
    command = [sys.executable, "-P", "-c", "import sys; from trainer.cli import main; sys.exit(main())"]
    done = subprocess.run([*command, "-m", LOCAL, "seed=0", "hydra.sweep.dir=here"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert not (fake / "canary").exists()


@pytest.mark.slow
def test_neither_sweep_nor_submission_imports_tensorflow(fake):
    code = "import sys; from trainer.cli import main; status = main(sys.argv[1:]); sys.exit(status or 'tensorflow' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code, "-m", LOCAL, "seed=0", "hydra.sweep.dir=here"], check=False, cwd=fake)
    assert done.returncode == 0


def test_at_once(monkeypatch, here):
    monkeypatch.setattr(submission.shutil, "which", lambda name: name)
    texts = ("", "sweep.parallel=3", "sweep.parallel=999", "hydra.launcher.array_parallelism=5")
    jobs = {text: config.load([SLURM, *text.split()]) for text in texts}
    found = {text: submission.Submission(job.launcher, here, job.config.sweep.parallel, Forwarding()).at_once for text, job in jobs.items()}
    assert list(found.values()) == [256, 3, 256, 5]
    local = expansion.expand([LOCAL, "seed=1,2"])[0]
    assert submission.Submission(local.launcher, here, None, Forwarding()).at_once == 1
