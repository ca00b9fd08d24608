"""The three formats: the same boxes from each, the layouts accepted, splits and classes."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ghmdet.data import DetectionData, check_data, read_data
from ghmdet.errors import DataError
from measured_data import shared_data
from small_sets import (
    CLASSES,
    Picture,
    coco_content,
    draw,
    three_pictures,
    voc_xml,
    write_coco,
    write_voc,
    write_yolo,
)


def assert_same_boxes(a: DetectionData, b: DetectionData, tolerance: float = 0.0) -> None:
    assert a.classes == b.classes
    by_name = {record.path.name: record for record in b.records}
    assert {record.path.name for record in a.records} == set(by_name)
    for record in a.records:
        other = by_name[record.path.name]
        assert (record.width, record.height) == (other.width, other.height)
        assert record.path.exists() and other.path.exists()
        np.testing.assert_allclose(record.boxes, other.boxes, atol=tolerance, rtol=0)
        np.testing.assert_array_equal(record.labels, other.labels)


def test_three_formats_give_the_same_boxes(tmp_path: Path) -> None:
    pictures = three_pictures()
    write_coco(tmp_path / "coco", pictures)
    write_voc(tmp_path / "voc", pictures)
    write_yolo(tmp_path / "yolo", pictures)
    coco, voc, yolo = (read_data(tmp_path / name) for name in ("coco", "voc", "yolo"))
    assert [data.format for data in (coco, voc, yolo)] == ["COCO", "VOC", "YOLO"]
    assert coco.classes == CLASSES  # by category id, though the file lists them backwards
    assert coco.category_ids == (10, 20, 30)
    np.testing.assert_array_equal(coco.records[0].boxes, [[5, 5, 25, 35], [30, 10, 60, 40]])
    np.testing.assert_array_equal(coco.records[0].labels, [0, 2])
    assert len(coco.records[2].boxes) == 0  # an image without boxes is training data
    assert_same_boxes(coco, voc)
    assert_same_boxes(coco, yolo, 1e-4)
    assert not coco.problems and not voc.problems and not yolo.problems


def test_bccd_is_the_same_in_voc_and_coco() -> None:
    for split in ("train", "val", "test"):
        coco = read_data(shared_data("bccd"), split)
        assert_same_boxes(coco, read_data(shared_data("bccd-voc"), split, classes=coco.classes))


def test_description_says_the_counts_aloud(tmp_path: Path) -> None:
    write_coco(tmp_path, three_pictures())
    assert read_data(tmp_path).describe() == (
        f"COCO data in {tmp_path}, split train: 3 images (1 without boxes), 4 boxes of 3 classes: cat 2, dog 1, emu 1."
    )


def test_description_counts_what_was_rejected_and_names_the_first(tmp_path: Path) -> None:
    file = write_coco(tmp_path, three_pictures())
    content = json.loads(file.read_text())
    for number in range(5):
        content["annotations"].append(
            {"id": 90 + number, "image_id": 3, "category_id": 10, "bbox": [1, 1, 0, 5]}
        )
    file.write_text(json.dumps(content))
    *_, last, left_out = read_data(tmp_path).describe().splitlines()
    assert left_out == f"Rejected: 1 × picture without a sound label ({file}: c.jpg)."
    assert last.startswith(f"Rejected: 5 × empty box ({file}: annotation id 90 of 'c.jpg' [1, 1, 0, 5]; ")
    assert last.endswith("; and 2 more).")


def test_to_coco_round_trip(tmp_path: Path) -> None:
    file = write_coco(tmp_path, three_pictures())
    written, again = json.loads(file.read_text()), read_data(tmp_path).to_coco()
    strip = ("id", "image_id", "category_id", "bbox", "iscrowd")
    assert [{k: a[k] for k in strip} for a in again["annotations"]] == [
        {k: a[k] for k in strip} for a in written["annotations"]
    ]
    assert again["images"] == written["images"]
    assert again["categories"] == sorted(written["categories"], key=lambda c: c["id"])


def test_records_behave_as_a_tuple(tmp_path: Path) -> None:
    write_coco(tmp_path, three_pictures())
    records = read_data(tmp_path).records
    assert len(records) == 3 and [r.path.name for r in records] == ["a.jpg", "b.jpg", "c.jpg"]
    assert records[-1].path.name == "c.jpg" and [r.path.name for r in records[1:]] == ["b.jpg", "c.jpg"]
    with pytest.raises(IndexError):
        records[3]


# --- layouts


@pytest.mark.parametrize("place", ["images", "images/val", "val", "val2017", "images/val2017", ""])
def test_coco_finds_the_folder_of_the_pictures(tmp_path: Path, place: str) -> None:
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations" / "instances_val2017.json").write_text(
        json.dumps(coco_content(three_pictures()))
    )
    for picture in three_pictures():
        draw(tmp_path / place / picture.name, picture.width, picture.height)
    data = read_data(tmp_path, "val")
    assert all(record.path.exists() for record in data.records)


def test_coco_file_itself_and_plain_split_names(tmp_path: Path) -> None:
    file = write_coco(tmp_path, three_pictures())
    plain = file.rename(file.with_name("train.json"))
    assert read_data(tmp_path).split == "train"
    data = read_data(plain)
    assert data.split == "train" and data.records[0].path.exists()


@pytest.mark.parametrize("year", ["", "2017"])
@pytest.mark.parametrize("val", ["val", "valid", "validation"])
def test_coco_file_of_one_split_leads_to_the_one_beside_it(tmp_path: Path, year: str, val: str) -> None:
    train = write_coco(tmp_path, three_pictures(), f"train{year}")
    other = write_coco(tmp_path, three_pictures()[:1], f"{val}{year}")
    write_coco(tmp_path, three_pictures()[:2], "train1999")  # another rule, another set
    for given in (train, other):
        read = {split: read_data(given, split) for split in ("train", "val")}
        assert {split: len(data.records) for split, data in read.items()} == {"train": 3, "val": 1}
        assert read["val"].split == val and read["val"].describe().startswith(
            f"COCO data in {other}, split {val}"
        )


def test_roboflow_coco_file_leads_to_the_folder_of_the_other_split(tmp_path: Path) -> None:
    for split, pictures in (("train", three_pictures()), ("valid", three_pictures()[:1])):
        (tmp_path / split).mkdir()
        (tmp_path / split / "_annotations.coco.json").write_text(json.dumps(coco_content(pictures)))
    data = read_data(tmp_path / "train" / "_annotations.coco.json", "val")
    assert data.split == "valid" and len(data.records) == 1


def test_coco_file_without_the_one_asked_for_names_those_beside_it(tmp_path: Path) -> None:
    file = write_coco(tmp_path, three_pictures(), "train2017")
    write_coco(tmp_path, three_pictures(), "val2017")
    with pytest.raises(DataError) as caught:
        read_data(file, "test")
    assert str(caught.value) == f"{file}: no split 'test': splits found: train, val: choose one of them"


@pytest.mark.parametrize("name", ["annotations.json", "instances_default.json"])
def test_coco_file_whose_name_tells_no_split_is_read_for_any(tmp_path: Path, name: str) -> None:
    file = write_coco(tmp_path, three_pictures())
    file = file.rename(file.with_name(name))
    for split in ("train", "val", "default"):
        assert len(read_data(file, split).records) == 3


@pytest.mark.parametrize("write", [write_coco, write_voc])
def test_a_folders_only_split_is_for_training_whatever_it_is_called(tmp_path: Path, write: Any) -> None:
    """As CVAT exports it."""
    write(tmp_path, three_pictures(), "default")
    assert read_data(tmp_path).split == "train"
    assert len(read_data(tmp_path).records) == 3
    assert read_data(tmp_path, "default").split == read_data(tmp_path, "Train").split == "train"
    assert not [one for one in check_data(tmp_path, "default") if one.severity == "error"]
    for wrong in ("val", "test", "defaults"):
        with pytest.raises(
            DataError, match=rf"no split '{wrong}': splits found: train \(or default\): choose"
        ):
            read_data(tmp_path, wrong)
    write(tmp_path, three_pictures(), "night")
    with pytest.raises(DataError, match="splits found: default, night"):
        read_data(tmp_path)


def test_two_coco_files_of_one_split_are_refused_by_name(tmp_path: Path) -> None:
    for split in ("train2014", "train2017"):
        write_coco(tmp_path, three_pictures(), split)
    with pytest.raises(DataError) as caught:
        read_data(tmp_path)
    assert str(caught.value) == (
        f"{tmp_path}: two files of split 'train': annotations/instances_train2014.json and "
        "annotations/instances_train2017.json: give the .json file itself or move one of them away"
    )


def test_coco_ids_written_as_floats_are_whole_numbers(tmp_path: Path) -> None:
    """As pandas exports them."""
    file = write_coco(tmp_path, three_pictures())
    whole = read_data(tmp_path)
    content = json.loads(file.read_text())
    for annotation in content["annotations"]:
        annotation.update({key: float(annotation[key]) for key in ("id", "image_id", "category_id")})
    file.write_text(json.dumps(content))
    assert_same_boxes(whole, read_data(tmp_path))
    assert read_data(tmp_path).problems == ()


def test_roboflow_coco(tmp_path: Path) -> None:
    for picture in three_pictures():
        draw(tmp_path / "valid" / picture.name, picture.width, picture.height)
    (tmp_path / "valid" / "_annotations.coco.json").write_text(json.dumps(coco_content(three_pictures())))
    data = read_data(tmp_path, "val")
    assert data.split == "valid" and "split valid (asked for as val)" in data.describe()
    assert all(record.path.exists() for record in data.records)


def test_voc_without_image_sets_or_size(tmp_path: Path) -> None:
    write_voc(tmp_path, three_pictures(), size=False)
    with_lists = read_data(tmp_path)
    (tmp_path / "ImageSets" / "Main" / "train.txt").unlink()
    assert_same_boxes(with_lists, read_data(tmp_path))
    assert (with_lists.records[1].width, with_lists.records[1].height) == (
        40,
        60,
    )  # from the picture's header


def test_voc_lists_of_one_class_are_no_splits(tmp_path: Path) -> None:
    write_voc(tmp_path, three_pictures())
    (tmp_path / "ImageSets" / "Main" / "cat_train.txt").write_text("a  1\nb -1\n")
    with pytest.raises(DataError, match="splits found: train:"):
        read_data(tmp_path, "cat_train")


def test_a_list_with_the_column_of_one_class_is_named_where_it_is_called_as_a_split(tmp_path: Path) -> None:
    write_voc(tmp_path, three_pictures(), "val")
    (tmp_path / "ImageSets" / "Main" / "train.txt").write_text("a  1\nb -1\n")
    (told,) = (one for one in read_data(tmp_path, "val").problems if one.kind == "list of one class")
    assert told.value == "ImageSets/Main/train.txt" and "leave it out if it is of all" in told.mend


def test_voc_list_of_pictures_with_spaces_in_their_names_is_a_split(tmp_path: Path) -> None:
    pictures = [replace(picture, name=f"blood cell {picture.name}") for picture in three_pictures()]
    pictures[2].boxes.append((0, 5, 5, 25, 35))
    write_voc(tmp_path, pictures[:2], "train")
    write_voc(tmp_path, pictures[2:], "val")
    assert [r.path.name for r in read_data(tmp_path).records] == ["blood cell a.jpg", "blood cell b.jpg"]
    assert [r.path.name for r in read_data(tmp_path, "val").records] == ["blood cell c.jpg"]


def test_voc_list_of_pictures_whose_names_end_as_a_class_s_column_does_is_a_split(tmp_path: Path) -> None:
    pictures = [replace(picture, name=f"cat {i}.jpg") for i, picture in enumerate(three_pictures()[:2])]
    write_voc(tmp_path, pictures, "train")
    write_voc(tmp_path, [replace(pictures[0], name="dog 1.jpg")], "val")
    (tmp_path / "ImageSets" / "Main" / "cat_train.txt").write_text("cat 0  1\ncat 1 -1\n")
    assert [r.path.name for r in read_data(tmp_path).records] == ["cat 0.jpg", "cat 1.jpg"]
    assert [r.path.name for r in read_data(tmp_path, "val").records] == ["dog 1.jpg"]
    with pytest.raises(DataError, match="splits found: train, val"):
        read_data(tmp_path, "cat_train")


def test_voc_folder_in_lower_case_is_one_split(tmp_path: Path) -> None:
    for name in ("upper", "lower"):
        write_voc(tmp_path / name, three_pictures())
        shutil.rmtree(tmp_path / name / "ImageSets")
    lower = tmp_path / "lower"
    (lower / "Annotations").rename(lower / "annotations")
    (lower / "JPEGImages").rename(lower / "images")
    assert_same_boxes(read_data(tmp_path / "upper"), read_data(lower, "train"))


def test_voc_xml_beside_the_pictures(tmp_path: Path) -> None:
    for picture in three_pictures():
        draw(tmp_path / "valid" / picture.name, picture.width, picture.height)
        (tmp_path / "valid" / picture.name).with_suffix(".xml").write_text(voc_xml(picture))
    assert len(read_data(tmp_path, "val").records) == 3


def test_voc_picture_is_the_one_named_as_the_xml_file(tmp_path: Path) -> None:
    annotations = write_voc(tmp_path, three_pictures())
    (tmp_path / "JPEGImages" / "a.jpg").rename(tmp_path / "JPEGImages" / "renamed.jpg")
    (annotations / "a.xml").rename(annotations / "renamed.xml")
    (tmp_path / "ImageSets" / "Main" / "train.txt").write_text("renamed\nb\n")
    assert [r.path.name for r in read_data(tmp_path).records] == ["renamed.jpg", "b.jpg"]


@pytest.mark.parametrize("names", ["[cat, dog, emu]", "{0: cat, 1: dog, 2: emu}"])
def test_yolo_data_yaml(tmp_path: Path, names: str) -> None:
    write_yolo(tmp_path, three_pictures(), "train")
    plain = read_data(tmp_path)
    (tmp_path / "classes.txt").unlink()
    config = tmp_path / "data.yaml"
    for path, train in ((".", "images/train"), ("/not/here", "../images/train"), (".", "[images/train]")):
        config.write_text(f"path: {path}\ntrain: {train}\nval:\nnc: 3\nnames: {names}\n")
        assert_same_boxes(plain, read_data(tmp_path))
    assert_same_boxes(plain, read_data(config))


@pytest.mark.parametrize("write", [write_coco, write_voc, write_yolo])
def test_yaml_files_that_are_no_data_yaml_are_left_alone(tmp_path: Path, write: object) -> None:
    write(tmp_path, three_pictures())  # type: ignore[operator]
    plain = read_data(tmp_path)
    (tmp_path / "settings.yaml").write_text("")
    (tmp_path / "mkdocs.yml").write_text("a: 1\n---\nb: 2\n")
    (tmp_path / "broken.yaml").write_text("names: [a\ntrain: x")
    (tmp_path / "dates.yaml").write_text("names: 2020-13-41\n")
    (tmp_path / "latin.yaml").write_bytes(b"names: \xff\n")
    (tmp_path / "people.yaml").write_text("names: [ann, bob]\n")
    assert_same_boxes(plain, read_data(tmp_path))
    assert plain.format == read_data(tmp_path).format


def test_yolo_yaml_of_another_name_counts_when_it_names_classes_and_a_split(tmp_path: Path) -> None:
    write_yolo(tmp_path, three_pictures())
    (tmp_path / "classes.txt").unlink()
    (tmp_path / "a.yaml").write_text("")
    (tmp_path / "cells.yaml").write_text("train: images/train\nnames: [cat, dog, emu]\n")
    assert read_data(tmp_path).classes == CLASSES


def test_byte_order_mark_loses_nothing(tmp_path: Path) -> None:
    """As Windows editors write it."""
    for write in (write_coco, write_voc, write_yolo):
        root = tmp_path / write.__name__
        write(root, three_pictures())
        plain = read_data(root)
        for file in root.rglob("*"):
            if file.suffix in (".txt", ".json", ".xml"):
                file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes())
        assert_same_boxes(plain, read_data(root))
        assert read_data(root).problems == ()


def test_yolo_list_of_pictures(tmp_path: Path) -> None:
    write_yolo(tmp_path, three_pictures())
    (tmp_path / "train.txt").write_text("./images/train/a.jpg\n./images/train/c.jpg\n")
    (tmp_path / "data.yaml").write_text("train: train.txt\nnames: [cat, dog, emu]\n")
    assert [r.path.name for r in read_data(tmp_path).records] == ["a.jpg", "c.jpg"]


@pytest.mark.parametrize("folders", [("images", "labels"), ("train/images", "train/labels")])
def test_yolo_folders_of_one_split(tmp_path: Path, folders: tuple[str, str]) -> None:
    draw(tmp_path / folders[0] / "a.jpg", 100, 50)
    (tmp_path / folders[1]).mkdir()
    (tmp_path / folders[1] / "a.txt").write_text("1 .5 .5 .2 .4\n")
    (tmp_path / "classes.txt").write_text("cat\ndog\n")
    np.testing.assert_allclose(read_data(tmp_path).records[0].boxes, [[40, 15, 60, 35]], atol=1e-5)


def test_yolo_polygon_becomes_its_box(tmp_path: Path) -> None:
    labels = write_yolo(tmp_path, [Picture("a.jpg", 100, 50)])
    (labels / "a.txt").write_text("1 .1 .2 .5 .2 .3 .8\n")
    np.testing.assert_allclose(read_data(tmp_path).records[0].boxes, [[10, 10, 50, 40]], atol=1e-5)


def test_yolo_size_is_that_of_the_upright_picture(tmp_path: Path) -> None:
    labels = write_yolo(tmp_path, [Picture("a.jpg", 100, 50)])
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.new("RGB", (100, 50)).save(tmp_path / "images" / "train" / "a.jpg", exif=turned)
    (labels / "a.txt").write_text("0 .5 .5 1 1\n")
    np.testing.assert_array_equal(read_data(tmp_path).records[0].boxes, [[0, 0, 50, 100]])


# --- splits, classes, crowd


def test_val_valid_and_validation_are_one_name(tmp_path: Path) -> None:
    write_yolo(tmp_path, three_pictures(), "valid")
    assert read_data(tmp_path, "val").split == read_data(tmp_path, "validation").split == "valid"


def test_unknown_split_names_those_found(tmp_path: Path) -> None:
    for split in ("train", "test"):
        write_coco(tmp_path, three_pictures(), split)
    with pytest.raises(DataError, match="no split 'val': splits found: test, train: choose one"):
        read_data(tmp_path, "val")


def test_given_classes_order_the_labels(tmp_path: Path) -> None:
    write_coco(tmp_path / "coco", three_pictures())
    write_yolo(tmp_path / "yolo", three_pictures())
    write_voc(tmp_path / "voc", three_pictures())
    for name in ("coco", "yolo", "voc"):
        data = read_data(tmp_path / name, classes=("emu", "ant", "cat", "dog"))
        assert data.classes == ("emu", "ant", "cat", "dog")
        np.testing.assert_array_equal(data.records[0].labels, [2, 0])
        assert len(set(data.category_ids)) == 4 and not data.problems
    assert read_data(tmp_path / "coco", classes=("emu", "ant", "cat", "dog")).category_ids == (30, 31, 10, 20)


@pytest.mark.parametrize("write", [write_coco, write_voc, write_yolo])
def test_box_of_a_class_not_given_is_a_problem(tmp_path: Path, write: object) -> None:
    write(tmp_path, three_pictures())  # type: ignore[operator]
    (problem,) = read_data(tmp_path, classes=("cat", "emu")).problems
    assert problem.kind == "unknown class" and "dog" in str(problem)


def test_crowd_and_difficult_are_kept_apart(tmp_path: Path) -> None:
    file = write_coco(tmp_path / "coco", three_pictures())
    file.write_text(file.read_text().replace('"iscrowd": 0', '"iscrowd": 1', 1))
    annotations = write_voc(tmp_path / "voc", three_pictures())
    first = annotations / "a.xml"
    first.write_text(first.read_text().replace("<difficult>0", "<difficult>1", 1))
    for picture in three_pictures():
        draw(tmp_path / "labelme" / picture.name, picture.width, picture.height)
        shapes = [
            {"label": CLASSES[label], "points": [[x1, y1], [x2, y2]], "difficult": (label, x1) == (0, 5)}
            for label, x1, y1, x2, y2 in picture.boxes
        ]
        (tmp_path / "labelme" / picture.name).with_suffix(".json").write_text(json.dumps({"shapes": shapes}))
    for name in ("coco", "voc", "labelme"):
        data = read_data(tmp_path / name)
        np.testing.assert_array_equal(data.records[0].crowd, [True, False])
        assert [a["iscrowd"] for a in data.to_coco()["annotations"]] == [1, 0, 0, 0]
        assert data.boxes_per_class() == {"cat": 1, "dog": 1, "emu": 1}
        assert "1 crowd region, ignored" in data.describe()


def test_what_else_is_said_of_an_object_changes_nothing(tmp_path: Path) -> None:
    file = write_coco(tmp_path / "coco", three_pictures())
    content = json.loads(file.read_text())
    content["annotations"][0] |= {
        "attributes": {"occluded": True, "ignore": 1},
        "truncated": 1,
        "occluded": 1,
    }
    file.write_text(json.dumps(content))
    first = write_voc(tmp_path / "voc", three_pictures()) / "a.xml"
    said = "<truncated>1</truncated><occluded>1</occluded><pose>Left</pose><difficult>"
    first.write_text(first.read_text().replace("<difficult>", said, 1))
    shape = {"label": "cat", "points": [[5, 5], [25, 35]], "flags": {"difficult": True, "occluded": True}}
    draw(tmp_path / "labelme" / "a.jpg", 60, 40)
    (tmp_path / "labelme" / "a.json").write_text(json.dumps({"shapes": [shape], "flags": {"skip": True}}))
    for name in ("coco", "voc", "labelme"):
        data = read_data(tmp_path / name)
        assert not data.records.crowd.any() and data.boxes_per_class()["cat"] >= 1 and data.problems == ()


def test_area_of_a_mask_survives(tmp_path: Path) -> None:
    file = write_coco(tmp_path, three_pictures())
    content = json.loads(file.read_text())
    content["annotations"][0]["area"] = 123.5
    file.write_text(json.dumps(content))
    areas = [a["area"] for a in read_data(tmp_path).to_coco()["annotations"]]
    assert areas == [123.5, 900, 2400, 128]
