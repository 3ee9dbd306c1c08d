"""Completion by the shells themselves; what it comes to for a line is in test_cli.py too."""

import os
import pty
import re
import select
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from trainer import cli, completion

COMMANDS = list(cli.COMMANDS)


@pytest.mark.parametrize(
    ("line", "expected", "unexpected"),
    [
        ("gradtrain ch", ["check", "checkpoints", "checkpoint="], ["compare", "train"]),
        ("gradtrain ", ["train", "check", "loss=", "seed="], ["--help"]),
        ("gradtrain check loss=pro", ["loss=probit"], ["loss=mse"]),
        ("gradtrain train loss=stab", ["loss=stable_mse"], ["train"]),
        ("gradtrain loss=mse ch", ["checkpoint="], ["check"]),
        ("gradtrain --c", ["--config-dir"], ["-m", "check"]),
        ("gradtrain -m seed=1 loss=mse,hu", [], ["loss=huber"]),
        ("gradtrain --help exp", ["experiment"], ["experiment="]),
        ("gradtrain evaluate outputs/x --c", ["--csv", "--checkpoint", "--config-dir"], ["--cfg"]),
        ("gradtrain runs --o", ["--older-than"], []),
        ("gradtrain check --m", ["--mutants"], ["--multirun"]),
        ("gradtrain runs sh", ["show"], ["prune"]),
        ("gradtrain export outputs/x ", ["format=keras", "format=onnx"], ["data="]),
        ("gradtrain export outputs/x format=keras data=di", ["data=digits", "data=diabetes"], ["format=onnx"]),
        ("gradtrain predict outputs/x data=csv data.", ["data.path=", "data.delimiter="], ["data.path=new.csv"]),
        ("gradtrain trainer.dry_run=", ["trainer.dry_run=true", "trainer.dry_run=false"], []),
        ("gradtrain trainer.dry_run=t", ["trainer.dry_run=true"], ["trainer.dry_run=false"]),
        ("gradtrain trainer.log_every=", ["trainer.log_every=1"], []),
    ],
)
def test_commands_options_and_groups(line, expected, unexpected):
    found = completion.candidates(line, COMMANDS, cli._options)
    assert [word for word in expected if word not in found] == []
    assert [word for word in unexpected if word in found] == []


@pytest.mark.parametrize(
    "rest", ["checkpoints outputs/x", "--config-dir my", "compare ", "export ", "predict outputs/x ", "runs ", "runs s"]
)
def test_where_files_are_what_fits_nothing_is_offered(rest):
    assert completion.candidates(f"gradtrain {rest}", COMMANDS, cli._options) == []


# Line -> what it has become after the key is pressed.
TYPED = {
    "gradtrain loss=st": "gradtrain loss=stable_mse",
    "gradtrain seed=1 gradient=au": "gradtrain seed=1 gradient=auto",
    "gradtrain trainer.clip": "gradtrain trainer.clip_norm=",
    "gradtrain opt": "gradtrain optimizer",  # optimizer= and optimizer.
    "gradtrain comp": "gradtrain compare",
    "gradtrain check loss=probi": "gradtrain check loss=probit",
}


@pytest.fixture
def environment(tmp_path, no_tensorflow):
    """Of a shell in which the command gradtrain is this checkout's, and importing TensorFlow leaves a mark."""
    command = tmp_path / "bin" / "gradtrain"
    command.parent.mkdir()
    command.write_text(f"#!{sys.executable}\nimport sys\nfrom trainer.cli import main\nsys.exit(main())\n")
    command.chmod(0o755)
    (tmp_path / "empty").mkdir()
    variables = {name: os.environ[name] for name in ("LANG", "LC_ALL") if name in os.environ}
    return variables | no_tensorflow | {"PATH": f"{command.parent}:{os.environ['PATH']}", "HOME": str(tmp_path / "empty"), "TERM": "dumb"}


def needs(shell: str) -> str:
    path = shutil.which(shell)
    if path is None:
        pytest.skip(f"{shell} is not installed")
    return path


class Terminal:
    """A shell at a terminal of its own."""

    def __init__(self, command: list[str], environment: dict[str, str], cwd: Path) -> None:
        self._screen, inside = pty.openpty()
        pipes = {"stdin": inside, "stdout": inside, "stderr": inside}
        self._process = subprocess.Popen(command, **pipes, env=environment, cwd=cwd, start_new_session=True)
        os.close(inside)

    def type(self, text: str, until: str) -> str:
        """Types, and returns what appears up to a pattern."""
        os.write(self._screen, text.encode())
        seen, deadline = "", time.monotonic() + 60
        while not re.search(until, seen):
            ready, _, _ = select.select([self._screen], [], [], deadline - time.monotonic())
            assert ready, f"{until} does not come; there is {seen!r}"
            seen += os.read(self._screen, 4096).decode(errors="replace")
        return seen

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        os.close(self._screen)


@pytest.mark.slow
@pytest.mark.parametrize(("shell", "options"), [("bash", ["--norc", "--noprofile", "-i"]), ("zsh", ["-f", "-i"])])
def test_a_key_press_completes_the_line(environment, tmp_path, shell, options):
    terminal = Terminal([needs(shell), *options], environment, tmp_path / "empty")
    try:
        before = "autoload -Uz compinit && compinit -u -D; " if shell == "zsh" else ""
        terminal.type(f'PS1="> "; {before}eval "$(gradtrain -sc install={shell})"; echo rea""dy\n', r"\nready")
        for line, whole in TYPED.items():
            # The line is printed instead of run: from its beginning on, it is what echo is given.
            terminal.type(f"{line}\t", re.escape(whole[len(line) :]))
            terminal.type("\x01echo '<'\x05'>'\n", rf"\n<{re.escape(whole)} ?>")
        terminal.type(f'eval "$(gradtrain -sc uninstall={shell})"; echo go""ne\n', r"\ngone")
        there = "complete -p gradtrain" if shell == "bash" else "(( $+_comps[gradtrain] ))"
        terminal.type(f'{there} 2>/dev/null || echo not the""re\n', r"\nnot there")
    finally:
        terminal.close()
    assert not (tmp_path / "imported").exists()


BASH = r"""
eval "$(gradtrain -sc install=bash)"
function=$(complete -p gradtrain | sed 's/.*-F \([^ ]*\).*/\1/')
for COMP_LINE in "$@"; do
    COMP_POINT=${#COMP_LINE}
    "$function" gradtrain
    echo "$COMP_LINE: ${COMPREPLY[*]}"
done
COMP_WORDBREAKS=${COMP_WORDBREAKS//=}
COMP_LINE="gradtrain gradient=" COMP_POINT=19
"$function" gradtrain
echo "whole: ${COMPREPLY[*]}"
eval "$(gradtrain -sc uninstall=bash)"
complete -p gradtrain 2>/dev/null || echo gone
type "$function" 2>/dev/null || echo gone
"""


@pytest.mark.slow
def test_bash_gets_what_stands_behind_the_equals_sign(environment, tmp_path):
    lines = ["gradtrain gradient=", "gradtrain trainer.clip", "gradtrain ch", "gradtrain loss=nope"]
    arguments = ["bash", "--norc", "-c", BASH, "bash", *lines]
    done = subprocess.run(arguments, env=environment, cwd=tmp_path / "empty", capture_output=True, text=True, timeout=120, check=True)
    found = dict(line.split(": ", 1) for line in done.stdout.splitlines() if ": " in line)
    assert found["gradtrain gradient="].split() == ["analytic", "auto"]
    assert found["gradtrain trainer.clip"] == "trainer.clip_norm="
    assert {"check", "checkpoints", "checkpoint="} <= set(found["gradtrain ch"].split())
    assert found["gradtrain loss=nope"] == ""
    assert found["whole"].split() == ["gradient=analytic", "gradient=auto"]  # where = ends no word
    assert done.stdout.endswith("gone\ngone\n")
    assert done.stderr == ""
    assert not (tmp_path / "imported").exists()


@pytest.mark.slow
def test_fish_completes(environment, tmp_path):
    asked = [*TYPED, "gradtrain gradient=", "gradtrain ch"]
    script = "gradtrain -sc install=fish | source\n"
    script += "".join(f"echo '{line}:' (complete -C '{line}')\n" for line in asked)
    script += "gradtrain -sc uninstall=fish | source\necho 'after:' (complete -C 'gradtrain loss=st')\n"
    script += "functions -q __gradtrain_complete; or echo gone\n"
    fish = [needs("fish"), "--no-config", "-c", script]
    done = subprocess.run(fish, env=environment, cwd=tmp_path / "empty", capture_output=True, text=True, timeout=120, check=True)
    found = dict(line.split(":", 1) for line in done.stdout.splitlines() if ":" in line)
    for line, whole in TYPED.items():
        last = whole.rpartition(" ")[2]
        assert any(word.startswith(last) for word in found[line].split()), line
    assert found["gradtrain gradient="].split() == ["gradient=analytic", "gradient=auto"]
    assert {"check", "checkpoints", "checkpoint="} <= set(found["gradtrain ch"].split())
    assert found["after"].split() == []
    assert done.stdout.endswith("gone\n")
    assert done.stderr == ""
    assert not (tmp_path / "imported").exists()
