"""The audit: while training, both gradients of the loss compared on the live batch, and the wrong one named where they part."""

import dataclasses
from collections.abc import Callable

import numpy as np
import tensorflow as tf

from losses.base import Tensors
from losses.modes import per_example
from losses.proof import start
from trainer.data.prepare import Split
from trainer.learner import Learner
from trainer.progress import say

TAGS = tuple(f"gradient_audit/{name}" for name in ("relative_error", "cosine", "norm_ratio", "nonfinite_auto", "nonfinite_analytic"))


@dataclasses.dataclass
class Audit:
    """Says who is wrong where the gradients of the loss by the predictions (not of the model by its weights) part.

    Float64 is asked where they part for the 1st, 2nd, 4th, 8th, ... time, as a surrogate's do on purpose, or where auto is known to be
    wrong; the measures are recorded every time.

    Args:
        learner: what is trained.
        examples: gives examples of the training part by their indices.
        stops: whether a wrong gradient in the mode that trains ends the run; else it is said once, and once for each mode.
    """

    learner: Learner
    examples: Callable[[np.ndarray], Split]
    stops: bool

    def __post_init__(self) -> None:
        self._said: set[str] = set()
        self._num_parted = 0

    def __call__(self, step: int, indices: np.ndarray) -> str | None:
        """Decides about the batch of a step at which the gradients have parted; why the run must stop, or None."""
        self._num_parted += 1
        if self._num_parted & (self._num_parted - 1):
            return None
        batch = self.examples(indices)
        if batch.weights is not None:
            batch = batch.rows(batch.weights > 0)
        predictions = self.learner.model(tf.constant(batch.features), training=False)
        report = start.verify(self.learner.loss, batch.targets, predictions, seed=step)
        wrong = {"analytic": not report.ok, "auto": not report.auto_agrees}
        for mode, message in (("analytic", report.message), ("auto", report.auto_message)):
            if not wrong[mode] or (mode == "auto" and self.learner.loss.contract == "surrogate"):
                continue  # a surrogate's auto differs on purpose
            if self.stops and mode == self.learner.gradient_mode:
                return f"gradient_audit at step {step}: {message}. The run trains by gradient={mode} and is stopped; the state is saved"
            if mode not in self._said:
                self._said.add(mode)
                say(f"warning: gradient_audit at step {step}: {message}; further audits are in metrics.jsonl alone")
        return None


def measure(learner: Learner, batch: tuple, is_due: tf.Tensor, tolerance: float) -> tuple[tf.Tensor, tf.Tensor]:
    """Compares the gradients of the loss by the model's predictions for a batch, if that is due.

    Args:
        learner: its model and loss.
        batch: features, targets and weights (or None).
        is_due: bool [].
        tolerance: relative error from which on they part.

    Returns:
        The measures, float32 [len(TAGS)]: relative_error, cosine and norm_ratio (analytic by auto) of what is finite in both, and the
        numbers of entries that are not in auto and in analytic; 0 where nothing is due. And whether the gradients part.
    """
    # A loop of one round or none instead of tf.cond: TensorFlow's optimizer can't sort a loss's loop within a condition within the chunk's.
    _, measures = tf.while_loop(
        lambda k, _: k < tf.cast(is_due, tf.int32), lambda k, _: (k + 1, _compare(learner, *batch)), (0, tf.zeros([len(TAGS)]))
    )
    return measures, ~(measures[0] <= tolerance) | (measures[3] > 0) | (measures[4] > 0)


def _compare(learner: Learner, features: tf.Tensor, targets: Tensors, weights: tf.Tensor | None) -> tf.Tensor:
    predictions = learner.model(features, training=False)
    analytic, auto = (_gradient(learner, mode, targets, predictions, weights) for mode in ("analytic", "auto"))
    both = tf.math.is_finite(analytic) & tf.math.is_finite(auto)
    a, b = tf.where(both, analytic, 0.0), tf.where(both, auto, 0.0)
    # Scaled, so that squares neither overflow nor vanish.
    scale = tf.reduce_max(tf.abs(tf.concat([a, b], axis=0)))
    a, b = tf.math.divide_no_nan(a, scale), tf.math.divide_no_nan(b, scale)
    norm_a, norm_b = tf.norm(a), tf.norm(b)
    neither = tf.maximum(norm_a, norm_b) == 0
    relative = tf.where(neither, 0.0, tf.norm(a - b) / norm_b)
    cosine = tf.where(neither, 1.0, tf.math.divide_no_nan(tf.reduce_sum(a * b), norm_a * norm_b))
    ratio = tf.where(neither, 1.0, norm_a / norm_b)
    nonfinite = [tf.reduce_sum(tf.cast(~tf.math.is_finite(g), tf.float32)) for g in (auto, analytic)]
    return tf.stack([relative, cosine, ratio, *nonfinite])


def _gradient(learner: Learner, mode: str, targets: Tensors, predictions: Tensors, weights: tf.Tensor | None) -> tf.Tensor:
    """The gradient of the weighed sum of the losses by all predictions, one after the other."""
    with tf.GradientTape() as tape:
        tape.watch(tf.nest.flatten(predictions))
        value = per_example(learner.loss, mode, targets, predictions, None if weights is None else weights > 0)
    dy = None if weights is None else tf.cast(weights, value.dtype)
    gradients = tape.gradient(value, tf.nest.flatten(predictions), output_gradients=dy, unconnected_gradients="zero")
    return tf.concat([tf.reshape(tf.cast(tf.convert_to_tensor(g), tf.float32), [-1]) for g in gradients], axis=0)
