"""The main job on a synthetic set: data, training with GHM, AP, pictures, report."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from ghmdet.data import DetectionData, read_data
from ghmdet.data.make import SynthConfig, synthesize
from ghmdet.draw import contact_sheet, draw_side_by_side, save_jpeg
from ghmdet.engine.checkpoint import saved_run
from ghmdet.engine.detect import Detector, to_tensor
from ghmdet.engine.evaluate import validate
from ghmdet.engine.settings import TrainConfig
from ghmdet.engine.train import train
from ghmdet.errors import GhmdetError
from ghmdet.evaluation.score import Metrics
from ghmdet.report.page import write_report

IMAGES = 240
EPOCHS = 12
THRESHOLD = 0.3


def demo(*, out: Path, seed: int = 0, say: Callable[[str], None] = print) -> Metrics:
    """Do the main job on a synthetic set, in one to two minutes: data, training with GHM, AP, pictures, report.

    Args:
        out: Folder for everything it makes; interrupted, the same command goes on there.
        seed: Seed of the pictures and the training.
        say: Takes each line meant for the user.

    Returns:
        The score on the validation part.

    Raises:
        GhmdetError: `out` holds something else, or the pretrained weights are not installed.
    """
    strangers = (
        {entry.name for entry in out.iterdir()} - {"data", "run", "pictures.jpg"} if out.is_dir() else set()
    )
    if strangers or out.is_file():
        raise GhmdetError(
            f"{out} holds something else ({min(strangers, default='a file')}): give a new folder"
        )
    config = TrainConfig(size=320, epochs=EPOCHS, val_every=4, seed=seed)
    # Before the pictures are drawn: those of another seed must not replace what a run was trained on.
    saved_run(out / "data", out / "run", config, resume=True)
    say(synthesize(out / "data", SynthConfig(images=IMAGES, seed=seed)))
    train(out / "data", out / "run", config, resume=True, say=say)
    metrics = validate(out / "run" / "best.pt", out / "data", say=say)
    pictures = _draw(
        out / "pictures.jpg", Detector.load(out / "run" / "best.pt"), read_data(out / "data", "val")
    )
    say(f"what it sees, annotations left, detections right: {pictures}")
    page = write_report([out / "run"], say=lambda line: None)
    say(f"what dominated training and what goes wrong, to open in a browser: {page}")
    return metrics


def _draw(path: Path, detector: Detector, data: DetectionData) -> Path:
    pairs = []
    for record in data.records[:8]:
        picture = to_tensor(record.path)
        found = detector.predict(picture)[0]
        sure = found["scores"] >= THRESHOLD
        target = {"boxes": torch.from_numpy(record.boxes), "labels": torch.from_numpy(record.labels)}
        found = {name: value[sure] for name, value in found.items()}
        pairs.append(draw_side_by_side(picture, target, found, detector.classes))
    return save_jpeg(contact_sheet(pairs, columns=2), path)
