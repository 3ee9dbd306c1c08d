"""The command that checks gradients: `python -m trainer.check loss=NAME` one loss, without an override the whole catalogue."""

import concurrent.futures
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from trainer.arguments import Parser, main
from trainer.errors import ConfigError
from trainer.imports import lean
from trainer.silence import quiet

_COLORS = {"holds": "green", "fails": "bold red", "inconclusive": "yellow", "excepted": "dim"}
_FOLDER = "outputs/gradcheck"


def run(arguments: Sequence[str]) -> int:
    """Checks what is asked for; the exit status is 0 only when everything holds."""
    options = _parser().parse_intermixed_args(arguments)
    if options.help:
        print(_HELP)
        return 0
    if options.seed < 0:
        raise ConfigError(f"--seed={options.seed}: must be a whole number from 0 on")
    try:
        Path(options.output).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"--output={options.output}: {error.strerror}; type a folder that can be written") from error
    if not options.overrides:
        results = catalogue(Path(options.output), mutations=True, seed=options.seed)
        print_catalogue(results)
        return 0 if all(result["ok"] for result in results) else 1
    from trainer import config, trust

    trust.check_packages()
    job = config.load(options.overrides, Path(options.config_dir) if options.config_dir is not None else None)
    with quiet(), lean():
        from losses.base import LossError
        from losses.proof.report import check
        from trainer import build

        build.devices()  # looks for GPUs
    try:
        report = check(build.build_loss(job), options.seed, options.mutants)
    except LossError as error:
        raise ConfigError(str(error)) from error
    folder = Path(options.output) / job.choices["loss"]
    report.save(folder)
    _print_report(report.to_dict(), folder)
    return 0 if report.ok else 1


_HELP = f"""python -m trainer.check [loss=NAME] [KEY=VALUE ...] [--mutants] [--output DIR] [--seed N] [--config-dir DIR]

Checks the gradient of a loss: accuracy over magnitudes and dtypes against 150-digit arithmetic and differences, inputs at the
domain's edges, what dy does, structure, meaning. Without an override it checks every loss there is, and itself by mutants.
Exit status 0 only when everything holds. gradcheck.json and gradcheck.html go to {_FOLDER}/NAME.

  --mutants         also try the check on wrong variants of the gradient, and print how many it catches
  --output DIR      another folder than {_FOLDER}
  --seed N          of the random inputs (0)
  --config-dir DIR  a folder with YAML files of your own, as for training; a package of yours: "trust=[my_package]"
"""


def _parser() -> Parser:
    parser = Parser("python -m trainer.check")
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--mutants", action="store_true")
    parser.add_argument("--output", default=_FOLDER)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("-cd", "--config-dir")
    return parser


def catalogue(folder: Path, mutations: bool, seed: int = 0) -> list[dict[str, Any]]:
    """The reports of every loss that ships, each from a process of its own: TensorFlow never forgets a custom gradient."""
    from trainer.config import config_dirs, groups

    names = groups(config_dirs(None))["loss"]
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(lambda name: _in_process(name, folder, mutations, seed), names))


def _in_process(name: str, folder: Path, mutations: bool, seed: int) -> dict[str, Any]:
    command = [sys.executable, "-m", "trainer", "check", f"loss={name}", f"--output={folder}", f"--seed={seed}"]
    path = folder / name / "gradcheck.json"
    path.unlink(missing_ok=True)
    command += ["--mutants"] if mutations else []
    one_thread = os.environ | {"TF_NUM_INTRAOP_THREADS": "1", "TF_NUM_INTEROP_THREADS": "1"}  # there is a process for every core
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=one_thread)
    if not path.exists():
        lines = done.stderr.strip().splitlines() or [f"ended with exit status {done.returncode}"]
        raise ConfigError(f"loss={name} could not be checked: {lines[-1]}")
    result = json.loads(path.read_text(encoding="utf-8"))
    print(f"{name}: {result['verdict']} ({result['seconds']:.0f} s)", file=sys.stderr)
    return dict(result)


def columns(result: dict[str, Any]) -> list[str]:
    """A row of the table of all losses, from a report as a dict."""

    def cell(mode: str) -> str:
        found = _map(result, mode)
        if not found:
            return "none"
        bad = found["bad_share"]
        return f"{found['worst']:.2g}" + (f", {bad:.0%} NaN, inf or 0" if bad >= 0.005 else "")

    caught = sum(by is not None for _, by in result["mutants"])
    return [
        result["loss"],
        result["contract"],
        cell("analytic"),
        cell("auto"),
        cell("usual"),
        f"{caught} of {len(result['mutants'])}" if result["mutants"] else "",
        f"{result['seconds']:.0f}",
        result["verdict"],
    ]


HEADERS = ["Loss", "Contract", "Analytic, ulp", "Auto, ulp", "Usual, ulp", "Mutants caught", "Seconds", "Verdict"]


def print_catalogue(results: Sequence[dict[str, Any]]) -> None:
    """The table of all losses, and what fails."""
    table = Table(*HEADERS, title="Gradients in float32, worst error where the loss answers for it")
    for result in results:
        *row, verdict = columns(result)
        table.add_row(*row, f"[{_COLORS[verdict]}]{verdict}")
    console = Console()
    console.print(table)
    for result in results:
        for finding in result["findings"]:
            if finding["verdict"] in ("fails", "inconclusive"):
                console.print(f"[bold red]{result['loss']}[/]: {finding['check']}:", markup=True, end=" ")
                console.print(finding["message"], markup=False, highlight=False)


def _map(result: dict[str, Any], mode: str) -> dict[str, Any]:
    wanted = {"dtype": "float32", "mode": mode, "what": "gradient"}
    return next((f["data"] for f in result["findings"] if wanted.items() <= f["data"].items()), {})


def _print_report(result: dict[str, Any], folder: Path) -> None:
    console = Console()
    modes = [mode for mode in ("analytic", "auto", "usual") if any(finding["mode"] == mode for finding in result["findings"])]
    table = Table("Check", *modes, title=f"Gradient check: {result['loss']}, contract {result['contract']}")
    rows: dict[tuple[str, str], dict[str, str]] = {}
    for finding in result["findings"]:
        cells = rows.setdefault((finding["section"], finding["check"]), {})
        cells[finding["mode"] or modes[0]] = _cell(finding)
    section = ""
    for (of_section, check), cells in rows.items():
        if of_section != section:
            table.add_section()
            section = of_section
        table.add_row(check, *(cells.get(mode, "") for mode in modes))
    console.print(table)
    for verdict in ("excepted", "inconclusive", "fails"):
        for finding in result["findings"]:
            if finding["verdict"] == verdict and finding["message"]:
                console.print(f"[{_COLORS[verdict]}]{verdict}[/] {finding['check']}:", end=" ", highlight=False)
                console.print(finding["message"], markup=False, highlight=False, soft_wrap=True)
    if result["mutants"]:
        caught = [by for _, by in result["mutants"] if by is not None]
        console.print(f"{len(caught)} of {len(result['mutants'])} wrong variants of the gradient are caught:")
        for name, by in result["mutants"]:
            console.print(f"  {name}: {'by ' + by if by else 'NOT CAUGHT'}", markup=False, highlight=False)
    verdict = "[green]everything holds[/]" if result["ok"] else "[bold red]the gradient is not proved[/]"
    console.print(f"{result['loss']}: {verdict} after {result['seconds']:.1f} s", highlight=False)
    console.print(f"{folder / 'gradcheck.html'} shows it", markup=False, highlight=False, soft_wrap=True)


def _cell(finding: dict[str, Any]) -> str:
    verdict, data = finding["verdict"], finding["data"]
    text = f"{data['worst']:.2g} ulp" if "worst" in data and not isinstance(data["worst"], str) else ""
    broken = {name: data.get(f"{name}_share", 0) for name in ("nan", "inf", "zero")}
    text += "".join(f", {share:.0%} {name}" for name, share in broken.items() if share)
    return f"[{_COLORS[verdict]}]{verdict}[/] {text}".strip()


if __name__ == "__main__":
    main(run)
