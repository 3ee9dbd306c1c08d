"""A loss as a function of NumPy arrays, and its derivatives along displacements: by differences, and by given gradients."""

import dataclasses
import functools
from collections.abc import Callable, Iterator

import numpy as np
import tensorflow as tf

from losses.base import Loss, LossError, Tensors, entries
from losses.proof import differences

NUM_COORDINATES = 64  # sampled where an example has more
NUM_DIRECTIONS = 3  # random ones, over all coordinates at once
NUM_COUPLED = 12  # directions of an entry, where examples hang together and coordinates of all examples at once would say little
LEAST_COUPLED = 3  # where there are so many numbers that evaluating takes long
NUM_ELEMENTS = 1 << 20  # evaluated at once; of a batch with more, some examples are sampled

Arrays = dict[str | None, np.ndarray]  # entries of y_pred by key; None where y_pred is a single tensor
Place = tuple[str | None, int] | str  # an entry's coordinate, counted through all axes but the batch; or what a direction is


@dataclasses.dataclass(frozen=True)
class Function:
    """`loss.value`, or `loss.surrogate` where that is what the gradient differentiates, around one batch."""

    loss: Loss
    y_true: Tensors
    y_pred: Tensors
    eps: float = 2.0**-52  # relative rounding of the value

    @property
    def what(self) -> str:
        return "surrogate" if self.loss.contract == "surrogate" else "value"

    @property
    def together(self) -> bool:
        """Whether only the batch as a whole can be displaced."""
        return self.loss.coupled or bool(self.loss.shared)

    @property
    def center(self) -> Arrays:
        return {key: tf.cast(p, tf.float64).numpy() for key, p in entries(self.y_pred).items()}

    def __call__(self, moved: Arrays, examples: np.ndarray | None = None) -> np.ndarray:
        """The values of k displaced copies of the batch's examples, one after the other: [k * examples].

        Entries that are missing from `moved` are the batch's.
        """
        arrays = entries(self.y_pred) | moved
        num_rows = next(len(p) for key, p in arrays.items() if key not in self.loss.shared)

        def rows(tensor: tf.Tensor) -> tf.Tensor:
            chosen = np.arange(len(tensor)) if examples is None else examples
            return tf.gather(tensor, np.resize(chosen, num_rows))

        y_true = None if self.y_true is None else tf.nest.map_structure(rows, self.y_true)
        arguments = {key: tf.cast(arrays[key], p.dtype) for key, p in entries(self.y_pred).items()}
        y_pred = arguments if isinstance(self.y_pred, dict) else arguments[None]
        arguments_of_value = [y_true, y_pred]
        if self.loss.contract == "surrogate":
            at = {key: p if key in self.loss.shared else rows(p) for key, p in entries(self.y_pred).items()}
            arguments_of_value.append(at if isinstance(self.y_pred, dict) else at[None])
        return tf.cast(self._value(*arguments_of_value), tf.float64).numpy()

    @functools.cached_property
    def _value(self) -> Callable[..., tf.Tensor]:
        # It is evaluated dozens of times, of two shapes at most; a loss that loops would spend seconds in Python.
        return tf.function(getattr(self.loss, self.what), autograph=False)

    def jittered(self, rng: np.random.Generator, change: float) -> Arrays:
        """The batch with every prediction changed by the fraction `change`, up or down."""
        return {key: p * (1 + change * rng.choice([-1, 1], p.shape)) for key, p in self.center.items()}

    def noise(self, rng: np.random.Generator) -> np.ndarray:
        """[batch]: by how much rounding of the predictions and of the value may move the value."""
        center = self(self.center)
        with np.errstate(invalid="ignore"):
            moves = [np.abs(self(self.jittered(rng, 2 * self.eps)) - center) for _ in range(4)]
        return np.max(moves, axis=0) + 4 * self.eps * np.abs(center)

    def is_narrow(self, rng: np.random.Generator) -> bool:
        """Whether small changes that float64 would show are lost: something inside is float32."""
        center, large, small = self(self.center), *(self(self.jittered(rng, change)) for change in (2.0**-10, 2.0**-34))
        with np.errstate(invalid="ignore"):  # a value may have overflowed
            visible = np.abs(large - center) * 2.0**-24 > 1e3 * self.eps * np.abs(center)
        return bool(visible.any() and (small == center)[visible].all())

    def check_independence(self, rng: np.random.Generator) -> None:
        """Raises LossError if displacing every other example changes the ones between, and the loss does not say so."""
        if self.together:
            return
        center, noise, moved = self(self.center), self.noise(rng), self.jittered(rng, 0.01)
        for key, p in self.center.items():
            moved[key][1::2] = p[1::2]
        change = np.abs(self({key: moved[key] for key in moved}) - center)[1::2]
        if (change > 100 * noise[1::2] + 1e-6 * np.abs(center[1::2])).any():
            raise LossError(
                f"loss {self.loss.name}: an example's value depends on the other examples of the batch; "
                "average over an example's own axes only, or declare coupled = True"
            )

    def place(self, place: Place, example: int) -> str:
        """A derivative's place with the target and the prediction there, for a message."""
        if isinstance(place, str):
            return f"example {example}, {place}"
        key, column = place
        p = entries(self.y_pred)[key][example].numpy()
        index = tuple(int(i) for i in np.unravel_index(column, p.shape))
        text = f"example {example}, coordinate {list(index)}" + (f" of {key}" if key is not None else "")
        if self.y_true is not None and not isinstance(self.y_true, dict):
            y = self.y_true[example].numpy()
            shown = f"{y[index]:.9g}" if y.shape == p.shape else np.array2string(y, threshold=8, precision=6)
            text += f", y_true={shown}"
        return f"{text}, y_pred={p[index]:.9g}"


@dataclasses.dataclass(frozen=True)
class Probes:
    """Derivatives of sum(dy * value) by displacement (rows) and example (columns; one for all where they hang together)."""

    places: list[Place]
    examples: np.ndarray  # the columns' examples; empty where they hang together
    dy: np.ndarray
    expected: np.ndarray  # by differences
    error: np.ndarray  # a bound of their error
    found: dict[str, np.ndarray]  # by every gradient

    @property
    def largest(self) -> float:
        sizes = np.abs(self.expected[np.isfinite(self.error)])
        return float(sizes.max(initial=0.0))

    def wrong(self, name: str, relative: float, floor: np.ndarray | float) -> np.ndarray:
        """Where a gradient is off by more than the differences' error, a relative error and a floor allow, or not finite."""
        found = self.found[name]
        with np.errstate(invalid="ignore"):
            off = np.abs(found - self.expected) > 2 * self.error + relative * np.abs(self.expected) + floor
        return (off | ~np.isfinite(found)) & np.isfinite(self.error)


def probe(function: Function, dy: np.ndarray, gradients: dict[str, Arrays], rng: np.random.Generator) -> Probes:
    """Measures the derivatives, and what the gradients say they are."""
    center = function.center
    batch = np.arange(len(dy))
    examples = batch if function.together else _sample(center, batch, rng)
    noise = function.noise(rng)[examples]
    dy = dy.astype(np.float64)[examples]
    if not function.together:
        center = {key: p[examples] for key, p in center.items()}
        gradients = {name: {key: g[examples] for key, g in gradient.items()} for name, gradient in gradients.items()}
    size = np.sqrt(np.mean(np.concatenate([p.ravel() for p in center.values()]) ** 2)) or 1.0
    # Powers of two, so that displacements are exact; never below a prediction's own size, nor the batch's.
    scales = {key: 2.0 ** np.ceil(np.log2(np.maximum(np.abs(p), size))) for key, p in center.items()}

    places, expected, error = [], [], []
    found: dict[str, list[np.ndarray]] = {name: [] for name in gradients}
    for place, displacement in _displacements(function, scales, rng):

        def line(t: np.ndarray, displacement: Arrays = displacement) -> np.ndarray:
            if function.together:
                moves = ({key: center[key] + step * move for key, move in displacement.items()} for step in t)
                return np.stack([np.sum(dy * function(moved), keepdims=True) for moved in moves])
            moved = {key: np.concatenate([center[key] + step * move for step in t]) for key, move in displacement.items()}
            return function(moved, examples).reshape(len(t), -1)

        derivative, bound = differences.along(line, np.sum(np.abs(dy) * noise, keepdims=True) if function.together else noise)
        # In units of a coordinate's derivative, which the displacement multiplied.
        unit = scales[place[0]].reshape(len(dy), -1)[:, place[1]] if isinstance(place, tuple) else np.ones_like(derivative)
        weight = (1.0 if function.together else dy) / unit
        places.append(place)
        expected.append(derivative * weight)
        error.append(bound * np.abs(weight))
        for name, gradient in gradients.items():
            moves = {key: np.abs(move) if name == "rounding" else move for key, move in displacement.items()}
            # An infinite derivative beside a coordinate that does not move is not its business.
            products = [np.where(move == 0, 0.0, gradient[key] * move) for key, move in moves.items()]
            sums = [np.sum(p, keepdims=True).reshape(1) if function.together else p.reshape(len(dy), -1).sum(axis=1) for p in products]
            found[name].append(sum(sums) / unit)
    stacked = {name: np.stack(rows) for name, rows in found.items()}
    columns = np.array([], int) if function.together else examples
    return Probes(places, columns, dy, np.stack(expected), np.stack(error), stacked)


def _sample(center: Arrays, batch: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    per_example = sum(p[0].size for p in center.values())
    most = max(2, NUM_ELEMENTS // (per_example * (2 * len(differences.STEPS) + 1)))
    return batch if len(batch) <= most else np.sort(rng.choice(batch, most, replace=False))


def _displacements(function: Function, scales: Arrays, rng: np.random.Generator) -> Iterator[tuple[Place, Arrays]]:
    def direction(key: str | None) -> np.ndarray:
        return scales[key] * rng.choice([-1.0, 1.0], scales[key].shape)

    num_evaluated = sum(s.size for s in scales.values()) * (2 * len(differences.STEPS) + 1)
    if function.together:
        most = max(LEAST_COUPLED, min(NUM_COUPLED, 16 * NUM_ELEMENTS // num_evaluated))
        for key in scales:  # each entry alone, so that a message can name it
            for _ in range(most):
                yield f"a random displacement of {'y_pred' if key is None else key}", {key: direction(key)}
        return
    columns = [(key, column) for key, s in scales.items() for column in range(s[0].size)]
    most = max(8, min(NUM_COORDINATES, 16 * NUM_ELEMENTS // num_evaluated))
    if len(columns) > most:
        columns = [columns[i] for i in np.sort(rng.choice(len(columns), most, replace=False))]
    for key, column in columns:
        displacement = {other: np.zeros_like(s) for other, s in scales.items()}
        flat = displacement[key].reshape(len(scales[key]), -1)  # a view
        flat[:, column] = scales[key].reshape(flat.shape)[:, column]
        yield (key, column), displacement
    for _ in range(NUM_DIRECTIONS):
        yield "a random displacement of all coordinates", {key: direction(key) for key in scales}
