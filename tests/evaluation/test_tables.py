from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ghmdet.data import read_data
from ghmdet.errors import DataError
from ghmdet.evaluation.findings import find
from ghmdet.evaluation.matching import matches
from ghmdet.evaluation.score import Metrics, score
from score_cases import Sets, small

READERS: list[Callable[[Any, Any], Any]] = [score, find, matches]
BOX = r"write \[x, y, width, height\], finite, no size below 0"
NAN, INF = float("nan"), float("inf")


def changed(records: str, key: str, value: object) -> Sets:
    """The small case, with another value in the second of its `records`."""
    truth, found = small()
    record = {"results": found, **truth}[records][1]
    record[key] = value
    return truth, found


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        *(("score", value, "'score' is .*: write a finite number") for value in (None, "high", NAN, INF, -INF)),
        *(("score", value, "'score' is .*: write a finite number") for value in (True, [0.5], {}, 10**400)),
        *(("bbox", [0, 0, value, 1], f"'bbox' is .*: {BOX}") for value in (NAN, INF, -1, None, "wide", True, 10**400)),
        *(("bbox", value, f"'bbox' is .*: {BOX}") for value in ([], [0, 0, 5], [0, 0, 5, 5, 5], [0, [1], 5, 5])),
        *(("bbox", value, f"'bbox' is .*: {BOX}") for value in (None, "0055", {"x": 0}, [1e308, 0, 1e308, 1])),
        *(
            ("image_id", value, r"'image_id' is .*: write one that the annotations have \(1, 2\)")
            for value in (77, -1, 0, 1.5, "first", True, None, NAN, INF, 2**63, 2**64 + 1, 10**400, [1], {})
        ),
        *(
            ("category_id", value, r"'category_id' is .*: write one that the annotations have \(3, 5\)")
            for value in (4, 3.5, "car", False, None, NAN, 2**63 + 3, [3])
        ),
    ],
)  # fmt: skip
def test_a_bad_result_is_named_with_its_index_value_and_mend(
    reader: Callable[[Any, Any], Any], key: str, value: object, message: str
) -> None:
    with pytest.raises(DataError, match=rf"results given in memory: results\[1\]: {message}") as error:
        reader(*changed("results", key, value))
    assert "\n" not in str(error.value) and len(str(error.value)) < 300


@pytest.mark.parametrize("key", ["image_id", "category_id", "bbox", "score"])
def test_a_result_without_one_of_its_keys_is_named(key: str) -> None:
    truth, found = small()
    del found[1][key]
    with pytest.raises(DataError, match=rf"results\[1\]: no '{key}' in {{.*: write "):
        score(truth, found)


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("results", [None, 3, {}, {"annotations": []}, "none.json", {1: 2}.items()])
def test_results_that_are_no_list_are_refused(reader: Callable[[Any, Any], Any], results: Any) -> None:
    with pytest.raises(
        DataError, match=r"a list of {image_id, category_id, bbox, score} belongs|no such file"
    ):
        reader(small()[0], results)


@pytest.mark.parametrize("record", [None, 3, "text", [1, 1, [0, 0, 1, 1], 0.5]])
def test_a_result_that_is_no_object_is_named(record: object) -> None:
    truth, found = small()
    with pytest.raises(DataError, match=r"results\[1\]: no 'image_id' in "):
        score(truth, [found[0], record])


@pytest.mark.parametrize(
    ("text", "message"),
    [("", "empty file"), ("{", "invalid JSON"), ("[" * 100_000, "invalid JSON"), ("{}", "a list of"), ("3", "3 where")],
)  # fmt: skip
def test_a_results_file_that_is_no_list_is_named(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "results.json"
    path.write_text(text)
    with pytest.raises(DataError, match=f"results.json: .*{message}"):
        score(small()[0], path)


def test_missing_and_swapped_files_are_named(tmp_path: Path) -> None:
    truth, found = small()
    with pytest.raises(DataError, match=r"none\.json: no such file"):
        score(truth, tmp_path / "none.json")
    (tmp_path / "r.json").write_text(json.dumps(found))
    with pytest.raises(DataError, match=r"r\.json: a JSON list, as COCO results are"):
        score(tmp_path / "r.json", found)


def test_numbers_written_as_text_and_ids_as_fractions_are_read() -> None:
    truth, found = small()
    expected = score(truth, found)
    text = {"image_id": "2", "category_id": 3.0, "bbox": ["5", "5", "2e2", 200], "score": "0.8"}
    assert score(truth, [found[0], text]) == expected
    truth["images"][1]["id"], truth["categories"][0]["id"] = "2", 3.0
    truth["annotations"][1] |= {
        "image_id": 2.0,
        "bbox": ["5", "5", "200", "200"],
        "area": "40000",
        "iscrowd": "0",
    }
    assert score(truth, found) == expected


# ---- annotations: what training reads, scoring reads


def as_data_set(truth: dict[str, Any], file: Path) -> Path:
    """Write the annotations as a data set needs them, with names and sizes of pictures, and a byte order mark."""
    images = [
        image | {"file_name": f"{i}.jpg", "width": 300, "height": 300}
        for i, image in enumerate(truth["images"])
    ]
    file.write_text(json.dumps(truth | {"images": images}), encoding="utf-8-sig")
    return file


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("area", None),
        ("area", "9e4"),
        *(("iscrowd", value) for value in (None, "", "0", 0.0, False, "false")),
    ],
)
def test_a_byte_order_mark_and_empty_fields_are_read_as_in_training(
    tmp_path: Path, key: str, value: object
) -> None:
    truth, found = changed("annotations", key, value)
    file = as_data_set(truth, tmp_path / "val.json")
    metrics = score(file, found)
    assert metrics.boxes == 2 and pytest.approx(1) == metrics.AP and metrics.problems == []
    assert len(read_data(file, "val").records.boxes) == 2


LEFT_OUT = [
    ("bbox", [5, 5, -200, 200], "inverted box"),
    ("bbox", [5, 5, NAN, 200], "not a number"),
    ("bbox", [5, 5, 200], "malformed box"),
    ("bbox", None, "malformed box"),
    ("image_id", 77, "unknown image id"),
    ("category_id", 4, "unknown class"),
    ("category_id", True, "unknown class"),
    ("iscrowd", "crowd", "malformed iscrowd"),
]


@pytest.mark.parametrize(("key", "value", "kind"), LEFT_OUT)
def test_a_box_that_training_leaves_out_is_left_out_of_the_score_and_named(
    tmp_path: Path, key: str, value: object, kind: str
) -> None:
    truth, found = changed("annotations", key, value)
    file = as_data_set(truth, tmp_path / "val.json")
    metrics, data = score(file, found), read_data(file, "val")
    assert metrics.boxes == len(data.records.boxes) == 1 and metrics.images == len(data.records)
    kept = {record.image_id for record in data.records}
    expected = score(data.to_coco(), [each for each in found if each["image_id"] in kept])
    assert metrics.AP == expected.AP and metrics.detections == expected.detections
    assert metrics.problems == [str(problem) for problem in data.problems]
    assert str(file) in metrics.problems[0] and kind in metrics.problems[0]
    if key != "image_id":  # a picture on which nothing else is labelled
        assert "picture without a sound label" in metrics.problems[1]
    count = len(metrics.problems)
    assert f"annotations left out or mended: {count}, first: {metrics.problems[0]}\n" in metrics.table()
    assert metrics.to_dict()["problems"] == metrics.problems and expected.problems == []
    assert "left out" not in expected.table()


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("images", None, "no list 'images'"),
        ("categories", None, "no list 'categories'"),
        ("annotations", None, "no list 'annotations'"),
        ("images", [], "'images' names none"),
        ("images", [1, 2], r"images\[0\]"),
        ("categories", [], "no classes"),
        ("categories", [{"name": "car"}], r"categories\[0\]: no whole number as its id"),
        ("categories", [{"id": 3}, {"id": 3}], r"categories\[1\]: id 3 is there twice"),
    ],
)
def test_annotations_that_are_none_are_named(key: str, value: Any, message: str) -> None:
    truth, found = small()
    with pytest.raises(DataError, match=rf"annotations given in memory: .*{message}"):
        score({**truth, key: value}, found)


def test_ids_may_be_zero_and_larger_than_a_float_holds() -> None:
    truth, found = small()
    big = 2**60
    for record in [*truth["images"], *truth["annotations"], *found]:
        key = "image_id" if "image_id" in record else "id"
        record[key] = big + record[key]
    truth["annotations"][0]["id"] = 0
    assert pytest.approx(1) == score(truth, found).AP
    truth["images"].append({"id": 7.0})  # one fraction among them takes nothing from the others
    assert pytest.approx(1) == score(truth, found).AP


def test_optional_fields_default_and_equal_names_stay_apart() -> None:
    truth, found = small()
    full = score(truth, found)
    for box in truth["annotations"]:
        del box["area"], box["iscrowd"], box["id"]
    assert score(truth, found) == full
    truth["categories"][1]["name"] = "car"
    assert list(score(truth, found).per_class) == ["car (3)", "car (5)"]


def test_boxes_of_nonsense_sizes_are_scored_without_a_warning(recwarn: pytest.WarningsRecorder) -> None:
    for records in ("annotations", "results"):
        metrics: Metrics = score(*changed(records, "bbox", [0, 0, 1e200, 1e200]))
        assert pytest.approx(51 / 101) == metrics.AP
    assert not recwarn
