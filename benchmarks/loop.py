"""Steps per second of this trainer beside other training loops, in turns on the same machine.

    python -m benchmarks.loop [--workloads mlp,cnn] [--only orbit,jax_scan] [--windows 7] [--json FILE] [--report]

The same model, data, batch, initial weights' scale and Adam for all, in float32. The trainer runs by its own command in a fresh
process for every window and writes loss and gradient norms (global and of every variable) of every step to metrics.jsonl and
TensorBoard; its rate is that of its summary.json, counted from its second chunk on. Each competitor is a process of its own,
which builds and compiles once and then waits for its turns; they are in `benchmarks/competitors`, and say there what they compute:
loops of one's own loss, accuracy and global norm of every step, Keras `fit` no norms. Orbit, PyTorch with Lightning, and JAX have
virtual environments, made on first use.

A window that fails leaves the others as they are; what can't be installed or fails is in the table with the reason. --json is written
after every window, and workloads that the file holds from before stay in it, so that they can be measured one by one; --report
writes docs/performance.md of all that are in the results. Ends with status 1 where a wanted ratio is missed or could not be measured.
"""

import argparse
import contextlib
import datetime
import functools
import importlib.metadata
import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks import kernels, report, results, workloads
from benchmarks.competitors.job import Job
from benchmarks.entrants import COMPETITORS, ROOT, FailedError, Waiting, run_trainer
from benchmarks.environments import CACHE, NotInstalledError, python_of
from benchmarks.results import Entry, Result
from benchmarks.workloads import OURS, UNDROPPED, UNWATCHED, WORKLOADS, Workload

OURS_TITLES = {OURS: "gradtrain", UNWATCHED: "gradtrain, watching nothing", UNDROPPED: "gradtrain, without dropout"}
_OTHER_PARAMETERS = "trains another model: {found} parameters instead of {wanted}"


def measure(workload: Workload, names: list[str], options: argparse.Namespace, result: Result, keep: Callable[[], None]) -> None:
    """Fills `result` with windows of the entrants, who take turns, in the reverse order in every other window.

    Args:
        workload: what all of them train.
        names: of entrants, out of COMPETITORS and the workload's `ours`.
        options: windows, seconds, environments.
        result: where they go; `keep` is called whenever there is more in it.
        keep: stores it.
    """
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as stack:
        folder = Path(name)
        data = workloads.write_data(workload, folder)
        turns: dict[str, Callable[[], dict[str, Any]]] = {}
        for entrant in names:
            if entrant in workload.ours:
                result.entries[entrant] = Entry(OURS_TITLES[entrant], _our_versions())
                turns[entrant] = _trainer_turn(workload, entrant, folder)
                continue
            entry = result.entries[entrant] = Entry(COMPETITORS[entrant].title)
            try:
                waiting = _start(entrant, workload, data, options.environments, folder)
            except (FailedError, NotInstalledError) as error:
                entry.error = str(error)
                _say(f"{entry.title}: {error}")
                continue
            stack.callback(waiting.close)
            entry.versions = waiting.about["versions"]
            turns[entrant] = functools.partial(waiting.window, options.seconds)
        for window in range(options.windows):
            for entrant in list(turns)[:: -1 if window % 2 else 1]:
                entry = result.entries[entrant]
                try:
                    entry.windows.append(turns[entrant]())
                    _say(f"window {window + 1} of {options.windows}: {entry.title}: {entry.windows[-1]}")
                except FailedError as error:
                    entry.windows.append(None)
                    entry.error = str(error)
                    _say(f"window {window + 1} of {options.windows}: {entry.title}: {error}")
                keep()


def _start(name: str, workload: Workload, data: Path, environments: Path, folder: Path) -> Waiting:
    competitor = COMPETITORS[name]
    sizes = (workload.model, workload.num_outputs, str(data), workload.batch_size, workload.dropout, workload.steps_per_call)
    python = python_of(competitor.environment, environments)
    _say(f"starting {competitor.title}")
    waiting = Waiting(competitor, python, Job(*sizes, competitor.way), folder / f"{name}.errors")
    if waiting.about["num_parameters"] != workload.num_parameters:
        waiting.close()
        raise FailedError(_OTHER_PARAMETERS.format(found=waiting.about["num_parameters"], wanted=workload.num_parameters))
    return waiting


def _trainer_turn(workload: Workload, name: str, folder: Path) -> Callable[[], dict[str, Any]]:
    def turn() -> dict[str, Any]:
        run = folder / name
        shutil.rmtree(run, ignore_errors=True)
        return run_trainer([*workloads.trainer_overrides(workload, folder), *workload.ours[name]], run)

    return turn


def _our_versions() -> str:
    return ", ".join(f"{package} {importlib.metadata.version(package)}" for package in ("gradtrain", "tensorflow", "keras"))


def _machine() -> str:
    models = [line.partition(":")[2].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return f"{os.cpu_count()} CPUs ({models[0] if models else platform.machine()}), {memory:.0f} GiB, Python {platform.python_version()}"


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workloads", default=",".join(WORKLOADS), help="with commas between; default: %(default)s")
    everybody = [*OURS_TITLES, *COMPETITORS]
    parser.add_argument("--only", help=f"entrants, with commas between, out of {', '.join(everybody)}")
    parser.add_argument("--windows", type=int, default=7, help="of each entrant; default: %(default)s")
    parser.add_argument("--seconds", type=float, default=3.0, help="of a competitor's window; default: %(default)s")
    parser.add_argument("--environments", type=Path, default=CACHE, help="folder of the virtual environments; default: %(default)s")
    parser.add_argument("--json", type=Path, help="keep every window there, beside the other workloads that it holds")
    parser.add_argument("--report", action="store_true", help="write docs/performance.md and its plot")
    options = parser.parse_args(arguments)
    names = chosen(parser, "workloads", options.workloads, list(WORKLOADS))
    only = chosen(parser, "only", options.only, everybody)
    found = results.read(options.json) if options.json else {}

    def keep() -> None:
        if options.json:
            results.write(found, options.json)

    for name in names:
        workload = WORKLOADS[name]
        found[name] = Result(workload.title, datetime.date.today().isoformat(), _machine())
        measure(workload, [entrant for entrant in only if entrant in (*workload.ours, *COMPETITORS)], options, found[name], keep)
        if OURS in only and not all(finding.met for finding in results.findings({name: found[name]})[name]):
            try:
                found[name].kernels = kernels.measure(workload)  # what limits it
                keep()
            except FailedError as error:
                _say(f"no profile: {error}")
        Console(width=None if sys.stdout.isatty() else 140).print(report.table(found[name]))
    if options.report:
        in_order = {name: found[name] for name in WORKLOADS if name in found}
        (ROOT / "docs" / "performance.svg").write_text(report.plot(in_order))
        (ROOT / "docs" / "performance.md").write_text(report.page(in_order, "performance.svg"))
    all_found = [(name, finding) for name, of_one in results.findings(found).items() for finding in of_one if name in names]
    for name, finding in all_found:
        print(f"{'met   ' if finding.met else 'MISSED'} {name}: {finding.text}")
    return int(not all(finding.met for _, finding in all_found))


def chosen(parser: argparse.ArgumentParser, option: str, typed: str | None, known: list[str]) -> list[str]:
    """The names that were typed, in the order of `known`; all where none were."""
    wanted = known if typed is None else typed.split(",")
    if unknown := [name for name in wanted if name not in known]:
        parser.error(f"--{option}: there is no {', '.join(unknown)}; there are {', '.join(known)}")
    return [name for name in known if name in wanted]


if __name__ == "__main__":
    sys.exit(main())
