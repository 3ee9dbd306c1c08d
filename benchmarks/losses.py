"""Time and memory of the losses whose backward pass is the problem: analytic beside auto and beside the usual formula.

    python -m benchmarks.losses [--only ctc,soft_dtw] [--repeats 7] [--json FILE]

Value and gradient of every loss, in a graph and under XLA, also where analytic loses. Times: the ways take turns in one process,
after a first call that traces and compiles; a ratio is the median over the turns, with its smallest and largest. Memory: the
peak of a call over what the process held before it, each in a process of its own, after a call with two examples; under XLA
it includes compiling.
Ends with status 1 where a wanted ratio is missed.
"""

import argparse
import dataclasses
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

ANALYTIC = "analytic"
WAYS = ("graph", "xla")


@dataclasses.dataclass(frozen=True)
class Wanted:
    """How many times analytic's cost another mode's must be, at least."""

    ratio: float
    against: str = "auto"
    measure: str = "time"
    ways: tuple[str, ...] = ("graph",)


@dataclasses.dataclass(frozen=True)
class Case:
    """A loss at a size, `inputs(rng) -> (y_true, y_pred)`, and what is wanted of it."""

    size: str
    inputs: Callable[[np.random.Generator], tuple[Any, Any]]
    wanted: tuple[Wanted, ...] = ()
    hyperparameters: dict[str, Any] = dataclasses.field(default_factory=dict)
    slow: bool = False  # seconds a call: two turns do
    weighted: bool = False  # the incoming gradient differs between examples, as their weights make it; else it is that of a mean
    loss: str | None = None  # where the case is not named like it


def _layer(rng: np.random.Generator) -> tuple[Any, Any]:
    p = {"hidden": rng.normal(size=(16384, 256)), "kernel": 0.05 * rng.normal(size=(256, 32768)), "bias": np.zeros(32768)}
    return rng.integers(0, 32768, 16384), p


def _frames(rng: np.random.Generator) -> tuple[Any, Any]:
    return {"labels": rng.integers(0, 63, (16, 20)), "num_frames": np.full(16, 200)}, rng.normal(size=(16, 200, 64))


CASES = {
    "linear_crossentropy": Case(
        "16384 tokens x 32768 words, d=256",
        _layer,
        (Wanted(15, measure="memory", ways=WAYS), Wanted(1 / 1.05, ways=WAYS)),
        slow=True,
    ),
    "linear_crossentropy, weighted": Case(
        "16384 tokens x 32768 words, d=256, tokens of different weights", _layer, slow=True, weighted=True, loss="linear_crossentropy"
    ),
    "infonce": Case("4096 pairs, d=128", lambda rng: (None, rng.normal(size=(4096, 2, 128))), hyperparameters={"temperature": 10.0}),
    "soft_dtw": Case(
        "B16 T128 D8",
        lambda rng: (rng.normal(size=(16, 128, 8)), rng.normal(size=(16, 128, 8))),
        (Wanted(4), Wanted(10, ways=("xla",))),
    ),
    "ctc": Case("B16 T200 L20, 64 classes", _frames, (Wanted(10, against="usual"),)),
    "sinkhorn": Case(
        "B4 n=256, 200 iterations",
        lambda rng: (rng.normal(size=(4, 256, 2)), rng.normal(size=(4, 256, 2))),
        (Wanted(20, measure="memory"),),
        {"tolerance": 0.0},
    ),
    "ensemble_crps": Case("B32 m=1000", lambda rng: (rng.normal(size=32), rng.normal(size=(32, 1000))), (Wanted(10, against="usual"),)),
    "sparsemax": Case("256 x 10000", lambda rng: (rng.integers(0, 10000, 256), rng.normal(size=(256, 10000))), (Wanted(1.5),)),
    "entmax15": Case("256 x 10000", lambda rng: (rng.integers(0, 10000, 256), rng.normal(size=(256, 10000)))),
}


def calls(name: str, way: str, modes: list[str] | None = None) -> dict[str, Callable[..., None]]:
    """A function for each mode that computes value and gradient once, of all examples or of the first `num`."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    import tensorflow as tf

    import losses
    from losses.base import map_entries
    from losses.modes import per_example
    from losses.proof.evaluation import cast

    case, rng = CASES[name], np.random.default_rng(0)
    loss = losses.find(case.loss or name)(**case.hyperparameters)
    y_true, y_pred = (cast(arrays, tf.float32) for arrays in case.inputs(rng))

    def call(mode: str) -> Callable[..., None]:
        @tf.function(jit_compile=way == "xla", autograph=False)
        def value_and_gradient(y_true: Any, y_pred: Any) -> tuple[Any, Any]:
            with tf.GradientTape() as tape:
                tape.watch(y_pred)
                value = loss.usual(y_true, y_pred) if mode == "usual" and loss.usual else per_example(loss, mode, y_true, y_pred)
            dys = tf.linspace(0.5, 1.5, tf.shape(value)[0]) if case.weighted else tf.fill(tf.shape(value), 1 / 32)
            return value, tape.gradient(value, y_pred, output_gradients=dys)

        def run(num: int | None = None) -> None:
            y = tf.nest.map_structure(lambda tensor: tensor[:num], y_true) if y_true is not None else None
            p = map_entries(lambda key, tensor: tensor if key in loss.shared else tensor[:num], y_pred)
            for tensor in tf.nest.flatten(value_and_gradient(y, p)):
                tensor.numpy()

        return run

    known = [*loss.modes, *(["usual"] if loss.usual else [])]
    return {mode: call(mode) for mode in modes or known}


def times(name: str, way: str, repeats: int) -> dict[str, list[float]]:
    """Seconds of every call, the modes taking turns."""
    found = calls(name, way)
    for call in found.values():
        call()
    seconds: dict[str, list[float]] = {mode: [] for mode in found}
    for _ in range(2 if CASES[name].slow else repeats):
        for mode, call in found.items():
            started = time.perf_counter()
            call()
            seconds[mode].append(time.perf_counter() - started)
    return seconds


def memory(name: str, way: str, mode: str) -> float:
    """MB at the peak of a call over those before it."""
    (call,) = calls(name, way, [mode]).values()
    call(2)
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    before = _resident("VmRSS")
    call()
    return max(_resident("VmHWM") - before, 0.1)


def _resident(key: str) -> float:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(key))
    return int(line.split()[1]) / 1024


def apart(function: str, *arguments: Any) -> Any:
    """The result of one of the functions above in a fresh process."""
    code = f"import json; from benchmarks.losses import {function}; print(json.dumps({function}{arguments!r}))"
    done = subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def measure(name: str, repeats: int) -> dict[str, Any]:
    """`{way: {"time": {mode: [s, ...]}, "memory": {mode: [MB]}}}`."""
    found: dict[str, Any] = {}
    for way in WAYS:
        seconds = apart("times", name, way, repeats)
        found[way] = {"time": seconds, "memory": {mode: [apart("memory", name, way, mode)] for mode in seconds}}
    return found


def ratios(costs: dict[str, list[float]], mode: str) -> list[float]:
    """A mode's cost over analytic's, turn by turn."""
    return [other / ours for other, ours in zip(costs[mode], costs[ANALYTIC], strict=True)]


def add_rows(table: Table, name: str, found: dict[str, Any]) -> list[str]:
    """Adds a loss's rows; returns what is missed."""
    missed = []
    for way, measures in found.items():
        for what, unit, factor in (("time", "ms", 1000), ("memory", "MB", 1)):
            costs = measures[what]
            for mode, values in costs.items():
                over = ratios(costs, mode)
                wanted = [w for w in CASES[name].wanted if (w.against, w.measure) == (mode, what) and way in w.ways]
                median = statistics.median(over)
                missed += [f"{name} {way} {what}: {median:.3g} of {mode}'s, wanted {w.ratio:.3g}" for w in wanted if median < w.ratio]
                row = [name, way, what, mode, f"{statistics.median(values) * factor:.3g} {unit}"]
                compared = ["", ""] if mode == ANALYTIC else [f"{median:.3g}", f"{min(over):.3g}, {max(over):.3g}"]
                table.add_row(*row, *compared, ", ".join(f"{w.ratio:.3g}" for w in wanted), end_section=mode == list(costs)[-1])
    return missed


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", help="losses, with commas between")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--json", type=Path, help="also write every time and peak there")
    arguments = parser.parse_args()
    names = arguments.only.split(",") if arguments.only else list(CASES)
    if unknown := [name for name in names if name not in CASES]:
        parser.error(f"no benchmark of {', '.join(unknown)}; there are {', '.join(CASES)}")
    found = {name: measure(name, arguments.repeats) for name in names}
    table = Table(title=f"{os.cpu_count()} CPUs; ratio: cost over analytic's, median")
    for heading in ("loss", "compiled", "measure", "mode", "median", "ratio", "from, to", "wanted"):
        table.add_column(heading, justify="right" if heading in ("median", "ratio", "from, to", "wanted") else "left")
    missed = [text for name in names for text in add_rows(table, name, found[name])]
    Console(width=None if sys.stdout.isatty() else 140).print(table)
    for name in names:
        print(f"{name}: {CASES[name].size}")
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=2) + "\n")
    if missed:
        print(f"missed: {'; '.join(missed)}", file=sys.stderr)
    return int(bool(missed))


if __name__ == "__main__":
    sys.exit(main())
