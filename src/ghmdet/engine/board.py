"""A run in TensorBoard (`--tensorboard`, the one thing that imports it): numbers, spectra, what the detector sees."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from torch.utils.tensorboard import SummaryWriter

from ghmdet.data import DetectionData
from ghmdet.draw import draw_results
from ghmdet.spectrum import BACKGROUND, OBJECTS, REGIONS, SpectrumCounts

Draw = Callable[[SpectrumCounts], Figure]
PICTURES = 4
WIDEST = 1600
"""Pixels of the longer side of the sheet of pictures."""


class Board:
    """What a run writes to TensorBoard, from its main process.

    Args:
        folder: where the event files go.
        data: the validation part.
        figures: by name, what draws the last epoch of a spectrum.
        step: the step that the run goes on from; what an interrupted run wrote after it is hidden.
    """

    def __init__(self, folder: Path, data: DetectionData, figures: Mapping[str, Draw], step: int) -> None:
        self.data, self.figures = data, figures
        self.writer = SummaryWriter(str(folder), purge_step=step + 1)

    def add_row(self, row: Mapping[str, Any]) -> None:
        """A row of a CSV: each column but step and epoch is a scalar of its name."""
        for name, value in row.items():
            if name not in ("step", "epoch") and value is not None:
                self.writer.add_scalar(name, value, int(row["step"]))

    def add_spectrum(self, spectrum: SpectrumCounts, step: int) -> None:
        """The spectrum of the last epoch: histograms over g and gr, and the figures."""
        examples, gradient = spectrum.examples[-1], spectrum.gradient[-1]
        tables = {
            "background": (examples[BACKGROUND], gradient[BACKGROUND]),
            "objects": (examples[OBJECTS], gradient[OBJECTS]),
            "boxes": (spectrum.boxes[-1], spectrum.box_gradient[-1]),
        }
        limits = np.arange(1, REGIONS + 1) / REGIONS
        for name, (by_level, sums) in tables.items():
            counts = by_level.sum(axis=(0, 1))
            self.writer.add_histogram_raw(
                f"spectrum/{name}",
                min=0.0,
                max=1.0,
                num=int(counts.sum()),
                sum=float(sums.sum()),
                sum_squares=float((counts * (limits - 0.5 / REGIONS) ** 2).sum()),
                bucket_limits=limits.tolist(),
                bucket_counts=counts.tolist(),
                global_step=step,
            )
        for name, draw in self.figures.items():
            self.writer.add_figure(f"spectrum/{name}", draw(spectrum), step)

    def add_predictions(self, results: Sequence[Mapping[str, Any]], step: int) -> None:
        """A sheet of a few pictures: annotations left, detections (of COCO results) right."""
        sheet = draw_results(self.data, results, PICTURES)
        sheet.thumbnail((WIDEST, WIDEST))
        self.writer.add_image("predictions", np.asarray(sheet), step, dataformats="HWC")

    def close(self) -> None:
        """Write what is left."""
        self.writer.close()
