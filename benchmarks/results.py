"""What was measured, as it is kept in JSON, and the ratios in it."""

import dataclasses
import json
import statistics
from pathlib import Path
from typing import Any

from benchmarks.kernels import Kind
from benchmarks.workloads import WORKLOADS, Wanted


@dataclasses.dataclass
class Entry:
    """One entrant's windows in one workload."""

    title: str
    versions: str = ""
    windows: list[dict[str, Any] | None] = dataclasses.field(default_factory=list)  # rate (steps/s), loss, peak_memory_mb; None: it failed
    error: str | None = None  # why, the last time

    def median(self, key: str) -> float | None:
        values = [window[key] for window in self.windows if window and window[key] is not None]
        return statistics.median(values) if values else None


@dataclasses.dataclass
class Result:
    """One workload's entries by name, and when and on what they were measured."""

    title: str
    date: str
    machine: str
    entries: dict[str, Entry] = dataclasses.field(default_factory=dict)
    kernels: list[Kind] = dataclasses.field(default_factory=list)  # of ours, where a wanted ratio is missed


@dataclasses.dataclass(frozen=True)
class Finding:
    """A wanted ratio and what was found: against whom, and in every window. Nothing where an entrant has no windows."""

    wanted: Wanted
    ours: str  # title
    against: str  # title
    ratios: list[float]

    @property
    def median(self) -> float | None:
        return statistics.median(self.ratios) if self.ratios else None

    @property
    def met(self) -> bool:
        return self.median is not None and self.median >= self.wanted.ratio

    @property
    def text(self) -> str:
        """The wanted ratio and the one found, in words."""
        what = (
            f"{self.wanted.ratio:g} times {self.against}"
            if self.wanted.measure == "rate"
            else f"1/{self.wanted.ratio:g} of {self.against}'s memory"
        )
        if self.median is None:
            return f"{self.ours}: not measured, wanted {what}"
        found = f"{self.median:.2f} times" if self.wanted.measure == "rate" else f"1/{self.median:.2f}"
        return f"{self.ours}: {found}, wanted {what}"


def ratios(ours: Entry, theirs: Entry, measure: str = "rate") -> list[float]:
    """Window by window: our rate over theirs, or their peak memory over ours."""
    pairs = [(our, their) for our, their in zip(ours.windows, theirs.windows, strict=False) if our and their]
    if measure == "memory":
        peaks = [(our["peak_memory_mb"], their["peak_memory_mb"]) for our, their in pairs]
        return [their / our for our, their in peaks if our and their]
    return [our["rate"] / their["rate"] for our, their in pairs]


def find(result: Result, wanted: Wanted) -> Finding | None:
    """What was found beside a wanted ratio; None where no one of `against`, or not `ours`, was asked to run.

    Where several are named, the fastest by its median rate counts, and of memory the one that needs least.
    """
    entries = result.entries
    asked = [entries[name] for name in wanted.against if name in entries]
    if not asked or wanted.ours not in entries:
        return None
    ours = entries[wanted.ours]
    if wanted.measure == "memory":
        best = min(asked, key=lambda entry: entry.median("peak_memory_mb") or float("inf"))
    else:
        best = max(asked, key=lambda entry: entry.median("rate") or 0)
    return Finding(wanted, ours.title, best.title, ratios(ours, best, wanted.measure))


def findings(results: dict[str, Result]) -> dict[str, list[Finding]]:
    """All wanted ratios of the workloads that were measured."""
    found = {name: [find(result, wanted) for wanted in WORKLOADS[name].wanted] for name, result in results.items()}
    return {name: [finding for finding in of_one if finding] for name, of_one in found.items()}


def write(results: dict[str, Result], path: Path) -> None:
    path.write_text(json.dumps({name: dataclasses.asdict(result) for name, result in results.items()}, indent=1) + "\n")


def read(path: Path) -> dict[str, Result]:
    """What `write` has written; nothing where there is no such file."""
    if not path.exists():
        return {}
    stored = json.loads(path.read_text())
    return {
        name: Result(**fields | {"entries": {key: Entry(**entry) for key, entry in fields["entries"].items()}})
        for name, fields in stored.items()
        if name in WORKLOADS
    }
