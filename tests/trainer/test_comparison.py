import csv
import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from trainer import compare, comparison_page
from trainer.comparison import Comparison, Tolerance, interval, verdict
from trainer.comparison import compare as compared
from trainer.errors import ConfigError
from trainer.logs import Recorder
from trainer.recorded import read

HUBER = {"_target_": "losses.huber.Huber", "delta": 1.0}
MSE = {"_target_": "losses.mse.MSE"}


def make(folder: Path, losses: list, mode: str = "auto", seed: int = 1, loss=MSE, steps_per_second=100.0, **config) -> Path:
    """A run's directory, as far as comparisons read it."""
    folder.mkdir(parents=True)
    whole = {"seed": seed, "gradient": {"mode": mode}, "loss": loss, "logging": {"tensorboard": seed == 1}} | config
    (folder / "config.yaml").write_text(yaml.safe_dump(whole))
    rows = [{"step": i + 1, "loss": value, "grad_norm/global": 1.0, "grad_norm/w": 0.5} for i, value in enumerate(losses)]
    rows[-1]["eval/accuracy"] = 1 - losses[-1] if isinstance(losses[-1], float) else 0.0
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "summary.json").write_text(json.dumps({"steps_per_second": steps_per_second, "peak_memory_mb": 500.0}))
    (folder / "status.json").write_text(json.dumps({"state": "done"}))
    return folder


def sweep(folder: Path, gain: float = 0.1, seeds: int = 4) -> Path:
    """Both modes; the analytic one ends lower by about `gain`."""
    for seed in range(seeds):
        make(folder / f"auto-{seed}", [1.0, 0.5 + 0.01 * seed], "auto", seed)
        make(folder / f"analytic-{seed}", [1.0, 0.5 + 0.012 * seed - gain], "analytic", seed, steps_per_second=200.0)
    return folder


def only(path: Path, **options) -> Comparison:
    (found,) = compared(read(path), **options)
    return found


def test_modes_are_matched_by_seed(tmp_path):
    make(tmp_path / "unmatched", [1.0, 2.0], "analytic", 9)
    found = only(sweep(tmp_path))
    assert (found.key, found.baseline, found.value, found.setting) == ("gradient.mode", "auto", "analytic", "")
    assert [(pair.seed, pair.baseline.path.name, pair.other.path.name) for pair in found.pairs] == [
        (seed, f"auto-{seed}", f"analytic-{seed}") for seed in range(4)
    ]
    assert [run.path.name for run in found.unmatched] == ["unmatched"]
    assert found.differences("loss").mean == pytest.approx(-0.1 + 0.003)
    assert found.ratio("steps_per_second").mean == pytest.approx(2.0)
    assert found.differences("eval/accuracy").mean == pytest.approx(0.1 - 0.003)


def test_everything_else_that_differs_is_a_setting_of_its_own(tmp_path):
    for name, loss in (("mse", MSE), ("huber", HUBER), ("wide", HUBER | {"delta": 2.0})):
        for mode in ("auto", "analytic"):
            make(tmp_path / f"{name}-{mode}", [1.0, 0.5], mode, loss=loss)
    found = compared(read(tmp_path))
    assert sorted(each.setting for each in found) == ["loss=huber(delta=1.0)", "loss=huber(delta=2.0)", "loss=mse"]
    assert all(len(each.pairs) == 1 for each in found)


def test_any_key_is_compared(tmp_path):
    for seed in (1, 2):
        make(tmp_path / f"huber-{seed}", [1.0, 0.4], seed=seed, loss=HUBER)
        make(tmp_path / f"mse-{seed}", [1.0, 0.5], seed=seed)
    assert (only(tmp_path).key, only(tmp_path).baseline) == ("loss", "huber")
    assert only(tmp_path, baseline="mse").differences("loss").mean == pytest.approx(-0.1)
    assert {each.setting for each in compared(read(tmp_path), key="seed")} == {"loss=huber", "loss=mse"}


def test_what_can_not_be_told_is_asked(tmp_path):
    make(tmp_path / "a", [1.0], loss=HUBER)
    make(tmp_path / "b", [1.0], model={"_target_": "trainer.models.mlp", "hidden": [3]})
    runs = read(tmp_path)
    with pytest.raises(ConfigError, match="these runs differ in model, loss: type --key KEY"):
        compared(runs)
    with pytest.raises(ConfigError, match=r"--key=delta: these runs don't differ in it"):
        compared(runs, key="delta")
    with pytest.raises(ConfigError, match="no two of these runs differ in loss alone"):
        compared(runs, key="loss")
    with pytest.raises(ConfigError, match="two or more"):
        compared(runs[:1])
    make(tmp_path / "sweep/auto", [1.0])
    make(tmp_path / "sweep/analytic", [1.0], "analytic")
    with pytest.raises(ConfigError, match=r"--baseline=nope: no run has gradient\.mode=nope; type one of"):
        only(tmp_path / "sweep", baseline="nope")


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("metrics.jsonl", "", "has recorded no step"),
        ("config.yaml", "- 1\n", "can't be read"),
        *(
            ("metrics.jsonl", '{"step": 1, "loss": 0.5}\n' + line + "\n", "can't be read: line 2 of metrics.jsonl is damaged")
            for line in (
                "{",
                "[2]",
                '{"loss": 0.5}',
                '{"step": 2, "loss": "low"}',
                '{"step": 1, "loss": 0.5}',
                '{"step": 2.5, "loss": 0.5}',
                "[" * 9999,
            )
        ),
        ("metrics.jsonl", f'{{"step": {10**30}, "loss": 0.5}}\n', "line 1 of metrics.jsonl is damaged"),
    ],
)
def test_a_run_that_can_not_be_read(tmp_path, name, content, said):
    (make(tmp_path / "a", [1.0]) / name).write_text(content)
    with pytest.raises(ConfigError, match=said):
        read(tmp_path / "a")


def test_a_line_that_was_cut_off_is_left_out(tmp_path):
    run = make(tmp_path / "a", [1.0, 2.0])
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 3, "lo')
    assert read(run)[0].steps == 2


def test_a_job_that_failed_before_its_first_step_is_left_out(tmp_path, capsys):
    folder = sweep(tmp_path, seeds=2)
    (folder / "auto-1" / "metrics.jsonl").unlink()
    found = only(folder)
    assert [pair.seed for pair in found.pairs] == [0]
    assert f"warning: the job in {folder / 'auto-1'} has recorded no step" in capsys.readouterr().out


def test_the_verdict_is_about_what_was_watched(tmp_path):
    for mode in ("auto", "analytic"):
        make(tmp_path / mode, [1.0, 0.5 if mode == "auto" else 0.25], mode, checkpoint={"monitor": "eval/accuracy"})
    assert verdict(only(tmp_path)).startswith("eval/accuracy ends at 0.75")
    assert verdict(only(sweep(tmp_path / "sweep"))).startswith("loss ends at")


def test_intervals():
    found = interval([1.0, 2.0, 3.0, math.nan])
    assert (found.mean, found.num) == (2.0, 3)
    assert found.high - 2 == pytest.approx(2 - found.low) == pytest.approx(4.302652729911275 / math.sqrt(3))  # Student's t, 2 degrees
    assert found.excludes_zero is False
    assert interval([1.0, 1.1, 0.9]).excludes_zero
    assert math.isnan(interval([1.0]).low)
    assert not interval([1.0]).excludes_zero


def test_where_runs_part(tmp_path):
    make(tmp_path / "auto", [1.0, 0.5, 0.25])
    make(tmp_path / "analytic", [1.0, 0.5 * (1 + 1e-7), 0.5], "analytic")

    def parting(relative):
        (pair,) = only(tmp_path, tolerance=Tolerance(relative, 0.0)).pairs
        assert not pair.is_identical
        return pair.parting

    assert parting(0.0).step == 2
    found = parting(1e-5)
    assert (found.step, found.tag, found.values, found.largest) == (3, "loss", (0.25, 0.5), 0.5)
    assert parting(1.0) is None


@pytest.mark.parametrize(
    ("analytic", "said"),
    [
        ([1.0, 0.5], "are equal in every recorded number (3 pairs of runs)"),
        ([1.0, 0.5 * (1 + 1e-7)], "agree to 1e-05 in every recorded number (3 pairs of runs)"),
        ([1.0, 0.25], "a difference that chance does not explain; the difference is -0.26"),
        (["NaN", 0.5], "gradient.mode=analytic has steps that are not finite in 3 and gradient.mode=auto in 0 of 3 runs each"),
    ],
)
def test_verdicts(tmp_path, analytic, said):
    for seed in range(3):
        make(tmp_path / f"auto-{seed}", [1.0, 0.5 + 0.01 * seed * (analytic[1] == 0.25)], "auto", seed)
        make(tmp_path / f"analytic-{seed}", analytic, "analytic", seed)
    assert said in verdict(only(tmp_path))


def test_a_verdict_claims_no_more_than_the_runs_show(tmp_path):
    for seed, gain in enumerate((0.2, -0.1, 0.15)):
        make(tmp_path / "some" / f"auto-{seed}", [1.0, 0.5], "auto", seed)
        make(tmp_path / "some" / f"analytic-{seed}", [1.0, 0.5 - gain], "analytic", seed)
    assert "no difference that chance could not explain" in verdict(only(tmp_path / "some"))
    assert "in one pair of runs: more seeds would tell" in verdict(only(sweep(tmp_path / "one", seeds=1)))
    for seed in range(3):  # which changes nothing
        make(tmp_path / "same" / f"auto-{seed}", [1.0, 0.5], "auto", seed)
        make(tmp_path / "same" / f"analytic-{seed}", [1.0, 0.25 + 1e-8 * seed], "analytic", seed)
    said = verdict(only(tmp_path / "same"))
    assert "the same difference of -0.25 in all of 3 pairs of runs, whose spread then tells nothing of chance" in said
    assert "95%" not in said


def test_a_verdict_tells_of_runs_that_were_not_finished(tmp_path):
    folder = sweep(tmp_path)
    assert "have not come to their end" not in verdict(only(folder))
    (folder / "auto-1" / "status.json").write_text(json.dumps({"state": "stopped"}))
    (folder / "analytic-2" / "status.json").write_text(json.dumps({"state": "running"}))
    assert verdict(only(folder)).endswith("; 2 of these 8 runs have not come to their end.")


def test_losses_are_not_compared_by_their_own_values(tmp_path):
    for seed in (1, 2):
        make(tmp_path / f"huber-{seed}", [1.0, 0.4 + 0.01 * seed], seed=seed, loss=HUBER)
        make(tmp_path / f"mse-{seed}", [1.0, 0.5], seed=seed)
    assert verdict(only(tmp_path)).startswith("eval/accuracy ends at")
    for path in tmp_path.glob("*/metrics.jsonl"):
        path.write_text(path.read_text().replace("eval/accuracy", "eval/loss"))
    assert "have recorded nothing but what each loss gives" in verdict(only(tmp_path))
    for path in tmp_path.glob("mse-*/config.yaml"):
        path.write_text(path.read_text().replace("_target_: losses.mse.MSE", "_target_: losses.huber.Huber\n  delta: 2.0"))
    assert only(tmp_path).key == "loss.delta"
    assert "have recorded nothing but what each loss gives" in verdict(only(tmp_path))


def test_the_command_writes_what_it_found(tmp_path, capsys):
    folder = sweep(tmp_path / "sweep")
    assert compare.run([str(folder)]) == 0
    assert "95% confidence" in capsys.readouterr().out
    (found,) = json.loads((folder / "comparison.json").read_text())
    assert (found["key"], len(found["pairs"]), found["pairs"][0]["part_at_step"]) == ("gradient.mode", 4, 2)
    assert found["differences"]["loss"]["high"] < 0
    with open(folder / "comparison.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["gradient.mode"] for row in rows].count("auto") == 4
    assert {row["loss"] for row in rows if row["run"].endswith("auto-3")} == {"0.53"}
    page = (folder / "comparison.html").read_text()
    assert found["verdict"] in page.replace("&#x27;", "'")
    assert page.count("<svg") == 4  # loss, accuracy, the norm and that of the variable
    assert "without a partner" not in page.lower()
    assert ">0.5<" in page  # where an axis begins, to the digit
    assert "http" not in page  # it needs nothing else


def test_an_axis_that_is_logarithmic_says_so(tmp_path):
    assert "logarithmic" not in comparison_page.page(compared(read(sweep(tmp_path / "sweep"))), [])
    for mode in ("auto", "analytic"):
        make(tmp_path / "far" / mode, [1.0, 0.01, 1e-6], mode)
    drawn = comparison_page.page(compared(read(tmp_path / "far")), [])
    assert drawn.count(">, logarithmic<") == 1  # the loss
    assert all(f">{label}<" in drawn for label in ("1", "0.001", "1e-06"))  # of the axis


def test_runs_that_must_be_equal(tmp_path, capsys):
    a, b = make(tmp_path / "a", [1.0, 0.5]), make(tmp_path / "b", [1.0, 0.5])
    c, short = make(tmp_path / "c", [1.0, 0.50001]), make(tmp_path / "short", [1.0])
    output = ["--output", str(tmp_path / "out"), "--assert-equal"]
    assert compare.run([str(a), str(b), *output]) == 0
    assert compare.run([str(a), str(c), *output]) == 1
    assert f"{c} parts from {a} at step 2: loss is 0.50001 instead of 0.5" in capsys.readouterr().err
    assert compare.run([str(a), str(c), *output, "--rtol=1e-4"]) == 0
    assert compare.run([str(a), str(short), *output]) == 1
    assert "has 1 steps" in capsys.readouterr().err
    (b / "metrics.jsonl").write_text((b / "metrics.jsonl").read_text().replace("accuracy", "r2"))
    assert compare.run([str(a), str(b), *output]) == 1
    assert f"only one of {b} and {a} has recorded eval/accuracy, eval/r2" in capsys.readouterr().err


def test_a_run_without_a_partner_is_told_everywhere_and_equal_to_none(tmp_path, capsys):
    for loss in (MSE, HUBER):
        for mode, seed in (("auto", 1), ("analytic", 1), ("auto", 2)):
            folder = make(tmp_path / "sweep" / f"{mode}-{seed}-{loss['_target_']}", [1.0, 0.5], mode, seed, loss)
    shutil.rmtree(tmp_path / "sweep/analytic-1-losses.huber.Huber")  # of which no pair is left
    assert compare.run([str(tmp_path / "sweep"), "--assert-equal"]) == 1
    out, err = capsys.readouterr()
    assert "error: 0 of 1 pairs are not equal within rtol=1e-05 and atol=1e-08, and 3 runs have no partner" in err
    page = (tmp_path / "sweep/comparison.html").read_text()
    for name in ("auto-1-losses.huber.Huber", "auto-2-losses.huber.Huber", "auto-2-losses.mse.MSE"):
        path = folder.parent / name
        assert f"warning: {path} has no partner, and is not compared" in out
        assert f"{path} has no partner" in err
        assert str(path) in page


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "two or more"),
        (["--nope"], "--help shows what there is"),
        (["nowhere"], "neither a run's directory nor a sweep's"),
        (["nowhere", "--rtol=-1"], "--rtol"),
    ],
)
def test_mistakes(arguments, said):
    with pytest.raises(ConfigError, match=said):
        compare.run(arguments)


def flip(content: bytes) -> bytes:
    return content[: len(content) // 2] + bytes([content[len(content) // 2] ^ 1]) + content[len(content) // 2 + 1 :]


@pytest.mark.fault(rows=[29])
@pytest.mark.parametrize("damage", [flip, lambda content: content[: len(content) // 2 + 5]], ids=["flipped", "cut_off"])
def test_a_damaged_event_file_is_named_and_changes_no_figure(tmp_path, capsys, damage):
    folder = sweep(tmp_path / "sweep", seeds=2)
    (tmp_path / "logged").mkdir()
    with Recorder(tmp_path / "logged", ["loss", "grad_norm/global"], True, 0) as recorder:
        recorder.put(np.arange(1, 101), np.ones((100, 2), np.float32), {50: {"eval/loss": 0.5}})
    for run in folder.iterdir():
        shutil.copytree(tmp_path / "logged/tensorboard", run / "tensorboard")

    def reported() -> tuple[bytes, bytes, list[str]]:
        assert compare.run([str(folder)]) == 0
        warnings = [line for line in capsys.readouterr().out.splitlines() if line.startswith("warning: ")]
        return (folder / "comparison.json").read_bytes(), (folder / "comparison.csv").read_bytes(), warnings

    whole = reported()
    assert whole[2] == []
    (file,) = (folder / "auto-1/tensorboard").iterdir()
    file.write_bytes(damage(file.read_bytes()))
    events = EventAccumulator(str(file.parent), size_guidance={"scalars": 0})
    events.Reload()
    assert 30 < len(events.Scalars("loss")) < 60  # what TensorBoard shows of it
    *figures, (warning,) = reported()
    assert figures == list(whole[:2])
    assert warning.startswith(f"warning: {file} is cut off or damaged: TensorBoard shows nothing of it from byte ")
    assert "metrics.jsonl" in warning
    (folder / "auto-1/status.json").write_text(json.dumps({"state": "running"}))  # it may be within a record just now
    assert reported()[2] == []


@pytest.mark.fault(rows=[29])
def test_an_event_file_that_can_not_be_read_is_named(tmp_path, capsys):
    run = make(tmp_path / "a", [1.0, 2.0])
    (run / "tensorboard/events.out.tfevents.1").mkdir(parents=True)
    assert read(run)[0].steps == 2
    assert "events.out.tfevents.1 can't be read (Is a directory)" in capsys.readouterr().out
