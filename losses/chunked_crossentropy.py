"""Softmax cross-entropy of scores `rows kernel + bias`, a chunk of rows at a time: [rows, classes] is never held whole.

With l the scores of a row, y its class and o = logsumexp_{j != y} l_j:

    value    = log(1 + e^(o - l_y))             = logsumexp(l) - l_y, digits kept where l_y leads
    d/dl_j   = e^(l_j - logsumexp(l)), j != y
    d/dl_y   = -1 / (1 + e^(l_y - o))           = minus the sum of the others, digits kept too

Kept for the backward pass are l_y and o, two numbers a row; it computes the scores once more. As all of a row's derivatives are
multiplied by the same dy, rows and results are multiplied by it instead of scores.
"""

from collections.abc import Callable

import tensorflow as tf

_CHUNK_SCORES = 4 * 2**20  # 16 MiB of float32: smaller chunks spend their time on adding up d_kernel, larger ones leave the cache


def crossentropy(
    rows: tf.Tensor, kernel: tf.Tensor, bias: tf.Tensor, classes: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor, Callable[[tf.Tensor], tuple[tf.Tensor, tf.Tensor, tf.Tensor]]]:
    """The cross-entropy of every row and its backward pass.

    Args:
        rows: [rows, d].
        kernel: [d, classes].
        bias: [classes].
        classes: integers [rows]; one out of range gives NaN.

    Returns:
        `(value, leads, vjp)`: [rows]; bool [rows], whether the row's class has the largest score alone; and
        `vjp(dy)`, dy [rows], gives the derivatives by rows, kernel and bias.
    """
    in_range = (classes >= 0) & (classes < tf.cast(tf.shape(kernel)[1], classes.dtype))
    chunks = _Chunks(rows, kernel)
    row_chunks = chunks.split(rows)
    class_chunks = chunks.split(tf.where(in_range, tf.cast(classes, tf.int32), 0))

    def scores(k: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:  # of a chunk, and where its classes are
        own_classes = class_chunks[k]
        at = tf.stack([tf.range(tf.size(own_classes)), own_classes], axis=1)
        return tf.nn.bias_add(tf.matmul(row_chunks[k], kernel), bias), at

    def forward(k: tf.Tensor, own: tf.TensorArray, others: tf.TensorArray, leads: tf.TensorArray) -> tuple:
        logits, at = scores(k)
        l_y = tf.gather_nd(logits, at)
        logits = tf.tensor_scatter_nd_update(logits, at, tf.fill(tf.shape(l_y), tf.constant(-float("inf"), logits.dtype)))
        largest = tf.reduce_max(logits, axis=1)
        shift = tf.maximum(largest, logits.dtype.min)  # -inf where there is but one class
        o = shift + tf.math.log(tf.reduce_sum(tf.exp(logits - shift[:, tf.newaxis]), axis=1))
        return k + 1, own.write(k, l_y), others.write(k, o), leads.write(k, l_y > largest)

    arrays = chunks.array(rows.dtype), chunks.array(rows.dtype), chunks.array(tf.bool)
    _, *arrays = tf.while_loop(lambda k, *_: k < chunks.number, forward, (0, *arrays), parallel_iterations=1)
    l_y, o, leads = map(chunks.joined, arrays)
    l_y = tf.where(in_range, l_y, float("nan"))

    def vjp(dy: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        chunks = _Chunks(rows, kernel)  # anew: XLA would take all that a size comes from in another function for constants, weights too
        largest = tf.maximum(l_y, o)
        log_sum = chunks.split(largest + tf.nn.softplus(tf.minimum(l_y, o) - largest))
        own = chunks.split(-tf.exp(-tf.nn.softplus(l_y - o)))
        dys, weighted = chunks.split(dy), chunks.split(rows * dy[:, tf.newaxis])
        transposed = tf.transpose(kernel)  # the product with a kernel that is stored as it is read takes half the time

        def backward(k: tf.Tensor, d_rows: tf.TensorArray, d_kernel: tf.Tensor, d_bias: tf.Tensor) -> tuple:
            logits, at = scores(k)
            slopes = tf.tensor_scatter_nd_update(tf.exp(logits - log_sum[k][:, tf.newaxis]), at, own[k])
            d_rows = d_rows.write(k, tf.matmul(slopes, transposed) * dys[k][:, tf.newaxis])
            d_kernel += tf.matmul(weighted[k], slopes, transpose_a=True)
            return k + 1, d_rows, d_kernel, d_bias + tf.matmul(dys[k][tf.newaxis], slopes)[0]

        start = 0, chunks.array(rows.dtype, rows.shape[1]), tf.zeros_like(kernel), tf.zeros_like(bias)
        _, d_rows, d_kernel, d_bias = tf.while_loop(lambda k, *_: k < chunks.number, backward, start, parallel_iterations=1)
        return chunks.joined(d_rows), d_kernel, d_bias

    return tf.nn.softplus(o - l_y), leads, vjp


class _Chunks:
    """How rows are divided."""

    def __init__(self, rows: tf.Tensor, kernel: tf.Tensor) -> None:
        self._num_rows, num_classes = tf.shape(rows)[0], tf.shape(kernel)[1]
        self._rows = tf.clip_by_value(_CHUNK_SCORES // tf.maximum(num_classes, 1), 1, tf.maximum(self._num_rows, 1))  # in one chunk
        # An empty batch has a chunk of padding: XLA slices even where no loop runs.
        self.number = tf.maximum(-(-self._num_rows // self._rows), 1)

    def split(self, x: tf.Tensor) -> tf.Tensor:
        """[rows, ...] -> [chunks, rows of one, ...], padded with zeros."""
        padding = [[0, self.number * self._rows - self._num_rows]] + [[0, 0]] * (x.shape.rank - 1)
        return tf.reshape(tf.pad(x, padding), tf.concat([[self.number, self._rows], tf.shape(x)[1:]], axis=0))

    def array(self, dtype: tf.DType, *shape: int | None) -> tf.TensorArray:
        """For results of [rows of one, *shape]."""
        return tf.TensorArray(dtype, self.number, element_shape=[None, *shape])

    def joined(self, x: tf.TensorArray) -> tf.Tensor:
        """Chunks of [rows of one, ...] -> [rows, ...]."""
        return x.concat()[: self._num_rows]
