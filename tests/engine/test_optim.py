from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn

from ghmdet.engine.optim import WeightAverage, make_optimizer, set_rate, warmup_cosine, warmup_drops


def test_a_step_in_channels_last_is_that_of_plain_adamw():
    # The fused step walks weights and gradients in the order of memory, and would mix them up if that differed.
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.GroupNorm(2, 8), nn.Conv2d(8, 4, 5, stride=2))
    plain = copy.deepcopy(model)
    model.to(memory_format=torch.channels_last)
    options = {"lr": 0.1, "backbone_lr": 0.1, "weight_decay": 0.1}
    fused = make_optimizer(model, model[0], **options)
    groups = make_optimizer(plain, plain[0], **options).param_groups
    reference = torch.optim.AdamW(
        [{name: group[name] for name in ("params", "lr", "weight_decay")} for group in groups]
    )
    images = torch.rand(2, 3, 20, 30)
    for _ in range(3):
        fused.zero_grad()
        model(images.to(memory_format=torch.channels_last)).square().sum().backward()
        for mine, theirs in zip(model.parameters(), plain.parameters(), strict=True):
            theirs.grad = mine.grad.contiguous()
        fused.step()
        reference.step()
        for mine, theirs in zip(model.parameters(), plain.parameters(), strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-6)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))
        self.head = nn.Conv2d(2, 1, 1)
        self.frozen = nn.Parameter(torch.zeros(3), requires_grad=False)


@pytest.mark.parametrize(("name", "vectors"), [("adamw", 0.0), ("sgd", 0.02)])
def test_each_parameter_has_the_rate_and_decay_of_its_kind(name, vectors):
    net = Net()
    optimizer = make_optimizer(net, net.backbone, lr=0.5, backbone_lr=0.3, weight_decay=0.02, name=name)
    found = {
        id(one): (
            group["lr"],
            group["initial_lr"],
            group["weight_decay"],
            group["fused"],
            group.get("momentum"),
        )
        for group in optimizer.param_groups
        for one in group["params"]
    }
    momentum = 0.9 if name == "sgd" else None
    for part, rate in ((net.backbone, 0.15), (net.head, 0.5)):
        for one in part.parameters():
            assert found.pop(id(one)) == (rate, rate, 0.02 if one.ndim > 1 else vectors, True, momentum)
    assert not found  # a frozen one has no place
    assert isinstance(optimizer, torch.optim.SGD if name == "sgd" else torch.optim.AdamW)

    net.backbone.requires_grad_(False)
    rest = make_optimizer(net, net.backbone, lr=0.5, backbone_lr=0.3, weight_decay=0.02, name=name)
    assert {id(one) for group in rest.param_groups for one in group["params"]} == {
        *map(id, net.head.parameters())
    }


def test_a_factor_multiplies_the_rate_of_each_group_and_not_the_factor_before():
    net = Net()
    optimizer = make_optimizer(net, net.backbone, lr=0.5, backbone_lr=0.3, weight_decay=0.02)
    for factor in (0.1, 0.5):
        last = set_rate(optimizer, factor)
        assert sorted({group["lr"] for group in optimizer.param_groups}) == pytest.approx(
            [0.15 * factor, 0.5 * factor]
        )
        assert last == optimizer.param_groups[-1]["lr"] and type(last) is float


def test_the_cosine_schedule_by_hand():
    assert warmup_cosine(0, 200, 0.1) == 1 / 20  # the first step already learns
    assert warmup_cosine(18, 200, 0.1) == 19 / 20
    assert warmup_cosine(19.7, 200, 0.1) == 1.0
    assert warmup_cosine(20, 200, 0.1) == 1.0
    for position in (20, 65, 110, 199, 200):
        expected = 0.01 + 0.99 * (1 + math.cos(math.pi * (position - 20) / 180)) / 2
        assert warmup_cosine(position, 200, 0.1) == pytest.approx(expected, abs=1e-12)
    assert warmup_cosine(500, 200, 0.1) == pytest.approx(0.01)  # past the end
    assert warmup_cosine(0, 200, 0.0) == 1.0
    assert warmup_cosine(0, 0, 0.0) == 1.0 and warmup_cosine(1, 1, 1.0) == 1.0


def test_the_schedule_of_drops_by_hand():
    factors = [
        warmup_drops(position, 100, 0.1, (60, 80)) for position in (0, 1, 9, 10, 59.9, 60, 79, 80, 200)
    ]
    assert factors == pytest.approx([1 / 3, 0.4, 2.8 / 3, 1, 1, 0.1, 0.1, 0.01, 0.01], abs=1e-12)
    assert warmup_drops(0, 100, 0.0, ()) == 1.0
    assert warmup_drops(5, 100, 0.1, (5,)) == pytest.approx(0.2 / 3)  # a drop while it rises counts


def test_the_average_forgets_the_start_then_decays_and_copies_buffers():
    net = Net()
    average = WeightAverage(net, 0.3)
    expected = net.head.weight.detach().clone()
    assert not any(one.requires_grad for one in average.model.parameters())
    for update in range(8):
        with torch.no_grad():
            net.head.weight.normal_()
            net.backbone[1].running_mean.normal_()
        kept = min(0.3, update / (9 + update))  # 0, .1, .18, .25, .3, ...
        expected = kept * expected + (1 - kept) * net.head.weight.detach()
        average.update(net)
        torch.testing.assert_close(average.model.head.weight, expected)
        assert torch.equal(average.model.backbone[1].running_mean, net.backbone[1].running_mean)
    again = WeightAverage(Net(), 0.3)
    again.load_state_dict(copy.deepcopy(average.state_dict()))
    net.head.weight.data.zero_()
    for one in (average, again):
        one.update(net)
        torch.testing.assert_close(one.model.head.weight, 0.3 * expected)
        assert one.updates == 9
