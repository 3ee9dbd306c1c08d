"""Checks a composed configuration key by key: names, types, limits. Imports no TensorFlow."""

import dataclasses
import difflib
import math
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from trainer import schema, trust
from trainer.errors import ConfigError

# Keras' optimizer arguments that would do what the loop does, once more or wrongly: Keras clips every replica before the sum.
_DOUBLED = {
    "clipnorm": "type trainer.clip_norm, which clips the global norm after the reduction over replicas",
    "global_clipnorm": "type trainer.clip_norm, which clips after the reduction over replicas",
    "clipvalue": "type trainer.clip_norm, which clips the global norm after the reduction over replicas",
    "use_ema": "type trainer.ema_decay, such as trainer.ema_decay=0.999",
    "ema_momentum": "type trainer.ema_decay, such as trainer.ema_decay=0.999",
    "ema_overwrite_frequency": "type trainer.ema_decay; the average is evaluated and never overwrites the weights",
    "loss_scale_factor": "precision=mixed_float16 scales the loss; its precision.loss_scale is what it begins with",
    "gradient_accumulation_steps": "type trainer.accumulate, the parts into which a batch is divided",
}


@dataclasses.dataclass(frozen=True)
class CommandLine:
    """What the command line says about keys."""

    typed: Mapping[str, Any]  # dotted key -> value
    added: frozenset[str]  # those of them typed with + or ++
    trust: tuple[str, ...]  # packages of the user's own


def validate(
    composed: DictConfig,
    listed: Mapping[str, Mapping[str, Any]],
    choices: Mapping[str, str],
    command: CommandLine,
    complete: bool = True,
) -> DictConfig:
    """The configuration with every key of the schema, or the first thing wrong with it.

    Args:
        composed: what files and command line give, without the hydra node.
        listed: open group -> the keys, with their values, that its chosen file lists.
        choices: group -> chosen file.
        command: what the command line says about keys.
        complete: refuse values that are still missing (???).

    Returns:
        A structured schema.Config; interpolations are checked and left unresolved.

    Raises:
        ConfigError: it names the key, its value, what it must be, and what to type instead.
    """
    raw: Any = OmegaConf.to_container(composed, resolve=False)
    _check_names_of_keys(raw, "")
    if raw.get("trust"):
        raise ConfigError("trust is set in a configuration file; it counts on the command line alone: type trust=[my_package]")
    trust.check_names(raw, command.trust)
    _check_keys(raw, listed, choices, command)
    _choose_length(raw, command.typed)
    config = _typed(raw)
    resolved = _resolved(config)
    trust.check_names(resolved, command.trust)
    _merge(schema.Data, {name: resolved["data"][name] for name in _known(schema.Data)}, "data.")  # what references give
    _check_limits(schema.Config, resolved, "")
    _check_limits(schema.Data, resolved["data"], "data.")
    typed = {"data": _known(schema.Data)}  # the schema's keys are checked already
    for group in trust.KINDS:
        if not trust.is_own(resolved[group].get("_target_"), command.trust):
            _check_flat(resolved[group], f"{group}={choices.get(group, group)}", group)
            _check_like(resolved[group], {key: value for key, value in listed[group].items() if key not in typed.get(group, ())}, group)
    examples = dict(_leaves(dataclasses.asdict(schema.Config()) | {"data": dataclasses.asdict(schema.Data())}))
    for group in trust.KINDS:
        examples |= dict(_leaves(listed[group], group))
    for key, value in _leaves(resolved):
        _check_value(key, value, examples.get(key), complete)
    _check_learning_rate(resolved["optimizer"])
    return config


def suggestion(word: str, words: Sequence[str]) -> str:
    """`; did you mean ...?`, or what there is where nothing is close."""
    last = word.lower().rpartition(".")[2]
    # A part of a name, such as float16.
    close = [name for name in words if last.isidentifier() and last in name.lower().rpartition(".")[2].split("_")]
    for like in (word, word.lower()):
        close = close or difflib.get_close_matches(like, words, n=1, cutoff=0.6)
    return f"; did you mean {' or '.join(close)}?" if close else f"; there is {', '.join(words)}" if words else ""


def _check_keys(raw: dict[str, Any], listed: Mapping[str, Mapping[str, Any]], choices: Mapping[str, str], command: CommandLine) -> None:
    known = _known(schema.Config) | {group: dict(keys) for group, keys in listed.items()}
    known["data"] |= _known(schema.Data)
    for group in trust.KINDS:
        if not isinstance(raw.get(group), dict) or not raw[group]:
            raise ConfigError(f"{group} is empty: type {group}=CHOICE")
    for key in sorted(_DOUBLED.keys() & raw["optimizer"].keys()):
        raise ConfigError(f"optimizer.{key}={shown(raw['optimizer'][key])} is refused: {_DOUBLED[key]}")
    for key in _unknown(raw, known, ""):
        group, _, rest = key.partition(".")
        own = group in trust.KINDS and trust.is_own(raw[group].get("_target_"), command.trust)
        if own and key in command.added:
            continue
        where = "" if any(f"{name}.".startswith(f"{key}.") for name in command.typed) else ", set in a configuration file"
        hint = f"; if the class of your own takes it, type +{key}=..." if own else ""
        if group not in known:
            close = difflib.get_close_matches(key, [*known, *_flat(known)], n=1)
            raise ConfigError(f"{key}{where}: there is no such key{suggestion(key, close or sorted(known))}")
        names = [name for name in _flat(known[group], f"{group}.") if name != f"{group}._target_"]
        there = suggestion(key, names) if rest and names else "; there is none"
        owner = f"{group}={choices[group]}" if group in choices else group
        raise ConfigError(f"{key}{where}: {owner} has no such key{there}{hint}")


def _unknown(node: Mapping[str, Any], known: Mapping[str, Any], path: str) -> Iterator[str]:
    for key, value in node.items():
        if key not in known:
            yield f"{path}{key}"
        elif isinstance(known[key], dict) and known[key]:
            if not isinstance(value, dict):
                where = f"{path}{key}"
                raise ConfigError(
                    f"{where}={shown(value)}: {where} is a section: type {where}.KEY=VALUE with KEY one of {', '.join(known[key])}"
                )
            yield from _unknown(value, known[key], f"{path}{key}.")


def _known(section: type) -> dict[str, Any]:
    """Every key of a dataclass: nested sections as dicts, the others as None."""
    fields = dataclasses.fields(section)
    return {
        field.name: _known(field.type) if isinstance(field.type, type) and dataclasses.is_dataclass(field.type) else None
        for field in fields
    }


def _flat(known: Mapping[str, Any], path: str = "") -> Iterator[str]:
    for key, value in known.items():
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{path}{key}.")
        else:
            yield f"{path}{key}"


def _choose_length(raw: dict[str, Any], typed: Mapping[str, Any]) -> None:
    """Of trainer.steps and trainer.epochs, what is typed replaces the other."""
    names = {"steps": "epochs", "epochs": "steps"}
    given = [name for name in names if typed.get(f"trainer.{name}") is not None]
    if len(given) == 2:
        raise ConfigError(f"trainer.steps={typed['trainer.steps']} and trainer.epochs={typed['trainer.epochs']}: type one of the two")
    section = raw.setdefault("trainer", {})
    if not isinstance(section, dict):
        return
    if given:
        section[names[given[0]]] = None
    elif section.get("steps") is None and section.get("epochs", 0) is None:
        raise ConfigError("trainer.steps and trainer.epochs are both null; type one of the two, such as trainer.epochs=30")
    elif section.get("steps") is not None and section.get("epochs", 0) is not None:
        raise ConfigError(
            "trainer.steps and trainer.epochs are both set in configuration files; set one of the two to null there, or type one"
        )


def _typed(raw: dict[str, Any]) -> DictConfig:
    """Merges into the schema, which converts what is typed as text; wrong types are refused."""
    shared = {field.name for field in dataclasses.fields(schema.Data)}
    data = _merge(schema.Data, {key: value for key, value in raw["data"].items() if key in shared}, "data.")
    own = {key: value for key, value in raw["data"].items() if key not in shared}
    converted: Any = OmegaConf.to_container(data, resolve=False)
    return _merge(schema.Config, raw | {"data": converted | own}, "")


def _merge(section: type, values: dict[str, Any], path: str) -> DictConfig:
    try:
        merged = OmegaConf.merge(OmegaConf.structured(section), OmegaConf.create(values))
    except OmegaConfBaseException as error:
        if not error.full_key:
            raise ConfigError(f"{path or 'the configuration'}: {str(error.msg or error).splitlines()[0]}") from error
        value: Any = values
        field_type: Any = section
        for part in error.full_key.partition("[")[0].split("."):  # of a list's item, the list
            value = value[part] if isinstance(value, dict) else value
            field = next(field for field in dataclasses.fields(field_type) if field.name == part)
            field_type = field.type
        raise _refused(f"{path}{error.full_key.partition('[')[0]}", value, field) from error
    assert isinstance(merged, DictConfig)
    return merged


def _resolved(config: DictConfig) -> dict[str, Any]:
    try:
        resolved: Any = OmegaConf.to_container(config, resolve=True)
    except OmegaConfBaseException as error:
        raise ConfigError(f"{error.full_key}: {cause(error)}; set it, or type another value") from error
    return resolved


def cause(error: OmegaConfBaseException) -> str:
    """What OmegaConf says, without what it says about itself."""
    line = next(iter(str(error.msg or error).splitlines()), type(error).__name__)
    return line.partition("raised while resolving interpolation: ")[2].strip('"') or line


def _check_limits(section: type, values: Mapping[str, Any], path: str) -> None:
    for field in dataclasses.fields(section):
        value, limits = values[field.name], field.metadata
        if isinstance(field.type, type) and dataclasses.is_dataclass(field.type):
            _check_limits(field.type, value, f"{path}{field.name}.")
        if value is None or value == "???" or not limits:
            continue
        if "choices" in limits:
            within = value in limits["choices"]
        else:  # a reference may give text
            within = isinstance(value, int | float) and value >= limits.get("minimum", -math.inf)
            within = within and limits.get("above", -math.inf) < value < limits.get("below", math.inf)
        if not within:
            raise _refused(f"{path}{field.name}", value, field)


def _refused(key: str, value: Any, field: dataclasses.Field) -> ConfigError:
    options = typing.get_args(field.type) if isinstance(field.type, types.UnionType) else (field.type,)
    limits = field.metadata
    words = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
    wanted = words.get(options[0], "a list")
    bounds = [f"{sign} {limits[name]}" for name, sign in (("minimum", ">="), ("above", ">"), ("below", "<")) if name in limits]
    if bounds:
        wanted += " " + " and ".join(bounds)
    if "choices" in limits:
        wanted = f"one of {', '.join(map(shown, limits['choices']))}"
    if type(None) in options:
        wanted += ", or null"
    close = difflib.get_close_matches(str(value), [shown(choice) for choice in limits.get("choices", ())], n=1)
    if close:
        return ConfigError(f"{key}={shown(value)}: must be {wanted}; did you mean {key}={close[0]}?")
    example = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
    if example is None and limits.keys() & {"minimum", "above"}:  # any value within the limits
        example = limits["minimum"] if "minimum" in limits else (limits["above"] + limits.get("below", 2.0)) / 2
    return ConfigError(f"{key}={shown(value)}: must be {wanted}; type for example {key}={shown(example)}")


def _check_names_of_keys(node: Any, path: str) -> None:
    for key, value in node.items() if isinstance(node, dict) else ():
        if not isinstance(key, str):
            raise ConfigError(f"{path}{key}, set in a configuration file: keys are text; write it in quotes: '{key}'")
        _check_names_of_keys(value, f"{path}{key}.")


def _check_flat(values: Mapping[str, Any], owner: str, path: str) -> None:
    """Refuses sections among the arguments of what is shipped: it takes none, and Keras would build what they name."""
    for key, value in _leaves(values, sections=True):
        if isinstance(value, dict):
            raise ConfigError(
                f"{path}.{key}={shown(value)} is refused: {owner} takes numbers, text and lists; type a value that is no section"
            )


def _check_like(values: Mapping[str, Any], listed: Mapping[str, Any], path: str) -> None:
    """Compares the keys of an open group with the values that its file lists: a number stays a number, a list a list."""
    for key, default in listed.items():
        value, where = values.get(key), f"{path}.{key}"
        if default is None or (isinstance(default, str) and (default == "???" or "${" in default)):
            continue
        if _family(value) != _family(default):
            raise ConfigError(f"{where}={shown(value)}: must be {_family(default)}, such as {where}={shown(default)}")
        if isinstance(default, list) and default and isinstance(value, list):
            wrong = [item for item in value if _family(item) != _family(default[0])]
            if wrong:
                raise ConfigError(f"{where}={shown(value)}: every item must be {_family(default[0])}, such as {where}={shown(default)}")


def _family(value: Any) -> str:
    if isinstance(value, bool):
        return "true or false"
    names = {int: "a number", float: "a number", str: "text", list: "a list", dict: "a section", type(None): "null"}
    return names.get(type(value), type(value).__name__)


def _check_value(key: str, value: Any, example: Any, complete: bool) -> None:
    instead = f"; type for example {key}={shown(example)}" if example not in (None, "???", value) else f"; type another value, {key}=..."
    if value == "???" and complete:
        raise ConfigError(f"{key} is required and has no default: type {key}=...")
    if isinstance(value, float) and not math.isfinite(value):
        raise ConfigError(f"{key}={value}: must be a finite number{instead}")
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        raise ConfigError(f"{key}={value}: must be a whole number of at most 64 bits{instead}")
    if isinstance(value, str) and "\0" in value:
        raise ConfigError(f"{key}={value!r}: holds the character NUL; type it without")


def _leaves(node: Any, path: str = "", sections: bool = False) -> Iterator[tuple[str, Any]]:
    items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else None
    if items is None or (sections and path and isinstance(node, dict)):
        yield path, node
        return
    for key, value in items:
        yield from _leaves(value, f"{path}.{key}" if path else str(key), sections)


def _check_learning_rate(optimizer: Mapping[str, Any]) -> None:
    value = optimizer.get("learning_rate")
    if "learning_rate" in optimizer and (isinstance(value, bool) or not isinstance(value, int | float) or not value > 0):
        raise ConfigError(f"optimizer.learning_rate={shown(value)}: must be a number > 0; type for example optimizer.learning_rate=0.001")


def shown(value: Any) -> str:
    """A value as it would be typed."""
    if isinstance(value, dict):
        return "{" + ",".join(f"{key}:{shown(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ",".join(map(shown, value)) + "]"
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
