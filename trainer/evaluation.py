"""Evaluation: the loss and the metrics that suit the task, over every example once."""

import math
from collections.abc import Callable

import tensorflow as tf

from losses.base import Tensors, per_example
from trainer.data.prepare import Prepared
from trainer.learner import Learner

_BATCH_SIZE = 512
_METRICS = {"classes": ["eval/accuracy"], "real": ["eval/mae", "eval/r2"], "counts": ["eval/deviance", "eval/mae"]}

LARGER_IS_BETTER = ("eval/accuracy", "eval/r2")


def metric_names(task: str) -> list[str]:
    """The tags that an evaluation gives."""
    return ["eval/loss", *_METRICS[task]]


def make_evaluate(learner: Learner, data: Prepared) -> Callable[[], dict[str, float]]:
    """The function that evaluates the model as it is.

    It gives "eval/loss" and, by task, "eval/accuracy"; "eval/mae" and "eval/r2" (in the source's units, averaged over target
    columns); "eval/deviance" (mean Poisson deviance) and "eval/mae". No gradient is computed.
    """
    part = data.evaluation
    num_examples = len(part)
    batch_size = min(_BATCH_SIZE, num_examples)
    num_batches = math.ceil(num_examples / batch_size)
    features, targets = tf.constant(part.features), tf.constant(part.targets)
    weights = tf.ones(num_examples) if part.weights is None else tf.constant(part.weights)

    @tf.function(autograph=False)
    def sums() -> tf.Tensor:
        def body(k: tf.Tensor, rows: tf.TensorArray) -> tuple[tf.Tensor, tf.TensorArray]:
            positions = k * batch_size + tf.range(batch_size)
            rows_of_batch = tf.minimum(positions, num_examples - 1)  # the last batch is padded, and its padding masked
            weight = tf.where(positions < num_examples, tf.gather(weights, rows_of_batch), 0.0)
            target = tf.gather(targets, rows_of_batch)
            predictions = learner.model(tf.gather(features, rows_of_batch), training=False)
            values = per_example(learner.loss, learner.gradient_mode, target, predictions, weight > 0)
            columns = [tf.cast(values, tf.float64), *_metric_columns(data, target, learner.loss.point(predictions))]
            weight = tf.cast(weight, tf.float64)
            weighted = [tf.reduce_sum(tf.math.multiply_no_nan(column, weight)) for column in columns]
            return k + 1, rows.write(k, tf.stack([tf.reduce_sum(weight), *weighted]))

        rows = tf.TensorArray(tf.float64, size=num_batches, infer_shape=False)
        _, rows = tf.while_loop(lambda k, _: k < num_batches, body, (tf.constant(0), rows), parallel_iterations=1)
        return tf.reduce_sum(rows.stack(), axis=0)

    def evaluate() -> dict[str, float]:
        with learner.averaged():
            total, loss, *columns = sums().numpy().tolist()
        means = [column / total for column in columns]
        return dict(zip(metric_names(data.task), [loss / total, *_metrics(data, means)], strict=True))

    return evaluate


def _metric_columns(data: Prepared, targets: Tensors, point: tf.Tensor) -> list[tf.Tensor]:
    """Per-example columns, float64 [batch] each, whose weighted means `_metrics` turns into metrics."""
    if data.task == "classes":
        if targets.dtype.is_integer:
            correct = tf.equal(tf.argmax(point, axis=-1, output_type=tf.int32), targets)
        elif targets.shape[-1] == 1:
            correct = tf.equal(point[:, 0] > 0.5, targets[:, 0] > 0.5)
        else:
            correct = tf.equal(tf.argmax(point, axis=-1), tf.argmax(targets, axis=-1))
        return [tf.cast(correct, tf.float64)]
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
