"""The gradient-norm histogram of a training run: a bias-corrected moving average of what its batches counted."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from ghmdet.errors import GhmdetError
from ghmdet.functional.density import RegionCounts, check_bins


class GradientSpectrum(nn.Module):
    """A moving average of :class:`RegionCounts`, kept in float32 buffers (so in the state dict).

    After t optimizer steps with counts c_1 … c_t and momentum m it is Σ_s m^(t−s) c_s / Σ_s m^(t−s): linear in the
    counts, without the pull of a zero start, and decaying in regions that stay empty. With `accumulation_steps` k, the
    average of k calls makes one step.

    - `bins`: M, the number of unit regions. `num_classes`: rows of the table, 1 when the density is joint.
    - `momentum`: in [0, 1); 0 keeps nothing of earlier batches.

    Raises ValueError for options out of range and for counts of another shape or device.

    >>> spectrum = GradientSpectrum(2, momentum=0.5)
    >>> seen = spectrum.update(RegionCounts(torch.tensor([[8.0, 2.0, 10.0, 1.0]])))
    >>> seen = spectrum.update(RegionCounts(torch.tensor([[2.0, 8.0, 10.0, 1.0]])))
    >>> spectrum.compute().regions
    tensor([[4., 6.]])
    """

    total: Tensor
    mass: Tensor
    pending: Tensor
    calls: Tensor

    def __init__(
        self, bins: int, *, momentum: float = 0.0, num_classes: int = 1, accumulation_steps: int = 1
    ) -> None:
        super().__init__()
        check_bins(bins)
        if not 0 <= momentum < 1:
            raise GhmdetError(f"momentum must lie in [0, 1), not {momentum!r}")
        if num_classes < 1:
            raise GhmdetError(f"num_classes must be at least 1, not {num_classes!r}")
        if accumulation_steps < 1:
            raise GhmdetError(f"accumulation_steps must be at least 1, not {accumulation_steps!r}")
        self.bins = bins
        self.momentum = momentum
        self.num_classes = num_classes
        self.accumulation_steps = accumulation_steps
        self.register_buffer("total", torch.zeros(num_classes, bins + 2))
        self.register_buffer("mass", torch.zeros(()))
        self.register_buffer("pending", torch.zeros(num_classes, bins + 2))
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))

    @property
    def moves(self) -> bool:
        """Whether `update` keeps what it is given: in training mode with gradients on."""
        return self.training and torch.is_grad_enabled()

    def update(self, counts: RegionCounts) -> RegionCounts:
        """The average including the counts of this call, which is kept only where :attr:`moves` says so."""
        self._check(counts)
        moves = self.moves
        with torch.no_grad():
            pending = self.pending + counts.table
            call = self.calls % self.accumulation_steps + 1
            total = self.momentum * self.total + pending / call
            mass = self.momentum * self.mass + 1
            if moves:
                steps = call == self.accumulation_steps
                self.total.copy_(torch.where(steps, total, self.total))
                self.mass.copy_(torch.where(steps, mass, self.mass))
                self.pending.copy_(torch.where(steps, 0.0, pending))
                self.calls += 1
            return RegionCounts(total / mass)

    @torch.no_grad()
    def compute(self) -> RegionCounts:
        """The average as kept, with the calls of an unfinished step as a step; zeros before the first."""
        total, mass = self._current()
        return RegionCounts(total / mass.clamp_min(1))

    @torch.no_grad()
    def merge(self, other: GradientSpectrum) -> None:
        """Take in another spectrum: the average over the steps of both."""
        self._check(RegionCounts(other.total))
        (total, mass), (other_total, other_mass) = self._current(), other._current()
        self.total.copy_(total + other_total)
        self.mass.copy_(mass + other_mass)
        self.pending.zero_()
        # Whole steps only, so that the next call begins one.
        self.calls.copy_((self.calls // self.accumulation_steps + other.calls) * self.accumulation_steps)

    @torch.no_grad()
    def reset(self) -> None:
        """Forget everything."""
        for buffer in self.buffers():
            buffer.zero_()

    def extra_repr(self) -> str:
        """The settings, for `print`."""
        return (
            f"bins={self.bins}, momentum={self.momentum}, num_classes={self.num_classes}, "
            f"accumulation_steps={self.accumulation_steps}"
        )

    def _current(self) -> tuple[Tensor, Tensor]:
        call = self.calls % self.accumulation_steps
        unfinished = call > 0
        total = torch.where(
            unfinished, self.momentum * self.total + self.pending / call.clamp_min(1), self.total
        )
        return total, torch.where(unfinished, self.momentum * self.mass + 1, self.mass)

    def _check(self, counts: RegionCounts) -> None:
        if counts.table.shape != self.total.shape:
            rows, columns = counts.table.shape
            raise GhmdetError(
                f"counts of {rows} classes and {columns - 2} regions do not fit a spectrum of {self.num_classes} "
                f"classes and {self.bins} regions"
            )
        here, there = counts.table.device, self.total.device
        if here != there:
            raise GhmdetError(
                f"counts are on {here}, the spectrum on {there}: move the loss with .to(device)"
            )

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> GradientSpectrum:
        # .half() and .to(bfloat16) reach every floating-point buffer, and counts overflow or round there.
        before = dict(self.named_buffers(recurse=False))
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, buffer in before.items():
            after = self._buffers[name]
            if after is not None and after.dtype != buffer.dtype:
                self._buffers[name] = buffer.to(after.device)
        return self


class PeerSpectrum(GradientSpectrum):
    """The moving average of the widely used implementation (mmdetection 3.3.0, ``acc_sum``), for ``compat="mmdet"``.

    It starts at zero, moves a region only where the batch has examples there, and moves at every call, in eval too.
    The numbers of examples and positives are the batch's own.
    """

    @property
    def moves(self) -> bool:
        """Always: the peer's average moves in eval mode too."""
        return True

    @torch.no_grad()
    def update(self, counts: RegionCounts) -> RegionCounts:
        """Move the average by the counts of this call and give it."""
        self._check(counts)
        table = counts.table.clone()
        moved = self.momentum * self.total + (1 - self.momentum) * table
        table[:, :-2] = torch.where(table > 0, moved, self.total)[:, :-2]
        self.total.copy_(table)
        self.mass.fill_(1)
        self.calls += 1
        return RegionCounts(table)
