"""Numbers that no picture has, and what is written where a number belongs: read as it or reported, never a crash."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ghmdet.data import DetectionData, check_data, read_data
from ghmdet.data.annotations import read_annotations
from ghmdet.errors import DataError
from small_sets import three_pictures, write_coco, write_voc, write_yolo

HUGE = 10**400
NOT_NUMBERS = [HUGE, -HUGE, math.inf, -math.inf, math.nan, "1e999", "wide", True, [1], {"a": 1}]
WRONG_SIZES = ["6_0", 3e9, 3 * 10**9, 2**31, 2**63, -64, 1.5, *NOT_NUMBERS]
WRONG_IDS = [2**63, -(2**63) - 1, 1.5, None, "", "1_0", *NOT_NUMBERS]


def edited_coco(root: Path, edit: Callable[[dict[str, Any]], object]) -> Path:
    file = write_coco(root, three_pictures())
    content = json.loads(file.read_text())
    edit(content)
    file.write_text(json.dumps(content))
    return file


def findings(root: Path, file: Path) -> list[tuple[str, str, str]]:
    """Severity, kind and record of what `data check` finds in the file, each a line of its own."""
    besides = ("class without boxes", "picture that no split uses")
    problems = [problem for problem in check_data(root, "train") if problem.kind not in besides]
    assert {problem.file for problem in problems} <= {str(file)}
    assert all("\n" not in str(problem) and len(str(problem)) < 400 for problem in problems)
    return [(problem.severity, problem.kind, problem.record) for problem in problems]


@pytest.mark.parametrize("value", WRONG_SIZES, ids=lambda value: repr(value)[:9])
@pytest.mark.parametrize("key", ["width", "height"])
def test_a_size_that_no_picture_has_is_reported_and_the_picture_s_own_taken(
    tmp_path: Path, key: str, value: object
) -> None:
    file = edited_coco(tmp_path, lambda content: content["images"][1].update({key: value}))
    assert findings(tmp_path, file) == [("warning", "malformed image size", "image 'b.jpg'")]
    assert (read_data(tmp_path).records[1].width, read_data(tmp_path).records[1].height) == (40, 60)
    (tmp_path / "images" / "b.jpg").unlink()
    assert ("error", "image without a size", "image 'b.jpg'") in findings(tmp_path, file)


@pytest.mark.parametrize("value", WRONG_IDS, ids=lambda value: repr(value)[:9])
def test_ids_that_are_no_whole_numbers_are_reported(tmp_path: Path, value: object) -> None:
    file = edited_coco(tmp_path, lambda content: content["images"][2].update(id=value))
    assert findings(tmp_path, file) == [("error", "malformed image record", "images[2]")]
    file = edited_coco(tmp_path, lambda content: content["annotations"][0].update(image_id=value))
    assert findings(tmp_path, file) == [("error", "unknown image id", "annotation id 1")]
    file = edited_coco(tmp_path, lambda content: content["annotations"][0].update(category_id=value))
    assert findings(tmp_path, file) == [("error", "unknown class", "annotation id 1 of 'a.jpg'")]
    file = edited_coco(
        tmp_path, lambda content: content["annotations"][0].update(id=value, bbox=[1, 1, 0, 1])
    )
    (found,) = findings(tmp_path, file)
    assert found[:2] == ("error", "empty box")
    file = edited_coco(tmp_path, lambda content: content["categories"][0].update(id=value))
    with pytest.raises(DataError, match=r"categories\[0\]: no whole number as its id"):
        read_data(tmp_path)
    (found,) = [problem for problem in check_data(tmp_path) if problem.severity == "error"]
    assert found.kind == "cannot be read" and "categories[0]" in found.mend


@pytest.mark.parametrize("value", NOT_NUMBERS, ids=lambda value: repr(value)[:9])
@pytest.mark.parametrize("place", range(4))
def test_coordinates_that_are_no_numbers_are_reported(tmp_path: Path, place: int, value: object) -> None:
    box = [5, 5, 20, 30]
    box[place] = value  # type: ignore[call-overload]
    file = edited_coco(tmp_path, lambda content: content["annotations"][0].update(bbox=box))
    ((severity, kind, record),) = findings(tmp_path, file)
    assert (severity, record) == ("error", "annotation id 1 of 'a.jpg'")
    spelled = value == "1e999" or type(value) in (int, float)
    assert kind == ("not a number" if spelled else "malformed box")


@pytest.mark.parametrize("far", [2**31, 3 * 10**9, 2**63, 10**300, 1e300])
def test_coordinates_far_outside_are_clipped_with_a_warning_or_reported(tmp_path: Path, far: float) -> None:
    file = edited_coco(tmp_path, lambda content: content["annotations"][0].update(bbox=[5, 5, far, far]))
    assert [kind for _, kind, _ in findings(tmp_path, file)] == ["box partly outside the image"]
    assert read_data(tmp_path).records[0].boxes[0].tolist() == [5, 5, 60, 40]
    file = edited_coco(tmp_path, lambda content: content["annotations"][0].update(bbox=[far, 5, 9, 9]))
    ((_, kind, _),) = findings(tmp_path, file)
    assert kind in ("box outside the image", "empty box")  # empty: a float holds no 9 pixels so far out


@pytest.mark.parametrize("value", [HUGE, -1, math.inf, "wide", True, [1]], ids=lambda value: repr(value)[:9])
def test_an_area_that_is_none_is_reported_and_the_box_s_taken(tmp_path: Path, value: object) -> None:
    file = edited_coco(tmp_path, lambda content: content["annotations"][0].update(area=value))
    assert findings(tmp_path, file) == [("warning", "malformed area", "annotation id 1 of 'a.jpg'")]
    assert read_data(tmp_path).records[0].area[0] == 600


@pytest.mark.parametrize(("value", "read"), [(None, 600), (math.nan, 600), ("123.5", 123.5), (123.5, 123.5)])
def test_an_area_may_be_missing_or_text(tmp_path: Path, value: object, read: float) -> None:
    edited_coco(tmp_path, lambda content: content["annotations"][0].update(area=value))
    data = read_data(tmp_path)
    assert data.records[0].area[0] == read and data.problems == ()


NO = ["0", False, "false", "False", 0.0, None]
YES = ["1", True, "true", "True", 1.0]


@pytest.mark.parametrize(("written", "crowd"), [(no, False) for no in NO] + [(yes, True) for yes in YES])
def test_what_says_whether_a_box_is_a_crowd_is_read_by_its_meaning(
    tmp_path: Path, written: object, crowd: bool
) -> None:
    edited_coco(tmp_path / "coco", lambda content: content["annotations"][0].update(iscrowd=written))
    edited_coco(tmp_path / "ignore", lambda content: content["annotations"][0].update(ignore=written))
    file = write_voc(tmp_path / "voc", three_pictures()) / "a.xml"
    text = "" if written is None else str(written)
    file.write_text(file.read_text().replace("<difficult>0<", f"<difficult>{text}<", 1))
    for name in ("coco", "ignore", "voc"):
        data = read_data(tmp_path / name)
        assert data.records[0].crowd.tolist() == [crowd, False] and data.problems == ()


@pytest.mark.parametrize(
    "written", [2, -1, "2", "yes", math.nan, HUGE, [1], {}], ids=lambda value: repr(value)[:9]
)
def test_what_says_neither_is_reported(tmp_path: Path, written: object) -> None:
    for key in ("iscrowd", "ignore"):
        coco = edited_coco(
            tmp_path / key, lambda content, key=key: content["annotations"][0].update({key: written})
        )
        assert findings(tmp_path / key, coco) == [("error", f"malformed {key}", "annotation id 1 of 'a.jpg'")]
    voc = write_voc(tmp_path / "voc", three_pictures()) / "a.xml"
    voc.write_text(voc.read_text().replace("<difficult>0<", f"<difficult>{written}<", 1))
    assert findings(tmp_path / "voc", voc) == [("error", "malformed difficult", "object 1 'cat'")]


def test_text_that_spells_a_number_is_that_number(tmp_path: Path) -> None:
    write_coco(tmp_path / "plain", three_pictures())

    def as_text(content: dict[str, Any]) -> None:
        for image in content["images"]:
            image.update({key: str(image[key]) for key in ("id", "width", "height")})
        for box in content["annotations"]:
            box.update({key: str(box[key]) for key in ("id", "image_id", "category_id", "iscrowd")})
            box["bbox"] = [str(value) for value in box["bbox"]]
        for category in content["categories"]:
            category["id"] = f" {category['id']}.0 "

    edited_coco(tmp_path / "text", as_text)
    plain, text = (read_data(tmp_path / name) for name in ("plain", "text"))
    assert text.problems == () and text.to_coco() == plain.to_coco()


@pytest.mark.parametrize(
    "value", ["3e9", "3000000000", "9" * 5000, "1e999", "-64", "nan", "inf", "wide", "1.5"]
)
def test_voc_sizes_and_corners(tmp_path: Path, value: str) -> None:
    file = write_voc(tmp_path / "size", three_pictures()) / "b.xml"
    file.write_text(file.read_text().replace("<width>40<", f"<width>{value}<"))
    assert findings(tmp_path / "size", file) == [("warning", "malformed image size", "image 'b.jpg'")]
    assert read_data(tmp_path / "size").records[1].width == 40
    file = write_voc(tmp_path / "box", three_pictures()) / "a.xml"
    file.write_text(file.read_text().replace("<xmin>5<", f"<xmin>{value}<", 1))
    found = findings(tmp_path / "box", file)
    assert [record for _, _, record in found] == ["object 1 'cat'"] * (value != "1.5")


@pytest.mark.parametrize("place", range(5))
@pytest.mark.parametrize("word", ["9" * 400, "-" + "9" * 400, "1e999", "-inf", "nan", "wide", "9" * 5000])
def test_yolo_words(tmp_path: Path, word: str, place: int) -> None:
    file = write_yolo(tmp_path, three_pictures()) / "a.txt"
    words = ["0", ".5", ".5", ".2", ".2"]
    words[place] = word
    file.write_text(file.read_text() + " ".join(words))
    assert [(severity, record) for severity, _, record in findings(tmp_path, file)] == [("error", "line 3")]


@pytest.mark.parametrize("nc", ["3.0", "'3'", "1e400", "'x'", "[3]", "9" * 5000, ".nan"])
def test_yolo_number_of_classes(tmp_path: Path, nc: str) -> None:
    write_yolo(tmp_path, three_pictures())
    (tmp_path / "data.yaml").write_text(f"train: images/train\nnames: [cat, dog, emu]\nnc: {nc}\n")
    if nc in ("3.0", "'3'"):
        assert read_data(tmp_path).problems == ()
        return
    with pytest.raises(DataError) as caught:
        read_data(tmp_path)
    assert str(caught.value).startswith(f"{tmp_path / 'data.yaml'}: ") and "\n" not in str(caught.value)


def test_yolo_names_numbered_in_text(tmp_path: Path) -> None:
    write_yolo(tmp_path, three_pictures())
    (tmp_path / "data.yaml").write_text("train: images/train\nnames: {'0': cat, '1': dog, '2': emu}\n")
    assert read_data(tmp_path).classes == ("cat", "dog", "emu")


def test_a_json_number_of_thousands_of_digits_is_a_line_that_names_the_file(tmp_path: Path) -> None:
    file = write_coco(tmp_path, three_pictures())
    file.write_text(file.read_text().replace('"width": 60', f'"width": {"9" * 5000}', 1))
    with pytest.raises(DataError) as caught:
        read_data(tmp_path)
    assert (
        str(caught.value) == f"{file}: invalid JSON (a number of thousands of digits): write the file again"
    )


def test_the_largest_ids_are_kept(tmp_path: Path) -> None:
    largest = 2**63 - 1

    def edit(content: dict[str, Any]) -> None:
        content["images"][0]["id"] = largest
        content["categories"][0]["id"] = largest  # the emu's
        for box in content["annotations"]:
            box["image_id"] = largest if box["image_id"] == 1 else box["image_id"]
            box["category_id"] = largest if box["category_id"] == 30 else box["category_id"]

    edited_coco(tmp_path, edit)
    data: DetectionData = read_data(tmp_path, classes=("cat", "dog", "emu", "fox"))
    assert data.problems == () and data.records[0].image_id == largest and data.category_ids[2] == largest
    assert all(number < 2**63 for number in data.category_ids) and len(set(data.category_ids)) == 4


# --- what scoring shares with training


@pytest.mark.parametrize(
    "box", [{1.0, 2.0, 3.0, 4.0}, dict.fromkeys([1.0, 2.0, 3.0, 4.0]), iter([1.0, 2.0, 3.0, 4.0]), "1234"]
)
def test_a_box_without_an_order_of_its_own_is_refused_by_name(box: Any) -> None:
    annotation = {"id": 5, "image_id": 1, "category_id": 1, "bbox": box}
    sound = {**annotation, "id": 6, "bbox": np.array([1.0, 2.0, 3.0, 4.0])}
    content = {"images": [{"id": 1}], "annotations": [annotation, sound], "categories": [{"id": 1}]}
    read = read_annotations(content)
    assert read.box.tolist() == [[1, 2, 3, 4]]
    (problem,) = read.problems
    assert (problem.kind, problem.record) == ("malformed box", "annotation id 5 of '1'")


def test_columns_are_what_the_file_says_and_what_cannot_be_read_is_a_problem(tmp_path: Path) -> None:
    boxes = [
        {"id": 5, "image_id": 2, "category_id": 1, "bbox": [1, 2, 3, 4], "iscrowd": "1", "area": None},
        {"id": 6, "image_id": 1, "category_id": 1, "bbox": (1.5, 2, 1, 4), "area": 7},
        {"id": 7, "image_id": 1, "category_id": 1, "bbox": [1, 2, -3, 4]},
        {"image_id": 3, "category_id": 1, "bbox": [1, 2, 3, 4]},
    ]
    content = {
        "images": [{"id": 2}, {"id": 1, "file_name": "b.jpg"}],
        "annotations": boxes,
        "categories": [{"id": 1}],
    }
    read = read_annotations(content)
    assert list(read.images) == [2, 1] and read.categories == {1: "1"}
    assert list(read.record) == ["annotation id 5 of '2'", "annotation id 6 of 'b.jpg'"]
    assert read.image.tolist() == [0, 1] and read.category.tolist() == [1, 1]
    assert read.box.tolist() == [[1, 2, 3, 4], [1.5, 2, 1, 4]]
    assert math.isnan(read.area[0]) and read.area[1] == 7 and read.crowd.tolist() == [True, False]
    assert [str(problem) for problem in read.problems] == [
        "error: annotations given in memory: annotation id 7 of 'b.jpg': inverted box [1, 2, -3, 4]: "
        "swap its corners or remove it",
        "error: annotations given in memory: annotations[3]: unknown image id 3: "
        "name an image of the list 'images' or remove it",
    ]
    file = tmp_path / "a.json"
    file.write_bytes(b"\xef\xbb\xbf" + json.dumps(content).encode())
    assert read_annotations(file).box.tolist() == read.box.tolist()
