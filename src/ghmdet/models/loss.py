"""The detector's two losses, chosen by name."""

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
from ghmdet.functional.equalized import EqlV2, EqualizedFocal
from ghmdet.losses import GHMC, GHMR, Equalized
from ghmdet.models.box_coder import decode, encode
from ghmdet.models.iou import ciou_loss, giou_loss, paired_iou
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
    "qfl": 0.2,
    "vfl": 0.2,
    "efl": 0.2,
    "eql-v2": 0.1,
}
BOX_LOSSES: dict[str, float] = {
    "giou": 2.0,
    "ciou": 2.0,
    "smooth-l1": 1.0,
    "asl1": 1.0,
    "balanced-l1": 1.0,
    "ghm-r": 4.0,
    "ghm-r-published": 10.0,
}

_CLASS_SUMS: dict[str, Callable[..., Tensor]] = {
    "ce": functional.binary_cross_entropy,
    "ohem": functional.ohem_loss,
    "focal": functional.sigmoid_focal_loss,
    "qfl": functional.quality_focal_loss,
    "vfl": functional.varifocal_loss,
}
_BOX_SUMS: dict[str, Callable[..., Tensor]] = {
    "smooth-l1": functional.smooth_l1_loss,
    "asl1": functional.asl1_loss,
    "balanced-l1": functional.balanced_l1_loss,
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
    process has on the joined batch): all are sums / P, but the GHM losses bring their own denominators. `ghm-c` is the
    guarded form with a density for each class, `ghm-c-joint` the guarded form with one density, `ghm-c-published`
    the article's. `ce-per-class`, `ohem-per-class` and `focal-per-class` have for each class the sum over its own
    positives, averaged over the classes: what `ghm-c` is without harmonizing; like its counts, these positives are a
    moving average. OHEM chooses its examples rank by rank, so that its ranks do not add up to one process. In `qfl` and
    `vfl` an object's target is the IoU that its predicted box has now.
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
        elif config.cls_loss in ("eql-v2", "efl"):
            form = EqlV2 if config.cls_loss == "eql-v2" else EqualizedFocal
            self.equalized = Equalized(num_classes, form, accumulation_steps=steps)
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
            logits, labels, counted = logits.flatten(0, 1), labels.flatten(), positive.flatten()
            deltas, boxes = deltas.flatten(0, 1), boxes.flatten(0, 1)
            if _arguments.values_can_be_read(deltas):
                # One anchor in a thousand counts; only a device that must not wait computes all.
                rows = counted.nonzero().flatten()
                deltas, boxes, counted = (x.index_select(0, rows) for x in (deltas, boxes, counted))
                anchors = anchors.index_select(0, rows % len(anchors))
            else:
                rows = torch.arange(len(labels), device=labels.device)
                anchors = anchors.repeat(len(positive), 1)
            # An offset that does not count becomes 0, its box its anchor: neither value nor gradient can be NaN.
            deltas = torch.where(counted[:, None], deltas.float(), 0.0)
            targets = labels
            if self.config.cls_loss in ("qfl", "vfl"):
                # Boxes that are no numbers are left to the box loss to show.
                quality = paired_iou(decode(deltas.detach(), anchors), boxes)[0].nan_to_num().clamp(0, 1)
                own = labels.index_select(0, rows).clamp(0, logits.shape[1] - 1)
                targets = torch.zeros_like(logits, dtype=torch.float32)
                targets = targets.index_put((rows, own), torch.where(counted, quality, 0.0))
            elif logits.shape[1] == 1:  # for which the losses take no labels
                targets = (labels == 0).unsqueeze(1)
            classification = self._classification(logits, targets, labels, positives)
            regression = self._regression(deltas, boxes, anchors, counted, positives)
        return {
            "classification": self.cls_weight * classification,
            "bbox_regression": self.box_weight * regression,
        }

    def _classification(self, logits: Tensor, targets: Tensor, labels: Tensor, positives: Tensor) -> Tensor:
        name, valid = self.config.cls_loss, None if targets is labels else labels >= 0
        if name.startswith("ghm-c"):
            harmonized: Tensor = self.ghm_c(logits, targets, valid)
            return harmonized
        if name in ("eql-v2", "efl"):
            equalized: Tensor = self.equalized(logits, targets, valid)
            return equalized / positives
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
        if name in ("giou", "ciou"):
            per_box = (giou_loss if name == "giou" else ciou_loss)(decode(deltas, anchors), boxes)
            return torch.where(positive, per_box, 0.0).sum() / positives
        offsets = encode(boxes, anchors)
        if name in ("ghm-r", "ghm-r-published"):
            harmonized: Tensor = self.ghm_r(deltas, offsets, valid=positive)
            return harmonized
        return _BOX_SUMS[name](deltas, offsets, valid=positive, reduction="sum") / positives
