"""What may mean two things: it is said aloud which is taken, or refused with the mend."""

from __future__ import annotations

import io
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from ghmdet.cli import main
from ghmdet.data import DetectionData, check_data, read_data
from ghmdet.data.check import has_errors
from ghmdet.data.make import split
from ghmdet.errors import DataError
from ghmdet.evaluation.score import score
from small_sets import Picture, draw, three_pictures, voc_xml, write_coco, write_voc, write_yolo

CAT, DOG = "0 .5 .5 .4 .4\n", "1 .3 .3 .2 .2\n"
CATEGORIES = [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def image(number: int, name: str, width: int = 60, height: int = 40) -> dict[str, Any]:
    return {"id": number, "file_name": name, "width": width, "height": height}


def box(image_id: int, category: int = 1, *bbox: float) -> dict[str, Any]:
    return {"image_id": image_id, "category_id": category, "bbox": bbox or (8, 8, 20, 20)}


def coco(images: Sequence[dict[str, Any]], boxes: Sequence[dict[str, Any]]) -> dict[str, Any]:
    numbered = [{"id": number} | each for number, each in enumerate(boxes, start=1)]
    return {"images": list(images), "annotations": numbered, "categories": CATEGORIES}


def kinds(data: DetectionData) -> dict[str, int]:
    return {problem.kind: problem.count for problem in data.problems}


def names(data: DetectionData) -> list[str]:
    return [record.path.name for record in data.records]


# --- one label, two pictures


@pytest.mark.parametrize("other", ["a.png", "a.JPG", "a.jpeg"])
@pytest.mark.parametrize("beside", [True, False])
def test_a_yolo_label_file_of_two_pictures_is_neither_ones(tmp_path: Path, other: str, beside: bool) -> None:
    labels = tmp_path / ("train" if beside else "labels/train")
    for name in ("a.jpg", other, "b.jpg"):
        draw(tmp_path / ("train" if beside else "images/train") / name, 60, 40)
        write((labels / name).with_suffix(".txt"), CAT)
    write(tmp_path / "classes.txt", "cat\n")
    data = read_data(tmp_path)
    assert names(data) == ["b.jpg"] and kinds(data) == {"label file of more than one picture": 1}
    (problem,) = data.problems
    assert (problem.severity, problem.file) == ("error", str(labels / "a.txt"))
    assert "a.jpg" in problem.value and other in problem.value
    assert has_errors(check_data(tmp_path))
    write(tmp_path / "data.yaml", "train: list.txt\nnames: [cat]\n")
    folder = "train" if beside else "images/train"
    write(tmp_path / "list.txt", f"{folder}/a.jpg\n{folder}/b.jpg\n{folder}/a.jpg\n")
    assert names(read_data(tmp_path)) == [
        "a.jpg",
        "b.jpg",
        "a.jpg",
    ]  # the one that is listed, as often as it is


def test_a_labelme_file_of_two_pictures_is_neither_ones(tmp_path: Path) -> None:
    shape = {"label": "cat", "points": [[8, 8], [30, 30]], "shape_type": "rectangle"}
    for name in ("a.jpg", "a.png", "b.jpg", "c.jpg", "c.png"):
        draw(tmp_path / name, 60, 40)
        said = {"imagePath": "c.png"} if name[0] == "c" else {}
        write((tmp_path / name).with_suffix(".json"), json.dumps({"shapes": [shape]} | said))
    data = read_data(tmp_path)
    assert names(data) == ["b.jpg", "c.png"]
    assert kinds(data) == {"more than one picture of this name": 1, "picture that no split uses": 3}


# --- one picture, two records


@pytest.mark.parametrize("second", ["a.jpg", "./a.jpg", "x/../a.jpg"])
def test_a_coco_picture_under_two_ids_has_the_boxes_of_both(tmp_path: Path, second: str) -> None:
    for name in ("a.jpg", "b.jpg"):
        draw(tmp_path / "images" / name, 60, 40)
    (tmp_path / "images" / "x").mkdir()
    content = coco(
        [image(1, "a.jpg"), image(2, "b.jpg"), image(3, second)],
        [box(1), box(2), box(3, 2, 30, 10, 9, 9), box(3), box(2)],
    )
    write(tmp_path / "train.json", json.dumps(content))
    data = read_data(tmp_path)
    assert names(data) == ["a.jpg", "b.jpg"]
    assert [record.boxes.tolist() for record in data.records] == [
        [[8, 8, 28, 28], [30, 10, 39, 19]],
        [[8, 8, 28, 28], [8, 8, 28, 28]],  # twice in one record: said by `data check`
    ]
    assert kinds(data) == {"image listed twice": 1} and "image id 1" in data.problems[0].mend
    found = [
        {"image_id": i, "category_id": 1, "bbox": [8, 8, 20, 20], "score": 0.5 + i / 10} for i in (1, 2, 3)
    ]
    metrics = score(content, found)
    assert (metrics.images, metrics.boxes, metrics.detections) == (2, 4, 2)


def test_records_of_one_name_and_two_sizes_are_no_picture(tmp_path: Path) -> None:
    for name in ("a.jpg", "b.jpg"):
        draw(tmp_path / "images" / name, 60, 40)
    content = coco(
        [image(1, "a.jpg"), image(2, "b.jpg"), image(3, "a.jpg", 90, 90)], [box(1), box(2), box(3)]
    )
    write(tmp_path / "train.json", json.dumps(content))
    data = read_data(tmp_path)
    assert names(data) == ["b.jpg"]
    assert (data.problems[0].severity, data.problems[0].kind) == ("error", "image listed with two sizes")
    assert score(content, []).images == 1


# --- one name, two places


@pytest.mark.parametrize("folders", [("images", "train"), ("images", "images/train"), ("train", "data")])
@pytest.mark.parametrize("given", ["", "annotations/instances_train.json"])
def test_coco_pictures_that_differ_in_two_places_are_refused(
    tmp_path: Path, folders: tuple[str, str], given: str
) -> None:
    write_coco(tmp_path / "x", three_pictures())
    for place in folders:
        for picture in three_pictures():
            draw(tmp_path / place / picture.name, picture.width, picture.height)
    write(tmp_path / "annotations/instances_train.json", next((tmp_path / "x").rglob("*.json")).read_text())
    assert len(read_data(tmp_path / given).records) == 3  # copies
    draw(tmp_path / folders[1] / "b.jpg", 40, 60, seed=3)
    with pytest.raises(DataError) as caught:
        read_data(tmp_path / given)
    for place in folders:
        assert f"{tmp_path / place / 'b.jpg'}" in str(caught.value)
    assert "move one of them away" in str(caught.value)


@pytest.mark.parametrize("other", ["images", "Annotations"])
def test_voc_pictures_that_differ_in_two_places_are_refused(tmp_path: Path, other: str) -> None:
    write_voc(tmp_path, three_pictures())
    for picture in three_pictures():
        draw(tmp_path / other / picture.name, picture.width, picture.height)
    assert len(read_data(tmp_path).records) == 3
    draw(tmp_path / other / "b.jpg", 40, 60, seed=3)
    with pytest.raises(DataError, match=r"JPEGImages/b.jpg and .*/b.jpg .*move one of them away"):
        read_data(tmp_path)


# --- one tolerance


@pytest.mark.parametrize(
    "wrong",
    [
        {"category_id": 9},
        {"bbox": [8, 8, -3, 9]},
        {"bbox": [8, 8, 0, 9]},
        {"bbox": [70, 8, 9, 9]},
        {"bbox": "nothing"},
        {"iscrowd": 7},
        {"bbox": [0.1, 0.1, 0.5, 0.5]},
    ],
)
def test_score_and_training_leave_out_the_same_pictures(tmp_path: Path, wrong: dict[str, Any]) -> None:
    for name in ("a.jpg", "b.jpg", "c.jpg"):
        draw(tmp_path / "images" / name, 60, 40)
    content = coco([image(i, f"{name}.jpg") for i, name in enumerate("abc")], [box(0), box(1) | wrong])
    write(tmp_path / "train.json", json.dumps(content))
    data = read_data(tmp_path)
    assert names(data) == ["a.jpg", "c.jpg"]
    found = [{"image_id": i, "category_id": 1, "bbox": [8, 8, 20, 20], "score": 0.9} for i in range(3)]
    metrics = score(tmp_path / "train.json", found)
    alike = score(data.to_coco(), [each for each in found if each["image_id"] != 1])
    assert (metrics.images, metrics.boxes, metrics.detections) == (2, 1, 2)
    assert (metrics.AP, metrics.scores) == (alike.AP, alike.scores)
    assert any("picture without a sound label" in problem for problem in metrics.problems)


def test_an_object_without_a_class_makes_no_background(tmp_path: Path) -> None:
    annotations = write_voc(tmp_path / "voc", three_pictures())
    write(annotations / "b.xml", voc_xml(Picture("b.jpg", 40, 60, [(0, 1, 1, 9, 9)])).replace("cat", " "))
    shape = {"points": [[8, 8], [30, 30]], "shape_type": "rectangle"}
    for name, label in (("a", "cat"), ("b", "")):
        draw(tmp_path / "labelme" / f"{name}.jpg", 60, 40)
        write(tmp_path / "labelme" / f"{name}.json", json.dumps({"shapes": [shape | {"label": label}]}))
    assert names(read_data(tmp_path / "voc")) == ["a.jpg", "c.jpg"]
    assert names(read_data(tmp_path / "labelme")) == ["a.jpg"]


# --- what was read is said


def test_data_check_says_first_what_training_says(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_yolo(tmp_path, three_pictures())
    write_yolo(tmp_path, three_pictures()[:1], "valid")
    with pytest.raises(SystemExit):
        main(["data", "check", str(tmp_path)])
    said = capsys.readouterr().out.splitlines()
    assert said[:2] == [read_data(tmp_path, part).describe().splitlines()[0] for part in ("train", "val")]
    assert said[0] == (
        f"YOLO data in {tmp_path}, split train: 3 images (1 without boxes), 4 boxes of 3 classes: cat 2, dog 1, emu 1."
    )
    assert said[-1].endswith(" notes")
    with pytest.raises(SystemExit):
        main(["data", "check", str(tmp_path), "--split", "val"])
    assert "split valid (asked for as val): 1 image " in capsys.readouterr().out.splitlines()[0]


# --- ghmdet data split


def test_a_set_is_not_split_into_a_folder_inside_it(tmp_path: Path) -> None:
    write_yolo(tmp_path / "set", three_pictures())
    for inside in ("two", "images/two", "../set/x/y"):
        with pytest.raises(DataError, match=r"lies inside the data set.*give a folder outside"):
            split(tmp_path / "set", tmp_path / "set" / inside)
    (tmp_path / "link").symlink_to(tmp_path / "set")
    with pytest.raises(DataError, match="lies inside the data set"):
        split(tmp_path / "set", tmp_path / "link" / "two")
    file = write_coco(tmp_path / "coco", three_pictures())
    with pytest.raises(DataError, match="lies inside the data set"):
        split(file, tmp_path / "coco" / "two")
    assert sorted(path.name for path in (tmp_path / "set").iterdir()) == ["classes.txt", "images", "labels"]


def test_data_split_says_which_parts_are_not_in_the_new_set(tmp_path: Path) -> None:
    write_yolo(tmp_path / "set", three_pictures())
    said = list[str]()
    split(tmp_path / "set", tmp_path / "one", say=said.append)
    assert "not in it" not in "\n".join(said)
    write_yolo(tmp_path / "set", three_pictures(), "valid")
    write_yolo(tmp_path / "set", three_pictures(), "test")
    said = list[str]()
    split(tmp_path / "set", tmp_path / "two", say=said.append)
    told = "\n".join(said)
    assert f"not in it: split valid, test of {tmp_path / 'set'}" in told


def test_names_that_are_no_utf8_end_in_no_traceback(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_yolo(tmp_path / "set", three_pictures())
    for folder, end in (("images", ".jpg"), ("labels", ".txt")):
        path = os.fsencode(tmp_path / "set" / folder / "train") + b"/"
        Path(os.fsdecode(path + b"a" + end.encode())).rename(os.fsdecode(path + b"\xff\xe9" + end.encode()))
    (tmp_path / "set" / "labels" / "train" / os.fsdecode(b"\xff\xe9.txt")).write_text("7 .5 .5 .1 .1\n" + CAT)
    strict = io.TextIOWrapper(
        io.BytesIO(), encoding="utf-8", errors="strict"
    )  # as a terminal's in most languages
    monkeypatch.setattr(sys, "stdout", strict)
    with pytest.raises(SystemExit) as ended:
        main(["data", "check", str(tmp_path / "set")])
    strict.flush()
    assert ended.value.code == 1
    assert b"\\udcff\\udce9.txt: line 1: unknown class" in strict.buffer.getvalue()  # type: ignore[attr-defined]


# --- layouts


@pytest.mark.parametrize("text", ['{"cat": 3}', "[]", "", "{", '{"info": {"a": 1}, "licenses": []}'])
def test_another_json_file_among_voc_annotations_is_none_of_coco(tmp_path: Path, text: str) -> None:
    annotations = write_voc(tmp_path, three_pictures())
    for name in ("stats.json", "train.json"):
        write(annotations / name, text)
    data = read_data(tmp_path)
    assert data.format == "VOC" and len(data.records) == 3 and data.problems == ()


@pytest.mark.parametrize(
    ("pictures", "labels"),
    [
        ("Train/Images", "Train/Labels"),
        ("Images/Train", "Labels/Train"),
        ("TRAIN/images", "TRAIN/labels"),
        ("Train", "Train"),
    ],
)
def test_yolo_folders_in_upper_case(tmp_path: Path, pictures: str, labels: str) -> None:
    for part in ("train", "Valid"):
        for picture in three_pictures():
            place = pictures.replace("Train", part.title()) if part == "Valid" else pictures
            draw(
                tmp_path / place.replace("TRAIN", "VALID" if part == "Valid" else "TRAIN") / picture.name,
                60,
                40,
            )
            home = labels.replace("Train", "Valid").replace("TRAIN", "VALID") if part == "Valid" else labels
            write(tmp_path / home / f"{picture.name[0]}.txt", CAT if part == "train" else CAT + DOG)
    write(tmp_path / "classes.txt", "cat\ndog\n")
    assert [
        [len(record.boxes) for record in read_data(tmp_path, part).records] for part in ("train", "val")
    ] == [
        [1, 1, 1],
        [2, 2, 2],
    ]
    assert read_data(tmp_path).problems == ()


@pytest.mark.parametrize(
    ("pictures", "labels"),
    [
        ("Train/Images", "Train/Annotations"),
        ("IMAGES", "ANNOTATIONS"),
        ("Val", "Val"),
        ("JpegImages", "annotations"),
    ],
)
def test_voc_folders_in_upper_case(tmp_path: Path, pictures: str, labels: str) -> None:
    for picture in three_pictures():
        draw(tmp_path / pictures / picture.name, picture.width, picture.height)
        write(tmp_path / labels / f"{picture.name[0]}.xml", voc_xml(picture))
    data = read_data(tmp_path, "val" if pictures == "Val" else "train")
    assert data.format == "VOC" and all(record.path.is_file() for record in data.records)
    assert [len(record.boxes) for record in data.records] == [2, 2, 0] and data.problems == ()


@pytest.mark.parametrize(
    ("pictures", "file"),
    [
        ("Train", "Train/_annotations.coco.json"),
        ("Images/Train", "Annotations/Instances_Train.json"),
        ("Train/Images", "Train.json"),
    ],
)
def test_coco_folders_in_upper_case(tmp_path: Path, pictures: str, file: str) -> None:
    content = coco([image(1, "a.jpg")], [box(1)])
    for part in ("Train", "Val"):
        draw(tmp_path / pictures.replace("Train", part) / "a.jpg", 60, 40)
        write(tmp_path / file.replace("Train", part), json.dumps(content))
    for part in ("Train", "Val"):
        (record,) = read_data(tmp_path, part.lower()).records
        assert record.path.resolve() == tmp_path / pictures.replace("Train", part) / "a.jpg"


@pytest.mark.parametrize(
    "entry", ["images/train/*.jpg", "images/*/*.jpg", "./images/**/*.jpg", "/no/such/images/train/*.jpg"]
)
def test_a_pattern_in_a_data_yaml_is_the_pictures_that_fit_it(tmp_path: Path, entry: str) -> None:
    write_yolo(tmp_path, three_pictures())
    draw(tmp_path / "images" / "train" / "d.png", 60, 40)
    write(tmp_path / "data.yaml", f"train: {entry}\nnames: [cat, dog, emu]\n")
    data = read_data(tmp_path)
    assert names(data) == ["a.jpg", "b.jpg", "c.jpg"]
    assert kinds(data) == {"picture that no split uses": 1}
    write(tmp_path / "data.yaml", "train: images/train/*.gif\nnames: [cat, dog, emu]\n")
    with pytest.raises(DataError, match=r"images/train/\*.gif: no such folder, list or picture"):
        read_data(tmp_path)


@pytest.mark.parametrize(("text", "line"), [("\ncat\ndog\n", 1), ("cat\n\ndog\n", 2), ("cat\n  \t\ndog", 2)])
@pytest.mark.parametrize("file", ["classes.txt", "obj.names"])
def test_a_blank_line_shifts_no_class(tmp_path: Path, text: str, line: int, file: str) -> None:
    write_yolo(tmp_path, three_pictures())
    (tmp_path / "classes.txt").unlink()
    write(tmp_path / file, text)
    with pytest.raises(DataError, match=f"{file}: line {line} is blank: .*remove the line"):
        read_data(tmp_path)
    write(tmp_path / file, "cat\r\ndog\r\nemu\r\n\r\n \n")  # as labelImg and editors end files
    assert read_data(tmp_path).classes == ("cat", "dog", "emu")


@pytest.mark.parametrize("folder", ["", "ImageSets"])
def test_voc_lists_without_the_folder_main(tmp_path: Path, folder: str) -> None:
    write_voc(tmp_path, three_pictures())
    (tmp_path / "ImageSets" / "Main" / "train.txt").unlink()
    write(tmp_path / folder / "train.txt", "a\ndata/obj/c.jpg\n")
    write(tmp_path / folder / "val.txt", "b\n")
    write(tmp_path / folder / "notes.txt", "a\n")
    assert names(read_data(tmp_path)) == ["a.jpg", "c.jpg"] and read_data(tmp_path).problems == ()
    assert names(read_data(tmp_path, "val")) == ["b.jpg"]


@pytest.mark.parametrize(
    "line", ["images/{}", "./images/{}", "/home/me/darknet/data/images/{}", "data/images/{}"]
)
def test_lists_beside_a_yolo_folder_of_all_pictures_are_its_splits(tmp_path: Path, line: str) -> None:
    """Darknet's and older YOLO's."""
    for picture in three_pictures():
        draw(tmp_path / "images" / picture.name, picture.width, picture.height)
        write(tmp_path / "labels" / f"{picture.name[0]}.txt", CAT)
    write(tmp_path / "classes.txt", "cat\n")
    write(tmp_path / "train.txt", "see the wiki\n")
    assert names(read_data(tmp_path)) == ["a.jpg", "b.jpg", "c.jpg"]  # that is no list
    write(tmp_path / "train.txt", "".join(f"{line.format(name)}\n" for name in ("a.jpg", "c.jpg")))
    write(tmp_path / "val.txt", line.format("b.jpg"))
    assert names(read_data(tmp_path)) == ["a.jpg", "c.jpg"] and read_data(tmp_path).problems == ()
    assert names(read_data(tmp_path, "val")) == ["b.jpg"]


# --- which classes are meant


@pytest.mark.parametrize(
    "place", ["labels/train/classes.txt", "labels/obj.names", "images/train/classes.txt"]
)
def test_class_names_in_another_order_in_a_second_file_are_refused(tmp_path: Path, place: str) -> None:
    write_yolo(tmp_path, three_pictures())
    write(tmp_path / place, "cat\ndog\nemu\n")
    assert read_data(tmp_path).problems == ()
    write(tmp_path / place, "dog\ncat\nemu\n")
    with pytest.raises(DataError, match=r"classes: cat, dog, emu|classes: dog, cat, emu") as caught:
        read_data(tmp_path)
    assert str(tmp_path / place) in str(caught.value) and str(tmp_path / "classes.txt") in str(caught.value)
    write(
        tmp_path / "data.yaml", "train: images/train\nnames: [cat, dog, emu]\n"
    )  # which is made for training
    data = read_data(tmp_path)
    assert data.classes == ("cat", "dog", "emu") and kinds(data) == {"class names that differ": 1}
    assert str(tmp_path / place) in str(data.problems[0])


def test_two_yaml_files_that_name_other_classes_are_refused(tmp_path: Path) -> None:
    write_yolo(tmp_path, three_pictures())
    for name, names_ in (("a.yaml", "[cat, dog, emu]"), ("b.yml", "[cat, dog, emu]")):
        write(tmp_path / name, f"train: images/train\nnames: {names_}\n")
    assert len(read_data(tmp_path).records) == 3
    write(tmp_path / "b.yml", "train: images/train\nnames: [dog, cat, emu]\n")
    with pytest.raises(
        DataError, match=r"a.yaml and b.yml name other classes or splits: give the file that is meant"
    ):
        read_data(tmp_path)
    assert read_data(tmp_path / "b.yml").classes == ("dog", "cat", "emu")


@pytest.mark.parametrize("rows", [("1", "2", "3"), ("3", "1", "1"), ("2.0", "3.0", "1")])
def test_classes_numbered_from_one_are_refused(tmp_path: Path, rows: tuple[str, ...]) -> None:
    labels = write_yolo(tmp_path, three_pictures())
    for name, number in zip("abc", rows, strict=True):
        write(labels / f"{name}.txt", f"{number} .5 .5 .4 .4\n")
    with pytest.raises(DataError, match=r"classes 1 to 3 .*number them from 0"):
        read_data(tmp_path)
    write(labels / "a.txt", "0 .5 .5 .4 .4\n3 .5 .5 .4 .4\n")
    assert kinds(read_data(tmp_path)).keys() >= {"unknown class"}  # that is one wrong row


def test_an_object_with_two_boxes_is_not_read_as_the_first(tmp_path: Path) -> None:
    annotations = write_voc(tmp_path, three_pictures())
    text = voc_xml(Picture("a.jpg", boxes=[(0, 5, 5, 9, 9)]))
    again = text[text.index("<bndbox>") : text.index("</object>")]
    write(annotations / "a.xml", text.replace("</object>", f"{again}</object>"))
    data = read_data(tmp_path)
    assert names(data) == ["b.jpg", "c.jpg"] and data.problems[0].kind == "malformed box"
