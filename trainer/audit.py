"""The audit: while training, both gradients of the loss compared on the live batch, and the wrong one named where they part."""

import dataclasses
from collections.abc import Callable

import numpy as np
import tensorflow as tf

from losses.base import Tensors
from losses.modes import per_example
from losses.proof import start
from trainer.data.prepare import Prepared
from trainer.learner import Learner
from trainer.progress import say

TAGS = tuple(f"gradient_audit/{name}" for name in ("relative_error", "cosine", "norm_ratio", "nonfinite_auto", "nonfinite_analytic"))


@dataclasses.dataclass
class Audit:
    """Compares the gradients of the loss by the predictions, not of the model by its weights.

    Args:
        learner: what is trained.
        data: its examples.
        tolerance: relative error of one gradient by the other from which on float64 decides who is wrong.
        stops: whether a wrong gradient in the mode that trains ends the run; else it is said once, and once for each mode.
        xla: whether to compile it by XLA, as training is.
    """

    learner: Learner
    data: Prepared
    tolerance: float
    stops: bool
    xla: bool = False

    def __post_init__(self) -> None:
        self._compare = _make_compare(self.learner, self.xla)
        self._said: set[str] = set()

    def __call__(self, step: int, rows: np.ndarray) -> tuple[dict[str, float], str | None]:
        """The measures of one batch, `rows` of the training part, by tag, and why the run must stop, or None.

        relative_error, cosine and norm_ratio (analytic by auto) count what is finite in both; nonfinite_auto and nonfinite_analytic
        are numbers of entries.
        """
        batch = self.data.train.rows(rows)
        weights = None if batch.weights is None else tf.constant(batch.weights)
        predictions, packed = self._compare(batch.features, batch.targets, weights)
        measures = dict(zip(TAGS, packed.numpy().tolist(), strict=True))
        if not measures[TAGS[0]] <= self.tolerance or measures[TAGS[3]] or measures[TAGS[4]]:
            return measures, self._decide(step, batch.targets, predictions)
        return measures, None

    def _decide(self, step: int, targets: Tensors, predictions: Tensors) -> str | None:
        report = start.verify(self.learner.loss, targets, predictions, seed=step)
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


def _make_compare(learner: Learner, xla: bool) -> Callable[..., tuple[Tensors, tf.Tensor]]:
    @tf.function(autograph=False, jit_compile=xla)
    def compare(features: tf.Tensor, targets: Tensors, weights: tf.Tensor | None) -> tuple[Tensors, tf.Tensor]:
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
        return predictions, tf.stack([relative, cosine, ratio, *nonfinite])

    return compare


def _gradient(learner: Learner, mode: str, targets: Tensors, predictions: Tensors, weights: tf.Tensor | None) -> tf.Tensor:
    """The gradient of the weighed sum of the losses by all predictions, one after the other."""
    with tf.GradientTape() as tape:
        tape.watch(tf.nest.flatten(predictions))
        value = per_example(learner.loss, mode, targets, predictions, None if weights is None else weights > 0)
    dy = None if weights is None else tf.cast(weights, value.dtype)
    gradients = tape.gradient(value, tf.nest.flatten(predictions), output_gradients=dy, unconnected_gradients="zero")
    return tf.concat([tf.reshape(tf.cast(tf.convert_to_tensor(g), tf.float32), [-1]) for g in gradients], axis=0)
