"""Torchvision's RetinaNet in our terms, a config and weights: how weights pretrained on COCO come in."""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from torchvision.models.detection import RetinaNet as TorchvisionRetinaNet
from torchvision.ops import FrozenBatchNorm2d

from ghmdet.errors import GhmdetError
from ghmdet.models.presets import PRESETS, ModelConfig

OUR_NAMES = (
    (r"backbone\.fpn\.inner_blocks\.(\d)(\.0)?", r"neck.lateral.\1"),  # without .0 in its first files
    (r"backbone\.fpn\.layer_blocks\.(\d)(\.0)?", r"neck.output.\1"),
    (r"backbone\.fpn\.extra_blocks\.p6", "neck.extra.0"),
    (r"backbone\.fpn\.extra_blocks\.p7", "neck.extra.1"),
    (r"head\.classification_head\.cls_logits", "head.class_logits"),
    (r"head\.classification_head\.conv", "head.class_tower"),
    (r"head\.regression_head\.bbox_reg", "head.box_deltas"),
    (r"head\.regression_head\.conv", "head.box_tower"),
)


def from_model(
    model: nn.Module, classes: Sequence[str] | None = None
) -> tuple[ModelConfig, list[str], dict[str, Tensor]]:
    """Config, classes and weights of torchvision's `retinanet_resnet50_fpn` or `_v2`, whatever its sizes and anchors.

    classes: a name for each of its outputs; "class 0", "class 1", ... where absent.
    Raises GhmdetError for another network, or another number of names.
    """
    if not isinstance(model, TorchvisionRetinaNet):
        raise GhmdetError(
            "from_torchvision takes torchvision's retinanet_resnet50_fpn or retinanet_resnet50_fpn_v2, "
            f"got {type(model).__name__}"
        )
    converted = from_state(model.state_dict())
    assert converted is not None
    outputs, weights = converted
    names = outputs if classes is None else list(classes)
    if len(names) != len(outputs):
        raise GhmdetError(
            f"{len(names)} class names for a torchvision model with {len(outputs)} outputs; its unused index 0 needs "
            "one too"
        )
    return _config(model), names, weights


def from_state(state: Mapping[str, Tensor]) -> tuple[list[str], dict[str, Tensor]] | None:
    """The state dict of one of torchvision's RetinaNets as classes "class 0", ... and weights by our names.

    None where it is something else.
    """
    boxes = state.get("head.regression_head.bbox_reg.bias")
    outputs = state.get("head.classification_head.cls_logits.bias")
    if boxes is None or outputs is None:
        return None
    normed = "head.classification_head.conv.0.1.weight" in state
    layers = 3 if normed else 2  # of a block: convolution, norm, ReLU
    weights = {}
    for name, value in state.items():
        for theirs, ours in OUR_NAMES:
            name = re.sub(theirs, ours, name)
        name = re.sub(
            r"_tower\.(\d)\.(\d)\.", lambda found: f"_tower.{layers * int(found[1]) + int(found[2])}.", name
        )
        weights[name] = value
    return [f"class {index}" for index in range(4 * len(outputs) // len(boxes))], weights


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
