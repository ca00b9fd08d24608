"""What TensorBoard reads of a run, against the run's own files."""

from __future__ import annotations

import csv
import io
import os
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from engine_cases import TINY
from ghmdet.engine.context import begin_run
from ghmdet.engine.train import Trainer, train
from ghmdet.report.figures import draw_examples
from ghmdet.spectrum import SpectrumCounts

CONFIG = replace(TINY, val_every=1, tensorboard=True)


class Stopped(Trainer):
    """A run that receives a stop signal in the middle of its second epoch."""

    def _step(self, *batch: object) -> bool:  # type: ignore[override]
        stepped = super()._step(*batch)  # type: ignore[arg-type]
        if self.progress.step == 5:
            self.board.add_row({"step": 6, "loss": -1.0})  # as if it had come further than its last save
            os.kill(os.getpid(), 15)
        return stepped


@pytest.fixture(scope="module")
def out(squares: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of three epochs that was stopped and continued."""
    out = tmp_path_factory.mktemp("board") / "run"
    with pytest.raises(KeyboardInterrupt):
        Stopped(begin_run(squares, out, CONFIG, say=lambda line: None)).fit()
    train(squares, out, CONFIG, resume=True, say=lambda line: None, figures={"examples": draw_examples})
    return out


@pytest.fixture(scope="module")
def events(out: Path) -> EventAccumulator:
    events = EventAccumulator(str(out / "tensorboard"), size_guidance={"images": 0, "histograms": 0})
    return events.Reload()


def test_scalars_are_the_columns_of_the_csvs_with_no_step_twice(out: Path, events: EventAccumulator) -> None:
    columns = {}
    for name in ("log.csv", "metrics.csv"):
        with (out / name).open() as file:
            for row in csv.DictReader(file):
                for column, value in row.items():
                    if value and column not in ("step", "epoch"):
                        columns.setdefault(column, []).append((int(row["step"]), float(value)))
    assert len(columns["loss"]) == 9 and len(columns["AP"]) == 3
    assert set(events.Tags()["scalars"]) == set(columns)
    for column, points in columns.items():
        found = [(event.step, event.value) for event in events.Scalars(column)]
        assert found == [(step, pytest.approx(value, rel=1e-6)) for step, value in points], column


def test_histograms_are_the_spectrum_of_each_epoch(out: Path, events: EventAccumulator) -> None:
    spectrum = SpectrumCounts.load(out / "spectrum.npz")
    examples, gradient = (array.sum(axis=(2, 3)) for array in (spectrum.examples, spectrum.gradient))
    expected = {
        "spectrum/background": (examples[:, 0], gradient[:, 0]),
        "spectrum/objects": (examples[:, 1], gradient[:, 1]),
        "spectrum/boxes": (spectrum.boxes.sum(axis=(1, 2)), spectrum.box_gradient.sum(axis=(1, 2))),
    }
    assert set(events.Tags()["histograms"]) == set(expected)
    for tag, (counts, sums) in expected.items():
        found = events.Histograms(tag)
        assert [event.step for event in found] == [3, 6, 9]
        for epoch, event in enumerate(found):
            value = event.histogram_value
            assert value.bucket == counts[epoch].tolist() and value.num == counts[epoch].sum() > 0
            np.testing.assert_allclose(value.bucket_limit, np.arange(1, 31) / 30)
            assert value.sum == pytest.approx(sums[epoch].sum())
            assert value.min <= value.sum / value.num <= value.max


def test_figures_and_predictions_are_pictures(events: EventAccumulator) -> None:
    pictures = {}
    for tag in events.Tags()["images"]:
        found = events.Images(tag)
        pictures[tag] = [event.step for event in found]
        image = Image.open(io.BytesIO(found[-1].encoded_image_string))
        assert len(image.getcolors(1 << 20)) > 2
        if tag == "predictions":  # four pictures of 96 x 72, annotations and detections side by side
            assert image.size == (2 * 96 + 4, 4 * 72 + 3 * 4)
    # The figure is drawn by the run that was handed it.
    assert pictures == {"predictions": [3, 6, 9], "spectrum/examples": [6, 9]}


def test_without_the_option_nothing_of_it_is_imported(
    squares: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("tensorboard", "torch.utils.tensorboard", "ghmdet.engine.board"):
        monkeypatch.setitem(sys.modules, name, None)  # importing it is an error now
    train(squares, tmp_path / "x", replace(TINY, epochs=1), say=lambda line: None)
    assert (tmp_path / "x" / "best.pt").exists()
