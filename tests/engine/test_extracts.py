"""What `ghmdet predict` takes and writes beside pictures and drawings: patterns, videos, YOLO labels, crops."""

from __future__ import annotations

import json
import re
import shutil
import sys
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from engine_cases import film, interrupted_at
from ghmdet.data import read_data
from ghmdet.engine import predict as module
from ghmdet.engine import sources
from ghmdet.engine.detect import Detector
from ghmdet.engine.extracts import MARKER, check, write_crops
from ghmdet.engine.predict import find_pictures, predict
from ghmdet.errors import DataError, GhmdetError, PartlyDone

OPTIONS: dict[str, Any] = {"device": "cpu", "precision": "fp32", "say": lambda line: None}


@pytest.fixture
def pictures(squares: Path, tmp_path: Path) -> Path:
    """Three pictures, one of them in a folder below."""
    (tmp_path / "in" / "below").mkdir(parents=True)
    for number, name in enumerate(("a.png", "b.png", "below/c.png")):
        shutil.copy(squares / "images" / f"val_{number}.png", tmp_path / "in" / name)
    return tmp_path / "in"


def surest(file: Path, count: int) -> tuple[list[dict[str, Any]], float]:
    """The `count` surest of the results in a file, and the least score of them."""
    rows = sorted(json.loads(file.read_text()), key=lambda row: -row["score"])[:count]
    return rows, rows[-1]["score"]


def test_labels_and_crops_are_of_the_boxes_that_are_drawn(run: Path, pictures: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    rows, threshold = surest(predict(run / "best.pt", pictures, out=out, **OPTIONS), 7)
    assert not (out / "labels").exists() and not (out / "crops").exists()
    predict(run / "best.pt", pictures, out=out, threshold=threshold, save_txt=True, crop=True, **OPTIONS)

    shutil.copytree(pictures, tmp_path / "set" / "images")
    shutil.copytree(out / "labels", tmp_path / "set" / "labels")
    read = read_data(tmp_path / "set")
    assert not [one for one in read.problems if one.severity == "error"]
    assert read.classes == ("red", "blue") and len(read.records) == 3
    for record in read.records:
        name = record.path.relative_to(tmp_path / "set" / "images").as_posix()
        wanted = [row for row in rows if row["file_name"] == name]
        order = np.lexsort(record.boxes.T)
        boxes = np.array([[x, y, x + w, y + h] for x, y, w, h in (row["bbox"] for row in wanted)]).reshape(
            -1, 4
        )
        expected = np.lexsort(boxes.astype(np.float32).T)
        np.testing.assert_allclose(record.boxes[order], boxes[expected], atol=1e-2)
        labels = [read.classes.index(row["category_name"]) for row in wanted]
        assert record.labels[order].tolist() == [labels[i] for i in expected]

    crops = {path.relative_to(out / "crops").as_posix(): path for path in (out / "crops").rglob("*.jpg")}
    assert len(crops) == len(rows)
    for name in {row["file_name"] for row in rows}:
        of_picture = [row for row in rows if row["file_name"] == name]
        picture = np.asarray(Image.open(pictures / name).convert("RGB")).astype(float)
        for number, row in enumerate(of_picture, start=1):
            cut = np.asarray(Image.open(crops[f"{row['category_name']}/{name[:-4]}-{number}.jpg"])).astype(
                float
            )
            x, y, w, h = row["bbox"]
            whole = picture[int(y) : int(np.ceil(y + h)), int(x) : int(np.ceil(x + w))]
            assert cut.shape == whole.shape and abs(cut - whole).mean() < 6

    predict(run / "best.pt", pictures, out=out, **OPTIONS)
    assert not (out / "labels").exists() and not (out / "crops").exists()


def test_what_would_be_overwritten_or_mixed_is_refused_before_the_work(
    run: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "look", lambda *_: pytest.fail("it looks"))
    out = tmp_path / "other"
    mine = tmp_path / "out" / "labels" / "mine.txt"
    mine.parent.mkdir(parents=True)
    mine.touch()
    with pytest.raises(GhmdetError, match=r"out/labels: holds what no `ghmdet predict` wrote"):
        predict(run / "best.pt", pictures, out=tmp_path / "out", save_txt=True, **OPTIONS)
    assert mine.exists()
    (pictures / "below").rename(pictures / "crops")
    with pytest.raises(GhmdetError, match=r"crops/c\.png: its drawing would lie in .*/crops: rename"):
        predict(run / "best.pt", pictures, out=out, crop=True, **OPTIONS)
    shutil.copy(pictures / "a.png", pictures / "a.bmp")
    for option in ("save_txt", "crop"):
        with pytest.raises(
            GhmdetError, match=r"a\.png: what is written of it would have the name of that of a\.bmp"
        ):
            predict(
                run / "best.pt", pictures / "a.png", pictures / "a.bmp", out=out, **{option: True}, **OPTIONS
            )
    shutil.copy(pictures / "a.png", pictures / "classes.png")
    with pytest.raises(GhmdetError, match=r"classes\.png: .* that of classes\.txt: rename it"):
        predict(run / "best.pt", pictures / "classes.png", out=out, save_txt=True, **OPTIONS)


@pytest.mark.parametrize(
    ("folder", "said"),
    [
        (
            "predictions.json",
            r"predictions\.json: a folder of pictures has the name of a file that is written into",
        ),
        ("failed.json", r"failed\.json: a folder of pictures has the name"),
        ("unfinished.jsonl", r"unfinished\.jsonl: a folder of pictures has the name"),
        ("a.txt", r"a\.txt: what is written into .*labels would have its name: rename it"),
        ("below/c.txt", r"below/c\.txt: what is written into .*labels would have its name"),
        ("classes.txt", r"classes\.txt: what is written into .*labels would have its name"),
        ("a-1.jpg", r"a-1\.jpg: what is written into .*crops would have its name"),
    ],
)
def test_a_folder_of_the_name_of_what_is_written_is_refused_before_the_work(
    run: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: str, said: str
) -> None:
    monkeypatch.setattr(module, "look", lambda *_: pytest.fail("it looks"))
    (pictures / folder).mkdir()
    shutil.copy(pictures / "a.png", pictures / folder / "x.png")
    with pytest.raises(GhmdetError, match=said):
        predict(run / "best.pt", pictures, out=tmp_path / "out", save_txt=True, crop=True, **OPTIONS)
    assert not (tmp_path / "out").exists()


def test_the_longest_names_have_crops_and_labels_and_other_folders_names_are_taken(
    run: Path, pictures: Path, tmp_path: Path
) -> None:
    made = pictures / "many"
    for folder in ("x.txt", "x-1.png", "a-b.jpg"):
        (made / folder).mkdir(parents=True)
        shutil.copy(pictures / "a.png", made / folder / "c.png")
    for name in ("n" * 251, "n" * 250 + "m", "é" * 125):
        shutil.copy(pictures / "a.png", made / f"{name}.png")
    options = {"save_txt": True, "crop": True, "threshold": 0.0}
    written = predict(run / "best.pt", made, out=tmp_path / "out", **options, **OPTIONS)
    boxes = len(json.loads(written.read_text()))
    crops = [file for file in (tmp_path / "out" / "crops").rglob("*.jpg") if file.is_file()]
    assert boxes and len(crops) == boxes
    assert len(list((tmp_path / "out" / "labels").rglob("*.txt"))) == 6 + 1 + 1  # and the folder x.txt


def test_a_link_in_place_of_a_folder_that_is_written_is_named_and_its_target_stays(
    run: Path, pictures: Path, tmp_path: Path
) -> None:
    mine, out = tmp_path / "mine", tmp_path / "out"
    for folder in (mine, out):
        folder.mkdir()
    for name in (MARKER, "mine.txt"):
        (mine / name).touch()
    (out / "labels").symlink_to(mine)
    with pytest.raises(
        GhmdetError, match=r"out/labels: is a link, which is not followed: remove it, or give another"
    ):
        predict(run / "best.pt", pictures, out=out, save_txt=True, **OPTIONS)
    predict(run / "best.pt", pictures, out=out, crop=True, **OPTIONS)
    assert (mine / "mine.txt").exists() and (out / "labels").is_symlink()


@pytest.mark.parametrize("name", ["car\nvan", "a\u2028b", "\r", ""])
def test_a_class_that_is_no_line_of_a_text_is_refused_before_the_work(tmp_path: Path, name: str) -> None:
    check(tmp_path, [], ["crops"], ["bus", name])
    with pytest.raises(GhmdetError, match=r"class '.*': is no line of classes\.txt: leave --save-txt out"):
        check(tmp_path, [], ["labels"], ["bus", name])


@pytest.mark.parametrize("change", ["a label", "a file more", "a crop", "nothing", "a copy", "cut off"])
def test_what_was_changed_since_is_not_removed(
    run: Path, pictures: Path, tmp_path: Path, change: str
) -> None:
    out, said = tmp_path / "out", list[str]()
    usual: dict[str, Any] = OPTIONS | {"out": out, "threshold": 0.0, "say": said.append}
    predict(run / "best.pt", pictures, save_txt=True, crop=True, **usual)
    file = next((out / "labels").rglob("*.txt"))
    if change == "a label":
        file.write_text("0 0.5 0.5 0.1 0.1\n0 0.5 0.5 0.1 0.1\n")
    elif change == "a file more":
        (out / "labels" / "notes.txt").touch()
    elif change == "a crop":
        next((out / "crops").rglob("*.jpg")).unlink()
    elif change == "a copy":  # has other times, and a file manager's own file
        shutil.copytree(out / "labels", tmp_path / "copy", copy_function=shutil.copyfile)
        shutil.rmtree(out / "labels")
        (tmp_path / "copy").rename(out / "labels")
        (out / "labels" / ".DS_Store").touch()
    elif change == "cut off":
        (out / "labels" / MARKER).write_text("")
        file.unlink()
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    for options in ({}, {"save_txt": True}):
        if change in ("nothing", "a copy", "cut off"):
            predict(run / "best.pt", pictures, **options, **usual)
            assert (out / "labels").exists() is bool(options) and not (out / "crops").exists()
            continue
        with pytest.raises(
            GhmdetError, match="was changed since `ghmdet predict` wrote it, and would be removed"
        ):
            predict(run / "best.pt", pictures, **options, **usual)
        assert before == {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    if change == "nothing":
        assert f"{out / 'labels'} of an earlier predict is removed" in said


def test_what_another_predict_wrote_into_a_folder_below_stays(
    run: Path, pictures: Path, tmp_path: Path
) -> None:
    predict(run / "best.pt", pictures, out=tmp_path / "out" / "day1", **OPTIONS)
    before = set((tmp_path / "out" / "day1").rglob("*"))
    predict(run / "best.pt", pictures, out=tmp_path / "out", **OPTIONS)
    assert before == set((tmp_path / "out" / "day1").rglob("*"))
    shutil.copytree(pictures, tmp_path / "more" / "day1")
    with pytest.raises(GhmdetError, match="is no drawing of an earlier `ghmdet predict` into"):
        predict(run / "best.pt", tmp_path / "more", out=tmp_path / "out", **OPTIONS)


def test_drawings_in_a_folder_of_that_name_outlive_what_was_written_there_before(
    run: Path, pictures: Path, tmp_path: Path
) -> None:
    predict(run / "best.pt", pictures, out=tmp_path / "out", save_txt=True, crop=True, **OPTIONS)
    (pictures / "below").rename(pictures / "labels")
    predict(run / "best.pt", pictures, out=tmp_path / "out", **OPTIONS)
    assert [file.name for file in (tmp_path / "out" / "labels").iterdir()] == ["c.png.jpg"]


def test_a_class_names_no_folder_elsewhere(tmp_path: Path, pictures: Path) -> None:
    rows = [{"category_id": k, "bbox": [0, 0, 20, 20], "score": 0.9} for k in (1, 2, 3)]
    classes = {1: "..", 2: "a/b", 3: "Zoë 2"}
    write_crops(tmp_path / "crops", [("a.png", rows)], {"a.png": pictures / "a.png"}, classes)
    made = {file.relative_to(tmp_path / "crops").as_posix() for file in tmp_path.glob("crops/*/*.jpg")}
    assert made == {"__/a-1.jpg", "a_b/a-2.jpg", "Zoë 2/a-3.jpg"}
    assert not list(tmp_path.glob("*.jpg"))


def test_names_tell_folders_apart_that_only_the_whole_file_system_holds(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("u/pics", "v/pics", "w/b", "w/v/pics"):
        shutil.copytree(pictures, tmp_path / name)

    def names(*given: str) -> set[str]:
        with monkeypatch.context() as patch:
            patch.setattr("os.path.commonpath", lambda paths: "/")
            found = find_pictures([tmp_path / one for one in given], tmp_path / "out")
        assert all(file.as_posix().endswith(f"/{name.as_posix()}") for name, file in found.items())
        return {name.as_posix() for name in found}

    own = {"a.png", "b.png", "below/c.png"}
    assert names("u/pics", "w/b") == {f"{top}/{one}" for top in ("pics", "b") for one in own}
    assert names("u/pics", "v/pics") == {f"{top}/pics/{one}" for top in "uv" for one in own}
    three = names("v/pics", "w/v/pics", "u/pics/below", "v/pics/a.png")
    assert len(three) == 7 and not any(name.startswith(str(tmp_path)[1:]) for name in three)
    assert {"w/v/pics/a.png", "u/pics/below/c.png"} < three


def test_a_pattern_stands_for_what_fits_it(pictures: Path, tmp_path: Path) -> None:
    for pattern, names in (("*.png", ["a.png", "b.png"]), ("**/[bc].png", ["b.png", "below/c.png"])):
        assert [name.as_posix() for name in find_pictures([pictures / pattern], tmp_path / "out")] == names
    both = find_pictures([pictures / "a*", pictures / "below" / "*.png"], tmp_path / "out")
    assert [name.as_posix() for name in both] == ["a.png", "below/c.png"]
    with pytest.raises(DataError, match=r"\*\.jpg: nothing fits this pattern: correct it"):
        find_pictures([pictures / "*.jpg", pictures / "a.png"], tmp_path / "out")
    (pictures / "none").mkdir()
    (pictures / "notes.txt").touch()
    out = pictures / "out"
    shutil.copytree(pictures / "below", out)
    whole = find_pictures([pictures / "**"], out)
    assert [name.as_posix() for name in whole] == ["a.png", "b.png", "below/c.png"]
    for nothing in ("n*", "out/**", "notes.*"):
        with pytest.raises(DataError, match=r"no picture outside --out .* fits this pattern: correct it"):
            find_pictures([pictures / nothing, pictures / "a.png"], out)
    shutil.rmtree(out)
    with pytest.raises(DataError, match="none: no pictures here"):
        find_pictures([pictures / "none"], out)
    (pictures / "[a].png").write_bytes((pictures / "b.png").read_bytes())  # a name, not a pattern
    assert list(find_pictures([pictures / "[a].png"], tmp_path / "out")) == [Path("[a].png")]


@pytest.fixture
def frames(squares: Path) -> list[np.ndarray]:
    return [
        np.asarray(Image.open(file).convert("RGB"))
        for file in sorted((squares / "images").glob("*_[0-4].png"))
    ]


def test_the_frames_of_a_video_are_pictures_with_a_number(
    run: Path, pictures: Path, tmp_path: Path, frames: list[np.ndarray]
) -> None:
    video, out = film(tmp_path / "film.mkv", frames), tmp_path / "out"
    written = predict(run / "best.pt", video, out=out, batch_size=2, **OPTIONS)
    _, threshold = surest(written, 12)
    found = Detector.load(run / "best.pt", device="cpu", precision="fp32").predict(frames, threshold=0)
    by_frame = [[] for _ in frames]
    for row in json.loads(written.read_text()):
        assert row["file_name"] == f"film.mkv/{row['frame']:06}.jpg" and row["image_id"] == row["frame"] + 1
        by_frame[row["frame"]].append(row["score"])
    for scores, expected in zip(by_frame, found, strict=True):
        np.testing.assert_allclose(scores, expected["scores"], atol=1e-6)
    assert len(list((out / "film.mkv").iterdir())) == len(frames) == 9
    both = (pictures / "a.png", video)
    more = {"save_txt": True, "crop": True, "threshold": threshold, "batch_size": 4}
    predict(run / "best.pt", *both, out=tmp_path / "both", **more, **OPTIONS)
    again = json.loads((tmp_path / "both" / "predictions.json").read_text())
    assert [row["score"] for row in again if "frame" in row] == [
        row["score"] for row in json.loads(written.read_text())
    ]
    labels = sorted((tmp_path / "both" / "labels").rglob("*.txt"))
    assert len(labels) == 1 + 1 + 9 and sum(len(file.read_text().splitlines()) for file in labels[1:]) >= 12
    assert len(list((tmp_path / "both" / "crops").rglob("*.jpg"))) == sum(
        len(file.read_text().splitlines()) for file in labels if file.name != "classes.txt"
    )


def test_a_video_goes_on_where_it_was_stopped_and_is_decoded_as_a_stream(
    run: Path, tmp_path: Path, frames: list[np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    video = film(tmp_path / "film.mkv", frames)
    whole = predict(run / "best.pt", video, out=tmp_path / "whole", batch_size=2, **OPTIONS)
    asked = interrupted_at(3, monkeypatch)
    with pytest.raises(KeyboardInterrupt, match="stopped after 4 of 9 pictures"):
        predict(run / "best.pt", video, out=tmp_path / "out", batch_size=2, **OPTIONS)
    decoded = list[int]()
    decode = sources._decode
    monkeypatch.setattr(sources, "_decode", lambda path: (decoded.append(1) or one for one in decode(path)))
    written = predict(run / "best.pt", video, out=tmp_path / "out", batch_size=2, **OPTIONS)
    assert sum(asked[3:]) == 5 and len(decoded) == 9
    assert written.read_text() == whole.read_text()


def test_a_damaged_video_is_named_and_its_sound_part_is_done(
    run: Path, pictures: Path, tmp_path: Path, frames: list[np.ndarray]
) -> None:
    whole = film(tmp_path / "film.avi", frames * 4, codec="mpeg4")
    content = whole.read_bytes()
    out = tmp_path / "out"
    for wrong in (b"no video" * 99, b""):
        whole.write_bytes(wrong)
        with pytest.raises(PartlyDone, match="1 of 2 pictures could not be read"):
            predict(run / "best.pt", whole, pictures / "a.png", out=out, **OPTIONS)
        (reason,) = json.loads((out / "failed.json").read_text()).values()
        assert reason.startswith(f"{whole}: cannot be opened (")
        assert json.loads((out / "predictions.json").read_text())[0]["file_name"] == "in/a.png"
    whole.write_bytes(content[: len(content) * 9 // 10])
    written = predict(run / "best.pt", whole, pictures / "a.png", out=out, **OPTIONS)
    rows = json.loads(written.read_text())
    numbers = {row["frame"] for row in rows if "frame" in row}
    assert numbers == set(range(len(numbers))) and 1 < len(numbers) < 36
    assert rows[-1]["file_name"] == "in/a.png"


def test_what_a_damaged_video_lost_is_counted_and_said(
    run: Path, tmp_path: Path, frames: list[np.ndarray]
) -> None:
    """A header that knows more frames, a file without its end, packets that cannot be decoded; two of a kind."""
    said: list[str] = []
    videos = {
        name: film(tmp_path / name, frames * 4, codec="mpeg4")
        for name in ("a.avi", "b.mkv", "c.mkv", "d.mp4")
    }
    predict(run / "best.pt", *videos.values(), out=tmp_path / "out", say=said.append)
    assert len(said) == 1
    for name, video in videos.items():
        content = bytearray(video.read_bytes())
        if name == "d.mp4":
            index = content.index(b"moov")
            content[index // 2 : index] = bytes(index - index // 2)
        video.write_bytes(content if name == "d.mp4" else content[: len(content) * 3 // 4])
    with pytest.raises(PartlyDone, match=r"1 of .* pictures could not be read"):
        predict(run / "best.pt", *videos.values(), out=tmp_path / "out", say=said.append)
    told = {name: [line for line in said if line.startswith(f"{video}: ")] for name, video in videos.items()}
    rows = json.loads((tmp_path / "out" / "predictions.json").read_text())
    left = {name: len({row["frame"] for row in rows if row["file_name"].startswith(name)}) for name in videos}
    assert (
        f"{videos['a.avi']}: damaged or cut short: {left['a.avi']} of 36 frames are left" in told["a.avi"][0]
    )
    for name in ("b.mkv", "c.mkv"):
        assert (
            f": damaged or cut short: {left[name]} frames are left (File ended prematurely" in told[name][0]
        )
    lost, stopped = told["d.mp4"]
    assert "cannot be decoded from frame" in stopped and 0 < left["d.mp4"] < 35
    damaged, absent = map(int, re.findall(r"\d+", lost.removeprefix(f"{videos['d.mp4']}: ")))
    assert absent == 36 - 1 - left["d.mp4"] and damaged <= 2


def test_frames_of_which_h264_reports_errors_are_counted_and_those_of_a_sound_video_are_none(
    tmp_path: Path,
) -> None:
    if "libx264" not in pytest.importorskip("av").codecs_available:
        pytest.skip("this PyAV does not write H.264")
    random = np.random.default_rng(0)
    noise = random.integers(0, 256, (240, 320, 3), np.uint8)
    video, counts = (
        film(tmp_path / "film.mp4", [np.roll(noise, 3 * i, 1) for i in range(9)], codec="libx264"),
        [],
    )
    content = bytearray(video.read_bytes())
    for step in (0, 5000):
        for place in range(5000, len(content) * 9 // 10, step or len(content)):
            content[place] ^= 0xFF * bool(step)
        video.write_bytes(content)
        reader = sources.Reader()
        assert all(reader.read(sources.Frame(video, number)) for number in range(9))
        counts.append(reader.damaged[video])
    assert counts[0] == 0 < counts[1] <= 9


def test_a_whole_video_whose_frames_are_shown_again_is_not_called_damaged(
    run: Path, frames: list[np.ndarray], tmp_path: Path
) -> None:
    av = pytest.importorskip("av")
    with av.open(str(tmp_path / "slow.avi"), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = "yuv420p"
        for number, frame in enumerate(frames):
            picture = av.VideoFrame.from_ndarray(frame, format="rgb24")
            picture.pts, picture.time_base = 3 * number, Fraction(1, 10)
            container.mux(stream.encode(picture))
        container.mux(stream.encode(None))
    said: list[str] = []
    predict(run / "best.pt", tmp_path / "slow.avi", out=tmp_path / "out", say=said.append)
    assert not any("damaged" in line for line in said)


def test_a_video_without_a_frame_that_can_be_read_is_named(
    run: Path, pictures: Path, tmp_path: Path, frames: list[np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    out, whole = tmp_path / "out", film(tmp_path / "film.mp4", frames, codec="mpeg4")
    content = whole.read_bytes()
    assert sources.count_frames(whole) == 9

    def fails(reason: str) -> None:
        with pytest.raises(PartlyDone, match=r"of (2|10) pictures could not be read"):
            predict(run / "best.pt", whole, pictures / "a.png", out=out, **OPTIONS)
        assert set(json.loads((out / "failed.json").read_text()).values()) == {f"{whole}: {reason}"}
        assert {row["file_name"] for row in json.loads((out / "predictions.json").read_text())} == {
            "in/a.png"
        }

    empty = "not one frame can be read, the file is damaged or cut short: leave it out"
    whole.write_bytes(content[:-100])  # its index lies at the end: it opens, and has no packet
    fails(empty)
    whole.write_bytes(content)
    monkeypatch.setattr(sources, "_decode", lambda video: iter(()))  # packets, of which no frame comes
    fails(empty)


def test_a_phones_video_is_turned_upright_and_a_large_one_is_shrunk(tmp_path: Path) -> None:
    picture = np.zeros((40, 60, 3), np.uint8)
    picture[:, :30] = 200
    video = film(tmp_path / "film.mkv", [picture])
    reader = sources.Reader()
    pixels, size = reader.read(sources.Frame(video, 0), 30)
    assert size == (40, 60) == reader.size(sources.Frame(video, 0)) and pixels.shape == (20, 30, 3)
    assert pixels[:, :14].mean() == 200 and pixels[:, 16:].mean() == 0


def test_a_title_in_another_encoding_is_no_fault_of_a_video(tmp_path: Path) -> None:
    video = film(tmp_path / "film.avi", [np.zeros((40, 60, 3), np.uint8)], title="GrXn")
    video.write_bytes(video.read_bytes().replace(b"GrXn", "Grün".encode("latin-1")))
    assert sources.Reader().size(sources.Frame(video, 0)) == (40, 60)


def test_without_pyav_a_video_says_what_to_install(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    (tmp_path / "film.mp4").touch()
    with pytest.raises(GhmdetError, match=r"film\.mp4: a video needs PyAV: pip install 'ghmdet\[video\]'"):
        predict(run / "best.pt", tmp_path / "film.mp4", out=tmp_path / "out", **OPTIONS)


def test_videos_of_a_folder_are_looked_at_with_its_pictures(run: Path, tmp_path: Path) -> None:
    deep, out = tmp_path / "both" / "deep", tmp_path / "out"
    deep.mkdir(parents=True)
    film(deep / "film.MP4", [np.zeros((40, 60, 3), np.uint8)] * 2, codec="mpeg4")
    Image.new("RGB", (60, 40)).save(tmp_path / "both" / "a.png")
    (tmp_path / "both" / "notes.txt").touch()
    assert [*find_pictures([tmp_path / "both"], out)] == [Path("a.png"), Path("deep/film.MP4")]
    predict(run / "best.pt", deep, out=out, **OPTIONS)
    names = sorted(file.name for file in (out / "film.MP4").iterdir())
    assert names == ["000000.jpg", "000001.jpg"]


def test_a_video_of_a_folder_keeps_no_picture_from_being_looked_at(
    run: Path, squares: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(squares / "images", tmp_path / "both")
    film(tmp_path / "both" / "film.mp4", [np.zeros((40, 60, 3), np.uint8)] * 2, codec="mpeg4")
    said: list[str] = []
    options = OPTIONS | {"say": said.append}
    truth = squares / "annotations" / "instances_val.json"
    names = [image["file_name"] for image in json.loads(truth.read_text())["images"]]
    for file in (tmp_path / "both").glob("*.png"):
        if file.name not in names:
            file.unlink()
    predict(run / "best.pt", tmp_path / "both", out=tmp_path / "a", annotations=truth, **options)
    monkeypatch.setattr(sources, "find_spec", lambda name: None)
    predict(run / "best.pt", tmp_path / "both", out=tmp_path / "b", **options)
    told = [line for line in said if "a video, passed over" in line]
    assert [line.partition("over: ")[2] for line in told] == [
        "its frames have no annotations",
        "pip install 'ghmdet[video]'",
    ]


def test_a_training_run_is_no_place_for_drawings(run: Path, squares: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "run")
    with pytest.raises(GhmdetError, match="is the folder of a training"):
        predict(run / "best.pt", squares / "images", out=tmp_path / "run", **OPTIONS)
