"""What a run survives: it is killed again and again at random moments, resumed by the same command, and must end bitwise as undisturbed.

    python -m benchmarks.chaos [--kills 100] [--steps 2000] [--seed 0] [--folder FOLDER]

Four signals in ten come while the run starts (imports, builds, restores, compiles), the others while it trains, evaluates and saves,
which it does every 20 steps. Prints what came when, how the process ended and how many steps were done anew. Ends with status 1 where
the last checkpoint (weights, optimizer, the loop's state) or metrics.jsonl differs by a bit from that of a run that nobody disturbed.
"""

import argparse
import collections
import dataclasses
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.growth import command, last_step
from trainer import snapshots

KINDS: dict[str, tuple[signal.Signals, ...]] = {
    "SIGKILL": (signal.SIGKILL,),
    "SIGTERM": (signal.SIGTERM,),
    "SIGINT": (signal.SIGINT,),
    "SIGTERM twice": (signal.SIGTERM, signal.SIGTERM),
    "SIGHUP": (signal.SIGHUP,),
    "SIGQUIT": (signal.SIGQUIT,),
    "SIGABRT": (signal.SIGABRT,),
    "SIGSEGV": (signal.SIGSEGV,),
}
SAVES = 20  # steps from checkpoint to checkpoint
_STARTING = 0.4  # of the signals
_TIMEOUT = 300.0  # seconds


@dataclasses.dataclass(frozen=True)
class Kill:
    """One signal, or pair of them."""

    kind: str
    moment: str  # "starting" or "training"
    status: int  # of the process that got it; negative: ended by the signal itself
    step: int  # the last one in metrics.jsonl
    checkpoint: int  # the newest one, 0 for none
    was_saving: bool  # whether it left a half-written checkpoint


def job(folder: Path, num_steps: int) -> list[str]:
    # Large enough that steps take longer than it takes to notice them, and saves long enough to be hit.
    overrides = ["model.hidden=[2048,2048]", "trainer.eval_every=200", f"checkpoint.every={SAVES}", "checkpoint.keep=2"]
    return command(*overrides, f"trainer.steps={num_steps}", f"hydra.run.dir={folder}")


def start(folder: Path, num_steps: int) -> subprocess.Popen[str]:
    def heard() -> None:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)  # nohup would have switched it off

    return subprocess.Popen(job(folder, num_steps), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, preexec_fn=heard)


def newest(folder: Path) -> int:
    """The step of the newest checkpoint that has its name, 0 where there is none."""
    return max((int(path.name.removeprefix("step-")) for path in (folder / "checkpoints").glob("step-*")), default=0)


def strike(folder: Path, num_steps: int, num_left: int, startup: float, rng: random.Random) -> Kill | None:
    """Starts the run and sends a signal at a random moment; None if it ended by itself before."""
    kind = rng.choice(list(KINDS))
    logged = last_step(folder / "metrics.jsonl")
    with start(folder, num_steps) as process:
        if rng.random() < _STARTING:
            moment, patience = "starting", rng.uniform(0, startup)
            target = None
        else:
            # So far ahead that all of the signals find the run at work.
            moment, patience = "training", rng.uniform(0, 0.1)
            target = logged + rng.randrange(1, max(2, (num_steps - logged) // (num_left + 1)))
        deadline = time.monotonic() + _TIMEOUT
        while target is not None and process.poll() is None and last_step(folder / "metrics.jsonl") < target:
            if time.monotonic() > deadline:
                process.kill()
                raise SystemExit(f"no step in {_TIMEOUT:.0f} s: {folder}")
            time.sleep(0.002)
        time.sleep(patience)
        if process.poll() is not None:
            return None
        for number in KINDS[kind]:
            process.send_signal(number)
            time.sleep(0.01)  # or two of the same would arrive as one
        try:
            _, said = process.communicate(timeout=_TIMEOUT)
        except subprocess.TimeoutExpired:
            process.kill()
            raise SystemExit(f"{kind}, {moment}: the process did not end within {_TIMEOUT:.0f} s") from None
    by_signal = {-number for number in KINDS[kind]} | {128 + number for number in KINDS[kind]}
    if process.returncode not in by_signal:
        raise SystemExit(f"{kind}, {moment}: ended with status {process.returncode}: {said.strip()}")
    litter = any((folder / "checkpoints").glob(".step-*"))
    return Kill(kind, moment, process.returncode, last_step(folder / "metrics.jsonl"), newest(folder), litter)


def finish(folder: Path, num_steps: int) -> float:
    """Runs to the end; the seconds until there was a new step."""
    started, before = time.monotonic(), last_step(folder / "metrics.jsonl")
    with start(folder, num_steps) as process:
        while process.poll() is None and last_step(folder / "metrics.jsonl") == before:
            time.sleep(0.01)
        startup = time.monotonic() - started
        _, said = process.communicate()
    if process.returncode:
        raise SystemExit(f"{folder}: ended with status {process.returncode}: {said.strip()}")
    return startup


def differences(one: Path, other: Path) -> list[str]:
    """What two runs don't share to the last bit."""
    found = []
    if (one / "metrics.jsonl").read_bytes() != (other / "metrics.jsonl").read_bytes():
        found.append("metrics.jsonl differs")
    (expected, _), (snapshot, _) = (snapshots.load_newest(run / "checkpoints") for run in (one, other))
    assert expected is not None
    assert snapshot is not None
    if (snapshot.step, snapshot.state) != (expected.step, expected.state):
        found.append(f"the loop's state differs: {snapshot.state} instead of {expected.state}")
    for name in expected.arrays.keys() | snapshot.arrays.keys():
        pair = [each.arrays.get(name, np.array(None)) for each in (expected, snapshot)]
        if pair[0].dtype != pair[1].dtype or pair[0].tobytes() != pair[1].tobytes():
            found.append(f"{name} differs")
    return found


def report(kills: list[Kill], num_steps: int, seconds: float) -> None:
    table = Table(title=f"{num_steps} steps, {len(kills)} times killed and resumed, in {seconds:.0f} s")
    for heading in ("signal", "starting", "training", "of those in a save", "steps done anew", "ended with"):
        table.add_column(heading, justify="left" if heading in ("signal", "ended with") else "right")
    for kind in KINDS:
        of_kind = [kill for kill in kills if kill.kind == kind]
        moments = collections.Counter(kill.moment for kill in of_kind)
        again = sum(max(0, kill.step - kill.checkpoint) for kill in of_kind if kill.moment == "training")
        statuses = collections.Counter(kill.status for kill in of_kind)
        ended = ", ".join(f"{status} ({count})" for status, count in sorted(statuses.items()))
        saving = sum(kill.was_saving for kill in of_kind)
        table.add_row(kind, *(str(n) for n in (moments["starting"], moments["training"], saving, again)), ended)
    Console().print(table)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0, help="of the moments and signals")
    parser.add_argument("--folder", type=Path, help="for the runs, to be looked at afterwards; empty or new")
    arguments = parser.parse_args()
    rng = random.Random(arguments.seed)
    with tempfile.TemporaryDirectory() as name:
        folder = arguments.folder or Path(name)
        undisturbed, disturbed = folder / "undisturbed", folder / "disturbed"
        startup = finish(undisturbed, arguments.steps)
        kills: list[Kill] = []
        started = time.monotonic()
        while len(kills) < arguments.kills:
            kill = strike(disturbed, arguments.steps, arguments.kills - len(kills), startup, rng)
            if kill is None:
                break
            kills.append(kill)
        finish(disturbed, arguments.steps)
        report(kills, arguments.steps, time.monotonic() - started)
        found = differences(undisturbed, disturbed)
    if len(kills) < arguments.kills:
        found.append(f"the run was through after {len(kills)} signals")
    for problem in found:
        print(problem, file=sys.stderr)
    if not found:
        print(f"weights, optimizer, the loop's state and all {arguments.steps} lines of metrics.jsonl are those of the undisturbed run")
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main())
