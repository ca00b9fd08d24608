"""`ghmdet audit apply`: a mended copy in the set's own format, refusals by name, originals untouched."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ghmdet.audit import Label, Suspicion
from ghmdet.audit.command import write
from ghmdet.cli import main
from ghmdet.data import DetectionData, read_data
from small_sets import Picture, write_coco, write_voc, write_yolo

CAT, DOG, EMU = 0, 1, 2
WRITERS = {"COCO": write_coco, "VOC": write_voc, "YOLO": write_yolo}
Writer = Callable[..., Path]


def pictures() -> list[Picture]:
    return [
        Picture("a.jpg", boxes=[(CAT, 5, 5, 25, 35), (EMU, 30, 10, 60, 40), (DOG, 0, 0, 10, 10)]),
        Picture("b.jpg", 40, 60, boxes=[(DOG, 0, 0, 40, 60), (CAT, 8, 4, 16, 20), (CAT, 8, 5, 16, 20)]),
        Picture("c.jpg", boxes=[]),
    ]


def suspicions(data: DetectionData) -> list[Suspicion]:
    """A wrong class, a moved box, a label on nothing and a second one, one missing; then one that is rejected."""
    label = {name: data.classes.index(name) for name in ("cat", "dog", "emu")}
    place = {record.path.name: i for i, record in enumerate(data.records)}

    def one(kind: str, name: str, given: tuple | None, suggested: tuple | None, score: float) -> Suspicion:
        was, becomes = (
            None if each is None else Label(label[each[0]], each[1:]) for each in (given, suggested)
        )
        return Suspicion(place[name], kind, None, was, becomes, score, score, None)

    return [
        one("class", "a.jpg", ("cat", 5, 5, 25, 35), ("dog", 5, 5, 25, 35), 0.9),
        one("shifted", "a.jpg", ("emu", 30, 10, 60, 40), ("emu", 20, 8, 50, 38), 0.8),
        one("spurious", "a.jpg", ("dog", 0, 0, 10, 10), None, 0.7),
        one("duplicate", "b.jpg", ("cat", 8, 5, 16, 20), None, 0.6),
        one("missing", "c.jpg", None, ("emu", 3, 4, 33, 24), 0.5),
        one("spurious", "b.jpg", ("dog", 0, 0, 40, 60), None, 0.4),
    ]


EXPECTED = [
    ("a.jpg", "dog", (5, 5, 25, 35)),
    ("a.jpg", "emu", (20, 8, 50, 38)),
    ("b.jpg", "cat", (8, 4, 16, 20)),
    ("b.jpg", "dog", (0, 0, 40, 60)),
    ("c.jpg", "emu", (3, 4, 33, 24)),
]


def audited(root: Path, writer: Writer, given: Path | None = None) -> tuple[Path, dict[str, Any]]:
    """The folder of an audit of such a set in `root`/set, and decisions that accept all but the last."""
    writer(root / "set", pictures())
    data = read_data(given or root / "set")
    about = {"data": str((given or root / "set").absolute()), "judged_by": "a test", "learnt": False}
    write(root / "audit", data, suspicions(data), about, 0)
    told = json.loads((root / "audit" / "audit.json").read_text())
    words = ["accept"] * 5 + ["reject"]
    decisions = [{"id": i, "decision": word} for i, word in enumerate(words, start=1)]
    return root / "audit", {"audit": told["audit"], "decisions": decisions}


def apply(audit: Path, decisions: dict[str, Any], out: Path, *options: str) -> int:
    (audit / "decisions.json").write_text(json.dumps(decisions))
    with pytest.raises(SystemExit) as ended:
        main(["audit", "apply", str(audit), "--out", str(out), *options])
    return int(ended.value.code or 0)


def rows(data: DetectionData) -> list[tuple[str, str, tuple[float, ...]]]:
    return sorted(
        (record.path.name, data.classes[label], tuple(box.tolist()))
        for record in data.records
        for box, label in zip(record.boxes, record.labels, strict=True)
    )


def contents(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


@pytest.mark.parametrize("name", WRITERS)
def test_the_copy_is_mended_in_its_own_format(tmp_path: Path, name: str) -> None:
    audit, decisions = audited(tmp_path, WRITERS[name])
    before = contents(tmp_path / "set")
    assert apply(audit, decisions, tmp_path / "mended") == 0
    copy = read_data(tmp_path / "mended")
    assert copy.format == name
    for found, wanted in zip(rows(copy), EXPECTED, strict=True):
        assert found[:2] == wanted[:2] and found[2] == pytest.approx(wanted[2], abs=1e-3)
    assert contents(tmp_path / "set") == before
    log = json.loads((tmp_path / "mended" / "mended.json").read_text())
    assert [one["id"] for one in log["done"]] == [1, 2, 3, 4, 5] and log["refused"] == []
    labels = [
        path for path in (tmp_path / "mended").rglob("*") if path.suffix in (".json", ".xml", ".txt", ".yaml")
    ]
    assert labels and all(path.stat().st_nlink == 1 for path in labels)  # may be edited
    # The same again gives the same: what `apply` wrote is replaced.
    assert apply(audit, decisions, tmp_path / "mended") == 0
    assert rows(read_data(tmp_path / "mended")) == rows(copy)


@pytest.mark.parametrize("name", WRITERS)
def test_what_no_longer_fits_is_refused_by_name(
    tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    audit, decisions = audited(tmp_path, WRITERS[name])
    changed = pictures()
    changed[0].boxes[0] = (CAT, 6, 5, 25, 35)  # moved by hand since
    changed[2].boxes = [(EMU, 3, 4, 33, 25)]  # labelled by hand since
    WRITERS[name](tmp_path / "set", changed)
    assert apply(audit, decisions, tmp_path / "mended") == 1
    said = capsys.readouterr().out.splitlines()
    assert re.match(r"refused: number 1 \(class in .*a.jpg\): no cat at \[5, 5, 20, 30\] any more", said[0])
    assert re.match(r"refused: number 5 \(missing in .*c.jpg\): an object of its class is labelled", said[1])
    assert "3 decisions applied, 2 refused" in said[2]
    names = [row[:2] for row in rows(read_data(tmp_path / "mended"))]
    assert names == [("a.jpg", "cat"), ("a.jpg", "emu"), ("b.jpg", "cat"), ("b.jpg", "dog"), ("c.jpg", "emu")]


def test_a_coco_file_given_by_name_keeps_what_else_it_holds(tmp_path: Path) -> None:
    file = write_coco(tmp_path / "set", pictures())
    audit, decisions = audited(tmp_path, write_coco, given=file)
    content = json.loads(file.read_text()) | {"info": {"year": 2024}}
    for one in content["annotations"]:
        one |= {"segmentation": [[0, 0, 1, 1, 2, 0]], "mine": "kept"}
    file.write_text(json.dumps(content))
    assert apply(audit, decisions, tmp_path / "mended") == 0
    mended = json.loads((tmp_path / "mended" / "annotations" / file.name).read_text())
    assert mended["info"] == {"year": 2024} and mended["images"] == content["images"]
    before, after = ({one["id"]: one for one in each["annotations"]} for each in (content, mended))
    assert before.keys() - after.keys() == {3, 6} and after.keys() - before.keys() == {7}
    assert after[1] == before[1] | {"category_id": 20}
    assert after[2]["bbox"] == [20, 8, 30, 30] and after[2]["area"] == 900
    assert "segmentation" not in after[2] and after[2]["mine"] == "kept"
    assert after[4] == before[4] and after[7]["bbox"] == [3, 4, 30, 20]


def test_a_picture_without_a_label_file_gets_one(tmp_path: Path) -> None:
    audit, decisions = audited(tmp_path, write_yolo)
    (tmp_path / "set" / "labels" / "train" / "c.txt").unlink()
    assert apply(audit, decisions, tmp_path / "mended") == 0
    text = (tmp_path / "mended" / "labels" / "train" / "c.txt").read_text()
    assert text == "2 0.300000 0.350000 0.500000 0.500000\n"


def test_a_polygon_keeps_its_points_unless_it_is_moved(tmp_path: Path) -> None:
    audit, decisions = audited(tmp_path, write_yolo)
    file = tmp_path / "set" / "labels" / "train" / "a.txt"
    dog = file.read_text().splitlines()[-1]
    polygon = "0 " + " ".join(f"{v:.6f}" for v in (5 / 60, 5 / 40, 25 / 60, 5 / 40, 25 / 60, 35 / 40))
    moved = "2 " + " ".join(f"{v:.6f}" for v in (30 / 60, 10 / 40, 60 / 60, 10 / 40, 60 / 60, 40 / 40))
    file.write_text(f"{polygon}\n{moved}\n{dog}\n")
    assert apply(audit, decisions, tmp_path / "mended") == 0
    text = (tmp_path / "mended" / "labels" / "train" / "a.txt").read_text().splitlines()
    assert text[0] == "1" + polygon[1:] and len(text) == 2 and len(text[1].split()) == 5


def test_a_set_that_names_itself_by_an_absolute_path_is_not_copied(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = "names: [cat, dog, emu]\ntrain: images/train\n"
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "data.yaml").write_text(f"path: {tmp_path / 'set'}\n{names}")
    audit, decisions = audited(tmp_path, write_yolo)
    before = contents(tmp_path / "set")
    assert apply(audit, decisions, tmp_path / "mended") == 2
    error = capsys.readouterr().err
    assert "its copy would still read" in error and error.count("\n") == 1
    assert contents(tmp_path / "set") == before and not (tmp_path / "mended" / "labels").exists()
    (tmp_path / "yaml").mkdir()
    (tmp_path / "yaml" / "data.yaml").write_text(f"path: ../set\n{names}")
    told = json.loads((audit / "audit.json").read_text())
    (audit / "audit.json").write_text(json.dumps(told | {"data": str(tmp_path / "yaml")}))
    for item in told["items"]:
        item["picture"] = str(tmp_path / "set" / item["picture"])
    (audit / "audit.json").write_text(json.dumps(told | {"data": str(tmp_path / "yaml" / "data.yaml")}))
    assert apply(audit, decisions, tmp_path / "mended") == 2
    assert "lies outside the data set" in capsys.readouterr().err
    assert contents(tmp_path / "set") == before


def test_what_cannot_be_applied_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    audit, decisions = audited(tmp_path, write_coco)

    def refused(change: dict[str, Any], out: str = "mended", *options: str) -> str:
        assert apply(audit, decisions | change, tmp_path / out, *options) == 2
        assert not (tmp_path / "mended").exists()
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        return error

    assert "decisions of another audit" in refused({"audit": "0" * 16})
    assert "no decision" in refused({"decisions": [{"id": 99, "decision": "accept"}]})
    assert "no decision" in refused({"decisions": [{"id": 1, "decision": "maybe"}]})
    assert "lies inside the data set, or around it" in refused({}, "set/mended")
    assert "no such file" in refused({}, "mended", "--decisions", str(tmp_path / "none.json"))
    assert "holds files that 'audit apply' did not write" in refused({}, "audit")
    (audit / "audit.json").unlink()
    assert "give the folder of an audit" in refused({})


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ([{"id": 3, "decision": "accept"}] * 2, "number 3 is decided twice"),
        ([{"id": 3, "decision": "accept"}, {"id": 3, "decision": "reject"}], "number 3 is decided twice"),
        ([{"id": True, "decision": "accept"}], "no decision"),
        ([{"id": [1], "decision": "accept"}], "no decision"),
        (3, "holds no list of decisions"),
        (None, "holds no list of decisions"),
    ],
)
def test_decisions_that_are_none_are_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], given: Any, words: str
) -> None:
    audit, decisions = audited(tmp_path, write_yolo)
    assert apply(audit, decisions | {"decisions": given}, tmp_path / "copy") == 2
    said = capsys.readouterr().err.strip()
    assert words in said
    assert "\n" not in said
    assert not (tmp_path / "copy").exists()


@pytest.mark.parametrize("name", ["COCO", "YOLO"])
def test_a_class_that_the_set_lacks_is_refused_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    audit, decisions = audited(tmp_path, WRITERS[name])
    told = json.loads((audit / "audit.json").read_text())
    told["classes"] = [*told["classes"], "yak"]
    told["items"][0]["new_class"] = "yak"
    (audit / "audit.json").write_text(json.dumps(told))
    assert apply(audit, decisions, tmp_path / "copy") == 1
    assert "no class 'yak'" in capsys.readouterr().out
    assert len(json.loads((tmp_path / "copy" / "mended.json").read_text())["done"]) == 4


def test_a_voc_box_thinner_than_a_pixel_is_refused_alone(tmp_path: Path) -> None:
    audit, decisions = audited(tmp_path, write_voc)
    told = json.loads((audit / "audit.json").read_text())
    told["items"][4]["new_box"] = [3.6, 3.0, 0.8, 20.0]
    (audit / "audit.json").write_text(json.dumps(told))
    assert apply(audit, decisions, tmp_path / "copy") == 1
    refused = json.loads((tmp_path / "copy" / "mended.json").read_text())["refused"]
    assert [(item["id"], item["why"]) for item in refused] == [
        (5, "its box has no area in whole pixels, which VOC wants")
    ]


def test_an_object_added_to_xml_is_in_its_namespace_and_comments_stay(tmp_path: Path) -> None:
    audit, decisions = audited(tmp_path, write_voc)
    for file in (tmp_path / "set").rglob("*.xml"):
        text = file.read_text().replace("<annotation>", '<annotation xmlns="urn:voc"><!-- by hand -->')
        file.write_text(text)
    assert apply(audit, decisions, tmp_path / "copy") == 0
    text = next((tmp_path / "copy").rglob("c.xml")).read_text()
    assert re.search(r'<annotation xmlns="urn:voc"><!-- by hand -->', text)
    assert "<object>" in text
    assert 'xmlns=""' not in text
    assert rows(read_data(tmp_path / "copy")) == EXPECTED


def test_rows_that_are_no_labels_stay_as_they_are(tmp_path: Path) -> None:
    audit, decisions = audited(tmp_path, write_yolo)
    label = next((tmp_path / "set").rglob("a.txt"))
    label.write_text("99 0.5 0.5 0.2 0.2\n0 nan 0.5 0.2 0.2\n" + label.read_text())
    assert apply(audit, decisions, tmp_path / "copy") == 0
    mended = next((tmp_path / "copy").rglob("a.txt")).read_text()
    assert mended.startswith("99 0.5 0.5 0.2 0.2\n0 nan 0.5 0.2 0.2\n")


def test_a_crowd_with_the_box_of_a_label_is_left_alone(tmp_path: Path) -> None:
    audit, decisions = audited(tmp_path, write_coco)
    file = next((tmp_path / "set").rglob("instances_train.json"))
    content = json.loads(file.read_text())
    crowds = [one | {"id": one["id"] + 1000, "iscrowd": 1} for one in content["annotations"]]
    file.write_text(json.dumps(content | {"annotations": crowds + content["annotations"]}))
    assert apply(audit, decisions, tmp_path / "copy") == 0
    mended = json.loads(next((tmp_path / "copy").rglob("instances_train.json")).read_text())
    assert mended["annotations"][: len(crowds)] == crowds


@pytest.mark.parametrize("absolute", [False, True])
def test_pictures_outside_the_set_are_found_by_the_copy_or_it_is_not_made(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], absolute: bool
) -> None:
    write_coco(tmp_path / "set", pictures())
    (tmp_path / "set" / "images").rename(tmp_path / "pics")
    file = next((tmp_path / "set").rglob("instances_train.json"))
    content = json.loads(file.read_text())
    where = str(tmp_path / "pics") if absolute else "../pics"
    for image in content["images"]:
        image["file_name"] = f"{where}/{Path(image['file_name']).name}"
    file.write_text(json.dumps(content))
    data = read_data(tmp_path / "set")
    about = {"data": str(tmp_path / "set"), "judged_by": "a test", "learnt": False}
    write(tmp_path / "audit", data, suspicions(data), about, 0)
    audit = json.loads((tmp_path / "audit" / "audit.json").read_text())["audit"]
    decisions = {"audit": audit, "decisions": [{"id": 1, "decision": "accept"}]}
    status = apply(tmp_path / "audit", decisions, tmp_path / "deeper" / "copy")
    if absolute:
        assert status == 0
        copy = read_data(tmp_path / "deeper" / "copy")
        assert all(record.path.exists() for record in copy.records)
    else:
        assert status == 2 and "lies outside the data set" in capsys.readouterr().err
        assert not (tmp_path / "deeper" / "copy").exists()
