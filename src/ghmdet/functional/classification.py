"""Classification losses over sigmoid logits: cross entropy, and ways to weigh its examples."""

import torch
from torch import Tensor

from ghmdet.errors import GhmdetError
from ghmdet.functional._arguments import (
    IGNORED,
    Levels,
    check_reduction,
    class_arguments,
    from_populations,
    is_traced,
    populations,
)
from ghmdet.functional._fused import harmonized
from ghmdet.functional.density import MinCount, Weighting, class_count
from ghmdet.functional.naive import CrossEntropy, Focal


def binary_cross_entropy(
    inputs: Levels,
    targets: Levels,
    *,
    class_weight: Tensor | None = None,
    valid: Levels | None = None,
    weight: Levels | None = None,
    reduction: str = "mean",
) -> Tensor:
    """L_CE(p, p*) with p = sigmoid(x), each class times its `class_weight` [C] if given (article, "cross entropy").

    Arguments, masks and result as in `ghm_c_loss`. Raises ValueError for shapes that do not fit.
    """
    check_reduction(reduction)
    arguments = class_arguments(inputs, targets, valid, weight, class_weight=class_weight)
    logits, dense, _ = arguments.elements()
    return arguments.reduce(CrossEntropy()(logits, dense), reduction)


def ghm_c_loss(
    inputs: Levels,
    targets: Levels,
    *,
    bins: int = 30,
    method: str = "unit-region",
    normalize: str = "occupied",
    min_count: MinCount = 0.0,
    per_class: bool = False,
    class_weight: Tensor | None = None,
    ignore_index: int = IGNORED,
    label_smoothing: float = 0.0,
    valid: Levels | None = None,
    weight: Levels | None = None,
    reduction: str = "mean",
    impl: str = "auto",
) -> Tensor:
    """L_GHM-C = 1/N Σ β_i L_CE(p_i, p*_i): cross entropy harmonized by its own gradient density (article, GHM-C loss).

    The weights β are `ghmdet.functional.harmonizing_weights` of g = |p − p*|, with its options `bins`, `method`,
    `normalize`, `min_count` and `per_class`; no gradient flows through them. ``min_count="positives",
    normalize="none"`` is the guarded form Σ L_CE / max(R(g_i), P). The batch alone makes the density; for a moving
    average and for several ranks use `ghmdet.GHMC`.

    - `inputs`: logits of any layout with the classes along dimension 1, [N, C], [N, C, H, W], or [N] for one class; or
      a list of such, a tensor for each pyramid level, with lists of as many targets (masks, weights): their elements
      have one density, and "none" gives them as rows [R, C].
    - `targets`: the inputs' shape (0..1, soft allowed), or integer labels without dimension 1 (K = background,
      negative = ignored; refused for K = 1, where they are ambiguous).
    - `class_weight`: [C], multiplies the loss of each class. `ignore_index`: a label that is ignored, as negative ones
      are. `label_smoothing`: in [0, 1), draws the targets so far towards 1/2; g follows, the positives that
      `min_count` counts do not.
    - `valid`: bool mask, the inputs' shape or that without dimension 1; what it leaves out changes nothing.
    - `weight`: float, shapes as `valid`; multiplies the loss and does not enter the counts.
    - `reduction`: "mean" over the valid elements, "sum", or "none" (the inputs' shape, 0 where not valid).
    - `impl`: "reference" (readable steps, with every derivative), "torch" (fused: no memory of the inputs' size but the
      gradient) or "auto", which takes the fused form where it can and logs why not. ``method="exact"`` and dense
      targets that are not nearly all 0 have readable steps only.

    The result is float32 (float64 for float64 inputs), also for half precision and under autocast. Raises ValueError
    for shapes, dtypes or options that do not fit and (on the CPU) for targets outside 0..1 and labels above K.

    >>> logits = torch.tensor([-4.0, -4.0, -4.0, 1.0])
    >>> ghm_c_loss(logits, torch.tensor([0.0, 0.0, 0.0, 1.0]))
    tensor(0.1657)
    """
    options = Weighting(bins, method, normalize, min_count, per_class).checked()
    check_reduction(reduction)
    arguments = class_arguments(
        inputs,
        targets,
        valid,
        weight,
        class_weight=class_weight,
        ignore_index=ignore_index,
        label_smoothing=label_smoothing,
    )
    return harmonized(CrossEntropy(), arguments, options, reduction=reduction, impl=impl)


def sigmoid_focal_loss(
    inputs: Levels,
    targets: Levels,
    *,
    alpha: float = 0.25,
    gamma: float = 2.0,
    valid: Levels | None = None,
    weight: Levels | None = None,
    reduction: str = "mean",
    impl: str = "auto",
) -> Tensor:
    """Focal loss α_t (1 − p_t)^γ L_CE (Lin et al. 2017), equal to torchvision's; a negative `alpha` leaves α_t out.

    Arguments, masks, `impl` and result as in `ghm_c_loss`; targets that may be soft (of the inputs' shape) have
    readable steps only. Raises ValueError for shapes that do not fit, `alpha` above 1
    and negative `gamma`.
    """
    if not alpha <= 1:
        raise GhmdetError(f"alpha must be at most 1 (negative leaves it out), not {alpha!r}")
    if not gamma >= 0:
        raise GhmdetError(f"gamma must be at least 0, not {gamma!r}")
    check_reduction(reduction)
    arguments = class_arguments(inputs, targets, valid, weight)
    return harmonized(Focal(alpha, gamma), arguments, None, reduction=reduction, impl=impl)


def quality_focal_loss(
    inputs: Levels,
    targets: Levels,
    *,
    beta: float = 2.0,
    valid: Levels | None = None,
    weight: Levels | None = None,
    reduction: str = "mean",
) -> Tensor:
    """Quality focal loss |p − y|^β L_CE(p, y) (Li et al. 2020): y is an object's IoU with the predicted box, else 0.

    Arguments, masks and result as in `ghm_c_loss`. Raises ValueError for shapes that do not fit and `beta` below
    1.
    """
    if not beta >= 1:
        raise GhmdetError(f"beta must be at least 1, not {beta!r}")
    check_reduction(reduction)
    arguments, loss = class_arguments(inputs, targets, valid, weight), CrossEntropy()
    logits, dense, _ = arguments.elements()
    return arguments.reduce(loss.norm(logits, dense) ** beta * loss(logits, dense), reduction)


def varifocal_loss(
    inputs: Levels,
    targets: Levels,
    *,
    alpha: float = 0.75,
    gamma: float = 2.0,
    valid: Levels | None = None,
    weight: Levels | None = None,
    reduction: str = "mean",
) -> Tensor:
    """Varifocal loss: y L_CE(p, y), but α p^γ L_CE(p, 0) where y = 0 (Zhang et al. 2021); y as in quality focal loss.

    Arguments, masks and result as in `ghm_c_loss`. Raises ValueError for shapes that do not fit and `gamma` below
    1.
    """
    if not gamma >= 1:
        raise GhmdetError(f"gamma must be at least 1, not {gamma!r}")
    check_reduction(reduction)
    arguments = class_arguments(inputs, targets, valid, weight)
    logits, dense, _ = arguments.elements()
    scale = torch.where(dense > 0, dense, alpha * torch.sigmoid(logits) ** gamma)
    return arguments.reduce(scale * CrossEntropy()(logits, dense), reduction)


def ohem_loss(
    inputs: Levels,
    targets: Levels,
    *,
    ratio: float = 3.0,
    per_class: bool = False,
    valid: Levels | None = None,
    weight: Levels | None = None,
    reduction: str = "mean",
) -> Tensor:
    """Cross entropy over every positive element (target ≥ 0.5) and the `ratio` times as many hardest negative ones.

    Hardness is the unweighted cross entropy; of equals the first are kept. A batch without positives keeps as many
    negatives as a batch with one. "mean" divides by the number kept; what is dropped counts as not valid. With
    `per_class` each class (dimension 1) keeps its own negatives, by its own number of positives.
    Arguments, masks and result as in `ghm_c_loss`. Raises ValueError for shapes that do not fit and a negative
    `ratio`.
    """
    if not ratio >= 0:
        raise GhmdetError(f"ratio must be at least 0, not {ratio!r}")
    check_reduction(reduction)
    arguments = class_arguments(inputs, targets, valid, weight)
    class_count(arguments.inputs, per_class)
    logits, dense, mask = arguments.elements()
    loss = CrossEntropy()(logits, dense)
    with torch.no_grad():
        positive = mask & (dense >= 0.5)
        # Numbers of one sign are in the order of their bits, and integers sort by radix: 20 times as fast on a CPU.
        bits = torch.int64 if loss.dtype == torch.float64 else torch.int32
        size = loss if is_traced() else loss.abs().view(bits)
        order = populations(torch.where(mask & ~positive, -size, 1), per_class)
        hardest_first = order.argsort(stable=True)
        places = torch.arange(order.shape[1], device=loss.device).expand_as(order)
        rank = torch.zeros_like(hardest_first).scatter(1, hardest_first, places)
        keep = torch.round(ratio * populations(positive, per_class).sum(1, keepdim=True).clamp_min(1)).long()
        chosen = from_populations(rank < keep, loss, per_class)
        kept = positive | (mask & chosen)
    return arguments._replace(valid=kept).reduce(loss, reduction)
