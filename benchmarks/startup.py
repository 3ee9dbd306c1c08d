"""Seconds that the trainer needs to start, in a fresh process each, in turns.

    python -m benchmarks.startup [--repeats 7] [--json FILE]

A one-step run of the trainer's own command beside a bare script that takes the same step of the same model
(`benchmarks/competitors/bare_step.py`); `--help`; and a mistake in the configuration. Seconds are from the start of the process
to its end, on a machine whose files are in memory (a first turn does not count). Ends with status 1 where a run takes more than
1.3 times the bare script's time (the median of the ratios of turns), or help or the mistake more than 0.6 s.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks.entrants import ROOT

RUN, BARE, HELP, MISTAKE = "one-step run", "bare script", "--help", "configuration error"
MOST_TIMES_BARE, MOST_SECONDS = 1.3, 0.6


def commands(folder: str) -> dict[str, tuple[list[str], int]]:
    """By name: arguments of Python, and the exit status that belongs to them."""
    run = ["-m", "trainer", "data=digits", "model=mlp", "optimizer=adam", "trainer.steps=1", f"hydra.run.dir={folder}"]
    return {
        BARE: (["-m", "benchmarks.competitors.bare_step"], 0),
        RUN: (run, 0),
        HELP: (["-m", "trainer", "--help"], 0),
        MISTAKE: (["-m", "trainer", "trainer.stpes=1"], 2),
    }


def seconds(arguments: list[str], status: int) -> float:
    """How long a process of this Python takes.

    Raises:
        RuntimeError: it ended with another status.
    """
    environment = {name: value for name, value in os.environ.items() if name != "TF_CPP_MIN_LOG_LEVEL"}  # unset, it starts in silence
    started = time.perf_counter()
    done = subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
    )
    took = time.perf_counter() - started
    if done.returncode != status:
        raise RuntimeError(f"python {' '.join(arguments)} ended with status {done.returncode} instead of {status}:\n{done.stdout[-2000:]}")
    return took


def measure(num_repeats: int) -> dict[str, list[float]]:
    """Seconds of every turn, by name; the order is reversed in every other turn."""
    times: dict[str, list[float]] = {}
    for turn in range(-1, num_repeats):
        with tempfile.TemporaryDirectory() as folder:
            of_all = commands(folder)
            for name in list(of_all)[:: -1 if turn % 2 else 1]:
                took = seconds(*of_all[name])
                if turn >= 0:
                    times.setdefault(name, []).append(took)
    return {name: times[name] for name in (BARE, RUN, HELP, MISTAKE)}


def missed(times: dict[str, list[float]]) -> list[str]:
    """What takes longer than wanted, in words."""
    over = statistics.median(ratios(times))
    late = [f"{name} takes {statistics.median(times[name]):.2f} s, wanted {MOST_SECONDS:g}" for name in (HELP, MISTAKE)]
    late = [text for name, text in zip((HELP, MISTAKE), late, strict=True) if statistics.median(times[name]) > MOST_SECONDS]
    return late + ([f"a {RUN} takes {over:.2f} times a bare script's time, wanted {MOST_TIMES_BARE:g}"] if over > MOST_TIMES_BARE else [])


def ratios(times: dict[str, list[float]]) -> list[float]:
    """A one-step run over the bare script, turn by turn."""
    return [run / bare for run, bare in zip(times[RUN], times[BARE], strict=True)]


def table(times: dict[str, list[float]]) -> Table:
    found = Table(title=f"seconds from start to end, {os.cpu_count()} CPUs: median of {len(times[RUN])} turns")
    for heading in ("what", "seconds", "from, to", "wanted"):
        found.add_column(heading, justify="left" if heading == "what" else "right")
    wanted = {RUN: f"{MOST_TIMES_BARE:g} times bare", HELP: f"{MOST_SECONDS:g}", MISTAKE: f"{MOST_SECONDS:g}"}
    for name, values in times.items():
        found.add_row(name, f"{statistics.median(values):.2f}", f"{min(values):.2f}, {max(values):.2f}", wanted.get(name, ""))
    over = ratios(times)
    found.add_row(f"{RUN}, times bare", f"{statistics.median(over):.2f}", f"{min(over):.2f}, {max(over):.2f}", f"{MOST_TIMES_BARE:g}")
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--json", type=Path, help="also write every time there")
    arguments = parser.parse_args()
    times = measure(arguments.repeats)
    Console().print(table(times))
    if arguments.json:
        arguments.json.write_text(json.dumps(times, indent=2) + "\n")
    late = missed(times)
    if late:
        print(f"too slow: {'; '.join(late)}", file=sys.stderr)
    return int(bool(late))


if __name__ == "__main__":
    sys.exit(main())
