"""Which anchor answers for which object, for a whole batch at once."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

BACKGROUND = -1
BETWEEN = -2


class AnchorTargets(NamedTuple):
    """What each anchor should say."""

    labels: Tensor
    """[B, A] int64: the class 0..K-1, K for background, -1 for ignored."""
    boxes: Tensor
    """[B, A, 4] xyxy pixels: the matched box, and the anchor itself where there is none."""
    rows: Tensor
    """[B, A] int64: which of the picture's boxes it is, negative where there is none."""


def match(
    boxes: Tensor, valid: Tensor, anchors: Tensor, *, positive_iou: float, background_iou: float
) -> Tensor:
    """For each anchor the row of its box, or BACKGROUND (-1), or BETWEEN (-2): [B, A] int64.

    boxes: [B, M, 4] xyxy pixels, padded to the same M >= 1. valid: [B, M] bool, false for padding. anchors: [A, 4].

    An anchor takes the box that it overlaps most where that IoU is at least `positive_iou`, is background where
    it is below `background_iou`, and between otherwise. The anchors that overlap a box more than any other
    anchor does (ties included) are never without one, so every box that touches an anchor has one.
    """
    iou = pairwise_iou(boxes, anchors).masked_fill_(~valid[:, :, None], -1.0)  # [B, M, A]
    best_iou, best_box = iou.max(dim=1)  # [B, A]
    matches = best_box.where(best_iou >= positive_iou, BETWEEN).where(best_iou >= background_iou, BACKGROUND)
    most = iou.amax(dim=2, keepdim=True)  # [B, M, 1]
    needed = ((iou == most) & (most > 0)).any(dim=1)  # [B, A]
    return torch.where(needed, best_box, matches)


def anchor_targets(
    matches: Tensor, boxes: Tensor, labels: Tensor, anchors: Tensor, num_classes: int
) -> AnchorTargets:
    """The targets of `matches` [B, A] (see `match`) for boxes [B, M, 4] with labels [B, M] and anchors [A, 4]."""
    row = matches.clamp(min=0)
    label = labels.gather(1, row).where(matches >= 0, num_classes).where(matches != BETWEEN, -1)
    # Whole rows of one list of boxes: a gather of numbers takes several times as long.
    first = torch.arange(len(boxes), device=boxes.device)[:, None] * boxes.shape[1]
    matched = boxes.flatten(0, 1).index_select(0, (first + row).flatten()).view(*row.shape, 4)
    return AnchorTargets(label, torch.where((matches >= 0)[..., None], matched, anchors), matches)


def pairwise_iou(boxes: Tensor, anchors: Tensor) -> Tensor:
    """The IoU of boxes [B, M, 4] (xyxy pixels) with anchors [A, 4]: [B, M, A]."""
    # one coordinate at a time, as [B, M, A, 2] would double the memory
    x1, y1, x2, y2 = boxes[..., None].unbind(dim=2)  # each [B, M, 1]
    u1, v1, u2, v2 = anchors.unbind(dim=1)  # each [A]
    overlap = (torch.minimum(x2, u2) - torch.maximum(x1, u1)).clamp_(min=0)
    overlap *= (torch.minimum(y2, v2) - torch.maximum(y1, v1)).clamp_(min=0)
    return overlap / ((x2 - x1) * (y2 - y1) + (u2 - u1) * (v2 - v1) - overlap)
