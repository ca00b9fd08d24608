"""Loss and gradient together, block by block: nothing of the inputs' size is made but the gradient.

The first pass writes each slope dL/dx into the gradient's own memory and counts the regions of its size. The second
multiplies it there by β and sums β L. Nearly all logits of a detector are easy background, of the first region: in a
chunk of those, products give the loss, one factor the gradient, and only the few others are looked at one by one.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ghmdet.errors import GhmdetError
from ghmdet.functional import naive
from ghmdet.functional._arguments import Arguments
from ghmdet.functional._rows import GROUP, Rows
from ghmdet.functional.density import RegionCounts, unit_region
from ghmdet.functional.gradient_norm import asl1_root

CHUNK = 8  # blocks that are tried together as easy background
COLUMNS = 8  # logits of one class that are looked at as one
FOLDS = 5  # halvings, which multiply 2^5 = GROUP of them


def harmonized(
    loss: naive.Loss,
    arguments: Arguments,
    weigh: naive.Weigh | None,
    bins: int,
    per_class: bool,
    reduction: str,
) -> Tensor:
    """1/N Σ β_i L_i as by `naive.harmonized`; differentiable once."""
    passes = Passes(loss, arguments, bins, per_class, easy=reduction != "none")
    wanted = torch.is_grad_enabled() and arguments.inputs.requires_grad
    # A half-precision gradient must be scaled before it is rounded, and one an element is not known yet.
    if wanted and reduction != "none" and arguments.inputs.dtype == passes.rows.dtype:
        passes.allocate()
    table, count = (passes.rows.x.new_ones(1, 1), None) if weigh is None else weigh(passes.count())
    table = table.to(passes.rows.dtype)
    if reduction == "mean":
        table = table / (passes.rows.examples().sum().clamp_min(1) if count is None else count)
    if not wanted:
        return passes.value(table, reduction)
    result: Tensor = _Weighted.apply(*arguments, table, passes, reduction)
    return result


class _Weighted(torch.autograd.Function):
    """Σ β L, with the gradient that came with it.

    Every tensor goes through `save_for_backward`, which notices a change in place and lets go after backward.
    """

    @staticmethod
    def forward(
        ctx: Any,
        inputs: Tensor,
        targets: Tensor,
        valid: Tensor | None,
        weight: Tensor | None,
        table: Tensor,
        passes: Passes,
        reduction: str,
    ) -> Tensor:
        value = passes.value(table, reduction)
        ctx.gradient = None if passes.memory is None else passes.rows.restore(passes.memory)
        ctx.save_for_backward(inputs, targets, valid, weight, table)
        ctx.options, ctx.on_cpu = (passes.loss, passes.bins, passes.per_class), passes.rows.on_cpu
        return value

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        (*given, table), (scale,) = ctx.saved_tensors, upstream
        # Scaled in place, so that it is the only one of its size; a second backward makes another.
        gradient, ctx.gradient = ctx.gradient, None
        with torch.no_grad():
            if gradient is None:
                loss, *options = ctx.options
                gradient = Passes(loss, Arguments(*given), *options).gradient(table, scale)
            elif not ctx.on_cpu or scale.item() != 1:
                gradient.mul_(scale)
        if torch.is_grad_enabled():
            gradient = _Once.apply(gradient, given[0], scale)
        return gradient, None, None, None, None, None, None


class _Once(torch.autograd.Function):
    """A gradient that says why it has none of its own."""

    @staticmethod
    def forward(ctx: Any, gradient: Tensor, inputs: Tensor, scale: Tensor) -> Tensor:
        return gradient.view_as(gradient)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        raise GhmdetError('a fused loss has no second derivative; impl="reference" has one')


class Passes:
    """`count`, then `value` with β of each region [C, M]; or `gradient` alone."""

    def __init__(
        self, loss: naive.Loss, arguments: Arguments, bins: int, per_class: bool, easy: bool = False
    ) -> None:
        self.loss, self.bins, self.per_class = loss, bins, per_class
        self.rows = rows = Rows(arguments)
        self.background = type(loss) is naive.CrossEntropy and rows.targets is None
        self.blocks = self.dense = list(range(len(rows.edges) - 1))
        self.memory: Tensor | None = None  # of the gradient
        self.counted = False  # whether it holds the slopes
        # Counting in few cells waits for itself: classes are counted apart, few of them in copies.
        self.copies = 1 << max(GROUP // max(rows.classes, 1), 1).bit_length() - 1
        lanes = self.copies * rows.classes
        self.first = torch.arange(0, lanes * bins, bins, dtype=torch.int32, device=rows.x.device)
        # With fewer bins the products of an easy chunk come too near to 0.
        self.may_be_easy = easy and self.background and rows.weight is None and rows.on_cpu and bins >= 16
        self.easy: list[slice] = []  # the rows of such chunks, and half their loss of each class, but for
        self.bulk = torch.zeros(rows.classes, dtype=torch.float64, device=rows.x.device)
        self.few: list[Tensor] = []  # the places that lie beyond the first region; they stand apart too
        self.places = rows.places
        self.apart: list[Apart] = []

    def allocate(self) -> None:
        """Make the gradient's memory."""
        self.memory = self._memory_of(slice(0, self.rows.number))

    @torch.no_grad()
    def count(self) -> RegionCounts:
        """How many examples each region has."""
        rows, step, self.dense = self.rows, CHUNK if self.may_be_easy else 1, []
        counts = torch.zeros(len(self.first) * self.bins, dtype=torch.int64, device=rows.x.device)
        for first in self.blocks[::step]:
            last = min(first + step, len(self.blocks))
            at, x, t = rows.block(first, last)
            slope = padded = self._memory_of(at)
            if len(x) < len(padded):
                slope = padded[: len(x)]
                padded[len(x) :] = 0
            _evaluate(self.loss, x, t, out=slope)
            rows.clear(first, last, slope)
            # Where one chunk is not easy, the next is hardly so.
            self.may_be_easy = self.may_be_easy and self._is_easy(padded, at)
            if not self.may_be_easy:
                self.dense += self.blocks[first:last]
                for part in torch.split(padded, rows.height):
                    self._add(counts, self._cells(part, self.first))
        self.counted = self.memory is not None
        if self.few:
            self.places = torch.cat([rows.places.to(self.few[0].dtype), *self.few])
        if len(self.places) <= rows.size:
            self.apart = list(self._apart())
        for one in self.apart or self._apart():
            self._add(counts, one.cells, one.kept)
        regions = counts.view(self.copies, rows.classes, self.bins).sum(0)
        examples = rows.examples()
        # What does not count, stands apart or is easy was not counted, or in the first region.
        regions[:, 0] += examples - regions.sum(1)
        table = torch.cat([regions, examples.unsqueeze(1), rows.positives().unsqueeze(1)], 1)
        return RegionCounts((table if self.per_class else table.sum(0, keepdim=True)).to(rows.dtype))

    @torch.no_grad()
    def value(self, table: Tensor, reduction: str) -> Tensor:
        """Σ β L, or β L of each element; the gradient's memory, if any, then holds that of the sum."""
        rows, parts = self.rows, []
        each = rows.x.new_empty(rows.x.shape, dtype=rows.dtype) if reduction == "none" else None
        if self.easy:
            parts.append((self.bulk * table[:, 0]).sum().mul_(2).to(rows.dtype))
            beta = table[:, 0].repeat(self.copies) if self.per_class else table[0, 0]
            for at in self.easy if self.memory is not None else []:
                self._memory_of(at).view(-1, len(self.first)).mul_(beta)
        for where, beta, slope, losses in self._weighed(table):
            if each is not None:
                _put(each, where, losses, beta)
            else:
                parts.append(losses.mul_(beta).sum())
            if self.memory is not None:
                _put(self.memory, where, slope, beta)
        if each is not None:
            return rows.restore(each)
        return (
            torch.stack([*parts, rows.x.new_zeros((), dtype=rows.dtype)])
            .sum(dtype=torch.float64)
            .to(rows.dtype)
        )

    @torch.no_grad()
    def gradient(self, table: Tensor, upstream: Tensor) -> Tensor:
        """The gradient by the inputs, from that by the loss (a scalar, or one number an element)."""
        gradient = torch.empty_like(self.rows.x)
        table, each = (table, self.rows.of(upstream)) if upstream.dim() else (table * upstream, None)
        for where, beta, slope, _ in self._weighed(table, each, wants_loss=False):
            _put(gradient, where, slope, beta)
        return self.rows.restore(gradient)

    def _weighed(
        self, table: Tensor, upstream: Tensor | None = None, wants_loss: bool = True
    ) -> Iterator[tuple[slice | Tensor, Tensor, Tensor, Tensor]]:
        """Rows or places with their β, slopes and losses: of each dense block, and of what stands apart."""
        rows = self.rows
        factors = [factor for factor in (rows.weight, upstream) if factor is not None]
        weights = table.repeat(self.copies, 1).view(-1) if self.per_class else table.view(-1)
        for i in self.dense:
            at, x, t = rows.block(i, i + 1)
            known = self.memory[at] if self.memory is not None and self.counted else None
            slope, losses = _evaluate(self.loss, x, t, known, wants_loss=wants_loss)
            rows.clear(i, i + 1, losses, *([slope] if known is None else []))
            beta = table
            if len(weights) > 1:
                cells = self._cells(slope, self.first if self.per_class else None)
                beta = weights.index_select(0, cells).view(slope.shape)
            for factor in factors:
                beta = beta.expand(slope.shape) * factor[at].contiguous()
                rows.clear(i, i + 1, beta)
            yield at, beta, slope, losses
        for places, slope, losses, cells, kept in self.apart or self._apart():
            beta = weights.index_select(0, cells)
            for factor in factors:
                beta = beta * rows.at(factor, places)
            if kept is not None:
                beta, slope, losses = (torch.where(kept, x, 0) for x in (beta, slope, losses))
            yield places, beta, slope, losses

    def _apart(self) -> Iterator[Apart]:
        """What stands apart, so much at a time as a block has."""
        rows = self.rows
        for start in range(0, len(self.places), rows.size):
            places = self.places[start : start + rows.size].long()
            targets = rows.at_places[start : start + rows.size]
            if len(targets) < len(places):  # those of the few are 0
                targets = F.pad(targets, (0, len(places) - len(targets)))
            x = rows.x.view(-1).index_select(0, places).to(rows.dtype)
            slope, losses = _evaluate(self.loss, x, targets, wants_loss=True)
            cells = self._cells(slope, places % rows.classes * self.bins if self.per_class else None)
            kept = None if rows.on_cpu or rows.valid is None else rows.at(rows.valid, places)
            yield Apart(places, slope, losses, cells, kept)

    def _is_easy(self, slope: Tensor, at: slice) -> bool:
        """Whether nearly all p of a chunk lie in the first region: then its bulk is summed, and the few others set 0.

        No logarithm for each: 2^5 of the numbers 1 - p are multiplied, as a + b - ab makes 1 - (1 - a)(1 - b) without
        cancellation, and -log(1 - q) = 2 artanh(q / (2 - q)).
        """
        p, edge, one = slope.view(-1), *_constants(self.bins, slope.dtype)
        columns = p.view(COLUMNS, -1)
        beyond = columns.amax(0) >= edge
        number = int(beyond.count_nonzero())
        if 3 * number > len(beyond):
            return False
        if number:
            beyond = beyond.nonzero()[:, 0]
            row, column = (columns.index_select(1, beyond) >= edge).nonzero().unbind(1)
            few = beyond.index_select(0, column).add_(row, alpha=columns.shape[1])
            p.index_fill_(0, few, 0)
            few += at.start * self.rows.classes
            self.few.append(few.to(torch.int32) if self.rows.x.numel() < 2**31 else few)
        for _ in range(FOLDS):
            first, second = p.chunk(2)
            p = torch.lerp(first, one, second)
        self.bulk += p.div_(2 - p).atanh_().view(-1, self.rows.classes).sum(0)
        self.easy.append(at)
        return True

    def _cells(self, slope: Tensor, first: Tensor | None) -> Tensor:
        """The place of each slope in a flat table: the region of its size, after those of the classes before."""
        region = unit_region(slope if self.background and slope.dim() == 2 else slope.abs(), self.bins)
        if first is not None and slope.dim() == 2:
            lanes = len(self.first) if region.numel() % len(self.first) == 0 else self.rows.classes
            region.view(-1, lanes).add_(first[:lanes])
        elif first is not None:
            region += first
        return region.view(-1)

    def _add(self, counts: Tensor, cells: Tensor, kept: Tensor | None = None) -> None:
        """Count the cells, or those that are `kept`."""
        if self.rows.on_cpu:
            counts += torch.bincount(cells, minlength=len(counts))
        else:
            ones = counts.new_ones(1).expand(len(cells)) if kept is None else kept.to(counts.dtype)
            counts.index_add_(0, cells, ones)

    def _memory_of(self, at: slice) -> Tensor:
        """Memory for rows and what fills their last group: the gradient's, or new."""
        height = -(-(at.stop - at.start) // GROUP) * GROUP
        if self.memory is not None:
            return self.memory[at.start : at.start + height]
        return torch.empty(height, self.rows.classes, dtype=self.rows.dtype, device=self.rows.x.device)


class Apart(NamedTuple):
    """Elements that are looked at one by one: flat places, slopes, losses, cells of a table.

    On an accelerator `kept` says which of them count; elsewhere all do.
    """

    places: Tensor
    slope: Tensor
    losses: Tensor
    cells: Tensor
    kept: Tensor | None


def _evaluate(
    loss: naive.Loss,
    x: Tensor,
    t: Tensor | None,
    slope: Tensor | None = None,
    *,
    out: Tensor | None = None,
    wants_loss: bool = False,
) -> tuple[Tensor, Tensor]:
    """dL/dx and L (or dL/dx again) of inputs and targets (None: all 0); the slope may be known, or written to `out`."""
    if isinstance(loss, naive.Asl1):
        diff = x if t is None else x - t
        root = asl1_root(diff, loss.mu)
        slope = torch.div(diff, root, out=out) if slope is None else slope
        return slope, (diff / (root + loss.mu)).mul_(diff) if wants_loss else slope
    if isinstance(loss, naive.Focal):
        # Of hard targets: y = −x where the target is 1, so that everything is a background logit.
        sign = 1.0 if t is None else 1 - 2 * t
        miss, entropy = torch.sigmoid(x * sign), _softplus(x * sign)
        scale = miss**loss.gamma
        if loss.alpha >= 0:
            scale *= (1 - loss.alpha) if t is None else torch.where(t > 0, loss.alpha, 1 - loss.alpha)
        slope = (loss.gamma * (1 - miss)).mul_(entropy).add_(miss).mul_(scale).mul_(sign)
        return slope, entropy.mul_(scale)
    if slope is None:
        slope = torch.sigmoid(x, out=out)
        slope = slope if t is None else slope.sub_(t)
    if not wants_loss:
        return slope, slope
    if t is None:
        return slope, _softplus(x)
    return slope, x.clamp_min(0).addcmul_(t, x, value=-1).add_(_softplus(-x.abs()))


def _softplus(x: Tensor) -> Tensor:
    """log(1 + e^x), which from 50 on is x, in double precision too."""
    return F.softplus(x, threshold=50)


def _put(out: Tensor, where: slice | Tensor, a: Tensor, b: Tensor) -> None:
    """Write a · b at some rows of `out`, or at some places of it."""
    if isinstance(where, slice):
        torch.mul(a, b, out=out[where])
    else:
        out.view(-1).index_copy_(0, where, (a * b).to(out.dtype))


@functools.cache
def _constants(bins: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The smallest number in region 1 by the arithmetic of `unit_region`, and a one."""
    edge = torch.tensor(1 / bins, dtype=dtype, device="cpu")
    while unit_region(edge, bins) > 0:
        edge = edge.nextafter(torch.zeros_like(edge))
    while unit_region(edge, bins) < 1:
        edge = edge.nextafter(torch.ones_like(edge))
    return edge, torch.ones_like(edge)
