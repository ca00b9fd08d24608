"""What may be wrong with labels: five kinds of suspicion, each with a score from 0 to 1 that is made of gradient norms.

Everything follows from what a detector that did not learn the labels sees: its detections and, where it can be asked,
what its anchors score at each label. The gradient norm g of a detection where nothing is labelled is its score s; that
of a label is 1 - p, p being the best score that its class gets there. gr is that of a label's coordinates.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray

from ghmdet.data import DetectionData
from ghmdet.engine.detect import Detector
from ghmdet.engine.observation import look
from ghmdet.errors import DataError
from ghmdet.evaluation.hardest import IN_CROWD, Scored, scored
from ghmdet.evaluation.matching import overlaps
from ghmdet.evaluation.tables import Floats, Ints, read_tables

Kind = Literal["missing", "class", "shifted", "spurious", "duplicate"]
KINDS: tuple[Kind, ...] = get_args(Kind)
"""Nothing is labelled where an object is; another class is seen; the box is beside its object; nothing is seen; another
label is on the same object. The first is of a detection, the others of a label."""

ON = 0.5  # the IoU from which on a detection means a label
NEAR = 0.05  # the least IoU of a badly placed label with its object
TWIN = 0.3  # the least IoU of two labels of one object
LEAST = 0.2  # the least score that is told of
Box = tuple[float, float, float, float]
USUAL = 0.75  # the quantile of the differences of coordinates that is usual for a class


class Label(NamedTuple):
    """An object: its class (a place among the data's classes) and its box x1 y1 x2 y2 in pixels."""

    label: int
    box: Box


class Suspicion(NamedTuple):
    """One thing that may be wrong in picture number `picture` of the data.

    row: the place of the label among those of its picture, None where it is missing. given: the label, None where it is
    missing. suggested: what it should be, None where it should go. score: from 0 to 1. g: the gradient norm of the
    example that shows it. gr: that of the worst of the label's four coordinates against the detector's box, scaled by
    what is usual for the class and the size; None where there is none. likeliest: whether it is in the one list over
    all, where a label and an object have one suspicion each.
    """

    picture: int
    kind: Kind
    row: int | None
    given: Label | None
    suggested: Label | None
    score: float
    g: float
    gr: float | None
    likeliest: bool = True


class Judged(NamedTuple):
    """What is seen of the m labels of a picture, crowds left out, and of the n places that may lack one.

    rows [m]: their places in the record. scores [m, 4]: of the kinds but "missing"; gr is not in them yet. g [m].
    place [m, 4]: the detection beside each label that it may belong to. offset, on_it [m, 4]: how far off that one and
    the best one on the label are, in their sides and as logarithms; NaN where there is none. other [m]: the likeliest
    other class.
    missing: the detections [n]; their scores are those of the kind. sure [n]: the detections' own scores.
    """

    rows: Ints
    scores: Floats
    g: Floats
    place: Floats
    offset: Floats
    on_it: Floats
    other: Ints
    missing: Scored
    sure: Floats


def audit(
    source: Detector | Sequence[Mapping[str, Any]],
    data: DetectionData,
    *,
    advance: Callable[[int], None] = lambda pictures: None,
) -> list[Suspicion]:
    """What may be wrong with the labels of a data set, the likeliest first.

    First comes one list over all, where a label has one suspicion, of its likeliest kind. Behind it come those of its
    other kinds (`likeliest` is False), again the likeliest first. All suspicions of one kind, sorted by score, are the
    list of that kind. A score below .2 is left out.

    Args:
        source: a detector that was not trained on these labels, or anyone's detections as COCO results. From detections
            alone, a class that none of them gives has score 0 at a label: keep faint ones too (from .01 on), and more
            than one class at a place. What the anchors at a label score is then missing for "class" and "spurious".
        data: the pictures, and what is labelled in them; classes in the detector's order.
        advance: called with the number of pictures just judged.

    Raises:
        DataError: a picture that cannot be read; results of other pictures or classes, or with another mistake.
        CheckpointError: the detector gives no numbers (NaN).
    """
    return rank(judge_all(source, data, advance), data)


def judge_all(
    source: Detector | Sequence[Mapping[str, Any]],
    data: DetectionData,
    advance: Callable[[int], None] = lambda pictures: None,
    keep: Callable[[Sequence[Mapping[str, Any]]], None] = lambda results: None,
) -> Iterator[tuple[int, Judged]]:
    """The image id of each picture and what is seen there; arguments and errors as in `audit`.

    keep: takes what a detector finds in each picture, as COCO results.
    """
    if isinstance(source, Detector):

        def looks(detector: Detector) -> Iterator[tuple[Scored, Floats | None]]:
            for each in look(detector, data):
                keep(each.results)
                yield scored(each.results, data), each.seen

        seen: Iterable[tuple[Scored, Floats | None]] = looks(source)
    else:
        read_tables(data.to_coco(), source)  # names the first mistake
        if wrong := next((one for one in source if not 0 <= one["score"] <= 1), None):
            mend = "divide per cent by 100, and give logits a sigmoid"
            raise DataError(f"results: a score is {wrong['score']:g}, and scores lie between 0 and 1: {mend}")
        by_picture = sorted(source, key=lambda one: one["image_id"])
        of = {image: list(each) for image, each in groupby(by_picture, lambda one: one["image_id"])}
        seen = ((scored(of.get(record.image_id, []), data), None) for record in data.records)
    for record, (found, scores) in zip(data.records, seen, strict=True):
        objects = ~record.crowd
        boxes = record.boxes.astype(np.float64)
        labels = record.labels[objects]
        judged = judge(found, boxes[objects], labels, len(data.classes), scores, boxes[record.crowd])
        yield record.image_id, judged._replace(rows=np.flatnonzero(objects))
        advance(1)


def judge(
    found: Scored, boxes: Floats, labels: Ints, classes: int, seen: Floats | None, crowds: Floats
) -> Judged:
    """The scores of what may be wrong in one picture.

    found: the detections after NMS. boxes [m, 4], labels [m]: what is labelled. seen [m, K]: the best score that an
    anchor answering for a label gives each class; None where only detections are known. crowds [c, 4]: a detection with
    half of its area in one of them is no missing label.

    With p_k the best score of class k at a label, by its anchors and by detections that overlap it at IoU .5, c its own
    class, s a detection's score and t the best score of a detection of c at IoU .5:

    - class: the geometric mean of p_k, of 1 - p_c and of p_k / (p_k + p_c), of the likeliest other class k.
    - shifted: that of s (1 - best IoU with a label of c), of 1 - t, of gr and of 1 - b^2, b being the best IoU of any
      detection of c with the label, for the detection of c at IoU .05 to .5 whose first number is the largest, among
      those that overlap no label of c at IoU .5.
    - spurious: that of 1 - the best s at IoU .5, of 1 - the best score of any class by the anchors, and of 1 - the best
      s of c, faded below IoU .5.
    - duplicate: IoU with a label of c that fits better (1 - the best score of a second detection on it).
    - missing: s (1 - the largest IoU (1 - t) of any label), of detections that overlap no label at IoU .5. A label that
      is seen itself says nothing about a detection beside it.
    """
    iou = overlaps(found.boxes, boxes)  # [n, m]
    own = iou * (found.labels[:, None] == labels)
    s = found.scores[:, None]
    rows, everywhere = np.arange(len(labels)), np.zeros((len(labels), classes))
    for k in range(classes):
        everywhere[:, k] = np.where((iou >= ON) & (found.labels == k)[:, None], s, 0).max(axis=0, initial=0)
    anchors = everywhere if seen is None else seen
    p = np.maximum(everywhere, anchors)
    g = 1 - p[rows, labels]
    others = np.where(np.arange(classes) == labels[:, None], -1, p)
    another, hit = others.max(axis=1, initial=0), everywhere[rows, labels]
    best = own.max(axis=1, initial=0)[:, None]
    free = np.where((own >= NEAR) & (best < ON), s * (1 - best), 0)
    faded = (s * np.minimum(1, own / ON)).max(axis=0, initial=0)
    place, offset = _compared(found, boxes, free)
    _, on_it = _compared(found, boxes, np.where(own >= ON, s, 0))
    missing, sure = _missing(found, iou, 1 - hit, crowds)
    scores = (
        np.cbrt(another * g * another / np.maximum(another + 1 - g, 1e-9)),
        (free.max(axis=0, initial=0) * (1 - hit) * (1 - own.max(axis=0, initial=0) ** 2)) ** (1 / 4),
        np.cbrt((1 - everywhere.max(axis=1, initial=0)) * (1 - anchors.max(axis=1, initial=0)) * (1 - faded)),
        _twins(found.scores, own, boxes, labels),
    )
    other = others.argmax(axis=1)
    return Judged(rows, np.stack(scores, axis=1), g, place, offset, on_it, other, missing, sure)


def _compared(found: Scored, boxes: Floats, worth: Floats) -> tuple[Floats, Floats]:
    """`place` and `offset` of `Judged`: of the detection of most worth [n, m] for each label; NaN where it is 0."""
    if not worth.size:
        return np.full(boxes.shape, np.nan), np.full(boxes.shape, np.nan)
    some = worth.max(axis=0)[:, None] > 0
    place = np.where(some, found.boxes[worth.argmax(axis=0)], np.nan)
    size = place[:, 2:] - place[:, :2]
    centre = (boxes[:, :2] + boxes[:, 2:] - place[:, :2] - place[:, 2:]) / 2 / size
    return place, np.hstack([centre, np.log((boxes[:, 2:] - boxes[:, :2]) / size)])


def _twins(s: Floats, own: Floats, boxes: Floats, labels: Ints) -> Floats:
    """The score "duplicate" of each label [m]."""
    twins = overlaps(boxes, boxes) * (labels[:, None] == labels)
    fit = (own * s[:, None]).max(axis=0, initial=0)
    worst_first = np.lexsort((-np.arange(len(labels)), fit))
    place = np.empty(len(labels), dtype=np.int64)
    place[worst_first] = np.arange(len(labels))
    scores = np.zeros(len(labels))
    for j, t in zip(*np.nonzero((twins >= TWIN) & (place[:, None] < place)), strict=True):
        on = np.where(own[:, t] >= ON, s, 0.0)
        second = np.where(own[:, j] >= ON, s, 0.0)
        if len(s):
            second[on.argmax()] = 0  # the better label has that one
        scores[j] = max(scores[j], twins[j, t] * (1 - second.max(initial=0)))
    return scores


def _missing(found: Scored, iou: Floats, unseen: Floats, crowds: Floats) -> tuple[Scored, Floats]:
    """The places that may lack a label, with the scores of the kind, and the detections' own scores.

    unseen [m]: 1 - t of each label.
    """
    in_crowd = overlaps(found.boxes, crowds, crowds=True).max(axis=1, initial=0) >= IN_CROWD
    labelled = iou.max(axis=1, initial=0) >= ON
    scores = np.where(in_crowd | labelled, 0, found.scores * (1 - (iou * unseen).max(axis=1, initial=0)))
    order = np.argsort(-scores, kind="stable")
    chosen = order[scores[order] >= LEAST]
    return Scored(found.boxes[chosen], found.labels[chosen], scores[chosen]), found.scores[chosen]


def rank(judged: Iterable[tuple[int, Judged]], data: DetectionData) -> list[Suspicion]:
    """The suspicions of a data set, the likeliest first, from what was seen of each of its pictures."""
    seen = list(judged)
    number = {image: place for place, image in enumerate(data.records.image_ids.tolist())}
    usual = _usual(
        np.concatenate([np.zeros((0, 4)), *(one.on_it for _, one in seen)]),
        np.concatenate([np.zeros(0), *(data.records[number[i]].labels[one.rows] for i, one in seen)]),
        len(data.classes),
    )
    found = list[Suspicion]()
    for image, one in seen:
        picture = number[image]
        record = data.records[picture]
        labels = record.labels[one.rows]
        beside, on_it = (
            (np.abs(each) / np.hypot(each, usual[labels])).max(axis=1, initial=0)
            for each in (one.offset, one.on_it)
        )
        scores = one.scores.copy()
        scores[:, 1] *= np.nan_to_num(beside) ** (1 / 4)
        options = [(float(scores[j, k]), j, k + 1) for j, k in np.argwhere(scores >= LEAST).tolist()]
        options += [(float(score), j, 0) for j, score in enumerate(one.missing.scores)]
        added, moved, told = list[Box](), list[Box](), set[int]()
        lacking = defaultdict[int, list[Box]](list)  # by class
        for score, j, k in sorted(options, key=lambda option: -option[0]):
            kind = KINDS[k]
            if kind == "missing":
                suggested = Label(int(one.missing.labels[j]), _box(one.missing.boxes[j]))
                if meets(suggested.box, lacking[suggested.label]):
                    continue  # the detections had no NMS
                lacking[suggested.label].append(suggested.box)
                # Else the object has another suspicion already: a badly placed label, or a missing one.
                first = not meets(suggested.box, moved + added)
                added += [suggested.box] if first else []
                sure = float(one.sure[j])
                found.append(Suspicion(picture, kind, None, None, suggested, score, sure, None, first))
                continue
            row, g, gr = int(one.rows[j]), float(one.g[j]), float(on_it[j])
            given, becomes = Label(int(labels[j]), _box(record.boxes[row])), None
            if kind == "class":
                becomes = Label(int(one.other[j]), given.box)
            elif kind == "shifted":
                becomes, gr = Label(given.label, _box(one.place[j])), float(beside[j])
            first = j not in told and not (kind == "shifted" and meets(_box(one.place[j]), added))
            if first:
                told.add(j)
                moved += [becomes.box] if becomes and kind == "shifted" else []
            worst = None if np.isnan(gr) else gr
            found.append(Suspicion(picture, kind, row, given, becomes, score, g, worst, first))
    return sorted(found, key=lambda one: (not one.likeliest, -one.score))


def _usual(offset: Floats, labels: Floats, classes: int) -> Floats:
    """How far off the coordinates of labels [n, 4] that are seen usually are, by class: [K, 4], of all if none."""
    known = ~np.isnan(offset).any(axis=1)
    offset, labels = np.abs(offset[known]), labels[known]
    whole = np.quantile(offset, USUAL, axis=0) if len(offset) else np.full(4, 0.1)
    rows = [
        np.quantile(offset[labels == k], USUAL, axis=0) if (labels == k).any() else whole
        for k in range(classes)
    ]
    return np.maximum(rows, 1e-3)


def meets(box: Sequence[float], others: Sequence[Sequence[float]]) -> bool:
    """Whether a box means the object of one of the others."""
    there = np.array(others, dtype=np.float64).reshape(-1, 4)
    return bool(overlaps(there, np.array([box], dtype=np.float64)).max(initial=0) >= ON)


def _box(box: NDArray[Any]) -> Box:
    x1, y1, x2, y2 = box.tolist()
    return x1, y1, x2, y2
