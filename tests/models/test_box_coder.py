from __future__ import annotations

import torch
from detector_cases import random_boxes
from torchvision.models.detection._utils import BoxCoder

from ghmdet.models.box_coder import decode, encode


def test_decode_undoes_encode():
    boxes, anchors = random_boxes(50), random_boxes(50)
    torch.testing.assert_close(decode(encode(boxes, anchors), anchors), boxes, rtol=1e-5, atol=1e-3)


def test_both_equal_torchvisions():
    boxes, anchors, deltas = random_boxes(50), random_boxes(50), 3 * torch.randn(50, 4)
    coder = BoxCoder((1.0, 1.0, 1.0, 1.0))
    torch.testing.assert_close(encode(boxes, anchors), coder.encode_single(boxes, anchors))
    torch.testing.assert_close(decode(deltas, anchors), coder.decode_single(deltas, anchors))


def test_a_wild_offset_gives_a_finite_box():
    assert decode(torch.full((1, 4), 1e4), random_boxes(1)).isfinite().all()


def test_any_number_of_dimensions_before_the_coordinates():
    boxes, anchors = random_boxes(12), random_boxes(12)
    deltas = encode(boxes, anchors)
    shape = (2, 3, 2, 4)
    assert torch.equal(encode(boxes.view(shape), anchors.view(shape)), deltas.view(shape))
    assert torch.equal(decode(deltas.view(shape), anchors.view(shape)), decode(deltas, anchors).view(shape))
