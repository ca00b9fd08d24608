"""Loss and gradient together, over blocks: nothing of the inputs' size is made but the gradient."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ghmdet.errors import GhmdetError
from ghmdet.functional._blocks import Block, Blocks, Space
from ghmdet.functional._elements import Given
from ghmdet.functional._kernels import Kernel
from ghmdet.functional.density import RegionCounts


class Fused:
    """The two passes of a harmonized loss, as `Composition` has them; weights of None give the plain loss."""

    def __init__(self, given: Given, kernel: Kernel, bins: int = 1, per_class: bool = False) -> None:
        self.kernel = kernel
        self.bins = bins
        self.per_class = per_class
        self.blocks = Blocks(given, kernel.fill)
        classes = torch.arange(self.blocks.shape[1], dtype=torch.int32, device=given.inputs.device)
        self.first = classes * bins

    @torch.no_grad()
    def count(self) -> RegionCounts:
        """How many examples each region has."""
        blocks = self.blocks
        classes = blocks.shape[1]
        counts = torch.zeros(classes * self.bins, dtype=torch.int64, device=blocks.inputs.device)
        one = counts.new_ones(1)
        for block, space in blocks:
            self.kernel.slope(block, space)
            # Apart for each class even where they are summed: adding to one number again and again waits for itself.
            self._regions(block, space, per_class=True)
            if blocks.on_cpu:
                counts += torch.bincount(space.regions, minlength=len(counts))
            else:
                counts.index_add_(0, space.regions, one.expand(len(space.regions)))
        regions = counts.view(classes, self.bins)
        examples, positives = blocks.examples(), blocks.positive_sums()
        if not self.per_class:
            regions, examples, positives = (x.sum(0, keepdim=True) for x in (regions, examples, positives))
        if blocks.valid is not None:
            # Masked elements were read as `fill`, which is in the first region.
            regions[:, 0] -= regions.sum(1) - examples
        columns = [regions, examples.unsqueeze(1), positives.unsqueeze(1)]
        return RegionCounts(torch.cat([column.to(blocks.dtype) for column in columns], 1))

    def weighted(self, table: Tensor | None, reduction: str, count: Tensor | None = None) -> Tensor:
        """β L with β from `table` [C, M], reduced as by `_elements.reduce`; differentiable once."""
        inputs = self.blocks.given.inputs
        each = reduction == "none"
        table = None if table is None else table.to(self.blocks.dtype)
        if torch.is_grad_enabled() and inputs.requires_grad:
            inputs, targets, _, valid, weight = self.blocks.given
            loss: Tensor = _Weighted.apply(inputs, targets, valid, weight, table, self, each)
        else:
            loss = self.evaluate(table, each, wants_gradient=False)[0]
        if reduction != "mean":
            return loss
        return loss / (self.blocks.examples().sum().clamp_min(1) if count is None else count)

    @torch.no_grad()
    def evaluate(
        self, table: Tensor | None, each: bool, wants_gradient: bool
    ) -> tuple[Tensor, Tensor | None]:
        """The loss (of each element, or its sum) and, where wanted, the sum's gradient."""
        blocks = self.blocks
        values = blocks.output(blocks.dtype) if each else None
        gradient = blocks.output(blocks.inputs.dtype) if wants_gradient else None
        total = torch.zeros((), dtype=torch.float64, device=blocks.inputs.device)
        for block, space in blocks:
            self.kernel.slope(block, space)
            self.kernel.loss(block, space)
            beta = self._weights(table, block, space)
            if values is not None:
                blocks.write(values, block, beta, space.loss)
            else:
                total += torch.dot(beta, space.loss)
            if gradient is not None:
                blocks.write(gradient, block, beta, space.slope)
        blocks.memory = None
        value = total.to(blocks.dtype) if values is None else blocks.restore(values)
        return value, None if gradient is None else blocks.restore(gradient)

    @torch.no_grad()
    def gradient(self, table: Tensor | None, upstream: Tensor) -> Tensor:
        """The gradient by the inputs, from that by the loss (a scalar, or one number an element)."""
        blocks = self.blocks
        gradient = blocks.output(blocks.inputs.dtype)
        each = blocks.align(upstream) if upstream.dim() else None
        for block, space in blocks:
            self.kernel.slope(block, space)
            beta = self._weights(table, block, space)
            beta.mul_(upstream if each is None else blocks.part(each, block.at).reshape(-1))
            blocks.write(gradient, block, beta, space.slope)
        blocks.memory = None
        return blocks.restore(gradient)

    def _weights(self, table: Tensor | None, block: Block, space: Space) -> Tensor:
        """β of a block, times the caller's weight, in `space.b`."""
        if table is None:
            space.b.fill_(1)
        else:
            self._regions(block, space, self.per_class)
            torch.index_select(table.view(-1), 0, space.regions, out=space.b)
        if block.weight is not None:
            space.b.view(block.shape).mul_(block.weight)
        return space.b

    def _regions(self, block: Block, space: Space, per_class: bool) -> None:
        """Write the place of each element in the flat table to `space.regions`, by the arithmetic of `region_index`."""
        norm = torch.abs(space.slope, out=space.a).mul_(self.bins)
        space.regions.copy_(norm).clamp_(0, self.bins - 1)
        if per_class:
            n, k, s = block.shape
            # Without the last dimension of 1, which makes PyTorch's loop 10 times as slow.
            shape, first = ((n, k), self.first) if s == 1 else (block.shape, self.first.unsqueeze(1))
            space.regions.view(shape).add_(first[block.at[1]])


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
        table: Tensor | None,
        loss: Fused,
        each: bool,
    ) -> Tensor:
        # A half-precision gradient must be scaled before it is rounded, and one an element is not known yet.
        at_once = not each and inputs.dtype == loss.blocks.dtype
        value, ctx.gradient = loss.evaluate(table, each, wants_gradient=at_once)
        ctx.save_for_backward(inputs, targets, valid, weight, table)
        ctx.options = loss.blocks.given.labels, loss.kernel, loss.bins, loss.per_class
        return value

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        (inputs, targets, valid, weight, table), (scale,) = ctx.saved_tensors, upstream
        with torch.no_grad():
            # Scaled in place, so that it is the only one of its size; a second backward makes another.
            gradient, ctx.gradient = ctx.gradient, None
            if gradient is not None:
                gradient.mul_(scale)
            else:
                labels, *options = ctx.options
                gradient = Fused(Given(inputs, targets, labels, valid, weight), *options).gradient(
                    table, scale
                )
        if torch.is_grad_enabled():
            gradient = _Once.apply(gradient, inputs, scale)
        return gradient, None, None, None, None, None, None


class _Once(torch.autograd.Function):
    """A gradient that says why it has none of its own."""

    @staticmethod
    def forward(ctx: Any, gradient: Tensor, inputs: Tensor, scale: Tensor) -> Tensor:
        return gradient.view_as(gradient)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        raise GhmdetError('a fused loss has no second derivative; impl="reference" has one')
