"""What is trained: model, data, batch, the trainer's own command for it, and the ratios that are wanted."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from trainer import schema
from trainer.data.base import Source
from trainer.data.bundled import Digits, Mnist
from trainer.data.prepare import prepare
from trainer.data.text import Text

OURS, UNWATCHED, UNDROPPED = "gradtrain", "gradtrain_unwatched", "gradtrain_undropped"
FITS = ("keras_fit", "keras_fit_32", "keras_fit_jit")  # the best of them counts

WORDS_LENGTH = 128  # tokens in a window
_NUM_WINDOWS = 1000

_CROSSENTROPY = ("loss=softmax_crossentropy", "loss.label_smoothing=0")  # the same loss as everybody else's
_LINEAR = ("model=transformer", "loss=linear_crossentropy")
_WATCHING_NOTHING = ("logging.per_variable=false", "logging.tensorboard=false", "trainer.log_every=1000000")


@dataclasses.dataclass(frozen=True)
class Wanted:
    """The rate of `ours` is at least `ratio` times that of the fastest of `against`; of memory: theirs at least so many times ours."""

    ratio: float
    against: tuple[str, ...]
    ours: str = OURS
    measure: str = "rate"


@dataclasses.dataclass(frozen=True)
class Workload:
    """One job for all.

    Args:
        title: for tables.
        model: of `competitors.job.Job`.
        batch_size: examples in a step.
        num_outputs: classes, or different tokens.
        num_parameters: of the model; a competitor with another number trains something else.
        overrides: of the trainer's command, beside the data's and the batch.
        num_steps: of the trainer in one window: a few seconds, and two chunks at least.
        steps_per_call: of competitors that run several steps in a call.
        vocabulary: of tokens, made of random words; None: data of `source`.
        source: where examples come from otherwise.
        dropout: of the mlp.
        ours: what is run of this trainer: overrides by name.
        wanted: ratios.
    """

    title: str
    model: str
    batch_size: int
    num_outputs: int
    num_parameters: int
    overrides: tuple[str, ...]
    num_steps: int
    steps_per_call: int
    wanted: tuple[Wanted, ...]
    vocabulary: int | None = None
    source: Source | None = None
    dropout: float = 0.0
    ours: dict[str, tuple[str, ...]] = dataclasses.field(default_factory=lambda: {OURS: (), UNWATCHED: _WATCHING_NOTHING})


def _language_model(vocabulary: int, num_parameters: int, batch_size: int = 8, steps_per_call: int = 20, **fields: Any) -> Workload:
    return Workload(
        title=f"language model, width 128, 2 layers, {WORDS_LENGTH} tokens, vocabulary {vocabulary}, batch {batch_size}",
        model="transformer",
        batch_size=batch_size,
        num_outputs=vocabulary,
        num_parameters=num_parameters,
        steps_per_call=steps_per_call,
        vocabulary=vocabulary,
        **fields,
    )


_MLP = Workload(
    title="MLP 64-128-128-10, digits, batch 32",
    model="mlp",
    batch_size=32,
    num_outputs=10,
    num_parameters=26_122,
    overrides=("data=digits", "model=mlp", *_CROSSENTROPY),
    num_steps=40_000,
    steps_per_call=1000,  # what a call costs by itself no longer counts
    source=Digits(),
    wanted=(
        Wanted(7, ("keras_fit",)),
        Wanted(3, FITS),
        Wanted(2.5, ("orbit",)),
        Wanted(1, ("jax_scan",)),
        Wanted(0.75, (UNWATCHED,)),
    ),
)

WORKLOADS = {
    "mlp": _MLP,
    "mlp_dropout": dataclasses.replace(
        _MLP,
        title=f"{_MLP.title}, dropout 0.1",
        overrides=(*_MLP.overrides, "model.dropout=0.1"),
        dropout=0.1,
        ours={OURS: (), UNDROPPED: ("model.dropout=0",)},
        wanted=(Wanted(0.8, (UNDROPPED,)),),
    ),
    "cnn": Workload(
        title="CNN, 28 x 28 pixels, MNIST, batch 64",
        model="cnn",
        batch_size=64,
        num_outputs=10,
        num_parameters=421_642,
        overrides=("data=mnist", "model=cnn", *_CROSSENTROPY),
        num_steps=800,
        steps_per_call=20,
        source=Mnist(),
        wanted=(Wanted(1.25, FITS), Wanted(1.1, ("orbit",)), Wanted(2, ("torch_eager",)), Wanted(0.95, (UNWATCHED,))),
    ),
    "lm": _language_model(
        8192,
        2_518_528,
        overrides=("model=transformer", *_CROSSENTROPY),
        num_steps=100,
        wanted=(Wanted(1.2, FITS), Wanted(2, ("torch_eager",)), Wanted(0.95, (UNWATCHED,))),
    ),
    "lm_large": _language_model(
        32_768,
        8_834_560,
        overrides=_LINEAR,
        num_steps=100,
        ours={OURS: ()},
        wanted=(Wanted(1.2, FITS), Wanted(2, ("torch_eager",)), Wanted(4, FITS, measure="memory")),
    ),
    "lm_large_batch": _language_model(
        32_768,
        8_834_560,
        batch_size=128,  # where scores, not TensorFlow, fill the memory
        steps_per_call=2,
        overrides=_LINEAR,
        num_steps=12,
        ours={OURS: ()},
        wanted=(Wanted(4, FITS, measure="memory"),),
    ),
}


def trainer_overrides(workload: Workload, folder: Path) -> list[str]:
    """The trainer's command line for this workload, whose data `write_data` has put into the folder."""
    overrides = [*workload.overrides, f"data.batch_size={workload.batch_size}", f"trainer.steps={workload.num_steps}"]
    if workload.vocabulary:
        keys = {"path": _text_file(workload, folder), "unit": "word", "length": WORDS_LENGTH, "max_words": workload.vocabulary}
        overrides += ["data=text", *(f"data.{key}={value}" for key, value in keys.items())]
    return [*overrides, "optimizer=adam", "trainer.eval_every=0", "checkpoint.every=0"]


def write_data(workload: Workload, folder: Path) -> Path:
    """An NPZ file with what the trainer itself trains on: `features` [n, ...] and `targets` of its training part."""
    source = workload.source
    if workload.vocabulary:
        text = _text_file(workload, folder)
        text.write_text(_random_words(workload.vocabulary))
        source = Text(path=str(text), unit="word", length=WORDS_LENGTH, max_words=workload.vocabulary)
    assert source is not None
    train = prepare(source.load(), "classes", "classes", schema.Data(batch_size=workload.batch_size)).train.rows(slice(None))
    path = folder / "examples.npz"
    np.savez(path, features=train.features, targets=train.targets)
    return path


def _random_words(vocabulary: int) -> str:
    """Words of Zipf-like frequency, each at least once; one less than the vocabulary, which has a token for unknown words."""
    rng = np.random.default_rng(0)
    ranks = np.arange(1, vocabulary)
    drawn = rng.choice(ranks, _NUM_WINDOWS * WORDS_LENGTH, p=(1 / ranks) / (1 / ranks).sum())
    return " ".join(f"w{i}" for i in rng.permutation(np.concatenate([ranks, drawn])))


def _text_file(workload: Workload, folder: Path) -> Path:
    return folder / f"words_{workload.vocabulary}.txt"
