from __future__ import annotations

import copy

import torch
from torch import nn

from ghmdet.engine.optim import make_optimizer


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
