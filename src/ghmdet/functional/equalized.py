"""Class losses that even out what each class's positives and negatives have pulled: EQL v2 and equalized focal loss.

Both take g, the ratio of a class's summed gradient norms, positives to negatives, over the training until now, in a
shape that broadcasts with the logits. `ghmdet.losses.Equalized` keeps the sums.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from ghmdet.functional.naive import CrossEntropy, Focal


@dataclass(frozen=True)
class EqlV2(CrossEntropy):
    """Cross entropy, positives times 1 + α (1 − f), negatives times f = sigmoid(γ (g − μ)) (Tan et al. 2021)."""

    ratio: Tensor
    alpha: float = 4.0
    gamma: float = 12.0
    mu: float = 0.8

    def __call__(self, inputs: Tensor, targets: Tensor) -> Tensor:
        """L of each element."""
        return self._scale(targets) * super().__call__(inputs, targets)

    def norm(self, inputs: Tensor, targets: Tensor) -> Tensor:
        """The size of its gradient by the logit."""
        return self._scale(targets) * super().norm(inputs, targets)

    def _scale(self, targets: Tensor) -> Tensor:
        f = torch.sigmoid(self.gamma * (self.ratio - self.mu))
        return targets * (1 + self.alpha * (1 - f)) + (1 - targets) * f


@dataclass(frozen=True)
class EqualizedFocal:
    """γ_j / γ times focal loss with γ_j = γ + s (1 − g), where g counts as 1 at most (Li et al. 2022)."""

    ratio: Tensor
    alpha: float = 0.25
    gamma: float = 2.0
    scale: float = 8.0

    def __call__(self, inputs: Tensor, targets: Tensor) -> Tensor:
        """L of each element."""
        focal = self._focal()
        return focal.gamma / self.gamma * focal(inputs, targets)

    def norm(self, inputs: Tensor, targets: Tensor) -> Tensor:
        """The size of its gradient by the logit."""
        focal = self._focal()
        return focal.gamma / self.gamma * focal.norm(inputs, targets)

    def _focal(self) -> Focal:
        return Focal(self.alpha, self.gamma + self.scale * (1 - self.ratio.clamp_max(1)))
