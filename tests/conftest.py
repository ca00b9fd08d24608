from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from engine_cases import TINY
from ghmdet.engine import train as engine
from ghmdet.engine.train import train


@pytest.fixture(scope="session")
def squares(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve training and four validation pictures of red and blue squares, as COCO."""
    root = tmp_path_factory.mktemp("squares")
    random = np.random.default_rng(0)
    (root / "images").mkdir()
    (root / "annotations").mkdir()
    for split, count in (("train", 12), ("val", 4)):
        images, annotations = [], []
        for number in range(count):
            picture = random.integers(90, 140, (72, 96, 3), dtype=np.uint8)
            images.append({"id": number + 1, "file_name": f"{split}_{number}.png", "width": 96, "height": 72})
            for category in (1, 2):
                x, y = (int(v) for v in random.integers(0, 40, 2))
                picture[y : y + 28, x : x + 28] = (220, 30, 30) if category == 1 else (30, 30, 220)
                annotations.append(
                    {
                        "id": len(annotations) + 1,
                        "image_id": number + 1,
                        "category_id": category,
                        "bbox": [x, y, 28, 28],
                        "area": 784,
                        "iscrowd": 0,
                    }
                )
            Image.fromarray(picture).save(root / "images" / images[-1]["file_name"])
        truth = {
            "images": images,
            "annotations": annotations,
            "categories": [{"id": 1, "name": "red"}, {"id": 2, "name": "blue"}],
        }
        (root / "annotations" / f"instances_{split}.json").write_text(json.dumps(truth))
    return root


@pytest.fixture(scope="session")
def run(squares: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a whole run on `squares`, beside it the save before its last; tests leave both as they are."""
    out = tmp_path_factory.mktemp("runs") / "whole"

    def move_previous(folder: Path) -> None:
        (folder / "previous.pt").rename(folder.with_name("previous.pt"))

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(engine, "drop_previous", move_previous)
        train(squares, out, TINY, say=lambda line: None)
    return out
