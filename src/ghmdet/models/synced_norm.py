"""Batch norm over the pictures of all ranks, so that many train what one would."""

from typing import Any

import torch
from timm.layers.norm_act import convert_sync_batchnorm
from torch import Tensor, nn

from ghmdet.spectrum import sum_over_ranks


class _Sum(torch.autograd.Function):
    """The sum over the ranks; its gradient is the sum of theirs. PyTorch 2.14 deprecates its own for a private one."""

    @staticmethod
    def forward(ctx: Any, mine: Tensor) -> Tensor:
        return sum_over_ranks(mine)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return sum_over_ranks(gradients[0])


class Synced(nn.BatchNorm2d):
    """In training the statistics of a channel are those of all ranks' pictures; each may have another number of them.

    PyTorch's own knows no CPU. It takes the place of a batch norm's class, with timm's, which holds its activation too.
    """

    def forward(self, input: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, C, H, W]; every rank must call it, and go backward through it."""
        if not self.training:
            kept: Tensor = super().forward(input)
            return kept
        x = input.to(self.weight.dtype)
        own = torch.cat([x.sum(dim=(0, 2, 3)), x.new_full((1,), x.numel() / x.shape[1])])
        total: Tensor = _Sum.apply(own)
        mean, count = total[:-1] / total[-1], total[-1].detach()
        centred = x - mean[:, None, None]
        squares: Tensor = _Sum.apply(centred.square().sum(dim=(0, 2, 3)))
        variance = squares / count
        self._keep(mean.detach(), variance.detach() * count / (count - 1).clamp(min=1))
        scale = (variance + self.eps).rsqrt() * self.weight
        out = (centred * scale[:, None, None] + self.bias[:, None, None]).to(input.dtype)
        act: Any = getattr(self, "act", None)  # timm's; its dropout does nothing in a detector
        result: Tensor = out if act is None else act(out)
        return result

    @torch.no_grad()
    def _keep(self, mean: Tensor, variance: Tensor) -> None:
        assert self.running_mean is not None and self.running_var is not None
        assert self.num_batches_tracked is not None and self.momentum is not None
        self.running_mean.lerp_(mean, self.momentum)
        self.running_var.lerp_(variance, self.momentum)
        self.num_batches_tracked.add_(1)


def synchronise(model: nn.Module, device: str) -> nn.Module:
    """The model with every batch norm in it over all ranks; for a training in which they learn."""
    if device != "cpu":
        converted: nn.Module = convert_sync_batchnorm(model)  # type: ignore[no-untyped-call]
        return converted
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.__class__ = type("Synced", (Synced, type(norm)), {})
    return model
