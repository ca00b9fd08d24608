"""Pictures without PyTorch: which files are some, upright and in RGB, and the size that a detector looks at them."""

import inspect
import math
import os
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from glob import escape, glob, has_magic
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile

from ghmdet.errors import DataError, GhmdetError

ORIENTATION = 0x0112  # EXIF tag
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What sets a picture upright, by its EXIF orientation; those from 5 on turn it by 90 degrees."""


def _endings() -> frozenset[str]:
    """The endings that the installed Pillow decodes, in lower case with their dot."""
    Image.init()
    readers = {name: opened[0] for name, opened in Image.OPEN.items() if name != "MPEG"}  # its head alone
    stubs = {
        name
        for name, reader in readers.items()
        if inspect.isclass(reader) and issubclass(reader, ImageFile.StubImageFile)
    }
    known = Image.registered_extensions().items()
    return frozenset(ending for ending, name in known if name in readers and name not in stubs)


EXTENSIONS = _endings()
CHECK = "list every such image with 'ghmdet data check'"
MEND = f"remove its record; {CHECK}"


def beginning(path: str) -> str:
    """The longest beginning of a path that is there; empty where there is none."""
    while path and not os.path.lexists(path):
        path = os.path.dirname(path)  # noqa: PTH120 - not "." where nothing is left
    return path


def fitting(pattern: str) -> list[str]:
    """The paths that fit a pattern (`*`, `?`, `[...]`, `**`), in order; what is there of it stands for itself."""
    there = beginning(pattern)
    return sorted(glob(escape(there) + pattern[len(there) :], recursive=True))  # noqa: PTH207 - of any root


@contextmanager
def errors_name_the_file(path: Path, mend: str = MEND) -> Iterator[None]:
    """In the block, whatever a damaged picture file makes a decoder raise is a DataError with its name and `mend`."""
    try:
        # Reading a pipe or a device may never end.
        if path.exists() and not path.is_file() and not path.is_dir():
            raise DataError(f"{path}: unreadable image (no file): {mend}")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a slightly corrupt EXIF block is no reason to talk
            yield
    except DataError:
        raise
    except IsADirectoryError:
        raise DataError(
            f"{path}: is a folder, not a picture (its pictures are sorted(Path({str(path)!r}).glob('*.jpg')); the"
            f" command `ghmdet predict` takes folders): {mend}"
        ) from None
    except FileNotFoundError:
        if has_magic(str(path)):
            raise DataError(
                f"{path}: is a pattern, not a picture: give the pictures, sorted(glob.glob({str(path)!r})), or the"
                " pattern to the command `ghmdet predict`"
            ) from None
        raise DataError(f"{path}: missing image: put it there or {mend}") from None
    except Image.DecompressionBombError as error:
        found, most = re.findall(r"\d+", str(error))
        raise DataError(
            f"{path}: unreadable image ({found} pixels, more than {most}): cut it into tiles or {mend}"
        ) from None
    except Exception as error:  # damaged files raise whatever the decoder happened to trip over
        told = str(error).replace(repr(str(path)), "").replace(str(path), "")  # named already
        reason = " ".join(told.split()).rstrip(" :") or type(error).__name__
        raise DataError(f"{path}: unreadable image ({reason}): replace the file or {mend}") from error


def orientation(image: Image.Image) -> int:
    """The picture's EXIF orientation; 1, upright, where it has none that exists or a block that cannot be read."""
    try:
        value = image.getexif().get(ORIENTATION)
    except Exception:  # whatever the parser tripped over: the pixels are sound all the same
        return 1
    return value if isinstance(value, int) and value in TURNS else 1


def reason(error: DataError, path: Path) -> str:
    """The text of an error about a picture, for where the picture is named anyway."""
    return str(error).removeprefix(f"{path}: ").removesuffix(f"; {CHECK}")


def turned(image: Image.Image) -> bool:
    """Whether its EXIF orientation swaps height and width."""
    return orientation(image) >= 5


def image_size(path: Path) -> tuple[int, int]:
    """Width and height in pixels of the upright picture, from the file's header; raises DataError naming the file."""
    with errors_name_the_file(path), Image.open(path) as image:
        width, height = image.size
        return (height, width) if turned(image) else (width, height)


def rgb(image: Image.Image) -> NDArray[np.uint8]:
    """The pixels [h, w, 3] of a picture of any mode, not turned; raises GhmdetError for float pixels."""
    if image.mode.startswith("I"):  # 16-bit grey; Pillow's own conversion would clip it to white
        grey = np.asarray(image).astype(np.int64)
        grey = (grey >> 8 if grey.max(initial=0) > 255 else grey).clip(0, 255).astype(np.uint8)
        return np.repeat(grey[..., None], 3, axis=2)
    if image.mode == "F":
        raise GhmdetError("float pixels have no known range; save it with 8 or 16 bits")
    if image.mode == "P":  # a palette may hide transparency, which Pillow converts by way of RGBA only
        image = image.convert("RGBA")
    return np.array(image if image.mode == "RGB" else image.convert("RGB"))


def upright_pixels(image: Image.Image, most: int | None = None) -> NDArray[np.uint8]:
    """The RGB pixels [h, w, 3] of a picture of any mode, its EXIF orientation honoured.

    most: one whose longer side is at least twice as many pixels is shrunk by a whole factor, to no less.

    Raises GhmdetError for float pixels, and what Pillow raises when a picture that it has yet to decode is damaged.
    """
    turn = TURNS.get(orientation(image))
    if most and (factor := max(image.size) // most) > 1 and image.mode in ("L", "RGB", "RGBA", "CMYK"):
        image = image.reduce(factor)
    return rgb(image if turn is None else image.transpose(turn))


def read_pixels(path: Path, most: int | None = None) -> tuple[NDArray[np.uint8], tuple[int, int]]:
    """A picture file as [h, w, 3] RGB, upright, and its own (height, width); raises DataError naming the file.

    most: the longest side in pixels that it is given back with; a larger one is shrunk as it is decoded.
    """
    with errors_name_the_file(path, "leave it out"), Image.open(path) as image:
        width, height = image.size[::-1] if turned(image) else image.size
        share = min(1.0, most / max(width, height)) if most else 1.0
        size = max(1, round(height * share)), max(1, round(width * share))
        if share < 1:
            image.draft(None, size if turned(image) else size[::-1])
        pixels = upright_pixels(image, most)
        if pixels.shape[:2] != size:
            pixels = np.array(Image.fromarray(pixels).resize(size[::-1], Image.Resampling.BILINEAR))
        return pixels, (height, width)


def resized_size(height: int, width: int, min_size: int, max_size: int) -> tuple[int, int]:
    """(height, width) in pixels that a picture is resized to: short side `min_size`, or long side `max_size` if first.

    Rounded down as by torchvision's detectors, which leaves some sides one pixel short. A picture that has such a size
    keeps it, so that a resized picture is not resampled once more.

    >>> resized_size(480, 640, 288, 384), resized_size(107, 111, 240, 320), resized_size(239, 248, 240, 320)
    ((288, 384), (239, 248), (239, 248))
    """
    short, long = sorted((height, width))
    if short <= min_size and long <= max_size and (short >= min_size - 1 or long >= max_size - 1):
        return height, width
    scale = min(min_size / short, max_size / long)
    return max(1, math.floor(height * scale)), max(1, math.floor(width * scale))
