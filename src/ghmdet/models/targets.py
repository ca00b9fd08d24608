"""The given boxes of a batch: checked, and padded into one tensor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from ghmdet.errors import GhmdetError
from ghmdet.models.preprocess import Batch, scale_boxes


class PaddedTargets(NamedTuple):
    """The boxes of B pictures, each padded to M rows."""

    boxes: Tensor
    """[B, M, 4] xyxy pixels of the batch."""
    labels: Tensor
    """[B, M] int64, 0..K-1."""
    valid: Tensor
    """[B, M] bool, false for padding."""


def check_targets(targets: Sequence[Mapping[str, Tensor]], images: int, num_classes: int) -> None:
    """Raise GhmdetError naming picture, box and values where a target cannot be trained on.

    targets: a dict for each of the `images` pictures with boxes [n, 4] (x1 < x2, y1 < y2, finite) and labels [n] int64
        in 0..num_classes-1. Values are looked at on the CPU only: elsewhere the host would have to wait for them.
    """
    if len(targets) != images:
        raise GhmdetError(
            f"{len(targets)} targets for {images} images; each image needs one (with empty boxes if it has none)"
        )
    for index, target in enumerate(targets):
        boxes, labels = target["boxes"], target["labels"]
        if boxes.dim() != 2 or boxes.shape[1] != 4 or labels.shape != boxes.shape[:1]:
            raise GhmdetError(
                f"target {index} has boxes {list(boxes.shape)} and labels {list(labels.shape)}; "
                "they must be [n, 4] and [n]"
            )
        if labels.dtype != torch.int64:
            raise GhmdetError(
                f"target {index} has labels of {labels.dtype}; they must be int64 class indices"
            )
        if boxes.device.type == "cpu":
            _check_values(index, boxes, labels, num_classes)


def pad_targets(targets: Sequence[Mapping[str, Tensor]], batch: Batch, device: torch.device) -> PaddedTargets:
    """The targets' boxes in the batch's pixels, padded to the longest list (at least one row)."""
    boxes = [
        scale_boxes(target["boxes"].float(), original, size)
        for target, original, size in zip(targets, batch.original_sizes, batch.sizes, strict=True)
    ]
    counts = torch.tensor([len(rows) for rows in boxes])
    padding = boxes[0].new_zeros(max(1, int(counts.max())), 4)  # a last row that sets the length
    padded_boxes = pad_sequence([*boxes, padding], batch_first=True)[:-1]
    padded_labels = pad_sequence(
        [*(target["labels"] for target in targets), padding[:, 0].long()], batch_first=True
    )[:-1]
    valid = torch.arange(len(padding)) < counts[:, None]
    return PaddedTargets(padded_boxes.to(device), padded_labels.to(device), valid.to(device))


def _check_values(index: int, boxes: Tensor, labels: Tensor, num_classes: int) -> None:
    good = (boxes[:, 2:] > boxes[:, :2]).all(dim=1) & boxes.isfinite().all(dim=1)
    if not good.all():
        row = int((~good).nonzero()[0])
        values = [round(value, 2) for value in boxes[row].tolist()]
        raise GhmdetError(
            f"target {index}, box {row} is {values}; a box is [x1, y1, x2, y2] with x1 < x2 and y1 < y2"
        )
    inside = (labels >= 0) & (labels < num_classes)
    if not inside.all():
        row = int((~inside).nonzero()[0])
        raise GhmdetError(
            f"target {index}, box {row} has label {int(labels[row])}; the detector's {num_classes} classes are "
            f"0..{num_classes - 1}, and there is no background class"
        )
