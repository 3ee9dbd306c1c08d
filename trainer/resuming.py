"""Going on from a checkpoint: which one, whether it is this run's, and what has changed since."""

import os
import platform
from typing import Any

from trainer import compiling, rundir, snapshots
from trainer.config import Job
from trainer.data.prepare import Prepared
from trainer.errors import CheckpointError, ConfigError
from trainer.json_files import last_row
from trainer.learner import Learner
from trainer.loop import State
from trainer.progress import say
from trainer.rollback import Rollback
from trainer.rundir import RunDir


def about(job: Job) -> dict[str, Any]:
    """What a checkpoint says of its run."""
    return {
        "seed": job.config.seed,
        "config_sha256": rundir.fingerprint(rundir.stored_config(job.config)),
        "versions": {"python": platform.python_version()} | rundir.versions(("gradtrain", "tensorflow", "keras", "numpy")),
    }


def restore(job: Job, run: RunDir, resume: str, learner: Learner, num_steps: int, data: Prepared) -> tuple[State, str | None]:
    """Where the run stands, and how its chunk has been compiled, if it can be so here; the learner's variables are set to it."""
    folder = run.file("checkpoints")
    if folder.exists() and not os.access(folder, os.W_OK | os.X_OK):
        raise ConfigError(f"{folder} can't be written: type another hydra.run.dir, or chmod u+rwx {folder}")
    snapshots.clean(folder)
    snapshot, problems = snapshots.load_newest(folder)
    for problem in problems:
        say(f"warning: {problem}; going back to an older checkpoint")
    if snapshot is None:
        if resume == "must":
            raise CheckpointError(f"resume=must: there is no checkpoint in {folder}; type resume=auto to start afresh")
        if logged := last_row(run.file("metrics.jsonl")):
            say(f"warning: no checkpoint in {folder}: the run begins anew, and so does metrics.jsonl, which went to step {logged['step']}")
        return State(), None
    try:
        state = State(**snapshot.state["loop"])
        fingerprint, before, length, way = (snapshot.state[key] for key in ("data", "gradient_mode", "num_steps", "compile"))
        _check_about(about(job), snapshot, run)
    except (KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"the checkpoint of step {snapshot.step} in {run.path} is not of this program, or of another version of it "
            f"({type(error).__name__}: {error}): type another hydra.run.dir"
        ) from error
    if state.step != snapshot.step:
        raise CheckpointError(
            f"the checkpoint of step {snapshot.step} in {run.path} holds the state of step {state.step}: type another hydra.run.dir"
        )
    if fingerprint != data.fingerprint():
        raise ConfigError(f"the data are not those that the run in {run.path} has seen: type another hydra.run.dir, or bring them back")
    learner.restore(snapshot.arrays)
    if length != num_steps and not isinstance(learner.optimizer.get_config()["learning_rate"], float):
        say(f"the learning rate's schedule spanned {length} steps until step {state.step}; from here it spans {num_steps}")
    if before != learner.gradient_mode:
        say(f"the run went by gradient={before} until step {state.step}; from here by gradient={learner.gradient_mode}")
    return state, way if way in compiling.possible(learner) else None  # going on to the bit: XLA rounds in its own way


def hold_anchor(run: RunDir, state: State, rollback: Rollback) -> None:
    """Lets a resumed run roll back to the checkpoint that the run would have gone back to undisturbed."""
    if state.anchor == 0:  # the beginning, which is held already
        return
    try:
        rollback.arrays = snapshots.load(run.file("checkpoints") / f"step-{state.anchor:08d}").arrays
    except CheckpointError as error:
        say(f"warning: {error}; trainer.on_nonfinite=rollback goes back to step {state.step} instead")
        state.anchor = state.step
        rollback.hold()


def _check_about(now: dict[str, Any], snapshot: snapshots.Snapshot, run: RunDir) -> None:
    """Refuses a checkpoint of another configuration (config.yaml was lost, or the checkpoint moved here); says which versions changed."""
    before = snapshot.about
    if before["config_sha256"] != now["config_sha256"]:
        raise ConfigError(
            f"the checkpoint of step {snapshot.step} in {run.path} is of another configuration: type that one, or another hydra.run.dir"
        )
    known = before["versions"]
    changed = [f"{name} {known.get(name)} -> {version}" for name, version in now["versions"].items() if known.get(name) != version]
    if changed:
        say(f"since step {snapshot.step} versions have changed ({', '.join(changed)}): results may differ in their last bits")
