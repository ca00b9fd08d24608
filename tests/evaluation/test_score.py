from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ghmdet.evaluation.score import SUMMARY, ScoreUse, score, score_use
from measured_data import shared_data
from score_cases import Sets, one_detection, random_set, small


def by_pycocotools(annotations: dict[str, Any], results: list[dict[str, Any]]) -> Any:
    """pycocotools' evaluation, the oracle."""
    coco = pytest.importorskip("pycocotools.coco", reason="the oracle: install the extra 'dev'")
    from pycocotools.cocoeval import COCOeval

    with contextlib.redirect_stdout(io.StringIO()):
        truth = coco.COCO()
        truth.dataset = json.loads(json.dumps(annotations))
        truth.createIndex()
        evaluation = COCOeval(truth, truth.loadRes(json.loads(json.dumps(results))), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation


def assert_equal_to_pycocotools(annotations: dict[str, Any], results: list[dict[str, Any]]) -> None:
    metrics, expected = score(annotations, results), by_pycocotools(annotations, results)
    ours = [getattr(metrics, name) for name in SUMMARY]
    np.testing.assert_allclose([-1 if v is None else v for v in ours], expected.stats, atol=1e-6, rtol=0)
    precision = np.moveaxis(expected.eval["precision"][:, :, :, 0, 2], 2, 0)
    per_class = [p[p > -1].mean() if (p > -1).any() else -1 for p in precision]
    ours = [c["AP"] for c in metrics.per_class.values()]
    np.testing.assert_allclose([-1 if v is None else v for v in ours], per_class, atol=1e-6, rtol=0)


def test_published_coco_files_give_what_pycocotools_gave() -> None:
    folder = shared_data("coco_eval")
    expected = json.loads((folder / "expected_pycocotools_2.0.11.json").read_text())
    metrics = score(
        folder / "instances_val2014_100_boxes.json", folder / "instances_val2014_fakebbox100_results.json"
    )
    assert expected["names"] == list(SUMMARY)
    np.testing.assert_allclose([getattr(metrics, n) for n in SUMMARY], expected["stats"], atol=1e-6, rtol=0)
    assert list(metrics.per_class) == list(expected["AP_per_category"])
    for name, value in expected["AP_per_category"].items():
        assert metrics.per_class[name]["AP"] == (None if value is None else pytest.approx(value, abs=1e-6))


@pytest.mark.parametrize("seed", range(30))
def test_random_sets_equal_pycocotools(seed: int) -> None:
    truth, found = random_set(seed)
    assert_equal_to_pycocotools(truth, found or [one_detection(truth)])


@pytest.mark.parametrize("seed", range(3))
def test_more_than_100_detections_an_image_equal_pycocotools(seed: int) -> None:
    truth, found = random_set(seed, detections_per_image=900)
    busiest = max(sum(r["image_id"] == i["id"] for r in found) for i in truth["images"])
    assert busiest > 100 * len(truth["categories"])
    assert_equal_to_pycocotools(truth, found)


SIDES = st.sampled_from([3.0, 10.0, 20.5, 31.9, 32.0, 40.0, 96.0, 150.0])
PLACES = st.sampled_from([0.0, 5.0, 10.0, 12.5])
BOXES = st.tuples(PLACES, PLACES, SIDES, SIDES).map(list)
IDS = st.integers(0, 2**40)


@st.composite
def cases(draw: st.DrawFn) -> Sets:
    """Few images, classes, places and sizes: boxes are often equal, in crowds or doubled, and scores tied."""
    images, categories = (draw(st.lists(IDS, min_size=1, max_size=3, unique=True)) for _ in range(2))
    placed = {"image_id": st.sampled_from(images), "category_id": st.sampled_from(categories), "bbox": BOXES}
    area = st.sampled_from([0.0, 1.0, 1024.0, 1024.1, 9216.0, 5e5])
    boxes = st.fixed_dictionaries({**placed, "iscrowd": st.sampled_from([0, 0, 0, 1]), "area": area})
    results = st.fixed_dictionaries(
        {**placed, "score": st.sampled_from([-1.5, 0.0, 0.25, 0.5, 0.5001, 1.0, 7.0])}
    )
    return {
        "images": [{"id": number} for number in images],
        "categories": [{"id": number, "name": str(number)} for number in categories],
        "annotations": [box | {"id": i + 1} for i, box in enumerate(draw(st.lists(boxes, max_size=12)))],
    }, draw(st.lists(results, min_size=1, max_size=15))


@given(cases())
@settings(deadline=None, max_examples=150)
def test_drawn_sets_equal_pycocotools(case: Sets) -> None:
    assert_equal_to_pycocotools(*case)


def test_perfect_detections_score_one_and_absent_figures_are_none() -> None:
    metrics = score(*small())
    assert (
        pytest.approx(1) == metrics.AP and metrics.APs == pytest.approx(1) and metrics.APl == pytest.approx(1)
    )
    assert metrics.APm is None
    bus = metrics.per_class["bus"]
    assert (bus["AP"], bus["AP50"], bus["images"], bus["boxes"]) == (None, None, 0, 0)
    assert metrics.per_class["car"]["images"] == 2 and metrics.boxes == 2 and metrics.detections == 2


@pytest.mark.parametrize("crowd", [0, 1])
def test_an_ignored_box_is_scored_as_a_crowd_region(crowd: int) -> None:
    truth, found = random_set(2)
    boxes: dict[str, list[dict[str, Any]]] = {"iscrowd": [], "ignore": []}
    for place, box in enumerate(truth["annotations"]):
        apart = int(place % 3 == 0)
        boxes["iscrowd"].append({**box, "iscrowd": int(apart or (crowd and box["iscrowd"]))})
        boxes["ignore"].append({**box, "iscrowd": int(crowd and box["iscrowd"]), "ignore": apart})
    one, other = (score({**truth, "annotations": each}, found).to_dict() for each in boxes.values())
    assert one == other != score(truth, found).to_dict()


def test_no_detections_score_zero() -> None:
    metrics = score(small()[0], [])
    assert metrics.AP == 0 and metrics.AR100 == 0 and metrics.detections == 0


def test_no_boxes_at_all_leave_every_figure_undefined() -> None:
    truth, found = small()
    metrics = score({**truth, "annotations": []}, found)
    assert all(getattr(metrics, name) is None for name in SUMMARY)
    assert "-" in metrics.table()


def test_order_of_images_categories_and_annotations_changes_nothing() -> None:
    truth, found = random_set(4)
    turned = {key: values[::-1] for key, values in truth.items()}
    assert score(turned, found).to_dict() == score(truth, found).to_dict()


def test_files_table_and_json_agree(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    truth, found = small()
    (tmp_path / "a.json").write_text(json.dumps(truth))
    (tmp_path / "r.json").write_text(json.dumps(found))
    metrics = score(tmp_path / "a.json", str(tmp_path / "r.json"))
    assert metrics == score(truth, found)
    saved = json.loads(metrics.save_json(tmp_path / "m.json").read_text())
    assert saved == metrics.to_dict() and saved["APm"] is None
    assert "1.000" in metrics.table() and "bus" in metrics.table()
    assert capsys.readouterr() == ("", "")


# ---- what scores are worth

Detection = tuple[int, float, bool]  # class, score, whether it found a box
UNDEFINED = ScoreUse(ECE=None, precision=None, recall=None, F1=None, best_F1=None, best_threshold=None)


def drawn_set(seed: int) -> Sets:
    """A random set; every other one has scores to three places instead of one, which fill the bins."""
    truth, results = random_set(seed, detections_per_image=12 if seed < 20 else 400)
    rng = np.random.default_rng(seed)
    for result in results if seed % 2 else []:
        result["score"] = round(float(rng.random()), 3)
    return truth, results or [one_detection(truth)]


def counted_by_pycocotools(truth: dict[str, Any], results: list[dict[str, Any]]) -> list[Detection]:
    """The detections that count, as pycocotools matches them at IoU .50."""
    evaluation = by_pycocotools(truth, results)
    every_size = evaluation.params.areaRng[0]
    found = []
    for entry in evaluation.evalImgs:
        if entry is not None and entry["aRng"] == every_size:
            for value, match, ignored in zip(
                entry["dtScores"], entry["dtMatches"][0], entry["dtIgnore"][0], strict=True
            ):
                if not ignored:
                    found.append((entry["category_id"], value, match > 0))
    return found


def naive_use(found: list[Detection], boxes: int) -> ScoreUse:
    """The definitions, written to be read."""
    if not found or not boxes:
        return UNDEFINED
    error = 0.0
    for bin in range(10):
        inside = [(value, hit) for _, value, hit in found if min(int(value * 10), 9) == bin]
        if inside:
            confidence = sum(value for value, _ in inside) / len(inside)
            accuracy = sum(hit for _, hit in inside) / len(inside)
            error += len(inside) / len(found) * abs(confidence - accuracy)

    def at(threshold: float) -> tuple[float | None, float, float]:
        kept = [hit for _, value, hit in found if value >= threshold]
        precision = sum(kept) / len(kept) if kept else None
        recall = sum(kept) / boxes
        return precision, recall, 2 * precision * recall / (precision + recall) if any(kept) else 0.0

    precision, recall, f1 = at(0.5)
    best, threshold = max((at(value)[2], value) for _, value, _ in found)
    return ScoreUse(
        ECE=error,
        precision=precision,
        recall=recall,
        F1=f1,
        best_F1=best,
        best_threshold=threshold if best else None,
    )


def assert_uses_are_equal(ours: ScoreUse, expected: ScoreUse) -> None:
    assert ours.keys() == expected.keys()
    for name, value in expected.items():
        assert ours[name] == (None if value is None else pytest.approx(value, abs=1e-9)), name  # type: ignore[literal-required]


@pytest.mark.parametrize("seed", range(25))
def test_equal_to_the_definitions_over_pycocotools_matches(seed: int) -> None:
    truth, results = drawn_set(seed)
    metrics, found = score(truth, results), counted_by_pycocotools(truth, results)
    assert_uses_are_equal(metrics.scores, naive_use(found, metrics.boxes))
    for category in truth["categories"]:
        ours = metrics.per_class[category["name"]]
        mine = [detection for detection in found if detection[0] == category["id"]]
        assert_uses_are_equal(ours["scores"], naive_use(mine, ours["boxes"]))


def test_the_random_sets_have_crowds_ties_and_more_than_100_detections() -> None:
    counts = []
    for seed in range(25):
        truth, results = drawn_set(seed)
        found = counted_by_pycocotools(truth, results)
        values = [value for _, value, _ in found]
        counts.append((len(results) - len(found), len(values) - len(set(values))))
    assert any(0 < ignored < 20 for ignored, _ in counts[:20])
    assert any(cut > 100 for cut, _ in counts[20:])
    assert sum(ties for _, ties in counts) > 100


def test_calibration_error_of_scores_that_promise_too_much() -> None:
    truth = {
        "images": [{"id": 1}],
        "categories": [{"id": 1, "name": "car"}],
        "annotations": [{"image_id": 1, "category_id": 1, "bbox": [30 * i, 0, 20, 20]} for i in range(6)],
    }
    found = [
        {"image_id": 1, "category_id": 1, "bbox": [30 * i, 0, 20, 20], "score": 0.9 if i < 8 else 0.2}
        for i in range(10)
    ]
    use = score(truth, found).scores  # .9 is right 6 of 8 times, .2 never
    assert use["ECE"] == pytest.approx(0.8 * 0.15 + 0.2 * 0.2)
    assert (use["precision"], use["recall"], use["F1"]) == (0.75, 1.0, pytest.approx(12 / 14))
    assert (use["best_F1"], use["best_threshold"]) == (pytest.approx(12 / 14), 0.9)


def test_a_bias_of_the_logits_changes_neither_ap_nor_the_best_f1() -> None:
    truth, results = random_set(3, detections_per_image=40)
    rng = np.random.default_rng(0)
    moved = []
    for result in results:
        logit = rng.normal()
        result["score"] = float(1 / (1 + np.exp(-logit)))
        moved.append(result | {"score": float(1 / (1 + np.exp(2 - logit)))})
    before, after = score(truth, results), score(truth, moved)
    assert before.AP == after.AP and before.scores["best_F1"] == after.scores["best_F1"]
    assert before.scores["F1"] != after.scores["F1"] and before.scores["ECE"] != after.scores["ECE"]


def test_undefined_without_detections_and_without_boxes() -> None:
    truth, found = small()
    nothing_found, nothing_there = score(truth, []), score({**truth, "annotations": []}, found)
    for metrics in (nothing_found, nothing_there):
        assert metrics.scores == UNDEFINED
        assert all(one["scores"] == UNDEFINED for one in metrics.per_class.values())
        assert json.loads(json.dumps(metrics.to_dict()))["scores"]["ECE"] is None
        assert "all classes" in metrics.table()
    assert score(truth, found).per_class["bus"]["scores"] == UNDEFINED
    assert score(truth, found).per_class["car"]["scores"]["F1"] == 1


def test_detections_below_one_half_are_none_kept() -> None:
    use = score_use(np.array([0.4, 0.3]), np.array([False, False]), boxes=2)
    assert use["precision"] is None and use["recall"] == 0 and use["F1"] == 0
    assert use["best_F1"] == 0 and use["best_threshold"] is None


def test_scores_that_are_no_probabilities_have_no_calibration_error() -> None:
    truth, found = small()
    for result in found:
        result["score"] *= 100
    use = score(truth, found).scores
    assert use["ECE"] is None and use["best_F1"] == 1 and use["best_threshold"] == pytest.approx(80)
