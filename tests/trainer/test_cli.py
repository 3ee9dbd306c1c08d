import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import trainer
from trainer import cli, config, errors, job

ROOT = Path(trainer.__file__).parents[1]


def command(*arguments: str, cwd: Path = ROOT, **environment: str) -> subprocess.CompletedProcess[str]:
    """`python -m trainer` in a process of its own."""
    variables = os.environ | {"PYTHONPATH": str(ROOT)} | environment
    return subprocess.run(
        [sys.executable, "-m", "trainer", *arguments], cwd=cwd, env=variables, capture_output=True, text=True, timeout=120
    )


def last_line(text: str) -> str:
    return text.rstrip("\n").rpartition("\n")[2]


def test_version(capsys):
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"gradtrain {trainer.__version__}\n"


def test_help_names_every_choice_and_fits_a_terminal(capsys):
    assert cli.main(["--help"]) == 0
    text = capsys.readouterr().out
    for group, choices in config.groups(config.config_dirs(None)).items():
        for name in [group, *choices]:
            assert re.search(rf"\b{name}\b", text), name
    assert "mlp*" in text
    assert max(len(line) for line in text.splitlines() if not line.strip().startswith(os.sep)) <= 100


def test_the_overrides_in_the_help_are_valid(capsys):
    cli.main(["--help"])
    _, _, rest = capsys.readouterr().out.partition("What people type most:\n")
    lines = [re.match(r"  (\S+=\S*(?: \S+=\S*)*)", line) for line in rest.partition("Options:")[0].splitlines()]
    typed = [line[1].split() for line in lines if line]
    assert len(typed) == 11
    for overrides in typed:
        config.load(overrides)


def test_help_shows_the_files_of_a_folder_of_ones_own(capsys, tmp_path):
    (tmp_path / "loss").mkdir()
    (tmp_path / "loss" / "mine.yaml").touch()
    assert cli.main(["--config-dir", str(tmp_path), "-h"]) == 0
    assert "mine" in capsys.readouterr().out


def test_the_job_is_run_with_what_was_typed(monkeypatch):
    jobs = []
    monkeypatch.setattr(job, "run", lambda wanted: jobs.append(wanted) or 143)
    assert cli.main(["loss=mse", "seed=3"]) == 143
    assert cli.main(["train", "seed=4"]) == 143
    assert [(wanted.overrides, wanted.config.seed) for wanted in jobs] == [(("loss=mse", "seed=3"), 3), (("seed=4",), 4)]


@pytest.mark.parametrize(
    ("error", "exit_code"),
    [
        (errors.ConfigError("a\nb"), 2),
        (errors.DivergedError("a\nb"), 3),
        (errors.CheckpointError("a\nb"), 4),
        (errors.DataError("a\nb"), 5),
    ],
)
def test_a_mistake_ends_with_its_exit_status_and_one_line(monkeypatch, capsys, error, exit_code):
    def run(_):
        raise error

    monkeypatch.setattr(job, "run", run)
    assert cli.main([]) == exit_code
    assert capsys.readouterr().err == "error: a; b\n"


def test_a_crash_shows_its_traceback_and_ends_with_what_to_do(monkeypatch, capsys):
    monkeypatch.setattr(job, "run", len)  # fails in a frame of this program
    assert cli.main([]) == 1
    text = capsys.readouterr().err
    assert "Traceback" in text
    assert last_line(text).startswith("error: TypeError: object of type 'Job' has no len()")
    assert "report" in last_line(text)


def test_a_crash_in_the_users_own_code_names_the_place_there(monkeypatch, capsys):
    monkeypatch.setattr(job, "run", lambda _: 1 / 0)  # fails in a frame of this file, which stands for theirs
    assert cli.main([]) == 1
    assert last_line(capsys.readouterr().err).startswith(f"error: ZeroDivisionError: division by zero; it comes from {__file__}, line ")


def test_an_interrupt(monkeypatch, capsys):
    def run(_):
        raise KeyboardInterrupt

    monkeypatch.setattr(job, "run", run)
    assert cli.main([]) == 130
    assert capsys.readouterr().err == "error: interrupted\n"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["chekc"], ["no command chekc", "train"]),
        (["trian", "loss=mse"], ["did you mean train?"]),
        (["loss", "mse"], ["type", "loss=mse"]),
        (["--verison"], ["did you mean --version?"]),
        (["--cfg", "jobb"], ["jobb", "'job'"]),
        (["--cfg", "job", "-p", "trainr"], ["did you mean trainer?"]),
        (["--cfg", "job", "-m"], ["one of"]),
        (["--resolve"], ["--cfg"]),
        (["--config-name", "x"], ["--config-dir"]),
        (["--config-dir", "/surely/not"], ["/surely/not"]),
        (["-sc", "query=ksh"], ["bash", "zsh", "fish"]),
        (["loss=nope"], ["loss=nope"]),
        (["-m", "loss=nope", "seed=1,2"], ["loss=nope"]),
    ],
)
def test_what_is_mistyped_is_answered(capsys, arguments, words):
    assert cli.main(arguments) == 2
    line = capsys.readouterr().err
    assert line.startswith("error: ")
    assert line.count("\n") == 1
    assert [word for word in words if word not in line] == []


def test_cfg_prints_what_the_run_gets(capsys, monkeypatch):
    monkeypatch.setenv("MY_TOKEN", "hunter2")
    overrides = ["data=csv", "data.path=${oc.env:MY_TOKEN}", "data.target=y", "trainer.log_every=${data.batch_size}"]
    assert cli.main(["--cfg", "job", *overrides]) == 0
    plain = capsys.readouterr().out
    assert "log_every: ${data.batch_size}" in plain
    assert cli.main(["--cfg", "job", "--resolve", *overrides]) == 0
    resolved = capsys.readouterr().out
    assert "log_every: 32" in resolved
    assert "${oc.env:MY_TOKEN}" in resolved
    assert "hunter2" not in plain + resolved


def test_cfg_shows_what_is_still_missing(capsys):
    assert cli.main(["--cfg", "job", "--package", "data", "data=csv"]) == 0
    text = capsys.readouterr().out
    assert text.startswith("# @package data\n")
    assert "path: ???" in text


def test_cfg_prints_hydras_part(capsys):
    assert cli.main(["--cfg", "hydra", "-p", "hydra.run"]) == 0
    assert capsys.readouterr().out.startswith("# @package hydra.run\ndir: outputs/")
    assert cli.main(["--cfg", "all"]) == 0
    text = capsys.readouterr().out
    assert "\nhydra:\n" in text
    assert text.startswith("seed: 0\n")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
@pytest.mark.parametrize(
    ("line", "expected", "unexpected"),
    [
        ("gradtrain lo", ["loss="], ["seed="]),
        ("gradtrain loss=", ["loss=mse", "loss=huber"], ["loss=nope"]),
        ("gradtrain loss=hu", ["loss=huber"], ["loss=mse"]),
        ("gradtrain seed=1 trainer.st", ["trainer.steps=", "trainer.steps_per_call="], ["trainer.epochs="]),
        ("gradtrain loss=huber loss.", ["loss.delta="], []),
        ("gradtrain data=", ["data=digits"], ["data=_base"]),
        ('gradtrain data.path="', [], ["error"]),
    ],
)
def test_completion(capsys, monkeypatch, shell, line, expected, unexpected):
    monkeypatch.setenv("COMP_LINE", line)
    assert cli.main(["-sc", f"query={shell}"]) == 0
    captured = capsys.readouterr()
    offered = captured.out.split()
    assert [word for word in expected if word not in offered] == []
    assert [word for word in unexpected if word in offered] == []
    assert captured.err == ""


def test_completion_of_a_folder_of_ones_own(capsys, monkeypatch, tmp_path):
    (tmp_path / "loss").mkdir()
    (tmp_path / "loss" / "mine.yaml").touch()
    monkeypatch.setenv("COMP_LINE", f"gradtrain --config-dir {tmp_path} loss=m")
    assert cli.main(["-sc", "query=bash"]) == 0
    assert {"loss=mine", "loss=mse"} <= set(capsys.readouterr().out.split())


def test_completion_is_installed_for_the_command(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["/somewhere/gradtrain"])
    assert cli.main(["-sc", "install=bash"]) == 0
    assert capsys.readouterr().out.rstrip().endswith("gradtrain")
    assert cli.main(["-sc", "uninstall=bash"]) == 0
    monkeypatch.setattr(sys, "argv", ["/somewhere/trainer/__main__.py"])
    assert cli.main(["-sc", "install=bash"]) == 2


def test_nothing_of_it_imports_tensorflow():
    lines = [
        ["--help"],
        ["--help", "experiment"],
        ["--version"],
        ["--cfg", "job"],
        ["--cfg", "job", "--resolve"],
        ["-sc", "query=bash"],
        ["losss=mse"],
        ["loss=nope"],
    ]
    lines += [
        ["trainer.steps=0"],
        ["loss._target_=os.system"],
        ["-m", "loss=nope", "seed=1,2"],
        ["chekc"],
        ["-m", "seed=1,-2"],
        ["experiment="],
    ]
    code = f"import sys\nfrom trainer.cli import main\nprint([main(line) for line in {lines}])\n"
    code += "print([name for name in ('tensorflow', 'keras', 'numpy', 'losses') if name in sys.modules])"
    environment = os.environ | {"COMP_LINE": "gradtrain loss=", "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.splitlines()[-2:] == [str([0] * 6 + [2] * 8), "[]"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments",
    [["--help"], ["--help", "loss"], ["--version"], ["--cfg", "job"], ["loss=nope"], ["loss=mse", "loss.delt=1"], ["-sc", "query=bash"]],
)
def test_seconds_of_the_processor_to_an_answer(arguments):
    before = os.times()
    done = command(*arguments, COMP_LINE="gradtrain trainer.")
    after = os.times()
    assert done.returncode in (0, 2), done.stderr
    assert after.children_user + after.children_system - before.children_user - before.children_system < 1


@pytest.mark.slow
def test_the_module_and_its_exit_status(tmp_path):
    done = command("loss=nope", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("error: loss=nope")
    assert done.stdout == ""
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_losses_module_of_the_current_folder_is_noticed(tmp_path):
    (tmp_path / "losses.py").write_text("raise RuntimeError")
    done = command(cwd=tmp_path)
    assert done.returncode == 2
    assert f"Python finds {tmp_path}/losses.py" in last_line(done.stderr)


@pytest.mark.slow
def test_a_reader_that_has_enough(tmp_path):
    shell = f"{sys.executable} -m trainer --cfg all | head -1; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", shell], cwd=ROOT, capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout == "seed: 0\n0\n"
    assert done.stderr == ""


@pytest.mark.slow
@pytest.mark.fault
def test_no_locale_no_home_and_an_odd_folder(tmp_path):
    odd = tmp_path / "größe und raum"
    odd.mkdir()
    environment = {"PATH": os.environ["PATH"], "LC_ALL": "C", "PYTHONPATH": str(ROOT)}
    shell = [sys.executable, "-m", "trainer", "--cfg", "job", "hydra.run.dir='größe b'", "loss=mse"]
    done = subprocess.run(shell, cwd=odd, env=environment, capture_output=True, timeout=120, check=True)
    assert b"losses.mse.MSE" in done.stdout
