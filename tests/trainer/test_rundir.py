import json
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from trainer import rundir
from trainer.errors import ConfigError


def test_a_directory_is_locked_until_it_is_released(tmp_path):
    run = rundir.claim(tmp_path / "run")
    with pytest.raises(ConfigError, match="is locked"):
        rundir.claim(tmp_path / "run")
    run.release()
    rundir.claim(tmp_path / "run").release()


def test_a_directory_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="can't be written"):
        rundir.claim(tmp_path / "file" / "run")


@pytest.mark.fault(rows=[5])
def test_a_file_that_cannot_be_written_is_as_it_was(tmp_path, monkeypatch):
    run = rundir.claim(tmp_path / "run")
    run.status("running")
    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(ConfigError, match=r"status\.json can't be written: No space left on device"):
        run.status("done")
    assert run.read("status.json")["state"] == "running"
    assert sorted(path.name for path in run.path.iterdir()) == [".lock", "status.json"]
    run.release()


def full(*_):
    raise OSError(28, "No space left on device")


def test_the_fingerprint_is_of_what_may_not_change():
    before = rundir.fingerprint("seed: 0\nmodel: {hidden: [1, 2]}\ntrainer: {steps: 1}\ngradient: {mode: auto}\n")
    assert rundir.fingerprint("gradient: {mode: analytic}\ntrainer: {steps: 2}\nmodel: {hidden: [1, 2]}\nseed: 0\n") == before
    assert rundir.fingerprint("seed: 1\nmodel: {hidden: [1, 2]}\ntrainer: {steps: 1}\ngradient: {mode: auto}\n") != before


def test_secrets_stay_out(tmp_path, monkeypatch):
    monkeypatch.setenv("TOKEN_FOR_TEST", "hunter2")
    config = OmegaConf.create(
        {
            "seed": 3,
            "data": {"path": "${oc.env:TOKEN_FOR_TEST}/x", "again": "${data.path}", "password": "hunter2", "seed": "${seed}"},
            "list": ["${oc.env:TOKEN_FOR_TEST}"],
        }
    )
    run = rundir.claim(tmp_path / "run")
    rundir.describe(run, rundir.stored_config(config), ("+data.password=hunter2", "seed=3"))
    text = "".join(path.read_text() for path in run.path.iterdir())
    assert "hunter2" not in text
    stored = OmegaConf.load(run.file("config.yaml"))
    assert OmegaConf.to_container(stored, resolve=False)["data"]["again"] == "${oc.env:TOKEN_FOR_TEST}/x"
    assert stored.data.seed == 3
    assert run.file("overrides.txt").read_text() == "+data.password=***\nseed=3\n"
    run.release()


def test_keys_that_matter_and_keys_that_may_change():
    before = "seed: 0\nmodel: {hidden: [1, 2]}\ntrainer: {steps: 1, clip_norm: null}\n"
    now = "seed: 0\nmodel: {hidden: [1, 3]}\ntrainer: {steps: 2, clip_norm: 1.0}\nstrategy: {name: auto}\n"
    assert rundir.differing_keys(before, now) == ["model.hidden: [1, 2] -> [1, 3]", "trainer.clip_norm: None -> 1.0"]


def test_the_environment_is_plain_json():
    found = rundir.environment(["/device:CPU:0"])
    assert json.loads(json.dumps(found)) == found
    assert found["packages"]["tensorflow"]


def test_a_run_of_an_earlier_version_lacks_newer_keys_and_goes_on():
    before, now = "seed: 1\ntrainer:\n  clip_norm: null\n", "seed: 1\ntrainer:\n  clip_norm: null\n  overfit: false\n"
    assert rundir.differing_keys(before, now) == []
    assert rundir.fingerprint(before) == rundir.fingerprint(now)
    other = now.replace("false", "true")
    assert rundir.differing_keys(before, other) == ["trainer.overfit: False -> True"]
    assert rundir.fingerprint(before) != rundir.fingerprint(other)
