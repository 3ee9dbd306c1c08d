"""From a command line to a job: composes the configuration files with Hydra and validates the result. Imports no TensorFlow."""

import contextlib
import dataclasses
import re
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra._internal.sources_registry import SourcesRegistry
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.core.plugins import Plugins
from hydra.errors import HydraException
from hydra.plugins.search_path_plugin import SearchPathPlugin
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from trainer import launcher, secrets, trust
from trainer.errors import ConfigError
from trainer.launcher import Launcher
from trainer.validation import CommandLine, cause, suggestion, validate
from trainer.yaml_files import YamlFiles

_MAX_CHARACTERS = 10_000  # of an override


@dataclasses.dataclass(frozen=True)
class Job:
    """One run, as its command line and the configuration files describe it."""

    config: DictConfig  # schema.Config, validated; interpolations unresolved, so that secrets stay references
    overrides: tuple[str, ...]  # as typed
    run_dir: Path  # of hydra.run.dir, or of the sweep; not created yet
    choices: dict[str, str]  # group -> chosen file, such as {"loss": "mse"}
    trust: tuple[str, ...]  # packages of the user's own, from the command line alone
    launcher: Launcher | None = None  # where the jobs of a sweep run, from the command line alone; None: here


def load(overrides: Sequence[str], config_dir: Path | None = None) -> Job:
    """The job that a command line asks for.

    Args:
        overrides: as typed: `group=choice` and `key=value`.
        config_dir: a folder of the user's own, searched before the shipped one.

    Raises:
        ConfigError: anything wrong with it, from the grammar to a key's limits.
    """
    composed = _compose(overrides, config_dir)
    validated, directory = _validated(composed), _directory(composed, "run")
    return Job(validated, tuple(overrides), directory, composed.choices, composed.command.trust, composed.launcher)


def sweep_dir(overrides: Sequence[str], config_dir: Path | None = None) -> Path:
    """The directory of a sweep, of which `overrides` are one job's."""
    return _directory(_compose(overrides, config_dir), "sweep")


def show(part: str, overrides: Sequence[str], config_dir: Path | None = None, package: str | None = None) -> DictConfig:
    """What `--cfg` prints: part is job (what the run gets), hydra, or all; package is a key to print alone."""
    composed = _compose(overrides, config_dir)
    job = _validated(composed, complete=False)
    content: Any = {} if part == "hydra" else OmegaConf.to_container(job, resolve=False)
    config: DictConfig = OmegaConf.create(content)
    if part != "job":
        config.hydra = composed.whole.hydra
    if package in (None, "_global_"):
        return config
    found = OmegaConf.select(config, str(package))
    if not isinstance(found, DictConfig):
        sections = [str(key) for key, value in config.items_ex(resolve=False) if isinstance(value, DictConfig)]
        raise ConfigError(f"--package {package}: there is no such section{suggestion(str(package), sections)}")
    return found


def config_dirs(config_dir: Path | None) -> tuple[Path, ...]:
    """Where configuration files are, the user's folder first."""
    package = Path(__file__).parent
    inside = package / "conf"  # of an installed wheel; looked for first, because beside it may lie another project's conf
    shipped = inside if inside.is_dir() else package.parent / "conf"
    if not (shipped / "config.yaml").is_file():
        raise ConfigError(f"the configuration files of this program are missing: {shipped} has no config.yaml; install it again")
    if config_dir is None:
        return (shipped,)
    if not config_dir.is_dir():
        raise ConfigError(f"--config-dir {config_dir}: there is no such folder")
    return (config_dir.absolute(), shipped)


def groups(dirs: Sequence[Path]) -> dict[str, list[str]]:
    """Group -> choices; files whose names begin with an underscore are parts of others."""
    names = sorted(path.name for path in dirs[-1].iterdir() if path.is_dir())
    return {name: sorted({choice for folder in dirs for choice in _choices(folder / name)}) for name in names}


def parse(overrides: Sequence[str], config_dir: Path | None = None) -> list[Override]:
    """Reads overrides by Hydra's grammar; an error shows the form to type."""
    with _hydra(config_dirs(config_dir)) as loader:
        return [_parse_one(text, OverridesParser.create(loader)) for text in overrides]


@contextlib.contextmanager
def completion(config_dir: Path | None = None) -> Iterator[Any]:
    """Hydra, set up with these configuration files, for its shell completion."""
    from hydra.core.global_hydra import GlobalHydra

    with _hydra(config_dirs(config_dir)):
        yield GlobalHydra.instance().hydra


class _ShippedFiles(SearchPathPlugin):
    """Adds the shipped configuration files behind the user's."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        shipped = str(config_dirs(None)[0])
        if all(element.path != shipped for element in search_path.get_path()):
            search_path.append("gradtrain", f"file://{shipped}")


@dataclasses.dataclass(frozen=True)
class _Composed:
    whole: DictConfig  # with the hydra node
    choices: dict[str, str]
    listed: dict[str, dict[str, Any]]  # open group -> what its chosen file lists
    command: CommandLine
    launcher: Launcher | None


@contextlib.contextmanager
def _hydra(dirs: Sequence[Path]) -> Iterator[Any]:
    from hydra.core.global_hydra import GlobalHydra

    Plugins.instance().register(_ShippedFiles)
    SourcesRegistry.instance().types["file"] = YamlFiles
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Hydra's, about its own past and future
        with initialize_config_dir(str(dirs[0]), job_name="gradtrain", version_base="1.3"):
            yield GlobalHydra.instance().config_loader()


def _compose(overrides: Sequence[str], config_dir: Path | None) -> _Composed:
    dirs = config_dirs(config_dir)
    available = groups(dirs)
    with _hydra(dirs) as loader:
        parser = OverridesParser.create(loader)
        files: list[str] = []  # overrides that decide which files are read, and Hydra's own
        keys: list[Override] = []
        launching: list[Override] = []
        trusted: tuple[str, ...] = ()
        for text in overrides:
            override = _parse_one(text, parser)
            _check_form(override, text)
            key, value = override.key_or_group, override.value()
            if key in available:
                _check_choice(key, text, available[key], dirs)
                files.append(text.lstrip("+"))
            elif launcher.is_of_launcher(key, value):
                launching.append(override)
            elif key == "hydra" or override.is_hydra_override():
                _check_hydra(key, value, text)
                files.append(text.lstrip("+"))
            elif key == "trust" or key.startswith("trust."):
                trusted = _trusted(key, value, text)
            else:
                keys.append(override)
        whole = _read(files)
        choices = {str(group): str(choice) for group, choice in whole.hydra.runtime.choices.items() if group in available}
        # Another file of the user's own may have added keys to these groups; the shipped ones are tested not to.
        chosen = whole if config_dir is None else _read([f"{group}={choices[group]}" for group in trust.KINDS if group in choices])
    listed: Any = {group: OmegaConf.to_container(chosen[group], resolve=False) if group in chosen else {} for group in trust.KINDS}
    _check_plugins(whole.hydra)
    typed: dict[str, Any] = {}
    for override in keys:
        key, value = override.key_or_group, override.value()
        with _blaming(str(override.input_line), "; mend what stands within ${...}, or type \\${ for the characters themselves"):
            # With or without +: which keys there are is told by the schema and the chosen files, in validation.
            OmegaConf.update(whole, key, value, merge=True, force_add=True)
        typed |= {key: value, **_flat(key, value)}
    added = {
        key for override in keys if override.is_add() or override.is_force_add() for key in _flat(override.key_or_group, override.value())
    }
    command = CommandLine(typed, frozenset(added), trusted)
    return _Composed(whole, choices, listed, command, launcher.read(launching, whole))


def _validated(composed: _Composed, complete: bool = True) -> DictConfig:
    return validate(_without_hydra(composed.whole), composed.listed, composed.choices, composed.command, complete)


def _without_hydra(whole: DictConfig) -> DictConfig:
    return OmegaConf.masked_copy(whole, [str(key) for key in whole if key != "hydra"])


def _read(overrides: list[str]) -> DictConfig:
    with _blaming("the configuration can't be composed"):
        return compose("config", overrides, return_hydra_config=True)


@contextlib.contextmanager
def _blaming(what: str, advice: str = "") -> Iterator[None]:
    """Whatever Hydra, OmegaConf or YAML trip over in files and overrides is the configuration's fault."""
    try:
        yield
    except ConfigError:
        raise
    except Exception as error:
        reason = error.__cause__ if isinstance(error.__cause__, OmegaConfBaseException) else error
        lines = [line.strip() for line in str(reason).splitlines() if line.strip()] or [type(error).__name__]
        said = " ".join(line for line in lines[:4] if not line.startswith(("full_key:", "object_type=")))
        raise ConfigError(f"{what}: {said}{advice}") from error


def _parse_one(text: str, parser: OverridesParser) -> Override:
    if len(text) > _MAX_CHARACTERS:
        raise ConfigError(f"{text[:40]}...: has {len(text)} characters; at most {_MAX_CHARACTERS}; put it into a file of --config-dir")
    try:
        return parser.parse_overrides([text])[0]
    except (HydraException, RecursionError, ValueError, AssertionError) as error:
        key, equals, value = text.partition("=")
        if not equals:
            raise ConfigError(f"{text}: is not an override; type KEY=VALUE or GROUP=CHOICE") from error
        quoted = f"{key}={_quoted(value)}"
        with contextlib.suppress(HydraException):
            parser.parse_overrides([quoted])
            hint = "close the bracket, or " if value[:1] in "[{(" and value[-1:] not in ")}]" else ""
            shell = "'" + quoted.replace("'", "'\\''") + "'"
            raise ConfigError(f"{text}: can't be read; {hint}quote the value, against the shell too: {shell}") from error
        plain = re.sub(r"[^\w./]+", "", key.partition("[")[0], flags=re.ASCII).strip("./")
        raise ConfigError(f"{text}: can't be read; keys are names joined by dots: type {plain or 'trainer.steps'}=VALUE") from error


def _quoted(value: str) -> str:
    if re.fullmatch(r"\[[^\[\]{}\"']*\]", value):  # a list of plain words: each is quoted, not the list
        return "[" + ",".join(_quoted(word.strip()) for word in value[1:-1].split(",")) + "]"
    return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _check_form(override: Override, text: str) -> None:
    key = override.key_or_group
    if override.is_delete():
        raise ConfigError(f"{text}: keys can't be deleted; give {key} a value, null where it may be empty")
    if override.package is not None:
        raise ConfigError(f"{text}: packages are not used here; type {key}={override.get_value_string()}")
    if override.is_sweep_override():
        value = override.get_value_string()
        raise ConfigError(f"{text}: several values make several jobs: add -m; a list is typed {key}=[{value}], text '{key}=\"{value}\"'")


def _check_choice(group: str, text: str, choices: list[str], dirs: Sequence[Path]) -> None:
    choice = text.partition("=")[2].strip("\"'")
    if choice in choices:
        return
    if not choice:
        raise ConfigError(f"{text} names no {group}: there is {', '.join(choices)}; gradtrain --help {group} says a line on each")
    if ".." in choice or choice.startswith(("/", "~")) or "\0" in choice:
        raise ConfigError(f"{text!r} is refused: a choice is the name of a file in a folder {group} of {' or '.join(map(str, dirs))}")
    raise ConfigError(f"{text}: there is no such {group}{suggestion(choice, choices)}")


def _check_hydra(key: str, value: Any, text: str) -> None:
    if key in ("hydra.run.dir", "hydra.sweep.dir"):
        if not isinstance(value, str):
            raise ConfigError(f"{text} is refused: must be a path; type {key}=DIRECTORY")
        return
    if key in ("hydra/launcher", "hydra/sweeper"):
        if value != "basic":
            instead = f"type {key}={' or '.join(launcher.CHOICES)}" if key == launcher.GROUP else "type sweep.optuna.trials=20 to search"
            raise ConfigError(f"{text} is refused: each job of a sweep runs in a fresh process; leave it out, or {instead}")
        return
    if key == "hydra.mode":
        raise ConfigError(f"{text} is refused: a sweep is asked for by -m")
    if key == "hydra.searchpath":
        raise ConfigError(f"{text} is refused: a folder of your own is named by --config-dir FOLDER")
    raise ConfigError(f"{text} is refused: of Hydra's own keys, hydra.run.dir and hydra.sweep.dir are read here")


def _check_plugins(hydra: DictConfig) -> None:
    for name in ("launcher", "sweeper"):
        if hydra[name].get("_target_") != f"hydra._internal.core_plugins.basic_{name}.Basic{name.title()}":
            raise ConfigError(f"hydra/{name} is set in a configuration file, where it does not count: take it out, or type it instead")
    container = OmegaConf.to_container(hydra, resolve=False)
    assert isinstance(container, dict)
    trust.check_names({key: value for key, value in container.items() if key not in ("launcher", "sweeper")}, ())


def _trusted(key: str, value: Any, text: str) -> tuple[str, ...]:
    if key != "trust" or not isinstance(value, list):
        raise ConfigError(f"{text}: must be a list of packages of your own; type trust=[my_package]")
    trust.check_trusted(value)
    return tuple(value)


def _directory(composed: _Composed, kind: str) -> Path:
    """hydra.run.dir or hydra.sweep.dir (kind is run or sweep): a plain path that shows no secret."""
    key, whole = f"hydra.{kind}.dir", composed.whole
    try:
        text = OmegaConf.select(whole, key)
    except OmegaConfBaseException as error:
        raise ConfigError(f"{key}: {cause(error)}; type {key}=DIRECTORY") from error
    if not isinstance(text, str | int | float) or not str(text).strip() or any(not character.isprintable() for character in str(text)):
        raise ConfigError(f"{key}={text!r} is refused: must be a path of printable characters; type {key}=DIRECTORY")
    path = Path(str(text))
    if ".." in path.parts:
        raise ConfigError(f"{key}={text} is refused: it has a component ..; type the path without it")
    if any(secret in str(text) for secret in secrets.values(whole, key)):
        raise ConfigError(f"{key} is refused: the directory's name would show the value of a secret; type another")
    try:
        return path.expanduser()
    except RuntimeError as error:  # no such user
        raise ConfigError(f"{key}={text}: there is no home directory of {path.parts[0]}; type {key}=DIRECTORY") from error


def _choices(folder: Path) -> list[str]:
    files = [path.relative_to(folder).with_suffix("") for path in folder.rglob("*.yaml")]
    return [path.as_posix() for path in files if not path.name.startswith("_")]


def _flat(key: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        return {key: value}
    return {name: leaf for part, item in value.items() for name, leaf in _flat(f"{key}.{part}", item).items()}
