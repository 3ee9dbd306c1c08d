import hashlib
import json
import os
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from trainer import snapshots
from trainer.errors import CheckpointError
from trainer.snapshots import Snapshot

ROOT = Path(__file__).parents[2]

ARRAYS = {
    "model/0000/kernel": np.arange(6, dtype=np.float32).reshape(2, 3),
    "model/0001/half": np.array([1.5, -2.0], ml_dtypes.bfloat16),
    "optimizer/0000/iterations": np.array(7, np.int64),
}


def saved_steps(folder):
    return sorted(int(path.name.removeprefix("step-")) for path in folder.glob("step-*"))


def save(folder, step, keep=2, best_step=None):
    snapshots.save(folder, Snapshot(step, ARRAYS, {"step": step}), keep, best_step)
    return folder / f"step-{step:08d}"


def test_what_is_saved_is_loaded(tmp_path):
    save(tmp_path / "checkpoints", 7)
    found, problems = snapshots.load_newest(tmp_path / "checkpoints")
    assert (found.step, found.state, problems) == (7, {"step": 7}, [])
    assert found.arrays.keys() == ARRAYS.keys()
    for name, array in ARRAYS.items():
        assert found.arrays[name].dtype == array.dtype
        np.testing.assert_array_equal(found.arrays[name], array)


def test_no_folder_no_checkpoint(tmp_path):
    assert snapshots.load_newest(tmp_path / "none") == (None, [])


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
    found, problems = snapshots.load_newest(tmp_path)
    assert found.step == 1
    assert len(problems) == 1
    assert str(newest) in problems[0]


def test_a_damaged_one_is_set_aside_and_not_counted_among_those_to_keep(tmp_path):
    save(tmp_path, 1, keep=1)
    os.truncate(save(tmp_path, 3, keep=2) / "arrays.npz", 40)
    snapshots.load_newest(tmp_path)
    save(tmp_path, 2, keep=1)
    save(tmp_path, 3, keep=1)
    assert snapshots.load_newest(tmp_path)[0].step == 3
    assert sorted(path.name for path in tmp_path.iterdir()) == ["damaged-step-00000003", "step-00000003"]


def test_damaged_ones_alone_are_an_error(tmp_path):
    os.truncate(save(tmp_path, 1) / "arrays.npz", 0)
    with pytest.raises(CheckpointError, match=r"no checkpoint in .* is valid"):
        snapshots.load_newest(tmp_path)


def test_a_folder_that_cannot_be_read_is_no_folder_without_checkpoints(tmp_path):
    (tmp_path / "checkpoints").touch()  # as one without permission, which the tests' user may have on all
    with pytest.raises(CheckpointError, match="can't be read: Not a directory"):
        snapshots.load_newest(tmp_path / "checkpoints")


def test_a_manifest_nested_without_end_is_damaged(tmp_path):
    save(tmp_path, 1)
    (save(tmp_path, 2) / "manifest.json").write_text("[" * 200_000)
    snapshot, problems = snapshots.load_newest(tmp_path)
    assert snapshot.step == 1
    assert "is damaged: RecursionError" in problems[0]


def test_litter_of_an_interrupted_save_is_removed_and_never_loaded(tmp_path):
    save(tmp_path, 1)
    litter = tmp_path / ".step-00000002.tmp"
    litter.mkdir()
    (litter / "arrays.npz").write_bytes(b"half")
    assert snapshots.load_newest(tmp_path)[0].step == 1
    snapshots.clean(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]


def test_nothing_is_unpickled(tmp_path):
    path = save(tmp_path, 1)
    np.savez(path / "arrays.npz", evil=np.array([{"a": 1}], dtype=object))
    content = (path / "arrays.npz").read_bytes()
    manifest = json.loads((path / "manifest.json").read_text())
    del manifest["manifest_sha256"]
    manifest |= {"size": len(content), "sha256": hashlib.sha256(content).hexdigest(), "dtypes": {"evil": "object"}}
    (path / "manifest.json").write_text(json.dumps(manifest | {"manifest_sha256": snapshots._digest(manifest)}))
    with pytest.raises(CheckpointError, match="pickle"):
        snapshots.load(path)


def test_the_manifest_says_what_it_is_of(tmp_path):
    about = {"seed": 3, "config_sha256": "ab", "versions": {"numpy": "2"}}
    snapshots.save(tmp_path, Snapshot(7, ARRAYS, {"loop": 1}, about), 2, best_step=5)
    manifest = json.loads((tmp_path / "step-00000007" / "manifest.json").read_text())
    content = (tmp_path / "step-00000007" / "arrays.npz").read_bytes()
    assert manifest["size"] == len(content)
    assert manifest["sha256"] == hashlib.sha256(content).hexdigest()
    assert (manifest["step"], manifest["best_step"], manifest["about"], manifest["state"]) == (7, 5, about, {"loop": 1})
    assert snapshots.load_newest(tmp_path)[0].about == about


def damage(path):
    content = bytearray((path / "arrays.npz").read_bytes())
    content[len(content) // 2] ^= 1
    (path / "arrays.npz").write_bytes(content)


@pytest.mark.fault(rows=[3])
def test_what_is_damaged_pushes_no_good_one_out(tmp_path):
    for step in (1, 2, 3):
        newest = save(tmp_path, step, keep=2)
    damage(newest)
    damage(save(tmp_path, 4, keep=2))
    assert saved_steps(tmp_path) == [2, 3, 4]
    assert snapshots.load_newest(tmp_path)[0].step == 2
    for step in (5, 6):
        save(tmp_path, step, keep=2)
    assert saved_steps(tmp_path) == [5, 6]


@pytest.mark.fault(rows=[15])
def test_what_is_not_finite_pushes_no_good_one_out_and_is_passed_over(tmp_path):
    save(tmp_path, 1, keep=1)
    for step in (2, 3):
        snapshots.save(tmp_path, Snapshot(step, ARRAYS, {}, not_finite=["model/0000/kernel"]), keep=1, best_step=None)
    assert saved_steps(tmp_path) == [1, 2, 3]
    found, problems = snapshots.load_newest(tmp_path)
    assert found.step == 1
    assert len(problems) == 2
    assert "step-00000003 is of no use: model/0000/kernel held NaN or infinities" in problems[0]


def test_one_of_another_step_is_not_taken_for_this_one(tmp_path):
    save(tmp_path, 1)
    save(tmp_path, 2).rename(tmp_path / "step-00000009")
    found, problems = snapshots.load_newest(tmp_path)
    assert found.step == 1
    assert "manifest.json is of step 2" in problems[0]


@pytest.mark.fault(rows=[5])
def test_what_was_not_written_as_it_is_in_memory_never_counts(tmp_path, monkeypatch):
    """A disk that takes everything and keeps something else."""
    save(tmp_path, 1, keep=1)
    savez = np.savez

    def spoiled(file, **arguments):
        savez(file, **arguments)
        file.seek(200)
        file.write(b"\xff" * 4)

    monkeypatch.setattr(np, "savez", spoiled)
    with pytest.raises(CheckpointError, match="can't be written"):
        save(tmp_path, 2, keep=1)
    assert saved_steps(tmp_path) == [1]


def test_nothing_counts_before_what_belongs_beside_it(tmp_path):
    def before(step):
        assert step == 3
        assert snapshots.load_newest(tmp_path) == (None, [])

    snapshots.save(tmp_path, Snapshot(3, ARRAYS, {}), 1, None, before)
    assert snapshots.load_newest(tmp_path)[0].step == 3
