"""A validation part of a one-part set: near-duplicates stay together, classes are in both parts."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ghmdet.data import DetectionData, read_data, share_out
from ghmdet.data.records import Records
from ghmdet.data.share import folds
from ghmdet.errors import DataError
from small_sets import Picture, coco_content


def film(root: Path, scenes: int, frames: int, rare: tuple[int, ...] = ()) -> DetectionData:
    """Scenes of frames that differ by noise, light and a move of a pixel; class 2 in the scenes `rare` only."""
    random, pictures = np.random.default_rng(3), []
    (root / "images").mkdir(parents=True)
    for scene in range(scenes):
        coarse = Image.fromarray(random.integers(40, 200, (7, 9, 3), dtype=np.uint8))
        smooth = np.asarray(coarse.resize((97, 73), Image.Resampling.BICUBIC)).astype(np.float32)
        for frame in range(frames):
            view = smooth[frame % 2 : 72 + frame % 2, frame % 2 : 96 + frame % 2]
            view = view * (1 + 0.02 * frame) + random.normal(0, 2, view.shape)
            picture = Picture(f"{scene:02}_{frame:02}.jpg", 96, 72, [(scene % 2, 5, 5, 25, 35)])
            if scene in rare:
                picture.boxes.append((2, 30, 10, 60, 40))
            Image.fromarray(view.clip(0, 255).astype(np.uint8)).save(root / "images" / picture.name)
            pictures.append(picture)
    (root / "annotations").mkdir()
    (root / "annotations" / "instances_train.json").write_text(json.dumps(coco_content(pictures)))
    return read_data(root)


def scenes_of(data: DetectionData) -> set[str]:
    return {record.path.name[:2] for record in data.records}


def test_frames_of_a_scene_stay_together_and_rare_classes_are_in_both_parts(tmp_path: Path) -> None:
    data = film(tmp_path, scenes=20, frames=4, rare=(7, 13))
    train, val = share_out(data)
    assert scenes_of(train).isdisjoint(scenes_of(val)) and len(scenes_of(train) | scenes_of(val)) == 20
    assert len(train.records) + len(val.records) == 80 and 12 <= len(val.records) <= 20
    assert all(train.boxes_per_class().values()) and all(val.boxes_per_class().values())
    assert (train.split, val.split) == ("train", "val") and train.classes == val.classes == data.classes
    count = len(val.records)
    assert f"{count} of 80 pictures, in {count // 4} of 20 groups that look alike" in train.describe()


def test_where_no_two_pictures_look_alike_no_group_is_spoken_of(tmp_path: Path) -> None:
    data = film(tmp_path, scenes=20, frames=1, rare=(7, 13))
    train, val = share_out(data)
    assert f": {len(val.records)} of 20 pictures, no two of which look alike)" in train.describe()
    with pytest.raises(DataError, match=r": 20 pictures are too few for 21 folds"):
        folds(data, 21)


def test_records_are_those_of_the_set(tmp_path: Path) -> None:
    data = film(tmp_path, scenes=10, frames=2, rare=(1, 2))
    whole = {record.path: record for record in data.records}
    for part in share_out(data, 0.3):
        for record in part.records:
            own = whole.pop(record.path)
            assert (record.image_id, record.width, record.height) == (own.image_id, own.width, own.height)
            for name in ("boxes", "labels", "crowd", "area"):
                np.testing.assert_array_equal(getattr(record, name), getattr(own, name))
    assert not whole


def test_the_parts_are_the_same_every_time(tmp_path: Path) -> None:
    data = film(tmp_path, scenes=12, frames=3)
    first, again = (share_out(data, 0.25)[1] for _ in range(2))
    assert [record.path for record in first.records] == [record.path for record in again.records]


def test_a_class_of_one_scene_stays_in_training(tmp_path: Path) -> None:
    train, val = share_out(film(tmp_path, scenes=8, frames=2, rare=(5,)))
    assert (train.boxes_per_class()["emu"], val.boxes_per_class()["emu"]) == (2, 0)


def test_one_long_scene_is_cut_into_runs_of_frames(tmp_path: Path) -> None:
    train, val = share_out(film(tmp_path, scenes=1, frames=40))
    names = sorted(record.path.name for record in [*train.records, *val.records])
    inside = [name in {record.path.name for record in val.records} for name in names]
    assert 6 <= sum(inside) <= 10 and len(train.records) == 40 - sum(inside)
    assert all(inside[place] == inside[place + 1] for place in range(0, 40, 2))  # runs of two frames


def test_too_few_pictures_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"too few pictures \(1\) for a validation part"):
        share_out(film(tmp_path, scenes=1, frames=1))


def test_classes_that_lie_together_are_shared_out_evenly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Six classes, alone and together: going by the rarest alone took 42 % of one and a single picture of others."""
    random = np.random.default_rng(0)
    kinds = [random.permutation(6)[: 1 if random.random() < 0.6 else 3] for _ in range(120)]
    labels = [np.sort(kind) for kind in kinds]
    offsets = np.cumsum([0, *map(len, labels)])
    boxes = np.tile(np.array([0, 0, 9, 9], dtype=np.float32), (offsets[-1], 1))
    records = Records(
        tmp_path,
        [f"{i}.png" for i in range(120)],
        np.arange(120),
        np.full((120, 2), 10, dtype=np.int32),
        offsets,
        boxes,
        np.concatenate(labels).astype(np.int32),
        np.zeros(offsets[-1], dtype=bool),
        boxes[:, 2] * boxes[:, 3],
    )
    monkeypatch.setattr("ghmdet.data.share.difference_hash", lambda record: random.random(64) < 0.5)
    data = DetectionData(tmp_path, "COCO", "train", tuple("abcdef"), tuple(range(6)), records, ())
    train, val = share_out(data, 0.2)
    assert len(train.records) + len(val.records) == 120
    assert 20 <= len(val.records) <= 28
    for name, count in val.boxes_per_class().items():
        assert 0.15 <= count / data.boxes_per_class()[name] <= 0.25


def test_folds_keep_scenes_whole_and_share_pictures_and_classes_evenly(tmp_path: Path) -> None:
    data = film(tmp_path, scenes=20, frames=4, rare=(7, 13))
    parts = folds(data, 2)
    assert sorted(np.concatenate(parts).tolist()) == list(range(80))
    shown = [{data.records[int(index)].path.name[:2] for index in part} for part in parts]
    assert sum(map(len, shown)) == 20 and len(set().union(*shown)) == 20
    assert [len(part) for part in parts] == [40, 40]
    assert [sum((data.records[int(index)].labels == 2).sum() for index in part) for part in parts] == [4, 4]
    assert all((a == b).all() for a, b in zip(parts, folds(data, 2), strict=True))
    with pytest.raises(DataError, match=r"80 pictures in 20 groups .* too few for 21 folds"):
        folds(data, 21)
