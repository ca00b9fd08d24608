from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ghmdet import Detector
from ghmdet.data import read_data
from ghmdet.engine.evaluate import validate
from ghmdet.engine.predict import predict, read_picture
from ghmdet.engine.score import score
from ghmdet.errors import CheckpointError, DataError


@pytest.fixture(scope="module")
def detector(run: Path) -> Detector:
    return Detector.load(run / "best.pt", device="cpu", precision="fp32")


def test_every_form_of_a_picture_gives_the_same_detections(detector: Detector, squares: Path) -> None:
    path = squares / "images" / "val_0.png"
    image = Image.open(path).convert("RGB")
    forms = [path, str(path), image, np.asarray(image), read_picture(path)]
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
        tmp_path / "out",
        annotations=annotations,
        device="cpu",
        precision="fp32",
    )
    assert (tmp_path / "out" / "below" / "val_1.png.jpg").exists()
    metrics = validate(
        run / "best.pt", read_data(squares, "val"), tmp_path / "val", device="cpu", precision="fp32"
    )
    ours = score(annotations, tmp_path / "out" / "predictions.json")
    assert metrics.AP is not None and metrics.AP > 0
    assert pytest.approx(metrics.AP, abs=0.02) == ours.AP
    assert pytest.approx(metrics.AP, abs=1e-9) == score(annotations, tmp_path / "val" / "predictions.json").AP
    assert json.loads((tmp_path / "val" / "metrics.json").read_text())["AP"] == pytest.approx(metrics.AP)


def test_pictures_that_cannot_be_used_are_named(run: Path, squares: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such picture or folder"):
        predict(run / "best.pt", tmp_path / "nothing", tmp_path / "out")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"empty: no pictures here"):
        predict(run / "best.pt", tmp_path / "empty", tmp_path / "out")
    (tmp_path / "cut.jpg").write_bytes(b"\xff\xd8\xff\xe0 cut")
    with pytest.raises(DataError, match=r"cut\.jpg"):
        predict(run / "best.pt", tmp_path / "cut.jpg", tmp_path / "out")
    with pytest.raises(DataError, match=r"has no image of file name cut\.jpg"):
        annotations = squares / "annotations" / "instances_val.json"
        predict(run / "best.pt", tmp_path / "cut.jpg", tmp_path / "out", annotations=annotations)
    with pytest.raises(CheckpointError, match=r"cut\.jpg"):
        predict(tmp_path / "cut.jpg", squares / "images", tmp_path / "out")
