"""COCO annotations and results as columns of numbers, checked; the first mistake of the results is named."""

import itertools
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ghmdet.data.annotations import CocoAnnotations, load_json, read_annotations
from ghmdet.data.values import number, numbers, shown, whole
from ghmdet.errors import DataError

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]
Annotations = Path | str | Mapping[str, Any]  # a COCO annotations file or its content
Results = Path | str | Sequence[Mapping[str, Any]]  # a COCO results file or its content


@dataclass(frozen=True)
class CocoTables:
    """Annotations (`truth` and `gt_`, n rows) and results (`dt_`, m rows).

    labels: each class's name. image, class: ranks 0, 1 … of the ids in ascending order. area: square pixels. box: x, y,
    width, height in pixels [m, 4].
    """

    truth: CocoAnnotations
    labels: list[str]
    gt_image: Ints
    gt_class: Ints
    gt_area: Floats
    dt_image: Ints
    dt_class: Ints
    dt_box: Floats
    dt_score: Floats


def read_tables(annotations: Annotations, results: Results) -> CocoTables:
    """The columns of COCO annotations, as training reads them, and of results.

    Raises:
        DataError: the annotations are no COCO annotations; or it names the file, the record, the value and the mend of
            the first mistake in the results.
    """
    truth = read_annotations(annotations)
    kept = np.array([image_id not in truth.left_out for image_id in truth.images], dtype=bool)
    if not kept.any():
        raise DataError(str(truth.problems[0]))
    listed = {image_id: image for image_id, image in truth.images.items() if image_id not in truth.left_out}
    truth = replace(truth, images=listed, image=(np.cumsum(kept) - 1)[truth.image])
    images: dict[int | None, int] = {image_id: rank for rank, image_id in enumerate(sorted(truth.images))}
    classes: dict[int | None, int] = {category_id: rank for rank, category_id in enumerate(truth.categories)}
    times = Counter(truth.categories.values())
    with np.errstate(over="ignore"):
        product = truth.box[:, 2] * truth.box[:, 3]
    column = partial(_column, *_results(results))
    dt_image = column("image_id", *_rank({**images, **dict.fromkeys(truth.left_out, -1)})).astype(np.int64)
    there = dt_image >= 0
    return CocoTables(
        truth=truth,
        labels=[f"{label} ({i})" if times[label] > 1 else label for i, label in truth.categories.items()],
        gt_image=np.array([images[image_id] for image_id in truth.images])[truth.image],
        gt_class=np.searchsorted(list(truth.categories), truth.category),
        gt_area=np.where(np.isnan(truth.area), product, truth.area),
        dt_image=dt_image[there],
        dt_class=column("category_id", *_rank(classes)).astype(np.int64)[there],
        dt_box=column("bbox", _box, "[x, y, width, height], finite, no size below 0").reshape(-1, 4)[there],
        dt_score=column("score", _finite, "a finite number")[there],
    )


def _results(source: Results) -> tuple[Sequence[Any], str]:
    """The list of results, and its name in errors."""
    content, name = source, "results given in memory"
    if isinstance(source, (str, Path)):
        content, name = load_json(Path(source)), str(source)
    if not isinstance(content, Sequence) or isinstance(content, str):
        raise DataError(
            f"{name}: {shown(content)} where a list of {{image_id, category_id, bbox, score}} belongs: "
            "give the COCO results list itself (no detections at all are written [])"
        )
    return content, name


def _column(records: Sequence[Any], name: str, key: str, read: Callable[[Any], Any], want: str) -> Floats:
    """What `read` makes of each record's `key`; raises for the first that has none or of which it makes None."""
    values = [read(r[key]) if isinstance(r, (dict, Mapping)) and key in r else None for r in records]
    if None in values:
        i = values.index(None)
        here = isinstance(records[i], Mapping) and key in records[i]
        what = f"'{key}' is {shown(records[i][key])}" if here else f"no '{key}' in {shown(records[i])}"
        raise DataError(f"{name}: results[{i}]: {what}: write {want}")
    return np.array(values, dtype=np.float64)


def _rank(ids: Mapping[int | None, int]) -> tuple[Callable[[Any], int | None], str]:
    """The function that reads an id as its rank, and what is wanted, in words."""
    some = [str(number) for number in itertools.islice(ids, 5)] + ["..."] * (len(ids) > 5)
    return lambda value: ids.get(whole(value)), f"one that the annotations have ({', '.join(some)})"


def _finite(value: object) -> float | None:
    found = number(value)
    return found if found is not None and math.isfinite(found) else None


def _box(value: object) -> list[float] | None:
    box = numbers(value)
    return box if box and len(box) == 4 and min(box[2:]) >= 0 and math.isfinite(sum(box)) else None
