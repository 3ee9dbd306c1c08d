"""The end of a model: its outputs shaped as the loss takes them, and the weights that belong to the loss."""

from collections.abc import Mapping, Sequence

import keras
import tensorflow as tf

from losses.base import Loss


class UnitBall(keras.layers.Layer):
    """Points of any length to points within the unit ball, x / (1 + sqrt(1 + |x|^2)): the hyperboloid's stereographic projection."""

    def call(self, x: keras.KerasTensor) -> keras.KerasTensor:
        square = keras.ops.sum(keras.ops.square(x), axis=-1, keepdims=True)
        return x / (1 + keras.ops.sqrt(1 + square))


class Shared(keras.layers.Layer):
    """Owns weights that the loss takes for the whole batch, and hands them over beside what is computed for every example.

    Args:
        entry: the name of what is computed.
        shapes: of the weights, by name.
    """

    def __init__(self, entry: str, shapes: Mapping[str, Sequence[int]], **keywords: object) -> None:
        super().__init__(**keywords)
        self.entry = entry
        self.owned = {
            name: self.add_weight(shape=tuple(shape), initializer="glorot_uniform" if len(shape) > 1 else "zeros", name=name)
            for name, shape in shapes.items()
        }

    def call(self, x: keras.KerasTensor) -> dict[str, keras.KerasTensor]:
        return {self.entry: x} | {name: tf.convert_to_tensor(weight) for name, weight in self.owned.items()}


def attach(
    model: keras.Model, loss: Loss, inputs: keras.KerasTensor, shape: Sequence[int | None], flat: bool, kind: str, num_classes: int | None
) -> keras.Model:
    """The model with what the loss asks for around it; the model itself where that is nothing.

    Args:
        model: of an example's features, or of one item's where the loss takes several items an example.
        loss: what it is for.
        inputs: a `keras.Input` for the features of whole examples.
        shape: what the loss takes for one example, or one item: `loss.output_shape`.
        flat: whether the model gives [batch, outputs], to be shaped; otherwise it is shaped already.
        kind: of the targets; points of the ball are predicted within it.
        num_classes: for the shared weights.

    Returns:
        A model of `inputs`. Items are put beside each other in the batch: one call of the model, however many.
    """
    reshaped = flat and len(shape) != 1
    if not (loss.items or loss.shared or reshaped or kind == "ball"):
        return model
    x = model(keras.ops.reshape(inputs, (-1, *inputs.shape[2:])) if loss.items else inputs)
    # float32 in every precision, as the models' own last layers.
    if kind == "ball":
        x = UnitBall(dtype="float32", name="unit_ball")(x)
    one = tuple(shape) if reshaped else tuple(x.shape[1:])
    if loss.items or reshaped:
        x = keras.ops.reshape(x, (-1, inputs.shape[1], *one) if loss.items else (-1, *one))
    if loss.shared:
        x = Shared(loss.entry, loss.shared_shapes(x.shape[-1], num_classes or 0), dtype="float32", name="shared")(x)
    return keras.Model(inputs, x, name=f"{model.name}_for_{loss.name}")
