"""Boxes drawn on pictures, and many pictures on one sheet."""

from __future__ import annotations

import colorsys
import math
import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from ghmdet.files import write_atomic

if TYPE_CHECKING:
    from torch import Tensor

    from ghmdet.data import DetectionData

LONGEST = 32  # letters of a class's name
WIDE_FONTS = re.compile(r"DejaVu Sans$|.*(CJK|YaHei|Hei$|PingFang|Hiragino|Malgun)")
"""Names of fonts with more letters than Latin ones, as the usual systems have them."""
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont
Values: TypeAlias = "Tensor | NDArray[Any]"
GAP, SHEET_FILL = 4, (24, 24, 27)
THRESHOLD = 0.3  # the least score of a detection that is drawn on a sheet


def class_colour(label: int) -> tuple[int, int, int]:
    """A strong colour for class `label`; neighbours are a golden angle of hue apart, so that they differ.

    >>> class_colour(0) == class_colour(0) != class_colour(1)
    True
    """
    hue = (0.08 + label * 0.381966) % 1
    r, g, b = colorsys.hsv_to_rgb(hue, 0.85 if label % 2 else 1.0, (1.0, 0.85)[label % 4 > 1])
    return int(255 * r), int(255 * g), int(255 * b)


def draw_detections(
    image: Image.Image | Values, boxes: Values, labels: Values, scores: Values | None, classes: Sequence[str]
) -> Image.Image:
    """A copy of the picture with each box, its class and its score; lines and letters grow with the picture.

    Args:
        image: a Pillow picture, or a tensor [3, H, W], float in 0..1 or uint8.
        boxes: [n, 4] x1 y1 x2 y2 in the picture's pixels.
        labels: [n] indices into `classes`.
        scores: [n] in 0..1, or None for annotations. The best is drawn last, over the others.
        classes: the name of each label.
    """
    canvas = _picture(image)
    draw = ImageDraw.Draw(canvas)
    line, letters = max(1, round(min(canvas.size) / 240)), max(10.0, min(canvas.size) / 32)
    pad = max(1, round(letters / 9))
    order = np.arange(len(boxes)) if scores is None else np.argsort(_array(scores), kind="stable")
    rows = [(i, int(labels[i]), _inside(boxes[i].tolist(), canvas)) for i in order.tolist()]
    for _, label, box in rows:
        draw.rectangle(box, outline=class_colour(label), width=line)
    names = {label: _drawable(classes[label], label, letters) for label in {row[1] for row in rows}}
    # Texts over all lines, above the boxes: small objects must stay visible.
    for i, label, (x0, y0, *_) in rows:
        (text, font), colour = names[label], class_colour(label)
        text = text if scores is None else f"{text} {float(scores[i]):.2f}"
        left, top, right, bottom = draw.textbbox((0, 0), text, font=font)
        wide, high = right - left + 2 * pad, bottom - top + 2 * pad
        x, y = min(x0, max(0, canvas.width - wide)), y0 - high if y0 >= high else y0
        draw.rectangle((x, y, x + wide, y + high), fill=colour)
        bright = 0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2] > 140
        draw.text((x + pad - left, y + pad - top), text, font=font, fill="black" if bright else "white")
    return canvas


def short(name: str) -> str:
    """A name for a drawing, of at most `LONGEST` letters."""
    return name if len(name) <= LONGEST else f"{name[: LONGEST - 1]}…"


def _drawable(name: str, label: int, size: float) -> tuple[str, Font]:
    """A class's name and a font that has all of its letters; "class 3" where none is installed."""
    text = short(name)
    for font in _fonts(size):
        missing = bytes(font.getmask("\U0010ffff"))
        if all(letter.isspace() or bytes(font.getmask(letter)) != missing for letter in set(text)):
            return text, font
    return f"class {label}", ImageFont.load_default(size)


def undrawable(classes: Sequence[str]) -> str:
    """What a user should know of class names that no installed font can draw, in a line; empty where all can be."""
    names = [name for label, name in enumerate(classes) if _drawable(name, label, 10.0)[0] != short(name)]
    if not names:
        return ""
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return (
        f"drawings say 'class {classes.index(names[0])}' and so on for {', '.join(names[:3])}{more}: no installed font"
        " has their letters (Noto Sans CJK has those of Chinese, Japanese and Korean)"
    )


@lru_cache(maxsize=8)
def _fonts(size: float) -> list[Font]:
    """Pillow's own font, then those of `WIDE_FONTS` that are installed."""
    try:
        from matplotlib.font_manager import fontManager
    except ImportError:  # not there where exported detectors are used without PyTorch
        return [ImageFont.load_default(size)]
    files = {font.name: font.fname for font in fontManager.ttflist if WIDE_FONTS.match(font.name)}
    return [ImageFont.load_default(size), *(ImageFont.truetype(file, size) for file in files.values())]


def draw_results(
    data: DetectionData, results: Sequence[Mapping[str, Any]], pictures: int, columns: int = 1
) -> Image.Image:
    """A sheet of so many pictures of a data set: annotations left, right what scores .3 or more of COCO results."""
    from ghmdet.data.images import load_image  # brings PyTorch, which the rest does without

    pairs = []
    for number in range(0, len(data.records), max(1, len(data.records) // pictures))[:pictures]:
        record = data.records[number]
        image = load_image(record)
        mine = [one for one in results if one["image_id"] == record.image_id and one["score"] >= THRESHOLD]
        boxes = np.array([one["bbox"] for one in mine], np.float32).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        labels = np.array([data.category_ids.index(one["category_id"]) for one in mine])
        scores = np.array([one["score"] for one in mine], np.float32)
        truth = draw_detections(image, record.boxes, record.labels, None, data.classes)
        found = draw_detections(image, boxes, labels, scores, data.classes)
        pairs.append(contact_sheet([truth, found], columns=2))
    return contact_sheet(pairs, columns)


def window_around(box: Sequence[float], size: tuple[int, int]) -> tuple[int, int, int]:
    """Left, top and side of a square that shows a box [x1 y1 x2 y2] with its surroundings, in pixels.

    Around the box it has at least 32 pixels and at least half of the box's longer side. At the edge of a picture of
    `size` (width, height) it is moved inwards, and sticks out below or beside one that is smaller.
    """
    longer = max(box[2] - box[0], box[3] - box[1])
    side = max(2, round(max(2 * longer, longer + 64)))
    left, top = (
        max(0, min(round((low + high - side) / 2), whole - side))
        for low, high, whole in zip(box[:2], box[2:], size, strict=True)
    )
    return left, top, side


def draw_crop(image: Image.Image | Values, box: Sequence[float], label: int, side: int = 160) -> Image.Image:
    """A square of `side` pixels: a box [x1 y1 x2 y2] in pixels with its surroundings, in the colour of class `label`.

    It shows what `window_around` says, and is black below or beside a picture that is smaller.
    """
    picture = _picture(image)
    left, top, window = window_around(box, picture.size)
    crop = picture.crop((left, top, left + window, top + window))
    crop = crop.resize((side, side), Image.Resampling.BICUBIC)
    corners = [(value - start) * side / window for value, start in zip(box, (left, top) * 2, strict=True)]
    ImageDraw.Draw(crop).rectangle(_inside(corners, crop), outline=class_colour(label), width=2)
    return crop


def contact_sheet(images: Sequence[Image.Image], columns: int | None = None) -> Image.Image:
    """The pictures in rows of `columns` (by default about as many as rows), each centred in a cell of the largest."""
    assert images, "a sheet needs a picture"
    columns = min(columns or math.ceil(math.sqrt(len(images))), len(images))
    rows = math.ceil(len(images) / columns)
    width, height = max(image.width for image in images), max(image.height for image in images)
    sheet = Image.new("RGB", (columns * (width + GAP) - GAP, rows * (height + GAP) - GAP), SHEET_FILL)
    for i, image in enumerate(images):
        x, y = i % columns * (width + GAP), i // columns * (height + GAP)
        sheet.paste(image, (x + (width - image.width) // 2, y + (height - image.height) // 2))
    return sheet


def draw_batch(
    path: Path, images: Sequence[Tensor], targets: Sequence[Mapping[str, Tensor]], classes: Sequence[str]
) -> Path:
    """Writes a sheet (JPEG) of the first 16 pictures of a training batch, as the model gets it, to `path`.

    The images are tensors [3, H, W] in 0..1; each target holds boxes [n, 4] xyxy in its image's pixels and labels [n].
    """
    batch = list(zip(images, targets, strict=True))[:16]
    drawn = [draw_detections(image, one["boxes"], one["labels"], None, classes) for image, one in batch]
    return save_jpeg(contact_sheet(drawn), path)


def save_jpeg(picture: Image.Image, path: Path | str, quality: int = 90, comment: bytes = b"") -> Path:
    """Writes the picture as JPEG to `path`, whole or not at all, and returns the path; raises OSError."""
    # Without subsampling thin lines keep their colour.
    options: dict[str, Any] = {"quality": quality, "subsampling": 0, "comment": comment}
    return write_atomic(path, lambda file: picture.save(file, "JPEG", **options))


def _picture(image: Image.Image | Values) -> Image.Image:
    """A copy, in RGB."""
    if isinstance(image, Image.Image):
        return image.convert("RGB")
    pixels = _array(image)
    if pixels.dtype != np.uint8:
        pixels = (pixels.astype(np.float32).clip(0, 1) * np.float32(255.999)).astype(np.uint8)
    return Image.fromarray(np.ascontiguousarray(pixels.transpose(1, 2, 0)))


def _array(values: Any) -> NDArray[Any]:
    """An array of an array or of a tensor on any device."""
    return np.asarray(values.cpu() if hasattr(values, "cpu") else values)


def _inside(box: Sequence[float], picture: Image.Image) -> list[float]:
    """The box cut to the picture, so that its lines are seen."""
    return [min(max(value, 0), side - 1) for value, side in zip(box, picture.size * 2, strict=True)]
