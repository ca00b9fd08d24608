"""What a run trains on and is judged on, read and checked before any work starts."""

import os
import shlex
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from typing import Any

from torch import Tensor

from ghmdet.data import (
    DetectionData,
    DetectionDataset,
    TrainTransforms,
    make_loader,
    read_data,
    require_images,
)
from ghmdet.data.check import copies, in_both
from ghmdet.data.fingerprint import differences, fingerprint, labelled
from ghmdet.data.images import load_image, require_apart
from ghmdet.data.records import NAMED_PROBLEMS
from ghmdet.engine.checkpoint import can_resume
from ghmdet.engine.context import RunContext
from ghmdet.engine.fitting import fit_to_data
from ghmdet.errors import DataError, GhmdetError
from ghmdet.progress import counting
from ghmdet.words import many


class TrainingData:
    """The two parts of a data set, `train` and `val`, the settings that suit it, and this rank's `loader` of batches.

    Raises:
        GhmdetError: data that cannot be used, or too little of it for a batch or a step.
    """

    def __init__(self, run: RunContext) -> None:
        config, accelerator, data = run.config, run.accelerator, run.data
        self.train = read_data(data, config.train_split)
        self.val = read_data(data, config.val_split, classes=self.train.classes)
        if self.val.split == self.train.split:
            raise GhmdetError(
                f"{data}: training and validation would both be '{self.train.split}': give the folder that holds"
                f" both parts, or another --val-split, or make a val part: ghmdet data split"
                f" {shlex.quote(str(data))} NEW-FOLDER"
            )
        for part in (self.train, self.val):
            require_images(part)
            run.say(part.describe())
        if run.main and (twice := in_both(self.train, self.val)):
            named = ", ".join(path.name for path in twice[:NAMED_PROBLEMS])
            run.say(
                f"Warning: {len(twice)} of {len(self.val.records)} validation pictures are trained on, too ({named}):"
                " keep each in one part, or AP is of what was learnt by heart."
            )
        if run.main and (made := copies(self.train, self.val)):
            named = ", ".join(path.name for path in made[:NAMED_PROBLEMS])
            run.say(
                f"Warning: {len(made)} of {len(self.val.records)} validation pictures have the name before .rf. of one"
                f" that is trained on, as augmented copies have ({named}): keep them in one part, or AP is too high."
            )
        if not run.saved:
            require_apart(run.folder, self.train)
            config = fit_to_data(config, self.train, run.say)
        self.config, self.folder = config, run.folder
        model = config.network()
        _decode(self.val, accelerator.process_index, accelerator.num_processes)
        if config.batch_size % accelerator.num_processes:
            raise GhmdetError(
                f"--batch-size {config.batch_size} does not divide among {accelerator.num_processes} processes:"
                " give a multiple of it"
            )
        self._transforms = partial(TrainTransforms, model.min_size, model.max_size)
        self._dataset = DetectionDataset(self.train, self._transforms(config.augment))
        self._load = partial(
            make_loader,
            self._dataset,
            batch_size=config.batch_size,
            shuffle=True,
            seed=config.seed,
            workers=run.workers,
            rank=accelerator.process_index,
            world_size=accelerator.num_processes,
            drop_last=True,
        )
        self.loader = self._load()
        self.steps_per_epoch = len(self.loader) // config.accumulate
        """Optimizer steps; batches that do not fill one are left out."""
        if not self.steps_per_epoch:
            raise GhmdetError(
                f"{many(len(self.train.records), 'picture')} make {many(len(self.loader), 'batch/batches')} of"
                f" {config.batch_size}, fewer than --accumulate {config.accumulate}: give a smaller --batch-size or"
                " --accumulate"
            )

        self.fingerprints = {part.split: fingerprint(part) for part in (self.train, self.val)}
        self.learnt = labelled(self.train)
        self.changed = self._changes(run.saved) if run.saved else []
        """What is not as it was when the run was interrupted, in words."""
        if self.changed and not run.accept_changed_data:
            raise GhmdetError(
                f"cannot resume {run.folder} on other data: {'; '.join(self.changed)}: put it back as it was, or go on"
                " with it as it is: --accept-changed-data"
            )

    def batches(self) -> Iterator[tuple[list[Tensor], list[dict[str, Any]]]]:
        """The loader's; a picture that cannot be read, met in training, is an error that says how to go on."""
        try:
            yield from self.loader
        except DataError as error:
            changed = " --accept-changed-data" if can_resume(self.folder) else ""
            raise DataError(f"{error}; then go on with --resume{changed}") from error

    def turn(self, vflip: float) -> None:
        """Turn training pictures upside down with this chance from now on."""
        self._dataset.transforms = self._transforms(replace(self.config.augment, vflip=vflip))
        self.loader = self._load()  # its processes keep the transforms that they began with

    def _changes(self, saved: Mapping[str, Any]) -> list[str]:
        """What differs from the data of a saved run.

        Raises:
            GhmdetError: other classes, which nothing can accept.
        """
        if saved["classes"] != list(self.train.classes):
            raise GhmdetError(
                f"cannot resume on other classes: {', '.join(self.train.classes)} (the run has"
                f" {', '.join(saved['classes'])}): train on from its weights in another folder, --weights"
            )
        parts, then = (self.train, self.val), saved["fingerprints"].values()
        found = [*filter(None, map(differences, parts, self.fingerprints.values(), then))]
        if tuple(saved["category_ids"] or self.train.category_ids) != self.train.category_ids:
            found.append(f"the category ids of {self.train.split}")
        return found

    def file_names(self, ids: list[int]) -> list[str]:
        """The names of training pictures by their ids."""
        paths = {record.image_id: record.path for record in self.train.records}
        return [paths[image_id].name for image_id in ids]


def _decode(data: DetectionData, rank: int, world_size: int) -> None:
    """Decode this rank's share of the pictures, small: the first epoch is too late for an error of the last.

    Raises:
        DataError: naming the first that cannot be read.
    """
    records = data.records[rank::world_size]
    with ThreadPoolExecutor(os.cpu_count()) as threads, counting("pictures", len(records)) as advance:
        for _ in threads.map(lambda record: load_image(record, (32, 32)), records):
            advance(1)
