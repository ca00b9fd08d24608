"""Whether an exported detector detects what PyTorch does, on pictures."""

from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ghmdet import runtime
from ghmdet.engine.detect import Detector
from ghmdet.errors import GhmdetError
from ghmdet.models.preprocess import Batch, scale_boxes


class Tolerance(NamedTuple):
    """How far an exported detector may be from PyTorch's in fp32.

    box: pixels of the scaled picture. score: in 0..1. least: detections that score less are not compared. share: of
    those compared, so many must be as near as that.
    """

    box: float
    score: float
    least: float = 0.0
    share: float = 1.0


Precision = Literal["fp32", "fp16", "int8"]
TOLERANCES: dict[Precision, Tolerance] = {
    "fp32": Tolerance(0.5, 1e-3),
    "fp16": Tolerance(1.0, 0.02, runtime.THRESHOLD, 0.95),
    "int8": Tolerance(5.0, 0.1, runtime.THRESHOLD, 0.9),
}
ROUNDING, TRIES = 1e-4, 8
"""By how much (standard deviation) logits and box offsets are changed to see what hangs on it, and how often."""
Outputs = Callable[[NDArray[np.uint8]], tuple[NDArray[Any], ...]]
"""What an exported detector gives for a picture [h, w, 3]."""


class Alike(NamedTuple):
    """How far an exported detector is from PyTorch's.

    box, score: the largest differences among the share of detections that `TOLERANCES` asks for, in pixels of the
    scaled picture (offsets if raw) and in 0..1. compared: how many scores. unsteady: detections left out, which depend
    on rounding in PyTorch too.
    """

    box: float
    score: float
    compared: int
    unsteady: int = 0


def compare(
    detector: Detector,
    outputs: Outputs,
    about: runtime.About,
    pictures: Sequence[NDArray[np.uint8]],
    advance: Callable[[int], None] = lambda pictures: None,
) -> Alike:
    """How far boxes and scores of an exported detector are from PyTorch's on pictures [h, w, 3].

    In fp32 a detection that PyTorch itself makes otherwise when the network's numbers are rounded otherwise is not
    compared: of candidates of nearly one score, which comes first decides what soft-NMS leaves of the others.
    advance: called with 1 before each picture.

    Raises:
        GhmdetError: more than the tolerance, a detection that only one of them has, or numbers that are not finite.
    """
    limits = TOLERANCES[about.precision]
    boxes, scores, unsteady = [np.zeros(0)], [np.zeros(0)], 0
    sure, nothing = 0.0, True  # the best score of PyTorch, and whether the file finds nothing
    for picture in pictures:
        advance(1)
        image = torch.from_numpy(picture).permute(2, 0, 1).float() / 255
        with torch.inference_mode():
            batch = detector.model.preprocess([image])
            logits, deltas = detector.model.forward_raw(batch.images)
        found = outputs(picture)
        if not all(torch.isfinite(one).all() for one in (logits, deltas)):
            raise GhmdetError(
                "not exported: the network gives numbers that are not finite: give another checkpoint"
            )
        if not all(np.isfinite(one).all() for one in found):
            raise _unlike_error("gives numbers that are not finite", about)
        if about.outputs == "raw":
            own, theirs = logits.sigmoid().numpy(), 1 / (1 + np.exp(-found[0]))
            compared = np.maximum(own, theirs) >= limits.least
            scores.append(np.abs(own - theirs)[compared])
            boxes.append(np.abs(deltas.numpy() - found[1])[compared.any(axis=-1)].ravel())
            continue
        seen = _detections(detector, logits, deltas, batch)
        sure = max(sure, float(seen[1].max())) if len(seen[1]) else sure
        nothing &= not len(found[1])
        unlike = _unlike(seen, found, limits)
        beyond = _beyond(unlike, limits)
        if limits.share == 1 and beyond.any():
            changing, more = _unsteady(detector, logits, deltas, batch, limits)
            own, added = beyond[: len(changing)] & changing, beyond[len(changing) :]
            left_out = np.concatenate((own, added & (added.sum() <= more)))
            unlike, unsteady = unlike[~left_out], unsteady + int(left_out.sum())
        boxes.append(unlike[:, 0])
        scores.append(unlike[:, 1])
    differences = [np.concatenate(each) for each in (boxes, scores)]
    pixels, certainty = (float(np.quantile(one, limits.share)) if len(one) else 0.0 for one in differences)
    if not (pixels <= limits.box and certainty <= limits.score):
        raise _unlike_error(
            f"would not detect what PyTorch does (boxes differ by {pixels:.2g} pixels, scores by {certainty:.2g})",
            about,
        )
    if about.outputs != "raw" and nothing and sure > detector.model.config.score_threshold + limits.score:
        raise _unlike_error(f"finds nothing where PyTorch finds detections of scores up to {sure:.2g}", about)
    return Alike(pixels, certainty, len(differences[1]), unsteady)


def _detections(detector: Detector, logits: Tensor, deltas: Tensor, batch: Batch) -> tuple[NDArray[Any], ...]:
    """PyTorch's boxes (pixels of the scaled picture), scores and labels of one picture."""
    with torch.inference_mode():
        seen = detector.model.postprocess(logits, deltas, batch)[0]
    scaled = scale_boxes(seen["boxes"], batch.original_sizes[0], batch.sizes[0])
    return scaled.numpy(), seen["scores"].numpy(), seen["labels"].numpy()


def _unsteady(
    detector: Detector, logits: Tensor, deltas: Tensor, batch: Batch, limits: Tolerance
) -> tuple[NDArray[np.bool_], int]:
    """Which of PyTorch's own detections change by more than the limits when its numbers change by `ROUNDING`, and the
    most that then are new.
    """
    seen, more = _detections(detector, logits, deltas, batch), 0
    changing = np.zeros(len(seen[1]), dtype=bool)
    for seed in range(TRIES):
        random = torch.Generator().manual_seed(seed)
        scores, boxes = (
            one + ROUNDING * torch.randn(one.shape, generator=random) for one in (logits, deltas)
        )
        unlike = _unlike(seen, _detections(detector, scores, boxes, batch), limits)
        beyond = _beyond(unlike, limits)
        changing |= beyond[: len(changing)]
        more = max(more, int(beyond[len(changing) :].sum()))
    return changing, more


def _beyond(unlike: NDArray[Any], limits: Tolerance) -> NDArray[np.bool_]:
    return np.asarray((unlike > (limits.box, limits.score)).any(axis=1))


def _unlike_error(what: str, about: runtime.About) -> GhmdetError:
    """Why a file is refused, and what can be done about it."""
    mend = {
        "fp32": "please report it with the versions of torch and onnxruntime",
        "fp16": "the range of the network's numbers does not fit 16 bits: take --precision fp32 or int8",
        "int8": "give --calibrate pictures like those to be looked at, or another --precision",
    }
    return GhmdetError(f"not exported: the file {what}: {mend[about.precision]}")


def _unlike(
    own: Sequence[NDArray[Any]], others: Sequence[NDArray[Any]], limits: Tolerance
) -> NDArray[np.float64]:
    """The differences [n, 2] of box and score between detections that mean the same.

    A score that has no partner is a difference as a whole.
    """
    boxes, scores, labels = own
    free = np.ones(len(others[1]), bool)
    unlike = []
    for box, own_score, label in zip(boxes, scores, labels, strict=True):
        distance = np.abs(others[0] - box).max(axis=1, initial=0)
        able = np.flatnonzero(free & (others[2] == label) & (np.abs(others[1] - own_score) <= limits.score))
        found = (0.0, float(own_score))
        if len(able):
            partner = able[distance[able].argmin()]
            free[partner] = False
            found = float(distance[partner]), float(abs(others[1][partner] - own_score))
        if own_score >= limits.least:
            unlike.append(found)
    unlike += [(0.0, float(one)) for one in others[1][free] if one >= limits.least]
    return np.array(unlike).reshape(-1, 2)
