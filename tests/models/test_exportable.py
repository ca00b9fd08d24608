from __future__ import annotations

import dataclasses

import pytest
import torch
from detector_cases import TINY

from ghmdet.models import PRESETS, ModelConfig, RetinaNet
from ghmdet.models.exportable import Exportable
from ghmdet.models.preprocess import scale_boxes

RESNET = dataclasses.replace(
    PRESETS["r50"],
    backbone="resnet18.tv_in1k",
    channels=16,
    tower_depth=1,
    anchor_sizes=tuple((8.0 * 2**level, 11.0 * 2**level) for level in range(5)),
    min_size=96,
    max_size=128,
)
"""Torchvision's anchors and preprocessing, five levels, plain NMS."""


def busy(config: ModelConfig, classes: int = 3) -> RetinaNet:
    """A random detector whose scores are of every size, with boxes that overlap."""
    model = RetinaNet(config, [f"class {label}" for label in range(classes)]).eval()
    with torch.no_grad():
        model.head.class_logits.weight.normal_(0, 0.1)
        model.head.class_logits.bias.fill_(-2)
        model.head.box_deltas.weight.normal_(0, 0.05)
    return model


CONFIGS = {
    "soft": TINY,
    "few": dataclasses.replace(TINY, detections_per_image=7, topk_candidates=40),
    "plain NMS": dataclasses.replace(TINY, soft_nms=False, nms_iou=0.5, detections_per_image=11),
    "torchvision's": RESNET,
    "nothing": dataclasses.replace(TINY, score_threshold=0.9999999),
}


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("sides", [(96, 128), (130, 97), (96, 96), (300, 211), (40, 300), (37, 23)])
def test_it_detects_what_the_detector_does(name: str, sides: tuple[int, int]) -> None:
    model = busy(CONFIGS[name])
    image = torch.rand(3, *sides)
    with torch.inference_mode():
        wanted = model([image])[0]
        batch = model.preprocess([image])
        boxes, scores, labels = Exportable(model)(batch.images, torch.tensor(batch.sizes[0]))
        logits, deltas = Exportable(model, detections=False)(batch.images)
        raw = model.forward_raw(batch.images)
    assert (len(scores) > 0) == (name != "nothing")
    assert len(scores) == len(wanted["scores"])
    boxes = scale_boxes(boxes, batch.sizes[0], batch.original_sizes[0])
    unlike = (boxes[:, None] - wanted["boxes"]).abs().amax(dim=2)  # equally good ones may change places
    unlike += 1e3 * (scores[:, None] - wanted["scores"]).abs() + 1e3 * (labels[:, None] != wanted["labels"])
    assert all((unlike.min(dim=side).values < 0.02).all() for side in (0, 1) if len(scores))
    assert (scores.diff() <= 0).all()
    torch.testing.assert_close((logits, deltas), raw, rtol=0, atol=1e-4)


def test_the_detector_itself_is_left_as_it_is() -> None:
    model = busy(TINY).train()
    before = {name: (type(module), module.training) for name, module in model.named_modules()}
    Exportable(model)
    assert {name: (type(module), module.training) for name, module in model.named_modules()} == before
