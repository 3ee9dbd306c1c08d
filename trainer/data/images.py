"""Images of one's own, in files that are decoded when they are needed."""

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import tensorflow as tf

from trainer.data.base import StreamedSource
from trainer.data.table import unreadable
from trainer.errors import ConfigError, DataError

_SUFFIXES = (".png", ".jpg", ".jpeg")
_OTHER_SUFFIXES = (".bmp", ".gif", ".webp", ".tif", ".tiff", ".heic", ".avif")


@dataclasses.dataclass(frozen=True)
class ImageFolder(StreamedSource):
    """PNG and JPEG files in a folder for each class: features [height, width, channels] from 0 to 255; target: the folder.

    Classes are numbered from 0 in their names' sorted order. Files of other kinds, and names that begin with a dot, are left out.

    Args:
        path: of the folder of folders; relative paths count from the current folder.
        height: pixels, to which every image is resized (bilinear, smoothed where it shrinks); None, with width: all have one size.
        width: the same.
        channels: 3: colour, 1: grey.
    """

    path: str
    height: int | None = None
    width: int | None = None
    channels: int = 3

    parallel = True

    def __post_init__(self) -> None:
        for key in ("height", "width"):
            size = getattr(self, key)
            if size is not None and (not isinstance(size, int) or not 1 <= size <= 2**14):
                raise ConfigError(f"data.{key}={size} must be a whole number from 1 to {2**14}, or null")
        if (self.height is None) != (self.width is None):
            raise ConfigError("data.height and data.width go together: type both, or null for both")
        if self.channels not in (1, 3):
            raise ConfigError(f"data.channels={self.channels} must be 3 (colour) or 1 (grey)")

    @property
    def kind(self) -> str:  # no class attribute: the data that a loss is offered are those that need no files
        return "classes"

    @property
    def num_examples(self) -> int:
        return len(self._files[0])

    @property
    def num_classes(self) -> int:  # type: ignore[override]  # depends on the folder
        return len(self._files[2])

    @property
    def class_names(self) -> Sequence[str]:  # type: ignore[override]  # depends on the folder
        return self._files[2]

    def read(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, None]:
        images = [self._image(self._files[0][row]) for row in rows]
        return np.stack(images), *self.read_targets(rows)

    def read_targets(self, rows: np.ndarray) -> tuple[np.ndarray, None]:
        return self._files[1][rows], None

    def unlabelled(self) -> "ImageFolder":
        return _Images(self.path, self.height, self.width, self.channels)

    def _image(self, file: Path) -> np.ndarray:
        """float32 or uint8 [height, width, channels]."""
        image = self._decoded(file)
        if self.height is not None:
            # On the CPU: only whole chunks go to another device.
            with tf.device("CPU:0"):
                return tf.image.resize(image, [self.height, self.width], antialias=True).numpy()
        if image.shape != self._size:
            raise DataError(
                f"{file} has {image.shape[0]} x {image.shape[1]} pixels, but {self._files[0][0]} has {self._size[0]} x {self._size[1]}: "
                "type data.height= and data.width= to resize all"
            )
        return image

    def _decoded(self, file: Path) -> np.ndarray:
        try:
            content = file.read_bytes()
        except OSError as error:
            raise unreadable(file, error) from error
        try:
            with tf.device("CPU:0"):
                return tf.io.decode_image(content, channels=self.channels, expand_animations=False).numpy()
        except (tf.errors.InvalidArgumentError, tf.errors.UnimplementedError) as error:
            raise DataError(f"{file} can't be decoded as PNG or JPEG: it is damaged or of another kind; mend or remove it") from error

    @functools.cached_property
    def _size(self) -> tuple[int, ...]:
        return self._decoded(self._files[0][0]).shape

    @functools.cached_property
    def _files(self) -> tuple[list[Path], np.ndarray, list[str]]:
        """The files, int32 class of each, and the classes' names."""
        folder = Path(self.path).expanduser()
        try:
            inside = sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))
            folders = [entry for entry in inside if entry.is_dir()]
            if not folders and any(entry.suffix.lower() in _SUFFIXES for entry in inside):
                raise DataError(f"{folder} holds images, and no folders: put them into a folder for each class")
            if len(folders) < 2:
                raise DataError(f"{folder} holds {len(folders)} folders of images; there must be one for each class, two at least")
            files = [self._images(entry) for entry in folders]
        except OSError as error:
            raise unreadable(folder, error) from error
        classes = np.repeat(np.arange(len(files)), [len(some) for some in files])
        return [file for some in files for file in some], classes.astype(np.int32), [entry.name for entry in folders]

    def _images(self, folder: Path) -> list[Path]:
        """The images in the folder of a class."""
        inside = sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))
        other = next((entry for entry in inside if entry.suffix.lower() in _OTHER_SUFFIXES), None)
        if other is not None:
            raise DataError(f"{other} is neither PNG nor JPEG: convert it, or take it away")
        files = [entry for entry in inside if entry.suffix.lower() in _SUFFIXES]
        if not files:
            raise DataError(f"{folder} holds no images: PNG or JPEG files, named {', '.join('*' + suffix for suffix in _SUFFIXES)}")
        return files


@dataclasses.dataclass(frozen=True)
class _Images(ImageFolder):
    """Images whatever their classes: of the folders in a folder, or where there are none, of the folder itself."""

    @functools.cached_property
    def _files(self) -> tuple[list[Path], np.ndarray, list[str]]:
        folder = Path(self.path).expanduser()
        try:
            inside = sorted(entry for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))
            files = [file for entry in inside or [folder] for file in self._images(entry)]
        except OSError as error:
            raise unreadable(folder, error) from error
        return files, np.zeros(len(files), np.int32), [""]
