"""A run in TensorBoard (`--tensorboard`, the one thing that imports it): numbers, spectra, what the detector sees."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch.utils.tensorboard import SummaryWriter

from ghmdet.data import DetectionData
from ghmdet.draw import contact_sheet, draw_side_by_side
from ghmdet.engine.detect import to_tensor
from ghmdet.spectrum import BACKGROUND, OBJECTS, REGIONS, Floats, Ints, SpectrumCounts

Draw = Callable[[SpectrumCounts], Figure]
PICTURES = 4
WIDEST = 1600
"""Pixels of the longer side of the sheet of pictures."""
THRESHOLD = 0.3
"""The least score of a detection that is drawn."""


class Board:
    """What a run writes to TensorBoard, from its main process.

    Args:
        folder: where the event files go.
        data: what the run is judged on.
        figures: by name, what draws an epoch's spectrum; drawing stands above the engine, which is handed it.
        step: the step that the run goes on from; what an interrupted run wrote after it is hidden.
    """

    def __init__(self, folder: Path, data: DetectionData, figures: Mapping[str, Draw], step: int) -> None:
        self.data, self.figures = data, figures
        self.writer = SummaryWriter(str(folder), purge_step=step + 1)

    def add_row(self, row: Mapping[str, Any]) -> None:
        """A row of a CSV: each column is a scalar of its name, but for those that say where in the run it is."""
        for name, value in row.items():
            if name not in ("step", "epoch") and value is not None:
                self.writer.add_scalar(name, value, int(row["step"]))

    def add_spectrum(self, spectrum: SpectrumCounts, step: int) -> None:
        """The spectrum of one epoch: histograms over g and gr, and the figures."""
        for kind, name in ((BACKGROUND, "background"), (OBJECTS, "objects")):
            counts, sums = (
                part[-1, kind].sum(axis=(0, 1)) for part in (spectrum.examples, spectrum.gradient)
            )
            self._add_histogram(name, counts, sums, step)
        self._add_histogram(
            "boxes", spectrum.boxes[-1].sum(axis=(0, 1)), spectrum.box_gradient[-1].sum(axis=(0, 1)), step
        )
        for name, draw in self.figures.items():
            self.writer.add_figure(f"spectrum/{name}", draw(spectrum), step)

    def add_predictions(self, results: Sequence[Mapping[str, Any]], step: int) -> None:
        """A sheet of a few pictures: annotations left, detections (of COCO results) right."""
        records, label = self.data.records, {id_: k for k, id_ in enumerate(self.data.category_ids)}
        pairs = []
        for number in range(0, len(records), max(1, len(records) // PICTURES))[:PICTURES]:
            record = records[number]
            mine = [
                one for one in results if one["image_id"] == record.image_id and one["score"] >= THRESHOLD
            ]
            boxes = torch.tensor([one["bbox"] for one in mine]).reshape(-1, 4)  # xywh
            found = {
                "boxes": torch.cat([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], dim=1),
                "labels": torch.tensor([label[one["category_id"]] for one in mine]),
                "scores": torch.tensor([one["score"] for one in mine]),
            }
            truth = {"boxes": torch.from_numpy(record.boxes), "labels": torch.from_numpy(record.labels)}
            pairs.append(draw_side_by_side(to_tensor(record.path), truth, found, self.data.classes))
        sheet = contact_sheet(pairs, columns=1)
        sheet.thumbnail((WIDEST, WIDEST))
        self.writer.add_image("predictions", np.asarray(sheet), step, dataformats="HWC")

    def close(self) -> None:
        """Write what is left."""
        self.writer.close()

    def _add_histogram(self, name: str, counts: Ints, sums: Floats, step: int) -> None:
        edges = np.linspace(0, 1, REGIONS + 1)
        centres = (edges[:-1] + edges[1:]) / 2
        seen = counts.nonzero()[0]
        self.writer.add_histogram_raw(
            f"spectrum/{name}",
            min=float(edges[seen[0]]) if len(seen) else 0.0,
            max=float(edges[seen[-1] + 1]) if len(seen) else 0.0,
            num=int(counts.sum()),
            sum=float(sums.sum()),
            sum_squares=float((counts * centres**2).sum()),
            bucket_limits=edges[1:].tolist(),
            bucket_counts=counts.tolist(),
            global_step=step,
        )
