"""Loss and gradient together, block by block: nothing of the inputs' size is made but the gradient.

The first pass writes each slope dL/dx into the gradient's memory and counts the regions of its size. The second
multiplies it there by β and sums β L. Nearly all logits of a detector are easy background, of the first region: in a
chunk of those, products give the loss, one factor the gradient, and only the few others are looked at one by one.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ghmdet.errors import GhmdetError
from ghmdet.functional import naive
from ghmdet.functional._arguments import Arguments
from ghmdet.functional._rows import GROUP, Rows
from ghmdet.functional.density import RegionCounts, Weigh, Weighting, unit_region
from ghmdet.functional.gradient_norm import asl1_root

CHUNK = 8  # blocks that are tried together as easy background
COLUMNS = 8  # logits of one class that are looked at as one
FOLDS = 5  # halvings, which multiply 2^5 = GROUP of them

Apart = tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None]
"""Flat places, their slopes, losses and cells of a table, and which of them count (None: all)."""


def harmonized(
    loss: naive.Loss, arguments: Arguments, options: Weighting | None, weigh: Weigh | None, reduction: str
) -> Tensor:
    """1/N Σ β_i L_i as by `naive.harmonized`; differentiable once."""
    passes = Passes(loss, arguments, options, reduction)
    counts = passes.count()
    if options is None:
        table, count = counts.table.new_ones(1, 1), None
    else:
        table, count = (options.table(counts), None) if weigh is None else weigh(counts)
    table = table.to(passes.rows.dtype)
    if reduction == "mean":
        table = table / (counts.examples.sum().clamp_min(1) if count is None else count)
    if not (torch.is_grad_enabled() and arguments.inputs.requires_grad):
        return passes.value(table, wants_gradient=False)
    result: Tensor = _Weighted.apply(*arguments, table, passes)
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
    ) -> Tensor:
        value = passes.value(table)
        ctx.gradient = passes.rows.restore(passes.memory)
        ctx.save_for_backward(inputs, targets, valid, weight, table)
        ctx.options, ctx.on_cpu = (passes.loss, passes.options, passes.reduction), passes.rows.on_cpu
        return value

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            raise GhmdetError(
                'a fused loss has no second derivative (create_graph=True); impl="reference" has one'
            )
        (*given, table), (scale,) = ctx.saved_tensors, upstream
        # Scaled in place, so that it is the only one of its size; a second backward makes another.
        gradient, ctx.gradient = ctx.gradient, None
        if gradient is None:
            passes = Passes(ctx.options[0], Arguments(*given), *ctx.options[1:])
            passes.count()
            passes.value(table)
            gradient = passes.rows.restore(passes.memory)
        if scale.dim() or not ctx.on_cpu or scale.item() != 1:
            gradient.mul_(scale)
        return gradient.to(given[0].dtype), None, None, None, None, None


class Passes:
    """`count`, then `value` with β of each region [C, M], which turns the slopes in `memory` into the gradient.

    A chunk is easy where all its elements have one β: everywhere in focal loss, else where nearly all lie in the first
    region. Its losses are added to `bulk` at once, and the few that lie beyond the region stand apart. Every other
    block is dense: each of its elements is looked up.
    """

    def __init__(
        self, loss: naive.Loss, arguments: Arguments, options: Weighting | None, reduction: str
    ) -> None:
        self.loss, self.options, self.reduction = loss, options, reduction
        self.rows = rows = Rows(arguments)
        self.bins = 1 if options is None else options.cells
        self.per_class = options is not None and options.per_class
        # Adding to few counters again and again waits for itself: so classes are apart, and few of them in copies.
        self.copies = 1 << max(GROUP // max(rows.classes, 1), 1).bit_length() - 1
        lanes = self.copies * rows.classes
        self.first = torch.arange(0, lanes * self.bins, self.bins, dtype=torch.int32, device=rows.x.device)
        height = -(-rows.number // GROUP) * GROUP
        self.memory = torch.empty(height, rows.classes, dtype=rows.dtype, device=rows.x.device)
        self.background = type(loss) is naive.CrossEntropy and rows.targets is None
        # With fewer bins the products of an easy chunk would come too near to 0.
        sparse = rows.on_cpu and self.background and self.bins >= 16
        self.may_be_easy = rows.weight is None and reduction != "none" and (options is None or sparse)
        self.easy: list[slice] = []  # rows
        self.bulk = torch.zeros(rows.classes, dtype=torch.float64, device=rows.x.device)
        self.few: list[Tensor] = []
        self.dense: list[int] = []  # blocks
        self.places = rows.places
        self.apart: list[Apart] = []

    @torch.no_grad()
    def count(self) -> RegionCounts:
        """How many examples each region has."""
        rows, blocks = self.rows, range(len(self.rows.edges) - 1)
        counts = torch.zeros(len(self.first) * self.bins, dtype=torch.int64, device=rows.x.device)
        step = CHUNK if self.may_be_easy and self.options is not None else 1
        for first in blocks[::step]:
            last = min(first + step, len(blocks))
            at, x, t = rows.block(first, last)
            padded = self._padded(at)
            slope = padded[: len(x)]
            if len(x) < len(padded):
                padded[len(x) :] = 0
            losses = self._slope(x, t, slope)
            rows.clear(first, last, slope)
            if self.may_be_easy and losses is not None:
                self.bulk += rows.clear(first, last, losses).sum(0)
                self.easy.append(at)
            elif self.may_be_easy and self._is_easy(padded, at.start * rows.classes):
                self.easy.append(at)
            else:
                self.may_be_easy = False  # where one chunk is not, the next is hardly so
                self.dense += blocks[first:last]
                for part in torch.split(padded, rows.height):
                    self._add(counts, self._cells(part, self.first))
        if self.few:
            self.places = torch.cat([rows.places.to(self.few[0].dtype), *self.few])
        if len(self.places) <= rows.size:
            self.apart = list(self._apart())
        for _, _, _, cells, kept in self.apart or self._apart():
            self._add(counts, cells, kept)
        regions, examples = counts.view(self.copies, rows.classes, self.bins).sum(0), rows.examples()
        # What does not count, stands apart or is easy was not counted, or in the first region.
        regions[:, 0] += examples - regions.sum(1)
        table = torch.cat([regions, examples.unsqueeze(1), rows.positives().unsqueeze(1)], 1)
        return RegionCounts((table if self.per_class else table.sum(0, keepdim=True)).to(rows.dtype))

    @torch.no_grad()
    def value(self, table: Tensor, wants_gradient: bool = True) -> Tensor:
        """Σ β L, or β L of each element."""
        rows, parts = self.rows, [self.memory.new_zeros(())]
        each = torch.empty_like(self.memory[: rows.number]) if self.reduction == "none" else None
        weights = table.repeat(self.copies, 1).view(-1) if self.per_class else table.view(-1)
        if self.easy:
            parts.append((self.bulk * table[:, 0]).sum().to(rows.dtype))
            beta = weights[:: self.bins] if self.per_class else weights[0]
            for at in self.easy if wants_gradient else []:
                self._padded(at).view(-1, len(self.first)).mul_(beta)
        for where, beta, slope, losses in self._weighed(weights):
            if each is not None:
                _put(each, where, losses, beta)
            else:
                parts.append(losses.mul_(beta).sum())
            if wants_gradient:
                _put(self.memory, where, slope, beta)
        if each is not None:
            return rows.restore(each)
        return torch.stack(parts).sum(dtype=torch.float64).to(rows.dtype)

    def _weighed(self, weights: Tensor) -> Iterator[tuple[slice | Tensor, Tensor, Tensor, Tensor]]:
        """Rows or places with their β, slopes and losses: of each dense block, and of what stands apart."""
        rows = self.rows
        for i in self.dense:
            at, x, t = rows.block(i, i + 1)
            slope, losses, beta = self.memory[at], rows.clear(i, i + 1, _losses(self.loss, x, t)), weights
            if len(weights) > 1:
                cells = self._cells(slope, self.first if self.per_class else None)
                beta = weights.index_select(0, cells).view(slope.shape)
            if rows.weight is not None:
                beta = rows.clear(i, i + 1, beta.expand(slope.shape) * rows.weight[at].contiguous())
            yield at, beta, slope, losses
        for places, slope, losses, cells, kept in self.apart or self._apart():
            beta = weights.index_select(0, cells)
            if rows.weight is not None:
                beta = beta * rows.at(rows.weight, places)
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
            slope = torch.empty_like(x)
            losses = self._slope(x, targets, slope)
            losses = _losses(self.loss, x, targets) if losses is None else losses
            cells = self._cells(slope, places % rows.classes * self.bins if self.per_class else None)
            kept = None if rows.on_cpu or rows.valid is None else rows.at(rows.valid, places)
            yield places, slope, losses, cells, kept

    def _is_easy(self, slope: Tensor, start: int) -> bool:
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
            few += start
            self.few.append(few.to(torch.int32) if self.rows.x.numel() < 2**31 else few)
        for _ in range(FOLDS):
            first, second = p.chunk(2)
            p = torch.lerp(first, one, second)
        self.bulk.add_(p.div_(2 - p).atanh_().view(-1, self.rows.classes).sum(0), alpha=2)
        return True

    def _slope(self, x: Tensor, t: Tensor | None, out: Tensor) -> Tensor | None:
        """Write dL/dx of inputs and targets (None: all 0) to `out`; the losses, where they come with it."""
        if isinstance(self.loss, naive.Focal):
            losses, slope = _focal(self.loss, x, t)
            out.copy_(slope)
            return losses
        if isinstance(self.loss, naive.Asl1):
            diff = x if t is None else x - t
            torch.div(diff, asl1_root(diff, self.loss.mu), out=out)
        else:
            torch.sigmoid(x, out=out)
            if t is not None:
                out -= t
        return None

    def _cells(self, slope: Tensor, first: Tensor | None) -> Tensor:
        """The place of each slope in a flat table: the region of its size, after those of the classes before."""
        region = unit_region(slope if self.background and slope.dim() == 2 else slope.abs(), self.bins)
        if first is not None and slope.dim() == 2:
            lanes = len(first) if region.numel() % len(first) == 0 else self.rows.classes
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

    def _padded(self, at: slice) -> Tensor:
        """The memory of some rows, and what fills their last group."""
        return self.memory[at.start : -(-at.stop // GROUP) * GROUP]


def _losses(loss: naive.Loss, x: Tensor, t: Tensor | None) -> Tensor:
    """L of inputs and targets (None: all 0)."""
    if isinstance(loss, naive.Focal):
        return _focal(loss, x, t)[0]
    if isinstance(loss, naive.Asl1):
        return loss(x, torch.zeros_like(x) if t is None else t)
    if t is None:
        return _softplus(x)
    return x.clamp_min(0).addcmul_(t, x, value=-1).add_(_softplus(-x.abs()))


def _focal(loss: naive.Focal, x: Tensor, t: Tensor | None) -> tuple[Tensor, Tensor]:
    """L and dL/dx of hard targets (None: all 0), by y = −x where they are 1: everything is background then."""
    sign = 1.0 if t is None else 1 - 2 * t
    miss, entropy = torch.sigmoid(x * sign), _softplus(x * sign)
    scale = miss**loss.gamma
    if loss.alpha >= 0:
        scale *= (1 - loss.alpha) if t is None else torch.where(t > 0, loss.alpha, 1 - loss.alpha)
    slope = (loss.gamma * (1 - miss)).mul_(entropy).add_(miss).mul_(scale).mul_(sign)
    return entropy.mul_(scale), slope


def _softplus(x: Tensor) -> Tensor:
    """log(1 + e^x), which from 50 on is x, in double precision too."""
    return F.softplus(x, threshold=50)


def _put(out: Tensor, where: slice | Tensor, a: Tensor, b: Tensor) -> None:
    """Write a · b at some rows of `out`, or at some places of it."""
    if isinstance(where, slice):
        torch.mul(a, b, out=out[where])
    else:
        out.view(-1).index_copy_(0, where, a * b)


@functools.cache
def _constants(bins: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The smallest number in region 1 by the arithmetic of `unit_region`, and a one."""
    edge = torch.tensor(1 / bins, dtype=dtype, device="cpu")
    while unit_region(edge, bins) > 0:
        edge = edge.nextafter(torch.zeros_like(edge))
    while unit_region(edge, bins) < 1:
        edge = edge.nextafter(torch.ones_like(edge))
    return edge, torch.ones_like(edge)
