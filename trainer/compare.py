"""The command that compares runs: `python -m trainer.compare RUN... | SWEEP`. Imports no TensorFlow."""

import csv
import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from trainer.arguments import Parser, main
from trainer.comparison import SUMMARIZED, Comparison, Interval, Tolerance, compare, figures, verdict
from trainer.comparison_page import page
from trainer.errors import ConfigError
from trainer.logs import plain
from trainer.progress import is_terminal
from trainer.recorded import Run, read

_FOLDER = "outputs/comparison"
_MOST_PARTED = 10  # pairs, and runs without a partner, that are listed


def run(arguments: Sequence[str]) -> int:
    """Compares runs; with --assert-equal the exit status is 1 where they are not the same."""
    options = _parser().parse_args(arguments)
    if options.help:
        print(_HELP)
        return 0
    if not (options.rtol >= 0 and options.atol >= 0):
        raise ConfigError(f"--rtol={options.rtol} --atol={options.atol}: must be numbers from 0 on")
    runs = list({run.path.resolve(): run for path in options.runs for run in read(Path(path))}.values())
    comparisons = compare(runs, options.key, options.baseline, Tolerance(options.rtol, options.atol))
    paired = {run.path for comparison in comparisons for side in comparison.sides for run in side}
    alone = [str(run.path) for run in runs if run.path not in paired]
    folder = Path(options.output or (options.runs[0] if len(options.runs) == 1 else _FOLDER))
    _write(folder, comparisons, runs, alone)
    _print(comparisons, alone)
    Console().print(f"{folder / 'comparison.html'} shows it", markup=False, highlight=False, soft_wrap=True)
    return _assert_equal(comparisons, alone) if options.assert_equal else 0


_HELP = f"""python -m trainer.compare RUN... [--key KEY] [--baseline VALUE] [--output DIR] [--assert-equal] [--rtol R] [--atol A]

Compares runs that differ in one key, the gradient mode or any other, matched by all others: seed, data, model. RUN is the
directory of a run, or of a sweep, which stands for all of its runs. Prints means, differences of the pairs with their 95%
confidence intervals, and a verdict; comparison.json, comparison.csv and comparison.html go to the sweep's directory, or to
{_FOLDER}.

  --key KEY         in which they are compared, where they differ in several (gradient.mode)
  --baseline VALUE  of the key, with which the other values are compared (auto)
  --output DIR      another folder
  --assert-equal    exit status 1 where any recorded number of a pair differs, or a run has no partner
  --rtol, --atol    by more than so much of the value (1e-5), or so much (1e-8)
"""


def _parser() -> Parser:
    parser = Parser("python -m trainer.compare")
    parser.add_argument("runs", nargs="*")
    parser.add_argument("--key")
    parser.add_argument("--baseline")
    parser.add_argument("--output")
    parser.add_argument("--assert-equal", action="store_true")
    parser.add_argument("--rtol", type=float, default=Tolerance.relative)
    parser.add_argument("--atol", type=float, default=Tolerance.absolute)
    return parser


def _write(folder: Path, comparisons: Sequence[Comparison], runs: Sequence[Run], alone: Sequence[str]) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        content = [_told(comparison) for comparison in comparisons]
        (folder / "comparison.json").write_text(json.dumps(content, indent=2, allow_nan=False) + "\n", encoding="utf-8")
        (folder / "comparison.html").write_text(page(comparisons, alone), encoding="utf-8")
        with open(folder / "comparison.csv", "w", encoding="utf-8", newline="") as file:
            _write_csv(file, comparisons, runs)
    except OSError as error:
        raise ConfigError(f"--output={folder} can't be written: {error.strerror}; type a folder that can") from error


def _told(comparison: Comparison) -> dict[str, Any]:
    pairs = []
    for pair in comparison.pairs:
        parting = pair.parting
        pairs.append(
            {
                "seed": pair.seed,
                "runs": [str(pair.baseline.path), str(pair.other.path)],
                "states": [pair.baseline.state, pair.other.state],
                "steps": [pair.baseline.steps, pair.other.steps],
                "nonfinite_steps": [pair.baseline.num_nonfinite, pair.other.num_nonfinite],
                "part_at_step": None if parting is None else parting.step,
                "part_in": None if parting is None else parting.tag,
                "largest_relative_difference_of_loss": 0.0 if parting is None else plain(parting.largest),
                "final": {tag: [plain(run.figure(tag)) for run in (pair.baseline, pair.other)] for tag in comparison.tags},
            }
        )
    return {
        "key": comparison.key,
        "setting": comparison.setting,
        "baseline": comparison.baseline,
        "value": comparison.value,
        "verdict": verdict(comparison),
        "differences": {tag: _told_interval(comparison.differences(tag)) for tag in comparison.tags},
        "ratios": {name: _told_interval(comparison.ratio(name)) for name in SUMMARIZED},
        "pairs": pairs,
        "without_partner": [str(run.path) for run in comparison.unmatched],
    }


def _told_interval(found: Interval) -> dict[str, Any]:
    return {"mean": plain(found.mean), "low": plain(found.low), "high": plain(found.high), "pairs": found.num}


def _write_csv(file: Any, comparisons: Sequence[Comparison], runs: Sequence[Run]) -> None:
    """A row for every run."""
    tags = list(dict.fromkeys(tag for run in runs for tag in run.series if tag == "loss" or tag.startswith("eval/")))
    places: dict[Path, tuple[str, str]] = {}
    for comparison in comparisons:
        for pair in comparison.pairs:
            places[pair.baseline.path] = (comparison.setting, comparison.baseline)
            places[pair.other.path] = (comparison.setting, comparison.value)
    writer = csv.writer(file)
    writer.writerow(["run", "setting", comparisons[0].key, "seed", "state", "steps", "nonfinite_steps", *SUMMARIZED, *tags])
    for run in runs:
        setting, value = places.get(run.path, ("", ""))
        numbers = [run.figure(name) for name in (*SUMMARIZED, *tags)]
        cells = [run.path, setting, value, run.config.get("seed"), run.state, run.steps, run.num_nonfinite]
        writer.writerow([*cells, *("" if math.isnan(n) else f"{n:.9g}" for n in numbers)])


def _print(comparisons: Sequence[Comparison], alone: Sequence[str]) -> None:
    table = Table("", "at the end", "baseline", "other", "difference", "95% interval", title=f"{comparisons[0].key}, compared")
    for comparison in comparisons:
        name = f"{comparison.setting} {comparison.value} against {comparison.baseline}".strip()
        for row in figures(comparison):
            table.add_row(name, *row)
            name = ""
        table.add_section()
    console = Console(width=None if is_terminal() else 140)
    console.print(table)
    for comparison in comparisons:
        console.print(f"{comparison.setting}: {verdict(comparison)}".removeprefix(": "), markup=False, highlight=False, soft_wrap=True)
    for path in alone:
        console.print(f"warning: {path} has no partner, and is not compared", markup=False, highlight=False, soft_wrap=True)


def _assert_equal(comparisons: Sequence[Comparison], alone: Sequence[str]) -> int:
    pairs = [pair for comparison in comparisons for pair in comparison.pairs]
    parted = []
    for pair in pairs:
        lacking = sorted(tag for tag in pair.baseline.series.keys() ^ pair.other.series.keys() if tag.startswith("eval/"))
        if pair.baseline.steps != pair.other.steps:
            parted.append(f"{pair.other.path} has {pair.other.steps} steps, {pair.baseline.path} {pair.baseline.steps}")
        elif lacking:
            parted.append(f"only one of {pair.other.path} and {pair.baseline.path} has recorded {', '.join(lacking)}")
        elif found := pair.parting:
            values = f"{found.values[1]:.9g} instead of {found.values[0]:.9g}"
            parted.append(f"{pair.other.path} parts from {pair.baseline.path} at step {found.step}: {found.tag} is {values}")
    for line in [*parted[:_MOST_PARTED], *(f"{path} has no partner" for path in alone[:_MOST_PARTED])]:
        print(line, file=sys.stderr)
    if parted or alone:
        within = f"within rtol={pairs[0].tolerance.relative:g} and atol={pairs[0].tolerance.absolute:g}"
        lost = f", and {len(alone)} runs have no partner" if alone else ""
        print(f"error: {len(parted)} of {len(pairs)} pairs are not equal {within}{lost}", file=sys.stderr)
    return int(bool(parted or alone))


if __name__ == "__main__":
    main(run)
