import pytest

from benchmarks import results
from benchmarks.results import Entry, Result
from benchmarks.workloads import FITS, OURS, UNWATCHED, WORKLOADS, Wanted


def windows(*rates, memory=100.0):
    return [None if rate is None else {"rate": rate, "loss": 1.0, "peak_memory_mb": memory} for rate in rates]


def result(**entries):
    return Result("a job", "2026-01-02", "2 CPUs", {name: Entry(name, windows=found) for name, found in entries.items()})


def test_ratios_are_of_the_same_window_and_leave_out_windows_that_failed():
    ours, theirs = Entry("ours", windows=windows(10, None, 30, 40)), Entry("theirs", windows=windows(5, 10, None, 10))
    assert results.ratios(ours, theirs) == [2.0, 4.0]


def test_ratios_of_memory_are_theirs_over_ours():
    ours, theirs = Entry("ours", windows=windows(1, memory=50.0)), Entry("theirs", windows=windows(1, memory=200.0))
    assert results.ratios(ours, theirs, "memory") == [4.0]


def test_the_fastest_of_several_counts_by_its_median():
    found = results.find(
        result(gradtrain=windows(10, 10, 10), keras_fit=windows(9, 1, 1), keras_fit_32=windows(5, 5, 5), keras_fit_jit=windows(4, 4, 4)),
        Wanted(2, FITS),
    )
    assert (found.against, found.median, found.met) == ("keras_fit_32", 2.0, True)


def test_the_one_that_needs_least_memory_counts():
    entries = result(gradtrain=windows(1, memory=100.0), keras_fit=windows(9, memory=390.0), keras_fit_32=windows(1, memory=500.0))
    found = results.find(entries, Wanted(4, FITS, measure="memory"))
    assert (found.against, found.median, found.met) == ("keras_fit", 3.9, False)
    assert "1/3.90, wanted 1/4 of keras_fit's memory" in found.text


def test_what_was_asked_for_and_failed_is_missed_and_what_was_not_asked_for_is_not_judged():
    entries = result(gradtrain=windows(1), orbit=[])
    failed = results.find(entries, Wanted(2.5, ("orbit",)))
    assert (failed.median, failed.met) == (None, False)
    assert "not measured" in failed.text
    assert results.find(entries, Wanted(1, ("jax_scan",))) is None
    assert results.find(result(orbit=windows(1)), Wanted(2.5, ("orbit",))) is None


def test_a_failed_mode_does_not_win_among_several():
    found = results.find(result(gradtrain=windows(3), keras_fit=[], keras_fit_32=windows(1)), Wanted(2, FITS))
    assert found.against == "keras_fit_32"


def test_results_are_read_as_they_were_written(tmp_path):
    written = {"mlp": result(gradtrain=windows(1, None), orbit=[])}
    written["mlp"].entries["orbit"].error = "not installed"
    results.write(written, tmp_path / "found.json")
    assert results.read(tmp_path / "found.json") == written
    assert results.read(tmp_path / "none.json") == {}


def test_workloads_are_judged_by_what_is_wanted_of_them():
    found = results.findings({"cnn": result(**{OURS: windows(100), UNWATCHED: windows(102), "torch_eager": windows(60)})})
    assert [(f.against, f.met) for f in found["cnn"]] == [("torch_eager", False), (UNWATCHED, True)]


@pytest.mark.parametrize("name", WORKLOADS)
def test_what_is_wanted_names_entrants_that_there_are(name):
    from benchmarks.entrants import COMPETITORS

    workload = WORKLOADS[name]
    for wanted in workload.wanted:
        assert {wanted.ours, *wanted.against} <= {*workload.ours, *COMPETITORS}
