import numpy as np
import pytest

from trainer import encoding
from trainer.encoding import Records, crc32c, decimals, event, first_damage, framed


def texts(values):
    return [row.tobytes().decode().strip() for row in decimals(np.float32(values)[None])[0]]


def test_every_kind_of_float32_is_kept_to_the_bit():
    bits = np.random.default_rng(0).integers(0, 2**32, 200_000, dtype=np.uint32)
    powers = np.float32(10.0 ** np.arange(-45, 39))
    near = [np.nextafter(powers, np.float32(to)) for to in (0, np.inf)]
    values = np.concatenate([bits.view(np.float32), powers, *near, -powers, np.float32([0, -0.0, 1e-45, 1.1754944e-38, 3.4028235e38])])
    found = np.float32([float(text.strip('"')) for text in texts(values)])
    np.testing.assert_array_equal(found, values)
    np.testing.assert_array_equal(np.signbit(found)[~np.isnan(values)], np.signbit(values)[~np.isnan(values)])


def test_numbers_are_those_that_printf_gives():
    values = [0.0, -0.0, 1.0, -1.0, 0.5, 1e-3, 100.0, 123456.789, 9.9999999e9, 1.17549435e-38]
    assert texts(values) == [f"{np.float32(value):.8e}" for value in values]


def test_values_that_are_not_finite_are_strings():
    assert texts([np.nan, -np.nan, np.inf, -np.inf, 1.0]) == ['"NaN"', '"NaN"', '"inf"', '"-inf"', "1.00000000e+00"]


def test_crc32c_of_the_standard_check_value():
    assert crc32c(b"123456789") == 0xE3069283


@pytest.mark.parametrize("tags", [["loss", "grad_norm/ä", ""], [f"grad_norm/layer_{i}" for i in range(200)]], ids=len)
def test_checksums_of_all_records_at_once_are_those_of_each(tags):
    rng = np.random.default_rng(0)
    rows, wall_times = rng.normal(size=(50, len(tags))).astype(np.float32), rng.uniform(1e9, 2e9, 50)
    content = Records(tags).encode(rng.integers(1, 2**35, 50), rows, wall_times)
    length = int.from_bytes(content[:8], "little")
    assert len(content) == 50 * (length + 16)
    for start in range(0, len(content), length + 16):
        crc = crc32c(content[start + 12 : start + 12 + length])
        masked = ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF
        assert int.from_bytes(content[start + 12 + length : start + 16 + length], "little") == masked


@pytest.fixture
def event_file(tmp_path, monkeypatch):
    """An event file with records of several lengths: its path, its content, and where each record begins."""
    monkeypatch.setattr(encoding, "_READ_BYTES", 1000)
    rng = np.random.default_rng(0)
    parts = [framed(b"version")]
    for tags, num in ((["loss", "norm"], 40), (["eval/loss"], 1), (["loss", "norm"], 3), (["eval/loss"], 25)):
        rows, steps = rng.normal(size=(num, len(tags))).astype(np.float32), np.arange(1, num + 1)
        content = Records(tags).encode(steps, rows, np.full(num, 1e9))
        length = len(content) // num
        parts += [content[i : i + length] for i in range(0, len(content), length)]
    parts.append(event(1e9, 7, rng.bytes(3000)))
    path, content = tmp_path / "events.out.tfevents.1", b"".join(parts)
    path.write_bytes(content)
    return path, content, np.cumsum([0, *map(len, parts)])


def test_whole_event_files_are_not_damaged(event_file):
    path, content, starts = event_file
    for end in starts.tolist():
        path.write_bytes(content[:end])
        assert first_damage(path) is None


def test_the_record_with_a_flipped_bit_is_found(event_file):
    path, content, starts = event_file
    places = {*range(60), *range(len(content) - 30, len(content)), *np.random.default_rng(1).integers(0, len(content), 200).tolist()}
    for place in places:
        damaged = bytearray(content)
        damaged[place] ^= 1 << place % 8
        path.write_bytes(damaged)
        assert first_damage(path) == starts[np.searchsorted(starts, place, side="right") - 1], place


def test_a_record_that_is_cut_off_is_found(event_file):
    path, content, starts = event_file
    for size in set(np.random.default_rng(2).integers(1, len(content), 200).tolist()) - set(starts.tolist()):
        path.write_bytes(content[:size])
        assert first_damage(path) == starts[np.searchsorted(starts, size, side="right") - 1], size


def test_what_lies_far_behind_is_not_looked_at(event_file, monkeypatch):
    path, content, _ = event_file
    path.write_bytes(content[:-1])
    monkeypatch.setattr(encoding, "_LOOKED_AT", 2000)
    assert first_damage(path) is None
