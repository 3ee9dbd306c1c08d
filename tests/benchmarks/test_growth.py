import pytest

from benchmarks import growth


@pytest.mark.fault(rows=[33])
def test_memory_stays_as_it_is(tmp_path):
    taken = growth.long(tmp_path, 50_000)
    assert taken[-1].done > 40_000
    assert taken[-1].memory <= growth.MOST_MEMORY * growth.early_memory(taken)
