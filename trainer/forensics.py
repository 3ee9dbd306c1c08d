"""A step that was not finite, computed anew operation by operation: where it began, in which examples, and what to try.

Nothing is kept for this while training: such a step leaves weights and all other state as they were before it, and its batch and the
random numbers of its layers are functions of its number.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from losses.base import Tensors, entries
from losses.modes import per_example
from trainer import advice, layers, randomness
from trainer.advice import Finding, Seen
from trainer.compiling import synchronizes
from trainer.data.prepare import Prepared, Split
from trainer.learner import Learner
from trainer.logs import plain
from trainer.step import local

_MOST_EXAMPLES = 8  # of which the file shows what the loss was given,
_MOST_NUMBERS = 16  # so many of them


@dataclasses.dataclass(frozen=True)
class Forensics:
    """Looks into a step that was not finite.

    Args:
        learner: in the state before the step.
        data: what it is trained on.
        accumulate: parts of every replica's share of a batch.
        compiled: how the chunk is compiled.
    """

    learner: Learner
    data: Prepared
    accumulate: int
    compiled: str

    def __call__(self, step: int, indices: np.ndarray, scalars: Mapping[str, float]) -> dict[str, Any]:
        """What is to be told about a step, as JSON takes it; never raises, because nothing may hide that the run has diverged.

        Args:
            step: counted from 1.
            indices: of its batch's examples in the training part, [batch_size].
            scalars: of the step, by tag; of them "loss_scale" is used where there is one, and "learning_rate".
        """
        learner = self.learner
        told = {
            "step": step,
            "gradient_mode": learner.gradient_mode,
            "compile": self.compiled,
            "num_replicas": learner.num_replicas,
            "accumulate": self.accumulate,
            "learning_rate": plain(scalars["learning_rate"]),
            "loss_scale": plain(scalars["loss_scale"]) if "loss_scale" in scalars else None,
        }
        rows = indices if self.data.train_rows is None else self.data.train_rows[indices]
        batch = {"indices": indices.tolist(), "examples": rows.tolist()}
        try:
            replay = _Replay(learner, self.data.train.rows(indices), self._num_parts(), step, scalars.get("loss_scale"))
            return told | self._found(replay, rows, scalars) | {"notes": self._notes(replay)} | batch
        except Exception as error:  # memory, or code that the user has brought along
            reason = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
            return told | {
                "first_nonfinite": None,
                "advice": f"the step can't be computed anew on the host ({reason}): {advice.general(learner, self.compiled)}",
                "notes": [],
            } | batch  # fmt: skip

    def _num_parts(self) -> int:
        """Into how many parts the batch goes through the model; replicas that normalize their batches together count as one."""
        return 1 if synchronizes(self.learner) else self.learner.num_replicas * self.accumulate

    def _found(self, replay: "_Replay", rows: np.ndarray, scalars: Mapping[str, float]) -> dict[str, Any]:
        first = next((seen for seen in replay.seen if seen.num_bad), None)
        modes = {mode: replay.by_mode(mode) for mode in self.learner.loss.modes}
        finding = Finding(self.learner, first, modes, rows, self.compiled, scalars["learning_rate"])
        return {
            "first_nonfinite": None if first is None else _told(first, rows, len(rows)),
            "advice": advice.sentence(finding),
            "gradients": {mode: _told_mode(found, rows) for mode, found in modes.items()},
            "tensors": [_told(seen, rows, _MOST_EXAMPLES) for seen in replay.seen if seen.num],
            "losses": {mode: [plain(float(value)) for value in found.losses] for mode, found in modes.items()},
            "weights": None if replay.batch.weights is None else replay.batch.weights.tolist(),
        }

    def _notes(self, replay: "_Replay") -> list[str]:
        """What the replay can't tell."""
        notes = []
        if not any(seen.num_bad for seen in replay.seen):
            notes.append("computed anew, everything is finite: what was not depends on how operations are compiled or ordered")
        if self.compiled != "graph":
            notes.append(
                f"the run is compiled as {self.compiled}: XLA fuses and rounds in other ways than this replay of single operations"
            )
        if self.learner.num_replicas > 1:
            notes.append("the replicas' shares of the batch were computed one after another, on one device")
        if self.learner.scaler:
            notes.append(
                "gradients by outputs and predictions are multiplied by loss_scale, as they were; those by weights are divided by it again"
            )
        if any(variable.name == "seed_generator_state" for variable in self.learner.state):
            notes.append("random numbers of layers with a generator of their own are those of the generator's state before the step")
        return notes


class _Replay:
    """The step's forward and backward pass, part by part; `seen` holds its tensors in the order of computation."""

    def __init__(self, learner: Learner, batch: Split, num_parts: int, step: int, scale: float | None) -> None:
        self.learner, self.batch, self._step, self._scale = learner, batch, step, scale
        weights = [Seen.of(f"the weight {v.path}", local(v.value)) for v in learner.variables]
        self.seen = [weight for weight in weights if weight.num_bad]  # none, unless the update before overflowed
        self._predictions: list[tuple[Split, Tensors]] = []
        passes, added, state = [], [], None
        for i, places in enumerate(np.split(np.arange(len(batch)), num_parts)):
            if i % max(1, num_parts // learner.num_replicas) == 0:
                state = None  # every replica begins with the same
            tensors, of_all, state = self._pass(places, state)
            passes.append(tensors)
            added.append(of_all)
        merged = [Seen.merged(alike) for alike in zip(*passes, strict=True)]
        sums = {name: tf.add_n([parts[name] for parts in added]) for name in added[0]}
        for seen in merged:
            self.seen.append(
                Seen.of(seen.name, sums[seen.name], layer=seen.layer, largest_input=seen.largest_input) if seen.name in sums else seen
            )
        gradients = [total for name, total in sums.items() if name not in ("the loss", "the regularization")]
        self.seen.append(Seen.of("the norm of the gradient", tf.linalg.global_norm(gradients)))

    def by_mode(self, mode: str) -> advice.ByMode:
        """The loss of every example and its gradient by the predictions, in a gradient mode."""
        values, flat, inputs, targets = [], [], [], []
        for part, predictions in self._predictions:
            own = {key: p for key, p in entries(predictions).items() if key not in self.learner.loss.shared}
            with tf.GradientTape() as tape:
                tape.watch(tf.nest.flatten(predictions))
                mask = None if part.weights is None else part.weights > 0
                value = per_example(self.learner.loss, mode, part.targets, predictions, mask)
            gradients = tape.gradient(value, list(own.values()), unconnected_gradients="zero")
            values.append(value.numpy())
            flat.append(_rows(gradients))
            inputs.append(_rows(own.values()))
            given = part.targets
            targets.append([None] * len(part) if given is None or isinstance(given, dict) else list(given))
        return advice.ByMode(
            np.concatenate(values), np.concatenate(flat), np.concatenate(inputs), [target for part in targets for target in part]
        )

    def _pass(self, places: np.ndarray, state: list[tf.Tensor] | None) -> tuple[list[Seen], dict[str, tf.Tensor], list[tf.Tensor]]:
        """Of one part: its tensors, those of them that are added up over the parts, by name, and the new state."""
        learner, part = self.learner, self.batch.rows(places)
        weights = [tf.identity(local(v.value)) for v in learner.variables]
        state = [tf.identity(local(v.value)) for v in learner.state] if state is None else state
        values = [*zip(learner.variables, weights, strict=True), *zip(learner.state, state, strict=True)]
        with (
            tf.GradientTape(watch_accessed_variables=False) as tape,
            keras.StatelessScope(values, collect_losses=True) as scope,
            randomness.at(learner.seed, tf.constant(self._step - 1), tf.constant(places, tf.int32)),
            _recorded(learner.model) as calls,
        ):
            tape.watch(weights)
            predictions = learner.model(tf.constant(part.features), training=True)
            mask = None if part.weights is None else part.weights > 0
            losses = tf.cast(per_example(learner.loss, learner.gradient_mode, part.targets, predictions, mask), tf.float32)
            weighed = losses if part.weights is None else losses * part.weights
            penalties = learner.model.losses
            penalty = tf.add_n(penalties) * (len(places) / len(self.batch)) if penalties else tf.constant(0.0)
            total = tf.reduce_sum(weighed) / len(self.batch) + penalty
            target = total if self._scale is None else total * self._scale
        self._predictions.append((part, predictions))
        outputs = [output for call in calls for output in call.outputs]
        flat = tf.nest.flatten(predictions)
        found = tape.gradient(target, [*flat, *outputs, *weights])
        by_prediction, by_output, by_weight = found[: len(flat)], found[len(flat) : -len(weights)], found[-len(weights) :]

        seen = [
            Seen.of(f"the output of layer {call.name}", output, places, layer=call.layer, largest_input=call.largest_input)
            for call in calls
            for output in call.outputs
        ]
        shared = learner.loss.shared
        names = [f"predictions {key}" if key is not None else "predictions" for key in entries(predictions)]
        at = [None if key in shared else places for key in entries(predictions)]
        seen += [Seen.of(f"the {name}", p, where) for name, p, where in zip(names, flat, at, strict=True)]
        seen.append(Seen.of("the loss of an example", losses, places))
        seen += [Seen.of("the regularization", penalty)] if penalties else []
        seen.append(Seen.of("the loss", total))
        for name, gradient, where in zip(names, by_prediction, at, strict=True):
            seen.append(Seen.of(f"the gradient of the loss by the {name}", gradient, where))
        gradients = {
            f"the gradient by {variable.path}": tf.zeros(variable.shape) if g is None else tf.cast(tf.convert_to_tensor(g), tf.float32)
            for variable, g in zip(learner.variables, by_weight, strict=True)
        }
        if self._scale is not None:
            gradients = {name: gradient / self._scale for name, gradient in gradients.items()}
        owned = _owned(calls, learner.variables)
        reached = iter(reversed(by_output))
        follower: dict[str, Any] = {}  # the layer that the gradient comes through: the next one, where the model has no branches
        for call in reversed(calls):
            for _ in call.outputs:
                seen.append(Seen.of(f"the gradient by the output of layer {call.name}", next(reached), places, **follower))
            follower = {"layer": call.layer, "largest_input": call.largest_input}
            seen += [Seen.of(name, gradients[name], **follower) for name in owned.get(call.name, [])]
        named = {name for names in owned.values() for name in names}
        seen += [Seen.of(name, gradients[name]) for name in reversed(list(gradients)) if name not in named]
        added = gradients | {"the loss": total} | ({"the regularization": penalty} if penalties else {})
        return seen, added, [scope.get_current_value(variable) for variable in learner.state]


@dataclasses.dataclass(frozen=True)
class _Call:
    """One call of a layer."""

    layer: keras.layers.Layer
    name: str  # the layer's, with the number of the call from the second on
    outputs: list[tf.Tensor]
    largest_input: float


@contextlib.contextmanager
def _recorded(model: keras.Model) -> Iterator[list[_Call]]:
    """Within it, the calls of all layers of the model are kept, in the order in which they end."""
    calls: list[_Call] = []
    kept: set[int] = set()  # a layer that hands on what another one gave is no step of the computation
    counts: dict[str, int] = {}

    def recorded(layer: keras.layers.Layer, call: Callable) -> Callable:
        def function(*arguments: Any, **keywords: Any) -> Any:
            outputs = call(*arguments, **keywords)
            found = [t for t in tf.nest.flatten(outputs) if tf.is_tensor(t) and t.dtype.is_floating and id(t) not in kept]
            given = [t for t in tf.nest.flatten([arguments, keywords]) if tf.is_tensor(t) and t.dtype.is_floating]
            if found:
                kept.update(map(id, found))
                counts[layer.name] = counts.get(layer.name, 0) + 1
                name = layer.name if counts[layer.name] == 1 else f"{layer.name}, call {counts[layer.name]}"
                calls.append(_Call(layer, name, found, max((Seen.of("", t).largest for t in given), default=0.0)))
            return outputs

        return function

    recorded_layers = [layer for layer in layers.within(model) if not isinstance(layer, keras.layers.InputLayer)]
    for layer in recorded_layers:
        object.__setattr__(layer, "call", recorded(layer, layer.call))  # Keras' own __setattr__ would look for state in it
    try:
        yield calls
    finally:
        for layer in recorded_layers:
            object.__delattr__(layer, "call")


def _owned(calls: Sequence[_Call], variables: Sequence[keras.Variable]) -> dict[str, list[str]]:
    """Call to the gradients of its layer's own variables, the last first. Of a layer called again that is its first call."""
    owned: dict[str, list[str]] = {}
    for variable in reversed(variables):
        owners = [call for call in calls if any(v is variable for v in call.layer.trainable_variables)]
        if owners:
            innermost = min(owners, key=lambda call: len(call.layer.trainable_variables))
            owned.setdefault(innermost.name, []).append(f"the gradient by {variable.path}")
    return owned


def _rows(tensors: Any) -> np.ndarray:
    """[batch, all numbers of an example], float32."""
    arrays = [tf.cast(tf.convert_to_tensor(t), tf.float32).numpy() for t in tensors]
    return np.concatenate([array.reshape(len(array), -1) for array in arrays], axis=1)


def _told(seen: Seen, rows: np.ndarray, most: int) -> dict[str, Any]:
    return {
        "tensor": seen.name,
        "shape": list(seen.shape),
        "dtype": seen.dtype,
        "num_nonfinite": seen.num_bad,
        "num": seen.num,
        "value": None if seen.bad is None else plain(seen.bad),
        "largest_finite": plain(seen.largest),
        "num_examples": len(seen.places),
        "examples": [int(rows[place]) for place in seen.places[:most]],
    }


def _told_mode(found: advice.ByMode, rows: np.ndarray) -> dict[str, Any]:
    def shown(numbers: np.ndarray) -> list[float | str]:
        return [plain(float(number)) for number in numbers[:_MOST_NUMBERS]]

    places = found.bad_places()
    return {
        "nonfinite_losses": [int(rows[place]) for place in np.flatnonzero(~np.isfinite(found.losses))],
        "nonfinite_gradients": [int(rows[place]) for place in np.flatnonzero(~np.isfinite(found.gradients).all(axis=1))],
        "inputs": [
            {
                "example": int(rows[place]),
                "output": found.coordinate(place),
                "y_true": None if found.targets[place] is None else shown(np.ravel(found.targets[place])),
                "y_pred": shown(found.predictions[place]),
                "y_pred_there": plain(float(found.predictions[place, found.coordinate(place)])),
                "gradient_there": plain(float(found.gradients[place, found.coordinate(place)])),
                "loss": plain(float(found.losses[place])),
            }
            for place in places[:_MOST_EXAMPLES]
        ],
    }
