"""Random numbers of layers as a pure function of (seed, step, layer, the example's place in the global batch, the element's index).

The same on any number of replicas, after any resume, and in any compile mode, with no state to keep. An integer hash: under XLA on the
CPU it is fused with what uses it, where Keras' generator takes hundreds of microseconds a draw.
"""

import collections
import contextlib
import dataclasses
import hashlib
import math
import threading
from collections.abc import Iterator

import tensorflow as tf


@dataclasses.dataclass(frozen=True)
class _Draws:
    """What all draws of a forward pass have in common."""

    place_words: tf.Tensor  # uint32 [batch, 1], of seed, step and place
    place_factors: tf.Tensor  # the same of them anew, odd
    num_drawn: collections.Counter[str]  # by key


_thread = threading.local()


@contextlib.contextmanager
def at(seed: int, step: tf.Tensor, places: tf.Tensor) -> Iterator[None]:
    """Within it, in this thread, layers in training mode draw for these examples at this step; entered where a forward pass is traced.

    Under a strategy it is entered on the replica, inside `strategy.run`. May be nested: the innermost counts.

    Args:
        seed: any whole number.
        step: updates done before this one; a scalar, int32 or int64.
        places: of the examples in the global batch, int32 [local batch].
    """
    before = getattr(_thread, "draws", None)
    _thread.draws = _Draws(*_place_words(seed, step, places), collections.Counter())
    try:
        yield
    finally:
        _thread.draws = before


def active() -> bool:
    """Whether this thread is within `at`."""
    return getattr(_thread, "draws", None) is not None


def bits(key: str, like: tf.Tensor) -> tf.Tensor:
    """Uniform words for a tensor whose first axis is the batch; only within `at`.

    Args:
        key: who draws. Drawing again by the same key in the same `at` gives other words.
        like: [rows, ...]. Rows may be several items an example, k = rows / local batch of them next to each other: then row // k is the
            example, and row % k belongs to the element's index.

    Returns:
        uint32, shaped as `like`.

    Raises:
        ValueError: the number of rows is no multiple of the local batch. Where it is known at run time only, TensorFlow's own error.
    """
    draws = _thread.draws
    word, factor = _words(f"layer {key} {draws.num_drawn[key]}")
    draws.num_drawn[key] += 1
    batch, elements = draws.place_words.shape[0], like.shape.num_elements()
    if None not in (batch, like.shape[0]) and (like.shape[0] < batch or like.shape[0] % batch):
        raise ValueError(
            f"{key} draws random numbers for a tensor of shape {tuple(like.shape)}, and its first axis must be the batch of {batch} "
            "examples, or a multiple of it: put the layer where the batch comes first"
        )
    if batch is None or elements is None:
        num_columns = tf.shape(like)[0] // tf.shape(draws.place_words)[0] * tf.reduce_prod(tf.shape(like)[1:])
    else:
        num_columns = elements // batch
    # Known where shapes are known, and then a graph folds it to a constant: what is left to do is seven operations for each element.
    columns = _mixed(tf.cast(tf.range(num_columns), tf.uint32) + word)
    x = (columns ^ draws.place_words) * 0x9E3779B1  # [batch, elements of an example]
    x = (x ^ _right(x, 15)) * (draws.place_factors ^ (factor & 0xFFFFFFFE))  # by an odd number of one's own, so that none is lost
    return tf.reshape(x ^ _right(x, 16), like.shape if elements is not None else tf.shape(like))


def kept(words: tf.Tensor, rate: float) -> tf.Tensor:
    """Whether each element is kept, with probability 1 - rate to 2^-32; bool."""
    return words >= min(round(rate * 2**32), 2**32 - 1)


def normal(words: tf.Tensor) -> tf.Tensor:
    """Standard normal numbers, float32, within +-5.3, from uniform words."""
    # The middles of 2^23 equal pieces of (-1, 1): exact in float32, and their mean is 0.
    middles = (tf.cast(_right(words, 9), tf.float32) - (2.0**22 - 0.5)) * 2.0**-22
    return math.sqrt(2) * tf.math.erfinv(middles)


def _place_words(seed: int, step: tf.Tensor, places: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Two words of each example at a step, the second odd; uint32 [batch, 1]."""
    first, second = _words(f"seed {seed}")
    step = tf.cast(step, tf.int64)
    low, high = tf.cast(step & 0xFFFFFFFF, tf.uint32), tf.cast(_right(step, 32), tf.uint32)
    step_word = _mixed(low ^ first)
    words = _mixed(tf.cast(places, tf.uint32)[:, tf.newaxis] ^ step_word)
    return words, _mixed(words ^ _mixed(step_word ^ high ^ second)) | 1


def _words(text: str) -> tuple[int, int]:
    """Two words of 32 bits, the same in every process."""
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(digest[:4], "little"), int.from_bytes(digest[4:], "little")


def _mixed(x: tf.Tensor) -> tf.Tensor:
    """A bijection of uint32 in which every bit of x decides about every bit: xor-shift and multiply, twice (Wellons' lowbias32)."""
    x = (x ^ _right(x, 16)) * 0x7FEB352D
    x = (x ^ _right(x, 15)) * 0x846CA68B
    return x ^ _right(x, 16)


def _right(x: tf.Tensor, num_bits: int) -> tf.Tensor:
    return tf.bitwise.right_shift(x, tf.constant(num_bits, x.dtype))
