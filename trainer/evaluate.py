"""The command that evaluates a run's model: `python -m trainer.evaluate RUN`."""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from trainer import schema, stored
from trainer.arguments import Parser, main
from trainer.logs import plain
from trainer.progress import is_terminal, say
from trainer.tables import write_csv

_COMMAND = "python -m trainer.evaluate"
_SAME = 2e-7  # relatively: recorded numbers are those of a float32


def run(arguments: Sequence[str]) -> int:
    """Prints a run's metrics at a checkpoint, and writes them, and what it finds of each example, to files."""
    options = _parser().parse_intermixed_args(arguments)
    if options.help:
        print(_HELP)
        return 0
    wanted = stored.read(options, _COMMAND)
    output = Path(options.output or wanted.path / "evaluation.json")
    stored.check_output(output, "--output", wanted)
    if options.csv:
        stored.check_output(Path(options.csv), "--csv", wanted)
    from trainer import job

    job.import_tensorflow()
    from trainer import build, evaluation, restored
    from trainer.predictions import Reading

    placement = build.build_placement(schema.Strategy(name="one_device"))
    with placement.scope():
        data, learner, is_own = restored.to_evaluate(wanted, placement)
        batch_size = wanted.given.config.data.batch_size
        metrics = evaluation.make_evaluate(learner, data, batch_size)()
        recorded = stored.recorded(wanted.path, wanted.snapshot.step) if is_own else {}
        _print(wanted, metrics, recorded, len(data.evaluation))
        content = {
            "run": str(wanted.path),
            "step": wanted.snapshot.step,
            "best_step": wanted.best_step,
            "data": wanted.typed,  # beside the run's own
            "is_own_evaluation_part": is_own,
            "num_examples": len(data.evaluation),
            "metrics": {tag: plain(value) for tag, value in metrics.items()},
            "recorded": {tag: plain(value) for tag, value in recorded.items()} or None,
            "equals_recorded": equal(metrics, recorded) if recorded else None,
        }
        text = json.dumps(wanted.hide(content), indent=2, allow_nan=False) + "\n"
        stored.write(output, "--output", lambda file: file.write(text.encode()))
        if options.csv:
            reading = Reading(learner.loss, data)
            found = evaluation.each(learner, data, batch_size, reading.tensors)
            stored.write(Path(options.csv), "--csv", lambda file: write_csv(file, _tables(found, reading)))
    say(f"{output} has them" + (f", {options.csv} those of each example" if options.csv else ""))
    return 0


_HELP = f"""{_COMMAND} RUN [data=CHOICE] [data.KEY=VALUE ...] [--checkpoint WHICH] [--csv FILE] [--output FILE]

Evaluates the model of the run in the directory RUN as training does: on its evaluation part, or on every example of other data, prepared
as the run's own were, by their mean and spread. Prints the metrics, beside those that the run has recorded at that step, and writes them
to RUN/evaluation.json.

  --csv FILE          for each example its row in the source, loss, prediction and target, in the data's units and names
  --output FILE       another file than RUN/evaluation.json
{stored.OPTIONS}"""


def _parser() -> Parser:
    parser = stored.parser(_COMMAND)
    parser.add_argument("--csv")
    parser.add_argument("--output")
    return parser


def equal(metrics: Mapping[str, float], recorded: Mapping[str, float]) -> bool:
    """Whether metrics are those that were recorded."""
    return all(_same(value, recorded.get(tag)) for tag, value in metrics.items())


def _same(value: float, other: float | None) -> bool:
    return other is not None and (math.isclose(value, other, rel_tol=_SAME) or (math.isnan(value) and math.isnan(other)))


def _print(wanted: stored.Stored, metrics: Mapping[str, float], recorded: Mapping[str, float], num: int) -> None:
    best = f"; the best is step {wanted.best_step}" if wanted.best_step not in (None, wanted.snapshot.step) else ""
    say(f"{num} examples, by the model of step {wanted.snapshot.step}{best}")
    table = Table("", "now", *(["recorded"] if recorded else []), box=None)
    for tag, value in metrics.items():
        table.add_row(tag, f"{value:.6g}", *([f"{recorded.get(tag, math.nan):.6g}"] if recorded else []))
    Console(width=None if is_terminal() else 140).print(table)
    if recorded and not equal(metrics, recorded):
        say("warning: these are not the recorded ones: this program, its libraries or the machine have changed since")


def _tables(found: Iterator[Any], reading: Any) -> Iterator[dict[str, np.ndarray]]:
    """What there is to tell of each example, piece by piece."""
    position = 0
    for piece in found:
        rows = reading.data.evaluation_rows[position : position + len(piece.losses)]
        position += len(rows)
        table = {"row": rows} | ({} if piece.examples.weights is None else {"weight": piece.examples.weights}) | {"loss": piece.losses}
        outputs, *predicted = piece.read
        table |= {"prediction": reading.named(reading.predictions(predicted[0]))} if predicted else {}
        table |= {name: reading.named(array) for name, array in reading.targets(piece.examples.targets).items()}
        yield table if reading.is_output else table | {"output": outputs}


if __name__ == "__main__":
    main(run)
