"""How a loss behaves as a piece of a program: shapes, dtypes, graphs, XLA, second order, saved models."""

import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import tensorflow as tf

from losses.base import Loss, LossError, Tensors, entries, map_entries
from losses.modes import per_example
from losses.proof import differences
from losses.proof.batches import along, direction, draw, evaluated, num_examples, sizes, take, units
from losses.proof.evaluation import cast, evaluate
from losses.proof.finding import Finding
from losses.proof.judging import Check, Outcome, judge, outcome, unequal
from losses.proof.sampling import DIM
from losses.proof.second import hessian_times

_CHANGE = 2.0**-24  # relative, of the inputs, to see how rounding spreads
_EPS = 2.0**-24
_PARTS = ("value", "gradient", "shared gradient")


def examine(loss: Loss, rng: np.random.Generator) -> list[Finding]:
    """Tests everything that needs no process of its own.

    Args:
        loss: the loss.
        rng: of the samples.

    Returns:
        A finding for every check and mode.
    """
    checks: dict[str, Check] = {
        "shapes and dtypes": _shapes,
        "no gradient flows into targets": _targets,
        "wrong shapes are refused": _refused,
        "eager, graph and XLA agree, and repeat bitwise": _ways,
        "no retracing over batch sizes": _batch_sizes,
        "second order": _second_order,
        "forward mode": _forward,
    }
    return judge(loss, "structure", checks, rng)


def _shapes(loss: Loss, mode: str, rng: np.random.Generator) -> Outcome:
    y_true, y_pred = draw(loss, rng)
    for dtype in (tf.float64, tf.float32, tf.bfloat16, tf.float16):
        predictions, wanted = cast(y_pred, dtype), tf.float64 if dtype == tf.float64 else tf.float32
        value, gradient = evaluate(loss, mode, cast(y_true, wanted), predictions)
        if value.shape != (num_examples(loss, y_pred),) or tf.as_dtype(value.dtype) != wanted:
            return "fails", f"for {dtype.name} predictions the value is {value.dtype}, shape {value.shape}"
        found, expected = entries(gradient), entries(predictions)
        if list(found) != list(expected):
            return "fails", f"the gradient has entries {list(found)}, the predictions {list(expected)}"
        for key, p in expected.items():
            if found[key].shape != tuple(p.shape) or tf.as_dtype(found[key].dtype) != dtype:
                return "fails", f"for predictions {dtype.name}, {tuple(p.shape)} the gradient is {found[key].dtype}, {found[key].shape}"
    return "holds", ""


def _targets(loss: Loss, mode: str, rng: np.random.Generator) -> Outcome:
    if loss.targets == ("none",):
        return "excepted", "it has no targets"
    y_true, y_pred = draw(loss, rng, 4)
    y, p = cast(y_true, tf.float32), cast(y_pred, tf.float32)
    watched = [t for t in tf.nest.flatten(y) if t.dtype.is_floating]
    with tf.GradientTape() as tape:
        tape.watch([*watched, *tf.nest.flatten(p)])
        value = per_example(loss, mode, y, p)
    gradients = tape.gradient(value, [*watched, *tf.nest.flatten(p)])
    if any(g is not None for g in gradients[: len(watched)]):
        return "fails", "a gradient flows into the targets"
    if all(g is None for g in gradients[len(watched) :]):
        return "fails", "no gradient flows into the predictions: None"
    return "holds", ""


def _refused(loss: Loss, mode: str, rng: np.random.Generator) -> Outcome:
    y_true, y_pred = draw(loss, rng, DIM)  # as many as axes are long: a wrong axis would fit
    if y_true is None:
        return "excepted", "it has no targets that could broadcast"
    wrong: dict[str, Callable[[np.ndarray], np.ndarray]] = {
        "an axis of length 1 after the last": lambda y: y[..., np.newaxis],
        "one example more than the predictions": lambda y: np.concatenate([y, y[:1]]),
        "one example for all": lambda y: y[:1],
    }
    if all(np.ndim(y) > 1 for y in tf.nest.flatten(y_true)):
        wrong = {"no last axis": lambda y: y[..., 0]} | wrong
    right = evaluated(loss, mode, y_true, y_pred, tf.float32, how="eager")[0]
    for what, change in wrong.items():
        targets = tf.nest.map_structure(change, y_true)
        try:
            found = evaluated(loss, mode, targets, y_pred, tf.float32, how="eager")[0]
        except (TypeError, ValueError, tf.errors.OpError):
            continue
        if not np.array_equal(found, right):  # else it is another way to write the same targets
            shapes = f"{[np.shape(y) for y in tf.nest.flatten(targets)]} against {[np.shape(p) for p in tf.nest.flatten(y_pred)]}"
            return "fails", f"targets with {what} are taken, and broadcast: {shapes}"
    return "holds", ""


def _ways(loss: Loss, mode: str, rng: np.random.Generator) -> Outcome:
    y_true, y_pred = draw(loss, rng)
    dy = rng.uniform(0.5, 2.0, num_examples(loss, y_pred)).astype(np.float32)
    allowed = _rounding(loss, mode, y_true, y_pred, dy, rng)
    found = {}
    for how in ("graph", "eager", "xla") if loss.xla else ("graph", "eager"):
        found[how], again = (evaluated(loss, mode, y_true, y_pred, tf.float32, dy=dy, how=how) for _ in range(2))
        for name, first, second, graph, slack in zip(_PARTS, found[how], again, found["graph"], allowed, strict=True):
            problem = unequal(second, first, 0, f"the {name} is another the second time, {how}")
            problem = problem or unequal(first, graph, slack, f"the {name} is another in the way {how} than in a graph")
            if problem:
                return "fails", problem
    return "holds", "" if loss.xla else "XLA can't compile it, by declaration"


def _rounding(loss: Loss, mode: str, y_true: Tensors, y_pred: Tensors, dy: np.ndarray, rng: np.random.Generator) -> list[np.ndarray]:
    """By how much two ways of rounding in float32 may part: what moving the inputs by their last place changes."""

    def moved(array: np.ndarray) -> np.ndarray:
        return array if array.dtype.kind in "iub" else array * (1 + _CHANGE * rng.choice([-1, 1], array.shape))

    center = evaluated(loss, mode, y_true, y_pred, dy=dy)
    spread = [np.zeros_like(part) for part in center]
    for _ in range(4):
        targets = None if y_true is None else tf.nest.map_structure(moved, y_true)
        found = evaluated(loss, mode, targets, tf.nest.map_structure(moved, y_pred), dy=dy)
        spread = [np.fmax(s, np.abs(f - c)) for s, f, c in zip(spread, found, center, strict=True)]
    return [32 * _EPS * (s / _CHANGE + (np.abs(c) if c.ndim == 1 else sizes(c))) + 1e-37 for s, c in zip(spread, center, strict=True)]


def _batch_sizes(loss: Loss, mode: str, rng: np.random.Generator) -> Outcome:
    y_true, y_pred = draw(loss, rng)
    value, *_ = evaluated(loss, mode, y_true, y_pred)

    def any_batch(array: np.ndarray, dtype: tf.DType) -> tf.TensorSpec:
        return tf.TensorSpec([None, *array.shape[1:]], dtype if array.dtype.kind == "f" else array.dtype)

    targets = [] if y_true is None else [tf.nest.map_structure(lambda y: any_batch(y, tf.float64), y_true)]
    predictions = map_entries(lambda key, p: tf.TensorSpec(p.shape, tf.float64) if key in loss.shared else any_batch(p, tf.float64), y_pred)

    def value_alone(*inputs: Tensors) -> tf.Tensor:
        return per_example(loss, mode, inputs[0] if targets else None, inputs[-1])

    function = tf.function(value_alone, input_signature=[*targets, predictions], autograph=False)
    for num in (len(value), 1, 5):
        inputs = [cast(tensors, tf.float64) for tensors in take(loss, y_true, y_pred, slice(num)) if tensors is not None]
        found = function(*inputs).numpy()
        if not loss.coupled or num == len(value):
            problem = unequal(found, value[:num], 1e-9 * np.abs(value[:num]), f"the value of the first {num} examples of the batch alone")
            if problem:
                return "fails", problem
    traces = function.experimental_get_tracing_count()
    return ("holds", "") if traces == 1 else ("fails", f"{traces} traces for 3 batch sizes")


def _second_order(loss: Loss, mode: str, rng: np.random.Generator) -> Outcome:
    if mode == "analytic" and loss.contract == "surrogate" and loss.second_order == "auto":
        return "excepted", "what its gradient holds constant has no derivative that differences could tell"
    batch = units(loss, rng, *draw(loss, rng))
    step = direction(batch, rng)
    if mode == "analytic" and loss.second_order == "refuse":
        try:
            hessian_times(batch, mode, step)
        except LossError:
            return "holds", "refused, by declaration"
        return "fails", "it declares second_order = refuse, but gives one"
    if loss.second_order == "refuse":
        return "excepted", "it promises none"
    found = hessian_times(batch, mode, step)
    num = len(found)

    def line(t: np.ndarray) -> np.ndarray:
        return along(batch, mode, step, np.repeat(t[:, np.newaxis], num, axis=1))[1].reshape(len(t), -1)

    center = line(np.zeros(1))[0]
    expected, error = (part.reshape(found.shape) for part in differences.along(line, 16 * 2.0**-52 * np.abs(center)))
    size = np.maximum(sizes(expected), sizes(found))
    # Where it is 0, what differences leave of it is small beside the gradient, which the step would change by about its own size.
    known = error <= 1e-3 * size + 1e-7 * sizes(center.reshape(found.shape))
    problem = unequal(np.where(known, found, expected), expected, 1e-4 * size + 10 * error, "the second derivative along a direction")
    if problem:
        return "fails", f"{problem}, by differences of the gradient"
    return ("holds" if known.any() else "inconclusive"), f"{int(known.sum())} of {known.size} entries could be told by differences"


def _forward(loss: Loss, mode: str, rng: np.random.Generator) -> Outcome:
    if loss.second_order == "refuse":
        return "excepted", "forward mode differentiates the gradient's code, which it refuses by declaration"
    batch = units(loss, rng, *draw(loss, rng))
    step = direction(batch, rng)
    y_true, y_pred, tangents = cast(batch.y_true, tf.float64), cast(batch.y_pred, tf.float64), cast(step, tf.float64)

    @tf.function(autograph=False)  # in eager mode TensorFlow traces a function for every operation
    def forward() -> tf.Tensor | None:
        with tf.autodiff.ForwardAccumulator(tf.nest.flatten(y_pred), tf.nest.flatten(tangents)) as accumulator:
            value = per_example(loss, mode, y_true, y_pred)
        return accumulator.jvp(value)

    found = forward()
    if found is None:
        return "fails", "forward mode finds no path from the predictions to the value"
    _, gradient = evaluate(loss, mode, y_true, y_pred, batch.dy)
    products = batch.flat(gradient) * batch.flat(step)
    return outcome(
        unequal(batch.values(found.numpy()), products.sum(axis=1), 1e-9 * np.abs(products).sum(axis=1), "forward mode against the gradient")
    )


def reload(loss: Loss) -> Finding:
    """Whether a SavedModel that holds the loss gives the same value and gradient in another process. Takes an import of TensorFlow."""
    rng = np.random.default_rng(0)
    check, mode = "reloaded from a SavedModel in a new process", loss.modes[-1]
    y_true, y_pred = draw(loss, rng)
    y, p = cast(y_true, tf.float32), cast(y_pred, tf.float32)
    dy = rng.uniform(0.5, 2.0, num_examples(loss, y_pred)).astype(np.float32)
    module = tf.Module()
    num_targets = len(tf.nest.flatten(y)) if y is not None else 0
    tensors = [*(tf.nest.flatten(y) if y is not None else []), *tf.nest.flatten(p)]

    def value(*flat: tf.Tensor) -> tf.Tensor:
        targets = None if y is None else tf.nest.pack_sequence_as(y, flat[:num_targets])
        return per_example(loss, mode, targets, tf.nest.pack_sequence_as(p, flat[num_targets:]))

    module.value = tf.function(value, input_signature=[tf.TensorSpec(t.shape, t.dtype) for t in tensors], autograph=False)
    with tempfile.TemporaryDirectory() as folder:
        tf.saved_model.save(module, folder, signatures={}, options=tf.saved_model.SaveOptions(experimental_custom_gradients=True))
        inputs = {f"input{i:03}": t.numpy() for i, t in enumerate(tensors)}
        np.savez(Path(folder) / "inputs.npz", dy=dy, num_targets=num_targets, **inputs)
        done = subprocess.run([sys.executable, "-c", _ANOTHER_PROCESS, folder], capture_output=True, text=True, check=False)
        if done.returncode:
            cause = (done.stderr.strip().splitlines() or ["it died without a word"])[-1][:300]
            if not loss.xla and "PyFunc" in done.stderr:
                return Finding("structure", check, "excepted", "it runs code on the host, which is not saved", mode)
            return Finding("structure", check, "fails", f"loss {loss.name}: {cause}", mode)
        with np.load(Path(folder) / "outputs.npz") as outputs:
            found = [outputs[name] for name in sorted(outputs)]
    here, gradient = evaluate(loss, mode, y, p, dy)
    expected = [*(np.asarray(g) for g in tf.nest.flatten(gradient)), here]
    problems = [
        unequal(f, e, 1e-6 * np.abs(e[np.isfinite(e)]).max(initial=0), "in the other process") for f, e in zip(found, expected, strict=True)
    ]
    verdict, message = outcome(*problems)
    return Finding("structure", check, verdict, f"loss {loss.name}: {message}" if message else "", mode)


_ANOTHER_PROCESS = """
import pathlib, sys
import numpy as np
import tensorflow as tf

folder = pathlib.Path(sys.argv[1])
with np.load(folder / "inputs.npz") as inputs:
    dy, num_targets = inputs["dy"], int(inputs["num_targets"])
    tensors = [tf.constant(inputs[name]) for name in sorted(inputs) if name.startswith("input")]
value = tf.saved_model.load(str(folder)).value
with tf.GradientTape() as tape:
    tape.watch(tensors[num_targets:])
    found = value(*tensors)
gradients = tape.gradient(found, tensors[num_targets:], output_gradients=tf.constant(dy), unconnected_gradients="zero")
np.savez(folder / "outputs.npz", **{f"{i:03}": g for i, g in enumerate(gradients)}, value=found)
"""
