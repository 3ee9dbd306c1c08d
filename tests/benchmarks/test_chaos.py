import shutil

import numpy as np
import pytest

from benchmarks import chaos
from trainer import snapshots


@pytest.mark.fault(rows=[1])
def test_a_run_that_is_killed_ends_as_the_undisturbed_one(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["chaos", "--kills", "4", "--steps", "400", "--seed", "1"])
    assert chaos.main() == 0, capsys.readouterr().err
    assert "4 times killed" in capsys.readouterr().out


def test_a_difference_of_one_bit_is_told(tmp_path):
    one, other = tmp_path / "one", tmp_path / "other"
    snapshots.save(one / "checkpoints", snapshots.Snapshot(3, {"w": np.zeros(2, np.float32)}, {"best": {}}), 1, None)
    (one / "metrics.jsonl").write_text('{"step": 1}\n')
    shutil.copytree(one, other)
    assert chaos.differences(one, other) == []
    shutil.rmtree(other / "checkpoints")
    snapshots.save(other / "checkpoints", snapshots.Snapshot(3, {"w": np.array([0.0, -0.0], np.float32)}, {"best": {"step": 2}}), 1, None)
    (other / "metrics.jsonl").write_text('{"step": 2}\n')
    assert [text.split(" differs")[0] for text in chaos.differences(one, other)] == ["metrics.jsonl", "the loop's state", "w"]
