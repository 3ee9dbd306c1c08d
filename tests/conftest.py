"""Two logical CPUs for every test: replicas need them, and TensorFlow divides the CPU only before it starts; and the report on faults."""

import gc
import re
from collections import defaultdict
from pathlib import Path

import pytest
from rich.console import Console
from rich.table import Table

from trainer.silence import quiet

with quiet():
    import tensorflow as tf

    from losses import modes
    from losses.proof import evaluation, second

    tf.config.set_logical_device_configuration(tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 2)

_FAULTS = Path(__file__).parents[1] / "docs" / "faults.md"
_outcomes: dict[int, list[tuple[str, float]]] = defaultdict(list)  # of a row: its tests' outcomes and seconds


@pytest.fixture(autouse=True, scope="module")
def _nothing_kept():
    """What a module has traced is let go: the garbage collector would look through all of it, ever more slowly."""
    yield
    for function in (modes._function, evaluation._function, second._function):
        function.cache_clear()
    gc.collect()
    gc.freeze()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    """Writes on a test's report the rows of docs/faults.md that it is marked with; a worker hands the report to who prints."""
    report = yield
    rows = {row for mark in item.iter_markers("fault") for row in mark.kwargs.get("rows", [])}
    report.user_properties += [("row of faults", row) for row in sorted(rows) if ("row of faults", row) not in report.user_properties]
    return report


def pytest_runtest_logreport(report):
    """Keeps the outcome."""
    if report.when == "call" or report.outcome != "passed":  # a fixture that fails, too
        for name, value in report.user_properties:
            if name == "row of faults":
                _outcomes[value].append((report.outcome, report.duration))


def pytest_terminal_summary(terminalreporter):
    """The table of docs/faults.md with what has come out, if tests of faults have run."""
    if not _outcomes:
        return
    lines = re.findall(r"^\| (\d+) \| (.+) \| (.+) \|$", _FAULTS.read_text(encoding="utf-8"), re.MULTILINE)
    titles = {int(row): (fault, what) for row, fault, what in lines}
    table = Table(title="What breaks, and what happens then", show_lines=True)
    for heading in ("Row", "Fault, or input", "What happens", "Tests", "Seconds", "Outcome"):
        table.add_column(heading, justify="right" if heading in ("Row", "Tests", "Seconds") else "left", no_wrap=heading == "Outcome")
    for row, outcomes in sorted(_outcomes.items()):
        found = {outcome for outcome, _ in outcomes}
        bad = sorted(found if found == {"skipped"} else found - {"passed", "skipped"})  # of several ways to try a row one may be skipped
        seconds = sum(seconds for _, seconds in outcomes)
        table.add_row(str(row), *titles.get(row, ("?", "?")), str(len(outcomes)), f"{seconds:.1f}", ", ".join(bad) or "passed")
    without = ", ".join(str(row) for row in sorted(titles.keys() - _outcomes.keys()))
    table.caption = f"No test ran for rows {without}" if without else "A test ran for every row"
    terminalreporter.write_line("")
    console = Console(width=140)
    with console.capture() as capture:
        console.print(table)
    terminalreporter.write(capture.get())
