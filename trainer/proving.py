"""The check before training: the analytic gradient against differences of the loss's value, on the first real batch."""

import dataclasses

import numpy as np
import tensorflow as tf

from losses.base import Loss, map_entries
from losses.proof import start
from trainer.config import Job
from trainer.data.order import Order
from trainer.data.prepare import Prepared
from trainer.errors import ConfigError
from trainer.learner import Learner
from trainer.progress import say

_MOST_PROVED = 32  # targets, positions of sequences among them, on which a loss of a vocabulary, or with shared weights, is proved
_MOST_CLASSES = 521  # whose shared weights are proved together, the batch's among them: a prime, which ends in the middle of any block


def verify(job: Job, learner: Learner, data: Prepared, order: Order) -> str:
    """Proves the analytic gradient on the first real batch; what it found, for the summary. Refuses a wrong one.

    Of a vocabulary's positions it takes the first few, of the weights that a loss has for very many classes those of some classes.
    """
    if learner.gradient_mode != "analytic":
        return "not checked: the tape's"
    if not job.config.gradient.verify_at_start:
        return "not checked: gradient.verify_at_start=false"
    batch = data.train.rows(order.batches(0, 1)[0])
    if batch.weights is not None:
        batch = batch.rows(np.flatnonzero(batch.weights > 0))
    length = batch.targets.shape[1] if data.want == "classes" and batch.targets.ndim > 1 else 0  # of sequences of classes
    if learner.loss.shared or length:
        # A vocabulary's scores at every position are much to differentiate again and again; and a displacement of shared weights moves
        # all examples, so that each is a whole evaluation.
        batch = batch.rows(slice(max(2, _MOST_PROVED // max(1, length))))
    predictions = learner.model(tf.constant(batch.features), training=False)
    if length:  # a mean over positions: the first ones stand for all
        first = max(1, _MOST_PROVED // max(1, len(batch)))
        batch = dataclasses.replace(batch, targets=batch.targets[:, :first])
        predictions = map_entries(lambda key, p: p if key in learner.loss.shared else p[:, :first], predictions)
    report = None
    if learner.loss.shared and data.want == "classes" and data.num_classes and data.num_classes > _MOST_CLASSES:
        report = _proved_on_few(learner.loss, batch.targets, predictions, data.num_classes, job.config.seed)
    report = report or start.verify(learner.loss, batch.targets, predictions, job.config.seed)
    if not report.ok:
        raise ConfigError(f"{report.message}. The run has not begun")
    say(report.message if report.auto_agrees else f"{report.message}\n{report.auto_message}")
    inconclusive = f", {report.num_inconclusive} inconclusive" if report.num_inconclusive else ""
    return f"{report.num_checked} derivatives agree to {report.max_error:.1e}{inconclusive}"


def _proved_on_few(loss: Loss, targets: np.ndarray, predictions: dict[str, tf.Tensor], num_classes: int, seed: int) -> start.Report | None:
    """The report on fewer classes; None where that is not all well: a loss may count on all of its classes."""
    few_targets, few = _fewer_classes(loss, targets, predictions, num_classes)
    if few is predictions:
        return None
    try:
        report = start.verify(loss, few_targets, few, seed)
    except Exception:  # whatever a loss of one's own raises: it is proved whole then, and raises there what is its own
        return None
    return report if report.ok else None


def _fewer_classes(
    loss: Loss, targets: np.ndarray, predictions: dict[str, tf.Tensor], num_classes: int
) -> tuple[np.ndarray, dict[str, tf.Tensor]]:
    """The same batch, as if there were few classes: those of the targets, and some of the others; itself without weights for each class.

    Else each of the many displacements of a vocabulary's weights, and each gradient by them, would be as large as they are.
    """
    axes = [(key, axis) for key in loss.shared for axis, size in enumerate(predictions[key].shape) if size == num_classes]
    if not axes:
        return targets, predictions
    present = np.unique(targets)
    others = np.setdiff1d(np.arange(num_classes), present)
    kept = np.sort(np.concatenate([present, others[: max(0, _MOST_CLASSES - len(present))]]))
    few = dict(predictions)
    for key, axis in axes:
        few[key] = tf.gather(few[key], kept, axis=axis)
    return np.searchsorted(kept, targets).astype(targets.dtype), few
