"""What a run says it saw, against its steps' logits one example at a time."""

from __future__ import annotations

import math
import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import naive
from engine_cases import TINY
from ghmdet.engine.context import begin_run
from ghmdet.engine.observation import SpectrumLog
from ghmdet.engine.train import Trainer
from ghmdet.errors import GhmdetError
from ghmdet.models import PRESETS, RetinaNet
from ghmdet.models.anchors import make_anchors
from ghmdet.models.box_coder import encode
from ghmdet.models.preprocess import Batch
from ghmdet.models.targets import AnchorTargets
from ghmdet.spectrum import SpectrumCounts

NANO = PRESETS["nano"]
Seen = tuple[Tensor, Tensor, AnchorTargets, Batch]


@pytest.fixture
def model() -> RetinaNet:
    return RetinaNet(NANO, ["a", "b"])


def make_seen(sizes: list[tuple[int, int]], padded: tuple[int, int] = (96, 96)) -> Seen:
    """Random predictions on pictures of these sizes, some anchors an object's, some ignored."""
    random = torch.Generator().manual_seed(0)
    anchors, _ = make_anchors(NANO, *padded, torch.device("cpu"))
    shape = len(sizes), len(anchors)
    drawn = torch.rand(shape, generator=random)
    labels = torch.where(drawn < 0.02, 0, torch.where(drawn < 0.03, 1, torch.where(drawn > 0.95, -1, 2)))
    boxes = anchors + torch.rand(*shape, 4, generator=random)
    wanted = AnchorTargets(labels, boxes, labels.where(labels < 2, -1))
    logits = torch.randn(*shape, 2, generator=random) * 2 - 3
    return (
        logits,
        torch.randn(*shape, 4, generator=random) * 0.1,
        wanted,
        Batch(torch.zeros(len(sizes), 3, *padded), sizes, sizes),
    )


def recount(steps: list[Seen]) -> dict[str, np.ndarray]:
    """The same counts by plain loops over pictures, levels, cells, anchors and classes."""
    counts = {"examples": np.zeros((2, 2, 4, 30)), "boxes": np.zeros((2, 4, 30))}
    counts |= {"gradient": np.zeros((2, 2, 4, 30)), "box_gradient": np.zeros((2, 4, 30))}
    for logits, deltas, wanted, batch in steps:
        height, width = batch.images.shape[-2:]
        anchors, _ = make_anchors(NANO, height, width, torch.device("cpu"))
        differences = (deltas.float() - encode(wanted.boxes, anchors)).tolist()
        for b, (h, w) in enumerate(batch.sizes):
            scores, labels = logits[b].float().tolist(), wanted.labels[b].tolist()
            cells = (
                (level, y, x)
                for level, stride in enumerate(NANO.strides)
                for y in range(0, height, stride)
                for x in range(0, width, stride)
                for _ in range(NANO.anchors_per_cell)
            )
            for a, (level, y, x) in enumerate(cells):
                label = labels[a]
                if label < 0 or (label == 2 and (y >= h or x >= w)):
                    continue
                for k in range(2):
                    kind = int(label == k)
                    g = naive.gradient_norm(1 / (1 + math.exp(-scores[a][k])), kind)
                    counts["examples"][kind, k, level, naive.region(g, 30)] += 1
                    counts["gradient"][kind, k, level, naive.region(g, 30)] += g
                for d in differences[b][a] if label < 2 else ():
                    gr = naive.asl1_gradient_norm(d, 0.02)
                    counts["boxes"][label, level, naive.region(gr, 30)] += 1
                    counts["box_gradient"][label, level, naive.region(gr, 30)] += gr
    return counts


def check(spectrum: SpectrumCounts, epoch: int, steps: list[Seen]) -> None:
    expected = recount(steps)
    assert spectrum.pictures[epoch] == sum(len(batch.sizes) for *_, batch in steps)
    for name, values in expected.items():
        found = getattr(spectrum, name)[epoch]
        if name in ("examples", "boxes"):
            assert values.sum() and (found == values).all(), name
        else:
            np.testing.assert_allclose(found, values, rtol=1e-4, atol=1e-6)


def test_each_epoch_is_what_its_steps_saw(squares: Path, tmp_path: Path) -> None:
    steps: list[Seen] = []

    class Watched(Trainer):
        def _step(self, *batch: object) -> bool:  # type: ignore[override]
            observe = self.spectrum.observe
            self.model.observe = lambda *seen: (steps.append(seen), observe(*seen))  # type: ignore[func-returns-value]
            return super()._step(*batch)  # type: ignore[arg-type]

    config = replace(TINY, epochs=2, val_every=2, batch_size=2, accumulate=3)
    Watched(begin_run(squares, tmp_path / "x", config, say=lambda line: None)).fit()
    spectrum = SpectrumCounts.load(tmp_path / "x" / "spectrum.npz")
    assert (spectrum.classes, spectrum.strides) == (("red", "blue"), NANO.strides)
    assert len(steps) == 12 and len(spectrum.pictures) == 2
    check(spectrum, 0, steps[:6])
    check(spectrum, 1, steps[6:])


@pytest.mark.parametrize("device", ["cpu", "another device"])
def test_padding_of_smaller_pictures_is_not_counted(
    model: RetinaNet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, device: str
) -> None:
    log = SpectrumLog(model, tmp_path / "spectrum.npz", main=True)
    seen = make_seen([(96, 96), (50, 96), (96, 17)])
    with monkeypatch.context() as patch:
        if device != "cpu":
            patch.setattr(torch.Tensor, "is_cpu", False)
        log.observe(*seen)
    check(log.end_epoch(), 0, [seen])


def test_half_precision_is_counted_as_float32(model: RetinaNet, tmp_path: Path) -> None:
    log = SpectrumLog(model, tmp_path / "spectrum.npz", main=True)
    logits, deltas, *rest = make_seen([(96, 96)])
    for dtype in (torch.bfloat16, torch.float16):
        log.observe(logits.to(dtype), deltas.to(dtype), *rest)
        check(log.end_epoch(), 0, [(logits.to(dtype), deltas.to(dtype), *rest)])


def test_counting_reads_no_value_on_a_device(model: RetinaNet, tmp_path: Path) -> None:
    # A tensor on the meta device has none: what would make the host wait for a GPU fails here.
    log = SpectrumLog(model.to("meta"), tmp_path / "spectrum.npz", main=True)
    logits, deltas, wanted, batch = make_seen([(96, 96), (50, 96)])
    on_meta = AnchorTargets(*(tensor.to("meta") for tensor in wanted))
    log.observe(logits.to("meta"), deltas.to("meta"), on_meta, batch._replace(images=batch.images.to("meta")))


def test_logits_that_are_no_numbers_stop_nothing(model: RetinaNet, tmp_path: Path) -> None:
    log = SpectrumLog(model, tmp_path / "spectrum.npz", main=True)
    logits, deltas, *rest = make_seen([(96, 96)])
    log.observe(torch.full_like(logits, torch.nan), torch.full_like(deltas, torch.nan), *rest)


def test_resuming_cuts_later_epochs_and_leaves_missing_ones_empty(model: RetinaNet, tmp_path: Path) -> None:
    path = tmp_path / "spectrum.npz"
    first = SpectrumLog(model, path, main=True)
    steps = [make_seen([size]) for size in ((96, 96), (64, 96), (32, 32))]
    for step in steps:
        first.observe(*step)
        first.end_epoch()
    for epochs in (2, 4):
        resumed = SpectrumLog(model, path, main=True)
        resumed.continue_from(epochs)
        resumed.observe(*steps[2])
        resumed.end_epoch()
        spectrum = SpectrumCounts.load(path)
        assert spectrum.pictures.tolist() == ([1, 1, 1] if epochs == 2 else [1, 1, 1, 0, 1])
        check(spectrum, epochs, [steps[2]])


def test_the_epochs_of_a_long_run_do_not_fill_the_memory(tmp_path: Path) -> None:
    log = SpectrumLog(RetinaNet(NANO, [f"c{k}" for k in range(300)]), tmp_path / "spectrum.npz", main=True)
    logits, *rest = make_seen([(96, 96)])
    whole, peaks = list[SpectrumCounts](), list[int]()
    for _ in range(8):
        log.observe(logits.repeat(1, 1, 150), *rest)
        tracemalloc.start()
        whole.append(log.end_epoch())
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    one = sum(getattr(whole[0], name).nbytes for name in ("examples", "gradient", "boxes", "box_gradient"))
    assert one > 1_000_000 and peaks[-1] < peaks[0] + one / 4
    SpectrumCounts.stack(whole).save(tmp_path / "at_once.npz")
    with np.load(tmp_path / "spectrum.npz") as mine, np.load(tmp_path / "at_once.npz") as other:
        assert set(mine) == set(other)
        for name in mine:
            assert mine[name].dtype == other[name].dtype
            np.testing.assert_array_equal(mine[name], other[name])


@pytest.mark.parametrize("damage", ["cut", "empty", "of other classes", "of other shapes"])
def test_resuming_with_a_damaged_file_says_that_it_can_be_removed(
    damage: str, model: RetinaNet, tmp_path: Path
) -> None:
    path = tmp_path / "spectrum.npz"
    SpectrumLog(RetinaNet(NANO, ["c"]) if "classes" in damage else model, path, main=True).end_epoch()
    if "shapes" in damage:
        with np.load(path) as file:
            np.savez(path, **{name: file[name][..., :0] if name == "boxes" else file[name] for name in file})
    elif "classes" not in damage:
        path.write_bytes(path.read_bytes()[: 500 if damage == "cut" else 0])
    resumed = SpectrumLog(model, path, main=True)
    with pytest.raises(GhmdetError, match=r"spectrum\.npz: .*: remove it, and the run goes on without"):
        resumed.continue_from(2)
    path.unlink()
    resumed.continue_from(2)
    assert SpectrumCounts.load(path).pictures.tolist() == [0, 0]
