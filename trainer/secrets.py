"""Secrets: which keys and environment variables hold them, and how they stay out of files and names. Imports no TensorFlow."""

import contextlib
import re
from collections.abc import Callable, Iterator
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from omegaconf.resolvers import oc

_SECRET = re.compile(r"password|passwd|secret|token|api_?key|credential", re.IGNORECASE)
_SECRET_NUMBER = re.compile(r"password|passwd|secret", re.IGNORECASE)  # num_tokens=128 says how many, not which
_SHORTEST = 4  # characters; what is shorter stands in any text by chance


def is_secret(name: str) -> bool:
    """Whether a key or an environment variable of this name holds what no file and no directory's name may show."""
    return _SECRET.search(name) is not None


def is_hidden(key: str, value: Any) -> bool:
    """Whether the value of a key is a secret itself."""
    words = _SECRET_NUMBER if isinstance(value, int | float) else _SECRET
    return value is not None and words.search(key) is not None


def inner(key: str, name: str) -> str:
    """What counts as the key of `name` within `key`: all that is within a secret is secret."""
    return key if is_secret(key) else name


@contextlib.contextmanager
def environment(read: Callable[..., Any]) -> Iterator[None]:
    """Within it, ${oc.env:NAME}, however it is spelt, is what `read(name)` or `read(name, default)` gives."""
    OmegaConf.register_new_resolver("oc.env", read, replace=True)
    try:
        yield
    finally:
        OmegaConf.register_new_resolver("oc.env", oc.env, replace=True)


def reference(name: str, *_: Any) -> str:
    """What stands for an environment variable in a file; a default that was typed beside it may be a secret too."""
    return f"${{oc.env:{name}}}"


def values(config: DictConfig, *keys: str) -> set[str]:
    """The secrets in a configuration: those of secret keys, and those that it, or the values of `keys`, read from the environment."""
    found: set[Any] = set()

    def read(name: str, *default: Any) -> Any:
        value = oc.env(name, *default)
        if is_secret(name):
            found.add(value)
        return value

    def walk(node: Any, key: str) -> None:
        if isinstance(node, dict | list):
            for name, item in node.items() if isinstance(node, dict) else ((key, item) for item in node):
                walk(item, inner(key, str(name)))
        elif is_hidden(key, node):
            found.add(node)

    with environment(read):
        for part in [*(key for key in config if key != "hydra"), *keys]:
            with contextlib.suppress(OmegaConfBaseException):  # said by whoever needs the value
                node = OmegaConf.select(config, str(part))
                walk(OmegaConf.to_container(node, resolve=True) if OmegaConf.is_config(node) else node, str(part))
    return {str(value) for value in found if len(str(value)) >= _SHORTEST}


def hide(content: Any, secrets: set[str]) -> Any:
    """Text, or nested dicts and lists, without the secrets in it."""
    if isinstance(content, dict):
        return {name: hide(item, secrets) for name, item in content.items()}
    if isinstance(content, list):
        return [hide(item, secrets) for item in content]
    if isinstance(content, str):
        for secret in sorted(secrets, key=len, reverse=True):
            content = content.replace(secret, "***")
    return content


def masked(override: str) -> str:
    """An override as it may be written down: without its value where that is, or has within it, a secret key's."""
    key, _, value = override.partition("=")
    names = re.findall(r"([\w.-]+)['\"]?\s*:", re.sub(r"\$\{[^{}]*\}", "", value))
    return f"{key}=***" if any(map(is_secret, [key, *names])) else override
