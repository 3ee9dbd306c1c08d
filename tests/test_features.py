"""docs/features.md: every command of ours in it is one that can be typed."""

import re
import shlex
from pathlib import Path

import pytest

from trainer import cli, config, expansion
from trainer.errors import ConfigError

TEXT = (Path(__file__).parents[1] / "docs" / "features.md").read_text()
LINES = sorted(set(re.findall(r"`(gradtrain [^`]+)`", TEXT)))
REFUSED = ("losss=mse", "loss._target_=os.system")  # what they show is that they are


def test_there_are_commands():
    assert len(LINES) > 30


@pytest.mark.parametrize("line", LINES)
def test_a_command_can_be_typed(line, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = shlex.split(line)[1:]
    if words[0] == "check":
        words = words[1:]
    elif words[0] in cli.COMMANDS:  # on runs, of which there are none here: nothing else is wrong
        assert cli.main(words) in (2, 4)
        assert re.search(r"there is no (run|folder) |is neither a run's directory nor a sweep's", capsys.readouterr().err)
        return
    if words[:1] in (["--help"], ["-sc"]):
        assert cli.main(words) == 0
        return
    many = "-m" in words
    words = [word for word in words if word != "-m"]
    if words and words[0] in REFUSED:
        with pytest.raises(ConfigError):
            config.load(words)
    elif any(word.startswith("sweep.optuna.") for word in words):
        assert expansion.parse(words)
    elif many:
        assert len(expansion.expand(words)) > 1
    else:
        config.load(words)
