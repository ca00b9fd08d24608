"""`ghmdet audit apply`: a mended copy in the set's own format, refusals by name, originals untouched."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from ghmdet.audit import Label, Suspicion
from ghmdet.audit.command import WEAK, write
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


def write_anew(out: Path, *given: Any) -> None:
    """Write an audit where one may be that was decided on."""
    (out / "decisions.json").unlink(missing_ok=True)
    write(out, *given)


def audited(
    root: Path, writer: Writer, given: Path | None = None, warnings: Sequence[str] = ()
) -> tuple[Path, dict[str, Any]]:
    """The folder of an audit of such a set in `root`/set, and decisions that accept all but the last."""
    writer(root / "set", pictures())
    data = read_data(given or root / "set")
    about = {"data": str((given or root / "set").absolute()), "judged_by": "a test", "learnt": False}
    write_anew(root / "audit", data, suspicions(data), about, 0, warnings)
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


def test_what_the_audit_warned_of_is_said_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    audit, decisions = audited(tmp_path, WRITERS["COCO"], warnings=[WEAK.format(0.07, "more")])
    page = (tmp_path / "audit" / "review.html").read_text(encoding="utf-8")
    assert "larger pictures (<code>--size</code>)" in page
    assert apply(audit, decisions, tmp_path / "mended") == 0
    *_, last = capsys.readouterr().out.splitlines()
    assert last.startswith("Warning: the audit that this rests on said: AP50 0.07 is too little to judge")
    (tmp_path / "set").rename(tmp_path / "moved")
    assert apply(audit, decisions, tmp_path / "again") == 2
    assert "set: the data set of this audit is not there: put it back" in capsys.readouterr().err


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
def test_a_label_is_changed_once(tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A label may be suspected of several kinds of error; audits made before had no more than one of each."""
    audit, decisions = audited(tmp_path, WRITERS[name])
    told = json.loads((audit / "audit.json").read_text())
    second = told["items"][0] | {"id": 7, "kind": "spurious", "new_class": None, "new_box": None}
    for item in told["items"]:
        del item["likeliest"]  # as in audits made before
    (audit / "audit.json").write_text(json.dumps(told | {"items": [*told["items"], second]}))
    decisions["decisions"].append({"id": 7, "decision": "accept"})
    assert apply(audit, decisions, tmp_path / "mended") == 1
    why = "number 1 was accepted for the same label: reject one of the two"
    said = capsys.readouterr().out.splitlines()
    assert re.fullmatch(rf"refused: number 7 \(spurious in .*a.jpg\): {why}", said[0])
    assert [row[:2] for row in rows(read_data(tmp_path / "mended"))] == [one[:2] for one in EXPECTED]


def test_of_two_alike_labels_the_one_that_is_meant_is_changed_once(tmp_path: Path) -> None:
    box = (5.0, 5.0, 25.0, 35.0)
    write_coco(tmp_path / "set", [Picture("a.jpg", boxes=[(0, *box), (0, *box), (1, 0, 0, 9, 9)])])
    cat, dog = Label(0, box), Label(1, box)
    found = [
        Suspicion(0, "duplicate", 1, cat, None, 0.9, 0.9, None),
        Suspicion(0, "class", 0, cat, dog, 0.8, 0.8, None),
        Suspicion(0, "class", 1, cat, dog, 0.7, 0.7, None, likeliest=False),
    ]
    about = {"data": str(tmp_path / "set"), "judged_by": "a test", "learnt": False}
    write_anew(tmp_path / "audit", read_data(tmp_path / "set"), found, about, 0)
    told = json.loads((tmp_path / "audit" / "audit.json").read_text())
    accept = [{"id": number, "decision": "accept"} for number in (1, 3)]
    assert apply(tmp_path / "audit", {"audit": told["audit"], "decisions": accept}, tmp_path / "mended") == 1
    assert [row[1] for row in rows(read_data(tmp_path / "mended"))] == ["cat", "dog"]
    # What the one list suggests, and nothing that contradicts it, is there to be imported.
    suggested = json.loads((tmp_path / "audit" / "suggestions.json").read_text())["annotations"]
    assert [one["id"] for one in suggested] == [2]


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
    assert re.match(r"refused: number 5 \(missing in .*c.jpg\): an object of class emu is labelled", said[1])
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


def test_a_set_whose_yaml_names_a_part_that_is_not_there_is_mended(tmp_path: Path) -> None:
    """Roboflow names a test part that it has not exported."""

    def exported(root: Path, pictures: list[Picture]) -> Path:
        write_yolo(root, pictures)
        yaml = root / "data.yaml"
        yaml.write_text("names: [cat, dog, emu]\ntrain: ../images/train\ntest: ../test/images\n")
        return yaml

    audit, decisions = audited(tmp_path, exported)
    assert apply(audit, decisions, tmp_path / "mended") == 0
    mended = rows(read_data(tmp_path / "mended"))
    assert [row[:2] for row in mended] == [row[:2] for row in EXPECTED]


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
    key = decisions.pop("audit")
    assert f'has no key \'audit\': write "audit": "{key}"' in refused({})
    decisions["audit"] = key
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


@pytest.mark.parametrize("key", ["iscrowd", "ignore"])
def test_a_crowd_with_the_box_of_a_label_is_left_alone(tmp_path: Path, key: str) -> None:
    audit, decisions = audited(tmp_path, write_coco)
    file = next((tmp_path / "set").rglob("instances_train.json"))
    content = json.loads(file.read_text())
    crowds = [one | {"id": one["id"] + 1000, key: 1} for one in content["annotations"]]
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
    write_anew(tmp_path / "audit", data, suspicions(data), about, 0)
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


@pytest.mark.parametrize("odd", ["\udcff\udce9", "käse", "日本"])
@pytest.mark.parametrize("name", WRITERS)
def test_pictures_of_any_name_are_mended(tmp_path: Path, name: str, odd: str) -> None:
    """Bytes that are no UTF-8 are half characters in Python, and \\udcff in JSON."""
    WRITERS[name](tmp_path / "set", pictures())
    for file in [each for each in (tmp_path / "set").rglob("c.*") if each.is_file()]:
        file.rename(file.with_name(odd + file.suffix))
    for file in (tmp_path / "set").rglob("*.json"):
        file.write_text(file.read_text().replace('"c.jpg"', json.dumps(f"{odd}.jpg")))
    shutil.rmtree(tmp_path / "set" / "ImageSets", ignore_errors=True)  # lists are UTF-8
    data = read_data(tmp_path / "set")
    place = {record.path.name: i for i, record in enumerate(data.records)}
    emu = Label(data.classes.index("emu"), (3, 4, 33, 24))
    found = [
        Suspicion(place[f"{odd}.jpg"], "missing", None, None, emu, 0.9, 0.9, None),
        Suspicion(place["a.jpg"], "spurious", None, Label(0, (5, 5, 25, 35)), None, 0.8, 0.8, None),
        Suspicion(place[f"{odd}.jpg"], "spurious", None, emu, None, 0.7, 0.7, None),
    ]
    about = {"data": str(tmp_path / "set"), "judged_by": "a test", "learnt": False}
    write_anew(tmp_path / "audit", data, found, about, 0)
    audit = json.loads((tmp_path / "audit" / "audit.json").read_text())["audit"]
    decisions = {"audit": audit, "decisions": [{"id": i, "decision": "accept"} for i in (1, 2, 3)]}
    assert apply(tmp_path / "audit", decisions, tmp_path / "copy") == 1  # there is no emu to remove
    mended = [(n, k, tuple(map(round, box))) for n, k, box in rows(read_data(tmp_path / "copy"))]
    assert (f"{odd}.jpg", "emu", (3, 4, 33, 24)) in mended and len(mended) == 6
    log = json.loads((tmp_path / "copy" / "mended.json").read_text())
    assert [Path(one["picture"]).name for one in log["done"]] == [f"{odd}.jpg", "a.jpg"]


def judged(
    root: Path, found: list[Suspicion], out: str = "copy"
) -> tuple[int, list[dict[str, Any]], list[Any]]:
    """The status when all suspicions about the set in `root` are accepted, what was refused, and the mended rows."""
    data = read_data(root / "set")
    about = {"data": str(root / "set"), "judged_by": "a test", "learnt": False}
    write_anew(root / "audit", data, found, about, 0)
    audit = json.loads((root / "audit" / "audit.json").read_text())["audit"]
    numbers = range(1, len(found) + 1)
    decisions = {"audit": audit, "decisions": [{"id": i, "decision": "accept"} for i in numbers]}
    status = apply(root / "audit", decisions, root / out)
    log = json.loads((root / out / "mended.json").read_text())
    mended = [(n, k, tuple(map(round, box))) for n, k, box in rows(read_data(root / out))]
    return status, log["refused"], mended


def suspicion(
    kind: Any, given: tuple[int, ...] | None, new: tuple[int, ...] | None, picture: int = 0
) -> Suspicion:
    was, becomes = (None if one is None else Label(one[0], one[1:]) for one in (given, new))  # type: ignore[arg-type]
    return Suspicion(picture, kind, None, was, becomes, 0.9, 0.9, None)


A = [(CAT, 0, 0, 20, 20), (EMU, 30, 10, 60, 40)]
NEW, NEAR = (DOG, 30, 0, 50, 12), (DOG, 31, 1, 50, 12)


@pytest.mark.parametrize(
    ("boxes", "found", "refused", "left"),
    [
        # A label moved there, and one added there.
        (A, [("shifted", A[0], (CAT, *NEW[1:])), ("missing", None, NEAR)], {2: "number 1 was"}, 2),
        (A, [("missing", None, NEAR), ("shifted", A[0], (CAT, *NEW[1:]))], {2: "number 1 was"}, 3),
        (A, [("missing", None, NEW), ("missing", None, NEAR)], {2: "number 1 was"}, 3),
        # Two labels of one object of another class.
        (
            [(CAT, *NEW[1:]), (EMU, *NEAR[1:])],
            [("class", (CAT, *NEW[1:]), NEW), ("class", (EMU, *NEAR[1:]), NEAR)],
            {2: "number 1 was"},
            2,
        ),
        # The object is labelled as it should be, too.
        ([NEW, (CAT, *NEAR[1:])], [("class", (CAT, *NEAR[1:]), NEAR)], {1: "class dog is labelled there"}, 2),
        ([NEW, (DOG, 0, 20, 20, 40)], [("shifted", (DOG, 0, 20, 20, 40), NEAR)], {1: "class dog is"}, 2),
        # In any order: the label that is in the way goes, or moves away.
        ([NEW, (CAT, *NEAR[1:])], [("class", (CAT, *NEAR[1:]), NEAR), ("spurious", NEW, None)], {}, 1),
        (
            [NEW, (DOG, 0, 20, 20, 40)],
            [("shifted", (DOG, 0, 20, 20, 40), NEAR), ("shifted", NEW, (DOG, 0, 0, 9, 9))],
            {},
            2,
        ),
        # A label is not what an earlier decision has made of another.
        (A, [("missing", None, NEW), ("spurious", NEW, None)], {2: "no dog at"}, 3),
        # Objects that overlap little.
        (A, [("missing", None, NEW), ("missing", None, (DOG, 40, 0, 60, 12))], {}, 4),
    ],
)
@pytest.mark.parametrize("name", WRITERS)
def test_no_object_gets_two_boxes_by_two_decisions(
    tmp_path: Path, name: str, boxes: list[Any], found: list[Any], refused: dict[int, str], left: int
) -> None:
    WRITERS[name](
        tmp_path / "set",
        [Picture("a.jpg", boxes=boxes), Picture("y.jpg", boxes=A), Picture("z.jpg", boxes=[NEW])],
    )
    classes = read_data(tmp_path / "set").classes
    assert classes == ("cat", "dog", "emu")
    status, said, mended = judged(tmp_path, [suspicion(*one) for one in found])
    assert status == bool(refused)
    assert {one["id"] for one in said} == refused.keys()
    assert all(refused[one["id"]] in one["why"] for one in said)
    assert sum(one[0] == "a.jpg" for one in mended) == left


@pytest.mark.parametrize("name", WRITERS)
def test_a_suggestion_ends_at_the_edge_of_the_picture(tmp_path: Path, name: str) -> None:
    WRITERS[name](tmp_path / "set", [Picture("a.jpg", boxes=A), Picture("z.jpg", boxes=[NEW])])
    found = [
        suspicion("missing", None, (DOG, -7, -3, 12, 30)),
        suspicion("shifted", A[1], (EMU, 40, 20, 99, 44)),
        suspicion("missing", None, (DOG, 61, 0, 90, 20)),
        suspicion("missing", None, (DOG, 0, -9, 20, -2)),
        suspicion("missing", None, (DOG, 5, 5, 5, 9)),
    ]
    status, said, mended = judged(tmp_path, found)
    assert [one["id"] for one in said] == [3, 4, 5] and status == 1
    assert "(box outside the image)" in said[0]["why"] and "(empty box)" in said[2]["why"]
    assert [one for one in mended if one[0] == "a.jpg"] == [
        ("a.jpg", "cat", (0, 0, 20, 20)),
        ("a.jpg", "dog", (0, 0, 12, 30)),
        ("a.jpg", "emu", (40, 20, 60, 40)),
    ]
    assert not [one for one in read_data(tmp_path / "copy").problems if "outside" in one.kind]


@pytest.mark.parametrize("name", WRITERS)
def test_the_copy_holds_what_the_splits_use_and_says_once_what_is_left_out(
    tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "set"
    WRITERS[name](root, pictures())
    WRITERS[name](root, [Picture("v.jpg", boxes=A), Picture("w.jpg", boxes=[NEW])], split="val")
    used = contents(root)
    for unrelated in ("runs/x-1/best.pt", "notes.md", "old/annotations.zip", "images/more.psd"):
        (root / unrelated).parent.mkdir(parents=True, exist_ok=True)
        (root / unrelated).write_bytes(b"x" * 1000)
    status, _, _ = judged(tmp_path, [suspicion("spurious", pictures()[0].boxes[0], None)])  # type: ignore[arg-type]
    assert status == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith(
        "not copied: 4 files that no split of the data set uses (images/more.psd, notes.md, old"
    )
    assert len(said) == 2
    assert contents(tmp_path / "copy").keys() == used.keys() | {"mended.json"}
    for split in ("train", "val"):
        assert len(read_data(tmp_path / "copy", split).records) == len(read_data(root, split).records)


def test_a_darknet_set_is_copied_with_its_lists_and_names(tmp_path: Path) -> None:
    root = tmp_path / "set"
    write_yolo(root, pictures())
    (root / "classes.txt").unlink()
    (root / "cfg").mkdir()
    (root / "cfg" / "our.names").write_text("cat\ndog\nemu\n")
    (root / "obj.data").write_text("classes = 3\ntrain = train.txt\nnames = cfg/our.names\n")
    (root / "train.txt").write_text("".join(f"images/train/{one}.jpg\n" for one in "abc"))
    used = contents(root)
    status, _, mended = judged(tmp_path, [suspicion("spurious", pictures()[0].boxes[0], None)])  # type: ignore[arg-type]
    assert status == 0 and len(mended) == 5
    assert contents(tmp_path / "copy").keys() == used.keys() | {"mended.json"}


HEADS = {
    "bare": ("<annotation>", "", "</annotation>"),
    "default": ('<annotation xmlns="urn:voc" verified="yes">', "", "</annotation>"),
    "prefixed": ('<v:annotation xmlns:v="urn:voc" xmlns:w="urn:w">', "v:", "</v:annotation>"),
    "ns0": ('<ns0:annotation xmlns:ns0="urn:voc">', "ns0:", "</ns0:annotation>"),
}


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("encoding", ["UTF-8", "ISO-8859-1", "UTF-16"])
def test_all_else_in_an_xml_file_stays_as_it_is(tmp_path: Path, head: str, encoding: str) -> None:
    write_voc(tmp_path / "set", pictures())
    begin, space, end = HEADS[head]
    before = (
        f'<?xml version="1.0" encoding="{encoding}" standalone="yes"?>\n<!-- drawn by käthe > -->\n'
        f'<?tool <annotation> ?>\n<!DOCTYPE annotation [<!ENTITY who "me">]>\n{begin}\r\n\t<!-- a > b -->'
    )

    def one(name: str, box: tuple[int, ...], more: str = "") -> str:
        corners = "".join(
            f"<{space}{corner}>{value}</{space}{corner}>"
            for corner, value in zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True)
        )
        named = f"{more}<{space}name>{name}</{space}name><{space}bndbox>{corners}</{space}bndbox>"
        return f"\n <{space}object id='a>b'>{named}</{space}object>"

    more = f"<!-- é --><?keep me?><{space}note><![CDATA[1 < 2 &]]>&who;</{space}note>"
    kept, tail = one("emu", (30, 10, 60, 40), more), f"\n{end}\n<!-- after -->\n<?end?>\n"
    text = f"{before}{one('cat', (5, 5, 25, 35), more)}{kept}{one('dog', (0, 0, 10, 10))}{tail}"
    file = tmp_path / "set" / "Annotations" / "a.xml"
    file.write_bytes(text.encode(encoding))
    found = [
        suspicion("class", (CAT, 5, 5, 25, 35), (DOG, 5, 5, 25, 35)),
        suspicion("spurious", (DOG, 0, 0, 10, 10), None),
        suspicion("missing", None, (EMU, 1, 2, 13, 14)),
    ]
    status, said, mended = judged(tmp_path, found)
    assert (status, said) == (0, [])
    assert [one for one in mended if one[0] == "a.jpg"] == [
        ("a.jpg", "dog", (5, 5, 25, 35)),
        ("a.jpg", "emu", (1, 2, 13, 14)),
        ("a.jpg", "emu", (30, 10, 60, 40)),
    ]
    copy = (tmp_path / "copy" / "Annotations" / "a.xml").read_bytes().decode("utf-8")
    wanted = before.replace(encoding, "UTF-8") + one("dog", (5, 5, 25, 35), more) + kept
    assert copy.startswith(wanted)
    assert copy.endswith(tail)
    added = copy[len(wanted) : -len(tail)]
    assert (
        added.startswith(f"\n\t<{space}object>\n\t\t<{space}name>emu</{space}name>") and "xmlns" not in added
    )
    assert added.count("<") == 2 * (1 + 4 + 1 + 4)


def test_an_xml_file_of_a_single_tag_gets_an_object(tmp_path: Path) -> None:
    write_voc(tmp_path / "set", pictures())
    (tmp_path / "set" / "Annotations" / "c.xml").write_text("<annotation a='/>'/>")
    status, _, mended = judged(tmp_path, [suspicion("missing", None, (EMU, 1, 2, 13, 14), picture=2)])
    assert status == 0 and ("c.jpg", "emu", (1, 2, 13, 14)) in mended


def test_objects_added_to_an_empty_xml_file_are_all_there_in_their_order(tmp_path: Path) -> None:
    boxes = [(EMU, 1, 2, 13, 14), (CAT, 20, 20, 30, 30), (DOG, 40, 5, 50, 15)]
    found = [suspicion("missing", None, box, picture=2) for box in boxes]
    for place, text in enumerate(
        ("<annotation/>", "<v:annotation xmlns:v='urn:voc' />", "<annotation></annotation>")
    ):
        root = tmp_path / str(place)
        write_voc(root / "set", pictures())
        (root / "set" / "Annotations" / "c.xml").write_text(text)
        status, _, mended = judged(root, found)
        names = [(("cat", "dog", "emu")[box[0]], box[1:]) for box in boxes]
        assert status == 0 and sorted(one[1:] for one in mended if one[0] == "c.jpg") == sorted(names)
        copy = (root / "copy" / "Annotations" / "c.xml").read_text()
        assert re.findall("name>([a-z]+)</", copy) == [name for name, _ in names]


@pytest.mark.parametrize("name", ["VOC", "YOLO"])
def test_a_linked_picture_keeps_labels_of_its_own(tmp_path: Path, name: str) -> None:
    two = {"a.jpg": (CAT, 5, 5, 25, 35), "c.jpg": (DOG, 30, 10, 50, 30)}
    WRITERS[name](tmp_path / "set", [Picture(file, boxes=[box]) for file, box in two.items()])
    for link in (tmp_path / "set").rglob("c.jpg"):
        link.unlink()
        link.symlink_to("a.jpg")
    if name == "YOLO":
        (tmp_path / "set" / "classes.txt").write_text("cat\ndog\nemu\n")
    data = read_data(tmp_path / "set")
    place = [record.path.name for record in data.records].index
    label = data.classes.index
    found = [
        suspicion("class", (label("cat"), 5, 5, 25, 35), (label("dog"), 5, 5, 25, 35), place("a.jpg")),
        suspicion("missing", None, (label("cat"), 2, 2, 12, 12), place("c.jpg")),
    ]
    status, said, mended = judged(tmp_path, found)
    assert (status, said) == (0, [])
    assert mended == [
        ("a.jpg", "dog", (5, 5, 25, 35)),
        ("c.jpg", "cat", (2, 2, 12, 12)),
        ("c.jpg", "dog", (30, 10, 50, 30)),
    ]


def coco(root: Path, **lists: Any) -> dict[str, Any]:
    """The content of a COCO set in `root`/set of a picture with a cat and a dog, with other lists where given."""
    write_coco(root / "set", [Picture("a.jpg", boxes=[(CAT, 5, 5, 25, 35), (DOG, 40, 10, 60, 40)])])
    file = next((root / "set").rglob("instances_train.json"))
    content = json.loads(file.read_text()) | {
        "categories": [{"id": 10, "name": "cat"}, {"id": 20, "name": "dog"}]
    }
    for key, change in lists.items():
        content[key] = change(content[key])
    file.write_text(json.dumps(content))
    return content


def mended_coco(root: Path) -> dict[str, Any]:
    return json.loads(next((root / "copy").rglob("instances_train.json")).read_text())


CLASS = suspicion("class", (CAT, 5, 5, 25, 35), (DOG, 5, 5, 25, 35))
SPURIOUS = suspicion("spurious", (CAT, 5, 5, 25, 35), None)
MISSING = suspicion("missing", None, (CAT, 30, 1, 39, 9))
BOTH = [("a.jpg", "dog", (5, 5, 25, 35)), ("a.jpg", "dog", (40, 10, 60, 40))]


def test_a_category_that_only_groups_is_given_to_no_object(tmp_path: Path) -> None:
    group = {"id": 0, "name": "cat", "supercategory": "none"}
    coco(tmp_path, categories=lambda old: [group, *(one | {"supercategory": "cat"} for one in old)])
    status, _, mended = judged(tmp_path, [MISSING])
    assert status == 0 and ("a.jpg", "cat", (30, 1, 39, 9)) in mended
    assert [one["category_id"] for one in mended_coco(tmp_path)["annotations"]] == [10, 20, 10]


def test_a_copy_that_cannot_be_read_is_not_made(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    coco(tmp_path)
    judged(tmp_path, [MISSING])
    shutil.rmtree(tmp_path / "copy")
    coco(tmp_path, categories=lambda old: [*old, {"id": 30, "name": "cat"}])  # by hand, since the audit
    capsys.readouterr()
    decisions = json.loads((tmp_path / "audit" / "decisions.json").read_text())
    assert apply(tmp_path / "audit", decisions, tmp_path / "copy") == 2
    error = capsys.readouterr().err
    assert "its copy could not be read: " in error and "class 'cat' is there twice" in error
    assert ".unfinished" not in error and not (tmp_path / "copy" / "mended.json").exists()


@pytest.mark.parametrize("bbox", [None, [], "left out"])
def test_an_object_that_has_a_mask_alone_is_a_label(tmp_path: Path, bbox: Any) -> None:
    mask = {"segmentation": [[5, 5, 25, 5, 25, 35, 5, 35]]}

    def masked(old: list[dict[str, Any]]) -> list[dict[str, Any]]:
        first = {key: value for key, value in old[0].items() if key != "bbox"}
        return [first | mask | ({} if bbox == "left out" else {"bbox": bbox}), old[1]]

    content = coco(tmp_path, annotations=masked)
    assert judged(tmp_path, [CLASS]) == (0, [], BOTH)
    assert mended_coco(tmp_path)["annotations"][0] == content["annotations"][0] | {"category_id": 20}
    again = suspicion("missing", None, (CAT, 6, 5, 25, 35))
    status, said, mended = judged(tmp_path, [again])
    assert status == 1 and "labelled there already" in said[0]["why"] and len(mended) == 2
    status, _, mended = judged(tmp_path, [suspicion("shifted", (CAT, 5, 5, 25, 35), (CAT, 1, 1, 21, 31))])
    assert status == 0 and mended[0] == ("a.jpg", "cat", (1, 1, 21, 31))


@pytest.mark.parametrize("crowd", ["true", "1", True, 1, "1.0"])
def test_a_crowd_written_in_any_way_is_no_label(tmp_path: Path, crowd: Any) -> None:
    there = {"id": 9, "image_id": 1, "category_id": 10, "bbox": [30, 1, 9, 8], "iscrowd": crowd}
    coco(tmp_path, annotations=lambda old: [*old, there])
    status, said, _ = judged(tmp_path, [MISSING])
    assert (status, said) == (0, []) and mended_coco(tmp_path)["annotations"][2] == there


def test_what_is_no_record_stays_as_it_is(tmp_path: Path) -> None:
    content = coco(
        tmp_path,
        annotations=lambda old: [None, 5, *old, [], {"id": "x", "image_id": None}],
        images=lambda old: [*old, None, {"id": None}, "b"],
        categories=lambda old: [{"id": 7}, {"id": 8, "name": None}, {"id": 9, "name": " emu "}, *old],
    )
    classes = read_data(tmp_path / "set").classes
    assert classes == ("7", "8", "emu", "cat", "dog")
    cat, dog = classes.index("cat"), classes.index("dog")
    added = [(0, 30, 1, 39, 9), (1, 30, 10, 39, 19), (2, 30, 20, 39, 29)]
    found = [
        suspicion("class", (cat, 5, 5, 25, 35), (dog, 5, 5, 25, 35)),
        *(suspicion("missing", None, one) for one in added),
    ]
    status, said, mended = judged(tmp_path, found)
    assert (status, said) == (0, [])
    assert [one[1] for one in mended] == ["7", "8", "dog", "dog", "emu"]
    copy = mended_coco(tmp_path)
    assert copy["images"] == content["images"] and copy["categories"] == content["categories"]
    assert copy["annotations"][:2] == [None, 5]
    assert copy["annotations"][4:6] == content["annotations"][4:6]
    assert [one["category_id"] for one in copy["annotations"][6:]] == [7, 8, 9]


@pytest.mark.parametrize("name", ["a.jpg", "./a.jpg"])
def test_labels_of_a_picture_listed_twice_are_changed_in_both_its_records(tmp_path: Path, name: str) -> None:
    def listed(old: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [*old, old[0] | {"id": 2, "file_name": name}]

    def of_second(old: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [old[0] | {"image_id": 2}, old[1]]

    coco(tmp_path / "second", images=listed, annotations=of_second)
    assert judged(tmp_path / "second", [CLASS]) == (0, [], BOTH)

    def of_both(old: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [*old, old[0] | {"id": 8, "image_id": 2}, old[1] | {"id": 9, "image_id": "2"}]

    coco(tmp_path / "both", images=listed, annotations=of_both)
    assert judged(tmp_path / "both", [CLASS]) == (0, [], BOTH)
    assert [one["category_id"] for one in mended_coco(tmp_path / "both")["annotations"]] == [20, 20, 20, 20]
    assert judged(tmp_path / "both", [SPURIOUS]) == (0, [], BOTH[1:])
    assert [one["id"] for one in mended_coco(tmp_path / "both")["annotations"]] == [2, 9]
    moved = suspicion("shifted", (CAT, 5, 5, 25, 35), (CAT, 1, 1, 21, 31))
    assert judged(tmp_path / "both", [moved]) == (0, [], [("a.jpg", "cat", (1, 1, 21, 31)), BOTH[1]])


def test_polygons_that_a_change_makes_unclear_name_the_line_to_write(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_yolo(tmp_path / "set", [Picture("a.jpg", boxes=A), Picture("b.jpg", boxes=[NEW])])
    (tmp_path / "set" / "classes.txt").unlink()
    yaml = tmp_path / "set" / "data.yaml"
    yaml.write_text("names: [cat, dog, emu]\n")
    # The second can be a box with points as well.
    rows = "0 0 0 .5 0 .5 .5 0 .5\n1 .6 .6 .2 .2 .6 .6 .62 .62\n"
    (tmp_path / "set" / "labels" / "train" / "a.txt").write_text(rows)
    with pytest.raises(FileNotFoundError):  # not made
        judged(tmp_path, [suspicion("spurious", (CAT, 0, 0, 30, 20), None)])
    error = capsys.readouterr().err
    assert "if its rows are polygons, write 'task: segment' into its data.yaml" in error
    yaml.write_text("names: [cat, dog, emu]\ntask: segment\n")
    status, said, mended = judged(tmp_path, [suspicion("spurious", (CAT, 0, 0, 30, 20), None)])
    assert (status, said, len(mended)) == (0, [], 2)


@pytest.mark.parametrize("bbox", [[float("nan")] * 4, ["nan", 1, 9, 8], [30, 1, float("nan"), 8]])
def test_a_box_that_is_none_hides_no_label(tmp_path: Path, bbox: list[Any]) -> None:
    coco(tmp_path, annotations=lambda old: [old[0] | {"id": 9, "bbox": bbox}, *old])
    status, said, mended = judged(tmp_path, [suspicion("missing", None, (CAT, 6, 5, 25, 35))])
    assert status == 1 and "labelled there already" in said[0]["why"] and len(mended) == 2


def test_a_yolo_row_in_pixels_is_no_label(tmp_path: Path) -> None:
    write_yolo(tmp_path / "set", [Picture("a.jpg", boxes=A), Picture("b.jpg", boxes=[NEW])])
    file = tmp_path / "set" / "labels" / "train" / "a.txt"
    row = "1 1.25 0.5 2.5 1\n"  # all of the picture, once it is clipped
    file.write_text(f"{row}1 0.5 0.5 1 1\n")
    status, said, mended = judged(tmp_path, [suspicion("class", (DOG, 0, 0, 60, 40), (CAT, 0, 0, 60, 40))])
    assert (status, said) == (0, []) and ("a.jpg", "cat", (0, 0, 60, 40)) in mended
    assert (tmp_path / "copy" / "labels" / "train" / "a.txt").read_text() == f"{row}0 0.5 0.5 1 1\n"


@pytest.mark.parametrize("said", ["1", " true ", "TRUE", "1.0"])
def test_a_difficult_object_with_the_box_of_a_label_is_left_alone(tmp_path: Path, said: str) -> None:
    write_voc(tmp_path / "set", [Picture("a.jpg", boxes=[A[0], A[0], A[1]]), Picture("b.jpg", boxes=[NEW])])
    file = tmp_path / "set" / "Annotations" / "a.xml"
    bare = re.sub(r"\s*<difficult>.*?</difficult>", "", file.read_text())
    file.write_text(bare.replace("</object>", f"<difficult>{said}</difficult></object>", 1))
    assert read_data(tmp_path / "set").records[0].crowd.tolist() == [True, False, False]
    changed = suspicion("class", A[0], (DOG, *A[0][1:]))
    status, refused, mended = judged(tmp_path, [changed])
    assert (status, refused) == (0, [])
    crowd = read_data(tmp_path / "copy").records[0].crowd.tolist()
    assert crowd == [True, False, False]
    assert [one[1] for one in mended if one[0] == "a.jpg"] == ["cat", "dog", "emu"]


@pytest.mark.parametrize("name", WRITERS)
def test_a_set_whose_files_cannot_all_be_copied_is_refused_by_name(
    tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    WRITERS[name](tmp_path / "set", pictures())
    judged(tmp_path, [suspicion("spurious", pictures()[0].boxes[0], None)])  # type: ignore[arg-type]
    decisions = json.loads((tmp_path / "audit" / "decisions.json").read_text())
    (_, picture, *_) = sorted((tmp_path / "set").rglob("*.jpg"))
    picture.unlink()
    picture.symlink_to("nowhere.jpg")
    capsys.readouterr()
    status = apply(tmp_path / "audit", decisions, tmp_path / "again")
    said = capsys.readouterr()
    assert status == 2 and not (tmp_path / "again").exists()
    assert said.err.count("\n") == 1 and "mend its link" in said.err and picture.name in said.err
