"""One update: forward, tape, one packed reduction over replicas, finiteness test, norms, clip, apply. Its scalars are one row.

What can be compiled apart is a pure function of (weights, state, batch); what changes variables comes after it.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from losses.modes import per_example
from trainer import randomness
from trainer.errors import ConfigError
from trainer.learner import Learner

Arrays = tuple[Any, ...]  # features, targets (a dict of them, or None) and weights (or None)
Gather = Callable[[tf.Tensor], Arrays]  # the examples of indices [n]
_Pure = tuple[list[tf.Tensor], list[tf.Tensor], list[tf.Tensor]]  # gradients, scalars [loss, regularization], new state


@dataclasses.dataclass(frozen=True)
class Update:
    """How updates are computed."""

    batch_size: int  # global; a multiple of replicas * accumulate
    compiled: str  # graph; step: the pure function is one XLA program; chunk: the caller makes all of it one
    accumulate: int = 1  # parts into which every replica's share of the batch is divided, one after another
    audit_every: int = 0  # steps between two comparisons of the gradient modes; 0: never
    guarded: bool = True  # whether an update that is not finite is left out; else it is made, and whoever asked for it undoes it


def run(learner: Learner, update: Update, gather: Gather, indices: tf.Tensor, step: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """One update.

    Args:
        learner: what is trained.
        update: how.
        gather: gives examples by their indices; called on every replica, for its share.
        indices: of the batch, int32 [batch_size].
        step: updates before this one, int32 [].

    Returns:
        The row, float32; whether loss and gradient are finite (where they are not, a guarded update is not applied, and what the
        forward pass did to other variables is not kept either); whether that is due to the loss scale alone.
    """
    gradients, scalars, state = backward(learner, update, gather, indices, step)
    squares = [_sum_of_squares(g, update) for g in gradients]
    norm = tf.sqrt(tf.add_n(squares))
    loss, regularization = scalars
    finite = tf.math.is_finite(norm) & tf.math.is_finite(loss)
    learning_rate = tf.cast(learner.optimizer.learning_rate, tf.float32)
    row = [loss, norm]
    if learner.clip_norm:
        clip = tf.minimum(1.0, learner.clip_norm / tf.maximum(norm, learner.clip_norm))
        gradients = [g * clip for g in gradients]
    before = [tf.identity(_read(w)) for w in learner.variables]
    if update.guarded:
        applied = tf.cond(finite, lambda: _apply(learner, gradients, state), lambda: tf.constant(0))
    else:
        applied = _apply(learner, gradients, state)
    with tf.control_dependencies([applied]):
        after = [tf.identity(_read(w)) for w in learner.variables]
    row += [_norm([a - b for a, b in zip(after, before, strict=True)], update), _norm(after, update), learning_rate]
    row += [norm * clip] if learner.clip_norm else []
    row += [regularization] if learner.penalized else []
    overflow = tf.constant(False)
    if learner.scaler:
        scale = tf.identity(learner.scaler.scale)
        overflow = tf.math.is_finite(loss) & ~tf.math.is_finite(norm) & (scale > 1)
        with tf.control_dependencies([scale, overflow]):
            learner.scaler.adapt(finite)
        row += [scale, tf.cast(overflow, tf.float32)]
    row += [tf.sqrt(square) for square in squares] if learner.per_variable else []
    return tf.stack(row), finite, overflow


def backward(learner: Learner, update: Update, gather: Gather, indices: tf.Tensor, step: tf.Tensor) -> _Pure:
    """The batch's gradients, float32, by every weight, its scalars, and the new state; takes what `run` takes, and changes nothing."""
    if learner.strategy is None:
        return _reduced(learner, update, gather, indices, step)
    gradients, scalars, state = learner.strategy.run(_reduced, args=(learner, update, gather, indices, step))
    return local(gradients), local(scalars), state


def _reduced(learner: Learner, update: Update, gather: Gather, indices: tf.Tensor, step: tf.Tensor) -> _Pure:
    """`_pure` of this replica's share of the batch, its gradients and scalars summed over the replicas in one packed reduction."""
    places = tf.range(update.batch_size)
    context = tf.distribute.get_replica_context()
    if learner.strategy is not None:
        places, indices = (tf.reshape(x, [learner.num_replicas, -1])[context.replica_id_in_sync_group] for x in (places, indices))
    pure: Callable[..., _Pure] = functools.partial(_pure, learner, update)
    if update.compiled == "step":
        pure = tf.function(pure, jit_compile=True, autograph=False)
    scale = tf.identity(learner.scaler.scale) if learner.scaler else None
    weights, state = ([tf.identity(v.value) for v in variables] for variables in (learner.variables, learner.state))
    gradients, scalars, state = pure(weights, state, gather(indices), places, step, scale)
    if learner.strategy is None:
        return gradients, scalars, state
    parts = [*gradients, *scalars]
    packed = context.all_reduce(tf.distribute.ReduceOp.SUM, tf.concat([tf.reshape(part, [-1]) for part in parts], axis=0))
    pieces = tf.split(packed, [part.shape.num_elements() for part in parts])
    reduced = [tf.reshape(piece, part.shape) for piece, part in zip(pieces, parts, strict=True)]
    return reduced[: len(gradients)], reduced[len(gradients) :], state


def _pure(
    learner: Learner,
    update: Update,
    weights: list[tf.Tensor],
    state: list[tf.Tensor],
    batch: Arrays,
    places: tf.Tensor,
    step: tf.Tensor,
    scale: tf.Tensor | None,
) -> _Pure:
    """Gradients, scalars and new state of one replica's share of the batch, part by part."""
    if update.accumulate == 1:
        return _part(learner, update, weights, state, batch, places, step, scale)

    def parts(tensor: tf.Tensor) -> tf.Tensor:
        return tf.reshape(tensor, [update.accumulate, -1, *tensor.shape[1:]])

    batch, places = each(parts, batch), parts(places)

    def body(i: tf.Tensor, gradients: list, scalars: list, state: list) -> tuple:
        part = each(lambda tensor: tensor[i], batch)
        more, more_scalars, state = _part(learner, update, weights, state, part, places[i], step, scale)
        return (
            i + 1,
            [g + m for g, m in zip(gradients, more, strict=True)],
            [s + m for s, m in zip(scalars, more_scalars, strict=True)],
            state,
        )

    start = tf.constant(0), [tf.zeros(w.shape) for w in weights], [tf.constant(0.0)] * 2, state
    return tf.while_loop(lambda i, *_: i < update.accumulate, body, start, parallel_iterations=1)[1:]


def _part(
    learner: Learner,
    update: Update,
    weights: list[tf.Tensor],
    state: list[tf.Tensor],
    batch: Arrays,
    places: tf.Tensor,
    step: tf.Tensor,
    scale: tf.Tensor | None,
) -> _Pure:
    """Gradients, float32, by every weight, scalars and new state of examples that go through the model together.

    Gradients and scalars are scaled by the global batch, so that their sum over parts and replicas is what one device would have.
    """
    features, targets, example_weights = batch
    values = [*zip(learner.variables, weights, strict=True), *zip(learner.state, state, strict=True)]
    with (
        tf.GradientTape(watch_accessed_variables=False) as tape,
        keras.StatelessScope(values, collect_losses=True) as scope,
        randomness.at(learner.seed, step, places),
    ):
        tape.watch(weights)
        predictions = learner.model(features, training=True)
        mask = None if example_weights is None else example_weights > 0
        losses = tf.cast(per_example(learner.loss, learner.gradient_mode, targets, predictions, mask), tf.float32)
        total = tf.reduce_sum(losses if example_weights is None else losses * example_weights) / update.batch_size
        penalties = learner.model.losses
        regularization = tf.add_n(penalties) / (learner.num_replicas * update.accumulate) if penalties else tf.constant(0.0)
        total += regularization
        target = total if scale is None else total * scale
    if len(scope.state_mapping) > len(values):
        raise ConfigError(
            "the model changes a variable that is not its own, such as Keras' global random generator, and no checkpoint could hold it: "
            "give layers that draw random numbers a keras.random.SeedGenerator as an attribute"
        )
    gradients = tape.gradient(target, weights, unconnected_gradients=tf.UnconnectedGradients.ZERO)
    # A host function leaves shapes open.
    gradients = [
        tf.ensure_shape(tf.cast(g, tf.float32), w.shape) for g, w in zip(map(tf.convert_to_tensor, gradients), weights, strict=True)
    ]
    gradients = gradients if scale is None else [g / scale for g in gradients]
    return gradients, [total, regularization], [scope.get_current_value(variable) for variable in learner.state]


def _apply(learner: Learner, gradients: list[tf.Tensor], state: list[tf.Tensor]) -> tf.Tensor:
    if learner.strategy is None:
        _assign(learner, gradients, state)
    else:
        learner.strategy.run(_assign, args=(learner, gradients, state))
    return tf.constant(1)


def _assign(learner: Learner, gradients: list[tf.Tensor], state: list[tf.Tensor]) -> None:
    learner.optimizer.apply([tf.cast(g, v.dtype) for g, v in zip(gradients, learner.variables, strict=True)], learner.variables)
    for variable, value in zip(learner.state, state, strict=True):
        variable.assign(value)
    if learner.ema_decay:
        for average, weight in zip(learner.ema, learner.variables, strict=True):
            average.assign(learner.ema_decay * average + (1 - learner.ema_decay) * tf.cast(weight.value, average.dtype))


def _norm(tensors: list[tf.Tensor], update: Update) -> tf.Tensor:
    return tf.sqrt(tf.add_n([_sum_of_squares(tensor, update) for tensor in tensors]))


def _sum_of_squares(tensor: tf.Tensor, update: Update) -> tf.Tensor:
    tensor = tf.cast(tensor, tf.float32)
    if update.compiled != "chunk":
        return 2 * tf.nn.l2_loss(tensor)  # one fused pass
    # XLA on the CPU sums one after the other in float32; a product with ones sums row by row, several times faster, and errs less.
    squares = tf.square(tensor)
    if tensor.shape.rank > 1:
        squares = tf.linalg.matvec(tf.reshape(squares, [-1, tensor.shape[-1]]), tf.ones([tensor.shape[-1]]))
    return tf.reduce_sum(squares)


def each(function: Callable[[Any], Any], arrays: Arrays) -> Arrays:
    """A function of every array that there is."""
    return tuple(None if part is None else tf.nest.map_structure(function, part) for part in arrays)


def local(values: Any) -> Any:
    """This host's first copy of per-replica values that are equal on all replicas."""
    return tf.nest.map_structure(lambda v: v.values[0] if isinstance(v, tf.distribute.DistributedValues) else v, values)


def _read(variable: keras.Variable) -> tf.Tensor:
    return local(variable.value)
