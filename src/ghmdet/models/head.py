"""The head shared by all levels: one tower for the classes, one for the boxes."""

import math

import torch
from torch import Tensor, nn


class Head(nn.Module):
    """RetinaNet's two towers (Lin et al. 2017, Focal Loss), applied to each level alike.

    channels: of the levels. depth: 3x3 convolutions in each tower. norm_groups: GroupNorm's groups, 0 for none.
    anchors: at each place. num_classes: K. prior: the score that every anchor starts with.
    """

    def __init__(
        self, channels: int, *, depth: int, norm_groups: int, anchors: int, num_classes: int, prior: float
    ) -> None:
        super().__init__()
        self.anchors = anchors
        self.prior = prior
        self.class_tower = _tower(channels, depth, norm_groups)
        self.box_tower = _tower(channels, depth, norm_groups)
        self.box_deltas = _conv(channels, anchors * 4)
        self.set_classes(num_classes)

    def set_classes(self, num_classes: int) -> None:
        """A new class layer for K classes, whose every score starts at the prior."""
        self.num_classes = num_classes
        like = self.box_deltas.weight
        layer = _conv(self.box_deltas.in_channels, self.anchors * num_classes)
        nn.init.constant_(layer.bias, -math.log((1 - self.prior) / self.prior))  # type: ignore[arg-type]
        self.class_logits = layer.to(device=like.device, dtype=like.dtype)

    def forward(self, levels: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Levels [B, channels, H_i, W_i] -> logits [B, A, K], deltas [B, A, 4]: level by level, row by row."""
        logits = [_flat(self.class_logits(self.class_tower(level)), self.num_classes) for level in levels]
        deltas = [_flat(self.box_deltas(self.box_tower(level)), 4) for level in levels]
        return torch.cat(logits, dim=1), torch.cat(deltas, dim=1)


def _conv(channels: int, out: int, *, bias: bool = True) -> nn.Conv2d:
    conv = nn.Conv2d(channels, out, 3, padding=1, bias=bias)
    nn.init.normal_(conv.weight, std=0.01)
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)
    return conv


def _tower(channels: int, depth: int, norm_groups: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for _ in range(depth):
        layers.append(_conv(channels, channels, bias=not norm_groups))
        if norm_groups:
            layers.append(nn.GroupNorm(norm_groups, channels))
        layers.append(nn.ReLU(inplace=True))
    return nn.Sequential(*layers)


def _flat(x: Tensor, last: int) -> Tensor:
    # [B, anchors * last, H, W] -> [B, H * W * anchors, last]; no copy where x is channels_last
    return x.permute(0, 2, 3, 1).reshape(x.shape[0], -1, last)
