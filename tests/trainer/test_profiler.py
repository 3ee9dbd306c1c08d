"""The profiler's window: of its steps, and left behind where TensorBoard's plugin looks for it."""

import pytest

from trainer import config, job
from trainer.errors import ConfigError
from trainer.profiler import Profiler

QUICK = ("trainer.steps=12", "trainer.eval_every=0", "gradient.verify_at_start=false", "trainer.compile=graph")


@pytest.fixture
def calls(monkeypatch):
    """What is asked of TensorFlow's profiler."""
    made = []
    monkeypatch.setattr("tensorflow.profiler.experimental.start", lambda folder: made.append("start"))
    monkeypatch.setattr("tensorflow.profiler.experimental.stop", lambda: made.append("stop"))
    return made


def test_the_window_is_of_its_steps(tmp_path, calls):
    profiler = Profiler(tmp_path, (5, 8))
    assert profiler.borders == (4, 8)
    for begin, end, expected in ((0, 4, []), (4, 6, ["start"]), (6, 8, ["start", "stop"]), (8, 12, ["start", "stop"])):
        profiler.before(begin)
        profiler.after(end)
        assert calls == expected
    profiler.close()
    assert calls == ["start", "stop"]


def test_a_run_that_begins_and_ends_within_it(tmp_path, calls, capsys):
    profiler = Profiler(tmp_path, (5, 8))
    profiler.before(5)  # resumed within the window
    profiler.after(7)
    profiler.close()
    assert calls == ["start", "stop"]
    assert "steps 6 to 7 are profiled" in capsys.readouterr().out


def test_no_window(tmp_path, calls):
    profiler = Profiler(tmp_path, None)
    assert profiler.borders == ()
    profiler.before(0)
    profiler.close()
    assert not calls


def test_a_run_leaves_a_profile(tmp_path):
    assert job.run(config.load([*QUICK, "logging.profile_steps=[5,8]", f"hydra.run.dir={tmp_path}"])) == 0
    (profile,) = (tmp_path / "tensorboard/plugins/profile").glob("*/*.xplane.pb")
    assert b"hidden_1" in profile.read_bytes()


@pytest.mark.parametrize("window", ["[5]", "[8,5]", "[0,3]", "[1,2,3]"])
def test_wrong_windows_are_refused(tmp_path, window):
    with pytest.raises(ConfigError, match=r"type for example logging\.profile_steps"):
        job.run(config.load([*QUICK, f"logging.profile_steps={window}", f"hydra.run.dir={tmp_path}"]))


def test_a_window_after_the_end_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"would end before; type trainer\.steps=5000, or logging\.profile_steps=\[1,\d+\]"):
        job.run(config.load([*QUICK, "logging.profile_steps=[4000,5000]", f"hydra.run.dir={tmp_path}"]))


def test_a_number_is_no_window(tmp_path):
    with pytest.raises(ConfigError, match=r"must be a list; type for example logging\.profile_steps=\[\]"):
        job.run(config.load([*QUICK, "logging.profile_steps=5", f"hydra.run.dir={tmp_path}"]))
