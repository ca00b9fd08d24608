"""Optimizer, learning-rate schedule and moving average of the weights."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grads_with_norm_, get_total_norm
from torch.optim.lr_scheduler import LambdaLR

from ghmdet.models import RetinaNet


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
        ],
        fused=True,  # on a CPU a third of the time
    )


def clip_gradients(parameters: Iterable[nn.Parameter], limit: float) -> Tensor:
    """Scale all gradients down so that their common norm is at most `limit`; returns the norm that they had.

    `torch.nn.utils.clip_grad_norm_`, which writes every gradient anew also where none changes; here not where looking
    at the norm makes nothing wait.
    """
    parameters = [parameter for parameter in parameters if parameter.grad is not None]
    norm = get_total_norm([parameter.grad for parameter in parameters if parameter.grad is not None])
    if norm.device.type != "cpu" or not norm <= limit:  # also where it is NaN
        clip_grads_with_norm_(parameters, limit, norm)
    return norm


class Curve:
    """The learning rate's course over `steps` steps, whose end may be moved on the way."""

    def __init__(self, steps: int, warmup: float) -> None:
        self.steps, self.warmup = steps, warmup
        self.moved_at, self.progress_then = 0, 0.0

    def position(self, step: int) -> float:
        """The step at which a run that always had this end would be; `step` itself where the end was never moved."""
        since, rest = step - self.moved_at, max(1, self.steps - self.moved_at)
        return self.steps * self.progress_then + (1 - self.progress_then) * self.steps * since / rest

    def move_end(self, steps: int, step: int) -> None:
        """Let the course end after `steps` steps; it goes on at `step` from where it is, faster or slower."""
        progress = self.position(step) / self.steps
        self.steps, self.moved_at, self.progress_then = steps, step, progress

    def __call__(self, step: int) -> float:
        """The factor of the learning rate at a step."""
        place, rising = self.position(step), round(self.warmup * self.steps)
        if place < rising:
            return min(1.0, (place + 1) / rising)
        share = min(1.0, (place - rising) / max(1, self.steps - rising))
        return 0.01 + 0.99 * (0.5 + 0.5 * math.cos(math.pi * share))


def warmup_cosine(optimizer: torch.optim.Optimizer, *, steps: int, warmup: float) -> LambdaLR:
    """A learning rate that rises linearly for `warmup * steps` steps, then falls as a cosine to 1 % of its peak.

    Its one `Curve` is `lr_lambdas[0]`; the schedule's state keeps it.
    """
    return LambdaLR(optimizer, Curve(steps, warmup))


def move_end(schedule: LambdaLR, steps: int) -> None:
    """Let a schedule of `warmup_cosine` end after `steps` steps."""
    curve = schedule.lr_lambdas[0]
    assert isinstance(curve, Curve)
    curve.move_end(steps, schedule.last_epoch)
    schedule._last_lr = [base * curve(schedule.last_epoch) for base in schedule.base_lrs]
    for group, rate in zip(schedule.optimizer.param_groups, schedule._last_lr, strict=True):
        group["lr"] = rate


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
        for mine, theirs in zip(self.model.buffers(), model.buffers(), strict=True):
            mine.copy_(theirs)
        self.updates += 1

    def state_dict(self) -> dict[str, Any]:
        """What `load_state_dict` takes."""
        return {"model": self.model.state_dict(), "updates": self.updates}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a state."""
        self.model.load_state_dict(state["model"])
        self.updates = state["updates"]
