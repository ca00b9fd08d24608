"""How well boxes fit their targets, pair by pair: IoU, and the losses made of it.

The numbers of torchvision's losses, which look for the pairs that overlap and so make an accelerator's caller wait.
"""

import math

import torch
from torch import Tensor


def giou_loss(boxes: Tensor, targets: Tensor) -> Tensor:
    """1 − GIoU of boxes [N, 4] with their targets [N, 4] (xyxy): [N] (Rezatofighi et al. 2019)."""
    iou, union, width, height = paired_iou(boxes, targets)
    around = width * height
    return 1 - iou + (around - union) / (around + 1e-7)


def ciou_loss(boxes: Tensor, targets: Tensor) -> Tensor:
    """1 − CIoU of boxes [N, 4] with their targets [N, 4] (xyxy): [N] (Zheng et al. 2020)."""
    iou, _, width, height = paired_iou(boxes, targets)
    distance = (boxes[:, :2] + boxes[:, 2:] - targets[:, :2] - targets[:, 2:]).square().sum(-1) / 4
    sizes, wanted = boxes[:, 2:] - boxes[:, :2], targets[:, 2:] - targets[:, :2]
    v = (4 / math.pi**2) * (torch.atan2(*wanted.unbind(-1)) - torch.atan2(*sizes.unbind(-1))).square()
    alpha = (v / (1 - iou + v + 1e-7)).detach()
    return 1 - iou + distance / (width.square() + height.square() + 1e-7) + alpha * v


def paired_iou(boxes: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """IoU, area of the union, width and height of the smallest box around both, of boxes [N, 4] (xyxy): each [N]."""
    x1, y1, x2, y2 = boxes.unbind(-1)
    u1, v1, u2, v2 = targets.unbind(-1)
    width = torch.minimum(x2, u2) - torch.maximum(x1, u1)
    height = torch.minimum(y2, v2) - torch.maximum(y1, v1)
    overlap = torch.where((width > 0) & (height > 0), width * height, 0.0)
    union = (x2 - x1) * (y2 - y1) + (u2 - u1) * (v2 - v1) - overlap
    width, height = (
        torch.maximum(x2, u2) - torch.minimum(x1, u1),
        torch.maximum(y2, v2) - torch.minimum(y1, v1),
    )
    return overlap / (union + 1e-7), union, width, height
