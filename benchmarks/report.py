"""Results as a table, a plot and a page."""

import html
import math
import statistics

from rich.table import Table

from benchmarks import kernels
from benchmarks.results import Entry, Result, findings, ratios
from benchmarks.workloads import OURS

_EXPLANATION = """\
Written by `python -m benchmarks.loop --report`. The same model, data, batch, initial weights' scale and Adam for all, in float32 on the
CPU; windows of the entrants alternate; start-up, tracing and compilation are left out. A ratio is the median over the windows, with its
smallest and largest behind it. Steps per second are this machine's in that hour; the ratios last longer.

gradtrain runs by its own command in a fresh process for every window and writes loss, global norm and every variable's norm of every step
to metrics.jsonl and TensorBoard; "watching nothing" writes no norms of variables, no TensorBoard, and a line for the last step alone. Keras
`fit` computes the mean loss alone; the hand-written loop writes loss, accuracy and every norm of every step by tf.summary; Orbit, PyTorch,
Lightning and JAX compute loss, accuracy and global norm of every step, and write nothing. Language models train on random words. Peak
memory is that of the entrant's own process, empty where it is not known."""

_ROW, _LEFT, _WIDTH, _RIGHT = 20, 330, 460, 90  # of the plot, pixels


def spread(values: list[float]) -> str:
    """The median, and the smallest and the largest."""
    return f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})" if values else ""


def rows(result: Result) -> list[list[str]]:
    """For each entrant: title, steps per second, our rate over its, peak memory; or why it has none."""
    ours = result.entries.get(OURS)
    return [_row(entry, ours) for entry in result.entries.values()]


def _row(entry: Entry, ours: Entry | None) -> list[str]:
    rate, memory = entry.median("rate"), entry.median("peak_memory_mb")
    error = f"failed: {entry.error}" if entry.error else ""
    if rate is None:
        return [entry.title, error or "not measured", "", ""]
    over = "" if ours is None or entry is ours else spread(ratios(ours, entry))
    return [f"{entry.title} ({error})" if error else entry.title, f"{rate:.4g}", over, "" if memory is None else f"{memory:.0f}"]


HEADINGS = ("loop", "steps/s", "gradtrain's over its (from, to)", "peak MB")


def _num_windows(result: Result) -> int:
    return max((len(entry.windows) for entry in result.entries.values()), default=0)


def table(result: Result) -> Table:
    found = Table(title=f"{result.title}: median of {_num_windows(result)} windows")
    for heading in HEADINGS:
        found.add_column(heading, justify="left" if heading == HEADINGS[0] else "right")
    for row in rows(result):
        found.add_row(*row)
    return found


def page(results: dict[str, Result], plot: str) -> str:
    """The Markdown of docs/performance.md, with the plot in the file named `plot`."""
    lines = [
        "# Speed beside others",
        "",
        _EXPLANATION,
        "",
        f"![gradtrain's steps per second over those of others]({plot})",
        "",
        "| Workload | Wanted | Found (from, to) | |",
        "|---|---|---|---|",
    ]
    for name, of_one in findings(results).items():
        for finding in of_one:
            wanted, found = finding.wanted, spread(finding.ratios) or "not measured"
            times = "times" if wanted.measure == "rate" else "times less memory than"
            against = f"≥ {wanted.ratio:g} {times} {finding.against}"
            lines.append(f"| {name}: {finding.ours} | {against} | {found} | {'met' if finding.met else 'missed'} |")
    for name, result in results.items():
        lines += [
            "",
            f"## {name}: {result.title}",
            "",
            f"{result.date}, {result.machine}; {_num_windows(result)} windows.",
            "",
            f"| {' | '.join(HEADINGS)} |",
            "|---|---|---|---|",
        ]
        lines += [f"| {' | '.join(cell.replace('|', '/') for cell in row)} |" for row in rows(result)]
        if result.kernels:
            lines += ["", f"A ratio is missed here. What gradtrain's step spends its time on (`python -m benchmarks.kernels {name}`):", ""]
            lines += [f"| {' | '.join(kernels.HEADINGS)} |", "|---|---|---|---|"]
            lines += [f"| {' | '.join(row)} |" for row in kernels.rows(result.kernels)]
        versions = dict.fromkeys(version for entry in result.entries.values() for version in entry.versions.split(", ") if version)
        lines += ["", f"Versions: {', '.join(versions)}."]
    return "\n".join(lines) + "\n"


def plot(results: dict[str, Result]) -> str:
    """An SVG: on a logarithmic axis, for every entrant, our rate over its: the median as a dot, from the smallest to the largest."""
    groups = [(result.title, [(entry.title, _ratios(result, entry)) for entry in result.entries.values()]) for result in results.values()]
    groups = [(title, [(name, values) for name, values in of_one if values]) for title, of_one in groups]
    everything = [value for _, of_one in groups for _, values in of_one for value in values] or [1.0]
    low, high = math.log(min(0.8, *everything, 1)), math.log(max(1.25, *everything, 1))

    def x(value: float) -> float:
        return _LEFT + (math.log(value) - low) / (high - low) * _WIDTH

    height = sum((len(of_one) + 1.5) * _ROW for _, of_one in groups) + 2 * _ROW
    size = f"{_LEFT + _WIDTH + _RIGHT} {height:.0f}"
    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {size}" font-family="sans-serif" font-size="12">']
    parts.append('<rect width="100%" height="100%" fill="#ffffff"/>')
    for tick in (0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 200):
        if low <= math.log(tick) <= high:
            dark = "#555555" if tick == 1 else "#dddddd"
            parts.append(f'<line x1="{x(tick):.1f}" x2="{x(tick):.1f}" y1="{_ROW}" y2="{height - _ROW:.0f}" stroke="{dark}"/>')
            parts.append(f'<text x="{x(tick):.1f}" y="{height - 6:.0f}" text-anchor="middle">{tick:g}</text>')
    y = float(_ROW)
    for title, of_one in groups:
        parts.append(f'<text x="4" y="{y + 4:.0f}" font-weight="bold">{html.escape(title)}</text>')
        for name, values in of_one:
            y += _ROW
            median = statistics.median(values)
            parts.append(f'<text x="{_LEFT - 10}" y="{y + 4:.0f}" text-anchor="end">{html.escape(name)}</text>')
            parts.append(
                f'<line x1="{x(min(values)):.1f}" x2="{x(max(values)):.1f}" y1="{y:.0f}" y2="{y:.0f}" stroke="#1f77b4" stroke-width="3"/>'
            )
            parts.append(f'<circle cx="{x(median):.1f}" cy="{y:.0f}" r="4.5" fill="#1f77b4"/>')
            parts.append(f'<text x="{x(max(values)) + 8:.1f}" y="{y + 4:.0f}">{median:.2f}</text>')
        y += 1.5 * _ROW
    return "\n".join([*parts, "</svg>"]) + "\n"


def _ratios(result: Result, entry: Entry) -> list[float]:
    ours = result.entries.get(OURS)
    return [] if ours is None or entry is ours else ratios(ours, entry)
