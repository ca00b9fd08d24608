"""Boxes as offsets from their anchors, and back."""

import math

import torch
from torch import Tensor

# A box grows to at most 62.5 times its anchor: exp of an untrained offset must not overflow.
_MAX_LOG_SCALE = math.log(1000 / 16)


def encode(boxes: Tensor, anchors: Tensor) -> Tensor:
    """Offsets (dx, dy, dw, dh) [..., 4] of boxes [..., 4] from anchors [..., 4] (xyxy pixels, positive sizes).

    dx = (x - x_a) / w_a, dy alike for the centres; dw = log(w / w_a), dh alike (Girshick et al. 2014, appendix C).

    >>> anchor = torch.tensor([0.0, 0.0, 10.0, 10.0])
    >>> encode(torch.tensor([5.0, 0.0, 15.0, 10.0]), anchor)
    tensor([0.5000, 0.0000, 0.0000, 0.0000])
    """
    xy, wh = _centre_size(boxes)
    anchor_xy, anchor_wh = _centre_size(anchors)
    return torch.cat(((xy - anchor_xy) / anchor_wh, torch.log(wh / anchor_wh)), dim=-1)


def decode(deltas: Tensor, anchors: Tensor) -> Tensor:
    """Boxes (xyxy pixels) [..., 4] that lie at offsets [..., 4] from anchors [..., 4]: the inverse of `encode`."""
    anchor_xy, anchor_wh = _centre_size(anchors)
    xy = deltas[..., :2] * anchor_wh + anchor_xy
    half = 0.5 * deltas[..., 2:].clamp(max=_MAX_LOG_SCALE).exp() * anchor_wh
    return torch.cat((xy - half, xy + half), dim=-1)


def _centre_size(boxes: Tensor) -> tuple[Tensor, Tensor]:
    size = boxes[..., 2:] - boxes[..., :2]
    return boxes[..., :2] + 0.5 * size, size
