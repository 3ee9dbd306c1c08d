"""Whether memory and speed stay as they are in long runs and sweeps, and how a step's time grows with the job.

    python -m benchmarks.growth [--only long,sweep,size] [--steps 1000000] [--jobs 200] [--plot FILE]

long: one run of the small MLP; its memory at a tenth and at the end, and its steps per second at 10 to 20% and at 85 to 95% of its
steps. sweep: the parent's memory, and jobs per second, likewise. size: a step's time over width, batch and number of layers, on one
thread, and its slope from one size to the next (1: linear), drawn to FILE; beside it that of a loop that takes steps and does nothing
else (`benchmarks/competitors/bare_loop.py`), for what grows leaves the processor's caches at some size. Everything else by the trainer's
own command. Ends with status 1 where memory has grown by more than 5%, speed has fallen by more than 10%, or a step's time grows faster
than linear, and than that loop's, by more than noise.
"""

import argparse
import dataclasses
import itertools
import json
import math
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from trainer.json_files import last_row

MOST_MEMORY, LEAST_SPEED, STEEPEST = 1.05, 0.9, 1.15
_QUIET = ("trainer.eval_every=0", "checkpoint.every=0", "gradient.verify_at_start=false")
# What grows, to what, and a job of that: the examples in a batch, and the units of every hidden layer.
SIZES: dict[str, tuple[list[int], Callable[[int], tuple[int, list[int]]]]] = {
    "weights of a layer": ([2**k for k in range(12, 23, 2)], lambda n: (32, [math.isqrt(n)] * 2)),
    "batch size": ([2**k for k in range(5, 11)], lambda n: (n, [256, 256])),
    "layers": ([2**k for k in range(1, 7)], lambda n: (32, [64] * n)),
}


@dataclasses.dataclass(frozen=True)
class Sample:
    """A process at a moment."""

    seconds: float  # since it started
    memory: float  # MB, resident
    done: int  # steps, or jobs


def command(*overrides: str) -> list[str]:
    return [sys.executable, "-m", "trainer", *overrides]


def samples(arguments: Sequence[str], done: Callable[[], int], every: float) -> Iterator[Sample]:
    """Of a command's own process, every so many seconds until it ends."""
    environment = {name: value for name, value in os.environ.items() if name != "TF_CPP_MIN_LOG_LEVEL"}
    started = time.monotonic()
    with subprocess.Popen(arguments, stdout=subprocess.DEVNULL, env=environment) as process:
        try:
            while process.poll() is None:
                status = Path(f"/proc/{process.pid}/status").read_text()
                if found := re.search(r"VmRSS:\s+(\d+)", status):
                    yield Sample(time.monotonic() - started, int(found[1]) / 1024, done())
                time.sleep(every)
        finally:
            process.send_signal(signal.SIGTERM)
    if process.returncode:
        raise SystemExit(f"{' '.join(arguments)} ended with status {process.returncode}")


def last_step(path: Path) -> int:
    """The number in the last whole line of metrics.jsonl, 0 before there is one."""
    return int(last_row(path).get("step", 0))


def rate(taken: Sequence[Sample], first: float, last: float) -> float:
    """Steps (or jobs) per second between two shares of what is to be done."""
    total = taken[-1].done
    inside = [sample for sample in taken if first * total <= sample.done <= last * total]
    return (inside[-1].done - inside[0].done) / (inside[-1].seconds - inside[0].seconds)


def early_memory(taken: Sequence[Sample]) -> float:
    """MB when a tenth is done."""
    return next(sample.memory for sample in taken if sample.done >= 0.1 * taken[-1].done)


def compare(title: str, taken: Sequence[Sample], table: Table) -> list[str]:
    """Adds a row; says what has grown or fallen too far."""
    early = early_memory(taken)
    memory = taken[-1].memory / early
    speed = rate(taken, 0.85, 0.95) / rate(taken, 0.1, 0.2)
    table.add_row(title, f"{early:.0f} MB", f"{memory:.3f}", f"{rate(taken, 0.1, 0.2):.4g}", f"{speed:.3f}")
    problems = [f"{title}: memory {memory:.3f} of that at a tenth"] if memory > MOST_MEMORY else []
    return problems + ([f"{title}: speed {speed:.3f} of that at 10 to 20%"] if speed < LEAST_SPEED else [])


def long(folder: Path, num_steps: int) -> list[Sample]:
    run = folder / "long"
    arguments = command(f"trainer.steps={num_steps}", *_QUIET, "checkpoint.every=50000", f"hydra.run.dir={run}")
    return list(samples(arguments, lambda: last_step(run / "metrics.jsonl"), 0.25))


def sweep(folder: Path, num_jobs: int, table: Table) -> list[str]:
    run = folder / "sweep"
    arguments = command("-m", f"seed=range(0,{num_jobs})", "trainer.steps=20", *_QUIET, f"hydra.sweep.dir={run}")
    return compare(f"{num_jobs} jobs", list(samples(arguments, lambda: len(list(run.glob("*/summary.json"))), 1.0)), table)


def seconds_per_step(folder: Path, batch_size: int, hidden: Sequence[int]) -> float:
    """After the first chunk, of a run that takes some seconds."""
    steps = 200
    # Random numbers of a width that all sizes share; enough examples for the largest batch.
    of_job = ("data=synthetic", "loss=mse", "data.num_examples=4096", f"data.batch_size={batch_size}", f"model.hidden={list(hidden)}")
    while True:
        run = folder / f"size-{time.monotonic_ns()}"
        arguments = command(*of_job, f"trainer.steps={steps}", *_QUIET, f"hydra.run.dir={run}")
        subprocess.run(arguments, check=True, stdout=subprocess.DEVNULL, env=_one_thread())
        found = json.loads((run / "summary.json").read_text())["steps_per_second"]
        if steps / found > 2.0 or steps >= 50_000:
            return 1 / found
        steps = min(50_000, math.ceil(3 * found))


def bare_seconds_per_step(batch_size: int, hidden: Sequence[int]) -> float:
    arguments = [sys.executable, "-m", "benchmarks.competitors.bare_loop", str(batch_size), ",".join(map(str, hidden))]
    return float(subprocess.run(arguments, check=True, stdout=subprocess.PIPE, text=True, env=_one_thread()).stdout)


def _one_thread() -> dict[str, str]:
    """The trainer's own number of threads depends on the size."""
    return os.environ | {"TF_NUM_INTEROP_THREADS": "1", "TF_NUM_INTRAOP_THREADS": "1"}


def size(folder: Path, plot: Path | None) -> list[str]:
    table = Table(title="Milliseconds a step, as the job grows")
    for heading in ("what grows", "to", "ms a step", "slope", "a bare loop's", "its slope"):
        table.add_column(heading, justify="left" if heading == "what grows" else "right")
    curves, problems = {}, []
    for name, (numbers, job) in SIZES.items():
        ours = curves[name] = [(number, seconds_per_step(folder, *job(number))) for number in numbers]
        bare = [(number, bare_seconds_per_step(*job(number))) for number in numbers]
        slopes = list(zip(slopes_of(ours), slopes_of(bare), strict=True))
        shown = [("", ""), *((f"{slope:.2f}", f"{its:.2f}") for slope, its in slopes)]
        for (number, seconds), (_, its), (slope, its_slope) in zip(ours, bare, shown, strict=True):
            columns = (str(number), f"{1e3 * seconds:.3g}", slope, f"{1e3 * its:.3g}", its_slope)
            table.add_row(name, *columns, end_section=number == numbers[-1])
        if (last := statistics.median(slope - max(0.0, its - 1) for slope, its in slopes[-2:])) > STEEPEST:
            problems.append(f"{name}: a step's time grows with slope {last:.2f}, less what a bare loop's has above 1: faster than linear")
    Console().print(table)
    if plot:
        plot.write_text(drawn(curves), encoding="utf-8")
    return problems


def slopes_of(curve: Sequence[tuple[float, float]]) -> list[float]:
    """Of the logarithm of seconds over that of size, from each size to the next."""
    pairs = itertools.pairwise(curve)
    return [math.log(after[1] / before[1]) / math.log(after[0] / before[0]) for before, after in pairs]


def drawn(curves: dict[str, list[tuple[int, float]]]) -> str:
    """An SVG: time over size, both relative to the smallest and logarithmic; the line of slope 1 is linear growth."""
    colors, side, left = ("#0b62d6", "#d9730d", "#18794e"), 320, 60
    most = max(max(n / c[0][0] for n, _ in c) for c in curves.values())
    scale = side / math.log(most)
    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {side + 260} {side + 70}" font-family="sans-serif" font-size="12">']
    parts.append('<rect width="100%" height="100%" fill="#ffffff"/>')
    bottom = side + 20
    parts.append(f'<line x1="{left}" y1="{bottom}" x2="{left + side}" y2="{bottom - side}" stroke="#bbbbbb" stroke-dasharray="4"/>')
    for k in range(int(math.log10(most)) + 1):
        at = math.log(10**k) * scale
        parts.append(f'<text x="{left + at:.0f}" y="{bottom + 18}" text-anchor="middle">{10**k}x</text>')
        parts.append(f'<text x="{left - 8}" y="{bottom - at + 4:.0f}" text-anchor="end">{10**k}x</text>')
        parts.append(f'<path d="M{left + at:.0f} {bottom} v-{side} M{left} {bottom - at:.0f} h{side}" stroke="#eeeeee"/>')
    for color, (name, curve) in zip(colors, curves.items(), strict=True):
        points = [(left + math.log(n / curve[0][0]) * scale, bottom - math.log(max(s / curve[0][1], 1e-9)) * scale) for n, s in curve]
        line = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        parts.append(f'<polyline points="{line}" fill="none" stroke="{color}" stroke-width="2.5"/>')
        parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5" fill="{color}"/>' for x, y in points]
        parts.append(f'<text x="{points[-1][0] + 8:.1f}" y="{points[-1][1] + 4:.1f}" fill="{color}">{name}</text>')
    parts.append(f'<text x="{left + side / 2}" y="{bottom + 38}" text-anchor="middle">size</text>')
    parts.append(f'<text x="{left}" y="14" text-anchor="middle">time a step</text></svg>')
    return "\n".join(parts) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="long,sweep,size")
    parser.add_argument("--steps", type=int, default=1_000_000)
    parser.add_argument("--jobs", type=int, default=200)
    parser.add_argument("--plot", type=Path)
    arguments = parser.parse_args()
    wanted = arguments.only.split(",")
    if unknown := set(wanted) - {"long", "sweep", "size"}:
        parser.error(f"there is no {', '.join(unknown)}; there are long, sweep and size")
    table = Table(title="Long runs and sweeps")
    for heading in ("what", "memory at a tenth", "at the end, of that", "per second at 10 to 20%", "at 85 to 95%, of that"):
        table.add_column(heading, justify="left" if heading == "what" else "right")
    problems = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        problems += compare(f"{arguments.steps} steps", long(folder, arguments.steps), table) if "long" in wanted else []
        problems += sweep(folder, arguments.jobs, table) if "sweep" in wanted else []
        if table.row_count:
            Console().print(table)
        problems += size(folder, arguments.plot) if "size" in wanted else []
    for problem in problems:
        print(problem, file=sys.stderr)
    return int(bool(problems))


if __name__ == "__main__":
    sys.exit(main())
