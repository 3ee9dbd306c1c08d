"""Configuration files, read only from within their folder and only where they stay small. Imports no TensorFlow."""

import contextlib
from pathlib import Path, PurePath

import yaml
from hydra._internal.core_plugins.file_config_source import FileConfigSource
from hydra.plugins.config_source import ConfigResult
from omegaconf import OmegaConf

from trainer.errors import ConfigError

_MAX_BYTES = 1_000_000  # of a file; parsing YAML takes seconds a megabyte
_MAX_VALUES = 50_000  # of a file, with its aliases written out: a kilobyte of them can stand for more than a memory holds


class YamlFiles(FileConfigSource):
    """Hydra's source of files, for files that others may have written."""

    def load_config(self, config_path: str) -> ConfigResult:
        path = PurePath(config_path)
        if path.is_absolute() or ".." in path.parts:
            raise ConfigError(f"{config_path} is refused: a configuration file is read from within {self.path} only; put it there")
        file = Path(self.path) / self._normalize_file_name(config_path)
        if file.is_file():
            _check(file)
        result = super().load_config(config_path)
        if OmegaConf.is_dict(result.config) and OmegaConf.select(result.config, "hydra.searchpath") is not None:
            raise ConfigError(f"{file}: hydra.searchpath is refused; a folder of your own is named by --config-dir FOLDER")
        return result


def _check(path: Path) -> None:
    size = path.stat().st_size
    if size > _MAX_BYTES:
        raise ConfigError(f"{path} has {size} bytes: a configuration file may have {_MAX_BYTES}; keep data in a file of its own")
    text = path.read_bytes()
    if b"*" in text and num_values(text) > _MAX_VALUES:
        raise ConfigError(f"{path}: its aliases stand for more than {_MAX_VALUES} values: write fewer, and no aliases")


def num_values(text: bytes) -> int:
    """How many values a YAML text has when its aliases are written out; more than _MAX_VALUES are not counted on."""
    sizes: dict[str, int] = {}  # anchor -> values
    nodes: list[tuple[str | None, int]] = [(None, 0)]  # those that are open: anchor, values so far
    with contextlib.suppress(yaml.YAMLError):  # said when it is read
        for event in yaml.parse(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader)):
            if isinstance(event, yaml.CollectionStartEvent):
                nodes.append((event.anchor, 1))
                continue
            if isinstance(event, yaml.AliasEvent):
                size = sizes.get(event.anchor, 1)
            elif isinstance(event, yaml.CollectionEndEvent | yaml.ScalarEvent):
                anchor, size = nodes.pop() if isinstance(event, yaml.CollectionEndEvent) else (event.anchor, 1)
                if anchor:
                    sizes[anchor] = size
            else:
                continue
            outer, before = nodes[-1]
            nodes[-1] = (outer, before + size)
            if before + size > _MAX_VALUES:
                break
    return nodes[-1][1]
