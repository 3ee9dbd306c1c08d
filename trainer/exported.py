"""A run's model alone, for other programs: made of Keras' own layers, written, and read again by a new process before it counts."""

import importlib.util
import logging
import os
import re
import shutil
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from losses import vectors
from trainer.errors import ConfigError
from trainer.heads import Shared, UnitBall
from trainer.layers import Dense, Dropout, GaussianNoise, within
from trainer.learner import Learner
from trainer.predictions import Reading
from trainer.sequences import Positions

NUM_ROWS = 64  # that a written model is tried on
# What may differ, in units of the largest output: between the model that is written and the run's, and between that and what is read again.
_TOLERANCE = 1e-5
_READ_AGAIN = {"keras": 1e-6, "savedmodel": 1e-6, "onnx": 1e-5}
_GRAPH_IN_HALF = {"mixed_bfloat16": 3e-2, "mixed_float16": 4e-3}  # four units of the last digit: a graph rounds at other places
_OURS = (Dense, Dropout, GaussianNoise, Positions, UnitBall)
_ONNX = ("tf2onnx", "onnx", "onnxruntime")

# In a process without this program. A batch of one example, and one of the others: neither may be what the file was made for.
_READ = """
import sys
sys.modules["trainer"] = sys.modules["losses"] = None
import numpy as np
form, path, rows, outputs = sys.argv[1:]
x = np.load(rows)
if form == "onnx":
    import onnxruntime
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    model = lambda x: session.run(None, {name: x})[0]
elif form == "keras":
    import keras
    loaded = keras.models.load_model(path, compile=False)
    model = lambda x: np.asarray(loaded(x, training=False))
else:
    import tensorflow as tf
    loaded = tf.saved_model.load(path)
    model = lambda x: loaded.serve(tf.constant(x)).numpy()
np.save(outputs, np.concatenate([model(part) for part in (x[:1], x[1:]) if len(part)]))
"""


def check_possible(form: str, policy: str) -> None:
    """Refuses a format that can't be written here, before anything is built.

    Raises:
        ConfigError: packages are missing, or the run's precision is none of the format's.
    """
    missing = [name for name in _ONNX if importlib.util.find_spec(name) is None] if form == "onnx" else []
    if missing:
        raise ConfigError(
            f"format=onnx needs the packages {', '.join(missing)}: type pip install 'gradtrain[onnx]', or from a checkout "
            "pip install -e '.[onnx]'; format=keras and format=savedmodel need none"
        )
    if form == "onnx" and policy != "float32":
        raise ConfigError(f"format=onnx takes models of precision=float32; this one has {policy}: type format=keras or format=savedmodel")


def export(learner: Learner, reading: Reading, features: np.ndarray, form: str, path: Path, policy: str) -> dict[str, Any]:
    """Writes the model and tries it; nothing is left where it does not give the same again.

    The model takes features as the data have them, and gives predictions in the data's units where the outputs are the predictions. Where
    a loss takes several items an example, the model is of one.

    Args:
        learner: at the state to be written.
        reading: of its outputs.
        features: [n, ...] of real examples, as the data have them.
        form: keras, savedmodel or onnx.
        path: of the file or folder that is made.
        policy: the run's precision.

    Returns:
        What is written beside it: what goes in and comes out, and how near it came.

    Raises:
        ConfigError: it can't be written, or does not give the same again.
    """
    with learner.averaged(), tf.device("CPU:0"):  # where it is read again
        model, in_units = standalone(learner, reading)
        strange = sorted({f"{type(layer).__module__}.{type(layer).__name__}" for layer in _foreign(model)})
        if form == "keras" and strange:
            raise ConfigError(
                f"format=keras: the model has classes of its own ({', '.join(strange)}), which a .keras file only names: "
                "type format=savedmodel"
            )
        rows = features.reshape(-1, *features.shape[2:]) if learner.loss.items else features
        given = np.concatenate([np.asarray(model(part, training=False)) for part in (rows[:1], rows[1:]) if len(part)])
        expected = _expected(learner, reading, features, in_units)
        if not np.isfinite(expected).all():
            raise ConfigError(
                f"format={form}: the outputs of the model are not finite on {len(features)} real examples, as where a run has diverged: "
                "type --checkpoint STEP of an earlier one"
            )
        off, at_most = _difference(given, expected), _READ_AGAIN[form]
        if form == "savedmodel":
            at_most = _GRAPH_IN_HALF.get(policy, at_most)
        if not off <= _TOLERANCE:
            raise ConfigError(
                f"format={form}: the model can't be written apart from its loss: {off:.1e} of its largest output would be lost "
                f"(at most {_TOLERANCE:g}); python -m trainer.predict predicts by it"
            )
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            folder = Path(tempfile.mkdtemp(prefix=".export-", dir=path.parent))
        except OSError as error:
            raise ConfigError(f"{path} can't be written: {error.strerror}: type --output PATH, in a folder that you may write") from error
        try:
            _write(model, form, folder / path.name)
            again = _difference(_read_again(form, folder / path.name, rows, folder), given)
            if not again <= at_most:
                raise ConfigError(
                    f"format={form}: read again, the model gives other outputs: they differ by {again:.1e} of the largest one (at most "
                    f"{at_most:g}); nothing is left of it: type another format"
                )
            (folder / path.name).rename(path)
        except OSError as error:
            raise ConfigError(f"{path} can't be written: {error}: type --output PATH, in a folder that you may write") from error
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    return {
        "inputs": _inputs(reading, rows),
        "outputs": _outputs(learner, reading, given, in_units),
        "checked": {
            "num_rows": len(rows),
            "read_again_in_a_new_process": {"largest_difference": again, "at_most": at_most, "to_the_bit": again == 0},
            "beside_the_run": {"largest_difference": off, "at_most": _TOLERANCE},
            "differences_are": "shares of the largest output",
        },
    }


def standalone(learner: Learner, reading: Reading) -> tuple[keras.Model, bool]:
    """A model of Keras' own layers, as far as the run's allows; and whether its outputs are predictions in the data's units."""
    first = reading.data.first.features
    shape = first.shape[2:] if learner.loss.items else first.shape[1:]
    inputs = keras.Input(shape, dtype=first.dtype.name, name="features")
    x = inputs
    if (scale := reading.data.of_features) is not None:
        # In float64, as training has it: a mean that is large beside its spread would take the digits of float32.
        x = keras.layers.Rescaling(1.0, offset=np.atleast_1d(-scale.mean), dtype="float64", name="from_mean")(x)
        x = keras.layers.Rescaling(np.atleast_1d(1 / scale.spread), dtype="float64", name="by_spread")(x)
        x = keras.layers.Identity(dtype="float32", name="standardized")(x)
    x = _outputs_of(learner, x)
    scale = reading.data.of_targets
    in_units = scale is not None and reading.is_output and np.size(scale.mean) in (1, x.shape[-1])
    if scale is not None and in_units:
        x = keras.layers.Rescaling(np.atleast_1d(scale.spread), np.atleast_1d(scale.mean), dtype="float64", name="in_units")(x)
        x = keras.layers.Identity(dtype="float32", name="prediction")(x)
    return keras.Model(inputs, x, name="exported"), in_units


def _outputs_of(learner: Learner, x: keras.KerasTensor) -> keras.KerasTensor:
    """What the model makes of standardized features, of one item where the loss takes several."""
    model, loss = learner.model, learner.loss
    around = {type(layer): layer for layer in model.layers if isinstance(layer, UnitBall | Shared)}
    shared = around.get(Shared)
    if loss.items:
        inner = next(layer for layer in model.layers if isinstance(layer, keras.Model))
        x = _plain(inner)(x)
        x = _plain(around[UnitBall])(x) if UnitBall in around else x
    else:
        x = _plain(model if shared is None else keras.Model(model.input, shared.input, name=model.name))(x)
    if shared is None:
        return x
    weights = {name: weight.numpy() for name, weight in shared.owned.items()}
    if weights.keys() == {"kernel", "bias"}:
        return _dense("logits", weights["kernel"], weights["bias"])(x)
    if weights.keys() == {"centers"}:
        x = keras.layers.UnitNormalization(dtype="float32", name="direction")(x)
        return _dense("cosines", vectors.direction(tf.constant(weights["centers"])).numpy().T)(x)
    return x


def _dense(name: str, kernel: np.ndarray, bias: np.ndarray | None = None) -> keras.layers.Dense:
    layer = keras.layers.Dense(kernel.shape[1], use_bias=bias is not None, dtype="float32", name=name)
    layer.build((None, kernel.shape[0]))
    layer.set_weights([kernel] if bias is None else [kernel, bias])
    return layer


def _plain(layer: Any) -> Any:
    """A layer, or another that does the same outside of training, without this program."""
    if isinstance(layer, Dropout):
        return keras.layers.Dropout(layer.rate, dtype=layer.dtype_policy, name=layer.name)
    if isinstance(layer, GaussianNoise):
        return keras.layers.GaussianNoise(layer.stddev, dtype=layer.dtype_policy, name=layer.name)
    if isinstance(layer, Dense):
        plain = keras.layers.Dense.from_config(layer.get_config())
        plain.build(layer.input.shape)
        plain.set_weights(layer.get_weights())
        return plain
    if isinstance(layer, Positions):
        return _positions(layer)
    if isinstance(layer, UnitBall):
        return _unit_ball(layer)
    of_keras = type(layer).__module__.startswith("keras.")
    if isinstance(layer, keras.Model) and of_keras and any(isinstance(inner, _OURS) for inner in within(layer)):
        return keras.models.clone_model(layer, clone_function=_plain)
    return layer


def _positions(layer: Positions) -> keras.layers.Layer:
    """Times 1, plus a bias for every position."""
    length, width = layer.positions.shape
    plain = keras.layers.EinsumDense("abc,c->abc", (length, width), bias_axes="bc", dtype=layer.dtype_policy, name=layer.name)
    plain.build((None, length, width))
    plain.set_weights([np.ones(width, np.float32), layer.positions.numpy()])
    return plain


def _unit_ball(layer: UnitBall) -> keras.Model:
    inputs = keras.Input(layer.input.shape[1:], dtype="float32")
    square = keras.ops.sum(keras.ops.square(inputs), axis=-1, keepdims=True)
    return keras.Model(inputs, inputs / (1 + keras.ops.sqrt(1 + square)), name=layer.name)


def _foreign(model: keras.Model) -> list[Any]:
    return [layer for layer in within(model) if not type(layer).__module__.startswith("keras.")]


def _expected(learner: Learner, reading: Reading, features: np.ndarray, in_units: bool) -> np.ndarray:
    """What the run's own model gives."""
    scale = reading.data.of_features
    prepared = features if scale is None else scale.standardized(features.astype(np.float64)).astype(np.float32)
    outputs = reading.tensors(learner.model(tf.constant(prepared), training=False))[0].numpy()
    return reading.predictions(outputs) if in_units else outputs


def _difference(found: np.ndarray, expected: np.ndarray) -> float:
    """The largest one, as a share of the largest number; infinite where it can't be told."""
    if found.size != expected.size or not (np.isfinite(found).all() and np.isfinite(expected).all()):
        return float("inf")
    apart = np.abs(found.astype(np.float64).ravel() - expected.astype(np.float64).ravel()).max()
    return float(apart / max(np.abs(expected).max(), np.finfo(np.float32).tiny))


def _write(model: keras.Model, form: str, path: Path) -> None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Keras' and its converters', about NumPy
            logging.disable()  # what a converter logs of an operation, the file that can't be read will tell
            if form == "keras":
                model.save(path)
            else:
                model.export(str(path), format="onnx" if form == "onnx" else "tf_saved_model", verbose=False)
    except OSError:
        raise
    except Exception as error:  # a converter that does not know an operation says so in whatever way
        line = str(error).strip().partition("\n")[0]
        raise ConfigError(f"format={form}: the model can't be converted: {type(error).__name__}: {line}: type another format") from error
    finally:
        logging.disable(logging.NOTSET)


def _read_again(form: str, path: Path, rows: np.ndarray, folder: Path) -> np.ndarray:
    """The outputs for the rows, of a process that knows nothing of this program."""
    np.save(folder / "rows.npy", rows)
    quiet = {"TF_CPP_MIN_LOG_LEVEL": "2", "CUDA_VISIBLE_DEVICES": "-1"}  # this process may have all of a GPU's memory
    line = [sys.executable, "-P", "-c", _READ, form, str(path), str(folder / "rows.npy"), str(folder / "outputs.npy")]
    done = subprocess.run(line, env=os.environ | quiet, capture_output=True, text=True, errors="replace", check=False)
    if done.returncode:
        said = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
        unknown = re.search(r"No Op registered for (\w+)", said)
        said = f"ONNX has no operation {unknown[1]}" if unknown else said
        raise ConfigError(f"format={form}: the model can't be read again, and nothing is left of it: {said}: type another format")
    return np.load(folder / "outputs.npy", allow_pickle=False)


def _inputs(reading: Reading, rows: np.ndarray) -> dict[str, Any]:
    data = reading.data
    tokens = {"tokens": list(data.class_names) if len(data.class_names) == data.num_tokens else data.num_tokens}
    scale = None if data.of_features is None else {"mean": data.of_features.mean.tolist(), "spread": data.of_features.spread.tolist()}
    return {"name": "features", "shape": [None, *rows.shape[1:]], "dtype": rows.dtype.name} | (
        tokens
        if data.num_tokens
        else {"names": list(data.feature_names) or None, "are": "as the data have them", "standardized_inside_by": scale}
    )


def _outputs(learner: Learner, reading: Reading, given: np.ndarray, in_units: bool) -> dict[str, Any]:
    data, scale = reading.data, reading.data.of_targets
    if in_units:
        meaning = "predictions, in the units of the data's targets"
    elif learner.loss.items:
        meaning = "of one item, whatever the loss makes of several"
    elif data.task == "classes":
        meaning = "for each class: the largest is the predicted one's" if given.shape[-1] > 1 else "of yes or no, as the loss takes it"
    else:
        meaning = f"as the loss {learner.loss.name} takes them" + (", for targets standardized by" if scale is not None else "")
    told: dict[str, Any] = {"shape": [None, *given.shape[1:]], "dtype": given.dtype.name, "are": meaning, "loss": learner.loss.name}
    if data.class_names and data.task == "classes":
        told["class_names"] = list(data.class_names)
    if scale is not None and not in_units:
        told |= {"target_mean": np.asarray(scale.mean).tolist(), "target_spread": np.asarray(scale.spread).tolist()}
    return told
