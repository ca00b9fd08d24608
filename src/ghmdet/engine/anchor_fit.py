"""Which boxes of a data set the anchors can match, and which anchors would match more."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ghmdet.data import DetectionData
from ghmdet.engine.anchor_overlap import (
    TrainingBoxes,
    best_iou,
    positives_per_box,
    spread_rows,
    training_boxes,
)
from ghmdet.models import ModelConfig

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
