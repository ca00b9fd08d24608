"""Regression losses over box offsets: smooth L1, its authentic form, and that form harmonized."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ghmdet.functional._elements import check_reduction, reduce, regression_elements
from ghmdet.functional.density import check_options, weights
from ghmdet.functional.gradient_norm import asl1_gradient_norm, check_positive


def smooth_l1_loss(
    inputs: Tensor,
    targets: Tensor,
    *,
    beta: float = 1 / 9,
    valid: Tensor | None = None,
    weight: Tensor | None = None,
    reduction: str = "mean",
) -> Tensor:
    """SL_1(d) = d² / 2δ up to |d| = δ, and |d| − δ/2 beyond, with d = inputs − targets and δ = `beta` (article).

    Arguments, masks and result as in :func:`ghm_r_loss`. Raises ValueError for shapes that do not fit and unless `beta`
    is positive.
    """
    check_positive("beta", beta)
    check_reduction(reduction)
    elements = regression_elements(inputs, targets, valid, weight)
    loss = F.smooth_l1_loss(elements.inputs, elements.targets, reduction="none", beta=beta)
    return reduce(loss, elements, reduction)


def asl1_loss(
    inputs: Tensor,
    targets: Tensor,
    *,
    mu: float = 0.02,
    valid: Tensor | None = None,
    weight: Tensor | None = None,
    reduction: str = "mean",
) -> Tensor:
    """ASL_1(d) = sqrt(d² + μ²) − μ, with d = inputs − targets (article, authentic smooth L1).

    Arguments, masks and result as in :func:`ghm_r_loss`. Raises ValueError for shapes that do not fit and unless `mu`
    is positive.
    """
    check_positive("mu", mu)
    check_reduction(reduction)
    elements = regression_elements(inputs, targets, valid, weight)
    return reduce(asl1(elements.inputs - elements.targets, mu), elements, reduction)


def ghm_r_loss(
    inputs: Tensor,
    targets: Tensor,
    *,
    mu: float = 0.02,
    bins: int = 10,
    method: str = "unit-region",
    normalize: str = "occupied",
    min_count: float = 0.0,
    valid: Tensor | None = None,
    weight: Tensor | None = None,
    reduction: str = "mean",
) -> Tensor:
    """L_GHM-R = 1/N Σ β_i ASL_1(d_i): authentic smooth L1 harmonized by its own gradient density (article, GHM-R loss).

    The weights β are :func:`ghmdet.functional.harmonizing_weights` of gr = |d| / sqrt(d² + μ²), with its options
    `bins`, `method`, `normalize` and `min_count` (a number); no gradient flows through them. For a moving average
    and for several ranks use :class:`ghmdet.GHMR`.

    - `inputs`, `targets`: offsets of one shape, as [N, 4]; d is their difference.
    - `valid`: bool mask, the inputs' shape or that without dimension 1 ([N]); what it leaves out changes nothing.
    - `weight`: float, shapes as `valid`; multiplies the loss and does not enter the counts.
    - `reduction`: "mean" over the valid elements, "sum", or "none" (the inputs' shape, 0 where not valid).

    The result is float32 (float64 for float64 inputs), also for half precision and under autocast. Raises ValueError
    for shapes, dtypes or options that do not fit.

    >>> ghm_r_loss(torch.tensor([[0.0, 0.1]]), torch.tensor([[0.0, 0.0]]))
    tensor(0.0410)
    """
    check_positive("mu", mu)
    check_options(bins, normalize, min_count, method, positives=False)
    check_reduction(reduction)
    elements = regression_elements(inputs, targets, valid, weight)
    diff = elements.inputs - elements.targets
    norm = asl1_gradient_norm(diff.detach(), mu)
    beta = weights(norm, None, elements.valid, bins, method, normalize, min_count, per_class=False)
    return reduce(beta * asl1(diff, mu), elements, reduction)


def asl1(diff: Tensor, mu: float) -> Tensor:
    """sqrt(d² + μ²) − μ without the difference of two near numbers, which loses the small d that GHM-R lifts."""
    square = diff.square()
    return square / (torch.sqrt(square + mu**2) + mu)
