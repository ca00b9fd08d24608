"""Loss and gradient together, over blocks that fit a cache: nothing of the inputs' size is made but the gradient."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from ghmdet.errors import GhmdetError
from ghmdet.functional import naive
from ghmdet.functional._arguments import Arguments
from ghmdet.functional.density import RegionCounts
from ghmdet.functional.gradient_norm import asl1_root

# Elements of a block. On a CPU its buffers stay in the second-level cache; elsewhere a launch costs more than memory.
CPU_BLOCK = 1 << 16
DEVICE_BLOCK = 1 << 22
# A logit whose probability, cross entropy and gradient are exactly 0 as background.
NOTHING = -1e4


Slices = tuple[slice, slice, slice]


class Positives(NamedTuple):
    """Where the target is 1, as flat places in a block or in everything, and the cross entropy there.

    `is_one` is 0 at places that do not count after all; `entropy` is then that of a target of 0.
    """

    places: Tensor
    is_one: Tensor
    entropy: Tensor


class Block(NamedTuple):
    """A part of the elements, flat: of n examples, k classes and s places, in that order.

    One of `targets` and `positives` is there. Masked elements have x = `fill` and target 0. `weight` broadcasts with
    [n, k, s].
    """

    at: Slices
    shape: tuple[int, int, int]
    x: Tensor
    targets: Tensor | None
    positives: Positives | None
    weight: Tensor | None


class Space(NamedTuple):
    """Memory for what is computed of one block, used again for the next; `regions` lies where `c` lies."""

    slope: Tensor
    loss: Tensor
    a: Tensor
    b: Tensor
    c: Tensor
    regions: Tensor


class Blocks:
    """The arguments of a loss as [N, K, S]: images (or anchors), classes, places; views wherever that can be.

    On a CPU, examples that are masked as a whole (an ignored anchor in [N, K] inputs) are never read; other masks
    replace the inputs by `fill`. On other devices nothing here looks at a value.
    """

    def __init__(self, arguments: Arguments, fill: float) -> None:
        inputs = arguments.inputs.detach()
        self.given = arguments
        self.fill = fill
        self.on_cpu = is_cpu(inputs)
        self.dtype = torch.float64 if inputs.dtype == torch.float64 else torch.float32
        # [N, H, W, K] in memory, as channels_last and permuted heads have it, is a list of anchors.
        self.classes_last = inputs.dim() > 2 and inputs.movedim(1, -1).is_contiguous()
        self.inputs = self.align(inputs)
        valid = None if arguments.valid is None else self.align(arguments.valid)
        if self.on_cpu and valid is not None and bool(valid.all()):
            valid = None
        self.rows: Tensor | None = None
        if self.on_cpu and valid is not None and valid.shape[1] * valid.shape[2] == 1:
            self.rows, valid = valid.flatten().nonzero().flatten(), None
        self.valid = valid
        self.weight = None if arguments.weight is None else self.align(arguments.weight)
        self.shape = (
            len(self.inputs) if self.rows is None else len(self.rows),
            self.inputs.shape[1],
            self.inputs.shape[2],
        )
        size = CPU_BLOCK if self.on_cpu else max(DEVICE_BLOCK, self.shape[1] * self.shape[2])
        self.size = min(size, max(self.inputs.numel(), 1))
        self.memory: Tensor | None = None  # for `Space`; who iterates last lets it go
        self.targets: Tensor | None = None
        self.positives: Positives | None = None
        if arguments.labels:
            self.positives = self._find_positives(self.align(arguments.targets))
        else:
            self.targets = self.align(arguments.targets)

    def __iter__(self) -> Iterator[tuple[Block, Space]]:
        """The blocks in the order of memory, each with space to work in."""
        if self.memory is None:
            self.memory = torch.empty(5, self.size, dtype=self.dtype, device=self.inputs.device)
        slices = list(self._slices())
        bounds = self._bounds(slices)
        space, length = None, -1
        for i, (at, shape) in enumerate(slices):
            positives = None
            if self.positives is not None and bounds[i + 1] > bounds[i]:
                places, *values = (part[bounds[i] : bounds[i + 1]] for part in self.positives)
                positives = Positives(places - self._start(at), *values)
            block = Block(
                at,
                shape,
                self._read(self.inputs, at, self.fill).reshape(-1),
                None if self.targets is None else self._read(self.targets, at, 0.0).reshape(-1),
                positives,
                None if self.weight is None else self._read(self.weight, at, 0.0),
            )
            if space is None or length != len(block.x):
                length = len(block.x)
                slope, loss, a, b, c = self.memory[:, :length].unbind()
                integers = torch.int64 if self.dtype == torch.float64 else torch.int32
                space = Space(slope, loss, a, b, c, c.view(integers))
            yield block, space

    def examples(self) -> Tensor:
        """The number of valid elements of each class, [K]."""
        n, k, s = self.shape
        if self.valid is None:
            return torch.full((k,), n * s, device=self.inputs.device)
        return self.valid.sum((0, 2)).expand(k)

    def positive_sums(self) -> Tensor:
        """The number of targets of at least 1/2 of each class, [K]."""
        k, s = self.shape[1:]
        sums = torch.zeros(k, dtype=torch.int64, device=self.inputs.device)
        if self.positives is not None:
            return sums.index_add_(0, self.positives.places // s % k, self.positives.is_one.long())
        if self.targets is not None:
            for at, _ in self._slices():
                sums[at[1]] += (self._read(self.targets, at, 0.0) >= 0.5).sum((0, 2))
        return sums

    def output(self, dtype: torch.dtype) -> Tensor:
        """Memory for one number an element, as `write` fills it; what is never read is 0."""
        make = torch.empty if self.rows is None else torch.zeros
        return make(self.inputs.shape, dtype=dtype, device=self.inputs.device)

    def write(self, output: Tensor, block: Block, a: Tensor, b: Tensor) -> None:
        """Put the product of `a` and `b`, which are flat, into `output` where the block is."""
        if self.rows is not None:
            product = a.mul(b).view(block.shape)
            output[:, block.at[1]].index_copy_(0, self.rows[block.at[0]], product.to(output.dtype))
        else:
            torch.mul(a, b, out=output[block.at].view(-1))

    def restore(self, output: Tensor) -> Tensor:
        """`output` in the shape and memory order of the inputs that were arguments."""
        shape = self.given.inputs.shape
        if not self.classes_last:
            return output.view(shape)
        return output.view(shape[:1] + shape[2:] + shape[1:2]).movedim(-1, 1)

    def align(self, tensor: Tensor) -> Tensor:
        """A tensor of the inputs' shape as [N, K, S], one without the classes as [N, 1, S]."""
        inputs = self.given.inputs
        if inputs.dim() == 1:
            return tensor.reshape(-1, 1, 1)
        n, k = inputs.shape[:2]
        s = math.prod(inputs.shape[2:])
        if tensor.shape == inputs.shape:
            return (
                tensor.movedim(1, -1).reshape(n * s, k, 1) if self.classes_last else tensor.reshape(n, k, s)
            )
        return tensor.reshape(n * s, 1, 1) if self.classes_last else tensor.reshape(n, 1, s)

    def part(self, aligned: Tensor, at: Slices) -> Tensor:
        """What an aligned tensor has at a block."""
        if aligned.shape[1] == 1:
            at = (at[0], slice(None), at[2])
        return aligned[at] if self.rows is None else aligned[:, at[1]].index_select(0, self.rows[at[0]])

    def _read(self, aligned: Tensor, at: Slices, fill: float) -> Tensor:
        block = self.part(aligned, at).to(self.dtype)
        return block if self.valid is None else torch.where(self.part(self.valid, at), block, fill)

    def _find_positives(self, labels: Tensor) -> Positives:
        if self.rows is not None:
            labels = labels.index_select(0, self.rows)
        n, k, s = self.shape
        labels = labels[:, 0]  # [n, s]
        positive = (labels >= 0) & (labels < k)
        if self.on_cpu:
            image, place = positive.nonzero().unbind(1)
            places = ((image * k + labels[image, place]) * s + place).sort().values
            is_one = torch.ones_like(places, dtype=self.dtype)
        else:
            image = torch.arange(n, device=labels.device).unsqueeze(1)
            place = torch.arange(s, device=labels.device)
            places = ((image * k + labels.clamp(0, k - 1)) * s + place).flatten()
            is_one = positive.flatten().to(self.dtype)
        row = places // (k * s)
        row = row if self.rows is None else self.rows[row]
        x = self.inputs[row, places // s % k, places % s].to(self.dtype)
        if self.valid is not None:
            counted = self.valid.expand(self.shape).reshape(-1)[places]
            is_one, x = is_one * counted, torch.where(counted, x, self.fill)
        return Positives(places, is_one, F.softplus(x * (1 - 2 * is_one)))

    def _slices(self) -> Iterator[tuple[Slices, tuple[int, int, int]]]:
        """Where the blocks are, and their shapes."""
        n, k, s = self.shape
        if n * k * s == 0:
            return
        if not self.on_cpu or k * s <= self.size:
            steps = max(self.size // (k * s), 1), k, s
        else:
            # One example is more than a block: whole classes of it, or parts of one class.
            steps = 1, max(self.size // s, 1), min(self.size, s)
        for i in range(0, n, steps[0]):
            for j in range(0, k, steps[1]):
                for m in range(0, s, steps[2]):
                    ends = min(i + steps[0], n), min(j + steps[1], k), min(m + steps[2], s)
                    at = slice(i, ends[0]), slice(j, ends[1]), slice(m, ends[2])
                    yield at, (ends[0] - i, ends[1] - j, ends[2] - m)

    def _start(self, at: Slices) -> int:
        k, s = self.shape[1:]
        start: int = (at[0].start * k + at[1].start) * s + at[2].start
        return start

    def _bounds(self, slices: list[tuple[Slices, tuple[int, int, int]]]) -> list[int]:
        """Where the positives of each block begin; one more than there are blocks."""
        if self.positives is None or not slices:
            return []
        if not self.on_cpu:
            s = self.shape[2]
            return [at[0].start * s for at, _ in slices] + [self.shape[0] * s]
        starts = torch.tensor([self._start(at) for at, _ in slices])
        return [*torch.searchsorted(self.positives.places, starts).tolist(), len(self.positives.places)]


def is_cpu(tensor: Tensor) -> bool:
    """Whether looking at a tensor's values makes nothing wait."""
    return tensor.device.type == "cpu"


# As tensors: PyTorch subtracts from a number in two steps.
ONE, TWO = torch.tensor(1.0), torch.tensor(2.0)


class Kernel(Protocol):
    """A loss L(x, p*) and its slope, whose size is the gradient norm.

    For each block `slope` is called, which may use all of the space, and then perhaps `loss`, which finds the space as
    `slope` left it.
    """

    fill: float
    """The input that has loss and slope 0, with target 0."""

    def slope(self, block: Block, space: Space) -> None:
        """Write dL/dx, whose size is the gradient norm, into `space.slope`."""
        ...

    def loss(self, block: Block, space: Space) -> None:
        """Write L into `space.loss`."""
        ...


class CrossEntropyKernel:
    """L_CE of a logit, with slope p − p*."""

    fill = NOTHING

    def slope(self, block: Block, space: Space) -> None:
        """p − p*."""
        torch.sigmoid(block.x, out=space.slope)
        if block.targets is not None:
            space.slope.sub_(block.targets)
        elif block.positives is not None:
            space.slope.index_add_(0, block.positives.places, block.positives.is_one, alpha=-1)

    def loss(self, block: Block, space: Space) -> None:
        """max(x, 0) − x p* + log(1 + e^−|x|)."""
        torch.clamp_min(block.x, 0, out=space.loss)
        if block.targets is not None:
            space.loss.addcmul_(block.targets, block.x, value=-1)
            torch.abs(block.x, out=space.a).neg_().sigmoid_()
        else:
            # σ(−|x|) from p: where 1 − p is rough, x is large, and the logarithm is nothing beside it.
            torch.sub(ONE, space.slope, out=space.a)
            torch.minimum(space.slope, space.a, out=space.a)
        _add_log1p_exp(space.loss, space.a, space.b)
        if block.positives is not None:
            space.loss.index_copy_(0, block.positives.places, block.positives.entropy)


class FocalKernel:
    """Focal loss c miss^γ L_CE of hard targets, miss = 1 − p_t, c = α or 1 − α; its slope is the whole derivative."""

    fill = NOTHING

    def __init__(self, alpha: float, gamma: float) -> None:
        self.alpha, self.gamma = alpha, gamma

    def slope(self, block: Block, space: Space) -> None:
        """± c miss^γ (γ (1 − miss) L_CE + miss)."""
        entropy, scale, rest, miss = space.loss, space.a, space.b, space.slope
        # y = −x where the target is 1: everything is a background logit then.
        y = miss.copy_(block.x)
        if block.positives is not None:
            places, is_one, _ = block.positives
            y.index_add_(0, places, is_one * y[places], alpha=-2)
        torch.clamp_min(y, 0, out=entropy)
        torch.abs(y, out=space.a).neg_().sigmoid_()
        _add_log1p_exp(entropy, space.a, space.b)
        miss.sigmoid_()
        torch.pow(miss, self.gamma, out=scale)
        if self.alpha >= 0:
            scale.mul_(1 - self.alpha)
            if block.positives is not None:
                ours = miss[places].pow_(self.gamma).mul_(self.alpha)
                scale.index_copy_(0, places, torch.where(is_one > 0, ours, scale[places]))
        torch.sub(ONE, miss, out=rest).mul_(entropy)
        miss.add_(rest, alpha=self.gamma).mul_(scale)
        if block.positives is not None:
            miss.index_add_(0, places, is_one * miss[places], alpha=-2)

    def loss(self, block: Block, space: Space) -> None:
        """c miss^γ L_CE, from what `slope` left."""
        space.loss.mul_(space.a)


class Asl1Kernel:
    """sqrt(d² + μ²) − μ of a difference d, with slope d / sqrt(d² + μ²)."""

    fill = 0.0

    def __init__(self, mu: float) -> None:
        self.mu = mu

    def slope(self, block: Block, space: Space) -> None:
        """d / sqrt(d² + μ²), with d left in `loss` and the root in `a`."""
        assert block.targets is not None
        torch.sub(block.x, block.targets, out=space.loss)
        space.a.copy_(asl1_root(space.loss, self.mu))
        torch.div(space.loss, space.a, out=space.slope)

    def loss(self, block: Block, space: Space) -> None:
        """d² / (sqrt(d² + μ²) + μ)."""
        torch.div(space.loss, space.a.add_(self.mu), out=space.b)
        space.loss.mul_(space.b)


def _add_log1p_exp(out: Tensor, small: Tensor, spare: Tensor) -> None:
    """Add log(1 + e^−|x|) to `out`, from σ(−|x|), which is overwritten.

    With s = σ(−|x|) it is −log(1 − s) = 2 artanh(s / (2 − s)), as exact for the smallest s; PyTorch's log1p takes
    10 times as long on a CPU.
    """
    small.div_(torch.sub(TWO, small, out=spare)).atanh_()
    out.add_(small, alpha=2)


def harmonized(
    loss: naive.Loss,
    arguments: Arguments,
    weigh: naive.Weigh | None,
    bins: int,
    per_class: bool,
    reduction: str,
) -> Tensor:
    """1/N Σ β_i L_i as by `naive.harmonized`; differentiable once."""
    kernel: Kernel = CrossEntropyKernel()
    if isinstance(loss, naive.Focal):
        kernel = FocalKernel(loss.alpha, loss.gamma)
    elif isinstance(loss, naive.Asl1):
        kernel = Asl1Kernel(loss.mu)
    run = Fused(arguments, kernel, bins, per_class)
    table, count = (None, None) if weigh is None else weigh(run.count())
    return run.weighted(table, reduction, count)


class Fused:
    """The two passes of a harmonized loss: `count`, then `weighted`; weights of None give the plain loss."""

    def __init__(self, arguments: Arguments, kernel: Kernel, bins: int = 1, per_class: bool = False) -> None:
        self.kernel = kernel
        self.bins = bins
        self.per_class = per_class
        self.blocks = Blocks(arguments, kernel.fill)
        classes = torch.arange(self.blocks.shape[1], dtype=torch.int32, device=arguments.inputs.device)
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
            inputs, targets, valid, weight = self.blocks.given
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
        ctx.options = loss.kernel, loss.bins, loss.per_class
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
                again = Fused(Arguments(inputs, targets, valid, weight), *ctx.options)
                gradient = again.gradient(table, scale)
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
