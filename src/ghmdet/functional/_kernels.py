"""Losses of one element: as a composition of readable steps, and as a value and a slope written in place."""

from __future__ import annotations

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from ghmdet.functional._blocks import NOTHING, Block, Space
from ghmdet.functional._elements import Elements
from ghmdet.functional.gradient_norm import asl1_gradient_norm, sigmoid_norm


class Kernel(Protocol):
    """A loss L(x, p*) and the norm of its gradient.

    `slope` and then `loss` are called for each block; both write into `out`, which they give back, and may leave what
    the other needs in `space`.
    """

    fill: float
    """The input that has loss and slope 0, with target 0."""

    def composed(self, elements: Elements) -> tuple[Tensor, Tensor]:
        """The gradient norm (without gradient) and the loss of all elements."""
        ...

    def slope(self, block: Block, out: Tensor, space: Space) -> Tensor:
        """dL/dx of a block; its size is the gradient norm."""
        ...

    def loss(self, block: Block, out: Tensor, space: Space) -> Tensor:
        """L of a block."""
        ...


class CrossEntropy:
    """L_CE of a logit, with slope p − p*."""

    fill = NOTHING

    def composed(self, elements: Elements) -> tuple[Tensor, Tensor]:
        """|p − p*| and L_CE."""
        x, t = elements.inputs, elements.targets
        return sigmoid_norm(x, t).detach(), cross_entropy(x, t)

    def slope(self, block: Block, out: Tensor, space: Space) -> Tensor:
        """p − p*."""
        torch.sigmoid(block.x, out=out)
        if block.targets is not None:
            out.sub_(block.targets)
        elif block.positives is not None:
            out.view(-1).index_add_(0, *block.positives, alpha=-1)
        return out

    def loss(self, block: Block, out: Tensor, space: Space) -> Tensor:
        """max(x, 0) − x p* + log(1 + e^−|x|)."""
        torch.clamp_min(block.x, 0, out=out)
        if block.targets is not None:
            out.addcmul_(block.targets, block.x, value=-1)
        elif block.positives is not None:
            places, is_one = block.positives
            out.view(-1).index_add_(0, places, is_one * block.x.reshape(-1)[places], alpha=-1)
        return _add_softplus_of_minus_size(out, block.x, space)


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

    def slope(self, block: Block, out: Tensor, space: Space) -> Tensor:
        """± c miss^γ (γ (1 − miss) L_CE + miss)."""
        # y = x where the target is 0 and −x where it is 1: there the loss is that of a background logit y.
        y = space.like(block.x, "y").copy_(block.x)
        if block.positives is not None:
            places, is_one = block.positives
            y.view(-1).index_add_(0, places, is_one * y.view(-1)[places], alpha=-2)
        entropy = torch.clamp_min(y, 0, out=space.like(y, "entropy"))
        _add_softplus_of_minus_size(entropy, y, space)
        miss = torch.sigmoid(y, out=out)
        scale = torch.pow(miss, self.gamma, out=space.like(y, "scale"))
        if self.alpha >= 0:
            scale.mul_(1 - self.alpha)
            if block.positives is not None:
                ours = miss.view(-1)[places].pow_(self.gamma).mul_(self.alpha)
                flat = scale.view(-1)
                flat.index_copy_(0, places, torch.where(is_one > 0, ours, flat[places]))
        rest = torch.neg(miss, out=space.like(y, "rest")).add_(1).mul_(entropy)
        out.add_(rest, alpha=self.gamma).mul_(scale)
        if block.positives is not None:
            out.view(-1).index_add_(0, places, is_one * out.view(-1)[places], alpha=-2)
        return out

    def loss(self, block: Block, out: Tensor, space: Space) -> Tensor:
        """The loss, from what `slope` left."""
        return torch.mul(space.like(out, "scale"), space.like(out, "entropy"), out=out)


class Asl1:
    """sqrt(d² + μ²) − μ of a difference d, with slope d / sqrt(d² + μ²)."""

    fill = 0.0

    def __init__(self, mu: float) -> None:
        self.mu = mu

    def composed(self, elements: Elements) -> tuple[Tensor, Tensor]:
        """|d| / sqrt(d² + μ²) and ASL_1."""
        diff = elements.inputs - elements.targets
        return asl1_gradient_norm(diff.detach(), self.mu), asl1(diff, self.mu)

    def slope(self, block: Block, out: Tensor, space: Space) -> Tensor:
        """d / sqrt(d² + μ²)."""
        diff, root = self._diff_and_root(block, out, space)
        return diff.div_(root)

    def loss(self, block: Block, out: Tensor, space: Space) -> Tensor:
        """d² / (sqrt(d² + μ²) + μ)."""
        diff, root = self._diff_and_root(block, out, space)
        return diff.square_().div_(root.add_(self.mu))

    def _diff_and_root(self, block: Block, out: Tensor, space: Space) -> tuple[Tensor, Tensor]:
        assert block.targets is not None
        diff = torch.sub(block.x, block.targets, out=out)
        root = torch.square(diff, out=space.like(out, "root")).add_(self.mu**2).sqrt_()
        return diff, root


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """L_CE of each element, of tensors that are already of one shape and precision."""
    return F.binary_cross_entropy_with_logits(logits, targets, reduction="none")


def asl1(diff: Tensor, mu: float) -> Tensor:
    """sqrt(d² + μ²) − μ without the difference of two near numbers, which loses the small d that GHM-R lifts."""
    square = diff.square()
    return square / (torch.sqrt(square + mu**2) + mu)


def _add_softplus_of_minus_size(out: Tensor, x: Tensor, space: Space) -> Tensor:
    """out + log(1 + e^−|x|), as −log(1 − s) with s = σ(−|x|): PyTorch's log1p takes 10 times as long on a CPU.

    1 − s rounds to r; 1 − s = r − d with d = (r − 1) + s, which is exact, and −log(r − d) = −log r + d / r but for d².
    """
    small = torch.abs(x, out=space.like(x, "small")).neg_().sigmoid_()
    rest = torch.neg(small, out=space.like(x, "rest")).add_(1)
    rounding = torch.sub(rest, 1, out=space.like(x, "rounding")).add_(small)
    return out.addcdiv_(rounding, rest).sub_(rest.log_())
