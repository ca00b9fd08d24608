"""torchvision's detectors: the part that computes the loss becomes of a class that computes it harmonized.

A class, and not a function hung into the object, since copies and pickles of the model then work by themselves.
"""

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection.faster_rcnn import FasterRCNN
from torchvision.models.detection.fcos import FCOS, FCOSHead
from torchvision.models.detection.retinanet import RetinaNet, RetinaNetHead
from torchvision.models.detection.rpn import RegionProposalNetwork
from torchvision.models.detection.ssd import SSD

from ghmdet.integrations.adapters import Adapter, Choice, class_loss, install, refuse

TESTED = ("0.29",)
IGNORED = -1
Targets = list[dict[str, Tensor]]


class _Harmonized:
    """What they share: the class loss over all anchors of the batch, the other losses as they were or GHM-R.

    The model's own class loss is not left out of its method, only cut off from the logits: without gradients it costs
    little, and no code of torchvision is repeated here.
    """

    ghm_c: Any
    ghm_r: Any
    box_coder: Any
    regression_head: Any
    cls_weight: float
    box_weight: float

    def compute_loss(
        self,
        targets: Targets,
        head_outputs: dict[str, Tensor],
        anchors: list[Tensor],
        matched_idxs: list[Tensor],
    ) -> dict[str, Tensor]:
        """The losses by name; the arguments are torchvision's."""
        logits = head_outputs["cls_logits"]
        losses = self._own(targets, head_outputs | {"cls_logits": logits.detach()}, anchors, matched_idxs)
        labels = torch.stack(
            [
                # Negative indices, too: -1 (no box matches) takes the last label, -2 (between) the one before.
                torch.cat([one["labels"], one["labels"].new_tensor([IGNORED, self._background(logits)])])[
                    index
                ]
                for one, index in zip(targets, matched_idxs, strict=True)
            ]
        )
        losses["classification"] = self.cls_weight * self._classify(logits.flatten(0, 1), labels.flatten())
        if hasattr(self, "ghm_r"):
            wanted, predicted = [], []
            for target, index, anchor, offsets in zip(
                targets, matched_idxs, anchors, head_outputs["bbox_regression"], strict=True
            ):
                rows = (index >= 0).nonzero()[:, 0]
                predicted.append(offsets[rows])
                wanted.append(self._encode(target["boxes"][index[rows]], anchor[rows]))
            losses["bbox_regression"] = self.box_weight * self.ghm_r(torch.cat(predicted), torch.cat(wanted))
        return losses

    def _own(self, *arguments: Any) -> dict[str, Tensor]:
        return super().compute_loss(*arguments)  # type: ignore[no-any-return, misc]

    def _classify(self, logits: Tensor, labels: Tensor) -> Tensor:
        return class_loss(self.ghm_c, logits, labels)

    def _background(self, logits: Tensor) -> int:
        return logits.shape[-1]

    def _encode(self, boxes: Tensor, anchors: Tensor) -> Tensor:
        return self.box_coder.encode_single(boxes, anchors)  # type: ignore[no-any-return]


class HarmonizedRetinaNetHead(_Harmonized, RetinaNetHead):  # type: ignore[misc]
    """RetinaNet's head, harmonized."""

    def _own(self, targets: Targets, outputs: dict[str, Tensor], *rest: Any) -> dict[str, Tensor]:
        boxes: Tensor = self.regression_head.compute_loss(targets, outputs, *rest)
        return {"bbox_regression": boxes}

    def _encode(self, boxes: Tensor, anchors: Tensor) -> Tensor:
        return self.regression_head.box_coder.encode_single(boxes, anchors)  # type: ignore[no-any-return]


class HarmonizedFCOSHead(_Harmonized, FCOSHead):  # type: ignore[misc]
    """FCOS's head, harmonized."""

    def _encode(self, boxes: Tensor, anchors: Tensor) -> Tensor:
        return self.box_coder.encode(anchors, boxes)  # type: ignore[no-any-return]


class HarmonizedSSD(_Harmonized, SSD):  # type: ignore[misc]
    """SSD and SSDlite, harmonized: a softmax over all anchors, in the place of three hard negatives an object."""

    def _classify(self, logits: Tensor, labels: Tensor) -> Tensor:
        return self.ghm_c(logits, labels)  # type: ignore[no-any-return]

    def _background(self, logits: Tensor) -> int:
        return 0


class HarmonizedRPN(RegionProposalNetwork):  # type: ignore[misc]
    """A region proposal network whose objectness is harmonized over all anchors, not a sample of 256 a picture."""

    def compute_loss(
        self, objectness: Tensor, deltas: Tensor, labels: list[Tensor], offsets: list[Tensor]
    ) -> tuple[Tensor, Tensor]:
        """The losses of objectness and boxes; the arguments are torchvision's."""
        _, boxes = super().compute_loss(objectness.detach(), deltas, labels, offsets)
        label, wanted = torch.cat(labels), torch.cat(offsets)
        score = objectness.reshape(-1, 1)
        found = self.ghm_c(score, (label > 0).unsqueeze(1), label >= 0)
        if hasattr(self, "ghm_r"):
            rows = (label > 0).nonzero()[:, 0]
            boxes = self.box_weight * self.ghm_r(deltas[rows], wanted[rows])
        return self.cls_weight * found, boxes


def _apply(part: str, plain: type[nn.Module], kind: type[nn.Module], model: Any, choice: Choice) -> None:
    owner: Any = model.get_submodule(part)
    found = type(owner)
    if issubclass(found, kind):
        raise refuse(model, "is harmonized already", "unharmonize(model) first")
    if found is not plain:
        raise refuse(model, f"computes its loss in a {found.__name__}, and only {plain.__name__} is known")
    if plain is SSD:
        outputs = model.head.classification_head.num_columns
        losses: dict[str, nn.Module] = {"ghm_c": choice.softmax_loss(outputs, background=0)}
    else:
        classes = 1 if plain is RegionProposalNetwork else owner.classification_head.num_classes
        losses = {"ghm_c": choice.sigmoid_loss(classes)}
    if (box := choice.box_loss()) is not None:
        losses["ghm_r"] = box
    install(owner, losses)
    owner.cls_weight, owner.box_weight = choice.cls_weight, choice.box_weight
    owner.__class__ = kind


def _undo(part: str, plain: type[nn.Module], kind: type[nn.Module], model: Any) -> None:
    owner: Any = model.get_submodule(part)
    if not isinstance(owner, kind):
        raise refuse(model, "is not harmonized", "harmonize(model) does that")
    owner.__class__ = plain
    for name in ("ghm_c", "ghm_r", "cls_weight", "box_weight"):
        if hasattr(owner, name):
            delattr(owner, name)


def adapters() -> dict[type[nn.Module], Adapter]:
    """The adapters of this library."""
    parts: dict[type[nn.Module], tuple[str, Any, Any]] = {
        RetinaNet: ("head", RetinaNetHead, HarmonizedRetinaNetHead),
        FCOS: ("head", FCOSHead, HarmonizedFCOSHead),
        SSD: ("", SSD, HarmonizedSSD),
        FasterRCNN: ("rpn", RegionProposalNetwork, HarmonizedRPN),
    }
    return {
        model: Adapter(partial(_apply, *part), partial(_undo, *part), TESTED) for model, part in parts.items()
    }
