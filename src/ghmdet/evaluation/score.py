"""COCO average precision of a results list against annotations, and what its scores are worth."""

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from json import loads
from pathlib import Path
from typing import Any, TypedDict

import numpy as np

from ghmdet.errors import GhmdetError
from ghmdet.evaluation.matching import ClassMatches, counted, evaluate, match, reliability
from ghmdet.evaluation.tables import Annotations, CocoTables, Flags, Floats, Results, read_tables
from ghmdet.files import require_ending, write_atomic
from ghmdet.words import many

SUMMARY = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")
THRESHOLD = 0.5  # where users of detectors cut
_CLASS = ("class", "AP", "AP50", "boxes", "images")
_SCORES = ("scores", "ECE", "precision", "recall", "F1", "best", "at")
_LEGEND = (
    "AP, AR: mean over IoU .50 to .95; AP50, AP75: at that IoU; s, m, l: areas to 32², 96², above\n"
    "AR1, AR10, AR100: with that many detections per image and class; -: nothing to measure it on\n"
    "scores, at IoU .50: ECE, expected calibration error in 10 bins, -: a score is not in 0..1; precision, recall, F1\n"
    "of the detections that score at least .5; best: the highest F1, at that score"
)


class ScoreUse(TypedDict):
    """How scores can be used, at IoU .50; None where there are no detections or no boxes to find.

    ECE: expected calibration error; None also where any score lies outside 0..1.
    precision, recall, F1: of the detections that score at least .5; precision is None where there are none.
    best_F1, best_threshold: the highest F1, and the score to keep for it; the latter is None where nothing hits.
    """

    ECE: float | None
    precision: float | None
    recall: float | None
    F1: float | None
    best_F1: float | None
    best_threshold: float | None


class ClassMetrics(TypedDict):
    """One class's average precision, the images that show it, its boxes (crowds not counted), its scores' use."""

    AP: float | None
    AP50: float | None
    images: int
    boxes: int
    scores: ScoreUse


@dataclass(frozen=True)
class Metrics:
    """COCO's twelve box metrics in 0..1, None where the annotations hold nothing to measure it on.

    scores: what the scores are worth, all classes' detections taken together. problems: each record of the annotations
    that was left out or mended, and why.
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
    problems: list[str]

    def to_dict(self) -> dict[str, Any]:
        """The metrics as plain values, ready for JSON: the twelve, the counts, scores, per_class by name, problems."""
        return asdict(self)

    def save_json(self, path: Path | str) -> Path:
        """Writes to_dict() to `path`, whole or not at all, and returns the path; raises OSError."""
        return write_atomic(path, json.dumps(self.to_dict(), indent=1, ensure_ascii=False) + "\n")

    def table(self) -> str:
        """The metrics as lines of plain text for a terminal."""
        counts = f"{many(self.images, 'image')}, {many(self.boxes, 'box/boxes')}, {many(self.detections, 'detection')}"
        if self.problems:
            counts += f"\nannotations left out or mended: {len(self.problems)}, first: {self.problems[0]}"
        classes = self.per_class.items()
        uses = [("all classes", self.scores), *((name, one["scores"]) for name, one in classes)]
        halves = SUMMARY[:6], SUMMARY[6:]
        tables: list[Sequence[Sequence[Any]]] = [[("", *h), ("", *map(vars(self).get, h))] for h in halves]
        tables += [
            [_CLASS, *((name, one["AP"], one["AP50"], one["boxes"], one["images"]) for name, one in classes)],
            [_SCORES, *((name, *use.values()) for name, use in uses)],
        ]
        return "\n\n".join([counts, *map(_aligned, tables), _LEGEND])


def _aligned(rows: Sequence[Sequence[Any]]) -> str:
    """Lines of a name and values below the first line, their heads; None is shown as -."""
    width = max(len(row[0]) for row in rows)
    widths = [max(8, len(head) + 2) for head in rows[0][1:]]
    lines = []
    for name, *values in rows:
        shown = ("-" if v is None else f"{v:.3f}" if isinstance(v, float) else str(v) for v in values)
        lines.append(f"{name:<{width}}" + "".join(f"{v:>{w}}" for v, w in zip(shown, widths, strict=True)))
    return "\n".join(lines)


def score(annotations: Annotations, results: Results) -> Metrics:
    """COCO's average precision and recall of boxes, equal to pycocotools' COCOeval(iouType="bbox").

    Args:
        annotations: a COCO annotations file or its content: `images` [{id}], `categories` [{id, name}] and
            `annotations` [{image_id, category_id, bbox [x, y, width, height] in pixels, iscrowd, area}].
            Without `area` it is width × height, without `iscrowd` it is 0; `ignore` counts as `iscrowd`. They are read
            as for training: a record that makes no sense is left out and named in `problems`.
        results: a COCO results file or its content, [{image_id, category_id, bbox, score}]. An empty
            list scores 0.

    Returns:
        The twelve metrics, each class's AP, and what the scores are worth. A crowd box is nothing to find, and what
        is found in it is no mistake.

    Raises:
        DataError: the annotations are no COCO annotations; or it names the file, the record, the value and the mend of
            the first mistake in the results.

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
    return metrics_of(tables, evaluation.eval, match(tables, evaluate(tables, at=[0.5])))


def score_files(
    annotations: Path, results: Path, /, *, json: Path | None = None, say: Callable[[str], None] = print
) -> Metrics:
    """Score a COCO results file against COCO annotations.

    Args:
        annotations: COCO annotations (the truth).
        results: COCO results (what was detected).
        json: File to write the metrics to, as JSON.
        say: Takes the table.
    """
    if json:
        require_ending("--json", json, ".json")
        if json.is_file() and not _is_metrics(json):
            raise GhmdetError(
                f"--json {json}: would be replaced, and is no metrics file of `ghmdet score`: give another name"
            )
    metrics = score(annotations, results)
    if json:
        metrics.save_json(json)
    say(metrics.table())
    return metrics


def _is_metrics(path: Path) -> bool:
    with suppress(ValueError):
        there = loads(path.read_text(encoding="utf-8"))
        own = isinstance(there, dict) and {*SUMMARY, "per_class"} <= there.keys()
        # Those of a training and of `ghmdet val` speak of what lies beside them.
        return own and "checkpoint" not in there and not path.with_name("run.json").exists()
    return False


def metrics_of(tables: CocoTables, arrays: Mapping[str, Floats], half: Sequence[ClassMatches]) -> Metrics:
    """The metrics, from an evaluation's accumulated `arrays` and each class's matches at IoU .50."""
    # precision [IoU 10, recall 101, class, size (all, s, m, l), detections (1, 10, 100)]; recall lacks axis 1
    precision, recall = arrays["precision"], arrays["recall"]
    boxes = sum(int(one.boxes.sum()) for one in half)
    return Metrics(
        AP=_mean(precision[..., 0, 2]),
        AP50=_mean(precision[0, ..., 0, 2]),
        AP75=_mean(precision[5, ..., 0, 2]),
        **{f"AP{size}": _mean(precision[..., i, 2]) for i, size in enumerate("sml", start=1)},
        **{f"AR{most}": _mean(recall[..., 0, i]) for i, most in enumerate((1, 10, 100))},
        **{f"AR{size}": _mean(recall[..., i, 2]) for i, size in enumerate("sml", start=1)},
        images=len(tables.truth.images),
        boxes=boxes,
        detections=len(tables.dt_score),
        scores=score_use(*counted(half)[:2], boxes),
        per_class={
            label: ClassMetrics(
                AP=_mean(precision[:, :, k, 0, 2]),
                AP50=_mean(precision[0, :, k, 0, 2]),
                images=int((half[k].boxes > 0).sum()),
                boxes=int(half[k].boxes.sum()),
                scores=score_use(*counted([half[k]])[:2], int(half[k].boxes.sum())),
            )
            for k, label in enumerate(tables.labels)
        },
        problems=[str(problem) for problem in tables.truth.problems],
    )


def _mean(values: Floats) -> float | None:
    defined = values[values > -1]  # -1 marks what has no ground truth
    return float(defined.mean()) if defined.size else None


def score_use(scores: Floats, hit: Flags, boxes: int) -> ScoreUse:
    """Precision, recall and F1 = 2 hits / (kept + boxes) of detections kept by score.

    Args:
        scores: of all detections [n], in any order.
        hit: which of them found a box [n]; each box is found once, by the best of its detections.
        boxes: how many there were to find.

    >>> use = score_use(np.array([0.9, 0.8, 0.4]), np.array([True, False, True]), boxes=2)
    >>> use["F1"], use["best_F1"], use["best_threshold"]
    (0.5, 0.8, 0.4)
    """
    if not len(scores) or not boxes:
        return ScoreUse(ECE=None, precision=None, recall=None, F1=None, best_F1=None, best_threshold=None)
    order = np.argsort(-scores)
    falling, hits = scores[order], np.cumsum(hit[order])
    f1 = 2 * hits / (np.arange(1, len(scores) + 1) + boxes)
    f1[:-1][falling[1:] == falling[:-1]] = 0  # equal scores are kept together
    best = int(f1.argmax())
    kept = int((scores >= THRESHOLD).sum())
    found = int(hits[kept - 1]) if kept else 0
    calibrated = reliability(scores, hit)
    return ScoreUse(
        ECE=calibrated and calibrated["ECE"],
        precision=found / kept if kept else None,
        recall=found / boxes,
        F1=2 * found / (kept + boxes),
        best_F1=float(f1[best]),
        best_threshold=float(falling[best]) if hits[-1] else None,
    )
