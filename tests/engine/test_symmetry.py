"""Whether a data set's pictures may be upside down is asked of the detector once, and what it answers holds."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from engine_cases import TINY, Interrupted
from ghmdet.data import AugmentConfig, DetectionData, read_data
from ghmdet.engine import symmetry
from ghmdet.engine.checkpoint import load_checkpoint
from ghmdet.engine.context import begin_run
from ghmdet.engine.detect import Detector, detect, to_tensor
from ghmdet.engine.run_folder import read_rows
from ghmdet.engine.train import train

EACH = replace(TINY, val_every=1)


def as_labelled(data: DetectionData, share: float) -> list[dict[str, Any]]:
    """Detections of that share of the labels."""
    labels = data.to_coco()["annotations"]
    return [{**one, "score": 0.9} for one in labels[: round(share * len(labels))]]


@pytest.fixture
def any_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """The detector is asked though it has learnt nothing, on few boxes, and says yes."""
    for name in ("LEARNT", "ALIKE", "BOXES"):
        monkeypatch.setattr(symmetry, name, 0)


@pytest.mark.parametrize(("found", "vflip"), [(1.0, 0.5), (0.9, 0.0)])
def test_as_much_found_upside_down_turns_half_of_the_pictures(
    squares: Path, monkeypatch: pytest.MonkeyPatch, found: float, vflip: float
) -> None:
    val = read_data(squares, "val")
    assert symmetry.ask(val, as_labelled(val, 1), lambda part: as_labelled(part, found)) is None  # 8 boxes
    monkeypatch.setattr(symmetry, "BOXES", 8)
    answer = symmetry.ask(val, as_labelled(val, 1), lambda part: as_labelled(part, found))
    assert answer is not None and answer.upright == 1 and answer.vflip == vflip
    assert ("from now on half" in str(answer)) == bool(vflip)


def test_some_pictures_of_all_are_asked_with(squares: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(symmetry, "PICTURES", 5)
    monkeypatch.setattr(symmetry, "BOXES", 0)
    train_part, asked = read_data(squares, "train"), list[int]()

    def turned(part: DetectionData) -> list[dict[str, Any]]:
        asked.extend(part.records.image_ids.tolist())
        return as_labelled(part, 1)

    answer = symmetry.ask(train_part, as_labelled(train_part, 1), turned)
    assert asked == [1, 4, 7, 10] and answer == (1, 1)


def test_detections_upside_down_lie_on_the_pictures_as_they_are(run: Path, squares: Path) -> None:
    detector, val = Detector.load(run / "best.pt", device="cpu", precision="fp32"), read_data(squares, "val")
    found = detect(detector.model, val, device=detector.device, upside_down=True)
    for record in val.records:
        mine = [one for one in found if one["image_id"] == record.image_id]
        (there,) = detector.predict([to_tensor(record.path).flip(1)], threshold=0)
        assert mine and len(mine) == len(there["scores"])
        for one, box in zip(mine, there["boxes"].tolist(), strict=True):
            x, y, width, height = one["bbox"]
            assert [x, record.height - y - height, x + width, record.height - y] == pytest.approx(
                box, abs=0.02
            )


@pytest.mark.usefixtures("any_answer")
def test_a_run_asks_once_and_goes_on_with_the_answer_after_an_interruption(
    squares: Path, tmp_path: Path
) -> None:
    said = list[str]()
    train(squares, tmp_path / "whole", EACH, say=said.append)
    assert sum("upside down, validation pictures have" in line for line in said) == 1

    with pytest.raises(KeyboardInterrupt, match="--resume continues"):
        Interrupted(begin_run(squares, tmp_path / "cut", EACH, say=lambda line: None)).fit()
    assert load_checkpoint(tmp_path / "cut" / "last.pt")["training"]["place"]["vflip"] == 0.5
    said.clear()
    train(squares, tmp_path / "cut", EACH, resume=True, say=said.append)
    assert not any("upside down" in line for line in said)
    train(squares, tmp_path / "never", replace(EACH, augment=AugmentConfig(vflip=0)), say=said.append)
    assert not any("upside down" in line for line in said)
    whole, cut, never = (
        [row["loss"] for row in read_rows(tmp_path / name / "log.csv")] for name in ("whole", "cut", "never")
    )
    assert whole == cut and whole[:3] == never[:3] and whole[3:] != never[3:]


@pytest.mark.usefixtures("any_answer")
def test_a_run_of_before_is_resumed_as_it_began(squares: Path, tmp_path: Path) -> None:
    said, out = list[str](), tmp_path / "run"
    train(squares, out, replace(EACH, augment=AugmentConfig(vflip=0)), say=said.append)
    saved = torch.load(out / "last.pt", weights_only=True)
    assert saved["training"]["arguments"]["augment"]["vflip"] == 0
    run = begin_run(squares, out, EACH, resume=True)
    assert run.config.augment.vflip == 0
