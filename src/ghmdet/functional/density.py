"""Gradient density and the harmonizing weights that follow from it (the mathematics: README.md beside this file)."""

from __future__ import annotations

from numbers import Integral
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ghmdet.errors import GhmdetError, unknown_name
from ghmdet.functional._arguments import (
    check_tensors,
    class_elements,
    from_populations,
    populations,
    value_range,
    values_can_be_read,
)

METHODS = ("unit-region", "exact", "prefix")
NORMALIZE = ("occupied", "all", "none")
MinCount = float | Literal["positives", "mean"]
# Grid cells of a window in `method="prefix"`; odd, so that the window at the middle of a cell is whole cells.
WINDOW = 101


class RegionCounts(NamedTuple):
    """How many examples lie in each unit region: one table, so that one sum over ranks or one average covers it.

    The rows of `table` [C, M + 2] are the classes (one row when joint); its columns are the M regions, then the
    number of examples, then the number of positives. The average of such tables is such a table.
    """

    table: Tensor

    @property
    def regions(self) -> Tensor:
        """R, the number of examples in each region: [C, M]."""
        return self.table[:, :-2]

    @property
    def examples(self) -> Tensor:
        """N, the number of examples: [C]."""
        return self.table[:, -2]

    @property
    def positives(self) -> Tensor:
        """P, the number of examples whose target is at least 1/2: [C]."""
        return self.table[:, -1]

    @property
    def occupied(self) -> Tensor:
        """The number of regions that hold an example: [C]."""
        return (self.regions > 0).sum(1).to(self.table.dtype)

    def windows(self, window: int) -> tuple[Tensor, Tensor]:
        """The examples in the `window` columns of `regions` around each, [C, M], and how many columns those are, [M].

        At the ends of the range there are fewer. Two look-ups in a prefix sum; float64.
        """
        ends = F.pad(self.regions.double().cumsum(1), (1, 0))
        first = torch.arange(self.regions.shape[1], device=ends.device) - window // 2
        below, up_to = first.clamp_min(0), (first + window).clamp_max(len(first))
        return ends.index_select(1, up_to) - ends.index_select(1, below), (up_to - below).double()


def gradient_density(
    gradient_norm: Tensor,
    *,
    epsilon: float = 1 / 30,
    method: str = "exact",
    valid: Tensor | None = None,
) -> Tensor:
    """GD(g_i), the number of examples per unit of gradient norm around each example (article, "Gradient Density").

    ``method="exact"`` counts the window [g − ε/2, g + ε/2) in float64 and divides by its valid length
    l_ε(g) = min(g + ε/2, 1) − max(g − ε/2, 0), by one sort: O(N log N) time, O(N) memory. ``"prefix"`` gives the exact
    density at the middle of the example's cell on a grid of 101 cells a window (README.md: its error bound), by
    prefix sums over the cells: O(N). ``"unit-region"`` divides 0..1 into M = round(1/ε) regions and gives R·M, with R
    the number of examples in the example's own region.

    `gradient_norm` has any shape and values in 0..1; all its elements are one population. `valid`, a bool mask (the
    same shape, or that without dimension 1), leaves elements out; their density is given as 0.
    Raises ValueError for an epsilon outside (0, 1], an unknown method, or (on the CPU) values outside 0..1.

    >>> gradient_density(torch.tensor([0.05, 0.5, 0.52]), epsilon=0.1)
    tensor([10., 20., 20.])
    """
    if not 0 < epsilon <= 1:
        raise GhmdetError(f"epsilon must lie in (0, 1], not {epsilon!r}")
    _check_method(method)
    norm, _, mask = _norm_elements(gradient_norm, None, valid)
    with torch.no_grad():
        if method == "exact":
            count, length = _window_counts(populations(norm, False), populations(mask, False), epsilon)
            density = (count / length).view(norm.shape).to(norm.dtype)
        else:
            window = window_cells(method)
            cells = round(window / epsilon)
            index = region_index(norm, mask, cells, per_class=False)
            count, width = count_regions(index, None, cells, False, norm.dtype).windows(window)
            density = look_up((count * cells / width).to(norm.dtype), index)
        return torch.where(mask, density, 0.0)


def harmonizing_weights(
    gradient_norm: Tensor,
    *,
    bins: int = 30,
    method: str = "unit-region",
    normalize: str = "occupied",
    min_count: MinCount = 0.0,
    per_class: bool = False,
    targets: Tensor | None = None,
    valid: Tensor | None = None,
) -> Tensor:
    """β_i, the weight that each example gets from the density of its gradient norm (article: β_i = N / GD(g_i)).

    - `bins`: M, the number of unit regions; ε = 1/M for ``method="exact"`` and ``"prefix"``, which are those of
      :func:`gradient_density`.
    - `normalize`: ``"all"`` is the article's N / GD(g). ``"occupied"`` is the same over the occupied part of the
      range, so that without a floor the weights sum to N; for unit regions that is N / (R · occupied regions), the
      authors' code. ``"none"`` is N / R: every occupied region carries a total weight of N.
    - `min_count`: each region counts as at least that many examples, R → max(R, min_count); ``"positives"`` stands
      for P, the number of targets of at least 1/2 (1 where there is none), ``"mean"`` for N / M, so that with ``"all"``
      no weight exceeds 1.
    - `per_class`: a density of its own for each class along dimension 1; the weights are scaled so that a mean over
      all elements is the mean over the classes.
    - `targets`: needed for ``min_count="positives"``; the shape of `gradient_norm`, or integer labels without
      dimension 1 (negative = left out).
    - `valid`: bool mask, the same shape or that without dimension 1; the weight of what is left out is 0.

    The result has the shape of `gradient_norm` and no gradient. Raises ValueError for options out of range, shapes that
    do not fit, missing targets, or (on the CPU) gradient norms outside 0..1.

    >>> harmonizing_weights(torch.tensor([0.01, 0.02, 0.99]))
    tensor([0.7500, 0.7500, 1.5000])
    """
    check_options(bins, normalize, min_count, method)
    if min_count == "positives" and targets is None:
        raise GhmdetError('min_count="positives" needs the targets, to count the positives')
    norm, dense, mask = _norm_elements(gradient_norm, targets, valid)
    return weights(norm, dense, mask, bins, method, normalize, min_count, per_class)


@torch.no_grad()
def weights(
    norm: Tensor,
    targets: Tensor | None,
    valid: Tensor,
    bins: int,
    method: str,
    normalize: str,
    min_count: MinCount,
    per_class: bool,
) -> Tensor:
    """β of gradient norms, targets and mask that are already of one shape; options already checked."""
    norm, window = norm.detach(), window_cells(method)
    index = region_index(norm, valid, bins * window, per_class)
    counts = count_regions(index, targets, bins * window, per_class, norm.dtype)
    if method != "exact":
        return look_up(method_weights(counts, method, normalize, min_count), index)
    rows, mask = populations(norm, per_class), populations(valid, per_class)
    count, length = _window_counts(rows, mask, 1 / bins)
    occupied = torch.where(mask, length / count, 0.0).sum(1) * bins
    floored = torch.maximum(count, _floor(counts, min_count, bins).unsqueeze(1))
    scale = counts.examples.mean() / _divisor(occupied, bins, normalize)
    beta = torch.where(mask, scale.unsqueeze(1) * length * bins / floored, 0.0).to(norm.dtype)
    return from_populations(beta, norm, per_class)


def unit_region(norm: Tensor, bins: int) -> Tensor:
    """The region m of each gradient norm, m/M ≤ g < (m + 1)/M, int32; a norm of 1 lies in the last one.

    In the precision of the norms, which lie in 0..1; `bins` is M. A NaN lies in the first region.

    >>> unit_region(torch.tensor([0.0, 0.05, 1.0]), 30)
    tensor([ 0,  1, 29], dtype=torch.int32)
    """
    return (norm * bins).to(torch.int32).clamp_(0, bins - 1)


def region_index(norm: Tensor, valid: Tensor, bins: int, per_class: bool) -> Tensor:
    """The place of each element in a flat [C · M + 1] table: its class's region, or the last one where not valid."""
    num_classes = class_count(norm, per_class)
    index = unit_region(norm.detach(), bins)
    if per_class:
        offset = torch.arange(num_classes, device=norm.device, dtype=torch.int32) * bins
        index = index + offset.view(1, -1, *[1] * (norm.dim() - 2))
    return torch.where(valid, index, num_classes * bins)


def count_regions(
    index: Tensor, targets: Tensor | None, bins: int, per_class: bool, dtype: torch.dtype
) -> RegionCounts:
    """The examples of each region from `region_index`, and the positives among the `targets`."""
    classes = class_count(index, per_class)
    # torch.compile makes atomic additions of int32, and for int64 sorts all elements.
    dtype_of_counts = torch.int32 if index.numel() < 2**31 else torch.int64
    counts = torch.zeros(classes * bins + 1, dtype=dtype_of_counts, device=index.device)
    counts = counts.index_add(0, index.flatten(), counts.new_ones(1).expand(index.numel()))
    regions = counts[:-1].view(classes, bins)
    if targets is None:
        positives = torch.zeros(classes, device=index.device)
    else:
        positives = populations(targets >= 0.5, per_class).sum(1)
    columns = [regions, regions.sum(1, keepdim=True), positives.unsqueeze(1)]
    return RegionCounts(torch.cat([column.to(dtype) for column in columns], 1))


def region_weights(
    counts: RegionCounts, normalize: str, min_count: MinCount, batch: RegionCounts | None = None
) -> Tensor:
    """β of each region [C, M]: mean over classes of N, over max(R, floor) and the divisor; 0 for an empty region.

    Of an average, the occupied regions are those of the `batch`.
    """
    regions = counts.regions
    bins = regions.shape[1]
    floored = torch.maximum(regions, _floor(counts, min_count, bins).unsqueeze(1))
    if normalize != "none":
        floored = floored * _divisor((batch or counts).occupied, bins, normalize).unsqueeze(1)
    return (counts.examples.mean() / floored).masked_fill(regions <= 0, 0.0)


def method_weights(counts: RegionCounts, method: str, normalize: str, min_count: MinCount) -> Tensor:
    """β of each column of `regions`, [C, M]: of each unit region, or of each grid cell of ``method="prefix"``."""
    if method == "unit-region":
        return region_weights(counts, normalize, min_count)
    examples, width = counts.windows(WINDOW)
    width = width / WINDOW  # l_ε(g) in windows
    occupied = torch.where(counts.regions > 0, counts.regions * width / examples, 0.0).sum(1)
    bins = examples.shape[1] // WINDOW
    floored = torch.maximum(examples, _floor(counts, min_count, bins).unsqueeze(1))
    divisor = _divisor(occupied, bins, normalize).unsqueeze(1)
    beta = torch.where(counts.regions > 0, counts.examples.mean() * width / (floored * divisor), 0.0)
    return beta.to(counts.table.dtype)


def window_cells(method: str) -> int:
    """How many columns of `RegionCounts.regions` make one window (or unit region) of a method."""
    return WINDOW if method == "prefix" else 1


def look_up(table: Tensor, index: Tensor) -> Tensor:
    """The entry of `table` [C, M] at each place given by `region_index`, 0 at elements that are not valid."""
    flat = torch.cat([table.flatten(), table.new_zeros(1)])
    return flat.index_select(0, index.flatten()).view(index.shape)


def class_count(inputs: Tensor, per_class: bool) -> int:
    """The number of densities: one for each class along dimension 1, or one for all."""
    if per_class and inputs.dim() < 2:
        raise GhmdetError(
            f"per_class=True needs a class dimension (dimension 1), found shape {tuple(inputs.shape)}"
        )
    return inputs.shape[1] if per_class else 1


def check_options(
    bins: int, normalize: str, min_count: MinCount, method: str = "unit-region", positives: bool = True
) -> None:
    """Raise for an option of the harmonizing weights that is misspelt or out of range; without `positives`, no P."""
    check_whole("bins", bins)
    _check_method(method)
    if normalize not in NORMALIZE:
        raise unknown_name("normalize", normalize, NORMALIZE)
    if isinstance(min_count, str):
        if min_count not in ("positives", "mean"):
            raise unknown_name("min_count", min_count, ["positives", "mean"])
        if min_count == "positives" and not positives:
            raise GhmdetError(
                'min_count="positives" has no meaning in a regression: give "mean" or a number of examples'
            )
    elif not 0 <= min_count < float("inf"):
        raise GhmdetError(f'min_count must be at least 0, "positives" or "mean", not {min_count!r}')


def check_whole(name: str, value: object) -> int:
    """An option as an int; raises unless it is a whole number (also numpy's) of at least 1."""
    if isinstance(value, bool) or not isinstance(value, Integral) or value < 1:
        raise GhmdetError(f"{name} must be a whole number of at least 1, not {value!r}")
    return int(value)


def _check_method(method: str) -> None:
    if method not in METHODS:
        raise unknown_name("method", method, METHODS)


def _norm_elements(
    gradient_norm: Tensor, targets: Tensor | None, valid: Tensor | None
) -> tuple[Tensor, Tensor | None, Tensor]:
    check_tensors(gradient_norm=gradient_norm)
    dense = torch.zeros_like(gradient_norm) if targets is None else targets
    norm, dense, mask, _ = class_elements(gradient_norm.detach(), dense, valid)
    if values_can_be_read(norm) and not bool(((norm >= 0) & (norm <= 1)).all()):
        raise GhmdetError(f"gradient norms lie in 0..1, found {value_range(norm)}")
    return norm, None if targets is None else dense, mask


def _window_counts(norm: Tensor, valid: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    """Σ_k δ_ε(g_k, g_i) and l_ε(g_i) in float64 for each row of [C, N]."""
    norm = norm.double()
    # Elements that are not valid go behind every window.
    ordered, order = torch.where(valid, norm, torch.inf).contiguous().sort(dim=1)
    below = torch.searchsorted(ordered, ordered - epsilon / 2)
    up_to = torch.searchsorted(ordered, ordered + epsilon / 2)
    count = torch.zeros_like(norm).scatter(1, order, (up_to - below).double())
    length = (norm + epsilon / 2).clamp_max(1) - (norm - epsilon / 2).clamp_min(0)
    return count, length


def _floor(counts: RegionCounts, min_count: MinCount, bins: int) -> Tensor:
    if min_count == "positives":
        return counts.positives.clamp_min(1)
    if min_count == "mean":
        return counts.examples / bins
    return torch.full_like(counts.positives, min_count)


def _divisor(occupied: Tensor, bins: int, normalize: str) -> Tensor:
    """By how many regions the weights are divided: all M, the occupied ones, or none."""
    if normalize == "occupied":
        return occupied.clamp_min(torch.finfo(occupied.dtype).tiny)
    return torch.full_like(occupied, bins if normalize == "all" else 1)
