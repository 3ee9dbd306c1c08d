"""Where a step's time goes: the kernels that it runs, as TensorFlow's profiler records them.

    python -m benchmarks.kernels mlp cnn

Runs the trainer's own command on a workload of `benchmarks.loop`, with a window of steps profiled, and prints for every kind of kernel
how many microseconds of a step it takes, on all threads together, how often it runs in a step, and its share of all kernels' time.
A kind is TensorFlow's operation, or XLA's name of a fusion without its number.
"""

import argparse
import re
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.entrants import run_trainer
from benchmarks.workloads import WORKLOADS, Workload, trainer_overrides, write_data

MOST = 12  # kinds that are shown
# Not kernels: what calls them, waits for them, or hands them out.
_AROUND = re.compile(
    r"::|^(end: |Eager|TFE_|tf\.|BlockUntilReady|ParallelFor|FunctionRun|ValidateInput|convert_to_tensor|__inference)"
    r"|^(chunk|while|call|conditional)[.\d]*$"
)

Kind = tuple[str, float, float]  # name, microseconds a step, times a step


def measure(workload: Workload) -> list[Kind]:
    """The kinds of kernels in a step, those that take the most time first.

    Raises:
        FailedError: the trainer has failed.
    """
    from tensorflow.tsl.profiler.protobuf import xplane_pb2  # TensorFlow, once every window is over

    num_steps = max(4, workload.num_steps // 100)
    first = 2 * num_steps + 1
    window = (f"logging.profile_steps=[{first},{first + num_steps - 1}]", f"trainer.steps={first + num_steps - 1}")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_data(workload, folder)
        run_trainer([*trainer_overrides(workload, folder), *window], folder / "run")
        [path] = folder.glob("run/tensorboard/**/*.xplane.pb")
        space = xplane_pb2.XSpace()
        space.ParseFromString(path.read_bytes())
    return kinds(space, num_steps)


def kinds(space: Any, num_steps: int) -> list[Kind]:
    """The kinds of kernels in a recorded profile of so many steps."""
    seconds: dict[str, float] = defaultdict(float)
    times: dict[str, int] = defaultdict(int)
    for plane in space.planes:
        for line in plane.lines:
            events = ((plane.event_metadata[event.metadata_id].name, event.offset_ps, event.duration_ps) for event in line.events)
            for name, own in _own_times(events):
                if not _AROUND.search(name):
                    seconds[kind(name)] += own
                    times[kind(name)] += 1
    found = [(name, seconds[name] / 1e6 / num_steps, times[name] / num_steps) for name in seconds]
    return sorted(found, key=lambda each: -each[1])


def kind(name: str) -> str:
    """What an event is called without its place in the program: "while/body/adam/Sub_3:Sub" is Sub, "copy_bitcast_fusion.8" no eighth."""
    return re.sub(r"[._]\d+(\.clone)?$", "", name.rpartition(":")[2] or name)


def _own_times(events: Iterable[tuple[str, int, int]]) -> Iterator[tuple[str, int]]:
    """The time of each event on a thread less that of the events within it."""
    open_events: list[list[Any]] = []  # name, end, own time
    for name, start, duration in sorted(events, key=lambda event: (event[1], -event[2])):
        while open_events and open_events[-1][1] <= start:
            ended = open_events.pop()
            yield ended[0], ended[2]
        if open_events:
            open_events[-1][2] -= duration
        open_events.append([name, start + duration, duration])
    for ended in open_events:
        yield ended[0], ended[2]


HEADINGS = ("kernel", "µs a step", "times a step", "share")


def rows(found: list[Kind]) -> list[list[str]]:
    """Those that take the most, and the rest together."""
    total = sum(microseconds for _, microseconds, _ in found)
    rest = found[MOST:]
    shown = [*found[:MOST], *([(f"{len(rest)} others", sum(k[1] for k in rest), sum(k[2] for k in rest))] if rest else [])]
    return [[name, f"{microseconds:.1f}", f"{times:.3g}", f"{microseconds / total:.0%}"] for name, microseconds, times in shown]


def table(title: str, found: list[Kind]) -> Table:
    made = Table(title=title)
    for heading in HEADINGS:
        made.add_column(heading, justify="left" if heading == HEADINGS[0] else "right")
    for row in rows(found):
        made.add_row(*row)
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("workloads", nargs="+", choices=list(WORKLOADS))
    for name in parser.parse_args().workloads:
        Console(width=140).print(table(WORKLOADS[name].title, measure(WORKLOADS[name])))


if __name__ == "__main__":
    main()
