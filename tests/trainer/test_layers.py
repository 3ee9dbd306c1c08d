"""Random layers: what they give in training, that they have no state, and that they are the same in every mode."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from trainer import layers, models, randomness

X = np.random.default_rng(0).standard_normal([8, 6]).astype(np.float32)
Y = np.random.default_rng(1).standard_normal([8, 2]).astype(np.float32)
PLACES = tf.range(8)


def train(layer, x=X, step=0, places=PLACES):
    with randomness.at(1, tf.constant(step), places):
        return layer(x, training=True)


def small(rate=0.5) -> keras.Model:
    """A model with two random layers that Keras names, and weights that are always the same."""
    model = keras.Sequential(
        [
            keras.Input((6,)),
            keras.layers.Dense(16),
            layers.Dropout(rate),
            layers.GaussianNoise(0.1),
            layers.Dropout(rate),
            keras.layers.Dense(2),
        ]
    )
    rng = np.random.default_rng(2)
    model.set_weights([0.3 * rng.standard_normal(w.shape) for w in model.get_weights()])
    return model


@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16", "float16"])
def test_dropout_drops_or_scales(dtype):
    x = tf.cast(np.random.default_rng(0).standard_normal([256, 400]), dtype)
    out = train(layers.Dropout(0.1, dtype=dtype), x, places=tf.range(256))
    assert out.dtype == dtype
    kept = out.numpy() != 0
    assert abs(kept.mean() - 0.9) < 5 * np.sqrt(0.09 / kept.size)
    wide = tf.cast(x, tf.float64 if dtype == "float64" else tf.float32)
    np.testing.assert_array_equal(out.numpy()[kept], tf.cast(wide * (1 / 0.9), dtype).numpy()[kept])


def test_what_is_dropped_is_0_and_has_gradient_0():
    x = tf.constant(np.where(X > 0, X, np.inf))
    layer = layers.Dropout(0.5)
    kept = train(layer, np.ones_like(X)).numpy() != 0
    with tf.GradientTape() as tape:
        tape.watch(x)
        out = train(layer, x)
    np.testing.assert_array_equal(out.numpy()[~kept], 0)
    np.testing.assert_array_equal(tape.gradient(out, x), 2.0 * kept)


def test_gaussian_noise_has_its_standard_deviation():
    x = np.full([256, 400], 3, np.float32)
    noise = train(layers.GaussianNoise(0.2), x, places=tf.range(256)).numpy() - 3
    assert abs(noise.mean()) < 5 * 0.2 / np.sqrt(noise.size)
    assert abs(noise.std() - 0.2) < 5 * 0.2 / np.sqrt(2 * noise.size)
    half = train(layers.GaussianNoise(0.2, dtype="bfloat16"), x, places=tf.range(256))
    assert half.dtype == "bfloat16"
    np.testing.assert_allclose(tf.cast(half, tf.float32), 3 + noise, rtol=0.01)


@pytest.mark.parametrize(("layer", "training"), [(layers.Dropout(0), True), (layers.GaussianNoise(0), True), (layers.Dropout(0.5), False)])
def test_no_operation_where_nothing_is_random(layer, training):
    traced = tf.function(lambda x: layer(x, training=training), autograph=False).get_concrete_function(tf.TensorSpec([8, 6]))
    assert {operation.type for operation in traced.graph.get_operations()} == {"Placeholder", "Identity"}  # in and out
    np.testing.assert_array_equal(traced(tf.constant(X)), X)


def test_no_state():
    assert [variable.name for variable in small().variables] == ["kernel", "bias"] * 2


def test_numbers_do_not_depend_on_how_many_layers_were_made_before():
    first = train(small())
    second = small()
    assert [layer.name for layer in second.layers] != ["dense", "dropout", "gaussian_noise", "dropout_1", "dense_1"]  # Keras has counted on
    np.testing.assert_array_equal(train(second), first)


def test_layers_of_a_model_draw_their_own_numbers():
    one, other = layers.Dropout(0.5, name="a_1"), layers.Dropout(0.5, name="a_2")
    with randomness.at(1, tf.constant(0), PLACES):
        masks = [layer(np.ones_like(X), training=True).numpy() != 0 for layer in (one, other, one)]  # one of them twice
    assert all(0.2 < np.mean(masks[i] != masks[j]) < 0.8 for i, j in ((0, 1), (0, 2), (1, 2)))


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # Keras' own, while saving
def test_a_saved_model_loads_and_draws_the_same(tmp_path):
    model = small()
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert [type(layer) for layer in loaded.layers] == [type(layer) for layer in model.layers]
    np.testing.assert_array_equal(train(loaded), train(model))
    np.testing.assert_array_equal(train(keras.models.clone_model(model).layers[1], X), train(model.layers[1], X))


def test_stateless_call():
    model = small()
    with randomness.at(1, tf.constant(0), PLACES):
        out, others = model.stateless_call(model.trainable_variables, model.non_trainable_variables, X, training=True)
    np.testing.assert_array_equal(out, train(model))
    assert others == []


def test_items_side_by_side():
    keras.utils.set_random_seed(0)
    inner = models.mlp((6,), 3, hidden=[64], dropout=0.5)
    inputs = keras.Input((4, 6))
    outputs = keras.ops.reshape(inner(keras.ops.reshape(inputs, (-1, 6))), (-1, 4, 3))
    pairs = keras.Model(inputs, outputs)
    x = np.random.default_rng(0).standard_normal([8, 4, 6]).astype(np.float32)
    whole = train(pairs, x).numpy()
    np.testing.assert_allclose(train(pairs, x[[6, 3]], places=tf.constant([6, 3])), whole[[6, 3]], rtol=1e-5, atol=1e-6)
    same = train(pairs, np.repeat(x[:, :1], 4, axis=1)).numpy()
    assert np.abs(np.diff(same, axis=1)).max(axis=(1, 2)).min() > 1e-3  # equal items of an example drop differently


def gradients(model, x, y, step, places):
    with tf.GradientTape() as tape:
        with randomness.at(1, step, places):
            out = model(x, training=True)
        loss = tf.reduce_sum(tf.square(out - y))
    return tape.gradient(loss, [variable.value for variable in model.trainable_variables])


def steps(model, first, last, xla):
    """Trains `model` from step `first` to `last` in one program."""
    weights = [variable.value for variable in model.trainable_variables]

    @tf.function(jit_compile=xla, autograph=False)
    def chunk(first, last):
        def body(step):
            for weight, gradient in zip(weights, gradients(model, X, Y, step, PLACES), strict=True):
                weight.assign_sub(1e-3 * gradient)
            return (step + 1,)

        return tf.while_loop(lambda step: step < last, body, (first,))

    chunk(tf.constant(first), tf.constant(last))


@pytest.mark.parametrize("xla", [False, True])
def test_going_on_is_as_not_having_stopped(xla):
    through, stopped, other = small(), small(), small()
    steps(through, 0, 7, xla)
    steps(stopped, 0, 3, xla)
    resumed = small()
    resumed.set_weights(stopped.get_weights())
    steps(resumed, 3, 7, xla)
    steps(other, 1, 8, xla)
    for a, b in zip(through.get_weights(), resumed.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    assert np.abs(through.get_weights()[0] - other.get_weights()[0]).max() > 1e-3  # the steps do matter


def test_graph_and_xla_train_the_same():
    graph, xla = small(), small()
    steps(graph, 0, 7, False)
    steps(xla, 0, 7, True)
    for a, b in zip(graph.get_weights(), xla.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


def test_replicas_train_as_one_device():
    strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    with strategy.scope():
        model = small()

    def replica():
        context = tf.distribute.get_replica_context()
        share = tf.range(4) + 4 * context.replica_id_in_sync_group
        return gradients(model, tf.gather(X, share), tf.gather(Y, share), tf.constant(5), share)

    distributed = tf.function(lambda: strategy.run(replica), autograph=False)()
    whole = gradients(small(), X, Y, tf.constant(5), PLACES)
    for ours, expected in zip(distributed, whole, strict=True):
        np.testing.assert_allclose(sum(ours.values), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("xla", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_keras_own_fit(xla):
    histories = []
    for _ in range(2):
        keras.utils.set_random_seed(4)
        model = small()
        model.compile(keras.optimizers.SGD(1e-4), "mse", jit_compile=xla)
        histories.append(model.fit(X, Y, batch_size=4, epochs=3, verbose=0).history["loss"])
    assert histories[0] == histories[1]
    still = small()
    still.compile(keras.optimizers.SGD(0.0), "mse", jit_compile=xla)
    assert len(set(still.fit(X, Y, epochs=3, verbose=0).history["loss"])) == 3  # new numbers at every step


@pytest.mark.parametrize("layer", [layers.Dropout(0.5), layers.GaussianNoise(0.5)])
def test_a_strategy_without_places_is_refused(layer):
    strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    with pytest.raises(ValueError, match=r"enter trainer\.randomness\.at\(seed, step, places\) on the replica"):
        strategy.run(lambda: layer(X, training=True))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: layers.Dropout(1.0), r"rate=1\.0 must be a number >= 0 and < 1"),
        (lambda: layers.Dropout(True), "rate=True"),
        (lambda: layers.GaussianNoise(-0.1), r"stddev=-0\.1 must be a finite number >= 0"),
        (lambda: layers.GaussianNoise(float("nan")), "stddev=nan"),
    ],
)
def test_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build()


@pytest.mark.parametrize("shape", [(8, 6), (4, 3, 6), (0, 3, 6)])
@pytest.mark.parametrize("dtype", ["float32", "mixed_bfloat16"])
@pytest.mark.parametrize("compiled", [False, True])
def test_dense_is_keras_dense(shape, dtype, compiled):
    ours, theirs = layers.Dense(5, "gelu", dtype=dtype), keras.layers.Dense(5, "gelu", dtype=dtype)
    rng = np.random.default_rng(0)
    weights = [rng.standard_normal([6, 5]), rng.standard_normal(5)]
    x = tf.constant(rng.standard_normal(shape), tf.float32)

    def value_and_gradients(layer):
        layer.build(shape)
        layer.set_weights(weights)
        variables = [v.value for v in layer.trainable_variables]

        @tf.function(jit_compile=compiled, autograph=False)
        def run():
            with tf.GradientTape() as tape:
                tape.watch(x)
                y = layer(x)
            return y, *tape.gradient(y, [x, *variables])

        return run()

    for ours_is, theirs_is in zip(value_and_gradients(ours), value_and_gradients(theirs), strict=True):
        assert ours_is.dtype == theirs_is.dtype
        assert ours_is.shape == theirs_is.shape
        tolerance = 1e-5 if dtype == "float32" else 4e-2
        np.testing.assert_allclose(tf.cast(ours_is, tf.float32), tf.cast(theirs_is, tf.float32), rtol=tolerance, atol=tolerance)


def test_dense_without_a_bias_and_from_its_configuration():
    layer = layers.Dense(5, use_bias=False)
    model = keras.Sequential([keras.Input((6,)), layer])
    np.testing.assert_allclose(model(X), X @ layer.kernel.numpy(), rtol=1e-5)
    assert isinstance(keras.models.clone_model(model).layers[0], layers.Dense)
