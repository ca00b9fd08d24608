"""`ghmdet audit`: folds, a checkpoint or anyone's detections; what is written; bad input in one line."""

from __future__ import annotations

import csv
import json
import re
import shlex
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from engine_cases import TINY
from ghmdet.audit import KINDS, Suspicion
from ghmdet.audit import command as commands
from ghmdet.audit import folds as engine
from ghmdet.audit.command import COLUMNS, apply, how_far, write_audit
from ghmdet.audit.folds import Fold
from ghmdet.cli import main
from ghmdet.data import read_data
from ghmdet.engine.detect import Detector, detect
from ghmdet.engine.settings import FoldConfig
from ghmdet.engine.train import train
from ghmdet.errors import DataError, GhmdetError, PartlyDone
from ghmdet.evaluation.score import Metrics, score
from ghmdet.report.summary import code
from ghmdet.signals import StopSignal

CONFIG = FoldConfig(**vars(replace(TINY, epochs=1)))


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> list[Fold]:
    """Folds are trained in this process; the list of those trained."""
    trained = []

    def train_here(
        run: Fold, stop: StopSignal, show: Callable[[str], None], heard: Callable[[str], None]
    ) -> str:
        trained.append(run)
        train(run.data, run.out, run.config, resume=True, say=heard)
        return ""

    monkeypatch.setattr(engine, "train_run", train_here)
    return trained


def read(out: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((out / "audit.json").read_text())
    return content


def test_a_fold_says_after_its_first_steps_how_long_it_will_take(
    squares: Path, tmp_path: Path, in_process: list[Fold]
) -> None:
    said: list[str] = []
    config = replace(CONFIG, epochs=20)
    write_audit(squares, out=tmp_path / "a", folds=2, config=config, say=said.append)
    assert "came to nothing" not in (tmp_path / "a" / "review.html").read_text()
    places = [place for place, line in enumerate(said) if " to go: " in line]
    for number, place in enumerate(places, start=1):
        assert re.fullmatch(
            rf"fold {number}: about .* s to go: \d+ steps of .* s, 2 folds in all; for less, begin another audit with"
            " a time: --budget 20m",
            said[place],
        )
        assert said[place + 1].startswith(f"fold {number} of 2 trained in ")
    assert len(places) == 2


def test_each_part_is_judged_by_a_run_on_the_others_and_finished_runs_stay(
    squares: Path, tmp_path: Path, in_process: list[Fold]
) -> None:
    out, said = tmp_path / "a", list[str]()

    def audited() -> list[dict[str, Any]]:
        said.clear()
        with pytest.raises(PartlyDone, match="this list says little of the labels: a fold came to nothing"):
            write_audit(squares, out=out, folds=2, config=CONFIG, say=said.append)
        return list(read(out)["items"])

    found = audited()
    assert [str(run) for run in in_process] == ["fold 1", "fold 2"]
    judged, learnt = [], []
    for run in in_process:
        (settings,) = (json.loads((run.out / "run.json").read_text())["arguments"],)
        assert settings["epochs"] == 1 and Path(settings["data"]) == run.data
        judged.append({record.path.name for record in run.part.records})
        learnt.append({record.path.name for record in read_data(run.data, "train").records})
        assert judged[-1] == {record.path.name for record in read_data(run.data, "val").records}
        assert judged[-1].isdisjoint(learnt[-1])
    assert len(judged[0] | judged[1]) == 12 and judged[0].isdisjoint(judged[1])
    assert found
    assert "open" in said[-1]
    assert (
        sum(line.startswith("the judging detectors agree with the labels to AP50 0.") for line in said) == 1
    )
    nothing, words = (line for line in said if line.startswith("Warning: "))  # after one epoch
    assert nothing.startswith(
        "Warning: 2 of 2 runs came to nothing. fold 1: This run has learnt nothing: AP .00"
    )
    assert words.startswith("Warning: AP50 0.")
    assert words.endswith("Train longer, with more `--epochs`, or on larger pictures (`--size`).")
    for warning in (nothing, words):
        assert code(warning.removeprefix("Warning: ")) in (out / "review.html").read_text()
    assert not any(line.startswith("Worth a look: ") for line in said)  # they are too weak to say
    assert audited() == found and len(in_process) == 2
    plan = out / "folds" / "plan.json"
    kept = json.loads(plan.read_text())
    plan.write_text(json.dumps({name: value for name, value in kept.items() if name != "optimizer"}))
    audited()  # of a version before it
    with pytest.raises(GhmdetError, match=r"other settings: epochs 2 \(there 1\)"):
        write_audit(squares, out=out, folds=2, config=replace(CONFIG, epochs=2))
    with pytest.raises(GhmdetError, match=r"other settings: folds 3 \(there 2\)"):
        write_audit(squares, out=out, config=CONFIG)


def test_folds_that_the_budget_ended_are_told_to_have_more_of_it(
    squares: Path, tmp_path: Path, in_process: list[Fold]
) -> None:
    said, out = list[str](), tmp_path / "a"
    with pytest.raises(PartlyDone):
        write_audit(
            squares,
            out=out,
            folds=2,
            config=replace(CONFIG, epochs=None, budget="16s", lr=1e-7),
            say=said.append,
        )
    page = (out / "review.html").read_text()
    assert "--epochs" not in page and "\n".join(said).count("--epochs") == 0
    assert code("train again with a larger `--budget`.") in page
    assert code("Train longer, with a larger `--budget`, or on larger pictures") in page


def test_commands_for_other_hosts_and_a_shared_budget(squares: Path, tmp_path: Path) -> None:
    said: list[str] = []
    config = replace(CONFIG, epochs=None, budget="3m")
    write_audit(squares, out=tmp_path / "a", list_commands=True, config=config, say=said.append)
    assert len(said) == 3
    for number, command in enumerate(said, start=1):
        words = shlex.split(command)
        assert words[:2] == ["ghmdet", "train"] and words[2].endswith(f"fold{number}")
        assert words[words.index("--budget") + 1] == "60s" and "--resume" in words


@pytest.mark.parametrize(("labelled", "lacks"), [(1, "fold 1 has no boxes to train on"), (2, "3 .* judge")])
def test_a_fold_without_boxes_is_refused(squares: Path, tmp_path: Path, labelled: int, lacks: str) -> None:
    shutil.copytree(squares, tmp_path / "set")
    file = tmp_path / "set" / "annotations" / "instances_train.json"
    content = json.loads(file.read_text())
    few = [image["id"] for image in content["images"][:labelled]]
    for one in content["annotations"]:
        one["iscrowd"] = int(one["image_id"] not in few)  # a crowd is no box to learn or to judge
    file.write_text(json.dumps(content))
    words = f"{lacks}: too few pictures have labels for {labelled + 1} folds: give fewer --folds"
    with pytest.raises(DataError, match=words):
        write_audit(tmp_path / "set", out=tmp_path / "a", folds=labelled + 1, config=CONFIG, say=str)
    assert not (tmp_path / "a").exists()


def test_labels_that_changed_since_are_another_audit(squares: Path, tmp_path: Path) -> None:
    shutil.copytree(squares, tmp_path / "set")
    write_audit(tmp_path / "set", out=tmp_path / "a", list_commands=True, config=CONFIG, say=str)
    file = tmp_path / "set" / "annotations" / "instances_train.json"
    content = json.loads(file.read_text())
    content["annotations"][0]["bbox"][0] += 1
    file.write_text(json.dumps(content))
    with pytest.raises(GhmdetError, match="pictures or labels have changed since"):
        write_audit(tmp_path / "set", out=tmp_path / "a", list_commands=True, config=CONFIG, say=str)


LEARNT = "of these 12 pictures were trained on, with these very labels: it has learnt wrong ones too"


def test_a_checkpoint_judges_what_it_did_not_train_on_or_says_so(
    squares: Path, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However the data set is named, and wherever it lies."""
    monkeypatch.setattr(commands, "LITTLE", 0.0)  # that of the run is low, too
    said: list[str] = []
    write_audit(squares, out=tmp_path / "val", checkpoint=run / "best.pt", say=said.append)
    told = read(tmp_path / "val")
    assert (told["split"], told["pictures"], told["learnt"]) == ("val", 4, False)
    assert "these very labels" not in "".join(said)
    assert "these very labels" not in (tmp_path / "val" / "review.html").read_text()

    shutil.copytree(squares, tmp_path / "moved")
    (tmp_path / "linked").symlink_to(squares)
    file = Path("annotations", "instances_train.json")
    given = [squares, squares / file, tmp_path / "moved", tmp_path / "moved" / file, tmp_path / "linked"]
    for number, data in enumerate(given):
        out = tmp_path / str(number)
        write_audit(data, out=out, checkpoint=run / "best.pt", split="train", say=said.append)
        assert read(out)["learnt"] is True
        assert sum(f"Warning: 12 {LEARNT}" in line for line in said) == 1
        assert not any(line.startswith("Worth a look: ") for line in said)
        assert f"12 {LEARNT}" in (out / "review.html").read_text()
        said.clear()

    content = json.loads((tmp_path / "moved" / file).read_text())
    for one in content["annotations"][1:]:  # other labels; those of the first picture but one stay
        one["bbox"][2] += one["image_id"] != content["annotations"][0]["image_id"]
    (tmp_path / "moved" / file).write_text(json.dumps(content))
    write_audit(tmp_path / "moved", out=tmp_path / "some", checkpoint=run / "best.pt", say=said.append)
    assert sum(f"Warning: 1 {LEARNT}" in line for line in said) == 1
    content["annotations"][0]["bbox"][2] += 1
    (tmp_path / "moved" / file).write_text(json.dumps(content))
    write_audit(tmp_path / "moved", out=tmp_path / "other", checkpoint=run / "best.pt", say=said.append)
    assert (read(tmp_path / "other")["split"], read(tmp_path / "other")["learnt"]) == ("train", False)


def test_a_detector_that_has_hardly_learnt_is_said_to_be(squares: Path, run: Path, tmp_path: Path) -> None:
    said: list[str] = []
    write_audit(squares, out=tmp_path / "a", checkpoint=run / "best.pt", say=said.append)
    agrees = read(tmp_path / "a")["AP50"]
    part = read_data(squares, "val")
    detector = Detector.load(run / "best.pt", device="cpu")
    found = detect(detector.model, part, device=detector.device)
    assert agrees == pytest.approx(score(part.to_coco(), found).AP50, abs=0.02) and agrees < 0.3
    weak = f"Warning: AP50 {agrees:.2f} is too little to judge these labels by"
    assert sum(line.startswith(weak) for line in said) == 1
    assert "is too little to judge" in (tmp_path / "a" / "review.html").read_text()

    # Anyone's detections too: bad ones are told of, good ones are not.
    truth = part.to_coco()["annotations"]
    for name, bad in (("bad", 60), ("good", 0)):
        results = [{**one, "score": 0.9, "bbox": [one["bbox"][0] + bad, *one["bbox"][1:]]} for one in truth]
        (tmp_path / "r.json").write_text(json.dumps(results))
        said.clear()
        out = tmp_path / name
        write_audit(squares, out=out, results=tmp_path / "r.json", split="val", say=said.append)
        assert ("too little to judge" in "".join(said)) is bool(bad)
        assert ("too little to judge" in (out / "review.html").read_text()) is bool(bad)
    assert "the judging detectors agree with the labels to AP50 1.00" in said


def test_agreement_is_taken_from_a_sample(
    squares: Path, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The detections of all pictures of a large data set would fill the memory."""
    monkeypatch.setattr("ghmdet.audit.results.SAMPLE", 5)
    asked: list[int] = []

    def counted(truth: dict[str, Any], results: list[dict[str, Any]]) -> Metrics:
        asked.append(len(truth["images"]))
        assert {one["image_id"] for one in results} <= {one["id"] for one in truth["images"]}
        return score(truth, results)

    monkeypatch.setattr("ghmdet.audit.results.score", counted)
    write_audit(squares, out=tmp_path / "a", checkpoint=run / "best.pt", split="train", say=str)
    assert asked == [4]  # every third of 12


def test_the_terminal_says_how_far_to_look() -> None:
    found = [Suspicion(0, "spurious", 0, None, None, each, each, None) for each in (0.9, 0.7, 0.69, 0.5, 0.2)]
    words = "Worth a look: the first 2 (score 0.7 or more), then as far as number 4 (0.5 or more)."
    assert how_far(found, 2).startswith(f"{words} Stop")
    assert how_far(found, 1).startswith(f"{words} The page shows the first 1; --review 2 shows all 2. Stop")


@pytest.mark.parametrize(("faint", "low"), [(8, True), (5, True), (4, False)])
def test_a_detector_that_doubts_most_labels_is_said_to_score_too_low(
    squares: Path, tmp_path: Path, faint: int, low: bool
) -> None:
    """AP50 goes by order alone: it is 1 where each box is right, however low its score."""
    truth = read_data(squares, "val").to_coco()["annotations"]
    results = [
        {key: one[key] for key in ("image_id", "category_id", "bbox")} | {"score": 0.3 if i < faint else 0.9}
        for i, one in enumerate(truth)
    ]
    (tmp_path / "r.json").write_text(json.dumps(results))
    said: list[str] = []
    write_audit(squares, out=tmp_path / "a", results=tmp_path / "r.json", split="val", say=said.append)
    assert len(truth) == 8 and "the judging detectors agree with the labels to AP50 1.00" in said
    words = f"{faint} of 8 labels look wrong (score 0.5 or more): the detector"
    page = (tmp_path / "a" / "review.html").read_text()
    assert any(line.startswith(f"Warning: {words}") for line in said) is low
    assert (words in page) is low
    assert any(line.startswith("Worth a look: ") for line in said) is not low
    assert ("Worth a look" in page) is not low


def test_a_spreadsheet_runs_nothing_of_the_table(squares: Path, tmp_path: Path) -> None:
    given = json.loads((squares / "annotations" / "instances_val.json").read_text())
    given["categories"][0]["name"] = '=HYPERLINK("http://h")'
    shutil.copytree(squares / "images", tmp_path / "images")
    (tmp_path / "instances_val.json").write_text(json.dumps(given))
    (tmp_path / "r.json").write_text("[]")
    write_audit(tmp_path, out=tmp_path / "a", results=tmp_path / "r.json", split="val", say=lambda line: None)
    with (tmp_path / "a" / "audit.csv").open() as file:
        named = {row["class"] for row in csv.DictReader(file)}
    assert named == {'\'=HYPERLINK("http://h")', "blue"}
    assert {item["class"] for item in read(tmp_path / "a")["items"]} == {'=HYPERLINK("http://h")', "blue"}


def test_the_tables_say_the_same_and_detections_alone_do(squares: Path, run: Path, tmp_path: Path) -> None:
    part = read_data(squares, "val")
    detector = Detector.load(run / "best.pt", device="cpu")
    results = detect(detector.model, part, device=detector.device)
    (tmp_path / "results.json").write_text(json.dumps(results))
    out = tmp_path / "a"
    found = write_audit(squares, out=out, results=tmp_path / "results.json", split="val", review=3, say=str)
    told = read(out)
    assert told["labels"] == 8 and told["classes"] == ["red", "blue"] and len(told["audit"]) == 16
    with (out / "audit.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(told["items"]) == len(found) and tuple(rows[0]) == COLUMNS
    coco = json.loads((out / "suggestions.json").read_text())
    suggested = {one["id"]: one for one in coco["annotations"]}
    for number, (row, item, one) in enumerate(zip(rows, told["items"], found, strict=True), start=1):
        assert int(row["id"]) == item["id"] == number and float(row["score"]) == item["score"]
        assert item["score"] == pytest.approx(one.score, abs=1e-4) and item["kind"] == one.kind
        record = part.records[one.picture]
        assert item["picture"] == record.path.name
        if one.row is not None and one.given:
            x, y, w, h = item["box"]
            assert (x, y, x + w, y + h) == pytest.approx(record.boxes[one.row].tolist(), abs=0.02)
            assert item["class"] == part.classes[record.labels[one.row]] and item["label"] == one.row + 1
        assert (item["new_box"] is not None) == (one.suggested is not None)
        assert (number in suggested) == (one.suggested is not None and one.likeliest)
        if number in suggested:
            assert suggested[number]["bbox"] == item["new_box"]
            assert suggested[number]["image_id"] == record.image_id
    lists = [[item for item in told["items"] if item["kind"] == kind] for kind in KINDS]
    lists = [sorted(each, key=lambda item: -item["score"]) for each in lists] + [told["items"]]
    wanted = {f"{item['id']:05}.jpg" for each in lists for item in each[:3]}
    assert {path.name for path in (out / "crops").iterdir()} == wanted and len(wanted) > 3
    assert [item["likeliest"] for item in told["items"]] == [one.likeliest for one in found]
    assert str(found[-1].likeliest) == rows[-1]["likeliest"] == "False"


def test_detections_that_name_their_pictures_and_classes_are_judged_by_those(
    squares: Path, run: Path, tmp_path: Path
) -> None:
    part = read_data(squares, "val")
    detector = Detector.load(run / "best.pt", device="cpu")
    results = detect(detector.model, part, device=detector.device)
    names = {int(i): part.records.name(n) for n, i in enumerate(part.records.image_ids)}
    classes = dict(zip(part.category_ids, part.classes, strict=True))
    named = [
        one
        | {"file_name": names[one["image_id"]], "category_name": classes[one["category_id"]]}
        | {"image_id": one["image_id"] + 700, "category_id": 90 + one["category_id"]}
        for one in results
    ]

    def judged(rows: list[dict[str, Any]], out: str) -> list[Any]:
        (tmp_path / "r.json").write_text(json.dumps(rows))
        return write_audit(squares, out=tmp_path / out, results=tmp_path / "r.json", split="val", say=str)

    assert judged(named, "named") == judged(results, "plain")
    for key, value in (("file_name", "other/x.jpg"), ("category_name", "yak")):
        with pytest.raises(DataError, match=rf"r\.json: '{key}' is '{value}', and split val of"):
            judged([named[0] | {key: value}, *named[1:]], "none")
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("by", ["ids", "names"])
def test_the_part_that_detections_are_on_is_judged_and_another_is_named(
    squares: Path, tmp_path: Path, by: str
) -> None:
    shutil.copytree(squares, tmp_path / "set")
    file = tmp_path / "set" / "annotations" / "instances_val.json"
    content = json.loads(file.read_text())
    for one in content["images"]:
        one["id"] += 100
    for one in content["annotations"]:
        one["image_id"] += 100
    file.write_text(json.dumps(content))
    names = {one["id"]: one["file_name"] for one in content["images"]}
    results = [
        {key: one[key] for key in ("image_id", "category_id", "bbox")} | {"score": 0.9}
        for one in content["annotations"]
    ]
    if by == "names":
        results = [one | {"file_name": names[one["image_id"]], "image_id": 1} for one in results]

    def judged(rows: list[dict[str, Any]], **options: Any) -> dict[str, Any]:
        (tmp_path / "r.json").write_text(json.dumps(rows))
        write_audit(tmp_path / "set", out=tmp_path / "a", results=tmp_path / "r.json", say=str, **options)
        return read(tmp_path / "a")

    told = judged(results)
    assert (told["split"], told["pictures"], told["AP50"]) == ("val", 4, pytest.approx(1.0))
    with pytest.raises(DataError, match=r"r\.json: .* and split train of .* another --split"):
        judged(results, split="train")
    key, value = ("image_id", 7) if by == "ids" else ("file_name", "nobody.png")
    words = r"and split train of .* has no picture of that .*\(ghmdet val CHECKPOINT .* --split train writes them\)"
    with pytest.raises(DataError, match=words):
        judged([*results, results[0] | {key: value}])  # no part has all of them
    assert judged([])["split"] == "train"


def test_a_picture_of_another_part_is_not_taken_for_one_of_the_same_bare_name(
    squares: Path, tmp_path: Path
) -> None:
    shutil.copytree(squares, tmp_path / "set")
    truth = {}
    for part in ("train", "val"):
        file = tmp_path / "set" / "annotations" / f"instances_{part}.json"
        truth[part] = json.loads(file.read_text())
        (tmp_path / "set" / "images" / part).mkdir()
        for number, image in enumerate(truth[part]["images"]):
            shutil.copy(
                squares / "images" / image["file_name"], tmp_path / "set" / "images" / part / f"{number}.png"
            )
            image["file_name"] = f"{part}/{number}.png"
        file.write_text(json.dumps(truth[part]))
    results = [
        {"image_id": 1, "category_id": one["category_id"], "bbox": one["bbox"], "score": 0.9}
        | {"file_name": {each["id"]: each["file_name"] for each in each_part["images"]}[one["image_id"]]}
        for each_part in truth.values()
        for one in each_part["annotations"]
    ]
    (tmp_path / "r.json").write_text(json.dumps(results))
    for part in truth:
        said: list[str] = []
        write_audit(
            tmp_path / "set", out=tmp_path / "a", results=tmp_path / "r.json", split=part, say=said.append
        )
        left = len(results) - len(truth[part]["annotations"])
        assert any(f"{left} of {len(results)} detections left out" in line for line in said)
        assert not any(item["kind"] == "missing" for item in read(tmp_path / "a")["items"])


@pytest.mark.parametrize("folder", ["", "elsewhere/"])
def test_detections_on_pictures_of_other_parts_are_left_out(
    squares: Path, tmp_path: Path, folder: str
) -> None:
    """As `predict` on a folder that holds the pictures of all parts writes them."""
    results = [
        {"image_id": 1, "category_id": one["category_id"], "bbox": one["bbox"], "score": 0.9}
        | {"file_name": folder + {each["id"]: each["file_name"] for each in truth["images"]}[one["image_id"]]}
        for truth in (read_data(squares, name).to_coco() for name in ("val", "train"))
        for one in truth["annotations"]
    ]
    (tmp_path / "r.json").write_text(json.dumps(results))
    said: list[str] = []
    counts = {"val": 8, "train": len(results) - 8}
    for split, judged in (("val", "val"), ("train", "train"), (None, "train")):
        said.clear()
        write_audit(squares, out=tmp_path / "a", results=tmp_path / "r.json", split=split, say=said.append)
        told = read(tmp_path / "a")
        assert (told["split"], told["AP50"]) == (judged, pytest.approx(1.0))
        left = f"{len(results) - counts[judged]} of {len(results)} detections left out: other parts of the data set"
        assert sum(left in line for line in said) == 1
    (tmp_path / "r.json").write_text(json.dumps([*results, results[0] | {"file_name": "nobody.png"}]))
    with pytest.raises(DataError, match=r"'file_name' is 'nobody.png', and split val of"):
        write_audit(squares, out=tmp_path / "a", results=tmp_path / "r.json", split="val", say=str)


def test_ids_that_fit_several_parts_are_of_the_one_whose_labels_they_fit(
    squares: Path, tmp_path: Path
) -> None:
    truth = json.loads((squares / "annotations" / "instances_val.json").read_text())["annotations"]
    results = [
        {key: one[key] for key in ("image_id", "category_id", "bbox")} | {"score": 0.9} for one in truth
    ]
    (tmp_path / "r.json").write_text(json.dumps(results))
    write_audit(squares, out=tmp_path / "a", results=tmp_path / "r.json", say=str)
    told = read(tmp_path / "a")
    assert (told["split"], told["AP50"]) == ("val", pytest.approx(1.0))


def test_a_folder_of_something_else_stays_as_it_is(squares: Path, run: Path, tmp_path: Path) -> None:
    (tmp_path / "crops").mkdir()
    (tmp_path / "crops" / "mine.txt").write_text("kept")
    (tmp_path / "runs" / "x-1").mkdir(parents=True)  # as where `ghmdet train` was called
    with pytest.raises(GhmdetError, match="holds something else"):
        write_audit(squares, out=tmp_path, checkpoint=run / "best.pt", say=str)
    assert (tmp_path / "crops" / "mine.txt").read_text() == "kept"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--split", "nothing"], "no split 'nothing'"),
        (["--folds", "40"], "12 pictures are too few for 40 folds"),
        (["--folds", "1"], "--folds 1: give 2 or more"),
        (["--folds", "2", "--results", "x.json"], "give one of --checkpoint, --results and --folds"),
        (["--results", "x.json"], "x.json: no such file"),
        (["--review", "-1"], "--review -1"),
        (["--checkpoint", "x.pt", "--epochs", "3"], "--epochs is for training folds"),
    ],
)
def test_bad_input_is_one_line(
    squares: Path, tmp_path: Path, options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["audit", str(squares), "--out", str(tmp_path / "a"), *options])
    error = capsys.readouterr().err
    assert ended.value.code == 2 and error.count("\n") == 1
    assert re.search(message, error)


def test_a_checkpoint_of_other_classes_is_named(squares: Path, run: Path, tmp_path: Path) -> None:
    shutil.copytree(squares, tmp_path / "set")
    for file in (tmp_path / "set" / "annotations").iterdir():
        file.write_text(file.read_text().replace('"blue"', '"green"'))
    with pytest.raises(DataError, match=r"does not know class 'green' .* it has red, blue"):
        write_audit(tmp_path / "set", out=tmp_path / "a", checkpoint=run / "best.pt", say=str)


def test_what_cannot_be_judged_or_mended_is_refused_with_the_mend(squares: Path, tmp_path: Path) -> None:
    for content in ('{"annotations": []}', "[3]"):
        (tmp_path / "r.json").write_text(content)
        with pytest.raises(DataError, match=r"r\.json: no COCO results: expected a list of detections"):
            write_audit(squares, out=tmp_path / "a", results=tmp_path / "r.json", say=str)
    shapes = [{"label": "red", "points": [[1, 2], [30, 40]], "shape_type": "rectangle"}]
    for name in ("a", "b"):
        shutil.copy(squares / "images" / "train_0.png", tmp_path / f"{name}.png")
        about = {"shapes": shapes, "imagePath": f"{name}.png", "imageWidth": 96, "imageHeight": 72}
        (tmp_path / f"{name}.json").write_text(json.dumps(about))
    (tmp_path / "r.json").write_text("[]")
    (tmp_path / "set").mkdir()
    for file in (*tmp_path.glob("?.png"), tmp_path / "a.json", tmp_path / "b.json"):
        file.rename(tmp_path / "set" / file.name)
    write_audit(tmp_path / "set", out=tmp_path / "out", results=tmp_path / "r.json", say=str)
    decisions = {"audit": read(tmp_path / "out")["audit"], "decisions": []}
    (tmp_path / "out" / "decisions.json").write_text(json.dumps(decisions))
    with pytest.raises(DataError, match="LabelMe is not written: convert it to COCO, VOC or YOLO"):
        apply(tmp_path / "out", out=tmp_path / "mended", say=str)


def test_an_audit_does_not_replace_one_that_somebody_decided_on(squares: Path, tmp_path: Path) -> None:
    shutil.copytree(squares, tmp_path / "set")
    (tmp_path / "r.json").write_text("[]")

    def look() -> None:
        write_audit(tmp_path / "set", out=tmp_path / "a", results=tmp_path / "r.json", say=str)

    look()
    before = (tmp_path / "a" / "audit.json").read_bytes()
    decisions = tmp_path / "a" / "decisions.json"
    decisions.write_text(json.dumps({"audit": read(tmp_path / "a")["audit"], "decisions": []}))
    look()  # the same again
    file = tmp_path / "set" / "annotations" / "instances_train.json"
    truth = json.loads(file.read_text())
    truth["annotations"][0]["bbox"][0] += 3
    file.write_text(json.dumps(truth))
    for content in (decisions.read_text(), "[]", "{", '{"decisions": []}', ""):
        decisions.write_text(content)
        if content:
            with pytest.raises(
                GhmdetError, match=r"decisions\.json: holds decisions on the audit that is there, wh"
            ):
                look()
            assert (
                json.loads((tmp_path / "a" / "audit.json").read_text())["items"]
                == json.loads(before)["items"]
            )
        else:
            decisions.unlink()
            look()
    assert json.loads((tmp_path / "a" / "audit.json").read_text())["items"] != json.loads(before)["items"]


def test_a_fold_that_diverged_or_failed_ends_the_audit_with_its_reason(
    squares: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(run: Fold, *given: Any) -> str:
        run.out.mkdir(parents=True)
        return "no memory left"

    monkeypatch.setattr(engine, "train_run", fails)
    with pytest.raises(GhmdetError, match="runs/fold1: no memory left"):
        write_audit(squares, out=tmp_path / "a", folds=2, config=CONFIG, say=str)
    (tmp_path / "a" / "runs" / "fold1" / "diverged.txt").write_text("the loss is nan in step 3\n")
    with pytest.raises(
        GhmdetError, match="fold1 diverged: the loss is nan in step 3: give a lower --lr and another --out"
    ):
        write_audit(squares, out=tmp_path / "a", folds=2, config=CONFIG, say=str)
