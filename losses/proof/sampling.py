"""Inputs that a loss is tried at: random ones of any magnitude in its domain, and those at its edges."""

from collections.abc import Callable

import numpy as np

from losses.base import Loss, Tensors

DIM = 3  # values of one target, or classes: enough for every branch, few enough for 50-digit arithmetic
_COUNTS = (0.0, 1.0, 2.0, 7.0, 100.0)


def sample(loss: Loss, rng: np.random.Generator, num: int, scale: float = 1.0) -> tuple[Tensors, Tensors]:
    """Random targets and predictions of a loss's domain.

    Args:
        loss: the loss; its own `sample` is asked where it has one.
        rng: the source of randomness.
        num: examples.
        scale: magnitude of the predictions, and of real targets.

    Returns:
        y_true and y_pred as the loss takes them, float64 (int for classes): of one size, of mixed sizes, tied and nearly tied.
    """
    if loss.sample is not None:
        return loss.sample(rng, num, scale)
    y_true = _TARGETS[next(kind for kind in loss.targets if kind in _TARGETS)](rng, num, scale)
    if "classes" in loss.targets or "logits" in loss.targets:
        p = _signed(rng, (num, DIM), scale)
        p[::3] = np.where(rng.random((len(p[::3]), DIM)) < 0.5, p[::3], _signed(rng, p[::3].shape, min(scale, 1.0)))
        near = p[1::6]  # nearly tied with the first
        near[:, 1:] = near[:, :1] * (1 + _small(rng, near[:, 1:].shape))
        if "logits" in loss.targets:
            alike = rng.random(num) < 0.7
            y_true[alike] = p[alike] * (1 + _small(rng, p[alike].shape))
        return y_true, p
    blocks = loss.outputs_per_target
    p = _signed(rng, (num, DIM * blocks), scale)
    if blocks > 1:  # such as a mean at the scale and a logarithm of ordinary size, and the other way round
        chosen = rng.integers(-1, blocks, num)[:, np.newaxis]
        ordinary = _signed(rng, p.shape, min(scale, 1.0))
        p = np.where((chosen < 0) | (np.arange(DIM * blocks) // DIM == chosen), p, ordinary)
    if "real" in loss.targets:
        first = p[:, :DIM]
        near = first * (1 + _small(rng, first.shape))
        kind = rng.choice(4, (num, 1), p=[0.4, 0.35, 0.2, 0.05])
        # At the same scale, near the prediction, of ordinary size, and equal to it.
        y_true = np.select([kind == 0, kind == 1, kind == 2], [y_true, near, _signed(rng, first.shape, 1.0)], first)
    return y_true, p


def edges(loss: Loss) -> list[tuple[Tensors, Tensors]]:
    """Batches at the edges of the domain, all finite: zeros of both signs, ties, saturation, hyperparameters' own values +- 1 ulp."""
    batches = [] if loss.edges is None else [loss.edges()]
    if loss.sample is not None:
        return batches
    special = [0.0, -0.0, 1.0, -1.0, 1e-6, -1e-6, 20.0, -20.0, 90.0, -90.0, 1e4, -1e4, *_around_hyperparameters(loss)]
    special = [value for value in special if not value or loss.magnitudes[0] <= abs(value) <= loss.magnitudes[1]]
    width = DIM * (1 if {"classes", "logits"} & set(loss.targets) else loss.outputs_per_target)
    p = np.array([[value] * width for value in special] + [np.resize([value, 0.0, -value], width) for value in special])
    rng = np.random.default_rng(0)
    y_true, _ = sample(loss, rng, len(p))
    batches.append((y_true, p))
    if {"real", "logits"} & set(loss.targets):
        batches.append((p[:, : y_true.shape[-1]].copy(), p))  # ties
        batches.append((np.zeros_like(y_true), p))  # a residual of exactly a hyperparameter
    return batches


def _around_hyperparameters(loss: Loss) -> list[float]:
    numbers = [number for number in vars(loss).values() if isinstance(number, float) and np.isfinite(number)]
    near = [np.nextafter(np.float32(number), np.float32(way)) for number in numbers for way in (-np.inf, np.inf)]
    return [float(value) for value in [*numbers, *near]]


def _signed(rng: np.random.Generator, shape: tuple[int, ...], scale: float) -> np.ndarray:
    return rng.choice([-1.0, 1.0], shape) * scale * 10 ** rng.uniform(-0.5, 0.5, shape)


def _small(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Relative differences of 1e-7 to 0.1."""
    return _signed(rng, shape, 1.0) * 10 ** rng.uniform(-6.5, -1.5, shape)


_TARGETS: dict[str, Callable[[np.random.Generator, int, float], np.ndarray]] = {
    "real": lambda rng, num, scale: _signed(rng, (num, DIM), scale),
    "binary": lambda rng, num, scale: rng.choice([0.0, 1.0, 0.25], (num, DIM)),
    "counts": lambda rng, num, scale: rng.choice(_COUNTS, (num, DIM)),
    "classes": lambda rng, num, scale: rng.integers(0, DIM, num),
    "class_weights": lambda rng, num, scale: rng.dirichlet(np.ones(DIM), num),
    "logits": lambda rng, num, scale: _signed(rng, (num, DIM), scale),
}
