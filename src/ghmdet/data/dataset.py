"""The torch Dataset of a detection set: loads, keeps in memory what fits, transforms, reproducibly."""

from __future__ import annotations

import mmap
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from torchvision import tv_tensors
from torchvision.transforms.v2 import functional as F

from ghmdet.data.images import load_image, shrunk_size
from ghmdet.data.records import DetectionData
from ghmdet.data.transforms import Target, as_boxes, crop_and_place

CACHE_LIMIT = 1 << 30  # bytes


@dataclass(frozen=True, slots=True)
class Draw:
    """A picture's index and the seed of its augmentation: what the loader asks a dataset for."""

    index: int
    seed: int


@contextmanager
def reproducible(seed: int) -> Iterator[None]:
    """Torch's global CPU generator seeded for the block, and put back after it.

    One thread, as in a worker process: the sums behind a picture's mean depend on how many share them.
    """
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    try:
        torch.default_generator.manual_seed(seed)
        torch.set_num_threads(1)
        yield
    finally:
        torch.set_num_threads(threads)
        torch.set_rng_state(state)


class PictureCache:
    """Loaded pictures of a data set, in one block of memory that forked worker processes share.

    Memory is taken as pictures come. Two workers may load the same picture at once: they write the same bytes.
    """

    def __init__(self, sizes: np.ndarray[Any, np.dtype[np.int64]]) -> None:
        self._sizes = sizes  # [N, 2] width, height
        self._ends = np.cumsum([0, *(3 * sizes.prod(1))])
        self._memory = mmap.mmap(-1, int(self._ends[-1]) + len(sizes))
        self._pixels = torch.frombuffer(self._memory, dtype=torch.uint8)
        self._filled = self._pixels[int(self._ends[-1]) :]

    def __reduce__(self) -> tuple[type[PictureCache], tuple[Any]]:
        return PictureCache, (self._sizes,)  # a spawned worker starts with its own, empty one

    def get(self, index: int, load: Callable[[], Tensor]) -> Tensor:
        """The picture of this index, uint8 [3, h, w]; not to be written to."""
        width, height = self._sizes[index].tolist()
        place = self._pixels[int(self._ends[index]) : int(self._ends[index + 1])].view(3, height, width)
        if not self._filled[index]:
            place.copy_(load())
            self._filled[index] = 1
        return place


class DetectionDataset(Dataset[tuple[Tensor, Target]]):
    """Pictures and targets of a `DetectionData`.

    An item is (image float32 [3, H, W] in 0..1, target): boxes float32 [n, 4] xyxy in pixels of that image, labels
    int64 [n] in 0..K-1 (there is no background class), image_id int, original_size int64 [2] (height, width of the
    file's picture, to take detections back to). Crowd regions are left out.

    transforms: called as transforms(image, target), see `ghmdet.data.transforms`. cache: "auto" keeps the loaded
    and shrunk pictures in memory where all fit into 1 GiB; True and False decide. Items are asked for by index, or
    by `Draw` to fix the random numbers.
    """

    def __init__(
        self,
        data: DetectionData,
        transforms: Callable[[Tensor, Target], tuple[Tensor, Target]],
        *,
        cache: bool | Literal["auto"] = "auto",
    ) -> None:
        self.data = data
        self.transforms = transforms
        self._limits: tuple[int, int] | None = getattr(transforms, "load_limits", None)
        self._mosaic: float = getattr(getattr(transforms, "config", None), "mosaic", 0.0)
        self._cache: PictureCache | None = None
        if cache:
            sizes = np.array([shrunk_size(w, h, self._limits) for w, h in data.records.sizes.tolist()])
            if cache is True or 3 * sizes.prod(1).sum() <= CACHE_LIMIT:
                self._cache = PictureCache(sizes)

    def __len__(self) -> int:
        return len(self.data.records)

    def __getitem__(self, item: int | Draw) -> tuple[Tensor, Target]:
        if isinstance(item, Draw):
            with reproducible(item.seed):
                return self._sample(item.index)
        return self._sample(item)

    def _sample(self, index: int) -> tuple[Tensor, Target]:
        if self._mosaic > 0 and torch.rand(()) < self._mosaic:
            image, target = self._four(index)
        else:
            image, target = self._load(index)
        image, target = self.transforms(image, target)
        pixels = F.to_dtype(image.as_subclass(Tensor), torch.float32, scale=True).contiguous()
        return pixels, {**target, "boxes": target["boxes"].as_subclass(Tensor)}

    def _load(self, index: int) -> tuple[Tensor, Target]:
        record = self.data.records[index]
        load = partial(load_image, record, self._limits)
        image = load() if self._cache is None else self._cache.get(index, load)
        height, width = image.shape[1:]
        used = ~record.crowd
        shrink = np.array([width / record.width, height / record.height] * 2, dtype=np.float32)
        return tv_tensors.Image(image), {
            "boxes": as_boxes(torch.from_numpy(record.boxes[used] * shrink), (height, width)),
            "labels": torch.from_numpy(record.labels[used]),
            "image_id": record.image_id,
            "original_size": torch.tensor([record.height, record.width]),
        }

    def _four(self, index: int) -> tuple[Tensor, Target]:
        """Four pictures in a square (this one and three at random), and of that a random window."""
        others = torch.randint(len(self), (3,)).tolist()
        image, first = self._load(index)
        height, width = image.shape[1:]
        canvas = torch.empty((3, 2 * height, 2 * width), dtype=torch.uint8)
        boxes, labels = [], []
        for place, other in enumerate((index, *others)):
            image, target = self._load(other)
            h, w = image.shape[1:]
            view = max(h / height, w / width)  # the aspect kept, the rest of the quarter filled
            window = (0.0, 0.0, width * view, height * view)
            image, target = crop_and_place(image, target, window, (height, width), 0.0)
            x, y = place % 2 * width, place // 2 * height
            canvas[:, y : y + height, x : x + width] = image
            boxes.append(target["boxes"].as_subclass(Tensor) + torch.tensor([x, y, x, y]))
            labels.append(target["labels"])
        share, *corner = torch.rand(3).tolist()
        view_w, view_h = (round(side * (1 + share)) for side in (width, height))
        left, top = round(corner[0] * (2 * width - view_w)), round(corner[1] * (2 * height - view_h))
        target = {**first, "boxes": torch.cat(boxes), "labels": torch.cat(labels)}
        window = (left, top, left + view_w, top + view_h)
        visible = self.transforms.config.min_visible  # type: ignore[attr-defined]
        image, target = crop_and_place(canvas, target, window, (view_h, view_w), visible)
        return tv_tensors.Image(image), target
