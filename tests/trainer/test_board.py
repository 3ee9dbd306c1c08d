from rich.console import Console

from trainer import board, expansion
from trainer.board import Board


def shown(table) -> list[list[str]]:
    console = Console(width=120)
    with console.capture() as capture:
        console.print(table)
    return [line.split() for line in capture.get().splitlines()]


def test_jobs_that_run_and_that_failed_are_shown(tmp_path, monkeypatch):
    jobs = expansion.expand(["seed=1,2,3,4", "trainer.steps=110", f"hydra.sweep.dir={tmp_path}"])
    live = Board(jobs, ["seed=1", "seed=2", "seed=3", "seed=4"], wanted=True)
    now = 100.0
    monkeypatch.setattr(board.time, "monotonic", lambda: now)
    assert shown(live.table()) == [["4", "waiting"], ["job", "state", "step", "loss", "time", "left"]]
    live.set(0, "running")
    live.set(1, "failed")
    live.set(2, "done")
    metrics = jobs[0].run_dir / "metrics.jsonl"
    metrics.parent.mkdir(parents=True)
    metrics.write_text('{"step": 10, "loss": 2.5}\n')
    assert shown(live.table())[2:] == [["seed=1", "running", "10/110", "2.5"], ["seed=2", "failed"]]
    now = 110.0
    with metrics.open("a") as file:
        file.write('{"step": 20, "loss": "NaN"}\n{"step": 30, "lo')
    table = shown(live.table())
    assert table[0] == ["1", "running,", "1", "failed,", "1", "done,", "1", "waiting"]
    assert table[2] == ["seed=1", "running", "20/110", "NaN", "0:01:30"]


def test_the_length_of_a_job_in_epochs_is_told_by_its_data(tmp_path, monkeypatch):
    (job,) = expansion.expand(["seed=1", "trainer.epochs=2.5", "data.batch_size=32", f"hydra.sweep.dir={tmp_path}"])
    live = Board([job], ["seed=1"], wanted=True)
    live.set(0, "running")
    now = 100.0
    monkeypatch.setattr(board.time, "monotonic", lambda: now)
    job.run_dir.mkdir()
    (job.run_dir / "metrics.jsonl").write_text('{"step": 10, "loss": 2.5}\n')
    assert shown(live.table())[2] == ["seed=1", "running", "10", "2.5"]
    (job.run_dir / "data.json").write_text('{"num_examples": 1438}')
    assert shown(live.table())[2] == ["seed=1", "running", "10/113", "2.5"]
    now = 110.0
    (job.run_dir / "metrics.jsonl").write_text('{"step": 20, "loss": 2.5}\n')
    assert shown(live.table())[2] == ["seed=1", "running", "20/113", "2.5", "0:01:33"]
