"""Batches in an order, and with random numbers, that depend on (seed, epoch, index) alone.

Neither the number of worker processes nor of ranks changes a batch, and a run can go on from the middle of an epoch.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Sampler

from ghmdet.data.dataset import DetectionDataset, Draw
from ghmdet.data.transforms import Target
from ghmdet.errors import DataError, GhmdetError
from ghmdet.signals import leave_to_main

Batch = tuple[list[Tensor], list[Target]]


@dataclass(eq=False, kw_only=True)
class EpochBatches(Sampler[list[Draw]]):
    """The batches of one epoch after another: lists of `Draw`, this rank's share of each global batch.

    tall: for each picture, whether it is taller than wide; shuffled batches hold one orientation as far as they go,
    since a batch is padded to its tallest and its widest picture. drop_last: a last batch that is not full is left
    out, unless it is the only one. set_epoch chooses the epoch; `start_batch` batches of it are left out (to resume)
    until the next set_epoch. Rank r of R takes the r-th contiguous part of every global batch, so that R ranks
    together see what one process would.
    """

    tall: NDArray[np.bool_]
    batch_size: int
    shuffle: bool
    seed: int
    drop_last: bool
    rank: int
    world_size: int
    epoch: int = 0
    start_batch: int = 0

    def set_epoch(self, epoch: int, start_batch: int = 0) -> None:
        """Choose the epoch, and the batch of it to begin with."""
        self.epoch, self.start_batch = epoch, start_batch

    @property
    def batches_per_epoch(self) -> int:
        """The number of batches of a whole epoch, the same on every rank."""
        whole, rest = divmod(len(self.tall), self.batch_size)
        return whole + (rest > 0 and not (self.drop_last and whole))

    def __len__(self) -> int:
        return max(0, self.batches_per_epoch - self.start_batch)

    def __iter__(self) -> Iterator[list[Draw]]:
        order = np.arange(len(self.tall))
        if self.shuffle:
            order = self._grouped(np.random.default_rng([self.seed, self.epoch]).permutation(len(self.tall)))
        for batch in range(self.start_batch, self.batches_per_epoch):
            indices = order[batch * self.batch_size : (batch + 1) * self.batch_size]
            start, end = (len(indices) * r // self.world_size for r in (self.rank, self.rank + 1))
            yield [Draw(index, self._seed_of(index)) for index in indices[start:end].tolist()]

    def _grouped(self, order: NDArray[np.int64]) -> NDArray[np.int64]:
        """The order with tall and wide pictures each gathered into whole batches; what is left of both comes last."""
        grouped: list[int] = []
        waiting: tuple[list[int], list[int]] = ([], [])
        for index in order.tolist():
            group = waiting[int(self.tall[index])]
            group.append(index)
            if len(group) == self.batch_size:
                grouped += group
                group.clear()
        return np.array(grouped + waiting[0] + waiting[1], dtype=np.int64)

    def _seed_of(self, index: int) -> int:
        state = np.random.SeedSequence([self.seed, self.epoch, index]).generate_state(1, np.uint64)
        return int(state[0] >> np.uint64(1))


def _collate(samples: list[tuple[Tensor, Target]]) -> Batch:
    return [image for image, _ in samples], [target for _, target in samples]


class DetectionLoader(DataLoader[Any]):
    """A DataLoader of (list of images, list of targets); its batch_sampler is an `EpochBatches`."""

    batch_sampler: EpochBatches

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]
        try:
            yield from super().__iter__()
        except DataError as error:  # from a worker process it comes as the last line of a page of traceback
            told = str(error).rstrip().rpartition("\n")[2]
        else:
            return
        raise DataError(told.removeprefix(f"{DataError.__module__}.{DataError.__name__}: "))


def make_loader(
    dataset: DetectionDataset,
    *,
    batch_size: int,
    shuffle: bool,
    seed: int = 0,
    drop_last: bool = False,
    workers: int = 0,
    rank: int = 0,
    world_size: int = 1,
) -> DetectionLoader:
    """A loader of (list of images float32 [3, H, W], list of targets) of `dataset`.

    batch_size: pictures in a global batch, all ranks together. shuffle: a new order each epoch (`set_epoch`). seed:
    of order and augmentation. drop_last: leave out a last batch that is not full, unless it is the only one. workers:
    processes that load; they change no batch. rank, world_size: this process's share of each batch.

    Raises GhmdetError when a shuffled batch would be empty on some rank (unshuffled ones may be, for evaluation's
    sake); iterating raises DataError naming a bad picture.
    """
    if batch_size < 1:
        raise GhmdetError(f"batch size is {batch_size}: choose at least 1")
    sizes = dataset.data.records.sizes
    batches = EpochBatches(
        tall=sizes[:, 1] > sizes[:, 0],
        batch_size=batch_size,
        shuffle=shuffle,
        seed=seed,
        drop_last=drop_last,
        rank=rank,
        world_size=world_size,
    )
    last = len(sizes) - batch_size * (batches.batches_per_epoch - 1)
    if shuffle and min(batch_size, last) < world_size:
        raise GhmdetError(
            f"batches of {batch_size} and a last one of {last} cannot be shared by {world_size} processes: "
            "choose another batch size"
        )
    return DetectionLoader(
        dataset,
        batch_sampler=batches,
        collate_fn=_collate,
        num_workers=workers,
        worker_init_fn=leave_to_main,
        persistent_workers=workers > 0,
        generator=torch.Generator(),  # DataLoader draws a seed nobody uses; not from the global generator
        pin_memory=torch.cuda.is_available(),
    )
