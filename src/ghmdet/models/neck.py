"""The feature pyramid: every level sees what the deeper ones know."""

from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from ghmdet.models.strided import StridedConv2d


class FeaturePyramid(nn.Module):
    """Feature Pyramid Network (Lin et al. 2017) with strided convolutions for the levels after P5.

    in_channels: channels of the backbone's features, finest first.
    channels: channels of every level that comes out.
    extra_levels: levels after the last feature.
    extra_from: the first of them comes from the pyramid's last level ("p5") or the backbone's last feature ("c5").
    """

    def __init__(
        self, in_channels: list[int], channels: int, extra_levels: int, extra_from: Literal["p5", "c5"]
    ) -> None:
        super().__init__()
        self.extra_from = extra_from
        self.lateral = nn.ModuleList(nn.Conv2d(c, channels, 1) for c in in_channels)
        self.output = nn.ModuleList(nn.Conv2d(channels, channels, 3, padding=1) for _ in in_channels)
        first = channels if extra_from == "p5" else in_channels[-1]
        self.extra = nn.ModuleList(
            StridedConv2d(channels if level else first, channels, 3, stride=2, padding=1)
            for level in range(extra_levels)
        )
        for conv in self.modules():
            if isinstance(conv, nn.Conv2d):
                nn.init.kaiming_uniform_(conv.weight, a=1)
                if conv.bias is not None:
                    nn.init.zeros_(conv.bias)

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        """Features [B, C_i, H_i, W_i], finest first -> levels [B, channels, H_i, W_i], finest first."""
        laterals = [lateral(feature) for lateral, feature in zip(self.lateral, features, strict=True)]
        for finer in range(len(laterals) - 2, -1, -1):
            above = F.interpolate(laterals[finer + 1], size=laterals[finer].shape[-2:], mode="nearest")
            laterals[finer] = laterals[finer] + above
        levels = [output(lateral) for output, lateral in zip(self.output, laterals, strict=True)]

        deepest = levels[-1] if self.extra_from == "p5" else features[-1]
        for position, conv in enumerate(self.extra):
            deepest = conv(F.relu(deepest) if position else deepest)
            levels.append(deepest)
        return levels
