from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from engine_cases import TINY
from ghmdet.cli import main
from ghmdet.data import read_data
from ghmdet.data.make import split
from ghmdet.engine.train import train
from ghmdet.errors import DataError, GhmdetError


@pytest.fixture
def one_part(squares: Path, tmp_path: Path) -> Path:
    shutil.copytree(squares, tmp_path / "set")
    (tmp_path / "set" / "annotations" / "instances_val.json").unlink()
    return tmp_path / "set"


def test_two_parts_hold_every_picture_once_and_can_be_trained_on(one_part: Path, tmp_path: Path) -> None:
    before = read_data(one_part, "train")
    with pytest.raises(DataError, match=r"no split 'val': .*ghmdet data split .*set NEW-FOLDER"):
        train(one_part, tmp_path / "x", TINY, say=lambda line: None)
    said = list[str]()
    split(one_part, tmp_path / "two", val_share=0.25, say=said.append)
    told = "\n".join(said)
    parts = {name: read_data(tmp_path / "two", name) for name in ("train", "val")}
    names = {name: {record.path for record in part.records} for name, part in parts.items()}
    assert names["train"] | names["val"] == {record.path.absolute() for record in before.records}
    assert not names["train"] & names["val"]
    assert 2 <= len(names["val"]) <= 5
    assert f"val: {len(names['val'])} pictures, red {parts['val'].boxes_per_class()['red']}" in told
    boxes = {record.path: record.boxes.tolist() for part in parts.values() for record in part.records}
    assert boxes == {record.path.absolute(): record.boxes.tolist() for record in before.records}
    assert train(tmp_path / "two", tmp_path / "x", TINY, say=lambda line: None).epoch == TINY.epochs


def test_a_made_set_that_was_mended_by_hand_is_not_replaced(one_part: Path, tmp_path: Path) -> None:
    split(one_part, tmp_path / "two")
    mended = tmp_path / "two" / "annotations" / "instances_train.json"
    as_made = mended.read_text()
    (tmp_path / "two" / "notes.txt").write_text("mine")
    split(one_part, tmp_path / "two", say=lambda line: None)
    content = json.loads(as_made)
    mended.write_text(json.dumps(content | {"annotations": content["annotations"][1:]}))
    newest = r"the newest file: annotations/instances_train\.json"
    with pytest.raises(
        DataError, match=rf"two: was changed since 'data split' wrote it \({newest}\), and would"
    ):
        split(one_part, tmp_path / "two", val_share=0.5)
    assert len(json.loads(mended.read_text())["annotations"]) == len(content["annotations"]) - 1
    assert (tmp_path / "two" / "notes.txt").read_text() == "mine"
    marker = tmp_path / "two" / "split.json"
    whole = json.loads(marker.read_text())
    for damaged in ("", "[]", "{", json.dumps(whole | {"written": 5})):
        marker.write_text(damaged)
        with pytest.raises(DataError, match=r"was changed since .* \(split\.json cannot be read\)"):
            split(one_part, tmp_path / "two")
    del whole["written"]  # as when it was interrupted, and of older versions
    marker.write_text(json.dumps(whole))
    split(one_part, tmp_path / "two", say=lambda line: None)
    assert mended.read_text() == as_made
    lost = tmp_path / "two" / "annotations" / "lost.json"
    lost.symlink_to(tmp_path / "gone")
    with pytest.raises(DataError, match=r"was changed since .* \(the newest file: annotations/lost\.json\)"):
        split(one_part, tmp_path / "two")
    lost.unlink()
    mended.unlink()
    with pytest.raises(DataError, match=r"was changed since .* \(files are gone, or others\)"):
        split(one_part, tmp_path / "two")


def test_a_made_set_of_which_a_folder_was_linked_stays(one_part: Path, tmp_path: Path) -> None:
    split(one_part, tmp_path / "two")
    (tmp_path / "two" / "annotations").rename(tmp_path / "elsewhere")
    (tmp_path / "two" / "annotations").symlink_to(tmp_path / "elsewhere")
    before = (tmp_path / "two" / "split.json").read_bytes()
    with pytest.raises(DataError, match="two/annotations: is a link, which would be replaced"):
        split(one_part, tmp_path / "two")
    assert (tmp_path / "two" / "split.json").read_bytes() == before
    assert len(list((tmp_path / "elsewhere").iterdir())) == 2


def test_what_programs_leave_in_a_made_set_is_no_change(one_part: Path, tmp_path: Path) -> None:
    split(one_part, tmp_path / "two")
    for name in (
        ".DS_Store",
        "Thumbs.db",
        "desktop.ini",
        "train.cache",
        ".ipynb_checkpoints/x-checkpoint.json",
    ):
        file = tmp_path / "two" / "annotations" / name
        file.parent.mkdir(exist_ok=True)
        file.write_text("x")
    split(one_part, tmp_path / "two", say=lambda line: None)
    (tmp_path / "two" / "annotations" / "mine.json").write_text("{}")
    with pytest.raises(DataError, match=r"the newest file: annotations/mine\.json"):
        split(one_part, tmp_path / "two")


def test_the_same_pictures_give_the_same_parts_and_other_files_are_left_alone(
    one_part: Path, tmp_path: Path
) -> None:
    with pytest.raises(SystemExit) as main_status:
        main(["data", "split", str(one_part), str(tmp_path / "a")])
    assert main_status.value.code == 0
    split(one_part, tmp_path / "b")
    for name in ("train", "val"):
        file = f"annotations/instances_{name}.json"
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
    split(one_part, tmp_path / "b", val_share=0.5)
    assert json.loads((tmp_path / "b" / "split.json").read_text())["val_share"] == 0.5
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "a.txt").write_text("mine")
    with pytest.raises(DataError, match="did not write"):
        split(one_part, tmp_path / "other")
    with pytest.raises(DataError, match="another folder"):
        split(one_part, one_part)
    with pytest.raises(GhmdetError, match=r"--val-share 1"):
        split(one_part, tmp_path / "c", val_share=1)
