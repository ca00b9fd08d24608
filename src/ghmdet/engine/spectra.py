"""One pass of a trained detector over a data set: its gradient-norm spectrum, and what it detects."""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice
from typing import Any, NamedTuple

import torch

from ghmdet.data import DetectionData, DetectionDataset, eval_transforms, make_loader
from ghmdet.engine.evaluate import original_results
from ghmdet.engine.predict import Detector
from ghmdet.errors import CheckpointError, GhmdetError
from ghmdet.models.anchors import make_anchors
from ghmdet.models.box_coder import encode
from ghmdet.spectrum_counts import SpectrumCounts, count_batch


class Measured(NamedTuple):
    """What a pass saw."""

    spectrum: SpectrumCounts
    """The counts, one epoch."""
    results: list[dict[str, Any]]
    """The detections as COCO results."""


@torch.inference_mode()
def measure_spectrum(
    detector: Detector,
    data: DetectionData,
    *,
    pictures: int | None = None,
    workers: int = 0,
    advance: Callable[[int], None] = lambda pictures: None,
) -> Measured:
    """The spectrum of a detector on a data set, without augmentation, in float32.

    Pictures go one by one: in a batch the smaller ones are padded, and the padding's anchors would count.

    Args:
        detector: the detector.
        data: the pictures; crowd boxes are nothing to find.
        pictures: only the first so many.
        workers: processes that read pictures.
        advance: called with the number of pictures just finished.

    Raises:
        CheckpointError: the detector gives no numbers (NaN), naming the picture.
        DataError: a picture that cannot be read.
    """
    model = detector.model
    config = model.config
    total = SpectrumCounts.empty(model.classes, config.strides)
    results: list[dict[str, Any]] = []
    dataset = DetectionDataset(data, eval_transforms(config.min_size, config.max_size), cache=False)
    loader = make_loader(dataset, batch_size=1, shuffle=False, workers=workers)
    for number, (images, targets) in enumerate(islice(loader, pictures)):
        batch = model.preprocess([image.to(model.device) for image in images])
        logits, deltas = model.forward_raw(batch.images)
        wanted = model.assign(targets, batch)
        anchors, level_counts = make_anchors(config, *batch.images.shape[-2:], batch.images.device)
        differences = deltas - encode(wanted.boxes, anchors)
        try:
            total += count_batch(
                logits, wanted.labels, differences, level_counts, model.classes, config.strides
            )
        except GhmdetError as error:
            raise CheckpointError(
                f"the detector is broken, its {error} on {data.records[number].path}: give another checkpoint"
            ) from None
        found = model.postprocess(logits, deltas, batch)
        results += original_results(found[0], images[0], targets[0], data.category_ids)
        advance(1)
    return Measured(total, results)
