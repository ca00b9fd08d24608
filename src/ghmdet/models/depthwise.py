"""Depthwise convolution whose backward pass on a CPU is several times faster than PyTorch's own."""

from typing import Any

import torch
from timm.layers.conv2d_same import Conv2dSame
from timm.layers.padding import pad_same
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F


class DepthwiseConv2d(nn.Conv2d):
    """A depthwise `nn.Conv2d` (kernel 3 or 5, no bias): same weights and values, faster gradients on a CPU.

    oneDNN, which computes PyTorch's convolutions on a CPU, has no fast kernel for two of the gradients of a bf16
    depthwise convolution: the input's where the stride is 2, and the weight's of a kernel of 5. Together they took more
    than half of the time of a training step of EfficientNet-Lite0. Both are put together here from kernels that are
    fast (`_DepthwiseConv`). Elsewhere (a GPU, no gradient wanted, export) this is `nn.Conv2d`.
    """

    same: bool
    """Whether the input is padded as TensorFlow's "same" does."""

    @staticmethod
    def replaces(conv: nn.Module) -> bool:
        """Whether this computes the same as `conv`."""
        return (
            isinstance(conv, nn.Conv2d)
            and type(conv) in (nn.Conv2d, Conv2dSame)
            and conv.groups == conv.in_channels == conv.out_channels > 1
            and conv.kernel_size in ((3, 3), (5, 5))
            and conv.stride in ((1, 1), (2, 2))
            and conv.dilation == (1, 1)
            and isinstance(conv.padding, tuple)
            and conv.padding[0] == conv.padding[1] < conv.kernel_size[0]
            and conv.padding_mode == "zeros"
            and conv.bias is None
        )

    def forward(self, input: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, C, H', W']."""
        padding, weight = int(self.padding[0]), self.weight
        if self.same:
            input, padding = pad_same(input, list(self.kernel_size), list(self.stride)), 0
        if (
            input.device.type == "cpu"
            and self.bias is None  # else batch norm is folded into it, to detect
            and torch.is_grad_enabled()
            and weight.requires_grad
            and torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
            and not torch.compiler.is_compiling()
        ):
            if torch.is_autocast_enabled("cpu"):
                dtype = torch.get_autocast_dtype("cpu")
                input, weight = input.to(dtype), weight.to(dtype)
            output: Tensor = _DepthwiseConv.apply(input, weight, self.stride[0], padding)
            return output
        return F.conv2d(input, weight, self.bias, self.stride, padding, groups=self.groups)


def use_depthwise(module: nn.Module) -> None:
    """Make a `DepthwiseConv2d` of every convolution in `module` that it can stand for; weights keep their names."""
    for conv in module.modules():
        if DepthwiseConv2d.replaces(conv):
            same = isinstance(conv, Conv2dSame)
            conv.__class__ = DepthwiseConv2d
            assert isinstance(conv, DepthwiseConv2d)
            conv.same = same


class _DepthwiseConv(torch.autograd.Function):
    """`F.conv2d(input, weight, stride=stride, padding=padding, groups=C)` of input [B, C, H, W], weight [C, 1, k, k].

    Gradient of the input at stride 2: the output's gradient, spread out with zeros between, is convolved with the
    mirrored kernel. Gradient of the weight of a kernel of 5: its 25 taps are four blocks of 3 x 3 (rows and columns
    0..2 and 2..4; they overlap in the middle), each the gradient of a kernel of 3 over the input moved by 0 or 2.
    """

    @staticmethod
    def forward(ctx: Any, input: Tensor, weight: Tensor, stride: int, padding: int) -> Tensor:
        ctx.save_for_backward(input, weight)
        ctx.stride, ctx.padding = stride, padding
        return F.conv2d(input, weight, None, stride, padding, groups=input.shape[1])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        input, weight = ctx.saved_tensors
        gradient = gradient.contiguous(memory_format=torch.channels_last)
        given = gradient, input, weight, ctx.stride, ctx.padding
        for_input = for_weight = None
        if ctx.needs_input_grad[0]:
            for_input = _input_gradient(*given) if ctx.stride == 2 else _gradient_of_torch(0, *given)
        if ctx.needs_input_grad[1]:
            kernel = weight.shape[-1]
            for_weight = _weight_gradient_in_blocks(*given) if kernel == 5 else _gradient_of_torch(1, *given)
        return for_input, for_weight, None, None


def _gradient_of_torch(
    of: int, gradient: Tensor, input: Tensor, weight: Tensor, stride: int, padding: int
) -> Tensor:
    """PyTorch's own gradient of the input (0) or of the weight (1)."""
    strides, paddings, wanted = [stride] * 2, [padding] * 2, [of == 0, of == 1, False]
    gradients: tuple[Tensor, ...] = torch.ops.aten.convolution_backward(
        gradient, input, weight, None, strides, paddings, [1, 1], False, [0, 0], input.shape[1], wanted
    )
    return gradients[of]


def _input_gradient(gradient: Tensor, input: Tensor, weight: Tensor, stride: int, padding: int) -> Tensor:
    kernel = weight.shape[-1]
    images, channels, height, width = input.shape
    spread = gradient.new_zeros(images, height + kernel - 1, width + kernel - 1, channels)
    spread = spread.permute(0, 3, 1, 2)  # channels last in memory
    first = kernel - 1 - padding
    spread[:, :, first::stride, first::stride][:, :, : gradient.shape[2], : gradient.shape[3]] = gradient
    return F.conv2d(spread, weight.flip(2, 3), groups=channels)


def _weight_gradient_in_blocks(
    gradient: Tensor, input: Tensor, weight: Tensor, stride: int, padding: int
) -> Tensor:
    padded = F.pad(input, (padding,) * 4)
    height, width = (stride * (side - 1) + 3 for side in gradient.shape[2:])
    result = torch.empty_like(weight)
    block = weight[:, :, :3, :3]
    for row in (0, 2):
        for column in (0, 2):
            moved = padded[:, :, row : row + height, column : column + width]
            moved = moved.contiguous(memory_format=torch.channels_last)
            part = _gradient_of_torch(1, gradient, moved, block, stride, 0)
            result[:, :, row : row + 3, column : column + 3] = part
    return result
