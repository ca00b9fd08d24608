"""The faster 1 x 1 convolution against PyTorch's."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from ghmdet.models import pointwise
from ghmdet.models.pointwise import PointwiseConv2d, use_pointwise


@pytest.fixture
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
@pytest.mark.parametrize("shape", [(2, 6, 9, 5), (1, 6, 16, 1), (1, 6, 3, 4), (0, 6, 4, 4), (17, 6, 2, 3)])
def test_values_gradients_and_layout_are_those_of_torch(shape, layout, bias, one_thread):
    conv = nn.Conv2d(6, 4, 1, bias=bias).to(memory_format=layout)
    input = torch.randn(shape).to(memory_format=layout).requires_grad_()
    results = []
    for _ in range(2):
        conv.zero_grad()
        input.grad = None
        output = conv(input)
        output.square().sum().backward()
        results.append([output.detach(), input.grad, *(p.grad.clone() for p in conv.parameters())])
        use_pointwise(conv)
    assert isinstance(conv, PointwiseConv2d)
    torch.testing.assert_close(results[0], results[1])
    assert results[0][0].stride() == results[1][0].stride()


def test_pytorch_gets_rows_in_place_of_few_pictures(one_thread, monkeypatch):
    seen = []
    real = torch.nn.functional.conv2d
    monkeypatch.setattr(pointwise.F, "conv2d", lambda x, *rest: (seen.append(x), real(x, *rest))[1])
    conv = nn.Conv2d(6, 4, 1)
    use_pointwise(conv)
    input = torch.randn(2, 6, 9, 5).to(memory_format=torch.channels_last)
    conv(input)
    assert [tuple(x.shape) for x in seen] == [(18, 6, 1, 5)]
    assert seen[0].data_ptr() == input.data_ptr()  # not a copy


@pytest.mark.parametrize(
    "conv",
    [
        nn.Conv2d(4, 4, 3),
        nn.Conv2d(4, 4, 1, stride=2),
        nn.Conv2d(4, 4, 1, groups=2),
        nn.Conv2d(4, 4, 1, padding=1),
    ],
)
def test_other_convolutions_are_left_alone(conv):
    use_pointwise(conv)
    assert type(conv) is nn.Conv2d
