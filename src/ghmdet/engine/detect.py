"""A trained detector, ready to look at pictures or at a whole data set."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2.functional import vertical_flip_bounding_boxes
from torchvision.tv_tensors import BoundingBoxFormat

from ghmdet.data import DetectionData, DetectionDataset, EvalTransforms, make_loader
from ghmdet.engine.checkpoint import load_detector
from ghmdet.engine.device import Device, choose_device
from ghmdet.engine.run_folder import coco_results
from ghmdet.models import RetinaNet
from ghmdet.models.folding import fold_batch_norm
from ghmdet.pictures import resized_size
from ghmdet.runtime import THRESHOLD, above, no_picture, read

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
        """The detector in a checkpoint that training wrote, to detect: batch norm is folded.

        path: a run's folder, which means its `best.pt`, or a `best.pt` or `last.pt`.

        Raises:
            CheckpointError: the file is missing or is not such a checkpoint.
            GhmdetError: the device is not there.
        """
        chosen = choose_device(device, precision)  # first: to read a checkpoint takes longer
        model, category_ids = load_detector(path)
        return cls(fold_batch_norm(model), category_ids, chosen)

    @torch.inference_mode()
    def predict(
        self, images: Picture | Sequence[Picture], *, threshold: float = THRESHOLD
    ) -> list[dict[str, Tensor]]:
        """Detect on pictures of any sizes; what is found on one does not depend on the others.

        Args:
            images: a picture or several: file names, Pillow pictures, uint8 arrays (RGB [H, W, 3], RGBA [H, W, 4] or
                grey [H, W]), or float tensors [3, H, W] in 0..1.
            threshold: the least score of a detection; for a score such as AP give 0.

        Returns:
            For each picture a dict of CPU tensors, best first: boxes [n, 4] xyxy in its pixels, scores [n] in 0..1,
            labels [n] (indices into `classes`).

        Raises:
            DataError: a file that cannot be read, or an array of another form.
            GhmdetError: a threshold that is no score.
        """
        single = not isinstance(images, Sequence) or isinstance(images, str)
        pictures: Sequence[Any] = [images] if single else images  # type: ignore[assignment]
        found = _detect_batch(self.model, [to_tensor(picture) for picture in pictures], self.device)
        return [above(threshold, one) for one in found]


def to_tensor(picture: Any) -> Tensor:
    """A picture in any of the forms that `Detector.predict` takes, as a float tensor [3, H, W] in 0..1, RGB, upright.

    Raises:
        DataError: a file that cannot be read, or an array of another form.
    """
    if isinstance(picture, Tensor):
        if not picture.is_floating_point() or picture.dim() != 3 or len(picture) != 3 or not picture.numel():
            raise no_picture(tuple(picture.shape), picture.dtype)
        return picture
    return torch.from_numpy(read(picture)).permute(2, 0, 1).contiguous().float() / 255


@torch.inference_mode()
def detect(
    model: RetinaNet,
    data: DetectionData,
    *,
    device: Device,
    batch_size: int = 16,
    workers: int = 0,
    rank: int = 0,
    world_size: int = 1,
    upside_down: bool = False,
    advance: Callable[[int], None] = lambda pictures: None,
) -> list[dict[str, Any]]:
    """Detect on the pictures of `data`: COCO results, in original pixels; raises DataError for an unreadable picture.

    model: on `device`; its mode is restored. batch_size: pictures at a time. workers: processes that read pictures.
    rank: which of `world_size` equal shares of the pictures. upside_down: the model sees the pictures so; results
    are of the pictures as they are. advance: called with the number of pictures just finished.
    """
    was_training = model.training
    model.eval()
    dataset = DetectionDataset(
        data, EvalTransforms(model.config.min_size, model.config.max_size), cache=False
    )
    loader = make_loader(
        dataset, batch_size=batch_size, shuffle=False, workers=workers, rank=rank, world_size=world_size
    )
    results = []
    for images, targets in loader:
        seen = [image.flip(1) for image in images] if upside_down else images
        found = _detect_batch(model, seen, device)
        for image, target, detections in zip(images, targets, found, strict=True):
            if upside_down:
                detections["boxes"] = vertical_flip_bounding_boxes(
                    detections["boxes"], BoundingBoxFormat.XYXY, image.shape[1:]
                )
            results += original_results(detections, image, target, data.category_ids)
        advance(len(images))
    model.train(was_training)
    return results


def _detect_batch(model: RetinaNet, images: Sequence[Tensor], device: Device) -> list[dict[str, Tensor]]:
    """The detections of each picture, on the CPU; pictures of one padded size go through the network together.

    Padded to the size of a larger neighbour, a picture has other statistics in each GroupNorm, and so other scores. In
    fp32 on a CPU each goes alone, since the library's kernels round otherwise for another number of pictures.
    """
    config, alone = model.config, device.type == "cpu" and device.precision == "fp32"
    together: dict[tuple[int, ...], list[int]] = {}
    for index, image in enumerate(images):
        size = resized_size(image.shape[-2], image.shape[-1], config.min_size, config.max_size)
        padded = tuple(math.ceil(side / config.size_divisible) for side in size)
        together.setdefault((index,) if alone else padded, []).append(index)
    found: dict[int, dict[str, Tensor]] = {}
    for indices in together.values():
        with device.autocast():
            batch = model([images[index].to(device.type, non_blocking=True) for index in indices])
        found |= zip(indices, batch, strict=True)
    return [_on_cpu(found[index]) for index in range(len(images))]


def _on_cpu(detections: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.cpu() for name, value in detections.items()}


def original_results(
    detections: dict[str, Tensor], image: Tensor, target: dict[str, Any], category_ids: tuple[int, ...]
) -> list[dict[str, Any]]:
    """The detections on an image [3, H, W] of a `DetectionDataset`, as COCO results in the file's own pixels."""
    to_original = target["original_size"] / torch.tensor(image.shape[-2:])  # height, width
    found = _on_cpu(detections)
    boxes = found["boxes"] * to_original.flip(0).repeat(2)
    return coco_results(found | {"boxes": boxes}, target["image_id"], category_ids)
