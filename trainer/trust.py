"""What a configuration may build: `_target_` is checked by name before anything is imported, and by kind once it is.

Shipped files name what this program and Keras offer. A package of the user's own is named on the command line alone, as in
`trust=[my_package]`: no file, and no checkpoint's stored configuration, can extend the list. Imports no TensorFlow until `find`.
"""

import importlib
import importlib.util
import inspect
import re
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from trainer.errors import ConfigError

# Kind, which is the group's name -> the names that need no trust; each is `module.attribute`, with nothing in between.
_SHIPPED = {
    "model": re.compile(r"trainer\.(models|sequences)\.[a-z]\w*|keras\.applications\.[A-Z]\w*", re.ASCII),
    "data": re.compile(r"trainer\.data\.[a-z]\w*\.[A-Z]\w*", re.ASCII),
    "loss": re.compile(r"losses\.[a-z]\w*\.[A-Z]\w*", re.ASCII),
    "optimizer": re.compile(r"keras\.optimizers\.[A-Z]\w*", re.ASCII),
    "schedule": re.compile(r"trainer\.schedules\.[a-z]\w*", re.ASCII),
}
KINDS = tuple(_SHIPPED)

# Where an object found under a shipped name may have been defined.
_DEFINED_IN = {
    "model": ("trainer.models", "trainer.sequences", "keras.src.applications"),
    "data": ("trainer.data",),
    "loss": ("losses",),
    "optimizer": ("keras.src.optimizers",),
    "schedule": ("trainer.schedules",),
}
_WANTED = {
    "model": "a keras.Model subclass, or a function that builds a model",
    "data": "a trainer.data.base.Source subclass",
    "loss": "a losses.base.Loss subclass, or in a package of your own a function (y_true, y_pred)",
    "optimizer": "a keras.optimizers.Optimizer subclass",
    "schedule": "a function that builds a schedule",
}
_DOTTED = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)+")
# Keys that Hydra's own instantiation would act on; ours doesn't, and a file that has them expects what won't happen.
_HYDRA_KEYS = ("_args_", "_partial_", "_recursive_", "_convert_")


def check_packages() -> None:
    """Refuses to run where a `losses` of the current folder hides ours: `python -m` looks there first."""
    expected = Path(__file__).parent.parent / "losses"
    spec = importlib.util.find_spec("losses")
    if spec is None or spec.origin is None or Path(spec.origin).resolve().parent != expected.resolve():
        found = "nothing" if spec is None else spec.origin or "a folder without __init__.py"
        raise ConfigError(
            f"the package losses of this program is hidden: Python finds {found}; rename that, or type gradtrain instead of python -m"
        )


def check_trusted(packages: Sequence[str]) -> None:
    """Refuses names in `trust` that can't be packages of the user's own."""
    for package in packages:
        if not isinstance(package, str) or not all(part.isidentifier() for part in package.split(".")):
            raise ConfigError(f"trust={package}: names packages of your own; type trust=[my_package]")
        if not _can_be_own(package):
            raise ConfigError(f"trust=[{package}]: only a package of your own can be trusted; type trust=[my_package]")


def check_names(config: Any, trust: Sequence[str]) -> None:
    """Checks every `_target_` of a configuration (nested dicts and lists) by name, importing nothing.

    Raises:
        ConfigError: a `_target_` stands anywhere but at the top of an open group, or names what is not on the list.
    """
    for path, target in _targets(config, ""):
        kind = path.removesuffix("._target_")
        if kind not in KINDS or not path.endswith("._target_"):
            tops = ", ".join(f"{kind}._target_" for kind in KINDS)
            raise ConfigError(f"{path} is refused: what is built is named by {tops}, and nowhere else")
        _check_name(target, kind, trust)


def is_own(target: Any, trust: Sequence[str]) -> bool:
    """Whether `target` names something in a package of the user's own."""
    return isinstance(target, str) and _is_within(target.rpartition(".")[0], trust)


def find(target: str, kind: str, trust: Sequence[str]) -> Any:
    """The class or function that `target` names, imported only once its name has passed.

    Raises:
        ConfigError: the name is not on the list, can't be imported, or is not of the kind.
    """
    _check_name(target, kind, trust)
    module_name, _, attribute = target.rpartition(".")
    own = is_own(target, trust)
    module = _import_own(module_name, f"{kind}._target_", target) if own else importlib.import_module(module_name)
    if not hasattr(module, attribute):
        raise ConfigError(f"{kind}._target_={target}: {module_name} ({module.__file__}) has no {attribute}")
    found = getattr(module, attribute)
    defined_in = getattr(found, "__module__", None) or ""
    if not _is_within(defined_in, (*_DEFINED_IN[kind], *trust)):
        raise ConfigError(f"{kind}._target_={target} is refused: it comes from {defined_in or 'elsewhere'}, not from {module_name} itself")
    if not _is_of_kind(found, kind, own):
        raise ConfigError(f"{kind}._target_={target} is refused: a {kind} must be {_WANTED[kind]}; found {_describe(found)}")
    return found


def find_function(name: str, key: str, trust: Sequence[str]) -> Callable[..., Any]:
    """The function of a package of the user's own that the value of `key` names, imported only once its name has passed.

    Raises:
        ConfigError: the name is not within `trust`, can't be imported, or is no function that was defined there.
    """
    if not _DOTTED.fullmatch(name) or not is_own(name, trust):
        package = name.split(".")[0]
        hint = f"; if the package {package} is your own, type trust=[{package}]" if _can_be_own(package) else ""
        raise ConfigError(f"{key}={name} is refused: it is not in a package of your own{hint}")
    module_name, _, attribute = name.rpartition(".")
    found = getattr(_import_own(module_name, key, name), attribute, None)
    if not inspect.isroutine(found) or not _is_within(getattr(found, "__module__", None) or "", trust):
        raise ConfigError(f"{key}={name} is refused: {module_name} defines no function {attribute}; found {_describe(found)}")
    return found


def _targets(node: Any, path: str) -> Iterator[tuple[str, Any]]:
    items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, value in items:
        where = f"{path}.{key}" if path else str(key)
        if key == "_target_" or key in _HYDRA_KEYS:
            yield where, value
        yield from _targets(value, where)


def _check_name(target: Any, kind: str, trust: Sequence[str]) -> None:
    key = f"{kind}._target_"
    if not isinstance(target, str) or not _DOTTED.fullmatch(target):
        raise ConfigError(f"{key}={target}: must be written out as module.attribute, such as my_package.module.Name")
    if not _SHIPPED[kind].fullmatch(target) and not is_own(target, trust):
        package = target.split(".")[0]
        own = f"; if the package {package} is your own, type trust=[{package}]"
        hint = own if _can_be_own(package) else f"; type {kind}=NAME, of those that gradtrain --help lists"
        raise ConfigError(f"{key}={target} is refused: it is not on the list of what a {kind} may be{hint}")


def _can_be_own(package: str) -> bool:
    root = package.split(".")[0]
    return root not in sys.stdlib_module_names and root not in ("losses", "trainer", "keras", "tensorflow", "numpy", "hydra", "omegaconf")


def _is_within(module: str, packages: Sequence[str]) -> bool:
    return any(f"{module}.".startswith(f"{package}.") for package in packages)


def _import_own(module_name: str, key: str, target: str) -> Any:
    root = module_name.split(".")[0]
    if importlib.util.find_spec(root) is None:
        sys.path.append(str(Path.cwd()))  # last, so that nothing there can hide an installed package
        importlib.invalidate_caches()
    if importlib.util.find_spec(root) is None:
        raise ConfigError(f"trust=[{root}]: there is no such package on the Python path or in the current folder, {Path.cwd()}")
    try:
        return importlib.import_module(module_name)
    except Exception as error:  # the user's code runs here, and may raise anything
        frame = traceback.extract_tb(error.__traceback__)[-1]
        where = f" ({frame.filename}, line {frame.lineno})" if not frame.filename.startswith("<") else ""
        raise ConfigError(f"{key}={target}: importing {module_name} raised {type(error).__name__}: {error}{where}") from error


def _is_of_kind(found: Any, kind: str, own: bool) -> bool:
    if inspect.isfunction(found):
        return kind in ("model", "schedule") or (kind == "loss" and own)
    if not inspect.isclass(found) or kind == "schedule":
        return False
    if kind == "loss":
        from losses.base import Loss

        return issubclass(found, Loss)
    if kind == "data":
        from trainer.data.base import Source

        return issubclass(found, Source)
    import keras

    return issubclass(found, keras.Model if kind == "model" else keras.optimizers.Optimizer)


def _describe(found: Any) -> str:
    if inspect.isclass(found):
        return f"the class {found.__name__}"
    return "a function" if inspect.isfunction(found) else f"an object of type {type(found).__name__}"
