"""`-m`: every job of a sweep in a fresh process, one or several at a time, and a table at the end. Imports no TensorFlow."""

import concurrent.futures
import contextlib
import dataclasses
import hashlib
import math
import multiprocessing
import multiprocessing.connection
import os
import queue
import re
import signal
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.types import Override
from hydra.core.utils import setup_globals
from hydra.errors import HydraException
from rich.console import Console
from rich.table import Table

from trainer import config, rundir, secrets
from trainer.board import Board
from trainer.config import Job
from trainer.errors import CheckpointError, ConfigError, UserError, describe, report
from trainer.json_files import read_json
from trainer.progress import is_terminal, say

_MAX_NAME = 100  # characters of a job's directory name
_MAX_JOBS = 10_000
_MAX_CAUSE = 2_000  # characters; a pipe that nobody reads yet holds more


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How a job ended."""

    state: str  # done, failed, stopped, not run
    cause: str = ""
    summary: dict[str, Any] = dataclasses.field(default_factory=dict)


def run(overrides: Sequence[str], config_dir: Path | None = None) -> int:
    """Runs every combination of the swept values.

    Returns:
        0 if every job is done, 1 if one failed, 128 + the signal that stopped the sweep.

    Raises:
        ConfigError: a job's configuration is wrong; then none is started. Or the jobs can't be compared, as `sweep.compare` asks for.
    """
    jobs = expand(overrides, config_dir)
    labels, signals = _labels(jobs), _Forwarding()
    slots = _slots(min(jobs[0].config.sweep.parallel, len(jobs)))
    free: queue.SimpleQueue[dict[str, str]] = queue.SimpleQueue()
    for slot in slots:
        free.put(slot)

    def run_one(number: int, job: Job, label: str) -> Outcome:
        name = f"[{number}/{len(jobs)}] {label}"
        if (done := _done(job)) is not None:
            board.set(number - 1, "done")
            say(f"{name}  is done, in {job.run_dir}")
            return done
        slot = free.get()
        try:
            if signals.received is not None:
                return Outcome("not run")
            say(f"{name}  in {job.run_dir}")
            board.set(number - 1, "running")
            outcome = _run_one(job, signals, slot, quiet=len(slots) > 1)
        finally:
            free.put(slot)
        board.set(number - 1, outcome.state)
        if outcome.state != "done":
            print(f"{name} {outcome.state}: {outcome.cause}  ({job.run_dir})", file=sys.stderr, flush=True)
        elif len(slots) > 1:
            say(f"{name}  done: loss {_shown(outcome.summary.get('final', {}).get('loss'))}")
        return outcome

    board = Board(jobs, labels, len(slots) > 1)
    with signals, board, concurrent.futures.ThreadPoolExecutor(len(slots)) as pool:
        outcomes = list(pool.map(run_one, range(1, len(jobs) + 1), jobs, labels))
    _print_table(labels, outcomes)
    say(f"{sum(outcome.state == 'done' for outcome in outcomes)} of {len(jobs)} jobs done, in {jobs[0].run_dir.parent}")
    if signals.received is not None:
        return 128 + signals.received
    if jobs[0].config.sweep.compare:
        from trainer import compare  # which imports NumPy

        compare.run([str(jobs[0].run_dir.parent)])
    return int(any(outcome.state != "done" for outcome in outcomes))


def _slots(parallel: int) -> list[dict[str, str]]:
    """What the environment of each of the jobs that run at once says: its share of the cores, and its GPU."""
    if parallel == 1:
        return [{}]
    threads = {"TF_NUM_INTRAOP_THREADS": str(max(1, (os.cpu_count() or 1) // parallel))}
    gpus = _gpus()
    return [threads | ({"CUDA_VISIBLE_DEVICES": gpus[i % len(gpus)]} if gpus else {}) for i in range(parallel)]


def _gpus() -> list[str]:
    """What names the GPUs that this process may use."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [name for name in visible.split(",") if name.strip()]
    return [str(i) for i, _ in enumerate(Path("/proc/driver/nvidia/gpus").glob("*"))]


def _done(job: Job) -> Outcome | None:
    """How a job ended that the same command has done before; None if it has not, or is to be done anew."""
    if job.config.resume != "auto":
        return None
    summary = read_json(job.run_dir / "summary.json")
    with contextlib.suppress(OSError, CheckpointError):  # the job itself says what is wrong
        stored, current = (job.run_dir / "config.yaml").read_text(encoding="utf-8"), rundir.stored_config(job.config)
        if summary and not rundir.differing_keys(stored, current) and rundir.is_finished(job.run_dir, stored, current):
            return Outcome("done", summary=summary)
    return None


def expand(overrides: Sequence[str], config_dir: Path | None = None) -> list[Job]:
    """The jobs of a sweep, each validated.

    Raises:
        ConfigError: a configuration is wrong; where only some of them are, each is listed on stderr.
    """
    parsed = config.parse(overrides, config_dir)
    _check_swept(parsed)
    try:
        (combinations,) = BasicSweeper.split_arguments(parsed, None)
    except HydraException as error:
        raise ConfigError(f"this sweep can't be run: {error}; type values separated by commas, or range(1,4)") from error
    jobs: dict[str, Job] = {}
    refused: dict[str, ConfigError] = {}
    folder = None
    for number, combination in enumerate(combinations, 1):
        try:
            job = config.load(combination, config_dir)
            folder = folder or config.sweep_dir(combination, config_dir)
        except ConfigError as error:
            refused[" ".join(combination)] = error
            continue
        name = _name(combination, number)
        jobs[name] = dataclasses.replace(job, run_dir=folder / name)
    if len(set(map(str, refused.values()))) == 1 and not jobs:  # wrong whatever is swept
        raise next(iter(refused.values()))
    if refused:
        for text, reason in refused.items():
            print(f"{text}: {reason}", file=sys.stderr)
        raise ConfigError(
            f"{len(refused)} of {len(combinations)} jobs can't be run, as listed; none was started: mend them, or leave them out"
        )
    if any(job.config.trainer.dry_run for job in jobs.values()):
        raise ConfigError("trainer.dry_run=true looks at one job: type it without -m, and with one value of each key")
    return list(jobs.values())


def _check_swept(parsed: Sequence[Override]) -> None:
    count = 1
    for override in parsed:
        if override.key_or_group == "hydra.run.dir":
            raise ConfigError(f"{override.input_line}: the jobs of a sweep have directories of their own; type hydra.sweep.dir=DIRECTORY")
        if override.is_sweep_override() and (override.is_hydra_override() or str(override.key_or_group).startswith("sweep.")):
            raise ConfigError(f"{override.input_line}: Hydra's own keys, and those of the sweep itself, can't be swept; type one value")
        if override.is_discrete_sweep():
            count *= sum(1 for _, _ in zip(override.sweep_iterator(), range(_MAX_JOBS + 1), strict=False))
        if count > _MAX_JOBS:
            raise ConfigError(f"this sweep has more than {_MAX_JOBS} jobs, by {override.input_line}; type fewer values")


def _name(overrides: Sequence[str], number: int) -> str:
    """A directory's name out of what was typed: `loss-stable_mse_seed-1`. No `=`, which Hydra's grammar would trip on."""
    text = "_".join(f"{key}-{number if value == '***' else value}" for key, value in _settings(overrides).items()) or "default"
    name = re.sub(r"[^A-Za-z0-9.,_+-]+", "-", text)
    if name != text or len(name) > _MAX_NAME:
        name = f"{name[:_MAX_NAME]}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"
    return name


def _labels(jobs: Sequence[Job]) -> list[str]:
    """What tells the jobs apart."""
    settings = [_settings(job.overrides) for job in jobs]
    swept = [key for key in settings[0] if len({job.get(key) for job in settings}) > 1 or (len(jobs) > 1 and settings[0][key] == "***")]
    return [" ".join(f"{key}={job[key]}" for key in swept) or "one job" for job in settings]


def _settings(overrides: Sequence[str]) -> dict[str, str]:
    pairs = (secrets.masked(override.lstrip("+")).partition("=") for override in overrides)
    return {key: value for key, _, value in pairs if key != "trust" and not key.startswith(("hydra.", "hydra/", "sweep."))}


class _Forwarding:
    """While entered, SIGINT and SIGTERM end the running jobs by the same signal; the sweep then ends after them."""

    def __init__(self) -> None:
        self.received: int | None = None
        self._running: set[int] = set()  # process numbers
        self._before: dict[int, Any] = {}

    def __enter__(self) -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._before[number] = signal.signal(number, self._forward)

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def started(self, process: int) -> None:
        """From now on signals are for this process too; one that came while it started is passed on."""
        self._running.add(process)
        if self.received is not None:
            self._send(process, self.received)

    def ended(self, process: int) -> None:
        """Its number may be another's by now."""
        self._running.discard(process)

    def _forward(self, number: int, _: FrameType | None) -> None:
        self.received = number
        for process in list(self._running):
            self._send(process, number)

    @staticmethod
    def _send(process: int, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, number)


def _run_one(job: Job, signals: _Forwarding, environment: dict[str, str], quiet: bool) -> Outcome:
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_work, args=(job, sender, environment, quiet))
    process.start()
    sender.close()
    assert process.pid is not None
    signals.started(process.pid)
    multiprocessing.connection.wait([process.sentinel])  # until it has ended, but before its number is given back
    signals.ended(process.pid)
    process.join()
    status, summary = (read_json(job.run_dir / name) or {} for name in ("status.json", "summary.json"))
    cause = _received(receiver)
    if process.exitcode == 0:
        return Outcome("done", summary=summary)
    if process.exitcode is not None and process.exitcode < 0:
        cause = f"killed by {signal.Signals(-process.exitcode).name}"
    state = "stopped" if signals.received is not None else "failed"
    return Outcome(state, cause or str(status.get("cause") or f"exit status {process.exitcode}"), summary)


def _received(receiver: multiprocessing.connection.Connection) -> str:
    try:
        return receiver.recv_bytes().decode() if receiver.poll() else ""
    except EOFError:  # the job ended without a word
        return ""


def _work(job: Job, sender: multiprocessing.connection.Connection, environment: dict[str, str], quiet: bool) -> None:
    """The job's process: a session of its own, so that Ctrl-C reaches it once, through the sweep.

    What it prints is in a file where there are others beside it (`quiet`).
    """
    os.setsid()
    os.environ.update({name: value for name, value in environment.items() if name not in os.environ or name == "CUDA_VISIBLE_DEVICES"})
    if quiet:
        job.run_dir.parent.mkdir(parents=True, exist_ok=True)
        log = os.open(f"{job.run_dir}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        for descriptor in (1, 2):
            os.dup2(log, descriptor)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    setup_globals()  # the resolver of ${now:...}

    def send(cause: str) -> None:
        sender.send_bytes("; ".join(cause.splitlines())[:_MAX_CAUSE].encode())

    try:
        from trainer import job as job_module

        exit_code = job_module.run(job)
    except SystemExit as error:
        send(f"sys.exit({error.code!r}) was called")
        exit_code = error.code if isinstance(error.code, int) and error.code else 1
    except UserError as error:  # the sweep prints the line
        send(describe(error))
        exit_code = error.exit_code
    except BaseException as error:
        send(describe(error))
        exit_code = report(error)
    sys.exit(exit_code)


def _end_with_parent() -> None:
    """A sweep that is killed outright leaves no orphan."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    multiprocessing.connection.wait([parent.sentinel])
    os.kill(os.getpid(), signal.SIGTERM)


def _print_table(labels: Sequence[str], outcomes: Sequence[Outcome]) -> None:
    finals = [outcome.summary.get("final", {}) for outcome in outcomes]
    metrics = sorted(set.intersection(*(set(final) for final in finals if final))) if any(finals) else []
    tags = ["loss", *(tag for tag in metrics if tag.startswith("eval/"))]
    table = Table(box=None, header_style="bold")
    table.add_column("job", overflow="fold")
    table.add_column("state")
    for title in ("steps", *tags, "steps/s", "seconds"):
        table.add_column(title, justify="right")
    for label, outcome, final in zip(labels, outcomes, finals, strict=True):
        numbers = [outcome.summary.get("steps"), *(final.get(tag) for tag in tags)]
        numbers += [outcome.summary.get(key) for key in ("steps_per_second", "wall_seconds")]
        table.add_row(label, outcome.state, *map(_shown, numbers))
    if sys.stdout is not None:
        wide = None if is_terminal() else max(80, sum(map(len, tags)) + max(map(len, labels)) + 80)
        Console(width=wide).print(table)


def _shown(value: Any) -> str:
    if isinstance(value, float) and math.isfinite(value):
        return f"{value:.4g}" if abs(value) < 1000 else f"{value:.0f}"
    return "" if value is None else str(value)
