"""Softmax cross-entropy of scores `rows kernel + bias`, a chunk of rows at a time: [rows, classes] is never held whole.

With l the scores of a row, y its class and o = logsumexp_{j != y} l_j:

    value    = log(1 + e^(o - l_y))             = logsumexp(l) - l_y, digits kept where l_y leads
    d/dl_j   = e^(l_j - logsumexp(l)), j != y
    d/dl_y   = -1 / (1 + e^(l_y - o))           = minus the sum of the others, digits kept too

While a chunk's scores are there, its derivatives are computed too, for dy = 1. Those by a row are then multiplied by the row's dy.
Those by kernel and bias, sums over rows, are multiplied where dy is the same for all rows, as under a mean; where it is not
(weights, masked rows) they are computed anew, from scores computed once more.
"""

from collections.abc import Callable

import tensorflow as tf

_CHUNK_SCORES = 4 * 2**20  # 16 MiB of float32: smaller chunks spend their time on adding up d_kernel, larger ones leave the cache


def crossentropy(
    rows: tf.Tensor, kernel: tf.Tensor, bias: tf.Tensor, classes: tf.Tensor
) -> tuple[tf.Tensor, Callable[[tf.Tensor], tuple[tf.Tensor, tf.Tensor, tf.Tensor]]]:
    """The cross-entropy of every row and its backward pass.

    Args:
        rows: [rows, d].
        kernel: [d, classes].
        bias: [classes].
        classes: integers [rows]; one out of range gives NaN.

    Returns:
        `(value, vjp)`: [rows], and `vjp(dy)`, dy [rows], gives the derivatives by rows, kernel and bias.
    """
    chunks = _Chunks(rows, kernel, bias, classes)
    ones = chunks.split(tf.ones_like(rows[:, 0]))  # 0 for padding
    transposed = tf.transpose(kernel)  # the product with a kernel that is stored as it is read takes half the time

    def step(k: tf.Tensor, values: tf.TensorArray, d_rows: tf.TensorArray, *sums: tf.Tensor) -> tuple:
        value, _, slopes, scale = chunks.evaluate(k)
        d_rows = d_rows.write(k, tf.matmul(slopes, transposed) * scale[:, tf.newaxis])
        return k + 1, values.write(k, value), d_rows, *chunks.add(k, slopes, scale * ones[k], *sums)

    start = 0, chunks.array(rows.dtype), chunks.array(rows.dtype, rows.shape[1]), tf.zeros_like(kernel), tf.zeros_like(bias)
    _, values, d_rows, d_kernel, d_bias = tf.while_loop(chunks.more, step, start, parallel_iterations=1)
    d_rows = chunks.joined(d_rows)

    def vjp(dy: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        first = tf.reduce_sum(dy[:1])  # 0 for no rows
        same = tf.reduce_all(dy == first)
        scale = tf.where(same, first, 0)
        sums = tf.math.multiply_no_nan(d_kernel, scale), tf.math.multiply_no_nan(d_bias, scale)
        sums = _weighted_sums(rows, kernel, bias, classes, dy, ~same, *sums)
        return d_rows * dy[:, tf.newaxis], *sums

    return chunks.joined(values), vjp


def value_and_leads(rows: tf.Tensor, kernel: tf.Tensor, bias: tf.Tensor, classes: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """The cross-entropy of every row, without derivatives, and whether its class has the largest score alone; both [rows]."""
    chunks = _Chunks(rows, kernel, bias, classes)

    def step(k: tf.Tensor, values: tf.TensorArray, leads: tf.TensorArray) -> tuple:
        value, lead, *_ = chunks.evaluate(k)
        return k + 1, values.write(k, value), leads.write(k, lead)

    start = 0, chunks.array(rows.dtype), chunks.array(tf.bool)
    _, values, leads = tf.while_loop(chunks.more, step, start, parallel_iterations=1)
    return chunks.joined(values), chunks.joined(leads)


def _weighted_sums(
    rows: tf.Tensor, kernel: tf.Tensor, bias: tf.Tensor, classes: tf.Tensor, dy: tf.Tensor, wanted: tf.Tensor, *sums: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor]:
    """The derivatives by kernel and bias, added to the sums if wanted.

    No tf.cond around it: TensorFlow's optimizer can't sort a loop within a condition within a loop, and would leave all of it as it is.
    """
    chunks = _Chunks(rows, kernel, bias, classes)
    dys = chunks.split(dy)

    def step(k: tf.Tensor, *sums: tf.Tensor) -> tuple:
        *_, slopes, scale = chunks.evaluate(k)
        return k + 1, *chunks.add(k, slopes, scale * dys[k], *sums)

    return tf.while_loop(lambda k, *_: wanted & chunks.more(k), step, (0, *sums), parallel_iterations=1)[1:]


class _Chunks:
    """The rows, divided, and what is computed of chunk k.

    Made anew in every function that runs it: XLA would take all that a size comes from in another function for constants, weights too.
    """

    def __init__(self, rows: tf.Tensor, kernel: tf.Tensor, bias: tf.Tensor, classes: tf.Tensor) -> None:
        self._num_rows, num_classes = tf.shape(rows)[0], tf.shape(kernel)[1]
        most = tf.maximum(_CHUNK_SCORES // tf.maximum(num_classes, 1), 1)
        # An empty batch has a chunk of padding: XLA slices even where no loop runs.
        self._number = tf.maximum(-(-self._num_rows // most), 1)
        self._size = tf.maximum(-(-self._num_rows // self._number), 1)
        self._kernel, self._bias, self._rows = kernel, bias, self.split(rows)
        classes = tf.cast(classes, tf.int64)  # narrow ones can't hold num_classes
        in_range = (classes >= 0) & (classes < tf.cast(num_classes, tf.int64))
        self._classes = self.split(tf.where(in_range, tf.cast(classes, tf.int32), 0))
        self._no_class = self.split(tf.where(in_range, tf.zeros_like(rows[:, 0]), float("nan")))

    def more(self, k: tf.Tensor, *_: object) -> tf.Tensor:
        """Whether there is a chunk k."""
        return k < self._number

    def split(self, x: tf.Tensor) -> tf.Tensor:
        """[rows, ...] -> [chunks, rows of one, ...], padded with zeros."""
        padding = [[0, self._number * self._size - self._num_rows]] + [[0, 0]] * (x.shape.rank - 1)
        return tf.reshape(tf.pad(x, padding), tf.concat([[self._number, self._size], tf.shape(x)[1:]], axis=0))

    def array(self, dtype: tf.DType, *shape: int | None) -> tf.TensorArray:
        """For results of [rows of one, *shape]."""
        return tf.TensorArray(dtype, self._number, element_shape=[None, *shape])

    def joined(self, x: tf.TensorArray) -> tf.Tensor:
        """Chunks of [rows of one, ...] -> [rows, ...]."""
        return x.concat()[: self._num_rows]

    def evaluate(self, k: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor, tf.Tensor]:
        """The values, whether the classes lead, and the derivatives by the scores, [rows of one, classes], over their scales.

        The derivatives are e^(l_j - shift) scale, and for the class minus the sum of the others: whatever is made of them, rows that are
        few numbers can be scaled for them.
        """
        own = self._classes[k]
        at = tf.stack([tf.range(tf.size(own)), own], axis=1)
        logits = tf.nn.bias_add(tf.matmul(self._rows[k], self._kernel), self._bias)
        l_y = tf.gather_nd(logits, at) + self._no_class[k]
        with tf.control_dependencies([l_y]):  # read before: so that the scores are changed in place, not copied
            logits = tf.tensor_scatter_nd_update(logits, at, tf.fill(tf.shape(l_y), tf.constant(-float("inf"), logits.dtype)))
        largest = tf.reduce_max(logits, axis=1)
        shift = tf.maximum(largest, logits.dtype.min)  # -inf where there is but one class
        powers = tf.exp(logits - shift[:, tf.newaxis])
        total = tf.reduce_sum(powers, axis=1)
        lead = l_y - shift
        slopes = tf.tensor_scatter_nd_update(powers, at, -total)
        return tf.nn.softplus(tf.math.log(total) - lead), l_y > largest, slopes, 1 / (total + tf.exp(lead))

    def add(self, k: tf.Tensor, slopes: tf.Tensor, dys: tf.Tensor, d_kernel: tf.Tensor, d_bias: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """The derivatives by kernel and bias, a chunk's added, whose derivatives by the scores are `slopes` by `dys`."""
        d_kernel += tf.matmul(self._rows[k] * dys[:, tf.newaxis], slopes, transpose_a=True)
        return d_kernel, d_bias + tf.matmul(dys[tf.newaxis], slopes)[0]
