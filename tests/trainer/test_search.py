import json
import math
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

import trainer
from tests.trainer import fake_jobs
from tests.trainer.command_line import configuration
from tests.trainer.fake_jobs import wait_until
from trainer import cli, expansion, isolation, search, space, sweep
from trainer.config import Job
from trainer.errors import ConfigError
from trainer.isolation import Outcome

RATE = "optimizer.learning_rate=tag(log,interval(1e-5,1))"
LINE = ["-m", RATE, "data.batch_size=range(16,129,16)", "model.hidden=choice([32],[64,8])", "hydra.sweep.dir=here"]

# Stands for trainer.job in a sweep's processes: a parabola in the learning rate. The third job waits for its end while `block` is there.
PARABOLA = """
    import json, math, sys, time, types

    def run(job):
        path = job.run_dir
        path.mkdir(parents=True, exist_ok=True)
        with open(path / "starts", "a") as file:
            file.write("x")
        while (path.parent / "block").exists() and len(list(path.parent.glob("*/starts"))) == 3:
            time.sleep(0.01)
        final = {"loss": 0.5, "eval/loss": (math.log10(job.config.optimizer.learning_rate) + 2) ** 2}
        (path / "summary.json").write_text(json.dumps({"steps": 10, "wall_seconds": 1.5, "final": final}))
        return 0

    sys.modules["trainer.job"] = types.SimpleNamespace(run=run)
"""


def parabola(job: Job) -> Outcome:
    """Best at a learning rate of 0.01; larger batches are quicker."""
    final = {"loss": 0.5, "eval/loss": (math.log10(job.config.optimizer.learning_rate) + 2) ** 2, "eval/accuracy": 0.5}
    return Outcome("done", summary={"wall_seconds": 1000 / job.config.data.batch_size, "gradient_mode": "auto", "final": final})


@pytest.fixture
def jobs(here, monkeypatch) -> list[Job]:
    """Those that a search runs, each of which ends at once."""
    return play(monkeypatch, parabola)


def play(monkeypatch: pytest.MonkeyPatch, end: Callable[[Job], Outcome]) -> list[Job]:
    ran: list[Job] = []

    def run_one(job: Job, *_: object, **__: object) -> Outcome:
        ran.append(job)
        return end(job)

    monkeypatch.setattr(isolation, "run_one", run_one)
    return ran


def names(jobs: list[Job]) -> list[str]:
    return [job.run_dir.name for job in jobs]


def found() -> dict:
    return json.loads(Path("here/optuna.json").read_text())


@pytest.mark.parametrize(
    ("text", "distribution"),
    [
        ("interval(1e-4,1e-1)", FloatDistribution(1e-4, 1e-1)),
        ("interval(1,5)", FloatDistribution(1, 5)),
        ("int(interval(1,5))", IntDistribution(1, 5)),
        ("tag(log,interval(1e-4,1e-1))", FloatDistribution(1e-4, 1e-1, log=True)),
        ("tag(log,int(interval(1,64)))", IntDistribution(1, 64, log=True)),
        ("range(1,4)", IntDistribution(1, 3)),  # which ends before 4, as in every sweep
        ("range(16,128,16)", IntDistribution(16, 112, step=16)),
        ("range(5,0,-2)", IntDistribution(1, 5, step=2)),
        ("range(0,1,0.1)", FloatDistribution(0, 0.9, step=0.1)),
        ("choice(a,b,a)", CategoricalDistribution(("a", "b"))),
        ("1,2", CategoricalDistribution(("1", "2"))),
        ("[32],[64,8]", CategoricalDistribution(("[32]", "[64,8]"))),
        ("true,null,'x y'", CategoricalDistribution(("True", "null", "'x y'"))),
        ("shuffle(range(1,3))", None),
    ],
)
def test_the_grammar_is_hydras(text, distribution):
    (override,) = expansion.parse([f"seed={text}"])
    read = space.distribution_of(override)
    if distribution is None:
        assert sorted(read.choices) == ["1", "2"]
    else:
        assert read == distribution


@pytest.mark.slow
def test_a_search_finds_the_best(jobs, capsys):
    assert cli.main([*LINE, "sweep.optuna.trials=30"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert len(jobs) == 30
    assert {job.config.data.batch_size for job in jobs} <= set(range(16, 129, 16))
    assert {tuple(job.config.model.hidden) for job in jobs} == {(32,), (64, 8)}
    (best,) = found()["best"]
    assert best["values"]["eval/loss"] == min(parabola(job).summary["final"]["eval/loss"] for job in jobs)
    assert 0.003 < best["params"]["optimizer.learning_rate"] < 0.03
    assert best["directory"] in {str(job.run_dir) for job in jobs}
    assert found()["objectives"] == {"eval/loss": "minimize"}
    assert found()["trials"]["complete"] == 30
    rows = [line.split() for line in out.partition("trial ")[2].splitlines()]
    assert [row[0] for row in rows if row and row[0].isdigit()] == [*map(str, range(1, 31)), "30"]  # the last line counts them
    assert sum("best" in row for row in rows) == 1
    assert "30 of 30 trials done, in here" in out
    assert f"best: trial {best['trial']}  eval/loss" in out


@pytest.mark.slow
@pytest.mark.parametrize("sampler", ["tpe", "random", "nsgaii"])
def test_the_same_seed_gives_the_same_trials_interrupted_or_not(jobs, sampler):
    line = [*LINE[:-1], f"sweep.optuna.sampler={sampler}"]
    assert cli.main([*line, "sweep.optuna.trials=12", "hydra.sweep.dir=straight"]) == 0
    straight = names(jobs)
    jobs.clear()
    assert cli.main([*line, "sweep.optuna.trials=5", "hydra.sweep.dir=parts"]) == 0
    assert cli.main([*line, "sweep.optuna.trials=12", "hydra.sweep.dir=parts"]) == 0
    assert names(jobs) == straight
    assert len(set(straight)) == 12
    jobs.clear()
    assert cli.main([*line, "sweep.optuna.trials=12", "hydra.sweep.dir=other", "sweep.optuna.seed=1"]) == 0
    assert set(names(jobs)).isdisjoint(straight)


def test_the_same_command_again_has_nothing_to_run(jobs, capsys):
    for _ in range(2):
        assert cli.main([*LINE, "sweep.optuna.trials=3"]) == 0
    assert len(jobs) == 3
    assert capsys.readouterr().out.count("3 of 3 trials done") == 2


def test_a_trial_that_was_stopped_goes_on(here, monkeypatch):
    ends = iter([parabola, parabola, lambda _: Outcome("stopped", "signal 15")])
    first = play(monkeypatch, lambda job: next(ends, parabola)(job))
    assert cli.main([*LINE, "sweep.optuna.trials=3"]) == 1
    assert found()["trials"]["running"] == 1
    again = play(monkeypatch, parabola)
    assert cli.main([*LINE, "sweep.optuna.trials=5"]) == 0
    assert names(again)[0] == names(first)[2]
    assert len(again) == 3
    assert found()["trials"]["complete"] == 5


def test_a_trial_that_was_never_given_its_values_counts_for_nothing(jobs):
    assert cli.main([*LINE, "sweep.optuna.trials=2"]) == 0
    study = optuna.load_study(study_name="gradtrain", storage="sqlite:///here/optuna.db")
    study.ask({"data.batch_size": IntDistribution(16, 128, step=16)})
    assert cli.main([*LINE, "sweep.optuna.trials=3"]) == 0
    assert len(jobs) == 3
    assert found()["trials"]["complete"] == 3


@pytest.mark.slow
@pytest.mark.fault(rows=[20])
def test_failed_trials_are_told_and_listed_and_not_repeated(here, monkeypatch, capsys):
    def end(job: Job) -> Outcome:
        return parabola(job) if job.config.optimizer.learning_rate < 0.05 else Outcome("failed", "the loss is not finite")

    ran = play(monkeypatch, end)
    assert cli.main([*LINE, "sweep.optuna.trials=12"]) == 1
    out, err = capsys.readouterr()
    num_failed = sum(job.config.optimizer.learning_rate >= 0.05 for job in ran)
    assert 0 < num_failed < 12
    assert err.count("failed: the loss is not finite") == num_failed
    assert found()["trials"]["fail"] == num_failed
    assert out.count(" failed ") == num_failed
    assert cli.main([*LINE, "sweep.optuna.trials=12"]) == 1
    assert len(ran) == 12


def test_an_objective_that_is_not_finite_fails_its_trial(here, monkeypatch, capsys):
    play(monkeypatch, lambda _: Outcome("done", summary={"final": {"eval/loss": "NaN"}}))
    assert cli.main([*LINE, "sweep.optuna.trials=2"]) == 1
    assert "trial 1 failed: its objectives are [nan]" in capsys.readouterr().err
    assert found()["best"] == []


@pytest.mark.slow
def test_several_objectives_end_in_their_pareto_front(jobs, capsys):
    line = [*LINE, "sweep.optuna.objectives=[eval/loss,wall_seconds]", "sweep.optuna.trials=25"]
    assert cli.main(line) == 0
    points = [(parabola(job).summary["final"]["eval/loss"], parabola(job).summary["wall_seconds"]) for job in jobs]
    front = {point for point in points if not any(a <= point[0] and b <= point[1] and (a, b) != point for a, b in points)}
    assert {tuple(best["values"].values()) for best in found()["best"]} == front
    assert len(front) > 1
    assert capsys.readouterr().out.count("best: trial") == len(found()["best"])


def test_directions_are_those_of_the_objectives_unless_typed(jobs):
    assert cli.main([*LINE, "sweep.optuna.objectives=[eval/accuracy,wall_seconds]", "sweep.optuna.trials=1"]) == 0
    assert found()["objectives"] == {"eval/accuracy": "maximize", "wall_seconds": "minimize"}
    assert cli.main([*LINE[:-1], "hydra.sweep.dir=other", "sweep.optuna.directions=[maximize]", "sweep.optuna.trials=2"]) == 0
    assert json.loads(Path("other/optuna.json").read_text())["objectives"] == {"eval/loss": "maximize"}


def test_an_objective_that_no_run_has_ends_the_search_after_one_trial(jobs, refused):
    said = refused(*LINE, "sweep.optuna.objective=eval/los", "sweep.optuna.trials=5")
    assert "did you mean eval/loss?" in said
    assert len(jobs) == 1


def test_trials_of_the_same_values_at_once_are_one_job(here, monkeypatch):
    asked = threading.Semaphore(0)
    ask = optuna.Study.ask

    def counted(self, *arguments):
        asked.release()
        return ask(self, *arguments)

    monkeypatch.setattr(optuna.Study, "ask", counted)
    ran = play(monkeypatch, lambda job: [asked.acquire(timeout=60) for _ in range(4)] and parabola(job))
    assert cli.main(["-m", "seed=choice(1)", "sweep.parallel=2", "sweep.optuna.trials=4", "hydra.sweep.dir=here"]) == 0
    assert len(ran) == 1
    assert found()["trials"]["complete"] == 4


def test_values_that_are_wrong_together_fail_their_trial_alone(jobs, monkeypatch, capsys):
    make = space.Space.job

    def job(self, params, *arguments):
        if params["data.batch_size"] > 64:
            raise ConfigError("data.batch_size is beyond the limit; type a smaller one")
        return make(self, params, *arguments)

    monkeypatch.setattr(space.Space, "job", job)
    assert cli.main([*LINE, "sweep.optuna.trials=8"]) == 1
    assert 0 < len(jobs) < 8
    assert capsys.readouterr().err.count("failed: data.batch_size is beyond the limit") == 8 - len(jobs)
    assert found()["trials"]["fail"] == 8 - len(jobs)


def test_a_choice_that_can_t_be_run_is_refused_before_the_first_trial(jobs, refused):
    assert "loss.delta" in refused("-m", "loss=huber,mse", "loss.delta=1", "sweep.optuna.trials=8")  # mse has no delta
    assert jobs == []


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["sweep.optuna.sampler=random", "seed=1,2"], "type sweep.optuna.trials=20"),
        (["sweep.optuna.trials=3", "seed=1"], "nothing is searched"),
        (["sweep.optuna.trials=0", "seed=1,2"], ">= 1"),
        (["sweep.optuna.trials=3", "sweep.optuna.sampler=cmaes", "seed=1,2"], "one of tpe, random, nsgaii"),
        (["sweep.optuna.trials=3", "seed=interval(0,9)"], "seed=0.0"),  # a seed is whole: int(interval(0,9))
        (["sweep.optuna.trials=3", "optimizer.learning_rate=interval(0,1)"], "optimizer.learning_rate=0.0"),
        (["sweep.optuna.trials=3", "optimizer.learning_rate=interval(1,0.1)"], "LOW"),
        (["sweep.optuna.trials=3", "optimizer.learning_rate=tag(log,interval(0,1))"], "LOW > 0"),
        (["sweep.optuna.trials=3", "data.batch_size=range(8,8)"], "has no value"),
        (["sweep.optuna.trials=3", "data.batch_size=range(8,16,0)"], "step"),
        (["sweep.optuna.trials=3", "loss=mse,nope"], "there is no such loss"),
        (["sweep.optuna.trials=3", "seed=1,2", "sweep.compare=true"], "leave it out"),
        (["sweep.optuna.trials=3", "seed=1,2", "sweep.optuna.objective=loss", "sweep.optuna.objectives=[loss]"], "one of the two"),
        (["sweep.optuna.trials=3", "seed=1,2", "sweep.optuna.directions=[up]"], "type sweep.optuna.directions=[minimize]"),
        (["sweep.optuna.trials=3", "seed=1,2", "sweep.optuna.directions=[minimize,minimize]"], "each of 1 objectives"),
        (["sweep.optuna.trials=3", "seed=1,2", "sweep.optuna.storage=nonsense"], "sweep.optuna.storage can't be used"),
        (["sweep.optuna.trials=3", "sweep.optuna.seed=1,2"], "can't be swept"),
        (["sweep.optuna.trails=3", "seed=1,2"], "did you mean sweep.optuna.trials?"),
        (["seed=interval(0,1)"], "sweep.optuna.trials=20"),
    ],
)
def test_searches_that_are_refused(here, overrides, words):
    with pytest.raises(ConfigError) as refused:
        sweep.run([*overrides, "hydra.sweep.dir=here"])
    assert words in str(refused.value)


def test_a_study_of_something_else_is_not_gone_on_with(jobs, refused):
    line = ["-m", "optimizer.learning_rate=interval(1e-3,1e-1)", "model.hidden=[8],[16]", "hydra.sweep.dir=here", "sweep.optuna.trials=2"]
    assert cli.main(line) == 0
    assert "objectives" in refused(*line, "sweep.optuna.objective=loss")
    assert "typed" in refused(*line, "trainer.steps=5")
    assert "searched" in refused(*line, "seed=1,2")
    assert "model.hidden: the study gradtrain has other choices" in refused(*line, "model.hidden=[8],[32]")
    assert cli.main([*line, "optimizer.learning_rate=interval(1e-4,1)", "sweep.optuna.trials=3"]) == 0  # a wider one
    assert len(jobs) == 3
    assert cli.main([*line, "trainer.steps=5", "sweep.optuna.study_name=other"]) == 0


def test_a_study_may_be_elsewhere(jobs):
    line = [*LINE, "sweep.optuna.trials=2", "sweep.optuna.storage=sqlite:///study.db"]
    assert cli.main(line) == 0
    assert Path("study.db").exists()
    assert not Path("here/optuna.db").exists()


def test_a_database_that_is_damaged_while_trials_run_is_named(here, monkeypatch, refused):
    def end(job: Job) -> Outcome:
        Path("here/optuna.db").write_bytes(b"no database")
        return parabola(job)

    ran = play(monkeypatch, end)
    for num_jobs in (1, 1):  # the second time before any trial
        said = refused(*LINE, "sweep.optuna.trials=3")
        assert "the study in here/optuna.db can't be used: " in said
        assert "file is not a database; type sweep.optuna.storage=sqlite:///FILE.db" in said
        assert len(ran) == num_jobs


@pytest.mark.fault(rows=[24])
def test_a_file_names_no_database(jobs, refused, tmp_path):
    text = "# @package _global_\nsweep:\n  optuna:\n    trials: 3\n    storage: sqlite:///canary.db\n"
    conf = configuration(tmp_path, experiment__evil=text)
    assert "command line alone" in refused("--config-dir", str(conf), "experiment=evil", "-m", "seed=1,2", "hydra.sweep.dir=here")
    assert not Path("canary.db").exists()


def test_a_file_may_ask_for_a_search(jobs, tmp_path):
    conf = configuration(tmp_path, experiment__tune="# @package _global_\nsweep:\n  optuna:\n    trials: 3\n")
    assert cli.main(["--config-dir", str(conf), "experiment=tune", "-m", "seed=1,2", "hydra.sweep.dir=here"]) == 0
    assert found()["trials"]["complete"] == 3


@pytest.mark.fault(rows=[26])
def test_a_secret_is_not_searched(refused, tmp_path):
    conf = configuration(tmp_path, data__mine="_target_: my_package.Rows\napi_token: ''\n")
    line = ["--config-dir", str(conf), "-m", "data=mine", "trust=[my_package]", "data.api_token=hunter2,hunter3", "sweep.optuna.trials=2"]
    said = refused(*line)
    assert "a secret can't be searched" in said
    assert "hunter2" not in said


@pytest.mark.fault(rows=[30])
def test_two_searches_in_one_directory(here, refused):
    with search._alone(Path("here")):
        assert "another search is running there" in refused(*LINE, "sweep.optuna.trials=2")


def test_optuna_is_named_with_its_extra_where_it_is_missing(refused, monkeypatch):
    monkeypatch.delitem(sys.modules, "trainer.search")
    monkeypatch.delattr(trainer, "search")
    monkeypatch.setitem(sys.modules, "optuna", None)
    assert 'pip install "gradtrain[optuna]"' in refused(*LINE, "sweep.optuna.trials=2")


@pytest.mark.slow
@pytest.mark.fault(rows=[14, 20])
def test_a_search_that_is_killed_is_finished_by_the_same_command(tmp_path, monkeypatch, capfd):
    folder = fake_jobs.install(tmp_path, monkeypatch, PARABOLA) / "here"
    folder.mkdir()
    (folder / "block").touch()
    line = ["-m", RATE, "hydra.sweep.dir=here", "sweep.optuna.trials=6"]
    parent = subprocess.Popen([sys.executable, "-m", "trainer", *line], stdout=subprocess.DEVNULL)
    wait_until(lambda: len(list(folder.glob("*/starts"))) == 3)
    parent.send_signal(signal.SIGKILL)
    parent.wait(timeout=60)
    (folder / "block").unlink()
    assert cli.main(line) == 0
    assert sorted(path.read_text() for path in folder.glob("*/starts")) == ["x"] * 5 + ["xx"]
    found = json.loads((folder / "optuna.json").read_text())
    assert found["trials"] == {"running": 0, "complete": 6, "pruned": 0, "fail": 0, "waiting": 0}
    assert "6 of 6 trials done" in capfd.readouterr().out


@pytest.mark.slow
def test_a_search_of_runs_that_train(tmp_path, capfd):
    line = [
        "-m",
        "optimizer.learning_rate=tag(log,interval(1e-4,1e-1))",
        "model.hidden=[8],[16]",
        "trainer.steps=20",
        "trainer.compile=graph",
    ]
    line += ["sweep.parallel=2", "sweep.optuna.trials=3", "sweep.optuna.objectives=[eval/loss,wall_seconds]", f"hydra.sweep.dir={tmp_path}"]
    assert cli.main(line) == 0
    found = json.loads((tmp_path / "optuna.json").read_text())
    assert found["trials"]["complete"] == 3
    for best in found["best"]:
        summary = json.loads((Path(best["directory"]) / "summary.json").read_text())
        assert best["values"] == {"eval/loss": summary["final"]["eval/loss"], "wall_seconds": summary["wall_seconds"]}
    assert len(list(tmp_path.glob("*/metrics.jsonl"))) == 3
    assert "3 of 3 trials done" in capfd.readouterr().out


@pytest.mark.slow
def test_a_search_on_a_cluster(tmp_path, monkeypatch):
    pytest.importorskip("submitit")
    folder = fake_jobs.install(tmp_path, monkeypatch, PARABOLA)
    assert cli.main(["-m", RATE, "hydra/launcher=submitit_local", "sweep.parallel=2", "hydra.sweep.dir=here", "sweep.optuna.trials=3"]) == 0
    assert json.loads((folder / "here" / "optuna.json").read_text())["trials"]["complete"] == 3


@pytest.mark.slow
def test_a_search_imports_no_tensorflow(tmp_path, monkeypatch):
    folder = fake_jobs.install(tmp_path, monkeypatch, PARABOLA)
    code = "import sys; from trainer.cli import main; status = main(sys.argv[1:]); sys.exit(status or 'tensorflow' in sys.modules)"
    line = ["-m", RATE, "sweep.optuna.trials=1"]
    assert subprocess.run([sys.executable, "-c", code, *line], check=False, cwd=folder).returncode == 0
