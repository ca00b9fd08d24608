"""From logits and offsets to detections."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torchvision.ops import batched_nms, clip_boxes_to_image

from ghmdet.models.box_coder import decode
from ghmdet.models.preprocess import Batch, Size, scale_boxes
from ghmdet.models.presets import ModelConfig


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
    are torchvision's: the best candidates of each level above the threshold, then NMS class by class. Left out are only
    boxes without area, which torchvision keeps.
    """
    logits, deltas = logits.float(), deltas.float()
    counts, detections = list(level_counts), []
    for index, (size, original) in enumerate(zip(batch.sizes, batch.original_sizes, strict=True)):
        levels = zip(
            torch.split(logits[index], counts),
            torch.split(deltas[index], counts),
            torch.split(anchors, counts),
            strict=True,
        )
        candidates = [_candidates(*level, size, config) for level in levels]
        boxes, scores, labels = (torch.cat(parts) for parts in zip(*candidates, strict=True))
        keep = batched_nms(boxes, scores, labels, config.nms_iou)[: config.detections_per_image]
        keep = keep[
            (boxes[keep, 2:] > boxes[keep, :2]).all(dim=1)
        ]  # clipping leaves nothing of those in the padding
        detections.append(
            {
                "boxes": scale_boxes(boxes[keep], size, original),
                "scores": scores[keep],
                "labels": labels[keep],
            }
        )
    return detections


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
