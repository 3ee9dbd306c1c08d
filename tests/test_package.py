"""The project as a whole: what the README promises, what a wheel holds, and what no tracked file may say."""

import os
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

import trainer

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
COMMANDS = [line for language, block in BLOCKS if language == "sh" for line in block.splitlines()]
FORBIDDEN = {
    "an absolute path of somebody's machine": r"(?<![\w.:/])/(?:home/(?!me\b)|root/|Users/|work/|opt/|mnt/|tmp/)",
    "a path outside the project": r"\.\./shared",
    "an issue's number": r"(?i)\bissue #?\d",
    "an address of a private registry": r"(?i)https?://[^\s\"')]*(?:pypi|registry|mirror|proxy|index)[^\s\"')]*",
}


@pytest.fixture(scope="module")
def tracked() -> list[Path]:
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [ROOT / name for name in listed.split("\0") if name]


@pytest.mark.parametrize("what", FORBIDDEN)
def test_no_tracked_file_names(tracked, what):
    found = []
    for path in tracked:
        if path != Path(__file__) and path.suffix != ".png":
            found += [f"{path.relative_to(ROOT)}: {match[0]}" for match in re.finditer(FORBIDDEN[what], path.read_text())]
    assert not found


@pytest.mark.parametrize(
    ("what", "text"),
    [
        ("an absolute path of somebody's machine", 'open("/home/somebody/x")'),
        ("a path outside the project", "see ../shared/x.md"),
        ("an issue's number", "as in issue 12"),
        ("an address of a private registry", "https://pypi.example.org/simple"),
    ],
)
def test_the_patterns_find_what_they_are_for(what, text):
    assert re.search(FORBIDDEN[what], text)


def test_the_version_is_the_changelogs_newest():
    newest = re.search(r"^## \[(\d+\.\d+\.\d+)\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert newest
    assert trainer.__version__ == newest[1]
    assert tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["version"]["path"] == "trainer/__init__.py"


def test_constraints_pin_every_dependency_once_and_nothing_else_is_said():
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    pins = [re.fullmatch(r"([A-Za-z0-9._-]+)==[0-9][\w.]*", line) for line in lines]
    assert all(pins), [line for line, pin in zip(lines, pins, strict=True) if not pin]
    names = [re.sub(r"[-_.]+", "-", pin[1]).lower() for pin in pins if pin]
    assert len(names) == len(set(names))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    wanted = [re.match(r"[\w.-]+", need)[0].lower() for need in project["dependencies"] + extras["data"] + extras["dev"]]
    assert set(wanted) - {"gradtrain"} <= set(names)


def test_the_first_two_commands_install_and_run_and_test():
    first, second = [block for language, block in BLOCKS if language == "sh"][:2]
    assert first == 'pip install -c constraints.txt -e ".[dev]" && python -m trainer\n'
    assert second == "python -m pytest\n"


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_of_the_readme_begin_with_a_known_program(command):
    assert re.match(r"(pip install|python -m (trainer|pytest)|gradtrain|tensorboard)\b", command)


def test_the_readme_has_every_folder_and_every_module_of_trainer(tracked):
    rows = "\n".join(line for line in README.splitlines() if line.startswith("|"))
    folders = {path.relative_to(ROOT).parts[0] for path in tracked if len(path.relative_to(ROOT).parts) > 1} - {".ci"}
    assert not [folder for folder in folders if f"`{folder}/`" not in rows]
    modules = {path.name for path in tracked if path.is_relative_to(ROOT / "trainer") and path.suffix == ".py"} - {"__init__.py"}
    assert not [module for module in modules if f"`{module}`" not in rows]


def test_the_readme_has_every_loss():
    losses = {path.stem for path in (ROOT / "conf" / "loss").glob("*.yaml")}
    table = README[README.index("## Losses") : README.index("## The house")]
    assert set(re.findall(r"^\| `(\w+)`", table, re.MULTILINE)) == losses


def run(command: list[str], folder: Path, **environment: str) -> str:
    """Runs a command in `folder`, where this checkout is importable only if it is installed or `environment` says so."""
    result = subprocess.run(command, cwd=folder, env=os.environ | environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


@pytest.fixture(scope="module")
def users_folder(tmp_path_factory) -> Path:
    """A folder with the files that the README shows, written as it shows them."""
    folder = tmp_path_factory.mktemp("user")
    for language, block in BLOCKS:
        named = re.match(r"# (\S+)\n", block)
        if language in ("python", "yaml") and named:
            path = folder / named[1]
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(block)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("command", [command for command in COMMANDS if "--config-dir" in command])
def test_ones_own_loss_and_model_as_the_readme_shows_them(users_folder, command):
    arguments = [argument.strip('"') for argument in command.split()[3:]]
    output = run([sys.executable, "-m", "trainer", *arguments, "trainer.steps=20"], users_folder, PYTHONPATH=str(ROOT))
    assert "step 20/20" in output


def test_losses_of_ones_own_take_25_lines():
    shown = [block for _, block in BLOCKS if block.startswith(("# my_package/__init__.py", "# conf/loss/mine.yaml"))]
    assert len(shown) == 2
    assert sum(len(block.splitlines()) for block in shown) <= 25


@pytest.mark.slow
def test_the_keras_script_of_the_readme_trains():
    import numpy as np

    script = next(block for language, block in BLOCKS if language == "python" and "losses.get" in block)
    names: dict = {}
    exec(script, names)
    features = np.random.default_rng(0).normal(size=(256, 3)).astype("float32")
    history = names["model"].fit(features, features.sum(1, keepdims=True), epochs=20, verbose=0).history["loss"]
    assert history[-1] < 0.2 * history[0]


@pytest.mark.slow
def test_a_wheel_holds_the_packages_and_the_configuration_and_nothing_else(tmp_path, tracked):
    run([sys.executable, "-m", "build", "--no-isolation", "--wheel", "--outdir", str(tmp_path)], ROOT)
    (wheel,) = tmp_path.glob("gradtrain-*.whl")
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    sources = {path.relative_to(ROOT).as_posix() for path in tracked}
    expected = {name for name in sources if name.startswith(("trainer/", "losses/"))}
    expected |= {f"trainer/{name}" for name in sources if name.startswith("conf/")}
    assert names == expected
