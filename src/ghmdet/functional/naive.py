"""The losses as the article writes them, on whole tensors: the specification, and ``impl="reference"``.

Read it beside the article; README.md has the symbols. Every derivative exists. It takes some ten times the memory of
the inputs; the fused form is held to its values and gradients.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ghmdet.functional._arguments import Arguments
from ghmdet.functional.density import Weigh, Weighting, weights
from ghmdet.functional.gradient_norm import asl1_gradient_norm, asl1_root, sigmoid_norm


@dataclass(frozen=True)
class CrossEntropy:
    """L_CE(p, p*) with p = sigmoid(x): −log(p) for p* = 1, −log(1 − p) for p* = 0."""

    def __call__(self, inputs: Tensor, targets: Tensor) -> Tensor:
        """L of each element, of tensors that are of one shape and precision."""
        return F.binary_cross_entropy_with_logits(inputs, targets, reduction="none")

    def norm(self, inputs: Tensor, targets: Tensor) -> Tensor:
        """g = |p − p*|, the size of its gradient by the logit."""
        return sigmoid_norm(inputs, targets)


@dataclass(frozen=True)
class Focal(CrossEntropy):
    """α_t (1 − p_t)^γ L_CE (Lin et al. 2017), without α_t where α is negative."""

    alpha: float
    gamma: float | Tensor

    def __call__(self, inputs: Tensor, targets: Tensor) -> Tensor:
        """L of each element."""
        return self._scale(inputs, targets) * super().__call__(inputs, targets)

    def norm(self, inputs: Tensor, targets: Tensor) -> Tensor:
        """The size of its gradient by the logit, where the target is 0 or 1."""
        missing, entropy = super().norm(inputs, targets), super().__call__(inputs, targets)
        return self._scale(inputs, targets) * (self.gamma * (1 - missing) * entropy + missing)

    def _scale(self, inputs: Tensor, targets: Tensor) -> Tensor:
        # 1 − p_t without the subtraction, which would round to 0. Where it is 0, its power has no slope for γ < 1.
        missing = targets * torch.sigmoid(-inputs) + (1 - targets) * torch.sigmoid(inputs)
        power = missing.clamp_min(torch.finfo(missing.dtype).tiny) ** self.gamma
        return power if self.alpha < 0 else (self.alpha * targets + (1 - self.alpha) * (1 - targets)) * power


@dataclass(frozen=True)
class Asl1:
    """ASL_1(d) = sqrt(d² + μ²) − μ, with d = x − t."""

    mu: float

    def __call__(self, inputs: Tensor, targets: Tensor) -> Tensor:
        """L of each element."""
        # Without the difference of two near numbers, which loses the small d that GHM-R lifts.
        diff = inputs - targets
        return diff * (diff / (asl1_root(diff, self.mu) + self.mu))

    def norm(self, inputs: Tensor, targets: Tensor) -> Tensor:
        """gr = |d| / sqrt(d² + μ²), the size of its gradient."""
        return asl1_gradient_norm(inputs - targets, self.mu)


Loss = CrossEntropy | Focal | Asl1


def harmonized(
    loss: Loss, arguments: Arguments, options: Weighting | None, weigh: Weigh | None, reduction: str
) -> Tensor:
    """1/N Σ β_i L_i with β_i from the density of the gradient norms; without options every β_i is 1."""
    inputs, targets, valid = arguments.elements()
    wanted = arguments.smoothed(targets)
    losses, count = loss(inputs, wanted), None
    if options is not None:
        # Positives are counted by what the targets said before they were smoothed.
        beta, count = weights(loss.norm(inputs, wanted), targets, valid, options, weigh)
        losses = beta * losses
    return arguments.reduce(losses, reduction, count)
