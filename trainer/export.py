"""The command that writes a run's model alone, for other programs: `python -m trainer.export RUN format=keras`."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from trainer import rundir, schema, stored
from trainer.arguments import Parser, main
from trainer.errors import ConfigError
from trainer.progress import say
from trainer.validation import suggestion

_COMMAND = "python -m trainer.export"
_FORMATS = {"keras": ".keras", "savedmodel": "", "onnx": ".onnx"}  # with what their names end


def run(arguments: Sequence[str]) -> int:
    """Writes a run's model at a checkpoint, if a new process that reads it gets the same outputs."""
    options = _parser().parse_intermixed_args(arguments)
    if options.help:
        print(_HELP)
        return 0
    form, options.overrides = _format(options.overrides)
    wanted = stored.read(options, _COMMAND, f"format={form}", needs_targets=False)
    step = wanted.snapshot.step
    output = Path(options.output or wanted.path / "export" / f"step-{step:08d}{_FORMATS[form] or '-savedmodel'}")
    _check_output(output, form, options.output is None)
    from trainer import job

    job.import_tensorflow()
    from trainer import build, exported, restored
    from trainer.data.others import without_targets
    from trainer.predictions import Reading

    policy = wanted.job.config.precision.policy
    exported.check_possible(form, policy)
    placement = build.build_placement(schema.Strategy(name="one_device"))
    with placement.scope():
        data, learner, source = restored.to_export(wanted, placement)
        part = without_targets(dataclasses.replace(data, of_features=None), source)
        features = part.rows(np.arange(min(exported.NUM_ROWS, len(part)))).features
        told = exported.export(learner, Reading(learner.loss, data), features, form, output, policy)
    versions = rundir.versions(("gradtrain", "tensorflow", "keras"))
    content = {"file": output.name, "format": form, "run": str(wanted.path), "step": step, "versions": versions} | told
    beside = output.with_name(f"{output.name}.json")
    text = json.dumps(wanted.hide(content), indent=2, allow_nan=False) + "\n"
    stored.write(beside, "--output", lambda file: file.write(text.encode()))
    again = told["checked"]["read_again_in_a_new_process"]
    same = "to the bit" if again["to_the_bit"] else f"within {again['largest_difference']:.1e} of the largest output"
    say(f"{output} has the model of step {step}; {beside.name} says what goes in and comes out")
    say(f"a new process, without this program, read it and gave the same outputs for {told['checked']['num_rows']} examples {same}")
    return 0


_HELP = f"""{_COMMAND} RUN format=keras|savedmodel|onnx [data.KEY=VALUE ...] [--checkpoint WHICH] [--output PATH]

Writes the model of the run in the directory RUN alone, to be used without this program. It takes features as the data have them: what they
are standardized by is inside; and it gives predictions in the data's units where the outputs are the predictions, or else what the loss
takes, such as logits. A file of JSON beside it says which, with the names of columns and classes. Of a loss on pairs, triplets or lists the
model is of one item. It counts only if a new process that reads it gives the same for examples of the run's data, or of those typed.

  format=keras        a .keras file, for keras.models.load_model; of Keras' own layers alone
  format=savedmodel   a folder, for tf.saved_model.load(PATH).serve and TensorFlow Serving
  format=onnx         a .onnx file, for ONNX Runtime; needs pip install 'gradtrain[onnx]'
  --output PATH       another one than RUN/export/step-STEP...
{stored.OPTIONS}"""


def _parser() -> Parser:
    parser = stored.parser(_COMMAND)
    parser.add_argument("--output")
    return parser


def _format(words: Sequence[str]) -> tuple[str, list[str]]:
    """What format=... says, and the other words."""
    typed = [word.partition("=")[2] for word in words if word.startswith("format=")]
    if len(typed) != 1:
        found = suggestion(next((word.partition("=")[0] for word in words), ""), ["format"]) if not typed and words else ""
        raise ConfigError(f"type one format, out of {', '.join(f'format={name}' for name in _FORMATS)}{found if 'mean' in found else ''}")
    if typed[0] not in _FORMATS:
        raise ConfigError(f"format={typed[0]}: there is no such format{suggestion(typed[0], list(_FORMATS))}")
    return typed[0], [word for word in words if not word.startswith("format=")]


def _check_output(output: Path, form: str, is_default: bool) -> None:
    if output.suffix != _FORMATS[form] and _FORMATS[form]:
        raise ConfigError(
            f"--output={output}: of format={form} must end in {_FORMATS[form]}; type --output {output.with_suffix(_FORMATS[form])}"
        )
    if output.exists() or output.is_symlink():
        raise ConfigError(f"{output} is there already: remove it, or type another --output PATH")
    if is_default and output.parent.is_symlink():  # of a run of others, who may have made it lead anywhere
        raise ConfigError(f"{output.parent} is a link: type --output PATH")


if __name__ == "__main__":
    main(run)
