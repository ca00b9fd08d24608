"""The data of benchmarks/proxy.py: what a frozen backbone makes of pictures, and the boxes in them."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ghmdet.data import DetectionDataset
from ghmdet.data.dataset import Draw
from ghmdet.engine.device import Device
from ghmdet.models import RetinaNet
from ghmdet.models.preprocess import Batch, scale_boxes
from ghmdet.models.targets import AnchorTargets
from ghmdet.pictures import resized_size


class Features:
    """What the backbone makes of a list of pictures, kept in files: features mapped into memory, and the boxes.

    levels: [n, C, H, W] each, channels_last. truth: each picture's boxes and labels, as a detector's targets are, in
    pixels of the padded picture.
    """

    def __init__(self, folder: Path, name: str) -> None:
        self.folder, self.name = folder, name

    def build(self, dataset: DetectionDataset, draws: list[Draw], model: RetinaNet, device: Device) -> None:
        """Fill the files, once: the pictures are padded to one size, so that any of them make a batch."""
        if self._about.exists():
            return
        limits = model.config.min_size, model.config.max_size
        sides = [resized_size(r.height, r.width, *limits) for r in dataset.data.records]
        step = model.config.size_divisible
        height, width = (-(-max(side) // step) * step for side in zip(*sides, strict=True))
        about: dict[str, Any] = {"picture": (height, width), "sizes": [], "original_sizes": [], "truth": []}
        started = time.monotonic()
        levels: list[Tensor] = []
        for at, draw in enumerate(draws):
            image, target = dataset[draw]
            batch = model.preprocess([image])
            (h, w), images = batch.sizes[0], batch.images
            images = F.pad(images, (0, width - images.shape[-1], 0, height - images.shape[-2]))
            images = images.contiguous(memory_format=torch.channels_last)
            with torch.inference_mode(), device.autocast():
                features = model.backbone(images)
            if not levels:
                about["shapes"] = [feature.permute(0, 2, 3, 1).shape[1:] for feature in features]
                about["dtype"] = features[0].dtype
                levels = self._map(len(draws), about, write=True)
            for level, feature in zip(levels, features, strict=True):
                level[at] = feature[0].permute(1, 2, 0)
            about["truth"].append(_truth(target, batch))
            about["sizes"].append((h, w))
            about["original_sizes"].append(tuple(target["original_size"].tolist()))
            if at % 100 == 99:
                print(
                    f"{self.name}: {at + 1} of {len(draws)} pictures, {time.monotonic() - started:.0f} s",
                    flush=True,
                )
        torch.save(about, self._about)

    def load(self) -> Features:
        """Map the files."""
        about = torch.load(self._about)
        self.picture: tuple[int, int] = about["picture"]
        self.sizes, self.original_sizes = about["sizes"], about["original_sizes"]
        self.truth: list[dict[str, Tensor]] = about["truth"]
        self.levels = self._map(len(self.truth), about, write=False)
        return self

    def batch(self, rows: np.ndarray) -> list[Tensor]:
        """The features of these pictures, [B, C, H, W] each."""
        index = torch.as_tensor(rows)
        return [level[index].permute(0, 3, 1, 2) for level in self.levels]

    def sizes_of(self, rows: np.ndarray) -> Batch:
        """What postprocessing needs to know of these pictures; its pictures have a shape and no content."""
        nothing = torch.zeros(1, 1, 1, 1).expand(len(rows), 3, *self.picture)
        return Batch(nothing, [self.sizes[row] for row in rows], [self.original_sizes[row] for row in rows])

    def targets(self, rows: np.ndarray, model: RetinaNet) -> AnchorTargets:
        """What each anchor of the model should say on these pictures."""
        sizes = [self.sizes[row] for row in rows]
        nothing = torch.zeros(1, 1, 1, 1).expand(len(rows), 3, *self.picture)
        return model.assign([self.truth[row] for row in rows], Batch(nothing, sizes, sizes))

    def relabel(self, dataset: DetectionDataset, draws: list[Draw], model: RetinaNet) -> None:
        """Take the boxes of another set of the same pictures, drawn alike; kept in a file of that set's folder."""
        file = dataset.data.root / f"truth_{self.name}.pt"
        if not file.exists():
            samples = (dataset[draw] for draw in draws)
            torch.save([_truth(target, model.preprocess([image])) for image, target in samples], file)
        self.truth = torch.load(file)

    @property
    def _about(self) -> Path:
        return self.folder / f"{self.name}.pt"

    def _map(self, count: int, about: dict[str, Any], *, write: bool) -> list[Tensor]:
        mapped = []
        for number, shape in enumerate(about["shapes"]):
            file = self.folder / f"{self.name}.{number}"
            if write:
                file.unlink(missing_ok=True)
            size = count * int(np.prod(shape))
            flat = torch.from_file(str(file), shared=True, size=size, dtype=about["dtype"])
            mapped.append(flat.view(count, *shape))
        return mapped


def _truth(target: dict[str, Any], batch: Batch) -> dict[str, Tensor]:
    """Boxes and labels of a batch of one picture, in pixels of it."""
    boxes = scale_boxes(target["boxes"].float(), batch.original_sizes[0], batch.sizes[0])
    return {"boxes": boxes, "labels": target["labels"]}
