"""Faults that nobody would notice: boxes on a wrong picture, labelled objects taught as background."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ghmdet.data import check_data, read_data
from ghmdet.data.make import split
from ghmdet.errors import DataError
from small_sets import draw

ROW = "0 .5 .5 .4 .4\n"


def coco(root: Path, part: str, names: list[str]) -> None:
    images = [{"id": i, "file_name": name, "width": 64, "height": 48} for i, name in enumerate(names)]
    boxes = [{"id": i, "image_id": i, "category_id": 1, "bbox": [8, 8, 20, 20]} for i in range(len(names))]
    content = {"images": images, "annotations": boxes, "categories": [{"id": 1, "name": "cat"}]}
    (root / "annotations").mkdir(parents=True, exist_ok=True)
    (root / "annotations" / f"instances_{part}.json").write_text(json.dumps(content))


@pytest.mark.parametrize("folder", ["images/val2017", "val_images", "images_val"])
def test_a_split_never_takes_the_pictures_of_another_ones_folder(tmp_path: Path, folder: str) -> None:
    for name in ("0.jpg", "1.jpg"):
        draw(tmp_path / folder / name, 64, 48)
    coco(tmp_path, "train2017", ["0.jpg", "1.jpg", "2.jpg"])
    coco(tmp_path, "val2017", ["0.jpg", "1.jpg"])
    assert not any(record.path.exists() for record in read_data(tmp_path, "train").records)
    assert all(record.path.exists() for record in read_data(tmp_path, "val").records)


def test_pictures_that_lie_elsewhere_are_found_where_no_usual_folder_is(tmp_path: Path) -> None:
    for name in ("0.jpg", "1.jpg"):
        draw(tmp_path / "train_images" / name, 64, 48)
    coco(tmp_path, "train", ["0.jpg", "1.jpg"])
    assert [record.path.exists() for record in read_data(tmp_path, "train").records] == [True, True]


@pytest.mark.parametrize(
    "row",
    [
        "0 .5 .5 .3 .2 .9",
        "0,.5,.5,.3,.2",
        "0 .5 .5 nan .2",
        "7 .5 .5 .3 .2",
        "0_1 .5 .5 .3 .2",
        "0 .5 .5 .3 .2 # sure",
    ],
)
def test_a_picture_whose_every_label_is_rejected_is_no_background(tmp_path: Path, row: str) -> None:
    for name, rows in (("a", ROW), ("b", row), ("c", ROW + row), ("d", "")):
        draw(tmp_path / "images" / "train" / f"{name}.jpg", 64, 48)
        file = tmp_path / "labels" / "train" / f"{name}.txt"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(rows)
    (tmp_path / "classes.txt").write_text("cat\ndog\n")
    data = read_data(tmp_path)
    assert [(record.path.stem, len(record.boxes)) for record in data.records] == [
        ("a", 1),
        ("c", 1),
        ("d", 0),
    ]
    assert f"1 × picture without a sound label ({tmp_path}/labels/train/b.txt: " in data.describe()
    said = list[str]()
    split(tmp_path, tmp_path.with_name("parts"), say=said.append)
    told = "\n".join(said)
    assert "picture without a sound label" in told
    names = {
        r.path.stem for part in ("train", "val") for r in read_data(tmp_path.with_name("parts"), part).records
    }
    assert names == {"a", "c", "d"}


def test_labels_of_another_kind_are_no_background_in_voc_and_coco(tmp_path: Path) -> None:
    box = "<object><name>cat</name><bndbox><xmin>8</xmin><ymin>8</ymin><xmax>30</xmax><ymax>30</ymax></bndbox></object>"
    turned = "<object><name>cat</name><robndbox><cx>9</cx><cy>9</cy><w>4</w><h>4</h></robndbox></object>"
    for name, inside in (("0", box), ("1", turned)):
        draw(tmp_path / "voc" / "JPEGImages" / f"{name}.jpg", 64, 48)
        size = "<size><width>64</width><height>48</height></size>"
        file = tmp_path / "voc" / "Annotations" / f"{name}.xml"
        file.parent.mkdir(exist_ok=True)
        file.write_text(f"<annotation>{size}{inside}</annotation>")
    assert [record.path.stem for record in read_data(tmp_path / "voc").records] == ["0"]

    coco(tmp_path / "coco", "train", ["0.jpg", "1.jpg"])
    file = tmp_path / "coco" / "annotations" / "instances_train.json"
    content = json.loads(file.read_text())
    content["annotations"][1]["category_id"] = 99
    file.write_text(json.dumps(content))
    assert [record.path.name for record in read_data(tmp_path / "coco").records] == ["0.jpg"]


def test_labelme_files_that_begin_with_their_picture_are_read(tmp_path: Path) -> None:
    shape = {"label": "cat", "points": [[8, 8], [30, 30]], "shape_type": "rectangle"}
    for name in ("0", "1"):
        draw(tmp_path / f"{name}.jpg", 64, 48)
        content = {"shapes": [shape], "imagePath": f"{name}.jpg", "imageData": "A" * 9000, "imageWidth": 64}
        (tmp_path / f"{name}.json").write_text(json.dumps(content | {"imageHeight": 48}, sort_keys=True))
    assert [len(record.boxes) for record in read_data(tmp_path).records] == [1, 1]


def test_rows_that_are_mostly_poses_are_not_read_as_polygons_for_a_few_that_stick_out(tmp_path: Path) -> None:
    pose, outside = "0 .5 .5 .2 .2 .45 .45 .55 .55\n", "0 .1 .1 .2 .1 .2 .2 .1 .2\n"
    for number in range(9):
        draw(tmp_path / "images" / "train" / f"{number}.jpg", 64, 48)
        file = tmp_path / "labels" / "train" / f"{number}.txt"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(outside if number == 8 else pose)
    (tmp_path / "classes.txt").write_text("cat\n")
    with pytest.raises(DataError, match="row of 9 numbers"):
        read_data(tmp_path)


def test_a_path_up_from_a_link_is_the_one_that_the_system_means(tmp_path: Path) -> None:
    for place, name in (("a", "wrong"), ("b", "right")):
        root = tmp_path / place / "set"
        draw(root / "images" / "train" / f"{name}.jpg", 64, 48)
        (root / "labels" / "train").mkdir(parents=True)
        (root / "labels" / "train" / f"{name}.txt").write_text(ROW)
        (root / "classes.txt").write_text("cat\n")
    (tmp_path / "b" / "c").mkdir()
    (tmp_path / "a" / "link").symlink_to(tmp_path / "b" / "c")
    (record,) = read_data(tmp_path / "a" / "link" / ".." / "set").records
    assert record.path.stem == "right"
    assert record.path.exists()


def test_a_set_is_not_split_into_the_folder_that_holds_it(tmp_path: Path) -> None:
    names = [f"{number}.jpg" for number in range(6)]
    for name in names:
        draw(tmp_path / "set" / "images" / name, 64, 48)
    coco(tmp_path / "set", "train", names)
    split(tmp_path / "set", tmp_path / "out")
    with pytest.raises(DataError, match="holds the data set to be split"):
        split(tmp_path / "out" / "annotations" / "instances_train.json", tmp_path / "out")
    assert not [problem for problem in check_data(tmp_path / "out") if problem.severity == "error"]
