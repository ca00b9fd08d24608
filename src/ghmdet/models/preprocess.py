"""Pictures of any size into one batch, and their boxes with them."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ghmdet.errors import GhmdetError
from ghmdet.models.presets import ModelConfig
from ghmdet.pictures import resized_size

Size = tuple[int, int]


class Batch(NamedTuple):
    """Pictures ready for `forward_raw`."""

    images: Tensor
    """[B, 3, H, W], normalised; padded at the right and the bottom with zeros."""
    sizes: list[Size]
    """(height, width) of each picture in it, without the padding."""
    original_sizes: list[Size]
    """(height, width) of each picture as it was given."""


def make_batch(images: Sequence[Tensor], config: ModelConfig, device: torch.device) -> Batch:
    """Normalise, scale to the config's size and pad into one batch on `device`.

    images: float tensors [3, H, W] in 0..1, RGB. A picture that has the right size already is not resampled.

    Raises GhmdetError naming the picture for another shape or type, or values that are not 0..1.
    """
    _check_images(images)
    mean, std = (
        torch.tensor(values, dtype=torch.float32).to(device, non_blocking=True)[:, None, None]
        for values in (config.mean, config.std)
    )
    scaled = [_resize((image.to(device, torch.float32) - mean) / std, config) for image in images]
    sizes = [_size(image) for image in scaled]
    height, width = (
        math.ceil(max(side) / config.size_divisible) * config.size_divisible
        for side in zip(*sizes, strict=True)
    )
    batch = torch.stack(
        [F.pad(image, (0, width - w, 0, height - h)) for image, (h, w) in zip(scaled, sizes, strict=True)]
    )
    return Batch(batch, sizes, [_size(image) for image in images])


def scale_boxes(boxes: Tensor, from_size: Size, to_size: Size) -> Tensor:
    """Boxes [n, 4] (xyxy pixels) of a picture of one (height, width) in the same picture at another."""
    y, x = to_size[0] / from_size[0], to_size[1] / from_size[1]
    return boxes * torch.tensor((x, y, x, y), dtype=boxes.dtype).to(boxes.device, non_blocking=True)


def _resize(image: Tensor, config: ModelConfig) -> Tensor:
    size = resized_size(*_size(image), config.min_size, config.max_size)
    if size == _size(image):
        return image
    return F.interpolate(
        image[None], size=size, mode="bilinear", align_corners=False, antialias=config.antialias
    )[0]


def _size(image: Tensor) -> Size:
    return image.shape[-2], image.shape[-1]


def _check_images(images: Sequence[Tensor]) -> None:
    if isinstance(images, Tensor) or not len(images):
        raise GhmdetError("images must be a list of at least one tensor [3, H, W], also for a single picture")
    for index, image in enumerate(images):
        if image.dim() != 3 or image.shape[0] != 3 or image.numel() == 0:
            raise GhmdetError(
                f"image {index} has shape {list(image.shape)}; a picture is [3, height, width], RGB"
            )
        if not image.is_floating_point():
            raise GhmdetError(
                f"image {index} is {image.dtype}; convert it to float and divide by 255 (values 0..1)"
            )
        if image.device.type == "cpu":  # elsewhere looking at values would make the host wait
            low, high = (bound.item() for bound in image.aminmax())
            if not -1 < low <= high < 2:
                raise GhmdetError(
                    f"image {index} has values {low:g}..{high:g}; a picture's are 0..1, before any normalising"
                )
