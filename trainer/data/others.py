"""Other data than a model was trained on, as its own were prepared: by their mean and spread, with their columns, classes and tokens."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from trainer.data.base import Examples, Source, StreamedSource
from trainer.data.prepare import Part, Prepared, Split, fit_targets, is_resident, sample_weights, standardized
from trainer.data.stream import Streamed
from trainer.data.text import UNKNOWN
from trainer.errors import DataError

_MOST_NAMED = 10


def with_others(like: Prepared, source: Source, settings: Any) -> Prepared:
    """`like`, with all examples of another source as its evaluation part.

    Args:
        like: what the model was trained on.
        source: of targets that the model's loss wants as those of `like`.
        settings: `schema.Data`.

    Raises:
        DataError: its examples are not of the columns, shapes, classes or tokens that the model takes.
    """
    part: Part
    if isinstance(source, StreamedSource):
        _check_streamed(source, like)
        numbers = np.arange(source.num_examples)
        every = Streamed(source, numbers, source.kind, like.want, None, like.of_features, like.of_targets, like.balance)
        first = every.read(np.zeros(1, int))
        _check_shapes(first.features, first.targets, like)
        every = dataclasses.replace(every, shapes=first.shapes)
        resident = is_resident(settings, source.num_examples, like.features_shape)
        part = every.resident() if resident else every
    else:
        examples = aligned(source.load(), like)
        weights = sample_weights(examples, settings.sample_weight)
        examples.check(weights, kind=source.kind)
        targets = fit_targets(examples, source.kind, like.want)
        _check_shapes(examples.features, targets, like)
        part = standardized(examples, targets, weights, like.of_features, like.of_targets, like.balance)
        resident = is_resident(settings, len(part), like.features_shape)
    return dataclasses.replace(like, evaluation=part, resident=resident, evaluation_rows=np.arange(len(part)))


def without_targets(like: Prepared, source: Source) -> Part:
    """The features of all examples of a source, which need not have targets, as those of `like`.

    Raises:
        DataError: they are not of the columns, shapes or tokens that the model takes, or not finite.
    """
    if isinstance(source, StreamedSource):
        source = source.unlabelled()
        every = Streamed(_Features(source), np.arange(source.num_examples), "none", "none", None, like.of_features)
        first = every.read(np.zeros(1, int))
        _check_shapes(first.features, None, like)
        return dataclasses.replace(every, shapes=first.shapes)
    examples = aligned(source.load_features(), like)
    examples.check(kind="none")
    _check_shapes(examples.features, None, like)
    return standardized(examples, None, None, like.of_features, None, None)


@dataclasses.dataclass(frozen=True)
class _Features(StreamedSource):
    """Another source's examples without their targets."""

    source: StreamedSource

    kind = "none"

    @property
    def num_examples(self) -> int:
        return self.source.num_examples

    @property
    def num_tokens(self) -> int | None:  # type: ignore[override]  # depends on the source
        return self.source.num_tokens

    @property
    def parallel(self) -> bool:  # type: ignore[override]  # depends on the source
        return self.source.parallel

    def read(self, rows: np.ndarray) -> tuple[np.ndarray, None, None]:
        return self.source.read_features(rows), None, None


def aligned(examples: Examples, like: Prepared) -> Examples:
    """The examples with the columns of `like` in their order, and its numbers for classes and tokens."""
    features, targets = examples.features, examples.targets
    if (examples.num_tokens is None) != (like.num_tokens is None):
        holds, takes = ("numbers", "tokens") if examples.num_tokens is None else ("tokens", "numbers")
        raise DataError(f"the features are {holds}, and the run's model takes {takes}: type other data")
    if like.feature_names and examples.feature_names:
        features = _columns(examples, like.feature_names)
    if examples.num_tokens is not None and (places := _places(examples, like, "tokens")) is not None:
        features = places[features]
    if targets is not None and (like.num_classes is not None or examples.num_classes is not None):
        places = _places(examples, like, "classes")
        if places is not None and isinstance(targets, dict):
            targets = targets | {"labels": np.where(targets["labels"] < 0, targets["labels"], places[targets["labels"]])}
        elif places is not None:
            targets = places[targets]
    return Examples(
        features,
        targets,
        like.num_classes,
        examples.weights,
        like.feature_names if examples.feature_names else (),
        like.class_names,
        like.num_tokens,
        examples.rows,
    )


def _columns(examples: Examples, names: Sequence[str]) -> np.ndarray:
    """Features with the columns `names`. A column of text is several here, `column=text`; a text that does not occur has none."""
    there = {name: place for place, name in enumerate(examples.feature_names)}
    of_text = {name.partition("=")[0] for name in names if "=" in name}
    texts = {name.partition("=")[0] for name in there if "=" in name}
    for name in there:
        column, is_text, text = name.partition("=")
        if name not in names and is_text and column in of_text:
            known = [other.partition("=")[2] for other in names if other.startswith(f"{column}=")]
            raise DataError(f"column {column!r} has the text {text[:40]!r}, which the run has not seen; it knows {_listed(known)}")
    found = []
    for name in names:
        if name in there:
            found.append(examples.features[:, there[name]])
        elif "=" in name and name.partition("=")[0] in texts:
            found.append(np.zeros(len(examples), np.float32))
        else:
            raise DataError(f"there is no column {name.partition('=')[0]!r}; the run's features are {_listed(names)}")
    return np.stack(found, axis=1)


def _places(examples: Examples, like: Prepared, what: str) -> np.ndarray | None:
    """What number each class or token of the examples has in `like`; None where it is the same."""
    num, num_like = (part.num_tokens if what == "tokens" else part.num_classes for part in (examples, like))
    names, known = list(examples.class_names), list(like.class_names)
    if not names or len(names) != num or len(known) != num_like:  # a source that names its classes need not name its tokens
        if num != num_like:
            raise DataError(f"there are {num} {what}, and the run has {num_like}: type data of the same {what}")
        return None
    if names == known:
        return None
    index = {name: place for place, name in enumerate(known)}
    strange = [name for name in names if name not in index]
    if strange and known[0] != UNKNOWN:
        raise DataError(f"{what} that the run has not seen: {_listed(strange)}; it knows {_listed(known)}")
    return np.array([index.get(name, 0) for name in names], np.int32)


def _check_streamed(source: StreamedSource, like: Prepared) -> None:
    if source.num_tokens != like.num_tokens:
        raise DataError(f"there are {source.num_tokens} tokens, and the run has {like.num_tokens}: type data of the same tokens")
    if source.num_classes != like.num_classes or (source.class_names and list(source.class_names) != list(like.class_names)):
        of = f"{source.num_classes} ({_listed(source.class_names)})" if source.class_names else str(source.num_classes)
        raise DataError(
            f"there are {of} classes, and the run has {like.num_classes} ({_listed(like.class_names)}): data that are streamed "
            "must have the same ones"
        )


def _check_shapes(features: np.ndarray, targets: Any, like: Prepared) -> None:
    """Refuses examples of other shapes; targets may be left out."""
    if features.shape[1:] != like.features_shape:
        raise DataError(f"the features of an example have shape {features.shape[1:]}; the run's model takes {like.features_shape}")
    found, wanted = ([array.shape[1:] for array in Split(features, given, None).arrays()[1:]] for given in (targets, like.first.targets))
    if targets is not None and found != wanted:
        raise DataError(f"the targets of an example have shape {found}; those of the run {wanted}")


def _listed(names: Sequence[str]) -> str:
    return ", ".join(map(str, names[:_MOST_NAMED])) + (", ..." if len(names) > _MOST_NAMED else "")
