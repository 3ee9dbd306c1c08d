import argparse

import pytest

from benchmarks import environments, loop, startup, workloads
from benchmarks.competitors.job import Order
from benchmarks.workloads import WORKLOADS


def test_names_are_chosen_in_a_fixed_order_and_unknown_ones_refused(capsys):
    parser = argparse.ArgumentParser()
    assert loop.chosen(parser, "only", "b,a", ["a", "b", "c"]) == ["a", "b"]
    assert loop.chosen(parser, "only", None, ["a", "b"]) == ["a", "b"]
    with pytest.raises(SystemExit):
        loop.chosen(parser, "only", "d", ["a", "b"])
    assert "there is no d; there are a, b" in capsys.readouterr().err


def test_an_entrant_that_fails_leaves_the_others(tmp_path, monkeypatch):
    def no_environment(name, cache):
        raise environments.NotInstalledError("not installed: no network")

    def trainer(overrides, folder):
        raise loop.FailedError("ended with status 2")

    monkeypatch.setattr(loop, "python_of", no_environment)
    monkeypatch.setattr(loop, "run_trainer", trainer)
    options = argparse.Namespace(windows=2, seconds=0.1, environments=tmp_path)
    result = loop.Result("", "", "")
    loop.measure(WORKLOADS["mlp"], ["gradtrain", "orbit"], options, result, lambda: None)
    assert result.entries["orbit"].error == "not installed: no network"
    assert result.entries["gradtrain"].windows == [None, None]
    assert result.entries["gradtrain"].error == "ended with status 2"


def test_pip_says_why_in_its_last_error():
    assert environments.last_line("ERROR: no such version\n\n[notice] a new pip\n") == "ERROR: no such version"
    assert environments.last_line("Traceback\nImportError: x\n") == "ImportError: x"
    assert environments.last_line("") == "no message"


def test_words_fill_the_vocabulary():
    words = workloads._random_words(100).split()
    assert len(set(words)) == 99  # and a token for unknown ones


def test_the_order_sees_everything_once_an_epoch():
    order = Order(10, 4)
    seen = [*order.batches(1).ravel(), *order.batches(4).ravel()]
    assert sorted(seen[:10]) == sorted(seen[10:]) == list(range(10))


def test_startup_is_judged_by_the_median_of_ratios():
    times = {startup.BARE: [1.0, 1.0, 2.0], startup.RUN: [1.5, 1.2, 2.4], startup.HELP: [0.5] * 3, startup.MISTAKE: [0.7] * 3}
    assert startup.missed(times) == ["configuration error takes 0.70 s, wanted 0.6"]
    times[startup.RUN] = [1.5, 1.5, 2.4]
    assert "1.50 times a bare script's time, wanted 1.3" in startup.missed(times)[-1]
