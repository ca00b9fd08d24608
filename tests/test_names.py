"""Names that are no UTF-8: what a disk holds can be trained on, reported, listed and read back."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from ghmdet.data import check_data, read_data
from ghmdet.data.annotations import load_json
from ghmdet.data.make import spoil

BAD = os.fsdecode(b"caf\xe9")


def ghmdet(*words: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "ghmdet", *map(str, words)], capture_output=True, text=True)


def test_a_set_of_names_that_are_no_utf8_goes_through_every_command(squares: Path, tmp_path: Path) -> None:
    home = tmp_path / BAD
    (home / "annotations").mkdir(parents=True)
    for part in ("train", "val"):
        truth = json.loads((squares / "annotations" / f"instances_{part}.json").read_text())
        for image in truth["images"]:
            name = f"{BAD} {image['file_name']}"
            (home / name).write_bytes((squares / "images" / image["file_name"]).read_bytes())
            image["file_name"] = name
        (home / "annotations" / f"instances_{part}.json").write_text(json.dumps(truth))
    assert not [one for one in check_data(home) if one.severity == "error"]
    run, device = tmp_path / f"run{BAD}", "--device=cpu"
    words = ["--size=96", "--batch-size=4", device, "--weights=none", "--ema=.9", "--lr=0.003", "--epochs=12"]
    for command in (
        ("train", home, "--out", run, *words, "--val-every=12"),
        ("train", home, "--out", run, *words, "--val-every=12", "--resume", "--no-report"),
        ("val", run / "best.pt", home, device),
        ("predict", run / "best.pt", home, "--out", tmp_path / "out", device),
        ("spectrum", run / "best.pt", home, "--out", tmp_path / "spectrum", device),
    ):
        done = ghmdet(*command)
        assert done.returncode == 0, (command, done.stderr)
    assert r"caf\udce9 val_" in (run / "report.html").read_text(encoding="utf-8")
    for file in (run / "val" / "predictions.json", tmp_path / "out" / "predictions.json"):
        text = file.read_text(encoding="utf-8")
        assert r'"file_name": "caf\udce9 ' in text
        assert {one["file_name"][:4] for one in load_json(file)} == {BAD}
        assert all((home / one["file_name"]).exists() for one in load_json(file))
    spoil(home, tmp_path / "spoiled", share=0.3)
    again = read_data(tmp_path / "spoiled").records
    assert len(again) == 12 and again[0].path.exists() and BAD in again[0].path.name


def test_half_characters_that_no_file_can_have_are_question_marks(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(r'["\ud800", "\udcff", "\udc7f\udfff", "\ud83d\ude00"]')
    assert load_json(tmp_path / "a.json") == ["?", "\udcff", "??", "😀"]
