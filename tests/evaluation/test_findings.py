from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from ghmdet.evaluation.findings import find
from ghmdet.evaluation.matching import counted, evaluate, match
from ghmdet.evaluation.score import score
from ghmdet.evaluation.tables import read_tables
from score_cases import Sets, random_set

Box = tuple[int, float]  # class, x of a box of 50 x 50 pixels; boxes 100 pixels apart do not touch
CAR, BUS = 3, 5


def case(truth: list[Box], found: list[tuple[int, float, float]], crowds: tuple[int, ...] = ()) -> Sets:
    """One picture: `found` has a score as well, `crowds` says which boxes of the truth are crowds."""
    return {
        "images": [{"id": 1}],
        "categories": [{"id": CAR, "name": "car"}, {"id": BUS, "name": "bus"}],
        "annotations": [
            {"image_id": 1, "category_id": label, "bbox": [x, 0, 50, 50], "iscrowd": int(i in crowds)}
            for i, (label, x) in enumerate(truth)
        ],
    }, [
        {"image_id": 1, "category_id": label, "bbox": [x, 0, 50, 50], "score": value}
        for label, x, value in found
    ]


GOOD = [(CAR, 0.0, 0.6), (BUS, 300.0, 0.6)]
"""Both boxes found; what is planted in front scores .9."""
TWO = [(CAR, 0.0), (BUS, 300.0)]

THREE = [*TWO, (CAR, 600.0)]

PLANTED: dict[str, tuple[list[Box], list[tuple[int, float, float]], list[list[int]]]] = {
    "": (TWO, GOOD, [[1, 0, 0], [0, 1, 0], [0, 0, 0]]),
    "wrong class": (THREE, [*GOOD, (BUS, 600, 0.9)], [[1, 1, 0], [0, 1, 0], [0, 0, 0]]),
    "duplicate": (
        THREE,
        [*GOOD, (CAR, 0, 0.9), (CAR, 600, 0.5)],
        [[2, 0, 0], [0, 1, 0], [1, 0, 0]],
    ),
    "background": (TWO, [*GOOD, (CAR, 600, 0.9)], [[1, 0, 0], [0, 1, 0], [1, 0, 0]]),
    "missed": (THREE, GOOD, [[1, 0, 1], [0, 1, 0], [0, 0, 0]]),
    "badly located": (  # at IoU 30 / 70
        THREE,
        [*GOOD, (CAR, 620, 0.9)],
        [[1, 0, 1], [0, 1, 0], [1, 0, 0]],
    ),
    "wrong class and badly located": (
        THREE,
        [*GOOD, (BUS, 620, 0.9)],
        [[1, 0, 1], [0, 1, 0], [0, 1, 0]],
    ),
}


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_error_is_found_and_nothing_else(name: str) -> None:
    truth, found, confusion = PLANTED[name]
    findings = find(*case(truth, found))
    assert findings.labels == ["car", "bus"] and findings.confusion.tolist() == confusion
    planted = {name} - {""} | ({"missed"} if name == "wrong class and badly located" else set())
    assert {one["kind"]: one["count"] for one in findings.errors if one["count"]} == dict.fromkeys(planted, 1)
    assert {one["kind"] for one in findings.errors if one["AP50_lost"] > 0.05} == planted
    assert all(one["AP50_lost"] == 0 for one in findings.errors if one["kind"] not in planted)


def test_a_mended_error_gives_back_what_it_cost() -> None:
    truth = THREE
    costs = {one["kind"]: one["AP50_lost"] for one in find(*case(truth, [*GOOD, (CAR, 620, 0.9)])).errors}
    before = score(*case(truth, [*GOOD, (CAR, 620, 0.9)])).AP50
    mended = score(*case(truth, [*GOOD, (CAR, 600, 0.9)])).AP50
    assert before is not None and mended is not None
    assert costs["badly located"] == pytest.approx(mended - before)


@pytest.mark.parametrize("seed", range(6))
def test_the_score_is_the_same_and_the_curves_have_its_ap(seed: int) -> None:
    truth, results = random_set(seed)
    findings = find(truth, results)
    metrics = score(truth, results)
    assert findings.metrics == metrics
    for name, curve in findings.curves.items():
        assert (curve is None) == (metrics.per_class[name]["boxes"] == 0)
        if curve is not None:
            assert len(curve["precision"]) == len(curve["precision75"]) == 101
            assert np.mean(curve["precision"]) == pytest.approx(metrics.per_class[name]["AP50"], abs=1e-4)
    strict = [np.mean(curve["precision75"]) for curve in findings.curves.values() if curve]
    assert np.mean(strict) == pytest.approx(metrics.AP75, abs=1e-4)
    boxes = [metrics.per_class[name]["boxes"] for name in findings.labels]
    assert findings.confusion[:-1].sum(axis=1).tolist() == boxes


@pytest.mark.parametrize("seed", range(6))
def test_the_error_kinds_start_from_the_scores_ap50_and_reliability_has_its_ece(seed: int) -> None:
    truth, results = random_set(seed)
    base = evaluate(read_tables(truth, results), at=[0.5]).tide_errors()["ap_base"]
    assert base == pytest.approx(score(truth, results).AP50)
    found, tables = find(truth, results), read_tables(truth, results)
    scores, hit, _ = counted(match(tables, evaluate(tables, at=[0.5])))
    assert found.reliability is not None and found.reliability["edges"] == pytest.approx(np.arange(11) / 10)
    error = 0.0
    for tenth in range(10):
        mine = np.minimum((scores * 10).astype(int), 9) == tenth
        share = found.reliability["share"][tenth]
        assert found.reliability["detections"][tenth] == mine.sum()
        assert share == (pytest.approx(hit[mine].mean()) if mine.any() else None)
        if mine.any():
            error += mine.mean() * abs(scores[mine].mean() - hit[mine].mean())
    assert found.metrics.scores["ECE"] == pytest.approx(error)


@pytest.mark.parametrize("value", [1.5, -0.2, 1e308, 5])
def test_scores_that_are_no_probabilities_leave_out_only_the_reliability(value: float) -> None:
    truth, results = case(TWO, GOOD)
    expected = find(truth, results)
    results[0]["score"] = value
    findings = find(truth, results)
    assert findings.reliability is None and findings.metrics.scores["ECE"] is None
    assert findings.metrics.AP == expected.metrics.AP and findings.curves == expected.curves
    sure = [value >= 0.5, True]
    assert findings.confusion.diagonal().tolist() == [*sure, 0] and not any(
        e["count"] for e in findings.errors
    )


def test_what_lies_in_a_crowd_is_no_mistake() -> None:
    truth, found = THREE, [*GOOD, (CAR, 600.0, 0.9), (CAR, 610.0, 0.9)]
    findings = find(*case(truth, found, crowds=(2,)))
    assert pytest.approx(1) == findings.metrics.AP50 and not any(one["count"] for one in findings.errors)
    assert findings.confusion.tolist() == [[1, 0, 0], [0, 1, 0], [0, 0, 0]]
    assert findings.reliability is not None and sum(findings.reliability["detections"]) == 2


def test_detections_below_one_half_are_not_confused() -> None:
    findings = find(*case(TWO, [*GOOD, (CAR, 600, 0.4), (BUS, 700, 0.5)]))
    assert findings.confusion.tolist() == [[1, 0, 0], [0, 1, 0], [0, 1, 0]]


@pytest.mark.parametrize(
    ("truth", "found"), [(TWO, []), ([], GOOD), ([], []), ([(CAR, 0.0)], [(CAR, 0.0, 0.9)])]
)
def test_what_is_not_there_is_none_or_zero(truth: list[Box], found: list[Any]) -> None:
    findings = find(*case(truth, found))
    assert findings.confusion[:, -1].sum() == (len(truth) if not found else 0)
    assert findings.confusion[-1].sum() == (len(found) if not truth else 0)
    assert (findings.curves["bus"] is None) == ((BUS, 300.0) not in truth)
    if not found:
        assert findings.reliability is not None and findings.reliability["share"] == [None] * 10
        assert all(one["count"] == 0 for one in findings.errors if one["kind"] != "missed")
        assert set(np.ravel([c["precision"] for c in findings.curves.values() if c])) <= {0.0}
