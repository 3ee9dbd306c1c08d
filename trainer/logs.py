"""What a run records of its steps: metrics.jsonl and TensorBoard's event file, written by a thread while the device works.

Rows of scalars arrive stacked, once per chunk, and are encoded for the whole chunk at once: writing summaries one by one costs
more than a small model's step.
"""

import json
import math
import os
import queue
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

_QUEUED_CHUNKS = 4  # bounds the memory of what is not yet written


class Recorder:
    """Writes one line a step to metrics.jsonl and, beside it, TensorBoard events. Use as a context manager."""

    def __init__(self, folder: Path, tags: Sequence[str], tensorboard: bool, last_step: int) -> None:
        """Opens the files to go on after `last_step`; lines of later steps, of a run that was cut off, are dropped."""
        self._tags = tags
        path = folder / "metrics.jsonl"
        _drop_after(path, last_step)
        self._lines = path.open("ab", buffering=0)
        self._template = (
            "{" + '"step": %d, ' + ", ".join(f"{json.dumps(tag)}: ".replace("%", "%%") + "%.9g" for tag in tags)
        )  # %.9g: a float32 to the bit
        self._queue: queue.Queue[Any] = queue.Queue(_QUEUED_CHUNKS)
        self._failed = False
        self._bug: Exception | None = None
        self._events = self._attempt(EventFile, folder / "tensorboard", last_step) if tensorboard else None
        self._thread = threading.Thread(target=self._write_all, name="recorder", daemon=True)
        self._thread.start()

    def __enter__(self) -> "Recorder":
        return self

    def __exit__(self, *_: object) -> None:
        self._queue.put(None)
        self._thread.join()
        self._lines.close()
        if self._events:
            self._attempt(self._events.close)

    def put(self, steps: np.ndarray, rows: np.ndarray, evaluation: dict[str, float]) -> None:
        """Hands over rows float32 [n, len(tags)] of `steps` int [n]; `evaluation` belongs to the last of them."""
        self._queue.put((steps, rows, evaluation, time.time()))

    def flush(self) -> None:
        """Returns when all that was handed over is on the disk."""
        self._queue.join()
        if self._bug:
            raise self._bug
        self._attempt(os.fsync, self._lines.fileno())

    def _write_all(self) -> None:
        while (item := self._queue.get()) is not None:
            try:
                self._attempt(self._write, *item)
            except Exception as error:  # not of the disk: a bug, raised where the loop sees it
                self._bug = error
            finally:
                self._queue.task_done()

    def _attempt(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Training is worth more than its record: what can't be written is one warning, not one a step."""
        try:
            return function(*arguments)
        except (OSError, tf.errors.OpError) as error:
            if not self._failed:
                print(f"warning: metrics can't be written: {error}; training goes on", file=sys.stderr, flush=True)
            self._failed = True
            return None

    def _write(self, steps: np.ndarray, rows: np.ndarray, evaluation: dict[str, float], wall_time: float) -> None:
        lines = [self._template % (step, *row) for step, row in zip(steps.tolist(), rows.tolist(), strict=True)]
        for i in np.flatnonzero(~np.isfinite(rows).all(axis=1)):
            values = {"step": int(steps[i])} | dict(zip(self._tags, map(plain, rows[i].tolist()), strict=True))
            lines[i] = json.dumps(values)[:-1]
        if evaluation:
            lines[-1] += ", " + json.dumps({tag: plain(value) for tag, value in evaluation.items()})[1:-1]
        self._append("".join(f"{line}}}\n" for line in lines).encode())
        if self._events:
            self._events.write(self._tags, steps, rows, wall_time)
            if evaluation:
                self._events.write(list(evaluation), steps[-1:], np.array([list(evaluation.values())], np.float32), wall_time)
            self._events.flush()

    def _append(self, content: bytes) -> None:
        """All of it or nothing: half a line would spoil the next."""
        size = os.fstat(self._lines.fileno()).st_size
        try:
            written = 0
            while written < len(content):  # a disk that is filling takes a part
                written += self._lines.write(content[written:])
        except OSError:
            os.ftruncate(self._lines.fileno(), size)
            raise


class EventFile:
    """A TensorBoard event file, written with whole chunks of steps encoded at once."""

    def __init__(self, folder: Path, last_step: int) -> None:
        folder.mkdir(exist_ok=True)
        self._writer = tf.io.TFRecordWriter(str(folder / f"events.out.tfevents.{time.time_ns():020d}.{socket.gethostname()}.{os.getpid()}"))
        version = tf.compat.v1.Event(wall_time=time.time(), file_version="brain.Event:2")
        # START makes TensorBoard forget the points from this step on that an earlier, cut-off part of the run has left.
        start = tf.compat.v1.Event(
            wall_time=time.time(), step=last_step + 1, session_log=tf.compat.v1.SessionLog(status=tf.compat.v1.SessionLog.START)
        )
        for event in (version, start):
            self._writer.write(event.SerializeToString())

    def write(self, tags: Sequence[str], steps: np.ndarray, rows: np.ndarray, wall_time: float) -> None:
        """One event for each step with a scalar for each tag; rows is [len(steps), len(tags)]."""
        template, wall_time_at, step_at, values_at = _layout(tags)
        records = np.tile(np.frombuffer(template, np.uint8), (len(steps), 1))
        records[:, wall_time_at : wall_time_at + 8] = np.frombuffer(struct.pack("<d", wall_time), np.uint8)
        for k in range(5):  # a varint of always five bytes, seven bits in each, lowest first
            records[:, step_at + k] = (steps >> (7 * k)) & 0x7F | (0x80 if k < 4 else 0)
        floats = np.ascontiguousarray(rows, "<f4").view(np.uint8).reshape(len(steps), len(tags), 4)
        for column, at in enumerate(values_at):
            records[:, at : at + 4] = floats[:, column]
        for record in records:
            self._writer.write(record.tobytes())

    def flush(self) -> None:
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


def _layout(tags: Sequence[str]) -> tuple[bytes, int, int, list[int]]:
    """The bytes of an Event with zeros for its numbers, and where its wall time, its step and each tag's value stand.

    Protocol buffer fields: Event.wall_time = 1 (double), step = 2 (varint), summary = 5; Summary.value = 1; Value.tag = 1,
    simple_value = 2 (float).
    """
    summary, values_at = b"", []
    for tag in tags:
        name = tag.encode()
        value = b"\x0a" + _varint(len(name)) + name + b"\x15" + bytes(4)
        summary += b"\x0a" + _varint(len(value)) + value
        values_at.append(len(summary) - 4)
    head = b"\x09" + bytes(8) + b"\x10" + bytes(5) + b"\x2a" + _varint(len(summary))
    return head + summary, 1, 10, [len(head) + at for at in values_at]


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*out, number])


def plain(value: float | str) -> float | str:
    """JSON has no NaN and no infinity: "NaN", "inf" and "-inf" stand for them."""
    if isinstance(value, str):
        return value
    return value if math.isfinite(value) else "NaN" if math.isnan(value) else "inf" if value > 0 else "-inf"


def _drop_after(path: Path, last_step: int) -> None:
    """Leaves the whole lines of steps up to `last_step`."""
    if not path.exists():
        return
    kept = [line for line in path.read_bytes().splitlines(keepends=True) if 0 < _step_of(line) <= last_step]
    temporary = path.with_name(".metrics.jsonl.tmp")
    temporary.write_bytes(b"".join(kept))
    temporary.replace(path)


def _step_of(line: bytes) -> int:
    try:
        return json.loads(line)["step"] if line.endswith(b"\n") else 0
    except (ValueError, KeyError, TypeError):
        return 0  # cut off, by a kill or a full disk
