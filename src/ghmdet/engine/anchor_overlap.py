"""How the boxes of a data set overlap the anchors that a detector places on its pictures."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ghmdet.data import DetectionData
from ghmdet.models import ModelConfig
from ghmdet.models.anchors import LevelGrid, level_grids, make_anchors
from ghmdet.models.matcher import match
from ghmdet.models.preprocess import scaled_size

WARN_BOXES = 100_000  # looked at before a training: a fraction of a second
WARN_SHARE = 0.05
WARN_AT_LEAST = 20  # boxes: a class with fewer gives no share worth a warning
_CPU = torch.device("cpu")


class TrainingBoxes(NamedTuple):
    """The boxes of a data set (crowd regions left out) at the size that pictures have in training, unaugmented."""

    boxes: Tensor
    """[n, 4] xyxy pixels."""
    labels: Tensor
    """[n] int64."""
    picture: Tensor
    """[n] int64: the row of its record."""
    canvas: Tensor
    """[n, 2] int64: height and width of its picture, padded as a batch would be."""

    def rows(self, index: Tensor) -> TrainingBoxes:
        """The boxes of an index or mask [n]."""
        return TrainingBoxes(*(column[index] for column in self))

    @property
    def side(self) -> Tensor:
        """[n] square root of the area, in pixels."""
        return (self.boxes[:, 2:] - self.boxes[:, :2]).prod(1).sqrt()


def training_boxes(data: DetectionData, config: ModelConfig, pictures: Tensor | None = None) -> TrainingBoxes:
    """The boxes of a split, or of the pictures with these rows, at the size that `config` scales pictures to."""
    records = data.records
    chosen = np.zeros(len(records), dtype=bool)
    chosen[slice(None) if pictures is None else pictures.numpy()] = True
    counts = np.diff(records.offsets)
    picture = np.repeat(np.arange(len(records)), counts)
    kept = chosen[picture] & ~records.crowd
    given = torch.from_numpy(records.sizes.astype(np.int64))  # [N, 2] width, height
    scaled = torch.tensor(
        [scaled_size(height, width, config) for width, height in records.sizes.tolist()]
    ).reshape(-1, 2)
    rows = torch.from_numpy(picture[kept])
    zoom = (scaled.flip(1) / given)[rows]
    divisor = config.size_divisible
    return TrainingBoxes(
        torch.from_numpy(records.boxes[kept]) * zoom.repeat(1, 2),
        torch.from_numpy(records.labels[kept].astype(np.int64)),
        rows,
        ((scaled + divisor - 1) // divisor * divisor)[rows],
    )


def best_iou(boxes: TrainingBoxes, config: ModelConfig) -> Tensor:
    """The largest IoU of each box with any anchor: [n].

    The overlap of a box with an anchor of one shape falls with the distance of their centres along either axis, so
    that for each shape the nearest place is the best one: no box needs to meet all anchors.
    """
    best = torch.zeros(len(boxes.boxes))
    for height, width in sorted({(height, width) for height, width in boxes.canvas.tolist()}):
        here = (boxes.canvas == torch.tensor((height, width))).all(1)
        mine = boxes.boxes[here]
        for level in level_grids(config, height, width):
            best[here] = torch.maximum(best[here], _iou_at_nearest(mine, level).amax(1))
    return best


def _iou_at_nearest(boxes: Tensor, level: LevelGrid) -> Tensor:
    # [n, S]
    centre = (boxes[:, :2] + boxes[:, 2:]) / 2
    place = torch.stack([_nearest(level.x, centre[:, 0]), _nearest(level.y, centre[:, 1])], dim=1)
    anchors = place.repeat(1, 2)[:, None] + level.shapes  # [n, S, 4]
    mine = boxes[:, None]
    overlap = (
        (torch.minimum(mine[..., 2:], anchors[..., 2:]) - torch.maximum(mine[..., :2], anchors[..., :2]))
        .clamp(min=0)
        .prod(-1)
    )
    area = (mine[..., 2:] - mine[..., :2]).prod(-1) + (anchors[..., 2:] - anchors[..., :2]).prod(-1)
    return overlap / (area - overlap)


def _nearest(places: Tensor, to: Tensor) -> Tensor:
    step = places[1] - places[0] if len(places) > 1 else places.new_ones(())
    return places[((to - places[0]) / step).round().long().clamp(0, len(places) - 1)]


def positives_per_box(
    boxes: TrainingBoxes, config: ModelConfig, progress: Callable[[int], None] = lambda done: None
) -> Tensor:
    """How many anchors training's matching gives to each box: [n] int64. The boxes of a picture stand together."""
    counts = [torch.zeros(0, dtype=torch.int64)]
    starts = np.unique(boxes.picture.numpy(), return_index=True)[1].tolist()
    for start, end in itertools.pairwise([*starts, len(boxes.boxes)]):
        mine = boxes.boxes[start:end]
        anchors, _ = make_anchors(config, *boxes.canvas[start].tolist(), _CPU)
        matches = match(
            mine[None],
            torch.ones(1, len(mine), dtype=torch.bool),
            anchors,
            positive_iou=config.positive_iou,
            background_iou=config.background_iou,
        )
        counts.append(matches[matches >= 0].bincount(minlength=len(mine)))
        progress(1)
    return torch.cat(counts)


def spread_rows(count: int, limit: int) -> Tensor:
    """At most `limit` of the rows 0..count-1, evenly spread: [<= limit] int64."""
    return torch.linspace(0, max(0, count - 1), min(count, max(1, limit))).round().long()


def anchor_warning(data: DetectionData, config: ModelConfig) -> str | None:
    """The sentence to say before training where over 5 % of the boxes, or of a class, have no anchor; else None.

    Looks at 100 000 boxes at most, evenly spread over the split, and at classes with at least 20 of them.
    """
    density = max(1, len(data.records.boxes) / WARN_BOXES)
    boxes = training_boxes(data, config, spread_rows(len(data.records), int(len(data.records) / density)))
    poor = best_iou(boxes, config) < config.positive_iou
    shares = {"boxes": poor.double().mean().item() if len(poor) else 0.0}
    for label, name in enumerate(data.classes):
        of_class = poor[boxes.labels == label]
        if len(of_class) >= WARN_AT_LEAST:
            shares[f"boxes of '{name}'"] = of_class.double().mean().item()
    name, share = max(shares.items(), key=lambda item: item[1])
    if share <= WARN_SHARE:
        return None
    return (
        f"{share:.0%} of the {name} meet no anchor at IoU {config.positive_iou:g} and get only their best one"
    )
