"""From the boxes given with the pictures to what each anchor should say: checked, padded, matched, a batch at once."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from ghmdet.errors import GhmdetError
from ghmdet.functional import _arguments
from ghmdet.models.preprocess import Batch, scale_boxes
from ghmdet.models.presets import ModelConfig
from ghmdet.words import many

BACKGROUND = -1
BETWEEN = -2
ROUNDS = 8
PAIRS, DEVICE_PAIRS = 1 << 20, 1 << 25
"""Of a box and an anchor, looked at together: memory does not grow with the boxes, and a CPU's cache holds them."""


class AnchorTargets(NamedTuple):
    """What each anchor should say."""

    labels: Tensor
    """[B, A] int64: the class 0..K-1, K for background, -1 for ignored."""
    boxes: Tensor
    """[B, A, 4] xyxy pixels: the matched box, and the anchor itself where there is none."""
    rows: Tensor
    """[B, A] int64: which of the picture's boxes it is, negative where there is none."""


def check_targets(targets: Sequence[Mapping[str, Tensor]], images: int, num_classes: int) -> None:
    """Raise GhmdetError naming picture, box and values where a target cannot be trained on.

    targets: a dict for each of the `images` pictures with boxes [n, 4] (x1 < x2, y1 < y2, finite) and labels [n] int64
        in 0..num_classes-1. Values are looked at on the CPU only: elsewhere the host would have to wait for them.
    """
    if len(targets) != images:
        raise GhmdetError(
            f"{many(len(targets), 'target')} for {many(images, 'image')}; each image needs one (with empty boxes if it"
            " has none)"
        )
    for index, target in enumerate(targets):
        boxes, labels = target["boxes"], target["labels"]
        if boxes.dim() != 2 or boxes.shape[1] != 4 or labels.shape != boxes.shape[:1]:
            raise GhmdetError(
                f"target {index} has boxes {list(boxes.shape)} and labels {list(labels.shape)}; "
                "they must be [n, 4] and [n]"
            )
        if labels.dtype != torch.int64:
            raise GhmdetError(
                f"target {index} has labels of {labels.dtype}; they must be int64 class indices"
            )
        if boxes.device.type != "cpu":
            continue
        good = (boxes[:, 2:] > boxes[:, :2]).all(dim=1) & boxes.isfinite().all(dim=1)
        known = (labels >= 0) & (labels < num_classes)
        if (good & known).all():
            continue
        row = int((~(good & known)).nonzero()[0])
        if good[row]:
            raise GhmdetError(
                f"target {index}, box {row} has label {int(labels[row])}; the detector's {num_classes} classes are "
                f"0..{num_classes - 1}, and there is no background class"
            )
        values = [round(value, 2) for value in boxes[row].tolist()]
        raise GhmdetError(
            f"target {index}, box {row} is {values}; a box is [x1, y1, x2, y2] with x1 < x2 and y1 < y2"
        )


def pad_targets(
    targets: Sequence[Mapping[str, Tensor]], batch: Batch, device: torch.device
) -> tuple[Tensor, Tensor]:
    """The targets' boxes [B, M, 4] in the batch's pixels and labels [B, M], padded to the longest list, M >= 1.

    The label of a row that is only padding is -1.
    """
    boxes = [
        scale_boxes(target["boxes"].float(), original, size)
        for target, original, size in zip(targets, batch.original_sizes, batch.sizes, strict=True)
    ]
    # A last list of one row makes that the least, and is left out again.
    rows = pad_sequence([*boxes, boxes[0].new_zeros(1, 4)], batch_first=True)[:-1]
    labels = [*(target["labels"] for target in targets), boxes[0].new_zeros(1, dtype=torch.int64)]
    padded = pad_sequence(labels, batch_first=True, padding_value=-1)[:-1]
    return rows.to(device, non_blocking=True), padded.to(device, non_blocking=True)


def anchor_targets(
    boxes: Tensor, labels: Tensor, anchors: Tensor, config: ModelConfig, num_classes: int
) -> AnchorTargets:
    """What each anchor of a batch should say.

    boxes: [B, M, 4] xyxy pixels, and their labels: [B, M], as `pad_targets` gives them. anchors: [A, 4].

    With `best_anchors` k each box is given its k best anchors (more where several are equally good), those of the
    largest IoU less the squared distance of the centres in diagonals of what surrounds both (DIoU, Zheng et al. 2020):
    a box is answered for whatever its size and shape. An anchor that several boxes want goes to the one it is best for,
    unless that leaves another with none (`keep_one_each`). The others are ignored where they overlap a box by at least
    `background_iou`, and background below.

    Without, the article's thresholds: an anchor takes the box that it overlaps most where that IoU is at least
    `positive_iou`, is background where it is below `background_iou`, and is ignored between. The anchors that overlap
    a box more than any other anchor does (ties included) are never without one, so every box that touches an anchor
    has one.
    """
    padding = (labels < 0)[:, :, None]  # [B, M, 1]
    best: tuple[Tensor, Tensor] | None = None
    wanted: tuple[Tensor, Tensor] | None = None
    needed = torch.zeros_like(anchors[:, 0], dtype=torch.bool)
    least = boxes[:, :, :1].clone()  # [B, M, 1], filled below; kept in pieces, it would scatter the memory
    step = boxes_together(boxes, anchors)
    for start in range(0, boxes.shape[1], step):
        some = slice(start, start + step)
        iou, closeness = box_overlaps(boxes[:, some], anchors)  # [B, m, A] each
        best = _larger(best, iou.masked_fill_(padding[:, some], -1.0), start)
        if config.best_anchors:
            least[:, some] = closeness.topk(min(config.best_anchors, len(anchors)), dim=2).values[:, :, -1:]
            unwanted = (closeness < least[:, some]) | padding[:, some]
            wanted = _larger(wanted, closeness.masked_fill_(unwanted, -2.0), start)
        else:
            most = iou.amax(dim=2, keepdim=True)  # [B, m, 1]
            needed = needed | ((iou == most) & (most > 0)).any(dim=1)  # [B, A]
    assert best is not None  # M >= 1
    rows = torch.where(best[0] >= config.background_iou, BETWEEN, BACKGROUND)  # [B, A]
    if wanted is not None:
        rows = wanted[1].where(wanted[0] > -2.0, rows)
        rows = keep_one_each(rows, boxes, anchors, least, padding[:, :, 0])
    else:
        rows = best[1].where(needed | (best[0] >= config.positive_iou), rows)
    row, found = rows.clamp(min=0), rows >= 0
    label = labels.gather(1, row).where(found, num_classes).where(rows != BETWEEN, -1)
    # Whole rows of one list of boxes: a gather of numbers takes several times as long.
    first = torch.arange(len(boxes), device=boxes.device)[:, None] * boxes.shape[1]
    matched = boxes.flatten(0, 1).index_select(0, (first + row).flatten()).view(*row.shape, 4)
    return AnchorTargets(label, torch.where(found[..., None], matched, anchors), rows)


def boxes_together(boxes: Tensor, anchors: Tensor) -> int:
    """How many of each picture's boxes [B, M, 4] are looked at together with the anchors [A, 4]."""
    return max(1, (PAIRS if boxes.device.type == "cpu" else DEVICE_PAIRS) // (len(boxes) * len(anchors)))


def _larger(best: tuple[Tensor, Tensor] | None, values: Tensor, first: int) -> tuple[Tensor, Tensor]:
    """The largest value [B, A] and its row, of `best` and of rows [B, m, A] from `first` on; a tie is the earlier's."""
    value, row = values.max(dim=1)
    if best is None:
        return value, row
    larger = value > best[0]
    return value.where(larger, best[0]), (row + first).where(larger, best[1])


def keep_one_each(rows: Tensor, boxes: Tensor, anchors: Tensor, least: Tensor, padding: Tensor) -> Tensor:
    """The matches `rows` [B, A], but a box without an anchor has the best that it wants and is not another's last one.

    boxes: [B, M, 4]. anchors: [A, 4]. least: [B, M, 1], the DIoU from which on a box wants an anchor. padding: [B, M].
    In each picture one box after the other; on an accelerator, which must not be waited for, only the first `ROUNDS`.
    """
    pictures = torch.arange(len(rows), device=rows.device)
    owner = rows.clamp(min=-1) + 1  # 0 for none
    owned = owner.new_zeros(len(rows), padding.shape[1] + 1).scatter_add_(1, owner, torch.ones_like(owner))
    lost = (owned[:, 1:] == 0) & ~padding  # [B, M]; no box joins them below
    read = _arguments.values_can_be_read(rows)
    rounds = int(lost.sum(dim=1).max()) if read else ROUNDS
    if not rounds:
        return rows
    order = (~lost).byte().argsort(dim=1, stable=True)[:, :rounds]
    for some in torch.split(order, boxes_together(boxes, anchors), dim=1):
        worth = box_overlaps(boxes[pictures[:, None], some], anchors)[1]  # [B, m, A]
        worth.masked_fill_((worth < least[pictures[:, None], some]) | ~lost.gather(1, some)[:, :, None], -2.0)
        if read:  # those of which another has all they want need no look of their own: it keeps them
            last = (owner > 0) & (owned.gather(1, owner) == 1)
            hopeful = ((worth > -2.0) & ~last[:, None]).any(dim=2).any(dim=0)
            some, worth = some[:, hopeful], worth[:, hopeful]
        for box, mine in zip(some.unbind(dim=1), worth.unbind(dim=1), strict=True):  # [B], [B, A]
            last = (owner > 0) & (owned.gather(1, owner) == 1)
            best, anchor = mine.masked_fill(last, -2.0).max(dim=1, keepdim=True)  # [B, 1]
            before = owner.gather(1, anchor)
            after = (box[:, None] + 1).where(best > -2.0, before)
            owner = owner.scatter(1, anchor, after)
            one = torch.ones_like(after)
            owned = owned.scatter_add_(1, before, -one).scatter_add_(1, after, one)
    return (owner - 1).where(owner > 0, rows)


def box_overlaps(boxes: Tensor, anchors: Tensor) -> tuple[Tensor, Tensor]:
    """IoU and DIoU (see `anchor_targets`) of boxes [B, M, 4] with anchors [A, 4], xyxy pixels: [B, M, A] each."""
    # One coordinate at a time and in place: most of the time would go into new memory.
    x1, y1, x2, y2 = boxes[..., None].unbind(dim=2)  # each [B, M, 1]
    u1, v1, u2, v2 = anchors.unbind(dim=1)  # each [A]
    width = torch.minimum(x2, u2).sub_(torch.maximum(x1, u1))  # of the overlap, negative where there is none
    height = torch.minimum(y2, v2).sub_(torch.maximum(y1, v1))
    diagonal = ((x2 - x1) + (u2 - u1)).sub_(width).square_()
    diagonal += ((y2 - y1) + (v2 - v1)).sub_(height).square_()
    distance = ((x1 + x2) - (u1 + u2)).square_()  # of the centres, twice along each axis
    distance += ((y1 + y2) - (v1 + v2)).square_()
    overlap = width.clamp_(min=0).mul_(height.clamp_(min=0))
    iou = overlap / ((x2 - x1) * (y2 - y1) + (u2 - u1) * (v2 - v1)).sub_(overlap)
    return iou, iou - distance.div_(diagonal.mul_(4))
