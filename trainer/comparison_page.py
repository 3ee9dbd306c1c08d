"""A comparison of runs as one page of HTML that needs nothing else: verdicts, figures, and curves with their spread over seeds."""

import html
import math
from collections.abc import Sequence

import numpy as np

from trainer.comparison import Comparison, figures, verdict
from trainer.recorded import Run

_COLORS = ("#d9730d", "#0b62d6")  # of the baseline and of the other value
_WIDTH, _HEIGHT, _LEFT, _TOP = 400, 190, 58, 26  # of a chart's plot, px, and its margins
_NUM_BINS = 160
_MOST_LAYERS = 24
_DECADES = 1.5  # from this spread on an axis is logarithmic
_STYLE = """
:root { color-scheme: light dark; --ink: #1c2024; --quiet: #60646c; --line: #d9dce1; --back: #ffffff; }
@media (prefers-color-scheme: dark) { :root { --ink: #edeef0; --quiet: #a0a4ac; --line: #3a3f47; --back: #16181b; } }
body { font: 15px/1.45 system-ui, sans-serif; color: var(--ink); background: var(--back); }
body { max-width: 1420px; margin: 2rem auto; padding: 0 1rem }
h1 { font-size: 1.5rem; margin: 0 0 .3rem } h2 { font-size: 1.15rem; margin: 2.2rem 0 .5rem } h3 { font-size: 1rem; margin: 1.2rem 0 .3rem }
.verdict { padding: .7rem 1rem; border-radius: 8px; font-weight: 600; margin: .6rem 0 }
.verdict { border-left: 6px solid #0b62d6; background: #0b62d61a }
.quiet { color: var(--quiet) } .charts { display: flex; flex-wrap: wrap; gap: 1rem }
table { border-collapse: collapse; font-size: .88rem; margin: .6rem 0 } th { text-align: left }
td, th { border-top: 1px solid var(--line); padding: .3rem .7rem; text-align: right } td:first-child, th:first-child { text-align: left }
svg text { fill: var(--ink); font-size: 11px } svg .grid { stroke: var(--line) }
"""


def page(comparisons: Sequence[Comparison], alone: Sequence[str]) -> str:
    """The page; `alone` are runs that no other is matched with."""
    key = comparisons[0].key
    left_out = f'<p class="quiet">Without a partner, and not compared: {_text(", ".join(alone))}.</p>' if alone else ""
    sections = "".join(_section(comparison) for comparison in comparisons)
    return f"""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>Comparison: {_text(key)}</title>
<meta name="viewport" content="width=device-width, initial-scale=1"><style>{_STYLE}</style></head><body>
<h1>{_text(key)}: does it make a difference?</h1>
<p class="quiet">Runs are matched by everything but {_text(key)}, seed and order of the data included. Lines are means over seeds,
bands reach from the smallest to the largest. Differences are those of the matched runs, with 95% confidence intervals by Student's
distribution. Steps per second are as each run had them, whatever else the machine did then: they say something of two runs only where
neither ran beside others.</p>
{left_out}
{sections}</body></html>
"""


def _section(comparison: Comparison) -> str:
    title = comparison.setting or f"{comparison.value} against {comparison.baseline}"
    runs = comparison.sides
    tags = [*comparison.tags, *(tag for tag in comparison.shared if tag == "grad_norm/global")]
    layers = [tag for tag in comparison.shared if tag.startswith("grad_norm/") and tag != "grad_norm/global"]
    heads = ["at the end of the runs", comparison.baseline, comparison.value, "difference of pairs", "95% interval"]
    more = f'<p class="quiet">The first {_MOST_LAYERS} of {len(layers)}.</p>' if len(layers) > _MOST_LAYERS else ""
    names = (comparison.baseline, comparison.value)
    return f"""<h2>{_text(title)}</h2>
<div class="verdict">{_text(verdict(comparison))}</div>
<div>{_legend(names)}</div>
<div class="charts">{"".join(_chart(tag, runs) for tag in tags)}</div>
{_table(heads, figures(comparison))}
{_pairs(comparison)}
<h3>Gradient norms by variable</h3>{more}
<div class="charts">{"".join(_chart(tag, runs) for tag in layers[:_MOST_LAYERS])}</div>
"""


def _pairs(comparison: Comparison) -> str:
    rows = []
    for pair in comparison.pairs:
        parting = pair.parting
        where = "never" if parting is None else f"step {parting.step}, {parting.tag}: {parting.values[0]:.7g} and {parting.values[1]:.7g}"
        largest = "0" if parting is None else f"{parting.largest:.2g}"
        states = f"{pair.baseline.state}, {pair.other.state}"
        rows.append([str(pair.seed), states, f"{pair.baseline.steps}, {pair.other.steps}", where, largest])
    heads = [
        "seed",
        "ended",
        "steps",
        f"part by more than {comparison.pairs[0].tolerance.relative:g} of the value at",
        "largest relative difference of the loss",
    ]
    return f"<h3>Pairs</h3>{_table(heads, rows)}"


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f"<th>{_text(cell)}</th>" for cell in heads)
    body = "".join(f"<tr>{''.join(f'<td>{_text(cell)}</td>' for cell in row)}</tr>" for row in rows)
    return f"<table><tr>{head}</tr>{body}</table>"


def _legend(names: Sequence[str]) -> str:
    return " &nbsp; ".join(f'<span style="color:{color}">&#9632;</span> {_text(name)}' for color, name in zip(_COLORS, names, strict=True))


def _chart(tag: str, groups: Sequence[Sequence[Run]]) -> str:
    last = max(run.steps for group in groups for run in group)
    curves = [np.array([_binned(run, tag, last) for run in group]) for group in groups]  # [seeds, bins]
    known = np.concatenate([curve[np.isfinite(curve)] for curve in curves])
    if not len(known):
        return ""
    low, high = float(known.min()), float(known.max())
    logarithmic = low > 0 and math.log10(high / low) > _DECADES
    if logarithmic:
        curves, low, high = [np.log10(curve) for curve in curves], math.log10(low), math.log10(high)
    span = high - low or abs(high) or 1.0
    labelled = (low, (low + high) / 2, high) if high > low else (low,)
    low, high = low - 0.04 * span, high + 0.04 * span

    def x(place: float) -> float:
        return _LEFT + place / _NUM_BINS * _WIDTH

    def y(value: float) -> float:
        return _TOP + (high - value) / (high - low) * _HEIGHT

    scale = '<tspan font-weight="400">, logarithmic</tspan>' if logarithmic else ""
    parts = [f'<text x="{_LEFT}" y="14" font-weight="700">{_text(tag)}{scale}</text>']
    for value in labelled:
        label = f"{10**value if logarithmic else value:.3g}"
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{_LEFT + _WIDTH}" y1="{y(value):.1f}" y2="{y(value):.1f}"/>')
        parts.append(f'<text x="{_LEFT - 5}" y="{y(value) + 4:.1f}" text-anchor="end">{label}</text>')
    for step in (0, last // 2, last):
        parts.append(f'<text x="{x(step / last * _NUM_BINS):.1f}" y="{_TOP + _HEIGHT + 15}" text-anchor="middle">{step}</text>')
    for color, width, curve in zip(_COLORS, (3.2, 1.6), curves, strict=True):  # both are seen where they are the same
        there = np.flatnonzero(np.isfinite(curve).any(axis=0))
        at = [(x(b + 0.5), curve[:, b][np.isfinite(curve[:, b])]) for b in there]
        upper = [f"{place:.1f},{y(values.max()):.1f}" for place, values in at]
        lower = [f"{place:.1f},{y(values.min()):.1f}" for place, values in reversed(at)]
        middle = " ".join(f"{place:.1f},{y(values.mean()):.1f}" for place, values in at)
        parts.append(f'<polygon points="{" ".join(upper + lower)}" fill="{color}" fill-opacity="0.18"/>')
        parts.append(f'<polyline points="{middle}" fill="none" stroke="{color}" stroke-width="{width}"/>')
        parts += [f'<circle cx="{place:.1f}" cy="{y(values.mean()):.1f}" r="2.2" fill="{color}"/>' for place, values in at if len(at) < 30]
    return f'<svg width="{_LEFT + _WIDTH + 20}" height="{_TOP + _HEIGHT + 22}" role="img" aria-label="{_text(tag)}">{"".join(parts)}</svg>'


def _binned(run: Run, tag: str, last: int) -> np.ndarray:
    """[_NUM_BINS]: medians of the finite values of neighbouring steps; NaN where there are none."""
    series, found = run.series[tag], np.full(_NUM_BINS, np.nan)
    places = np.minimum(series.steps * _NUM_BINS // (last + 1), _NUM_BINS - 1)
    finite = np.isfinite(series.values)
    for place in np.unique(places[finite]):
        found[place] = np.median(series.values[finite & (places == place)])
    return found


def _text(text: str) -> str:
    return html.escape(str(text))
