"""What a run's data are, apart from the examples: by data.json a model is built, and given other data, without them."""

import dataclasses
import math
from typing import Any

import numpy as np

from trainer.data.kinds import KINDS
from trainer.data.prepare import Prepared, Scale, Split
from trainer.errors import CheckpointError

_MOST_NUMBERS = 2**33  # of an example
_DTYPES = ("float32", "int32")


def described(data: Prepared, fingerprint: str) -> dict[str, Any]:
    """As plain JSON: shapes, names, and what features and targets were standardized by."""
    first = data.first
    targets = first.targets if isinstance(first.targets, dict) else {} if first.targets is None else {"": first.targets}
    return {
        "num_examples": len(data.train),  # of the training part
        "checksum": fingerprint,
        "features": _array(first.features) | {"names": list(data.feature_names)} | _scale(data.of_features),
        "targets": {
            "task": data.task,
            "want": data.want,
            "arrays": {name: _array(array) for name, array in targets.items()},
            "scale": np.asarray(data.target_scale).tolist(),
        }
        | _scale(data.of_targets),
        "num_classes": data.num_classes,
        "class_names": list(data.class_names),
        "class_weights": None if data.balance is None else data.balance.tolist(),
        "num_tokens": data.num_tokens,
    }


def stand_in(content: dict[str, Any], where: str) -> Prepared:
    """Data of zeros in the place of those that were described: shapes, names, means and spreads are theirs.

    Args:
        content: what `described` gave, as a run's directory holds it.
        where: it was read, for messages.

    Raises:
        CheckpointError: it is damaged.
    """
    try:
        features, targets = content["features"], content["targets"]
        arrays = {str(name): _zeros(array) for name, array in targets["arrays"].items()}
        part = _Zeros(
            Split(_zeros(features), arrays.get("") if "" in arrays else arrays or None, None),
            _number(content["num_examples"]),
        )
        if not {targets["task"], targets["want"]} <= KINDS.keys():
            raise ValueError(f"targets of kind {targets['task']}")
        return Prepared(
            train=part,
            evaluation=part,
            task=targets["task"],
            target_scale=np.array(targets["scale"], np.float64),
            num_classes=None if content["num_classes"] is None else _number(content["num_classes"]),
            num_tokens=None if content["num_tokens"] is None else _number(content["num_tokens"]),
            want=targets["want"],
            resident=False,
            checksum=str(content["checksum"]),
            of_features=_read_scale(features),
            of_targets=_read_scale(targets),
            balance=None if content["class_weights"] is None else np.array(content["class_weights"], np.float64),
            feature_names=[str(name) for name in features["names"]],
            class_names=[str(name) for name in content["class_names"]],
        )
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise CheckpointError(f"{where} is damaged ({type(error).__name__}: {error}): bring it back, or train the run anew") from error


@dataclasses.dataclass(frozen=True)
class _Zeros:
    """A part of data whose examples are all like one."""

    first: Split
    num: int

    num_readers = 1

    def __len__(self) -> int:
        return self.num

    def rows(self, rows: Any) -> Split:
        num = len(range(self.num)[rows]) if isinstance(rows, slice) else len(rows)
        return self.first.rows(np.zeros(num, int))


def _array(array: np.ndarray) -> dict[str, Any]:
    """Of one example."""
    return {"shape": list(array.shape[1:]), "dtype": array.dtype.name}


def _zeros(content: dict[str, Any]) -> np.ndarray:
    shape = [_number(size) for size in content["shape"]]
    if content["dtype"] not in _DTYPES or math.prod(shape) > _MOST_NUMBERS:
        raise ValueError(f"an array of {content['dtype']} of shape {shape}")
    return np.zeros([1, *shape], content["dtype"])


def _number(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 < value < 2**40:
        raise ValueError(f"{value} in the place of a whole number > 0")
    return value


def _scale(scale: Scale | None) -> dict[str, Any]:
    return {
        "mean": None if scale is None else np.asarray(scale.mean).tolist(),
        "spread": None if scale is None else np.asarray(scale.spread).tolist(),
    }


def _read_scale(content: dict[str, Any]) -> Scale | None:
    if content["mean"] is None:
        return None
    mean, spread = (np.array(content[key], np.float64) for key in ("mean", "spread"))
    if mean.shape != spread.shape or mean.ndim > 1 or not (np.isfinite(mean).all() and np.isfinite(spread).all() and (spread > 0).all()):
        raise ValueError("means and spreads that are none")
    return Scale(mean, spread)
