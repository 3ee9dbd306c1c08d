"""A run as its directory tells it: what it was asked for, its checkpoints, what it has recorded. Imports no TensorFlow.

Directories may be of others: what is read here is compared, or taken as if it were typed, but for `trust`.
"""

import argparse
import contextlib
import dataclasses
import json
import math
import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from trainer import config, rundir, schema, secrets, snapshots
from trainer.arguments import Parser, run_folder
from trainer.config import Job
from trainer.errors import CheckpointError, ConfigError
from trainer.progress import say
from trainer.snapshots import Snapshot
from trainer.validation import suggestion

# Of data: what a run has made of them stays the run's, whatever data it is given later.
_OF_THE_RUN = ("data.split_seed", "data.eval_fraction", "data.standardize", "data.class_weight")
_SHARED = {f"data.{field.name}" for field in dataclasses.fields(schema.Data)} - {"data.sample_weight"}

OPTIONS = """\
  --checkpoint WHICH  latest (the default), best (by checkpoint.monitor), or a step
  --config-dir DIR    a folder with YAML files of your own, as for training; a package of yours: "trust=[my_package]"
"""


@dataclasses.dataclass(frozen=True)
class Stored:
    """A run at a checkpoint, and the data that a command was given for it."""

    path: Path
    job: Job  # what the run was asked for
    other: Job | None  # the same with the data that were typed; None: the run's own
    snapshot: Snapshot

    @property
    def given(self) -> Job:
        """The job whose data are meant."""
        return self.other or self.job

    @property
    def typed(self) -> list[str]:
        """What was typed of data, without secrets."""
        words = [] if self.other is None else [word for word in self.other.overrides if word not in self.job.overrides]
        return [secrets.masked(word) for word in words if _key(word) != "trust"]

    @property
    def best_step(self) -> int | None:
        """Of the best evaluation until the checkpoint."""
        return _best_step(self.snapshot)

    def hide(self, content: Any) -> Any:
        """Text, or nested dicts and lists, without the secrets of the run and of what was typed."""
        return secrets.hide(content, secrets.values(self.job.config) | secrets.values(self.given.config))


def parser(command: str) -> Parser:
    """Reads what all commands on stored runs take."""
    made = Parser(command)
    made.add_argument("run", nargs="?")
    made.add_argument("overrides", nargs="*")
    made.add_argument("--checkpoint", default="latest")
    made.add_argument("-cd", "--config-dir")
    return made


def read(options: argparse.Namespace, command: str, rest: str = "", needs_targets: bool = True) -> Stored:
    """The run that a command line names.

    Args:
        options: of `parser`, or of one that has more.
        command: what the user types, for messages.
        rest: what else it wants, for messages too.
        needs_targets: whether those of other data are read.

    Raises:
        ConfigError: there is no such run; it was made with other configuration files; what is typed is not of data.
        CheckpointError: it has no such checkpoint, or a damaged one.
    """
    path = run_folder(options.run, command, rest)
    _check_typed(options.overrides, command)
    _check_which(options.checkpoint)
    config_dir = Path(options.config_dir) if options.config_dir is not None else None
    trusted = [word for word in options.overrides if _key(word) == "trust"]
    own = _own_job(path, trusted, config_dir)
    data = [word for word in options.overrides if word not in trusted]
    other = _other_job(path, own, [*trusted, *data], config_dir, needs_targets) if data else None
    return Stored(path, own, other, checkpoint(path, options.checkpoint))


def _other_job(path: Path, own: Job, typed: list[str], config_dir: Path | None, needs_targets: bool) -> Job:
    """The run's job with the data that are typed."""
    keys = [_key(word) for word in typed]
    if "data=csv" in typed and own.choices["data"] != "csv" and "data.target" not in keys and not needs_targets:
        typed = [*typed, "data.target=''"]  # a key that must be given, of a column that is not read
    try:
        return job_of(path, typed, config_dir, own.choices)
    except ConfigError as error:
        if "data" in keys:
            raise
        raise ConfigError(f"{error}; the run has data={own.choices['data']}, and other ones are typed with data=CHOICE too") from error


def job_of(path: Path, typed: Sequence[str], config_dir: Path | None, choices: Mapping[str, str] | None = None) -> Job:
    """The job of the run in a directory, but for what is typed anew, and what the command line alone may say.

    Args:
        path: of the run.
        typed: overrides, which replace the run's.
        config_dir: a folder of the user's own configuration files.
        choices: of the run: where other data are chosen, the keys of its own don't belong to them.
    """
    # By the keys that the grammar reads, not by how a line looks: a file must not be able to say trust=[...].
    values = {override.key_or_group: override.value() for override in config.parse(typed, config_dir)}
    others = choices is not None and values.get("data", choices.get("data")) != choices.get("data")
    kept = []
    for override in config.parse(rundir.stored_overrides(path), config_dir):
        key = override.key_or_group
        of_the_others = others and key.startswith("data.") and key not in _SHARED
        if key not in {"trust", "resume", *values} and not override.is_hydra_override() and not of_the_others:
            kept.append(str(override.input_line))
    return config.load([*kept, *typed], config_dir)


def _own_job(path: Path, trusted: Sequence[str], config_dir: Path | None) -> Job:
    if not (path / "overrides.txt").is_file():
        raise ConfigError(f"{path} has no overrides.txt, which says what the run was asked for: bring it back")
    try:
        own = job_of(path, trusted, config_dir)
    except ConfigError as error:
        hint = "" if config_dir else "; if the run was made with files of your own, type --config-dir DIR again"
        raise ConfigError(f"the run in {path}: {error}{hint}") from error
    try:
        before = (path / "config.yaml").read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise CheckpointError(f"{path / 'config.yaml'} can't be read: {error.strerror}: bring it back") from error
    if differing := rundir.differing_keys(before, rundir.stored_config(own.config)):
        raise ConfigError(
            f"the run in {path} was made with other configuration files ({'; '.join(differing[:3])}): name their folder by --config-dir DIR"
        )
    return own


def _check_typed(words: Sequence[str], command: str) -> None:
    for word in words:
        key = _key(word)
        if key in _OF_THE_RUN:
            raise ConfigError(f"{word}: that is decided by the run, for other data too: leave it out")
        if key not in ("data", "trust") and not key.startswith("data."):
            close = suggestion(key, ["data", "trust", "data.path"]) if "=" in word else f"; {command} takes one run"
            raise ConfigError(f"{word}: beside the run, only data=CHOICE, data.KEY=VALUE and trust=[my_package] are typed{close}")


def _key(word: str) -> str:
    return word.partition("=")[0].lstrip("+")


def _check_which(which: str) -> None:
    if which not in ("latest", "best") and not re.fullmatch(r"\d{1,12}", which):
        raise ConfigError(f"--checkpoint={which}: must be latest, best or a step{suggestion(which, ['latest', 'best'])}")


def checkpoint(path: Path, which: str) -> Snapshot:
    """One of a run's checkpoints; nothing is written, moved or set aside.

    Args:
        path: of the run.
        which: latest, best, or a step.

    Raises:
        CheckpointError: there is none such, or it is damaged.
    """
    folder = path / "checkpoints"
    there = dict(snapshots.steps(folder))
    if which not in ("latest", "best"):
        return _of_step(folder, int(which), list(there))
    problems = []
    for one in there.values():  # the newest first
        try:
            latest = snapshots.load(one)
        except CheckpointError as error:
            problems.append(str(error))
            continue
        for problem in problems:
            say(f"warning: {problem}; step {latest.step} is taken")
        best = _best_step(latest)
        if which == "best" and best is None:
            say(f"the run in {path} has not been evaluated before step {latest.step}, which is taken")
        return latest if which == "latest" or best in (None, latest.step) else _of_step(folder, best, list(there))
    raise CheckpointError("; ".join(problems) if problems else f"there is no checkpoint in {folder}: train it by the command that made it")


def _of_step(folder: Path, step: int | None, steps: Sequence[int]) -> Snapshot:
    if step not in steps:
        raise CheckpointError(f"there is no checkpoint of step {step} in {folder}: there is {', '.join(map(str, steps)) or 'none'}")
    return snapshots.load(folder / f"step-{step:08d}")


def _best_step(snapshot: Snapshot) -> int | None:
    try:
        step = snapshot.state["loop"]["best"]["step"]
        return int(step)
    except (KeyError, TypeError, ValueError, OverflowError):  # no evaluation yet, or a file of others
        return None


def recorded(path: Path, step: int) -> dict[str, float]:
    """What the run itself has found when it was evaluated at a step; empty where it was not."""
    found: dict[str, float] = {}
    with contextlib.suppress(OSError), open(path / "metrics.jsonl", "rb") as lines:
        for line in lines:
            if b'"eval/' not in line:
                continue
            with contextlib.suppress(ValueError, RecursionError):
                row = json.loads(line)
                if isinstance(row, dict) and row.get("step") == step:
                    found = {tag: _number(value) for tag, value in row.items() if tag.startswith("eval/")}
    return found


def _number(value: Any) -> float:
    """Of "NaN" and "inf" too; NaN for what is none."""
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        return math.nan


def check_output(path: Path, option: str, run: Stored) -> None:
    """Refuses to write over what a run has recorded, or over the data that it is given.

    Raises:
        ConfigError: with what to type.
    """
    read = [run.path / name for name in rundir.FILES]
    data = run.given.config.data.get("path")
    if isinstance(data, str):
        folder = Path(data).expanduser()
        read += [folder, folder / path.name]
    if any(_is_same(path, one) for one in read):
        raise ConfigError(f"{path} holds what is read, and would be overwritten: type {option}=FILE, another one")


def _is_same(path: Path, other: Path) -> bool:
    with contextlib.suppress(OSError, ValueError):
        return path.samefile(other)
    return False


def write(path: Path, option: str, content: Callable[[IO[bytes]], object]) -> None:
    """Writes a file whole or not at all, and through no link: the folder may be that of a run of others.

    Raises:
        ConfigError: it can't be written; with the option that names another place.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "xb") as file:
            content(file)
        temporary.replace(path)
    except OSError as error:
        raise ConfigError(f"{path} can't be written: {error.strerror}: type {option}=FILE, in a folder that you may write") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()
