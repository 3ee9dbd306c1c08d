import pytest

from benchmarks import growth


@pytest.mark.fault(rows=[33])
def test_memory_stays_as_it_is(tmp_path):
    taken = growth.long(tmp_path, 50_000)
    assert taken[-1].done > 40_000
    assert taken[-1].memory <= growth.MOST_MEMORY * growth.early_memory(taken)


@pytest.mark.slow
def test_a_job_of_every_kind_of_size_runs(tmp_path):
    for _, job in growth.SIZES.values():
        assert growth.seconds_per_step(tmp_path, *job(2)) > 0
        assert growth.bare_seconds_per_step(*job(2)) > 0
