"""What a run tells TensorBoard of itself beside its curves, as TensorBoard's own readers find it."""

import re
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar import layout_pb2
from tensorboard.plugins.hparams import api_pb2, metadata
from tensorboard.util import tensor_util

from trainer import config, job, rundir
from trainer.dashboards import Dashboards
from trainer.errors import DivergedError

QUICK = ("trainer.steps=6", "trainer.eval_every=3", "gradient.verify_at_start=false", "model.hidden=[8]", "trainer.compile=graph")
TAGS = ["loss", "learning_rate", "grad_norm/global", "grad_norm/global_pool/kernel", "eval/loss", "loss/regularization"]


def train(folder: Path, *overrides: str) -> int:
    return job.run(config.load([*QUICK, f"hydra.run.dir={folder}", *overrides]))


def events(folder: Path) -> EventAccumulator:
    found = EventAccumulator(str(folder), size_guidance={"tensors": 0})
    found.Reload()
    return found


def hyperparameters(folder: Path) -> dict[str, bool | float | str]:
    content = events(folder).summary_metadata[metadata.SESSION_START_INFO_TAG].plugin_data.content
    info = metadata.parse_session_start_info_plugin_data(content)
    assert info.group_name == ""
    return {name: getattr(value, value.WhichOneof("kind")) for name, value in info.hparams.items()}


def status(folder: Path) -> int | None:
    found = events(folder).summary_metadata.get(metadata.SESSION_END_INFO_TAG)
    return None if found is None else metadata.parse_session_end_info_plugin_data(found.plugin_data.content).status


def layout(folder: Path) -> dict[str, dict[str, str]]:
    """Category to chart to its expression."""
    (event,) = events(folder).Tensors("custom_scalars__config__")
    found = layout_pb2.Layout.FromString(tensor_util.make_ndarray(event.tensor_proto).item())
    return {category.title: {chart.title: "|".join(chart.multiline.tag) for chart in category.chart} for category in found.category}


def text(folder: Path) -> str:
    (event,) = events(folder).Tensors("config.yaml")
    return tensor_util.make_ndarray(event.tensor_proto).item().decode()


def test_what_a_run_tells(tmp_path):
    assert train(tmp_path, "trainer.clip_norm=0.5", "gradient.audit_every=2", "seed=3") == 0
    folder = tmp_path / "tensorboard"
    told = hyperparameters(folder)
    assert (told["seed"], told["trainer.clip_norm"], told["optimizer.learning_rate"]) == (3, 0.5, 0.001)
    assert (told["gradient.mode"], told["model"], told["data"], told["loss"]) == ("analytic", "mlp", "digits", "softmax_crossentropy")
    assert (told["model.hidden"], told["trainer.epochs"], told["data.standardize"]) == ("[8]", "null", True)
    assert not [name for name in told if name.startswith(("logging", "checkpoint", "sweep")) or "_target_" in name]
    assert status(folder) == api_pb2.STATUS_SUCCESS
    stored = (tmp_path / "config.yaml").read_text()
    assert re.sub(r"^    ", "", text(folder), flags=re.MULTILINE) == stored
    charts = [chart for category in layout(folder).values() for chart in category]
    assert sorted(charts) == sorted(events(folder).Tags()["scalars"])


def test_every_tag_has_a_chart_of_its_own(tmp_path):
    with Dashboards(tmp_path / "tensorboard", {}, "", TAGS):
        pass
    found = layout(tmp_path / "tensorboard")
    assert {title: list(charts) for title, charts in found.items()} == {
        "loss": ["loss", "loss/regularization"],
        "evaluation": ["eval/loss"],
        "gradient norm": ["grad_norm/global"],
        "gradient norm of each variable": ["grad_norm/global_pool/kernel"],
        "update, weights, learning rate": ["learning_rate"],
    }
    for charts in found.values():
        for tag, expression in charts.items():
            assert [other for other in TAGS if re.match(expression, other)] == [tag]


def test_a_run_that_goes_on_tells_all_of_it_once(tmp_path):
    folder = tmp_path / "tensorboard"
    train(tmp_path, "gradient=auto")
    assert status(folder) == api_pb2.STATUS_SUCCESS
    train(tmp_path, "trainer.steps=9")
    assert status(folder) == api_pb2.STATUS_SUCCESS
    assert hyperparameters(folder)["gradient.mode"] == "analytic"
    assert hyperparameters(folder)["trainer.steps"] == 9
    assert "loss" in layout(folder)["loss"]
    assert text(folder).count("steps: 9") == 1
    assert len(list(folder.glob("*.end"))) == len(list(folder.glob("*.about"))) == 1


def test_a_stopped_run_has_not_ended_and_one_that_diverged_has_failed(tmp_path):
    folder = tmp_path / "tensorboard"
    with Dashboards(folder, {"seed": 1}, "seed: 1\n", TAGS) as dashboards:
        dashboards.finished()
    assert status(folder) == api_pb2.STATUS_SUCCESS
    with Dashboards(folder, {"seed": 1}, "seed: 1\n", TAGS):
        assert status(folder) is None  # it goes on
    assert status(folder) is None
    with pytest.raises(DivergedError):
        train(tmp_path / "diverged", "optimizer=sgd", "optimizer.learning_rate=1e30", "loss=mse")
    assert status(tmp_path / "diverged/tensorboard") == api_pb2.STATUS_FAILURE


def test_text_is_shown_as_it_stands(tmp_path):
    with Dashboards(tmp_path / "tensorboard", {}, "a: '```'\nb: <script>\n", TAGS):
        assert text(tmp_path / "tensorboard") == "    a: '```'\n    b: <script>\n"


def test_a_disk_that_takes_nothing_stops_nothing(tmp_path):
    (tmp_path / "tensorboard").write_text("in the way")
    with Dashboards(tmp_path / "tensorboard", {}, "", TAGS) as dashboards:
        dashboards.finished()


def test_without_tensorboard_nothing_is_told(tmp_path):
    assert train(tmp_path, "logging.tensorboard=false") == 0
    assert not (tmp_path / "tensorboard").exists()


def test_what_tells_a_run_from_others_holds_no_secret():
    stored = "model:\n  _target_: a.B\n  width: 3\n  api_key: '***'\nresume: auto\nclip: null\nwhere: ${oc.env:HOME}\n"
    assert rundir.hyperparameters(stored, {"model": "mine"}) == {
        "model": "mine",
        "model.width": 3,
        "clip": "null",
        "where": "${oc.env:HOME}",
    }
