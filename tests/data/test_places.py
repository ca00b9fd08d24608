"""Where the files of a data set may lie, and that none of them is dropped in silence."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from ghmdet.data import DetectionData, check_data, read_data
from ghmdet.engine.predict import find_pictures
from ghmdet.errors import DataError
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

LINE = "0 .5 .5 .5 .5\n"


def write(path: Path, text: str = "") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def left(data: DetectionData) -> dict[str, tuple[int, str]]:
    return {problem.kind: (problem.count, problem.value) for problem in data.problems}


def boxes(data: DetectionData) -> dict[str, list[list[float]]]:
    """The boxes of each picture by its path below the data set; every picture is there."""
    assert all(record.path.is_file() for record in data.records)
    root = data.root if data.root.is_dir() else data.root.parent
    return {
        record.path.resolve().relative_to(root.resolve()).as_posix(): record.boxes.round(2).tolist()
        for record in data.records
    }


THREE = [[[5, 5, 25, 35], [30, 10, 60, 40]], [[0, 0, 40, 60], [8, 4, 16, 20]], []]


def draw_three(folder: Path) -> None:
    for picture in three_pictures():
        draw(folder / picture.name, picture.width, picture.height)


# --- more layouts


@pytest.mark.parametrize(
    ("file", "pictures", "split"),
    [
        ("train.json", "images", "train"),
        ("train.json", "train", "train"),
        ("instances_val.json", "images/val", "val"),
        ("train/annotations.json", "train", "train"),
        ("valid/annotations.json", "valid/images", "val"),
        ("result.json", "images", "train"),
        ("annotations/instances_default.json", "images/default", "train"),
        ("annotations/cars_train.json", "images", "train"),
        ("Annotations/Train.json", "images", "train"),
        ("labels.json", "data", "train"),
    ],
)
def test_coco_layouts(tmp_path: Path, file: str, pictures: str, split: str) -> None:
    write(tmp_path / file, json.dumps(coco_content(three_pictures())))
    draw_three(tmp_path / pictures)
    data = read_data(tmp_path, split)
    assert data.format == "COCO" and list(boxes(data).values()) == THREE and data.problems == ()
    assert list(boxes(data)) == [f"{pictures}/{name}.jpg" for name in "abc"]


@pytest.mark.parametrize(
    "name", ["training_log.json", "train_results.json", "result.json", "train/val_metrics.json"]
)
@pytest.mark.parametrize("text", ['{"epochs": 3}', '[{"image_id": 1, "bbox": [1, 2, 3, 4]}]', "", "{"])
def test_other_json_files_make_no_coco_set(tmp_path: Path, name: str, text: str) -> None:
    write_yolo(tmp_path, three_pictures())
    write(tmp_path / name, text)
    data = read_data(tmp_path)
    assert data.format == "YOLO" and list(boxes(data).values()) == THREE and data.problems == ()


@pytest.mark.parametrize(
    ("xml", "pictures", "split"),
    [
        ("train/annotations", "train/images", "train"),
        ("valid/Annotations", "valid/JPEGImages", "val"),
        ("annotations/val", "images/val", "val"),
        ("annotations/cam1", "images/cam1", "train"),
        ("Annotations/a/b", "JPEGImages/a/b", "train"),
    ],
)
def test_voc_layouts(tmp_path: Path, xml: str, pictures: str, split: str) -> None:
    draw_three(tmp_path / pictures)
    for picture in three_pictures():
        write((tmp_path / xml / picture.name).with_suffix(".xml"), voc_xml(picture))
    data = read_data(tmp_path, split)
    assert data.format == "VOC" and data.problems == ()
    assert boxes(data) == {f"{pictures}/{name}.jpg": own for name, own in zip("abc", THREE, strict=True)}


@pytest.mark.parametrize(
    "lines",
    [
        "a.jpg\nb.jpg\n",
        "JPEGImages/a.jpg\n./JPEGImages/b.jpg",
        "/home/x/VOC/JPEGImages/a.jpg\nC:\\voc\\b.JPG\n",
        "a.xml\nb\n",
    ],
)
def test_voc_lists_of_file_names(tmp_path: Path, lines: str) -> None:
    write_voc(tmp_path, three_pictures()[:2])
    (tmp_path / "ImageSets" / "Main" / "train.txt").write_text(lines)
    data = read_data(tmp_path)
    assert list(boxes(data).values()) == THREE[:2] and data.problems == ()


def labelme(picture: Picture, **more: Any) -> str:
    shapes = [
        {"label": CLASSES[label], "points": [[x2, y1], [x1, y2]], "shape_type": "rectangle"}
        for label, x1, y1, x2, y2 in picture.boxes
    ]
    size = {"imageWidth": picture.width, "imageHeight": picture.height, "imagePath": picture.name}
    return json.dumps({"version": "5", "shapes": shapes, **size, "imageData": None, **more})


@pytest.mark.parametrize(("place", "split"), [("", "train"), ("train", "train"), ("val", "val")])
def test_labelme(tmp_path: Path, place: str, split: str) -> None:
    draw_three(tmp_path / place)
    for picture in three_pictures():
        write((tmp_path / place / picture.name).with_suffix(".json"), labelme(picture))
    data = read_data(tmp_path, split)
    assert data.format == "LabelMe" and data.classes == CLASSES and data.problems == ()
    assert list(boxes(data).values()) == THREE


@pytest.mark.parametrize(
    ("kind", "points", "box"),
    [
        ("polygon", [[5, 6], [25, 6], [20, 30]], [5, 6, 25, 30]),
        ("circle", [[20, 20], [20, 30]], [10, 10, 30, 30]),
        ("rectangle", [["5", "6"], ["25", "30"]], [5, 6, 25, 30]),
        ("line", [[5, 6], [25, 30]], None),
        ("point", [[5, 6]], None),
        ("polygon", [[5, 6], [25, "x"], [2, 3]], None),
        ("polygon", "x", None),
    ],
)
def test_labelme_shapes(tmp_path: Path, kind: str, points: object, box: list[float] | None) -> None:
    draw(tmp_path / "a.jpg", 60, 40)
    shapes = [
        {"label": "cat", "points": points, "shape_type": kind},
        {"label": "dog", "points": [[0, 0], [9, 9]], "shape_type": "rectangle"},
    ]
    write(tmp_path / "a.json", labelme(Picture("a.jpg"), shapes=shapes, imagePath="..\\x\\a.jpg"))
    data = read_data(tmp_path)
    assert boxes(data)["a.jpg"] == ([box] if box else []) + [[0, 0, 9, 9]]
    assert [problem.kind for problem in data.problems] == ([] if box else ["malformed box"])


def test_cvat_yolo(tmp_path: Path) -> None:
    draw_three(tmp_path / "obj_train_data")
    for name in "abc":
        write(tmp_path / "obj_train_data" / f"{name}.txt", LINE)
    write(tmp_path / "obj.names", "cat\ndog\n")
    write(
        tmp_path / "obj.data",
        "classes = 2\ntrain = data/train.txt\nnames = data/obj.names\nbackup = backup/\n",
    )
    write(tmp_path / "train.txt", "".join(f"data/obj_train_data/{name}.jpg\n" for name in "abc"))
    for given in (tmp_path, tmp_path / "obj.data"):
        data = read_data(given)
        assert data.format == "YOLO" and data.classes == ("cat", "dog") and data.problems == ()
        assert list(boxes(data)) == [f"obj_train_data/{name}.jpg" for name in "abc"]


@pytest.mark.parametrize("names", ["obj.data", "no.names", ""])
def test_an_obj_data_that_names_no_classes_is_refused(tmp_path: Path, names: str) -> None:
    draw(tmp_path / "a.jpg", 20, 20)
    write(tmp_path / "train.txt", "a.jpg\n")
    write(tmp_path / "obj.data", f"train = train.txt\nnames = {names}\n")
    with pytest.raises(DataError):
        read_data(tmp_path / "obj.data")
    assert check_data(tmp_path)


@pytest.mark.parametrize("place", ["", "images", "train", "images/train", "train/images"])
def test_yolo_labels_beside_the_pictures(tmp_path: Path, place: str) -> None:
    draw_three(tmp_path / place)
    for name in "abc":
        write(tmp_path / place / f"{name}.txt", LINE)
    write(tmp_path / place / "classes.txt", "cat\n")
    assert len(boxes(read_data(tmp_path))) == 3 and read_data(tmp_path).boxes_per_class() == {"cat": 3}


def test_a_folder_that_almost_fits_is_told_what_is_missing_in_five_lines(tmp_path: Path) -> None:
    draw_three(tmp_path / "pics")
    for end, text, name, missing in (
        (".txt", LINE, "YOLO", "the names of the classes"),
        (".xml", voc_xml(three_pictures()[0]), "VOC", "a folder Annotations"),
        (
            ".json",
            json.dumps(coco_content(three_pictures())),
            "COCO",
            "rename it, or give the .json file itself",
        ),
    ):
        write(tmp_path / "notes" / "deep" / f"a{end}", text)
        with pytest.raises(DataError) as caught:
            read_data(tmp_path)
        lines = str(caught.value).splitlines()
        assert len(lines) <= 5 and lines[0].startswith(f"{tmp_path}: no data set recognised: 3 pictures, ")
        assert lines[1].startswith(f"nearest layout: {name} (first label file: notes/deep/a{end}): ")
        assert lines[2].startswith("missing: ") and missing in lines[2]
        assert check_data(tmp_path)
        shutil.rmtree(tmp_path / "notes")


# --- the picture that a record means


NAMES: list[tuple[str, Callable[[str], str]]] = [
    ("backslashes", lambda name: f"images\\train\\{name}"),
    ("drive", lambda name: f"C:\\Users\\me\\set\\{name}"),
    ("absolute", lambda name: f"/home/me/set/images/{name}"),
    ("url", lambda name: f"https://host/bucket/{name}?token=abc"),
    ("percent", lambda name: f"a%20b/{name.replace('.', '%2E')}"),
    ("label studio", lambda name: f"/data/local-files/?d=images/{name}"),
    ("parent", lambda name: f"../../upload/{name}"),
]


@pytest.mark.parametrize("spelled", [spell for _, spell in NAMES], ids=[name for name, _ in NAMES])
@pytest.mark.parametrize("some", [True, False])
def test_names_of_other_machines_mean_the_one_picture_of_the_name(
    tmp_path: Path, spelled: Callable[[str], str], some: bool
) -> None:
    file = write_coco(tmp_path, three_pictures())
    content = json.loads(file.read_text())
    for image in content["images"][int(some) :]:
        image["file_name"] = spelled(image["file_name"])
    file.write_text(json.dumps(content))
    data = read_data(tmp_path)
    assert boxes(data) == {f"images/{name}.jpg": own for name, own in zip("abc", THREE, strict=True)}
    assert data.problems == ()


def test_a_name_that_more_than_one_picture_has_is_missing(tmp_path: Path) -> None:
    file = write_coco(tmp_path, three_pictures())
    draw(tmp_path / "more" / "a.jpg", 60, 40)
    file.write_text(file.read_text().replace('"a.jpg"', '"/home/me/a.jpg"'))
    assert [record.path.is_file() for record in read_data(tmp_path).records] == [False, True, True]
    file.write_text(file.read_text().replace("/home/me/a.jpg", "/home/me/more/a.jpg"))  # but this says which
    assert read_data(tmp_path).records[0].path.resolve() == tmp_path / "more" / "a.jpg"


def test_a_missing_picture_is_not_replaced_by_one_of_the_same_name(tmp_path: Path) -> None:
    """Of another split, of another folder, or of another record."""
    for split in ("train", "val"):
        draw(tmp_path / "images" / split / "a.jpg", 60, 40)
        draw(tmp_path / "images" / split / f"{split}.jpg", 60, 40)
        pictures = [Picture("a.jpg", boxes=[(0, 5, 5, 9, 9)]), Picture(f"{split}.jpg")]
        write(tmp_path / "annotations" / f"{split}.json", json.dumps(coco_content(pictures)))
    (tmp_path / "images" / "train" / "a.jpg").unlink()
    assert [record.path.is_file() for record in read_data(tmp_path).records] == [False, True]
    annotations = write_voc(tmp_path / "voc", [Picture("a.jpg", boxes=[(0, 5, 5, 9, 9)])])
    write(annotations / "cam2" / "a.xml", voc_xml(Picture("a.jpg", boxes=[(1, 5, 5, 30, 30)])))
    (tmp_path / "voc" / "ImageSets" / "Main" / "train.txt").write_text("a\ncam2/a\n")
    data = read_data(tmp_path / "voc")
    assert [record.path.is_file() for record in data.records] == [True, False]


@pytest.mark.parametrize(
    ("train", "test"), [("train", "test"), ("training", "testing"), ("Train_a", "Eval_a")]
)
@pytest.mark.parametrize("kind", ["coco", "yolo", "labelme"])
def test_no_reader_takes_a_missing_picture_from_the_folder_of_another_part(
    tmp_path: Path, kind: str, train: str, test: str
) -> None:
    """The listed names are of another machine, so that they are looked for by the pictures' own."""
    for number, place in enumerate((train, train, test)):
        draw(tmp_path / kind / place / "images" / f"{number}.jpg", 60, 40)
    pictures = [Picture(rf"D:\data\{number}.jpg", boxes=[(0, 5, 5, 25, 35)]) for number in range(3)]
    write(tmp_path / "coco/annotations/train.json", json.dumps(coco_content(pictures)))
    write(tmp_path / "yolo/train.txt", "".join(f"{picture.name}\n" for picture in pictures))
    write(tmp_path / "yolo/data.yaml", "names: [cat, dog, emu]\ntrain: train.txt\n")
    for number, picture in enumerate(pictures):
        write(tmp_path / f"yolo/{train}/labels/{number}.txt", LINE)
        write(tmp_path / f"labelme/train/json/{number}.json", labelme(picture))
    there = [record.path.name for record in read_data(tmp_path / kind).records if record.path.is_file()]
    assert there == ["0.jpg", "1.jpg"]


def test_voc_pictures_of_one_name_in_two_folders(tmp_path: Path) -> None:
    """Frames are numbered alike in each camera's folder; with and without a list."""
    for place, box in (("", (0, 5, 5, 9, 9)), ("cam2", (1, 5, 5, 30, 30)), ("cam3", (2, 1, 1, 8, 8))):
        picture = Picture("a.jpg", boxes=[box])
        draw(tmp_path / "JPEGImages" / place / "a.jpg", 60, 40)
        write(tmp_path / "Annotations" / place / "a.xml", voc_xml(picture))
    want = {"a.jpg": [[5, 5, 9, 9]], "cam2/a.jpg": [[5, 5, 30, 30]], "cam3/a.jpg": [[1, 1, 8, 8]]}
    assert boxes(read_data(tmp_path)) == {f"JPEGImages/{name}": own for name, own in want.items()}
    write(tmp_path / "ImageSets" / "Main" / "train.txt", "cam3/a\na\n")
    data = read_data(tmp_path)
    assert boxes(data) == {f"JPEGImages/{name}": want[name] for name in ("cam3/a.jpg", "a.jpg")}
    assert left(data) == {
        "label file that no split uses": (1, "Annotations/cam2/a.xml"),
        "picture that no split uses": (1, "JPEGImages/cam2/a.jpg"),
    }


def test_two_pictures_with_the_stem_of_one_xml_file(tmp_path: Path) -> None:
    write_voc(tmp_path, [Picture("a.jpg", boxes=[(0, 5, 5, 9, 9)])])
    draw(tmp_path / "JPEGImages" / "a.bmp", 60, 40)
    assert list(boxes(read_data(tmp_path))) == ["JPEGImages/a.jpg"]  # the one that <filename> names
    file = tmp_path / "Annotations" / "a.xml"
    text = file.read_text()
    for written in ("photo.jpg", "a.gif", "a", ""):  # names neither
        file.write_text(text.replace("a.jpg", written))
        with pytest.raises(DataError, match="more than one picture of this name"):
            read_data(tmp_path)


# --- nothing is dropped in silence


def test_pictures_and_labels_that_do_not_meet_are_counted(tmp_path: Path) -> None:
    labels = write_yolo(tmp_path, three_pictures())
    write_yolo(tmp_path, three_pictures()[:1], "val")
    (labels / "b.txt").unlink()
    for name in ("x", "y", "z", "zz"):
        write(labels / f"{name}.txt", LINE)
    draw(tmp_path / "spare" / "s.png", 20, 20)
    write(tmp_path / "spare" / "i.heic", "x")
    write(tmp_path / "README.txt", "Read me: 5 lines\n")
    data = read_data(tmp_path)
    assert left(data) == {
        "picture without a label file": (1, f"({labels}/b.txt, {tmp_path}/images/train/b.txt)"),
        "label file that no split uses": (
            4,
            "labels/train/x.txt, labels/train/y.txt, labels/train/z.txt, ...",
        ),
        "picture that no split uses": (1, "spare/s.png"),
        "picture that the installed Pillow cannot open": (1, "spare/i.heic"),
    }
    assert set(data.problems) <= set(check_data(tmp_path))
    assert "Warning: 4 × label file that no split uses (" in data.describe()
    assert read_data(tmp_path, "val").problems == ()


@pytest.mark.parametrize("write_set", [write_coco, write_voc])
def test_pictures_that_no_annotation_names_are_counted(
    tmp_path: Path, write_set: Callable[..., Path]
) -> None:
    write_set(tmp_path, three_pictures())
    write_set(tmp_path, [Picture("v.jpg", boxes=[(0, 5, 5, 9, 9)])], "val")
    folder = tmp_path / ("images" if write_set is write_coco else "JPEGImages")
    draw(folder / "deep" / "er" / "S.PNG", 20, 20)
    assert left(read_data(tmp_path)) == {"picture that no split uses": (1, f"{folder.name}/deep/er/S.PNG")}


@pytest.mark.parametrize(
    "hidden", [".b.jpg", "._b.jpg", ".ipynb_checkpoints/b.jpg", "__MACOSX/b.jpg", ".a/b/c.txt"]
)
def test_hidden_files_are_skipped_and_counted(tmp_path: Path, hidden: str) -> None:
    write_yolo(tmp_path, three_pictures())
    place = tmp_path / "images" / "train" / hidden
    place.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(tmp_path / "images" / "train" / "a.jpg", place)
    data = read_data(tmp_path)
    assert len(data.records) == 3 and left(data) == {"hidden file": (1, f"images/train/{hidden}")}


def test_predict_looks_for_pictures_as_the_readers_do(tmp_path: Path) -> None:
    for name in ("a.jpg", "deep/er/B.JFIF", ".c.jpg", ".ipynb_checkpoints/a.jpg", "._a.jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8)).save(tmp_path / name, format="JPEG")
    (tmp_path / "deep" / "loop").symlink_to(tmp_path)
    (tmp_path / "dir.jpg").mkdir()
    (tmp_path / "deep" / "phone.HEIC").write_bytes(b"\0")
    for name in (".venv/site/names.txt", ".out/a.jpg", ".out/b.jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    os.mkfifo(tmp_path / "pipe.jpg")
    said: list[str] = []
    found = find_pictures([tmp_path], tmp_path / ".out", said.append)
    assert [str(name) for name in found] == ["a.jpg", "deep/er/B.JFIF"]
    for told, line in zip(("deep/phone.HEIC", "deep/loop", "3 × hidden file", "pipe.jpg"), said, strict=True):
        assert told in line


def test_a_pipe_among_the_data_is_counted(tmp_path: Path) -> None:
    labels = write_yolo(tmp_path, three_pictures())
    os.mkfifo(labels / "d.txt")
    data = read_data(tmp_path)
    assert len(data.records) == 3 and left(data) == {"pipe or device": (1, "labels/train/d.txt")}


@pytest.mark.parametrize("end", [".TXT", ".Txt"])
def test_label_files_in_upper_case_or_beside_the_picture_are_read(tmp_path: Path, end: str) -> None:
    labels = write_yolo(tmp_path, three_pictures())
    (labels / "a.txt").rename(labels / f"a{end}")
    (labels / "b.txt").rename(tmp_path / "images" / "train" / "b.txt")
    data = read_data(tmp_path)
    assert [len(record.boxes) for record in data.records] == [2, 2, 0] and data.problems == ()


@pytest.mark.parametrize("above", ["images", "Images/x/images"])
def test_folders_above_the_set_keep_their_names(tmp_path: Path, above: str) -> None:
    root = tmp_path / above / "set"
    write_yolo(root, three_pictures())
    write(
        tmp_path / above.replace("images", "labels") / "set" / "images" / "train" / "a.txt", "1 .5 .5 .1 .1\n"
    )
    assert [len(record.boxes) for record in read_data(root).records] == [2, 2, 0]


def test_symlinked_folders_are_followed_and_loops_are_not(tmp_path: Path) -> None:
    write_yolo(tmp_path / "far", three_pictures())
    root = tmp_path / "set"
    root.mkdir()
    for name in ("images", "labels"):
        (root / name).symlink_to(tmp_path / "far" / name)
    (root / "classes.txt").write_text("\n".join(CLASSES))
    (tmp_path / "far" / "images" / "train" / "back").symlink_to(tmp_path / "far" / "images")
    (tmp_path / "far" / "images" / "train" / "self").symlink_to("self")
    data = read_data(root)
    assert [record.path.name for record in data.records] == ["a.jpg", "b.jpg", "c.jpg"]
    assert left(data) == {"symlinked folder that leads back": (1, "images/train/back")}


def test_pictures_used_by_way_of_a_link_are_not_left_over(tmp_path: Path) -> None:
    write_yolo(tmp_path, three_pictures())
    (tmp_path / "images" / "train").rename(tmp_path / "raw")
    (tmp_path / "images" / "train").mkdir()
    for name in "abc":
        (tmp_path / "images" / "train" / f"{name}.jpg").symlink_to(tmp_path / "raw" / f"{name}.jpg")
    assert len(read_data(tmp_path).records) == 3 and read_data(tmp_path).problems == ()


# --- what a row or an element means


def row_kinds(root: Path, rows: list[str], declared: str = "") -> tuple[list[list[list[float]]], list[str]]:
    """Boxes of each picture that is kept, and the kinds of problems, of one row a picture of 100 x 50."""
    labels = write_yolo(root, [Picture(f"{number}.jpg", 100, 50) for number in range(len(rows))])
    for number, row in enumerate(rows):
        (labels / f"{number}.txt").write_text(f"{row}\n")
    (root / "data.yaml").write_text(f"train: images/train\nnames: [cat, dog]\n{declared}\n")
    source = read_data(root) if declared != "refused" else None
    assert source is not None
    return list(boxes(source).values()), [problem.kind for problem in source.problems]


POSE = "0 .5 .5 .2 .4 .45 .45 .55 .55"  # two key points
POLYGON = "1 .7 .2 .9 .2 .8 .8 .75 .6"


@pytest.mark.parametrize("kind", ["task: segment", "task: obb"])
def test_declared_polygons(tmp_path: Path, kind: str) -> None:
    assert row_kinds(tmp_path, [POSE, POLYGON], kind) == ([[[20, 20, 55, 27.5]], [[70, 10, 90, 40]]], [])


def test_declared_key_points(tmp_path: Path) -> None:
    assert row_kinds(tmp_path, [POSE, "0 .5 .5 .2 .4"], "kpt_shape: [2, 2]") == ([[[40, 15, 60, 35]]] * 2, [])
    visible = "0 .5 .5 .2 .4 .45 .45 2 .55 .55 1"
    assert row_kinds(tmp_path / "3", [visible], "kpt_shape: [2, 3]") == ([[[40, 15, 60, 35]]], [])
    found, kinds = row_kinds(tmp_path / "other", [POSE, visible], "kpt_shape: [2, 2]")
    assert (found, kinds) == ([[[40, 15, 60, 35]]], ["row of 11 numbers"])  # and that picture is left out


def test_rows_that_can_be_nothing_else_are_polygons(tmp_path: Path) -> None:
    assert row_kinds(tmp_path, [POLYGON, "0 .5 .5 .2 .4"]) == ([[[70, 10, 90, 40]], [[40, 15, 60, 35]]], [])
    triangle = "1 .1 .2 .5 .2 .3 .8"
    assert row_kinds(tmp_path / "triangle", [triangle]) == ([[[10, 10, 50, 40]]], [])


def test_some_of_the_rows_tell_polygons_round_the_middle_from_poses(tmp_path: Path) -> None:
    middle = "0 .5 .5 .6 .5 .6 .6 .5 .6"  # a square, or a box with two key points
    found, problems = row_kinds(tmp_path / "polygons", [POLYGON, *[middle] * 5])
    assert found == [[[70, 10, 90, 40]], *[[[50, 25, 60, 30]]] * 5] and not problems
    with pytest.raises(DataError, match=r"row of 9 numbers .*kpt_shape"):
        row_kinds(tmp_path / "poses", [POLYGON, *[middle] * 6])


def test_a_yaml_given_by_a_relative_path_names_pictures_beside_its_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    row_kinds(tmp_path / "datasets" / "coco8", ["0 .5 .5 .2 .4"])
    yaml = next((tmp_path / "datasets" / "coco8").glob("*.yaml"))
    images = next(
        path.parent for path in (tmp_path / "datasets").rglob("*") if path.suffix in (".png", ".jpg")
    )
    (tmp_path / "project").mkdir()
    folder = images.relative_to(tmp_path / "datasets" / "coco8")
    (tmp_path / "project" / "coco8.yaml").write_text(
        f"path: ../datasets/coco8\ntrain: {folder}\nval: {folder}\nnames: [a, b]\n"
    )
    yaml.unlink()
    monkeypatch.chdir(tmp_path)
    (record,) = read_data("project/coco8.yaml", "train").records
    assert record.path.is_file() and record.boxes.tolist() == [[40, 15, 60, 35]]


@pytest.mark.parametrize(
    "row",
    [
        "0 .5 .5 .2 .2 .93 1",
        "1 .3 .3 .2 .2 .5 17",
        POSE,
        "0 .5 .5 .2 .4 .45 .45 2 .55 .55 0",
        "0 .4 .4 .2 .4 .45 .45 2 0 0 0",
    ],
)
def test_rows_that_may_be_a_pose_or_a_track_are_refused(tmp_path: Path, row: str) -> None:
    with pytest.raises(DataError, match=f"row of {len(row.split())} numbers .*kpt_shape"):
        row_kinds(tmp_path / "all", [row, row])
    found, kinds = row_kinds(tmp_path / "one", ["0 .5 .5 .2 .4", row])
    assert found == [[[40, 15, 60, 35]]] and kinds == [f"row of {len(row.split())} numbers"]
    assert check_data(tmp_path / "all")


@pytest.mark.parametrize("shape", ["17", "[17]", "[0, 2]", "[a, b]", "{a: b}"])
def test_a_kpt_shape_that_is_none_is_refused(tmp_path: Path, shape: str) -> None:
    with pytest.raises(DataError, match="write \\[number of key points, 2 or 3\\]"):
        row_kinds(tmp_path, [POSE], f"kpt_shape: {shape}")


def voc_with(root: Path, text: str | bytes) -> DetectionData:
    """Pictures a and b, b's xml file as given."""
    file = write_voc(root, three_pictures()[:2]) / "b.xml"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_data(root)


PLAIN = voc_xml(three_pictures()[1])


@pytest.mark.parametrize(
    "text",
    [
        PLAIN.replace("<annotation>", '<annotation xmlns="http://x/y">'),
        PLAIN.replace("<annotation>", '<v:annotation xmlns:v="u">').replace(
            "</annotation>", "</v:annotation>"
        ),
        PLAIN.replace("object>", "Object>").replace("name>", "NAME>").replace("bndbox>", "BndBox>"),
        f'<?xml version="1.0" encoding="ISO-8859-1"?>{PLAIN}<!-- \xe9 -->'.encode("latin-1"),
        f'<?xml version="1.0" encoding="GBK"?>{PLAIN}<!-- \u4e2d -->'.encode("gbk"),
        f'<?xml version="1.0" encoding="utf-16"?>{PLAIN}'.encode("utf-16"),
    ],
)
def test_xml_in_another_dialect_or_encoding_is_read(tmp_path: Path, text: str | bytes) -> None:
    data = voc_with(tmp_path, text)
    assert list(boxes(data).values()) == THREE[:2] and data.problems == ()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (PLAIN.replace("annotation>", "annotations>"), "no VOC annotation: its root is <annotations>"),
        ("<svg><rect x='1' y='1' width='3' height='4'/></svg>", "no VOC annotation: its root is <svg>"),
        (PLAIN.replace("object>", "item>"), "no <object> but <item> with numbers"),
        (
            '<annotation><box xmin="1" ymin="2" xmax="3" ymax="4"/></annotation>',
            "no <object> but <box> with numbers",
        ),
        (f'<?xml version="1.0" encoding="klingon"?>{PLAIN}', "no such encoding as the declared 'klingon'"),
        (f"{PLAIN}<!-- \xe9 -->".encode("latin-1"), "not UTF-8 text"),
    ],
)
def test_xml_that_is_not_understood_is_no_picture_without_objects(
    tmp_path: Path, text: str | bytes, said: str
) -> None:
    data = voc_with(tmp_path, text)
    (problem,) = data.problems
    assert problem.severity == "error" and said in problem.mend and len(data.records) == 1


def test_an_xml_file_with_other_elements_and_no_object_is_a_picture_without_objects(tmp_path: Path) -> None:
    text = voc_xml(Picture("b.jpg", 40, 60)).replace(
        "</annotation>", "<weather><t>21</t></weather></annotation>"
    )
    assert list(boxes(voc_with(tmp_path, text)).values()) == [THREE[0], []]


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-32"])
def test_a_list_that_is_no_plain_text_crashes_nothing(tmp_path: Path, encoding: str) -> None:
    write_yolo(tmp_path, three_pictures())
    config = tmp_path / "data.yaml"
    config.write_text("train: images/train\nval: list.txt\nnames: [cat, dog, emu]\n")
    (tmp_path / "list.txt").write_bytes("images/train/a.jpg\n".encode(encoding))
    assert len(read_data(config).records) == 3
    assert any(problem.severity == "error" for problem in check_data(config, "val"))


def test_a_png_called_jpg_is_read(tmp_path: Path) -> None:
    write_yolo(tmp_path, three_pictures())
    Image.new("RGB", (60, 40)).save(tmp_path / "images" / "train" / "a.jpg", format="PNG")
    assert len(read_data(tmp_path).records) == 3


@pytest.mark.parametrize("kind", ["COCO", "VOC", "data.yaml", "classes.txt", "beside", "list", "LabelMe"])
def test_the_folder_that_one_is_in_is_read_as_by_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    if kind == "COCO":
        write_coco(tmp_path, three_pictures())
    elif kind == "VOC":
        write_voc(tmp_path, three_pictures())
    elif kind == "LabelMe":
        for picture in three_pictures():
            draw(tmp_path / picture.name, picture.width, picture.height)
            (tmp_path / picture.name).with_suffix(".json").write_text(labelme(picture))
    else:
        write_yolo(tmp_path, three_pictures())
        images, labels = tmp_path / "images" / "train", tmp_path / "labels" / "train"
        if kind in ("beside", "list"):
            for file in (*images.iterdir(), *labels.iterdir()):
                file.rename(tmp_path / file.name)
            shutil.rmtree(tmp_path / "images"), shutil.rmtree(tmp_path / "labels")
        if kind == "list":
            (tmp_path / "train.txt").write_text("./a.jpg\n./b.jpg\n")
        if kind in ("data.yaml", "list"):
            (tmp_path / "classes.txt").unlink()
            place = "images/train" if kind == "data.yaml" else "train.txt"
            (tmp_path / "data.yaml").write_text(f"names: [cat, dog, emu]\ntrain: {place}\n")
    monkeypatch.chdir(tmp_path)
    here, named = (read_data(place, "train") for place in (".", tmp_path))
    assert here.to_coco(absolute=True) == named.to_coco(absolute=True) and len(here.records) >= 2
    assert here.records.boxes.shape[0] == 4
    told = ([str(one).replace(str(tmp_path), ".") for one in check_data(place)] for place in (".", tmp_path))
    assert len(set(map(tuple, told))) == 1
