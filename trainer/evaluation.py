"""Evaluation: the loss and the metrics that suit the task, over every example once."""

import math
from collections.abc import Callable

import tensorflow as tf

from losses.base import Loss, Tensors
from losses.modes import per_example
from trainer.data.prepare import Prepared
from trainer.learner import Learner

_BATCH_SIZE = 512
_METRICS = {"classes": ["eval/accuracy"], "real": ["eval/mae", "eval/r2"], "counts": ["eval/deviance", "eval/mae"]}

LARGER_IS_BETTER = ("eval/accuracy", "eval/r2", "eval/ndcg", "eval/spearman")


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
    part, loss = data.evaluation, learner.loss
    of_task = _task_metrics(loss, data.task)
    num_examples = len(part)
    batch_size = min(batch_size if learner.loss.coupled or data.num_tokens is not None else _BATCH_SIZE, num_examples)
    num_batches = math.ceil(num_examples / batch_size)
    features, targets = tf.constant(part.features), None if part.targets is None else tf.nest.map_structure(tf.constant, part.targets)
    weights = tf.ones(num_examples) if part.weights is None else tf.constant(part.weights)

    @tf.function(autograph=False)
    def sums() -> tf.Tensor:
        def body(k: tf.Tensor, rows: tf.TensorArray) -> tuple[tf.Tensor, tf.TensorArray]:
            positions = k * batch_size + tf.range(batch_size)
            rows_of_batch = tf.minimum(positions, num_examples - 1)  # the last batch is padded, and its padding masked
            weight = tf.where(positions < num_examples, tf.gather(weights, rows_of_batch), 0.0)
            target = None if targets is None else tf.nest.map_structure(lambda y: tf.gather(y, rows_of_batch), targets)
            predictions = learner.model(tf.gather(features, rows_of_batch), training=False)
            values = per_example(loss, "none", target, predictions, weight > 0)
            columns = [values, *(_metric_columns(data, target, loss.point(predictions)) if of_task else [])]
            columns = [tf.cast(column, tf.float64) for column in (*columns, *loss.metrics(target, predictions))]
            weight = tf.cast(weight, tf.float64)
            weighted = [tf.reduce_sum(tf.math.multiply_no_nan(column, weight)) for column in columns]
            return k + 1, rows.write(k, tf.stack([tf.reduce_sum(weight), *weighted]))

        rows = tf.TensorArray(tf.float64, size=num_batches, infer_shape=False)
        _, rows = tf.while_loop(lambda k, _: k < num_batches, body, (tf.constant(0), rows), parallel_iterations=1)
        return tf.reduce_sum(rows.stack(), axis=0)

    def evaluate() -> dict[str, float]:
        with learner.averaged():
            total, *columns = sums().numpy().tolist()
        means = [column / total for column in columns]
        own = means[len(means) - len(loss.metric_names) :]
        compared = means[1 : len(means) - len(own)]
        return dict(zip(metric_names(loss, data.task), [means[0], *(_metrics(data, compared) if of_task else []), *own], strict=True))

    return evaluate


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
