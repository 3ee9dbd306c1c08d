import copy
import json

import numpy as np
import pytest

from trainer.data.base import Examples
from trainer.data.described import described, stand_in
from trainer.data.prepare import prepare
from trainer.errors import CheckpointError
from trainer.schema import Data

RNG = np.random.default_rng(0)
FEATURES = RNG.standard_normal([40, 3]) * [1, 10, 100]
LABELS = {"labels": np.full([40, 2], 1), "num_frames": np.ones(40, int)}
KINDS = {
    "real": (Examples(FEATURES, FEATURES @ np.ones([3, 2]), feature_names=["a", "b", "c"]), "real", "real", {}),
    "classes": (Examples(FEATURES, np.arange(40) % 3, 3, class_names=["x", "y", "z"]), "classes", "classes", {"class_weight": "balanced"}),
    "one-hot": (Examples(FEATURES, np.arange(40) % 3, 3), "classes", "real", {}),
    "tokens": (Examples(np.arange(80).reshape(40, 2) % 5, np.arange(80).reshape(40, 2) % 5, 5, num_tokens=5), "classes", "classes", {}),
    "none": (Examples(np.ones([40, 3, 2, 2]), None), "none", "none", {}),
    "labels": (Examples(np.ones([40, 3, 2]), LABELS, 4), "labels", "labels", {}),
    "interval": (Examples(FEATURES, np.stack([np.arange(40), np.full(40, np.inf)], axis=1)), "interval", "interval", {}),
}


def prepared(name):
    examples, kind, want, keys = KINDS[name]
    return prepare(examples, kind, want, Data(batch_size=4, **keys))


@pytest.mark.parametrize("name", KINDS)
def test_what_is_described_stands_in_for_the_data(name):
    data = prepared(name)
    content = json.loads(json.dumps(described(data, data.fingerprint()), allow_nan=False))
    found = stand_in(content, "data.json")
    assert len(found.train) == len(data.train)
    assert found.fingerprint() == data.fingerprint()
    for key in ("task", "want", "num_classes", "num_tokens", "features_shape", "target_shape"):
        assert getattr(found, key) == getattr(data, key), key
    assert (list(found.feature_names), list(found.class_names)) == (list(data.feature_names), list(data.class_names))
    for key in ("of_features", "of_targets"):
        one, other = getattr(found, key), getattr(data, key)
        assert (one is None) == (other is None), key
        if one is not None:
            np.testing.assert_array_equal(one.mean, other.mean)
            np.testing.assert_array_equal(one.spread, other.spread)
    np.testing.assert_array_equal(found.target_scale, data.target_scale)
    if data.balance is not None:
        np.testing.assert_array_equal(found.balance, data.balance)
    zeros = found.train.rows(slice(2))
    assert [(array.shape, array.dtype) for array in zeros.arrays()] == [
        ((2, *array.shape[1:]), array.dtype) for array in data.first.with_arrays(data.first.arrays()).arrays()[: len(zeros.arrays())]
    ]
    assert not any(array.any() for array in found.train.rows(np.array([3, 1])).arrays())


DAMAGE = [
    (["features"], None),
    (["features", "shape"], [-1]),
    (["features", "shape"], [2**20, 2**20]),
    (["features", "shape"], ["3"]),
    (["features", "dtype"], "object"),
    (["features", "mean"], [1.0]),
    (["features", "spread"], [0.0, 1.0, 1.0]),
    (["features", "spread"], [[1.0], [2.0]]),
    (["features", "names"], 5),
    (["targets", "task"], "code"),
    (["targets", "arrays"], []),
    (["targets", "scale"], {"a": 1}),
    (["num_examples"], 0),
    (["num_examples"], True),
    (["num_classes"], "many"),
    (["class_names"], None),
]


@pytest.mark.fault(rows=[24])
@pytest.mark.parametrize(("keys", "value"), DAMAGE)
def test_damaged_descriptions_are_refused(keys, value):
    content = copy.deepcopy(described(prepared("real"), "x"))
    node = content
    for key in keys[:-1]:
        node = node[key]
    node[keys[-1]] = value
    with pytest.raises(CheckpointError, match=r"run/data\.json is damaged"):
        stand_in(content, "run/data.json")
