from __future__ import annotations

import errno
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from report_cases import make_detector_run

from ghmdet.data import read_data
from ghmdet.engine.checkpoint import save_checkpoint
from ghmdet.engine.evaluate import validate
from ghmdet.errors import CheckpointError, DataError, GhmdetError
from ghmdet.report import inspection
from ghmdet.report.inspection import inspect_run
from ghmdet.report.page import write_report
from ghmdet.report.summary import words
from ghmdet.spectrum import SpectrumCounts

KEYS = {
    "checkpoint", "data", "split", "made_of", "pictures", "classes", "metrics", "curves", "confusion", "errors",
    "reliability", "in_words", "summary", "hardest", "hardest_total", "unlabelled", "made",
    "sizes", "unseen", "advice",
}  # fmt: skip


def quiet(run: Path, **options: Any) -> dict[str, Any]:
    made = inspect_run(run, say=lambda line: None, **options).findings
    text = (run / "inspection" / "findings.json").read_text()
    found: dict[str, Any] = json.loads(text, parse_constant=pytest.fail)
    assert found == json.loads(json.dumps(made, default=str))
    assert found.keys() == KEYS
    return found


@pytest.fixture
def data(squares: Path, tmp_path: Path) -> Path:
    """A copy of the squares, to be changed."""
    return shutil.copytree(squares, tmp_path / "squares")


def change(data: Path, **lists: Any) -> None:
    file = data / "annotations" / "instances_val.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | lists))


def boxes_of(data: Path) -> list[dict[str, Any]]:
    boxes: list[dict[str, Any]] = json.loads((data / "annotations" / "instances_val.json").read_text())[
        "annotations"
    ]
    return boxes  # fmt: skip


def test_a_sure_detector_of_nothing_is_told_with_crops(squares: Path, tmp_path: Path) -> None:
    run = make_detector_run(tmp_path / "run", squares, bias=3.0)
    found = quiet(run)
    out = run / "inspection"
    assert found["pictures"] == 4 and found["classes"] == ["red", "blue"] and found["split"] == "val"
    assert SpectrumCounts.load(out / "spectrum.npz").pictures.tolist() == [4]
    assert found["confusion"]["labels"] == ["red", "blue", "background"]
    assert found["hardest_total"]["no label here"] > 100 and found["hardest_total"]["not seen"] == 0
    hardest = found["hardest"]
    assert len(hardest) == 96 and [one["g"] for one in hardest] == sorted(
        (o["g"] for o in hardest), reverse=True
    )
    assert sorted(path.name for path in (out / "crops").iterdir()) == [f"{i:03}.jpg" for i in range(96)]
    for one in hardest:
        assert (squares / "images" / one["file"]).is_file() and one["crop"].startswith("crops/")
        assert one["g"] == one["score"] >= 0.5 and one["class"] in ("red", "blue")
        assert (one["other"] is None) == (one["kind"] != "other label here")
    with Image.open(out / "crops" / "000.jpg") as crop:
        assert crop.format == "JPEG" and max(crop.size) == 160
    words = " ".join(found["in_words"])
    assert f"where nothing is labelled: {found['hardest_total']['no label here']:,}. Look for" in words
    assert found["in_words"][0].startswith("4 pictures give")

    (run / "best.pt").rename(tmp_path / "kept.pt")
    make_detector_run(run, squares, bias=-20.0)
    assert len(quiet(run)["hardest"]) == len(list((out / "crops").iterdir())) == 8


def test_a_run_that_may_not_be_written_is_reported_from_what_it_keeps(
    squares: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_detector_run(tmp_path / "run", squares, bias=-1.0)
    kept = quiet(run)

    def closed(folder: Path) -> None:
        raise OSError(errno.EROFS, "Read-only file system", str(folder))

    monkeypatch.setattr(inspection, "hold", closed)
    monkeypatch.setattr(inspection, "write_json", closed)
    assert quiet(run) == kept
    (run / "inspection" / "findings.json").unlink()
    write_report([run], out=tmp_path / "page.html", say=lambda line: None)
    assert "cannot be written, and holds no findings" in (tmp_path / "page.html").read_text(encoding="utf-8")


def test_the_figures_are_those_of_val(squares: Path, tmp_path: Path) -> None:
    run = make_detector_run(tmp_path / "run", squares, bias=-1.0)
    found = quiet(run)
    metrics = validate(
        run / "best.pt", squares, out=tmp_path / "val", precision="fp32", say=lambda line: None
    )
    assert found["metrics"]["detections"] == metrics.detections > 0
    assert found["metrics"]["AP50"] == pytest.approx(metrics.AP50, abs=1e-6)
    results = json.loads((run / "inspection" / "predictions.json").read_text())
    assert len(results) == metrics.detections


def test_no_detection_leaves_every_object_unseen_and_crops_show_them_upright(
    data: Path, tmp_path: Path
) -> None:
    turned = data / "images" / "val_0.jpg"
    with Image.open(data / "images" / "val_0.png") as upright:
        exif = Image.Exif()
        exif[0x0112] = 6
        upright.transpose(Image.Transpose.ROTATE_90).save(turned, exif=exif, quality=95)
    file = data / "annotations" / "instances_val.json"
    file.write_text(file.read_text().replace("val_0.png", "val_0.jpg"))
    run = make_detector_run(tmp_path / "run", data, bias=-20.0)
    found = quiet(run)
    assert found["metrics"]["detections"] == 0 and found["reliability"]["share"] == [None] * 10
    assert found["hardest_total"] == {"no label here": 0, "other label here": 0, "not seen": 8}
    assert (
        "Labelled objects that the detector does not see (their class scores at most .5 there): 8 of 8."
        in found["in_words"]
    )
    truth = {tuple(one["bbox"]): one["category_id"] for one in boxes_of(data)}
    for one in found["hardest"]:
        assert one["kind"] == "not seen" and one["g"] == pytest.approx(1 - one["score"], abs=1e-4)
        assert truth[tuple(one["box"])] == ["red", "blue"].index(one["class"]) + 1
    upright_reds = [o for o in found["hardest"] if o["file"] == "val_0.jpg" and o["class"] == "blue"]
    with Image.open(run / "inspection" / upright_reds[0]["crop"]) as crop:
        box = upright_reds[0]["box"]  # the window of 92 pixels is cut to the picture's 72 rows
        left = min(max(round(box[0] + 14 - 46), 0), 96 - 92)
        zoom = 160 / 92
        middle = np.asarray(crop)[round((box[1] + 14) * zoom), round((box[0] + 14 - left) * zoom)]
    assert middle[2] > 180 and middle[0] < 80


def test_a_class_without_boxes_and_one_picture(data: Path, tmp_path: Path) -> None:
    first = boxes_of(data)[0]
    images = [{"id": first["image_id"], "file_name": "val_0.png", "width": 96, "height": 72}]
    change(data, annotations=[first], images=images)
    found = quiet(make_detector_run(tmp_path / "run", data, bias=3.0))
    assert found["pictures"] == 1 and found["curves"]["blue"] is None
    assert len(found["curves"]["red"]["precision"]) == 101
    assert found["metrics"]["per_class"]["blue"]["AP"] is None
    assert len(found["hardest"]) == 24
    assert {one["class"] for one in found["hardest"]} == {"red", "blue"}


def test_a_part_without_objects(data: Path, tmp_path: Path) -> None:
    run = make_detector_run(tmp_path / "run", data, bias=3.0)
    crowds = [one | {"iscrowd": 1, "bbox": [0, 0, 96, 72]} for one in boxes_of(data)]
    for nothing in (crowds, []):
        change(data, annotations=nothing)
        with pytest.raises(DataError, match="split val has 4 images and no usable box"):
            quiet(run)
    speck = crowds[0] | {"iscrowd": 0, "bbox": [3, 3, 2, 2]}
    change(data, annotations=[speck, *crowds])
    found = quiet(run)
    assert found["curves"]["blue"] is None and found["metrics"]["AP"] == 0
    assert found["hardest"] == [] and set(found["hardest_total"].values()) == {0}  # all else lies in crowds
    assert "where nothing is labelled: 0." in " ".join(found["in_words"])


def test_what_is_missing_or_broken_is_named(data: Path, tmp_path: Path) -> None:
    run = make_detector_run(tmp_path / "run", data, bias=0.0)
    moved = data.rename(tmp_path / "moved")
    with pytest.raises(
        GhmdetError, match=r"run\.json: the data it names, .*squares, is not there: give --data"
    ):
        quiet(run)
    assert quiet(run, data=moved)["data"] == str(moved)
    assert quiet(run, data=moved, split="train")["pictures"] == 12
    assert read_data(moved, "train").classes == ("red", "blue")

    state = torch.load(run / "best.pt", weights_only=True)
    next(value for name, value in state["model"].items() if "head" in name and name.endswith("weight")).fill_(
        torch.nan
    )
    save_checkpoint(run / "best.pt", state)
    with pytest.raises(CheckpointError, match=r"run/best\.pt: .*holds values that are no finite numbers"):
        quiet(run, data=moved)
    (run / "best.pt").unlink()
    with pytest.raises(CheckpointError, match=r"best\.pt"):
        quiet(run, data=moved)
    for text in (None, "{", "[]", "{}"):
        (run / "run.json").unlink(missing_ok=True)
        if text:
            (run / "run.json").write_text(text)
        with pytest.raises(
            GhmdetError,
            match=r"not a run|run\.json: (not|invalid JSON|does not say what the run was trained on)",
        ):
            quiet(run)


def test_words_fit_the_counts() -> None:
    totals = {"no label here": 1038, "other label here": 0, "not seen": 0}
    none = {"AP50": None, "worst": {"kind": "missed", "AP50_lost": 0.12}}
    assert words("mistakes", totals=totals, objects=1200, **none) == [
        "Detections that score .5 or more where nothing is labelled: 1,038. Look for missing labels.",
        "Detections that score .5 or more on objects that are labelled as another class: 0.",
        "Labelled objects that the detector does not see (their class scores at most .5 there): 0 of 1,200.",
    ]
    totals = {"no label here": 0, "other label here": 2, "not seen": 3}
    nothing, other, unseen = words("mistakes", totals=totals, objects=9, **none)
    assert nothing.endswith("where nothing is labelled: 0.")
    assert other.endswith("another class: 2. The detector takes one for the other, or the label is wrong.")
    assert unseen.endswith("3 of 9.")
    assert len(words("mistakes", totals=totals, objects=0, **none)) == 2
    said = words(
        "mistakes", totals=totals, objects=9, AP50=0.7, worst={"kind": "badly located", "AP50_lost": 0.12}
    )
    assert said[3:] == [
        "AP50 is 70 of 100 points. The costliest kind of error is 'badly located': 12.0 points."
    ]
    assert (
        len(words("mistakes", totals=totals, objects=9, AP50=0.7, worst={"kind": "x", "AP50_lost": 0.0})) == 3
    )
