"""Connectionist temporal classification."""

import dataclasses
from collections.abc import Callable
from typing import Any

import mpmath
import numpy as np
import tensorflow as tf

from losses import softmax
from losses.base import Loss, LossError

_Labels = dict[str, tf.Tensor]


@dataclasses.dataclass(frozen=True)
class CTC(Loss):
    """Minus the log probability of a labeling, summed over all its alignments to the frames.

    An alignment gives every frame a class; repeats merged and blanks removed, it spells the labels. With pi = softmax(p):

    value = -log sum over alignments of prod_t pi_t(class of frame t)
    d/dp_tk = pi_tk - occupancy_tk, the share of the alignments' probability that passes class k at frame t

    States are blank, label, blank, label, ..., blank. The forward and the backward recursion run in one sweep over the frames, in
    logarithms: a sum of powers is largest + log1p(the others relative to it), which keeps the digits of a labeling that is nearly
    certain. Both slopes of a frame sum to 1: that of its likeliest class is minus the sum of the others, not a difference of ones.
    Auto differentiates the forward recursion: as accurate but for frames that are nearly certain, slower, and in more memory.
    Analytic's recursion is always compiled by XLA, for the shapes at hand, also inside a graph that is not.
    The usual code, TensorFlow's, sums in logarithms likewise, and takes the difference.

    Where several alignments share a probability near 1, value and gradient are accurate to the rounding of 1, not of what is left.

    Domain: finite logits. Labels that don't fit into their frames have value 0 and gradient 0, and are counted by the metric
    "infeasible". A label out of range gives NaN.
    Shapes: p logits [batch, time, classes], blank the last class; y {labels: integers [batch, length], padded with -1 at the end;
    num_frames: integers [batch], <= time}.
    Kinks: none.
    Reference: A. Graves et al. (2006), doi:10.1145/1143844.1143891.
    """

    second_order = "refuse"
    targets = ("labels",)
    magnitudes = (1e-30, 1e30)
    structured = True
    invariants = ("non_negative",)
    metric_names = ("infeasible",)

    def output_shape(self, target_shape: tuple[int, ...], num_classes: int | None) -> tuple[int | None, ...]:
        return (None,) if num_classes is None else (num_classes + 1,)

    def check_shapes(self, y_true: _Labels, y_pred: tf.Tensor) -> None:
        self.require_shape("y_pred", y_pred, batch=None, time=None, classes=None)
        if not isinstance(y_true, dict) or set(y_true) != {"labels", "num_frames"}:
            raise LossError(f"loss {self.name}: y_true must be a dict of labels [batch, length] and num_frames [batch]")
        self.require_shape("labels", y_true["labels"], batch=y_pred.shape[0], length=None)
        self.require_shape("num_frames", y_true["num_frames"], batch=y_pred.shape[0])
        for key, y in y_true.items():
            if not y.dtype.is_integer:
                raise LossError(f"loss {self.name} takes integers as {key}; found {y.dtype.name}")

    def value(self, y_true: _Labels, y_pred: tf.Tensor) -> tf.Tensor:
        y_true, feasible = _int32(y_true), _feasible(y_true)
        log_p, _ = _sweep(y_true, _emissions(y_true, -softmax.surprise(y_pred))[tf.newaxis])
        return tf.where(feasible, -log_p, tf.zeros_like(log_p)) * _factor(y_true, y_pred)

    def value_and_vjp(self, y_true: _Labels, y_pred: tf.Tensor, **mask: tf.Tensor) -> tuple[tf.Tensor, Callable[[tf.Tensor], tf.Tensor]]:
        # A step of the sweep is many small operations. A function of this call alone, so that its shapes stay those at hand.
        compiled = tf.function(_value_and_slopes, jit_compile=True, autograph=False)
        # As bits, through which no gradient flows: for a tape, XLA would have to hand out the sweep's lists.
        bits = tf.bitcast(y_pred, {tf.float32: tf.int32, tf.float64: tf.int64}[y_pred.dtype])
        value, slopes = compiled(_int32(y_true), bits, y_pred.dtype)
        return value, lambda dy: tf.math.multiply_no_nan(slopes, dy[:, tf.newaxis, tf.newaxis])

    def metrics(self, y_true: _Labels, y_pred: tf.Tensor) -> tuple[tf.Tensor, ...]:
        """1 where the labels don't fit into their frames."""
        return (tf.cast(~_feasible(y_true), y_pred.dtype),)

    def usual(self, y_true: _Labels, y_pred: tf.Tensor) -> tf.Tensor:
        labels, num_frames = tf.cast(y_true["labels"], tf.int32), tf.cast(y_true["num_frames"], tf.int32)
        lengths = tf.reduce_sum(tf.cast(labels >= 0, tf.int32), axis=1)
        return tf.nn.ctc_loss(tf.maximum(labels, 0), y_pred, lengths, num_frames, logits_time_major=False, blank_index=-1)

    def reference(self, y_true: dict[str, Any], y_pred: list) -> Any:
        blank, labels = len(y_pred[0]) - 1, [int(label) for label in y_true["labels"] if label >= 0]
        states = [blank] + [k for label in labels for k in (label, blank)]
        alpha = [mpmath.mpf(1)] + [mpmath.mpf(0)] * len(states)  # before the first frame: a state before all others
        for frame in y_pred[: int(y_true["num_frames"])]:
            total, arriving = sum(mpmath.exp(p) for p in frame), [mpmath.mpf(0)]
            for s, k in enumerate(states, 1):
                skips = s >= 2 and k != blank and (s < 3 or k != states[s - 3])
                arriving.append((alpha[s] + alpha[s - 1] + (alpha[s - 2] if skips else 0)) * mpmath.exp(frame[k]) / total)
            alpha = arriving
        p = sum(alpha[-2:])
        return -mpmath.log(p) if p else mpmath.mpf(0)

    def sample(self, rng: np.random.Generator, num_examples: int, scale: float) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """Up to 3 labels out of 3 in up to 6 frames, repeated ones and infeasible ones among them."""
        labels, lengths = rng.integers(0, 3, (num_examples, 3)), rng.integers(0, 4, num_examples)
        labels[np.arange(3) >= lengths[:, np.newaxis]] = -1
        p = scale * rng.normal(size=(num_examples, 6, 4)) * 10 ** rng.uniform(-0.5, 0.5, (num_examples, 6, 1))
        return {"labels": labels, "num_frames": rng.integers(2, 7, num_examples)}, p

    def edges(self) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """No label, no frame, one too many, a repeat that just fits and one that does not, and frames that are certain."""
        labels = np.array([[-1, -1, -1], [-1, -1, -1], [0, 1, 2], [0, 0, -1], [0, 0, -1], [1, 2, -1]])
        p = np.zeros((6, 6, 4))
        p[5, [0, 1, 2, 3, 4, 5], [1, 1, 3, 2, 3, 3]] = 40.0
        return {"labels": labels, "num_frames": np.array([4, 0, 2, 3, 2, 6])}, p


def _value_and_slopes(y_true: _Labels, bits: tf.Tensor, dtype: tf.DType) -> tuple[tf.Tensor, tf.Tensor]:
    """The values [batch], and their derivatives, shaped as y_pred; y_pred comes as its bits."""
    y_pred = tf.bitcast(bits, dtype)
    feasible, log_pi = _feasible(y_true), -softmax.surprise(y_pred)
    emissions = _emissions(y_true, log_pi)
    log_p, arrivals = _sweep(y_true, tf.stack([emissions, _reversed(y_true, emissions)]))
    forward, backward = tf.unstack(arrivals)
    shares = tf.nn.softmax(forward + emissions + _reversed(y_true, backward))
    slopes = tf.exp(log_pi) - _by_class(y_true, shares, tf.shape(y_pred)[2])
    likeliest = softmax.at_largest(log_pi)
    slopes = tf.where(likeliest, -softmax.sum_without(likeliest, slopes), slopes)
    used = tf.sequence_mask(y_true["num_frames"], tf.shape(y_pred)[1]) & feasible[:, tf.newaxis]
    slopes = tf.where(used[..., tf.newaxis], slopes, tf.zeros_like(slopes))
    factor = _factor(y_true, y_pred)
    return tf.where(feasible, -log_p, tf.zeros_like(log_p)) * factor, slopes * factor[:, tf.newaxis, tf.newaxis]


def _int32(y_true: _Labels) -> _Labels:
    return {key: tf.cast(y, tf.int32) for key, y in y_true.items()}


def _length(y_true: _Labels) -> tf.Tensor:
    return tf.reduce_sum(tf.cast(y_true["labels"] >= 0, tf.int32), axis=1)


def _feasible(y_true: _Labels) -> tf.Tensor:
    """Whether there are frames for every label, and for a blank between equal ones; [batch]."""
    labels = y_true["labels"]
    repeats = (labels[:, 1:] == labels[:, :-1]) & (labels[:, 1:] >= 0)
    return _length(y_true) + tf.reduce_sum(tf.cast(repeats, tf.int32), axis=1) <= tf.cast(y_true["num_frames"], tf.int32)


def _factor(y_true: _Labels, y_pred: tf.Tensor) -> tf.Tensor:
    """1, or NaN for an example with a label out of range; [batch]."""
    outside = tf.reduce_any(y_true["labels"] >= tf.shape(y_pred)[2] - 1, axis=1)
    return tf.where(outside, tf.constant(float("nan"), y_pred.dtype), tf.constant(1, y_pred.dtype))


# States come as [..., 2 (length + 1)]: for every label the blank before it, all these first, then the labels; after the last label
# comes the blank after it, and an end that no frame is in.


def _emissions(y_true: _Labels, log_pi: tf.Tensor) -> tf.Tensor:
    """The logarithm of pi in every frame's states, [batch, time, states]."""
    labels, num_labels = tf.pad(y_true["labels"], [[0, 0], [0, 1]], constant_values=-1), tf.shape(log_pi)[2] - 1
    found = tf.gather(tf.transpose(log_pi, [0, 2, 1]), tf.clip_by_value(labels, 0, num_labels), batch_dims=1)  # [batch, labels, time]
    found = tf.where(((labels >= 0) & (labels < num_labels))[..., tf.newaxis], found, _never(log_pi.dtype))
    blanks = tf.repeat(log_pi[:, :, -1:], tf.shape(labels)[1], axis=2)
    return tf.maximum(tf.concat([blanks, tf.transpose(found, [0, 2, 1])], axis=2), _never(log_pi.dtype))


def _never(dtype: tf.DType) -> tf.Tensor:
    """The logarithm of an impossible probability: finite, as -inf less -inf is NaN."""
    return tf.constant(dtype.min / 4, dtype)


def _reversed(y_true: _Labels, states: tf.Tensor) -> tf.Tensor:
    """[batch, time, states] in the order of the reversed labels and frames."""
    length = _length(y_true)
    blanks, labels = tf.split(tf.reverse_sequence(states, y_true["num_frames"], seq_axis=1), 2, axis=2)
    return tf.concat([tf.reverse_sequence(blanks, length + 1, seq_axis=2), tf.reverse_sequence(labels, length, seq_axis=2)], axis=2)


def _by_class(y_true: _Labels, shares: tf.Tensor, num_classes: tf.Tensor) -> tf.Tensor:
    """[batch, time, states] -> [batch, time, classes], sums over the states of a class."""
    blanks, labels = tf.split(shares, 2, axis=2)
    blanks = tf.where(tf.sequence_mask(_length(y_true) + 1, tf.shape(blanks)[2])[:, tf.newaxis], blanks, tf.zeros_like(blanks))
    spelled = tf.one_hot(y_true["labels"], num_classes - 1, dtype=shares.dtype)  # [batch, length, classes]
    return tf.concat([tf.matmul(labels[:, :, :-1], spelled), tf.reduce_sum(blanks, axis=2, keepdims=True)], axis=2)


def _log1p(x: tf.Tensor) -> tf.Tensor:
    """log1p of x >= 0, by W. Kahan's formula: XLA computes log several entries at a time, and log1p one by one."""
    one_more = 1 + x
    rounded = one_more == 1
    return tf.where(rounded, x, tf.math.log(one_more) * x / tf.where(rounded, tf.ones_like(x), one_more - 1))


def _sweep(y_true: _Labels, emissions: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """The recursion, in each direction that emissions are given for, the first one forward.

    Args:
        y_true: labels and num_frames.
        emissions: [directions, batch, time, states], in the order that is gone through.

    Returns:
        log p, [batch], and the log probability of arriving in a state at a frame, its own emission left out, relative to that of the
        likeliest state there, so that it keeps its digits in the longest series; shaped as emissions.
    """
    never, (num_directions, batch, time, num_states) = _never(emissions.dtype), tf.unstack(tf.shape(emissions))
    length = _length(y_true)
    labels = [y_true["labels"], tf.reverse_sequence(y_true["labels"], length, seq_axis=1)][: emissions.shape[0]]
    # From label to label without a blank, unless they are equal; the end, unequal to all, is entered from the last label.
    equal = tf.stack([tf.pad(y[:, 1:] == y[:, :-1], [[0, 0], [1, 1]]) for y in labels])
    skip = tf.where(equal & tf.sequence_mask(length, num_states // 2), never, tf.zeros_like(never))
    by_frame = tf.transpose(emissions, [2, 0, 1, 3])

    def step(t: tf.Tensor, level: tf.Tensor, arriving: tf.Tensor, levels: tf.TensorArray, arrivals: tf.TensorArray) -> tuple:
        blank, label = tf.split(arriving + by_frame[t], 2, axis=2)
        before = tf.pad(label[:, :, :-1], [[0, 0], [0, 0], [1, 0]], constant_values=never)
        skipping = before + skip
        high, low = tf.maximum(label, blank), tf.minimum(label, blank)
        largest, smallest = tf.maximum(high, skipping), tf.minimum(low, skipping)
        middle = tf.maximum(low, tf.minimum(high, skipping))
        to_label = largest + _log1p(tf.exp(middle - largest) + tf.exp(smallest - largest))
        to_blank = tf.maximum(blank, before) + _log1p(tf.exp(-tf.abs(blank - before)))
        following = tf.concat([to_blank, to_label], axis=2)
        likeliest = tf.reduce_max(following, axis=2, keepdims=True)
        following = tf.maximum(following - likeliest, never)
        return t + 1, level + likeliest, following, levels.write(t, level), arrivals.write(t, arriving)

    is_first = tf.range(num_states) % (num_states // 2) == 0
    first = tf.broadcast_to(tf.where(is_first, tf.zeros_like(never), never), [num_directions, batch, num_states])
    start = 0, tf.zeros_like(first[:, :, :1]), first, tf.TensorArray(first.dtype, time + 1), tf.TensorArray(first.dtype, time + 1)
    _, level, last, levels, arrivals = tf.while_loop(lambda t, *_: t < time, step, start, parallel_iterations=1, maximum_iterations=time)
    arrivals = tf.transpose(arrivals.write(time, last).stack(), [1, 2, 0, 3])
    levels = tf.transpose(levels.write(time, level).stack(), [1, 2, 0, 3])
    ends = tf.one_hot(y_true["num_frames"], time + 1, on_value=True, off_value=False)[:, :, tf.newaxis]
    ends &= tf.one_hot(num_states // 2 + length, num_states, on_value=True, off_value=False)[:, tf.newaxis]
    log_p = tf.reduce_sum(tf.where(ends, arrivals[0] + levels[0], tf.zeros_like(arrivals[0])), axis=[1, 2])
    return log_p, arrivals[:, :, :-1]
