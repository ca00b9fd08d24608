from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from detector_cases import TINY
from torch import Tensor
from torchvision.ops import batched_nms, box_iou

from ghmdet.models import PRESETS, ModelConfig, RetinaNet
from ghmdet.models.postprocess import FAINTEST, SIGMA, TAU, soften


def slow_soften(boxes: Tensor, scores: Tensor, labels: Tensor, keep: Tensor, most: int) -> list[tuple]:
    """As the docstring says it, one box after another."""
    found = []
    for place, i in enumerate(keep.tolist()):
        above = [j for j in keep[:place].tolist() if labels[j] == labels[i]]
        overlaps = [float(box_iou(boxes[None, i], boxes[None, j])) for j in above]
        score = float(scores[i]) * math.exp(-sum(iou**2 for iou in overlaps) / SIGMA)
        votes, total = torch.zeros(4, dtype=torch.float64), 0.0
        for j in range(len(boxes)):
            iou = float(box_iou(boxes[None, i], boxes[None, j]))
            if labels[j] == labels[i] and iou >= 0.5:
                vote = float(scores[j]) * math.exp(-((1 - iou) ** 2) / TAU)
                votes, total = votes + vote * boxes[j].double(), total + vote
        if score > FAINTEST:
            found.append((score, int(labels[i]), (votes / total).tolist()))
    return sorted(found, key=lambda one: -one[0])[:most]


@pytest.mark.parametrize(("count", "most"), [(0, 9), (1, 9), (40, 9), (120, 300)])
def test_it_is_what_its_words_say(count: int, most: int) -> None:
    torch.manual_seed(count)
    corner = torch.rand(count, 2) * 30
    boxes = torch.cat([corner, corner + 5 + 15 * torch.rand(count, 2)], dim=1)
    scores, labels = torch.rand(count).clamp_min(0.05), torch.randint(0, 3, (count,))
    keep = batched_nms(boxes, scores, labels, 0.7)
    found = soften(boxes, scores, labels, keep, most)
    slow = slow_soften(boxes, scores, labels, keep, most)
    assert [len(part) for part in found] == [len(slow)] * 3
    for box, score, label, (slow_score, slow_label, slow_box) in zip(*found, slow, strict=True):
        assert math.isclose(score, slow_score, rel_tol=1e-5)
        assert label == slow_label
        torch.testing.assert_close(box.tolist(), slow_box, rtol=1e-5, atol=1e-4)


def test_a_double_fades_another_class_does_not_and_half_sure_neighbours_move_the_box() -> None:
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 8], [0, 0, 10, 10], [50, 50, 60, 60]])
    scores, labels = torch.tensor([0.9, 0.8, 0.7, 0.6]), torch.tensor([0, 0, 1, 0])
    softened, faded, classes = soften(boxes, scores, labels, torch.arange(4), 300)
    assert classes.tolist() == [0, 1, 0, 0]
    torch.testing.assert_close(faded, torch.tensor([0.9, 0.7, 0.6, 0.8 * math.exp(-0.64 / SIGMA)]))
    vote = 0.8 * math.exp(-0.04 / TAU)
    assert softened[0, 3].item() == pytest.approx((0.9 * 10 + vote * 8) / (0.9 + vote))
    assert softened[1].tolist() == [0, 0, 10, 10]
    assert softened[2].tolist() == pytest.approx([50, 50, 60, 60])


def test_a_candidate_that_is_no_number_spoils_no_other() -> None:
    boxes = torch.tensor([[0.0, 0, 10, 10], [50, 50, 60, 60], [math.nan, 0, 5, 5], [0, math.inf, 5, 5]])
    scores, labels = torch.tensor([0.9, 0.8, 0.7, 0.6]), torch.tensor([0, 1, 0, 1])
    softened, _, _ = soften(boxes, scores, labels, torch.tensor([0, 1]), 10)
    torch.testing.assert_close(softened, boxes[:2])


def test_corners_are_not_rounded_under_autocast() -> None:
    boxes = torch.tensor([[1000.1, 7.3, 1033.7, 29.9]])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        softened, _, _ = soften(boxes, torch.tensor([0.5]), torch.tensor([0]), torch.tensor([0]), 1)
    torch.testing.assert_close(softened, boxes)


def test_published_detectors_keep_their_rules_and_a_config_of_before_is_not_softened() -> None:
    assert {name for name, config in PRESETS.items() if config.soft_nms} == {"nano", "r18", "r50_small"}
    before = {
        k: v for k, v in dataclasses.asdict(PRESETS["nano"]).items() if k not in ("soft_nms", "nms_iou")
    }
    assert not ModelConfig.from_dict(before).soft_nms
    assert ModelConfig.from_dict(before).nms_iou == 0.5


@pytest.mark.parametrize("soft", [False, True])
def test_no_detection_is_without_area_and_scores_fall(soft: bool) -> None:
    torch.manual_seed(0)
    model = RetinaNet(dataclasses.replace(TINY, soft_nms=soft, score_threshold=0.001), ["a", "b"]).eval()
    with torch.no_grad():
        found = model([torch.rand(3, 40, 128), torch.rand(3, 96, 30)])
    for one in found:
        assert len(one["scores"])
        assert (one["boxes"][:, 2:] > one["boxes"][:, :2]).all()
        assert (one["scores"].diff() <= 0).all()
        assert len(one["scores"]) <= model.config.detections_per_image
