import threading

import numpy as np
import pytest

from trainer import snapshots
from trainer.errors import CheckpointError
from trainer.saver import Saver
from trainer.snapshots import Snapshot


class Disk:
    """Stands between a saver and its folder: takes nothing before `go`, and refuses what is to fail."""

    def __init__(self, monkeypatch):
        self.go, self.reached, self.failing = threading.Event(), threading.Event(), set()
        self._save = snapshots.save
        monkeypatch.setattr(snapshots, "save", self.save)

    def save(self, folder, snapshot, *arguments):
        self.reached.set()
        assert self.go.wait(timeout=60)
        if snapshot.step in self.failing:
            raise CheckpointError(f"step {snapshot.step} can't be written")
        self._save(folder, snapshot, *arguments)


@pytest.fixture
def disk(monkeypatch):
    disk = Disk(monkeypatch)
    yield disk
    disk.go.set()


def snapshot(step):
    return Snapshot(step, {"w": np.full(4, step, np.float32)}, {})


def saver(folder, flush=lambda step: None):
    return Saver(folder, 2, flush)


def saved(folder):
    return [snapshots.load(path).step for path in sorted(folder.glob("step-*"))]


@pytest.mark.fault(rows=[5])
def test_a_stuck_disk_holds_the_second_save_up_and_not_the_first(disk, tmp_path):
    with saver(tmp_path) as saves:
        saves.put(snapshot(1), None, last=False)
        assert disk.reached.wait(timeout=60)
        assert saved(tmp_path) == []
        second = threading.Thread(target=lambda: saves.put(snapshot(2), None, last=False))
        second.start()
        second.join(timeout=0.1)
        assert second.is_alive()
        disk.go.set()
        second.join()
        assert 1 in saved(tmp_path)
    assert saved(tmp_path) == [1, 2]


def test_the_last_one_is_on_the_disk_when_it_returns(tmp_path):
    with saver(tmp_path) as saves:
        saves.put(snapshot(1), None, last=False)
        saves.put(snapshot(2), None, last=True)
        assert saved(tmp_path) == [1, 2]


def test_what_belongs_beside_a_checkpoint_is_there_before_it_counts(tmp_path):
    flushed = []

    def flush(step):
        flushed.append((step, saved(tmp_path)))

    with saver(tmp_path, flush) as saves:
        saves.put(snapshot(3), None, last=False)
        saves.put(snapshot(5), None, last=True)
    assert flushed == [(3, []), (5, [3])]


@pytest.mark.fault(rows=[5])
def test_a_failure_is_a_warning_and_the_third_in_a_row_an_error(disk, tmp_path, capsys):
    disk.failing = {1, 2, 4, 5, 6}
    disk.go.set()
    with saver(tmp_path) as saves:
        for step in (1, 2, 3, 4, 5):
            saves.put(snapshot(step), None, last=False)
        with pytest.raises(CheckpointError, match="step 6 can't be written"):
            saves.put(snapshot(6), None, last=False)
    assert saved(tmp_path) == [3]
    assert capsys.readouterr().out.count("older ones are as they were, and training goes on") == 4


@pytest.mark.fault(rows=[5])
def test_the_last_one_may_not_fail(disk, tmp_path, capsys):
    disk.failing = {1}
    disk.go.set()
    with saver(tmp_path) as saves, pytest.raises(CheckpointError, match="step 1 can't be written"):
        saves.put(snapshot(1), None, last=True)
    assert capsys.readouterr().out == ""


def test_an_error_that_is_not_of_the_disk_is_raised(tmp_path):
    with pytest.raises(KeyError, match="no such"), saver(tmp_path, lambda step: {}["no such"]) as saves:
        saves.put(snapshot(1), None, last=False)
