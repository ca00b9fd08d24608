"""Regression losses over box offsets: smooth L1, its authentic form, and that form harmonized."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from ghmdet.functional._arguments import Levels, check_reduction, regression_arguments
from ghmdet.functional._fused import harmonized
from ghmdet.functional.density import MinCount, Weighting
from ghmdet.functional.gradient_norm import check_positive
from ghmdet.functional.naive import Asl1


def smooth_l1_loss(
    inputs: Levels,
    targets: Levels,
    *,
    beta: float = 1 / 9,
    valid: Levels | None = None,
    weight: Levels | None = None,
    reduction: str = "mean",
) -> Tensor:
    """SL_1(d) = d² / 2δ up to |d| = δ, and |d| − δ/2 beyond, with d = inputs − targets and δ = `beta` (article).

    Arguments, masks and result as in `ghm_r_loss`. Raises ValueError for shapes that do not fit and unless `beta`
    is positive.
    """
    check_positive("beta", beta)
    check_reduction(reduction)
    arguments = regression_arguments(inputs, targets, valid, weight)
    offsets, wanted, _ = arguments.elements()
    return arguments.reduce(F.smooth_l1_loss(offsets, wanted, reduction="none", beta=beta), reduction)


def balanced_l1_loss(
    inputs: Levels,
    targets: Levels,
    *,
    alpha: float = 0.5,
    gamma: float = 1.5,
    beta: float = 1 / 9,
    valid: Levels | None = None,
    weight: Levels | None = None,
    reduction: str = "mean",
) -> Tensor:
    """δ L_b(|d| / δ), with L_b(x) = α/b (bx + 1) ln(bx + 1) − αx up to 1, γx + γ/b − α beyond (Pang et al. 2019).

    b = exp(γ/α) − 1, d = inputs − targets; δ = `beta` is where it turns into a line, as in `smooth_l1_loss` (the
    article has 1). Arguments, masks and result as in `ghm_r_loss`. Raises ValueError for shapes that do not fit
    and unless `alpha`, `gamma` and `beta` are positive.
    """
    for name, value in (("alpha", alpha), ("gamma", gamma), ("beta", beta)):
        check_positive(name, value)
    check_reduction(reduction)
    arguments = regression_arguments(inputs, targets, valid, weight)
    offsets, wanted, _ = arguments.elements()
    b, x = math.expm1(gamma / alpha), (offsets - wanted).abs() / beta
    near = x.clamp_max(1)  # from 1 on the line goes on with the slope γ
    loss = alpha / b * (b * near + 1) * torch.log1p(b * near) - alpha * near + gamma * (x - near)
    return arguments.reduce(beta * loss, reduction)


def asl1_loss(
    inputs: Levels,
    targets: Levels,
    *,
    mu: float = 0.02,
    valid: Levels | None = None,
    weight: Levels | None = None,
    reduction: str = "mean",
) -> Tensor:
    """ASL_1(d) = sqrt(d² + μ²) − μ, with d = inputs − targets (article, authentic smooth L1).

    Arguments, masks and result as in `ghm_r_loss`. Raises ValueError for shapes that do not fit and unless `mu`
    is positive.
    """
    check_positive("mu", mu)
    check_reduction(reduction)
    arguments = regression_arguments(inputs, targets, valid, weight)
    offsets, wanted, _ = arguments.elements()
    return arguments.reduce(Asl1(mu)(offsets, wanted), reduction)


def ghm_r_loss(
    inputs: Levels,
    targets: Levels,
    *,
    mu: float = 0.02,
    bins: int = 10,
    method: str = "unit-region",
    normalize: str = "occupied",
    min_count: MinCount = 0.0,
    valid: Levels | None = None,
    weight: Levels | None = None,
    reduction: str = "mean",
    impl: str = "auto",
) -> Tensor:
    """L_GHM-R = 1/N Σ β_i ASL_1(d_i): authentic smooth L1 harmonized by its own gradient density (article, GHM-R loss).

    The weights β are `ghmdet.functional.harmonizing_weights` of gr = |d| / sqrt(d² + μ²), with its options
    `bins`, `method`, `normalize` and `min_count` (a number or "mean"); no gradient flows through them.
    ``min_count="mean", normalize="all"`` is the guarded form. For a moving average and for several ranks use
    `ghmdet.GHMR`.

    - `inputs`, `targets`: offsets of one shape, as [N, 4]; d is their difference.
    - `valid`: bool mask, the inputs' shape or that without dimension 1 ([N]); what it leaves out changes nothing.
    - `weight`: float, shapes as `valid`; multiplies the loss and does not enter the counts.
    - `reduction`: "mean" over the valid elements, "sum", or "none" (the inputs' shape, 0 where not valid).
    - `impl`: as in `ghm_c_loss`; offsets are few and have readable steps only.

    The result is float32 (float64 for float64 inputs), also for half precision and under autocast. Raises ValueError
    for shapes, dtypes or options that do not fit.

    >>> import torch
    >>> ghm_r_loss(torch.tensor([[0.0, 0.1]]), torch.tensor([[0.0, 0.0]]))
    tensor(0.0410)
    """
    check_positive("mu", mu)
    options = Weighting(bins, method, normalize, min_count).checked(positives=False)
    check_reduction(reduction)
    arguments = regression_arguments(inputs, targets, valid, weight)
    return harmonized(Asl1(mu), arguments, options, reduction=reduction, impl=impl)
