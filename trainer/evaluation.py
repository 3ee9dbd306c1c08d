"""Evaluation: the loss and the metrics that suit the task, over every example once."""

import dataclasses
import math
from collections.abc import Callable, Iterator

import numpy as np
import tensorflow as tf

from losses.base import Loss, Tensors
from losses.modes import measures
from trainer.data.prepare import Part, Prepared, Split
from trainer.data.stream import ahead
from trainer.learner import Learner

_BATCH_SIZE = 512
_STREAMED_BYTES = 2**24  # of a batch that is streamed, where batches may have any size
_METRICS = {"classes": ["eval/accuracy"], "real": ["eval/mae", "eval/r2"], "counts": ["eval/deviance", "eval/mae"]}


def metric_names(loss: Loss, task: str) -> list[str]:
    """The tags that an evaluation gives."""
    return ["eval/loss", *_task_metrics(loss, task), *(f"eval/{name}" for name in loss.metric_names)]


def _task_metrics(loss: Loss, task: str) -> list[str]:
    """Those that compare point predictions with targets; none where the loss measures one of them itself."""
    names = _METRICS.get(task, [])
    return [] if {f"eval/{name}" for name in loss.metric_names} & set(names) else names


def make_evaluate(learner: Learner, data: Prepared, batch_size: int) -> Callable[[], dict[str, float]]:
    """The function that evaluates the model as it is.

    It gives "eval/loss"; by task "eval/accuracy" (of sequences, over all positions), "eval/mae" and "eval/r2" (in the source's units,
    averaged over target columns), or "eval/deviance" (mean Poisson deviance) and "eval/mae"; and what the loss measures itself. No
    gradient is computed.

    Args:
        learner: its model and loss.
        data: its evaluation part.
        batch_size: of training: examples that a loss takes together, and sequences of tokens, are evaluated so many at a time.
    """
    loss = learner.loss
    of_task = _task_metrics(loss, data.task)
    batch_size = batch_size_of(learner, data, batch_size)

    def batch_sums(features: tf.Tensor, target: Tensors, weight: tf.Tensor) -> tf.Tensor:
        """Of a batch: the weights' sum, and the weighed sums of loss and metrics, float64."""
        predictions = learner.model(features, training=False)
        values, *own = measures(loss, target, predictions, weight > 0)
        columns = [values, *(_metric_columns(data, target, loss.point(predictions)) if of_task else []), *own]
        columns = [tf.cast(column, tf.float64) for column in columns]
        weight = tf.cast(weight, tf.float64)
        return tf.stack([tf.reduce_sum(weight), *(tf.reduce_sum(tf.math.multiply_no_nan(column, weight)) for column in columns)])

    sums = (_resident_sums if data.resident else _streamed_sums)(data, batch_size, batch_sums)

    def evaluate() -> dict[str, float]:
        with learner.averaged():
            total, *columns = sums().numpy().tolist()
        means = [column / total for column in columns]
        own = means[len(means) - len(loss.metric_names) :]
        compared = means[1 : len(means) - len(own)]
        return dict(zip(metric_names(loss, data.task), [means[0], *(_metrics(data, compared) if of_task else []), *own], strict=True))

    return evaluate


def batch_size_of(learner: Learner, data: Prepared, batch_size: int) -> int:
    """How many examples are evaluated at a time."""
    if not (learner.loss.coupled or data.num_tokens is not None):
        batch_size = _BATCH_SIZE if data.resident else max(1, min(_BATCH_SIZE, _STREAMED_BYTES // data.first.features.nbytes))
    return min(batch_size, len(data.evaluation))


@dataclasses.dataclass(frozen=True)
class Evaluated:
    """Some examples, one after the other, and what an evaluation finds of each."""

    examples: Split
    losses: np.ndarray  # [n]
    read: list[np.ndarray]  # [n, ...] what was asked for of the model's outputs


def each(learner: Learner, data: Prepared, batch_size: int, read: Callable[[Tensors], list[tf.Tensor]]) -> Iterator[Evaluated]:
    """Every example of the evaluation part, in the batches of `make_evaluate`.

    Args:
        learner: its model and loss.
        data: its evaluation part.
        batch_size: of training.
        read: makes tensors [batch, ...] of what the model gives.
    """
    part, batch_size = data.evaluation, batch_size_of(learner, data, batch_size)

    @tf.function(autograph=False)
    def of_batch(*arrays: tf.Tensor) -> list[tf.Tensor]:
        batch = dataclasses.replace(data.first, weights=np.ones(1)).with_arrays(arrays)
        predictions = learner.model(batch.features, training=False)
        mask = tf.convert_to_tensor(batch.weights) > 0
        return [measures(learner.loss, batch.targets, predictions, mask)[0], *read(predictions)]

    with learner.averaged():
        for start in range(0, len(part), batch_size):
            num = min(batch_size, len(part) - start)
            losses, *found = (tensor.numpy()[:num] for tensor in of_batch(*map(tf.constant, _padded(part, start, batch_size).arrays())))
            yield Evaluated(part.rows(np.arange(start, start + num)), losses, found)


def _padded(part: Part, start: int, batch_size: int) -> Split:
    """A batch with the last example again and again after the end, of weight 0 there."""
    positions = start + np.arange(batch_size)
    batch = part.rows(np.minimum(positions, len(part) - 1))
    weight = np.where(positions < len(part), 1.0 if batch.weights is None else batch.weights, 0.0)
    return dataclasses.replace(batch, weights=weight.astype(np.float32))


_BatchSums = Callable[[tf.Tensor, Tensors, tf.Tensor], tf.Tensor]  # of features, targets and weights


def _resident_sums(data: Prepared, batch_size: int, batch_sums: _BatchSums) -> Callable[[], tf.Tensor]:
    """Sums over the evaluation part, put on the device; the last batch is padded, and its padding masked."""
    part = data.evaluation
    assert isinstance(part, Split)
    num_examples = len(part)
    num_batches = math.ceil(num_examples / batch_size)
    features, targets = tf.constant(part.features), None if part.targets is None else tf.nest.map_structure(tf.constant, part.targets)
    weights = tf.ones(num_examples) if part.weights is None else tf.constant(part.weights)

    @tf.function(autograph=False)
    def sums() -> tf.Tensor:
        def body(k: tf.Tensor, rows: tf.TensorArray) -> tuple[tf.Tensor, tf.TensorArray]:
            positions = k * batch_size + tf.range(batch_size)
            rows_of_batch = tf.minimum(positions, num_examples - 1)
            weight = tf.where(positions < num_examples, tf.gather(weights, rows_of_batch), 0.0)
            target = None if targets is None else tf.nest.map_structure(lambda y: tf.gather(y, rows_of_batch), targets)
            return k + 1, rows.write(k, batch_sums(tf.gather(features, rows_of_batch), target, weight))

        rows = tf.TensorArray(tf.float64, size=num_batches, infer_shape=False)
        _, rows = tf.while_loop(lambda k, _: k < num_batches, body, (tf.constant(0), rows), parallel_iterations=1)
        return tf.reduce_sum(rows.stack(), axis=0)

    return sums


def _streamed_sums(data: Prepared, batch_size: int, batch_sums: _BatchSums) -> Callable[[], tf.Tensor]:
    """The same, batch by batch, read ahead by threads."""
    part = data.evaluation
    num_examples = len(part)

    def read(start: int) -> list[tf.Tensor]:
        return [tf.constant(array) for array in _padded(part, start, batch_size).arrays()]

    @tf.function(autograph=False)
    def of_batch(*arrays: tf.Tensor) -> tf.Tensor:
        batch = dataclasses.replace(data.first, weights=np.ones(1)).with_arrays(arrays)
        return batch_sums(batch.features, batch.targets, batch.weights)

    def sums() -> tf.Tensor:
        rows = [of_batch(*arrays) for arrays in ahead(read, range(0, num_examples, batch_size), part.num_readers)]
        return tf.reduce_sum(tf.stack(rows), axis=0)

    return sums


def _metric_columns(data: Prepared, targets: Tensors, point: tf.Tensor) -> list[tf.Tensor]:
    """Per-example columns, float64 [batch] each, whose weighted means `_metrics` turns into metrics."""
    if data.task == "classes":
        if targets.dtype.is_integer:
            correct = tf.equal(tf.argmax(point, axis=-1, output_type=tf.int32), targets)  # [batch], or [batch, length]
        elif targets.shape[-1] == 1:
            correct = tf.equal(point[:, 0] > 0.5, targets[:, 0] > 0.5)
        else:
            correct = tf.equal(tf.argmax(point, axis=-1), tf.argmax(targets, axis=-1))
        correct = tf.cast(correct, tf.float64)
        return [tf.reduce_mean(tf.reshape(correct, [tf.shape(correct)[0], -1]), axis=1)]
    y = tf.cast(targets, tf.float64)  # [batch, dim]
    p = tf.cast(point, tf.float64)
    if data.task == "counts":
        deviance = 2 * (tf.math.xlogy(y, y) - tf.math.xlogy(y, p) - (y - p))
        return [tf.reduce_mean(deviance, axis=-1), tf.reduce_mean(tf.abs(y - p), axis=-1)]
    absolute = tf.reduce_mean(tf.abs(y - p) * data.target_scale, axis=-1)
    return [absolute, *tf.unstack(tf.square(y - p), axis=-1), *tf.unstack(y, axis=-1), *tf.unstack(tf.square(y), axis=-1)]


def _metrics(data: Prepared, means: list[float]) -> list[float]:
    """The values of `_METRICS` for the task."""
    if data.task != "real":
        return means
    dim = (len(means) - 1) // 3
    residual, mean, square = means[1 : 1 + dim], means[1 + dim : 1 + 2 * dim], means[1 + 2 * dim :]
    variance = [s - m * m for s, m in zip(square, mean, strict=True)]
    r2 = [1 - r / v if v > 0 else math.nan for r, v in zip(residual, variance, strict=True)]
    return [means[0], sum(r2) / dim]
