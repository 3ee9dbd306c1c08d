"""The command line: trains by default, and answers help, configuration and completion without TensorFlow."""

import difflib
import importlib
import os
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from trainer import __version__
from trainer.arguments import Parser
from trainer.errors import ConfigError, report


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command line (default: this process's) and returns its exit status."""
    try:
        arguments = list(sys.argv[1:] if argv is None else argv)
        command = arguments.pop(0) if arguments and re.fullmatch(r"\w[\w-]*", arguments[0]) else "train"
        if command not in COMMANDS:
            raise ConfigError(_unknown_command(command, arguments))
        exit_code = COMMANDS[command](arguments)
        if sys.stdout is not None:
            sys.stdout.flush()
        return exit_code
    except BrokenPipeError:  # the reader, such as head, has what it wanted
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (Exception, KeyboardInterrupt) as error:
        return report(error)


def train(arguments: Sequence[str]) -> int:
    """Trains, or prints what is asked for instead."""
    options = _parser().parse_intermixed_args(arguments)
    if options.version:
        print(f"gradtrain {__version__}")
        return 0
    if options.config_name or options.config_path:
        raise ConfigError(
            "the primary configuration is always config.yaml; name a folder of your own by --config-dir DIR, and choose by experiment=NAME"
        )
    config_dir = Path(options.config_dir) if options.config_dir is not None else None
    if sum(map(bool, (options.help, options.multirun, options.cfg, options.shell_completion))) > 1:
        raise ConfigError("type one of --help, --multirun, --cfg and --shell-completion")
    if (options.resolve or options.package) and not options.cfg:
        raise ConfigError("--resolve and --package belong to --cfg: type for example --cfg job --resolve")
    if options.help:
        return _help(options.overrides, config_dir)
    if options.cfg:
        return _print_config(options.cfg, options.overrides, config_dir, options.package, options.resolve)
    if options.shell_completion:
        return _complete(options.overrides)
    from trainer import trust

    trust.check_packages()
    if options.multirun:
        from trainer import sweep

        return sweep.run(options.overrides, config_dir)
    from trainer import config

    wanted = config.load(options.overrides, config_dir)
    if wanted.launcher:
        raise ConfigError(f"{wanted.launcher.choice} is for the jobs of a sweep: add -m, or leave it out")
    if wanted.config.trainer.replay:
        from trainer import stored

        wanted = stored.job_of(wanted.run_dir, wanted.overrides, config_dir)
    from trainer import job

    return job.run(wanted)


def _module(name: str) -> Callable[[Sequence[str]], int]:
    """A command that is a module of its own, imported when it is asked for."""
    return lambda arguments: int(importlib.import_module(f"trainer.{name}").run(arguments))


_MODULES = ("check", "checkpoints", "compare", "evaluate", "export", "predict", "runs")
COMMANDS = {"train": train} | {name: _module(name) for name in _MODULES}


def _parser() -> Parser:
    parser = Parser("gradtrain")
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--version", action="store_true")
    parser.add_argument("-m", "--multirun", action="store_true")
    parser.add_argument("-c", "--cfg", choices=("job", "hydra", "all"))
    parser.add_argument("--resolve", action="store_true")
    parser.add_argument("-p", "--package")
    parser.add_argument("-cd", "--config-dir")
    parser.add_argument("-cn", "--config-name")
    parser.add_argument("-cp", "--config-path")
    parser.add_argument("-sc", "--shell-completion", action="store_true")
    return parser


def _unknown_command(word: str, rest: Sequence[str]) -> str:
    there = f"there is no command {word}; there is {', '.join(COMMANDS)}"
    close = difflib.get_close_matches(word, COMMANDS, n=1)
    if close:
        return f"{there}; did you mean {close[0]}?"
    value = rest[0] if rest and re.fullmatch(r"[\w.]+", rest[0]) else "VALUE"
    return f"{there}, the default; a setting is typed with an equals sign: {word}={value}"


def _help(words: Sequence[str], config_dir: Path | None) -> int:
    """The whole help, or a line on each choice of the groups that are named."""
    from trainer.config import config_dirs, groups
    from trainer.help import choices_text, help_text
    from trainer.validation import suggestion

    dirs = config_dirs(config_dir)
    there = groups(dirs)
    named = [word.removesuffix("=") for word in words if "=" not in word[:-1]]
    if unknown := [name for name in named if name not in there]:
        raise ConfigError(f"--help {unknown[0]}: there is no such group{suggestion(unknown[0], list(there))}")
    print("\n\n".join(choices_text(name, dirs) for name in named) or help_text(dirs, list(COMMANDS)))
    return 0


def _print_config(part: str, overrides: Sequence[str], config_dir: Path | None, package: str | None, resolve: bool) -> int:
    from omegaconf import OmegaConf

    from trainer import config, rundir

    if resolve and part != "job":
        raise ConfigError("--resolve goes with --cfg job: Hydra's own part refers to what only its own launcher knows")
    shown = config.show(part, overrides, config_dir, package)
    if package:
        print(f"# @package {package}")
    # Resolved as in a run's config.yaml, where secrets stay references.
    print(rundir.stored_config(shown) if resolve else OmegaConf.to_yaml(shown), end="")
    return 0


def _options(command: str) -> list[str]:
    parser = _parser() if command == "train" else importlib.import_module(f"trainer.{command}")._parser()
    return list(parser._option_string_actions)


def _complete(overrides: Sequence[str]) -> int:
    """What a shell asks for, once or at every press of the key."""
    from trainer import completion

    action, _, shell = overrides[0].partition("=") if len(overrides) == 1 else ("", "", "")
    if action not in ("install", "uninstall", "query") or shell not in completion.INSTALL:
        shells = ", ".join(completion.INSTALL)
        raise ConfigError(f"--shell-completion takes install=SHELL, uninstall=SHELL or query=SHELL, with SHELL one of {shells}")
    if action == "install" and Path(sys.argv[0]).suffix == ".py":
        raise ConfigError("completion is for the command gradtrain: type gradtrain -sc install=" + shell)
    if action != "query":
        print((completion.INSTALL if action == "install" else completion.UNINSTALL)[shell].strip())
        return 0
    line = os.environ.get("COMP_LINE", "")
    if not line:
        raise ConfigError("-sc query is what the shell types; type gradtrain -sc install=" + shell)
    for word in completion.candidates(line, list(COMMANDS), _options):
        # bash is told to add no blank itself: it would, after a key and its equals sign too.
        print(f"{word} " if shell == "bash" and word[-1] not in "=./" else word)
    return 0
