"""Transforms of a picture and its boxes: the resize of evaluation, and the augmentation of training.

A transform takes (image, target) and gives both: image a uint8 `tv_tensors.Image` [3, H, W], target a dict with `boxes`
(`tv_tensors.BoundingBoxes`, xyxy) and `labels`, as torchvision's v2 transforms do; any of those can stand in their
place. Random ones draw from torch's global generator.
"""

from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from ghmdet.errors import GhmdetError
from ghmdet.pictures import resized_size

Target = dict[str, Any]
MIN_SIDE = 1.0  # pixels: what is left of a box below this is dropped


@dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """How training pictures are varied; chances in 0..1, colour strengths as in `v2.ColorJitter`.

    Raises:
        GhmdetError: a value out of range.
    """

    hflip: float = 0.5
    """Chance of a left-right flip."""
    vflip: float | None = None
    """Chance of an upside-down flip, right for microscopes and aerial pictures; left open, .5 from where a training has
    seen that upside-down pictures look alike to it (`ghmdet.engine.symmetry`), else 0."""
    scale: tuple[float, float] = (0.6, 1.5)
    """Range of the zoom: above 1 a random window of the picture, below 1 the picture on its mean colour."""
    brightness: float = 0.2
    """Strength of random brightness."""
    contrast: float = 0.2
    """Strength of random contrast."""
    saturation: float = 0.2
    """Strength of random saturation."""
    hue: float = 0.0
    """Strength of random hue; off because it costs more than all the rest."""
    mosaic: float = 0.0
    """Chance that a picture is put together from four."""
    min_visible: float = 0.3
    """A box of which a smaller share of the area stays in sight is dropped."""

    def __post_init__(self) -> None:
        chances = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "scale"}
        for name, value in chances.items():
            most = 0.5 if name == "hue" else 1
            if value is not None and not 0 <= value <= most:
                raise GhmdetError(f"augmentation {name} is {value}: choose it from 0 to {most}")
        low, high = self.scale
        if not 0.1 <= low <= high <= 20:
            raise GhmdetError(
                f"augmentation scale is {low} to {high}: choose a low end from 0.1 on and a high end from there to 20"
            )


def crop_and_place(
    image: Tensor,
    target: Target,
    window: tuple[float, float, float, float],
    size: tuple[int, int],
    min_visible: float,
) -> tuple[Tensor, Target]:
    """The window x1 y1 x2 y2 of the picture, drawn at `size` (height, width); outside the picture is its mean colour.

    Boxes follow exactly, are clipped, and dropped with their labels when less than `min_visible` of their area or a
    side below one pixel is left.
    """
    (left, right, x, width), (top, bottom, y, height) = (
        _span(window[i], window[i + 2], image.shape[-1 - i], size[1 - i]) for i in (0, 1)
    )
    part = F.resize(image[:, top:bottom, left:right], [height, width], antialias=True)
    if (height, width) != size:
        fill = image.float().mean((1, 2)).round().to(image.dtype)
        canvas = fill[:, None, None].expand(3, *size).contiguous()
        canvas[:, y : y + height, x : x + width] = part
        part = canvas
    low, high = torch.tensor([x, y]), torch.tensor([x + width, y + height])
    zoom = torch.tensor([width / (right - left), height / (bottom - top)])
    corners = target["boxes"].as_subclass(Tensor).reshape(-1, 2, 2)  # [n, corner, xy]
    full = (corners - torch.tensor([left, top])) * zoom + low
    inside = full.maximum(low).minimum(high)
    full_sides, sides = full[:, 1] - full[:, 0], inside[:, 1] - inside[:, 0]
    keep = (sides.prod(1) >= min_visible * full_sides.prod(1)) & (sides >= MIN_SIDE).all(1)
    boxes = as_boxes(inside[keep].flatten(1), size)
    return part, {**target, "boxes": boxes, "labels": target["labels"][keep]}


def _span(low: float, high: float, side: int, out: int) -> tuple[int, int, int, int]:
    """Along one axis, the part of the window low to high that shows the picture: its start and stop among the picture's
    `side` pixels, its place and its length among the `out` pixels that the window is drawn on.

    Windows are rounded to whole pixels of the picture and then fill their share of the output exactly, so that no
    strip is left at its edge; boxes follow the rounded window.
    """
    zoom = out / (high - low)
    start = min(max(0, round(low)), side - 1)
    stop = max(start + 1, min(side, round(high)))
    place = min(out - 1, round(max(0.0, -low) * zoom))
    end = min(out, round((side - low) * zoom))
    return start, stop, place, max(1, end - place)


def as_boxes(boxes: Tensor, size: tuple[int, int]) -> tv_tensors.BoundingBoxes:
    """Boxes [n, 4] x1 y1 x2 y2 as a tv_tensor of a picture of `size` (height, width)."""
    return tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=size)


class EvalTransforms:
    """Resize as the detector sees it: short side to min_size pixels, unless the long side would pass max_size.

    The aspect is kept, and nothing is random.

    load_limits: the short and long sides that a picture need not exceed when it is loaded.
    """

    def __init__(self, min_size: int, max_size: int) -> None:
        self.limits = self.load_limits = (min_size, max_size)

    def output_size(self, image: Tensor, target: Target) -> tuple[int, int]:
        """Height and width of the result: of the original picture's, whatever was cut from it since."""
        original = target.get("original_size")
        height, width = image.shape[-2:] if original is None else original.tolist()
        return resized_size(height, width, *self.limits)

    def __call__(self, image: Tensor, target: Target) -> tuple[Tensor, Target]:
        """Picture and boxes at that size."""
        size = list(self.output_size(image, target))
        return F.resize(image, size, antialias=True), {**target, "boxes": F.resize(target["boxes"], size)}


class TrainTransforms(EvalTransforms):
    """Flips, zoom and colour, at the size that `EvalTransforms` gives for these limits: same-sized pictures stay so."""

    def __init__(self, min_size: int, max_size: int, config: AugmentConfig | None = None) -> None:
        super().__init__(min_size, max_size)
        self.config = config = config or AugmentConfig()
        zoom = max(1.0, config.scale[1])  # kept larger, so that zooming in shows what was there
        self.load_limits = (round(min_size * zoom), round(max_size * zoom))
        self._flips = v2.Compose(
            [v2.RandomHorizontalFlip(config.hflip), v2.RandomVerticalFlip(config.vflip or 0.0)]
        )
        self._colour = v2.ColorJitter(config.brightness, config.contrast, config.saturation, config.hue)

    def __call__(self, image: Tensor, target: Target) -> tuple[Tensor, Target]:
        """Picture and boxes, varied at random."""
        size = self.output_size(image, target)
        image, target = self._flips(image, target)
        low, high = self.config.scale
        height, width = image.shape[-2:]
        draw, *offsets = torch.rand(3).tolist()
        scale = min(size[0] / height, size[1] / width) * low * (high / low) ** draw
        view_w, view_h = size[1] / scale, size[0] / scale
        x, y = offsets[0] * (width - view_w), offsets[1] * (height - view_h)
        window = (x, y, x + view_w, y + view_h)
        image, target = crop_and_place(image, target, window, size, self.config.min_visible)
        return self._colour(tv_tensors.Image(image)), target
