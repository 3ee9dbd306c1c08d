import pytest

from trainer import expansion
from trainer.errors import ConfigError


def names(*overrides: str) -> list[str]:
    return [job.run_dir.name for job in expansion.expand(overrides)]


def test_every_combination_has_its_directory():
    jobs = expansion.expand(["loss=mse", "gradient=auto,analytic", "seed=range(1,3)", "hydra.sweep.dir=here"])
    assert [str(job.run_dir) for job in jobs] == [
        "here/loss-mse_gradient-auto_seed-1",
        "here/loss-mse_gradient-auto_seed-2",
        "here/loss-mse_gradient-analytic_seed-1",
        "here/loss-mse_gradient-analytic_seed-2",
    ]
    assert [(job.config.gradient.mode, job.config.seed) for job in jobs] == [("auto", 1), ("auto", 2), ("analytic", 1), ("analytic", 2)]
    assert jobs[0].overrides == ("loss=mse", "gradient=auto", "seed=1", "hydra.sweep.dir=here")


def test_the_default_directory_is_one_for_all():
    jobs = expansion.expand(["seed=1,2"])
    assert len({job.run_dir.parent for job in jobs}) == 1
    assert jobs[0].run_dir.parts[:2] == ("outputs", "sweeps")


def test_names_hold_nothing_that_trips(monkeypatch):
    assert names() == ["default"]
    assert names("trust=[a]", "seed=1", "resume=must", "sweep.parallel=2") == ["seed-1"]
    assert len(names("seed=1,1,2")) == 2
    odd = names("data=csv", "data.target=y", "data.path='a/b=c.csv','a b=c.csv'")
    assert len(set(odd)) == 2
    assert all("=" not in name and "/" not in name and " " not in name for name in odd)
    (long,) = names("data=csv", "data.target=y", f"data.path={'x' * 300}")
    assert len(long) < 120


def test_choices_are_found_by_pattern():
    assert names("gradient=glob(*)") == ["gradient-analytic", "gradient-auto"]


@pytest.mark.fault
def test_a_secret_names_no_directory(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "mine.yaml").write_text("_target_: my_package.Rows\napi_token: ''\n")
    jobs = expansion.expand(["data=mine", "data.api_token=hunter2,hunter3", "trust=[my_package]"], tmp_path)
    assert [job.run_dir.name for job in jobs] == ["data-mine_data.api_token-1", "data-mine_data.api_token-2"]


def test_bad_jobs_are_listed_and_none_starts(capsys):
    with pytest.raises(ConfigError, match="2 of 3 jobs can't be run, as listed; none was started"):
        expansion.expand(["trainer.log_every=0,1,x"])
    lines = capsys.readouterr().err.splitlines()
    assert [line.partition(": ")[0] for line in lines] == ["trainer.log_every=0", "trainer.log_every=x"]


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["loss=nope", "seed=1,2"], "there is no such loss"),
        (["hydra.run.dir=x", "seed=1,2"], "type hydra.sweep.dir="),
        (["hydra.sweep.dir=x,y"], "can't be swept"),
        (["resume=never,auto"], "can't be swept"),
        (["seed=interval(0,1)"], "range"),
        (["seed=range(0,1000000)"], "more than 10000"),
        (["seed=range(0,0)"], r"seed=range\(0,0\) names no value, and so the sweep has no job"),
        (["loss=glob(nope*)", "seed=1,2"], "names no value"),
        (["hydra.sweep.dir=../x", "seed=1,2"], "hydra.sweep.dir"),
        (["seed=[1"], "can't be read"),
    ],
)
def test_sweeps_that_are_refused(overrides, words):
    with pytest.raises(ConfigError, match=words):
        expansion.expand(overrides)
