"""Torchvision's RetinaNet in our terms, a config and weights: how weights pretrained on COCO come in."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor, nn
from torchvision.models.detection import RetinaNet as TorchvisionRetinaNet
from torchvision.models.detection import retinanet_resnet50_fpn, retinanet_resnet50_fpn_v2
from torchvision.ops import FrozenBatchNorm2d

from ghmdet.errors import CheckpointError, GhmdetError
from ghmdet.models.presets import ModelConfig

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
    config = _config(model)
    return Converted(config, names, _renamed(model.state_dict(), config.norm_groups > 0))


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
        # Not `fitting`: torchvision's own loading knows the names of its older files.
        missing = model.load_state_dict(dict(state), strict=False).missing_keys
    except RuntimeError as error:  # says in several lines which shapes differ
        raise CheckpointError(" ".join(str(error).split())[:300]) from error
    lacking = [name for name in missing if not name.endswith("num_batches_tracked")]
    if lacking:
        raise CheckpointError(f"'{lacking[0]}' is missing")
    return from_model(model)


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
