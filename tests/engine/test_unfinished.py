"""`ghmdet predict` loses nothing that is done: to one picture, to a signal, or to a kill."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from ghmdet.data.images import read_picture
from ghmdet.engine import predict as module
from ghmdet.engine.detect import Detector
from ghmdet.engine.predict import predict
from ghmdet.errors import PartlyDone

OPTIONS: dict[str, Any] = {"device": "cpu", "precision": "fp32", "batch_size": 2}


def quiet(line: str) -> None:
    pass


@pytest.fixture
def pictures(squares: Path, tmp_path: Path) -> Path:
    """Six pictures."""
    shutil.copytree(
        squares / "images", tmp_path / "in", ignore=shutil.ignore_patterns("train_[6-9]*", "train_1*")
    )
    for file in list((tmp_path / "in").glob("val_*"))[:3]:
        file.unlink()
    return tmp_path / "in"


def everything(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in out.iterdir()}


def test_a_stopped_predict_goes_on_where_it_was_and_ends_as_one_that_was_not(
    run: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    predict(run / "best.pt", pictures, out=tmp_path / "whole", **OPTIONS, say=quiet)
    asked = list[int]()
    detect = Detector.predict

    def stops(self: Detector, images: Any) -> Any:
        asked.append(len(images))
        if len(asked) == 3:
            raise KeyboardInterrupt
        return detect(self, images)

    monkeypatch.setattr(Detector, "predict", stops)
    count = len(list(pictures.iterdir()))
    out = tmp_path / "stopped"
    with pytest.raises(
        KeyboardInterrupt, match=f"stopped after 4 of {count} pictures; the same command goes on"
    ):
        predict(run / "best.pt", pictures, out=out, **OPTIONS, say=quiet)
    assert not (out / "predictions.json").exists()
    lines = (out / "unfinished.jsonl").read_bytes()
    (out / "unfinished.jsonl").write_bytes(lines + b'{"file_name": "cut')  # as a kill leaves it
    said: list[str] = []
    asked[:] = [0] * 5
    predict(run / "best.pt", pictures, out=out, **OPTIONS, say=said.append)
    assert said[0] == f"4 of {count} pictures are done already"
    assert sum(asked) == count - 4
    assert everything(out) == everything(tmp_path / "whole")


def test_what_no_longer_holds_is_done_again(run: Path, pictures: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"

    def stopped_after_all(**options: Any) -> list[str]:
        """The names that are done in a second predict, after one that wrote all but predictions.json."""
        predict(run / "best.pt", pictures, out=out, **OPTIONS, say=quiet)
        lines = [{"checkpoint": [str((run / "best.pt").resolve()), module.stamp(run / "best.pt")]}]
        lines[0] |= {"options": [0.3, "cpu", "fp32", [1, 2]]}
        files = sorted(pictures.iterdir())
        lines += [{"file_name": file.name, "file": module.stamp(file), "results": []} for file in files]
        (out / "unfinished.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        changed()
        predict(run / "best.pt", pictures, out=out, **{**OPTIONS, **options}, say=quiet)
        return sorted({one["file_name"] for one in json.loads((out / "predictions.json").read_text())})

    names = sorted(file.name for file in pictures.iterdir())
    changed: Any = lambda: None  # noqa: E731
    assert stopped_after_all() == []  # all lines hold
    assert stopped_after_all(threshold=0.4) == names
    changed = lambda: os.utime(pictures / names[1], (1, 1))  # noqa: E731
    assert stopped_after_all() == [names[1]]
    changed = lambda: (out / f"{names[2]}.jpg").unlink()  # noqa: E731
    assert stopped_after_all() == [names[2]]


def test_a_terminated_predict_keeps_what_is_done(run: Path, pictures: Path, tmp_path: Path) -> None:
    for number in range(200):
        shutil.copy(pictures / "train_0.png", pictures / f"more_{number}.png")
    words = [sys.executable, "-m", "ghmdet", "predict", run / "best.pt", pictures, "--out", tmp_path / "out"]
    process = subprocess.Popen([*words, "--device=cpu"], stderr=subprocess.PIPE, text=True)
    while not (tmp_path / "out" / "more_3.png.jpg").exists():
        assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    _, error = process.communicate()
    assert process.returncode == 130
    assert error.startswith("ghmdet: stopped after ") and error.endswith("the same command goes on\n")
    assert error.count("\n") == 1
    done = int(error.split()[3])
    assert 3 <= done == (tmp_path / "out" / "unfinished.jsonl").read_text().count("\n") - 1


def test_one_picture_costs_no_other_its_results(
    run: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = sorted(file.name for file in pictures.iterdir())
    Image.new("RGB", (70000, 3)).save(pictures / "long.png")
    shutil.copy(pictures / names[0], pictures / f"{'n' * 250}.png")
    (pictures / "loop.png").symlink_to("loop.png")
    os.mkfifo(pictures / "pipe.png")
    shutil.copy(pictures / names[0], pictures / "memory.png")
    Image.new("RGB", (33, 44)).save(pictures / "memory.png")
    detect = Detector.predict

    def out_of_memory(self: Detector, images: Any) -> Any:
        if any(image.shape[:2] == (44, 33) for image in images):
            raise RuntimeError("no memory left\nsecond line")
        return detect(self, images)

    monkeypatch.setattr(Detector, "predict", out_of_memory)
    said: list[str] = []
    with pytest.raises(PartlyDone, match=f"3 of {len(names) + 5} pictures could not be read"):
        predict(
            run / "best.pt", pictures, tmp_path / "gone.png", out=tmp_path / "out", **OPTIONS, say=said.append
        )
    found = {one["file_name"] for one in json.loads((tmp_path / "out" / "predictions.json").read_text())}
    assert {f"in/{name}" for name in names} | {f"in/{'n' * 250}.png"} <= found
    failed = json.loads((tmp_path / "out" / "failed.json").read_text())
    assert set(failed) == {"gone.png", "in/loop.png", "in/memory.png"}
    assert failed["in/memory.png"] == (
        f"{pictures / 'memory.png'}: cannot be looked at (RuntimeError: no memory left): leave it out"
    )
    assert set(failed.values()) <= set(said)
    assert len(list((tmp_path / "out").rglob("*.jpg"))) == len(names) + 2
    (pictures / "memory.png").unlink()
    (pictures / "loop.png").unlink()
    predict(run / "best.pt", pictures, out=tmp_path / "out", **OPTIONS, say=quiet)
    assert not (tmp_path / "out" / "failed.json").exists()


def test_a_large_picture_is_shrunk_as_it_is_read_and_its_boxes_are_in_its_own_pixels(
    run: Path, squares: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = Image.open(squares / "images" / "val_0.png").convert("RGB")
    (tmp_path / "in").mkdir()
    small.resize((192, 144), Image.Resampling.NEAREST).save(tmp_path / "in" / "a.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    deep = Image.fromarray(np.zeros((40, 1000), np.uint16))
    for mode in ("RGB", "L", "P", "I;16"):
        wide = deep if mode == "I;16" else Image.new(mode, (1000, 40))
        wide.save(tmp_path / f"{mode[0]}.png", exif=exif)
        picture, size = read_picture(tmp_path / f"{mode[0]}.png", 100)
        assert (tuple(picture.shape), size) == ((3, 100, 4), (1000, 40))
    monkeypatch.setattr(module, "MOST_SIDE", 96)
    predict(run / "best.pt", tmp_path / "in", out=tmp_path / "out", **OPTIONS, say=quiet)
    assert Image.open(tmp_path / "out" / "a.png.jpg").size == (96, 72)
    found = json.loads((tmp_path / "out" / "predictions.json").read_text())
    expected = Detector.load(run / "best.pt", device="cpu", precision="fp32").predict(small)[0]
    assert len(found) == len(expected["scores"]) > 0
    for one, (x1, y1, x2, y2), score in zip(
        found, (2 * expected["boxes"]).tolist(), expected["scores"].tolist(), strict=True
    ):
        assert one["bbox"] == pytest.approx([x1, y1, x2 - x1, y2 - y1], abs=0.01)
        assert one["score"] == pytest.approx(score, abs=1e-4)
    assert torch.equal(
        read_picture(tmp_path / "in" / "a.png", 192)[0], read_picture(tmp_path / "in" / "a.png")[0]
    )
