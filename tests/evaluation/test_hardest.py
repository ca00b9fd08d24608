from __future__ import annotations

from collections import Counter, defaultdict

import numpy as np
import pytest

from ghmdet.evaluation.hardest import KINDS, Hard, Scored, choose, count_kinds, hard_examples

NONE = np.zeros((0, 4))


def scored(*rows: tuple[list[float], int, float]) -> Scored:
    """From boxes, labels and scores, a row each."""
    boxes = np.array([box for box, _, _ in rows], dtype=np.float64).reshape(-1, 4)
    labels = np.array([label for _, label, _ in rows], dtype=np.int64)
    return Scored(boxes, labels, np.array([score for _, _, score in rows], dtype=np.float64))


def naive_overlap(a: list[float], b: list[float]) -> tuple[float, float]:
    """The area that two boxes share, and their IoU."""
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    shared = max(width, 0) * max(height, 0)
    areas = [(c[2] - c[0]) * (c[3] - c[1]) for c in (a, b)]
    return shared, shared / (sum(areas) - shared)


def naive_hard(
    found: Scored, objects: Scored, crowds: np.ndarray
) -> list[tuple[str, int, int | None, float]]:
    """The definition, written to be read: kind, label, other and g of each."""
    detections = [(b.tolist(), int(k), float(s)) for b, k, s in zip(*found, strict=True)]
    labelled = [(b.tolist(), int(k), float(s)) for b, k, s in zip(*objects, strict=True)]
    hard: list[tuple[str, int, int | None, float]] = []
    for box, label, score in detections:
        area = (box[2] - box[0]) * (box[3] - box[1])
        if score < 0.5 or any(naive_overlap(box, crowd)[0] >= area / 2 for crowd in crowds.tolist()):
            continue
        if any(k == label and naive_overlap(box, b)[1] >= 0.4 for b, k, _ in labelled):
            continue
        others = [(naive_overlap(box, b)[1], k) for b, k, _ in labelled if k != label]
        iou, other = max(others, default=(0.0, 0), key=lambda pair: pair[0])
        hard.append(
            ("other label here", label, other, score) if iou >= 0.5 else ("no label here", label, None, score)
        )
    for box, label, score in labelled:
        on = [s for b, k, s in detections if k == label and naive_overlap(box, b)[1] >= 0.5]
        best = max([score, *on])
        if best <= 0.5:
            hard.append(("not seen", label, None, 1 - best))
    return hard


def drawn_picture(seed: int) -> tuple[Scored, Scored, np.ndarray]:
    rng = np.random.default_rng(seed)

    def boxes(number: int) -> np.ndarray:
        low = rng.uniform(0, 60, (number, 2))
        return np.concatenate([low, low + rng.uniform(20, 60, (number, 2))], axis=1)

    labelled = boxes(int(rng.integers(0, 6)))
    near = np.repeat(labelled, 3, axis=0)
    found = np.concatenate([near + rng.uniform(-12, 12, near.shape), boxes(8)])
    return (
        Scored(found, rng.integers(0, 3, len(found)), rng.random(len(found))),
        Scored(labelled, rng.integers(0, 3, len(labelled)), rng.random(len(labelled))),
        boxes(int(rng.integers(0, 2))),
    )


@pytest.mark.parametrize("seed", range(40))
def test_hard_examples_are_the_definitions(seed: int) -> None:
    picture = drawn_picture(seed)
    ours = hard_examples(7, *picture)
    assert all(one.picture == 7 for one in ours)
    assert [(one.kind, one.label, one.other, pytest.approx(one.g)) for one in ours] == naive_hard(*picture)


def test_the_drawn_pictures_have_every_kind_and_hard_ones_in_crowds() -> None:
    counts, without = Counter[str](), 0
    for seed in range(40):
        found, objects, crowds = drawn_picture(seed)
        counts += Counter(count_kinds(hard_examples(0, found, objects, crowds)))
        without += len(hard_examples(0, found, objects, NONE))
    assert min(counts[kind] for kind in KINDS) > 5 and without > sum(counts.values())


def test_a_badly_located_box_is_neither_a_missing_label_nor_leaves_its_object_seen() -> None:
    objects = scored(([0, 0, 100, 100], 0, 0.3))
    at = {0.3: 30, 0.45: 45, 0.6: 60}  # IoU: width of a detection inside the object
    kinds = {
        iou: [one.kind for one in hard_examples(0, scored(([0, 0, width, 100], 0, 0.9)), objects, NONE)]
        for iou, width in at.items()
    }
    assert kinds == {0.3: ["no label here", "not seen"], 0.45: ["not seen"], 0.6: []}


def test_an_object_is_seen_by_the_anchor_that_answers_for_it_or_by_a_detection_of_its_class() -> None:
    box = [0.0, 0, 50, 50]
    assert hard_examples(0, scored(), scored((box, 0, 0.6)), NONE) == []
    assert hard_examples(0, scored((box, 0, 0.7)), scored((box, 0, 0.0)), NONE) == []
    wrong = hard_examples(0, scored((box, 1, 0.7)), scored((box, 0, 0.2)), NONE)
    assert [(one.kind, one.label, one.other, one.g) for one in wrong] == [
        ("other label here", 1, 0, 0.7),
        ("not seen", 0, None, 0.8),
    ]
    assert wrong[0].box == (0, 0, 50, 50)


def drawn_examples(seed: int, number: int, pictures: int) -> list[Hard]:
    rng = np.random.default_rng(seed)
    kinds, labels = rng.choice(KINDS, number, p=[0.9, 0.02, 0.08]), rng.geometric(0.4, number) - 1
    return [
        Hard(int(rng.integers(pictures)), str(kind), int(label), None, score, (0, 0, 1, 1))
        for kind, label, score in zip(kinds, labels, rng.random(number).round(2).tolist(), strict=True)
    ]


def naive_choice(examples: list[Hard], most: int, of_one: int) -> list[float]:
    """The g of what turns over kinds, and turns over classes within, take."""
    queues: dict[str, dict[int, list[Hard]]] = defaultdict(lambda: defaultdict(list))
    for one in sorted(examples, key=lambda one: -one.g):
        queues[one.kind][one.label].append(one)
    lines = {}
    for kind, classes in queues.items():
        line = []
        while any(classes.values()):
            line += sorted((queue.pop(0) for queue in classes.values() if queue), key=lambda one: -one.g)
        lines[kind] = line
    taken: list[Hard] = []
    while any(lines.values()):
        for one in sorted((line.pop(0) for line in lines.values() if line), key=lambda one: -one.g):
            if len(taken) < most and sum(other.picture == one.picture for other in taken) < of_one:
                taken.append(one)
    return sorted((one.g for one in taken), reverse=True)


@pytest.mark.parametrize("seed", range(10))
def test_the_choice_is_by_turns_and_no_picture_kind_or_class_has_it_all(seed: int) -> None:
    examples = drawn_examples(seed, number=400, pictures=(3, 40)[seed % 2])
    chosen = choose(examples)
    assert [one.g for one in chosen] == pytest.approx(naive_choice(examples, 96, 24))
    assert len(chosen) == (72, 96)[seed % 2] and set(chosen) <= set(examples)
    assert max(Counter(one.picture for one in chosen).values()) <= 24
    assert {one.kind for one in chosen} == {one.kind for one in examples}
    if seed % 2:
        assert {(one.kind, one.label) for one in chosen} == {(one.kind, one.label) for one in examples}


def test_few_examples_are_all_chosen_and_none_gives_none() -> None:
    examples = drawn_examples(0, number=20, pictures=20)
    assert Counter(choose(examples)) == Counter(examples)
    assert choose([]) == [] and count_kinds([]) == dict.fromkeys(KINDS, 0)
