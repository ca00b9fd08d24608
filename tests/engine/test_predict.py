from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ghmdet import Detector
from ghmdet.engine.evaluate import validate
from ghmdet.engine.predict import KnownImages, predict, to_tensor
from ghmdet.errors import CheckpointError, DataError, GhmdetError
from ghmdet.evaluation.score import score


@pytest.fixture(scope="module")
def detector(run: Path) -> Detector:
    return Detector.load(run / "best.pt", device="cpu", precision="fp32")


def test_every_form_of_a_picture_gives_the_same_detections(detector: Detector, squares: Path) -> None:
    path = squares / "images" / "val_0.png"
    image = Image.open(path).convert("RGB")
    forms = [path, str(path), image, np.asarray(image), to_tensor(path)]
    for found in (detector.predict(form)[0] for form in forms):
        assert torch.equal(found["boxes"], detector.predict(path)[0]["boxes"])
        assert len(found["boxes"]) > 0
        assert (found["scores"].diff() <= 0).all()


def test_a_picture_does_not_depend_on_its_neighbours_in_the_batch(detector: Detector, squares: Path) -> None:
    paths = [squares / "images" / f"val_{i}.png" for i in range(3)]
    alone = [detector.predict(path)[0] for path in paths]
    for one, together in zip(alone, detector.predict(paths), strict=True):
        assert torch.allclose(one["boxes"], together["boxes"], atol=1e-3)


@pytest.mark.parametrize(
    "picture", [np.zeros((8, 8), np.uint8), np.zeros((8, 8, 3), np.float32), np.zeros((3, 8, 8), np.uint8)]
)
def test_an_array_of_another_form_is_refused_with_the_form_to_give(
    detector: Detector, picture: np.ndarray
) -> None:
    with pytest.raises(DataError, match=r"uint8 \[H, W, 3\]"):
        detector.predict(picture)


def test_predictions_carry_the_annotations_ids_and_score_as_val_does(
    run: Path, squares: Path, tmp_path: Path
) -> None:
    annotations = squares / "annotations" / "instances_val.json"
    (tmp_path / "in" / "below").mkdir(parents=True)
    for i in range(4):
        folder = tmp_path / "in" / ("below" if i % 2 else ".")
        (folder / f"val_{i}.png").write_bytes((squares / "images" / f"val_{i}.png").read_bytes())
    predict(
        run / "best.pt",
        tmp_path / "in",
        out=tmp_path / "out",
        annotations=annotations,
        device="cpu",
        precision="fp32",
    )
    assert (tmp_path / "out" / "below" / "val_1.png.jpg").exists()
    metrics = validate(run / "best.pt", squares, out=tmp_path / "val", device="cpu", precision="fp32")
    ours = score(annotations, tmp_path / "out" / "predictions.json")
    assert metrics.AP is not None and metrics.AP > 0
    assert pytest.approx(metrics.AP, abs=0.02) == ours.AP
    assert pytest.approx(metrics.AP, abs=1e-9) == score(annotations, tmp_path / "val" / "predictions.json").AP
    assert json.loads((tmp_path / "val" / "metrics.json").read_text())["AP"] == pytest.approx(metrics.AP)


def test_a_turned_or_16_bit_picture_is_the_same_as_its_file(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.arange(96, dtype=np.uint8).reshape(4, 8, 3)).save(tmp_path / "turned.png", exif=exif)
    Image.fromarray((np.arange(32, dtype=np.uint16) * 2000).reshape(4, 8)).save(tmp_path / "deep.png")
    for path in tmp_path.glob("*.png"):
        with Image.open(path) as picture:
            assert torch.equal(to_tensor(picture), to_tensor(path))


def test_pictures_are_never_overwritten_nor_their_drawings_looked_at_again(
    run: Path, squares: Path, tmp_path: Path
) -> None:
    shutil.copy(squares / "images" / "val_0.png", tmp_path / "a.png")
    for out in (tmp_path, tmp_path / "." / ""):
        with pytest.raises(GhmdetError, match="would be overwritten"):
            predict(run / "best.pt", tmp_path, out=out, device="cpu")
    for _ in range(2):
        predict(run / "best.pt", tmp_path, out=tmp_path / "out", device="cpu", precision="fp32")
        assert {entry.name for entry in (tmp_path / "out").iterdir()} == {"a.png.jpg", "predictions.json"}


def test_one_broken_picture_loses_nothing_of_the_others(run: Path, squares: Path, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for name in ("a.png", "c.png"):
        shutil.copy(squares / "images" / "val_0.png", tmp_path / "in" / name)
    (tmp_path / "in" / "b.png").write_bytes(b"broken")
    with pytest.raises(DataError, match=r"1 of 3 pictures could not be read.*b\.png"):
        predict(run / "best.pt", tmp_path / "in", out=tmp_path / "out", device="cpu", precision="fp32")
    results = json.loads((tmp_path / "out" / "predictions.json").read_text())
    assert {result["file_name"] for result in results} == {"a.png", "c.png"}


def test_ids_come_from_the_annotations_by_name(tmp_path: Path) -> None:
    content = {
        "images": [
            {"id": 7, "file_name": "x/1.jpg"},
            {"id": 8, "file_name": "y/1.jpg"},
            {"id": 9, "file_name": "2.jpg"},
        ],
        "categories": [{"id": 40, "name": "blue"}, {"id": 30, "name": "red"}],
    }
    (tmp_path / "a.json").write_text(json.dumps(content))
    known = KnownImages(tmp_path / "a.json")
    assert [known.image_id(Path(name)) for name in ("x/1.jpg", "y/1.jpg", "z/2.jpg")] == [7, 8, 9]
    assert known.category_ids(["red", "blue"]) == (30, 40)
    with pytest.raises(DataError, match=r"2 images of file name 1\.jpg, wanted for z/1\.jpg"):
        known.image_id(Path("z/1.jpg"))
    with pytest.raises(DataError, match="no category 'green'"):
        known.category_ids(["green"])
    (tmp_path / "a.json").write_bytes(b"\xff\xfe{}")
    with pytest.raises(DataError, match="not COCO annotations"):
        KnownImages(tmp_path / "a.json")


def test_pictures_that_cannot_be_used_are_named(run: Path, squares: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such picture or folder"):
        predict(run / "best.pt", tmp_path / "nothing", out=tmp_path / "out")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"empty: no pictures here"):
        predict(run / "best.pt", tmp_path / "empty", out=tmp_path / "out")
    (tmp_path / "cut.jpg").write_bytes(b"\xff\xd8\xff\xe0 cut")
    with pytest.raises(DataError, match=r"cut\.jpg"):
        predict(run / "best.pt", tmp_path / "cut.jpg", out=tmp_path / "out")
    with pytest.raises(DataError, match=r"has no image of file name cut\.jpg"):
        annotations = squares / "annotations" / "instances_val.json"
        predict(run / "best.pt", tmp_path / "cut.jpg", out=tmp_path / "out", annotations=annotations)
    with pytest.raises(CheckpointError, match=r"cut\.jpg"):
        predict(tmp_path / "cut.jpg", squares / "images", out=tmp_path / "out")
