"""Run a trained detector on pictures."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from ghmdet.data.images import EXTENSIONS, image_size, load_image
from ghmdet.data.records import Record
from ghmdet.engine.checkpoint import load_checkpoint
from ghmdet.engine.device import Device, choose_device
from ghmdet.engine.draw import draw_detections
from ghmdet.engine.evaluate import coco_results
from ghmdet.engine.run_folder import write_json
from ghmdet.errors import DataError
from ghmdet.models import RetinaNet, model_from_state

Picture = Path | str | Image.Image | NDArray[np.uint8] | Tensor


class Detector:
    """A trained detector, ready to look at pictures.

    Attributes:
        model: the network, in eval mode on its device.
        classes: the name of each label.
        category_ids: the COCO category id of each label, as in the data it was trained on.
    """

    def __init__(
        self, model: RetinaNet, category_ids: Sequence[int] | None = None, device: Device | None = None
    ) -> None:
        self.device = device or choose_device()
        self.model = model.to(self.device.type).to(memory_format=torch.channels_last).eval()
        self.classes = model.classes
        self.category_ids = tuple(category_ids or range(1, len(model.classes) + 1))

    @classmethod
    def load(cls, path: Path | str, *, device: str = "auto", precision: str = "auto") -> Detector:
        """The detector in a checkpoint that training wrote (`best.pt` or `last.pt`).

        Raises:
            CheckpointError: the file is missing or is not such a checkpoint.
            GhmdetError: the device is not there.
        """
        state = load_checkpoint(path)
        return cls(model_from_state(state), state.get("category_ids"), choose_device(device, precision))

    @torch.inference_mode()
    def predict(self, images: Picture | Sequence[Picture]) -> list[dict[str, Tensor]]:
        """Detect on pictures of any sizes, as one batch.

        Args:
            images: a picture or several: file names, Pillow pictures, uint8 arrays [H, W, 3] RGB, or float tensors
                [3, H, W] in 0..1.

        Returns:
            For each picture a dict of CPU tensors, best first: boxes [n, 4] xyxy in its pixels, scores [n] in 0..1,
            labels [n] (indices into `classes`).

        Raises:
            DataError: a file that cannot be read, or an array of another form.
        """
        single = not isinstance(images, Sequence) or isinstance(images, str)
        pictures: Sequence[Any] = [images] if single else images  # type: ignore[assignment]
        tensors = [_to_tensor(picture).to(self.device.type) for picture in pictures]
        with self.device.autocast():
            detections = self.model(tensors)
        return [
            {name: value.float().cpu() if name != "labels" else value.cpu() for name, value in one.items()}
            for one in detections
        ]


def predict(
    checkpoint: Path | str,
    pictures: Path | str,
    out: Path | str,
    *,
    annotations: Path | str | None = None,
    threshold: float = 0.3,
    batch_size: int = 8,
    device: str = "auto",
    precision: str = "auto",
    advance: Callable[[int], None] = lambda pictures: None,
) -> list[dict[str, Any]]:
    """Detect on a picture or on a folder of them; writes `predictions.json` and drawn pictures to `out`.

    Args:
        checkpoint: a detector that training wrote.
        pictures: a picture, or a folder that is searched with its subfolders.
        out: the folder to write; its pictures keep their names, with `.jpg` added where they are not JPEG.
        annotations: COCO annotations whose image ids the results should carry, matched by file name; without it the
            pictures are numbered from 1 in the order of their names.
        threshold: the least score of a box that is drawn; `predictions.json` keeps them all.
        batch_size: pictures at a time.
        device: auto, cpu or cuda.
        precision: auto, fp32, bf16 or fp16.
        advance: called with the number of pictures just finished.

    Returns:
        COCO results, each with the `file_name` of its picture as well.

    Raises:
        DataError: no pictures, one that cannot be read, or one that the annotations do not know.
        CheckpointError: the checkpoint cannot be read.
    """
    files = find_pictures(Path(pictures))
    root = Path(pictures) if Path(pictures).is_dir() else Path(pictures).parent
    ids = _image_ids(files, annotations)
    detector = Detector.load(checkpoint, device=device, precision=precision)
    results: list[dict[str, Any]] = []
    for start in range(0, len(files), batch_size):
        batch = files[start : start + batch_size]
        images = [read_picture(file) for file in batch]
        for file, image, found in zip(batch, images, detector.predict(images), strict=True):
            name = file.relative_to(root).as_posix()
            results += [
                result | {"file_name": name}
                for result in coco_results(found, ids[file], detector.category_ids)
            ]
            sure = found["scores"] >= threshold
            drawn = draw_detections(
                image, found["boxes"][sure], found["labels"][sure], found["scores"][sure], detector.classes
            )
            target = Path(out) / (name if file.suffix.lower() == ".jpg" else f"{name}.jpg")
            target.parent.mkdir(parents=True, exist_ok=True)
            drawn.save(target, quality=92)
        advance(len(batch))
    write_json(Path(out) / "predictions.json", results)
    return results


def read_picture(path: Path | str) -> Tensor:
    """The picture as a float tensor [3, H, W] in 0..1, RGB, upright.

    Raises:
        DataError: the file is missing or cannot be read.
    """
    path = Path(path)
    width, height = image_size(path)
    none = np.zeros(0, np.float32)
    record = Record(
        image_id=0,
        path=path,
        width=width,
        height=height,
        boxes=none.reshape(0, 4),
        labels=none.astype(np.int64),
        crowd=none.astype(np.bool_),
        area=none,
    )
    return load_image(record).float() / 255


def find_pictures(path: Path) -> list[Path]:
    """The picture at `path`, or all in the folder and below it, sorted by name.

    Raises:
        DataError: there is nothing there, or no picture in it.
    """
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise DataError(f"{path}: no such picture or folder")
    files = sorted(file for file in path.rglob("*") if file.suffix.lower() in EXTENSIONS)
    if not files:
        raise DataError(f"{path}: no pictures here ({', '.join(sorted(EXTENSIONS))} are looked for)")
    return files


def _image_ids(files: list[Path], annotations: Path | str | None) -> dict[Path, int]:
    if annotations is None:
        return {file: number for number, file in enumerate(files, start=1)}
    try:
        known = {
            Path(image["file_name"]).name: image["id"]
            for image in json.loads(Path(annotations).read_text())["images"]
        }
    except (OSError, json.JSONDecodeError, KeyError, TypeError) as error:
        raise DataError(
            f"{annotations}: not COCO annotations ({error!r}); give a file with an 'images' list"
        ) from error
    missing = [file.name for file in files if file.name not in known]
    if missing:
        raise DataError(
            f"{annotations}: has no image of file name {missing[0]} ({len(missing)} missing in all)"
        )
    return {file: known[file.name] for file in files}


def _to_tensor(picture: Any) -> Tensor:
    if isinstance(picture, Tensor):
        return picture
    if isinstance(picture, str | Path):
        return read_picture(picture)
    array = np.asarray(picture.convert("RGB") if isinstance(picture, Image.Image) else picture)
    if array.ndim != 3 or array.shape[2] != 3 or array.dtype != np.uint8:
        raise DataError(
            f"a picture of shape {array.shape} and type {array.dtype}: give uint8 [H, W, 3], a float tensor [3, H, W]"
            " in 0..1, a Pillow picture or a file name"
        )
    return torch.from_numpy(array.copy()).permute(2, 0, 1).float() / 255
