"""From logits and offsets to detections."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torchvision.ops import batched_nms, box_iou, clip_boxes_to_image

from ghmdet.models.box_coder import decode
from ghmdet.models.preprocess import Batch, Size, scale_boxes
from ghmdet.models.presets import ModelConfig

SIGMA, TAU = 0.5, 0.02  # of `soften`
FAINTEST = 0.01  # score below which a softened detection is left out


def postprocess(
    logits: Tensor,
    deltas: Tensor,
    anchors: Tensor,
    level_counts: Sequence[int],
    batch: Batch,
    config: ModelConfig,
) -> list[dict[str, Tensor]]:
    """Detections of each picture in its own pixels: boxes [n, 4] xyxy, scores [n] falling, labels [n] in 0..K-1.

    logits [B, A, K], deltas [B, A, 4], anchors [A, 4]; `level_counts` splits A into the pyramid's levels. The rules
    are torchvision's: the best candidates of each level above the threshold, then NMS class by class; with `soft_nms`
    what NMS leaves is weighed by `soften`. Boxes without area, which torchvision keeps, are left out.
    """
    logits, deltas = logits.float(), deltas.float()
    counts, detections = list(level_counts), []
    for index, (size, original) in enumerate(zip(batch.sizes, batch.original_sizes, strict=True)):
        split = (torch.split(x, counts) for x in (logits[index], deltas[index], anchors))
        candidates = [_candidates(x, d, a, size, config) for x, d, a in zip(*split, strict=True)]
        boxes, scores, labels = (torch.cat(parts) for parts in zip(*candidates, strict=True))
        most = config.topk_candidates if config.soft_nms else config.detections_per_image
        keep = batched_nms(boxes, scores, labels, config.nms_iou)[:most]
        # Clipping leaves nothing of some in the padding.
        keep = keep[(boxes[keep, 2:] > boxes[keep, :2]).all(dim=1)]
        if config.soft_nms:
            boxes, scores, labels = soften(boxes, scores, labels, keep, config.detections_per_image)
            boxes = clip_boxes_to_image(boxes, size)  # a mean may round to just outside
        else:
            boxes, scores, labels = boxes[keep], scores[keep], labels[keep]
        detections.append({"boxes": scale_boxes(boxes, size, original), "scores": scores, "labels": labels})
    return detections


def soften(
    boxes: Tensor, scores: Tensor, labels: Tensor, keep: Tensor, most: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Doubles score less, and each box is a mean of the candidates that mean the same object.

    The score of a kept box is multiplied by exp(−Σ IoU² / σ) over the kept boxes of its class that score higher
    (soft-NMS, Bodla et al. 2017, all at once). Its corners are the mean of those of all candidates of its class that it
    overlaps by half or more, weighed by score · exp(−(1 − IoU)² / τ) (variance voting, He et al. 2019). σ and τ are
    those of the two articles.

    boxes [n, 4] xyxy, scores [n], labels [n]: the candidates. keep [m]: those that NMS leaves, each with an area, the
    highest score first. Returns boxes, scores and labels of at most `most` that still score something, the highest
    first.
    """
    iou = _iou_in_class(boxes[keep], labels[keep], boxes[keep], labels[keep])
    decayed = scores[keep] * torch.exp(-iou.triu(1).square().sum(dim=0) / SIGMA)
    decayed, order = decayed.sort(descending=True, stable=True)
    decayed = decayed[decayed > FAINTEST][:most]
    keep = keep[order[: len(decayed)]]
    iou = _iou_in_class(boxes[keep], labels[keep], boxes, labels)
    votes = torch.where(iou >= 0.5, scores * torch.exp(-(1 - iou).square() / TAU), 0.0)
    with torch.autocast(boxes.device.type, enabled=False):  # which would round corners to 8 bits
        corners = torch.where(boxes.isfinite(), boxes, 0.0)  # what has no vote must not count as 0 · NaN
        return votes @ corners / votes.sum(dim=1, keepdim=True), decayed, labels[keep]


def _iou_in_class(boxes: Tensor, labels: Tensor, others: Tensor, their_labels: Tensor) -> Tensor:
    """The IoU of each box [m, 4] with each other one [n, 4], 0 where their classes differ: [m, n]."""
    return torch.where(labels[:, None] == their_labels, box_iou(boxes, others), 0.0)


def _candidates(
    logits: Tensor, deltas: Tensor, anchors: Tensor, size: Size, config: ModelConfig
) -> tuple[Tensor, Tensor, Tensor]:
    # one picture, one level: logits [a, K] -> boxes [n, 4], scores [n], labels [n]
    scores = logits.sigmoid().flatten()  # [a * K]
    above = (scores > config.score_threshold).nonzero()[:, 0]
    scores, order = scores[above].topk(min(config.topk_candidates, len(above)))
    place = above[order]
    anchor, label = place // logits.shape[1], place % logits.shape[1]
    return clip_boxes_to_image(decode(deltas[anchor], anchors[anchor]), size), scores, label
