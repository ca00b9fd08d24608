"""What could be misread, and then trained on: each is read as it was meant, or refused aloud."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from ghmdet.data import DetectionData, check_data, read_data
from ghmdet.data.annotations import read_annotations
from ghmdet.data.values import shown
from ghmdet.errors import DataError
from ghmdet.pictures import EXTENSIONS, image_size, read_pixels
from small_sets import Picture, three_pictures, write_coco, write_voc, write_yolo


def edited(root: Path, edit: Callable[[dict[str, Any]], object]) -> Path:
    file = write_coco(root, three_pictures())
    content = json.loads(file.read_text())
    edit(content)
    file.write_text(json.dumps(content))
    return file


def refusal(path: Path, split: str = "train") -> str:
    with pytest.raises(DataError) as caught:
        read_data(path, split)
    assert check_data(path)  # and no crash there
    return str(caught.value)


def kinds(data: DetectionData) -> list[str]:
    return [problem.kind for problem in data.problems]


# --- pictures


@pytest.mark.parametrize("value", [0, 9, 300, 65535])
@pytest.mark.parametrize("ending", [".jpg", ".png"])
def test_an_exif_orientation_that_does_not_exist_turns_nothing(
    tmp_path: Path, value: object, ending: str
) -> None:
    tags, path = Image.Exif(), tmp_path / f"a{ending}"
    tags[0x0112] = value
    Image.new("RGB", (20, 10)).save(path, exif=tags)
    assert image_size(path) == (20, 10) and read_pixels(path)[0].shape == (10, 20, 3)


def _block(kind: int, value: bytes) -> bytes:
    """An EXIF block whose orientation is of another kind than a whole number."""
    return b"Exif\0\0II*\0" + struct.pack("<IHHHI4sI", 8, 1, 0x0112, kind, 1, value, 0)


@pytest.mark.parametrize(
    "block",
    [_block(2, b"6\0"), _block(11, struct.pack("<f", 6.5)), _block(7, b"\x06"), b"Exif\0\0XX*\0nonsense"],
)
def test_an_exif_orientation_that_is_no_number_turns_nothing(tmp_path: Path, block: bytes) -> None:
    path = tmp_path / "a.jpg"
    Image.new("RGB", (20, 10)).save(path, exif=block)
    assert image_size(path) == (20, 10) and read_pixels(path)[0].shape == (10, 20, 3)


def test_every_ending_that_pillow_decodes_is_a_picture(tmp_path: Path) -> None:
    assert {".jpg", ".jpeg", ".jfif", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".tga"} <= EXTENSIONS
    assert EXTENSIONS.isdisjoint({".mpg", ".mpeg", ".h5", ".hdf", ".grib", ".wmf", ".txt", ".xml", ".json"})


# --- names of classes


@pytest.mark.parametrize("word", ["yes", "no", "2024-01-01", "1.0", "010", "null", "12:30", "1e3", "0x1F"])
def test_a_class_is_called_what_the_yaml_file_writes(tmp_path: Path, word: str) -> None:
    write_yolo(tmp_path, three_pictures())
    for names in (f"[cat, {word}, emu]", f"{{0: cat, 1: {word}, 2: emu}}"):
        (tmp_path / "data.yaml").write_text(f"train: images/train\nval: ~\ntest: null\nnames: {names}\n")
        assert read_data(tmp_path).classes == ("cat", word, "emu")


@pytest.mark.parametrize("name", ["[a, b]", "{a: b}", "{}", "[]"])
def test_a_class_s_name_in_yaml_that_is_no_word_is_refused(tmp_path: Path, name: str) -> None:
    write_yolo(tmp_path, three_pictures())
    (tmp_path / "data.yaml").write_text(f"train: images/train\nnames: [cat, {name}, emu]\n")
    assert "is no name of a class: write text" in refusal(tmp_path)


@pytest.mark.parametrize("name", [["a"], {"en": "a"}, True])
def test_a_category_s_name_that_is_no_word_is_refused(tmp_path: Path, name: object) -> None:
    file = edited(tmp_path, lambda content: content["categories"][1].update(name=name))
    assert refusal(tmp_path) == f"{file}: categories[1]: {shown(name)} is no name of a class: write text"


@pytest.mark.parametrize("entry", ["{a: b}", "[[images/train]]"])
def test_a_split_that_is_no_folder_s_name_is_refused(tmp_path: Path, entry: str) -> None:
    write_yolo(tmp_path, three_pictures())
    (tmp_path / "data.yaml").write_text(f"train: {entry}\nnames: [cat, dog, emu]\n")
    assert "give a folder, a list file or several" in refusal(tmp_path)


def test_yaml_nested_too_deep_is_refused(tmp_path: Path) -> None:
    (tmp_path / "data.yaml").write_text("train: x\nnames: " + "[" * 5000)
    assert "invalid YAML" in refusal(tmp_path / "data.yaml")


# --- Roboflow's category 0


@pytest.mark.parametrize("name", ["dog", "robo_dummy"])
def test_a_category_that_only_groups_the_others_is_no_class(tmp_path: Path, name: str) -> None:
    def edit(content: dict[str, Any]) -> None:
        for category in content["categories"]:
            category["supercategory"] = name
        content["categories"].insert(0, {"id": 0, "name": name, "supercategory": "none"})

    file = edited(tmp_path, edit)
    data = read_data(tmp_path)
    assert data.classes == ("cat", "dog", "emu") and data.category_ids == (10, 20, 30)
    assert data.boxes_per_class() == {"cat": 2, "dog": 1, "emu": 1}
    assert list(read_annotations(file).categories) == [10, 20, 30]  # scoring sees the same


def test_a_category_0_with_boxes_or_that_groups_nothing_is_a_class(tmp_path: Path) -> None:
    group = {"id": 0, "name": "all", "supercategory": "none"}
    edited(tmp_path / "alone", lambda content: content["categories"].insert(0, group))
    assert read_data(tmp_path / "alone").classes == ("all", "cat", "dog", "emu")

    def edit(content: dict[str, Any]) -> None:
        content["categories"][0]["supercategory"] = "all"
        content["categories"].append(group)
        content["annotations"][0]["category_id"] = 0

    edited(tmp_path / "boxes", edit)
    assert read_data(tmp_path / "boxes").boxes_per_class() == {"all": 1, "cat": 1, "dog": 1, "emu": 1}


# --- boxes


@pytest.mark.parametrize(
    ("segmentation", "box"),
    [
        ([[5, 6, 25, 6, 25, 36]], [5, 6, 25, 36]),
        ([["5", "6", "25", "6", "20", "36"], [30, 10, 40, 12, 35, 8]], [5, 6, 40, 36]),
    ],
)
@pytest.mark.parametrize("bbox", [None, []])
def test_a_polygon_without_a_bbox_gives_its_box(
    tmp_path: Path, segmentation: object, box: list[float], bbox: object
) -> None:
    file = edited(
        tmp_path, lambda content: content["annotations"][0].update(bbox=bbox, segmentation=segmentation)
    )
    data = read_data(tmp_path)
    assert data.records[0].boxes[0].tolist() == box and data.problems == ()
    assert read_annotations(file).box[0].tolist() == [box[0], box[1], box[2] - box[0], box[3] - box[1]]


@pytest.mark.parametrize(
    "segmentation", [None, [], [[]], [[1, 2, 3]], {"counts": "x", "size": [4, 4]}, "x", [None]]
)
def test_without_a_polygon_there_is_no_box(tmp_path: Path, segmentation: object) -> None:
    edited(tmp_path, lambda content: content["annotations"][0].update(bbox=None, segmentation=segmentation))
    assert "malformed box" in kinds(read_data(tmp_path))


@pytest.mark.parametrize("box", [(0.25, 0.25, 0.55, 0.55), (0, 0, 1, 1), (0.5, 0.001, 0.505, 0.3)])
def test_boxes_in_fractions_are_refused_where_pixels_belong(
    tmp_path: Path, box: tuple[float, float, float, float]
) -> None:
    for write in (write_coco, write_voc):
        root = tmp_path / write.__name__
        write(root, [Picture("a.jpg", boxes=[(0, *box)]), Picture("b.jpg", boxes=[(1, 5, 5, 25, 35)])])
        problem, left_out = read_data(root).problems
        assert (left_out.kind, left_out.value) == ("picture without a sound label", "a.jpg")
        assert left_out.file == problem.file  # not the last that was read
        assert (problem.severity, problem.kind) == ("error", "box within the first pixel")
        assert "multiply by the picture's width and height" in problem.mend
        write(root, [Picture("a.jpg", boxes=[(0, *box)])])
        (root / "ImageSets" / "Main" / "train.txt").write_text("a\n") if write is write_voc else None
        assert "no usable box (the first rejected: error: " in refusal(root)


@pytest.mark.parametrize("box", [(10, 10, 10.5, 30), (10, 10, 12, 10.9), (59.2, 0, 60, 40)])
def test_boxes_under_one_pixel_are_kept_and_counted(
    tmp_path: Path, box: tuple[float, float, float, float]
) -> None:
    pictures = [Picture("a.jpg", boxes=[(0, *box), (1, 5, 5, 25, 35)])]
    for write in (write_coco, write_voc, write_yolo):
        root = tmp_path / write.__name__
        write(root, pictures)
        data = read_data(root)
        assert kinds(data) == ["box under one pixel"] and data.boxes_per_class()["cat"] == 1
        assert "1 × box under one pixel" in data.describe()
