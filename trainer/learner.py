"""What is trained, and its state as plain arrays."""

import contextlib
import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from losses.base import Loss
from trainer.errors import CheckpointError
from trainer.schema import LARGEST_LOSS_SCALE


class LossScale:
    """The factor of the loss that keeps gradients of half precision above 0, adapted to the largest that doesn't overflow.

    Args:
        initial: factor to begin with, >= 1.
        growth_steps: steps without overflow until it is doubled; an overflow halves it, down to 1.

    Source: P. Micikevicius et al. (2018), Mixed precision training, doi:10.48550/arXiv.1710.03740.
    """

    def __init__(self, initial: float, growth_steps: int) -> None:
        self.scale = tf.Variable(initial, dtype=tf.float32, trainable=False, name="scale")
        self.good = tf.Variable(0, dtype=tf.int32, trainable=False, name="good")  # steps since it was last changed
        self._growth_steps = growth_steps

    def adapt(self, finite: tf.Tensor) -> None:
        """After a step, whose gradients were all finite or not."""
        good = tf.where(finite, self.good + 1, 0)
        grows = good == self._growth_steps
        larger = tf.minimum(2 * self.scale, LARGEST_LOSS_SCALE)
        scale = tf.where(finite, tf.where(grows, larger, self.scale), tf.maximum(self.scale / 2, 1.0))
        self.scale.assign(scale)
        self.good.assign(tf.where(grows, 0, good))


@dataclasses.dataclass(frozen=True)
class Learner:
    """What a step works on: the model, its loss in a gradient mode, the optimizer, and the averaged weights where there are any."""

    model: keras.Model
    loss: Loss
    gradient_mode: str
    optimizer: keras.optimizers.Optimizer
    strategy: tf.distribute.Strategy | None  # None: one device without a strategy, which is faster than a strategy of one
    clip_norm: float | None = None
    ema_decay: float | None = None
    ema: Sequence[tf.Variable] = ()  # beside model.trainable_variables
    per_variable: bool = True
    scaler: LossScale | None = None
    seed: int = 0  # of layers' randomness
    penalized: bool = False  # whether layers add penalties to the loss

    @property
    def num_replicas(self) -> int:
        return self.strategy.num_replicas_in_sync if self.strategy else 1

    @property
    def variables(self) -> list[keras.Variable]:
        """What is trained."""
        return self.model.trainable_variables

    @property
    def state(self) -> list[keras.Variable]:
        """What a forward pass changes: moving averages, states of random generators."""
        return self.model.non_trainable_variables

    @property
    def tags(self) -> list[str]:
        """The names of a row's scalars, in order."""
        tags = ["loss", "grad_norm/global", "update_norm/global", "param_norm/global", "learning_rate"]
        tags += ["grad_norm/clipped"] if self.clip_norm else []
        tags += ["loss/regularization"] if self.penalized else []
        tags += ["loss_scale", "loss_scale/overflow"] if self.scaler else []
        if self.per_variable:
            tags += [f"grad_norm/{variable.path}" for variable in self.model.trainable_variables]
        return tags

    @contextlib.contextmanager
    def averaged(self) -> Iterator[None]:
        """Within it, the model has the averaged weights where there are any."""
        if not self.ema:
            yield
            return
        weights = self.model.trainable_variables
        own = [weight.numpy() for weight in weights]
        try:
            for weight, average in zip(weights, self.ema, strict=True):
                weight.assign(average)
            yield
        finally:
            for weight, value in zip(weights, own, strict=True):
                weight.assign(value)

    @property
    def num_bytes(self) -> int:
        """Of everything that learning changes."""
        return sum(math.prod(v.shape) * tf.as_dtype(v.dtype).size for v in self.named_variables().values())

    def capture(self) -> dict[str, np.ndarray]:
        """Copies, which .numpy() makes, of everything that learning has changed, by name."""
        return {name: np.asarray(variable.numpy()) for name, variable in self.named_variables().items()}

    def not_finite(self, arrays: dict[str, np.ndarray]) -> list[str]:
        """Names of captured weights, averaged ones included, that hold NaN or infinities."""
        trained = set(map(id, self.model.trainable_variables))
        weights = [name for name, variable in self.named_variables().items() if id(variable) in trained or name.startswith("ema/")]
        return [name for name in weights if not np.isfinite(arrays[name]).all()]

    def restore(self, arrays: dict[str, np.ndarray]) -> None:
        """Puts captured values back; CheckpointError where they are not of these variables."""
        variables = self.named_variables()
        differing = sorted(variables.keys() ^ arrays.keys()) or [
            name for name, v in variables.items() if tuple(v.shape) != arrays[name].shape
        ]
        if differing:
            raise CheckpointError(f"the checkpoint is of another model or optimizer: they differ in {', '.join(differing[:5])}")
        for name, variable in variables.items():
            variable.assign(arrays[name])

    def named_variables(self) -> dict[str, Any]:
        """Everything that learning changes, by the names of checkpoints."""
        groups = {"model": self.model.variables, "optimizer": self.optimizer.variables, "ema": self.ema}
        groups |= {"loss_scale": [self.scaler.scale, self.scaler.good]} if self.scaler else {}
        # By place and own name: the full path counts how many models and optimizers this process has made before.
        return {
            f"{group}/{i:04d}/{getattr(variable, 'path', '').rpartition('/')[2]}": variable
            for group, variables in groups.items()
            for i, variable in enumerate(variables)
        }
