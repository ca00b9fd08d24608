"""Which part a folder, a list or a picture belongs to, however it is called, and that no part is lost in silence."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ghmdet.data import DetectionData, check_data, read_data
from ghmdet.engine.predict import find_pictures
from ghmdet.errors import DataError
from small_sets import Picture, coco_content, draw, voc_xml, write_voc

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


def both(root: Path, *folders: str, number: int = 4) -> None:
    for folder in folders:
        for index in range(number):
            draw(root / folder / f"{index}.jpg", 60, 40, seed=index + 10 * len(folder))


@pytest.mark.parametrize("listed", ["/content/ds/images/", "data/", "C:\\ds\\"])
@pytest.mark.parametrize(
    "chosen",
    [
        ["val/0", "val/1", "train/2", "train/3"],
        [f"{part}/{index}" for part in ("train", "val") for index in range(4)],
        [f"{part}/{index}" for part in ("test", "val") for index in range(4)],
    ],
)
def test_a_list_of_pictures_of_several_parts_gets_those_that_it_names(
    tmp_path: Path, listed: str, chosen: list[str]
) -> None:
    both(tmp_path / "images", "train", "val", "test")
    sign = "\\" if "\\" in listed else "/"
    coco(
        tmp_path / "annotations" / "train.json",
        *(f"{listed}{each.replace('/', sign)}.jpg" for each in chosen),
    )
    assert found(tmp_path) == [f"images/{each}.jpg" for each in chosen]


def test_a_yolo_list_of_pictures_of_several_parts_gets_those_that_it_names(tmp_path: Path) -> None:
    yolo(tmp_path, "train", "val")
    lists = {"train": "/content/ds/images/val/0.jpg\n/content/ds/images/train/1.jpg\n"}
    lists["val"] = "/content/ds/images/train/0.jpg\n/content/ds/images/val/1.jpg\n"
    for part, text in lists.items():
        draw(tmp_path / "images" / part / "1.jpg", 60, 40)
        (tmp_path / f"{part}.txt").write_text(text)
    (tmp_path / "data.yaml").write_text("names: [cat]\ntrain: train.txt\nval: val.txt\n")
    assert found(tmp_path) == ["images/val/0.jpg", "images/train/1.jpg"]
    assert found(tmp_path, "val") == ["images/train/0.jpg", "images/val/1.jpg"]


@pytest.mark.parametrize("other", ["images/all", "images/b"])
def test_where_as_much_agrees_the_part_s_own_folder_comes_first(tmp_path: Path, other: str) -> None:
    both(tmp_path, "images/train", other)
    coco(tmp_path / "train.json", "C:\\ds\\0.jpg")
    assert found(tmp_path) == ["images/train/0.jpg"]


@pytest.mark.parametrize(
    "folder", ["pics_val", "my val", "val数据", "coco_val2017", "ds-valid", "test-dev2017", "VOC_test"]
)
def test_a_folder_s_name_holds_its_part_s_word_beside_others(tmp_path: Path, folder: str) -> None:
    both(tmp_path, folder, number=1)
    coco(tmp_path / "annotations" / "train.json", "C:\\x\\0.jpg")
    data = read_data(tmp_path)
    assert found(tmp_path) == []
    assert warned(data) == {"picture in another part's folder": f"split train ({folder}/0.jpg)"}
    part = "test" if "test" in folder else "val"
    coco(tmp_path / "annotations" / f"{part}.json", "C:\\x\\0.jpg")
    assert found(tmp_path, part) == [f"{folder}/0.jpg"]


@pytest.mark.parametrize(
    "folders",
    [
        ("coco_train2017", "coco_val2017"),
        ("train_images_part1", "val_images_part1"),
        ("VOC_train", "VOC_test"),
        ("train_val", "test"),
    ],
)
@pytest.mark.parametrize("listed", ["", "D:\\imgs\\"])
def test_of_two_folders_of_parts_a_list_gets_its_own(
    tmp_path: Path, folders: tuple[str, str], listed: str
) -> None:
    both(tmp_path, *folders)
    coco(tmp_path / "annotations" / "train.json", *(f"{listed}{index}.jpg" for index in range(4)))
    assert found(tmp_path) == [f"{folders[0]}/{index}.jpg" for index in range(4)]


@pytest.mark.parametrize("folder", ["dev-board", "training day", "unit eval", "latest", "device"])
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


# --- parts by the names of lists, keys and folders

NAMES = [("Train", "Val"), ("train2017", "val2017"), ("training", "dev"), ("TRAIN", "validation_2017")]


def yolo(root: Path, *places: str, text: str = "0 .5 .5 .4 .4\n", end: str = ".txt") -> None:
    """A picture 0.jpg at each place below images/, and its label file below labels/."""
    root.mkdir(exist_ok=True)
    (root / "classes.txt").write_text("cat\n")
    for place in places:
        draw(root / "images" / place / "0.jpg", 60, 40, seed=len(place))
        label = (root / "labels" / place / "0").with_suffix(end)
        label.parent.mkdir(parents=True, exist_ok=True)
        label.write_text(text)


@pytest.mark.parametrize(("train", "val"), NAMES)
def test_lists_are_told_by_their_names_as_folders_are(tmp_path: Path, train: str, val: str) -> None:
    yolo(tmp_path / "yolo", "a", "b")
    yolo(tmp_path / "voc", "a", "b", text=voc_xml(Picture("0.jpg", boxes=[BOX])), end=".xml")
    (tmp_path / "voc" / "classes.txt").unlink()
    for part, place in ((train, "a"), (val, "b")):
        (tmp_path / "yolo" / f"{part}.txt").write_text(f"images/{place}/0.jpg\n")
        (tmp_path / "voc" / f"{part}.txt").write_text(f"{place}/0\n")
    for kind in ("yolo", "voc"):
        parts = found(tmp_path / kind), found(tmp_path / kind, "val")
        assert parts == (["images/a/0.jpg"], ["images/b/0.jpg"])


def test_a_text_file_that_lists_nothing_is_no_part(tmp_path: Path) -> None:
    yolo(tmp_path / "yolo", "")
    yolo(tmp_path / "voc", "", text=voc_xml(Picture("0.jpg", boxes=[BOX])), end=".xml")
    for kind in ("yolo", "voc"):
        (tmp_path / kind / "eval.txt").write_text("AP 0.5\nAR 0.6\n")
        assert found(tmp_path / kind) == ["images/0.jpg"]


@pytest.mark.parametrize("name", ["train", "Train"])
def test_a_list_of_files_that_are_not_there_hides_no_part(tmp_path: Path, name: str) -> None:
    yolo(tmp_path, "", text=voc_xml(Picture("0.jpg", boxes=[BOX])), end=".xml")
    (tmp_path / f"{name}.txt").write_text("1\n2\n")
    with pytest.raises(DataError, match="'1': unreadable annotation"):
        read_data(tmp_path)


@pytest.mark.parametrize(("train", "val"), NAMES)
@pytest.mark.parametrize("file", ["data.yaml", "obj.data"])
def test_keys_are_told_by_their_names_as_folders_are(tmp_path: Path, file: str, train: str, val: str) -> None:
    yolo(tmp_path, "a", "b")
    (tmp_path / "classes.txt").rename(tmp_path / "obj.names")
    sign = ":" if file == "data.yaml" else " ="
    said = {train: "images/a", val: "images/b", "names": "obj.names"}
    (tmp_path / file).write_text("".join(f"{key}{sign} {value}\n" for key, value in said.items()))
    for given in (tmp_path, tmp_path / file):
        assert [read_data(given, part).records[0].path.parent.name for part in ("train", "val")] == ["a", "b"]


@pytest.mark.parametrize(
    ("names", "taken"), [(("val", "valid"), "val"), (("val", "eval"), "val"), (("dev", "eval"), "none")]
)
@pytest.mark.parametrize("kind", ["yolo", "voc", "coco"])
def test_of_names_that_mean_one_part_what_is_not_read_is_told(
    tmp_path: Path, kind: str, names: tuple[str, str], taken: str
) -> None:
    if kind == "coco":
        for part in ("train", *names):
            draw(tmp_path / part / "0.jpg", 60, 40)
            coco(tmp_path / part / "annotations.json", "0.jpg")
    elif kind == "yolo":
        yolo(tmp_path, "train", *names)
    else:
        yolo(tmp_path, "train", *names, text=voc_xml(Picture("0.jpg", boxes=[BOX])), end=".xml")
    if taken != "none":
        assert warned(read_data(tmp_path, "val")) == {
            "part of more than one name": f"split val {', '.join(names)}"
        }
    else:
        with pytest.raises(DataError, match=f"{names[0]} and {names[1]} mean val: name one so"):
            read_data(tmp_path, "val")
    (told,) = [problem for problem in check_data(tmp_path) if problem.kind == "part of more than one name"]
    assert f"of these {taken} is read as val" in told.mend


@pytest.mark.parametrize(
    "line",
    [
        "eval: true",
        "eval: coco",
        "eval:",
        "training: {epochs: 3}",
        "testing: [1, 2]",
        "dev: 0",
        "dev: ''",
        "eval: ..",
        "testing: " + 99 * "long ",
        "eval: images/a",
    ],
)
@pytest.mark.parametrize("file", ["data.yaml", "obj.data"])
def test_a_key_that_names_nothing_there_or_a_part_again_is_no_part(
    tmp_path: Path, file: str, line: str
) -> None:
    yolo(tmp_path, "a", "b")
    (tmp_path / "classes.txt").rename(tmp_path / "obj.names")
    text = f"train: images/a\nval: images/b\nnames: obj.names\n{line}\n"
    (tmp_path / file).write_text(text.replace(":", " =") if file == "obj.data" else text)
    assert (found(tmp_path), found(tmp_path, "val")) == (["images/a/0.jpg"], ["images/b/0.jpg"])
    assert not [problem for problem in check_data(tmp_path) if problem.severity == "error"]
    assert warned(read_data(tmp_path, "val")) == {}


@pytest.mark.parametrize(
    "line", ["dev: images/b", "dev: [images/b]", "validate: images/b", "eval: [images/b, images/c]"]
)
def test_a_key_of_another_word_names_a_part_where_some_of_it_is_there(tmp_path: Path, line: str) -> None:
    yolo(tmp_path, "a", "b")
    (tmp_path / "data.yaml").write_text(f"names: [cat]\ntrain: [images/a]\n{line}\n")
    if "images/c" in line:
        with pytest.raises(DataError, match="images/c: no such folder"):
            read_data(tmp_path, "val")
    else:
        assert found(tmp_path, "val") == ["images/b/0.jpg"]


@pytest.mark.parametrize("nothing", ["", "~", "none", "[]", "''"])
def test_a_key_left_empty_hides_no_part_that_another_word_names(tmp_path: Path, nothing: str) -> None:
    yolo(tmp_path, "a", "b")
    lines = f"val: {nothing}\nvalidate: images/b\ntest: {nothing}\n"
    (tmp_path / "data.yaml").write_text(f"names: [cat]\ntrain: images/a\n{lines}")
    assert found(tmp_path, "val") == ["images/b/0.jpg"]


@pytest.mark.parametrize("line", ["eval: true", "training: {epochs: 3}"])
def test_a_yaml_file_of_other_settings_names_no_part(tmp_path: Path, line: str) -> None:
    yolo(tmp_path, "train", "val")
    (tmp_path / "a.yaml").write_text("names: [cat]\ntrain: images/train\nval: images/val\n")
    (tmp_path / "cfg.yaml").write_text(f"names: [dog]\n{line}\n")
    assert found(tmp_path) == ["images/train/0.jpg"]


def test_two_keys_of_one_folder_are_no_two_parts(tmp_path: Path) -> None:
    yolo(tmp_path, "a", "b")
    (tmp_path / "data.yaml").write_text("names: [cat]\ntrain: images/a\nval: images/b\nvalid: images/b\n")
    assert warned(read_data(tmp_path, "val")) == {}


@pytest.mark.parametrize("more", [("val", "extra"), ("val", "eval"), ("extra",), ("extra", "test2017")])
def test_folders_of_parts_among_others_are_the_parts(tmp_path: Path, more: tuple[str, ...]) -> None:
    for part in ("train", *more):
        draw(tmp_path / "images" / part / "0.jpg", 60, 40, seed=len(part))
        file = tmp_path / "annotations" / part / "0.xml"
        file.parent.mkdir(parents=True)
        file.write_text(voc_xml(Picture("0.jpg", boxes=[BOX])))
    assert found(tmp_path) == ["images/train/0.jpg"]
    told = warned(read_data(tmp_path)).get("label file that no split uses")
    assert told == ("annotations/extra/0.xml" if "extra" in more else None)


@pytest.mark.parametrize("end", [".xml", ".json"])
def test_label_files_of_another_kind_in_labels_make_no_yolo_set(tmp_path: Path, end: str) -> None:
    shape = {"label": "cat", "points": [[5, 5], [25, 35]], "shape_type": "rectangle"}
    text = json.dumps({"shapes": [shape], "imagePath": "0.jpg", "imageWidth": 60, "imageHeight": 40})
    yolo(
        tmp_path,
        "train",
        "val",
        text=text if end == ".json" else voc_xml(Picture("0.jpg", boxes=[BOX])),
        end=end,
    )
    assert read_data(tmp_path, "val").format == {".xml": "VOC", ".json": "LabelMe"}[end]
    assert found(tmp_path) == ["images/train/0.jpg"]


@pytest.mark.parametrize("text", ['{"categories": [{"id": 0, "name": "cat"}], "info": {}}', '{"images": []}'])
def test_the_notes_of_label_studio_are_no_label_file(tmp_path: Path, text: str) -> None:
    yolo(tmp_path, "train")
    (tmp_path / "notes.json").write_text(text)
    told = "label file that no split uses" in warned(read_data(tmp_path))
    assert told == ("images" in text)


# --- entries of data.yaml

ABSENT = r"no such folder, list or picture: correct its entry in data\.yaml"


@pytest.mark.parametrize("listed", ["/home/me/{}/images", "C:\\work\\{}\\images"])
def test_a_folder_of_a_user_is_no_part_of_the_set(tmp_path: Path, listed: str) -> None:
    yolo(tmp_path, "")
    for word, there in (
        ("dev", True),
        ("testing", True),
        ("eval2017", True),
        ("val", False),
        ("training", False),
    ):
        (tmp_path / "data.yaml").write_text(f"names: [cat]\ntrain: {listed.format(word)}\n")
        if there:
            assert found(tmp_path) == ["images/0.jpg"]
        else:
            with pytest.raises(DataError, match=ABSENT):
                read_data(tmp_path)


@pytest.mark.parametrize("name", ["set [v2]", "set*", "[0-9]"])
@pytest.mark.parametrize(
    "entry", ["images/train/*.jpg", "images/*/?.jpg", "images/[s-u]*/0.jpg", "**/[0].jpg"]
)
def test_signs_of_patterns_in_the_path_of_a_set_are_none(tmp_path: Path, name: str, entry: str) -> None:
    yolo(tmp_path / name, "train")
    (tmp_path / name / "data.yaml").write_text(f"names: [cat]\ntrain: '{entry}'\n")
    assert found(tmp_path / name) == ["images/train/0.jpg"]
    assert list(find_pictures([tmp_path / name / entry], tmp_path / "out")) == [Path("0.jpg")]


@pytest.mark.parametrize("entry", ["images/train/?.png", "../*/photos", "images/tr*"])
def test_a_pattern_that_no_picture_fits_is_told_with_its_file(tmp_path: Path, entry: str) -> None:
    yolo(tmp_path / "set", "train")
    (tmp_path / "set" / "data.yaml").write_text(f"names: [cat]\ntrain: '{entry}'\n")
    with pytest.raises(DataError, match=ABSENT):
        read_data(tmp_path / "set")


# --- COCO files


@pytest.mark.parametrize("folder", ["dev", "test", "eval", "validate", "val", "Val2017"])
@pytest.mark.parametrize("file", ["result.json", "annotations/instances_default.json", "annotations.json"])
def test_the_folder_of_a_set_names_no_part_of_it(tmp_path: Path, folder: str, file: str) -> None:
    draw(tmp_path / folder / "images" / "0.jpg", 60, 40)
    coco(tmp_path / folder / file, "0.jpg")
    assert found(tmp_path / folder) == ["images/0.jpg"]
    with pytest.raises(DataError, match="no split 'val'"):
        read_data(tmp_path / folder, "val")


@pytest.mark.parametrize(
    "files",
    [
        ("train.json", "dev.json"),
        ("train_coco.json", "dev_coco.json"),
        ("train/train.json", "dev/dev.json"),
        ("training.json", "my-eval.json"),
        ("pets_training.json", "pets_validation.json"),
        ("train/annotations/boxes_training.json", "eval/annotations/boxes_eval.json"),
    ],
)
def test_any_word_for_a_part_is_one_in_a_coco_file_s_name(tmp_path: Path, files: tuple[str, str]) -> None:
    for number, file in enumerate(files):
        draw(tmp_path / "images" / f"{number}.jpg", 60, 40)
        coco(tmp_path / file, f"{number}.jpg")
    assert (found(tmp_path), found(tmp_path, "val")) == (["images/0.jpg"], ["images/1.jpg"])


@pytest.mark.parametrize("name", ["pets_eval.json", "device-testing.json"])
def test_a_file_alone_need_not_mean_the_part_that_a_word_of_its_name_does(tmp_path: Path, name: str) -> None:
    draw(tmp_path / "images" / "0.jpg", 60, 40)
    coco(tmp_path / "annotations" / name, "0.jpg")
    assert found(tmp_path) == ["images/0.jpg"]


@pytest.mark.parametrize("stray", ["device.json", "evaluated.json", "train_dev_kit.json"])
def test_a_file_whose_name_only_holds_such_a_word_is_no_part(tmp_path: Path, stray: str) -> None:
    for number, file in enumerate(("train.json", "val.json", stray)):
        draw(tmp_path / "images" / f"{number}.jpg", 60, 40)
        coco(tmp_path / file, f"{number}.jpg")
    if stray != "train_dev_kit.json":
        assert (found(tmp_path), found(tmp_path, "val")) == (["images/0.jpg"], ["images/1.jpg"])
    else:
        with pytest.raises(DataError, match="two files of split 'train'"):
            read_data(tmp_path)


def test_a_list_of_names_that_no_file_has_beside_a_link_ends_in_no_traceback(tmp_path: Path) -> None:
    write_voc(tmp_path, [Picture("a.png", boxes=[BOX])], "train")
    (tmp_path / "ImageSets" / "Main" / "val.txt").write_bytes("a\n".encode("utf-32"))
    (tmp_path / "linked.png").symlink_to(tmp_path / "JPEGImages" / "a.png")
    assert any(problem.severity == "error" for problem in check_data(tmp_path))
