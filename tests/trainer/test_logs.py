import json
import math

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from trainer.logs import Recorder

TAGS = ["loss", "grad_norm/global", "grad_norm/ä 50%d/kernel"]


def record(folder, first, rows, evaluation=None, last_step=0):
    with Recorder(folder, TAGS, True, last_step) as recorder:
        steps = np.arange(first, first + len(rows))
        recorder.put(steps, np.asarray(rows, np.float32), evaluation or {})
        recorder.flush()


def lines(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def curves(folder):
    events = EventAccumulator(str(folder / "tensorboard"), size_guidance={"tensors": 0, "scalars": 0})
    events.Reload()
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def test_every_number_reaches_both_files_to_the_bit(tmp_path):
    rows = np.random.default_rng(0).normal(size=(300, 3)).astype(np.float32) * np.float32(10) ** np.arange(-30, 30, 0.2)[:, None].astype(
        np.float32
    )
    record(tmp_path, 1, rows)
    for step, (line, row) in enumerate(zip(lines(tmp_path), rows, strict=True), 1):
        assert line["step"] == step
        np.testing.assert_array_equal(np.float32([line[tag] for tag in TAGS]), row)
    found = curves(tmp_path)
    assert found.keys() == set(TAGS)
    for column, tag in enumerate(TAGS):
        assert found[tag] == [(step, float(value)) for step, value in enumerate(rows[:, column], 1)]


@pytest.mark.parametrize("first", [1, 127, 16_383, 2_097_151, 268_435_455])
def test_steps_of_any_length(tmp_path, first):
    record(tmp_path, first, np.ones((3, 3)))
    assert [step for step, _ in curves(tmp_path)["loss"]] == [first, first + 1, first + 2]


def test_values_that_are_not_finite(tmp_path):
    record(tmp_path, 1, [[1, 2, 3], [np.nan, np.inf, -np.inf]], {"eval/loss": math.nan, "eval/accuracy": 0.5})
    assert lines(tmp_path)[1] == {
        "step": 2,
        **dict(zip(TAGS, ["NaN", "inf", "-inf"], strict=True)),
        "eval/loss": "NaN",
        "eval/accuracy": 0.5,
    }
    assert math.isnan(curves(tmp_path)["loss"][1][1])


def test_an_evaluation_stands_in_the_line_of_its_step(tmp_path):
    record(tmp_path, 1, np.zeros((4, 3)), {"eval/loss": 0.25})
    assert [line.get("eval/loss") for line in lines(tmp_path)] == [None, None, None, 0.25]
    assert curves(tmp_path)["eval/loss"] == [(4, 0.25)]


def test_a_resumed_run_has_one_line_and_one_point_a_step(tmp_path):
    record(tmp_path, 1, np.full((37, 3), 1.0))
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 38, "lo')  # cut off in the middle
    record(tmp_path, 21, np.full((10, 3), 2.0), last_step=20)
    assert [line["step"] for line in lines(tmp_path)] == list(range(1, 31))
    assert [line["loss"] for line in lines(tmp_path)] == [1.0] * 20 + [2.0] * 10
    assert curves(tmp_path)["loss"] == [(step, 1.0 if step <= 20 else 2.0) for step in range(1, 31)]


def test_without_tensorboard_there_is_no_event_file(tmp_path):
    with Recorder(tmp_path, TAGS, False, 0) as recorder:
        recorder.put(np.array([1]), np.zeros((1, 3), np.float32), {})
    assert len(lines(tmp_path)) == 1
    assert not (tmp_path / "tensorboard").exists()


@pytest.mark.fault
def test_a_full_disk_is_one_warning_and_no_end(tmp_path, capsys):
    with Recorder(tmp_path, TAGS, False, 0) as recorder, open("/dev/full", "ab", buffering=0) as full:
        recorder._lines.close()
        recorder._lines = full
        for step in range(1, 50):
            recorder.put(np.array([step]), np.zeros((1, 3), np.float32), {})
        recorder.flush()
    assert capsys.readouterr().err.count("warning: metrics can't be written") == 1
