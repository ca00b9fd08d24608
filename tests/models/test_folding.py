from __future__ import annotations

import copy
import dataclasses

import pytest
import torch
from detector_cases import TINY
from timm.layers.conv2d_same import Conv2dSame
from torch import nn

from ghmdet.errors import GhmdetError
from ghmdet.models import PRESETS, RetinaNet
from ghmdet.models.folding import fold_batch_norm, pad_evenly


def with_statistics(model: RetinaNet) -> RetinaNet:
    """The detector in eval mode, its batch norms as after a training, from which nothing is 0 or 1."""
    for norm in model.backbone.batch_norms():
        nn.init.normal_(norm.running_mean)
        nn.init.uniform_(norm.running_var, 0.5, 2)
        nn.init.normal_(norm.weight, 1, 0.2)
        nn.init.normal_(norm.bias)
    return model.eval()


@pytest.mark.parametrize("name", ["nano", "r18", "r50_small"])
@torch.no_grad()
def test_nothing_but_rounding_changes_and_no_batch_norm_is_left(name: str) -> None:
    torch.manual_seed(0)
    model = with_statistics(RetinaNet(PRESETS[name], ["a", "b"]))
    folded = fold_batch_norm(copy.deepcopy(model))
    assert model.backbone.batch_norms() and not folded.backbone.batch_norms()
    images = torch.randn(1, 3, 128, 160)
    for one, other in zip(model.forward_raw(images), folded.forward_raw(images), strict=True):
        torch.testing.assert_close(one.sigmoid(), other.sigmoid(), rtol=0, atol=1e-5)


@torch.no_grad()
def test_padding_is_even_where_the_strides_divide_the_sides_and_else_left_as_it_is() -> None:
    def uneven(body: nn.Module) -> list[int]:
        return [m.kernel_size[0] for m in body.modules() if getattr(m, "same", isinstance(m, Conv2dSame))]

    torch.manual_seed(0)
    model = with_statistics(RetinaNet(PRESETS["nano"], ["a", "b"]))
    assert uneven(model.backbone.body) == [3, 3, 5, 3, 5]
    images = torch.randn(1, 3, 96, 160)
    plain = model.backbone(images)
    padded = pad_evenly(copy.deepcopy(model.backbone.body))
    assert not uneven(padded)
    for level, one in zip(model.backbone.levels, plain, strict=True):
        torch.testing.assert_close(padded(images)[level], one, rtol=1e-5, atol=1e-5)
    assert not uneven(fold_batch_norm(copy.deepcopy(model)).backbone.body)

    config = dataclasses.replace(PRESETS["nano"], size_divisible=16)  # an odd side at stride 16
    odd = with_statistics(RetinaNet(config, ["a", "b"]))
    folded = fold_batch_norm(copy.deepcopy(odd))
    assert uneven(folded.backbone.body) == [3, 3, 5, 3, 5]
    images = torch.randn(1, 3, 112, 144)
    for one, other in zip(odd.forward_raw(images), folded.forward_raw(images), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-3)


@torch.no_grad()
def test_a_network_whose_norms_follow_other_convolutions_is_left_as_it_is() -> None:
    class Crossed(nn.Module):
        """Its first norm is applied to the input, before the convolution that is registered before it."""

        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3)

        def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
            return [self.conv(self.norm(images))]

    torch.manual_seed(0)
    model = RetinaNet(TINY, ["a"])
    model.backbone.body = body = Crossed()
    fold_batch_norm(with_statistics(model))
    assert model.backbone.body is body and isinstance(body.norm, nn.BatchNorm2d)


def test_gradients_reach_the_picture_through_a_folded_detector() -> None:
    torch.manual_seed(0)
    model = with_statistics(RetinaNet(TINY, ["a"]))
    folded = fold_batch_norm(copy.deepcopy(model))
    gradients = []
    for each in (model, folded):
        images = torch.ones(1, 3, 96, 128, requires_grad=True)
        each.forward_raw(images)[0].sum().backward()
        gradients.append(images.grad)
    torch.testing.assert_close(*gradients, rtol=1e-3, atol=1e-4)


def test_what_could_be_trained_still_can_and_what_was_frozen_stays_so() -> None:
    torch.manual_seed(0)
    model = with_statistics(RetinaNet(PRESETS["r18"], ["a"]))
    model.backbone.body.requires_grad_(True)
    folded = fold_batch_norm(copy.deepcopy(model))
    assert not folded.backbone.batch_norms()
    assert [name for name, each in folded.named_parameters() if not each.requires_grad] == []
    model.backbone.body.requires_grad_(False)
    body = fold_batch_norm(model).backbone.body
    assert not any(each.requires_grad for each in body.parameters())


def test_train_mode_and_short_numbers_are_told_what_to_do_and_long_ones_are_folded() -> None:
    torch.manual_seed(0)
    model = with_statistics(RetinaNet(TINY, ["a"]))
    for other in (copy.deepcopy(model).train(), copy.deepcopy(model).bfloat16(), copy.deepcopy(model).half()):
        kept = copy.deepcopy(other.state_dict())
        with pytest.raises(GhmdetError, match=r"call eval\(\) first, and fold before"):
            fold_batch_norm(other)
        assert all(torch.equal(value, kept[name]) for name, value in other.state_dict().items())
    assert not fold_batch_norm(model.double()).backbone.batch_norms()
