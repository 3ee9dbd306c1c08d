"""Steps per second of this trainer beside Keras `fit`, in turns on the same machine.

    python -m benchmarks.loop [--windows 5] [--json FILE]

The job is an MLP 64-128-128-10 on the digits, batch 32, Adam, softmax cross-entropy. The trainer runs by its own command and
writes loss and gradient norms (global and of every variable) of every step to metrics.jsonl and TensorBoard; `fit` computes no
norms, and in two of its three ways it records nothing. Start-up, tracing and compilation are left out on both sides: the
trainer's rate is that of its summary.json, counted from its second chunk on, and `fit` is timed after a first call. Keras' data
are repeated so that a window is one epoch, without pauses between epochs. Ends with status 1 where the trainer is less than
2.5 times as fast as `fit` or 7 times as fast as `fit` that records every batch.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from rich.console import Console
from rich.table import Table

BATCH_SIZE = 32
TRAINER_STEPS = 40_000  # in one window
FIT_STEPS = 4_000
RECORDED_FIT_STEPS = 1_500
ALONE, CHUNKED, RECORDED = "Keras fit", "fit, steps_per_execution=32", "fit, TensorBoard every batch"
TRAINER = "gradtrain, TensorBoard every step"
WANTED = {ALONE: 2.5, RECORDED: 7.0}  # times as many steps per second as these


def trainer_rate(folder: Path) -> float:
    """Steps per second of the trainer's own command in a fresh process."""
    overrides = [f"trainer.steps={TRAINER_STEPS}", f"data.batch_size={BATCH_SIZE}", "trainer.eval_every=0", "checkpoint.every=0"]
    command = [sys.executable, "-m", "trainer", "data=digits", "model=mlp", "optimizer=adam", *overrides, f"hydra.run.dir={folder}"]
    environment = {name: value for name, value in os.environ.items() if name != "TF_CPP_MIN_LOG_LEVEL"}  # unset, it starts in silence
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=environment)
    return json.loads((folder / "summary.json").read_text())["steps_per_second"]


def fit_rate(folder: Path, steps_per_execution: int = 1, record: bool = False) -> Callable[[], float]:
    """A function that times one window of `fit` and returns its steps per second."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    import keras
    import numpy as np
    from sklearn.datasets import load_digits

    num_steps = RECORDED_FIT_STEPS if record else FIT_STEPS
    features, labels = load_digits(return_X_y=True)
    rows = np.arange(num_steps * BATCH_SIZE) % len(labels)
    features, labels = (features[rows] / 16).astype("float32"), labels[rows]
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.layers.Dense(128, "relu"), keras.layers.Dense(128, "relu"), keras.layers.Dense(10)])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("adam", loss, steps_per_execution=steps_per_execution)

    def window() -> float:
        callbacks = [keras.callbacks.TensorBoard(folder, update_freq="batch")] if record else []
        started = time.perf_counter()
        model.fit(features, labels, batch_size=BATCH_SIZE, callbacks=callbacks, verbose=0)
        return num_steps / (time.perf_counter() - started)

    window()
    return window


def measure(num_windows: int) -> dict[str, list[float]]:
    """Steps per second of every window, the candidates taking turns."""
    rates: dict[str, list[float]] = {ALONE: [], CHUNKED: [], RECORDED: [], TRAINER: []}
    with tempfile.TemporaryDirectory() as folder:
        fits = {
            ALONE: fit_rate(Path(folder)),
            CHUNKED: fit_rate(Path(folder), steps_per_execution=32),
            RECORDED: fit_rate(Path(folder) / "keras", record=True),
        }
        for window in range(num_windows):
            for name, fit in fits.items():
                rates[name].append(fit())
            rates[TRAINER].append(trainer_rate(Path(folder) / f"trainer-{window}"))
    return rates


def ratios(rates: dict[str, list[float]], name: str) -> list[float]:
    """The trainer's rate over a candidate's, window by window."""
    return [ours / theirs for ours, theirs in zip(rates[TRAINER], rates[name], strict=True)]


def table(rates: dict[str, list[float]]) -> Table:
    """Medians, and the ratios of the trainer's rate to each: their median, smallest and largest."""
    report = Table(title=f"MLP 64-128-128-10, batch {BATCH_SIZE}, {os.cpu_count()} CPUs: median of {len(rates[TRAINER])} windows")
    for heading in ("loop", "steps/s", "ratio", "from, to", "wanted"):
        report.add_column(heading, justify="left" if heading == "loop" else "right")
    for name, values in rates.items():
        times = ratios(rates, name)
        median, spread = f"{statistics.median(times):.1f}", f"{min(times):.1f}, {max(times):.1f}"
        wanted = f"{WANTED[name]:g}" if name in WANTED else ""
        report.add_row(name, f"{statistics.median(values):.0f}", *(("", "") if name == TRAINER else (median, spread)), wanted)
    return report


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--windows", type=int, default=5)
    parser.add_argument("--json", type=Path, help="also write the steps per second of every window there")
    arguments = parser.parse_args()
    rates = measure(arguments.windows)
    Console().print(table(rates))
    if arguments.json:
        arguments.json.write_text(json.dumps(rates, indent=2) + "\n")
    medians = {name: statistics.median(ratios(rates, name)) for name in WANTED}
    missed = [f"{medians[name]:.2f} times {name}, wanted {WANTED[name]:g}" for name in WANTED if medians[name] < WANTED[name]]
    if missed:
        print(f"too slow: {'; '.join(missed)}", file=sys.stderr)
    return int(bool(missed))


if __name__ == "__main__":
    sys.exit(main())
