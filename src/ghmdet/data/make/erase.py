"""Taking an object out of a picture, so that it can lose its label without being there unlabelled."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

MARGIN = 0.05  # of the box's longer side: objects stick out of their boxes a little
ERASABLE = 0.85  # of a box's area: what belongs to other objects must stay as it is


def erasable(boxes: NDArray[np.float32], size: tuple[int, int]) -> NDArray[np.bool_]:
    """Which boxes can be erased: at least .85 of their area lies outside every other box's ellipse. [n] bool.

    What stays of the others would be too much to pass as background. boxes: [n, 4] xyxy pixels of a picture of `size`
    (width, height). A box's ellipse is the one that touches its four sides: objects seldom fill the corners.
    """
    ellipses = [_ellipse(box, size) for box in boxes]
    cover = np.zeros(size[::-1], dtype=np.int32)
    for window, inside in ellipses:
        cover[window] += inside
    others = [cover[window] - inside for window, inside in ellipses]
    return np.array([cells.size and (cells == 0).mean() >= ERASABLE for cells in others], dtype=bool)


def erase(image: Tensor, boxes: NDArray[np.float32], others: NDArray[np.float32]) -> Tensor:
    """The picture with the ground carried on over `boxes`, but for what lies in the ellipse of one of `others`.

    image: uint8 [3, h, w]. boxes, others: [n, 4] xyxy pixels. The ground is what lies in no box (all the rest of the
    picture where there is none), averaged over ever larger squares until each erased pixel has some: the push-pull
    of Gortler et al., The Lumigraph, 1996. Every other pixel stays as it is.
    """
    height, width = image.shape[1:]
    gone, kept, boxed = (np.zeros((height, width), dtype=bool) for _ in range(3))
    for box in boxes:
        gone[_ellipse(box, (width, height), MARGIN)[0]] = True
    for box in others:
        window, inside = _ellipse(box, (width, height))
        kept[window] |= inside
        boxed[window] = True
    gone &= ~kept
    ground = ~(gone | boxed)
    fill = _carried_on(image.float(), torch.from_numpy(ground if ground.any() else ~gone))
    return torch.where(torch.from_numpy(gone), fill.round().to(torch.uint8), image)


def _ellipse(
    box: NDArray[np.float32], size: tuple[int, int], margin: float = 0.0
) -> tuple[tuple[slice, slice], NDArray[np.bool_]]:
    """Rows and columns of the pixels that the box and its margin touch, and which of them lie in its ellipse."""
    x1, y1, x2, y2 = box.tolist()
    more = margin * max(x2 - x1, y2 - y1)
    window, squares = [], []
    for low, high, limit in ((y1, y2, size[1]), (x1, x2, size[0])):
        start, stop = max(0, int(np.floor(low - more))), min(limit, int(np.ceil(high + more)))
        window.append(slice(start, stop))
        squares.append(((np.arange(start, stop) + 0.5 - (low + high) / 2) / ((high - low) / 2)) ** 2)
    return (window[0], window[1]), squares[0][:, None] + squares[1] <= 1


def _carried_on(image: Tensor, known: Tensor) -> Tensor:
    # image [3, h, w] float, known [h, w]: the image where known, elsewhere what a picture of half the size has
    if known.all() or not known.any():
        return image
    height, width = known.shape
    weight = known.to(image.dtype)[None]
    padded = F.pad(torch.cat((image * weight, weight))[None], (0, width % 2, 0, height % 2))
    summed = F.avg_pool2d(padded, 2)[0]
    share = summed[3]
    half = _carried_on(summed[:3] / share.clamp(min=1e-12), share > 0)
    whole = F.interpolate(half[None], size=padded.shape[-2:], mode="bilinear", align_corners=False)[0]
    return torch.where(known, image, whole[:, :height, :width])
