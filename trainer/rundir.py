"""The run directory: who may use it, and the files in it that describe the run. Imports no TensorFlow."""

import contextlib
import dataclasses
import fcntl
import hashlib
import importlib.metadata
import json
import os
import platform
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from trainer import __version__
from trainer.config import is_secret
from trainer.errors import ConfigError

# Keys that may change between a run and its continuation: they don't change what is learned, or say how long to learn.
_MAY_CHANGE = (
    "resume", "trust", "gradient", "trainer.steps", "trainer.epochs", "trainer.log_every", "trainer.eval_every", "trainer.steps_per_call",
    "trainer.on_nonfinite", "trainer.replay", "trainer.early_stopping", "strategy", "checkpoint", "logging", "data.stream",
    "data.max_resident_mb",
)  # fmt: skip


@dataclasses.dataclass
class RunDir:
    """A run directory that this process holds the lock of."""

    path: Path
    lock: int  # file descriptor; closing it, or the process's end however it comes, releases the lock
    claimed: float = dataclasses.field(default_factory=time.monotonic)  # when this process took it, in seconds

    def release(self) -> None:
        """Gives the directory up to other processes."""
        os.close(self.lock)

    def file(self, name: str) -> Path:
        return self.path / name

    def read(self, name: str) -> Any:
        """The content of a JSON file, or None where there is none."""
        path = self.file(name)
        return json.loads(path.read_text()) if path.exists() else None

    def write(self, name: str, content: Any) -> None:
        """Writes a JSON file whole or not at all."""
        self.write_text(name, json.dumps(content, indent=2, allow_nan=False) + "\n")

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
    ours = (path / "config.yaml").exists() or (path / ".lock").exists()
    try:
        if path.exists() and not ours and any(path.iterdir()):
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


def stored_config(config: DictConfig) -> str:
    """The configuration as it is kept: resolved, but environment variables stay references and literal secrets are left out."""
    container = OmegaConf.create(_storable(OmegaConf.to_container(config, resolve=False)))
    return OmegaConf.to_yaml(container, resolve=True)


def _storable(node: Any, key: str = "") -> Any:
    if isinstance(node, dict):
        return {name: _storable(value, str(name)) for name, value in node.items()}
    if isinstance(node, list):
        return [_storable(value, key) for value in node]
    if isinstance(node, str) and "${oc.env:" in node:
        return node.replace("${oc.env:", "\\${oc.env:")  # escaped: resolves to the reference itself, also through other keys
    return "***" if node is not None and is_secret(key) else node


def differing_keys(stored: str, current: str) -> list[str]:
    """Keys, with both values, in which two stored configurations differ and that a continued run may not change."""
    before, now = _flat(OmegaConf.to_container(OmegaConf.create(stored))), _flat(OmegaConf.to_container(OmegaConf.create(current)))
    keys = [key for key in sorted(before.keys() | now.keys()) if before.get(key) != now.get(key)]
    return [f"{key}: {before.get(key)} -> {now.get(key)}" for key in keys if not _may_change(key)]


def fingerprint(stored: str) -> str:
    """The SHA-256 of what a continued run may not change of a stored configuration."""
    flat = _flat(OmegaConf.to_container(OmegaConf.create(stored)))
    return hashlib.sha256(json.dumps({key: flat[key] for key in sorted(flat) if not _may_change(key)}).encode()).hexdigest()


def _may_change(key: str) -> bool:
    return any(f"{key}.".startswith(f"{may}.") for may in _MAY_CHANGE)


def _flat(node: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(node, dict):
        return {prefix: node}
    return {key: value for name, child in node.items() for key, value in _flat(child, f"{prefix}.{name}" if prefix else str(name)).items()}


def describe(run: RunDir, config: str, overrides: tuple[str, ...]) -> None:
    """Writes config.yaml and overrides.txt, without secrets."""
    run.write_text("config.yaml", config)
    lines = [f"{key}=***" if is_secret(key) else override for override in overrides for key in [override.partition("=")[0]]]
    run.write_text("overrides.txt", "".join(f"{line}\n" for line in lines))


def stored_overrides(path: Path) -> list[str]:
    """What the run in a directory was asked for, without secrets."""
    file = path / "overrides.txt"
    lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
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
