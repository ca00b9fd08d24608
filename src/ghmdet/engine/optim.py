"""Optimizer, learning-rate schedule and moving average of the weights."""

import copy
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from ghmdet.models import RetinaNet

OPTIMIZERS = ("adamw", "sgd")


def make_optimizer(
    model: nn.Module,
    backbone: nn.Module,
    *,
    lr: float,
    backbone_lr: float,
    weight_decay: float,
    name: str = "adamw",
) -> torch.optim.Optimizer:
    """The optimizer of this name (`OPTIMIZERS`), with the backbone's learning rate at `lr * backbone_lr`.

    adamw: no decay on biases and norms (vectors). sgd: momentum .9 and decay on everything, as the article has it.
    Each group keeps its learning rate as `initial_lr`, too: `lr` is to be that times a factor.
    """
    in_backbone = {id(parameter) for parameter in backbone.parameters()}
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for parameter in model.parameters():
        if parameter.requires_grad:
            decayed = parameter.ndim > 1 or name == "sgd"
            groups.setdefault((id(parameter) in in_backbone, decayed), []).append(parameter)
    options = [
        {
            "params": parameters,
            "lr": lr * (backbone_lr if backbone_group else 1.0),
            "initial_lr": lr * (backbone_lr if backbone_group else 1.0),
            "weight_decay": weight_decay if decayed else 0.0,
        }
        for (backbone_group, decayed), parameters in groups.items()
    ]
    if name == "sgd":
        return torch.optim.SGD(options, lr=lr, momentum=0.9, fused=True)
    return torch.optim.AdamW(options, fused=True)  # on a CPU a third of the time


def warmup_cosine(position: float, steps: int, warmup: float) -> float:
    """The factor of the learning rate at a position (in steps) of a course of `steps`.

    It rises linearly over the first `warmup * steps`, then falls as a cosine to 1 %.

    >>> [round(warmup_cosine(position, 100, 0.1), 3) for position in (0, 9, 55, 100)]
    [0.1, 1.0, 0.505, 0.01]
    """
    rising = round(warmup * steps)
    if position < rising:
        return min(1.0, (position + 1) / rising)
    share = min(1.0, (position - rising) / max(1, steps - rising))
    return 0.01 + 0.99 * (0.5 + 0.5 * math.cos(math.pi * share))


def warmup_drops(position: float, steps: int, warmup: float, drops: Sequence[float]) -> float:
    """The factor of the learning rate at a position of a course of `steps`, as the article's authors have it.

    It rises linearly from a third to 1 over the first `warmup * steps`, and each of `drops` that is reached divides it
    by ten.

    >>> [round(warmup_drops(position, 100, 0.1, (60, 80)), 3) for position in (0, 5, 10, 59, 60, 80)]
    [0.333, 0.667, 1.0, 1.0, 0.1, 0.01]
    """
    rising = round(warmup * steps)
    risen = 1.0 if position >= rising else (1 + 2 * position / rising) / 3
    return risen * math.prod(0.1 for drop in drops if position >= drop)


def set_rate(optimizer: torch.optim.Optimizer, factor: float) -> float:
    """Give each group of `make_optimizer`'s optimizer its learning rate times a factor; returns the last one's."""
    for group in optimizer.param_groups:
        group["lr"] = group["initial_lr"] * factor
    return float(group["lr"])


class WeightAverage:
    """The exponential moving average of a model's weights, shorter at first so that the random start is forgotten.

    Update t (from 0) keeps min(decay, t / (9 + t)) of the average; buffers are copied as they are.
    """

    def __init__(self, model: RetinaNet, decay: float) -> None:
        self.model = copy.deepcopy(model).requires_grad_(False)
        self.decay = decay
        self.updates = 0

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Take in the weights after an optimizer step."""
        kept = min(self.decay, self.updates / (9 + self.updates))
        torch._foreach_lerp_(list(self.model.parameters()), list(model.parameters()), 1.0 - kept)
        mine, theirs = list(self.model.buffers()), list(model.buffers())
        for dtype in {buffer.dtype for buffer in mine}:  # all at once only where they are alike
            own, other = ([buffer for buffer in part if buffer.dtype == dtype] for part in (mine, theirs))
            torch._foreach_copy_(own, other)
        self.updates += 1

    def state_dict(self) -> dict[str, Any]:
        """What `load_state_dict` takes."""
        return {"model": self.model.state_dict(), "updates": self.updates}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a state."""
        self.model.load_state_dict(state["model"])
        self.updates = state["updates"]
