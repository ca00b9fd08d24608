from __future__ import annotations

import copy
import dataclasses

import pytest
import torch
from torch import nn

from ghmdet.engine.optim import WeightAverage
from ghmdet.errors import GhmdetError
from ghmdet.models import PRESETS, DetectionLoss, LossConfig, RetinaNet
from ghmdet.models.anchors import make_anchors
from operations import MASK, Operations, on_meta


def trained_enough(config, classes=("bright", "dark")):
    """A detector whose random scores lie around .3, so that detections come out."""
    model = RetinaNet(config, classes)
    nn.init.constant_(model.head.class_logits.bias, -0.8)
    return model.eval()


def test_detections_lie_in_the_picture_and_fall_in_score(tiny):
    images = [torch.rand(3, 60, 91), torch.rand(3, 200, 150)]
    with torch.no_grad():
        detections = trained_enough(tiny)(images)
    for image, found in zip(images, detections, strict=True):
        height, width = image.shape[1:]
        assert 0 < len(found["boxes"]) <= tiny.detections_per_image
        assert (found["boxes"] >= 0).all()
        assert (found["boxes"] <= torch.tensor([width, height, width, height]) + 1e-3).all()
        assert (found["boxes"][:, 2:] > found["boxes"][:, :2]).all()
        assert (found["scores"].diff() <= 0).all()
        assert found["labels"].dtype == torch.int64
        assert set(found["labels"].tolist()) == {0, 1}


def test_nothing_above_the_threshold_gives_empty_detections(tiny):
    model = RetinaNet(tiny, ["a"]).eval()
    found = model([torch.rand(3, 96, 128)])[0]
    assert (found["boxes"].shape, found["scores"].shape, found["labels"].shape) == ((0, 4), (0,), (0,))


def test_raw_outputs_are_level_by_level_and_belong_to_their_anchors(tiny):
    # A step of one class's bias shows that logits are [.., K] last; one cell's change shows where it sits.
    model = trained_enough(tiny)
    images = torch.randn(2, 3, 96, 128)
    logits, deltas = model.forward_raw(images)
    _, counts = make_anchors(tiny, 96, 128, torch.device("cpu"))
    assert logits.shape == (2, sum(counts), 2)
    assert deltas.shape == (2, sum(counts), 4)
    with torch.no_grad():
        model.head.class_logits.bias[2 * 3 + 1] += 5  # fourth anchor of each place, second class
    moved = model.forward_raw(images)[0] - logits
    expected = torch.zeros_like(moved)
    expected[:, 3 :: tiny.anchors_per_cell, 1] = 5
    torch.testing.assert_close(moved, expected, rtol=0, atol=1e-4)


def test_channels_last_changes_nothing(tiny):
    model = trained_enough(tiny)
    images = torch.randn(2, 3, 96, 128)
    with torch.no_grad():
        expected = model.forward_raw(images)
        got = model.to(memory_format=torch.channels_last).forward_raw(
            images.to(memory_format=torch.channels_last)
        )
    torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-4)


def test_bf16_autocast_trains(tiny, batch):
    model = RetinaNet(tiny, ["bright", "dark"]).train()
    with torch.autocast("cpu", torch.bfloat16):
        losses = model(*batch)
    sum(losses.values()).backward()
    assert all(loss.dtype == torch.float32 for loss in losses.values())
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)


def test_every_trainable_weight_gets_a_gradient_and_frozen_norm_does_not_move(tiny, batch):
    model = RetinaNet(dataclasses.replace(tiny, freeze_batch_norm=True), ["bright", "dark"]).train()
    before = copy.deepcopy(model.backbone.state_dict())
    sum(model(*batch).values()).backward()
    norms = {id(p) for norm in model.backbone.batch_norms() for p in norm.parameters()}
    for name, parameter in model.named_parameters():
        assert (parameter.grad is not None) == (id(parameter) not in norms), name
    assert all(torch.equal(value, before[name]) for name, value in model.backbone.state_dict().items())


def test_free_batch_norm_moves(tiny, batch):
    model = RetinaNet(dataclasses.replace(tiny, freeze_batch_norm=True), ["bright", "dark"]).train()
    model.freeze_batch_norm(False)
    before = copy.deepcopy(model.backbone.state_dict())
    sum(model(*batch).values()).backward()
    assert any(not torch.equal(value, before[n]) for n, value in model.backbone.state_dict().items())
    assert not model.config.freeze_batch_norm


def test_a_batch_without_any_box_trains(tiny, batch):
    images, _ = batch
    empty = [{"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)} for _ in images]
    model = RetinaNet(tiny, ["a"]).train()
    losses = model(images, empty)
    sum(losses.values()).backward()
    assert losses["bbox_regression"] == 0
    assert model.head.class_logits.weight.grad.abs().sum() > 0


def test_targets_are_scaled_with_their_picture(tiny, batch):
    # At twice the size the model sees the same picture: anchors, and so losses, must agree.
    images, targets = batch
    twice = [image.repeat_interleave(2, 1).repeat_interleave(2, 2) for image in images]
    large = [{"boxes": 2 * target["boxes"], "labels": target["labels"]} for target in targets]
    config = dataclasses.replace(tiny, antialias=False)  # halving is then the mean of 2 x 2 equal pixels
    model = RetinaNet(config, ["bright", "dark"], LossConfig("ce", "smooth-l1"))
    model.freeze_batch_norm(True)
    expected, got = model.train()(images, targets), model(twice, large)
    for name in expected:
        torch.testing.assert_close(got[name], expected[name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("prior", [0.01, 0.1])
def test_scores_start_at_the_prior_and_do_so_again_for_other_classes(tiny, prior):
    model = RetinaNet(dataclasses.replace(tiny, prior=prior), ["a"]).eval()
    images = torch.randn(1, 3, 96, 128)
    nn.init.constant_(model.head.class_logits.bias, 3.0)
    model.set_classes(["x", "y", "z"])
    with torch.no_grad():
        scores = model.forward_raw(images)[0].sigmoid()
    assert model.classes == ("x", "y", "z")
    assert scores.shape[-1] == 3
    assert scores.mean().item() == pytest.approx(prior, rel=0.05)


def test_other_classes_train_at_once(tiny, batch):
    model = RetinaNet(tiny, ["a"]).train()
    model.set_classes(["bright", "dark"])
    assert isinstance(model.loss, DetectionLoss)
    assert sum(model(*batch).values()).isfinite()


@pytest.mark.parametrize(
    ("classes", "message"),
    [([], "at least one name"), ("cat", "must be a list"), (["a", "b", "a"], "class 'a' is named twice")],
)
def test_bad_classes_are_refused(tiny, classes, message):
    with pytest.raises(GhmdetError, match=message):
        RetinaNet(tiny, classes)


def test_training_without_targets_says_so(tiny):
    with pytest.raises(GhmdetError, match="needs targets"):
        RetinaNet(tiny, ["a"]).train()([torch.rand(3, 96, 128)])


@pytest.mark.parametrize(
    ("name", "message"), [("resnet51", "unknown backbone 'resnet51'"), ("vit_tiny_patch16_224", "strides")]
)
def test_an_unfit_backbone_is_refused(tiny, name, message):
    with pytest.raises(GhmdetError, match=message):
        RetinaNet(dataclasses.replace(tiny, backbone=name), ["a"])


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_give_as_many_predictions_as_anchors(preset):
    config = dataclasses.replace(PRESETS[preset], channels=32)
    model = RetinaNet(config, ["a", "b"]).eval()
    with torch.no_grad():
        logits, _ = model.forward_raw(torch.randn(1, 3, 96, 160))
    assert logits.shape[1] == len(make_anchors(config, 96, 160, torch.device("cpu"))[0])


class Raw(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, images):
        return self.model.forward_raw(images)


def test_forward_raw_exports(tiny):
    model = trained_enough(tiny)
    images = torch.randn(2, 3, 96, 128)
    exported = torch.export.export(Raw(model), (images,)).module()
    with torch.no_grad():
        torch.testing.assert_close(exported(images), model.forward_raw(images))


def test_same_seed_same_detector(tiny):
    states = []
    for _ in range(2):
        torch.manual_seed(3)
        states.append(RetinaNet(tiny, ["a"]).state_dict())
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())


@pytest.mark.parametrize("cls_loss", ["ghm-c", "ohem-per-class"])
def test_no_part_of_a_training_step_reads_a_value_of_an_accelerator(cls_loss, tiny, monkeypatch):
    with on_meta(monkeypatch):
        model = RetinaNet(tiny, ["a", "b"], LossConfig(cls_loss)).train()
        images = [torch.rand(3, 96, 128), torch.rand(3, 90, 100)]
        targets = [{"boxes": torch.rand(n, 4), "labels": torch.zeros(n, dtype=torch.int64)} for n in (3, 0)]
    average = WeightAverage(model, 0.9)
    with Operations() as seen:
        sum(model(images, targets).values()).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        average.update(model)
    # Reading a value raises there; writing by a mask does not.
    assert "index_add_" in seen.names and MASK not in seen.names
