"""The examples that a detector is most wrong about: sure detections of nothing, and objects that it does not see."""

from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence
from itertools import groupby
from typing import Any, NamedTuple

import numpy as np

from ghmdet.data import DetectionData
from ghmdet.evaluation.matching import overlaps
from ghmdet.evaluation.tables import Floats, Ints

NOTHING, OTHER, UNSEEN = KINDS = ("no label here", "other label here", "not seen")
HARD = 0.5  # the least g that counts
# As for anchors in training: below .4 there is nothing, and between .4 and .5 it counts neither way. TIDE's .1 would
# lose most missing labels where objects touch their neighbours; at .5 the list would fill with badly located boxes.
ON_LABEL, ON_OTHER = 0.4, 0.5
IN_CROWD = 0.5
MOST, MOST_OF_ONE_PICTURE = 96, 24


class Scored(NamedTuple):
    """Boxes [n, 4] (corners x1 y1 x2 y2 in pixels), their labels [n] and scores [n]."""

    boxes: Floats
    labels: Ints
    scores: Floats


class Hard(NamedTuple):
    """One hard example of picture number `picture`, of the kind `kind`; its box is x1 y1 x2 y2 in pixels.

    other: the label that is there instead, for the kind "other label here".
    """

    picture: int
    kind: str
    label: int
    other: int | None
    score: float
    box: tuple[float, float, float, float]

    @property
    def g(self) -> float:
        """The gradient norm: 1 - score of an object, the score of what is none."""
        return 1 - self.score if self.kind == UNSEEN else self.score


def find_hardest(data: DetectionData, results: Iterable[Mapping[str, Any]], seen: Floats) -> list[Hard]:
    """The hard examples of all pictures of a data set (see `hard_examples`).

    Args:
        data: the pictures, and what is labelled in them.
        results: COCO results, those of one picture together.
        seen: for each labelled object, picture by picture, crowds left out: the best score that an anchor answering for
            it gives each class, [N, K].
    """
    found = {image: list(each) for image, each in groupby(results, lambda one: one["image_id"])}
    hard: list[Hard] = []
    start = 0
    for number, record in enumerate(data.records):
        detected = scored(found.get(record.image_id, []), data)
        given, objects = record.boxes.astype(np.float64), ~record.crowd
        own = record.labels[objects]
        scores = seen[np.arange(start, start + len(own)), own]
        start += len(own)
        labelled = Scored(given[objects], own, scores)
        hard += hard_examples(number, detected, labelled, given[record.crowd])
    return hard


def scored(results: Sequence[Mapping[str, Any]], data: DetectionData) -> Scored:
    """One picture's COCO results, with the labels of `data`."""
    label_of = {category: label for label, category in enumerate(data.category_ids)}
    boxes = np.array([one["bbox"] for one in results], dtype=np.float64).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    labels = np.array([label_of[one["category_id"]] for one in results], dtype=np.int64)
    return Scored(boxes, labels, np.array([one["score"] for one in results], dtype=np.float64))


def hard_examples(picture: int, found: Scored, objects: Scored, crowds: Floats) -> list[Hard]:
    """The examples of one picture whose g is at least .5.

    Args:
        picture: its number, which is handed on.
        found: the detections after NMS.
        objects: what is labelled; an object's score is the best that an anchor answering for it gives its class.
        crowds: boxes [c, 4]; a detection with half of its area in one of them is left out.

    A detection is hard if it scores .5 and overlaps no object of its class at IoU .4: "other label here" if it overlaps
    one of another class at .5, else "no label here". An object is "not seen" if its score and those of the detections
    of its class that overlap it at .5 are at most .5.
    """
    iou = overlaps(found.boxes, objects.boxes)
    same = found.labels[:, None] == objects.labels  # [n, m]
    own, others = iou * same, iou * ~same
    in_crowd = overlaps(found.boxes, crowds, crowds=True).max(axis=1, initial=0) >= IN_CROWD
    unlabelled = (found.scores >= HARD) & ~in_crowd & (own.max(axis=1, initial=0) < ON_LABEL)
    hard: list[Hard] = []
    for i in np.flatnonzero(unlabelled).tolist():
        on_other = others[i].max(initial=0) >= ON_OTHER
        other = int(objects.labels[others[i].argmax()]) if on_other else None
        hard.append(_hard(picture, found, i, OTHER if on_other else NOTHING, other))
    on = np.where(own >= ON_OTHER, found.scores[:, None], 0.0)  # [n, m]
    best = np.maximum(objects.scores, on.max(axis=0, initial=0.0))
    objects = objects._replace(scores=best)
    return hard + [_hard(picture, objects, j, UNSEEN) for j in np.flatnonzero(1 - best >= HARD).tolist()]


def _hard(picture: int, rows: Scored, row: int, kind: str, other: int | None = None) -> Hard:
    x0, y0, x1, y1 = rows.boxes[row].tolist()
    return Hard(picture, kind, int(rows.labels[row]), other, float(rows.scores[row]), (x0, y0, x1, y1))


def count_kinds(examples: Iterable[Hard]) -> dict[str, int]:
    """How many there are of each kind."""
    counts = Counter(one.kind for one in examples)
    return {kind: counts[kind] for kind in KINDS}


def choose(examples: Iterable[Hard]) -> list[Hard]:
    """The hardest of all pictures by falling g: at most 96, of one picture at most 24, some of each kind and class.

    They are taken from the kinds in turn and within a kind from the classes in turn, each time the hardest left.
    """
    ordered = sorted(examples, key=lambda one: -one.g)
    ordered = _in_turn(ordered, [(one.kind, one.label) for one in ordered])
    ordered = _in_turn(ordered, [one.kind for one in ordered])
    earlier = _earlier([one.picture for one in ordered])
    chosen = [one for one, n in zip(ordered, earlier, strict=True) if n < MOST_OF_ONE_PICTURE][:MOST]
    return sorted(chosen, key=lambda one: -one.g)


def _in_turn(examples: Sequence[Hard], groups: Sequence[Hashable]) -> list[Hard]:
    """First the first example of each group, then the second of each; the order is kept otherwise."""
    return [examples[i] for i in np.argsort(_earlier(groups), kind="stable")]


def _earlier(groups: Sequence[Hashable]) -> list[int]:
    """How many of its own group come before each."""
    seen: Counter[Hashable] = Counter()
    earlier = []
    for group in groups:
        earlier.append(seen[group])
        seen[group] += 1
    return earlier
