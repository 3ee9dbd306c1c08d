"""A sweep's jobs by submitit: on the nodes of a SLURM cluster or, to try it, here. Imports submitit when it is asked for, TensorFlow never.

submitit hands a job over as a pickle, in a folder of the cluster's file system. The sweep makes a new one each time, which others may not
enter; nothing that lay there before is read. A job's process there, `Task`, is thin: it starts the job as a sweep does here, in a process
below it, so that a job that is killed or calls sys.exit has an outcome, and the signals of a cluster, which come to every process of a job
and some of them twice, reach the training once.
"""

import contextlib
import fcntl
import os
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from multiprocessing import active_children
from pathlib import Path
from typing import Any

from trainer.config import Job
from trainer.errors import ConfigError
from trainer.isolation import Forwarding, Outcome, blocked, run_one
from trainer.launcher import Launcher

_POLL_SECONDS = 0.5
_FOLDER = ".submitit"  # in the sweep's directory
# Parameters of every executor; the others are named after theirs, such as slurm_partition.
_SHARED = ("name", "timeout_min", "mem_gb", "nodes", "cpus_per_task", "gpus_per_node", "tasks_per_node", "stderr_to_stdout")


class Submission:
    """Submits jobs and waits for them. Use as a context manager.

    Args:
        launcher: where they run.
        folder: the sweep's directory.
        parallel: how many may run at once; None: as many as the launcher says.
        signals: a signal that came cancels the jobs.
    """

    def __init__(self, launcher: Launcher, folder: Path, parallel: int | None, signals: Forwarding) -> None:
        self._launcher, self._signals, submitit = launcher, signals, _submitit(launcher)
        self.is_here = launcher.cluster == "local"
        most = int(launcher.settings.get("array_parallelism") or 1)
        self.at_once = parallel or 1 if self.is_here else min(parallel or most, most)
        self._folder = _new_folder(launcher, folder)
        self._executor = self._make_executor(submitit)
        self._announced: dict[Path, Any] = {}  # directory -> submitit's job
        self._lock = threading.Lock()  # submitit is not made for several threads
        self._cancelling = threading.Lock()
        self._entered = contextlib.ExitStack()

    def __enter__(self) -> "Submission":
        self._entered.enter_context(_variables(_same_modules()))
        alive = self._entered.enter_context(open(self._alive, "w", encoding="utf-8"))
        fcntl.flock(alive, fcntl.LOCK_EX)
        return self

    def __exit__(self, *_: object) -> None:
        self._cancel_announced()
        self._entered.close()
        for path in self._folder.rglob("*.pkl"):  # what was typed stands in it, and perhaps a secret
            path.unlink()

    @property
    def _alive(self) -> Path:
        """A file that is locked as long as the sweep lives."""
        return self._folder / "alive"

    def announce(self, jobs: Sequence[Job]) -> None:
        """Submits all jobs at once, as an array of which `at_once` run at a time; here, each job is submitted when it has a place.

        Raises:
            ConfigError: the cluster takes no such jobs.
        """
        if self.is_here or not jobs:
            return
        try:
            with self._lock:
                handles = self._executor.map_array(Task({}, None), jobs)
        except Exception as error:  # sbatch ends with another status, for reasons of its own
            raise ConfigError(f"{self._launcher.choice}: no job was taken: {_line(error)}; mend what you type of it") from error
        self._announced = dict(zip((job.run_dir for job in jobs), handles, strict=True))

    def run(self, job: Job, environment: dict[str, str]) -> Outcome:
        """Runs a job to its end; environment is that of its process."""
        handle = self._announced.pop(job.run_dir, None)
        try:
            if handle is None:
                with self._lock, blocked((signal.SIGINT,)):  # Ctrl-C is for the sweep, and submitit's own process would kill the job
                    handle = self._executor.submit(Task(environment, self._alive if self.is_here else None), job)
            while not self._is_done(handle):
                if self._signals.received is not None:
                    self._cancel_announced()  # before it leaves its place to one of them
                    self._cancel(handle)
                    if not self.is_here:  # the cluster sees to its end
                        return Outcome("stopped", f"cancelled, as job {handle.job_id}")
                time.sleep(_POLL_SECONDS)
            return self._outcome(handle)
        except Exception as error:
            return Outcome("failed", f"{self._launcher.choice}: {_line(error)}")

    def _make_executor(self, submitit: Any) -> Any:
        cluster = self._launcher.cluster
        settings = {key: value for key, value in self._launcher.settings.items() if value is not None and key != "submitit_folder"}
        settings |= {} if self.is_here else {"array_parallelism": self.at_once}
        timeouts = {f"{cluster}_{key}": settings.pop(key) for key in ("max_num_timeout",) if key in settings}
        parameters = {key if key in _SHARED else f"{cluster}_{key}": value for key, value in settings.items()}
        try:
            executor = submitit.AutoExecutor(self._folder / "%j", cluster=cluster, **timeouts)
            executor.update_parameters(**parameters)
        except (RuntimeError, ValueError, NameError, AssertionError) as error:
            raise ConfigError(f"{self._launcher.choice}: {_line(error)}; mend what you type of it") from error
        return executor

    def _is_done(self, handle: Any) -> bool:
        with self._lock:
            return bool(handle.done())

    def _cancel(self, handle: Any) -> None:
        with self._lock:
            if self.is_here:  # again and again: one that comes before the job listens is lost, and one of several is enough
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(handle.job_id), signal.SIGTERM)
            else:
                handle.cancel(check=False)

    def _cancel_announced(self) -> None:
        with self._cancelling:  # who finds none left may count on it that none is about to start
            while self._announced:
                with contextlib.suppress(KeyError):  # another thread took the last one
                    self._cancel(self._announced.popitem()[1])

    def _outcome(self, handle: Any) -> Outcome:
        """What the job's process has told of its end; submitit waits a while for it where a file system is slow."""
        if self.is_here and not handle.paths.result_pickle.exists():
            state = "ended without a word"
        else:
            try:
                found = handle.result()
                assert isinstance(found, Outcome)
                return found
            except Exception:  # submitit's own, whose message is the job's whole output
                state = f"ended without a word, as {handle.state}"
        if self._signals.received is not None:
            return Outcome("stopped", "cancelled")
        return Outcome("failed", f"job {handle.job_id} {state}; its last words are in {handle.paths.stderr}")


class Task:
    """What submitit calls in a job's process, and calls again when the job has been requeued: the run goes on from its checkpoint.

    Args:
        environment: of the training's process.
        alive: a file that the sweep keeps locked; the job ends with it. None: the job outlives the sweep.
    """

    def __init__(self, environment: dict[str, str], alive: Path | None) -> None:
        self._environment, self._alive = environment, alive
        self._signals: Forwarding | None = None

    def __call__(self, job: Job) -> Outcome:
        from submitit.core.utils import UncompletedJobError

        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        if self._alive:
            threading.Thread(target=_end_with_sweep, args=(self._alive,), daemon=True).start()
        self._signals = Forwarding(only=signal.SIGINT, withheld=(signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2))
        with self._signals:
            try:
                outcome = run_one(job, self._signals, self._environment, quiet=True)
            except UncompletedJobError as error:  # from `checkpoint`: out of time, as often as it may be
                return Outcome("stopped", f"{_line(error)} The same command goes on; hydra.launcher.timeout_min is the time it has")
        if self._signals.received is not None:  # cancelled; or preempted, and the cluster will start it again: no outcome yet
            sys.exit(128 + self._signals.received)
        return outcome

    def checkpoint(self, job: Job) -> Any:
        """What submitit does within a signal's handler when the job's time is up, or its node wanted: the training saves and ends."""
        from submitit.helpers import DelayedSubmission

        assert self._signals is not None
        self._signals.forward(signal.SIGINT)
        for process in active_children():
            process.join()
        return DelayedSubmission(Task(self._environment, self._alive), job)


def _submitit(launcher: Launcher) -> Any:
    try:
        with _variables({"SUBMITIT_LOG_LEVEL": "NOCONFIG"}):  # it would take over this process's logging
            import submitit
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"{launcher.choice}: the package submitit is not installed: install it by "
            'pip install "gradtrain[slurm]", or from a checkout by pip install -e ".[slurm]"'
        ) from error
    if launcher.cluster == "slurm" and shutil.which("srun") is None:
        raise ConfigError(
            f"{launcher.choice}: there is no srun here: start the sweep on a machine of the cluster, or type hydra/launcher=submitit_local"
        )
    return submitit


def _new_folder(launcher: Launcher, sweep: Path) -> Path:
    """A folder of this sweep's own, for submitit's files."""
    typed = str(launcher.settings["submitit_folder"] or "").removesuffix("%j").rstrip("/")
    base = Path(typed).expanduser() if typed else sweep / _FOLDER
    try:
        base.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=time.strftime("%Y-%m-%d_%H-%M-%S_"), dir=base)).absolute()
    except OSError as error:
        raise ConfigError(f"{base} can't be written: {error.strerror}: type hydra.launcher.submitit_folder=DIRECTORY") from error
    if "%" in str(folder):
        raise ConfigError(f"{folder} has a % in its name, which submitit replaces: type another hydra.launcher.submitit_folder")
    return folder


def _same_modules() -> dict[str, str]:
    """Variables by which a new process finds the modules that this one does: not those of the current folder, unless this one does too."""
    paths = [str(Path(path).absolute()) for path in sys.path if path]
    further = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path and path not in paths]
    return {"PYTHONPATH": os.pathsep.join([*further, *paths]), "PYTHONSAFEPATH": "1"}


@contextlib.contextmanager
def _variables(wanted: dict[str, str]) -> Iterator[None]:
    """Within it, the environment has these variables."""
    before = {name: os.environ.get(name) for name in wanted}
    os.environ.update(wanted)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _end_with_sweep(alive: Path) -> None:
    with open(alive, encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_SH)
        os.kill(os.getpid(), signal.SIGTERM)


def _line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
