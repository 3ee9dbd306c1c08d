"""One run, from start to end, around the training itself: its directory, its status, whether it may go on. Imports no TensorFlow."""

import os
import time
from pathlib import Path

from trainer import rundir, schema, secrets, tracking
from trainer.config import Job
from trainer.errors import CheckpointError, ConfigError, UserError, describe
from trainer.imports import lean
from trainer.progress import say
from trainer.rundir import RunDir
from trainer.signals import Signals
from trainer.silence import quiet


def run(job: Job) -> int:
    """Trains, and returns the exit status; or shows what the run would be, or why it has diverged, where that is asked for.

    Raises:
        UserError: the user's mistake, or a fault that the user can act on; the run directory's status.json says the same.
    """
    if job.config.trainer.dry_run:
        return _dry_run(job)
    if job.config.trainer.replay:
        return _replay(job)
    resume, path = job.config.resume, job.run_dir
    if resume not in ("auto", "never", "must"):
        if not resume.strip() or "\0" in resume:
            raise ConfigError(f"resume={resume!r}: must be auto, never, must, or the path of a run directory; type resume=auto")
        path, resume = Path(resume), "must"
    tracking.check(schema.section(schema.Logging, job.config.logging))
    if resume == "must" and not os.path.isdir(path):  # noqa: PTH112  # False also of a name that no file system takes
        raise CheckpointError(f"resume={job.config.resume}: there is no run in {path}; type resume=auto, never, must, or the path of a run")
    with Signals() as signals:
        run = rundir.claim(path)
        run.hidden = secrets.values(job.config)
        try:
            config = rundir.stored_config(job.config)
            if _is_done(run, config, resume):
                say(f"nothing to do: the run in {path} is done; type another hydra.run.dir, or more trainer.steps")
                return 0
            run.status("running")
            signals.before_exit = lambda number: run.status("stopped", f"signal {number}, the second", 128 + number)
            try:
                if not run.file("config.yaml").exists() and not _has_checkpoints(run):  # which may be of another configuration
                    rundir.describe(run, config, job.overrides)
                exit_code, cause = _train(job, run, resume, signals)
            except UserError as error:
                error.args = (secrets.hide(str(error), run.hidden),)
                _last_words(run, str(error), error.exit_code)
                raise
            except BaseException as error:
                _last_words(run, describe(error), 1)
                if isinstance(error, SystemExit):  # of code that the user has brought along: no reason to end as if all were well
                    raise RuntimeError(f"something called sys.exit({error.code})") from error
                raise
            run.status("stopped" if exit_code else "done", cause, exit_code)
            return exit_code
        finally:
            run.release()


def _dry_run(job: Job) -> int:
    started = time.monotonic()
    import_tensorflow()
    from trainer import dry_run

    dry_run.dry_run(job, started)
    return 0


def _replay(job: Job) -> int:
    path = job.run_dir
    if not os.path.isfile(path / "config.yaml"):  # noqa: PTH113  # False also of a name that no file system takes
        raise ConfigError(f"debug=nonfinite: {path} holds no run: type hydra.run.dir=DIRECTORY of one that has diverged")
    run = rundir.claim(path)
    run.hidden = secrets.values(job.config)
    try:
        before = run.config()
        if differing := rundir.differing_keys(before, rundir.stored_config(job.config)):
            raise ConfigError(f"{path} holds a run of another configuration ({'; '.join(differing)}): type those values")
        import_tensorflow()
        from trainer import replay

        replay.replay(job, run)
        return 0
    finally:
        run.release()


def _has_checkpoints(run: RunDir) -> bool:
    return any(run.file("checkpoints").glob("*step-*"))


def _last_words(run: RunDir, cause: str, exit_code: int) -> None:
    try:
        run.status("failed", cause, exit_code)
    except ConfigError as error:  # on a full disk, which is no reason to hide why the run has failed
        say(f"warning: {error}")


def _is_done(run: RunDir, config: str, resume: str) -> bool:
    """Whether the directory's run is finished; refuses a directory that `resume` or a different configuration forbids to go on in."""
    stored = run.file("config.yaml")
    if not stored.exists():
        if resume == "must":
            raise CheckpointError(f"resume=must: {run.path} holds no run; type resume=auto to start one")
        return False
    if resume == "never":
        raise ConfigError(f"resume=never: {run.path} already holds a run; type another hydra.run.dir, or resume=auto to go on")
    metrics = run.file("metrics.jsonl")
    logged = metrics.exists() and metrics.stat().st_size > 0
    if not logged and not _has_checkpoints(run):  # it ended before its first step: nothing to go on with
        return False
    before = run.config()
    if differing := rundir.differing_keys(before, config):
        raise ConfigError(
            f"{run.path} holds a run of another configuration ({'; '.join(differing)}): type those values, or another hydra.run.dir"
        )
    return rundir.is_finished(run.path, before, config)


def _train(job: Job, run: RunDir, resume: str, signals: Signals) -> tuple[int, str]:
    import_tensorflow()
    from trainer import training

    return training.train(job, run, resume, signals)


def import_tensorflow() -> None:
    """TensorFlow, here and not above: nothing that is refused before this line has to wait for it."""
    with quiet(), lean():
        from trainer import training  # noqa: F401  # its own imports, too, are to be lean
