"""The detector's two losses, chosen by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Annotated

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ghmdet import functional
from ghmdet.errors import Range, check_ranges, unknown_name
from ghmdet.functional import _arguments
from ghmdet.functional.density import RegionCounts
from ghmdet.losses import GHMC, GHMR
from ghmdet.models.box_coder import decode, encode
from ghmdet.spectrum import GradientSpectrum, sum_over_ranks, world_size

# Names, and the weight with which one learning rate suits each loss (docs/models.md).
CLS_LOSSES: dict[str, float] = {
    "ce": 0.1,
    "ohem": 0.1,
    "focal": 0.2,
    "ghm-c": 0.1,
    "ghm-c-joint": 0.1,
    "ghm-c-published": 0.3,
    "ce-per-class": 0.1,
    "ohem-per-class": 0.1,
    "focal-per-class": 0.2,
}
BOX_LOSSES: dict[str, float] = {
    "giou": 2.0,
    "smooth-l1": 1.0,
    "asl1": 1.0,
    "ghm-r": 4.0,
    "ghm-r-published": 10.0,
}

_CLASS_SUMS: dict[str, Callable[..., Tensor]] = {
    "ce": functional.binary_cross_entropy,
    "ohem": functional.ohem_loss,
    "focal": functional.sigmoid_focal_loss,
}


@dataclass(frozen=True)
class LossConfig:
    """Which losses train the detector; a weight of None takes the name's own from CLS_LOSSES or BOX_LOSSES."""

    cls_loss: str = "ghm-c"
    box_loss: str = "giou"
    cls_weight: Annotated[float | None, Range(0.0, 1e9)] = None
    box_weight: Annotated[float | None, Range(0.0, 1e9)] = None
    accumulation_steps: Annotated[int, Range(1, 10**6)] = 1
    """Backward passes of one optimizer step, so that the moving averages of GHM move once a step."""
    ohem_ratio: Annotated[float, Range(0.0, 1e9)] = 3.0
    """Negative examples that OHEM keeps for each positive one, over all classes or, per class, for each."""

    def __post_init__(self) -> None:
        check_ranges(self)
        if self.cls_loss not in CLS_LOSSES:
            raise unknown_name("class loss", self.cls_loss, CLS_LOSSES)
        if self.box_loss not in BOX_LOSSES:
            raise unknown_name("box loss", self.box_loss, BOX_LOSSES)


class DetectionLoss(nn.Module):
    """The two losses of a batch, in float32 whatever precision the network ran in.

    With P the positives of all ranks over the number of ranks (so that averaging the ranks' gradients gives what one
    process has on the joined batch): `ce`, `ohem`, `focal`, `giou`, `smooth-l1` and `asl1` are sums / P. The GHM losses
    bring their own denominators. `ghm-c` is the guarded form with a density for each class, `ghm-c-joint` the guarded
    form with one density, `ghm-c-published` the article's. `ce-per-class`, `ohem-per-class` and `focal-per-class` have
    for each class the sum over its own positives, averaged over the classes: what `ghm-c` is without harmonizing; like
    its counts, these positives are a moving average. OHEM chooses its examples rank by rank, so that its ranks do not
    add up to one process.
    """

    def __init__(self, config: LossConfig, num_classes: int) -> None:
        super().__init__()
        self.config = config
        self.cls_weight = CLS_LOSSES[config.cls_loss] if config.cls_weight is None else config.cls_weight
        self.box_weight = BOX_LOSSES[config.box_loss] if config.box_weight is None else config.box_weight
        steps = config.accumulation_steps
        if config.cls_loss == "ghm-c":
            self.ghm_c = GHMC.guarded(num_classes, accumulation_steps=steps)
        elif config.cls_loss == "ghm-c-joint":
            self.ghm_c = GHMC(accumulation_steps=steps)
        elif config.cls_loss == "ghm-c-published":
            self.ghm_c = GHMC.published(accumulation_steps=steps)
        elif config.cls_loss.endswith("-per-class"):
            self.counts = GradientSpectrum(
                1, momentum=0.75, num_classes=num_classes, accumulation_steps=steps
            )
        if config.box_loss == "ghm-r":
            self.ghm_r = GHMR(accumulation_steps=steps)
        elif config.box_loss == "ghm-r-published":
            self.ghm_r = GHMR.published(accumulation_steps=steps)

    def forward(
        self, logits: Tensor, deltas: Tensor, labels: Tensor, boxes: Tensor, anchors: Tensor
    ) -> dict[str, Tensor]:
        """The weighted losses `classification` and `bbox_regression`, scalars.

        logits: [B, A, K]. deltas: [B, A, 4]. anchors: [A, 4], xyxy pixels.
        labels: [B, A] int64, K for background, negative for ignored.
        boxes: [B, A, 4], the matched ones; of positive size everywhere (see `AnchorTargets`).
        """
        positive = (labels >= 0) & (labels < logits.shape[-1])  # [B, A]
        positives = (sum_over_ranks(positive.sum().float()) / world_size()).clamp(min=1)
        with torch.autocast(logits.device.type, enabled=False):
            # One list of anchors [B * A, ..]: the losses know neither pictures nor levels.
            # Logits as they are: the losses compute in float32, and their gradient is made once, in the logits' dtype.
            classification = self._classification(logits.flatten(0, 1), labels.flatten(), positives)
            deltas, boxes, counted = deltas.flatten(0, 1), boxes.flatten(0, 1), positive.flatten()
            if _arguments.values_can_be_read(deltas):
                # One anchor in a thousand counts; only a device that must not wait computes all.
                rows = counted.nonzero().flatten()
                deltas, boxes, counted = (x.index_select(0, rows) for x in (deltas, boxes, counted))
                anchors = anchors.index_select(0, rows % len(anchors))
            else:
                anchors = anchors.repeat(len(labels), 1)
            regression = self._regression(deltas.float(), boxes, anchors, counted, positives)
        return {
            "classification": self.cls_weight * classification,
            "bbox_regression": self.box_weight * regression,
        }

    def _classification(self, logits: Tensor, labels: Tensor, positives: Tensor) -> Tensor:
        name, targets, valid = self.config.cls_loss, labels, None
        if logits.shape[1] == 1:  # for which the losses take no labels
            targets, valid = (labels == 0).unsqueeze(1), labels >= 0
        if name.startswith("ghm-c"):
            harmonized: Tensor = self.ghm_c(logits, targets, valid)
            return harmonized
        loss, per_class = _CLASS_SUMS[name.removesuffix("-per-class")], name.endswith("-per-class")
        if name.startswith("ohem"):
            loss = partial(loss, ratio=self.config.ohem_ratio, per_class=per_class)
        if not per_class:
            return loss(logits, targets, valid=valid, reduction="sum") / positives
        sums = loss(logits, targets, valid=valid, reduction="none").sum(0)
        return (sums / self._class_positives(labels)).mean()

    def _class_positives(self, labels: Tensor) -> Tensor:
        """The positives of each class, [K], over the ranks as in `forward`; a moving average in training."""
        spectrum, background = self.counts, self.counts.num_classes
        counts = torch.zeros(background + 1, dtype=torch.int64, device=labels.device)
        places = torch.where(labels < 0, background, labels)
        counts.index_add_(0, places, counts.new_ones(1).expand(len(places)))
        table = F.pad(counts[:-1, None].float(), (spectrum.bins + 1, 0))  # positives are the last column
        ranks = 1
        if spectrum.moves:
            table, ranks = sum_over_ranks(table), world_size()
        return (spectrum.update(RegionCounts(table)).positives / ranks).clamp(min=1)

    def _regression(
        self, deltas: Tensor, boxes: Tensor, anchors: Tensor, positive: Tensor, positives: Tensor
    ) -> Tensor:
        name = self.config.box_loss
        if name == "giou":
            # An offset that does not count becomes 0, its box its anchor: neither value nor gradient can be NaN.
            counted = torch.where(positive[..., None], deltas, 0.0)
            per_box = giou_loss(decode(counted, anchors), boxes)
            return torch.where(positive, per_box, 0.0).sum() / positives
        offsets = encode(boxes, anchors)
        if name in ("ghm-r", "ghm-r-published"):
            harmonized: Tensor = self.ghm_r(deltas, offsets, valid=positive)
            return harmonized
        loss = functional.asl1_loss if name == "asl1" else functional.smooth_l1_loss
        return loss(deltas, offsets, valid=positive, reduction="sum") / positives


def giou_loss(boxes: Tensor, targets: Tensor) -> Tensor:
    """1 − GIoU of boxes [N, 4] with their targets [N, 4] (xyxy): [N] (Rezatofighi et al. 2019).

    The numbers of `torchvision.ops.generalized_box_iou_loss`, which looks for the pairs that overlap and so makes an
    accelerator's caller wait.
    """
    x1, y1, x2, y2 = boxes.unbind(-1)
    u1, v1, u2, v2 = targets.unbind(-1)
    width = torch.minimum(x2, u2) - torch.maximum(x1, u1)
    height = torch.minimum(y2, v2) - torch.maximum(y1, v1)
    overlap = torch.where((width > 0) & (height > 0), width * height, 0.0)
    union = (x2 - x1) * (y2 - y1) + (u2 - u1) * (v2 - v1) - overlap
    around = (torch.maximum(x2, u2) - torch.minimum(x1, u1)) * (torch.maximum(y2, v2) - torch.minimum(y1, v1))
    return 1 - overlap / (union + 1e-7) + (around - union) / (around + 1e-7)
