"""The gradient-norm spectrum of a trained detector on a data set."""

from __future__ import annotations

from typing import Any

import torch

from ghmdet.data import DetectionData
from ghmdet.engine.predict import Detector, to_tensor
from ghmdet.functional import sigmoid_gradient_norm

BINS = 30


@torch.no_grad()
def measure_spectrum(
    detector: Detector, data: DetectionData, pictures: int, bins: int = BINS
) -> dict[str, Any]:
    """How many examples (an anchor and a class each) lie in each region of the gradient norm g = |p - p*|.

    Args:
        detector: the detector, in float32 on its device.
        data: the pictures; the first ones are measured.
        pictures: how many at most.
        bins: M, the number of unit regions.

    Returns:
        `pictures` measured, and the counts `objects` and `background` [M]: examples whose target is 1, and 0.
    """
    counts = torch.zeros(2, bins, dtype=torch.float64)
    records = data.records[:pictures]
    for record in records:
        target = {
            "boxes": torch.from_numpy(record.boxes[~record.crowd]),
            "labels": torch.from_numpy(record.labels[~record.crowd]),
        }
        batch = detector.model.preprocess([to_tensor(record.path).to(detector.device.type)])
        logits = detector.model.forward_raw(batch.images)[0].flatten(0, 1)  # [A, K]
        labels = detector.model.assign(
            [{name: value.to(logits.device) for name, value in target.items()}], batch
        ).labels.flatten()
        targets = torch.nn.functional.one_hot(labels.clamp(min=0), logits.shape[1] + 1)[:, :-1].float()
        kept = labels >= 0
        norms = sigmoid_gradient_norm(logits, targets)[kept].cpu()
        positive = targets[kept].cpu() > 0.5
        for row, chosen in enumerate((positive, ~positive)):
            counts[row] += torch.histc(norms[chosen], bins, 0, 1)
    objects, background = counts.long().tolist()
    return {"pictures": len(records), "objects": objects, "background": background}
