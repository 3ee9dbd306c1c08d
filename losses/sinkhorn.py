"""Entropic optimal transport between two clouds of points."""

import dataclasses
from collections.abc import Callable
from typing import Any

import mpmath
import numpy as np
import tensorflow as tf

from losses.base import Loss


@dataclasses.dataclass(frozen=True)
class Sinkhorn(Loss):
    """The cost of moving one cloud of points onto another, each point in shares, with an entropic penalty.

    C_ij = |p_i - y_j|^2, a_i = 1/n, b_j = 1/m
    value  = min over P >= 0 with row sums a and column sums b of <P, C> + epsilon KL(P | a b^T)
           = max over f, g of mean(f) + mean(g) - epsilon (sum P - 1), P_ij = a_i b_j e^((f_i + g_j - C_ij) / epsilon)
    d/dp_i = 2 sum_j P_ij (p_i - y_j)

    Sinkhorn's iterations set f and g in turn, by logarithms of sums of powers, so that no cost is too large. At the maximum the
    derivative by f and g is 0 (the envelope theorem): the backward pass is one product with P, whatever the iterations were.
    Auto goes back through all of them and keeps [n, m] several times for each. Before convergence the value is below the true
    one by the square of what is missing, and both gradients are off by what is missing, each in its own way.

    An example stops once its row sums are right to `tolerance`, relative; where they never are, the metric "unconverged" is 1. The
    number of iterations grows as C / epsilon does.

    Domain: finite points; accurate where it converges.
    Shapes: p [batch, n, d], y [batch, m, d].

    Args:
        epsilon: weight of the penalty, in units of a squared distance; > 0.
        num_iterations: at most so many pairs of updates.
        tolerance: largest relative error of a row sum of P that counts as converged.

    Kinks: none.
    Reference: M. Cuturi (2013), doi:10.48550/arXiv.1306.0895; J. Feydy et al. (2019), doi:10.48550/arXiv.1810.08278.
    """

    epsilon: float = 0.5
    num_iterations: int = 200
    tolerance: float = 1e-5

    second_order = "refuse"
    targets = ("points",)
    magnitudes = (1e-30, 1.0)  # beyond, 200 iterations don't suffice at epsilon 0.5
    structured = True
    invariants = ("joint_translation", "non_negative")
    metric_names = ("unconverged",)

    def __post_init__(self) -> None:
        self.require("epsilon", "a number > 0", lambda epsilon: 0 < epsilon < float("inf"))
        self.require("num_iterations", "a whole number > 0", lambda num: num > 0 and num % 1 == 0)
        self.require("tolerance", "a number >= 0", lambda tolerance: 0 <= tolerance < float("inf"))

    @property
    def relative_error(self) -> float:  # type: ignore[override]  # depends on a hyperparameter
        return self.tolerance

    def output_shape(self, target_shape: tuple[int, ...], num_classes: int | None) -> tuple[int | None, ...]:
        return target_shape

    def check_shapes(self, y_true: tf.Tensor, y_pred: tf.Tensor) -> None:
        self.require_shape("y_pred", y_pred, batch=None, points=None, d=None)
        self.require_shape("y_true", y_true, batch=y_pred.shape[0], points=None, d=y_pred.shape[2])

    def value(self, y_true: tf.Tensor, y_pred: tf.Tensor) -> tf.Tensor:
        return self._dual(*self._solve(self._costs(y_true, y_pred))[:2])

    def value_and_vjp(self, y_true: tf.Tensor, y_pred: tf.Tensor, **mask: tf.Tensor) -> tuple[tf.Tensor, Callable[[tf.Tensor], tf.Tensor]]:
        f, g, _ = self._solve(self._costs(y_true, y_pred))

        def vjp(dy: tf.Tensor) -> tf.Tensor:
            plan = tf.exp(f[:, :, tf.newaxis] + g[:, tf.newaxis] - self._costs(y_true, y_pred))
            plan /= tf.cast(tf.shape(y_pred)[1] * tf.shape(y_true)[1], plan.dtype)
            slopes = y_pred * tf.reduce_sum(plan, axis=2, keepdims=True) - tf.matmul(plan, y_true)
            return 2 * slopes * dy[:, tf.newaxis, tf.newaxis]

        return self._dual(f, g), vjp

    def metrics(self, y_true: tf.Tensor, y_pred: tf.Tensor) -> tuple[tf.Tensor, ...]:
        """1 where the last iteration still changed a row sum of P by more than `tolerance`."""
        return (tf.cast(~self._solve(self._costs(y_true, y_pred))[2], y_pred.dtype),)

    def reference(self, y_true: list, y_pred: list) -> Any:
        n, m = len(y_pred), len(y_true)
        costs = [[sum((a - b) ** 2 for a, b in zip(p, y, strict=True)) / mpmath.mpf(self.epsilon) for y in y_true] for p in y_pred]
        kernel = [[mpmath.exp(-cost) for cost in row] for row in costs]
        columns, v = list(zip(*kernel, strict=True)), [mpmath.mpf(1)] * m
        for _ in range(20):  # near enough for Newton's method
            u = [m / mpmath.fdot(row, v) for row in kernel]
            v = [n / mpmath.fdot(column, u) for column in columns]
        for _ in range(20):
            # n m P, whose row sums must be m and column sums n; one of the potentials is free.
            plan = mpmath.matrix([[a * k * b for k, b in zip(row, v, strict=True)] for a, row in zip(u, kernel, strict=True)])
            rows, sums = [mpmath.fsum(plan[i, :]) for i in range(n)], [mpmath.fsum(plan[:, j]) for j in range(m)]
            hessian = mpmath.diag(rows + sums[1:])
            hessian[:n, n:], hessian[n:, :n] = plan[:, 1:], plan[:, 1:].T
            missing = [m - row for row in rows] + [n - column for column in sums[1:]]
            change = mpmath.lu_solve(hessian, mpmath.matrix(missing))
            u = [a * mpmath.exp(d) for a, d in zip(u, change[:n], strict=True)]
            v = [v[0]] + [b * mpmath.exp(d) for b, d in zip(v[1:], change[n:], strict=True)]
            if max(map(abs, change)) < mpmath.mpf(10) ** (-mpmath.mp.dps // 2):  # its square is missing in the value
                return mpmath.mpf(self.epsilon) * (sum(map(mpmath.log, u)) / n + sum(map(mpmath.log, v)) / m)
        return mpmath.nan

    def sample(self, rng: np.random.Generator, num_examples: int, scale: float) -> tuple[np.ndarray, np.ndarray]:
        """Clouds of 3 and 4 points in two dimensions; every third is nearly a part of its target."""
        y = scale * rng.uniform(-1, 1, (num_examples, 4, 2))
        p = scale * rng.uniform(-1, 1, (num_examples, 3, 2))
        p[::3] = y[::3, :3] * (1 + 0.01 * rng.normal(size=p[::3].shape))
        return y, p

    def edges(self) -> tuple[np.ndarray, np.ndarray]:
        """All points in one place, clouds that are equal, and two points for a cloud that is far away."""
        y = np.array([[[0.0, 0.0]] * 4, [[0.0, 1.0], [1.0, 0.0], [1.0, 1.0], [0.0, 0.0]], [[9.0, 9.0]] * 4])
        p = y[:, :3].copy()
        p[2] = [[0.0, 0.0], [0.0, 0.0], [1.0, 0.0]]
        return y, p

    def _costs(self, y_true: tf.Tensor, y_pred: tf.Tensor) -> tf.Tensor:
        """C / epsilon, [batch, n, m]."""
        return tf.reduce_sum(tf.math.squared_difference(y_pred[:, :, tf.newaxis], y_true[:, tf.newaxis]), axis=-1) / self.epsilon

    def _dual(self, f: tf.Tensor, g: tf.Tensor) -> tf.Tensor:
        return self.epsilon * (tf.reduce_mean(f, axis=1) + tf.reduce_mean(g, axis=1))

    def _solve(self, costs: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        """Potentials f / epsilon [batch, n], g / epsilon [batch, m], and whether they have converged, [batch]."""

        def soft_minimum(potential: tf.Tensor, axis: int) -> tf.Tensor:
            """-log(mean(e^(potential - costs))), right too where costs are so small that e^-cost rounds to 1."""
            left = costs - tf.expand_dims(potential, 3 - axis)
            least = tf.stop_gradient(tf.reduce_min(left, axis=axis, keepdims=True))
            powers = tf.math.expm1(least - left)
            mean = tf.reduce_mean(powers, axis=axis)
            near = mean > -0.5
            logarithm = tf.where(near, tf.math.log1p(tf.where(near, mean, 0.0)), tf.math.log(tf.reduce_mean(powers + 1, axis=axis)))
            return tf.squeeze(least, axis) - logarithm

        def step(k: tf.Tensor, f: tf.Tensor, g: tf.Tensor, converged: tf.Tensor) -> tuple:
            new_f = soft_minimum(g, axis=2)
            # Row sums were e^(f - new_f) times theirs. Not a number counts as converged: it would keep the others from ending.
            done = converged | ~(tf.reduce_max(tf.abs(new_f - f), axis=1) > self.tolerance)
            # Every example ends for itself, so that none depends on the others.
            new_f = tf.where(converged[:, tf.newaxis], f, new_f)
            new_g = tf.where(converged[:, tf.newaxis], g, soft_minimum(new_f, axis=1))
            return k + 1, new_f, new_g, done

        f = tf.fill(tf.shape(costs)[:2], tf.constant(float("inf"), costs.dtype))
        start = 0, f, tf.zeros_like(costs[:, 0]), tf.zeros_like(costs[:, 0, 0], tf.bool)
        _, f, g, converged = tf.while_loop(
            lambda k, f, g, converged: (k < self.num_iterations) & ~tf.reduce_all(converged),
            step,
            start,
            parallel_iterations=1,
            maximum_iterations=self.num_iterations,
        )
        return f, g, converged
