"""Strided convolution whose results in bf16 on a CPU are right for the narrowest pictures too."""

import torch
from torch import Tensor, nn


class StridedConv2d(nn.Conv2d):
    """An `nn.Conv2d` that works in float32 where a CPU would compute it in bf16 over one or two columns.

    There (PyTorch 2.14) a convolution with a stride leaves values of its result as the memory was, and over one column
    its weight's gradient, too.
    """

    def forward(self, input: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, C', H', W']."""
        half = input.dtype == torch.bfloat16 or torch.is_autocast_enabled("cpu")
        if not (half and input.device.type == "cpu" and input.shape[-1] <= 2):
            return super().forward(input)
        with torch.autocast("cpu", enabled=False):
            bias = None if self.bias is None else self.bias.float()
            exact: Tensor = self._conv_forward(input.float(), self.weight.float(), bias)
        return exact.to(input.dtype)


def use_strided(module: nn.Module) -> None:
    """Make a `StridedConv2d` of every plain convolution with a stride in `module`; weights keep their names."""
    for conv in module.modules():
        if type(conv) is nn.Conv2d and conv.stride != (1, 1):
            conv.__class__ = StridedConv2d
