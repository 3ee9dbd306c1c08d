"""Models of sequences: what they give, that they look at no later token, and what they refuse."""

import keras
import numpy as np
import pytest

from trainer import sequences
from trainer.errors import ConfigError
from trainer.layers import Dropout

TOKENS = np.random.default_rng(0).integers(0, 11, [2, 9]).astype(np.int32)


def small(num_outputs: int | None = 11, **keys) -> keras.Model:
    keras.utils.set_random_seed(0)
    return sequences.transformer((9,), num_outputs, 11, **{"width": 16, "num_layers": 2, "num_heads": 2} | keys)


@pytest.mark.parametrize(("num_outputs", "width"), [(11, 11), (3, 3), (None, 16)])
def test_transformer_gives_a_row_for_each_token(num_outputs, width):
    assert small(num_outputs)(TOKENS).shape == (2, 9, width)


@pytest.mark.parametrize("num_outputs", [11, None])
def test_no_later_token_changes_an_earlier_output(num_outputs):
    model = small(num_outputs)
    before = model(TOKENS).numpy()
    for position in range(9):
        changed = TOKENS.copy()
        changed[:, position] = (changed[:, position] + 1) % 11
        moved = np.abs(model(changed).numpy() - before).max(axis=-1)
        np.testing.assert_array_equal(moved[:, :position], 0)
        assert (moved[:, position:] > 1e-6).all()  # and every later one sees it


def test_positions_tell_equal_tokens_apart():
    out = small()(np.zeros([1, 9], np.int32)).numpy()[0]
    assert np.abs(np.diff(out, axis=0)).max(axis=1).min() > 1e-4


def test_variables_are_named_by_layer():
    paths = [variable.path for variable in small(num_layers=1).trainable_variables]
    assert paths[:2] == ["embedding/embeddings", "positions/positions"]
    assert paths[-2:] == ["output/kernel", "output/bias"]
    assert {"attention_1/query/kernel", "wide_1/kernel", "narrow_1/bias", "norm/gamma"} <= set(paths)


@pytest.mark.parametrize("num_outputs", [11, None])
def test_transformer_gives_float32_in_mixed_precision(num_outputs):
    keras.mixed_precision.set_global_policy("mixed_bfloat16")
    try:
        model = small(num_outputs)
    finally:
        keras.mixed_precision.set_global_policy("float32")
    assert model(TOKENS).dtype == "float32"
    assert model.get_layer("wide_1").compute_dtype == "bfloat16"


def test_dropout_acts_in_training_alone():
    model = small(dropout=0.5)
    np.testing.assert_array_equal(model(TOKENS), model(TOKENS))
    assert np.abs(model(TOKENS, training=True) - model(TOKENS)).max() > 1e-3
    assert not model.non_trainable_variables  # no generator's state, which would slow XLA
    assert [layer.name for layer in model.layers if isinstance(layer, Dropout)] == [
        "attention_dropout_1",
        "dense_dropout_1",
        "attention_dropout_2",
        "dense_dropout_2",
    ]
    assert not [layer for layer in small().layers if isinstance(layer, Dropout)]


def test_frames_gives_a_row_for_each_frame_and_looks_around_it():
    model = sequences.frames((12, 3), 5, filters=[4], kernel_size=3)
    x = np.random.default_rng(0).standard_normal([1, 12, 3]).astype(np.float32)
    moved = x.copy()
    moved[0, 6] += 1
    assert model(x).shape == (1, 12, 5)
    changed = np.abs(model(moved) - model(x))[0].max(axis=-1)
    assert (changed[[5, 6, 7]] > 0).any()
    np.testing.assert_array_equal(np.delete(changed, [5, 6, 7]), 0)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: sequences.transformer((8, 8, 1), 10, None), r"takes tokens; found numbers of shape \[8, 8, 1\].*data=text"),
        (lambda: small(width=0), r"model\.width=\[0\]"),
        (lambda: small(width=15), r"model\.width=15 must be a multiple of model\.num_heads=2"),
        (lambda: small(num_layers=0), r"model\.num_layers=\[0\]"),
        (lambda: small(dropout=1.0), r"model\.dropout=1\.0"),
        (lambda: sequences.frames((8,), 10), r"takes sequences \[time, features\]; found data of shape \[8\].*data=digit_lines"),
        (lambda: sequences.frames((8, 2), 10, filters=[0]), r"model\.filters=\[0\]"),
        (lambda: sequences.frames((8, 2), 10, activation="relo"), r"model\.activation=relo"),
    ],
)
def test_refused(build, message):
    with pytest.raises(ConfigError, match=message):
        build()
