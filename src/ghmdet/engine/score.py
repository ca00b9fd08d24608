"""COCO average precision of a results list against annotations: the only module that imports hotcoco."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypedDict

import hotcoco
import numpy as np
import numpy.typing as npt

from ghmdet.errors import DataError
from ghmdet.files import write_atomic

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]

SUMMARY = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")
_LEGEND = (
    "AP, AR: mean over IoU .50 to .95; AP50, AP75: at that IoU; s, m, l: areas to 32², 96², above\n"
    "AR1, AR10, AR100: with that many detections per image and class; -: nothing to measure it on"
)


class ClassMetrics(TypedDict):
    """One class's average precision, the images that show it and its boxes (crowds not counted)."""

    AP: float | None
    AP50: float | None
    images: int
    boxes: int


@dataclass(frozen=True)
class Metrics:
    """COCO's twelve box figures in 0..1, None where the annotations hold nothing to measure it on."""

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
    per_class: dict[str, ClassMetrics]

    def to_dict(self) -> dict[str, Any]:
        """The figures as plain values, ready for JSON: the twelve, the counts, and per_class by name."""
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
        The twelve figures and each class's AP. A crowd box is nothing to find, and what is found in it is
        no mistake.

    Raises:
        DataError: names the file, the record, the value and the mend of the first mistake.

    >>> truth = {"images": [{"id": 1}], "categories": [{"id": 7, "name": "bus"}],
    ...          "annotations": [{"image_id": 1, "category_id": 7, "bbox": [10, 10, 50, 40]}]}
    >>> found = [{"image_id": 1, "category_id": 7, "bbox": [10, 10, 50, 34], "score": 0.9}]
    >>> metrics = score(truth, found)  # the boxes' IoU is .85: a hit at .5, .55 .. .85, a miss at .9 and .95
    >>> round(metrics.AP, 3), round(metrics.AP50, 3), metrics.APl
    (0.8, 1.0, None)
    """
    judged = _judge(annotations, results)
    judged.evaluation.accumulate()
    arrays = judged.evaluation.eval
    assert arrays is not None
    counts = []
    for k in range(len(judged.labels)):
        mine = ~judged.crowd & (judged.gt_class == k)
        counts.append((len(np.unique(judged.gt_image[mine])), int(mine.sum())))
    return Metrics(
        **_summary(arrays["precision"], arrays["recall"]),
        images=judged.images,
        boxes=int((~judged.crowd).sum()),
        detections=judged.detections,
        per_class=_per_class(arrays["precision"], judged.labels, counts),
    )


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
    judged = _judge(annotations, results)
    found: list[list[tuple[int, Any]]] = [[] for _ in judged.labels]
    for entry in judged.evaluation.evalImgs:
        if entry is not None and entry["aRng"] == judged.evaluation.params.areaRng[_ALL]:
            found[entry["category_id"] - 1].append((entry["image_id"] - 1, entry))
    matched = {}
    for k, label in enumerate(judged.labels):
        entries = sorted(found[k], key=lambda pair: pair[0])
        sizes = [len(entry["dtScores"]) for _, entry in entries]
        image = np.repeat(np.array([place for place, _ in entries], dtype=np.int64), sizes)
        scores = np.array([value for _, entry in entries for value in entry["dtScores"]])
        order = np.argsort(-scores, kind="stable")
        boxes = np.bincount(judged.gt_image[~judged.crowd & (judged.gt_class == k)], minlength=judged.images)
        matched[label] = ClassMatches(
            image[order], _flags(entries, "dtMatched")[:, order], _flags(entries, "dtIgnore")[:, order], boxes
        )
    return matched


def _flags(entries: Sequence[tuple[int, Any]], key: str) -> Flags:
    parts = [np.array(entry[key], dtype=bool).reshape(10, -1) for _, entry in entries]
    return np.concatenate([np.zeros((10, 0), dtype=bool), *parts], axis=1)


@dataclass(frozen=True)
class _Judged:
    evaluation: Any
    labels: list[str]
    images: int
    detections: int
    gt_image: Ints
    gt_class: Ints
    crowd: Flags


def _judge(
    annotations: Path | str | Mapping[str, Any], results: Path | str | Sequence[Mapping[str, Any]]
) -> _Judged:
    truth, name = _load(annotations, "annotations")
    image_ids, categories = _images(truth, name), _categories(truth, name)
    records = _list(truth, "annotations", name)
    where = f"{name}: annotations"
    gt_image = _ranks(records, "image_id", where, image_ids, "the file's images")
    gt_class = _ranks(records, "category_id", where, list(categories), "the file's categories")
    gt_box = _boxes(records, where)
    product = (gt_box[:, 2] * gt_box[:, 3]).tolist()
    areas = [{"area": r.get("area", a)} for r, a in zip(records, product, strict=True)]
    gt_area = _column(areas, "area", where)
    crowd = np.array([bool(r.get("iscrowd")) for r in records], dtype=bool)

    found, name = _load(results, "results")
    if not isinstance(found, Sequence) or isinstance(found, str):
        raise DataError(
            f"{name}: {_kind(found)} where a list of {{image_id, category_id, bbox, score}} belongs: "
            "give the COCO results list itself"
        )
    where = f"{name}: results"
    dt_image = _ranks(found, "image_id", where, image_ids, "the annotations' images")
    dt_class = _ranks(found, "category_id", where, list(categories), "the annotations' categories")
    dt_box, dt_score = _boxes(found, where), _column(found, "score", where)

    # Ids become ranks 1..n, annotations' too: only their order matters (it settles ties between images),
    # float64 cannot hold every id, and pycocotools misjudges an annotation whose id is 0.
    coco = hotcoco.COCO.from_arrays(
        [{"id": i + 1} for i in range(len(image_ids))],
        [{"id": k + 1, "name": str(k)} for k in range(len(categories))],
        gt_image + 1,
        gt_class + 1,
        gt_box,
        area=gt_area,
        iscrowd=crowd.astype(np.int64),
    )
    detections = np.column_stack([dt_image + 1, dt_box, dt_score, dt_class + 1])
    evaluation = hotcoco.COCOeval(coco, coco.load_res(detections), "bbox")
    evaluation.evaluate()
    labels = [label for _, label in sorted(categories.items())]
    return _Judged(evaluation, labels, len(image_ids), len(found), gt_image, gt_class, crowd)


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
    precision: Floats, labels: Sequence[str], counts: Sequence[tuple[int, int]]
) -> dict[str, ClassMetrics]:
    metrics: dict[str, ClassMetrics] = {}
    for k, (label, (images, boxes)) in enumerate(zip(labels, counts, strict=True)):
        mine = precision[:, :, k, _ALL, _BEST_100]
        metrics[label] = {"AP": _mean(mine), "AP50": _mean(mine[0]), "images": images, "boxes": boxes}
    return metrics


def _mean(values: Floats) -> float | None:
    defined = values[values > -1]  # -1 marks what has no ground truth
    return float(defined.mean()) if defined.size else None


def _show(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


# ---- reading and checking: whole columns at once; only a failure looks for its record


def _load(source: Any, kind: str) -> tuple[Any, str]:
    if not isinstance(source, (str, Path)):
        return source, f"{kind} given in memory"
    path = Path(source)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read ({error}): give a COCO {kind} file") from None
    if not text.strip():
        raise DataError(
            f"{path}: the file is empty: give a COCO {kind} file (no detections at all are written [])"
        )
    try:
        return json.loads(text), str(path)
    except json.JSONDecodeError as error:
        raise DataError(f"{path}: not JSON ({error}): give a COCO {kind} file") from None


def _kind(value: Any) -> str:
    if isinstance(value, Mapping):
        return f"an object with {', '.join(map(repr, list(value)[:5])) or 'no keys'}"
    return f"{type(value).__name__} {_clip(value)}"


def _clip(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _list(truth: Any, key: str, name: str) -> Sequence[Mapping[str, Any]]:
    if not isinstance(truth, Mapping):
        raise DataError(
            f"{name}: {_kind(truth)} where an object with 'images', 'annotations' and 'categories' belongs: "
            "give COCO annotations"
        )
    if not isinstance(truth.get(key), Sequence):
        raise DataError(
            f"{name}: no list '{key}' (it has {', '.join(map(repr, truth))}): give COCO annotations"
        )
    values: Sequence[Mapping[str, Any]] = truth[key]
    return values


def _images(truth: Any, name: str) -> list[int]:
    images = _list(truth, "images", name)
    if not images:
        raise DataError(
            f"{name}: 'images' is empty: list the images that were searched, also those without boxes"
        )
    ids: list[int] = _column(images, "id", f"{name}: images", whole=True).tolist()
    return _unique(ids, f"{name}: images")


def _categories(truth: Any, name: str) -> dict[int, str]:
    categories = _list(truth, "categories", name)
    if not categories:
        raise DataError(f"{name}: 'categories' is empty: list each class as {{id, name}}")
    where = f"{name}: categories"
    ids = _unique(_column(categories, "id", where, whole=True).tolist(), where)
    names = {i: str(category.get("name", i)) for i, category in zip(ids, categories, strict=True)}
    repeated = {label for label, times in Counter(names.values()).items() if times > 1}
    return {i: f"{label} ({i})" if label in repeated else label for i, label in names.items()}


def _unique(ids: list[int], where: str) -> list[int]:
    value, times = Counter(ids).most_common(1)[0]
    if times > 1:
        second = [i for i, other in enumerate(ids) if other == value][1]
        raise DataError(f"{where}[{second}]: 'id' {value} is used twice: give each its own")
    return ids


def _ranks(
    records: Sequence[Mapping[str, Any]], key: str, where: str, known: Sequence[int], what: str
) -> Ints:
    """For each record the place of its id among the known ones in ascending order, [n]."""
    ids, order = _column(records, key, where, whole=True), np.array(sorted(known))
    strange = np.flatnonzero(~np.isin(ids, order))
    if strange.size:
        i = int(strange[0])
        some = ", ".join(map(str, order[:5])) + (", ..." if len(known) > 5 else "")
        raise DataError(
            f"{where}[{i}]: '{key}' {int(ids[i])} is not among {what} ({some}; {strange.size} such records): "
            "use the ids of the annotations file"
        )
    return np.searchsorted(order, ids).astype(np.int64)


def _boxes(records: Sequence[Mapping[str, Any]], where: str) -> Floats:
    boxes = _column(records, "bbox", where, (4,))
    inverted = np.flatnonzero((boxes[:, 2:] < 0).any(axis=1))
    if inverted.size:
        i = int(inverted[0])
        raise DataError(
            f"{where}[{i}]: 'bbox' {boxes[i].tolist()} has a negative size: write [x, y, width, height]"
        )
    return boxes


def _column(
    records: Sequence[Mapping[str, Any]],
    key: str,
    where: str,
    shape: tuple[int, ...] = (),
    *,
    whole: bool = False,
) -> npt.NDArray[Any]:
    """The finite (if `whole`, integral) values of `key` [n, *shape]; raises at the first record without."""
    try:
        values = np.array([record[key] for record in records])
        if not len(records):
            values = values.reshape(0, *shape)
        right = values.dtype.kind in "iuf" and values.shape[1:] == shape
    except (KeyError, TypeError, ValueError, IndexError):
        right = False
    if right and np.isfinite(values).all() and not (whole and (values != np.trunc(values)).any()):
        return values.astype(np.int64 if whole else np.float64)
    for i, record in enumerate(records):
        _check_value(record, key, f"{where}[{i}]", shape, whole)
    raise DataError(f"{where}: the values of '{key}' do not make one table: write plain numbers")


def _check_value(record: Any, key: str, where: str, shape: tuple[int, ...], whole: bool) -> None:
    if not isinstance(record, Mapping):
        raise DataError(f"{where}: {_clip(record)} where an object belongs: write one object a record")
    if key not in record:
        raise DataError(f"{where}: no '{key}' (it has {', '.join(map(repr, record))}): add it")
    value = record[key]
    want = f"a list of {shape[0]} numbers" if shape else "a whole number" if whole else "a number"
    try:
        array = np.array(value)
    except ValueError:  # a ragged list
        array = np.array(None)
    if array.dtype.kind not in "iuf" or array.shape != shape or (whole and np.any(array != np.trunc(array))):
        raise DataError(f"{where}: '{key}' is {_clip(value)}: write {want}")
    if not np.isfinite(array).all():
        raise DataError(f"{where}: '{key}' is {_clip(value)}, which is not finite: write {want}")
