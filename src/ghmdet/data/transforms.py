"""Transforms of a picture and its boxes: the resize of evaluation, and the augmentation of training.

A transform takes (image, target) and gives both: image a uint8 `tv_tensors.Image` [3, H, W], target a dict with `boxes`
(`tv_tensors.BoundingBoxes`, xyxy) and `labels`, as torchvision's v2 transforms do; any of those can stand in their
place. Random ones draw from torch's global generator.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from ghmdet.data.images import fit_size
from ghmdet.errors import GhmdetError

Target = dict[str, Any]
ZOOM_OUT_TO = 0.5  # the smallest scale that zoom_out draws
MIN_SIDE = 1.0  # pixels: what is left of a box below this is dropped


@dataclass(frozen=True)
class AugmentConfig:
    """How training pictures are varied; probabilities in 0..1, colour strengths as in `v2.ColorJitter`.

    scale: range of the zoom against the evaluation size, drawn log-uniformly (above 1 a random window of the
    picture, below 1 the picture on its mean colour). zoom_out: probability of a zoom from .5 to 1 instead. iou_crop:
    probability of `v2.RandomIoUCrop` before. mosaic: probability of four pictures in one. min_visible: a box of which
    a smaller share of the area stays in sight is dropped. hue is off because it costs more than all the rest.
    """

    hflip: float = 0.5
    vflip: float = 0.0
    scale: tuple[float, float] = (0.8, 1.25)
    brightness: float = 0.2
    contrast: float = 0.2
    saturation: float = 0.2
    hue: float = 0.0
    zoom_out: float = 0.0
    iou_crop: float = 0.0
    mosaic: float = 0.0
    min_visible: float = 0.3

    def __post_init__(self) -> None:
        for name in ("hflip", "vflip", "zoom_out", "iou_crop", "mosaic", "min_visible"):
            if not 0 <= getattr(self, name) <= 1:
                raise GhmdetError(f"augmentation {name} is {getattr(self, name)}: choose it from 0 to 1")
        for name, limit in (("brightness", 1.0), ("contrast", 1.0), ("saturation", 1.0), ("hue", 0.5)):
            if not 0 <= getattr(self, name) <= limit:
                raise GhmdetError(
                    f"augmentation {name} is {getattr(self, name)}: choose it from 0 to {limit:g}"
                )
        low, high = self.scale
        if not 0 < low <= high:
            raise GhmdetError(
                f"augmentation scale is {low} to {high}: choose a low end above 0 and not above the high end"
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
    height, width = image.shape[-2:]
    out_h, out_w = size
    zoom_x, zoom_y = out_w / (window[2] - window[0]), out_h / (window[3] - window[1])
    left, top = (
        min(max(0, round(low)), side - 1) for low, side in zip(window[:2], (width, height), strict=True)
    )
    right = min(width, max(left + 1, round(window[2])))
    bottom = min(height, max(top + 1, round(window[3])))
    place_x = max(0, round((left - window[0]) * zoom_x)) if window[0] < 0 else 0
    place_y = max(0, round((top - window[1]) * zoom_y)) if window[1] < 0 else 0
    new_w = min(out_w - place_x, max(1, round((right - left) * zoom_x)))
    new_h = min(out_h - place_y, max(1, round((bottom - top) * zoom_y)))
    part = F.resize(image[:, top:bottom, left:right], [new_h, new_w], antialias=True)
    if (new_h, new_w) != size:
        canvas = (
            image.float().mean((1, 2)).round().to(image.dtype)[:, None, None].expand(3, *size).contiguous()
        )
        canvas[:, place_y : place_y + new_h, place_x : place_x + new_w] = part
        part = canvas
    step = torch.tensor([new_w / (right - left), new_h / (bottom - top)]).repeat(2)
    boxes = (target["boxes"].as_subclass(Tensor) - torch.tensor([left, top] * 2)) * step + torch.tensor(
        [place_x, place_y] * 2
    )
    inside = boxes.clamp(min=0).minimum(torch.tensor([out_w, out_h] * 2))
    sides, full = inside[:, 2:] - inside[:, :2], boxes[:, 2:] - boxes[:, :2]
    keep = (sides.prod(1) >= min_visible * full.prod(1)) & (sides >= MIN_SIDE).all(1)
    return part, {**target, "boxes": as_boxes(inside[keep], size), "labels": target["labels"][keep]}


def as_boxes(boxes: Tensor, size: tuple[int, int]) -> tv_tensors.BoundingBoxes:
    """Boxes [n, 4] x1 y1 x2 y2 as a tv_tensor of a picture of `size` (height, width)."""
    return tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=size)


def output_size(image: Tensor, target: Target, min_size: int, max_size: int) -> tuple[int, int]:
    """Height and width that a picture has in evaluation, from its original size, whatever was cut from it since."""
    original = target.get("original_size")
    height, width = image.shape[-2:] if original is None else original.tolist()
    width, height = fit_size(width, height, min_size, max_size)
    return height, width


class EvalTransforms:
    """Resize to evaluation's size, the aspect kept; nothing random."""

    def __init__(self, min_size: int, max_size: int) -> None:
        self.min_size, self.max_size = min_size, max_size
        self.load_limits = (min_size, max_size)  # a larger picture need not be kept

    def __call__(self, image: Tensor, target: Target) -> tuple[Tensor, Target]:
        """Picture and boxes at evaluation's size."""
        size = output_size(image, target, self.min_size, self.max_size)
        return F.resize(image, list(size), antialias=True), {
            **target,
            "boxes": F.resize(target["boxes"], list(size)),
        }


class TrainTransforms:
    """Flips, IoU crop, zoom and colour, at the size that evaluation would give: same-sized pictures stay so."""

    def __init__(self, min_size: int, max_size: int, config: AugmentConfig) -> None:
        self.min_size, self.max_size, self.config = min_size, max_size, config
        zoom = max(1.0, config.scale[1])  # kept larger, so that zooming in shows what was there
        self.load_limits = (round(min_size * zoom), round(max_size * zoom))
        self._flips = v2.Compose([v2.RandomHorizontalFlip(config.hflip), v2.RandomVerticalFlip(config.vflip)])
        self._iou_crop = v2.RandomIoUCrop()
        self._colour = v2.ColorJitter(config.brightness, config.contrast, config.saturation, config.hue)

    def __call__(self, image: Tensor, target: Target) -> tuple[Tensor, Target]:
        """Picture and boxes, varied at random."""
        size = output_size(image, target, self.min_size, self.max_size)
        image, target = self._flips(image, target)
        if len(target["boxes"]) and self._happens(self.config.iou_crop):
            image, target = self._iou_crop(image, target)
        image, target = self._zoom(image, target, size)
        return self._colour(tv_tensors.Image(image)), target

    def _happens(self, probability: float) -> bool:
        return bool(probability > 0 and torch.rand(()) < probability)

    def _zoom(self, image: Tensor, target: Target, size: tuple[int, int]) -> tuple[Tensor, Target]:
        low, high = (ZOOM_OUT_TO, 1.0) if self._happens(self.config.zoom_out) else self.config.scale
        height, width = image.shape[-2:]
        draw, *offsets = torch.rand(3).tolist()
        scale = min(size[0] / height, size[1] / width) * low * (high / low) ** draw
        view_w, view_h = size[1] / scale, size[0] / scale
        x, y = offsets[0] * (width - view_w), offsets[1] * (height - view_h)
        window = (x, y, x + view_w, y + view_h)
        return crop_and_place(image, target, window, size, self.config.min_visible)


def eval_transforms(min_size: int, max_size: int) -> EvalTransforms:
    """Evaluation's resize: short side to min_size pixels, unless the long side would pass max_size."""
    return EvalTransforms(min_size, max_size)


def train_transforms(min_size: int, max_size: int, config: AugmentConfig | None = None) -> TrainTransforms:
    """Training's augmentation, at the sizes that `eval_transforms` gives for the same arguments."""
    return TrainTransforms(min_size, max_size, config or AugmentConfig())
