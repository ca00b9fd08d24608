"""Torchvision's RetinaNet as one of ours: how weights pretrained on COCO come in."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from torchvision.models.detection import RetinaNet as TorchvisionRetinaNet
from torchvision.models.detection import retinanet_resnet50_fpn, retinanet_resnet50_fpn_v2
from torchvision.ops import FrozenBatchNorm2d

from ghmdet.errors import CheckpointError, GhmdetError
from ghmdet.models.presets import ModelConfig
from ghmdet.models.retinanet import RetinaNet
from ghmdet.models.state import load_network

# (blocks of each layer, whether they are bottlenecks) -> the ResNet
_RESNETS = {
    ((2, 2, 2, 2), False): "resnet18",
    ((3, 4, 6, 3), False): "resnet34",
    ((3, 4, 6, 3), True): "resnet50",
    ((3, 4, 23, 3), True): "resnet101",
}

_RENAMED = (
    (r"backbone\.fpn\.inner_blocks\.(\d+)\.0", r"neck.lateral.\1"),
    (r"backbone\.fpn\.layer_blocks\.(\d+)\.0", r"neck.output.\1"),
    (r"backbone\.fpn\.extra_blocks\.p6", "neck.extra.0"),
    (r"backbone\.fpn\.extra_blocks\.p7", "neck.extra.1"),
    (r"head\.classification_head\.cls_logits", "head.class_logits"),
    (r"head\.regression_head\.bbox_reg", "head.box_deltas"),
)

_TELLING = ("head.classification_head.cls_logits.weight", "backbone.fpn.extra_blocks.p6.weight")


def from_torchvision(model: nn.Module, classes: Sequence[str] | None = None) -> RetinaNet:
    """A detector with the same detections as torchvision's `retinanet_resnet50_fpn` or `_v2`.

    model: one of those two, with any number of classes, also with sizes, thresholds and anchors of its own.
    classes: a name for each of its outputs; "class 0", "class 1", ... where absent. Labels stay torchvision's own
        indices: its index 0, which it never trains, is the first class here and needs a name too.

    Returns it on the model's device, in the model's mode, able to be trained with our losses.
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
    detector = RetinaNet(_config(model), names)
    load_network(detector, _renamed(model.state_dict(), detector.config.norm_groups > 0))
    return detector.to(next(model.parameters()).device).train(model.training)


def detector_from_file(state: Mapping[str, Tensor]) -> RetinaNet | None:
    """The detector of a state dict as torchvision publishes for its two RetinaNets; None where it is something else.

    Raises CheckpointError where it is one of them but with weights that are missing or of another shape.
    """
    layer, p6 = (state.get(name) for name in _TELLING)
    if layer is None or p6 is None:
        return None
    second_version = p6.shape[1] == 2048
    build = retinanet_resnet50_fpn_v2 if second_version else retinanet_resnet50_fpn
    model = build(weights=None, weights_backbone=None, num_classes=layer.shape[0] // 9)
    try:
        missing = model.load_state_dict(
            dict(state), strict=False
        ).missing_keys  # it knows the names of its older files
    except RuntimeError as error:  # says in several lines which shapes differ
        raise CheckpointError(" ".join(str(error).split())[:300]) from error
    lacking = [name for name in missing if not name.endswith("num_batches_tracked")]
    if lacking:
        raise CheckpointError(f"'{lacking[0]}' is missing")
    return from_torchvision(model)


def _config(model: Any) -> ModelConfig:
    body, fpn, transform, anchors = (
        model.backbone.body,
        model.backbone.fpn,
        model.transform,
        model.anchor_generator,
    )
    tower = model.head.classification_head.conv
    norms = [layer for layer in tower.modules() if isinstance(layer, nn.GroupNorm)]
    if transform.fixed_size is not None:
        raise GhmdetError(
            "a torchvision model with fixed_size does not keep the picture's aspect and cannot be taken over"
        )
    if len(set(anchors.aspect_ratios)) != 1:
        raise GhmdetError(
            f"all levels need the same anchor ratios, the torchvision model has {anchors.aspect_ratios}"
        )
    return ModelConfig(
        backbone=f"{_resnet(body)}.tv_in1k",
        channels=model.backbone.out_channels,
        extra_levels=2,
        extra_from="p5" if fpn.extra_blocks.use_P5 else "c5",
        tower_depth=len(tower),
        norm_groups=norms[0].num_groups if norms else 0,
        anchor_ratios=tuple(map(float, anchors.aspect_ratios[0])),
        anchor_sizes=tuple(tuple(map(float, sizes)) for sizes in anchors.sizes),
        anchor_rule="torchvision",
        positive_iou=model.proposal_matcher.high_threshold,
        background_iou=model.proposal_matcher.low_threshold,
        min_size=transform.min_size[-1],
        max_size=transform.max_size,
        size_divisible=transform.size_divisible,
        antialias=False,
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
    layers = [body[f"layer{number}"] for number in (1, 2, 3, 4)] if "layer1" in body else []
    shape = tuple(len(layer) for layer in layers), any(hasattr(layer[0], "conv3") for layer in layers)
    if shape not in _RESNETS:
        raise GhmdetError(f"the torchvision model's backbone is none of {', '.join(_RESNETS.values())}")
    return _RESNETS[shape]


def _renamed(state: Mapping[str, Tensor], normed: bool) -> dict[str, Tensor]:
    # Torchvision nests a tower's layers (conv.1.0: second block, its convolution); ours are in one row.
    per_block = 3 if normed else 2

    def tower(found: re.Match[str]) -> str:
        name = "class_tower" if found[1] == "classification" else "box_tower"
        return f"head.{name}.{int(found[2]) * per_block + int(found[3])}"

    renamed = {}
    for key, value in state.items():
        for pattern, ours in _RENAMED:
            key = re.sub(pattern, ours, key)
        renamed[re.sub(r"head\.(classification|regression)_head\.conv\.(\d+)\.(\d+)", tower, key)] = value
    return renamed
