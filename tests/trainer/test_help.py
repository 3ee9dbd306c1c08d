import re

import pytest

from trainer import cli, config


def described(text: str) -> dict[str, str]:
    """Choice -> what is said of it."""
    found: dict[str, str] = {}
    for line in text.splitlines()[1:]:
        if name := re.match(r"  (\S+) +(\S.*)?$", line):
            found[name[1].rstrip("*")] = name[2] or ""
        else:
            found[list(found)[-1]] += f" {line.strip()}"
    return found


@pytest.mark.parametrize("group", config.groups(config.config_dirs(None)))
def test_every_shipped_choice_is_described_by_a_sentence(capsys, group):
    assert cli.main(["--help", group]) == 0
    text = capsys.readouterr().out
    found = described(text)
    assert list(found) == config.groups(config.config_dirs(None))[group]
    assert all(re.fullmatch(r"[A-Za-z0-9].{10,}[.?]", line) for line in found.values()), found
    assert max(map(len, text.splitlines())) <= 100


def test_an_experiment_s_sentence_is_the_whole_of_it_and_no_more(capsys):
    cli.main(["-h", "experiment"])
    found = described(capsys.readouterr().out)
    assert found["ranking"] == "Travellers' choices among four means of transport, ranked by lambdarank."
    assert found["none"] == "Nothing overridden."


def test_the_default_is_marked_and_several_groups_are_listed(capsys):
    assert cli.main(["--help", "gradient", "optimizer="]) == 0
    text = capsys.readouterr().out
    assert "  analytic* " in text
    assert "  adam* " in text
    assert "(Duchi et al. 2011)." in " ".join(text.split())


def test_files_of_ones_own_are_described_too_and_hold_nothing_that_a_terminal_acts_on(capsys, tmp_path):
    (tmp_path / "loss").mkdir()
    (tmp_path / "loss" / "mine.yaml").write_text("# @package loss\n#One \x1b[2J for me\n# alone. And more.\n_target_: x.Y\n")
    (tmp_path / "loss" / "mse.yaml").write_text("# Mine instead of the shipped one.\n_target_: x.Y\n")
    (tmp_path / "loss" / "bare.yaml").write_text("_target_: x.Y\n")
    assert cli.main(["--config-dir", str(tmp_path), "--help", "loss"]) == 0
    found = described(capsys.readouterr().out)
    assert found["mine"] == "One \\x1b[2J for me alone."
    assert found["mse"] == "Mine instead of the shipped one."
    assert found["bare"] == ""


def test_a_group_that_is_misspelt_or_not_chosen_from(capsys):
    assert cli.main(["--help", "experimant"]) == 2
    assert "there is no such group; did you mean experiment?" in capsys.readouterr().err
    assert cli.main(["experiment="]) == 2
    line = capsys.readouterr().err
    assert "brackets, counts" in line
    assert "gradtrain --help experiment" in line


def test_what_else_stands_beside_help_does_not_matter(capsys):
    assert cli.main(["loss=huber", "--help"]) == 0
    assert "What people type most" in capsys.readouterr().out
