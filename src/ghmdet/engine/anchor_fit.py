"""Which boxes of a data set the anchors of a detector can match, and which anchors would match more."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from statistics import fmean
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torchvision.ops import box_area, box_iou

from ghmdet.data import DetectionData
from ghmdet.models import ModelConfig
from ghmdet.models.anchors import level_grids
from ghmdet.models.preprocess import resized_size
from ghmdet.spectrum import Floats

PICTURES = 1000  # on which settings are tried
BASES = (1.5, 2.0, 2.5, 3.0, 3.5, 4.0, 5.0, 6.0)
MOST_RATIOS = 4
GAIN = 0.005  # shares closer than this are alike
WARN_BOXES = 100_000  # looked at before a training: a fraction of a second
WARN_SHARE = 0.05
WARN_AT_LEAST = 20  # boxes: a class with fewer gives no share worth a warning


class TrainingBoxes(NamedTuple):
    """The boxes of a data set (crowd regions left out) at the size that pictures have in training, unaugmented.

    boxes: [n, 4] xyxy pixels. labels: [n] int64. canvas: [n, 2] int64, height and width of each box's picture, padded
    as a batch would be.
    """

    boxes: Tensor
    labels: Tensor
    canvas: Tensor
    classes: tuple[str, ...]


def training_boxes(data: DetectionData, config: ModelConfig, pictures: int | None = None) -> TrainingBoxes:
    """The boxes of a split, or of so many pictures evenly spread over it, at the size that training gives them."""
    records = data.records
    number = len(records) if pictures is None else min(len(records), max(1, pictures))
    chosen = np.zeros(len(records), dtype=bool)
    chosen[np.linspace(0, len(records) - 1, number).round().astype(int)] = True
    picture = np.repeat(np.arange(len(records)), np.diff(records.offsets))
    kept = chosen[picture] & ~records.crowd
    given = torch.from_numpy(records.sizes.astype(np.int64)).flip(1)  # [N, 2] height, width
    scaled = torch.tensor(
        [resized_size(height, width, config.min_size, config.max_size) for height, width in given.tolist()]
    ).reshape(-1, 2)
    rows, divisor = torch.from_numpy(picture[kept]), config.size_divisible
    return TrainingBoxes(
        torch.from_numpy(records.boxes[kept]) * (scaled / given).flip(1)[rows].repeat(1, 2),
        torch.from_numpy(records.labels[kept].astype(np.int64)),
        ((scaled + divisor - 1) // divisor * divisor)[rows],
        data.classes,
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
        centre = (mine[:, :2] + mine[:, 2:]) / 2
        for level in level_grids(config, height, width):
            place = torch.stack([_nearest(level.x, centre[:, 0]), _nearest(level.y, centre[:, 1])], dim=1)
            iou = box_iou(mine - place.repeat(1, 2), level.shapes)  # [n, shapes]
            best[here] = torch.maximum(best[here], iou.amax(1))
    return best


def _nearest(places: Tensor, to: Tensor) -> Tensor:
    step = places[1] - places[0] if len(places) > 1 else places.new_ones(())
    return places[((to - places[0]) / step).round().long().clamp(0, len(places) - 1)]


class Group(NamedTuple):
    """How so many boxes meet the anchors.

    unmatched: share of the boxes whose best IoU with any anchor is below `positive_iou`, so that only their best anchor
    has them. mean_iou: mean of the boxes' best IoU with any anchor.
    """

    name: str
    boxes: int
    unmatched: float
    mean_iou: float


def _groups(boxes: TrainingBoxes, config: ModelConfig, *, sizes: bool = False) -> list[Group]:
    """All boxes, then each class, then (`sizes`) each range of sizes; none without boxes."""
    best = best_iou(boxes, config)
    parts = [("all", boxes.labels >= 0)]
    parts += [(name, boxes.labels == label) for label, name in enumerate(boxes.classes)]
    octave = box_area(boxes.boxes).sqrt().clamp(min=4).log2().floor()
    for power in sorted(set(octave.tolist())) if sizes else []:
        low, high = 2**power if power > 2 else 0, 2 ** (power + 1)
        parts.append((f"{low:.0f} to {high:.0f} px", octave == power))
    groups = []
    for name, part in parts:
        if len(mine := best[part]):
            unmatched = (mine < config.positive_iou).double().mean().item()
            groups.append(Group(name, len(mine), unmatched, mine.mean().item()))
    return groups


def anchor_warning(data: DetectionData, config: ModelConfig) -> str | None:
    """The sentence to say before training where over 5 % of the boxes, or of a class, have no anchor; else None.

    Looks at 100 000 boxes at most, evenly spread over the split, and at classes with at least 20 of them.
    """
    pictures = len(data.records) * WARN_BOXES // max(WARN_BOXES, len(data.records.boxes))
    groups = _groups(training_boxes(data, config, pictures), config)
    large = groups[:1] + [group for group in groups[1:] if group.boxes >= WARN_AT_LEAST]
    worst = max(large, key=lambda group: group.unmatched, default=None)
    if worst is None or worst.unmatched <= WARN_SHARE:
        return None
    whose = "" if worst is groups[0] else f" of '{worst.name}'"
    meet = f"meet no anchor at IoU {config.positive_iou:g} and get only their best one"
    return f"{worst.unmatched:.0%} of the boxes{whose} {meet}"


class Setting(NamedTuple):
    """Anchors that were tried; the figures are means over the classes, as AP is."""

    config: ModelConfig
    unmatched: float
    mean_iou: float

    @property
    def options(self) -> str:
        """The options of `ghmdet train` that choose it."""
        ratios = " ".join(f"{ratio:g}" for ratio in self.config.anchor_ratios)
        return f"--anchor-base {self.config.anchor_base:g} --anchor-ratios {ratios}"


class AnchorFit(NamedTuple):
    """Groups: all boxes, each class, each range of sizes. Tried: the best setting for each number of ratios."""

    groups: list[Group]
    present: Setting
    tried: list[Setting]

    @property
    def suggestion(self) -> Setting | None:
        """Of the settings that match nearly as many boxes as any, the best IoU at no more anchors than at present.

        The one with fewest anchors where all need more; None where the present anchors match nearly as many.
        """
        enough = min((setting.unmatched for setting in self.tried), default=1.0) + GAIN
        if self.present.unmatched < enough:
            return None
        alike = [setting for setting in self.tried if setting.unmatched < enough]
        most = self.present.config.anchors_per_cell
        cheap = [setting for setting in alike if setting.config.anchors_per_cell <= most]
        return max(cheap, key=lambda setting: setting.mean_iou) if cheap else alike[0]

    def table(self) -> str:
        """The figures as lines of plain text for a terminal."""
        config = self.present.config
        sides = "; ".join(" ".join(f"{side:.0f}" for side in level) for level in config.level_sizes)
        ratios = " ".join(f"{ratio:g}" for ratio in config.anchor_ratios)
        settings = [("these anchors", self.present), *((setting.options, setting) for setting in self.tried)]
        rows = [(name, setting.config.anchors_per_cell, *setting[1:]) for name, setting in settings]
        advice = "None of these matches noticeably more boxes: leave the anchors as they are."
        if self.suggestion:
            advice = f"To match more boxes: ghmdet train ... {self.suggestion.options}"
        return f"""Anchors of {sides} pixels, level by level, ratios {ratios}.

{_aligned("", "boxes", self.groups)}

{_aligned("means over the classes", "anchors", rows)}

unmatched: boxes that no anchor overlaps at IoU {config.positive_iou:g}; they get only their best anchor.
best IoU: with any anchor, on average. px: square root of the area, in training. anchors: in each cell.

{advice}"""


def _aligned(title: str, counted: str, rows: Sequence[tuple[str, int, float, float]]) -> str:
    lines = [f"{title:48}{counted:>8}{'unmatched':>11}{'best IoU':>10}"]
    return "\n".join([*lines, *(f"{name:48}{n:8}{share:11.1%}{iou:10.3f}" for name, n, share, iou in rows)])


def fit_anchors(data: DetectionData, config: ModelConfig) -> AnchorFit:
    """How the boxes of a split meet the anchors of `config`, and what would meet them better.

    Settings are tried on 1000 pictures at most, evenly spread over the split.
    """
    groups = _groups(training_boxes(data, config), config, sizes=True)
    sample = training_boxes(data, config, PICTURES)
    return AnchorFit(groups, _try(sample, config), _search(sample, config))


def _try(boxes: TrainingBoxes, config: ModelConfig) -> Setting:
    classes = _groups(boxes, config)[1:]
    if not classes:
        return Setting(config, 0.0, 0.0)
    return Setting(
        config, fmean(each.unmatched for each in classes), fmean(each.mean_iou for each in classes)
    )


def _search(boxes: TrainingBoxes, config: ModelConfig) -> list[Setting]:
    """For each number of ratios the setting that leaves fewest boxes unmatched, then has the best IoU."""
    found = []
    for count in range(1, MOST_RATIOS + 1) if len(boxes.boxes) else []:
        tried = [
            _try(boxes, replace(config, anchor_sizes=None, anchor_base=base, anchor_ratios=ratios))
            for ratios in _ratio_choices(boxes, count, config)
            for base in BASES
        ]
        found.append(min(tried, key=lambda setting: (round(setting.unmatched, 3), -setting.mean_iou)))
    return found


def _ratio_choices(boxes: TrainingBoxes, count: int, config: ModelConfig) -> list[tuple[float, ...]]:
    """Sets of `count` ratios: the means of as many clusters, even steps over most shapes, and the config's own."""
    sides = boxes.boxes[:, 2:] - boxes.boxes[:, :2]
    shape = (sides[:, 1] / sides[:, 0]).log().double().numpy()
    low, middle, high = np.quantile(shape, (0.05, 0.5, 0.95))
    even = np.linspace(low, high, count) if count > 1 else np.array([middle])
    rounded = [tuple(np.exp(choice).round(2).tolist()) for choice in (_clusters(shape, count), even)]
    own = [config.anchor_ratios] if len(config.anchor_ratios) == count else []
    return list(dict.fromkeys([*own, *rounded]))


def _clusters(values: Floats, count: int) -> Floats:
    """The centres of k-means (Lloyd's) on a line, started at quantiles."""
    centres = np.quantile(values, (np.arange(count) + 0.5) / count)
    for _ in range(50):
        nearest = np.abs(values[:, None] - centres).argmin(1)
        centres = np.array(
            [values[nearest == k].mean() if (nearest == k).any() else centres[k] for k in range(count)]
        )
    return np.sort(centres)
