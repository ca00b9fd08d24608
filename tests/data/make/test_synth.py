from __future__ import annotations

import contextlib
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ghmdet.data import read_data
from ghmdet.data.make import SynthConfig, scene, synth, synthesize
from ghmdet.data.make.parts import vehicle
from ghmdet.data.make.scene import CLASSES, draw_scene
from ghmdet.errors import DataError, GhmdetError

SMALL = {"images": 8, "size": (128, 96)}


def content(root: Path, split: str = "train") -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((root / "annotations" / f"instances_{split}.json").read_text())
    return loaded


def objects(root: Path, split: str = "train") -> Counter[str]:
    return Counter(CLASSES[box["category_id"] - 1] for box in content(root, split)["annotations"])


def all_bytes(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


def test_the_same_dials_give_the_same_bytes_and_another_seed_others(tmp_path: Path) -> None:
    config = SynthConfig(**SMALL, wrong_label_share=0.3)
    for name in ("a", "b"):
        synthesize(tmp_path / name, config)
    synthesize(tmp_path / "c", SynthConfig(**SMALL, wrong_label_share=0.3, seed=1))
    assert all_bytes(tmp_path / "a") == all_bytes(tmp_path / "b")
    assert len(all_bytes(tmp_path / "a")) == 8 + 4
    picture = "images/train_00000.jpg"
    assert (tmp_path / "a" / picture).read_bytes() != (tmp_path / "c" / picture).read_bytes()


def test_more_pictures_leave_the_first_ones_as_they_were(tmp_path: Path) -> None:
    synthesize(tmp_path / "few", SynthConfig(**SMALL))
    synthesize(tmp_path / "many", SynthConfig(**{**SMALL, "images": 12}))
    few, many = all_bytes(tmp_path / "few"), all_bytes(tmp_path / "many")
    pictures = [name for name in few if name.endswith(".jpg")]
    assert pictures and all(few[name] == many[name] for name in pictures)


def test_the_layout_is_coco_with_boxes_inside_pictures_of_the_size_asked_for(tmp_path: Path) -> None:
    said = synthesize(tmp_path, SynthConfig(**SMALL, val_share=0.25))
    ids: list[int] = []
    for split, count in (("train", 6), ("val", 2)):
        coco, found = content(tmp_path, split), objects(tmp_path, split)
        assert [c["name"] for c in coco["categories"]] == list(CLASSES[:3])
        assert len(coco["images"]) == count
        hard = sum(box["hard"] for box in coco["annotations"])
        counts = ", ".join(f"{name} {found[name]}" for name in CLASSES[:3])
        assert f"{split}: {count} images; {counts} ({hard} of unusual look)" in said
        ids += [image["id"] for image in coco["images"]]
        for image in coco["images"]:
            with Image.open(tmp_path / "images" / image["file_name"]) as picture:
                assert picture.size == (image["width"], image["height"]) == (128, 96)
        known = {image["id"] for image in coco["images"]}
        for box in coco["annotations"]:
            x, y, w, h = box["bbox"]
            assert box["image_id"] in known and min(w, h) > 3
            assert x >= 0 and y >= 0 and x + w <= 128.05 and y + h <= 96.05
    assert len(set(ids)) == 8
    assert json.loads((tmp_path / "wrong_labels.json").read_text()) == []


def test_our_own_reader_finds_nothing_wrong_in_it(tmp_path: Path) -> None:
    synthesize(tmp_path, SynthConfig(**SMALL, wrong_label_share=0.2))
    for split in ("train", "val"):
        data = read_data(tmp_path, split)
        assert data.problems == () and data.classes == CLASSES[:3]
        assert data.boxes_per_class() == {name: objects(tmp_path, split)[name] for name in CLASSES[:3]}


def only(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(SynthConfig, "frequencies", lambda config: {name: 1.0})


@pytest.mark.parametrize("name", CLASSES)
def test_a_box_is_tight_around_what_is_drawn(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """On bare magenta ground all that is green in any measure is vehicle: neither ground nor shadow has any."""
    flat = Image.new("RGB", (320, 240), (255, 0, 255))
    monkeypatch.setattr(scene, "_ground", lambda config, rng: ((90, 90, 90), flat.copy()))
    monkeypatch.setattr(scene._Scene, "add_roads", lambda self: None)
    monkeypatch.setattr(scene, "_develop", lambda canvas, rng: canvas.reduce(2))
    only(monkeypatch, name)
    config = SynthConfig(
        size=(160, 120), foreground=1, object_size=0.25, clutter=0, hard_share=0.5, occluded_share=0
    )
    seen = 0
    for seed in range(25):
        picture, things = draw_scene(config, np.random.default_rng(seed))
        if len(things) == 1:
            seen += 1
            rows, columns = np.nonzero(np.asarray(picture)[..., 1] > 5)
            drawn = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
            assert things[0].box == pytest.approx(drawn, abs=1.5)
    assert seen >= 5


@pytest.mark.parametrize("name", CLASSES)
def test_a_vehicle_is_about_one_length_long_and_no_wider(name: str) -> None:
    for seed in range(5):
        points = np.concatenate([part.points for part in vehicle(name, np.random.default_rng(seed))])
        length, width = np.ptp(points, axis=0)
        assert 0.85 <= length <= 1.05
        assert width <= length


def test_the_imbalance_dial_sets_the_classes_ratio(tmp_path: Path) -> None:
    config = SynthConfig(
        images=60, size=(128, 96), foreground=12, object_size=0.08, clutter=0, class_imbalance=4
    )
    assert config.frequencies() == pytest.approx({"car": 16 / 21, "bus": 4 / 21, "bicycle": 1 / 21})
    synthesize(tmp_path, config)
    found = objects(tmp_path)
    assert found["car"] / found.total() == pytest.approx(16 / 21, abs=0.06)
    assert found["bus"] / found.total() == pytest.approx(4 / 21, abs=0.06)
    assert SynthConfig(class_imbalance=1).frequencies()["bicycle"] == pytest.approx(1 / 3)


def test_foreground_size_and_hard_dials_move_what_they_name(tmp_path: Path) -> None:
    base = {"images": 30, "size": (160, 128), "clutter": 0.0}
    synthesize(tmp_path / "none", SynthConfig(**base, foreground=0))
    assert objects(tmp_path / "none").total() == objects(tmp_path / "none", "val").total() == 0
    counts, areas = [], []
    for name, dials in (("few", (2, 0.1, 0.0)), ("many", (8, 0.2, 1.0))):
        foreground, object_size, hard = dials
        synthesize(
            tmp_path / name,
            SynthConfig(**base, foreground=foreground, object_size=object_size, hard_share=hard, val_share=0),
        )
        boxes = content(tmp_path / name)["annotations"]
        assert {b["hard"] for b in boxes} == {int(hard)}
        counts.append(len(boxes) / 30)
        areas.append(np.median([b["area"] for b in boxes]))
    assert 1.3 < counts[0] < 2.7 < 5 < counts[1] < 9
    assert areas[1] > 2.5 * areas[0]


def test_a_golden_bus_is_golden(monkeypatch: pytest.MonkeyPatch) -> None:
    only(monkeypatch, "bus")
    config = SynthConfig(
        size=(200, 160), foreground=2, object_size=0.2, clutter=0, hard_share=1, occluded_share=0
    )
    golden = 0
    for seed in range(20):
        picture, things = draw_scene(config, np.random.default_rng(seed))
        pixels = np.asarray(picture, dtype=float)
        for thing in things:
            x0, y0, x1, y1 = (int(v) for v in thing.box)
            cx, cy = (x0 + x1) // 2, (y0 + y1) // 2
            red, green, blue = pixels[cy - 2 : cy + 3, cx - 2 : cx + 3].mean(axis=(0, 1))
            golden += red > 1.1 * green > 1.1 * 1.8 * blue
    assert golden >= 5


def test_wrong_labels_are_the_share_asked_for_and_recorded_and_the_rest_is_as_without(tmp_path: Path) -> None:
    dials = {"images": 40, "size": (160, 128), "foreground": 6.0, "clutter": 0.0}
    synthesize(tmp_path / "right", SynthConfig(**dials))
    said = synthesize(tmp_path / "wrong", SynthConfig(**dials, wrong_label_share=0.25))
    true = {b["id"]: b for b in content(tmp_path / "right")["annotations"]}
    given = {b["id"]: b for b in content(tmp_path / "wrong")["annotations"]}
    record = json.loads((tmp_path / "wrong" / "wrong_labels.json").read_text())
    assert len(record) == round(0.25 * len(true))
    assert f"{len(record)} labels made wrong" in said
    assert {r["kind"] for r in record} == {"class", "missing", "shifted"}
    names = {i["id"]: i["file_name"] for i in content(tmp_path / "wrong")["images"]}
    for r in record:
        before, after = true[r["annotation_id"]], given.get(r["annotation_id"])
        assert r["true"] == {"category_id": before["category_id"], "bbox": before["bbox"]}
        assert names[r["image_id"]] == r["file_name"] and r["image_id"] == before["image_id"]
        if r["kind"] == "missing":
            assert after is None and r["given"] is None
            continue
        assert after is not None and r["given"] == {
            "category_id": after["category_id"],
            "bbox": after["bbox"],
        }
        assert (after["category_id"] != before["category_id"]) == (r["kind"] == "class")
        assert (iou(after["bbox"], before["bbox"]) < 0.45) == (r["kind"] == "shifted")
    touched = {r["annotation_id"] for r in record}
    assert {i: b for i, b in true.items() if i not in touched} == {
        i: b for i, b in given.items() if i not in touched
    }
    right, wrong = all_bytes(tmp_path / "right"), all_bytes(tmp_path / "wrong")
    assert (
        content(tmp_path / "right", "val")["annotations"] == content(tmp_path / "wrong", "val")["annotations"]
    )
    assert all(right[name] == wrong[name] for name in right if name.endswith(".jpg"))


def iou(a: list[float], b: list[float]) -> float:
    width = min(a[0] + a[2], b[0] + b[2]) - max(a[0], b[0])
    height = min(a[1] + a[3], b[1] + b[3]) - max(a[1], b[1])
    both = max(width, 0) * max(height, 0)
    return both / (a[2] * a[3] + b[2] * b[3] - both)


def test_it_replaces_its_own_data_set_and_leaves_other_files_alone(tmp_path: Path) -> None:
    synthesize(tmp_path, SynthConfig(**{**SMALL, "images": 12}))
    (tmp_path / "notes.txt").write_text("mine")
    synthesize(tmp_path, SynthConfig(**SMALL))
    assert len(list((tmp_path / "images").iterdir())) == 8
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_a_folder_with_other_things_in_it_is_refused_untouched(tmp_path: Path) -> None:
    (tmp_path / "holiday.jpg").write_bytes(b"x")
    with pytest.raises(
        DataError, match=r"holds files that 'data synth' did not write.*give a new or an empty folder"
    ):
        synthesize(tmp_path)
    assert list(all_bytes(tmp_path)) == ["holiday.jpg"]
    with pytest.raises(DataError, match="is a file"):
        synthesize(tmp_path / "holiday.jpg")


def test_an_interrupted_run_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synthesize(tmp_path / "set", SynthConfig(**SMALL))
    before = all_bytes(tmp_path)
    drawn = []

    def fails_at_the_fourth(config: SynthConfig, rng: np.random.Generator) -> Any:
        drawn.append(config)
        if len(drawn) == 4:
            raise KeyboardInterrupt
        return draw_scene(config, rng)

    monkeypatch.setattr(synth, "draw_scene", fails_at_the_fourth)
    with pytest.raises(KeyboardInterrupt):
        synthesize(tmp_path / "set", SynthConfig(**SMALL, seed=3))
    assert all_bytes(tmp_path) == before
    unfinished = tmp_path / "killed" / ".unfinished" / "images"  # what a killed run leaves is no foreign file
    unfinished.mkdir(parents=True)
    monkeypatch.undo()
    synthesize(tmp_path / "killed", SynthConfig(**SMALL))
    assert not unfinished.exists() and all_bytes(tmp_path / "killed") == all_bytes(tmp_path / "set")


def test_what_is_drawn_does_not_drift(tmp_path: Path) -> None:
    """Figures of runs on the scenes are compared over the versions. Bytes are not pinned: they are Pillow's as well."""
    config = SynthConfig(images=6, size=(96, 64), classes=6, class_imbalance=1, hard_share=0.5, val_share=0)
    synthesize(tmp_path, config)
    boxes = [box["bbox"] for box in content(tmp_path)["annotations"]]
    assert (len(boxes), round(float(np.sum(boxes)), 1)) == (30, 2945.5)
    means = [np.asarray(Image.open(file)).mean() for file in sorted((tmp_path / "images").iterdir())]
    assert means == pytest.approx([121.5, 121.2, 80.1, 89.5, 96.8, 145.1], abs=0.3)


@pytest.mark.parametrize(
    ("dial", "value", "message"),
    [
        ("images", 1, "--images 1: give a whole number from 2"),
        ("images", 2.5, "--images 2.5: give a whole number"),
        ("classes", 7, "--classes 7: give a whole number from 1 to 6"),
        ("class_imbalance", 0.5, "--class-imbalance 0.5: give a number from 1"),
        ("hard_share", 1.5, "--hard-share 1.5: give a number from 0 to 1"),
        ("wrong_label_share", float("nan"), "--wrong-label-share nan"),
        ("foreground", "4", "--foreground 4: give a number"),
        ("size", (320, 20), "--size 20: give a whole number from 64 to 4096"),
    ],
)
def test_a_dial_out_of_range_is_named_with_its_range(dial: str, value: Any, message: str) -> None:
    with pytest.raises(GhmdetError, match=message):
        SynthConfig(**{dial: value})


@pytest.mark.parametrize(
    ("images", "val_share", "train", "val"), [(2, 0.9, 1, 1), (2, 0.01, 1, 1), (3, 0.0, 3, 0)]
)
def test_each_split_asked_for_has_a_picture(
    tmp_path: Path, images: int, val_share: float, train: int, val: int
) -> None:
    synthesize(tmp_path, SynthConfig(images=images, size=(64, 64), val_share=val_share))
    splits = {"train": train, "val": val} if val else {"train": train}
    assert len(list((tmp_path / "annotations").iterdir())) == len(splits)
    assert {split: len(content(tmp_path, split)["images"]) for split in splits} == splits


def test_a_set_that_is_cut_off_while_it_takes_its_place_is_no_mixture_of_two(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, move = tmp_path / "set", Path.replace

    def held() -> tuple[bytes, ...]:
        files = (out / "images" / "train_00000.jpg", out / "annotations" / "instances_train.json")
        return tuple(file.read_bytes() if file.exists() else b"" for file in files)

    def make(seed: int) -> tuple[bytes, ...]:
        synthesize(out, SynthConfig(images=4, size=(96, 64), seed=seed))
        return held()

    whole = [make(1), make(0)]
    for last in range(8):
        make(0)
        moves: list[Path] = []

        def cut_off(self: Path, target: Path, last: int = last, moves: list[Path] = moves) -> Path:
            if self.parent.name == ".unfinished":
                moves.append(self)
            if len(moves) > last:
                raise KeyboardInterrupt
            return move(self, target)

        with monkeypatch.context() as patch, contextlib.suppress(KeyboardInterrupt):
            patch.setattr(Path, "replace", cut_off)
            make(1)
        now = held()
        assert now in whole or not now[1]  # without annotations it is no set
        if last:
            assert make(1) == whole[0]  # the same command goes on
