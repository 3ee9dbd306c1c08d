import sys

from trainer import progress
from trainer.progress import ProgressLine

SCALARS = {"loss": 0.25, "grad_norm/global": 2.0}


def test_plain_lines_where_there_is_no_terminal(capsys):
    with ProgressLine(100, 0) as line:
        line.show(10, SCALARS, {})  # neither late nor an evaluation: nothing to say
        line.show(50, SCALARS, {"eval/loss": 0.5})
    output = capsys.readouterr().out
    assert output.splitlines()[0].startswith("step 50/100  loss 0.25  grad norm 2  ")
    assert output.rstrip().endswith("eval/loss 0.5")
    assert len(output.splitlines()) == 1
    assert "\x1b" not in output


def test_a_line_every_few_seconds(capsys, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    with ProgressLine(100, 0) as line:
        for step in range(1, 101):
            now[0] += 0.125
            line.show(step, SCALARS, {})
    assert [text.split()[1] for text in capsys.readouterr().out.splitlines()] == ["40/100", "80/100"]


def test_the_rate_leaves_out_the_first_chunk(capsys, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    with ProgressLine(100, 0) as line:
        now[0] = 20.0
        line.show(10, SCALARS, {})
        now[0] = 21.0
        line.show(60, SCALARS, {"eval/loss": 0.5})
    assert "50 steps/s" in capsys.readouterr().out.splitlines()[-1]


def test_a_closed_stdout_is_no_error(monkeypatch):
    class Closed:
        closed = True

        def write(self, _):
            raise ValueError("I/O operation on closed file")

        flush = isatty = write

    monkeypatch.setattr(sys, "stdout", Closed())
    with ProgressLine(10, 0) as line:
        line.show(10, SCALARS, {"eval/loss": 0.5})
    progress.closing_table(
        "run", {"steps": 1, "steps_per_second": 1.0, "wall_seconds": 1.0, "gradient_mode": "auto", "gradient_check": "", "final": {}}
    )
