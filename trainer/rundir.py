"""The run directory: who may use it, and the files in it that describe the run. Imports no TensorFlow."""

import contextlib
import dataclasses
import fcntl
import hashlib
import importlib.metadata
import json
import os
import platform
import re
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from trainer import __version__, secrets
from trainer.errors import CheckpointError, ConfigError
from trainer.json_files import read_json

# What a run writes beside checkpoints and tensorboard; that by which it is known last.
FILES = (
    "metrics.jsonl", "summary.json", "environment.json", "data.json", "divergence.json", "mlflow.json", "overrides.txt", "config.yaml",
    "status.json",
)  # fmt: skip

# Keys that may change between a run and its continuation: they don't change what is learned, or say how long to learn.
_MAY_CHANGE = (
    "resume", "trust", "gradient", "trainer.steps", "trainer.epochs", "trainer.log_every", "trainer.eval_every", "trainer.steps_per_call",
    "trainer.on_nonfinite", "trainer.replay", "trainer.dry_run", "trainer.early_stopping", "strategy", "checkpoint", "logging", "sweep",
    "data.stream", "data.max_resident_mb",
)  # fmt: skip
# Keys that say nothing of what a run learns, nor how.
_NOT_TOLD = ("resume", "trust", "trainer.log_every", "trainer.replay", "checkpoint", "logging", "sweep")

# Keys that runs of earlier versions lack, with what they did: such a run goes on, and its checkpoints count.
_ADDED = {"trainer.overfit": False}


@dataclasses.dataclass
class RunDir:
    """A run directory that this process holds the lock of."""

    path: Path
    lock: int  # file descriptor; closing it, or the process's end however it comes, releases the lock
    hidden: set[str] = dataclasses.field(default_factory=set)  # secrets, which no file that is written here may show
    claimed: float = dataclasses.field(default_factory=time.monotonic)  # when this process took it, in seconds

    def release(self) -> None:
        """Gives the directory up to other processes."""
        os.close(self.lock)

    def file(self, name: str) -> Path:
        return self.path / name

    def read(self, name: str) -> dict[str, Any] | None:
        """The content of a JSON file, or None where there is none, or a damaged one."""
        return read_json(self.file(name))

    def config(self) -> str:
        """config.yaml as it is stored; CheckpointError where it can't be read."""
        try:
            return self.file("config.yaml").read_text(encoding="utf-8", errors="replace")
        except OSError as error:
            raise CheckpointError(
                f"{self.file('config.yaml')} can't be read: {error.strerror}: mend that, or type another hydra.run.dir"
            ) from error

    def write(self, name: str, content: Any) -> None:
        """Writes a JSON file whole or not at all."""
        self.write_text(name, json.dumps(secrets.hide(content, self.hidden), indent=2, allow_nan=False) + "\n")

    def write_text(self, name: str, text: str) -> None:
        """Writes a file whole or not at all; ConfigError where the disk is full, or the directory can't be written."""
        temporary = self.file(f".{name}.tmp")
        try:
            temporary.write_text(text, encoding="utf-8")
            temporary.replace(self.file(name))
        except OSError as error:
            with contextlib.suppress(OSError):
                temporary.unlink()
            raise ConfigError(
                f"{self.file(name)} can't be written: {error.strerror}: make room there, or type another hydra.run.dir"
            ) from error

    def status(self, state: str, cause: str | None = None, exit_code: int | None = None) -> None:
        self.write("status.json", {"state": state, "cause": cause, "exit_code": exit_code})


def claim(path: Path) -> RunDir:
    """Creates or reopens a run directory and locks it.

    Raises:
        ConfigError: it can't be written, another process runs in it, or it holds files that are not a run's.
    """
    try:
        if path.exists() and not is_ours(path):
            raise ConfigError(f"hydra.run.dir={path} is not empty and not a run of this program: type another, or an empty, directory")
        path.mkdir(parents=True, exist_ok=True)
        lock = os.open(path / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise ConfigError(f"hydra.run.dir={path} can't be written: {error.strerror}: type hydra.run.dir=DIRECTORY you may write") from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(lock)
        raise ConfigError(f"hydra.run.dir={path} is locked: another process is running there; type another directory") from error
    return RunDir(path, lock)


def is_locked(path: Path) -> bool:
    """Whether a process runs in a directory. Not to be asked of one where a run may just begin: who asks holds a lock for a moment."""
    try:
        lock = os.open(path / ".lock", os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return False
    try:
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(lock)
    return False


def is_ours(path: Path) -> bool:
    """Whether a directory is a run's, by its content and not by names that others use too; or holds nothing yet but a lock."""
    if all(entry.name == ".lock" or entry.name.endswith(".tmp") for entry in path.iterdir()):
        return True
    if any(path.glob("checkpoints/step-*/manifest.json")):
        return True
    if (read_json(path / "status.json") or {}).keys() >= {"state", "cause", "exit_code"}:
        return True
    with contextlib.suppress(OSError, ValueError):
        keys = re.findall(r"^(\w+):", (path / "config.yaml").read_text(encoding="utf-8"), re.MULTILINE)
        return set(keys) >= {"model", "data", "loss", "gradient", "optimizer", "trainer", "checkpoint"}
    return False


def stored_config(config: DictConfig) -> str:
    """The configuration as it is kept: resolved, but environment variables stay references and literal secrets are left out."""
    with secrets.environment(secrets.reference):
        return OmegaConf.to_yaml(OmegaConf.create(_storable(config, "")))


def _storable(node: DictConfig | ListConfig, key: str) -> Any:
    if OmegaConf.is_list(node):
        return [_stored_value(node, index, key) for index in range(len(node))]
    return {name: _stored_value(node, name, secrets.inner(key, str(name))) for name in node}


def _stored_value(node: Any, name: Any, key: str) -> Any:
    if OmegaConf.is_missing(node, name):
        return "???"
    try:
        value = node[name]
    except OmegaConfBaseException:  # a reference into the environment where a number must be, or what only the run's end will tell
        raw: Any = OmegaConf.to_container(node, resolve=False)
        value = raw[name]
    if OmegaConf.is_config(value):
        return None if value._is_none() else _storable(value, key)
    return "***" if secrets.is_hidden(key, value) and "${oc.env:" not in str(value) else value


def differing_keys(stored: str, current: str) -> list[str]:
    """Keys, with both values, in which two stored configurations differ and that a continued run may not change."""
    before, now = (_ADDED | flat(parsed(text)) for text in (stored, current))
    keys = [key for key in sorted(before.keys() | now.keys()) if before.get(key) != now.get(key)]
    return [f"{key}: {before.get(key)} -> {now.get(key)}" for key in keys if not _may_change(key)]


def fingerprint(stored: str) -> str:
    """The SHA-256 of what a continued run may not change of a stored configuration."""
    config = flat(parsed(stored))
    told = [key for key in sorted(config) if not _may_change(key) and (key not in _ADDED or config[key] != _ADDED[key])]
    return hashlib.sha256(json.dumps({key: config[key] for key in told}).encode()).hexdigest()


def _may_change(key: str) -> bool:
    return is_within(key, _MAY_CHANGE)


def is_within(key: str, names: Sequence[str]) -> bool:
    """Whether a key is one of these, or within a section that is."""
    return any(f"{key}.".startswith(f"{name}.") for name in names)


def is_finished(path: Path, stored: str, current: str) -> bool:
    """Whether the run in a directory has come to the end that the current configuration asks for."""
    length = [parsed(text).get("trainer") or {} for text in (stored, current)]
    same_length = all(length[0].get(key) == length[1].get(key) for key in ("steps", "epochs"))
    status = read_json(path / "status.json") or {}  # one that is damaged says nothing, and the checkpoints tell
    return status.get("state") == "done" and same_length


def parsed(text: str) -> dict[str, Any]:
    """A stored configuration as nested dicts; references stay text, and nothing in it is built or called.

    Raises:
        CheckpointError: it is damaged.
    """
    try:
        container = OmegaConf.to_container(OmegaConf.create(text), resolve=False)
    except (yaml.YAMLError, OmegaConfBaseException, ValueError, RecursionError) as error:
        raise _damaged(str(error).partition("\n")[0]) from error
    if not isinstance(container, dict):
        raise _damaged("it holds no keys")
    return {str(key): value for key, value in container.items()}


def _damaged(why: str) -> CheckpointError:
    return CheckpointError(f"config.yaml of the run is damaged ({why}): bring it back, or type another hydra.run.dir")


def flat(node: Any, prefix: str = "") -> dict[str, Any]:
    """Nested dicts as one, of keys joined by dots."""
    if not isinstance(node, dict):
        return {prefix: node}
    return {key: value for name, child in node.items() for key, value in flat(child, f"{prefix}.{name}" if prefix else str(name)).items()}


def hyperparameters(stored: str, choices: Mapping[str, str]) -> dict[str, bool | int | float | str]:
    """What tells a run from others: its choices, and every key of its stored configuration that says what it learns, and how.

    Args:
        stored: the configuration as it is kept.
        choices: group to chosen file, which stands for what the group's `_target_` names.

    Returns:
        Key to value: a list as text, and null as "null", so that a key which is null in one run and a number in another differs.
    """
    told: dict[str, bool | int | float | str] = {}
    for key, value in flat(parsed(stored)).items():
        group = key.removesuffix("._target_")
        if group != key and group in choices:
            told[group] = choices[group]
        elif value != "***" and not is_within(key, _NOT_TOLD):
            told[key] = value if isinstance(value, bool | int | float | str) else json.dumps(value)
    return told


def describe(run: RunDir, config: str, overrides: tuple[str, ...]) -> None:
    """Writes config.yaml and overrides.txt, without secrets."""
    run.write_text("config.yaml", secrets.hide(config, run.hidden))
    run.write_text("overrides.txt", secrets.hide("".join(f"{secrets.masked(override)}\n" for override in overrides), run.hidden))


def stored_overrides(path: Path) -> list[str]:
    """What the run in a directory was asked for, without secrets."""
    file = path / "overrides.txt"
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):  # there is no run, as who needs one will say
        return []
    return [line for line in lines if not line.endswith("=***")]


def environment(devices: list[str]) -> dict[str, Any]:
    """What the run runs on: versions, devices, command, and the state of the git checkout in the current folder."""
    packages = ("gradtrain", "tensorflow", "keras", "hydra-core", "omegaconf", "tensorboard", "numpy", "scikit-learn")
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": versions(packages),
        "devices": devices,
        "num_cpus": os.cpu_count(),
        "git_commit": _git("rev-parse", "HEAD"),
        "git_diff": _git("diff", "HEAD"),
    }


def versions(packages: Sequence[str]) -> dict[str, str | None]:
    """By package; None where it is not installed."""
    return {name: __version__ if name == "gradtrain" else _version(name) for name in packages}


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _git(*arguments: str) -> str | None:
    try:
        result = subprocess.run(["git", *arguments], capture_output=True, text=True, timeout=10, check=True, errors="replace")
    except (OSError, subprocess.SubprocessError):
        return None  # no git, or no checkout: nothing to record
    return result.stdout.strip()
