"""What a model's outputs mean: predictions in the units and by the names of the data."""

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow as tf

from losses.base import Loss, Tensors
from trainer.data.prepare import Part, Prepared
from trainer.learner import Learner

# Kinds of targets of which a loss's point prediction is of the same kind.
_PREDICTED = ("classes", "real", "binary", "counts", "interval", "series")


@dataclasses.dataclass(frozen=True)
class Reading:
    """How to read what a model gives for a loss on data."""

    loss: Loss
    data: Prepared

    @property
    def predicts(self) -> bool:
        """Whether there are predictions to compare with targets; otherwise there are outputs alone, such as embeddings and scores."""
        return self.data.task in _PREDICTED

    @property
    def is_output(self) -> bool:
        """Whether the prediction is the output itself, but for its unit."""
        return self.predicts and self.data.task != "classes" and type(self.loss).point is Loss.point

    def tensors(self, given: Tensors) -> list[tf.Tensor]:
        """Outputs [n, ...], and the predictions where there are any: classes as indices, all else standardized as the targets are."""
        outputs = self.loss.point(given) if isinstance(given, dict) else given
        if isinstance(outputs, dict):  # of a loss of one's own that makes nothing of them
            outputs = outputs[self.loss.entry]
        if not self.predicts:
            return [outputs]
        point = outputs if isinstance(given, dict) else self.loss.point(given)
        if self.data.task != "classes":
            return [outputs, point]
        if self.data.want == "binary" and point.shape[-1] == 1:
            return [outputs, tf.cast(point[..., 0] > 0.5, tf.int32)]
        return [outputs, tf.argmax(point, axis=-1, output_type=tf.int32)]

    def predictions(self, found: np.ndarray) -> np.ndarray:
        """Predictions in the data's units: float64 [n, ...], or int32 indices of classes [n, ...]."""
        return found if self.data.task == "classes" else self._in_units(found)

    def targets(self, targets: Any) -> dict[str, np.ndarray]:
        """Targets as predictions are, by name; empty where there are none."""
        if targets is None:
            return {}
        if isinstance(targets, dict):
            return {f"target_{name}": array for name, array in targets.items()}
        if self.data.task == "classes" and targets.dtype.kind == "f":  # indicators, or one column of 0 and 1
            return {"target": (targets[..., 0] > 0.5).astype(np.int32) if targets.shape[-1] == 1 else targets.argmax(axis=-1)}
        return {"target": targets if targets.dtype.kind != "f" else self._in_units(targets)}

    def named(self, classes: np.ndarray) -> np.ndarray:
        """Classes by their names, where they have any; anything else as it is."""
        is_class = self.data.task == "classes" and classes.dtype.kind == "i"
        return np.array(self.data.class_names)[classes] if is_class and self.data.class_names else classes

    def _in_units(self, values: np.ndarray) -> np.ndarray:
        values = values.astype(np.float64)
        return values if self.data.of_targets is None else self.data.of_targets.in_units(values)


def predict(learner: Learner, reading: Reading, part: Part, batch_size: int) -> Iterator[list[np.ndarray]]:
    """Outputs [n, ...] of some examples after the other, and their predictions, in the data's units, where there are any."""

    @tf.function(autograph=False, reduce_retracing=True)
    def of_batch(features: tf.Tensor) -> list[tf.Tensor]:
        return reading.tensors(learner.model(features, training=False))

    with learner.averaged():
        for start in range(0, len(part), batch_size):
            features = part.rows(np.arange(start, min(start + batch_size, len(part)))).features
            outputs, *found = (tensor.numpy() for tensor in of_batch(tf.constant(features)))
            yield [outputs, *map(reading.predictions, found)]
