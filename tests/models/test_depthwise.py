"""The faster gradients against PyTorch's."""

from __future__ import annotations

import pytest
import torch
from timm.layers.conv2d_same import Conv2dSame
from torch import Tensor, nn

from ghmdet.models.depthwise import DepthwiseConv2d, use_depthwise


def values_and_gradients(conv: nn.Module, input: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    input = input.clone().requires_grad_()
    conv.zero_grad()
    output = conv(input)
    random = torch.Generator().manual_seed(2)
    output.backward(torch.randn(output.shape, generator=random, dtype=torch.float32).to(output.dtype))
    assert input.grad is not None
    weight = conv.weight.grad
    assert isinstance(weight, Tensor)
    return output.detach(), input.grad, weight


@pytest.mark.parametrize("size", [(8, 12), (7, 9), (5, 6), (6, 5)])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("kernel", [3, 5])
@pytest.mark.parametrize("kind", ["half", "none", "same"])
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 0.02)]
)
def test_depthwise_equals_torch(
    kind: str, kernel: int, stride: int, size: tuple[int, int], dtype: torch.dtype, tolerance: float
) -> None:
    torch.manual_seed(0)
    conv: nn.Conv2d
    if kind == "same":
        conv = Conv2dSame(6, 6, kernel, stride, groups=6, bias=False)
    else:
        conv = nn.Conv2d(6, 6, kernel, stride, kernel // 2 if kind == "half" else 0, groups=6, bias=False)
    conv.to(dtype)
    input = torch.randn(3, 6, *size, dtype=dtype)
    expected = values_and_gradients(conv, input)
    use_depthwise(conv)
    assert isinstance(conv, DepthwiseConv2d)
    for ours, theirs in zip(values_and_gradients(conv, input), expected, strict=True):
        assert ours.dtype == theirs.dtype
        torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance * float(theirs.abs().max()))


def test_depthwise_under_autocast() -> None:
    conv = nn.Conv2d(4, 4, 5, 2, 2, groups=4, bias=False)
    input = torch.randn(2, 4, 11, 12)
    with torch.autocast("cpu", torch.bfloat16):
        expected = values_and_gradients(conv, input)
        use_depthwise(conv)
        seen = values_and_gradients(conv, input)
    assert [value.dtype for value in seen] == [torch.bfloat16, torch.float32, torch.float32]
    for ours, theirs in zip(seen, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0.02, atol=0.02 * float(theirs.abs().max()))


@pytest.mark.parametrize(
    "conv",
    [
        nn.Conv2d(4, 4, 3, padding=1),
        nn.Conv2d(4, 8, 3, padding=1, groups=4, bias=False),
        nn.Conv2d(4, 4, 3, padding=1, groups=4),
        nn.Conv2d(4, 4, 7, padding=3, groups=4, bias=False),
        nn.Conv2d(4, 4, 3, stride=3, groups=4, bias=False),
        nn.Conv2d(4, 4, 3, dilation=2, groups=4, bias=False),
        nn.Conv2d(4, 4, 3, padding="same", groups=4, bias=False),
        nn.Conv2d(4, 4, 3, padding=1, groups=4, bias=False, padding_mode="reflect"),
    ],
)
def test_other_convolutions_are_left_alone(conv: nn.Conv2d) -> None:
    use_depthwise(conv)
    assert type(conv) is nn.Conv2d


def test_weights_keep_their_names() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Sequential(nn.Conv2d(4, 4, 3, groups=4, bias=False)))
    before = {name: id(value) for name, value in model.named_parameters()}
    use_depthwise(model)
    assert {name: id(value) for name, value in model.named_parameters()} == before
    assert isinstance(model[1][0], DepthwiseConv2d)
