"""Strided convolutions, of the backbone and of the pyramid, on the smallest pictures."""

from __future__ import annotations

import copy

import pytest
import torch
from timm.layers.conv2d_same import Conv2dSame
from torch import nn

from ghmdet.models import RetinaNet
from ghmdet.models.backbone import Backbone
from ghmdet.models.neck import FeaturePyramid
from ghmdet.models.strided import use_strided


def fill_freed_memory_with_nan() -> None:
    junk = [torch.full((size,), torch.nan) for size in (16 * 16 * 9, 32 * 16 * 9, 64 * 16 * 9) * 3]
    del junk


@pytest.mark.parametrize("extra_from", ["p5", "c5"])
@pytest.mark.parametrize("size", [(1, 1), (3, 1), (6, 1), (1, 3), (2, 2), (5, 2)])
def test_bf16_gradients_are_those_of_float32_whatever_is_in_the_memory(size, extra_from):
    # In bf16 a CPU leaves the weight's gradient of a strided convolution over one column as the memory was.
    height, width = size
    for seed in range(5):
        torch.manual_seed(seed)
        neck = FeaturePyramid([8, 8, 8], 16, 2, extra_from)
        features = [torch.randn(4, 8, scale * height, scale * width) for scale in (4, 2, 1)]
        exact = copy.deepcopy(neck)
        levels = exact(features)
        weights = [torch.randn_like(level) for level in levels]
        sum((w * level).sum() for w, level in zip(weights, levels, strict=True)).backward()
        fill_freed_memory_with_nan()
        with torch.autocast("cpu", torch.bfloat16):
            levels = neck(features)
        fill_freed_memory_with_nan()
        sum((w * level.float()).sum() for w, level in zip(weights, levels, strict=True)).backward()
        for parameter, expected in zip(neck.parameters(), exact.parameters(), strict=True):
            assert (parameter.grad - expected.grad).norm() < 0.1 * expected.grad.norm()


@pytest.mark.parametrize("width", [1, 2, 3])
def test_bf16_levels_of_narrow_pictures_are_those_of_float32_whatever_is_in_the_memory(width):
    # In bf16 a CPU leaves values of a strided convolution of 64 channels over few columns as the memory was.
    for seed in range(5):
        torch.manual_seed(seed)
        neck = FeaturePyramid([64, 64, 64], 64, 2, "p5").to(memory_format=torch.channels_last)
        features = [torch.randn(4, 64, 12 * scale, width * scale) for scale in (4, 2, 1)]
        with torch.no_grad():
            exact = neck(features)
            junk = [torch.full((size,), torch.nan) for size in (300_000, 20_000, 3_000) * 40]
            del junk
            with torch.autocast("cpu", torch.bfloat16):
                levels = neck(features)
        for level, expected in zip(levels, exact, strict=True):
            assert (level.float() - expected).norm() < 0.05 * expected.norm()


@pytest.mark.parametrize("name", ["resnet18", "regnetx_002", "tf_efficientnet_lite0"])
@pytest.mark.parametrize("width", [32, 64])
def test_bf16_features_of_narrow_pictures_are_those_of_float32_whatever_is_in_the_memory(name, width):
    backbone = Backbone(name, frozen=True, eps=1e-5).to(memory_format=torch.channels_last)
    for _ in range(3):
        images = torch.randn(4, 3, 384, width)
        with torch.no_grad():
            exact = backbone(images)
            junk = [torch.full((size,), torch.nan) for size in (300_000, 20_000, 3_000) * 40]
            del junk
            with torch.autocast("cpu", torch.bfloat16):
                features = backbone(images)
        for feature, expected in zip(features, exact, strict=True):
            assert (feature.float() - expected).norm() < 0.1 * expected.norm()


@pytest.mark.parametrize(("kind", "size"), [(nn.Conv2d, 3), (nn.Conv2d, 2), (Conv2dSame, 3)])
@pytest.mark.parametrize("width", [1, 2, 3, 8])
def test_a_strided_convolution_is_that_of_float32_in_bf16_too(kind, size, width):
    for seed in range(5):
        torch.manual_seed(seed)
        padding = {} if kind is Conv2dSame else {"padding": 1 if size == 3 or width == 1 else 0}
        plain = nn.Sequential(kind(64, 64, size, stride=2, **padding))
        strided = copy.deepcopy(plain)
        use_strided(strided)
        x = torch.randn(4, 64, 12, width)
        expected, *_ = plain(x), plain(x).sum().backward()
        torch.testing.assert_close(strided(x), expected)
        fill_freed_memory_with_nan()
        with torch.autocast("cpu", torch.bfloat16):
            found = strided(x)
        fill_freed_memory_with_nan()
        found.float().sum().backward()
        assert (found.float() - expected).norm() < 0.05 * expected.norm()
        for mine, theirs in zip(strided.parameters(), plain.parameters(), strict=True):
            assert (mine.grad - theirs.grad).norm() < 0.05 * theirs.grad.norm()


def test_one_column_has_the_values_of_the_plain_convolutions():
    neck = FeaturePyramid([8, 8, 8], 16, 2, "c5")
    features = [torch.randn(2, 8, 3 * scale, scale) for scale in (4, 2, 1)]
    *_, p6, p7 = neck(features)
    torch.testing.assert_close(p6, neck.extra[0](features[-1]))
    torch.testing.assert_close(p7, neck.extra[1](p6.relu()))


@pytest.mark.parametrize("size", [(480, 30), (30, 480), (8, 8)])
def test_a_narrow_picture_trains_in_bf16(size, tiny):
    height, width = size
    images = [torch.rand(3, *size) for _ in range(2)]
    box = torch.tensor([[1.0, 1, width - 1, height / 2]])
    targets = [{"boxes": box, "labels": torch.tensor([0])} for _ in images]
    for seed in range(3):
        torch.manual_seed(seed)
        model = RetinaNet(tiny, ["a"]).train().to(memory_format=torch.channels_last)
        fill_freed_memory_with_nan()
        with torch.autocast("cpu", torch.bfloat16):
            losses = model(images, targets)
        fill_freed_memory_with_nan()
        sum(losses.values()).backward()
        assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)
