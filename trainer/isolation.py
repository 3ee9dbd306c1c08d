"""A job in a fresh process: what a sweep does for each of its jobs, here or on a node of a cluster. Imports no TensorFlow."""

import contextlib
import dataclasses
import io
import multiprocessing
import multiprocessing.connection
import os
import signal
import sys
import threading
from collections.abc import Iterator
from multiprocessing import resource_tracker
from types import FrameType
from typing import Any

from hydra.core.utils import setup_globals

from trainer import secrets
from trainer.config import Job
from trainer.errors import ConfigError, UserError, describe, report
from trainer.json_files import read_json

_MAX_CAUSE = 2_000  # characters; a pipe that nobody reads yet holds more


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How a job ended."""

    state: str  # done, failed, stopped, not run
    cause: str = ""
    summary: dict[str, Any] = dataclasses.field(default_factory=dict)


class Forwarding:
    """While entered, SIGINT and SIGTERM end the running jobs; who started them then ends after them.

    Args:
        only: what the jobs are sent, once, whatever came and how often; None: every signal that comes.
        withheld: signals that a job's process doesn't see although they come to it too, as a cluster's do.
    """

    def __init__(self, only: signal.Signals | None = None, withheld: tuple[signal.Signals, ...] = ()) -> None:
        self.received: int | None = None
        self.only, self.withheld = only, withheld
        self._running: set[int] = set()  # process numbers
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "Forwarding":
        for number in (signal.SIGINT, signal.SIGTERM):
            self._before[number] = signal.signal(number, self.forward)
        return self

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

    def forward(self, number: int, _: FrameType | None = None) -> None:
        """What happens when a signal comes."""
        if self.only is not None and self.received is not None:
            return
        self.received = number
        for process in list(self._running):
            self._send(process, number)

    def _send(self, process: int, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, self.only or number)


def run_one(job: Job, signals: Forwarding, environment: dict[str, str], quiet: bool) -> Outcome:
    """Runs a job to its end.

    Args:
        job: what to run.
        signals: entered; ends the job, too.
        environment: variables of the job's process.
        quiet: what the job prints goes to a file beside its directory.
    """
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_work, args=(job, sender, environment, quiet, signals.only or signal.SIGTERM))
    resource_tracker.ensure_running()  # whose start lets SIGTERM through again
    with blocked((signal.SIGINT, *signals.withheld)):  # a process inherits what is blocked
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


@contextlib.contextmanager
def blocked(numbers: tuple[signal.Signals, ...]) -> Iterator[None]:
    """Within it, these signals wait; a process that this thread starts within it never sees them."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _received(receiver: multiprocessing.connection.Connection) -> str:
    try:
        return receiver.recv_bytes().decode() if receiver.poll() else ""
    except EOFError:  # the job ended without a word
        return ""


def _work(job: Job, sender: multiprocessing.connection.Connection, environment: dict[str, str], quiet: bool, ending: int) -> None:
    """The job's process: a session of its own, so that Ctrl-C reaches it once, through the sweep.

    What it prints is in a file where there are others beside it (`quiet`). `ending` is the signal that ends it with its parent.
    """
    os.setsid()  # Ctrl-C while it was imported waits until there is somebody to hear it
    os.environ.update({name: value for name, value in environment.items() if name not in os.environ or name == "CUDA_VISIBLE_DEVICES"})
    threading.Thread(target=_end_with_parent, args=(ending,), daemon=True).start()
    setup_globals()  # the resolver of ${now:...}

    hidden = secrets.values(job.config)

    def send(cause: str) -> None:
        cause = secrets.hide(cause, hidden)
        sender.send_bytes("; ".join(cause.splitlines())[:_MAX_CAUSE].encode())

    try:
        if quiet:
            _print_into(f"{job.run_dir}.log")
        signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGINT,))
        from trainer import job as job_module

        exit_code = job_module.run(job)
    except SystemExit as error:
        send(f"sys.exit({error.code!r}) was called")
        exit_code = error.code if isinstance(error.code, int) and error.code else 1
    except UserError as error:  # the sweep prints the line
        send(describe(error))
        exit_code = error.exit_code
    except KeyboardInterrupt:
        send("interrupted")
        exit_code = 128 + signal.SIGINT
    except BaseException as error:
        send(describe(error))
        with contextlib.redirect_stderr(io.StringIO()) as said:
            exit_code = report(error)
        print(secrets.hide(said.getvalue(), hidden), end="", file=sys.stderr, flush=True)
    sys.exit(exit_code)


def _print_into(file: str) -> None:
    """From now on, what this process prints is there."""
    try:
        log = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    except OSError as error:
        raise ConfigError(f"{file} can't be written: {error.strerror}: type a hydra.sweep.dir that can") from error
    for descriptor in (1, 2):
        os.dup2(log, descriptor)


def _end_with_parent(ending: int) -> None:
    """A sweep that is killed outright leaves no orphan."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    multiprocessing.connection.wait([parent.sentinel])
    os.kill(os.getpid(), ending)
