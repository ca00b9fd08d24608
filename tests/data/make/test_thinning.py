from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from ghmdet.cli import main
from ghmdet.data import check_data, read_data
from ghmdet.data.check import has_errors
from ghmdet.data.make import thin, thinning
from ghmdet.data.make.thinning import choose_pictures
from ghmdet.errors import DataError, GhmdetError
from small_sets import Picture, write_coco, write_voc, write_yolo

CAT, DOG, EMU = range(3)


def pictures() -> list[Picture]:
    """20 cats, 10 dogs and 10 emus: each dog with an emu, each emu and half of the cats with an own half."""
    both = [Picture(f"both{i}.jpg", 120, 80, [(DOG, 5, 5, 35, 35), (EMU, 60, 5, 110, 70)]) for i in range(10)]
    cats = [
        Picture(f"cats{i}.jpg", 120, 80, [(CAT, 5, 5, 45, 45), (CAT, 60, 30, 100, 70)]) for i in range(10)
    ]
    return [*both, *cats, Picture("empty.jpg", 120, 80)]


@pytest.fixture
def coco(tmp_path: Path) -> Path:
    write_coco(tmp_path / "set", pictures())
    write_coco(tmp_path / "set", [Picture("val0.jpg", 120, 80, [(DOG, 1, 1, 50, 50)])], "val")
    return tmp_path / "set"


def all_bytes(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


def told(root: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((root / "thinned.json").read_text())
    return loaded


def test_pictures_are_left_out_until_the_class_has_its_share(coco: Path, tmp_path: Path) -> None:
    thin(coco, tmp_path / "out", keep=["cat=0.3"])
    made = told(tmp_path / "out")
    assert made["boxes"] == {"cat": [20, 6], "dog": [10, 10], "emu": [10, 10]}
    data = read_data(tmp_path / "out", "train")
    assert data.problems == () and data.boxes_per_class() == {"cat": 6, "dog": 10, "emu": 10}
    assert made["pictures"] == [21, 14] == [21, len(data.records)]
    for record in data.records:
        assert record.path.read_bytes() == (coco / "images" / record.path.name).read_bytes()
    assert not has_errors(check_data(tmp_path / "out"))
    assert len(made["left out"]) == 7 and all(name.startswith("cats") for name in made["left out"])


def test_what_goes_with_the_pictures_is_told(coco: Path, tmp_path: Path) -> None:
    said = list[str]()
    thin(coco, tmp_path / "out", keep=["dog=0.2"], say=said.append)
    (table,) = said
    assert told(tmp_path / "out")["boxes"] == {"cat": [20, 20], "dog": [10, 2], "emu": [10, 2]}
    assert (
        "dog     20.0%      10       2   20.0%" in table and "emu                10       2   20.0%" in table
    )
    assert "As they were: val (1 picture)" in table
    went = "Not asked for, but gone with the pictures left out: 8 boxes of emu"
    assert f"\n{went}: --how erase takes objects out of their pictures instead\n" in table
    thin(coco, tmp_path / "erased", keep=["dog=0.2"], how="erase", say=said.append)
    assert told(tmp_path / "erased")["boxes"]["emu"] == [10, 10] and "Not asked for" not in said[1]


def test_erasing_takes_the_object_out_of_the_picture_and_leaves_the_rest(coco: Path, tmp_path: Path) -> None:
    thin(coco, tmp_path / "out", keep=["dog=0.2"], how="erase")
    made = told(tmp_path / "out")
    assert made["boxes"] == {"cat": [20, 20], "dog": [10, 2], "emu": [10, 10]}
    assert made["pictures"] == [21, 21] and made["erased"] == 8
    assert [box["class"] for box in made["erased boxes"]] == ["dog"] * 8
    changed = {box["file_name"] for box in made["erased boxes"]}
    data = read_data(tmp_path / "out", "train")
    assert data.problems == () and not has_errors(check_data(tmp_path / "out"))
    assert {record.path.name for record in data.records if DOG not in record.labels} >= changed
    for record in data.records:
        before = np.asarray(Image.open(coco / "images" / record.path.with_suffix(".jpg").name))
        after = np.asarray(Image.open(record.path))
        differs = (before != after).any(2)
        if record.path.name not in changed:
            assert not differs.any()
            continue
        assert differs[5:35, 5:35].mean() > 0.5
        differs[3:37, 3:37] = False  # the box and its margin
        assert not differs.any()


def test_what_cannot_be_erased_is_left_out_with_its_picture(tmp_path: Path) -> None:
    on_top = [Picture(f"on{i}.jpg", 120, 80, [(DOG, 5, 5, 35, 35), (EMU, 10, 5, 40, 35)]) for i in range(4)]
    alone = [Picture(f"alone{i}.jpg", 120, 80, [(DOG, 5, 5, 35, 35), (CAT, 60, 5, 90, 35)]) for i in range(4)]
    write_coco(tmp_path / "set", [*on_top, *alone])
    thin(tmp_path / "set", tmp_path / "out", keep=["dog=0.25"], how="erase")
    made = told(tmp_path / "out")
    assert made["boxes"] == {"cat": [4, 4], "dog": [8, 2], "emu": [4, 2]}
    assert (made["erased"], made["pictures"]) == (4, [8, 6])


@pytest.mark.parametrize("write", [write_coco, write_voc, write_yolo])
def test_any_format_becomes_coco_and_the_other_parts_stay(write: Callable[..., Any], tmp_path: Path) -> None:
    source = tmp_path / "set"
    write(source, pictures())
    write(source, [Picture("v.jpg", 50, 40, [(DOG, 1, 2, 30, 33)]), Picture("w.jpg", 40, 50)], "val")
    before = all_bytes(source)
    thin(source, tmp_path / "out", keep=["cat=0.5"])
    assert all_bytes(source) == before
    old, new = (
        read_data(root, "val", classes=read_data(root, "train").classes)
        for root in (source, tmp_path / "out")
    )
    assert (new.format, new.classes) == ("COCO", old.classes)
    assert new.boxes_per_class()["dog"] == 1
    for one, other in zip(old.records, new.records, strict=True):
        assert (one.width, one.height) == (other.width, other.height)
        np.testing.assert_allclose(one.boxes, other.boxes, atol=1e-4)
        assert one.path.read_bytes() == other.path.read_bytes()
    assert read_data(tmp_path / "out", "train").boxes_per_class() == {"cat": 10, "dog": 10, "emu": 10}


def test_vocs_trainval_does_not_bring_back_what_was_thinned_away(tmp_path: Path) -> None:
    write_voc(tmp_path / "set", pictures())
    shutil.copy(*(tmp_path / "set" / "ImageSets" / "Main" / f"{name}.txt" for name in ("train", "trainval")))
    thin(tmp_path / "set", tmp_path / "out", keep=["cat=0.5"])
    assert told(tmp_path / "out")["carried_over"] == {}


@pytest.mark.parametrize("how", ["images", "erase"])
def test_the_same_arguments_give_the_same_bytes_and_another_seed_others(
    coco: Path, tmp_path: Path, how: Any
) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        thin(coco, tmp_path / name, keep=["dog=0.5"], how=how, seed=seed)
    a, b, c = (all_bytes(tmp_path / name) for name in "abc")
    assert a == b
    assert a["annotations/instances_train.json"] != c["annotations/instances_train.json"]


def test_its_own_set_is_replaced_and_anything_else_refused(coco: Path, tmp_path: Path) -> None:
    out = tmp_path / "new" / "out"
    thin(coco, out, keep=["cat=0.5"])
    thin(coco, out, keep=["cat=0.1"])
    assert read_data(out, "train").boxes_per_class()["cat"] == 2
    assert [entry.name for entry in out.parent.iterdir()] == ["out"]
    (out / "notes.txt").write_text("mine")
    thin(coco, out, keep=["cat=0.5"])
    assert (out / "notes.txt").read_text() == "mine"
    with pytest.raises(DataError, match="is a file"):
        thin(coco, out / "notes.txt", keep=["cat=0.5"])
    with pytest.raises(DataError, match="is the data set to be thinned"):
        thin(coco, coco, keep=["cat=0.5"])
    with pytest.raises(DataError, match="is the data set to be thinned"):
        thin(out / "annotations" / "instances_train.json", out, keep=["cat=0.5"])
    other = tmp_path / "other"
    write_coco(other, pictures())
    before = all_bytes(other)
    with pytest.raises(DataError, match="did not write"):
        thin(coco, other, keep=["cat=0.5"])
    assert all_bytes(other) == before


def test_an_interrupted_run_leaves_what_was_there(
    coco: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    thin(coco, tmp_path / "out", keep=["cat=0.5"])
    before = all_bytes(tmp_path)

    def stops(*arguments: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(thinning, "erase", stops)
    with pytest.raises(KeyboardInterrupt):
        thin(coco, tmp_path / "out", keep=["cat=0.1"], how="erase")
    assert all_bytes(tmp_path) == before


def test_pictures_of_one_name_in_several_folders_stay_apart(tmp_path: Path) -> None:
    names = ["a/x.jpg", "b/x.jpg", "b/x.png", "y.jpg"]
    write_coco(tmp_path / "set", [Picture(name, 120, 80, [(CAT, 5, 5, 45, 45)]) for name in names])
    thin(tmp_path / "set", tmp_path / "out", keep=["cat=0.25"], how="erase")
    assert not has_errors(check_data(tmp_path / "out"))
    assert len(list((tmp_path / "out" / "images" / "train").iterdir())) == 4


@given(
    counts=st.lists(st.lists(st.integers(0, 4), min_size=3, max_size=3), min_size=1, max_size=25),
    targets=st.dictionaries(st.integers(0, 2), st.integers(1, 20), max_size=3),
    seed=st.integers(0, 3),
)
@settings(max_examples=200, deadline=None)
def test_no_class_has_too_many_boxes_or_loses_its_last_and_no_picture_goes_for_nothing(
    counts: list[list[int]], targets: dict[int, int], seed: int
) -> None:
    boxes = np.array(counts)
    stays = choose_pictures(boxes, targets, np.random.default_rng(seed))
    left = boxes[stays].sum(0)
    assert ((left > 0) == (boxes.sum(0) > 0)).all()
    for label, target in targets.items():
        if left[label] > target:  # only where each picture with the class holds some class's last box
            rows = boxes[stays & (boxes[:, label] > 0)]
            assert (((rows == left) & (rows > 0)).any(1)).all()
    limits = np.array([targets.get(label, 10**9) for label in range(3)])
    for row in boxes[~stays]:
        assert (left + row > limits).any()


def test_pictures_go_in_the_order_of_what_they_cost() -> None:
    counts = np.array([[1, 4], [1, 1], [1, 0], [1, 3], [0, 9]])
    assert choose_pictures(counts, {0: 2}, np.random.default_rng(0)).tolist() == [
        True,
        False,
        False,
        True,
        True,
    ]


@pytest.mark.parametrize(
    ("keep", "said"),
    [
        (["cta=.5"], "unknown class 'cta': did you mean 'cat'?"),
        (["cat=0"], "share 0.0 of class 'cat': give a number above 0 and up to 1"),
        (["cat=1.01"], "share 1.01 of class 'cat'"),
        (["cat=nan"], "share nan of class 'cat'"),
        (["cat"], "--keep cat: give CLASS=SHARE"),
        (["=.5"], "--keep =.5: give CLASS=SHARE"),
        (["cat=half"], "--keep cat=half: give CLASS=SHARE"),
        (["cat=.5", "cat=.6"], "--keep cat=.6: class 'cat' is there twice"),
        ([], "--keep"),
    ],
)
def test_a_mistake_is_one_line_and_nothing_is_written(
    keep: list[str], said: str, coco: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [part for each in keep for part in ("--keep", each)]
    with pytest.raises(SystemExit) as stopped:
        main(["data", "thin", str(coco), str(tmp_path / "out"), *arguments])
    error = capsys.readouterr().err
    assert stopped.value.code == 2
    assert said in error and error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_two_shares_after_one_option_are_answered_with_how_to_write_them(
    coco: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for words, said in (
        (
            ["data", "thin", str(coco), str(tmp_path / "out"), "--keep", "cat=.5", "dog=.5", "--seed", "1"],
            "dog=.5: --keep takes one value each time it is given: write --keep dog=.5",
        ),
        (["train", str(coco), "more"], "more: one argument too many: leave it out, or look at --help"),
        (["compare", str(coco), "--out", str(tmp_path / "c"), "more"], "more: one argument too many: "),
        (
            ["compare", str(coco), "--out", str(tmp_path / "c"), "--arms", "ce", "ghm", "--seeds", "1"],
            "ghm: --arms takes its values with commas between them: write --arms ce,ghm",
        ),
        (
            ["compare", str(coco), "--out", str(tmp_path / "c"), "--weights-grid=.1,", ".2"],
            ".2: --weights-grid takes its values with commas between them: write --weights-grid .1,.2",
        ),
    ):
        with pytest.raises(SystemExit) as stopped:
            main(words)
        assert stopped.value.code == 2
        assert capsys.readouterr().err.startswith(f"ghmdet: {said}")


def test_a_class_without_boxes_and_a_missing_picture_are_named(coco: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="class 'cat' has no box in split val"):
        thin(coco, tmp_path / "out", keep=["cat=0.5"], split="val")
    with pytest.raises(GhmdetError, match="seed -1"):
        thin(coco, tmp_path / "out", keep=["cat=0.5"], seed=-1)
    with pytest.raises(GhmdetError, match="no class to thin"):
        thin(coco, tmp_path / "out", keep=[])
    (coco / "images" / "val0.jpg").unlink()
    with pytest.raises(DataError, match=r"val0\.jpg: missing image"):
        thin(coco, tmp_path / "out", keep=["cat=0.5"])
    assert not (tmp_path / "out").exists()


def test_the_command_prints_the_table(coco: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--keep", "cat=.5", "--keep", "dog=.2", "--how", "erase"]
    with pytest.raises(SystemExit) as stopped:
        main(["data", "thin", str(coco), str(tmp_path / "out"), *options])
    assert stopped.value.code == 0
    said = capsys.readouterr().out
    assert "train: 21 of 21 pictures, 18 objects erased" in said
    assert "cat     50.0%      20      10   50.0%" in said
