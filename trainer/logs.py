"""What a run records of its steps: metrics.jsonl and TensorBoard's event file, written by a thread while the device works.

Rows of scalars arrive stacked, once per chunk, and are encoded for the whole chunk at once in NumPy, which lets go of Python's lock
meanwhile: a step of 13 scalars costs a microsecond, where formatting its line and framing its record one by one costs ten. For that,
numbers have the same width everywhere: in metrics.jsonl nine significant digits and an exponent ("loss": 1.23456789e-01, a float32 to
the bit), in TensorBoard's records their four bytes, so that all records of a chunk differ in these bytes alone, and their checksums follow.

A slow disk stands in nobody's way: what is not yet written is kept as float32, up to _PENDING_BYTES. Lines of metrics.jsonl go first.
Beyond that bound TensorBoard's records of what is pending are given up, and only a disk that is too slow for metrics.jsonl itself makes
the loop wait.
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
    num_bytes: int
    for_events: bool


class Recorder:
    """Writes one line a step to metrics.jsonl and, beside it, TensorBoard events. Use as a context manager.

    `waited` is how many seconds its caller has spent in `put` and `flush` so far.
    """

    def __init__(self, folder: Path, tags: Sequence[str], tensorboard: bool, last_step: int) -> None:
        """Opens the files to go on after `last_step`; lines of later steps, of a run that was cut off, are dropped."""
        self.waited = 0.0
        self._num_tags = len(tags)
        self._failed = False
        self._gave_up = False
        self._bug: Exception | None = None
        self._lines = LineFile(folder / "metrics.jsonl", tags, last_step)
        self._events: EventFile | None = self._attempt(EventFile, folder / "tensorboard", tags, last_step) if tensorboard else None
        # What _changed guards: every chunk stands in one of the two queues, or is being written.
        self._changed = threading.Condition()
        self._for_lines: collections.deque[_Chunk] = collections.deque()
        self._for_events: collections.deque[_Chunk] = collections.deque()  # their lines are written
        self._num_bytes = 0  # of all these chunks
        self._num_few = 0  # numbers in _for_lines
        self._writing = False
        self._hurried = False
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

    def put(self, steps: np.ndarray, rows: np.ndarray, extra: Extra) -> None:
        """Hands over rows float32 [n, len(tags)] of `steps` int [n], ascending; both are copied.

        `extra` gives further scalars of some of these steps, by step.
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
            num_bytes=_CHUNK_BYTES + _EXTRA_BYTES * sum(map(len, further.values())),
            for_events=self._events is not None,
        )
        chunk.num_bytes += chunk.steps.nbytes + chunk.rows.nbytes + chunk.wall_times.nbytes
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

    def flush(self) -> None:
        """Returns when all that was handed over is on the disk."""
        start = time.perf_counter()
        with self._changed:
            self._hurried = True
            self._changed.notify_all()
            self._changed.wait_for(lambda: not (self._for_lines or self._for_events or self._writing))
            self._hurried = False
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
                if file is self._lines and chunk.for_events:
                    self._for_events.append(chunk)
                else:
                    self._num_bytes -= chunk.num_bytes
                self._writing = False
                self._changed.notify_all()

    def _next(self) -> "tuple[_Chunk, LineFile | EventFile] | None":
        """What to write next, and to which file; waits for it. None at the end."""
        with self._changed:
            self._changed.wait_for(lambda: self._for_lines or self._for_events or self._closing)
            if not self._for_events:
                self._changed.wait_for(self._is_worth_it, _PATIENCE)
            self._writing = True
            if self._for_lines and (self._is_worth_it() or not self._for_events):
                return self._take_lines(), self._lines
            if self._for_events and self._events:
                return self._for_events.popleft(), self._events
            return None

    def _is_worth_it(self) -> bool:
        return self._num_few >= _FEW or self._hurried or self._closing

    def _take_lines(self) -> _Chunk:
        """The first chunks of the queue, as one: small ones cost as much as large ones."""
        chunks = [self._for_lines.popleft()]
        num_numbers = chunks[0].rows.size
        while self._for_lines and self._for_lines[0].for_events == chunks[0].for_events and num_numbers < _PIECE:
            chunks.append(self._for_lines.popleft())
            num_numbers += chunks[-1].rows.size
        self._num_few -= num_numbers
        return chunks[0] if len(chunks) == 1 else _joined(chunks)

    def _give_up_events(self) -> bool:
        """TensorBoard's records of all that is pending; whether that made room."""
        lost = [chunk for chunk in (*self._for_events, *self._for_lines) if chunk.for_events]
        if lost and not self._gave_up:
            self._gave_up = True
            print(
                f"warning: the disk is too slow: TensorBoard's records of steps {lost[0].steps[0]} to {lost[-1].steps[-1]}, "
                "and of later ones if it stays so, are given up; metrics.jsonl has them all",
                file=sys.stderr,
                flush=True,
            )
        for chunk in lost:
            chunk.for_events = False
        made_room = bool(self._for_events)
        self._num_bytes -= sum(chunk.num_bytes for chunk in self._for_events)
        self._for_events.clear()
        return made_room

    def _attempt(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Training is worth more than its record: what can't be written is one warning, not one a step."""
        try:
            return function(*arguments)
        except OSError as error:
            if not self._failed:
                print(f"warning: metrics can't be written: {error}; training goes on", file=sys.stderr, flush=True)
            self._failed = True
            return None


def _joined(chunks: Sequence[_Chunk]) -> _Chunk:
    return _Chunk(
        np.concatenate([chunk.steps for chunk in chunks]),
        np.concatenate([chunk.rows for chunk in chunks]),
        np.concatenate([chunk.wall_times for chunk in chunks]),
        {step: values for chunk in chunks for step, values in chunk.extra.items()},
        sum(chunk.num_bytes for chunk in chunks),
        chunks[0].for_events,
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
            line += bytes(_NUMBER.itemsize)
        self._line = line + b"}\n"

    def write(self, chunk: _Chunk) -> None:
        for piece in _pieces(chunk):
            lines = self._encode(chunk.steps[piece], chunk.rows[piece])
            steps = chunk.steps[piece].tolist() if chunk.extra else []
            _append(self._file, b"".join(_with_extra(lines, steps, chunk.extra)))

    def sync(self) -> None:
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()

    def _encode(self, steps: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """Uint8 [n, length] of steps [n] with the same number of digits, and rows [n, tags]."""
        powers = 10 ** np.arange(len(str(steps[0])))[::-1]
        head = b'{"step": '
        start = len(head) + len(powers)
        lines = _filled(head + bytes(len(powers)) + self._line, [start + place for place in self._places], _decimals(rows))
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


def _filled(template: bytes, places: Sequence[int], numbers: np.ndarray) -> np.ndarray:
    """Copies of the template, uint8 [n, length], with numbers, uint8 [n, places, width], in their places."""
    filled = np.tile(np.frombuffer(template, np.uint8), (len(numbers), 1))
    width = numbers.shape[2]
    for i, place in enumerate(places):
        filled[:, place : place + width] = numbers[:, i]
    return filled


def _append(file: io.FileIO, content: bytes) -> None:
    """All of it or nothing: half a line or record would spoil the next."""
    size = os.fstat(file.fileno()).st_size
    try:
        written = 0
        while written < len(content):  # a disk that is filling takes a part
            written += file.write(content[written:])
    except OSError:
        os.ftruncate(file.fileno(), size)
        raise


# A number in a line of metrics.jsonl, -1.23456789e-01; where the sign may stand there is a space otherwise.
_NUMBER = np.dtype([("sign", "u1"), ("first", "u1"), ("point", "u1"), ("high", "<u4"), ("low", "<u4"), ("exponent", "<u4")])
_FOUR_DIGITS = (np.arange(10_000)[:, None] // [1000, 100, 10, 1] % 10 + ord("0")).astype(np.uint8).view("<u4").ravel()
_EXPONENTS = np.arange(-45, 39)  # of ten, of every float32
_EXPONENT_TEXTS = np.array([f"e{exponent:+03d}" for exponent in _EXPONENTS], "S4").view("<u4")
_SCALES = 10.0 ** (8 - _EXPONENTS)
_NEXT_POWERS = 10.0 ** (_EXPONENTS + 1)
# From the eleven bits that are a float64's binary exponent: where in _EXPONENTS the ten's is, or the one after it. Zero is 0e+00.
_PLACES = np.floor(np.clip(np.arange(2048) - 1023, -149, 127) * math.log10(2)).astype(np.int64) - _EXPONENTS[0]
_PLACES[0] = -_EXPONENTS[0]


def _decimals(values: np.ndarray) -> np.ndarray:
    """Nine significant digits of values float32 [n, m], as text uint8 [n, m, 15]; "NaN", "inf" and "-inf" in quotes.

    Nine digits are within 5e-9 of a float32, relatively, and its neighbours are 6e-8 away or more: float64 has what it takes to find them.
    """
    finite = np.isfinite(values)
    size = np.abs(np.where(finite, values, 0), dtype=np.float64)
    place = _PLACES[size.view(np.int64) >> 52]
    place += size >= _NEXT_POWERS[place]
    digits = np.minimum(np.rint(size * _SCALES[place]), 999_999_999).astype(np.uint32)
    high = digits // 10_000
    first = high // 10_000
    text = np.empty(values.shape, _NUMBER)
    text["sign"] = np.where(np.signbit(values), ord("-"), ord(" "))
    text["first"] = first + ord("0")
    text["point"] = ord(".")
    text["high"] = _FOUR_DIGITS[high - first * 10_000]
    text["low"] = _FOUR_DIGITS[digits - high * 10_000]
    text["exponent"] = _EXPONENT_TEXTS[place]
    if not finite.all():
        words = text.view(f"S{_NUMBER.itemsize}")
        for word, where in (("NaN", np.isnan(values)), ("inf", values == np.inf), ("-inf", values == -np.inf)):
            words[where] = f' "{word}"'.ljust(_NUMBER.itemsize).encode()
    return text.view(np.uint8).reshape(*values.shape, _NUMBER.itemsize)


class EventFile:
    """A TensorBoard event file: an event for each step, with a scalar for each tag."""

    def __init__(self, folder: Path, tags: Sequence[str], last_step: int) -> None:
        folder.mkdir(exist_ok=True)
        path = folder / f"events.out.tfevents.{time.time_ns():020d}.{socket.gethostname()}.{os.getpid()}"
        self._file = path.open("ab", buffering=0)
        self._tags = tuple(tags)
        self._records: dict[tuple[str, ...], _Records] = {}
        # Fields of Event beside those of _Records: file_version = 3, session_log = 7; SessionLog.status = 1.
        now = b"\x09" + struct.pack("<d", time.time())
        version = now + b"\x1a" + _sized(b"brain.Event:2")
        # START makes TensorBoard forget the points from this step on that an earlier, cut-off part of the run has left.
        start = now + b"\x10" + _varint(last_step + 1) + b"\x3a" + _sized(b"\x08\x01")
        _append(self._file, _framed(version) + _framed(start))

    def write(self, chunk: _Chunk) -> None:
        for piece in _pieces(chunk):
            steps, wall_times = chunk.steps[piece], chunk.wall_times[piece]
            content = [self._encode(self._tags, steps, chunk.rows[piece], wall_times)]
            further: dict[tuple[str, ...], list[int]] = {}  # tags to places in steps
            for i, step in enumerate(steps.tolist() if chunk.extra else []):
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
            self._records[tags] = _Records(tags)
        return self._records[tags].encode(steps, rows, wall_times)


class _Records:
    """Encodes events with the same tags: framed Protocol Buffers of the same length, which differ in their numbers alone.

    A record is its length (8 bytes), the length's checksum (4), an Event, and its checksum (4). Fields: Event.wall_time = 1 (double),
    step = 2 (varint), summary = 5; Summary.value = 1; Value.tag = 1, simple_value = 2 (float).

    A CRC is linear: that of a record is the one of the record with zeros for its numbers, and for each byte of a number a term that
    depends on the byte and its place alone. So a table for each place does for all records at once what is done byte by byte otherwise.
    """

    def __init__(self, tags: Sequence[str]) -> None:
        summary, values_at = b"", []
        for tag in tags:
            value = b"\x0a" + _sized(tag.encode()) + b"\x15" + bytes(4)
            summary += b"\x0a" + _sized(value)
            values_at.append(len(summary) - 4)
        head = b"\x09" + bytes(8) + b"\x10" + bytes(5) + b"\x2a" + _varint(len(summary))
        event = head + summary
        self._template = _framed(event)
        self._time_at, self._step_at = _FRAME + 1, _FRAME + 10
        self._values_at = [_FRAME + len(head) + at for at in values_at]
        starts = [(self._time_at, 8), (self._step_at, 5), *((at, 4) for at in self._values_at)]
        self._bytes_at = np.array([at + i for at, width in starts for i in range(width)])
        self._zeros_crc = np.uint32(_crc32c(event))
        self._tables = _crc_tables(len(event), (self._bytes_at - _FRAME).tolist()).ravel()

    def encode(self, steps: np.ndarray, rows: np.ndarray, wall_times: np.ndarray) -> bytes:
        """Records of steps int64 [n], rows float32 [n, tags] and wall times float64 [n]."""
        n = len(steps)
        numbers = np.empty((n, len(self._bytes_at)), np.uint8)
        numbers[:, :8] = wall_times.astype("<f8").view(np.uint8).reshape(n, 8)
        # A varint of always five bytes, seven bits in each, lowest first.
        numbers[:, 8:13] = steps[:, None] >> np.arange(0, 35, 7) & 0x7F | [0x80, 0x80, 0x80, 0x80, 0]
        numbers[:, 13:] = np.ascontiguousarray(rows, "<f4").view(np.uint8).reshape(n, -1)
        records = _filled(self._template, self._values_at, numbers[:, 13:].reshape(n, -1, 4))
        records[:, self._time_at : self._time_at + 8] = numbers[:, :8]
        records[:, self._step_at : self._step_at + 5] = numbers[:, 8:13]
        terms = self._tables.take(numbers + np.arange(0, self._tables.size, 256), mode="wrap")
        crc = _masked(self._zeros_crc ^ np.bitwise_xor.reduce(terms, axis=1))
        records[:, -4:] = crc.astype("<u4").view(np.uint8).reshape(n, 4)
        return records.tobytes()


_FRAME = 12  # bytes of a record before its event
_CRC_TABLE: np.ndarray = np.arange(256, dtype=np.uint32)
for _ in range(8):  # CRC-32C, reflected
    _CRC_TABLE = _CRC_TABLE >> 1 ^ np.where(_CRC_TABLE & 1, np.uint32(0x82F63B78), np.uint32(0))


def _crc32c(content: bytes) -> int:
    table, crc = _CRC_TABLE.tolist(), 0xFFFFFFFF
    for byte in content:
        crc = table[(crc ^ byte) & 0xFF] ^ crc >> 8
    return crc ^ 0xFFFFFFFF


def _crc_tables(length: int, places: Sequence[int]) -> np.ndarray:
    """Uint32 [places, 256]: what a byte that stands in that place of a message changes in the CRC of the message with a zero there."""
    wanted = {place: i for i, place in enumerate(places)}
    tables = np.empty((len(places), 256), np.uint32)
    table = _CRC_TABLE  # of the last byte; that of the byte before has a zero byte more to go through
    for place in range(length - 1, -1, -1):
        if place in wanted:
            tables[wanted[place]] = table
        table = table >> 8 ^ _CRC_TABLE[table & 0xFF]
    return tables


def _masked(crc: np.ndarray) -> np.ndarray:
    """As TFRecord files want them, uint32."""
    return (crc >> np.uint32(15) | crc << np.uint32(17)) + np.uint32(0xA282EAD8)


def _framed(event: bytes) -> bytes:
    length = struct.pack("<Q", len(event))
    checksums = _masked(np.array([_crc32c(length), _crc32c(event)], np.uint32)).astype("<u4").tobytes()
    return length + checksums[:4] + event + checksums[4:]


def _sized(content: bytes) -> bytes:
    return _varint(len(content)) + content


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
    temporary = path.with_name(".metrics.jsonl.tmp")
    with path.open("rb") as lines, temporary.open("wb") as kept:
        kept.writelines(line for line in lines if 0 < _step_of(line) <= last_step)
    temporary.replace(path)


def _step_of(line: bytes) -> int:
    try:
        return json.loads(line)["step"] if line.endswith(b"\n") else 0
    except (ValueError, KeyError, TypeError):
        return 0  # cut off, by a kill or a full disk
