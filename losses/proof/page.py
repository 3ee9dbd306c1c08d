"""The report as one page of HTML that needs nothing else: the verdict, the map of errors over magnitudes, and every finding."""

from __future__ import annotations

import html as escaping
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from losses.proof.report import Report

_DTYPES = ("float32", "float64", "bfloat16", "float16")
_COLORS = {"analytic": "#0b62d6", "auto": "#d9730d", "usual": "#8a8f98"}
_MODES = {"analytic": "analytic: the loss's own gradient", "auto": "auto: the tape", "usual": "the usual formula"}
_WIDTH, _HEIGHT, _LEFT, _TOP = 480, 190, 46, 58  # of a chart's plot, px, and its margins
_TENTH = {"float64": 0.1 * 2.0**52, "float32": 0.1 * 2.0**23, "bfloat16": 0.1 * 2.0**7, "float16": 0.1 * 2.0**10}  # a 10% error in ulp
_HIGHEST = 18  # 10 ** that many ulp is the top of the scale
_STYLE = """
:root { color-scheme: light dark; --ink: #1c2024; --quiet: #60646c; --line: #d9dce1; --back: #ffffff; --soft: #f4f5f7; }
@media (prefers-color-scheme: dark) { :root { --ink: #edeef0; --quiet: #a0a4ac; --line: #3a3f47; --back: #16181b; --soft: #212429; } }
body { font: 15px/1.45 system-ui, sans-serif; color: var(--ink); background: var(--back); }
body { max-width: 1180px; margin: 2rem auto; padding: 0 1rem }
h1 { font-size: 1.5rem; margin: 0 0 .3rem } h2 { font-size: 1.1rem; margin: 2rem 0 .5rem }
.verdict { padding: .8rem 1rem; border-radius: 8px; font-weight: 600; color: #fff; margin: 1rem 0 }
.ok { background: #18794e } .bad { background: #c62a2f }
.quiet { color: var(--quiet) } .charts { display: flex; flex-wrap: wrap; gap: 1.2rem }
table { border-collapse: collapse; width: 100%; font-size: .87rem } th { text-align: left }
td, th { border-top: 1px solid var(--line); padding: .3rem .5rem; vertical-align: top }
.holds { color: #18794e } .fails { color: #c62a2f; font-weight: 700 } .inconclusive { color: #ad5700 } .excepted { color: var(--quiet) }
svg text { fill: var(--ink); font-size: 11px } svg .grid { stroke: var(--line) } svg .inside { fill: var(--soft) }
td.message { overflow-wrap: anywhere }
"""


def html(report: Report) -> str:
    """The page."""
    first = "".join(f"<p>{_text(finding.message)}</p>" for finding in [*report.failures, *report.undecided][:1])
    settings = ", ".join(f"{name}={value}" for name, value in report.hyperparameters.items()) or "no hyperparameters"
    score = f"{report.num_caught} of {len(report.mutants)} wrong variants of the gradient were caught" if report.mutants else ""
    charts = "".join(_chart(report, dtype) for dtype in _DTYPES)
    return f"""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>Gradient check: {_text(report.loss)}</title>
<meta name="viewport" content="width=device-width, initial-scale=1"><style>{_STYLE}</style></head><body>
<h1>Gradient check: {_text(report.loss)}</h1>
<div class="quiet">contract {_text(report.contract)}, second order {_text(report.second_order)}, modes {_text(" and ".join(report.modes))};
{_text(settings)}; answers for magnitudes {report.magnitudes[0]:g} to {report.magnitudes[1]:g}; {report.seconds:.1f} s</div>
<div class="verdict {"ok" if report.ok else "bad"}">{_text(_verdict(report))}</div>{first}
<ul>{"".join(f"<li>{_text(line)}</li>" for line in _summary(report))}</ul>
<h2>How far off the gradient is, over magnitudes</h2>
<p class="quiet">The largest error among the examples of each magnitude of the inputs, in units in the last place (ulp), each input as the
dtype holds it. Bars above: green where it is right, orange where the error is large, red where the gradient is NaN, falsely infinite or
falsely zero, gray where the dtype holds neither inputs nor gradient. Shaded: the
magnitudes that the loss answers for. Dashed: the limit, before the condition number is allowed for.</p>
<div>{_legend(report)}</div><div class="charts">{charts}</div>
<h2>Findings</h2>{_table(report)}
{_mutants(report, score)}
</body></html>
"""


def _verdict(report: Report) -> str:
    wrong = {("fails", "fail"): report.failures, ("is inconclusive", "are inconclusive"): report.undecided}
    said = [f"1 check {one}." if len(found) == 1 else f"{len(found)} checks {many}." for (one, many), found in wrong.items() if found]
    said += [f"Not caught: {', '.join(report.missed)}."] if report.missed else []
    return " ".join(said) or "Everything holds."


def _summary(report: Report) -> list[str]:
    """A sentence for every gradient: how it does in float32 where the loss answers for it."""
    lines = []
    for mode, name in _MODES.items():
        data = report.map("float32", mode)
        if data is None:
            continue
        broken = {"NaN": data["nan_share"], "falsely infinite": data["inf_share"], "falsely zero": data["zero_share"]}
        shares = [f"{share:.1%} {kind}" for kind, share in broken.items() if share]
        unit = "ulp of its norm" if data["structured"] else "ulp"
        error = f"at most {data['worst']:.3g} {unit} off (large errors divided by 1 + the condition number)"
        lines.append(f"{name}: in float32 {error}{', ' + ', '.join(shares) if shares else ''}")
    return lines


def _chart(report: Report, dtype: str) -> str:
    maps = {mode: data for mode in _MODES if (data := report.map(dtype, mode))}
    if not maps:
        return ""
    exponents = next(iter(maps.values()))["exponents"]
    low, high = exponents[0], exponents[-1]

    def x(exponent: float) -> float:
        return _LEFT + (exponent - low) / (high - low) * _WIDTH

    def y(ulp: float) -> float:
        level = math.log10(min(max(ulp, 0.1), 10.0**_HIGHEST))
        return _TOP + _HEIGHT - (level + 1) / (_HIGHEST + 1) * _HEIGHT

    smallest, largest = (min(max(math.log10(size), low), high) for size in report.magnitudes)
    limit = next(iter(maps.values()))["limit"]
    parts = [f'<rect class="inside" x="{x(smallest):.1f}" y="{_TOP}" width="{x(largest) - x(smallest):.1f}" height="{_HEIGHT}"/>']
    for level in range(0, _HIGHEST + 1, 3):
        label = "1 ulp" if not level else f"1e{level}"
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{_LEFT + _WIDTH}" y1="{y(10.0**level):.1f}" y2="{y(10.0**level):.1f}"/>')
        parts.append(f'<text x="{_LEFT - 5}" y="{y(10.0**level) + 4:.1f}" text-anchor="end">{label}</text>')
    for exponent in range(math.ceil(low / 10) * 10, math.floor(high) + 1, 10):
        parts.append(f'<text x="{x(exponent):.1f}" y="{_TOP + _HEIGHT + 15}" text-anchor="middle">1e{exponent}</text>')
    parts.append(
        f'<line x1="{_LEFT}" x2="{_LEFT + _WIDTH}" y1="{y(limit):.1f}" y2="{y(limit):.1f}" stroke="#c62a2f" stroke-dasharray="4 3"/>'
    )
    for row, (mode, data) in enumerate(maps.items()):
        parts += _bars(data, _COLORS[mode], x, 20 + 12 * row)
    parts += [_line(maps[mode], _COLORS[mode], x, y) for mode in reversed(maps)]  # the loss's own on top
    height = _TOP + _HEIGHT + 24
    return (
        f'<svg width="{_LEFT + _WIDTH + 24}" height="{height}" role="img" aria-label="errors in {dtype}">'
        f'<text x="{_LEFT}" y="13" font-weight="700">{dtype}</text>{"".join(parts)}</svg>'
    )


def _bars(data: dict[str, Any], color: str, x: Callable[[float], float], top: int) -> list[str]:
    """A strip with a cell for every magnitude, red where something is no right number at all."""
    exponents = data["exponents"]
    width = (x(exponents[-1]) - x(exponents[0])) / max(1, len(exponents) - 1)
    parts = [f'<rect x="{x(exponents[0]) - 10:.1f}" y="{top}" width="6" height="9" fill="{color}"/>']
    for exponent, largest, *shares in zip(exponents, data["max"], data["nan"], data["inf"], data["zero"], strict=True):
        broken = max(shares)
        large = largest is not None and largest > min(1e3 * data["limit"], max(data["limit"], _TENTH[data["dtype"]]))
        fill = "#c62a2f" if broken else "#b9bec6" if largest is None else "#e8a33d" if large else "#62b58f"
        title = f"1e{exponent:g}: NaN {shares[0]:.0%}, infinite {shares[1]:.0%}, zero {shares[2]:.0%}"
        parts.append(
            f'<rect x="{x(exponent) - width / 2:.1f}" y="{top}" width="{width:.1f}" height="9" fill="{fill}"><title>{title}</title></rect>'
        )
    return parts


def _line(data: dict[str, Any], color: str, x: Callable[[float], float], y: Callable[[float], float]) -> str:
    points = [(x(e), y(v)) for e, v in zip(data["exponents"], data["max"], strict=True) if v is not None]
    path = " ".join(f"{a:.1f},{b:.1f}" for a, b in points)
    return f'<polyline points="{path}" fill="none" stroke="{color}" stroke-width="1.8"/>'


def _legend(report: Report) -> str:
    there = [mode for mode in _MODES if report.map("float32", mode)]
    return " &nbsp; ".join(f'<span style="color:{_COLORS[mode]}">&#9632;</span> {_text(_MODES[mode])}' for mode in there)


def _table(report: Report) -> str:
    rows = "".join(
        f'<tr><td>{_text(f.section)}</td><td>{_text(f.check)}</td><td>{_text(f.mode)}</td><td class="{f.verdict}">{f.verdict}</td>'
        f'<td class="message">{_text(f.message)}</td></tr>'
        for f in sorted(report.findings, key=lambda finding: finding.verdict != "fails")
    )
    return f"<table><tr><th>Section</th><th>Check</th><th>Of</th><th>Verdict</th><th></th></tr>{rows}</table>"


def _mutants(report: Report, score: str) -> str:
    if not report.mutants:
        return ""
    rows = "".join(
        f'<tr><td>{_text(name)}</td><td class="{"holds" if caught else "fails"}">{_text(caught or "not caught")}</td></tr>'
        for name, caught in report.mutants
    )
    return f"<h2>The check, checked</h2><p>{_text(score)}.</p><table><tr><th>Wrong on purpose</th><th>Caught by</th></tr>{rows}</table>"


def _text(text: str) -> str:
    return escaping.escape(str(text))
