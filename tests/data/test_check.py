"""check_data finds every planted problem, and nothing in a sound set."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ghmdet.data import check, check_data, read_data
from ghmdet.data.check import copies, format_problems, has_errors, in_both
from ghmdet.errors import DataError
from measured_data import shared_data
from small_sets import Picture, draw, three_pictures, write_coco, write_voc, write_yolo


def kinds(path: Path, split: str | None = None) -> dict[str, int]:
    return dict(Counter(f"{p.severity}: {p.kind}" for p in check_data(path, split)))


def other_pictures() -> list[Picture]:
    """Three more, for a val split."""
    return [replace(picture, name=f"val_{picture.name}") for picture in three_pictures()]


def test_augmented_copies_of_one_picture_in_two_splits_are_told(tmp_path: Path) -> None:
    for split, names in (
        ("train", ("a.rf.1.jpg", "b.rf.2.jpg", "c.jpg")),
        ("valid", ("a.rf.3.jpg", "d.rf.4.jpg", "c.jpg")),
    ):
        pictures = [replace(one, name=name) for one, name in zip(three_pictures(), names, strict=True)]
        write_yolo(tmp_path, pictures, split)
    said = [str(one) for one in check_data(tmp_path) if "copy of a picture" in one.kind]
    assert len(said) == 1 and "splits train and valid" in said[0] and "(a.rf.3.jpg)" in said[0], said
    train, val = (read_data(tmp_path, split) for split in ("train", "val"))
    assert [path.name for path in copies(train, val)] == ["a.rf.3.jpg"] and not copies(
        val, replace(train, records=train.records.take(np.array([2])))
    )


@pytest.mark.parametrize("write", [write_coco, write_voc, write_yolo])
def test_a_sound_set_has_no_problems(tmp_path: Path, write: object, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, three_pictures())  # type: ignore[operator]
    write(tmp_path, other_pictures(), "val")  # type: ignore[operator]
    steps: list[tuple[int, int | None]] = []

    @contextmanager
    def counting(what: str, total: int | None) -> Iterator[Callable[[int], None]]:
        yield lambda done: steps.append((done, total))

    monkeypatch.setattr(check, "counting", counting)
    assert check_data(tmp_path) == []
    assert steps == [(1, 6)] * 6
    assert format_problems([]) == "0 errors, 0 warnings, 0 notes"


def test_pictures_of_both_parts_are_found_by_path_and_by_content(tmp_path: Path) -> None:
    write_voc(tmp_path, three_pictures())
    write_voc(tmp_path, [*other_pictures(), three_pictures()[1]], "val")
    pictures = tmp_path / "JPEGImages"
    shutil.copy(pictures / "a.jpg", pictures / "val_a.jpg")
    whole = (pictures / "c.jpg").read_bytes()
    (pictures / "val_c.jpg").write_bytes(bytes([whole[0] ^ 1]) + whole[1:])  # alike but for the first byte
    (pictures / "val_b.jpg").unlink()
    train, val = (read_data(tmp_path, split) for split in ("train", "val"))
    assert [path.name for path in in_both(train, val)] == ["val_a.jpg", "b.jpg"]
    assert in_both(train, replace(val, records=val.records.take(np.array([2])))) == []


def test_bccd_voc_has_two_empty_boxes() -> None:
    problems = check_data(shared_data("bccd-voc"))
    assert [(p.severity, p.kind, Path(p.file).stem, p.record) for p in problems] == [
        ("error", "empty box", "BloodImage_00343", "object 4 'RBC'"),
        ("error", "empty box", "BloodImage_00338", "object 13 'RBC'"),
    ]
    assert has_errors(problems)


def test_pictures_are_decoded_in_full(tmp_path: Path) -> None:
    write_coco(tmp_path, three_pictures())
    images = tmp_path / "images"
    (images / "a.jpg").write_bytes((images / "a.jpg").read_bytes()[:-60])
    draw(images / "b.jpg", 41, 60)
    (images / "c.jpg").unlink()
    text = format_problems(check_data(tmp_path, "train")).splitlines()
    assert text[0].startswith(
        f"error: {images / 'a.jpg'}: image id 1: unreadable image (image file is truncated"
    )
    assert text[1] == (
        f"error: {images / 'b.jpg'}: image id 2: size mismatch: the file has 41x60 pixels, its annotation says 40x60: "
        "correct the annotation or the file"
    )
    assert (
        text[2] == f"error: {images / 'c.jpg'}: image id 3: missing image: put it there or remove its record"
    )
    assert text[3:] == ["3 errors, 0 warnings, 0 notes"]


def test_every_kind_of_annotation_problem(tmp_path: Path) -> None:
    file = write_coco(tmp_path, three_pictures())
    content = json.loads(file.read_text())
    nan = float("nan")
    sound = {"image_id": 3, "category_id": 10, "bbox": [1, 1, 9, 9]}
    planted = [
        {"bbox": [1, 1, 0, 9]},
        {"bbox": [9, 9, -5, 9]},
        {"bbox": [nan, 1, 9, 9]},
        {"bbox": [90, 1, 9, 9]},
        {"bbox": [55, 1, 9, 9]},
        {"category_id": 99},
        {"image_id": 99},
        {},
        {},
        {"iscrowd": 1, "bbox": [2, 2, 20, 20]},
    ]
    content["annotations"] += [sound | change | {"id": 100 + i} for i, change in enumerate(planted)]
    content["images"] += [dict(content["images"][0]), content["images"][0] | {"id": 8}]
    content["categories"].append({"id": 50, "name": "fox"})
    file.write_text(json.dumps(content))
    assert kinds(tmp_path, "train") == {
        "error: empty box": 1,
        "error: inverted box": 1,
        "error: not a number": 1,
        "error: box outside the image": 1,
        "error: unknown class": 1,
        "error: unknown image id": 1,
        "warning: box partly outside the image": 1,
        "warning: duplicate box": 1,
        "warning: image listed twice": 2,
        "warning: class without boxes": 1,
        "note: crowd": 1,
    }
    assert [p.severity for p in check_data(tmp_path, "train")] == ["error"] * 6 + ["warning"] * 5 + ["note"]


def test_image_in_two_splits_by_name_and_by_content(tmp_path: Path) -> None:
    first, *rest = three_pictures()
    write_coco(tmp_path / "named", [first, *rest], "train")
    write_coco(tmp_path / "named", [first], "val")
    assert kinds(tmp_path / "named") == {"warning: image in two splits": 1, "warning: class without boxes": 1}
    write_yolo(tmp_path / "copied", three_pictures(), "train")
    write_yolo(tmp_path / "copied", three_pictures(), "valid")
    images = tmp_path / "copied" / "images"
    for seed, picture in enumerate(three_pictures()[1:], start=1):  # the same name alone makes no copy
        draw(images / "valid" / picture.name, picture.width, picture.height, seed)
    (problem,) = check_data(tmp_path / "copied")
    assert problem.kind == "image in two splits" and problem.file == str(images / "valid" / "a.jpg")
    assert problem.value == f"same as {images / 'train' / 'a.jpg'}"
    assert check_data(tmp_path / "copied", "val") == []


def test_class_that_training_does_not_have(tmp_path: Path) -> None:
    first, second, third = three_pictures()
    write_voc(tmp_path, [first, third], "train")
    write_voc(tmp_path, [second], "val")
    (problem,) = check_data(tmp_path)
    assert str(problem) == (
        f"error: {tmp_path}: split val: unknown class 'dog': the training split's classes are cat, emu"
    )


def test_bad_rows_of_one_file_are_a_line(tmp_path: Path) -> None:
    labels = write_yolo(tmp_path, three_pictures())
    (labels / "a.txt").write_text("".join(f"0 {x} 20 10 10\n" for x in range(30, 35)))
    (labels / "c.txt").write_text("0 30 20 10 10\n0 .5 .5 0 0\n")
    many, alone, *others, last = format_problems(check_data(tmp_path, "train")).splitlines()
    assert many == (
        f"error: {labels / 'a.txt'}: 5 × box not in fractions (line 1 '0 30 20 10 10'; line 2 '0 31 20 10 10'; line 3"
        " '0 32 20 10 10'; and 2 more): divide by the picture's width and height"
    )
    assert alone.startswith(
        f"error: {labels / 'c.txt'}: line 1: box not in fractions '0 30 20 10 10': divide"
    )
    assert last.startswith("8 errors, ") and len(others) < 6
    each = format_problems(check_data(tmp_path, "train"), each=True).splitlines()
    assert (
        each[-1] == last
        and sum("line 5 '0 34 20 10 10'" in line or "0 34 20 10 10" in line for line in each) == 1
    )


def test_unreadable_sets_and_splits_are_problems_too(tmp_path: Path) -> None:
    (problem,) = check_data(tmp_path / "no")
    assert str(problem) == f"error: {tmp_path / 'no'}: cannot be read: no such file or folder: check the path"
    write_coco(tmp_path, three_pictures(), "train")
    broken = write_coco(tmp_path, three_pictures(), "val")
    broken.write_text("{")
    assert kinds(tmp_path) == {"error: cannot be read": 1}
    assert str(broken) in format_problems(check_data(tmp_path, "val"))
    (problem,) = check_data(tmp_path, "test")
    assert "no split 'test': splits found: train, val" in str(problem)


def test_voc_trainval_is_not_counted_again(tmp_path: Path) -> None:
    write_voc(tmp_path, three_pictures(), "train")
    lists = tmp_path / "ImageSets" / "Main"
    shutil.copy(lists / "train.txt", lists / "trainval.txt")
    write_voc(tmp_path, other_pictures(), "val")
    assert check_data(tmp_path) == []


@pytest.mark.parametrize("write", [write_coco, write_yolo])
def test_a_split_that_training_refuses_for_having_no_usable_box_is_an_error(
    tmp_path: Path, write: object
) -> None:
    write(tmp_path, [Picture("a.jpg"), Picture("b.jpg")])  # type: ignore[operator]
    first, *others = check_data(tmp_path, "train")
    assert {other.kind for other in others} == {"class without boxes"}
    assert str(first) == (
        f"error: {tmp_path}: split train has 2 images and no usable box: empty data set: add boxes or correct them"
    )
    with pytest.raises(DataError, match="split train has 2 images and no usable box"):
        read_data(tmp_path, "train")


@pytest.mark.parametrize("write", [write_coco, write_voc])
def test_a_split_of_crowd_regions_alone_has_no_usable_box(tmp_path: Path, write: object) -> None:
    write(tmp_path, [Picture("a.jpg", boxes=[(0, 5, 5, 30, 30)]), Picture("b.jpg", boxes=[(0, 5, 5, 9, 9)])])  # type: ignore[operator]
    files = [file for file in tmp_path.rglob("*") if file.suffix in (".json", ".xml")]
    for file in files:
        text = file.read_text().replace("<difficult>0", "<difficult>1")
        file.write_text(text.replace('"iscrowd": 0', '"iscrowd": 1'))
    said = "split train has 2 images and no usable box (2 crowd regions are not trained on)"
    with pytest.raises(DataError) as caught:
        read_data(tmp_path)
    assert said in str(caught.value)
    assert str(check_data(tmp_path, "train")[0]).startswith(f"error: {tmp_path}: {said}: empty data set: ")
    text = files[0].read_text().replace("<difficult>1", "<difficult>0")
    files[0].write_text(text.replace('"iscrowd": 1', '"iscrowd": 0', 1))
    assert read_data(tmp_path).boxes_per_class()["cat"] == 1  # one box among crowds is enough


def test_rejected_boxes_are_listed_where_none_is_left(tmp_path: Path) -> None:
    write_coco(tmp_path, [Picture("a.jpg", boxes=[(0, 5, 5, 5, 9)])])
    assert kinds(tmp_path, "train") == {
        "error: empty box": 1,
        "error: picture without a sound label": 1,
        "error: empty data set": 1,
        "warning: class without boxes": 3,
    }


@pytest.mark.parametrize(
    ("there", "missing"), [("train", ["val"]), ("valid", ["train"]), ("test", ["train", "val"])]
)
def test_a_set_without_a_split_that_training_needs_is_warned_of(
    tmp_path: Path, there: str, missing: list[str]
) -> None:
    write_yolo(tmp_path, three_pictures(), there)
    assert [str(problem) for problem in check_data(tmp_path)] == [
        f"warning: {tmp_path}: split {name}: no such split (found {there}): training needs one"
        + (": ghmdet data split makes one" if name == "val" else "")
        for name in missing
    ]
    assert check_data(tmp_path, there) == []


def test_a_json_file_is_checked_with_the_splits_beside_it(tmp_path: Path) -> None:
    file = write_coco(tmp_path, three_pictures(), "train")
    beside = write_coco(tmp_path, other_pictures(), "val")
    assert check_data(file) == []
    beside.write_text("{")
    assert kinds(file, "val") == {"error: cannot be read": 1}
    assert kinds(file, "train") == {"note: picture that no split uses": 1}  # those of the broken file
    assert kinds(file) == {"error: cannot be read": 1, "note: picture that no split uses": 1}
