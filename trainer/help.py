"""What `gradtrain --help` says; the groups and their choices are read from the configuration folders."""

import itertools
import re
import textwrap
from collections.abc import Sequence
from pathlib import Path

from omegaconf import OmegaConf

from trainer.config import groups
from trainer.errors import printable

_WIDTH = 96
_MOST_READ = 4096  # characters of a file, for its first comment
_LONGEST = 32  # characters of a name beside which there is room for a meaning

_ABOUT = """
gradtrain trains a Keras model with a loss whose gradient you choose: the tape through the loss's formula (gradient=auto), or
the derivative that the loss itself gives (gradient=analytic), proved on your data before the first update. Loss and gradient
norms of every step are in TensorBoard.
"""

_USAGE = """
usage: gradtrain [GROUP=CHOICE ...] [KEY=VALUE ...]   trains; python -m trainer is the same
       gradtrain -m KEY=VALUE,VALUE ...               trains every combination
"""

_OVERRIDES = {
    "loss=stable_mse": "another loss; its own keys are typed as loss.KEY=VALUE, as in loss=huber loss.delta=2",
    "gradient=auto": "the tape's gradient instead of the loss's own",
    "data=csv data.path=my.csv data.target=price": "your own table; data=npz or npy for arrays, image_folder for images",
    "model=cnn": "another model; model.hidden=[256,256] changes the layers of mlp",
    "trainer.steps=2000": "updates, instead of trainer.epochs=30",
    "optimizer.learning_rate=0.003": "and any other argument that the Keras optimizer has",
    "data.batch_size=128": "examples in one update, over all replicas",
    "trainer.clip_norm=1": "clip the gradient by its global norm, after the reduction over replicas",
    "seed=1": "of weights, order of the data, and layers' randomness; -m seed=1,2,3 trains three",
    "hydra.run.dir=outputs/mine": "the run's directory; the same command again goes on where the run stopped",
    "trainer.dry_run=true": "shapes, memory and time of the run, and no run; debug=overfit: can it fit one batch?",
}

_OPTIONS = {
    "-h, --help [GROUP]": "this text; with a group, such as --help experiment, a line on each of its choices",
    "--version": "the version",
    "-m, --multirun": "run every combination of the values separated by commas; a table closes the sweep",
    "-cd, --config-dir DIR": "a folder of your own with files such as DIR/loss/mine.yaml, looked into before the shipped ones",
    "-c, --cfg job|hydra|all": "print the configuration instead of running",
    "--resolve": "with --cfg job: references to other keys are filled in",
    "-p, --package KEY": "with --cfg: print one section, such as trainer",
    "-sc, --shell-completion install=SHELL": "what makes bash, zsh or fish complete groups, choices and keys: "
    'eval "$(gradtrain -sc install=bash)"',
}

_MORE = """
A loss, a model or data of your own:  gradtrain --config-dir DIR loss=mine trust=[my_package]
Look at runs:  tensorboard --logdir outputs
Every key:     gradtrain --cfg job; what each means is in the comments of the files in
               {conf}
"""


def help_text(dirs: Sequence[Path], commands: Sequence[str]) -> str:
    """The whole help; dirs are the configuration folders, the user's first."""
    defaults = _defaults(dirs)
    choices = {
        group: ", ".join(f"{name}*" if name == defaults.get(group) else name for name in names)
        for group, names in groups(dirs).items()
        if names
    }
    return "\n".join(
        [
            textwrap.fill(_ABOUT.strip(), _WIDTH),
            _USAGE,
            "Groups, with their choices (* is the default):",
            *_table(choices, 13),
            "\nWhat people type most:",
            *_table(_OVERRIDES, 34),
            "\nOptions:",
            *_table(_OPTIONS, 34),
            "\n"
            + textwrap.fill(
                f"Commands: {', '.join(commands)}; the first is the default. Each of the others has a --help of its own", _WIDTH
            ),
            _MORE.rstrip().format(conf=dirs[-1]),
        ]
    )


def choices_text(group: str, dirs: Sequence[Path]) -> str:
    """A group's choices, each with the first sentence of its file's comment."""
    default = _defaults(dirs).get(group)
    rows = {f"{name}*" if name == default else name: _description(group, name, dirs) for name in groups(dirs)[group]}
    width = min(max(map(len, rows), default=0), _LONGEST) + 1
    return "\n".join([f"{group}=CHOICE, with CHOICE one of (* is the default):", *_table(rows, width)])


def _description(group: str, name: str, dirs: Sequence[Path]) -> str:
    path = next(path for path in (folder / group / f"{name}.yaml" for folder in dirs) if path.is_file())
    with open(path, encoding="utf-8", errors="replace") as file:
        lines = file.read(_MOST_READ).splitlines()
    # The first lines of comment that are neither a directive, such as @package, nor a command, which is indented.
    prose = itertools.takewhile(_is_prose, itertools.dropwhile(lambda line: not _is_prose(line), lines))
    text = " ".join(line.removeprefix("#").strip() for line in prose)
    sentence = re.match(r".*?[.?!](?=\s+\D|$)", text)
    shown = sentence[0] if sentence else text
    return printable(shown)


def _is_prose(line: str) -> bool:
    return re.match(r"# ?[^\s@]", line) is not None


def _defaults(dirs: Sequence[Path]) -> dict[str, str]:
    """Group -> default choice, from the defaults list of the primary configuration."""
    primary = next(path for path in (folder / "config.yaml" for folder in dirs) if path.is_file())
    listed = OmegaConf.to_container(OmegaConf.load(primary))
    entries = listed.get("defaults", []) if isinstance(listed, dict) else []
    return {str(group): str(choice) for entry in entries if isinstance(entry, dict) for group, choice in entry.items()}


def _table(rows: dict[str, str], width: int) -> list[str]:
    lines = []
    for name, meaning in rows.items():
        wrapped = textwrap.wrap(meaning, _WIDTH - width - 2) or [""]
        first = f"  {name:<{width}}"
        if len(name) >= width:  # the meaning begins on a line of its own
            lines.append(first)
            first = " " * (width + 2)
        lines += [first + wrapped[0], *(" " * (width + 2) + line for line in wrapped[1:])]
    return lines
