"""debug=nonfinite: the step at which a run has diverged, computed anew from its last checkpoint, and shown as a table."""

from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from trainer import build, schema, snapshots
from trainer.config import Job
from trainer.errors import ConfigError
from trainer.forensics import Forensics
from trainer.progress import say
from trainer.restored import with_its_data
from trainer.rundir import RunDir

_MOST_SHOWN = 3  # examples in a cell


def replay(job: Job, run: RunDir) -> None:
    """Shows what is not finite in the step, in the order of computation; trains nothing, and leaves the run as it is.

    Raises:
        ConfigError: the run has not diverged, or has gone on since, or its data have changed.
        CheckpointError: the checkpoint is missing or damaged.
    """
    kept = run.read("divergence.json")
    if kept is None:
        raise ConfigError(f"debug=nonfinite: there is nothing to replay: {run.path} has no divergence.json, as a run has that diverged")
    if missing := [key for key in ("step", "checkpoint", "indices", "learning_rate", "loss_scale") if key not in kept]:
        raise ConfigError(f"debug=nonfinite: there is nothing to replay: divergence.json in {run.path} is damaged: it has no {missing[0]}")
    if kept["checkpoint"] is None:
        raise ConfigError(
            f"debug=nonfinite: there is nothing to replay: of the state before step {kept['step']} of the run in {run.path} there is no "
            "checkpoint: it was rolled back, or the disk was full; divergence.json has what was found then"
        )
    folder = run.file("checkpoints") / f"step-{kept['checkpoint']:08d}"
    if not folder.exists():
        raise ConfigError(
            f"debug=nonfinite: there is nothing to replay: the run in {run.path} has gone on since step {kept['step']}, and {folder.name} "
            "is no longer among its checkpoints; divergence.json has what was found then"
        )
    snapshot = snapshots.load(folder)
    placement = build.build_placement(schema.section(schema.Strategy, job.config.strategy))
    data, learner = with_its_data(job, placement, snapshot, run.path)
    scalars = {"learning_rate": float(kept["learning_rate"])} | ({} if kept["loss_scale"] is None else {"loss_scale": kept["loss_scale"]})
    with placement.scope():
        forensics = Forensics(learner, data, job.config.trainer.accumulate, snapshot.state["compile"])
        report = forensics(kept["step"], np.array(kept["indices"]), scalars)
    say(f"step {kept['step']} of the run in {run.path}, from {folder.name}, by gradient={report['gradient_mode']}")
    _show(report)


def _show(report: dict[str, Any]) -> None:
    table = Table("tensor, in the order of computation", "shape", "not finite", "largest finite", "examples", box=None)
    first = report["first_nonfinite"]
    for seen in report.get("tensors", []):
        examples = ", ".join(map(str, seen["examples"][:_MOST_SHOWN])) + (", ..." if seen["num_examples"] > _MOST_SHOWN else "")
        bad = f"{seen['value']} at {seen['num_nonfinite']} of {seen['num']}" if seen["num_nonfinite"] else ""
        style = "bold red" if first and seen["tensor"] == first["tensor"] else "red" if bad else None
        table.add_row(
            seen["tensor"].removeprefix("the "),
            str(tuple(seen["shape"])),
            bad,
            f"{float(seen['largest_finite']):.3g}",
            examples,
            style=style,
        )
    inputs = Table("gradient", "example", "output", "y_true", "y_pred", "loss", "d loss / d y_pred", box=None)
    for mode, found in report.get("gradients", {}).items():
        for given in (given for given in found["inputs"] if given["y_pred_there"] not in ("NaN", "inf", "-inf")):
            cells = (given["example"], given["output"], given["y_true"], given["y_pred_there"], given["loss"], given["gradient_there"])
            inputs.add_row(mode, *map(_cell, cells))
    try:
        console = Console()
        console.print(table)
        if inputs.row_count:
            console.print(inputs)
    except (OSError, ValueError):
        return
    for line in (report["advice"], *report["notes"]):
        say(line)


def _cell(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(_cell, value[:_MOST_SHOWN])) + (", ..." if len(value) > _MOST_SHOWN else "")
    return f"{value:.6g}" if isinstance(value, float) else "" if value is None else str(value)
