"""`sweep.optuna.trials=20`: a search by Optuna in place of every combination. Imports no TensorFlow.

Optuna says which values are tried; the jobs are a sweep's. A study is a database that outlives the command: trials that have ended are
not run again, one that was interrupted goes on. The sampler of the n-th trial is seeded by the seed and n alone, so that a study that was
interrupted has the trials of one that was not, where they run one after another.
"""

import concurrent.futures
import contextlib
import dataclasses
import fcntl
import json
import math
import sys
import time
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import sqlalchemy.exc
from optuna.trial import FrozenTrial, TrialState
from rich.console import Console
from rich.table import Table

from trainer import config, expansion, rundir, schema
from trainer.config import Job
from trainer.errors import ConfigError
from trainer.isolation import Outcome
from trainer.progress import is_terminal, say
from trainer.runner import Runner, shown
from trainer.space import Space
from trainer.validation import suggestion

_SECONDS_TO_LEAVE = 60.0  # that a job of a search that was killed may take to end
_ABOUT = "gradtrain"  # what a study is about, kept with it


def run(overrides: Sequence[str], config_dir: Path | None = None) -> int:
    """Runs the trials that the study lacks, prints all of them, and writes the best to optuna.json.

    Returns:
        0 if every trial of the study is done, 1 if one failed, 128 + the signal that stopped the search.

    Raises:
        ConfigError: a value that may be tried is wrong, or the study in the database is another; then no trial is started. Or a run's
            summary has no such objective. Or the database can't be used, from the start or at any time.
    """
    space = Space(expansion.parse(overrides, config_dir), config_dir)
    first = space.check()
    settings = schema.section(schema.Optuna, first.config.sweep.optuna)
    _check(settings, first, space)
    objectives = settings.objectives or [settings.objective]
    folder = config.sweep_dir(first.overrides, config_dir)
    with _alone(folder), _database(settings, folder, optuna.exceptions.StorageInternalError, sqlalchemy.exc.SQLAlchemyError):
        study = _open(settings, folder, objectives, space)
        runner = Runner(dataclasses.replace(first, run_dir=folder / "first"), settings.trials or 1, first.config.sweep.parallel or 1)
        problem = _run_trials(study, settings, objectives, space, folder, runner)
        trials = _counted(study, space)
        _write(study, objectives, space, folder, trials)
        if problem:
            raise problem
        _print(study, objectives, space, trials)
        done = sum(trial.state == TrialState.COMPLETE for trial in trials)
        say(f"{done} of {settings.trials} trials done, in {folder}")
        for trial in _best(study):
            found = "  ".join(f"{name} {shown(value)}" for name, value in zip(objectives, trial.values, strict=True))
            place = space.directory(folder, trial.params, trial.number)
            say(f"best: trial {trial.number + 1}  {found}  {space.label(trial.params)}  in {place}")
    if runner.signals.received is not None:
        return 128 + runner.signals.received
    return int(done < len(trials))


def _check(settings: schema.Optuna, first: Job, space: Space) -> None:
    if settings.trials is None:
        raise ConfigError("sweep.optuna.trials=null: a search needs a number of trials; type sweep.optuna.trials=20")
    if not space.distributions:
        raise ConfigError(
            f"sweep.optuna.trials={settings.trials}: nothing is searched; type for example "
            "'optimizer.learning_rate=tag(log,interval(1e-4,1e-1))' or model.hidden=[32],[64]"
        )
    if settings.storage is not None and not space.storage_is_typed:
        raise ConfigError("sweep.optuna.storage is set in a configuration file; it counts on the command line alone: type it there")
    expansion.check_no_dry_run(first)
    if first.config.sweep.compare:
        raise ConfigError("sweep.compare=true: trials of a search differ in several keys at once; leave it out")
    if settings.objectives and settings.objective != schema.Optuna.objective:
        raise ConfigError(f"sweep.optuna.objective={settings.objective} and sweep.optuna.objectives: type one of the two")
    number = len(settings.objectives) or 1
    if settings.directions and (len(settings.directions) != number or set(settings.directions) - {"minimize", "maximize"}):
        raise ConfigError(
            f"sweep.optuna.directions=[{','.join(settings.directions)}]: must be minimize or maximize for each of {number} objectives; "
            f"type sweep.optuna.directions=[{','.join(['minimize'] * number)}]"
        )


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Within it, no other search runs in this folder."""
    with contextlib.ExitStack() as held:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            lock = held.enter_context(open(folder / ".optuna.lock", "w", encoding="utf-8"))
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ConfigError(f"hydra.sweep.dir={folder}: another search is running there; type another directory") from error
        except OSError as error:
            raise ConfigError(f"hydra.sweep.dir={folder} can't be written: {error.strerror}; type a directory you may write") from error
        yield


def _open(settings: schema.Optuna, folder: Path, objectives: Sequence[str], space: Space) -> optuna.Study:
    """The study in the database, a new one where there is none.

    Raises:
        ConfigError: the database can't be opened, or its study is about something else.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    own = str((folder / "optuna.db").absolute()).replace("{", "{{").replace("}", "}}")  # Optuna fills in what stands in braces
    url = settings.storage or f"sqlite:///{own}"
    directions = settings.directions or ["maximize" if name in schema.LARGER_IS_BETTER else "minimize" for name in objectives]
    wanted = [optuna.study.StudyDirection[name.upper()] for name in directions]
    about = {"objectives": list(objectives), "directions": directions, "searched": sorted(space.distributions), "typed": space.fixed()}
    with _database(settings, folder, Exception):  # of SQLAlchemy, of a database's driver, or of Optuna
        storage = optuna.storages.RDBStorage(url, engine_kwargs={"connect_args": {"timeout": 60}} if url.startswith("sqlite") else None)
        study = optuna.create_study(storage=storage, study_name=settings.study_name, directions=wanted, load_if_exists=True)
        before = study.user_attrs.get(_ABOUT)
        if before is None and not study.get_trials(deepcopy=False):
            study.set_user_attr(_ABOUT, before := about)
    if before != about:
        old = before if isinstance(before, dict) else {}
        differing = [f"{key}: {old.get(key)} -> {value}" for key, value in about.items() if old.get(key) != value]
        raise ConfigError(
            f"the study {settings.study_name} is about something else ({'; '.join(differing)}): type the same, another hydra.sweep.dir, "
            "or another sweep.optuna.study_name"
        )
    for trial in study.get_trials(deepcopy=False):
        for key, distribution in trial.distributions.items():
            try:
                optuna.distributions.check_distribution_compatibility(distribution, space.distributions[key])
            except (KeyError, ValueError) as error:
                raise ConfigError(
                    f"{key}: the study {settings.study_name} has other choices of it: type the same, or another hydra.sweep.dir"
                ) from error
    return study


@contextlib.contextmanager
def _database(settings: schema.Optuna, folder: Path, *kinds: type[Exception]) -> Iterator[None]:
    """Within it, errors of these kinds are the database's: it is damaged, locked, or its disk is full."""
    try:
        yield
    except kinds as error:
        name = "sweep.optuna.storage" if settings.storage else f"the study in {folder / 'optuna.db'}"
        reason = next(iter(str(error.__cause__ or error).splitlines()), type(error).__name__)
        raise ConfigError(
            f"{name} can't be used: {reason}; type sweep.optuna.storage=sqlite:///FILE.db, or another hydra.sweep.dir"
        ) from error


def _run_trials(
    study: optuna.Study, settings: schema.Optuna, objectives: Sequence[str], space: Space, folder: Path, runner: Runner
) -> ConfigError | None:
    """Runs what the study lacks; what is wrong with the objectives, as soon as one trial shows it."""
    again = deque(_interrupted(study, space, folder))
    asked = len(_counted(study, space))
    running: dict[concurrent.futures.Future[Outcome], list[int]] = {}  # trials; two with the same values are one job
    places: dict[Path, concurrent.futures.Future[Outcome]] = {}
    problem: ConfigError | None = None
    with runner:
        while True:
            while len(running) < runner.at_once and runner.signals.received is None and problem is None:
                if again:
                    number, params = again.popleft()
                elif asked < (settings.trials or 0):
                    study.sampler = _sampler(settings, asked)
                    trial = study.ask(space.distributions)
                    number, params = trial.number, trial.params
                    asked += 1
                else:
                    break
                try:
                    job = space.job(params, number, folder)
                except ConfigError as error:  # values that are wrong together
                    print(f"[{number + 1}/{settings.trials}] {space.label(params)} failed: {error}", file=sys.stderr, flush=True)
                    study.tell(number, state=TrialState.FAIL)
                    continue
                if places.get(job.run_dir) in running:
                    running[places[job.run_dir]].append(number)
                    continue
                places[job.run_dir] = runner.start(number + 1, job, space.label(params))
                running[places[job.run_dir]] = [number]
            if not running:
                return problem
            finished, _ = concurrent.futures.wait(running, return_when=concurrent.futures.FIRST_COMPLETED)
            for future in finished:
                outcome = future.result()
                for number in running.pop(future):
                    problem = _tell(study, number, outcome, objectives) or problem


def _interrupted(study: optuna.Study, space: Space, folder: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Trials that an earlier command has started and not ended; one that had not got its values yet has failed, and counts for nothing."""
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        if trial.params.keys() != space.distributions.keys():
            study.tell(trial.number, state=TrialState.FAIL)
            continue
        _wait_until_left(space.directory(folder, trial.params, trial.number))
        yield trial.number, trial.params


def _counted(study: optuna.Study, space: Space) -> list[FrozenTrial]:
    return [trial for trial in study.get_trials(deepcopy=False) if trial.params.keys() == space.distributions.keys()]


def _wait_until_left(run_dir: Path) -> None:
    """A job ends by itself when its search was killed, but not at once."""
    deadline = time.monotonic() + _SECONDS_TO_LEAVE
    while rundir.is_locked(run_dir) and time.monotonic() < deadline:
        time.sleep(0.1)


def _sampler(settings: schema.Optuna, index: int) -> optuna.samplers.BaseSampler:
    """For the trial of this index: a sampler keeps nothing but the state of its random numbers, all else is in the study."""
    kinds = {"tpe": optuna.samplers.TPESampler, "random": optuna.samplers.RandomSampler, "nsgaii": optuna.samplers.NSGAIISampler}
    return kinds[settings.sampler](seed=int(np.random.SeedSequence([settings.seed, index]).generate_state(1)[0]))


def _tell(study: optuna.Study, number: int, outcome: Outcome, objectives: Sequence[str]) -> ConfigError | None:
    if outcome.state in ("stopped", "not run"):
        return None  # it stays running, for the same command to go on with
    if outcome.state == "failed":
        study.tell(number, state=TrialState.FAIL)
        return None
    figures = {name: value for name, value in outcome.summary.items() if isinstance(value, int | float)} | outcome.summary.get("final", {})
    if missing := [name for name in objectives if name not in figures]:
        study.tell(number, state=TrialState.FAIL)
        known = suggestion(missing[0], sorted(figures))
        return ConfigError(f"sweep.optuna.objective={missing[0]}: a run's summary.json has no such number; type one that it has{known}")
    values = [float(figures[name]) for name in objectives]
    if all(map(math.isfinite, values)):
        study.tell(number, values)
    else:
        print(f"trial {number + 1} failed: its objectives are {values}", file=sys.stderr, flush=True)
        study.tell(number, state=TrialState.FAIL)
    return None


def _best(study: optuna.Study) -> list[FrozenTrial]:
    """The best trial, or, of several objectives, those that no other is better than in all of them."""
    if not study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)):
        return []
    return [study.best_trial] if len(study.directions) == 1 else study.best_trials


def _write(study: optuna.Study, objectives: Sequence[str], space: Space, folder: Path, trials: Sequence[FrozenTrial]) -> None:
    content = {
        "study": study.study_name,
        "objectives": dict(zip(objectives, (direction.name.lower() for direction in study.directions), strict=True)),
        "trials": {state.name.lower(): sum(trial.state == state for trial in trials) for state in TrialState},
        "best": [
            {
                "trial": trial.number + 1,
                "values": dict(zip(objectives, trial.values, strict=True)),
                "params": trial.params,
                "directory": str(space.directory(folder, trial.params, trial.number)),
            }
            for trial in _best(study)
        ],
    }
    temporary = folder / ".optuna.json.tmp"
    temporary.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    temporary.replace(folder / "optuna.json")


def _print(study: optuna.Study, objectives: Sequence[str], space: Space, trials: Sequence[FrozenTrial]) -> None:
    states = {TrialState.COMPLETE: "done", TrialState.FAIL: "failed", TrialState.RUNNING: "stopped"}
    best = {trial.number for trial in _best(study)}
    table = Table(box=None, header_style="bold")
    for title in ("trial", *objectives):
        table.add_column(title, justify="right")
    table.add_column("state")
    for key in space.distributions:
        table.add_column(key, overflow="fold")
    for trial in trials:
        values = map(shown, trial.values) if trial.values else [""] * len(objectives)
        state = states.get(trial.state, trial.state.name.lower()) + (", best" if trial.number in best else "")
        table.add_row(str(trial.number + 1), *values, state, *(shown(trial.params[key]) for key in space.distributions))
    if sys.stdout is not None:
        Console(width=None if is_terminal() else 80 + 30 * len(space.distributions)).print(table)
