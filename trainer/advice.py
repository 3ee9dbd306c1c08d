"""What to say about a step that was not finite: one sentence with what is known of where it began, and what to try."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from trainer.learner import Learner

_ORDINARY = 1e6  # magnitude up to which a formula that gives no finite number is at fault, not the size of what it was given
_HALF = ("float16", "bfloat16")


@dataclasses.dataclass(frozen=True)
class Seen:
    """What is known of one tensor of a step."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    num: int  # of its numbers,
    num_bad: int  # of those that are not finite
    bad: float | None  # the first of these
    largest: float  # magnitude of the others
    places: tuple[int, ...] = ()  # in the batch, of the examples in which it is not finite; empty too where no axis is the batch
    layer: keras.layers.Layer | None = None  # that computes it
    largest_input: float = 0.0  # magnitude of what the layer was given

    @classmethod
    def of(cls, name: str, tensor: Any, places: np.ndarray | None = None, **known: Any) -> "Seen":
        """Of a tensor; None is a gradient that nothing flows into. `places` in the batch are given where its first axis is the batch."""
        if tensor is None:
            return cls(name, (), "float32", 0, 0, None, 0.0, **known)
        tensor = tf.convert_to_tensor(tensor)
        array = np.asarray(tf.cast(tensor, tf.float64 if tensor.dtype == tf.float64 else tf.float32))
        bad = ~np.isfinite(array)
        found: tuple[int, ...] = ()
        if bad.any() and places is not None and array.ndim and not len(array) % len(places):  # items of an example lie next to each other
            found = tuple(places[bad.reshape(len(places), -1).any(axis=1)].tolist())
        largest = float(np.abs(array, where=~bad, out=np.zeros_like(array)).max(initial=0.0))
        first = float(array[bad].flat[0]) if bad.any() else None
        return cls(name, tuple(array.shape), tensor.dtype.name, array.size, int(bad.sum()), first, largest, found, **known)

    @staticmethod
    def merged(parts: Sequence["Seen"]) -> "Seen":
        """Of the same tensor in all parts of a batch."""
        return dataclasses.replace(
            parts[0],
            num=sum(part.num for part in parts),
            num_bad=sum(part.num_bad for part in parts),
            bad=next((part.bad for part in parts if part.bad is not None), None),
            largest=max(part.largest for part in parts),
            places=tuple(place for part in parts for place in part.places),
            largest_input=max(part.largest_input for part in parts),
        )


@dataclasses.dataclass(frozen=True)
class ByMode:
    """The loss on the step's batch in one gradient mode."""

    losses: np.ndarray  # [batch]
    gradients: np.ndarray  # [batch, numbers of an example's predictions], of every example's own loss
    predictions: np.ndarray  # [batch, numbers]
    targets: list[Any]  # of each example, None where it is no single array

    def bad_places(self) -> list[int]:
        """Of the examples whose loss or gradient is not finite."""
        return [int(place) for place in np.flatnonzero(~(np.isfinite(self.losses) & np.isfinite(self.gradients).all(axis=1)))]

    def coordinate(self, place: int) -> int:
        """Of the number of an example's predictions to look at: the first whose gradient is not finite, else the largest."""
        bad = ~np.isfinite(self.gradients[place])
        return int(bad.argmax()) if bad.any() else int(np.nan_to_num(np.abs(self.predictions[place]), nan=np.inf).argmax())


@dataclasses.dataclass(frozen=True)
class Finding:
    """All that the sentence is made of."""

    learner: Learner
    first: Seen | None  # tensor that is not finite; None: all were finite when they were computed anew
    modes: Mapping[str, ByMode]
    rows: np.ndarray  # of the data, [batch]
    compiled: str
    learning_rate: float


def sentence(finding: Finding) -> str:
    """What was not finite first, in facts, and what to try."""
    first, learner = finding.first, finding.learner
    if first is None:
        return f"computed anew, operation by operation, the step is finite everywhere: {general(learner, finding.compiled)}"
    if first.name.startswith("the weight "):
        return f"{_gives(first)} before the step: the update before it overflowed: {_smaller(finding)}"
    if first.name.startswith("the output of layer") or first.name.startswith("the predictions"):
        return f"{_gives(first)}{_in(finding)} before the loss is reached{_model(finding)}"
    if first.name == "the loss of an example" or first.name.startswith("the gradient of the loss by"):
        return _loss(finding)
    if first.name == "the regularization":
        return f"{_gives(first)}: weights have grown too large: {_smaller(finding)}"
    if first.name == "the loss":
        largest = f"the examples' losses are finite, up to {_largest_loss(finding):.3g}"
        return f"{_gives(first)}: {largest}, and their sum is not: {_smaller(finding)}"
    if first.name == "the norm of the gradient":
        return f"{_gives(first)}: the gradients are finite, but their squares are not: {_smaller(finding)}"
    return f"{_gives(first)}{_in(finding)} while that of the loss by the predictions is finite{_model(finding)}"


def general(learner: Learner, compiled: str) -> str:
    """What can be tried where nothing is known."""
    other = [f"gradient={mode}" for mode in learner.loss.modes if mode != learner.gradient_mode]
    graph = ["trainer.compile=graph"] if compiled != "graph" else []
    return "try " + ", ".join([*graph, *other, "a smaller optimizer.learning_rate"]) + _clip(learner)


def _loss(finding: Finding) -> str:
    """Of a loss whose value or gradient by the predictions, which are finite, is not."""
    learner = finding.learner
    loss, mode = learner.loss, learner.gradient_mode
    own = finding.modes[mode]
    places = own.bad_places()
    if not places:
        return f"{_gives(finding.first)}{_in(finding)}, by its weight or the loss scale: {_smaller(finding)}"
    place = places[0]
    what = "a gradient" if np.isfinite(own.losses[place]) else "a value"
    bad = own.gradients[place][~np.isfinite(own.gradients[place])] if what == "a gradient" else own.losses[place : place + 1]
    more = f" (and of {len(places) - 1} more)" if len(places) > 1 else ""
    text = f"the loss {loss.name} has {what} of {_word(float(bad[0]))} in gradient={mode}"
    text += f" at {_input(own, place)} of example {finding.rows[place]}{more}"
    for other in (other for other in loss.modes if other != mode):
        found = finding.modes[other]
        value_fine, gradient_fine = (bool(np.isfinite(array[places]).all()) for array in (found.losses, found.gradients))
        if value_fine and gradient_fine:
            differs = ", another gradient on purpose" if loss.contract == "surrogate" else ""
            return f"{text}, gradient={other} is finite there{differs}: try gradient={other}"
        if gradient_fine:
            text += f", where the gradient of gradient={other} is finite and its value is not"
        else:
            text += f", and gradient={other} is not finite there either"
    if np.abs(own.predictions[place]).max(initial=0.0) > min(_ORDINARY, loss.magnitudes[1]):
        return f"{text}: {_smaller(finding)}"
    part = "value" if what == "a value" else "gradient" if mode == "analytic" else "value, or give it a gradient of its own"
    return f"{text}: rewrite its {part} so that it is finite for such predictions, or keep them smaller: {_smaller(finding)}"


def _input(found: ByMode, place: int) -> str:
    coordinate, numbers = found.coordinate(place), found.predictions[place]
    text = f"y_pred {numbers[coordinate]:.6g}" if len(numbers) == 1 else f"y_pred[{coordinate}] {numbers[coordinate]:.6g}"
    target = None if found.targets[place] is None else np.ravel(found.targets[place])
    if target is None or not len(target):
        return text
    if len(target) == 1:
        return f"{text}, y_true {target[0]:.6g}"
    return f"{text}, y_true[{coordinate}] {target[coordinate]:.6g}" if len(target) == len(numbers) else text


def _model(finding: Finding) -> str:
    """Of a layer: whether what it was given is too large, or it has no finite answer to what is not."""
    first = finding.first
    assert first is not None
    if first.layer is None:
        return f": {_smaller(finding)}"
    weights = max((Seen.of("", weight).largest for weight in first.layer.get_weights()), default=0.0)
    facts = f": layer {first.layer.name}, with inputs up to {first.largest_input:.3g}"
    facts += f" and weights up to {weights:.3g}," if first.layer.weights else ","
    if first.dtype in _HALF:
        return f"{facts} computes in {first.dtype}: try precision=float32, or {_smaller(finding)}"
    if max(first.largest_input, weights) < _ORDINARY:
        what = "output" if first.name.startswith("the output") else "derivative"
        return f"{facts} has no finite {what} for some of them: mend it, or keep its inputs away from these"
    return f"{facts} overflows: {_smaller(finding)}"


def _smaller(finding: Finding) -> str:
    return f"try a smaller optimizer.learning_rate (it was {finding.learning_rate:.3g})" + _clip(finding.learner)


def _clip(learner: Learner) -> str:
    return f" or trainer.clip_norm below {learner.clip_norm:.3g}" if learner.clip_norm else " or trainer.clip_norm=1"


def _gives(first: Seen | None) -> str:
    assert first is not None
    assert first.bad is not None
    share = f" at {first.num_bad} of {first.num}" if first.num > 1 else ""
    return f"{first.name} is {_word(first.bad)}{share}"


def _in(finding: Finding) -> str:
    places = finding.first.places if finding.first is not None else ()
    if not places:
        return ""
    more = f" and {len(places) - 1} more" if len(places) > 1 else ""
    return f", in example {finding.rows[places[0]]}{more},"


def _largest_loss(finding: Finding) -> float:
    losses = finding.modes[finding.learner.gradient_mode].losses
    return float(np.abs(losses[np.isfinite(losses)]).max(initial=0.0))


def _word(value: float) -> str:
    return "NaN" if np.isnan(value) else "inf" if value > 0 else "-inf"
