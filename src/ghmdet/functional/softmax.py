"""Softmax cross entropy, harmonized: one example a place, whose gradient norm is 1 − p_label."""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ghmdet.errors import GhmdetError
from ghmdet.functional._arguments import (
    IGNORED,
    Arguments,
    Levels,
    check_class_weight,
    check_reduction,
    check_smoothing,
    softmax_arguments,
    wide,
)
from ghmdet.functional.density import MinCount, Weigh, Weighting, label_weights
from ghmdet.functional.gradient_norm import softmax_norm


class SoftmaxCrossEntropy(NamedTuple):
    """The options of the softmax beside those of its weights (see `softmax_ghm_loss`)."""

    background: int | None = None
    class_weight: Tensor | None = None
    ignore_index: int = IGNORED
    label_smoothing: float = 0.0

    def harmonized(
        self,
        inputs: Levels,
        labels: Levels,
        valid: Levels | None,
        weight: Levels | None,
        options: Weighting,
        reduction: str,
        weigh: Weigh | None = None,
        agree: Callable[[Tensor], Tensor] = lambda total: total,
    ) -> Tensor:
        """1/N Σ β_i L_i; with a class weight 1/W Σ β_i L_i, W the sum of the labels' weights on which ranks `agree`."""
        check_smoothing(self.label_smoothing)
        logits, label, counted, factor, _ = softmax_arguments(
            inputs, labels, valid, weight, ignore_index=self.ignore_index
        )
        assert counted is not None
        classes, background = logits.shape[1], self.background_of(logits.shape[1])
        # A NaN at a place that is left out reaches no value or gradient.
        logits = torch.where(counted.unsqueeze(1), logits.to(wide(logits)), 0.0)
        label = torch.where(counted, label, 0).long()
        by_class = None if self.class_weight is None else check_class_weight(self.class_weight, logits)
        losses = F.cross_entropy(
            logits, label, weight=by_class, label_smoothing=self.label_smoothing, reduction="none"
        )
        norm = softmax_norm(logits.detach(), label)
        beta, count = label_weights(norm, label, counted, options, classes, background, weigh)
        if by_class is not None:
            total = torch.where(counted, by_class[label], 0.0).sum()
            count = agree(total).clamp_min(torch.finfo(total.dtype).tiny)
        return Arguments(losses, label, counted, factor).reduce(beta * losses, reduction, count)

    def background_of(self, classes: int) -> int | None:
        """The label of the background among so many, of which -1 is the last; None where there is none."""
        if self.background is None:
            return None
        if not -classes <= self.background < classes:
            raise GhmdetError(
                f"background={self.background} is none of {classes} labels: give one of 0..{classes - 1}, -1 for the "
                "last, or None where every label is an object's"
            )
        return self.background % classes


def softmax_ghm_loss(
    inputs: Levels,
    labels: Levels,
    *,
    bins: int = 30,
    method: str = "unit-region",
    normalize: str = "occupied",
    min_count: MinCount = 0.0,
    per_class: bool = False,
    background: int | None = None,
    class_weight: Tensor | None = None,
    ignore_index: int = IGNORED,
    label_smoothing: float = 0.0,
    valid: Levels | None = None,
    weight: Levels | None = None,
    reduction: str = "mean",
) -> Tensor:
    """1/N Σ β_i L_i: softmax cross entropy L_i = −log p_label, harmonized by the density of g = 1 − p_label.

    The weights β are `ghmdet.functional.harmonizing_weights` of g, with its options `bins`, `method`, `normalize`
    and `min_count`; no gradient flows through them. For a moving average and for several ranks use
    `ghmdet.SoftmaxGHMC`.

    - `inputs`: logits [N, C, ...] over all labels, the background too where the model has one; or a list of such, a
      tensor for each level, with lists of as many labels: their examples have one density.
    - `labels`: integers [N, ...] in 0..C-1. Negative ones and `ignore_index` are left out.
    - `background`: the label of the background, -1 for the last, None where every label is an object's. With it
      ``min_count="positives", normalize="none"`` is the guarded form Σ L / max(R(g), P), P the examples that are no
      background. Without it every example is a positive, and ``min_count="mean", normalize="all"`` is.
    - `per_class`: a density for the examples of each label, scaled so that the mean over all examples is the mean over
      the labels. A label's P is then the number of its examples, and the background's that of all others.
    - `class_weight` [C], `label_smoothing` in [0, 1): as in ``F.cross_entropy``, where "mean" divides by the labels'
      class weights. Neither enters g or the counts: how wrong an example is, its label alone says.
    - `valid`: bool mask [N, ...]; what it leaves out changes nothing. `weight`: float [N, ...]; multiplies the loss and
      does not enter the counts.
    - `reduction`: "mean" over the valid examples, "sum", or "none" (the labels' shape, 0 where not valid).

    The result is float32 (float64 for float64 inputs), also for half precision and under autocast; 0 where nothing is
    valid. Raises ValueError for shapes, dtypes or options that do not fit and (on the CPU) for labels of C or more.

    >>> logits = torch.tensor([[4.0, 0.0], [4.0, 0.0], [4.0, 0.0], [0.0, 1.0]])
    >>> softmax_ghm_loss(logits, torch.tensor([0, 0, 0, 1]))
    tensor(0.1657)
    """
    options = Weighting(bins, method, normalize, min_count, per_class).checked(
        positives=background is not None
    )
    check_reduction(reduction)
    softmax = SoftmaxCrossEntropy(background, class_weight, ignore_index, label_smoothing)
    return softmax.harmonized(inputs, labels, valid, weight, options, reduction)
