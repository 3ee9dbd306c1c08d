"""What reaches an MLflow server that is made up here."""

import collections
import contextlib
import json
import math
import sys
import threading
import time
import types

import pytest

from trainer import rundir, schema, tracking
from trainer.errors import ConfigError, DivergedError
from trainer.tracking import Tracker

Metric = collections.namedtuple("Metric", "key value timestamp step")
Param = RunTag = collections.namedtuple("Param", "key value")
URI = "http://user:hunter2@nowhere:5000"


class Server:
    """What an MLflow client is asked for, and what it has been given; the next `failures` requests fail."""

    def __init__(self):
        self.experiments, self.runs, self.failures, self.num_requests = {}, {}, 0, 0
        self.stuck = threading.Event()
        self.stuck.set()

    def _request(self):
        self.stuck.wait()
        self.num_requests += 1
        if self.failures:
            self.failures -= 1
            raise ConnectionError(f"no route to {URI}")

    def get_experiment_by_name(self, name):
        self._request()
        return types.SimpleNamespace(experiment_id=self.experiments[name]) if name in self.experiments else None

    def create_experiment(self, name):
        self._request()
        return self.experiments.setdefault(name, f"e{len(self.experiments)}")

    def create_run(self, experiment_id, run_name, tags):
        self._request()
        run_id = f"r{len(self.runs)}"
        run = {"experiment": experiment_id, "name": run_name, "tags": dict(tags), "status": "RUNNING", "params": {}, "metrics": []}
        self.runs[run_id] = run
        return types.SimpleNamespace(info=types.SimpleNamespace(run_id=run_id))

    def update_run(self, run_id, status):
        self._request()
        self.runs[run_id]["status"] = status

    def set_tag(self, run_id, key, value):
        self._request()
        self.runs[run_id]["tags"][key] = value

    def log_batch(self, run_id, metrics=(), params=(), tags=()):
        self._request()
        assert len(metrics) <= 1000
        assert len(params) <= 100
        self.runs[run_id]["metrics"] += metrics
        self.runs[run_id]["params"] |= {param.key: param.value for param in params}
        self.runs[run_id]["tags"] |= {tag.key: tag.value for tag in tags}

    def set_terminated(self, run_id, status):
        self._request()
        self.runs[run_id]["status"] = status

    def steps(self, key, run_id="r0"):
        return [metric.step for metric in self.runs[run_id]["metrics"] if metric.key == key]


@pytest.fixture
def server(monkeypatch):
    """In the place of MLflow, and without its patience."""
    server = Server()
    mlflow = types.ModuleType("mlflow")
    mlflow.MlflowClient = lambda uri: server
    entities = types.ModuleType("mlflow.entities")
    entities.Metric, entities.Param, entities.RunTag = Metric, Param, RunTag
    monkeypatch.setitem(sys.modules, "mlflow", mlflow)
    monkeypatch.setitem(sys.modules, "mlflow.entities", entities)
    for name, value in (("_BETWEEN", 0.0), ("_POLL", 0.01), ("_PAUSES", (0.01, 0.01))):
        monkeypatch.setattr(tracking, name, value)
    for name in tracking._ENVIRONMENT:
        monkeypatch.setenv(name, "1")
    yield server
    server.stuck.set()


@pytest.fixture
def run(tmp_path):
    run = rundir.claim(tmp_path / "run")
    yield run
    run.release()


SETTINGS = schema.Logging(mlflow=True, mlflow_uri=URI)


def write(run, steps, **further):
    with open(run.file("metrics.jsonl"), "a") as lines:
        for step in steps:
            row = {"step": step, "loss": 1 / step, "grad_norm/ä %/kernel": "NaN"} | further
            lines.write(json.dumps(row) + "\n")


def track(run, settings=SETTINGS, continues=False, hyperparameters=None, cause="finished"):
    """A tracker of a run whose steps are all written."""
    with Tracker(run, settings, hyperparameters or {"seed": 1}, "auto", continues) as tracker:
        tracker.follow()
        tracker.ended(cause, {"steps_per_second": 5.0})


def test_every_step_is_sent_once_with_its_numbers(server, run, capsys):
    write(run, range(1, 2001))
    track(run, hyperparameters={"seed": 1, "shuffle": True, "model": "mlp"} | {f"key {i}": i for i in range(150)})
    assert server.experiments == {"gradtrain": "e0"}
    found = server.runs["r0"]
    assert (found["name"], found["status"], found["experiment"]) == ("run", "FINISHED", "e0")
    assert found["tags"] == {"gradient_mode": "auto", "run_dir": str(run.path), "cause": "finished"}
    assert len(found["params"]) == 153
    assert (found["params"]["seed"], found["params"]["shuffle"], found["params"]["model"]) == ("1", "true", "mlp")
    assert server.steps("loss") == server.steps("grad_norm/ä _/kernel") == list(range(1, 2001))
    assert [metric.value for metric in found["metrics"] if metric.key == "loss"] == [1 / step for step in range(1, 2001)]
    assert all(math.isnan(metric.value) for metric in found["metrics"] if metric.key.startswith("grad_norm"))
    assert found["metrics"][-1][:2] == ("steps_per_second", 5.0)
    assert capsys.readouterr().err == ""


def test_lines_are_sent_while_they_are_written_and_only_whole(server, run):
    run.file("metrics.jsonl").touch()
    with Tracker(run, SETTINGS, {}, "auto", False) as tracker:
        tracker.follow()
        write(run, [1, 2])
        with open(run.file("metrics.jsonl"), "a") as lines:
            lines.write('{"step": 3, "lo')
        until(lambda: "r0" in server.runs and server.steps("loss") == [1, 2])
        with open(run.file("metrics.jsonl"), "a") as lines:
            lines.write('ss": 0.25}\n')
        until(lambda: server.steps("loss") == [1, 2, 3])
        assert server.runs["r0"]["status"] == "RUNNING"


def until(condition):
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_a_run_that_goes_on_goes_on_there_too(server, run):
    write(run, range(1, 8))
    track(run, cause="signal")
    assert server.runs["r0"]["status"] == "KILLED"
    write(run, range(8, 11))
    track(run, continues=True, hyperparameters={"seed": 2})
    assert list(server.runs) == ["r0"]
    assert server.steps("loss") == list(range(1, 11))
    assert (server.runs["r0"]["status"], server.runs["r0"]["params"]) == ("FINISHED", {"seed": "1"})
    track(run)  # it begins anew
    assert server.steps("loss", "r1") == list(range(1, 11))
    track(run, schema.Logging(mlflow=True, mlflow_uri="http://another"), continues=True)
    assert server.steps("loss", "r2") == list(range(1, 11))


def test_where_a_step_is_sent_from_stands_in_no_file(server, run):
    write(run, [1])
    track(run)
    assert "nowhere" not in run.file("mlflow.json").read_text()


def test_a_run_that_fails_says_why_without_secrets(server, run):
    run.hidden = {"swordfish"}
    write(run, [1])
    error = DivergedError("step 1 gave loss = nan with swordfish")
    with contextlib.suppress(DivergedError), Tracker(run, SETTINGS, {}, "auto", False) as tracker:
        tracker.follow()
        raise error
    assert (server.runs["r0"]["status"], server.runs["r0"]["tags"]["cause"]) == ("FAILED", "step 1 gave loss = nan with ***")


def test_a_server_that_was_away_gets_what_it_has_missed_and_one_warning_is_said(server, run, capsys):
    server.failures = 4
    write(run, range(1, 6))
    with Tracker(run, SETTINGS, {"seed": 1}, "auto", False) as tracker:
        tracker.follow()
        until(lambda: "r0" in server.runs and server.steps("loss") == [1, 2, 3, 4, 5])
        server.failures = 3
        write(run, range(6, 9))
        until(lambda: server.steps("loss") == list(range(1, 9)))
        tracker.ended("finished", {})
    assert (server.runs["r0"]["status"], server.runs["r0"]["params"]) == ("FINISHED", {"seed": "1"})
    (line,) = capsys.readouterr().err.splitlines()
    server_name = "http://***@nowhere:5000"
    assert line.startswith(f"warning: MLflow at {server_name}: ConnectionError: no route to {server_name}; training goes on")


def test_of_errors_within_errors_what_the_network_says_is_told():
    def wrapped():
        try:
            try:
                raise ConnectionRefusedError(111, "Connection refused")
            except OSError as error:
                raise RuntimeError("Max retries exceeded with url: " + 500 * "x") from error
        except RuntimeError:
            raise ValueError("API request failed")  # noqa: B904  # whatever was being handled counts too

    with pytest.raises(ValueError, match="API") as caught:
        wrapped()
    assert tracking._innermost(caught.value).args == (111, "Connection refused")
    alone = ValueError("error code 404")
    assert tracking._innermost(alone) is alone


def test_a_server_that_is_down_ends_nothing(server, run, capsys):
    server.failures = 10**9
    write(run, [1])
    track(run)
    assert server.runs == {}
    assert capsys.readouterr().err.count("warning: ") == 1


@pytest.mark.parametrize("begun", [False, True])
def test_a_server_that_hangs_is_waited_for_no_longer_than_patience_goes(server, run, capsys, monkeypatch, begun):
    for name in ("_PATIENCE", "_HURRY", "_GRACE"):
        monkeypatch.setattr(tracking, name, 0.05)
    write(run, [1])
    with Tracker(run, SETTINGS, {}, "auto", False) as tracker:
        if not begun:
            server.stuck.clear()
        tracker.follow()
        if begun:
            until(lambda: "r0" in server.runs and server.steps("loss") == [1])
            server.stuck.clear()
    assert capsys.readouterr().err.count("warning: MLflow at http://***@nowhere:5000: it does not answer; training goes on") == 1
    server.stuck.set()
    tracker._thread.join()


def test_a_server_that_is_too_slow_gets_the_last_row(server, run, capsys, monkeypatch):
    monkeypatch.setattr(tracking, "_PATIENCE", 0.0)
    write(run, range(1, 3001))
    with Tracker(run, SETTINGS, {}, "auto", False) as tracker:
        server.stuck.clear()  # until the run ends
        tracker.follow()
        monkeypatch.setattr(tracker._ending, "set", lambda: (threading.Event.set(tracker._ending), server.stuck.set()))
        tracker.ended("finished", {"steps_per_second": 5.0})
    assert server.steps("loss") == [*range(1, 1001), 3000]
    assert server.steps("steps_per_second") == [3000]
    assert server.runs["r0"]["status"] == "FINISHED"
    assert "steps 1001 to 2999 are not there; logging.mlflow_every=10 sends every tenth" in capsys.readouterr().err


def test_fewer_steps_on_request(server, run):
    write(run, range(1, 26))
    write(run, [26], **{"eval/loss": 0.5})
    write(run, range(27, 35))
    track(run, schema.Logging(mlflow=True, mlflow_uri=URI, mlflow_every=10))
    assert server.steps("loss") == [10, 20, 26, 30, 34]
    assert server.steps("eval/loss") == [26]


def test_it_is_off_unless_asked_for(server, run):
    write(run, [1])
    track(run, schema.Logging())
    assert server.num_requests == 0
    assert not run.file("mlflow.json").exists()


def test_what_can_not_work_is_refused_before_anything_starts(monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    tracking.check(schema.Logging(mlflow_uri="http://user:password@host"))
    found = types.SimpleNamespace()
    monkeypatch.setattr(tracking.importlib.util, "find_spec", lambda name: found)
    with pytest.raises(ConfigError, match=r"type logging\.mlflow_uri=http://localhost:5000, or set MLFLOW_TRACKING_URI"):
        tracking.check(schema.Logging(mlflow=True))
    with pytest.raises(ConfigError, match="set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"):
        tracking.check(SETTINGS)
    with pytest.raises(ConfigError, match=r"logging\.mlflow_uri=sqlite:///x\.db: must begin with http"):
        tracking.check(schema.Logging(mlflow=True, mlflow_uri="sqlite:///x.db"))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://host")
    tracking.check(schema.Logging(mlflow=True))
    found = None
    with pytest.raises(ConfigError, match=r'type pip install "gradtrain\[mlflow\]"'):
        tracking.check(schema.Logging(mlflow=True))
