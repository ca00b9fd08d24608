"""Bad input: every message is one line that names the file, the record or value, and the mend."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ghmdet.data import read_data, require_images
from ghmdet.data.collector import judge_box
from ghmdet.data.records import Problem
from ghmdet.errors import DataError
from small_sets import draw, three_pictures, write_coco, write_voc, write_yolo

Edit = Callable[[dict[str, Any]], object]


def failure(path: Path, split: str = "train") -> str:
    with pytest.raises(DataError) as caught:
        read_data(path, split)
    text = str(caught.value)
    assert "\n" not in text or "no data set recognised" in text
    return text


def problem_of(path: Path) -> Problem:
    problems = [
        problem for problem in read_data(path).problems if problem.kind != "picture that no split uses"
    ]
    assert len(problems) == 1, problems
    assert "\n" not in str(problems[0])
    return problems[0]


def edited(tmp_path: Path, edit: Edit) -> Path:
    file = write_coco(tmp_path, three_pictures())
    content = json.loads(file.read_text())
    edit(content)
    file.write_text(json.dumps(content))
    return file


# --- nothing there, or nothing that can be read


def test_path_not_there(tmp_path: Path) -> None:
    assert failure(tmp_path / "no") == f"{tmp_path / 'no'}: no such file or folder: check the path"


def test_folder_without_a_data_set_says_what_was_looked_for(tmp_path: Path) -> None:
    first, *others = failure(tmp_path).splitlines()
    assert first == (
        f"{tmp_path}: no data set recognised: 0 pictures, 0 label files .txt, 0 label files .xml, 0 label files .json "
        "at any depth"
    )
    assert [line.split(":")[0] for line in others] == [
        f"looked for {name}" for name in ("COCO", "VOC", "YOLO", "LabelMe")
    ]


def test_ambiguous_folder_names_both(tmp_path: Path) -> None:
    write_coco(tmp_path, three_pictures())
    write_yolo(tmp_path, three_pictures())
    assert failure(tmp_path) == (
        f"{tmp_path}: ambiguous, holds COCO (train) and YOLO (train): give the COCO .json or YOLO data.yaml file itself"
    )


def test_file_of_another_kind(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("x")
    assert failure(tmp_path / "a.csv").endswith(
        "no data set: give a folder, a COCO .json file or a YOLO data.yaml"
    )


def test_empty_file(tmp_path: Path) -> None:
    file = write_coco(tmp_path, three_pictures())
    file.write_text("  \n")
    assert failure(tmp_path) == f"{file}: empty file: write it again"


def test_file_that_is_no_text(tmp_path: Path) -> None:
    file = write_coco(tmp_path, three_pictures())
    file.write_bytes(b'{"a": "\xff"}')
    assert failure(tmp_path) == f"{file}: not UTF-8 text (byte 7): save it as UTF-8"


def test_invalid_json_names_line_and_column(tmp_path: Path) -> None:
    file = write_coco(tmp_path, three_pictures())
    file.write_text('{"images": [\n  {"id": 1,]}')
    assert failure(tmp_path).startswith(f"{file}: invalid JSON at line 2, column 12 (")


@pytest.mark.parametrize(
    "content, said", [([], "a JSON list, as COCO results are"), (3, "no COCO annotations")]
)
def test_json_of_another_kind(tmp_path: Path, content: object, said: str) -> None:
    file = write_coco(tmp_path, three_pictures())
    file.write_text(json.dumps(content))
    assert said in failure(tmp_path)


@pytest.mark.parametrize("key", ["images", "annotations", "categories"])
def test_list_missing(tmp_path: Path, key: str) -> None:
    file = edited(tmp_path, lambda content: content.pop(key))
    assert failure(tmp_path).startswith(f"{file}: no list '{key}': ")


def test_no_images(tmp_path: Path) -> None:
    file = edited(tmp_path, lambda content: content["images"].clear())
    assert failure(tmp_path) == f"{file}: an empty data set: the list 'images' names none: add images"


def test_no_categories(tmp_path: Path) -> None:
    file = edited(tmp_path, lambda content: content["categories"].clear())
    assert failure(tmp_path) == f"{file}: no classes: name at least one category"


def test_two_categories_of_one_id_or_name(tmp_path: Path) -> None:
    file = edited(tmp_path, lambda content: content["categories"].append({"id": 10, "name": "ox"}))
    assert failure(tmp_path) == f"{file}: categories[3]: id 10 is there twice: number each category once"
    file = edited(tmp_path, lambda content: content["categories"].append({"id": 40, "name": "dog"}))
    assert failure(tmp_path) == f"{file}: class 'dog' is there twice: give every category a name of its own"
    file = edited(tmp_path, lambda content: content["categories"].append({"name": "dog"}))
    assert failure(tmp_path) == f"{file}: categories[3]: no whole number as its id: give it one, and a name"


def test_no_usable_box_names_the_first_rejected(tmp_path: Path) -> None:
    file = edited(tmp_path, lambda content: [a.update(bbox=[5, 5, 0, 0]) for a in content["annotations"]])
    assert failure(tmp_path) == (
        f"{tmp_path}: an empty data set: split train has 1 image and no usable box "
        f"(the first rejected: error: {file}: "
        "annotation id 1 of 'a.jpg': empty box [5, 5, 0, 0]: give it a width and a height or remove it): "
        "add boxes or correct them"
    )


def test_names_that_nothing_can_print_or_no_disk_can_hold(tmp_path: Path) -> None:
    file = write_coco(tmp_path, three_pictures())
    half = "\ud800"
    text = (
        file.read_text()
        .replace('"c.jpg"', json.dumps(f"{half}c.jpg"))
        .replace('"emu"', json.dumps(f"emu{half} 🙂"))
    )
    file.write_text(text)
    data = read_data(tmp_path)
    assert data.classes == ("cat", "dog", "emu? 🙂") and data.records[2].path.name == "?c.jpg"
    file.write_text(text.replace("b.jpg", "b" * 5000))
    with pytest.raises(DataError, match="missing image, the first of 2 of the 3 images"):
        require_images(read_data(tmp_path))
    for split in ("x" * 5000, "[" + "9" * 5000 + "]"):
        config = tmp_path / f"{len(split)}.yaml"
        config.write_text(f"train: {split}\nnames: [cat]\n")
        assert failure(config).startswith(f"{config}: ")


# --- boxes


@pytest.mark.parametrize(
    "bbox, kind, value",
    [
        ([5, 5, 0, 9], "empty box", "[5, 5, 0, 9]"),
        ([20, 20, -5, 9], "inverted box", "[20, 20, -5, 9]"),
        ([float("nan"), 5, 5, 9], "not a number", "[nan, 5, 5, 9]"),
        ([1, 5, float("inf"), 9], "not a number", "[1, 5, inf, 9]"),
        ([70, 5, 5, 9], "box outside the image", "[70, 5, 5, 9]"),
        ([-9.5, 5, 9.5, 9], "box outside the image", "[-9.5, 5, 9.5, 9]"),
        ([1, 2, 3], "malformed box", "[1, 2, 3]"),
        (None, "malformed box", "None"),
        (["1x", 2, 3, 4], "malformed box", "[1x, 2, 3, 4]"),
    ],
)
def test_coco_box_rejected(tmp_path: Path, bbox: object, kind: str, value: str) -> None:
    file = edited(tmp_path, lambda content: content["annotations"][1].update(bbox=bbox))
    problem = problem_of(tmp_path)
    assert (problem.severity, problem.kind, problem.value) == ("error", kind, value)
    assert str(problem).startswith(f"error: {file}: annotation id 2 of 'a.jpg': {kind} {value}: ")
    assert len(read_data(tmp_path).records[0].boxes) == 1


def test_box_partly_outside_is_clipped_with_a_warning(tmp_path: Path) -> None:
    edited(tmp_path, lambda content: content["annotations"][1].update(bbox=[50, 30, 20, 20]))
    problem = problem_of(tmp_path)
    assert (problem.severity, problem.kind) == ("warning", "box partly outside the image")
    assert read_data(tmp_path).records[0].boxes[1].tolist() == [50, 30, 60, 40]


def test_rounding_beyond_the_border_is_cut_off_without_a_word() -> None:
    assert judge_box((-0.001, 0, 60.002, 40), 60, 40) == (None, (0, 0, 60, 40))


def test_coco_ids(tmp_path: Path) -> None:
    file = edited(tmp_path, lambda content: content["annotations"][0].update(category_id=7))
    assert str(problem_of(tmp_path)) == (
        f"error: {file}: annotation id 1 of 'a.jpg': unknown class 7: name a category of the list 'categories'"
    )
    file = edited(tmp_path, lambda content: content["annotations"][0].update(image_id=77))
    assert str(problem_of(tmp_path)) == (
        f"error: {file}: annotation id 1: unknown image id 77: name an image of the list 'images' or remove it"
    )
    file = edited(tmp_path, lambda content: content["images"][2].update(id=1))
    assert str(problem_of(tmp_path)) == (
        f"error: {file}: images[2] 'c.jpg': duplicate image id 1: 'a.jpg' has it, too: both are left out with all their"
        " boxes: number each image once"
    )
    edited(tmp_path, lambda content: content["images"][2].update(id="three"))
    assert problem_of(tmp_path).kind == "malformed image record"
    edited(tmp_path, lambda content: content["annotations"].append(["no object"]))
    assert problem_of(tmp_path).kind == "malformed annotation"


def test_coco_image_without_size_takes_the_file_s_or_is_rejected(tmp_path: Path) -> None:
    file = edited(tmp_path, lambda content: [image.pop("width") for image in content["images"]])
    assert read_data(tmp_path).records[1].width == 40
    (tmp_path / "images" / "c.jpg").unlink()
    assert str(problem_of(tmp_path)) == (
        f"error: {file}: image 'c.jpg': image without a size: "
        "missing image: put it there or remove its record"
    )


@pytest.mark.parametrize(
    "xmin, kind",
    [
        ("30", "empty box"),
        ("31", "inverted box"),
        ("nan", "not a number"),
        ("", "malformed box"),
        ("x", "malformed box"),
    ],
)
def test_voc_box_rejected(tmp_path: Path, xmin: str, kind: str) -> None:
    file = write_voc(tmp_path, three_pictures()) / "a.xml"
    file.write_text(
        file.read_text().replace("<xmin>5</xmin>", f"<xmin>{xmin}</xmin>").replace("25</xmax>", "30</xmax>")
    )
    problem = problem_of(tmp_path)
    assert str(problem).startswith(f"error: {file}: object 1 'cat': {kind} [{xmin}, 5, 30, 35]: ")


def test_voc_files(tmp_path: Path) -> None:
    annotations = write_voc(tmp_path, three_pictures(), size=False)
    (annotations / "c.xml").write_text("<annotation>\n<size>")
    assert str(problem_of(tmp_path)).startswith(
        f"error: {annotations / 'c.xml'}: line 2, column 7: invalid XML ("
    )
    (annotations / "c.xml").unlink()
    listing = tmp_path / "ImageSets" / "Main" / "train.txt"
    assert str(problem_of(tmp_path)) == (
        f"error: {listing}: 'c': unreadable annotation: {annotations / 'c.xml'}: no such file: check the path"
    )
    listing.write_text("a\nb\n")
    (tmp_path / "JPEGImages" / "c.jpg").unlink()
    (tmp_path / "JPEGImages" / "b.jpg").write_bytes(b"")
    assert str(problem_of(tmp_path)).startswith(
        f"error: {annotations / 'b.xml'}: image 'b.jpg': image without a size: unreadable image ("
    )
    listing.write_text("")
    assert failure(tmp_path) == f"{listing}: empty file: write it again"


@pytest.mark.parametrize(
    "line, kind",
    [
        ("0 .5 .5 0 .2", "empty box"),
        ("0 .5 .5 .2 -.2", "inverted box"),
        ("0 nan .5 .2 .2", "not a number"),
        ("0 1.5 .5 .2 .2", "box outside the image"),
        ("0 30 20 10 10", "box not in fractions"),
        ("0 .5 .5 .2", "malformed box"),
        ("0 .5 .5 .2 .2 .9", "malformed box"),
        ("cat .5 .5 .2 .2", "malformed box"),
        ("3 .5 .5 .2 .2", "unknown class"),
        ("-1 .5 .5 .2 .2", "unknown class"),
        ("0.5 .5 .5 .2 .2", "unknown class"),
        ("nan .5 .5 .2 .2", "unknown class"),
    ],
)
def test_yolo_line_rejected(tmp_path: Path, line: str, kind: str) -> None:
    file = write_yolo(tmp_path, three_pictures()) / "a.txt"
    file.write_text(file.read_text() + line)
    assert str(problem_of(tmp_path)).startswith(f"error: {file}: line 3: {kind} '{line}': ")


def test_yolo_unreadable_picture(tmp_path: Path) -> None:
    write_yolo(tmp_path, three_pictures())
    image = tmp_path / "images" / "train" / "c.jpg"
    image.write_bytes(b"no picture")
    assert str(problem_of(tmp_path)).startswith(f"error: {image}: image without a size: unreadable image (")


def test_yolo_class_names(tmp_path: Path) -> None:
    write_yolo(tmp_path, three_pictures())
    (tmp_path / "classes.txt").unlink()
    assert failure(tmp_path).endswith(
        "no class names: write classes.txt, one name a line, or names: in data.yaml"
    )
    (tmp_path.parent / "data.yaml").write_text("names: [cat, dog, emu]")
    assert failure(tmp_path).endswith(f"no class names: give {tmp_path.parent}, whose data.yaml names them")
    config = tmp_path / "data.yaml"
    for names, said in (
        ("{0: cat, 2: dog}", "names are not numbered 0 to 1: number them without a gap"),
        ("cat", "no class names (names is 'cat'): write names: [first, second]"),
        ("[]", "no classes: name at least one category"),
        ("[cat, '']", "a class has an empty name: name every category"),
        ("[cat, dog]\nnc: 3", "nc is 3 but names has 2: make them agree"),
    ):
        config.write_text(f"train: images/train\nnames: {names}\n")
        assert failure(tmp_path) == f"{config}: {said}"
    config.write_text("train: [images\nnames: x")
    assert failure(tmp_path).startswith(f"{config}: invalid YAML at line 2, column 6 (")


def test_yolo_places(tmp_path: Path) -> None:
    write_yolo(tmp_path, three_pictures())
    config = tmp_path / "data.yaml"
    config.write_text("train: images/no\nnames: [cat, dog, emu]\n")
    place = tmp_path / "images" / "no"
    assert failure(tmp_path) == f"{place}: no such folder, list or picture: correct its entry in data.yaml"
    place.mkdir()
    assert failure(tmp_path) == f"{place}: an empty data set: no pictures there: add some or correct the path"
    config.write_text("names: [cat]\n")
    assert failure(config) == f"{config}: names no pictures: give train, val or test a folder"


def test_pictures_without_labels_are_no_data_set(tmp_path: Path) -> None:
    draw(tmp_path / "images" / "a.jpg", 20, 20)
    assert "no data set recognised" in failure(tmp_path)
