"""`hydra/launcher=submitit_slurm`: what the command line, and no file, says of where a sweep's jobs run.

Imports neither TensorFlow nor submitit. The choices and their keys are those of Hydra's plugin hydra-submitit-launcher; it
declares them, and nothing else of it is used.
"""

import dataclasses
import importlib
from collections.abc import Sequence
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from trainer.errors import ConfigError
from trainer.validation import cause, suggestion

GROUP = "hydra/launcher"
CHOICES = ("submitit_slurm", "submitit_local")
_KEYS = "hydra.launcher."


@dataclasses.dataclass(frozen=True)
class Launcher:
    """Where a sweep's jobs run."""

    cluster: str  # slurm, or local: processes of this machine, to try it
    settings: dict[str, Any]  # key, such as partition, to value

    @property
    def choice(self) -> str:
        return f"{GROUP}=submitit_{self.cluster}"


def is_of_launcher(key: str, value: Any) -> bool:
    """Whether an override chooses a launcher of these, or sets one of its keys."""
    return (key == GROUP and value in CHOICES) or (key.startswith(_KEYS) and not key.startswith(f"{_KEYS}_"))


def read(typed: Sequence[Override], whole: DictConfig) -> Launcher | None:
    """The launcher that the command line asks for, whose keys may refer to others of the whole configuration; None if it asks for none.

    Raises:
        ConfigError: there is no such key, its value is wrong, or the package is missing.
    """
    chosen = [override for override in typed if override.key_or_group == GROUP]
    keys = [override for override in typed if override.key_or_group != GROUP]
    if not chosen:
        if keys:
            raise ConfigError(f"{keys[0].input_line}: is a key of a launcher: type {GROUP}={CHOICES[0]} as well, or leave it out")
        return None
    choice = str(chosen[-1].value())
    try:
        importlib.import_module("hydra_plugins.hydra_submitit_launcher.config")
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"{chosen[-1].input_line}: the package hydra-submitit-launcher is not installed: install it by "
            'pip install "gradtrain[slurm]", or from a checkout by pip install -e ".[slurm]"'
        ) from error
    node: Any = ConfigStore.instance().load(f"{GROUP}/{choice}.yaml").node
    node.name, node.submitit_folder = "gradtrain", ""  # beside the jobs, see trainer.submission
    for override in keys:
        _set(node, override)
    whole.hydra.launcher = node
    try:
        settings: Any = OmegaConf.to_container(whole.hydra.launcher, resolve=True)
    except OmegaConfBaseException as error:
        raise ConfigError(f"{error.full_key}: {cause(error)}; type another value") from error
    for key in ("nodes", "tasks_per_node"):
        if settings[key] != 1:
            raise ConfigError(
                f"{_KEYS}{key}={settings[key]}: a job is one process on one node; type {_KEYS}{key}=1, and gpus_per_node for several GPUs"
            )
    return Launcher(choice.removeprefix("submitit_"), {key: value for key, value in settings.items() if key != "_target_"})


def _set(node: DictConfig, override: Override) -> None:
    key = override.key_or_group.removeprefix(_KEYS)
    known = [str(name) for name in node if name != "_target_"]
    if key.partition(".")[0] not in known:
        raise ConfigError(f"{override.input_line}: there is no such key{suggestion(key, known)}")
    try:
        OmegaConf.update(node, key, override.value(), merge=True, force_add="." in key)
    except OmegaConfBaseException as error:
        raise ConfigError(f"{override.input_line}: {cause(error)}; type another value") from error
