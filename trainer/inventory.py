"""Runs as their directories tell of them, whole, running or damaged. Imports no TensorFlow.

What is read may be of others: nothing that it holds takes this process down, and links are not followed.
"""

import contextlib
import dataclasses
import functools
import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from trainer import rundir
from trainer.errors import printable
from trainer.json_files import last_row, read_json
from trainer.progress import say

GROUPS = ("loss", "model", "data")
MARKS = {"config.yaml", "overrides.txt", "status.json", "metrics.jsonl", "checkpoints"}  # by which a run is known
_MOST_BYTES, _DEEPEST_VALUE = 1_000_000, 50  # of a config.yaml


def find(folder: Path, deepest: int) -> Iterator[Path]:
    """The directories of runs, through no link. What is in a run's is its own."""
    try:
        with os.scandir(folder) as found:
            entries = sorted(found, key=lambda entry: entry.name)
    except OSError as error:
        say(printable(f"warning: {folder} can't be read: {error.strerror}"))
        return
    marks = len(MARKS.intersection(entry.name for entry in entries))
    if marks > 1 or (marks and rundir.is_ours(folder)):
        yield folder
        return
    for entry in entries if deepest else ():
        if entry.is_dir(follow_symlinks=False) and not entry.name.startswith("."):
            yield from find(folder / entry.name, deepest - 1)


@dataclasses.dataclass(frozen=True)
class Run:
    """What is told of a run."""

    path: Path
    name: str
    state: str  # done, failed, stopped, running, killed (it says that it runs, and nobody does) or damaged
    cause: str
    choices: dict[str, str]
    config: dict[str, Any]
    steps: int | None
    final: dict[str, Any]  # by tag
    changed: float  # seconds since 1970

    @functools.cached_property
    def num_bytes(self) -> int:
        return _size(self.path)

    def value(self, key: str) -> Any:
        """Of one of _KEYS, of a metric, or of a key of the configuration; None where there is none."""
        if key in GROUPS:
            return self.choices.get(key)
        own = {"run": self.name, "state": self.state, "steps": self.steps, "when": self.changed}
        if key in own:
            return own[key]
        if key == "size":
            return self.num_bytes
        if key in self.final:
            return self.final[key]
        node: Any = self.config
        for part in ("gradient.mode" if key == "mode" else key).split("."):
            node = node.get(part) if isinstance(node, dict) else None
        return None if isinstance(node, dict) else node


def look(path: Path, folder: Path) -> Run:
    status, summary = (read_json(path / name) or {} for name in ("status.json", "summary.json"))
    state, cause = str(status.get("state")), str(status.get("cause") or "")
    config, problem = _config(path / "config.yaml")
    if state == "running":
        state = "running" if rundir.is_locked(path) else "killed"
    elif state not in ("done", "failed", "stopped"):
        state, cause = "damaged", "status.json is missing or damaged"
    if problem and state != "running":  # which may only just begin
        state, cause = "damaged", problem
    row = last_row(path / "metrics.jsonl") if state == "running" or not summary else {}
    final = summary.get("final") if summary and not row else row
    num_steps = summary.get("steps") if summary and not row else row.get("step")
    name = str(path.relative_to(folder)) if folder != Path() and path != folder else str(path)
    return Run(
        path,
        name,
        state,
        cause,
        _choices(path, config),
        config,
        num_steps if isinstance(num_steps, int) else None,
        {tag: value for tag, value in final.items() if tag != "step" and isinstance(value, str | int | float)}
        if isinstance(final, dict)
        else {},
        max((_changed(path / name) for name in ("status.json", "metrics.jsonl", "config.yaml")), default=0.0) or _changed(path),
    )


def _config(path: Path) -> tuple[dict[str, Any], str]:
    """config.yaml as nested dicts, and what is wrong with it. A hundredth of a second for each would be seconds for hundreds."""
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        if path.stat().st_size > _MOST_BYTES:
            return {}, "config.yaml is too large"
        text, depth = path.read_bytes(), 0
        for event in yaml.parse(text, loader):
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > _DEEPEST_VALUE:  # libyaml's stack has no limit of its own
                return {}, "config.yaml is nested too deep"
            if isinstance(event, yaml.AliasEvent):  # a kilobyte of them can stand for more than a memory holds
                return {}, "config.yaml has aliases, which no run writes"
        found = yaml.load(text, loader)
    except FileNotFoundError:
        return {}, "config.yaml is missing"
    except Exception as error:  # a file of others may hold anything
        return {}, f"config.yaml can't be read: {type(error).__name__}"
    return (found, "") if isinstance(found, dict) else ({}, "config.yaml is damaged")


def _choices(path: Path, config: dict[str, Any]) -> dict[str, str]:
    """By group: as it was typed, or else what the configuration names."""
    choices = {}
    for group in GROUPS:
        section = config.get(group)
        target = str(section.get("_target_")) if isinstance(section, dict) else ""
        parts = target.split(".")
        name = parts[-2] if group == "loss" and parts[0] == "losses" and len(parts) > 1 else parts[-1]
        choices[group] = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower()
    for line in rundir.stored_overrides(path):
        typed = re.fullmatch(rf"({'|'.join(GROUPS)})=([\w/.-]+)", line)
        if typed:
            choices[typed[1]] = typed[2]
    return choices


def _changed(path: Path) -> float:
    try:
        return path.lstat().st_mtime
    except OSError:
        return 0.0


def _size(path: Path) -> int:
    """Bytes of a file, or of all in a folder; links count for nothing."""
    num_bytes = 0
    with contextlib.suppress(OSError):
        found = path.lstat()
        if stat.S_ISREG(found.st_mode):
            return found.st_size
        if stat.S_ISDIR(found.st_mode):
            with os.scandir(path) as entries:
                for entry in entries:
                    num_bytes += entry.stat(follow_symlinks=False).st_size if entry.is_file(follow_symlinks=False) else 0
                    num_bytes += _size(path / entry.name) if entry.is_dir(follow_symlinks=False) else 0
    return num_bytes
