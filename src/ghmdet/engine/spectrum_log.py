"""The spectrum of a training run: what its steps saw, an epoch a row of `spectrum.npz`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from ghmdet.distributed import sum_over_ranks
from ghmdet.models import RetinaNet
from ghmdet.models.anchors import anchors_inside, make_anchors
from ghmdet.models.box_coder import encode
from ghmdet.models.matcher import AnchorTargets
from ghmdet.models.preprocess import Batch
from ghmdet.spectrum_counts import SpectrumCounts, SpectrumSums


class SpectrumLog:
    """Counts on the device what `model` sees in each training step, and writes it at the end of each epoch.

    Background anchors in the padding of the smaller pictures of a batch are not counted: they belong to no picture.

    Args:
        model: the detector that is trained; its `observe` is taken.
        path: the file, which holds one row for each finished epoch, all ranks summed.
        main: whether this is rank 0, which keeps and writes the epochs.
    """

    def __init__(self, model: RetinaNet, path: Path, *, main: bool) -> None:
        self.config, self.path, self.main = model.config, path, main
        self.sums = SpectrumSums(model.classes, self.config.strides, model.device)
        self.epochs = SpectrumCounts.empty(model.classes, self.config.strides)[:0]
        model.observe = self.observe

    @torch.no_grad()
    def observe(self, logits: Tensor, deltas: Tensor, wanted: AnchorTargets, batch: Batch) -> None:
        """Count one batch (see `RetinaNet.observe`); the host waits for nothing."""
        height, width = batch.images.shape[-2:]
        anchors, level_counts = make_anchors(self.config, height, width, batch.images.device)
        inside = anchors_inside(self.config, batch.sizes, height, width, batch.images.device)
        padding = (wanted.labels == logits.shape[-1]) & ~inside
        differences = deltas.float() - encode(wanted.boxes, anchors)
        self.sums.add(logits, wanted.labels.masked_fill(padding, -1), differences, level_counts)

    def start(self, epochs: int) -> None:
        """Go on after so many finished epochs: later rows of the file are dropped, missing ones stay empty."""
        if not self.main or not epochs:
            return
        nothing = SpectrumCounts.empty(self.sums.classes, self.sums.strides)
        there = SpectrumCounts.load(self.path)[:epochs] if self.path.exists() else nothing[:0]
        self.epochs = SpectrumCounts.stack([there, *[nothing] * (epochs - len(there.pictures))])
        self.epochs.save(self.path)

    def end_epoch(self) -> SpectrumCounts:
        """Write the epoch that is over, which rank 0 gets, and begin the next. Every rank must call it."""
        self.load_state_dict(self.state_dict())
        over = self.sums.counts()
        self.load_state_dict({})
        if self.main:
            self.epochs = SpectrumCounts.stack([self.epochs, over])
            self.epochs.save(self.path)
        return over

    def state_dict(self) -> dict[str, Tensor]:
        """The counts of the unfinished epoch, all ranks summed, on the CPU. Every rank must call it."""
        return {name: sum_over_ranks(table).to("cpu", copy=True) for name, table in self.sums.tables.items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Go on with such counts, which rank 0 takes over for all; nothing is counted yet where there are none."""
        for name, table in self.sums.tables.items():
            if self.main and name in state:
                table.copy_(state[name])
            else:
                table.zero_()
