import numpy as np
import pytest

from trainer.encoding import Records, crc32c, decimals


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
