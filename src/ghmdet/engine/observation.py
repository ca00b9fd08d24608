"""The gradient-norm spectrum of a detector: of the steps of a training run, and of one pass over a data set."""

from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ghmdet.data import DetectionData, DetectionDataset, EvalTransforms, make_loader
from ghmdet.engine.detect import Detector, original_results
from ghmdet.errors import CheckpointError, GhmdetError
from ghmdet.models import RetinaNet
from ghmdet.models.anchors import anchors_inside, make_anchors
from ghmdet.models.box_coder import encode
from ghmdet.models.preprocess import Batch
from ghmdet.models.targets import AnchorTargets
from ghmdet.spectrum import Floats, SpectrumCounts, SpectrumFile, SpectrumSums, sum_over_ranks


class SpectrumLog:
    """Counts on the device what `model` sees in each training step, and writes it at the end of each epoch.

    Background anchors in the padding of the smaller pictures of a batch are not counted: they belong to no picture.

    model: the detector that is trained, whose `observe` is set. path: the file, with one row for each finished epoch,
    all ranks summed. main: whether this is rank 0, which keeps and writes the epochs.
    """

    def __init__(self, model: RetinaNet, path: Path, *, main: bool) -> None:
        self.config, self.main = model.config, main
        self.sums = SpectrumSums(model.classes, self.config.strides, model.device)
        self.file = SpectrumFile(path, model.classes, self.config.strides)
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

    def continue_from(self, epochs: int) -> None:
        """Go on after so many finished epochs: later rows of the file are dropped, missing ones stay empty.

        Raises:
            GhmdetError: the file is damaged or of another detector; the run can go on without it.
        """
        if not self.main or not epochs:
            return
        path, nothing = self.file.path, self.file.empty
        there = nothing[:0]
        try:
            if path.exists():
                there = SpectrumCounts.load(path)[:epochs]
                self.file.add(there)
        except GhmdetError as error:
            raise GhmdetError(
                f"{path}: damaged, or of another detector: remove it, and the run goes on without its counts of"
                " the epochs until now"
            ) from error
        for _ in range(epochs - len(there.pictures)):
            self.file.add(nothing)
        self.file.write()

    def end_epoch(self) -> SpectrumCounts:
        """Write the epoch that is over, which rank 0 gets, and begin the next. Every rank must call it."""
        self.load_state_dict(self.state_dict())
        over = self.sums.counts()
        self.load_state_dict({})
        if self.main:
            self.file.add(over)
            self.file.write()
        return over

    def state_dict(self) -> dict[str, Tensor]:
        """The counts of the unfinished epoch, all ranks summed, on the CPU. Every rank must call it."""
        return {name: sum_over_ranks(table).to("cpu", copy=True) for name, table in self.sums.tables.items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Go on with such counts, which rank 0 takes over for all; nothing is counted yet where there are none."""
        for name, table in self.sums.tables.items():
            table.zero_()
            if self.main and name in state:
                table.copy_(state[name])


class Measured(NamedTuple):
    """What a pass saw."""

    spectrum: SpectrumCounts
    """The counts, one epoch."""
    results: list[dict[str, Any]]
    """The detections as COCO results."""
    seen: Floats
    """For each labelled object, picture by picture, crowds left out: the best score that an anchor answering for it
    gives each class, [N, K]; 0 where none answers."""


class Look(NamedTuple):
    """What a detector sees in one picture: `results` as in `Measured`, and `seen` of its labels, [n, K]."""

    results: list[dict[str, Any]]
    seen: Floats


def measure_spectrum(
    detector: Detector,
    data: DetectionData,
    *,
    pictures: int | None = None,
    workers: int = 0,
    advance: Callable[[int], None] = lambda pictures: None,
) -> Measured:
    """What a pass of a detector over a data set sees, without augmentation, in float32; crowds are nothing to find.

    pictures: only the first so many. workers: processes that read pictures. advance: called with the number of
    pictures just finished. Raises as `look`.
    """
    model = detector.model
    sums = SpectrumSums(model.classes, model.config.strides, model.device)
    results: list[dict[str, Any]] = []
    seen = [np.zeros((0, len(model.classes)))]
    for one in islice(look(detector, data, sums, workers=workers), pictures):
        results += one.results
        seen.append(one.seen)
        advance(1)
    return Measured(sums.counts(), results, np.concatenate(seen))


@torch.inference_mode()
def look(
    detector: Detector, data: DetectionData, sums: SpectrumSums | None = None, *, workers: int = 0
) -> Iterator[Look]:
    """What a detector sees in each picture of a data set, one after the other; the examples are counted in `sums`.

    Pictures go one by one: in a batch the smaller ones are padded, and the padding's anchors would count.

    Raises:
        CheckpointError: the detector gives no numbers (NaN), naming the picture.
        DataError: a picture that cannot be read.
    """
    model = detector.model
    config = model.config
    sums = sums or SpectrumSums(model.classes, config.strides, model.device)
    dataset = DetectionDataset(data, EvalTransforms(config.min_size, config.max_size), cache=False)
    loader = make_loader(dataset, batch_size=1, shuffle=False, workers=workers)
    for number, (images, targets) in enumerate(loader):
        batch = model.preprocess([image.to(model.device) for image in images])
        logits, deltas = model.forward_raw(batch.images)
        wanted = model.assign(targets, batch)
        anchors, level_counts = make_anchors(config, *batch.images.shape[-2:], batch.images.device)
        sums.add(logits, wanted.labels, deltas - encode(wanted.boxes, anchors), level_counts)
        try:
            sums.check()
        except GhmdetError as error:
            raise CheckpointError(
                f"the detector is broken, its {error} on {data.records[number].path}: give another checkpoint"
            ) from None
        seen = _best_scores(logits[0], wanted, len(targets[0]["labels"]))
        found = model.postprocess(logits, deltas, batch)
        yield Look(original_results(found[0], images[0], targets[0], data.category_ids), seen)


def _best_scores(logits: Tensor, wanted: AnchorTargets, objects: int) -> Floats:
    """The best score that an anchor of one picture gives each of its `objects`: logits [A, K] -> [objects, K]."""
    answering = (wanted.rows[0] >= 0).nonzero()[:, 0]
    scores = logits[answering].float().sigmoid()
    best = scores.new_zeros(objects, logits.shape[1])
    best.scatter_reduce_(0, wanted.rows[0, answering, None].expand_as(scores), scores, "amax")
    return best.double().cpu().numpy()
