"""Loss and gradient together, block by block: nothing of the logits' size is made but the gradient.

The first pass writes each slope dL/dx into the gradient's memory and counts the regions of its size. The second
multiplies it there by β and sums β L. Both take all logits for background. The few that are not stand apart, in a list.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import forward_ad

from ghmdet.errors import GhmdetError, unknown_name
from ghmdet.functional import _arguments, naive
from ghmdet.functional._arguments import Arguments, is_traced, wide
from ghmdet.functional.density import RegionCounts, Weigh, Weighting, class_count, unit_region

IMPLS = ("auto", "reference", "torch")
# Elements of a block. On a CPU an operation costs some microseconds whatever its size, and what it makes of a block
# stays in the cache; elsewhere a launch costs more than memory.
CPU_BLOCK, DEVICE_BLOCK = 1 << 18, 1 << 22
GROUP = 8  # rows whose logits of a class are looked at as one; every block has whole groups
_log = logging.getLogger("ghmdet")

Apart = tuple[Tensor, Tensor, Tensor, Tensor]
"""Flat places, their slopes, losses and cells."""


def harmonized(
    loss: naive.Loss,
    arguments: Arguments,
    options: Weighting | None,
    weigh: Weigh | None = None,
    *,
    reduction: str,
    impl: str,
) -> Tensor:
    """1/N Σ β_i L_i as by `naive.harmonized`, by the form called `impl` where it has what is asked for."""
    check_impl(impl)
    class_count(arguments.inputs, options is not None and options.per_class)
    why_not = _needs_reference(loss, arguments, options)
    if impl == "auto" and not is_traced():
        _say_once(why_not, arguments.inputs.device.type)
    if impl == "reference" or why_not:
        return naive.harmonized(loss, arguments, options, weigh, reduction)

    each = reduction == "none" or arguments.weight is not None
    passes = Passes(loss, arguments, options, each)
    table, count = torch.ones(1, 1, device=arguments.inputs.device), None
    if options is not None:
        table, count = (options.weigh if weigh is None else weigh)(passes.count())
    table = table.to(passes.dtype)
    if reduction == "mean" and not each:
        table = table / (passes.examples().sum().clamp_min(1) if count is None else count)
    value: Tensor = _Weighted.apply(*arguments[:3], table, passes)
    return arguments.reduce(value, reduction, count) if each else value


def check_impl(impl: str) -> None:
    """Raise for an implementation that there is not."""
    if impl not in IMPLS:
        raise unknown_name("impl", impl, IMPLS)


def _needs_reference(loss: naive.Loss, arguments: Arguments, options: Weighting | None) -> str:
    """Why the fused form cannot be had; "" where it can."""
    inputs, targets, _, weight, smoothing = arguments
    tensors = [x for x in (inputs, targets, weight) if x is not None]
    if is_traced():
        return "one graph, which whoever traces it may fuse"
    if any(forward_ad.unpack_dual(x).tangent is not None for x in tensors):  # type: ignore[no-untyped-call]
        return "forward-mode derivatives"
    if targets.requires_grad:
        return "targets want a gradient"
    if smoothing:
        return "label smoothing"
    if options is not None and options.method == "exact":
        return 'method="exact"'
    if isinstance(loss, naive.Asl1) or not inputs.numel():
        return "few elements"
    if arguments.labels:
        return ""
    if (
        isinstance(loss, naive.Focal)
        or not _arguments.values_can_be_read(inputs)
        or 16 * targets.count_nonzero() > targets.numel()
    ):
        return "targets may be soft"
    return ""


@functools.cache
def _say_once(why_not: str, device: str) -> None:
    form = f'"reference" on {device}: {why_not}' if why_not else f'"torch" on {device}: the fastest measured'
    _log.debug('losses: impl="auto" takes %s', form)


class _Weighted(torch.autograd.Function):
    """Σ β L, or β L of each element, with the gradient that came with it.

    Every tensor goes through `save_for_backward`, which notices a change in place and lets go after backward.
    """

    @staticmethod
    def forward(
        ctx: Any, inputs: Tensor, targets: Tensor, valid: Tensor | None, table: Tensor, passes: Passes
    ) -> Tensor:
        value = passes.value(table)
        ctx.gradient, ctx.on_cpu = passes.restore(passes.memory), passes.on_cpu
        ctx.save_for_backward(inputs, targets, valid, table)
        ctx.options = passes.loss, passes.options, passes.each
        return value

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            raise GhmdetError(
                'a fused loss has no second derivative (create_graph=True); impl="reference" has one'
            )
        (inputs, targets, valid, table), (scale,) = ctx.saved_tensors, upstream
        # Scaled in place, so that it is the only one of its size; a second backward makes another.
        gradient, ctx.gradient = ctx.gradient, None
        if gradient is None:
            loss, options, each = ctx.options
            passes = Passes(loss, Arguments(inputs, targets, valid, None), options, each)
            if options is not None:
                passes.count()
            passes.value(table)
            gradient = passes.restore(passes.memory)
        if scale.dim() or not ctx.on_cpu or scale.item() != 1:
            gradient.mul_(scale)
        return gradient.to(inputs.dtype), None, None, None, None


class Passes:
    """`count`, then `value` with β of each region [C, M], which turns the slopes in `memory` into the gradient.

    Logits and masks are rows [R, K], or [R, 1] without the class dimension: views where their memory is so, else
    copies. On a CPU the positives stand apart; on a device that must not be waited for one place of each row does,
    positive or not.

    While nearly all logits of a block lie in the first region, the block is easy: all of it gets the β of that region,
    its losses are added to `bulk` at once, and the few that lie beyond stand apart too. In the other blocks each logit
    is looked up.
    """

    def __init__(self, loss: naive.Loss, arguments: Arguments, options: Weighting | None, each: bool) -> None:
        inputs, targets, valid = arguments[:3]
        self.loss, self.options, self.each = loss, options, each
        self.shape, self.on_cpu, self.dtype = (
            inputs.shape,
            _arguments.values_can_be_read(inputs),
            wide(inputs),
        )
        self.x = self._rows(inputs.detach()).contiguous()
        self.number, self.classes = self.x.shape
        self.valid = None if valid is None or (self.on_cpu and bool(valid.all())) else self._rows(valid)
        if not arguments.labels:
            flat = self._rows(targets).reshape(-1)
            self.places = flat.nonzero()[:, 0]
            self.targets = flat.index_select(0, self.places).to(self.dtype)
        else:
            labels = targets.reshape(-1)
            if self.on_cpu:
                row = (labels < self.classes).nonzero()[:, 0]
                labels = labels.index_select(0, row)
            else:
                row = torch.arange(self.number, device=inputs.device)
            own = labels.clamp(0, self.classes - 1)
            self.places, self.targets = own.add(row, alpha=self.classes), (own == labels).to(self.dtype)
        self.positives = len(self.places)  # of the places; those that lie beyond the first region come behind

        size = CPU_BLOCK if self.on_cpu else DEVICE_BLOCK
        self.height = max(size // self.classes // GROUP, 1) * GROUP
        self.part = size // 4  # of the places at a time
        self.edges = [*range(0, self.number, self.height), self.number]
        self.cuts = self.edges  # where the places of each block begin
        if self.on_cpu:
            ends = torch.tensor(self.edges[1:-1], dtype=torch.int64, device="cpu") * self.classes
            self.cuts = [0, *torch.searchsorted(self.places, ends).tolist(), len(self.places)]
        padded = -(-self.number // GROUP) * GROUP
        self.memory = torch.empty(padded, self.classes, dtype=self.dtype, device=inputs.device)
        self.memory[self.number :] = 0

        # A flat table of counts or weights has the cells of each class, and one more for what does not count. Joint
        # ones too: adding to few counters again and again waits for itself.
        self.bins = 1 if options is None else options.cells
        self.cells = self.classes * self.bins
        self.first = torch.arange(0, self.cells, self.bins, dtype=torch.int32, device=inputs.device)
        # With few bins the products of an easy block would come too near to 0.
        self.may_be_easy = self.on_cpu and not each and self.bins >= 16
        self.easy = 0  # blocks
        self.bulk = torch.zeros(self.classes, dtype=torch.float64, device=inputs.device)
        self.apart: list[Apart] = []

    def examples(self) -> Tensor:
        """The number of elements that count of each class, [K]."""
        if self.valid is None:
            return torch.full((self.classes,), self.number, device=self.x.device)
        return self.valid.sum(0).expand(self.classes)

    def restore(self, rows: Tensor) -> Tensor:
        """Rows in the inputs' shape."""
        if len(self.shape) < 2:
            return rows[: self.number, 0]
        return rows[: self.number].view(self.shape[0], *self.shape[2:], -1).movedim(-1, 1)

    @torch.no_grad()
    def count(self) -> RegionCounts:
        """How many examples each region has."""
        counts = torch.zeros(self.cells + 1, dtype=torch.int64, device=self.x.device)
        places = [self.places]
        for i, start in enumerate(self.edges[:-1]):
            at = slice(start, self.edges[i + 1])
            slope = self.memory[at]
            torch.sigmoid(self.x[at].to(self.dtype), out=slope)
            self._clear(i, slope)
            padded = self.memory[start : start + self.height]
            few = self._easy(padded.view(GROUP, -1)) if self.may_be_easy else None
            self.may_be_easy = few is not None  # where one block is not, the next is hardly so
            if few is not None:
                self.easy += 1
                places.append(few + start * self.classes)
            else:
                self._add(counts, self._cells(slope))
        self.places = torch.cat(places)
        del places
        if len(self.places) <= self.part:
            self.apart = list(self._apart())
        for _, _, _, cells in self.apart or self._apart():
            self._add(counts, cells)

        regions, examples = counts[:-1].view(self.classes, self.bins), self.examples()
        # What does not count, stands apart or is easy was not counted, or in the first region.
        regions[:, 0] += examples - regions.sum(1)
        own, positive = self.places[: self.positives], self.targets >= 0.5
        if self.valid is not None:
            positive &= self._counts(own)
        positives = torch.zeros_like(examples).index_add_(0, own % self.classes, positive.long())
        table = torch.cat([regions, examples.unsqueeze(1), positives.unsqueeze(1)], 1)
        assert self.options is not None
        return RegionCounts((table if self.options.per_class else table.sum(0, keepdim=True)).to(self.dtype))

    @torch.no_grad()
    def value(self, table: Tensor) -> Tensor:
        """Σ β L, or β L of each element."""
        weights = F.pad(table.expand(self.classes, -1).reshape(-1), (0, 1))
        each = torch.empty_like(self.memory) if self.each else None
        total = (self.bulk * table[:, 0]).sum()  # float64
        self.memory[: self.easy * self.height].mul_(table[:, 0].contiguous())
        for i in range(self.easy, len(self.edges) - 1):
            at = slice(self.edges[i], self.edges[i + 1])
            losses, slope, beta = self._losses(i, at), self.memory[at], weights[0]
            if self.options is not None:
                beta = weights.index_select(0, self._cells(slope)).view(slope.shape)
            slope.mul_(beta)
            losses.mul_(beta)
            total += losses.sum()
            if each is not None:
                each[at] = losses
        for places, slopes, losses, cells in self.apart or self._apart():
            beta = weights.index_select(0, cells)
            losses = losses * beta
            total += losses.sum()
            self.memory.view(-1).index_copy_(0, places, slopes * beta)
            if each is not None:
                each.view(-1).index_copy_(0, places, losses)
        if each is not None:
            return self.restore(each)
        return total.to(self.dtype)

    def _losses(self, i: int, at: slice) -> Tensor:
        """L of a block's logits; of focal loss, which has no first pass, the slopes are written too."""
        x = self.x[at].to(self.dtype)
        if not isinstance(self.loss, naive.Focal):
            return self._clear(i, _softplus(x))
        losses, slopes = _focal(self.loss, x, 1 - self.loss.alpha)
        self.memory[at] = self._clear(i, slopes)
        return self._clear(i, losses)

    def _apart(self) -> Iterator[Apart]:
        """What stands apart, a part at a time."""
        for start in range(0, len(self.places), self.part):
            places, t = self.places[start : start + self.part], self.targets[start : start + self.part]
            x = self.x.view(-1).index_select(0, places).to(self.dtype)
            t = F.pad(t, (0, len(x) - len(t)))  # beyond the first region are none but background
            kept = None if self.valid is None else self._counts(places)
            if kept is not None:
                x, t = torch.where(kept, x, 0), torch.where(kept, t, 0)
            if isinstance(self.loss, naive.Focal):
                # By y = −x where the target is 1 everything is background.
                alpha, sign = self.loss.alpha, 1 - 2 * t
                losses, slopes = _focal(self.loss, x * sign, t * alpha + (1 - t) * (1 - alpha))
                slopes *= sign
            else:
                slopes = torch.sigmoid(x).sub_(t)
                losses = x.clamp_min(0).addcmul_(t, x, value=-1).add_(_softplus(-x.abs()))
            cells = unit_region(slopes.abs(), self.bins).add_(places % self.classes * self.bins)
            if kept is not None:
                cells = torch.where(kept, cells, self.cells)
            yield places, slopes, losses, cells

    def _easy(self, p: Tensor) -> Tensor | None:
        """The flat places of p [8, ..] beyond the first region, if they are few: then 0, and the loss of all summed.

        No logarithm for each: 8 of the numbers 1 - p are multiplied, as a + b - ab makes 1 - (1 - a)(1 - b) without
        cancellation, and -log(1 - q) = 2 artanh(q / (2 - q)).
        """
        # A little less than where the first region ends, so that no rounding hides one: all are looked up.
        width, edge, one = p.shape[1], (1 - 1e-6) / self.bins, p.new_ones(())
        beyond = (p.amax(0) >= edge).nonzero()[:, 0]
        if 3 * len(beyond) > width:
            return None
        row, column = (p.index_select(1, beyond) >= edge).nonzero().unbind(1)
        few = beyond.index_select(0, column).add_(row, alpha=width)
        p.view(-1).index_fill_(0, few, 0)
        while len(p) > 1:
            first, second = p.chunk(2)
            p = torch.lerp(first, one, second)
        self.bulk.add_(p.div_(2 - p).atanh_().view(-1, self.classes).sum(0), alpha=2)
        return few

    def _clear(self, i: int, block: Tensor) -> Tensor:
        """A block, now 0 where an element does not count or stands apart."""
        start, first, last = self.edges[i], self.cuts[i], self.cuts[i + 1]
        if self.valid is not None:
            block.masked_fill_(~self.valid[start : start + self.height], 0)
        if first < last:
            places = self.places[first:last]
            block.view(-1).index_fill_(0, places - start * self.classes if start else places, 0)
        return block

    def _counts(self, places: Tensor) -> Tensor:
        """Whether the elements at flat places are valid."""
        assert self.valid is not None
        row, width = places // self.classes, self.valid.shape[1]
        return self.valid[row, places % width]

    def _cells(self, slope: Tensor) -> Tensor:
        """The cell of each slope of a block."""
        return unit_region(slope, self.bins).add_(self.first).view(-1)

    def _add(self, counts: Tensor, cells: Tensor) -> None:
        if self.on_cpu:
            counts += torch.bincount(cells, minlength=len(counts))
        else:
            counts.index_add_(0, cells, counts.new_ones(1).expand(len(cells)))

    def _rows(self, tensor: Tensor) -> Tensor:
        """A tensor of the inputs' shape, or of that without dimension 1, as rows."""
        if len(self.shape) < 2 or tensor.dim() < len(self.shape):
            return tensor.reshape(-1, 1)
        return tensor.movedim(1, -1).reshape(-1, self.shape[1])


def _focal(loss: naive.Focal, x: Tensor, alpha: float | Tensor) -> tuple[Tensor, Tensor]:
    """L and dL/dx of background logits, with their α."""
    miss, entropy = torch.sigmoid(x), _softplus(x)
    scale = miss**loss.gamma
    if loss.alpha >= 0:
        scale *= alpha
    slope = (loss.gamma * (1 - miss)).mul_(entropy).add_(miss).mul_(scale)
    return entropy.mul_(scale), slope


def _softplus(x: Tensor) -> Tensor:
    """log(1 + e^x), which from 50 on is x, in double precision too."""
    return F.softplus(x, threshold=50)
