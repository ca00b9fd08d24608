"""Which boxes of a data set the anchors of a detector can match, and which anchors would match more."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ghmdet.data import DetectionData
from ghmdet.models import ModelConfig
from ghmdet.models.anchors import LevelGrid, level_grids, make_anchors
from ghmdet.models.preprocess import resized_size
from ghmdet.models.targets import match

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
        [
            resized_size(height, width, config.min_size, config.max_size)
            for width, height in records.sizes.tolist()
        ]
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


PICTURES = 1000  # whose anchors are matched one by one, and on which settings are tried
WORST = 10
BASES = (1.5, 2.0, 2.5, 3.0, 3.5, 4.0, 5.0, 6.0)
MOST_RATIOS = 4
GAIN = 0.005  # shares closer than this are alike


@dataclass(frozen=True)
class FitRow:
    """How a group of boxes meets the anchors."""

    name: str
    boxes: int
    below_positive: float
    """Share of the boxes whose best IoU with any anchor is below `positive_iou`: only their best anchor has them."""
    below_background: float
    """The same below `background_iou`."""
    iou: tuple[float, ...]
    """Best IoU at the quantiles .01, .1, .5, .9."""
    positives: tuple[float, ...]
    """Positive anchors a box at the quantiles .1, .5, .9, over the pictures that were matched."""


@dataclass(frozen=True)
class Setting:
    """Anchors that were tried: shares and IoUs are means over the classes, as AP is."""

    base: float | None
    """None for anchors whose sides are given in pixels."""
    ratios: tuple[float, ...]
    anchors_per_cell: int
    below_positive: float
    mean_iou: float

    @property
    def options(self) -> str:
        """The options of `ghmdet train` that choose it."""
        return f"--anchor-base {self.base:g} --anchor-ratios {' '.join(f'{r:g}' for r in self.ratios)}"


@dataclass(frozen=True)
class AnchorFit:
    """What `fit_anchors` found; `table()` is the text to print."""

    sides: tuple[tuple[float, ...], ...]
    """Sides of each level's anchors in pixels."""
    positive_iou: float
    background_iou: float
    matched_pictures: int
    pictures: int
    rows: tuple[FitRow, ...]
    """All boxes, each class, each range of sizes."""
    without_positive: int
    """Boxes, in the pictures that were matched, whose every anchor another box has taken."""
    worst: tuple[str, ...]
    present: Setting
    tried: tuple[Setting, ...]
    """The best setting found for each number of ratios."""

    @property
    def suggestion(self) -> Setting | None:
        """Of the settings that match nearly as many boxes as any, the best IoU at no more anchors than at present.

        The one with fewest anchors where all need more; None where the present anchors match nearly as many.
        """
        least = min((setting.below_positive for setting in self.tried), default=1.0)
        if self.present.below_positive < least + GAIN:
            return None
        alike = [setting for setting in self.tried if setting.below_positive < least + GAIN]
        cheap = [setting for setting in alike if setting.anchors_per_cell <= self.present.anchors_per_cell]
        return max(cheap, key=lambda setting: setting.mean_iou) if cheap else alike[0]

    def table(self) -> str:
        """The figures as lines of plain text for a terminal."""
        positive, background = (f"<{iou:g}" for iou in (self.positive_iou, self.background_iou))
        sides = "; ".join(" ".join(f"{side:.0f}" for side in level) for level in self.sides)
        ratios = " ".join(f"{ratio:g}" for ratio in self.present.ratios)
        width = max(len(row.name) for row in self.rows)
        lines = [
            f"Anchors of {sides} pixels, level by level, ratios {ratios}.",
            "",
            f"{'':{width}}{'':24}{'best IoU':>20}{'positives':>20}",
            f"{'':{width}}{'boxes':>8}{positive:>8}{background:>8}"
            + "".join(f"{at:>6}" for at in (".01", ".1", ".5", ".9"))
            + "".join(f"{at:>6}" for at in (".1", ".5", ".9")),
            *(
                f"{row.name:{width}}{row.boxes:8}{row.below_positive:8.1%}{row.below_background:8.1%}"
                + "".join(f"{value:6.2f}" for value in row.iou)
                + "".join(f"{value:6.0f}" for value in row.positives)
                for row in self.rows
            ),
            "",
            f"{positive}, {background}: boxes that overlap no anchor that much; below {self.positive_iou:g} a box has"
            " its one best anchor only.",
            "Best IoU and positives (the anchors that have a box) at quantiles; positives counted in"
            f" {self.matched_pictures} of {self.pictures} pictures.",
            "Ranges in px: the square root of the area at training size.",
        ]
        if self.without_positive:
            lines.append(f"{self.without_positive} boxes have no anchor at all: other boxes took them.")
        if self.worst:
            lines += ["", "Worst boxes (x1 y1 x2 y2 in the file's picture):", *self.worst]
        lines += ["", f"{'means over the classes':48}{'anchors a cell':>14}{positive:>8}{'best IoU':>10}"]
        settings = {"as it is": self.present} | {setting.options: setting for setting in self.tried}
        lines += [
            f"{name:48}{setting.anchors_per_cell:14}{setting.below_positive:8.1%}{setting.mean_iou:10.3f}"
            for name, setting in settings.items()
        ]
        advice = (
            f"To match more boxes: ghmdet train ... {self.suggestion.options}\nWhat AP makes of it only training tells."
            if self.suggestion
            else "None of these matches noticeably more boxes: leave the anchors as they are."
        )
        return "\n".join([*lines, "", advice])


def fit_anchors(
    data: DetectionData,
    config: ModelConfig,
    *,
    pictures: int = PICTURES,
    progress: Callable[[int], None] = lambda done: None,
) -> AnchorFit:
    """How the boxes of a split meet the anchors that `config` places on its pictures, and what would meet them better.

    The best IoU is that of every box. Anchors are matched (as training does) and settings tried on `pictures` of the
    pictures at most, evenly spread over the split; `progress` is called with the number of pictures just matched.
    """
    boxes = training_boxes(data, config)
    best = best_iou(boxes, config)
    some = spread_rows(len(data.records), pictures)
    matched = torch.isin(boxes.picture, some)
    sample = boxes.rows(matched)
    positives = torch.full((len(best),), torch.nan)  # of a box in a picture that is not matched
    positives[matched] = positives_per_box(sample, config, progress).float()

    rows = [_row("all", best, positives, config)]
    for label, name in enumerate(data.classes):
        of_class = boxes.labels == label
        if of_class.any():
            rows.append(_row(name, best[of_class], positives[of_class], config))
    octave = boxes.side.clamp(min=4).log2().floor()
    for power in sorted(set(octave.tolist())):
        low = f"{2**power:.0f}" if power > 2 else "0"
        of_size = octave == power
        rows.append(_row(f"{low} to {2 ** (power + 1):.0f} px", best[of_size], positives[of_size], config))
    return AnchorFit(
        sides=config.level_sizes,
        positive_iou=config.positive_iou,
        background_iou=config.background_iou,
        matched_pictures=len(some),
        pictures=len(data.records),
        rows=tuple(rows),
        without_positive=int((positives == 0).sum()),
        worst=tuple(_worst(data, boxes, best, config)),
        present=_try(sample, config),
        tried=tuple(_search(sample, config)),
    )


def _row(name: str, best: Tensor, positives: Tensor, config: ModelConfig) -> FitRow:
    matched = positives[~positives.isnan()]
    return FitRow(
        name,
        len(best),
        below_positive=_share_below(best, config.positive_iou),
        below_background=_share_below(best, config.background_iou),
        iou=_quantiles(best, (0.01, 0.1, 0.5, 0.9)),
        positives=_quantiles(matched, (0.1, 0.5, 0.9)),
    )


def _share_below(best: Tensor, iou: float) -> float:
    return (best < iou).double().mean().item() if len(best) else 0.0


def _quantiles(values: Tensor, at: tuple[float, ...]) -> tuple[float, ...]:
    # numpy's, as torch's refuses more than 16 million values
    return tuple(np.quantile(values.numpy(), at).tolist()) if len(values) else (float("nan"),) * len(at)


def _worst(data: DetectionData, boxes: TrainingBoxes, best: Tensor, config: ModelConfig) -> list[str]:
    lines = []
    for row in best.argsort(stable=True)[:WORST].tolist():
        if best[row] >= config.positive_iou:
            break
        record = data.records[int(boxes.picture[row])]
        x1, y1, x2, y2 = boxes.boxes[row].tolist()
        first = int((boxes.picture == boxes.picture[row]).nonzero()[0])
        given = record.boxes[~record.crowd][row - first].tolist()
        lines.append(
            f"{record.path.name}: {data.classes[int(boxes.labels[row])]} [{', '.join(f'{v:g}' for v in given)}], in"
            f" training {x2 - x1:.0f} x {y2 - y1:.0f} px, best IoU {best[row]:.2f}"
        )
    return lines


def _try(boxes: TrainingBoxes, config: ModelConfig) -> Setting:
    best = best_iou(boxes, config)
    groups = [best[boxes.labels == label] for label in sorted(set(boxes.labels.tolist()))]
    return Setting(
        None if config.anchor_sizes else config.anchor_base,
        config.anchor_ratios,
        config.anchors_per_cell,
        below_positive=_mean(_share_below(group, config.positive_iou) for group in groups),
        mean_iou=_mean(group.mean().item() for group in groups),
    )


def _mean(values: Iterable[float]) -> float:
    return float(np.mean(list(values) or [0.0]))


def _search(boxes: TrainingBoxes, config: ModelConfig) -> list[Setting]:
    """For each number of ratios the setting that leaves fewest boxes unmatched, then has the best IoU."""
    if not len(boxes.boxes):
        return []
    found = []
    for count in range(1, MOST_RATIOS + 1):
        tried = [
            _try(
                boxes, dataclasses.replace(config, anchor_sizes=None, anchor_base=base, anchor_ratios=ratios)
            )
            for ratios in _ratio_choices(boxes, count, config)
            for base in BASES
        ]
        found.append(min(tried, key=lambda setting: (round(setting.below_positive, 3), -setting.mean_iou)))
    return found


def _ratio_choices(boxes: TrainingBoxes, count: int, config: ModelConfig) -> list[tuple[float, ...]]:
    """Sets of `count` ratios: the means of as many clusters, even steps over most shapes, and the config's own."""
    sides = boxes.boxes[:, 2:] - boxes.boxes[:, :2]
    shape = (sides[:, 1] / sides[:, 0]).log().double().numpy()
    low, middle, high = np.quantile(shape, (0.05, 0.5, 0.95))
    even = np.linspace(low, high, count) if count > 1 else np.array([middle])
    choices = [_clusters(shape, count), even]
    rounded = [tuple(round(float(np.exp(value)), 2) for value in choice) for choice in choices]
    own = [config.anchor_ratios] if len(config.anchor_ratios) == count else []
    return list(dict.fromkeys([*own, *rounded]))


def _clusters(
    values: np.ndarray[tuple[int], np.dtype[np.float64]], count: int
) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """The centres of k-means (Lloyd's) on a line, started at quantiles."""
    centres = np.quantile(values, (np.arange(count) + 0.5) / count)
    for _ in range(50):
        nearest = np.abs(values[:, None] - centres).argmin(1)
        centres = np.array(
            [values[nearest == k].mean() if (nearest == k).any() else centres[k] for k in range(count)]
        )
    return np.sort(centres)
