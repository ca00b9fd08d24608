from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from ghmdet.cli import main
from ghmdet.data import read_data
from ghmdet.data.make import SynthConfig, synthesize
from ghmdet.engine.checkpoint import save_checkpoint
from ghmdet.engine.detect import Detector, to_tensor
from ghmdet.engine.observation import measure_spectrum
from ghmdet.models import RetinaNet, model_state, preset
from ghmdet.report import inspection
from ghmdet.spectrum import SpectrumCounts
from spectrum_cases import added, count_batch

DRAWN = ["examples", "boxes", "class_gradients", "box_gradients", "shares", "weights", "reliability"]


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("spectrum") / "set"
    synthesize(out, SynthConfig(images=6, size=(96, 72)))
    return out


@pytest.fixture(scope="module")
def checkpoint(scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained detector, whose scores are raised so that it detects."""
    data = read_data(scenes, "val")
    torch.manual_seed(0)
    model = RetinaNet(preset("nano", size=96), data.classes)
    torch.nn.init.constant_(model.head.class_logits.bias, -2.0)
    path = tmp_path_factory.mktemp("run") / "best.pt"
    save_checkpoint(path, model_state(model) | {"category_ids": list(data.category_ids)})
    return path


def status(*arguments: object) -> int:
    with pytest.raises(SystemExit) as stopped:
        main([str(one) for one in arguments])
    assert isinstance(stopped.value.code, int)
    return stopped.value.code


def test_the_command_writes_counts_words_and_figures(scenes: Path, checkpoint: Path, tmp_path: Path) -> None:
    assert status("spectrum", checkpoint, scenes, "--out", tmp_path) == 0
    spectrum = SpectrumCounts.load(tmp_path / "spectrum.npz")
    data = read_data(scenes, "val")
    assert spectrum.pictures.tolist() == [len(data.records)] and spectrum.classes == data.classes
    assert spectrum.boxes.sum() == 4 * spectrum.examples[:, 1].sum() > 0
    summary = json.loads((tmp_path / "spectrum.json").read_text())
    assert summary["examples"]["objects"] == spectrum.examples[0, 1].sum()
    assert summary["split"] == "val" and summary["in_words"] and summary["scores"]["ECE"] is not None
    for name in DRAWN:
        assert (tmp_path / f"{name}.svg").stat().st_size > 5000
        assert (tmp_path / f"{name}.png").stat().st_size > 5000


def test_figures_of_an_earlier_detector_are_gone_before_new_ones_are_told(
    scenes: Path, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kill between the two leaves none of one detector under the other's name."""
    assert status("spectrum", checkpoint, scenes, "--out", tmp_path) == 0
    write = inspection.write_json

    def killed(path: Path, content: object) -> None:
        write(path, content)
        raise KeyboardInterrupt

    monkeypatch.setattr(inspection, "write_json", killed)
    assert status("spectrum", checkpoint, scenes, "--out", tmp_path) == 130
    assert [path.name for path in tmp_path.iterdir()] == ["spectrum.json"]


def test_the_pass_counts_what_each_picture_alone_gives(scenes: Path, checkpoint: Path) -> None:
    detector = Detector.load(checkpoint, device="cpu", precision="fp32")
    data = read_data(scenes, "val")
    spectrum, results, seen = measure_spectrum(detector, data)
    best: list[list[float]] = []
    expected = SpectrumCounts.empty(data.classes, detector.model.config.strides)
    model = detector.model.requires_grad_(False)
    for record in data.records:
        batch = model.preprocess([to_tensor(record.path)])
        logits, deltas = model.forward_raw(batch.images)
        target = {"boxes": torch.from_numpy(record.boxes), "labels": torch.from_numpy(record.labels)}
        labels, _, rows = model.assign([target], batch)
        for row in range(len(record.labels)):
            answering = logits[0, rows[0] == row].sigmoid()
            best.append(answering.amax(dim=0).tolist() if len(answering) else [0.0] * len(data.classes))
        counts = model._anchors(batch.images)[1]
        alone = count_batch(logits, labels, deltas, counts, data.classes, model.config.strides)
        expected = added(expected, alone)
    assert (spectrum.examples == expected.examples).all()
    assert spectrum.boxes.sum() == expected.boxes.sum()
    np.testing.assert_allclose(seen, best, atol=1e-6)
    first = measure_spectrum(detector, data, pictures=1)
    assert first.spectrum.pictures.tolist() == [1]
    assert first.results == [one for one in results if one["image_id"] == data.records[0].image_id]


def test_a_checkpoint_of_no_numbers_is_named(
    scenes: Path, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = torch.load(checkpoint, weights_only=True)
    next(v for n, v in state["model"].items() if n.startswith("head.") and n.endswith("weight")).fill_(
        torch.nan
    )
    save_checkpoint(tmp_path / "broken.pt", state)
    assert status("spectrum", tmp_path / "broken.pt", scenes, "--out", tmp_path / "out") == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "broken.pt: " in error and "no finite numbers" in error
    assert not (tmp_path / "out").exists()
    assert status("spectrum", checkpoint, tmp_path / "nothing", "--out", tmp_path / "out") == 2
    assert "nothing" in capsys.readouterr().err


def test_one_picture_with_one_class_has_a_spectrum(scenes: Path, checkpoint: Path, tmp_path: Path) -> None:
    truth = json.loads((scenes / "annotations" / "instances_val.json").read_text())
    first = truth["annotations"][0]
    truth |= {
        "annotations": [first],
        "images": [image for image in truth["images"] if image["id"] == first["image_id"]],
    }
    (scenes / "annotations" / "instances_one.json").write_text(json.dumps(truth))
    assert status("spectrum", checkpoint, scenes, "--split", "one", "--out", tmp_path) == 0
    summary = json.loads((tmp_path / "spectrum.json").read_text())
    assert summary["pictures"] == 1
    assert sum(one["objects"] > 0 for one in summary["classes"].values()) == 1
    assert "No anchor was matched to an object of" in " ".join(summary["in_words"])
