"""Strided convolution whose results in bf16 on a CPU are right for the narrowest pictures too."""

from typing import Any

import torch
from timm.layers.conv2d_same import Conv2dSame, conv2d_same
from torch import Tensor, nn


class StridedConv2d(nn.Conv2d):
    """An `nn.Conv2d` that works in float32 where a CPU would compute it in bf16 over up to three columns.

    There (PyTorch 2.14) a convolution with a stride leaves values of its result, or of a gradient, as the memory was.
    """

    def forward(self, input: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, C', H', W']."""
        if not _wrong(input):
            return super().forward(input)
        with torch.autocast("cpu", enabled=False):
            bias = None if self.bias is None else self.bias.float()
            exact: Tensor = self._conv_forward(input.float(), self.weight.float(), bias)
        return exact.to(input.dtype)


class StridedConv2dSame(Conv2dSame):
    """The same of timm's convolution that pads as TensorFlow does."""

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, C', H', W']."""
        how: Any = self.stride, self.padding, self.dilation, self.groups
        if not _wrong(x):
            made: Tensor = conv2d_same(x, self.weight, self.bias, *how)
            return made
        with torch.autocast("cpu", enabled=False):
            bias = None if self.bias is None else self.bias.float()
            exact: Tensor = conv2d_same(x.float(), self.weight.float(), bias, *how)
        return exact.to(x.dtype)


def _wrong(input: Tensor) -> bool:
    half = input.dtype == torch.bfloat16 or torch.is_autocast_enabled("cpu")
    return half and input.device.type == "cpu" and input.shape[-1] <= 3


KINDS: dict[type, type] = {nn.Conv2d: StridedConv2d, Conv2dSame: StridedConv2dSame}


def use_strided(module: nn.Module) -> None:
    """Make a `StridedConv2d` of every plain convolution with a stride in `module`; weights keep their names."""
    for conv in module.modules():
        if type(conv) in KINDS and conv.stride != (1, 1):
            conv.__class__ = KINDS[type(conv)]
