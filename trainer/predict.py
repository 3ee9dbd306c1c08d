"""The command that predicts by a run's model: `python -m trainer.predict RUN data.path=FILE`."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np

from trainer import schema, stored
from trainer.arguments import Parser, main
from trainer.errors import ConfigError
from trainer.progress import say
from trainer.tables import fits, write_csv

_COMMAND = "python -m trainer.predict"
_SUFFIXES = (".csv", ".npy", ".npz")


def run(arguments: Sequence[str]) -> int:
    """Writes the predictions of a run's model, at a checkpoint, for each example of its evaluation part or of other data."""
    options = _parser().parse_intermixed_args(arguments)
    if options.help:
        print(_HELP)
        return 0
    if options.output and Path(options.output).suffix not in _SUFFIXES:
        raise ConfigError(f"--output={options.output}: must end in {', '.join(_SUFFIXES)}; type for example --output predictions.csv")
    wanted = stored.read(options, _COMMAND, needs_targets=False)
    output = Path(options.output or wanted.path / "predictions.csv")
    stored.check_output(output, "--output", wanted)
    from trainer import job

    job.import_tensorflow()
    from trainer import build, evaluation, predictions, restored

    placement = build.build_placement(schema.Strategy(name="one_device"))
    with placement.scope():
        data, learner, part, rows = restored.to_predict(wanted, placement)
        reading = predictions.Reading(learner.loss, data)
        batch_size = evaluation.batch_size_of(learner, data, wanted.given.config.data.batch_size)
        pieces = _watched(predictions.predict(learner, reading, part, batch_size))
        stored.write(output, "--output", lambda file: _write(file, output.suffix, pieces, reading, rows))
    what = "predictions" if reading.predicts else f"outputs: the loss {learner.loss.name} has no predictions to be compared with targets"
    say(f"{len(part)} examples, by the model of step {wanted.snapshot.step}; {output} has the {what}")
    return 0


_HELP = f"""{_COMMAND} RUN [data=CHOICE] [data.KEY=VALUE ...] [--checkpoint WHICH] [--output FILE.csv|npy|npz]

Predicts by the model of the run in the directory RUN: for every example of the data that are typed, such as data.path=new.csv, prepared as
the run's own were, by their mean and spread; without, for the run's evaluation part. Data need no targets: what a csv, npz or npy file
has of them is not read. Other sources have theirs, which have no influence.

Columns: row, in the source; prediction, in the units and by the names of the run's targets; output, what the model gives: logits, or
outputs for standardized targets, embeddings and scores. One of more than 1000 numbers is in .npz alone.

  --output FILE       .csv, .npz (arrays row, prediction, output), or .npy (the prediction, or else the output); RUN/predictions.csv
{stored.OPTIONS}"""


def _parser() -> Parser:
    parser = stored.parser(_COMMAND)
    parser.add_argument("--output")
    return parser


def _watched(pieces: Iterator[list[np.ndarray]]) -> Iterator[list[np.ndarray]]:
    """The same; at their end it is said if there are outputs that nobody should take for predictions."""
    num = 0
    for piece in pieces:
        num += int((~np.isfinite(piece[0])).reshape(len(piece[0]), -1).any(axis=1).sum())
        yield piece
    if num:
        say(f"warning: the outputs for {num} of the examples are not finite")


def _write(file: IO[bytes], suffix: str, pieces: Iterator[list[np.ndarray]], reading: Any, rows: np.ndarray) -> None:
    if suffix == ".csv":
        write_csv(file, _tables(pieces, reading, rows))
        return
    found = [piece if suffix == ".npz" else piece[-1:] for piece in pieces]
    arrays = [np.concatenate([piece[i] for piece in found]) for i in range(len(found[0]))]
    if suffix == ".npy":
        np.save(file, arrays[-1], allow_pickle=False)
        return
    names = {"class_names": np.array(reading.data.class_names)} if reading.data.class_names else {}
    np.savez(file, allow_pickle=False, row=rows, **dict(zip(("output", "prediction"), arrays, strict=False)), **names)


def _tables(pieces: Iterator[list[np.ndarray]], reading: Any, rows: np.ndarray) -> Iterator[dict[str, np.ndarray]]:
    position = 0
    for outputs, *predicted in pieces:
        if not position and not fits(outputs):
            say(f"the model gives {outputs[0].size} numbers for an example, which are left out: --output NAME.npz has them")
        table = {"row": rows[position : position + len(outputs)]}
        position += len(outputs)
        if predicted:
            table["prediction"] = reading.named(predicted[0])
        yield table if predicted and reading.is_output else table | {"output": outputs}


if __name__ == "__main__":
    main(run)
