"""COCO average precision of a results list against annotations."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypedDict

import numpy as np

from ghmdet.evaluation.matching import BINS, at_half, counted, evaluate
from ghmdet.evaluation.score_use import ScoreUse, score_use
from ghmdet.evaluation.tables import CocoTables, Flags, Floats, Ints, read_tables
from ghmdet.files import write_atomic

SUMMARY = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")
_LEGEND = (
    "AP, AR: mean over IoU .50 to .95; AP50, AP75: at that IoU; s, m, l: areas to 32², 96², above\n"
    "AR1, AR10, AR100: with that many detections per image and class; -: nothing to measure it on\n"
    "scores, at IoU .50: ECE, expected calibration error in 10 bins; precision, recall, F1 of the detections that\n"
    "score at least .5; best: the highest F1, at that score"
)


class ClassMetrics(TypedDict):
    """One class's average precision, the images that show it, its boxes (crowds not counted), its scores' use."""

    AP: float | None
    AP50: float | None
    images: int
    boxes: int
    scores: ScoreUse


@dataclass(frozen=True)
class Metrics:
    """COCO's twelve box figures in 0..1, None where the annotations hold nothing to measure it on.

    scores: what the scores are worth, all classes' detections taken together.
    """

    AP: float | None
    AP50: float | None
    AP75: float | None
    APs: float | None
    APm: float | None
    APl: float | None
    AR1: float | None
    AR10: float | None
    AR100: float | None
    ARs: float | None
    ARm: float | None
    ARl: float | None
    images: int
    boxes: int
    detections: int
    scores: ScoreUse
    per_class: dict[str, ClassMetrics]

    def to_dict(self) -> dict[str, Any]:
        """The figures as plain values, ready for JSON: the twelve, the counts, scores, and per_class by name."""
        return asdict(self)

    def save_json(self, path: Path | str) -> Path:
        """Writes to_dict() to `path`, whole or not at all, and returns the path; raises OSError."""
        return write_atomic(path, json.dumps(self.to_dict(), indent=1, ensure_ascii=False) + "\n")

    def table(self) -> str:
        """The figures as lines of plain text for a terminal."""
        values = asdict(self)
        lines = [f"{self.images} images, {self.boxes} boxes, {self.detections} detections", ""]
        for names in (SUMMARY[:6], SUMMARY[6:]):
            lines += [
                "".join(f"{name:>8}" for name in names),
                "".join(f"{_show(values[n]):>8}" for n in names),
                "",
            ]
        width = max([len("class"), *map(len, self.per_class)])
        lines.append(f"{'class':<{width}}{'AP':>8}{'AP50':>8}{'boxes':>8}{'images':>8}")
        lines += [
            f"{name:<{width}}{_show(c['AP']):>8}{_show(c['AP50']):>8}{c['boxes']:>8}{c['images']:>8}"
            for name, c in self.per_class.items()
        ]
        width = max(width, len("all classes"))
        lines += [
            "",
            f"{'scores':<{width}}{'ECE':>8}{'precision':>11}{'recall':>8}{'F1':>8}{'best':>8}{'at':>8}",
        ]
        uses = [("all classes", self.scores), *((name, c["scores"]) for name, c in self.per_class.items())]
        lines += [
            f"{name:<{width}}{_show(use['ECE']):>8}{_show(use['precision']):>11}{_show(use['recall']):>8}"
            f"{_show(use['F1']):>8}{_show(use['best_F1']):>8}{_show(use['best_threshold']):>8}"
            for name, use in uses
        ]
        return "\n".join([*lines, "", _LEGEND])


def score(
    annotations: Path | str | Mapping[str, Any], results: Path | str | Sequence[Mapping[str, Any]]
) -> Metrics:
    """COCO's average precision and recall of boxes, equal to pycocotools' COCOeval(iouType="bbox").

    Args:
        annotations: a COCO annotations file or its content: `images` [{id}], `categories` [{id, name}] and
            `annotations` [{image_id, category_id, bbox [x, y, width, height] in pixels, iscrowd, area}].
            Without `area` it is width × height, without `iscrowd` it is 0.
        results: a COCO results file or its content, [{image_id, category_id, bbox, score}]. An empty
            list scores 0.

    Returns:
        The twelve figures, each class's AP, and what the scores are worth. A crowd box is nothing to find, and what
        is found in it is no mistake.

    Raises:
        DataError: names the file, the record, the value and the mend of the first mistake.

    >>> truth = {"images": [{"id": 1}], "categories": [{"id": 7, "name": "bus"}],
    ...          "annotations": [{"image_id": 1, "category_id": 7, "bbox": [10, 10, 50, 40]}]}
    >>> found = [{"image_id": 1, "category_id": 7, "bbox": [10, 10, 50, 34], "score": 0.9}]
    >>> metrics = score(truth, found)  # the boxes' IoU is .85: a hit at .5, .55 .. .85, a miss at .9 and .95
    >>> round(metrics.AP, 3), round(metrics.AP50, 3), metrics.APl
    (0.8, 1.0, None)
    """
    tables = read_tables(annotations, results)
    evaluation = evaluate(tables)
    evaluation.accumulate()
    return metrics_of(tables, evaluation.eval, at_half(evaluation))


def metrics_of(tables: CocoTables, arrays: Mapping[str, Floats], half: Any) -> Metrics:
    """The figures of an evaluation: its accumulated `arrays`, and what `at_half` makes of it."""
    counts = []
    for k in range(len(tables.labels)):
        mine = ~tables.crowd & (tables.gt_class == k)
        counts.append((len(np.unique(tables.gt_image[mine])), int(mine.sum())))
    together, each = _uses(half, tables.dt_score, [boxes for _, boxes in counts])
    return Metrics(
        **_summary(arrays["precision"], arrays["recall"]),
        images=tables.images,
        boxes=int((~tables.crowd).sum()),
        detections=len(tables.dt_score),
        scores=together,
        per_class=_per_class(arrays["precision"], tables.labels, counts, each),
    )


def hits(
    annotations: Path | str | Mapping[str, Any], results: Path | str | Sequence[Mapping[str, Any]]
) -> tuple[Floats, Flags]:
    """The score of each detection, and whether it found a box at IoU .50: two of [n], those in crowds left out.

    Arguments and errors as in :func:`score`.
    """
    tables = read_tables(annotations, results)
    _, scores, hit, _ = counted(at_half(evaluate(tables)))
    return scores, hit


@dataclass(frozen=True)
class ClassMatches:
    """One class's detections, best first, and what each is at the ten IoU thresholds .50, .55 … .95.

    image: [n], the place of its image in ascending order of the ids. hit, ignored: [10, n], whether it found a box, and
    whether it counts neither way (it lies in a crowd). boxes: [images], the boxes to find in each image.
    """

    image: Ints
    hit: Flags
    ignored: Flags
    boxes: Ints


def matches(
    annotations: Path | str | Mapping[str, Any], results: Path | str | Sequence[Mapping[str, Any]]
) -> dict[str, ClassMatches]:
    """COCO's matching by class name, of any size and the best 100 detections an image; takes and raises as `score`."""
    tables = read_tables(annotations, results)
    evaluation = evaluate(tables)
    found: list[list[tuple[int, Any]]] = [[] for _ in tables.labels]
    for entry in evaluation.evalImgs:
        if entry is not None and entry["aRng"] == evaluation.params.areaRng[_ALL]:
            found[entry["category_id"] - 1].append((entry["image_id"] - 1, entry))
    matched = {}
    for k, label in enumerate(tables.labels):
        entries = sorted(found[k], key=lambda pair: pair[0])
        sizes = [len(entry["dtScores"]) for _, entry in entries]
        image = np.repeat(np.array([place for place, _ in entries], dtype=np.int64), sizes)
        scores = np.array([value for _, entry in entries for value in entry["dtScores"]])
        order = np.argsort(-scores, kind="stable")
        boxes = np.bincount(tables.gt_image[~tables.crowd & (tables.gt_class == k)], minlength=tables.images)
        matched[label] = ClassMatches(
            image[order], _flags(entries, "dtMatched")[:, order], _flags(entries, "dtIgnore")[:, order], boxes
        )
    return matched


def _flags(entries: Sequence[tuple[int, Any]], key: str) -> Flags:
    parts = [np.array(entry[key], dtype=bool).reshape(10, -1) for _, entry in entries]
    return np.concatenate([np.zeros((10, 0), dtype=bool), *parts], axis=1)


# precision [IoU 10, recall 101, class, size (all, s, m, l), detections (1, 10, 100)]; recall lacks axis 1
_ALL, _BEST_100 = 0, 2


def _summary(precision: Floats, recall: Floats) -> dict[str, float | None]:
    return {
        "AP": _mean(precision[..., _ALL, _BEST_100]),
        "AP50": _mean(precision[0, ..., _ALL, _BEST_100]),
        "AP75": _mean(precision[5, ..., _ALL, _BEST_100]),
        **{f"AP{size}": _mean(precision[..., i, _BEST_100]) for i, size in enumerate("sml", start=1)},
        **{f"AR{most}": _mean(recall[..., _ALL, i]) for i, most in enumerate((1, 10, 100))},
        **{f"AR{size}": _mean(recall[..., i, _BEST_100]) for i, size in enumerate("sml", start=1)},
    }


def _per_class(
    precision: Floats, labels: Sequence[str], counts: Sequence[tuple[int, int]], uses: Sequence[ScoreUse]
) -> dict[str, ClassMetrics]:
    metrics: dict[str, ClassMetrics] = {}
    for k, (label, (images, boxes), use) in enumerate(zip(labels, counts, uses, strict=True)):
        mine = precision[:, :, k, _ALL, _BEST_100]
        metrics[label] = ClassMetrics(
            AP=_mean(mine), AP50=_mean(mine[0]), images=images, boxes=boxes, scores=use
        )
    return metrics


def _uses(half: Any, given: Floats, boxes: Sequence[int]) -> tuple[ScoreUse, list[ScoreUse]]:
    """The use of the scores of all classes together, and of each class, of which there are `boxes` to find."""
    error: float | None = None
    errors: dict[str, float] = {}
    if ((given >= 0) & (given <= 1)).all():
        calibration = half.calibration(n_bins=BINS, iou_threshold=0.5)
        error, errors = calibration["ece"], calibration["per_category"]
    label, scores, hit, _ = counted(half)
    each = []
    for k, number in enumerate(boxes):
        mine = label == k
        each.append(score_use(scores[mine], hit[mine], number, errors.get(str(k))))
    return score_use(scores, hit, sum(boxes), error), each


def _mean(values: Floats) -> float | None:
    defined = values[values > -1]  # -1 marks what has no ground truth
    return float(defined.mean()) if defined.size else None


def _show(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
