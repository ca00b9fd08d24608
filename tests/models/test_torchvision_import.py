from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import nn
from torchvision.models.detection import fcos_resnet50_fpn, retinanet_resnet50_fpn, retinanet_resnet50_fpn_v2
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.ops import FrozenBatchNorm2d

from ghmdet.errors import GhmdetError
from ghmdet.models import PRESETS, RetinaNet

VERSIONS = {"v1": retinanet_resnet50_fpn, "v2": retinanet_resnet50_fpn_v2}


def lively(version, num_classes, **options):
    """Torchvision's detector with random weights whose scores and boxes spread, so that a difference would show."""
    options = {"min_size": 128, "max_size": 200, **options}
    model = VERSIONS[version](weights=None, weights_backbone=None, num_classes=num_classes, **options).eval()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d | FrozenBatchNorm2d):
                module.running_var.uniform_(0.5, 1.5)
                module.running_mean.normal_(0, 0.1)
                module.weight.uniform_(0.3, 0.7)  # or the residuals grow, and rounding errors with them
                module.bias.normal_(0, 0.1)
        classes, boxes = model.head.classification_head.cls_logits, model.head.regression_head.bbox_reg
        classes.bias.zero_()
        raw = model.head(list(model.backbone(torch.randn(1, 3, 128, 192)).values()))
        classes.weight *= 1 / raw["cls_logits"].std()
        boxes.weight *= 0.5 / raw["bbox_regression"].std()
        raw = model.head(list(model.backbone(torch.randn(1, 3, 128, 192)).values()))
        classes.bias -= 2.5 + raw["cls_logits"].view(-1, len(classes.bias)).mean(dim=0)
    return model


def assert_same_detections(model, images):
    # The networks in float64: in float32 machines differ by more than a wrong epsilon of a batch norm does.
    ours = RetinaNet.from_torchvision(model).double()
    assert not ours.training
    preprocess = ours.preprocess
    ours.preprocess = lambda pictures: (batch := preprocess(pictures))._replace(images=batch.images.double())
    model = model.double()
    with torch.no_grad():
        pixels = torch.rand(2, 3, 128, 192, dtype=torch.float64)
        raw = model.head(list(model.backbone(pixels).values()))
        for mine, theirs in zip(
            ours.forward_raw(pixels), (raw["cls_logits"], raw["bbox_regression"]), strict=True
        ):
            torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-9)
        expected, got = model([image.double() for image in images]), ours(images)
    for theirs, mine in zip(expected, got, strict=True):
        # Torchvision keeps what its clipping leaves no area of: anchors in the padding have such boxes.
        area = (theirs["boxes"][:, 2:] > theirs["boxes"][:, :2]).all(dim=1)
        theirs = {name: value[area] for name, value in theirs.items()}
        assert len(theirs["scores"]) >= 5
        assert theirs["scores"].std() > 0.01  # neither saturated nor all alike
        assert theirs["labels"].unique().numel() > 1
        for name in ("boxes", "scores", "labels"):
            torch.testing.assert_close(mine[name], theirs[name], rtol=0, atol=1e-4, check_dtype=False)


@pytest.mark.parametrize("num_classes", [2, 91])
@pytest.mark.parametrize("version", VERSIONS)
def test_detections_equal_torchvisions(version, num_classes):
    assert_same_detections(lively(version, num_classes), [torch.rand(3, 111, 173), torch.rand(3, 140, 97)])


# In the first the limits bind and the threshold does not, in the second it is the other way round.
@pytest.mark.parametrize(
    "limits",
    [
        {"score_thresh": 0.05, "topk_candidates": 40, "detections_per_img": 60},
        {"score_thresh": 0.25, "topk_candidates": 900, "detections_per_img": 250},
    ],
)
def test_settings_of_the_model_are_taken_over(limits):
    anchors = AnchorGenerator(tuple((side, side * 1.5) for side in (20, 40, 80, 160, 320)), ((0.4, 1.0),) * 5)
    model = lively(
        "v1",
        5,
        min_size=(96, 120),
        max_size=180,
        image_mean=[0.4, 0.5, 0.6],
        image_std=[0.3, 0.2, 0.25],
        size_divisible=128,
        anchor_generator=anchors,
        nms_thresh=0.3,
        fg_iou_thresh=0.6,
        bg_iou_thresh=0.3,
        **limits,
    )
    assert_same_detections(model, [torch.rand(3, 170, 115), torch.rand(3, 155, 290)])
    config = RetinaNet.from_torchvision(model).config
    assert (config.positive_iou, config.background_iou) == (0.6, 0.3)


def test_frozen_batch_norm_and_its_epsilon_are_taken_over():
    # As the published COCO weights of the first version have it: FrozenBatchNorm2d with an epsilon of 0.
    model = lively("v1", 3)
    model.backbone.body = _frozen(model.backbone.body)
    assert_same_detections(model, [torch.rand(3, 111, 173)])
    config = RetinaNet.from_torchvision(model).config
    assert config.freeze_batch_norm
    assert config.batch_norm_eps == 0.0


def _frozen(module):
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm2d):
            norm = FrozenBatchNorm2d(child.num_features, eps=0.0)
            norm.load_state_dict({k: v for k, v in child.state_dict().items() if k != "num_batches_tracked"})
            setattr(module, name, norm)
        else:
            _frozen(child)
    return module


@pytest.mark.parametrize(("version", "preset"), [("v1", "r50"), ("v2", "r50_v2")])
def test_presets_are_torchvisions_own_settings(version, preset):
    model = VERSIONS[version](weights=None, weights_backbone=None, num_classes=2)
    config = RetinaNet.from_torchvision(model).config
    assert dataclasses.replace(config, freeze_batch_norm=True) == PRESETS[preset]


def test_classes_can_be_named_and_it_trains(batch):
    model = lively("v2", 2).train()
    ours = RetinaNet.from_torchvision(model, classes=["background", "cell"])
    assert ours.classes == ("background", "cell")
    assert ours.training
    assert sum(ours(*batch).values()).isfinite()
    with pytest.raises(GhmdetError, match="1 class names for a torchvision model with 2 outputs"):
        RetinaNet.from_torchvision(model, classes=["cell"])


def test_another_network_is_refused():
    with pytest.raises(GhmdetError, match=r"takes torchvision's retinanet_resnet50_fpn .* got FCOS"):
        RetinaNet.from_torchvision(fcos_resnet50_fpn(weights=None, weights_backbone=None, num_classes=2))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (
            lambda model: setattr(model.transform, "fixed_size", (96, 96)),
            "fixed_size does not keep the picture's aspect",
        ),
        (
            lambda model: setattr(
                model, "anchor_generator", AnchorGenerator(((32,),) * 5, ((0.5, 1.0), *((1.0, 2.0),) * 4))
            ),
            r"all levels need the same anchor ratios, the torchvision model has \(\(0\.5, 1\.0\)",
        ),
        (lambda model: model.backbone.body.pop("layer1"), "backbone is no ResNet"),
    ],
)
def test_a_model_of_another_kind_is_refused(spoil, message):
    model = retinanet_resnet50_fpn(weights=None, weights_backbone=None, num_classes=3)
    spoil(model)
    with pytest.raises(GhmdetError, match=message):
        RetinaNet.from_torchvision(model)
