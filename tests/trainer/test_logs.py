import contextlib
import json
import math
import os
import struct
import threading
import tracemalloc

import numpy as np
import pytest
import tensorflow as tf
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from trainer import logs
from trainer.logs import Recorder

TAGS = ["loss", "grad_norm/global", "grad_norm/ä 50%d/kernel"]


def record(folder, first, rows, extra=None, last_step=0):
    with Recorder(folder, TAGS, True, last_step) as recorder:
        steps = np.arange(first, first + len(rows))
        recorder.put(steps, np.asarray(rows, np.float32), extra or {})
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
    record(tmp_path, 1, [[1, 2, 3], [np.nan, np.inf, -np.inf]], {2: {"eval/loss": math.nan, "eval/accuracy": 0.5}})
    assert lines(tmp_path)[1] == {
        "step": 2,
        **dict(zip(TAGS, ["NaN", "inf", "-inf"], strict=True)),
        "eval/loss": "NaN",
        "eval/accuracy": 0.5,
    }
    assert math.isnan(curves(tmp_path)["loss"][1][1])


def test_further_scalars_stand_in_the_lines_of_their_steps(tmp_path):
    extra = {3: {"eval/loss": 0.25}, 9: {"eval/loss": 0.5, "gradient_audit/error": 1e-7}, 12: {"eval/loss": 1e300}, 10: {}}
    record(tmp_path, 1, np.zeros((12, 3)), extra)
    assert [line["step"] for line in lines(tmp_path)] == list(range(1, 13))
    assert {line["step"]: {tag: line[tag] for tag in line if tag not in ("step", *TAGS)} for line in lines(tmp_path)} == {
        step: extra.get(step, {}) for step in range(1, 13)
    }
    assert curves(tmp_path)["eval/loss"] == [(3, 0.25), (9, 0.5), (12, math.inf)]
    assert curves(tmp_path)["gradient_audit/error"] == [(9, np.float32(1e-7))]


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


def test_tensorflow_reads_the_records_and_finds_their_checksums_right(tmp_path):
    rows = np.random.default_rng(0).normal(size=(200, 3)).astype(np.float32)
    record(tmp_path, 250, rows, {300: {"eval/loss": 0.5}})
    (path,) = (tmp_path / "tensorboard").iterdir()
    events = [tf.compat.v1.Event.FromString(record) for record in tf.data.TFRecordDataset(str(path)).as_numpy_iterator()]
    assert events[0].file_version == "brain.Event:2"
    assert (events[1].step, events[1].session_log.status) == (1, tf.compat.v1.SessionLog.START)
    assert [event.step for event in events[2:]] == [*range(250, 450), 300]
    assert all(event.wall_time == events[2].wall_time for event in events[2:])
    assert [[value.simple_value for value in event.summary.value] for event in events[2:-1]] == rows.tolist()
    assert [(value.tag, value.simple_value) for value in events[-1].summary.value] == [("eval/loss", 0.5)]
    content = bytearray(path.read_bytes())
    content[content.rindex(struct.pack("<f", rows[100, 1]))] ^= 1
    path.write_bytes(content)
    with pytest.raises(tf.errors.DataLossError):
        list(tf.data.TFRecordDataset(str(path)))


def test_more_numbers_than_are_encoded_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr(logs, "_PIECE", 10)
    rows = np.arange(300, dtype=np.float32).reshape(100, 3)
    record(tmp_path, 1, rows, {step: {"eval/loss": float(step)} for step in range(1, 101)})
    assert [[line[tag] for tag in TAGS] for line in lines(tmp_path)] == rows.tolist()
    assert [line["eval/loss"] for line in lines(tmp_path)] == list(range(1, 101))
    assert [value for _, value in curves(tmp_path)["eval/loss"]] == list(range(1, 101))


def test_rows_may_be_reused_once_they_are_handed_over(tmp_path):
    with Recorder(tmp_path, TAGS, True, 0) as recorder, stuck(recorder._lines) as file:
        buffer, steps = np.ones((4, 3), np.float32), np.arange(1, 5)
        recorder.put(steps, buffer, {})
        buffer[:], steps[:] = 2, 9
        file.go.set()
    assert [(line["step"], line["loss"]) for line in lines(tmp_path)] == [(step, 1) for step in range(1, 5)]


def test_what_flush_returns_from_is_on_the_disk(tmp_path, monkeypatch):
    synced = []
    monkeypatch.setattr(os, "fsync", lambda number: synced.append(os.fstat(number).st_size))
    with Recorder(tmp_path, TAGS, True, 0) as recorder:
        for step in range(1, 4):
            recorder.put(np.array([step]), np.zeros((1, 3), np.float32), {})
        recorder.flush()
        assert len(lines(tmp_path)) == len(curves(tmp_path)["loss"]) == 3
        assert synced == [(tmp_path / "metrics.jsonl").stat().st_size]
        assert recorder.waited > 0


def test_an_error_that_is_not_of_the_disk_is_raised(tmp_path, monkeypatch):
    with Recorder(tmp_path, TAGS, False, 0) as recorder:
        with pytest.raises(ValueError, match="cannot reshape"):
            recorder.put(np.array([1]), np.zeros((1, 2), np.float32), {})
        monkeypatch.setattr(recorder._lines, "write", lambda chunk: {}["no such"])
        recorder.put(np.array([1]), np.zeros((1, 3), np.float32), {})
        with pytest.raises(KeyError, match="no such"):
            recorder.flush()


def test_what_comes_later_is_not_waited_for(tmp_path):
    """As a checkpoint is saved while the loop hands over more and more."""
    with Recorder(tmp_path, TAGS, True, 0) as recorder, stuck(recorder._lines, recorder._events) as (line_file, event_file):
        recorder.put(np.array([1]), np.zeros((1, 3), np.float32), {})
        flush = in_thread(lambda: recorder.flush(1))
        assert line_file.reached.wait(timeout=60)
        recorder.put(np.array([2]), np.zeros((1, 3), np.float32), {})
        line_file.go.set()
        assert event_file.reached.wait(timeout=60)
        assert flush.is_alive()
        line_file.go.clear()  # for the second step's line
        event_file.go.set()
        flush.join(timeout=60)
        assert not flush.is_alive()
        assert lines(tmp_path)[0]["step"] == 1
        assert curves(tmp_path)["loss"][0][0] == 1


class StuckFile:
    """A file on a disk that takes nothing before `go`."""

    def __init__(self, file):
        self._file = file
        self.go, self.reached, self.num_writes = threading.Event(), threading.Event(), 0

    def write(self, content):
        self.num_writes += 1
        self.reached.set()
        self.go.wait()
        return self._file.write(content)

    def __getattr__(self, name):
        return getattr(self._file, name)


@contextlib.contextmanager
def stuck(*files):
    """Stuck files in the place of those of the recorder's `files`, which are stuck at most until the end."""
    found = []
    for file in files:
        file._file = StuckFile(file._file)
        found.append(file._file)
    try:
        yield found if len(found) > 1 else found[0]
    finally:
        for file in found:
            file.go.set()


def in_thread(function):
    """Runs what may block, so that a test can say that it does."""
    thread = threading.Thread(target=function, daemon=True)
    thread.start()
    return thread


def signal_of_waiting(recorder, monkeypatch):
    """Set once the recorder lets its caller wait."""
    signal, wait = threading.Event(), recorder._changed.wait

    def waiting(timeout=None):
        if threading.current_thread() is not recorder._thread:
            signal.set()
        return wait(timeout)

    monkeypatch.setattr(recorder._changed, "wait", waiting)
    return signal


SIZE = 1000  # steps of a chunk


def put_chunks(recorder, chunks):
    """Chunks whose loss is the chunk's number."""
    for i in chunks:
        recorder.put(np.arange(SIZE * i + 1, SIZE * (i + 1) + 1), np.full((SIZE, 3), i, np.float32), {SIZE * (i + 1): {"eval/loss": i}})


def losses(folder):
    """The losses of all lines, whose steps are 1, 2, 3 ..., each number once for all its lines in a row."""
    found = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in found] == list(range(1, len(found) + 1))
    return [int(found[i]["loss"]) for i in range(0, len(found), SIZE)]


@pytest.mark.fault
def test_a_stuck_disk_does_not_stop_the_loop(tmp_path, capsys):
    with Recorder(tmp_path, TAGS, True, 0) as recorder, stuck(recorder._lines) as file:
        loop = in_thread(lambda: put_chunks(recorder, range(10)))
        loop.join(timeout=60)
        assert not loop.is_alive()
        assert (tmp_path / "metrics.jsonl").stat().st_size == 0
        file.go.set()
        recorder.flush()
        assert losses(tmp_path) == list(range(10))
        assert recorder._num_bytes == 0
    assert len(curves(tmp_path)["loss"]) == 10 * SIZE
    assert capsys.readouterr().err == ""


@pytest.mark.fault
def test_flush_waits_for_what_is_being_written(tmp_path, monkeypatch):
    with Recorder(tmp_path, TAGS, False, 0) as recorder, stuck(recorder._lines) as file:
        waits = signal_of_waiting(recorder, monkeypatch)
        recorder.put(np.array([1]), np.zeros((1, 3), np.float32), {})
        assert file.reached.wait(timeout=60)
        flush = in_thread(recorder.flush)
        assert waits.wait(timeout=60)
        file.go.set()
        flush.join()
    assert len(lines(tmp_path)) == 1


@pytest.mark.fault
def test_small_chunks_that_had_to_wait_are_written_as_one(tmp_path):
    with Recorder(tmp_path, TAGS, False, 0) as recorder, stuck(recorder._lines) as file:
        for step in range(1000, 1500):
            recorder.put(np.array([step]), np.zeros((1, 3), np.float32), {step: {"eval/loss": 1.0}} if step % 100 == 0 else {})
        file.go.set()
        recorder.flush()
        assert file.num_writes <= 2
    assert [line["step"] for line in lines(tmp_path)] == list(range(1000, 1500))
    assert [line["step"] for line in lines(tmp_path) if "eval/loss" in line] == [1000, 1100, 1200, 1300, 1400]


@pytest.mark.fault
def test_pending_events_are_given_up_before_the_loop_waits(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(logs, "_PENDING_BYTES", 9 * SIZE * 28)  # eight chunks and some
    monkeypatch.setattr(logs, "_PIECE", 3 * SIZE)  # no two chunks are written as one
    monkeypatch.setattr(logs, "_FEW", 3 * SIZE)
    with Recorder(tmp_path, TAGS, True, 0) as recorder, stuck(recorder._lines, recorder._events) as (line_file, event_file):
        put_chunks(recorder, range(8))
        line_file.go.set()
        assert event_file.reached.wait(timeout=60)  # all lines are written, and the first chunk's events are being written
        loop = in_thread(lambda: put_chunks(recorder, range(8, 14)))
        loop.join(timeout=60)
        assert not loop.is_alive()
        assert recorder._num_bytes <= logs._PENDING_BYTES
        event_file.go.set()
        recorder.flush()
        assert losses(tmp_path) == list(range(14))
    found = {value for _, value in curves(tmp_path)["loss"]}
    assert found >= {0, 13}
    assert not found & set(range(1, 8))
    assert capsys.readouterr().err.count(f"records of steps {SIZE + 1} to ") == 1


@pytest.mark.fault
def test_the_loop_waits_where_metrics_jsonl_cannot_keep_up_and_memory_is_bounded(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(logs, "_PENDING_BYTES", 2**19)
    with Recorder(tmp_path, TAGS, True, 0) as recorder, stuck(recorder._lines) as file:
        waits = signal_of_waiting(recorder, monkeypatch)
        tracemalloc.start()
        loop = in_thread(lambda: put_chunks(recorder, range(60)))  # 14 MB
        assert waits.wait(timeout=60)
        assert recorder._num_bytes <= logs._PENDING_BYTES
        assert loop.is_alive()
        file.go.set()
        loop.join()
        recorder.flush()
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 2**19 + 8e6  # a piece's lines and records, and what they are made of
        assert losses(tmp_path) == list(range(60))
    assert capsys.readouterr().err.count("warning: ") <= 1  # that TensorBoard's records are given up


class FullFile:
    """A disk that is full in the middle of the second thing that is written to it, and for good."""

    def __init__(self, file):
        self._file, self.num_writes = file, 0

    def write(self, content):
        self.num_writes += 1
        if self.num_writes > 2:
            raise OSError(28, "No space left on device")
        return self._file.write(content if self.num_writes == 1 else content[: len(content) // 2])

    def __getattr__(self, name):
        return getattr(self._file, name)


@pytest.mark.fault(rows=[6])
def test_nothing_is_written_by_half(tmp_path, capsys):
    with Recorder(tmp_path, TAGS, True, 0) as recorder:
        for file in (recorder._lines, recorder._events):
            file._file = FullFile(file._file)
        for step in range(1, 6):
            recorder.put(np.array([step]), np.zeros((1, 3), np.float32), {})
            recorder.flush()
    assert [line["step"] for line in lines(tmp_path)] == [1]
    assert [step for step, _ in curves(tmp_path)["loss"]] == [1]
    assert capsys.readouterr().err.count("warning: metrics can't be written") == 1


@pytest.mark.fault(rows=[6])
def test_whole_lines_that_found_room_stay(tmp_path, capsys):
    with Recorder(tmp_path, TAGS, False, 0) as recorder:
        recorder._lines._file = FullFile(recorder._lines._file)
        for steps in ([1], range(2, 9)):
            recorder.put(np.array(steps), np.zeros((len(steps), 3), np.float32), {})
            recorder.flush()
    assert [line["step"] for line in lines(tmp_path)] == [1, 2, 3, 4]  # half of seven
    assert capsys.readouterr().err.count("warning: metrics can't be written") == 1


@pytest.mark.fault(rows=[6])
def test_a_full_disk_is_one_warning_and_no_end(tmp_path, capsys):
    with Recorder(tmp_path, TAGS, False, 0) as recorder, open("/dev/full", "ab", buffering=0) as full:
        recorder._lines.close()
        recorder._lines._file = full
        for step in range(1, 50):
            recorder.put(np.array([step]), np.zeros((1, 3), np.float32), {})
        recorder.flush()
    assert capsys.readouterr().err.count("warning: metrics can't be written") == 1
