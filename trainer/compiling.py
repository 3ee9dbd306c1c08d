"""How a job is compiled, and on how many threads it runs: a rule, the same on every run, or what measuring finds fastest."""

import contextlib
import gc
import itertools
import math
import os
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import keras
import tensorflow as tf

from losses.modes import per_example
from trainer import layers, randomness, schema
from trainer.chunk import Chunk
from trainer.data.prepare import Prepared, Split
from trainer.errors import ConfigError
from trainer.learner import Learner
from trainer.progress import say

_REPEATS = 5
_SECONDS = 0.3  # of one repeat
# In names of operations that are slow under XLA on the CPU: convolutions and random numbers; or can't be there: Python code.
_UNFIT = "Conv", "Random", "TruncatedNormal", "StandardNormal", "Multinomial", "StatefulUniform", "PyFunc"
_MANY_BYTES = 2**26  # of all that learning changes
_FEW_MULTIPLICATIONS = 2**22  # of a batch's forward pass: a fraction of a millisecond on one core


def set_threads(strategy: schema.Strategy, model: Mapping[str, Any], data: Prepared, batch_size: int) -> None:
    """Before TensorFlow starts: a shipped model that is small runs on one thread of the CPU, all others on those that TensorFlow takes.

    The operations of a step hang on one another: on two threads a small model loses more by handing them over than it gains, while
    convolutions and language models gain by a second one. TF_NUM_INTEROP_THREADS and TF_NUM_INTRAOP_THREADS in the environment,
    of which the first hands out operations and the second computes them, say otherwise; summary.json's steps_per_second tells.
    """
    if strategy.name not in ("auto", "one_device") or tf.config.list_physical_devices("GPU") or not _is_small(model, data, batch_size):
        return
    with contextlib.suppress(RuntimeError):  # TensorFlow runs already, in a process that did something else before
        if "TF_NUM_INTEROP_THREADS" not in os.environ:
            tf.config.threading.set_inter_op_parallelism_threads(1)
        if "TF_NUM_INTRAOP_THREADS" not in os.environ:
            tf.config.threading.set_intra_op_parallelism_threads(1)


def _is_small(model: Mapping[str, Any], data: Prepared, batch_size: int) -> bool:
    """Whether a shipped model of dense layers multiplies few numbers for a batch."""
    if model["_target_"] not in ("trainer.models.linear", "trainer.models.mlp"):
        return False
    outputs = model["num_outputs"] or data.num_classes or math.prod(data.target_shape)
    widths = [math.prod(data.features_shape), *model.get("hidden", ()), outputs]
    return batch_size * sum(a * b for a, b in itertools.pairwise(widths)) <= _FEW_MULTIPLICATIONS


def possible(learner: Learner) -> list[str]:
    """The ways in which a job can be compiled."""
    if not learner.loss.xla or synchronizes(learner):
        return ["graph"]
    return ["chunk", "step", "graph"] if learner.strategy is None else ["step", "graph"]


def synchronizes(learner: Learner) -> bool:
    """Whether replicas wait for each other within the model, which no compiled or repeated part of a step can hold."""
    return learner.strategy is not None and any(getattr(layer, "synchronized", False) for layer in layers.within(learner.model))


def normalizes(learner: Learner) -> bool:
    """Whether examples are normalized by others of their batch."""
    return any(isinstance(layer, keras.layers.BatchNormalization) and layer.trainable for layer in layers.within(learner.model))


def choose(settings: schema.Trainer, learner: Learner, data: Prepared, batch_size: int) -> str:
    """What `trainer.compile` comes to: "graph", "step", "chunk", or "measure", which is for `measure` to find out.

    On the CPU, XLA makes dense, recurrent and language models several times faster, and convolutions and the random numbers of Keras'
    own layers many times slower; a large language model with an output layer that belongs to its loss gains nothing, for more memory.
    What a job is made of is read from the operations of its forward pass, whatever layers they are in, and of its loss.
    `trainer.compile=measure` prints the times of a job.
    """
    setting = settings.compile
    if setting not in (*possible(learner), "auto", "measure"):
        reason = "it works on one replica only" if learner.loss.xla else f"the loss {learner.loss.name} can't be compiled by XLA"
        if setting == "step" and learner.loss.xla:
            reason = "replicas normalize their batches together, which no XLA program can hold"
        raise ConfigError(f"trainer.compile={setting}: {reason}: type trainer.compile={possible(learner)[0]}")
    if setting != "auto":
        return setting
    if "chunk" not in possible(learner) or tf.config.list_logical_devices("GPU"):
        return "graph"
    kinds = _operations(learner, data.first, batch_size // settings.accumulate)
    unfit = any(part in kind for kind in kinds for part in _UNFIT)
    has_softmax = "Softmax" in kinds  # as attention has
    return "graph" if unfit or (has_softmax and learner.loss.shared and learner.num_bytes > _MANY_BYTES) else "chunk"


def _operations(learner: Learner, example: Split, batch_size: int) -> set[str]:
    """The kinds of operations of the model's forward pass in training and of the loss, those within loops and conditions too."""

    @tf.function(autograph=False, input_signature=[tf.TensorSpec([batch_size, *a.shape[1:]], a.dtype) for a in example.arrays()])
    def forward(*arrays: tf.Tensor) -> None:
        batch = example.with_arrays(arrays)
        with keras.StatelessScope(), randomness.at(learner.seed, tf.constant(0), tf.range(batch_size)):
            predictions = learner.model(batch.features, training=True)
        mask = None if batch.weights is None else batch.weights > 0
        per_example(learner.loss, learner.gradient_mode, batch.targets, predictions, mask)

    graph = forward.get_concrete_function().graph.as_graph_def()
    return {node.op for nodes in (graph.node, *(function.node_def for function in graph.library.function)) for node in nodes}


def measure(learner: Learner, make: Callable[[str], Chunk], batches: Any, num_steps: int) -> tuple[str, Chunk]:
    """The fastest of the possible ways on the job itself, and its chunk; what was learned meanwhile is forgotten.

    Args:
        learner: what is trained.
        make: a chunk by its way.
        batches: what a chunk of `num_steps` takes.
        num_steps: K.
    """
    before = learner.capture()
    seconds: dict[str, float] = {}
    kept: dict[str, Chunk] = {}
    for way in possible(learner):
        chunk = make(way)
        try:
            seconds[way] = step_seconds(chunk, batches, num_steps)
        except tf.errors.InvalidArgumentError as error:
            if "tf2xla conversion failed" not in str(error):
                raise
            say(f"trainer.compile=measure: XLA can't compile {way}")
        learner.restore(before)
        if way == min(seconds, key=seconds.__getitem__, default=None):
            kept = {way: chunk}
        del chunk  # or the fastest so far: a slower one is let go, and its copy of the data with it
        gc.collect()
    [(best, fastest)] = kept.items()
    say(f"trainer.compile=measure: {best}, of {_listed(seconds)}")
    return best, fastest


def step_seconds(chunk: Chunk, batches: Any, most_steps: int) -> float:
    """The time of a step, the median of some chunks after the first, which is traced and compiled."""

    def timed(num_steps: int) -> float:
        started = time.perf_counter()
        num_done = int(chunk(batches, tf.constant(0), tf.constant(num_steps), tf.constant(0))[1])
        return (time.perf_counter() - started) / num_done

    timed(1)
    num_steps = max(1, min(most_steps, int(_SECONDS / timed(min(most_steps, 4)))))
    return statistics.median(timed(num_steps) for _ in range(_REPEATS))


def _listed(seconds: Mapping[str, float]) -> str:
    return ", ".join(f"{way} {1e3 * each:.3g} ms a step" for way, each in seconds.items())
