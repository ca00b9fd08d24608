"""Torchvision's RetinaNet in our terms, a config and weights: how weights pretrained on COCO come in."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor, nn
from torchvision.models.detection import RetinaNet as TorchvisionRetinaNet
from torchvision.models.detection import retinanet_resnet50_fpn, retinanet_resnet50_fpn_v2
from torchvision.ops import FrozenBatchNorm2d

from ghmdet.errors import CheckpointError, GhmdetError
from ghmdet.models.presets import PRESETS, ModelConfig


class Converted(NamedTuple):
    """A torchvision detector in our terms."""

    config: ModelConfig
    classes: list[str]
    weights: dict[str, Tensor]
    """Of backbone, neck and head, by our names."""


def from_model(model: nn.Module, classes: Sequence[str] | None = None) -> Converted:
    """Torchvision's `retinanet_resnet50_fpn` or `_v2`, with any sizes, thresholds and anchors, in our terms.

    classes: a name for each of its outputs; "class 0", "class 1", ... where absent.
    Raises GhmdetError for another network, or another number of names.
    """
    if not isinstance(model, TorchvisionRetinaNet):
        raise GhmdetError(
            "from_torchvision takes torchvision's retinanet_resnet50_fpn or retinanet_resnet50_fpn_v2, "
            f"got {type(model).__name__}"
        )
    outputs: int = model.head.classification_head.num_classes
    names = list(classes) if classes is not None else [f"class {index}" for index in range(outputs)]
    if len(names) != outputs:
        raise GhmdetError(
            f"{len(names)} class names for a torchvision model with {outputs} outputs; its unused index 0 needs one too"
        )
    return Converted(_config(model), names, _weights(model))


def from_state(state: Mapping[str, Tensor]) -> Converted | None:
    """The detector of a state dict as torchvision publishes for its two RetinaNets; None where it is something else.

    Raises CheckpointError where it is one of them but with weights that are missing or of another shape.
    """
    layer = state.get("head.classification_head.cls_logits.weight")
    p6 = state.get("backbone.fpn.extra_blocks.p6.weight")
    if layer is None or p6 is None:
        return None
    build = retinanet_resnet50_fpn_v2 if p6.shape[1] == 2048 else retinanet_resnet50_fpn
    model = build(weights=None, weights_backbone=None, num_classes=layer.shape[0] // 9)
    try:
        model.load_state_dict(dict(state))  # which knows the names of its older files
    except RuntimeError as error:  # says in several lines what is missing or of another shape
        reason = " ".join(str(error).split())[:300]
        raise CheckpointError(f"not one of torchvision's RetinaNets: {reason}") from error
    return from_model(model)


def _config(model: Any) -> ModelConfig:
    body, fpn, transform = model.backbone.body, model.backbone.fpn, model.transform
    tower, anchors = model.head.classification_head.conv, model.anchor_generator
    norms = [layer for layer in tower.modules() if isinstance(layer, nn.GroupNorm)]
    if transform.fixed_size is not None:
        raise GhmdetError(
            "a torchvision model with fixed_size does not keep the picture's aspect and cannot be taken over"
        )
    if len(set(anchors.aspect_ratios)) != 1:
        raise GhmdetError(
            f"all levels need the same anchor ratios, the torchvision model has {anchors.aspect_ratios}"
        )
    return dataclasses.replace(
        PRESETS["r50"],
        backbone=_resnet(body),
        channels=model.backbone.out_channels,
        extra_from="p5" if fpn.extra_blocks.use_P5 else "c5",
        tower_depth=len(tower),
        norm_groups=norms[0].num_groups if norms else 0,
        anchor_ratios=tuple(map(float, anchors.aspect_ratios[0])),
        anchor_sizes=tuple(tuple(map(float, sizes)) for sizes in anchors.sizes),
        positive_iou=model.proposal_matcher.high_threshold,
        background_iou=model.proposal_matcher.low_threshold,
        min_size=transform.min_size[-1],
        max_size=transform.max_size,
        size_divisible=transform.size_divisible,
        mean=tuple(transform.image_mean),
        std=tuple(transform.image_std),
        freeze_batch_norm=isinstance(body["bn1"], FrozenBatchNorm2d),
        batch_norm_eps=body["bn1"].eps,
        score_threshold=model.score_thresh,
        nms_iou=model.nms_thresh,
        topk_candidates=model.topk_candidates,
        detections_per_image=model.detections_per_img,
    )


def _resnet(body: Any) -> str:
    if "layer1" not in body:
        raise GhmdetError("the torchvision model's backbone is no ResNet")
    blocks = [block for number in (1, 2, 3, 4) for block in body[f"layer{number}"]]
    # A ResNet is named after its convolutions in a row: those of its blocks, the first one, and the classifier.
    depth = (3 if hasattr(blocks[0], "conv3") else 2) * len(blocks) + 2
    return f"resnet{depth}.tv_in1k"


def _weights(model: Any) -> dict[str, Tensor]:
    fpn, classes, boxes = model.backbone.fpn, model.head.classification_head, model.head.regression_head
    parts: dict[str, nn.Module] = {
        "backbone.body": model.backbone.body,
        "neck.lateral": nn.ModuleList(block[0] for block in fpn.inner_blocks),
        "neck.output": nn.ModuleList(block[0] for block in fpn.layer_blocks),
        "neck.extra": nn.ModuleList([fpn.extra_blocks.p6, fpn.extra_blocks.p7]),
        "head.class_tower": nn.Sequential(*(layer for block in classes.conv for layer in block)),
        "head.box_tower": nn.Sequential(*(layer for block in boxes.conv for layer in block)),
        "head.class_logits": classes.cls_logits,
        "head.box_deltas": boxes.bbox_reg,
    }
    return {
        f"{part}.{name}": value
        for part, module in parts.items()
        for name, value in module.state_dict().items()
    }
