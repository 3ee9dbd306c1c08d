"""MLflow as its users have it: a real server beside a real run, killed, hanging, or not there."""

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from tests.trainer.command_line import SHORT, command, configuration
from tests.trainer.processes import ENDLESS, finish, wait_for
from trainer.json_files import read_json

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("mlflow") is None, reason='MLflow is not installed (pip install "gradtrain[mlflow]")'),
]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextlib.contextmanager
def serving(folder: Path):
    """An MLflow server: its address and its process, which leads a group of its own."""
    port, database = free_port(), f"sqlite:///{folder / 'mlflow.db'}"
    line = ["mlflow", "server", "--backend-store-uri", database, "--artifacts-destination", str(folder / "artifacts")]
    line = [sys.executable, "-m", *line, "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    with open(folder / "log", "wb") as log:
        environment = os.environ | {"MLFLOW_DISABLE_TELEMETRY": "true"}
        process = subprocess.Popen(line, stdout=log, stderr=log, cwd=folder, env=environment, start_new_session=True)
    address = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + 180
        while True:
            try:
                with urllib.request.urlopen(f"{address}/health", timeout=5):
                    break
            except OSError:
                assert process.poll() is None, (folder / "log").read_text()
                assert time.monotonic() < deadline, (folder / "log").read_text()
                time.sleep(0.2)
        yield address, process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    folder = tmp_path_factory.mktemp("server")
    with serving(folder) as (address, _):
        yield address


def ask(address: str, what: str, **content: Any) -> dict[str, Any]:
    request = urllib.request.Request(
        f"{address}/api/2.0/mlflow/{what}", json.dumps(content).encode() if content else None, {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.load(answer)


def runs(address: str, experiment: str) -> list[dict[str, Any]]:
    found = ask(address, f"experiments/get-by-name?experiment_name={experiment}")["experiment"]["experiment_id"]
    return ask(address, "runs/search", experiment_ids=[found]).get("runs", [])


def named(pairs: list[dict[str, Any]]) -> dict[str, Any]:
    return {pair["key"]: pair["value"] for pair in pairs}


def history(address: str, run: dict[str, Any], key: str) -> list[tuple[int, float]]:
    found = ask(address, f"metrics/get-history?run_id={run['info']['run_id']}&metric_key={key}")["metrics"]
    return sorted((int(metric.get("step", 0)), float(metric["value"])) for metric in found)


def rows(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_a_run_is_there_with_all_it_has_recorded(address, tmp_path):
    line = [*SHORT, "trainer.steps=60", "trainer.eval_every=20", "gradient=auto", "logging.mlflow=true", "hydra.run.dir=mine"]
    done = command(*line, cwd=tmp_path, MLFLOW_TRACKING_URI=address)
    assert (done.returncode, done.stderr) == (0, "")
    (run,) = runs(address, "gradtrain")
    assert (run["info"]["run_name"], run["info"]["status"]) == ("mine", "FINISHED")
    assert int(run["info"]["end_time"]) >= int(run["info"]["start_time"])
    params, tags, metrics = (named(run["data"][kind]) for kind in ("params", "tags", "metrics"))
    assert (params["gradient.mode"], params["seed"], params["data"], params["trainer.steps"]) == ("auto", "0", "digits", "60")
    assert (tags["gradient_mode"], tags["run_dir"], tags["cause"]) == ("auto", str(tmp_path / "mine"), "finished")
    recorded = rows(tmp_path / "mine")
    assert history(address, run, "loss") == [(row["step"], row["loss"]) for row in recorded]
    assert history(address, run, "eval/accuracy") == [(row["step"], row["eval/accuracy"]) for row in recorded if "eval/accuracy" in row]
    assert metrics.keys() >= {*recorded[-1].keys() - {"step"}, "steps_per_second", "best/eval/loss"}
    assert metrics["loss"] == recorded[-1]["loss"]


def test_a_resumed_run_continues_and_one_that_diverged_has_failed(address, tmp_path):
    line = [*SHORT, "logging.mlflow=true", f"logging.mlflow_uri={address}", "logging.mlflow_experiment=mine"]
    for steps in (20, 50):
        assert command(*line, f"trainer.steps={steps}", "hydra.run.dir=resumed", cwd=tmp_path).returncode == 0
    (run,) = runs(address, "mine")
    assert run["info"]["status"] == "FINISHED"
    assert history(address, run, "loss") == [(row["step"], row["loss"]) for row in rows(tmp_path / "resumed")]
    assert named(run["data"]["params"])["trainer.steps"] == "20"
    diverging = ["loss=mse", "optimizer=sgd", "optimizer.learning_rate=1e30", "hydra.run.dir=diverged"]
    done = command(*line, "trainer.steps=50", *diverging, cwd=tmp_path)
    assert done.returncode == 3
    (run,) = [run for run in runs(address, "mine") if run["info"]["run_name"] == "diverged"]
    assert run["info"]["status"] == "FAILED"
    assert named(run["data"]["tags"])["cause"].startswith("diverged: step ")


def test_no_secret_reaches_the_server(tmp_path):
    (tmp_path / "guarded.py").write_text(
        "import dataclasses\nfrom losses.mse import MSE\n\n@dataclasses.dataclass(frozen=True)\nclass Guarded(MSE):\n"
        "    api_key: str = ''\n    options: str = ''\n"
    )
    conf = configuration(tmp_path, loss__guarded="_target_: guarded.Guarded\napi_key: ''\noptions: ''\n")
    line = ["--config-dir", str(conf), "loss=guarded", "trust=[guarded]", *SHORT, "logging.mlflow=true", "hydra.run.dir=run"]
    secrets = ["loss.api_key=swordfish1", "loss.options=${oc.env:MY_TOKEN}"]
    with serving(tmp_path) as (address, process):
        done = command(*line, *secrets, cwd=tmp_path, MLFLOW_TRACKING_URI=address, MY_TOKEN="swordfish2")
        assert (done.returncode, done.stderr) == (0, "")
        params = named(runs(address, "gradtrain")[0]["data"]["params"])
        assert (params["loss"], params["loss.options"]) == ("guarded", "${oc.env:MY_TOKEN}")
        os.killpg(process.pid, signal.SIGTERM)
        process.wait()
    for path in tmp_path.glob("mlflow.db*"):
        assert b"swordfish" not in path.read_bytes()


@pytest.mark.fault(rows=[36])
def test_a_server_that_is_killed_in_mid_run_ends_nothing(start, tmp_path):
    (tmp_path / "server").mkdir()
    folder = tmp_path / "run"
    with serving(tmp_path / "server") as (address, process):
        line = ["logging.mlflow=true", f"logging.mlflow_uri={address}", "trainer.steps=100000", "trainer.eval_every=0"]
        run = start(folder, *line, "checkpoint.every=0")
        wait_for(run, lambda: (read_json(folder / "mlflow.json") or {}).get("sent", 0) > 0)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        _, errors = run.communicate(timeout=240)
    assert run.returncode == 0
    (warning,) = errors.splitlines()
    assert warning.startswith(f"warning: MLflow at {address}: ")
    assert [row["step"] for row in rows(folder)] == list(range(1, 100_001))
    assert json.loads((folder / "status.json").read_text())["state"] == "done"


@pytest.mark.fault(rows=[36])
@pytest.mark.parametrize("hangs", [False, True], ids=["down", "hangs"])
def test_a_server_that_is_down_or_hangs_ends_nothing(tmp_path, hangs):
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        if hangs:
            listener.listen()
        address = f"http://127.0.0.1:{listener.getsockname()[1]}"
        line = ["trainer.steps=200", "trainer.eval_every=0", "logging.mlflow=true", f"logging.mlflow_uri={address}"]
        done = finish(tmp_path, *line)
    assert done.returncode == 0
    (warning,) = done.stderr.splitlines()
    assert warning.startswith(f"warning: MLflow at {address}: ")


def test_a_run_that_is_stopped_is_killed_there(address, start, tmp_path):
    run = start(
        tmp_path, ENDLESS, "logging.mlflow=true", f"logging.mlflow_uri={address}", "logging.mlflow_experiment=stopped",
        "logging.mlflow_every=1000",
    )  # fmt: skip
    wait_for(run, lambda: (read_json(tmp_path / "mlflow.json") or {}).get("sent", 0) > 0)
    run.send_signal(signal.SIGTERM)
    run.communicate(timeout=120)
    assert run.returncode == 143
    assert runs(address, "stopped")[0]["info"]["status"] == "KILLED"
