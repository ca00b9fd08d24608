"""Gradient density and the harmonizing weights that follow from it (the mathematics: README.md beside this file)."""

from __future__ import annotations

from collections.abc import Callable
from numbers import Integral
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ghmdet.errors import GhmdetError, unknown_name
from ghmdet.functional._arguments import (
    check_tensors,
    class_arguments,
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
        """P, the number of examples whose target is at least 1/2, or whose label is no background: [C]."""
        return self.table[:, -1]


Weigh = Callable[[RegionCounts], tuple[Tensor, Tensor | None]]
"""From the counts of a batch, β of each region [C, M], and what "mean" divides by (None: the valid elements)."""


class Weighting(NamedTuple):
    """The options of the harmonizing weights (see `harmonizing_weights`)."""

    bins: int = 30
    method: str = "unit-region"
    normalize: str = "occupied"
    min_count: MinCount = 0.0
    per_class: bool = False

    def checked(self, positives: bool = True) -> Weighting:
        """Itself; raises for an option that is misspelt or out of range. Without `positives` there is no P."""
        if self.method not in METHODS:
            raise unknown_name("method", self.method, METHODS)
        if self.normalize not in NORMALIZE:
            raise unknown_name("normalize", self.normalize, NORMALIZE)
        if self.min_count == "positives" and not positives:
            raise GhmdetError(
                'min_count="positives" has no meaning in a regression or a softmax without background, where every '
                'example is a positive: give "mean" or a number of examples'
            )
        if isinstance(self.min_count, str):
            if self.min_count not in ("positives", "mean"):
                raise unknown_name("min_count", self.min_count, ["positives", "mean"])
        elif not 0 <= self.min_count < float("inf"):
            raise GhmdetError(f'min_count must be at least 0, "positives" or "mean", not {self.min_count!r}')
        return self._replace(bins=check_whole("bins", self.bins))

    @property
    def cells(self) -> int:
        """How many columns of `RegionCounts.regions` the method counts: the regions, or their grid."""
        return self.bins * WINDOW if self.method == "prefix" else self.bins

    def weigh(self, counts: RegionCounts) -> tuple[Tensor, Tensor | None]:
        """A `Weigh` by the batch alone."""
        return self.table(counts), None

    def table(self, counts: RegionCounts, batch: RegionCounts | None = None) -> Tensor:
        """β of each column of `counts.regions` [C, M], 0 where it is empty.

        The occupied part of the range is that of the `batch`, where the counts are an average.
        """
        regions = counts.regions
        beta = self._beta(counts, *self.windows(regions))
        if self.normalize == "occupied":
            present = regions if batch is None else batch.regions
            beta = beta / _occupied(present, *self.windows(present))
        return beta.masked_fill(regions <= 0, 0.0).to(counts.table.dtype)

    def exact(self, counts: RegionCounts, norm: Tensor, valid: Tensor) -> Tensor:
        """β of each gradient norm, by the window around it; 0 where it is not valid."""
        rows, mask = populations(norm, self.per_class), populations(valid, self.per_class)
        inside, length = _window_counts(rows, mask, 1 / self.bins)
        width = length * self.bins
        beta = self._beta(counts, inside, width)
        if self.normalize == "occupied":
            beta = beta / _occupied(mask, inside, width)
        return from_populations(beta.masked_fill(~mask, 0.0).to(norm.dtype), norm, self.per_class)

    def _beta(self, counts: RegionCounts, inside: Tensor, width: Tensor | float) -> Tensor:
        """N / max(inside, floor) of windows of so many ε, over all M of them where that is asked for."""
        if self.min_count == "positives":
            floor = counts.positives.clamp_min(1)
        elif self.min_count == "mean":
            floor = counts.examples / self.bins
        else:
            floor = torch.full_like(counts.positives, float(self.min_count))
        share = counts.examples.mean() / (self.bins if self.normalize == "all" else 1)
        return share * width / torch.maximum(inside, floor.unsqueeze(1))

    def windows(self, regions: Tensor) -> tuple[Tensor, Tensor | float]:
        """The examples in the window around each column [C, M], and how many ε it is wide; float64 for a grid."""
        return _grid_windows(regions) if self.method == "prefix" else (regions, 1.0)


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
    options = Weighting(method=method).checked()
    norm, _, mask = _norm_elements(gradient_norm, None, valid)
    if method == "exact":
        inside, length = _window_counts(populations(norm, False), populations(mask, False), epsilon)
        return torch.where(mask, (inside / length).view(norm.shape), 0.0).to(norm.dtype)
    window = WINDOW if method == "prefix" else 1
    cells = round(window / epsilon)
    index = region_index(norm, mask, cells)
    inside, width = options.windows(count_regions(index, None, cells, 1, norm.dtype).regions)
    return look_up((inside * cells / (width * window)).to(norm.dtype), index)


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
      `gradient_density`.
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
    options = Weighting(bins, method, normalize, min_count, per_class).checked()
    if min_count == "positives" and targets is None:
        raise GhmdetError('min_count="positives" needs the targets, to count the positives')
    return weights(*_norm_elements(gradient_norm, targets, valid), options)[0]


def weights(
    norm: Tensor, targets: Tensor | None, valid: Tensor, options: Weighting, weigh: Weigh | None = None
) -> tuple[Tensor, Tensor | None]:
    """β of gradient norms, targets and mask of one shape, and the count that `weigh` gave for a mean.

    Without `weigh`, β is that of the options; with it, `method` is not "exact".
    """
    norm = norm.detach()
    classes, row = class_count(norm, options.per_class), None
    if options.per_class:
        row = torch.arange(classes, dtype=torch.int32, device=norm.device).view(
            1, -1, *[1] * (norm.dim() - 2)
        )
    index = region_index(norm, valid, options.cells, row, classes)
    counts = count_regions(index, targets, options.cells, classes, norm.dtype)
    if options.method == "exact":
        return options.exact(counts, norm, valid), None
    table, count = options.weigh(counts) if weigh is None else weigh(counts)
    return look_up(table.to(norm.dtype), index), count


def label_weights(
    norm: Tensor,
    labels: Tensor,
    valid: Tensor,
    options: Weighting,
    classes: int,
    background: int | None,
    weigh: Weigh | None = None,
) -> tuple[Tensor, Tensor | None]:
    """As `weights`, for examples that have one label each: a class's density is that of the examples labelled so.

    Positives are the examples of all labels but the `background`. Per class, the background is held to the number of
    all positives: that is its P.
    """
    rows, row = (classes, labels.int()) if options.per_class else (1, None)
    index = region_index(norm, valid, options.cells, row, rows)
    table = count_regions(index, None, options.cells, rows, norm.dtype).table
    examples = table[:, -2]
    if background is None:
        positives = examples
    elif options.per_class:
        is_background = torch.arange(classes, device=norm.device) == background
        positives = torch.where(is_background, examples.sum() - examples, examples)
    else:
        positives = (valid & (labels != background)).sum().to(norm.dtype).view(1)
    counts = RegionCounts(torch.cat([table[:, :-1], positives.unsqueeze(1)], 1))
    if options.method == "exact":
        if row is None:
            return options.exact(counts, norm, valid), None
        own = torch.arange(classes, device=norm.device).view(1, -1, *[1] * (norm.dim() - 1)) == row.unsqueeze(
            1
        )
        own = own & valid.unsqueeze(1)
        return options.exact(counts, norm.unsqueeze(1).expand(own.shape), own).sum(1), None
    beta, count = options.weigh(counts) if weigh is None else weigh(counts)
    return look_up(beta.to(norm.dtype), index), count


def unit_region(norm: Tensor, bins: int) -> Tensor:
    """The region m of each gradient norm, m/M ≤ g < (m + 1)/M, int32; a norm of 1 lies in the last one.

    In the precision of the norms, which lie in 0..1; `bins` is M. A NaN lies in the first region.

    >>> unit_region(torch.tensor([0.0, 0.05, 1.0]), 30)
    tensor([ 0,  1, 29], dtype=torch.int32)
    """
    return (norm * bins).to(torch.int32).clamp_(0, bins - 1)


def region_index(
    norm: Tensor, valid: Tensor, bins: int, row: Tensor | None = None, classes: int = 1
) -> Tensor:
    """The place of each element in a flat [C · M + 1] table: the region of its `row`, or the last where not valid."""
    index = unit_region(norm, bins)
    return torch.where(valid, index if row is None else index + row * bins, classes * bins)


def count_regions(
    index: Tensor, targets: Tensor | None, bins: int, classes: int, dtype: torch.dtype
) -> RegionCounts:
    """The examples of each region from `region_index`, and the positives among the `targets`."""
    # torch.compile makes atomic additions of int32, and for int64 sorts all elements.
    dtype_of_counts = torch.int32 if index.numel() < 2**31 else torch.int64
    counts = torch.zeros(classes * bins + 1, dtype=dtype_of_counts, device=index.device)
    counts = counts.index_add(0, index.flatten(), counts.new_ones(1).expand(index.numel()))
    regions = counts[:-1].view(classes, bins)
    positives = regions.new_zeros(classes)
    if targets is not None:
        positives = populations(targets >= 0.5, classes > 1).sum(1)
    columns = [regions, regions.sum(1, keepdim=True), positives.unsqueeze(1)]
    return RegionCounts(torch.cat([column.to(dtype) for column in columns], 1))


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


def check_whole(name: str, value: object) -> int:
    """An option as an int; raises unless it is a whole number (also numpy's) of at least 1."""
    if isinstance(value, bool) or not isinstance(value, Integral) or value < 1:
        raise GhmdetError(f"{name} must be a whole number of at least 1, not {value!r}")
    return int(value)


def _norm_elements(
    gradient_norm: Tensor, targets: Tensor | None, valid: Tensor | None
) -> tuple[Tensor, Tensor | None, Tensor]:
    check_tensors(gradient_norm=gradient_norm)
    dense = torch.zeros_like(gradient_norm) if targets is None else targets
    norm, dense, mask = class_arguments(gradient_norm.detach(), dense, valid).elements()
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
    inside = torch.zeros_like(norm).scatter(1, order, (up_to - below).double())
    length = (norm + epsilon / 2).clamp_max(1) - (norm - epsilon / 2).clamp_min(0)
    return inside, length


def _grid_windows(regions: Tensor) -> tuple[Tensor, Tensor]:
    """The examples in the window around each column of a grid [C, G], and how many ε it is wide [G]; float64.

    At the ends of the range there are fewer columns. Two look-ups in a prefix sum.
    """
    ends = F.pad(regions.double().cumsum(1), (1, 0))
    first = torch.arange(regions.shape[1], device=ends.device) - WINDOW // 2
    below, up_to = first.clamp_min(0), (first + WINDOW).clamp_max(len(first))
    inside = ends.index_select(1, up_to) - ends.index_select(1, below)
    return inside, (up_to - below).double() / WINDOW


def _occupied(number: Tensor, inside: Tensor, width: Tensor | float) -> Tensor:
    """How many ε of the range hold examples [C, 1]: each window's share, for as many examples as it stands for."""
    occupied = torch.where(number > 0, number * width / inside, 0.0).sum(1, keepdim=True)
    return occupied.clamp_min(torch.finfo(occupied.dtype).tiny)
