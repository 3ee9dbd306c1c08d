"""Random command lines over the real configuration tree: each must run, or be refused properly.

    python -m tests.trainer.fuzzing --seed 0 --count 5000            to where TensorFlow would be imported
    python -m tests.trainer.fuzzing --seed 0 --count 100 --train     short jobs on small data

A failure is printed with its seed, by which `--seed SEED --count 1` replays it. Exit status 1 if there was one.
"""

import argparse
import contextlib
import dataclasses
import io
import json
import os
import random
import re
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import Any
from unittest import mock

from omegaconf import OmegaConf

from trainer import cli, config, isolation, job, schema
from trainer.errors import UserError

SECONDS = {False: 10.0, True: 120.0}  # a case may take, without and with training
FINAL = ("done", "failed", "stopped")
_ADVICE = r"did you mean|must |type |there (is|are) |refused|quote |a value, null|add -m|takes |--help|put it |mend |set it|drop |install "
_DIRS, *_ = [config.config_dirs(None)]
_GROUPS = config.groups(_DIRS)

# For jobs that train: data that load quickly, with losses that fit them.
_FITTING = {
    "digits": ("softmax_crossentropy", "categorical_focal", "sparsemax", "entmax15", "arcface", "stable_mse"),
    "wine": ("softmax_crossentropy", "linear_crossentropy", "categorical_focal"),
    "breast_cancer": ("binary_crossentropy", "binary_focal", "probit"),
    "diabetes": ("mse", "mae", "huber", "quantile", "log_cosh", "gaussian_nll", "beta_nll", "gaussian_crps", "external", "cubic"),
    "stackloss": ("mse", "adaptive_robust", "huber", "mae"),
    "engel": ("quantile", "gaussian_nll", "ensemble_crps", "soft_spearman"),
    "randhie": ("poisson_nll", "negative_binomial_nll"),
    "diabetes_lists": ("lambdarank",),
    "diabetes_pairs": ("pairwise_logistic",),
    "digit_triplets": ("triplet", "infonce"),
}
_OF_SEARCHES = ("optuna.db", "optuna.json", ".optuna.lock")  # in a sweep's directory
_CSV = "a,b,y\n1,2,0\n3,4,1\n5,6,0\n7,8,1\n9,1,0\n2,2,1\n3,1,0\n4,2,1\n"


def draw(seed: int, train: bool = False) -> list[str]:
    """The command line of a seed: group choices, keys with values, and what people and hostile people mistype.

    With `train`, most of them are valid, and what is valid is a short job.
    """
    rng = random.Random(seed)
    chosen = _draw_choices(rng, train)
    keys = _keys(chosen)
    line = [f"{group}={choice}" for group, choice in chosen.items() if choice != _DEFAULTS.get(group)]
    wild = rng.random() < (0.25 if train else 0.7)
    for _ in range(rng.choice([0, 1, 1, 2, 3, 5])):
        key = rng.choice(sorted(keys))
        value = rng.choice(_CHOICES[key]) if key in _CHOICES and rng.random() < 0.8 else _near(rng, keys[key])
        line.append(f"{key}={_text(keys[key] if train and rng.random() < 0.4 else value)}")
    for _ in range(rng.choice([1, 1, 2]) if wild else 0):
        line.insert(rng.randrange(len(line) + 1), _wild(rng, keys))
    if rng.random() < 0.1 and line:
        line.append(rng.choice(line))  # the same again
    if not train and rng.random() < 0.08:
        line.insert(rng.randrange(len(line) + 1), rng.choice(_OPTIONS))
    if train:
        line = [word for word in line if not re.match(r"[+~]*(trainer\.(steps|epochs)|trainer=|hydra|-m)", word)]
        line += [] if any("trainer.compile" in word for word in line) else ["trainer.compile=graph"]  # XLA compiles for seconds
        line.append(f"trainer.steps={rng.choice([1, 2, 2, 3, 3, 3, 0, 'three']) if wild else rng.choice([1, 2, 3])}")
    return line


def attempt(line: Sequence[str], train: bool = False) -> tuple[int | None, str]:
    """Runs a command line in a folder of its own, and says what is wrong with how it ended; "" if nothing is.

    Without `train`, a job counts as done where TensorFlow would be imported.
    """
    output, errors, exit_code = io.StringIO(), io.StringIO(), None
    stubs = contextlib.ExitStack()
    if not train:
        stubs.enter_context(mock.patch.object(job, "_train", return_value=(0, "finished")))
        stubs.enter_context(mock.patch.object(job, "_dry_run", return_value=0))
        stubs.enter_context(mock.patch.object(isolation, "run_one", _in_this_process))
        stubs.enter_context(mock.patch.object(job, "Signals"))  # a sweep's jobs are in threads here
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder), stubs:
        Path("data.csv").write_text(_CSV)
        with contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors):
            try:
                with _limit(SECONDS[train]):
                    exit_code = cli.main(line)
            except BaseException:
                return None, f"raised\n{traceback.format_exc()}"
        problem = _problem(exit_code, errors.getvalue()) or _litter(Path(folder))
    return exit_code, f"{problem}\n{errors.getvalue()[-3000:]}" if problem else ""


def _in_this_process(wanted: config.Job, *_: Any, **__: Any) -> isolation.Outcome:
    try:
        job.run(wanted)
    except UserError as error:
        return isolation.Outcome("failed", str(error))
    return isolation.Outcome("done")


def _problem(exit_code: int, errors: str) -> str:
    last = errors.rstrip("\n").rpartition("\n")[2]
    if "Traceback" in errors:
        return "a traceback"
    if exit_code == 0:
        return "" if not errors else "done, with something on stderr"
    if exit_code == 1 and last.startswith("error: does not fit: "):  # trainer.overfit
        return ""
    if exit_code == 1 and re.match(r"\[\d+/\d+\] ", last):  # of a sweep, one job or more
        return "" if " failed: " in last and re.search(_ADVICE, last) else "a job of a sweep failed without a word"
    if exit_code not in (2, 3, 4, 5):
        return f"ended with {exit_code}"
    if not last.startswith("error: "):
        return "the last line on stderr is no error"
    if not re.search(_ADVICE, last):
        return "the message says nothing to do"
    if not errors.replace("\n", "").isprintable():
        return "characters that no terminal should get"
    return "a message too long to read" if len(last) > 3000 else ""


def _litter(folder: Path) -> str:
    """What is wrong with the files that a case has left: each belongs to a run directory, and each of these has a final state."""
    runs = {path.parent for path in folder.rglob(".lock")}
    for run in runs:
        status = json.loads((run / "status.json").read_text()) if (run / "status.json").exists() else {}
        if status.get("state") not in FINAL:
            return f"{run} has the status {status}"
    others = [
        path
        for path in folder.rglob("*")
        if path.is_file() and not runs & set(path.parents) and path.name not in ("data.csv", *_OF_SEARCHES)
    ]
    return f"left {others}" if others else ""


class _Hang(BaseException):
    """A case that takes too long."""


@contextlib.contextmanager
def _limit(seconds: float) -> Iterator[None]:
    def late(*_: int | FrameType | None) -> None:
        raise _Hang(f"not through after {seconds} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _file(group: str, choice: str) -> dict[str, Any]:
    path = _DIRS[-1] / group / f"{choice}.yaml"
    content: Any = OmegaConf.to_container(OmegaConf.load(path), resolve=False) if path.is_file() else {}
    return content or {}


_DEFAULTS = dict(config.load([]).choices)
_WHOLE: Any = OmegaConf.to_container(config.load([]).config, resolve=False)
_TOP = {key.lstrip("."): value for key, value in config._flat("", _WHOLE).items()}


def _limited(section: type, path: str) -> Iterator[tuple[str, tuple]]:
    for field in dataclasses.fields(section):
        if isinstance(field.type, type) and dataclasses.is_dataclass(field.type):
            yield from _limited(field.type, f"{path}{field.name}.")
        elif "choices" in field.metadata:
            yield f"{path}{field.name}", field.metadata["choices"]


_CHOICES = dict([*_limited(schema.Config, ""), *_limited(schema.Data, "data.")])


def _draw_choices(rng: random.Random, train: bool) -> dict[str, str]:
    if train:
        data = rng.choice(sorted(_FITTING))
        chosen = {"data": data, "loss": rng.choice(_FITTING[data]), "model": rng.choice(["linear", "mlp", "mlp"])}
        chosen |= {group: rng.choice(_GROUPS[group]) for group in ("optimizer", "schedule", "gradient", "precision") if rng.random() < 0.4}
        if rng.random() < 0.15:
            group = rng.choice(["loss", "model"])
            chosen[group] = rng.choice(_GROUPS[group])
        return chosen
    return {group: rng.choice(_GROUPS[group]) for group in sorted(_GROUPS) if rng.random() < 0.25}


def _keys(chosen: dict[str, str]) -> dict[str, Any]:
    """Every key of a configuration with these choices, and its value in the files."""
    open_groups = ("model", "data", "loss", "optimizer", "schedule")
    keys = {key: value for key, value in _TOP.items() if key.partition(".")[0] not in open_groups}
    for group in open_groups:
        content = _file(group, chosen.get(group, _DEFAULTS[group])) | (_file("data", "_base") if group == "data" else {})
        keys |= {f"{group}.{key}": value for key, value in content.items() if key not in ("defaults", "_target_")}
    if chosen.get("data") == "csv":
        keys |= {"data.path": "data.csv", "data.target": "y"}
    return keys


def _near(rng: random.Random, value: Any) -> Any:
    """A value of the same kind: valid, at a limit or beyond it."""
    if isinstance(value, bool):
        return rng.choice([True, False])
    if isinstance(value, int):
        return rng.choice([0, 1, 2, 3, 7, 16, -1, value, value, value + 1])
    if isinstance(value, float):
        return rng.choice([0.0, 0.5, 1.0, 2.5, -0.5, 1e-12, value, value, value / 2, value * 3, "nan", "inf", 1e30])
    if isinstance(value, list):
        return rng.choice([[], value, [_near(rng, item) for item in value], [1], [8, 4], ["a"], [0.1, 0.9]])
    if value is None:
        return rng.choice([None, None, 1, 0.5, "x", True, [1]])
    return rng.choice([value, value, value, "auto", "relu", "x", "balanced", "zero", "exact", "data.csv", "loss", "eval/accuracy"])


def _text(value: Any) -> str:
    if isinstance(value, list):
        return "[" + ",".join(map(_text, value)) + "]"
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


_VALUES = [
    *(
        "1",
        "0",
        "-1",
        "2.5",
        "1e400",
        "nan",
        "-inf",
        "true",
        "null",
        "",
        "auto",
        "mse",
        "x",
        "???",
        "'x'",
        '"x"',
        "''",
        '"',
        "'",
        "\\",
        "\\n",
    ),
    *(
        "[1,2]",
        "[a]",
        "[]",
        "[",
        "]",
        "{",
        "}",
        "{steps: 3}",
        "{}",
        "{a: {b: {_target_: os.system}}}",
        "[[[[1]]]]",
        "[{a: 1}]",
        "(1)",
        "a(b",
    ),
    *("a=b", "a b", "ü", "größe", "日本", "\u202e", "a\tb", "a\nb", "\0", "'a\0b'", "\x1b[31m", "💥", "x" * 20_000, "x" * 3000, "[" * 500),
    *(
        "${seed}",
        "${nope}",
        "${",
        "${}",
        "${a.b.c}",
        "${oc.env:HOME}",
        "${oc.env:NO_SUCH}",
        "${oc.env:NO_SUCH,3}",
        "${now:%Y}",
        "${hydra:job}",
    ),
    *(
        '"${oc.decode:[1}"',
        '"${oc.create:{_target_: os.system}}"',
        "${loss}",
        "${trainer.steps}",
        "'${seed}${seed}'",
        "$(id)",
        "`id`",
        "%s{}",
    ),
    *("1,2", "range(1,3)", "choice(1,2)", "glob(*)", "sort(2,1)", "int(x)", "float(1)", "interval(0,1)", "tag(a,1)", "shuffle(1,2)"),
    *(
        "../x",
        "../../evil",
        "/etc/passwd",
        "/dev/null/x",
        "~/x",
        "'~nobody-here/x'",
        ".",
        "..",
        "a/../b",
        "con",
        "losses.mse.MSE",
        "os.system",
    ),
    *(
        "builtins.eval",
        "99999999999999999999",
        "-99999999999",
        "1_0",
        "0x10",
        "1e3",
        "+1",
        "1.",
        ".5",
        "--1",
        "3 ",
        "#",
        "a#b",
        "@",
        "a:b",
        ":",
    ),
]
_OPTIONS = [
    "-m",
    "-m",
    "--multirun",
    "--cfg=job",
    "--cfg=hydra",
    "--resolve",
    "--help",
    "--version",
    "--nope",
    "-x",
    "-c",
    "--config-dir=/no",
]
_STRAY = [
    *(
        "",
        "=",
        "==",
        "x",
        "=x",
        "a..b=1",
        ".a=1",
        "a.=1",
        "a b=1",
        "ü=1",
        "loss",
        "train",
        "chekc",
        "+",
        "~",
        "++",
        "~loss",
        "~trainer.steps",
    ),
    *(
        "trust=[os]",
        "trust=[a]",
        "trust=a",
        "trust=[]",
        "trust=[keras]",
        "+trust.x=1",
        "trust=[a/b]",
        "hydra.run.dir=../x",
        "hydra.run.dir=''",
    ),
    *("hydra.run.dir=a/b", "hydra.run.dir='größe ü'", "hydra.run.dir=outputs", "hydra.run.dir=data.csv", "hydra.run.dir=/dev/null/x"),
    *("hydra.run.dir=.", "hydra.run.dir=" + "x" * 300, "hydra.run.dir=" + "x/" * 3000, "hydra.sweep.dir=s", "hydra.job.chdir=true"),
    *("hydra/launcher=submitit_slurm", "hydra.launcher.partition=x", "sweep.optuna.trials=2", "seed=int(interval(0,9))"),
    *("hydra/launcher=joblib", "hydra.mode=RUN", "hydra.searchpath=[/tmp]", "hydra=1", "resume=must", "resume=never", "resume=''"),
    *("resume=data.csv", "resume=/", "resume=" + "x" * 5000, "loss@model=mse", "loss/x=mse", "loss=[mse]", "loss={}", "model=null"),
    *("loss._target_=os.system", "model._target_=keras.models.load_model", "+loss._args_=[1]", "+model.layers.0._target_=os.system"),
    *("_target_=os.system", "seed=1,2", "seed=[1,2]", "trainer=null", "trainer=[]", "data={}", "trainer.early_stopping=3", "+a.b.c=1"),
]


def _wild(rng: random.Random, keys: dict[str, Any]) -> str:
    kind = rng.randrange(6)
    key, value = rng.choice([*sorted(keys), *_GROUPS]), rng.choice(_VALUES)
    if kind == 0:
        return rng.choice(_STRAY)
    if kind == 1:
        return f"{_misspelt(rng, key)}={value if rng.random() < 0.3 else _text(keys.get(key))}"
    if kind == 2:
        group = rng.choice(sorted(_GROUPS))
        return f"{group}={_misspelt(rng, rng.choice(_GROUPS[group]))}"
    if kind == 3:
        return f"{rng.choice(['+', '++', '~', '~~', '+~'])}{key}={value if rng.random() < 0.5 else _text(keys.get(key))}"
    if kind == 4:
        return f"{key}{rng.choice(['.x', '.0', '.', '[0]', '@_global_', ' ', ':'])}={value}"
    return f"{key}={value}"


def _misspelt(rng: random.Random, word: str) -> str:
    at = rng.randrange(len(word))
    changed = (
        word[:at] + word[at + 1 :],
        word[:at] + word[at] + word[at:],
        word[:at] + rng.choice("aeirstn_.ü") + word[at + 1 :],
        word.upper(),
    )
    return rng.choice(changed)


@dataclasses.dataclass
class Counts:
    """What a hunt has found."""

    ran: int = 0
    refused: int = 0
    failures: list[str] = dataclasses.field(default_factory=list)
    slowest: tuple[float, int] = (0.0, 0)  # seconds, seed


def hunt(seed: int, count: int, train: bool) -> Counts:
    """Cases seed to seed + count - 1; each failure is printed as it is found."""
    counts = Counts()
    for number in range(seed, seed + count):
        line, started = draw(number, train), time.monotonic()
        exit_code, problem = attempt(line, train)
        counts.slowest = max(counts.slowest, (time.monotonic() - started, number))
        counts.ran += exit_code == 0
        counts.refused += exit_code not in (0, None)
        if problem:
            shown = [word if len(word) < 200 else f"{word[:60]}... ({len(word)} characters)" for word in line]
            counts.failures.append(f"--seed {number}{' --train' * train}: {shown}: {problem}")
            print(counts.failures[-1], flush=True)
    return counts


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--count", type=int, default=500)
    parser.add_argument("--train", action="store_true")
    options = parser.parse_args()
    counts = hunt(options.seed, options.count, options.train)
    imported = not options.train and any(name in sys.modules for name in ("tensorflow", "keras"))
    print(
        f"seeds {options.seed} to {options.seed + options.count - 1}: {counts.ran} ran, {counts.refused} refused, "
        f"{len(counts.failures)} failures, the slowest, {counts.slowest[1]}, took {counts.slowest[0]:.1f} s"
        + ("; TensorFlow was imported" if imported else "")
    )
    return int(bool(counts.failures) or imported)


if __name__ == "__main__":
    os.environ.setdefault("COLUMNS", "100")
    sys.exit(main())
