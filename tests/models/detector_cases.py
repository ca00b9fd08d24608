"""What the detector's tests share."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from ghmdet.models import PRESETS
from ghmdet.models.preprocess import Batch
from ghmdet.models.targets import pad_targets

TINY = dataclasses.replace(
    PRESETS["nano"],
    channels=16,
    norm_groups=4,
    tower_depth=1,
    min_size=96,
    max_size=128,
    freeze_batch_norm=False,
)
"""The nano detector with a small neck and head, for small pictures, able to train from random weights."""

ARTICLE = dataclasses.replace(TINY, best_anchors=0)
"""The same with the article's thresholds."""


def random_boxes(count: int, width: float = 128, height: float = 96) -> Tensor:
    corner = torch.rand(count, 2) * torch.tensor([width, height]) * 0.6
    return torch.cat((corner, corner + 6 + torch.rand(count, 2) * torch.tensor([width, height]) * 0.3), dim=1)


def padded(boxes: list[Tensor], labels: list[Tensor] | None = None) -> tuple[Tensor, Tensor]:
    """The lists of boxes, and their labels, as a batch of 96 x 128 pictures has them."""
    labels = labels or [torch.zeros(len(rows), dtype=torch.int64) for rows in boxes]
    sizes = [(96, 128)] * len(boxes)
    targets = [{"boxes": b, "labels": n} for b, n in zip(boxes, labels, strict=True)]
    return pad_targets(targets, Batch(torch.zeros(len(boxes), 3, 96, 128), sizes, sizes), torch.device("cpu"))
