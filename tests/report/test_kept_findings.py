"""What is kept beside a run is shown only for what it was made of, and damaged files are named, not stumbled over."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from report_cases import epochs, make_detector_run, make_run

from ghmdet.data import read_data
from ghmdet.data.fingerprint import fingerprint, labelled
from ghmdet.engine.checkpoint import load_checkpoint, save_checkpoint
from ghmdet.engine.evaluate import validate
from ghmdet.errors import CheckpointError, GhmdetError, PartlyDone
from ghmdet.report.inspection import inspect_run
from ghmdet.report.page import write_report
from ghmdet.report.run_files import read_curves
from ghmdet.spectrum import SpectrumCounts


class Run:
    """A run that is inspected and reported again and again."""

    def __init__(self, path: Path) -> None:
        self.path, self.inspected = path, False

    def look(self, **options: Any) -> dict[str, Any]:
        """Its findings, and whether they were made anew: then it is said what pictures there are."""
        lines: list[str] = []
        findings = inspect_run(self.path, say=lines.append, **options).findings
        self.inspected = any("images" in line for line in lines)
        assert json.dumps(findings, default=str) == json.dumps(json.loads(self.file.read_text()))
        return findings

    def page(self, **options: Any) -> str:
        return write_report([self.path], say=lambda line: None, **options).read_text()

    @property
    def file(self) -> Path:
        return self.path / "inspection" / "findings.json"


@pytest.fixture
def data(squares: Path, tmp_path: Path) -> Path:
    return shutil.copytree(squares, tmp_path / "squares")


@pytest.fixture
def run(data: Path, tmp_path: Path) -> Run:
    """A run that was inspected once."""
    run = Run(make_detector_run(tmp_path / "run", data, bias=-1.0))
    assert run.look()["pictures"] == 4 and run.inspected
    return run


def test_nothing_is_inspected_twice(run: Run, data: Path) -> None:
    os.utime(run.path / "best.pt", (2e9, 2e9))  # as a copy of the folder may have it
    for options in ({}, {"data": data}, {"split": "val"}):
        assert run.look(**options)["pictures"] == 4
        assert not run.inspected


def test_findings_on_other_data_are_not_shown_as_the_runs_own(run: Run, data: Path, tmp_path: Path) -> None:
    other = shutil.copytree(data, tmp_path / "other")
    change(other, lambda boxes: boxes[:1])
    assert f"on ‘val’ of {other}" in run.page(data=other) and run.look(data=other)["metrics"]["boxes"] == 1
    shown = run.page()
    assert run.look()["metrics"]["boxes"] == 8
    assert "on ‘val’<" in shown and str(other) not in shown
    assert run.look(split="train")["pictures"] == 12
    assert run.look()["pictures"] == 4


def test_a_page_on_labels_that_were_learnt_says_so_and_its_own_validation_part_does_not(
    run: Run, data: Path
) -> None:
    learnt = "12 of these 12 pictures were trained on, with these very labels"
    state = {
        **load_checkpoint(run.path / "best.pt"),
        "training": {"learnt": labelled(read_data(data, "train"))},
    }
    save_checkpoint(run.path / "last.pt", state)
    assert learnt not in run.page()
    file = data / "annotations" / "instances_train.json"
    for options in ({"split": "train"}, {"data": file, "split": "train"}, {"split": "train"}):
        assert learnt in run.page(**options)
    assert learnt not in run.page()


def test_labels_that_changed_since_the_run_are_named_on_its_page_and_by_val(
    run: Run, data: Path, tmp_path: Path
) -> None:
    state = load_checkpoint(run.path / "best.pt")
    classes = tuple(state["classes"])
    training = {
        "arguments": {"data": str(data)},
        "fingerprints": {
            part: fingerprint(read_data(data, part, classes=classes)) for part in ("train", "val")
        },
    }
    save_checkpoint(run.path / "last.pt", {**state, "training": training})

    def said(place: Path) -> list[str]:
        lines: list[str] = []
        validate(run.path / "best.pt", place, out=tmp_path / "val", say=lines.append)
        return [line for line in lines if "has changed" in line]

    assert "has changed" not in run.page() and not said(data)
    elsewhere = shutil.copytree(data, tmp_path / "elsewhere")
    change(data, lambda boxes: [boxes[0] | {"bbox": [1, 1, 20, 20]}, *boxes[1:]])
    what = "pictures of val: 1 with other labels"
    assert what in run.page() and what in said(data)[0]
    lines: list[str] = []
    write_report([run.path], say=lines.append)
    assert any(what in line for line in lines)
    (tmp_path / "link").symlink_to(data)
    made = json.loads((run.path / "run.json").read_text())
    for spelt in (tmp_path / "link", data / ".." / data.name):  # as `train ../data` and a link are kept
        made["arguments"]["data"] = str(spelt)
        (run.path / "run.json").write_text(json.dumps(made))
        assert what in said(spelt)[0] and what in said(data)[0] and what in run.page(data=spelt)
    change(elsewhere, lambda boxes: boxes[1:])
    other = data / "annotations" / "instances_mini_val.json"  # another list in the same folder
    other.write_text((elsewhere / "annotations" / "instances_val.json").read_text())
    told = said(other)
    other.unlink()
    assert not told and not said(elsewhere)
    assert "has changed" not in run.page(data=elsewhere)  # it read no such data

    file = data / "annotations" / "instances_val.json"
    truth = json.loads(file.read_text())
    for one in truth["categories"]:  # which numbers the classes otherwise, but for a detector
        one["id"] = 3 - one["id"]
    for one in truth["annotations"]:
        one["category_id"] = 3 - one["category_id"]
    file.write_text(json.dumps(truth))
    assert what in run.page()


def test_labels_that_were_mended_are_looked_at_anew(run: Run, data: Path) -> None:
    change(data, lambda boxes: boxes[:-1])
    assert run.look()["metrics"]["boxes"] == 7
    change(data, lambda boxes: [boxes[0] | {"bbox": [1, 1, 20, 20]}, *boxes[1:]])
    run.look()
    assert run.inspected


def test_pictures_that_were_replaced_are_looked_at_anew(run: Run, data: Path) -> None:
    file = next((data / "images").glob("val_*"))
    Image.new("RGB", Image.open(file).size).save(file)
    run.look()
    assert run.inspected


def test_a_checkpoint_that_was_replaced_is_looked_at_whatever_its_date(
    run: Run, data: Path, tmp_path: Path
) -> None:
    shutil.move(make_detector_run(tmp_path / "blind", data, bias=-20.0) / "best.pt", run.path / "best.pt")
    os.utime(run.path / "best.pt", (1e9, 1e9))
    assert run.look()["metrics"]["detections"] == 0


def test_kept_findings_that_are_damaged_are_made_anew(run: Run) -> None:
    whole = json.loads(run.file.read_text())
    of_another_format = whole | {"made_of": whole["made_of"] | {"format": 1}}
    for text in (
        "",
        "{",
        "[]",
        "{}",
        '{"data": "x", "split": "val"}',
        "\0\0",
        '{"made_of": []}',
        of_another_format,
    ):
        run.file.write_text(text if isinstance(text, str) else json.dumps(text))
        assert run.look()["pictures"] == 4 and run.inspected, text


@pytest.mark.parametrize("content", [None, b"", b"not a spectrum"])
def test_kept_counts_that_are_damaged_are_made_anew(run: Run, content: bytes | None) -> None:
    counts = run.file.with_name("spectrum.npz")
    counts.unlink()
    if content is not None:
        counts.write_bytes(content)
    run.look()
    assert run.inspected and SpectrumCounts.load(counts).pictures.tolist() == [4]


def test_an_older_versions_findings_are_made_anew_and_not_shown(run: Run, data: Path, tmp_path: Path) -> None:
    old = json.loads(run.file.read_text()) | {"in_words": ["An old sentence."]}
    del old["made_of"]
    run.file.write_text(json.dumps(old))
    assert "made_of" in run.look() and run.inspected

    run.file.write_text(json.dumps(old))
    data.rename(tmp_path / "gone")
    page = run.page()
    assert "An old sentence." not in page and "could not be inspected" in page


def test_where_the_data_has_gone_only_what_was_made_of_it_is_shown(
    run: Run, data: Path, tmp_path: Path
) -> None:
    gone = data.rename(tmp_path / "gone")
    page = run.page()
    assert "4 pictures give" in page and "is no longer there" in page
    run.look(data=gone)  # where it is now
    assert run.inspected
    page = run.page()
    assert "pictures give" not in page and "give --data" in page
    with pytest.raises(GhmdetError):
        run.page(data=data)


def test_a_checkpoint_that_is_broken_is_said_on_the_page_unless_it_was_asked_for(run: Run) -> None:
    (run.path / "best.pt").write_bytes(b"cut")
    with pytest.raises(
        PartlyDone, match=r"report\.html lacks what best\.pt does: .*best\.pt: not a checkpoint"
    ):
        run.page()
    page = (run.path / "report.html").read_text(encoding="utf-8")
    assert "pictures give" not in page and "could not be inspected" in page and "best.pt" in page
    with pytest.raises(CheckpointError, match=r"best\.pt"):
        run.page(split="train")


@pytest.mark.parametrize("device", ["tpu", "cuda:9"])
def test_a_device_that_does_not_exist_is_an_error_whatever_is_kept(run: Run, device: str) -> None:
    kept = run.file.read_text()
    for there in (True, False):
        for look in (run.look, run.page):
            with pytest.raises(GhmdetError, match=f"unknown device '{device}'"):
                look(device=device)
        assert run.file.exists() == there and not (run.path / "report.html").exists()
        run.file.unlink(missing_ok=True)
    run.file.write_text(kept)
    (run.path / "best.pt").unlink()
    with pytest.raises(GhmdetError, match="unknown device"):
        run.page(device=device)


def test_a_pass_that_was_interrupted_leaves_nothing_that_is_shown(
    run: Run, data: Path, tmp_path: Path
) -> None:
    run.file.unlink()
    data.rename(tmp_path / "gone")
    page = run.page()
    assert "could not be inspected" in page and "Where the gradient comes from" not in page


def change(data: Path, of: Callable[[list[dict[str, Any]]], list[dict[str, Any]]]) -> None:
    file = data / "annotations" / "instances_val.json"
    truth = json.loads(file.read_text())
    file.write_text(json.dumps(truth | {"annotations": of(truth["annotations"])}))


# ---- damaged files of the run itself


def damaged(tmp_path: Path, name: str, content: bytes) -> str:
    """The page of a run, one of whose files was replaced; what is wrong with it is said too."""
    run = make_run(tmp_path / "run", logged=False)
    (run / name).write_bytes(content)
    lines: list[str] = []
    html = write_report([run], say=lines.append).read_text()
    said = [line for line in lines if name in line]
    assert len(said) == 1 and "\n" not in said[0]
    assert name in html
    return html


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe\0", b'"text"'])
def test_damaged_metrics_are_named(tmp_path: Path, content: bytes) -> None:
    said = "not a JSON object|invalid JSON|empty file|not UTF-16 text"
    assert re.search(rf"metrics\.json: ({said})", damaged(tmp_path, "metrics.json", content))


@pytest.mark.parametrize(
    "content", [b"{}", b'{"a": 1}', b'{"AP": "x"}', b'{"AP": 0.1, "AP50": 0.2, "AP75": 0.1}']
)
def test_metrics_of_something_else_are_named(tmp_path: Path, content: bytes) -> None:
    assert "metrics.json: not the scores of a validation" in damaged(tmp_path, "metrics.json", content)


def test_figures_that_are_no_numbers_are_dashes(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", logged=False)
    (run / "metrics.json").write_text(
        '{"AP": "x", "AP50": 0.5, "images": [], "per_class": {"a": {"AP": 0.25}, "b": 3}}'
    )
    html = write_report([run], say=lambda line: None).read_text()
    assert "<strong>–</strong>" in html and "<strong>.500</strong>" in html and ">.250</span>" in html


def saved(**arrays: Any) -> bytes:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    return buffer.getvalue()


@pytest.mark.parametrize(
    "content",
    [b"", b"PK", b"something else", saved(a=np.zeros(3)), saved(classes=np.array("a"), pictures=np.array(1))],
)
def test_counts_that_are_something_else_are_named(tmp_path: Path, content: bytes) -> None:
    assert "spectrum.npz: not a spectrum" in damaged(tmp_path, "spectrum.npz", content)


def test_counts_that_are_damaged_anywhere_are_named(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", logged=False, training=epochs(2))
    file = run / "spectrum.npz"
    whole, random = file.read_bytes(), np.random.default_rng(0)
    for size in random.integers(0, len(whole), 5):
        file.write_bytes(whole[:size])
        lines: list[str] = []
        write_report([run], say=lines.append)
        assert any("spectrum.npz: not a spectrum" in line for line in lines)


@pytest.mark.parametrize("name", ["log.csv", "metrics.csv"])
def test_a_table_that_is_cut_anywhere_is_read_up_to_there(tmp_path: Path, name: str) -> None:
    run = make_run(tmp_path / "run")
    whole = (run / name).read_bytes()
    before = read_curves(run, [])[:2]
    for size in range(0, len(whole), 5):
        (run / name).write_bytes(whole[:size])
        for curves, wanted in zip(read_curves(run, []), before, strict=False):
            for key, (_, values) in curves.items():
                assert values[:-1] == wanted[key][1][: len(values) - 1]


@pytest.mark.parametrize(
    "row", [b"3,1,x,1,1", b"3,1", b"\0\0\0\0", b"\xff\xfe,1,1,1,1", b"3,1,1,1,1,1,1", b"1e-,1,1,1,1"]
)
def test_rows_that_are_damaged_are_left_out_and_counted(tmp_path: Path, row: bytes) -> None:
    rows = [b"step,epoch,loss,classification,bbox_regression", b"1,1,.5,.2,.3", row, b"2,1,.4,.2,.2", b""]
    assert "log.csv: 1 damaged row is left out" in damaged(tmp_path, "log.csv", b"\n".join(rows))


@pytest.mark.parametrize(
    "text",
    [
        '{"arguments": []}',
        '{"arguments": {"data": 3}, "machine": null, "git": {"commit": 5}, "started": 3}',
        "{}",
    ],
)
def test_a_run_that_says_little_of_itself_has_a_page(tmp_path: Path, text: str) -> None:
    run = make_run(tmp_path / "run", training=epochs(1))
    (run / "run.json").write_text(text)
    assert "pulled hardest" in write_report([run], say=lambda line: None).read_text()
