"""A run's objects as they were at a checkpoint: data, model, loss, optimizer."""

import dataclasses
from pathlib import Path

import numpy as np

from losses.base import LossError
from trainer import build
from trainer.config import Job
from trainer.data.base import Source
from trainer.data.described import stand_in
from trainer.data.files import Csv, Npy, Npz
from trainer.data.others import with_others, without_targets
from trainer.data.prepare import Part, Prepared
from trainer.errors import CheckpointError, ConfigError, DataError, UserError
from trainer.json_files import read_json
from trainer.learner import Learner
from trainer.progress import say
from trainer.snapshots import Snapshot
from trainer.stored import Stored
from trainer.training import build_all


def with_its_data(job: Job, placement: build.Placement, snapshot: Snapshot, path: Path) -> tuple[Prepared, Learner]:
    """A run's data and learner as they were at a checkpoint.

    Raises:
        ConfigError: the data have changed since.
        CheckpointError: the checkpoint is of another model or optimizer.
    """
    _, data, learner, _ = build_all(job, placement=placement)
    if _checksum(snapshot) != data.fingerprint():
        raise ConfigError(f"the data are not those that the run in {path} has seen: bring them back")
    learner.restore(snapshot.arrays)
    return data, learner


def to_evaluate(run: Stored, placement: build.Placement) -> tuple[Prepared, Learner, bool]:
    """What a run is evaluated on, and what of it; and whether that is its own evaluation part.

    The run's own data, also where what was typed comes to the same, are divided as they were. Of other data every example is evaluated,
    prepared as the run's own were.
    """
    try:
        if run.other is None:
            return *with_its_data(run.job, placement, run.snapshot, run.path), True
        if _comes_to_the_same(run.other, run.snapshot):
            say("these are the data that the run has seen: their evaluation part is evaluated")
            return *with_its_data(run.other, placement, run.snapshot, run.path), True
        data, learner = _without_its_data(run, placement)
        source, shared = build.build_source(run.other)
        if isinstance(source, Csv | Npz | Npy) and source.targets == "auto":
            source = dataclasses.replace(source, targets=data.task)  # few examples may look like others
        if (want := build.fitted(run.other, source, learner.loss)) != data.want:
            raise DataError(f"data={run.other.choices['data']}: the targets are {want} to the loss; those of the run are {data.want}")
        return with_others(data, source, shared), learner, False
    except LossError as error:
        raise ConfigError(str(error)) from error


def to_predict(run: Stored, placement: build.Placement) -> tuple[Prepared, Learner, Part, np.ndarray]:
    """What a run's data were like, its learner, the features to predict, and the rows of their source that these are.

    Of data that were typed these are all, and they need not have targets; otherwise the run's evaluation part.
    """
    try:
        if run.other is None:
            data, learner = with_its_data(run.job, placement, run.snapshot, run.path)
            rows = data.evaluation_rows
            assert rows is not None
            return data, learner, data.evaluation, rows
        data, learner = _without_its_data(run, placement)
        part = without_targets(data, build.build_source(run.other)[0])
        return data, learner, part, np.arange(len(part))
    except LossError as error:
        raise ConfigError(str(error)) from error


def to_export(run: Stored, placement: build.Placement) -> tuple[Prepared, Learner, Source]:
    """What a run's data were like, its learner, and the source of the examples that were typed, or of its own."""
    try:
        data, learner = _without_its_data(run, placement)
        return data, learner, build.build_source(run.given)[0]
    except LossError as error:
        raise ConfigError(str(error)) from error


def _without_its_data(run: Stored, placement: build.Placement) -> tuple[Prepared, Learner]:
    """As `with_its_data`, where the data need not be there: zeros stand for them, unless data.json is missing."""
    path = run.path / "data.json"
    content = read_json(path)
    if content is None:  # of an earlier version, or lost
        say(f"warning: {path}, which says what the run's data were, is missing or damaged: its own data are read instead")
        return with_its_data(run.job, placement, run.snapshot, run.path)
    data = stand_in(content, str(path))
    if _checksum(run.snapshot) != data.fingerprint():
        raise CheckpointError(f"{path} is not of the data that the checkpoint of step {run.snapshot.step} has seen: bring it back")
    _, data, learner, _ = build_all(run.job, data, placement)
    learner.restore(run.snapshot.arrays)
    return data, learner


def _checksum(snapshot: Snapshot) -> str:
    """Of the data that a checkpoint has seen; of one that others have made it may be anything."""
    found = snapshot.state.get("data") if isinstance(snapshot.state, dict) else None
    return found if isinstance(found, str) else ""


def _comes_to_the_same(job: Job, snapshot: Snapshot) -> bool:
    """Whether a job's data are those that a checkpoint has seen, such as a file that was moved."""
    try:
        return build.build_data(job, build.build_loss(job), tell=False).fingerprint() == _checksum(snapshot)
    except UserError:  # too few to be divided, or of other kinds: said where they are used
        return False
