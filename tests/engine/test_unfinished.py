"""`ghmdet predict` loses nothing that is done: to one picture, to a signal, or to a kill."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from engine_cases import interrupted_at
from ghmdet.engine import predict as module
from ghmdet.engine import unfinished
from ghmdet.engine.detect import Detector
from ghmdet.engine.predict import predict
from ghmdet.errors import PartlyDone
from ghmdet.pictures import read_pixels

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
    asked = interrupted_at(3, monkeypatch)
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


class Stopped:
    """A predict that is stopped after its last picture, and what is done again in the next one."""

    def __init__(self, run: Path, pictures: Path, out: Path) -> None:
        self.checkpoint, self.pictures, self.out = run / "best.pt", pictures, out
        self.names = sorted(file.name for file in pictures.iterdir())

    def then(
        self, changed: Callable[[], object], before: Callable[[], object] = lambda: None, **options: Any
    ) -> list[str]:
        """The names that are looked at after `changed`. `before` is called after a picture is read, each time."""

        def ends(found: Iterator[Any]) -> Iterator[Any]:
            for one in found:
                before()
                yield one
            raise KeyboardInterrupt

        look, seen = module.look, list[str]()
        with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(module, "look", lambda *given: ends(look(*given)))
            predict(self.checkpoint, self.pictures, out=self.out, **OPTIONS, say=quiet)
        assert len((self.out / "unfinished.jsonl").read_text().splitlines()) == len(self.names) + 1
        changed()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(module, "look", lambda *given: (seen.extend(given[1]), look(*given))[1])
            predict(self.checkpoint, self.pictures, out=self.out, **OPTIONS | options, say=quiet)
        whole = self.out.with_name("whole")
        predict(self.checkpoint, self.pictures, out=whole, **OPTIONS | options, say=quiet)
        assert everything(self.out) == everything(whole)
        shutil.rmtree(self.out)
        return seen


@pytest.fixture
def stopped(run: Path, pictures: Path, tmp_path: Path) -> Stopped:
    return Stopped(run, pictures, tmp_path / "out")


def test_what_no_longer_holds_is_done_again(stopped: Stopped) -> None:
    names, pictures = stopped.names, stopped.pictures
    assert stopped.then(lambda: None) == []  # all lines hold
    assert stopped.then(lambda: None, threshold=0.4) == names
    assert stopped.then(lambda: os.utime(pictures / names[1], (1, 1))) == [names[1]]
    assert stopped.then(lambda: (stopped.out / f"{names[2]}.jpg").unlink()) == [names[2]]


def test_a_picture_that_is_replaced_after_it_was_read_is_looked_at_again(stopped: Stopped) -> None:
    names, pictures = stopped.names, stopped.pictures
    replace = [lambda: shutil.copyfile(pictures / names[0], pictures / names[1])]
    assert stopped.then(lambda: None, before=lambda: replace and replace.pop()()) == [names[1]]


def test_a_checkpoint_that_is_replaced_after_it_was_read_makes_all_anew(
    stopped: Stopped, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stopped.checkpoint = Path(shutil.copy(stopped.checkpoint, tmp_path))
    load = Detector.load

    def replaced(path: Path, **options: Any) -> Detector:
        detector = load(path, **options)
        if not stopped.out.exists():
            path.write_bytes(path.read_bytes())
        return detector

    monkeypatch.setattr(Detector, "load", replaced)
    assert stopped.then(lambda: None) == stopped.names


def test_pictures_of_one_size_and_time_that_change_places_are_looked_at_again(stopped: Stopped) -> None:
    one, two = (stopped.pictures / name for name in stopped.names[:2])
    for file in (one, two):  # what follows a PNG's end is not read
        file.write_bytes(file.read_bytes().ljust(99999, b"\0"))

    def swap() -> None:
        one.rename(stopped.pictures / "between")
        two.rename(one)
        (stopped.pictures / "between").rename(two)

    def overwrite() -> None:
        first = one.read_bytes()
        one.write_bytes(two.read_bytes())
        two.write_bytes(first)
        for file in (one, two):
            os.utime(file, (1, 1))

    for change in (swap, overwrite):
        for file in (one, two):
            os.utime(file, (1, 1))
        assert stopped.then(change) == stopped.names[:2]


@pytest.mark.parametrize("damage", ["cut", "written over"])
def test_a_drawing_that_was_damaged_is_drawn_again(damage: str, stopped: Stopped) -> None:
    drawing = stopped.out / f"{stopped.names[0]}.jpg"

    def change() -> None:
        content = bytearray(drawing.read_bytes())
        content[700:] = b"" if damage == "cut" else bytes(len(content) - 700)
        drawing.write_bytes(content)

    assert stopped.then(change) == stopped.names[:1]


@pytest.mark.parametrize(
    "damage",
    [
        (b'"results"', b'"nothing"'),
        (b'"results": [', b'"results": 3, "more": ['),
        (b'"bbox"', b'"bbax"'),
        (b'"category_id": ', b'"category_id": 7'),
        (b'"score": 0.', b'"score": 1.'),
        (b'{"file_name"', b'["file_name"'),
        (b'{"file_name"', b"[" * 99999 + b'{"file_name"'),
        (b'{"file_name"', b'\xff{"file_name"'),
    ],
)
def test_a_line_that_is_not_as_it_was_written_does_not_count(
    damage: tuple[bytes, bytes], stopped: Stopped
) -> None:
    def change() -> None:
        head, first, *rest = (stopped.out / "unfinished.jsonl").read_bytes().splitlines(keepends=True)
        assert damage[0] in first
        content = b"".join([head, first.replace(*damage), *rest])
        (stopped.out / "unfinished.jsonl").write_bytes(content)

    assert stopped.then(change) == stopped.names[:1]


def test_a_picture_is_said_to_be_done_when_its_results_are_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(file: Path) -> None:
        raise KeyboardInterrupt

    files = {"a.jpg": tmp_path / "a.jpg"}
    with (
        pytest.raises(KeyboardInterrupt, match="stopped after 0 of 1 picture;"),
        unfinished.Unfinished(tmp_path / "kept", {}, files, files) as kept,
    ):
        monkeypatch.setattr(unfinished, "stamp", stop)
        kept.add("a.jpg", None, [])


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

    def out_of_memory(self: Detector, images: Any, **options: Any) -> Any:
        if any(image.shape[:2] == (44, 33) for image in images):
            raise RuntimeError("no memory left\nsecond line")
        return detect(self, images, **options)

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
        picture, size = read_pixels(tmp_path / f"{mode[0]}.png", 100)
        assert (tuple(picture.shape), size) == ((100, 4, 3), (1000, 40))
    monkeypatch.setattr(module, "MOST_SIDE", 96)
    predict(run / "best.pt", tmp_path / "in", out=tmp_path / "out", **OPTIONS, say=quiet)
    assert Image.open(tmp_path / "out" / "a.png.jpg").size == (96, 72)
    found = json.loads((tmp_path / "out" / "predictions.json").read_text())
    expected = Detector.load(run / "best.pt", device="cpu", precision="fp32")
    expected = expected.predict(small, threshold=0)[0]
    assert len(found) == len(expected["scores"]) > 0
    for one, (x1, y1, x2, y2), score in zip(
        found, (2 * expected["boxes"]).tolist(), expected["scores"].tolist(), strict=True
    ):
        assert one["bbox"] == pytest.approx([x1, y1, x2 - x1, y2 - y1], abs=0.01)
        assert one["score"] == pytest.approx(score, abs=1e-4)
    both = (read_pixels(tmp_path / "in" / "a.png", most)[0] for most in (192, None))
    assert np.array_equal(*both)
