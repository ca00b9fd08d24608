"""COCO annotations and results as columns of numbers, checked; the first mistake is named."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ghmdet.errors import DataError

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class CocoTables:
    """Annotations (`gt_`, n rows) and results (`dt_`, m rows), with ranks 0, 1 … in ascending order for the ids.

    images: how many there are. labels: each class's name. image, class: ranks. box: xywh pixels [., 4].
    """

    images: int
    labels: list[str]
    gt_image: Ints
    gt_class: Ints
    gt_box: Floats
    gt_area: Floats
    crowd: Flags
    dt_image: Ints
    dt_class: Ints
    dt_box: Floats
    dt_score: Floats


def read_tables(
    annotations: Path | str | Mapping[str, Any], results: Path | str | Sequence[Mapping[str, Any]]
) -> CocoTables:
    """The columns of COCO annotations and results, given as files or as their content.

    Raises:
        DataError: names the file, the record, the value and the mend of the first mistake.
    """
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
    return CocoTables(
        images=len(image_ids),
        labels=[label for _, label in sorted(categories.items())],
        gt_image=gt_image,
        gt_class=gt_class,
        gt_box=gt_box,
        gt_area=gt_area,
        crowd=crowd,
        dt_image=dt_image,
        dt_class=dt_class,
        dt_box=_boxes(found, where),
        dt_score=_column(found, "score", where),
    )


# ---- whole columns at once; only a failure looks for its record


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
