"""Optimizer, learning-rate schedule and moving average of the weights."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from torch.optim.swa_utils import AveragedModel


def make_optimizer(
    model: nn.Module, backbone: nn.Module, *, lr: float, backbone_lr: float, weight_decay: float
) -> torch.optim.AdamW:
    """AdamW with the backbone's learning rate at `lr * backbone_lr`, and no decay on biases and norms (vectors)."""
    in_backbone = {id(parameter) for parameter in backbone.parameters()}
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for parameter in model.parameters():
        if parameter.requires_grad:
            groups.setdefault((id(parameter) in in_backbone, parameter.ndim > 1), []).append(parameter)
    return torch.optim.AdamW(
        [
            {
                "params": parameters,
                "lr": lr * (backbone_lr if backbone_group else 1.0),
                "weight_decay": weight_decay if decayed else 0.0,
            }
            for (backbone_group, decayed), parameters in groups.items()
        ]
    )


def warmup_cosine(optimizer: torch.optim.Optimizer, *, steps: int, warmup: float) -> LambdaLR:
    """A learning rate that rises linearly for `warmup * steps` steps, then falls as a cosine to 1 % of its peak."""
    rising = round(warmup * steps)

    def factor(step: int) -> float:
        if step < rising:
            return (step + 1) / rising
        share = min(1.0, (step - rising) / max(1, steps - rising))
        return 0.01 + 0.99 * (0.5 + 0.5 * math.cos(math.pi * share))

    return LambdaLR(optimizer, factor)


def average_weights(model: nn.Module, decay: float) -> AveragedModel:
    """The exponential moving average of the weights, shorter at first so that the random start is forgotten.

    Update number t keeps min(decay, (1 + t) / (10 + t)) of the average; buffers are copied as they are.
    """

    def lerp(
        averaged: Sequence[Tensor] | tuple[Tensor, ...], current: Sequence[Tensor], updates: Tensor | int
    ) -> None:
        t = int(updates)
        torch._foreach_lerp_(list(averaged), list(current), 1.0 - min(decay, (1 + t) / (10 + t)))

    return AveragedModel(model, multi_avg_fn=lerp)
