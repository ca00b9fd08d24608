"""Opening pictures: EXIF orientation honoured, always RGB, and errors that name the file."""

import os
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from ghmdet.data.records import DetectionData, Record
from ghmdet.errors import DataError
from ghmdet.pictures import CHECK, errors_name_the_file, resized_size, turned, upright_pixels
from ghmdet.words import many


def shrunk_size(width: int, height: int, limits: tuple[int, int] | None) -> tuple[int, int]:
    """Width and height at which `load_image` gives a picture: resized to the limits, but never enlarged."""
    if limits is None:
        return width, height
    fitted_height, fitted_width = resized_size(height, width, *limits)
    return (fitted_width, fitted_height) if fitted_width < width else (width, height)


def load_image(record: Record, limits: tuple[int, int] | None = None) -> Tensor:
    """The record's picture as uint8 [3, h, w] RGB, upright, shrunk (antialiased) to `shrunk_size` of the limits.

    Raises DataError naming the file when it is missing, damaged, or not of the record's size.
    """
    width, height = shrunk_size(record.width, record.height, limits)
    with errors_name_the_file(record.path), Image.open(record.path) as image:
        is_turned = turned(image)
        found = image.size[::-1] if is_turned else image.size
        if found != (record.width, record.height):
            hint = ": its EXIF orientation turns it" if is_turned and image.size == found[::-1] else ""
            raise DataError(
                f"{record.path}: size mismatch: the file has {found[0]}x{found[1]} pixels, its annotation says "
                f"{record.width}x{record.height}{hint}: correct the annotation or the file; {CHECK}"
            )
        # A JPEG decodes faster at a half, quarter or eighth; twice the wanted size leaves no visible difference.
        image.draft(None, (2 * height, 2 * width) if is_turned else (2 * width, 2 * height))
        tensor = torch.from_numpy(upright_pixels(image)).permute(2, 0, 1).contiguous()
    if tensor.shape[1:] != (height, width):
        tensor = F.resize(tensor, [height, width], antialias=True)
    return tensor.contiguous()


def require_images(data: DetectionData) -> None:
    """Make sure, before hours of training, that every picture of a split is there; none is opened.

    Raises DataError naming the first missing file and the number of missing ones.
    """
    records = data.records
    paths = (records.root / records.name(index) for index in range(len(records)))
    missing = [path for path in paths if not os.path.isfile(path)]
    if missing:
        count = f"{len(missing)} of the {many(len(records), 'image')} of split {data.split}"
        raise DataError(
            f"{missing[0]}: missing image, the first of {count}: put them there or remove their records; {CHECK}"
        )


def require_apart(out: Path, data: DetectionData) -> None:
    """Raise DataError where pictures that are written into `out` would be read with any part of the data set."""
    for folder in data.folders:
        if out.resolve().is_relative_to(folder.resolve()):
            raise DataError(
                f"--out {out} is in {folder}, all of whose pictures are a part of the data set: what is drawn there"
                " would be read as pictures without objects: give another"
            )
