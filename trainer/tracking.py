"""The run in MLflow, beside TensorBoard: parameters, metrics, tags and status. MLflow is imported where it is asked for; TensorFlow never.

A thread follows metrics.jsonl and sends its lines, many in a request. So the loop hands nothing over and waits for nothing, what is not yet
sent waits on the disk, however slow the server, and one that was away gets what it has missed. Whatever goes wrong is one warning.

mlflow.json keeps the MLflow run and the step up to which it is sent: a run that goes on from a checkpoint goes on there too, and sends no
step twice (but those of one request, after a kill between that and the note). A metric's time in MLflow is when it was sent.
"""

import hashlib
import importlib.util
import json
import logging
import os
import re
import sys
import threading
import time
from collections.abc import Mapping
from types import TracebackType
from typing import Any, BinaryIO

from trainer import schema, secrets
from trainer.errors import ConfigError, describe, printable
from trainer.json_files import last_row
from trainer.rundir import RunDir
from trainer.validation import shown

_MOST_METRICS, _MOST_PARAMETERS = 1000, 100  # that MLflow takes in a request
_LONGEST_NAME, _LONGEST_VALUE = 250, 500  # characters that every version of MLflow takes
_BETWEEN = 0.2  # seconds between two requests while the run trains, which needs the interpreter too
_POLL = 1.0  # seconds between two looks for new lines
_PAUSES = 5.0, 60.0  # seconds after the first and before the last of failures in a row
_PATIENCE = 30.0  # seconds for what is not yet sent when the run ends,
_HURRY = 5.0  # where a signal ends it, or the server has failed
_GRACE = 5.0  # seconds more, for the last row and the status
_FILE = "mlflow.json"
# Unless the user's environment says otherwise. A request that hangs ends; nothing is printed; and no use is reported to anybody else.
_ENVIRONMENT = {
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_DISABLE_TELEMETRY": "true",
}


def check(settings: schema.Logging) -> None:
    """Refuses what can't be sent, before anything starts.

    Raises:
        ConfigError: there is no MLflow, or no server is named; or its address would write a file, or has a password in it.
    """
    if not settings.mlflow:
        return
    if importlib.util.find_spec("mlflow") is None:
        raise ConfigError('logging.mlflow=true: MLflow is not installed: type pip install "gradtrain[mlflow]", or logging.mlflow=false')
    if not _uri(settings):
        raise ConfigError(
            "logging.mlflow=true: no server is named: type logging.mlflow_uri=http://localhost:5000, or set MLFLOW_TRACKING_URI"
        )
    typed = settings.mlflow_uri
    if typed and not typed.startswith(("http://", "https://")):  # a file of others may name it
        raise ConfigError(
            f"logging.mlflow_uri={typed}: must begin with http:// or https://: type logging.mlflow_uri=http://localhost:5000, or set "
            "MLFLOW_TRACKING_URI, which may be of any kind"
        )
    if typed and "@" in typed.split("/")[2]:
        raise ConfigError(
            "logging.mlflow_uri has a user's name or password in it: type it without, and set MLFLOW_TRACKING_USERNAME and "
            "MLFLOW_TRACKING_PASSWORD"
        )


class Tracker:
    """Sends a run, from its start to its end, if `logging.mlflow` says so. Use as a context manager around what writes metrics.jsonl.

    Args:
        run: its directory.
        settings: which server and experiment.
        hyperparameters: what tells this run from others, without secrets.
        gradient_mode: a tag.
        continues: whether it goes on from a checkpoint.
    """

    def __init__(
        self, run: RunDir, settings: schema.Logging, hyperparameters: Mapping[str, Any], gradient_mode: str, continues: bool
    ) -> None:
        self._run, self._settings, self._continues = run, settings, continues
        self._parameters = {_name(key): shown(value)[:_LONGEST_VALUE] for key, value in hyperparameters.items()}
        self._tags = {"gradient_mode": gradient_mode, "run_dir": str(run.path.absolute())[:_LONGEST_VALUE]}
        self._lines = run.file("metrics.jsonl")
        self._uri = secrets.hide(re.sub(r"//[^/@]*@", "//***@", _uri(settings)), run.hidden)
        self._client: Any = None
        self._run_id: str | None = None
        self._sent, self._offset = 0, 0  # the step, and the place in metrics.jsonl, up to which all is sent
        self._failing = self._late = self._warned = False
        self._status, self._cause = "FINISHED", ""
        self._figures: dict[str, float] = {}
        self._ending, self._deadline = threading.Event(), 0.0
        self._thread: threading.Thread | None = None

    def __enter__(self) -> "Tracker":
        return self

    def follow(self) -> None:
        """Begins, once metrics.jsonl holds no line of a step that will be done anew."""
        if self._settings.mlflow:
            self._thread = threading.Thread(target=self._work, name="tracker", daemon=True)  # one that hangs stops nothing
            self._thread.start()

    def ended(self, cause: str, figures: Mapping[str, float]) -> None:
        """The run has ended without an error: why, and further numbers of the whole run."""
        self._cause, self._figures = cause, dict(figures)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        if self._thread is None:
            return
        if error:
            self._status, self._cause = "FAILED", describe(error)
        elif self._cause == "signal":
            self._status = "KILLED"
        patience = _HURRY if self._failing or self._status == "KILLED" else _PATIENCE
        self._deadline = time.monotonic() + patience
        self._ending.set()
        self._thread.join(patience + _GRACE)
        if self._thread.is_alive():
            self._warn("it does not answer")

    def _work(self) -> None:
        pause = _PAUSES[0]
        while True:
            ending = self._ending.is_set()  # before the lines are read: these are all then
            try:
                if self._run_id is None:
                    self._run_id = self._begin()
                self._send()
                if ending:
                    self._finish()
                    return
                self._failing, pause, wait = False, _PAUSES[0], _POLL
            except Exception as error:  # whatever a server, a proxy or the client comes up with
                self._failing = True
                self._warn(describe(_innermost(error)))
                if ending:
                    return
                wait, pause = pause, min(2 * pause, _PAUSES[1])
            self._ending.wait(wait)

    def _begin(self) -> str:
        """The MLflow run: a new one, or the one that is gone on with."""
        for name, value in _ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        import mlflow

        for name in ("mlflow", "urllib3.connectionpool", "alembic"):  # what they say of retries, this module says once
            logging.getLogger(name).setLevel(logging.ERROR)
        self._client = mlflow.MlflowClient(_uri(self._settings))
        kept = (self._run.read(_FILE) if self._continues else None) or {}
        run_id, sent = kept.get("run_id"), kept.get("sent")
        if kept.get("server") == self._server() and isinstance(run_id, str) and isinstance(sent, int):
            self._client.update_run(run_id, status="RUNNING")
            for name, value in self._tags.items():
                self._client.set_tag(run_id, name, value)
            self._parameters, self._sent = {}, sent  # MLflow's parameters never change
            return run_id
        experiment = self._settings.mlflow_experiment or os.environ.get("MLFLOW_EXPERIMENT_NAME") or "gradtrain"
        created = self._client.create_run(_experiment(self._client, experiment), run_name=self._run.path.name, tags=self._tags)
        return created.info.run_id

    def _send(self) -> None:
        """All whole lines; those at the end of a run as far as its patience goes."""
        from mlflow.entities import Param

        while self._parameters:
            some = list(self._parameters)[:_MOST_PARAMETERS]
            self._client.log_batch(self._run_id, params=[Param(name, self._parameters[name]) for name in some])
            self._parameters = {name: value for name, value in self._parameters.items() if name not in some}
            self._remember()
        with open(self._lines, "rb") as file:
            file.seek(self._offset)
            while metrics := self._take(file):
                for start in range(0, len(metrics), _MOST_METRICS):
                    self._client.log_batch(self._run_id, metrics=metrics[start : start + _MOST_METRICS])
                self._sent, self._offset = metrics[-1].step, file.tell()
                self._remember()
                if not self._ending.wait(_BETWEEN):
                    continue
                if time.monotonic() > self._deadline:
                    self._late = True
                    return

    def _take(self, file: BinaryIO) -> list[Any]:
        """The metrics of the next lines, as many as go into a request; of a step all of them. The file stands behind these lines."""
        from mlflow.entities import Metric

        metrics: list[Any] = []
        now, every = int(time.time() * 1000), self._settings.mlflow_every
        while len(metrics) < _MOST_METRICS:
            place = file.tell()
            line = file.readline()
            if not line.endswith(b"\n"):  # it is just being written
                file.seek(place)
                break
            step = int(line[len(b'{"step": ') :].partition(b",")[0])
            if step > self._sent and (step % every == 0 or b'"eval/' in line):
                metrics += [Metric(_name(tag), float(value), now, step) for tag, value in json.loads(line).items() if tag != "step"]
        return metrics

    def _finish(self) -> None:
        """The last row if it is not sent yet, the run's own figures, and its status."""
        from mlflow.entities import Metric, RunTag

        row = last_row(self._lines)
        step, now = row.pop("step", 0), int(time.time() * 1000)
        numbers = (row if step > self._sent else {}) | self._figures
        metrics = [Metric(_name(tag), float(value), now, step) for tag, value in numbers.items()]
        cause = secrets.hide(self._cause, self._run.hidden)[:_LONGEST_VALUE]
        for start in range(0, len(metrics), _MOST_METRICS):
            self._client.log_batch(self._run_id, metrics=metrics[start : start + _MOST_METRICS])
        self._client.log_batch(self._run_id, tags=[RunTag("cause", cause)])
        self._client.set_terminated(self._run_id, self._status)
        if self._late and self._sent + 1 < step:
            self._warn(f"it was too slow: steps {self._sent + 1} to {step - 1} are not there; logging.mlflow_every=10 sends every tenth")
        self._sent = max(self._sent, step)
        self._remember()

    def _remember(self) -> None:
        self._run.write(_FILE, {"server": self._server(), "run_id": self._run_id, "sent": self._sent})

    def _server(self) -> str:
        """What its address is compared by, which may come from the environment and stands in no file."""
        return hashlib.sha256(_uri(self._settings).encode()).hexdigest()

    def _warn(self, why: str) -> None:
        """Training is worth more than its record."""
        if self._warned:
            return
        self._warned = True
        why = secrets.hide(" ".join(re.sub(r"//[^/@\s]*@", "//***@", why).split())[:300], self._run.hidden)
        line = f"warning: MLflow at {self._uri}: {why}; training goes on, and metrics.jsonl has everything"
        print(printable(line), file=sys.stderr, flush=True)  # a server may answer anything


def _uri(settings: schema.Logging) -> str:
    return settings.mlflow_uri or os.environ.get("MLFLOW_TRACKING_URI", "")


def _innermost(error: Exception) -> Exception:
    """Of errors that a client wraps in others, the one that the system or the network gave: connection refused, name not known."""
    found, deeper = error, error.__cause__ or error.__context__
    while deeper is not None:
        found = deeper if isinstance(deeper, OSError) else found
        deeper = deeper.__cause__ or deeper.__context__
    return found


def _experiment(client: Any, name: str) -> str:
    found = client.get_experiment_by_name(name)
    if found is None:
        try:
            return client.create_experiment(name)
        except Exception:  # another run of the same sweep was quicker, or there is none after all
            found = client.get_experiment_by_name(name)
            if found is None:
                raise
    return found.experiment_id


def _name(key: str) -> str:
    """As MLflow takes it: of letters, digits and _-./ and space."""
    return re.sub(r"[^\w./ -]", "_", key)[:_LONGEST_NAME]
