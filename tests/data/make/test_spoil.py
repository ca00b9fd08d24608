from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

from ghmdet.cli import main
from ghmdet.data import DetectionData, read_data
from ghmdet.data.make import KINDS, SynthConfig, spoil, synthesize, thin
from ghmdet.errors import DataError, GhmdetError
from ghmdet.evaluation.matching import overlaps
from small_sets import Picture, write_yolo


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("scenes") / "set"
    synthesize(out, SynthConfig(images=12, classes=3, size=(160, 120), wrong_label_share=0.0))
    return out


def rows(data: DetectionData) -> set[tuple[str, int, tuple[float, ...]]]:
    """Picture, class and corners of each box."""
    return {
        (record.path.name, int(label), tuple(box.tolist()))
        for record in data.records
        for box, label in zip(record.boxes, record.labels, strict=True)
    }


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("share", [0.0, 0.4, 0.9])
def test_just_that_share_is_wrong_in_just_that_way(
    scenes: Path, tmp_path: Path, kind: str, share: float
) -> None:
    said = list[str]()
    spoil(scenes, tmp_path / "x", share=share, kinds=kind, seed=3, say=said.append)
    told = "\n".join(said)
    before, after = (rows(read_data(folder, "train")) for folder in (scenes, tmp_path / "x"))
    count = round(share * len(before))
    assert f"{count} labels of train made wrong ({kind} {count})" in told
    more = kind in ("spurious", "duplicate")
    assert len(before - after) == count * (not more)
    assert len(after) == len(before) + count * (more - (kind == "missing"))
    new, gone = after - before, before - after
    if kind == "class":
        assert {(name, box) for name, _, box in new} == {(name, box) for name, _, box in gone}
    elif kind == "shifted":
        assert sorted((name, label) for name, label, _ in new) == sorted(
            (name, label) for name, label, _ in gone
        )
    wrong = json.loads((tmp_path / "x" / "wrong_labels.json").read_text())
    assert [one["kind"] for one in wrong] == [kind] * count
    assert all((one["given"] is None) == (kind == "missing") for one in wrong)
    assert all((one["true"] is None) == more for one in wrong)
    assert rows(read_data(tmp_path / "x", "val")) == rows(read_data(scenes, "val"))


def test_a_shifted_box_overlaps_its_object_a_little_and_stays_in_the_picture(
    scenes: Path, tmp_path: Path
) -> None:
    spoil(scenes, tmp_path / "x", share=0.9, kinds="shifted")
    pictures = json.loads((tmp_path / "x/annotations/instances_train.json").read_text())["images"]
    size = {picture["id"]: (picture["width"], picture["height"]) for picture in pictures}
    for one in json.loads((tmp_path / "x" / "wrong_labels.json").read_text()):
        (x, y, w, h), (u, v, p, q) = one["true"]["bbox"], one["given"]["bbox"]
        across, down = min(x + w, u + p) - max(x, u), min(y + h, v + q) - max(y, v)
        overlap = max(0, across) * max(0, down)
        assert 0 < overlap / (w * h + p * q - overlap) < 0.5
        width, height = size[one["image_id"]]
        assert u >= 0 and v >= 0 and u + p <= width + 0.1 and v + q <= height + 0.1


def test_a_box_too_many_lies_on_background_or_on_an_object(scenes: Path, tmp_path: Path) -> None:
    true = read_data(scenes, "train")
    boxes = {record.image_id: record.boxes.astype(float) for record in true.records}
    ids = {label["id"] for label in true.to_coco()["annotations"]}
    for kind, least, most in (("spurious", 0.0, 0.1), ("duplicate", 0.7, 0.99)):
        spoil(scenes, tmp_path / kind, share=0.5, kinds=kind)
        wrong = json.loads((tmp_path / kind / "wrong_labels.json").read_text())
        for one in wrong:
            x, y, w, h = one["given"]["bbox"]
            best = overlaps(np.array([[x, y, x + w, y + h]]), boxes[one["image_id"]]).max()
            assert least <= best <= most and w > 0 and h > 0 and min(x, y) >= 0
        added = {one["annotation_id"] for one in wrong}
        assert len(added) == len(wrong) and added.isdisjoint(ids)


def test_the_same_seed_gives_the_same_bytes_and_other_parts_keep_their_labels(
    scenes: Path, tmp_path: Path
) -> None:
    written, said = [], list[str]()
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        spoil(scenes, tmp_path / name, share=0.5, seed=seed, say=said.append)
        assert "class " in said[-1]
        written.append((tmp_path / name / "annotations" / "instances_train.json").read_bytes())
    assert written[0] == written[1] != written[2]


def test_a_folder_that_it_does_not_write_stays(scenes: Path, tmp_path: Path) -> None:
    spoil(scenes, tmp_path / "x", share=0.2)
    (tmp_path / "x" / "images").mkdir()
    (tmp_path / "x" / "images" / "mine.txt").write_text("kept")
    spoil(scenes, tmp_path / "x", share=0.3)
    assert (tmp_path / "x" / "images" / "mine.txt").read_text() == "kept"


def test_crowds_stay(scenes: Path, tmp_path: Path) -> None:
    file = scenes / "annotations" / "instances_train.json"
    content = json.loads(file.read_text())
    for label in content["annotations"][::2]:
        label["iscrowd"] = 1
    (tmp_path / "crowds.json").write_text(
        json.dumps(content).replace('"file_name": "', f'"file_name": "{scenes / "images"}/')
    )
    crowds = len(content["annotations"][::2])
    spoil(tmp_path / "crowds.json", tmp_path / "x", share=0.9, kinds="missing")
    left = read_data(tmp_path / "x", "train").records
    assert left.crowd.sum() == crowds
    sound = len(content["annotations"]) - crowds
    assert (~left.crowd).sum() == sound - round(0.9 * sound)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--share", "1.5"], "share 1.5"),
        (["--share", ".2", "--kinds", "shfited"], "unknown kind of wrong label 'shfited'.*shifted"),
        (["--share", ".2", "--seed", "-1"], "seed -1"),
        (["--share", ".2", "--split", "test"], "no split 'test'"),
    ],
)
def test_what_cannot_be_done_is_said(
    scenes: Path, tmp_path: Path, options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(["data", "spoil", str(scenes), str(tmp_path / "x"), *options])
    assert re.search(message, capsys.readouterr().err)
    assert not (tmp_path / "x").exists()


def test_one_class_has_no_other(tmp_path: Path) -> None:
    synthesize(tmp_path / "one", SynthConfig(images=4, classes=1, size=(160, 120)))
    with pytest.raises(DataError, match=r"one class.*--kinds missing,shifted,spurious,duplicate"):
        spoil(tmp_path / "one", tmp_path / "x", share=0.5)
    with pytest.raises(GhmdetError, match="no kind"):
        spoil(tmp_path / "one", tmp_path / "x", share=0.5, kinds="")
    with pytest.raises(DataError, match="holds the data set"):
        spoil(tmp_path / "one", tmp_path, share=0.5, kinds="missing")


def test_labels_that_the_other_parts_lose_are_said(scenes: Path, tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    for part in ("train", "val"):
        content = json.loads((scenes / "annotations" / f"instances_{part}.json").read_text())
        for image in content["images"]:
            image["file_name"] = str(scenes / "images" / image["file_name"])
        if part == "val":
            content["categories"].append({"id": 9, "name": "stranger"})
            content["annotations"][0]["category_id"] = 9
        (tmp_path / "set" / f"instances_{part}.json").write_text(json.dumps(content))
    said = list[str]()
    spoil(tmp_path / "set", tmp_path / "x", share=0.5, say=said.append)
    assert "Rejected: 1 × unknown class" in "\n".join(said)


def test_a_part_that_a_yaml_only_names_is_not_carried_over(tmp_path: Path) -> None:
    write_yolo(tmp_path / "set", [Picture(f"{name}.jpg", boxes=[(0, 5, 5, 25, 35)]) for name in "abcd"])
    write_yolo(tmp_path / "set", [Picture("e.jpg", boxes=[(1, 5, 5, 25, 35)])], "val")
    yaml = "names: [cat, dog, emu]\ntrain: ../images/train\nval: ../images/val\ntest: ../test/images\n"
    (tmp_path / "set" / "data.yaml").write_text(yaml)
    spoil(tmp_path / "set", tmp_path / "spoilt", share=0.5, kinds="missing", say=lambda line: None)
    thin(tmp_path / "set", tmp_path / "thinned", keep=["cat=.5"], say=lambda line: None)
    for made in ("spoilt", "thinned"):
        there = sorted(file.name for file in (tmp_path / made / "annotations").iterdir())
        assert there == ["instances_train.json", "instances_val.json"]
