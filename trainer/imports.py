"""TensorFlow and Keras are imported in half the time: without the garbage collector, and without what no job uses."""

import contextlib
import gc
import importlib.util
import sys
from collections.abc import Iterator, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType

# Parts of Keras that bring along scikit-learn and Matplotlib wherever these are installed.
_DEFERRED = ("keras.wrappers", "keras.visualization", "keras.src.visualization")


@contextlib.contextmanager
def lean() -> Iterator[None]:
    """For the first import of TensorFlow and Keras.

    The collector would go through millions of objects again and again that stay for good; afterwards it leaves these out, which
    saves the time at the process's end too. Deferred parts are there under their names, and imported when they are first used.
    """
    if "tensorflow" in sys.modules:
        yield
        return
    enabled, finder = gc.isenabled(), _Deferring()
    gc.disable()
    sys.meta_path.insert(0, finder)
    try:
        yield
        gc.freeze()
    finally:
        sys.meta_path.remove(finder)
        if enabled:
            gc.enable()


class _Deferring(MetaPathFinder):
    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name not in _DEFERRED:
            return None
        spec = PathFinder.find_spec(name, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader = importlib.util.LazyLoader(spec.loader)
        return spec
