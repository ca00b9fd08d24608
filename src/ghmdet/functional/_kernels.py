"""Losses of one element: as a composition of readable steps, and as a value and a slope written in place."""

from __future__ import annotations

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from ghmdet.functional._blocks import NOTHING, Block, Space
from ghmdet.functional._elements import Elements
from ghmdet.functional.gradient_norm import asl1_gradient_norm, asl1_root, sigmoid_norm

# As tensors: PyTorch subtracts from a number in two steps.
ONE, TWO = torch.tensor(1.0), torch.tensor(2.0)


class Kernel(Protocol):
    """A loss L(x, p*) and the norm of its gradient.

    For each block `slope` is called, which may use all of the space, and then perhaps `loss`, which finds the space as
    `slope` left it.
    """

    fill: float
    """The input that has loss and slope 0, with target 0."""

    def composed(self, elements: Elements) -> tuple[Tensor, Tensor]:
        """The gradient norm (without gradient) and the loss of all elements."""
        ...

    def slope(self, block: Block, space: Space) -> None:
        """Write dL/dx, whose size is the gradient norm, into `space.slope`."""
        ...

    def loss(self, block: Block, space: Space) -> None:
        """Write L into `space.loss`."""
        ...


class CrossEntropy:
    """L_CE of a logit, with slope p − p*."""

    fill = NOTHING

    def composed(self, elements: Elements) -> tuple[Tensor, Tensor]:
        """|p − p*| and L_CE."""
        x, t = elements.inputs, elements.targets
        return sigmoid_norm(x, t).detach(), cross_entropy(x, t)

    def slope(self, block: Block, space: Space) -> None:
        """p − p*."""
        torch.sigmoid(block.x, out=space.slope)
        if block.targets is not None:
            space.slope.sub_(block.targets)
        elif block.positives is not None:
            space.slope.index_add_(0, block.positives.places, block.positives.is_one, alpha=-1)

    def loss(self, block: Block, space: Space) -> None:
        """max(x, 0) − x p* + log(1 + e^−|x|)."""
        torch.clamp_min(block.x, 0, out=space.loss)
        if block.targets is not None:
            space.loss.addcmul_(block.targets, block.x, value=-1)
            torch.abs(block.x, out=space.a).neg_().sigmoid_()
        else:
            # σ(−|x|) from p: where 1 − p is rough, x is large, and the logarithm is nothing beside it.
            torch.sub(ONE, space.slope, out=space.a)
            torch.minimum(space.slope, space.a, out=space.a)
        _add_log1p_exp(space.loss, space.a, space.b)
        if block.positives is not None:
            space.loss.index_copy_(0, block.positives.places, block.positives.entropy)


class Focal:
    """Focal loss c miss^γ L_CE of hard targets, miss = 1 − p_t, c = α or 1 − α; its slope is the whole derivative."""

    fill = NOTHING

    def __init__(self, alpha: float, gamma: float) -> None:
        self.alpha, self.gamma = alpha, gamma

    def composed(self, elements: Elements) -> tuple[Tensor, Tensor]:
        """|p − p*| (not used) and the loss."""
        x, t = elements.inputs, elements.targets
        # 1 − p_t without the subtraction, which would round to 0 and give NaN gradients for γ < 1.
        missing = t * torch.sigmoid(-x) + (1 - t) * torch.sigmoid(x)
        loss = missing**self.gamma * cross_entropy(x, t)
        if self.alpha >= 0:
            loss = (self.alpha * t + (1 - self.alpha) * (1 - t)) * loss
        return missing.detach(), loss

    def slope(self, block: Block, space: Space) -> None:
        """± c miss^γ (γ (1 − miss) L_CE + miss)."""
        entropy, scale, rest, miss = space.loss, space.a, space.b, space.slope
        # y = −x where the target is 1: everything is a background logit then.
        y = miss.copy_(block.x)
        if block.positives is not None:
            places, is_one, _ = block.positives
            y.index_add_(0, places, is_one * y[places], alpha=-2)
        torch.clamp_min(y, 0, out=entropy)
        torch.abs(y, out=space.a).neg_().sigmoid_()
        _add_log1p_exp(entropy, space.a, space.b)
        miss.sigmoid_()
        torch.pow(miss, self.gamma, out=scale)
        if self.alpha >= 0:
            scale.mul_(1 - self.alpha)
            if block.positives is not None:
                ours = miss[places].pow_(self.gamma).mul_(self.alpha)
                scale.index_copy_(0, places, torch.where(is_one > 0, ours, scale[places]))
        torch.sub(ONE, miss, out=rest).mul_(entropy)
        miss.add_(rest, alpha=self.gamma).mul_(scale)
        if block.positives is not None:
            miss.index_add_(0, places, is_one * miss[places], alpha=-2)

    def loss(self, block: Block, space: Space) -> None:
        """c miss^γ L_CE, from what `slope` left."""
        space.loss.mul_(space.a)


class Asl1:
    """sqrt(d² + μ²) − μ of a difference d, with slope d / sqrt(d² + μ²)."""

    fill = 0.0

    def __init__(self, mu: float) -> None:
        self.mu = mu

    def composed(self, elements: Elements) -> tuple[Tensor, Tensor]:
        """|d| / sqrt(d² + μ²) and ASL_1."""
        diff = elements.inputs - elements.targets
        return asl1_gradient_norm(diff.detach(), self.mu), asl1(diff, self.mu)

    def slope(self, block: Block, space: Space) -> None:
        """d / sqrt(d² + μ²), with d left in `loss` and the root in `a`."""
        assert block.targets is not None
        torch.sub(block.x, block.targets, out=space.loss)
        space.a.copy_(asl1_root(space.loss, self.mu))
        torch.div(space.loss, space.a, out=space.slope)

    def loss(self, block: Block, space: Space) -> None:
        """d² / (sqrt(d² + μ²) + μ)."""
        torch.div(space.loss, space.a.add_(self.mu), out=space.b)
        space.loss.mul_(space.b)


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """L_CE of each element, of tensors that are already of one shape and precision."""
    return F.binary_cross_entropy_with_logits(logits, targets, reduction="none")


def asl1(diff: Tensor, mu: float) -> Tensor:
    """sqrt(d² + μ²) − μ without the difference of two near numbers, which loses the small d that GHM-R lifts."""
    return diff * (diff / (asl1_root(diff, mu) + mu))


def _add_log1p_exp(out: Tensor, small: Tensor, spare: Tensor) -> None:
    """Add log(1 + e^−|x|) to `out`, from σ(−|x|), which is overwritten.

    With s = σ(−|x|) it is −log(1 − s) = 2 artanh(s / (2 − s)), as exact for the smallest s; PyTorch's log1p takes
    10 times as long on a CPU.
    """
    small.div_(torch.sub(TWO, small, out=spare)).atanh_()
    out.add_(small, alpha=2)
