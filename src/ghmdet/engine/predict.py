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

from ghmdet.data.images import EXTENSIONS, picture_tensor, read_picture
from ghmdet.draw import draw_detections, save_jpeg
from ghmdet.engine.checkpoint import load_checkpoint
from ghmdet.engine.device import Device, choose_device
from ghmdet.engine.evaluate import coco_results
from ghmdet.engine.progress import counting
from ghmdet.engine.run_folder import write_json
from ghmdet.engine.settings import check_numbers
from ghmdet.errors import DataError, GhmdetError
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
        tensors = [to_tensor(picture).to(self.device.type) for picture in pictures]
        with self.device.autocast():
            detections = self.model(tensors)
        return [
            {name: value.float().cpu() if name != "labels" else value.cpu() for name, value in one.items()}
            for one in detections
        ]


def predict(
    checkpoint: Path,
    pictures: Path,
    /,
    *,
    out: Path,
    annotations: Path | None = None,
    threshold: float = 0.3,
    batch_size: int = 8,
    device: str = "auto",
    precision: str = "auto",
    say: Callable[[str], None] = print,
) -> list[dict[str, Any]]:
    """Detect on a picture or a folder; writes predictions.json (COCO results) and drawn pictures.

    Args:
        checkpoint: A `best.pt` or `last.pt` of a training run.
        pictures: A picture, or a folder that is searched with its subfolders.
        out: Folder to write; drawn pictures keep their names, with `.jpg` added where they are not JPEG.
        annotations: COCO annotations whose image and category ids the results should carry, matched by file and class
            name, so that `ghmdet score` can compare them; by default pictures are numbered from 1 in order of their
            names.
        threshold: The least score of a box that is drawn; predictions.json keeps them all.
        batch_size: Pictures at a time.
        device: auto, cpu or cuda.
        precision: auto, fp32, bf16 or fp16.
        say: Takes each line meant for the user.

    Returns:
        COCO results, each with the `file_name` of its picture as well.

    Raises:
        DataError: no pictures, or one that the annotations do not know; after all the others are done, one that
            cannot be read.
        CheckpointError: the checkpoint cannot be read.
    """
    check_numbers(threshold=threshold, batch_size=batch_size)
    pictures, out = Path(pictures), Path(out)
    root = pictures if pictures.is_dir() else pictures.parent
    if out.resolve() == root.resolve():
        raise GhmdetError(
            f"--out {out} holds the pictures themselves, which would be overwritten: give another folder"
        )
    files = [file for file in find_pictures(pictures) if out.resolve() not in file.resolve().parents]
    detector = Detector.load(checkpoint, device=device, precision=precision)
    truth = None if annotations is None else KnownImages(annotations)
    category_ids = detector.category_ids if truth is None else truth.category_ids(detector.classes)
    ids = {
        file: number if truth is None else truth.image_id(file.relative_to(root))
        for number, file in enumerate(files, start=1)
    }
    results: list[dict[str, Any]] = []
    unreadable: list[DataError] = []
    with counting("pictures", len(files)) as advance:
        for start in range(0, len(files), batch_size):
            batch: dict[Path, Tensor] = {}
            for file in files[start : start + batch_size]:
                try:
                    batch[file] = to_tensor(file)
                except DataError as error:
                    unreadable.append(error)
            found = detector.predict(list(batch.values())) if batch else []
            for (file, image), detections in zip(batch.items(), found, strict=True):
                name = file.relative_to(root).as_posix()
                results += [
                    result | {"file_name": name}
                    for result in coco_results(detections, ids[file], category_ids)
                ]
                sure = {key: value[detections["scores"] >= threshold] for key, value in detections.items()}
                drawn = draw_detections(
                    image, sure["boxes"], sure["labels"], sure["scores"], detector.classes
                )
                target = out / (name if file.suffix.lower() == ".jpg" else f"{name}.jpg")
                save_jpeg(drawn, target)
            advance(min(batch_size, len(files) - start))
    write_json(out / "predictions.json", results)
    if unreadable:
        raise DataError(
            f"{len(unreadable)} of {len(files)} pictures could not be read (the others are in {out}), first:"
            f" {unreadable[0]}"
        )
    drawn = sum(result["score"] >= threshold for result in results)
    say(f"{len(results)} boxes, {drawn} of them scored at least {threshold:g} and drawn: {out}")
    return results


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


class KnownImages:
    """The image and category ids of COCO annotations, found by file name and by class name.

    Raises:
        DataError: the file is no COCO annotations; later, a name it does not know or that stands for two images.
    """

    def __init__(self, annotations: Path | str) -> None:
        self.source = annotations
        try:
            content = json.loads(Path(annotations).read_text(encoding="utf-8-sig"))
            self.images = [(Path(image["file_name"]), int(image["id"])) for image in content["images"]]
            self.categories = {
                str(category["name"]): int(category["id"]) for category in content["categories"]
            }
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(
                f"{annotations}: not COCO annotations ({error!r}): give a file with 'images' and 'categories'"
            ) from error
        self.by_name: dict[str, set[int]] = {}
        for path, image_id in self.images:
            self.by_name.setdefault(path.name, set()).add(image_id)
        self.by_path = {path.as_posix(): image_id for path, image_id in self.images}

    def image_id(self, path: Path) -> int:
        """The id of the picture at a path relative to the pictures' folder, or else of its only namesake."""
        if path.as_posix() in self.by_path:
            return self.by_path[path.as_posix()]
        namesakes = self.by_name.get(path.name, set())
        if len(namesakes) != 1:
            what = f"{len(namesakes)} images" if namesakes else "no image"
            raise DataError(f"{self.source}: has {what} of file name {path.name}, wanted for {path}")
        return next(iter(namesakes))

    def category_ids(self, classes: Sequence[str]) -> tuple[int, ...]:
        """The category id of each class."""
        missing = [name for name in classes if name not in self.categories]
        if missing:
            raise DataError(
                f"{self.source}: has no category '{missing[0]}', which the detector finds; it has"
                f" {', '.join(self.categories)}"
            )
        return tuple(self.categories[name] for name in classes)


def to_tensor(picture: Any) -> Tensor:
    """A picture in any of the forms that `Detector.predict` takes, as a float tensor [3, H, W] in 0..1, RGB, upright.

    Raises:
        DataError: a file that cannot be read, or an array of another form.
    """
    if isinstance(picture, Tensor):
        return picture
    if isinstance(picture, str | Path):
        return read_picture(Path(picture)).float() / 255
    if isinstance(picture, Image.Image):
        return picture_tensor(picture).float() / 255
    array = np.asarray(picture)
    if array.ndim != 3 or array.shape[2] != 3 or array.dtype != np.uint8:
        raise DataError(
            f"a picture of shape {array.shape} and type {array.dtype}: give uint8 [H, W, 3], a float tensor [3, H, W]"
            " in 0..1, a Pillow picture or a file name"
        )
    return torch.from_numpy(array.copy()).permute(2, 0, 1).float() / 255
