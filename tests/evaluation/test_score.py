from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ghmdet.errors import DataError
from ghmdet.evaluation.score import SUMMARY, score
from measured_data import shared_data
from score_cases import one_detection, random_set, small


def by_pycocotools(
    annotations: dict[str, Any], results: list[dict[str, Any]]
) -> tuple[list[float], list[float]]:
    """The twelve figures and each category's AP, -1 where undefined: the oracle."""
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
    precision = evaluation.eval["precision"][:, :, :, 0, 2]
    per_class = [p[p > -1].mean() if (p > -1).any() else -1 for p in np.moveaxis(precision, 2, 0)]
    return list(evaluation.stats), per_class


def assert_equal_to_pycocotools(annotations: dict[str, Any], results: list[dict[str, Any]]) -> None:
    metrics = score(annotations, results)
    summary, per_class = by_pycocotools(annotations, results)
    ours = [getattr(metrics, name) for name in SUMMARY]
    np.testing.assert_allclose([-1 if v is None else v for v in ours], summary, atol=1e-6, rtol=0)
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


def test_perfect_detections_score_one_and_absent_figures_are_none() -> None:
    metrics = score(*small())
    assert (
        pytest.approx(1) == metrics.AP and metrics.APs == pytest.approx(1) and metrics.APl == pytest.approx(1)
    )
    assert metrics.APm is None
    bus = metrics.per_class["bus"]
    assert (bus["AP"], bus["AP50"], bus["images"], bus["boxes"]) == (None, None, 0, 0)
    assert metrics.per_class["car"]["images"] == 2 and metrics.boxes == 2 and metrics.detections == 2


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


def test_ids_may_be_zero_and_larger_than_a_float_holds() -> None:
    truth, found = small()
    big = 2**60
    for record in [*truth["images"], *truth["annotations"], *found]:
        key = "image_id" if "image_id" in record else "id"
        record[key] = big + record[key]
    truth["annotations"][0]["id"] = 0
    assert pytest.approx(1) == score(truth, found).AP


def test_optional_fields_default_and_equal_names_stay_apart() -> None:
    truth, found = small()
    full = score(truth, found)
    for box in truth["annotations"]:
        del box["area"], box["iscrowd"], box["id"]
    assert score(truth, found) == full
    truth["categories"][1]["name"] = "car"
    assert list(score(truth, found).per_class) == ["car (3)", "car (5)"]


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


BAD_RESULTS = {
    "no score": ("score", None, r"results\[1\]: no 'score' .*add it"),
    "no box": ("bbox", None, r"results\[1\]: no 'bbox'"),
    "no image": ("image_id", None, r"results\[1\]: no 'image_id'"),
    "no class": ("category_id", None, r"results\[1\]: no 'category_id'"),
    "text score": ("score", "0.8", r"results\[1\]: 'score' is '0.8': write a number"),
    "nan score": ("score", float("nan"), r"results\[1\]: 'score' is nan, which is not finite"),
    "nan box": ("bbox", [0, 0, float("nan"), 1], r"results\[1\]: 'bbox' is .*not finite"),
    "short box": ("bbox", [0, 0, 5], r"results\[1\]: 'bbox' is \[0, 0, 5\]: write a list of 4 numbers"),
    "ragged box": ("bbox", [0, [1], 5, 5], r"results\[1\]: 'bbox' is .*write a list of 4 numbers"),
    "negative width": (
        "bbox",
        [9, 9, -5, 5],
        r"results\[1\]: 'bbox' \[9.0, 9.0, -5.0, 5.0\] has a negative size",
    ),
    "unknown image": (
        "image_id",
        77,
        r"results\[1\]: 'image_id' 77 is not among the annotations' images \(1, 2;",
    ),
    "unknown class": ("category_id", 4, r"results\[1\]: 'category_id' 4 is not among .*categories \(3, 5;"),
    "half an id": ("image_id", 1.5, r"results\[1\]: 'image_id' is 1.5: write a whole number"),
    "text id": ("image_id", "1", r"results\[1\]: 'image_id' is '1': write a whole number"),
}


@pytest.mark.parametrize("case", BAD_RESULTS)
def test_a_bad_result_is_named_with_its_index_value_and_mend(case: str) -> None:
    key, value, message = BAD_RESULTS[case]
    truth, found = small()
    if value is None:
        del found[1][key]
    else:
        found[1][key] = value
    with pytest.raises(DataError, match=message) as error:
        score(truth, found)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("images", None, "no list 'images'"),
        ("categories", None, "no list 'categories'"),
        ("annotations", None, "no list 'annotations'"),
        ("images", [], "'images' is empty"),
        ("categories", [], "'categories' is empty"),
        ("images", [{"id": 1}, {"id": 1}], r"images\[1\]: 'id' 1 is used twice"),
        ("categories", [{"name": "car"}], r"categories\[0\]: no 'id'"),
        (
            "annotations",
            [{"image_id": 9, "category_id": 3, "bbox": [0, 0, 1, 1]}],
            r"annotations\[0\]: 'image_id' 9",
        ),
        ("annotations", [7], r"annotations\[0\]: 7 where an object belongs"),
    ],
)
def test_bad_annotations_are_named(key: str, value: Any, message: str) -> None:
    truth, found = small()
    if value is None:
        del truth[key]
    else:
        truth[key] = value
    with pytest.raises(DataError, match=message):
        score(truth, found)


@pytest.mark.parametrize(
    ("text", "message"),
    [("", "the file is empty"), ("{", "not JSON"), ("{}", "an object with no keys"), ("3", "int 3")],
)
def test_a_results_file_that_is_no_list_is_named(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "results.json"
    path.write_text(text)
    with pytest.raises(DataError, match=f"results.json: .*{message}"):
        score(small()[0], path)


def test_missing_and_swapped_files_are_named(tmp_path: Path) -> None:
    truth, found = small()
    with pytest.raises(DataError, match=r"none\.json: cannot be read"):
        score(truth, tmp_path / "none.json")
    (tmp_path / "r.json").write_text(json.dumps(found))
    with pytest.raises(DataError, match=r"r\.json: list .* where an object with 'images'"):
        score(tmp_path / "r.json", found)
