import hashlib
import json
import os

import ml_dtypes
import numpy as np
import pytest

from trainer import checkpoints
from trainer.checkpoints import Snapshot
from trainer.errors import CheckpointError

ARRAYS = {
    "model/0000/kernel": np.arange(6, dtype=np.float32).reshape(2, 3),
    "model/0001/half": np.array([1.5, -2.0], ml_dtypes.bfloat16),
    "optimizer/0000/iterations": np.array(7, np.int64),
}


def saved_steps(folder):
    return sorted(int(path.name.removeprefix("step-")) for path in folder.iterdir())


def save(folder, step, keep=2, best_step=None):
    checkpoints.save(folder, Snapshot(step, ARRAYS, {"step": step}), keep, best_step)
    return folder / f"step-{step:08d}"


def test_what_is_saved_is_loaded(tmp_path):
    save(tmp_path / "checkpoints", 7)
    found, problems = checkpoints.load_newest(tmp_path / "checkpoints")
    assert (found.step, found.state, problems) == (7, {"step": 7}, [])
    assert found.arrays.keys() == ARRAYS.keys()
    for name, array in ARRAYS.items():
        assert found.arrays[name].dtype == array.dtype
        np.testing.assert_array_equal(found.arrays[name], array)


def test_no_folder_no_checkpoint(tmp_path):
    assert checkpoints.load_newest(tmp_path / "none") == (None, [])


def test_newest_and_best_are_kept(tmp_path):
    for step in (1, 2, 3, 4, 5):
        save(tmp_path, step, keep=2, best_step=2)
    assert saved_steps(tmp_path) == [2, 4, 5]


@pytest.mark.parametrize(
    "damage", ["flip", "truncate", "no arrays", "no manifest", "no checksum", "empty manifest", "not a manifest", "step"]
)
def test_a_damaged_one_is_passed_over_and_named(tmp_path, damage):
    save(tmp_path, 1)
    newest = save(tmp_path, 2)
    arrays, manifest = newest / "arrays.npz", newest / "manifest.json"
    if damage == "flip":
        content = bytearray(arrays.read_bytes())
        content[len(content) // 2] ^= 1
        arrays.write_bytes(content)
    elif damage == "truncate":
        os.truncate(arrays, 40)
    elif damage == "no arrays":
        arrays.unlink()
    elif damage == "no manifest":
        manifest.unlink()
    elif damage == "no checksum":
        manifest.write_text(json.dumps({"step": 2}))
    elif damage == "step":
        manifest.write_text(manifest.read_text().replace('"step": 2', '"step": 3'))
    else:
        manifest.write_text("" if damage == "empty manifest" else "[]")
    found, problems = checkpoints.load_newest(tmp_path)
    assert found.step == 1
    assert len(problems) == 1
    assert str(newest) in problems[0]


def test_a_damaged_one_is_set_aside_and_not_counted_among_those_to_keep(tmp_path):
    save(tmp_path, 1, keep=1)
    os.truncate(save(tmp_path, 3, keep=2) / "arrays.npz", 40)
    checkpoints.load_newest(tmp_path)
    save(tmp_path, 2, keep=1)
    save(tmp_path, 3, keep=1)
    assert checkpoints.load_newest(tmp_path)[0].step == 3
    assert sorted(path.name for path in tmp_path.iterdir()) == ["damaged-step-00000003", "step-00000003"]


def test_damaged_ones_alone_are_an_error(tmp_path):
    os.truncate(save(tmp_path, 1) / "arrays.npz", 0)
    with pytest.raises(CheckpointError, match=r"no checkpoint in .* is valid"):
        checkpoints.load_newest(tmp_path)


def test_litter_of_an_interrupted_save_is_removed_and_never_loaded(tmp_path):
    save(tmp_path, 1)
    litter = tmp_path / ".step-00000002.tmp"
    litter.mkdir()
    (litter / "arrays.npz").write_bytes(b"half")
    assert checkpoints.load_newest(tmp_path)[0].step == 1
    checkpoints.clean(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]


def test_nothing_is_unpickled(tmp_path):
    path = save(tmp_path, 1)
    np.savez(path / "arrays.npz", evil=np.array([{"a": 1}], dtype=object))
    content = (path / "arrays.npz").read_bytes()
    manifest = json.loads((path / "manifest.json").read_text())
    del manifest["manifest_sha256"]
    manifest |= {"size": len(content), "sha256": hashlib.sha256(content).hexdigest(), "dtypes": {"evil": "object"}}
    (path / "manifest.json").write_text(json.dumps(manifest | {"manifest_sha256": checkpoints._digest(manifest)}))
    with pytest.raises(CheckpointError, match="pickle"):
        checkpoints.load(path)
