"""JAX with optax: data on the device, batches by index, state donated.

The way `scan` is `lax.scan` over the steps of a call, the way `step` a call for each step; loss, accuracy and global norm of
every step come back.
"""

import time
from typing import Any

import jax
import numpy as np
import optax
from jax import lax
from jax import numpy as jnp

from benchmarks.competitors import job as jobs
from benchmarks.competitors.job import NORM_EPSILON, NUM_HEADS, NUM_LAYERS, WIDTH

Parameters = dict[str, jax.Array]


def initial(job: jobs.Job, shape: tuple[int, ...]) -> Parameters:
    """Weights as Keras' layers begin with."""
    keys = iter(jax.random.split(jax.random.key(0), 64))
    glorot, small = jax.nn.initializers.glorot_uniform(), jax.nn.initializers.normal(0.02)
    p: Parameters = {}

    def dense(name: str, *size: int) -> None:
        p[name], p[f"{name}_bias"] = glorot(next(keys), size), jnp.zeros(size[-1])

    def norm(name: str) -> None:
        p[name], p[f"{name}_bias"] = jnp.ones(WIDTH), jnp.zeros(WIDTH)

    if job.model == "mlp":
        dense("hidden_1", 64, 128)
        dense("hidden_2", 128, 128)
    elif job.model == "cnn":
        dense("convolution_1", 3, 3, 1, 32)
        dense("convolution_2", 3, 3, 32, 64)
        dense("dense", 64 * 7 * 7, 128)
    else:
        p["embedding"], p["positions"] = small(next(keys), (job.num_outputs, WIDTH)), small(next(keys), (*shape, WIDTH))
        for i in range(NUM_LAYERS):
            norm(f"attention_norm_{i}")
            dense(f"inward_{i}", WIDTH, 3 * WIDTH)
            dense(f"outward_{i}", WIDTH, WIDTH)
            norm(f"dense_norm_{i}")
            dense(f"wide_{i}", WIDTH, 4 * WIDTH)
            dense(f"narrow_{i}", 4 * WIDTH, WIDTH)
        norm("norm")
    dense("output", WIDTH, job.num_outputs)
    return p


def logits(job: jobs.Job, p: Parameters, x: jax.Array, key: jax.Array) -> jax.Array:
    """Of examples [batch, ...]: [batch, (length,) num_outputs]."""
    x = {"mlp": _mlp, "cnn": _cnn, "transformer": _transformer}[job.model](job, p, x, key)
    return _dense(p, "output", x)


def _dense(p: Parameters, name: str, x: jax.Array) -> jax.Array:
    return x @ p[name] + p[f"{name}_bias"]


def _mlp(job: jobs.Job, p: Parameters, x: jax.Array, key: jax.Array) -> jax.Array:
    x = x.reshape(len(x), -1)
    for name in ("hidden_1", "hidden_2"):
        x = jax.nn.relu(_dense(p, name, x))
        if job.dropout:
            key, draw = jax.random.split(key)
            x = jnp.where(jax.random.bernoulli(draw, 1 - job.dropout, x.shape), x / (1 - job.dropout), 0)
    return x


def _cnn(job: jobs.Job, p: Parameters, x: jax.Array, key: jax.Array) -> jax.Array:
    for name in ("convolution_1", "convolution_2"):
        x = lax.conv_general_dilated(x, p[name], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
        x = jax.nn.relu(x + p[f"{name}_bias"])
        x = lax.reduce_window(x, -jnp.inf, lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")
    return jax.nn.relu(_dense(p, "dense", x.reshape(len(x), -1)))


def _norm(p: Parameters, name: str, x: jax.Array) -> jax.Array:
    return jax.nn.standardize(x, epsilon=NORM_EPSILON) * p[name] + p[f"{name}_bias"]


def _transformer(job: jobs.Job, p: Parameters, x: jax.Array, key: jax.Array) -> jax.Array:
    batch, length = x.shape
    x = p["embedding"][x] + p["positions"]
    for i in range(NUM_LAYERS):
        inward = _dense(p, f"inward_{i}", _norm(p, f"attention_norm_{i}", x)).reshape(batch, length, 3, NUM_HEADS, -1)
        mixed = jax.nn.dot_product_attention(inward[:, :, 0], inward[:, :, 1], inward[:, :, 2], is_causal=True)
        x += _dense(p, f"outward_{i}", mixed.reshape(x.shape))
        wide = jax.nn.gelu(_dense(p, f"wide_{i}", _norm(p, f"dense_norm_{i}", x)), approximate=False)
        x += _dense(p, f"narrow_{i}", wide)
    return _norm(p, "norm", x)


def main() -> None:
    job = jobs.read_job()
    features, targets = (jnp.asarray(array) for array in job.arrays())
    optimizer = optax.adam(jobs.LEARNING_RATE, eps=jobs.EPSILON)
    parameters = initial(job, features.shape[1:])
    num_parameters = sum(array.size for array in parameters.values())
    state: Any = (parameters, optimizer.init(parameters), jax.random.key(1))
    order = jobs.Order(len(features), job.batch_size)
    per_call = job.steps_per_call if job.way == "scan" else 1

    def step(features: jax.Array, targets: jax.Array, state: Any, rows: jax.Array) -> tuple[Any, Any]:
        parameters, moments, key = state
        key, draw = jax.random.split(key) if job.dropout else (key, key)
        x, y = features[rows], targets[rows]

        def loss_of(p: Parameters) -> tuple[jax.Array, jax.Array]:
            scores = logits(job, p, x, draw)
            loss = optax.softmax_cross_entropy_with_integer_labels(scores, y).mean()
            return loss, (scores.argmax(-1) == y).mean()

        (loss, accuracy), gradients = jax.value_and_grad(loss_of, has_aux=True)(parameters)
        updates, moments = optimizer.update(gradients, moments, parameters)
        return (optax.apply_updates(parameters, updates), moments, key), (loss, accuracy, optax.tree.norm(gradients))

    def chunk(features: jax.Array, targets: jax.Array, state: Any, rows: jax.Array) -> tuple[Any, Any]:
        return lax.scan(lambda state, rows: step(features, targets, state, rows), state, rows)

    call = jax.jit(chunk if job.way == "scan" else step, donate_argnums=2)

    def window(num_steps: int) -> tuple[int, float, float]:
        nonlocal state
        num_steps = -(-num_steps // per_call) * per_call
        started = time.perf_counter()
        kept = []
        for rows in order.batches(num_steps).reshape(-1, *([per_call] if job.way == "scan" else []), job.batch_size):
            state, scalars = call(features, targets, state, rows)
            kept.append(scalars)
        jax.block_until_ready((state, kept))
        return num_steps, time.perf_counter() - started, float(np.ravel(kept[-1][0])[-1])

    jobs.take_turns(["jax", "optax"], num_parameters, window)


if __name__ == "__main__":
    main()
