"""Boxes drawn on pictures, and many pictures on one sheet."""

from __future__ import annotations

import colorsys
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ghmdet.files import write_atomic

Colour = tuple[int, int, int]
_GAP = 4
_SHEET_FILL = (24, 24, 27)


def class_colour(label: int) -> Colour:
    """A strong colour for class `label`; neighbours are a golden angle of hue apart, so that they differ.

    >>> class_colour(0) == class_colour(0) != class_colour(1)
    True
    """
    hue = (0.08 + label * 0.381966) % 1
    r, g, b = colorsys.hsv_to_rgb(hue, 0.85 if label % 2 else 1.0, (1.0, 0.85)[label % 4 > 1])
    return int(255 * r), int(255 * g), int(255 * b)


def draw_detections(
    image: Image.Image | Tensor,
    boxes: Tensor,
    labels: Tensor,
    scores: Tensor | None,
    classes: Sequence[str],
) -> Image.Image:
    """A copy of the picture with each box, its class and its score; lines and letters grow with the picture.

    Args:
        image: a Pillow picture, or a tensor [3, H, W] in 0..1.
        boxes: [n, 4] x1 y1 x2 y2 in the picture's pixels.
        labels: [n] indices into `classes`.
        scores: [n] in 0..1, or None for annotations. The best is drawn last, over the others.
        classes: the name of each label.
    """
    canvas = _picture(image)
    draw = ImageDraw.Draw(canvas)
    short = min(canvas.size)
    line = max(1, round(short / 240))
    font = ImageFont.load_default(max(10.0, short / 32))
    order = torch.arange(len(boxes)) if scores is None else scores.cpu().argsort(stable=True)
    rows = [(boxes[i].tolist(), int(labels[i])) for i in order]
    for box, label in rows:
        draw.rectangle(_inside(box, canvas.size), outline=class_colour(label), width=line)
    for i, (box, label) in zip(order.tolist(), rows, strict=True):  # texts over all lines
        text = classes[label] if scores is None else f"{classes[label]} {float(scores[i]):.2f}"
        _draw_text(draw, text, _inside(box, canvas.size), class_colour(label), font, canvas.size)
    return canvas


def draw_side_by_side(
    image: Image.Image | Tensor,
    target: Mapping[str, Tensor],
    found: Mapping[str, Tensor],
    classes: Sequence[str],
) -> Image.Image:
    """The annotations (left) beside the detections (right); both hold boxes and labels, `found` scores as well."""
    truth = draw_detections(image, target["boxes"], target["labels"], None, classes)
    ours = draw_detections(image, found["boxes"], found["labels"], found["scores"], classes)
    return contact_sheet([truth, ours], columns=2)


def draw_crop(image: Image.Image | Tensor, box: Sequence[float], label: int, side: int = 160) -> Image.Image:
    """A box and its surroundings, at most `side` pixels wide and high; the box is drawn in its class's colour.

    The window is a square around the box of twice its longer side, at least that and 64 pixels. At the picture's edge
    it is moved inwards, and cut where the picture is smaller.

    Args:
        image: a Pillow picture, or a tensor [3, H, W] in 0..1.
        box: x1 y1 x2 y2 in the picture's pixels.
        label: the class.
        side: of the crop, in pixels.
    """
    picture = _picture(image)
    longer = max(box[2] - box[0], box[3] - box[1])
    want = max(2 * longer, longer + 64)
    low, size = [], []
    for axis, whole in enumerate(picture.size):
        size.append(min(round(want), whole))
        centred = round((box[axis] + box[axis + 2] - size[axis]) / 2)
        low.append(min(max(centred, 0), whole - size[axis]))
    zoom = side / max(size)
    canvas = picture.crop((low[0], low[1], low[0] + size[0], low[1] + size[1])).resize(
        (max(1, round(size[0] * zoom)), max(1, round(size[1] * zoom))), Image.Resampling.BICUBIC
    )
    drawn = [(value - low[i % 2]) * zoom for i, value in enumerate(box)]
    ImageDraw.Draw(canvas).rectangle(_inside(drawn, canvas.size), outline=class_colour(label), width=2)
    return canvas


def contact_sheet(images: Sequence[Image.Image], columns: int | None = None) -> Image.Image:
    """The pictures in rows of `columns` (by default about as many as rows), each centred in a cell of the largest."""
    assert images, "a sheet needs a picture"
    columns = min(columns or math.ceil(math.sqrt(len(images))), len(images))
    rows = math.ceil(len(images) / columns)
    width, height = max(image.width for image in images), max(image.height for image in images)
    sheet = Image.new("RGB", (columns * (width + _GAP) - _GAP, rows * (height + _GAP) - _GAP), _SHEET_FILL)
    for i, image in enumerate(images):
        x, y = i % columns * (width + _GAP), i // columns * (height + _GAP)
        sheet.paste(image, (x + (width - image.width) // 2, y + (height - image.height) // 2))
    return sheet


def draw_batch(
    path: Path | str,
    images: Sequence[Tensor],
    targets: Sequence[Mapping[str, Tensor]],
    classes: Sequence[str],
    most: int = 16,
) -> Path:
    """Writes a sheet (JPEG) of a training batch, as the model gets it, to `path`; at most `most` pictures of it.

    Args:
        path: the file to write.
        images: tensors [3, H, W] in 0..1.
        targets: for each image boxes [n, 4] xyxy in its pixels and labels [n].
        classes: the name of each label.
        most: how many pictures the sheet holds at most.
    """
    pictures = [
        draw_detections(image, target["boxes"], target["labels"], None, classes)
        for image, target in zip(images[:most], targets[:most], strict=True)
    ]
    buffer = io.BytesIO()
    contact_sheet(pictures).save(buffer, "JPEG", quality=90, subsampling=0)  # thin lines keep their colour
    return write_atomic(path, buffer.getvalue())


def _picture(image: Image.Image | Tensor) -> Image.Image:
    if isinstance(image, Image.Image):
        return image.convert("RGB") if image.mode != "RGB" else image.copy()
    pixels = image.detach().float().clamp(0, 1).mul(255).round().to(torch.uint8).cpu()
    return Image.fromarray(np.ascontiguousarray(pixels.permute(1, 2, 0).numpy()))


def _inside(box: Sequence[float], size: tuple[int, int]) -> tuple[float, float, float, float]:
    """The box cut to the picture, its corners in order: Pillow refuses inverted ones."""
    x0, x1 = sorted(min(max(v, 0.0), size[0] - 1.0) for v in (box[0], box[2]))
    y0, y1 = sorted(min(max(v, 0.0), size[1] - 1.0) for v in (box[1], box[3]))
    return x0, y0, x1, y1


def _draw_text(
    draw: ImageDraw.ImageDraw,
    text: str,
    box: tuple[float, float, float, float],
    colour: Colour,
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont,
    size: tuple[int, int],
) -> None:
    """The text on a plate of the box's colour: over the box, or where that is outside the picture, in it."""
    left, top, right, bottom = draw.textbbox((0, 0), text, font=font)
    pad = max(1, round((bottom - top) / 6))
    width, height = right - left + 2 * pad, bottom - top + 2 * pad
    x = min(box[0], max(0.0, size[0] - width))
    y = box[1] - height if box[1] >= height else box[1]
    draw.rectangle((x, y, x + width, y + height), fill=colour)
    luminance = 0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2]
    draw.text(
        (x + pad - left, y + pad - top),
        text,
        font=font,
        fill=(0, 0, 0) if luminance > 140 else (255, 255, 255),
    )
