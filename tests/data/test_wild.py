"""Sets as other tools and other machines write them: what their own readers read is read here, nothing else is."""

from __future__ import annotations

import json
import shutil
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from ghmdet.data import check_data, read_data
from ghmdet.data.read import DataSet
from ghmdet.errors import DataError
from small_sets import CLASSES, Picture, coco_content, draw, three_pictures, write_coco, write_voc, write_yolo

VAL = [Picture("v.jpg", boxes=[(1, 5, 5, 25, 35)])]


def refusal(path: Path, split: str = "train") -> str:
    with pytest.raises(DataError) as caught:
        read_data(path, split)
    return str(caught.value)


def names(root: Path, split: str = "train") -> list[str]:
    records = read_data(root, split).records
    return sorted(record.path.name for record in records)


# --- the names of parts


@pytest.mark.parametrize(
    ("train", "val"),
    [("train2017", "val2017"), ("training", "validation"), ("Training", "eval"), ("train_2021", "dev")],
)
def test_folders_that_mean_splits_are_not_one_part(tmp_path: Path, train: str, val: str) -> None:
    for write in (write_yolo, write_coco):
        write(tmp_path / write.__name__, three_pictures(), train)
        write(tmp_path / write.__name__, VAL, val)
    for part, pictures in ((train, three_pictures()), (val, VAL)):
        write_voc(tmp_path / "a", pictures)
        shutil.move(tmp_path / "a" / "Annotations", tmp_path / "voc" / "Annotations" / part)
        shutil.move(tmp_path / "a" / "JPEGImages", tmp_path / "voc" / "JPEGImages" / part)
        shutil.rmtree(tmp_path / "a")
    for place in ("write_yolo", "voc") if train[0] == "T" else ("write_yolo", "write_coco", "voc"):
        assert names(tmp_path / place) == ["a.jpg", "b.jpg", "c.jpg"]
        assert names(tmp_path / place, "val") == ["v.jpg"]


def test_a_name_of_a_split_comes_before_one_that_may_mean_it(tmp_path: Path) -> None:
    for part, pictures in (("Train", three_pictures()), ("train2017", VAL), ("val", VAL), ("dev", VAL)):
        write_yolo(tmp_path / "yolo", pictures, part)
        write_coco(tmp_path / "coco", pictures, part if part != "train2017" else "other")
    assert names(tmp_path / "yolo") == ["a.jpg", "b.jpg", "c.jpg"]
    for part in ("train", "val", "dev"):
        assert names(tmp_path / "coco", part) == (
            ["a.jpg", "b.jpg", "c.jpg"] if part == "train" else ["v.jpg"]
        )
    assert "no split 'val2014': splits found" in refusal(tmp_path / "coco", "val2014")


def test_two_lists_of_years_are_chosen_by_their_names(tmp_path: Path) -> None:
    write_voc(tmp_path, three_pictures())
    lists = tmp_path / "ImageSets" / "Main"
    for file in lists.iterdir():
        file.unlink()
    (lists / "train2007.txt").write_text("a\n")
    (lists / "train2012.txt").write_text("b\nc\n")
    assert names(tmp_path, "train2012") == ["b.jpg", "c.jpg"]
    assert "splits found: train2007, train2012" in refusal(tmp_path)


def test_folders_without_data_hide_and_refuse_nothing(tmp_path: Path) -> None:
    for part, pictures in (("Train", three_pictures()), ("Val", VAL)):
        write_yolo(tmp_path / "yolo", pictures, part)
    for empty in ("dev", "training"):
        (tmp_path / "yolo" / "images" / empty).mkdir()
    assert (names(tmp_path / "yolo"), names(tmp_path / "yolo", "val")) == (
        ["a.jpg", "b.jpg", "c.jpg"],
        ["v.jpg"],
    )
    write_yolo(tmp_path / "a", three_pictures())
    for folder in ("images/train", "labels/train"):
        shutil.copytree(tmp_path / "a" / folder, tmp_path / "flat", dirs_exist_ok=True)
    shutil.copy(tmp_path / "a" / "classes.txt", tmp_path / "flat")
    write_voc(tmp_path / "voc", three_pictures())
    shutil.rmtree(tmp_path / "voc" / "ImageSets")
    for place in ("flat/tools/test", "voc/Annotations/2020/test"):
        (tmp_path / place).mkdir(parents=True)
        (tmp_path / place / "notes.md").write_text("nothing")
    assert names(tmp_path / "flat") == names(tmp_path / "voc") == ["a.jpg", "b.jpg", "c.jpg"]


@pytest.mark.parametrize("name", ["pets_eval.json", "device-testing.json"])
def test_a_file_whose_name_only_holds_such_a_word_is_read_for_any_split(tmp_path: Path, name: str) -> None:
    file = write_coco(tmp_path, three_pictures())
    file.rename(file.with_name(name))
    assert len(read_data(file.with_name(name), "train").records) == 3


@pytest.mark.parametrize("base", ["/home/me/dev/pets", "/content/training", "/data/test/pets"])
def test_a_folder_above_the_set_may_have_the_name_of_a_part(tmp_path: Path, base: str) -> None:
    write_yolo(tmp_path, three_pictures(), "cam1")
    (tmp_path / "data.yaml").write_text(f"names: [cat, dog, emu]\ntrain: {base}/images/cam1\n")
    assert names(tmp_path) == ["a.jpg", "b.jpg", "c.jpg"]


def test_of_two_forms_of_one_name_each_has_its_own_labels(tmp_path: Path) -> None:
    composed, apart = (unicodedata.normalize(form, "é.jpg") for form in ("NFC", "NFD"))
    pictures = [Picture(composed, boxes=[(0, 5, 5, 25, 35)]), Picture(apart, boxes=[(1, 10, 10, 50, 30)])]
    for write in (write_voc, write_yolo):
        write(tmp_path / write.__name__, pictures)
        data = read_data(tmp_path / write.__name__)
        found = {record.path.name: record.boxes.round(3).tolist() for record in data.records}
        assert found == {composed: [[5, 5, 25, 35]], apart: [[10, 10, 50, 30]]}


@pytest.mark.parametrize(
    ("folder", "part"),
    [
        ("val", "val"),
        ("Test", "test"),
        ("valid2017", "valid"),
        ("dev", "val"),
        ("eval", "val"),
        ("Testing", "test"),
    ],
)
def test_a_part_below_pictures_of_no_part_is_refused(tmp_path: Path, folder: str, part: str) -> None:
    write_yolo(tmp_path / "yolo", three_pictures(), "cam1")
    write_yolo(tmp_path / "yolo", VAL, f"cam2/{folder}")
    assert f"images/cam2/{folder}: pictures of split {part}" in refusal(tmp_path / "yolo")
    write_voc(tmp_path / "voc", three_pictures())
    shutil.rmtree(tmp_path / "voc" / "ImageSets")
    inner = tmp_path / "voc" / "Annotations" / "cam2" / folder
    inner.mkdir(parents=True)
    shutil.copy(tmp_path / "voc" / "Annotations" / "a.xml", inner)
    assert f"Annotations/cam2/{folder}: pictures of split {part}" in refusal(tmp_path / "voc")


def test_unlabelled_test_pictures_are_no_background(tmp_path: Path) -> None:
    write_yolo(tmp_path / "a", three_pictures())
    for folder in ("images/train", "labels/train"):
        shutil.copytree(tmp_path / "a" / folder, tmp_path / "set", dirs_exist_ok=True)
    shutil.copy(tmp_path / "a" / "classes.txt", tmp_path / "set")
    draw(tmp_path / "set" / "test" / "x.jpg", 60, 40)
    assert "test: pictures of split test" in refusal(tmp_path / "set")


@pytest.mark.parametrize(("train", "val"), [("train", "valid"), ("training", "dev"), ("train2017", "Eval")])
def test_an_entry_of_a_part_is_never_the_folder_of_all_parts(tmp_path: Path, train: str, val: str) -> None:
    write_yolo(tmp_path, three_pictures())
    write_yolo(tmp_path, VAL, "val")
    entries = {"train": f"/home/me/pets/{train}/images", "val": f"..\\{val}\\images"}
    (tmp_path / "data.yaml").write_text(json.dumps({"names": ["cat", "dog", "emu"], **entries}))
    assert f"{train}/images: no such folder" in refusal(tmp_path)
    assert f"{val}\\images: no such folder" in refusal(tmp_path, "val")
    entries = {"train": "/home/train/pets/images/train", "val": "../images/val"}
    (tmp_path / "data.yaml").write_text(json.dumps({"names": ["cat", "dog", "emu"], **entries}))
    assert (names(tmp_path), names(tmp_path, "val")) == (["a.jpg", "b.jpg", "c.jpg"], ["v.jpg"])


@pytest.mark.parametrize("absent", ["test", "val"])
def test_a_part_that_is_not_there_is_missed_where_it_is_asked_for(tmp_path: Path, absent: str) -> None:
    write_yolo(tmp_path, three_pictures())
    write_yolo(tmp_path, VAL, "other")
    parts = {"train": "images/train", "val": "images/other", "test": "images/other"} | {
        absent: f"../{absent}/images"
    }
    (tmp_path / "data.yaml").write_text(json.dumps({"names": ["cat", "dog", "emu"], **parts}))
    assert len(read_data(tmp_path, "train").records) == 3
    assert f"{absent}/images: no such folder" in refusal(tmp_path, absent)
    assert any(p.severity == "error" and "no such folder" in p.mend for p in check_data(tmp_path, absent))
    (problem,) = [p for p in check_data(tmp_path) if "no such folder" in str(p)]
    assert (problem.severity, problem.kind) == (
        ("note", "no such folder") if absent == "test" else ("error", "cannot be read")
    )
    if absent == "test":
        place = tmp_path.parent / "test/images"
        assert str(problem) == f"note: {place}: split test: no such folder: an export may only name it"


@pytest.mark.parametrize(("train", "val"), [("train", "valid"), ("Train", "Dev"), ("train2017", "val2017")])
@pytest.mark.parametrize(
    "place",
    [
        "annotations/instances.json",
        "Annotations/instances_default.json",
        "annotations/annotations.json",
        "annotations/_annotations.coco.json",
        "labels.json",
        "instances.json",
    ],
)
def test_a_part_may_have_folders_of_its_own_for_annotations_and_pictures(
    tmp_path: Path, train: str, val: str, place: str
) -> None:
    for part, pictures in ((train, three_pictures()), (val, VAL)):
        for picture in pictures:
            draw(tmp_path / part / "images" / picture.name, picture.width, picture.height)
        (tmp_path / part / place).parent.mkdir(exist_ok=True)
        (tmp_path / part / place).write_text(json.dumps(coco_content(pictures)))
    given = [tmp_path, tmp_path / train / place] if train == "train" else [tmp_path]
    for root in given:
        assert names(root) == ["a.jpg", "b.jpg", "c.jpg"] and read_data(root).problems == ()
        assert names(root, "val") == ["v.jpg"]


def test_a_file_that_names_its_part_in_its_own_name_and_its_folder_s_has_another_beside_it(
    tmp_path: Path,
) -> None:
    for part, pictures in (("train", three_pictures()), ("val", VAL)):
        file = tmp_path / part / "annotations" / f"instances_{part}.json"
        for picture in pictures:
            draw(tmp_path / part / "images" / picture.name, picture.width, picture.height)
        file.parent.mkdir()
        file.write_text(json.dumps(coco_content(pictures)))
    assert names(tmp_path / "train" / "annotations" / "instances_train.json", "val") == ["v.jpg"]


@pytest.mark.parametrize(
    ("train", "val"),
    [
        ("train2017/annotations/instances.json", "val2017/annotations/instances.json"),
        ("training/annotations/instances.json", "dev/annotations/instances.json"),
        ("training/_annotations.coco.json", "Eval/_annotations.coco.json"),
        ("Train/Annotations/Instances.json", "Val/annotations/instances.json"),
        ("Train/_annotations.coco.json", "Valid/_annotations.coco.json"),
        ("annotations/instances_Train.json", "annotations/instances_Val.json"),
        ("annotations/training.json", "annotations/eval.json"),
        ("interval_train.json", "interval_val.json"),
        ("Train/annotations/instances_train.json", "Val/annotations/instances_val.json"),
    ],
)
def test_a_file_leads_to_the_one_beside_it_that_means_the_other_part(
    tmp_path: Path, train: str, val: str
) -> None:
    for file, pictures in ((train, three_pictures()), (val, VAL)):
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_text(json.dumps(coco_content(pictures)))
    for given in (train, val):
        assert names(tmp_path / given) == ["a.jpg", "b.jpg", "c.jpg"]
        assert names(tmp_path / given, "val") == ["v.jpg"]
        assert "no split 'test'" in refusal(tmp_path / given, "test")


def test_the_name_of_the_set_s_own_folder_makes_no_part_of_its_annotations(tmp_path: Path) -> None:
    write_coco(tmp_path / "test", three_pictures(), "default")
    assert names(tmp_path / "test") == ["a.jpg", "b.jpg", "c.jpg"]


# --- names and texts of other machines


def test_a_picture_without_a_file_name_is_named_by_its_url(tmp_path: Path) -> None:
    file = write_coco(tmp_path, three_pictures())
    content = coco_content(three_pictures())
    for image in content["images"]:
        image["coco_url"] = "http://images.cocodataset.org/train2017/" + image.pop("file_name")
    file.write_text(json.dumps(content))
    data = read_data(tmp_path)
    assert [record.path.name for record in data.records] == ["a.jpg", "b.jpg", "c.jpg"]
    assert [len(record.boxes) for record in data.records] == [2, 2, 0]


def test_pictures_of_lvis_are_used_by_the_part_that_lists_them_wherever_they_lie(tmp_path: Path) -> None:
    for part, pictures, homes in (
        ("train", three_pictures(), ["train2017"] * 3),
        ("val", [*VAL, Picture("e.jpg", boxes=[(0, 1, 1, 9, 9)])], ["val2017", "train2017"]),
    ):
        content = coco_content(pictures)
        for image, home in zip(content["images"], homes, strict=True):
            draw(tmp_path / home / image["file_name"], image["width"], image["height"])
            image["coco_url"] = f"http://images.cocodataset.org/{home}/{image.pop('file_name')}"
        (tmp_path / "annotations").mkdir(exist_ok=True)
        (tmp_path / "annotations" / f"lvis_v1_{part}.json").write_text(json.dumps(content))
    for given in (tmp_path, tmp_path / "annotations" / "lvis_v1_train.json"):
        assert read_data(given).problems == ()
        records = read_data(given, "val").records
        assert [record.path.name for record in records] == ["v.jpg", "e.jpg"]
        assert all(record.path.is_file() for record in records)


@pytest.mark.parametrize("name", ["./a.jpg", "images/../a.jpg", "a.jpg"])
def test_what_is_read_by_another_path_is_no_file_left_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    content = coco_content([Picture("a.jpg", boxes=[(0, 5, 5, 20, 20)])])
    content["images"][0]["file_name"] = name
    (tmp_path / "images").mkdir()
    draw(tmp_path / "a.jpg", 60, 40)
    (tmp_path / "train.json").write_text(json.dumps(content))
    monkeypatch.chdir(tmp_path)
    for place in (tmp_path, Path("train.json")):
        assert read_data(place).problems == ()


@pytest.mark.parametrize("form", ["NFC", "NFD"])
@pytest.mark.parametrize("others", [[], [Picture("plain.jpg")]])
def test_accents_that_two_systems_write_differently_are_one_name(
    tmp_path: Path, form: str, others: list[Picture]
) -> None:
    pictures = [Picture("größe 개.jpg", boxes=[(1, 5, 5, 25, 35)]), *others]
    write_coco(tmp_path / "COCO", pictures)
    write_voc(tmp_path / "VOC", pictures)
    write_yolo(tmp_path / "YOLO", pictures)
    for path in [*tmp_path.rglob("*.jpg")]:
        path.rename(path.with_name(unicodedata.normalize(form, path.name)))
    for path in [*tmp_path.rglob("*.xml"), *tmp_path.rglob("gr*.txt")]:
        path.rename(path.with_name(unicodedata.normalize("NFC" if form == "NFD" else "NFD", path.name)))
    for place in ("COCO", "VOC", "YOLO"):
        data = read_data(tmp_path / place)
        assert all(record.path.is_file() for record in data.records)
        assert data.records.boxes.round(3).tolist() == [[5, 5, 25, 35]]
        assert not [problem for problem in data.problems if "no split" in problem.kind]


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-8-sig"])
def test_label_files_that_windows_wrote_are_read(tmp_path: Path, encoding: str) -> None:
    labels = write_yolo(tmp_path, three_pictures())
    boxes = read_data(tmp_path).records.boxes
    for file in labels.iterdir():
        text = file.read_text().replace("\n", "\r\n")
        file.write_bytes(("\ufeff" * (encoding == "utf-16-le") + text).encode(encoding))
    assert read_data(tmp_path).records.boxes.tolist() == boxes.tolist()


# --- what is not read is called by its name


BOX = '{"x": 1, "y": 2, "width": 3, "height": 4}'
FOREIGN = {
    "KITTI": ("label_2/a.txt", "Car 0.00 0 -1.57 10.00 10.00 30.0 40.0 1.6 1.5 3.2 1.8 1.4 8.4 0.01\n"),
    "DOTA": ("labelTxt/a.txt", "1 1 5 1 5 9 1 9 small-vehicle 0\n"),
    "WIDER FACE": ("wider_face_train_bbx_gt.txt", "0--Parade/a.jpg\n1\n449 330 122 149 0 0 0 0 0 0\n"),
    "MOT": ("gt/gt.txt", "1,1,10,10,20,30,1,1,0.86\n"),
    "VisDrone": ("annotations/a.txt", "684,8,273,116,0,0,0,0\n"),
    "list of pictures with their boxes": ("train.txt", "images/a.jpg 10,10,30,40,0 1,2,9,9,1\n"),
    "CVAT XML": (
        "annotations.xml",
        '<?xml version="1.0"?>\n<annotations>\n <version>1.1</version><image name="a.jpg"/></annotations>',
    ),
    "dlib": (
        "train.xml",
        "<dataset><images><image file='a.jpg'><box top='1' left='2'/></image></images></dataset>",
    ),
    "BDD100K": ("labels/a.json", '[{"name": "a.jpg", "labels": [{"box2d": {"x1": 3.5}}]}]'),
    "Supervisely": ("ann/a.jpg.json", '{"size": {}, "objects": [{"classTitle": "cat"}]}'),
    "VGG Image Annotator": ("via.json", '{"a.jpg12": {"regions": [{"shape_attributes": {"name": "rect"}}]}}'),
    "Label Studio": ("x.json", '[{"id": 1, "annotations": [{"completed_by": 1, "result": []}]}]'),
    "CreateML": ("train/_annotations.createml.json", f'[{{"annotations": [{{"coordinates": {BOX}}}]}}]'),
    "Datumaro": ("annotations/default.json", '{"categories": {"label": {"labels": []}}, "items": []}'),
    "FiftyOne": ("labels.json", '{"labels": {"a": [{"label": 0, "bounding_box": [0.1]}]}}'),
    "VoTT": ("x-export.json", '{"name": "x", "videoSettings": {"frameExtractionRate": 15}, "assets": {}}'),
    "CrowdHuman": ("annotation_train.odgt", '{"ID": "a", "gtboxes": []}\n'),
    "JSON lines": ("train/metadata.jsonl", '{"file_name": "a.jpg"}\n'),
    "table of boxes": ("train.csv", "filename,width,height,class,xmin,ymin,xmax,ymax\n"),
    "TFRecord": ("train.tfrecord-00000-of-00001", "x"),
    "archive": ("pets.zip", "PK"),
}


@pytest.mark.parametrize("format", FOREIGN)
def test_a_format_that_is_not_read_is_named_with_the_way_to_convert_it(tmp_path: Path, format: str) -> None:
    name, text = FOREIGN[format]
    draw(tmp_path / "images" / "a.jpg", 60, 40)
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_text(text)
    said = refusal(tmp_path).splitlines()
    assert said[-1].startswith(f"{name} looks like ") and format in said[-1] and len(said) <= 4
    assert any(way in said[-1] for way in ("datum convert", "COCO", "unpack"))


def test_rows_of_another_format_in_a_yolo_folder_are_named(tmp_path: Path) -> None:
    labels = write_yolo(tmp_path, three_pictures())
    for file in labels.iterdir():
        file.write_text(FOREIGN["KITTI"][1])
    assert "labels/train/a.txt looks like KITTI" in refusal(tmp_path)


def test_a_broken_link_hides_no_error(tmp_path: Path) -> None:
    labels = write_yolo(tmp_path, three_pictures())
    (labels / "a.txt").write_text("0 .5 .5\n")
    (labels / "b.txt").write_text("")
    for name in ("notes.txt", "x.csv", "z.zip"):
        (tmp_path / name).symlink_to(tmp_path / "gone" / name)
    assert "malformed box '0 .5 .5'" in refusal(tmp_path)


def write_labelme(root: Path, pictures: list[Picture]) -> None:
    for picture in pictures:
        draw(root / picture.name, picture.width, picture.height)
        shapes = [
            {"label": CLASSES[label], "points": [[x1, y1], [x2, y2]]}
            for label, x1, y1, x2, y2 in picture.boxes
        ]
        (root / picture.name).with_suffix(".json").write_text(json.dumps({"shapes": shapes}))


def broken(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    path.symlink_to(path.parent / "gone" / path.name)


@pytest.mark.parametrize("name", ["x.json", "train.json", "x.txt", "x.xml", "annotations/instances_val.json"])
@pytest.mark.parametrize("write", [write_coco, write_voc, write_yolo, write_labelme])
def test_a_label_file_that_cannot_be_read_and_is_not_needed_is_named(
    tmp_path: Path, write: Callable[..., object], name: str
) -> None:
    write(tmp_path, three_pictures())
    broken(tmp_path / name)
    data = read_data(tmp_path)
    assert [record.path.name for record in data.records] == ["a.jpg", "b.jpg", "c.jpg"]
    (problem,) = data.problems
    assert (problem.kind, problem.value) == ("label file that cannot be read", name)


@pytest.mark.parametrize(
    ("write", "name"),
    [
        (write_coco, "annotations/instances_train.json"),
        (write_voc, "ImageSets/Main/train.txt"),
        (write_yolo, "classes.txt"),
        (write_yolo, "data.yaml"),
    ],
)
def test_a_needed_file_that_cannot_be_read_is_named(
    tmp_path: Path, write: Callable[..., object], name: str
) -> None:
    write(tmp_path, three_pictures())
    broken(tmp_path / name)
    assert str(tmp_path / name) in refusal(tmp_path)
    if write is not write_yolo:
        write(tmp_path, VAL, "val")
        assert names(tmp_path, "val") == ["v.jpg"]
        assert str(tmp_path / name) in refusal(tmp_path)


@pytest.mark.parametrize(
    ("write", "name"),
    [(write_voc, "Annotations/a.xml"), (write_yolo, "labels/train/a.txt"), (write_labelme, "a.json")],
)
def test_a_picture_whose_labels_cannot_be_read_is_no_background(
    tmp_path: Path, write: Callable[..., object], name: str
) -> None:
    write(tmp_path, three_pictures())
    broken(tmp_path / name)
    data = read_data(tmp_path)
    assert [record.path.name for record in data.records] == ["b.jpg", "c.jpg"]
    (problem,) = data.problems
    assert (problem.severity, problem.kind) == ("error", "unreadable annotation") and name in str(problem)


def test_names_that_cannot_be_read_are_not_needed_beside_data_yaml(tmp_path: Path) -> None:
    write_yolo(tmp_path, three_pictures())
    (tmp_path / "data.yaml").write_text("train: images/train\nnames: [cat, dog, emu]\n")
    broken(tmp_path / "classes.txt")
    data = read_data(tmp_path)
    assert data.classes == CLASSES and [problem.value for problem in data.problems] == ["classes.txt"]


def test_a_data_yaml_that_cannot_be_read_refuses_no_set_of_another_format(tmp_path: Path) -> None:
    for write in (write_coco, write_voc, write_labelme):
        (root := tmp_path / write.__name__).mkdir()
        write(root, three_pictures())
        broken(root / "data.yaml")
        assert names(root) == ["a.jpg", "b.jpg", "c.jpg"]
        assert [problem.value for problem in read_data(root).problems] == ["data.yaml"]
    write_yolo(root := tmp_path / "yolo", three_pictures())
    (root / "pets.yaml").write_text("train: images/train\nnames: [cat, dog, emu]\n")
    broken(root / "data.yaml")
    assert names(root) == ["a.jpg", "b.jpg", "c.jpg"]


@pytest.mark.parametrize("name", ["classes.txt", "obj.names"])
def test_names_that_cannot_be_read_are_not_needed_beside_others(tmp_path: Path, name: str) -> None:
    write_yolo(tmp_path, three_pictures())
    (tmp_path / "classes.txt").rename(tmp_path / "labels" / "classes.txt")
    broken(tmp_path / name)
    assert read_data(tmp_path).classes == CLASSES


def test_the_folder_that_holds_the_set_is_named(tmp_path: Path) -> None:
    write_coco(tmp_path / "zip1" / "coco", three_pictures())
    write_voc(tmp_path / "zip2" / "VOCdevkit" / "VOC2007", three_pictures())
    write_yolo(tmp_path / "zip3" / "pets", three_pictures())
    write_yolo(tmp_path / "zip3" / "pets", VAL, "val")
    for archive, folder, there in (
        ("zip1", "coco", "COCO data (train)"),
        ("zip2", "VOCdevkit/VOC2007", "VOC data (train)"),
        ("zip3", "pets", "YOLO data (train, val)"),
    ):
        said = refusal(tmp_path / archive).splitlines()
        assert said[-1] == f"{tmp_path / archive / folder} holds {there}: give that folder"
        assert sum("give that folder" in line for line in said) == 1


@pytest.mark.parametrize("names", ["[cat, dog, emu]", "pets.names"])
def test_a_data_yaml_is_parsed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, names: str) -> None:
    write_yolo(tmp_path, three_pictures())
    write_yolo(tmp_path, VAL, "val")
    (tmp_path / "classes.txt").rename(tmp_path / "pets.names")
    (tmp_path / "data.yaml").write_text(f"train: images/train\nval: images/val\nnc: 3\nnames: {names}\n")
    parsed, load = list[str](), yaml.load

    def counted(text: str, **options: Any) -> Any:
        parsed.append(text)
        return load(text, **options)

    monkeypatch.setattr("yaml.load", counted)
    for given in (tmp_path, tmp_path / "data.yaml"):
        source = DataSet(given)
        for split in ("train", "val"):
            assert source.read(split).classes == ("cat", "dog", "emu")
    assert len(parsed) == 2


def test_names_may_be_a_file(tmp_path: Path) -> None:
    write_yolo(tmp_path, three_pictures())
    (tmp_path / "classes.txt").rename(tmp_path / "pets.names")
    (tmp_path / "data.yaml").write_text("train: images/train\nnames: ../elsewhere/pets.names\n")
    assert read_data(tmp_path).classes == ("cat", "dog", "emu")
    (tmp_path / "data.yaml").write_text("train: images/train\nnames: cat, dog\n")
    assert "no class names (names is 'cat, dog')" in refusal(tmp_path)
    (tmp_path / "data.yaml").write_text(f"train: images/train\nnames: {'cat ' * 2000}\n")
    assert "no class names (names is 'cat cat" in refusal(tmp_path)
    (tmp_path / "data.yaml").write_text("train: images/train\nnames: pets.names\nnc: 2\n")
    assert "nc is 2 but names has 3: make them agree" in refusal(tmp_path)


def test_labels_that_go_with_no_picture_are_named_where_nothing_is_left(tmp_path: Path) -> None:
    labels = write_yolo(tmp_path, three_pictures())
    for file in labels.iterdir():
        file.rename(file.with_name(f"{file.stem}.jpg.txt"))
    assert "no usable box (warning: " in refusal(tmp_path) and "labels/train/a.txt" in refusal(tmp_path)


# --- corners where sides belong


def spread(count: int) -> list[Picture]:
    """Pictures with a box each, whose place and size vary."""
    random = np.random.default_rng(count)
    starts, ends = random.uniform(0, 25, (count, 2)).tolist(), random.uniform(30, 40, (count, 2)).tolist()
    return [Picture(f"{n}.png", boxes=[(0, *starts[n], *ends[n])]) for n in range(count)]


def test_coco_boxes_that_must_be_corners_are_refused(tmp_path: Path) -> None:
    file = write_coco(tmp_path, spread(12))
    assert len(read_data(tmp_path).records.boxes) == 12
    content = json.loads(file.read_text())
    for box in content["annotations"]:
        x, y, w, h = box["bbox"]
        box["bbox"] = [x, y, x + w, y + h]
    file.write_text(json.dumps(content))
    assert f"{file}: boxes reach far out of their pictures" in refusal(tmp_path)
    content["annotations"][3]["bbox"] = [40, 5, 9, 20]  # no corners
    file.write_text(json.dumps(content))
    assert len(read_data(tmp_path).records.boxes) == 12


def test_yolo_rows_that_must_be_corners_are_refused(tmp_path: Path) -> None:
    labels = write_yolo(tmp_path, spread(12))
    assert len(read_data(tmp_path).records.boxes) == 12
    for file, picture in zip(sorted(labels.iterdir()), sorted(spread(12), key=lambda p: p.name), strict=True):
        _, x1, y1, x2, y2 = picture.boxes[0]
        file.write_text(f"0 {x1 / 60} {y1 / 40} {x2 / 60} {y2 / 40}\n")
    assert f"{labels}/0.txt: boxes reach far out of their pictures" in refusal(tmp_path)
    (labels / "0.txt").write_text("")
    assert f"{labels}/1.txt: boxes reach far out of their pictures" in refusal(tmp_path)


def test_yolo_rows_that_may_hold_the_top_left_corner_are_told(tmp_path: Path) -> None:
    labels = write_yolo(tmp_path, spread(12))
    hint = "boxes stick out at the left and top alone"
    assert not [one for one in read_data(tmp_path).problems if one.kind == hint]
    for number, (file, picture) in enumerate(
        zip(sorted(labels.iterdir()), sorted(spread(12), key=lambda p: p.name), strict=True)
    ):
        _, x1, y1, x2, y2 = picture.boxes[0]
        x = 0 if number < 4 else x1 / 60
        file.write_text(f"0 {x} {y1 / 40} {(x2 - x1) / 60} {(y2 - y1) / 40}\n")
    (told,) = [one for one in read_data(tmp_path).problems if one.kind == hint]
    assert Path(told.file).parent == labels and "write the centre" in told.mend
    file = sorted(labels.iterdir())[-1]  # one that sticks out at the right: the set was cut like this
    file.write_text("0 0.95 0.5 0.3 0.3\n")
    assert not [one for one in read_data(tmp_path).problems if one.kind == hint]


@pytest.mark.parametrize("box", [(-12, 3, 95, 97), (5, 5, 118, 97)])
def test_boxes_that_would_stick_out_as_corners_too_are_clipped(
    tmp_path: Path, box: tuple[float, float, float, float]
) -> None:
    boxes = [(0, *(box if n % 3 == 0 else (1, 3, 95, 97))) for n in range(40)]
    write_coco(tmp_path, [Picture(f"{n}.png", 100, 100, boxes=[one]) for n, one in enumerate(boxes)])
    assert len(read_data(tmp_path).records.boxes) == 40


def test_a_hint_is_of_the_file_that_the_error_names(tmp_path: Path) -> None:
    write_yolo(tmp_path, three_pictures())
    (tmp_path / "classes.txt").write_text("cat\ndog\ncat\n")
    (tmp_path / "results.csv").write_text("a,b,c,d,e\n1,2,3,4,5\n")
    assert "looks like" not in refusal(tmp_path)


@pytest.mark.parametrize("write", [write_coco, write_yolo])
def test_large_boxes_that_stick_out_a_little_are_clipped(
    tmp_path: Path, write: Callable[[Path, list[Picture]], Path]
) -> None:
    write(tmp_path, [Picture(f"{n}.png", boxes=[(0, 1, 1, 63, 43)]) for n in range(12)])
    data = read_data(tmp_path)
    assert {problem.kind for problem in data.problems} == {"box partly outside the image"}
    assert data.records.boxes.round().tolist() == [[1, 1, 60, 40]] * 12
