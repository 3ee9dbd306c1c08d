"""What is trained, and its state as plain arrays."""

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from losses.base import Loss
from trainer.errors import CheckpointError


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

    @property
    def num_replicas(self) -> int:
        return self.strategy.num_replicas_in_sync if self.strategy else 1

    @property
    def weights(self) -> list[Any]:
        """The trainable variables, as TensorFlow's."""
        return [variable.value for variable in self.model.trainable_variables]

    @property
    def tags(self) -> list[str]:
        """The names of a row's scalars, in order."""
        tags = ["loss", "grad_norm/global", "update_norm/global", "param_norm/global", "learning_rate"]
        tags += ["grad_norm/clipped"] if self.clip_norm else []
        tags += ["loss/regularization"] if self.model.losses else []
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

    def capture(self) -> dict[str, np.ndarray]:
        """Copies of everything that learning has changed, by name."""
        return {name: np.array(variable.numpy()) for name, variable in self._variables().items()}

    def restore(self, arrays: dict[str, np.ndarray]) -> None:
        """Puts captured values back; CheckpointError where they are not of these variables."""
        variables = self._variables()
        differing = sorted(variables.keys() ^ arrays.keys()) or [
            name for name, v in variables.items() if tuple(v.shape) != arrays[name].shape
        ]
        if differing:
            raise CheckpointError(f"the checkpoint is of another model or optimizer: they differ in {', '.join(differing[:5])}")
        for name, variable in variables.items():
            variable.assign(arrays[name])

    def _variables(self) -> dict[str, Any]:
        groups = {"model": self.model.variables, "optimizer": self.optimizer.variables, "ema": self.ema}
        # By place and own name: the full path counts how many models and optimizers this process has made before.
        return {
            f"{group}/{i:04d}/{getattr(variable, 'path', '').rpartition('/')[2]}": variable
            for group, variables in groups.items()
            for i, variable in enumerate(variables)
        }
