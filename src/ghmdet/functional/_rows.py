"""The arguments of a loss as rows [R, K], one for each example, read in blocks."""

from __future__ import annotations

import torch
from torch import Tensor

from ghmdet.functional._arguments import Arguments

# Elements of a block. On a CPU an operation costs some microseconds whatever its size, and what it makes of a block
# stays in the third-level cache; elsewhere a launch costs more than memory.
CPU_BLOCK, DEVICE_BLOCK = 1 << 17, 1 << 22
GROUP = 32  # rows; every block but the last has whole groups


class Rows:
    """The arguments as [R, K], or [R, 1] without the class dimension: views where their memory is so, else copies.

    Some `places` (flat, sorted) stand apart with their targets `at_places`: the positives of labels, or of targets that
    are nearly all 0. All other targets are 0 then, and `targets` is None. On a device that must not be waited for one
    place of each row stands apart, positive or not, and no value is read.
    """

    def __init__(self, arguments: Arguments) -> None:
        inputs, targets, valid, weight = arguments
        self.shape = inputs.shape
        self.on_cpu = is_cpu(inputs)
        self.dtype = torch.float64 if inputs.dtype == torch.float64 else torch.float32
        self.x = self.of(inputs.detach()).contiguous()
        self.number, self.classes = self.x.shape
        self.weight = None if weight is None else self.of(weight)
        self.valid = None if valid is None or (self.on_cpu and bool(valid.all())) else self.of(valid)
        self.targets: Tensor | None = None
        if arguments.labels:
            self.places, self.at_places = self._labelled(targets.reshape(-1))
        else:
            self.places, self.at_places = self._not_zero(self.of(targets))
        if self.on_cpu and self.valid is not None:
            kept = self.at(self.valid, self.places)
            self.places, self.at_places = self.places[kept], self.at_places[kept]

        self.size = CPU_BLOCK if self.on_cpu else DEVICE_BLOCK
        groups = -(-self.number // GROUP)
        blocks = -(-groups // max(self.size // max(self.classes, 1) // GROUP, 1))
        self.height = GROUP * -(-groups // max(blocks, 1))  # rows of a block
        self.edges = self.cuts = [min(i * self.height, self.number) for i in range(blocks + 1)]
        if self.on_cpu:  # where the places of each block begin
            edges = torch.tensor([edge * self.classes for edge in self.edges], device="cpu")
            self.cuts = torch.searchsorted(self.places, edges).tolist()

    def of(self, tensor: Tensor) -> Tensor:
        """A tensor of the inputs' shape, or of that without dimension 1, as rows."""
        if len(self.shape) < 2 or tensor.dim() < len(self.shape):
            return tensor.reshape(-1, 1)
        return tensor if tensor.dim() == 2 else tensor.movedim(1, -1).reshape(-1, self.shape[1])

    def restore(self, rows: Tensor) -> Tensor:
        """The inverse of `of`, in the inputs' shape; more rows than there are leave out the last."""
        rows = rows[: self.number]
        if len(self.shape) == 2:
            return rows
        return rows.view(*self.shape[:1], *self.shape[2:], *self.shape[1:2]).movedim(
            -1, min(1, len(self.shape) - 1)
        )

    def block(self, first: int, last: int) -> tuple[slice, Tensor, Tensor | None]:
        """Of the blocks from `first` to before `last`: their rows, inputs and targets."""
        rows = slice(self.edges[first], self.edges[last])
        targets = None if self.targets is None else self.targets[rows].to(self.dtype).contiguous()
        return rows, self.x[rows].to(self.dtype), targets

    def clear(self, first: int, last: int, tensor: Tensor) -> Tensor:
        """Set 0 in a tensor of those blocks where an element does not count or stands apart."""
        start, stop = self.edges[first], self.edges[last]
        if self.valid is not None and self.on_cpu and self.valid.shape[1] == 1:
            tensor.index_fill_(0, (~self.valid[start:stop, 0]).nonzero()[:, 0], 0)
        elif self.valid is not None:
            tensor.masked_fill_(~self.valid[start:stop], 0)
        if self.cuts[first] < self.cuts[last]:
            places = self.places[self.cuts[first] : self.cuts[last]] - start * self.classes
            tensor.view(-1).index_fill_(0, places, 0)
        return tensor

    def at(self, tensor: Tensor, places: Tensor) -> Tensor:
        """What a tensor as rows has at flat places."""
        row = places // self.classes
        return tensor[row, places % self.classes] if tensor.shape[1] > 1 else tensor[row, 0]

    def examples(self) -> Tensor:
        """The number of elements that count of each class, [K]."""
        if self.valid is None:
            return torch.full((self.classes,), self.number, device=self.x.device)
        return self.valid.sum(0).expand(self.classes)

    def positives(self) -> Tensor:
        """The number of elements that count and have a target of at least 1/2 of each class, [K]."""
        if self.targets is not None:
            positive = self.targets >= 0.5
            return (positive if self.valid is None else positive & self.valid).sum(0)
        positive = self.at_places >= 0.5
        if self.valid is not None and not self.on_cpu:
            positive &= self.at(self.valid, self.places)
        sums = torch.zeros(self.classes, dtype=torch.int64, device=self.x.device)
        return sums.index_add_(0, self.places % max(self.classes, 1), positive.to(sums.dtype))

    def _labelled(self, labels: Tensor) -> tuple[Tensor, Tensor]:
        if self.on_cpu:
            row = (labels < self.classes).nonzero()[:, 0]
            # A negative label is masked, and so is its place.
            places = labels.index_select(0, row).clamp_(0).add(row, alpha=self.classes)
            return places, self.x.new_ones(len(places), dtype=self.dtype)
        own = labels.clamp(0, self.classes - 1)
        places = self.classes * torch.arange(self.number, device=labels.device) + own
        return places, (own == labels).to(self.dtype)

    def _not_zero(self, targets: Tensor) -> tuple[Tensor, Tensor]:
        """The places that stand apart and their targets, or none, and `targets` as they are."""
        flat = targets.reshape(-1)
        if self.on_cpu and 16 * int(flat.count_nonzero()) <= len(flat):
            places = flat.nonzero()[:, 0]
            return places, flat.index_select(0, places).to(self.dtype)
        self.targets = targets
        return flat.new_empty(0, dtype=torch.int64), flat.new_empty(0, dtype=self.dtype)


def is_cpu(tensor: Tensor) -> bool:
    """Whether looking at a tensor's values makes nothing wait."""
    return tensor.device.type == "cpu"
