"""What a data set has twice, or under two names that are nearly one: it is said, and what is made of it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from test_doubt import box, coco, image

from ghmdet.data import DetectionData, check_data, read_data
from ghmdet.data.annotations import read_annotations
from ghmdet.data.layout import apart
from ghmdet.data.records import Problem
from ghmdet.errors import DataError
from ghmdet.evaluation.score import score
from small_sets import Picture, draw, voc_xml


def written(root: Path, content: object, part: str = "train") -> Path:
    for name in "abcd":
        draw(root / "images" / f"{name}.jpg", 60, 40)
    file = root / "annotations" / f"instances_{part}.json"
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps(content))
    return file


def found(data: DetectionData) -> dict[str, int]:
    return {record.path.name: len(record.boxes) for record in data.records}


def told(data: DetectionData) -> list[Problem]:
    return [problem for problem in data.problems if problem.kind != "picture that no split uses"]


# --- ids of COCO


def test_an_image_id_of_two_pictures_says_of_neither_which_boxes_are_its_own(tmp_path: Path) -> None:
    content = coco([image(1, "a.jpg"), image(2, "b.jpg"), image(1, "c.jpg")], [box(1), box(2), box(1, 2)])
    file = written(tmp_path, content)
    data = read_data(tmp_path)
    assert found(data) == {"b.jpg": 1}
    assert list(map(str, told(data))) == [
        f"error: {file}: images[2] 'c.jpg': duplicate image id 1: 'a.jpg' has it, too: both are left out with all their"
        " boxes: number each image once"
    ]
    assert "1 × duplicate image id" in data.describe()
    results = [{"image_id": i, "category_id": 1, "bbox": [8, 8, 20, 20], "score": 0.5} for i in (1, 2)]
    metrics = score(content, results)
    assert (metrics.images, metrics.boxes, metrics.detections) == (1, 1, 1)


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (0, 2, 1, 3), (2, 0, 1, 3), (0, 1, 3, 2), (1, 0, 2, 3)])
def test_no_picture_of_such_an_id_comes_back_under_another_one(
    tmp_path: Path, order: tuple[int, ...]
) -> None:
    records = [image(1, "a.jpg"), image(1, "c.jpg"), image(2, "c.jpg"), image(3, "b.jpg")]
    written(tmp_path, coco([records[place] for place in order], [box(1), box(2), box(3)]))
    assert found(read_data(tmp_path)) == {"b.jpg": 1}


def test_an_image_that_is_listed_twice_with_its_id_is_one_picture(tmp_path: Path) -> None:
    written(
        tmp_path, coco([image(1, "a.jpg"), image(2, "b.jpg"), image(1, "a.jpg")], [box(1), box(2), box(1)])
    )
    data = read_data(tmp_path)
    assert found(data) == {"a.jpg": 1, "b.jpg": 1}
    assert [(one.severity, one.kind) for one in told(data)] == [("warning", "image listed twice")]


@pytest.mark.parametrize("ids", [[7, 7, 8], [7, 7.0, 8], ["7", 7, None], [7, "7", "x"]])
def test_an_annotation_id_that_is_there_twice_is_said_once(tmp_path: Path, ids: list[object]) -> None:
    boxes = [box(1), box(1, 2, 30, 10, 9, 9), box(2)]
    content = coco(
        [image(1, "a.jpg"), image(2, "b.jpg")], [{**one, "id": i} for one, i in zip(boxes, ids, strict=True)]
    )
    file = written(tmp_path, content)
    data = read_data(tmp_path)
    assert found(data) == {"a.jpg": 2, "b.jpg": 1}
    (problem,) = told(data)
    assert str(problem) == (
        f"warning: {file}: duplicate annotation id [7]: each is read, but other programs keep one"
        " of an id: number each annotation once"
    )
    assert problem in check_data(tmp_path)


def test_annotation_ids_that_are_there_twice_are_counted(tmp_path: Path) -> None:
    boxes = [{**box(i), "id": number} for number in (1, 2, 3, 4, 5) for i in (1, 2)]
    written(tmp_path, coco([image(1, "a.jpg"), image(2, "b.jpg")], boxes))
    (problem,) = told(read_data(tmp_path))
    assert problem.count == 5 and problem.value == "[1, 2, 3, 4, 5]"
    assert not read_annotations(coco([image(1, "a.jpg")], [{"id": None, **box(1)}, box(1)])).problems


# --- one box of a picture that is listed twice


@pytest.mark.parametrize("key", ["iscrowd", "ignore"])
@pytest.mark.parametrize("flags", [(0, 1), (1, 0)])
def test_a_box_that_one_record_ignores_is_a_crowd_region_and_this_is_said(
    tmp_path: Path, key: str, flags: tuple[int, int]
) -> None:
    boxes = [{**box(i), key: flag} for i, flag in zip((1, 3), flags, strict=True)]
    content = coco([image(1, "a.jpg"), image(2, "b.jpg"), image(3, "a.jpg")], [*boxes, box(2)])
    file = written(tmp_path, content)
    data = read_data(tmp_path)
    assert [record.crowd.tolist() for record in data.records] == [[True], [False]]
    listed, problem = told(data)
    assert listed.kind == "image listed twice"
    assert str(problem) == (
        f"warning: {file}: annotation id 2 of 'a.jpg': box both a crowd region and an object [8, 8, 20, 20]:"
        " taken as a crowd region: make both agree"
    )


# --- names of classes that are nearly one


def voc_of(root: Path, part: str, names: list[str]) -> None:
    for number, name in enumerate(names):
        stem = f"{part}{number}"
        draw(root / "JPEGImages" / f"{stem}.jpg", 60, 40)
        corners = "<xmin>8</xmin><ymin>8</ymin><xmax>30</xmax><ymax>30</ymax>"
        xml = f"<annotation><object><name>{name}</name><bndbox>{corners}</bndbox></object></annotation>"
        for file, text in ((f"Annotations/{stem}.xml", xml), (f"ImageSets/Main/{part}.txt", f"{stem}\n")):
            (root / file).parent.mkdir(parents=True, exist_ok=True)
            with (root / file).open("a") as opened:
                opened.write(text)


ALIKE = [
    ("Helmet", "helmet"),
    ("helmet", "helmets"),
    ("box", "Boxes"),
    ("battery", "batteries"),
    ("traffic light", "traffic_light"),
    ("no  helmet", "no-helmet"),
    ("café", "cafe\u0301"),
    ("ｃａｒ", "car"),
    ("rbc", "rbc\u200b"),
    ("red cell", "red\u00a0cell"),
    ("traffic light", "trafficlight"),
    ("TrafficLight", "traffic_light"),
    ("x-ray", "xray"),
    ("level 1", "level1"),
]


def test_names_that_look_alike_are_told_apart() -> None:
    assert [apart(*pair) for pair in ALIKE if "\\" in "".join(apart(*pair))] == [
        ("'caf\\xe9'", "'cafe\\u0301'"),
        ("'rbc'", "'rbc\\u200b'"),
        ("'red cell'", "'red\\xa0cell'"),
    ]


@pytest.mark.parametrize(("one", "other"), ALIKE)
def test_classes_of_nearly_one_name_are_named_with_their_boxes(tmp_path: Path, one: str, other: str) -> None:
    voc_of(tmp_path, "train", [one, other, one, "dog"])
    voc_of(tmp_path, "val", [one, "dog"])
    data = read_data(tmp_path)
    (problem,) = data.problems
    assert (problem.severity, problem.kind) == ("warning", "classes of nearly one name")
    named = apart(one, other)
    assert f"{named[0]} (2 boxes)" in problem.value and f"{named[1]} (1 box)" in problem.value
    assert str(problem.value) in data.describe() and problem in check_data(tmp_path)
    assert read_data(tmp_path, "val", classes=data.classes).problems == ()


@pytest.mark.parametrize(("one", "other"), [("-10", "10"), ("1-0", "10"), ("1_0", "10"), ("a1", "a-10")])
def test_numbers_that_a_sign_tells_apart_are_no_nearly_one_name(tmp_path: Path, one: str, other: str) -> None:
    voc_of(tmp_path, "train", [one, other])
    assert read_data(tmp_path).problems == ()


@pytest.mark.parametrize(("one", "other"), ALIKE)
def test_a_val_class_of_nearly_a_train_class_s_name_is_asked_about(
    tmp_path: Path, one: str, other: str
) -> None:
    voc_of(tmp_path, "train", [one, one, "dog"])
    voc_of(tmp_path, "val", [other, "dog"])
    (problem,) = [one for one in check_data(tmp_path) if one.severity == "error"]
    assert problem.kind == "unknown class"
    own, meant = apart(other, one)
    assert problem.value == f"{own} (1 box; did you mean {meant}, of 2 boxes in train?)"
    train = read_data(tmp_path)
    val = read_data(tmp_path, "val", classes=train.classes)
    assert f"{own} (did you mean {meant}?)" in val.describe()
    with pytest.raises(DataError, match="did you mean"):
        read_data(tmp_path, "val", classes=[one])


def test_other_names_are_no_such_classes(tmp_path: Path) -> None:
    for number, names in enumerate(
        (("a", "A"), ("can", "cane"), ("cap", "cape", "apes"), ("bus", "bush"), ("1", "10"))
    ):
        voc_of(tmp_path / str(number), "train", list(names))
        assert read_data(tmp_path / str(number)).problems == ()


# --- one part, two files


def placed(root: Path, name: str, picture: str) -> None:
    draw(root / "images" / picture, 60, 40)
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).write_text(json.dumps(coco([image(1, picture)], [box(1)])))


@pytest.mark.parametrize(
    ("train", "val"),
    [
        ("train.json", "test/annotations.json"),
        ("train.json", "valid/_annotations.coco.json"),
        ("train/labels.json", "val.json"),
        ("Train/_annotations.coco.json", "dev/annotations/instances.json"),
        ("train.json", "annotations/instances_val2017.json"),
        ("training/annotations.json", "annotations/val.json"),
    ],
)
def test_a_file_of_one_part_hides_no_file_of_another(tmp_path: Path, train: str, val: str) -> None:
    placed(tmp_path, train, "a.jpg")
    placed(tmp_path, val, "b.jpg")
    assert found(read_data(tmp_path)) == {"a.jpg": 1}
    assert found(read_data(tmp_path, "test" if "test" in val else "val")) == {"b.jpg": 1}


@pytest.mark.parametrize(
    ("parts", "stray"),
    [
        (("train/_annotations.coco.json", "valid/_annotations.coco.json"), "train_backup.json"),
        (("train/_annotations.coco.json", "valid/_annotations.coco.json"), "validation.json"),
        (("train/_annotations.coco.json", "valid/_annotations.coco.json"), "valid/labels.json"),
        (("train/annotations.json", "val.json"), "train.json"),
        (("annotations/train.json", "annotations/val.json"), "my_test_detections.json"),
        (("annotations/instances_default.json",), "val.json"),
    ],
)
def test_what_lies_beside_a_sound_set_changes_nothing(
    parts: Sequence[str], stray: str, tmp_path: Path
) -> None:
    for part, picture in zip(parts, ("a.jpg", "b.jpg"), strict=False):
        placed(tmp_path, part, picture)
    alone = [found(read_data(tmp_path, split)) for split in ("train", "val")[: len(parts)]]
    placed(tmp_path, stray, "c.jpg")
    assert [found(read_data(tmp_path, split)) for split in ("train", "val")[: len(parts)]] == alone
    unused = [p for p in check_data(tmp_path) if p.kind == "label file that no split uses"]
    assert [stray in str(p) for p in unused] == [True]


def test_what_annotations_holds_comes_before_files_of_the_same_part(tmp_path: Path) -> None:
    for name in ("val.json", "valid/labels.json", "labels.json", "extra/_annotations.coco.json"):
        placed(tmp_path, name, "b.jpg")
    for name in ("train2017", "val2017", "train"):
        placed(tmp_path, f"annotations/{'instances' if '2' in name else 'captions'}_{name}.json", "a.jpg")
    (problem,) = [p for p in read_data(tmp_path).problems if p.kind == "label file that no split uses"]
    assert problem.count == 5 and found(read_data(tmp_path, "val")) == {"a.jpg": 1}


# --- one fault, many lines


@pytest.mark.parametrize("size", [(20, 20), (40, 60)])  # too small; its sides changed places
def test_a_wrong_size_is_said_once_a_file_and_not_of_each_box(tmp_path: Path, size: tuple[int, int]) -> None:
    corners = [(2, 2, 9, 9), (30, 5, 58, 35), (45, 8, 55, 30), (44, 1, 59, 39)]
    for stem in "ab":
        picture = Picture(f"{stem}.jpg", 60, 40, [(0, *box) for box in corners])
        draw(tmp_path / "JPEGImages" / picture.name, 60, 40)
        picture.width, picture.height = size if stem == "a" else (60, 40)
        (tmp_path / "Annotations").mkdir(exist_ok=True)
        (tmp_path / "Annotations" / f"{stem}.xml").write_text(voc_xml(picture))
    (problem,) = check_data(tmp_path, "train")
    said = (
        f"(the file has 60x40 pixels, its annotation says {size[0]}x{size[1]}): left out: correct one of them"
    )
    assert str(problem) == f"error: {tmp_path}/Annotations/a.xml: image 'a.jpg': size mismatch {said}"
    data = read_data(tmp_path)
    assert found(data) == {"b.jpg": 4} and data.problems == (problem,)


@pytest.mark.parametrize("inside", [1, 0])
def test_a_wrong_size_comes_before_the_boxes_that_coco_rejects_for_it(tmp_path: Path, inside: int) -> None:
    boxes = [*[box(1, 1, 2, 2, 9, 9)] * inside, box(1, 1, 30, 5, 20, 20), box(1, 1, 40, 8, 9, 9), box(2)]
    file = written(tmp_path, coco([image(1, "a.jpg", 20, 20), image(2, "b.jpg")], boxes))
    data = read_data(tmp_path)
    first, *others = told(data)
    said = "(the file has 60x40 pixels, its annotation says 20x20): left out: correct one of them"
    assert str(first) == f"error: {file}: image 'a.jpg': size mismatch {said}"
    assert [problem.kind for problem in others] == ["box outside the image"] * 2
    assert found(data) == {"b.jpg": 1}


def test_boxes_outside_a_picture_whose_size_is_right_or_unknown_are_said_one_by_one(tmp_path: Path) -> None:
    for stem in "ab":
        picture = Picture(f"{stem}.jpg", 60, 40, [(0, 2, 2, 9, 9), (0, 70, 5, 90, 35), (0, 50, 5, 90, 35)])
        (tmp_path / "Annotations").mkdir(exist_ok=True)
        (tmp_path / "Annotations" / f"{stem}.xml").write_text(voc_xml(picture))
    draw(tmp_path / "JPEGImages" / "a.jpg", 60, 40)
    kinds = ["box outside the image", "box partly outside the image"] * 2
    assert [problem.kind for problem in read_data(tmp_path).problems] == kinds


def test_a_record_goes_with_the_picture_that_is_left_out_and_says_so() -> None:
    pictures = [image(1, "a.jpg"), image(1, "b.jpg"), image(2, "b.jpg"), image(2, "c.jpg")]
    said = [str(problem) for problem in read_annotations(coco(pictures, [])).problems]
    assert "'a.jpg' has it, too" in said[0] and "'b.jpg' has it, too" in said[2]
    assert "image id 1 has its name, and is left out: so is this" in said[1] and "taken as" not in " ".join(
        said
    )


# --- keys


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        (
            "data.yaml",
            "train: images\nnames: {0: a, 1: b, 1: c}\n",
            r"line 2, column 21 \('1' is given twice\)",
        ),
        (
            "data.yaml",
            "names: [a]\ntrain: images\ntrain: others\n",
            r"line 3, column 1 \('train' is given twice\)",
        ),
        (
            "obj.data",
            "classes = 1\ntrain = t.txt\nnames = n\n\ntrain = u.txt",
            "'train' is given twice: keep one of",
        ),
    ],
)
def test_a_key_of_a_yaml_that_is_given_twice_is_named(
    tmp_path: Path, name: str, text: str, said: str
) -> None:
    draw(tmp_path / "images" / "a.jpg", 60, 40)
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=said):
        read_data(tmp_path / name)


def test_a_list_of_coco_that_is_given_twice_is_named(tmp_path: Path) -> None:
    """The last would be taken, and the boxes of the first lost without a word."""
    content = coco([image(1, "a.jpg"), image(2, "b.jpg")], [box(1)])
    file = written(tmp_path, content)
    more = json.dumps([box(2)])
    file.write_text(f'{json.dumps(content)[:-1]}, "annotations": {more}}}')
    with pytest.raises(DataError, match=r"invalid JSON \('annotations' is given twice in one object\)"):
        read_data(tmp_path)
