"""Anchor boxes: the places and shapes that predictions are relative to."""

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

from ghmdet.models.presets import ModelConfig


@lru_cache(maxsize=32)
def make_anchors(
    config: ModelConfig, height: int, width: int, device: torch.device
) -> tuple[Tensor, tuple[int, ...]]:
    """All anchors of a batch of pictures: boxes [A, 4] (xyxy, pixels) and how many of them each level has.

    height, width: of the padded batch in pixels. The order is the head's: level by level, row by row, at each
    place all sizes of the first ratio, then of the next. Kept for the last sizes asked for: do not write into it.

    >>> from ghmdet.models import PRESETS
    >>> boxes, counts = make_anchors(PRESETS["nano"], 288, 384, torch.device("cpu"))
    >>> counts  # 36 x 48, 18 x 24, 9 x 12 and 5 x 6 cells with 6 anchors each
    (10368, 2592, 648, 180)
    """
    # A tensor made under inference_mode could never be used in training, and this one is kept.
    with torch.inference_mode(False), torch.no_grad():
        levels = level_anchors(config, height, width)
        return torch.cat(levels).to(device), tuple(len(level) for level in levels)


def anchors_inside(
    config: ModelConfig, sizes: Sequence[tuple[int, int]], height: int, width: int, device: torch.device
) -> Tensor:
    """Which anchors of a padded batch stand on a cell that holds some of their picture, not only padding: [B, A] bool.

    sizes: (height, width) of each picture without its padding. height, width: of the padded batch in pixels.
    """
    limits = torch.tensor(sizes).to(device, non_blocking=True)[..., None]  # [B, 2, 1]
    levels = []
    for stride in config.strides:
        rows, columns = (torch.arange(0, side, stride, device=device) for side in (height, width))
        cells = (rows < limits[:, 0])[:, :, None] & (columns < limits[:, 1])[:, None]  # [B, rows, columns]
        levels.append(cells.flatten(1).repeat_interleave(config.anchors_per_cell, dim=1))
    return torch.cat(levels, dim=1)


def level_anchors(config: ModelConfig, height: int, width: int) -> list[Tensor]:
    """Each level's anchors in a padded picture of height x width pixels, [rows * columns * S, 4]."""
    levels = []
    for sizes, stride in zip(config.level_sizes, config.strides, strict=True):
        shapes = _shapes(sizes, config.anchor_ratios)
        cells = [(side, -(-side // stride)) for side in (height, width)]
        if config.anchor_rule == "torchvision":
            shapes = shapes.round()
            y, x = (torch.arange(n, dtype=torch.float32) * (side // n) for side, n in cells)
        else:
            y, x = ((torch.arange(n, dtype=torch.float32) + 0.5) * stride for _, n in cells)
        grid_y, grid_x = torch.meshgrid(y, x, indexing="ij")
        centres = torch.stack((grid_x, grid_y, grid_x, grid_y), dim=-1)  # [rows, columns, 4]
        levels.append((centres[:, :, None] + shapes).reshape(-1, 4))
    return levels


def _shapes(sizes: tuple[float, ...], ratios: tuple[float, ...]) -> Tensor:
    # [ratios * sizes, 4], around the origin; each has the area of its size's square
    side = torch.tensor(sizes, dtype=torch.float32)
    root = torch.tensor(ratios, dtype=torch.float32).sqrt()
    w, h = ((1 / root)[:, None] * side).flatten(), (root[:, None] * side).flatten()
    return torch.stack((-w, -h, w, h), dim=1) / 2
