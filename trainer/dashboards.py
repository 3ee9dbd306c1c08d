"""What TensorBoard shows of a run beside its curves: a row in HParams, its configuration in Text, charts in Custom Scalars, histograms.

Each run tells of itself alone, and TensorBoard puts runs together. HParams lists all keys that any of them has, those that differ first,
and the last value of every curve; a description of the whole experiment, which it takes too, would be that of the first run it meets, and
hide the keys that this one lacks. Of several layouts it makes one, in which equal charts are one chart with all runs.

This stands in a file of its own beside those of the curves, which a run that goes on writes anew: there is never a second layout, and the
row is that of the newest configuration. Of how a run ended HParams takes the first word it finds: that is a file too, the last one by
name, and is taken away when the run goes on.
"""

import contextlib
import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from tensorboard.compat.proto import event_pb2, summary_pb2, tensor_pb2, tensor_shape_pb2, types_pb2
from tensorboard.plugins.custom_scalar import layout_pb2
from tensorboard.plugins.custom_scalar import metadata as layout_metadata
from tensorboard.plugins.histogram import metadata as histogram_metadata
from tensorboard.plugins.hparams import api_pb2, plugin_data_pb2
from tensorboard.plugins.hparams import metadata as hparams_metadata
from tensorboard.plugins.text import metadata as text_metadata

from trainer.encoding import event, framed

_ABOUT = "events.out.tfevents.0.about"  # before the files of the curves, which TensorBoard reads in the order of their names
_END = ".end"

# A category's title, and what the tags of its charts begin with.
_CATEGORIES = {
    "loss": "loss",
    "evaluation": "eval/",
    "gradient norm": "grad_norm/(global|clipped)$",
    "gradient norm of each variable": "grad_norm/",
    "gradient audit": "gradient_audit/",
    "update, weights, learning rate": "",
}


class Dashboards:
    """Tells of a run from its start to its end. Use as a context manager.

    A disk that takes nothing is said by the recorder of the curves, and is no reason to stop.

    Args:
        folder: of the event files; None: nothing is told.
        hyperparameters: what tells this run from others.
        configuration: the text of config.yaml.
        tags: of the scalars, each of which gets a chart.
    """

    def __init__(
        self, folder: Path | None, hyperparameters: Mapping[str, bool | float | str], configuration: str, tags: Sequence[str]
    ) -> None:
        self._folder = folder
        self._about = [_start(hyperparameters), _text("config.yaml", configuration), _layout(tags)]
        self._finished = False

    def __enter__(self) -> "Dashboards":
        if self._folder:
            with contextlib.suppress(OSError):
                for path in self._folder.glob(f"*{_END}"):
                    path.unlink()
                _write(self._folder / _ABOUT, self._about)
        return self

    def finished(self) -> None:
        """The run has come to its end, and is not only stopped, to go on later."""
        self._finished = True

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        if self._folder and (kind or self._finished):
            status = api_pb2.STATUS_FAILURE if kind else api_pb2.STATUS_SUCCESS
            with contextlib.suppress(OSError):
                _write(self._folder / f"events.out.tfevents.{time.time_ns():020d}{_END}", [_end(status)])


def histogram_summary(buckets: Mapping[str, np.ndarray]) -> bytes:
    """An encoded Summary of tag to buckets float64 [n, 3] of left edge, right edge and count."""
    metadata = histogram_metadata.create_summary_metadata(display_name=None, description=None)
    values = []
    for tag, table in buckets.items():
        shape = tensor_shape_pb2.TensorShapeProto(dim=[tensor_shape_pb2.TensorShapeProto.Dim(size=size) for size in table.shape])
        tensor = tensor_pb2.TensorProto(dtype=types_pb2.DT_DOUBLE, tensor_shape=shape, tensor_content=table.astype("<f8").tobytes())
        values.append(_value(tag, metadata, tensor))
    return summary_pb2.Summary(value=values).SerializeToString()


def _write(path: Path, values: Sequence[Any]) -> None:
    """Summary values as an event file, whole or not at all."""
    now = time.time()
    version = event_pb2.Event(wall_time=now, file_version="brain.Event:2").SerializeToString()
    path.parent.mkdir(exist_ok=True)
    temporary = path.with_name(".about.tmp")
    temporary.write_bytes(framed(version) + event(now, 0, summary_pb2.Summary(value=values).SerializeToString()))
    temporary.replace(path)


def _start(hyperparameters: Mapping[str, bool | float | str]) -> Any:
    info = plugin_data_pb2.SessionStartInfo(start_time_secs=time.time())  # without a group's name each run has a row of its own
    for name, value in hyperparameters.items():
        if isinstance(value, bool):
            info.hparams[name].bool_value = value
        elif isinstance(value, int | float):
            info.hparams[name].number_value = value
        else:
            info.hparams[name].string_value = value
    return _hparams(hparams_metadata.SESSION_START_INFO_TAG, plugin_data_pb2.HParamsPluginData(session_start_info=info))


def _end(status: int) -> Any:
    info = plugin_data_pb2.SessionEndInfo(status=status, end_time_secs=time.time())
    return _hparams(hparams_metadata.SESSION_END_INFO_TAG, plugin_data_pb2.HParamsPluginData(session_end_info=info))


def _hparams(tag: str, data: Any) -> Any:
    return _value(tag, hparams_metadata.create_summary_metadata(data), hparams_metadata.NULL_TENSOR)


def _text(tag: str, text: str) -> Any:
    """Text as it stands: indented, so that Markdown takes all of it for code, whatever it holds."""
    indented = "".join(f"    {line}\n" for line in text.splitlines())
    return _value(tag, text_metadata.create_summary_metadata(display_name=None, description=None), _string(indented.encode()))


def _layout(tags: Sequence[str]) -> Any:
    charts: dict[str, list[Any]] = {title: [] for title in _CATEGORIES}
    for tag in tags:
        title = next(title for title, begins in _CATEGORIES.items() if re.match(begins, tag))
        content = layout_pb2.MultilineChartContent(tag=[f"^{re.escape(tag)}$"])
        charts[title].append(layout_pb2.Chart(title=tag, multiline=content))
    layout = layout_pb2.Layout(category=[layout_pb2.Category(title=title, chart=found) for title, found in charts.items() if found])
    return _value(layout_metadata.CONFIG_SUMMARY_TAG, layout_metadata.create_summary_metadata(), _string(layout.SerializeToString()))


def _string(content: bytes) -> Any:
    return tensor_pb2.TensorProto(dtype=types_pb2.DT_STRING, tensor_shape=tensor_shape_pb2.TensorShapeProto(), string_val=[content])


def _value(tag: str, metadata: Any, tensor: Any) -> Any:
    metadata.data_class = summary_pb2.DATA_CLASS_TENSOR
    return summary_pb2.Summary.Value(tag=tag, metadata=metadata, tensor=tensor)
