"""Which part a folder, a list or a picture belongs to, however it is called, and that no part is lost in silence."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ghmdet.data import DetectionData, read_data
from small_sets import Picture, coco_content, draw

BOX = (0, 5, 5, 25, 35)


def coco(file: Path, *listed: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(coco_content([Picture(name, boxes=[BOX]) for name in listed])))


def found(root: Path, split: str = "train") -> list[str]:
    """The pictures of a split that are there, by their paths below the set."""
    records = read_data(root, split).records
    places = [record.path for record in records if record.path.is_file()]
    return [place.resolve().relative_to(root.resolve()).as_posix() for place in places]


def warned(data: DetectionData) -> dict[str, str]:
    return {problem.kind: problem.found for problem in data.problems if problem.severity == "warning"}


@pytest.mark.parametrize(
    ("other", "listed"),
    [("test", "/home/u/test/"), ("val", "https://host/val/"), ("dev", "C:\\work\\dev\\")],
)
def test_a_picture_of_the_part_s_own_folder_comes_before_one_of_another_part(
    tmp_path: Path, other: str, listed: str
) -> None:
    for place in ("train", other):
        draw(tmp_path / place / "0.jpg", 60, 40)
    coco(tmp_path / "train.json", f"{listed}0.jpg")
    assert found(tmp_path) == ["train/0.jpg"]


@pytest.mark.parametrize("folder", ["dev-board", "test bench", "unit test", "latest", "device"])
def test_a_folder_whose_name_only_holds_such_a_word_is_no_part_s(tmp_path: Path, folder: str) -> None:
    draw(tmp_path / "images" / folder / "0.jpg", 60, 40)
    coco(tmp_path / "train.json", "C:\\data\\0.jpg")
    assert found(tmp_path) == [f"images/{folder}/0.jpg"]


def test_of_two_names_that_mean_one_picture_the_one_that_agrees_has_it(tmp_path: Path) -> None:
    draw(tmp_path / "images" / "cam1" / "0.jpg", 60, 40)
    coco(tmp_path / "train.json", "D:\\data\\cam1\\0.jpg", "D:\\data\\cam2\\0.jpg")
    assert [record.path.is_file() for record in read_data(tmp_path).records] == [True, False]
    coco(tmp_path / "train.json", "D:\\data\\cam2\\0.jpg", "D:\\data\\cam3\\0.jpg")
    assert found(tmp_path) == []


@pytest.mark.parametrize("split", ["train", "val"])
@pytest.mark.parametrize("listed", ["cam2/0.jpg", "set/cam2/images/0.jpg", "cam2\\0.jpg"])
def test_a_picture_of_another_folder_than_is_listed_is_told(tmp_path: Path, split: str, listed: str) -> None:
    draw(tmp_path / "images" / "cam1" / "0.jpg", 60, 40)
    coco(tmp_path / "train.json", listed)
    coco(tmp_path / "val.json", listed)
    assert warned(read_data(tmp_path, split)) == {
        "picture in another folder": "images/cam1/0.jpg (listed in cam2/)"
    }


@pytest.mark.parametrize(
    "listed", ["pets/images/cam1/0.jpg", "cam1/train/0.jpg", "images/0.jpg", "/home/u/cam2/0.jpg"]
)
def test_what_only_comes_before_or_between_contradicts_no_folder(tmp_path: Path, listed: str) -> None:
    draw(tmp_path / "images" / "cam1" / "0.jpg", 60, 40)
    coco(tmp_path / "train.json", listed)
    data = read_data(tmp_path)
    assert data.problems == () and data.records[0].path.is_file()
