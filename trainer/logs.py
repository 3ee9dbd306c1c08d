"""What a run records of its steps: metrics.jsonl and TensorBoard's event file, written by a thread while the device works.

Rows of scalars arrive stacked, once per chunk, and are encoded for the whole chunk at once in NumPy, which lets go of Python's lock
meanwhile: a step of 13 scalars costs a microsecond, where formatting its line and framing its record one by one costs ten. For that,
numbers have the same width everywhere: in metrics.jsonl nine significant digits and an exponent ("loss": 1.23456789e-01, a float32 to
the bit), in TensorBoard's records their four bytes, so that all records of a chunk differ in these bytes alone, and their checksums follow.

A slow disk stands in nobody's way: what is not yet written is kept as float32, up to _PENDING_BYTES. Lines of metrics.jsonl go first.
Beyond that bound TensorBoard's records of steps whose lines are written are given up, and only a disk that is too slow for metrics.jsonl
itself makes the loop wait.
"""

import collections
import dataclasses
import io
import itertools
import json
import math
import os
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from trainer.encoding import NUMBER_WIDTH, Records, decimals, event, filled, framed, sized, varint
from trainer.errors import ConfigError

Extra = Mapping[int, Mapping[str, float]]  # step to further scalars of it, tag to value

_PENDING_BYTES = 256 * 2**20  # bounds the memory of what is not yet written: four million steps of 13 scalars
_CHUNK_BYTES = 1000  # of a chunk's objects, beside its numbers
_EXTRA_BYTES = 200  # of one further scalar
_PIECE = 16_384  # numbers encoded at once: enough to forget what Python costs, few enough for malloc not to ask for fresh pages
_FEW = 8_192  # numbers that are waited with, for more to come,
_PATIENCE = 0.2  # as many seconds at most


@dataclasses.dataclass
class _Chunk:
    steps: np.ndarray  # int64 [n], ascending
    rows: np.ndarray  # float32 [n, tags]
    wall_times: np.ndarray  # float64 [n], seconds since 1970
    extra: dict[int, dict[str, float]]
    summaries: dict[int, bytes]
    num_bytes: int


class Recorder:
    """Writes one line a step to metrics.jsonl and, beside it, TensorBoard events. Use as a context manager.

    `waited` is how many seconds its caller has spent in `put` and `flush` so far.
    """

    def __init__(self, folder: Path, tags: Sequence[str], tensorboard: bool, last_step: int) -> None:
        """Opens the files to go on after `last_step`; lines of later steps, of a run that was cut off, are dropped.

        Raises:
            ConfigError: metrics.jsonl can't be opened.
        """
        self.waited = 0.0
        self._num_tags = len(tags)
        self._failed = False
        self._gave_up = False
        self._bug: Exception | None = None
        self._changed = threading.Condition()  # guards what follows the files: every chunk stands in a queue, or is being written
        try:
            self._lines = LineFile(folder / "metrics.jsonl", tags, last_step)
        except OSError as error:
            raise ConfigError(f"{folder / 'metrics.jsonl'} can't be written: {error}: type another hydra.run.dir") from error
        self._events: EventFile | None = self._attempt(EventFile, folder / "tensorboard", tags, last_step) if tensorboard else None
        self._for_lines: collections.deque[_Chunk] = collections.deque()
        self._for_events: collections.deque[_Chunk] = collections.deque()  # their lines are written
        self._num_bytes = 0  # of all these chunks
        self._num_few = 0  # numbers in _for_lines
        self._writing: _Chunk | None = None
        self._hurried = 0.0  # the step up to which somebody waits
        self._closing = False
        self._thread = threading.Thread(target=self._write_all, name="recorder", daemon=True)
        self._thread.start()

    def __enter__(self) -> "Recorder":
        return self

    def __exit__(self, *_: object) -> None:
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._thread.join()
        self._attempt(self._lines.close)
        if self._events:
            self._attempt(self._events.close)

    def put(self, steps: np.ndarray, rows: np.ndarray, extra: Extra, summaries: Mapping[int, bytes] | None = None) -> None:
        """Hands over rows float32 [n, len(tags)] of `steps` int [n], ascending; both are copied.

        `extra` gives further scalars of some of these steps, by step; `summaries` what else TensorBoard shows of them, encoded.
        """
        if not len(steps):
            return
        start = time.perf_counter()
        further = {int(step): {tag: float(value) for tag, value in values.items()} for step, values in extra.items() if values}
        assert further.keys() <= set(steps.tolist() if further else ()), "extra scalars of a step that is not among the steps"
        chunk = _Chunk(
            np.array(steps, np.int64),
            np.array(rows, np.float32).reshape(len(steps), self._num_tags),
            np.full(len(steps), time.time()),
            further,
            dict(summaries or {}),
            num_bytes=_CHUNK_BYTES + _EXTRA_BYTES * sum(map(len, further.values())),
        )
        chunk.num_bytes += chunk.steps.nbytes + chunk.rows.nbytes + chunk.wall_times.nbytes + sum(map(len, chunk.summaries.values()))
        with self._changed:
            while self._num_bytes and self._num_bytes + chunk.num_bytes > _PENDING_BYTES:
                if not self._give_up_events():
                    self._changed.wait()
            first = not self._for_lines
            self._for_lines.append(chunk)
            self._num_bytes += chunk.num_bytes
            self._num_few += chunk.rows.size
            if first or self._num_few >= _FEW:
                self._changed.notify_all()
        self.waited += time.perf_counter() - start

    def flush(self, step: float = math.inf) -> None:
        """Returns when all that was handed over of steps up to `step` is on the disk. May be called from another thread than `put`."""
        start = time.perf_counter()

        def is_done() -> bool:
            first = [queue[0] for queue in (self._for_lines, self._for_events) if queue]
            return all(chunk.steps[0] > step for chunk in (*first, *filter(None, [self._writing])))

        with self._changed:
            self._hurried = step
            self._changed.notify_all()
            self._changed.wait_for(is_done)
            self._hurried = 0
        if not self._bug:
            self._attempt(self._lines.sync)
        self.waited += time.perf_counter() - start
        if self._bug:
            raise self._bug

    def _write_all(self) -> None:
        while (job := self._next()) is not None:
            chunk, file = job
            try:
                self._attempt(file.write, chunk)
            except Exception as error:  # not of the disk: a bug, raised where the loop sees it
                self._bug = error
            with self._changed:
                if file is self._lines and self._events:
                    self._for_events.append(chunk)
                else:
                    self._num_bytes -= chunk.num_bytes
                self._writing = None
                self._changed.notify_all()

    def _next(self) -> "tuple[_Chunk, LineFile | EventFile] | None":
        """What to write next, and to which file; waits for it. None at the end."""
        with self._changed:
            self._changed.wait_for(lambda: self._for_lines or self._for_events or self._closing)
            if not self._for_events:
                self._changed.wait_for(self._is_worth_it, _PATIENCE)
            if self._for_lines and (self._is_worth_it() or not self._for_events):
                self._writing = self._take_lines()
                return self._writing, self._lines
            if self._for_events and self._events:
                self._writing = self._for_events.popleft()
                return self._writing, self._events
            return None

    def _is_worth_it(self) -> bool:
        hurried = bool(self._for_lines) and self._for_lines[0].steps[0] <= self._hurried
        return self._num_few >= _FEW or hurried or self._closing

    def _take_lines(self) -> _Chunk:
        """The first chunks of the queue, as one: small ones cost as much as large ones."""
        chunks = [self._for_lines.popleft()]
        num_numbers = chunks[0].rows.size
        while self._for_lines and num_numbers < _PIECE:
            chunks.append(self._for_lines.popleft())
            num_numbers += chunks[-1].rows.size
        self._num_few -= num_numbers
        return chunks[0] if len(chunks) == 1 else _joined(chunks)

    def _give_up_events(self) -> bool:
        """TensorBoard's records of pending steps whose lines are written; whether there were any."""
        if not self._for_events:
            return False
        if not self._gave_up:
            print(
                f"warning: the disk is too slow: TensorBoard's records of steps {self._for_events[0].steps[0]} to "
                f"{self._for_events[-1].steps[-1]}, and of later ones if it stays so, are given up; metrics.jsonl has them all",
                file=sys.stderr,
                flush=True,
            )
        self._gave_up = True
        self._num_bytes -= sum(chunk.num_bytes for chunk in self._for_events)
        self._for_events.clear()
        return True

    def _attempt(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Training is worth more than its record: what can't be written is one warning, not one a step."""
        try:
            return function(*arguments)
        except OSError as error:
            with self._changed:  # two threads may find the same disk full
                is_first, self._failed = not self._failed, True
            if is_first:
                print(f"warning: metrics can't be written: {error}; training goes on", file=sys.stderr, flush=True)
            return None


def _joined(chunks: Sequence[_Chunk]) -> _Chunk:
    return _Chunk(
        np.concatenate([chunk.steps for chunk in chunks]),
        np.concatenate([chunk.rows for chunk in chunks]),
        np.concatenate([chunk.wall_times for chunk in chunks]),
        {step: values for chunk in chunks for step, values in chunk.extra.items()},
        {step: summary for chunk in chunks for step, summary in chunk.summaries.items()},
        sum(chunk.num_bytes for chunk in chunks),
    )


class LineFile:
    """metrics.jsonl: a line for each step. All lines of a piece have the same length, as their numbers have."""

    def __init__(self, path: Path, tags: Sequence[str], last_step: int) -> None:
        _drop_after(path, last_step)
        self._file = path.open("ab", buffering=0)
        line, self._places = b"", []  # after the step
        for tag in tags:
            line += f", {json.dumps(tag)}:".encode()
            self._places.append(len(line))
            line += bytes(NUMBER_WIDTH)
        self._line = line + b"}\n"

    def write(self, chunk: _Chunk) -> None:
        for piece in _pieces(chunk):
            lines = self._encode(chunk.steps[piece], chunk.rows[piece])
            steps = chunk.steps[piece].tolist() if chunk.extra else []
            _append(self._file, b"".join(_with_extra(lines, steps, chunk.extra)), end=b"\n")

    def sync(self) -> None:
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()

    def _encode(self, steps: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """Uint8 [n, length] of steps [n] with the same number of digits, and rows [n, tags]."""
        powers = 10 ** np.arange(len(str(steps[0])))[::-1]
        head = b'{"step": '
        start = len(head) + len(powers)
        lines = filled(head + bytes(len(powers)) + self._line, [start + place for place in self._places], decimals(rows))
        lines[:, len(head) : start] = steps[:, None] // powers % 10 + ord("0")
        return lines


def _with_extra(lines: np.ndarray, steps: list[int], extra: Extra) -> Iterator[bytes]:
    """The lines' bytes, with the further scalars of some steps before the ends of their lines."""
    start = 0
    for i, step in enumerate(steps):
        if step in extra:
            yield lines[start : i + 1].tobytes()[:-2]
            yield f", {json.dumps({tag: plain(value) for tag, value in extra[step].items()})[1:]}\n".encode()
            start = i + 1
    yield lines[start:].tobytes()


def _pieces(chunk: _Chunk) -> Iterator[slice]:
    """Steps to encode at once: not too many, and all with the same number of digits."""
    num_digits = np.searchsorted(10 ** np.arange(1, 19), chunk.steps, side="right")
    num_rows = max(1, _PIECE // max(1, chunk.rows.shape[1]))
    borders = [0, *(np.flatnonzero(np.diff(num_digits)) + 1).tolist(), len(chunk.steps)]
    for start, end in itertools.pairwise(borders):
        for first in range(start, end, num_rows):
            yield slice(first, min(first + num_rows, end))


def _append(file: io.FileIO, content: bytes, end: bytes | None = None) -> None:
    """All of it or nothing, or of what has `end` behind each part the whole parts that found room: half of one would spoil the next."""
    size, written = os.fstat(file.fileno()).st_size, 0
    try:
        while written < len(content):  # a disk that is filling takes a part
            written += file.write(content[written:])
    except OSError:
        os.ftruncate(file.fileno(), size + (content.rfind(end, 0, written) + 1 if end else 0))
        raise


class EventFile:
    """A TensorBoard event file: an event for each step, with a scalar for each tag."""

    def __init__(self, folder: Path, tags: Sequence[str], last_step: int) -> None:
        folder.mkdir(exist_ok=True)
        path = folder / f"events.out.tfevents.{time.time_ns():020d}.{socket.gethostname()}.{os.getpid()}"
        self._file = path.open("ab", buffering=0)
        self._tags = tuple(tags)
        self._records: dict[tuple[str, ...], Records] = {}
        # Fields of Event beside those of Records: file_version = 3, session_log = 7; SessionLog.status = 1.
        now = b"\x09" + struct.pack("<d", time.time())
        version = now + b"\x1a" + sized(b"brain.Event:2")
        # START makes TensorBoard forget the points from this step on that an earlier, cut-off part of the run has left.
        start = now + b"\x10" + varint(last_step + 1) + b"\x3a" + sized(b"\x08\x01")
        _append(self._file, framed(version) + framed(start))

    def write(self, chunk: _Chunk) -> None:
        for piece in _pieces(chunk):
            steps, wall_times = chunk.steps[piece], chunk.wall_times[piece]
            content = [self._encode(self._tags, steps, chunk.rows[piece], wall_times)]
            further: dict[tuple[str, ...], list[int]] = {}  # tags to places in steps
            for i, step in enumerate(steps.tolist() if chunk.extra or chunk.summaries else []):
                if step in chunk.summaries:
                    content.append(event(wall_times[i], step, chunk.summaries[step]))
                if step in chunk.extra:
                    further.setdefault(tuple(chunk.extra[step]), []).append(i)
            for tags, places in further.items():
                with np.errstate(over="ignore"):  # infinite for TensorBoard, whose scalars are float32
                    rows = np.array([list(chunk.extra[step].values()) for step in steps[places].tolist()], np.float64).astype(np.float32)
                content.append(self._encode(tags, steps[places], rows, wall_times[places]))
            _append(self._file, b"".join(content))

    def close(self) -> None:
        self._file.close()

    def _encode(self, tags: tuple[str, ...], steps: np.ndarray, rows: np.ndarray, wall_times: np.ndarray) -> bytes:
        if tags not in self._records:
            self._records[tags] = Records(tags)
        return self._records[tags].encode(steps, rows, wall_times)


def plain(value: float | str) -> float | str:
    """JSON has no NaN and no infinity: "NaN", "inf" and "-inf" stand for them."""
    if isinstance(value, str):
        return value
    return value if math.isfinite(value) else "NaN" if math.isnan(value) else "inf" if value > 0 else "-inf"


def _drop_after(path: Path, last_step: int) -> None:
    """Leaves the whole lines of steps up to `last_step`."""
    if not path.exists():
        return
    temporary = path.with_name(".metrics.jsonl.tmp")
    with path.open("rb") as lines, temporary.open("wb") as kept:
        kept.writelines(line for line in lines if 0 < _step_of(line) <= last_step)
        kept.flush()
        os.fsync(kept.fileno())
    temporary.replace(path)


def _step_of(line: bytes) -> int:
    try:
        return json.loads(line)["step"] if line.endswith(b"\n") else 0
    except (ValueError, KeyError, TypeError):
        return 0  # cut off, by a kill or a full disk
