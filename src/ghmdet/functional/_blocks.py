"""What a loss is given, read in blocks that fit a cache: nothing of the inputs' size is made."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ghmdet.functional._elements import Given

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

    def __init__(self, given: Given, fill: float) -> None:
        inputs = given.inputs.detach()
        self.given = given
        self.fill = fill
        self.on_cpu = is_cpu(inputs)
        self.dtype = torch.float64 if inputs.dtype == torch.float64 else torch.float32
        # [N, H, W, K] in memory, as channels_last and permuted heads have it, is a list of anchors.
        self.classes_last = inputs.dim() > 2 and inputs.movedim(1, -1).is_contiguous()
        self.inputs = self.align(inputs)
        valid = None if given.valid is None else self.align(given.valid)
        if self.on_cpu and valid is not None and bool(valid.all()):
            valid = None
        self.rows: Tensor | None = None
        if self.on_cpu and valid is not None and valid.shape[1] * valid.shape[2] == 1:
            self.rows, valid = valid.flatten().nonzero().flatten(), None
        self.valid = valid
        self.weight = None if given.weight is None else self.align(given.weight)
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
        if given.labels:
            self.positives = self._find_positives(self.align(given.targets))
        else:
            self.targets = self.align(given.targets)

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
        """`output` in the shape and memory order of the inputs that were given."""
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
