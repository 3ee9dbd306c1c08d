"""Numbers of many steps as bytes, for all steps at once: decimal text, and TensorBoard's records, with checksums that can be checked."""

import math
import os
import struct
from collections.abc import Sequence
from pathlib import Path

import numpy as np


def filled(template: bytes, places: Sequence[int], numbers: np.ndarray) -> np.ndarray:
    """Copies of the template, uint8 [n, length], with numbers, uint8 [n, places, width], in their places."""
    filled = np.tile(np.frombuffer(template, np.uint8), (len(numbers), 1))
    width = numbers.shape[2]
    for i, place in enumerate(places):
        filled[:, place : place + width] = numbers[:, i]
    return filled


# A number in a line of metrics.jsonl, -1.23456789e-01; where the sign may stand there is a space otherwise.
_NUMBER = np.dtype([("sign", "u1"), ("first", "u1"), ("point", "u1"), ("high", "<u4"), ("low", "<u4"), ("exponent", "<u4")])
NUMBER_WIDTH = _NUMBER.itemsize
_FOUR_DIGITS = (np.arange(10_000)[:, None] // [1000, 100, 10, 1] % 10 + ord("0")).astype(np.uint8).view("<u4").ravel()
_EXPONENTS = np.arange(-45, 39)  # of ten, of every float32
_EXPONENT_TEXTS = np.array([f"e{exponent:+03d}" for exponent in _EXPONENTS], "S4").view("<u4")
_SCALES = 10.0 ** (8 - _EXPONENTS)
_NEXT_POWERS = 10.0 ** (_EXPONENTS + 1)
# From the eleven bits that are a float64's binary exponent: where in _EXPONENTS the ten's is, or the one after it. Zero is 0e+00.
_PLACES = np.floor(np.clip(np.arange(2048) - 1023, -149, 127) * math.log10(2)).astype(np.int64) - _EXPONENTS[0]
_PLACES[0] = -_EXPONENTS[0]


def decimals(values: np.ndarray) -> np.ndarray:
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
        words = text.view(f"S{NUMBER_WIDTH}")
        for word, where in (("NaN", np.isnan(values)), ("inf", values == np.inf), ("-inf", values == -np.inf)):
            words[where] = f' "{word}"'.ljust(NUMBER_WIDTH).encode()
    return text.view(np.uint8).reshape(*values.shape, NUMBER_WIDTH)


class Records:
    """Encodes events with the same tags: framed Protocol Buffers of the same length, which differ in their numbers alone.

    A record is its length (8 bytes), the length's checksum (4), an Event, and its checksum (4). Fields: Event.wall_time = 1 (double),
    step = 2 (varint), summary = 5; Summary.value = 1; Value.tag = 1, simple_value = 2 (float).

    A CRC is linear: that of a record is the one of the record with zeros for its numbers, and for each byte of a number a term that
    depends on the byte and its place alone. So a table for each place does for all records at once what is done byte by byte otherwise.
    """

    def __init__(self, tags: Sequence[str]) -> None:
        summary, values_at = b"", []
        for tag in tags:
            value = b"\x0a" + sized(tag.encode()) + b"\x15" + bytes(4)
            summary += b"\x0a" + sized(value)
            values_at.append(len(summary) - 4)
        head = b"\x09" + bytes(8) + b"\x10" + bytes(5) + b"\x2a" + varint(len(summary))
        event = head + summary
        self._template = framed(event)
        self._time_at, self._step_at = _FRAME + 1, _FRAME + 10
        self._values_at = [_FRAME + len(head) + at for at in values_at]
        starts = [(self._time_at, 8), (self._step_at, 5), *((at, 4) for at in self._values_at)]
        self._bytes_at = np.array([at + i for at, width in starts for i in range(width)])
        self._zeros_crc = np.uint32(crc32c(event))
        self._tables = _crc_tables(len(event), self._bytes_at - _FRAME).ravel()

    def encode(self, steps: np.ndarray, rows: np.ndarray, wall_times: np.ndarray) -> bytes:
        """Records of steps int64 [n], rows float32 [n, tags] and wall times float64 [n]."""
        n = len(steps)
        numbers = np.empty((n, len(self._bytes_at)), np.uint8)
        numbers[:, :8] = wall_times.astype("<f8").view(np.uint8).reshape(n, 8)
        # A varint of always five bytes, seven bits in each, lowest first.
        numbers[:, 8:13] = steps[:, None] >> np.arange(0, 35, 7) & 0x7F | [0x80, 0x80, 0x80, 0x80, 0]
        numbers[:, 13:] = np.ascontiguousarray(rows, "<f4").view(np.uint8).reshape(n, -1)
        records = filled(self._template, self._values_at, numbers[:, 13:].reshape(n, -1, 4))
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


def crc32c(content: bytes) -> int:
    table, crc = _CRC_TABLE.tolist(), 0xFFFFFFFF
    for byte in content:
        crc = table[(crc ^ byte) & 0xFF] ^ crc >> 8
    return crc ^ 0xFFFFFFFF


def _crc_tables(length: int, places: np.ndarray) -> np.ndarray:
    """Uint32 [places, 256]: what a byte that stands in that place of a message changes in the CRC of the message with a zero there."""
    tables = np.zeros((len(places), 256), np.uint32)
    tables[:, 1 << np.arange(8)] = _through_zeros(_CRC_TABLE[1 << np.arange(8)], length - 1 - places)
    for bit in (1 << np.arange(8)).tolist():  # the other bytes are sums of those of one bit
        tables[:, bit : 2 * bit] = tables[:, :bit] ^ tables[:, bit : bit + 1]
    return tables


def _through_zeros(crcs: np.ndarray, num_zeros: np.ndarray) -> np.ndarray:
    """Uint32 [n, m]: crcs uint32 [m] after num_zeros int [n] zero bytes more, by squaring the map of one: it is linear."""
    out = np.tile(crcs, (len(num_zeros), 1))
    zeros = np.arange(256, dtype=np.uint32) << np.uint32(8) * np.arange(4, dtype=np.uint32)[:, None]  # of each of a CRC's four bytes,
    zeros = zeros >> 8 ^ _CRC_TABLE[zeros & 0xFF]  # its part in what comes out
    while num_zeros.any():
        odd = num_zeros & 1 == 1
        out[odd] = _mapped(zeros, out[odd])
        zeros = _mapped(zeros, zeros)
        num_zeros = num_zeros >> 1
    return out


def _mapped(linear: np.ndarray, crcs: np.ndarray) -> np.ndarray:
    return linear[0][crcs & 0xFF] ^ linear[1][crcs >> 8 & 0xFF] ^ linear[2][crcs >> 16 & 0xFF] ^ linear[3][crcs >> 24]


def _masked(crc: np.ndarray) -> np.ndarray:
    """As TFRecord files want them, uint32."""
    return (crc >> np.uint32(15) | crc << np.uint32(17)) + np.uint32(0xA282EAD8)


def framed(event: bytes) -> bytes:
    length = struct.pack("<Q", len(event))
    checksums = _masked(np.array([crc32c(length), crc32c(event)], np.uint32)).astype("<u4").tobytes()
    return length + checksums[:4] + event + checksums[4:]


def sized(content: bytes) -> bytes:
    return varint(len(content)) + content


def varint(number: int) -> bytes:
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*out, number])


def event(wall_time: float, step: int, summary: bytes) -> bytes:
    """A record with an encoded Summary."""
    return framed(b"\x09" + struct.pack("<d", wall_time) + b"\x10" + varint(step) + b"\x2a" + sized(summary))


_READ_BYTES = 2**20  # at once,
_LOOKED_AT = 2**26  # and of a file altogether
_MANY = 16  # records of one length, from which on checking them together is faster than one after the other


def first_damage(path: Path) -> int | None:
    """The byte at which the first record of an event file begins that is cut off or damaged; None where all are whole.

    Records of equal length that follow each other are checked together, as most do. What lies behind the first _LOOKED_AT bytes is not
    looked at.
    """
    with open(path, "rb") as file:
        size = min(os.fstat(file.fileno()).st_size, _LOOKED_AT)
        at, content = 0, memoryview(b"")  # the file from `at` on, as far as it is read
        while at < size:
            if len(content) < _FRAME:
                content = memoryview(bytes(content) + file.read(_READ_BYTES))
            head = content[:_FRAME]
            if len(head) < _FRAME or head[8:] != _checksums(np.frombuffer(head[:8], np.uint8)[None]).tobytes():
                return at
            whole = _FRAME + int.from_bytes(head[:8], "little") + 4
            if len(content) < whole:
                content = memoryview(bytes(content) + file.read(max(_READ_BYTES, whole - len(content))))
            num = min(len(content) // whole, 1 if content[whole : whole + _FRAME] != head else _READ_BYTES)
            if num == 0:
                return at
            records = np.frombuffer(content, np.uint8, num * whole).reshape(num, whole)
            others = np.flatnonzero((records[:, :_FRAME] != records[0, :_FRAME]).any(axis=1))
            records = records[: others[0]] if len(others) else records
            damaged = np.flatnonzero((records[:, -4:] != _checksums(records[:, _FRAME:-4])).any(axis=1))
            if len(damaged):
                return at + int(damaged[0]) * whole
            at += records.size
            content = content[records.size :]
    return None


def _checksums(contents: np.ndarray) -> np.ndarray:
    """Uint8 [n, 4], as TFRecord files want them, of contents uint8 [n, length]."""
    crcs: np.ndarray
    if len(contents) < _MANY:
        crcs = np.array([crc32c(content.tobytes()) for content in contents], np.uint32)
    else:
        crcs = np.full(len(contents), 0xFFFFFFFF, np.uint32)
        for column in np.ascontiguousarray(contents.T):  # the bytes in one place of all contents
            crcs = _CRC_TABLE[(crcs ^ column) & 0xFF] ^ crcs >> 8
        crcs ^= 0xFFFFFFFF
    return _masked(crcs).astype("<u4").view(np.uint8).reshape(-1, 4)
