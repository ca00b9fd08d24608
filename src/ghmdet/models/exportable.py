"""The detector as one function of tensors, which torch.export can write down: network, candidates, NMS, soft-NMS."""

import copy

import torch
from torch import Tensor, nn
from torchvision.ops import box_iou, nms

from ghmdet.models.anchors import level_anchors
from ghmdet.models.box_coder import decode
from ghmdet.models.folding import pad_evenly
from ghmdet.models.postprocess import FAINTEST, SIGMA, TAU
from ghmdet.models.retinanet import RetinaNet


class Exportable(nn.Module):
    """A detector for one picture that is scaled, normalised and padded already, at any size that fits its strides.

    The same detections as `ghmdet.models.postprocess`, written without lengths that Python would have to know.

    detections: give boxes, scores and labels; otherwise what `RetinaNet.forward_raw` gives. dtype: of the network's
    numbers; what comes in and goes out, and the boxes' arithmetic, are float32 all the same.
    """

    def __init__(
        self, model: RetinaNet, *, detections: bool = True, dtype: torch.dtype = torch.float32
    ) -> None:
        super().__init__()
        model = copy.deepcopy(model).eval().cpu().to(memory_format=torch.contiguous_format)
        pad_evenly(model.backbone.body)  # else the graph would compute the padding for each picture
        self.network = nn.ModuleList([model.backbone, model.neck, model.head]).to(dtype)
        self.dtype = dtype
        self.config = model.config
        self.detections = detections

    def forward(self, images: Tensor, size: Tensor | None = None) -> tuple[Tensor, ...]:
        """images [1, 3, H, W], H and W multiples of the config's `size_divisible`; size [2]: the picture's own height
        and width in it.

        Returns boxes [n, 4] (xyxy pixels of the scaled picture), scores [n] (falling) and labels [n]; or logits
        [1, A, K] and box offsets [1, A, 4].
        """
        backbone, neck, head = self.network
        logits, deltas = (each.float() for each in head(neck(backbone(images.to(self.dtype)))))
        if not self.detections:
            return logits, deltas
        assert size is not None
        limits = size.to(torch.float32).flip(0).repeat(2)  # x y x y
        start, found = 0, []
        for anchors in level_anchors(self.config, images.shape[2], images.shape[3]):
            end = start + anchors.shape[0]
            found.append(self._candidates(logits[0, start:end], deltas[0, start:end], anchors, limits))
            start = end
        boxes, scores, labels = (torch.cat(parts) for parts in zip(*found, strict=True))
        return self._best(boxes, scores, labels, limits)

    def _candidates(
        self, logits: Tensor, deltas: Tensor, anchors: Tensor, limits: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """One level's candidates: logits [a, K] -> boxes [n, 4], scores [n], labels [n]."""
        scores = logits.sigmoid().flatten()
        above = (scores > self.config.score_threshold).nonzero()[:, 0]
        place = above[_first(scores[above], self.config.topk_candidates)]
        anchor, label = place // logits.shape[1], place % logits.shape[1]
        boxes = decode(deltas[anchor], anchors[anchor])
        return torch.minimum(boxes.clamp(min=0), limits), scores[place], label

    def _best(
        self, boxes: Tensor, scores: Tensor, labels: Tensor, limits: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """What NMS, class by class, leaves of candidates, with `soft_nms` as by `ghmdet.models.postprocess.soften`."""
        config = self.config
        apart = labels.to(torch.float32)[:, None] * (limits.max() + 1)
        # torch.export takes it that NMS leaves two: two far-off boxes, whose score is least, always stay, and go again.
        corner = torch.tensor([[-2.0], [-4.0]])
        far = torch.cat((corner, corner, corner + 1, corner + 1), dim=1)
        padded = torch.cat((boxes + apart, far)), torch.cat((scores, torch.zeros(2)))
        keep = nms(*padded, config.nms_iou)[:-2]
        most = config.topk_candidates if config.soft_nms else config.detections_per_image
        keep = keep[_first(scores[keep], most)]
        keep = keep[(boxes[keep, 2:] > boxes[keep, :2]).all(dim=1).nonzero()[:, 0]]
        if not config.soft_nms:
            return boxes[keep], scores[keep], labels[keep]
        kept = boxes[keep] + apart[keep]  # those of different classes do not overlap
        iou = box_iou(kept, kept).triu(1)
        decayed = scores[keep] * torch.exp(-iou.square().sum(dim=0) / SIGMA)
        order = _first(decayed, config.detections_per_image)
        order = order[(decayed[order] > FAINTEST).nonzero()[:, 0]]
        keep, decayed = keep[order], decayed[order]
        iou = box_iou(boxes[keep] + apart[keep], boxes + apart)
        votes = torch.where(iou >= 0.5, scores * torch.exp(-(1 - iou).square() / TAU), 0.0)
        boxes = votes @ boxes / votes.sum(dim=1, keepdim=True)
        return torch.minimum(boxes.clamp(min=0), limits), decayed, labels[keep]


def _first(scores: Tensor, most: int) -> Tensor:
    """Places of the highest `most` scores, highest first."""
    order = scores.sort(descending=True).indices
    return order[(torch.arange(order.shape[0]) < most).nonzero()[:, 0]]
