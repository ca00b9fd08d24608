from __future__ import annotations

import contextlib
import copy
import io
import json
import shutil
import struct
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from engine_cases import TINY
from ghmdet import Detector
from ghmdet.cli import main
from ghmdet.data import read_data
from ghmdet.data.fingerprint import fingerprint, labelled
from ghmdet.engine.checkpoint import (
    PREVIOUS,
    drop_previous,
    load_checkpoint,
    run_arguments,
    save_checkpoint,
    saved_run,
    trained_on,
)
from ghmdet.engine.settings import TrainConfig
from ghmdet.engine.train import train
from ghmdet.errors import CheckpointError, GhmdetError


class Planted:
    """Runs code when unpickled the unsafe way."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return exec, ("raise SystemExit('code ran')",)


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    state = {"format": "ghmdet-detector", "weights": torch.arange(3.0), "place": {"step": 3}}
    save_checkpoint(tmp_path / "a.pt", state)
    loaded = load_checkpoint(tmp_path / "a.pt")
    assert torch.equal(loaded["weights"], state["weights"])
    assert loaded["place"] == {"step": 3}
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.pt"]


def test_loading_runs_no_code(tmp_path: Path) -> None:
    torch.save({"format": "ghmdet-detector", "x": Planted()}, tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match=r"a\.pt"):
        load_checkpoint(tmp_path / "a.pt")


def saved(state: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()


def zipped() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("readme.txt", "a zip of something else")
    return buffer.getvalue()


WHOLE = saved({"format": "ghmdet-detector", "weights": torch.arange(300.0)})
NO_CHECKPOINTS = {
    "empty": b"",
    "text": b"not a checkpoint",
    "log": b"step,epoch,lr,loss,classification,bbox_regression,grad_norm\n1,1,0.00015,1.46,0.41,1.05,6.18\n",
    "short": b"1",
    "cut zip": b"PK\x03\x04 cut off",
    "zip of something else": zipped(),
    "old pickle": b"\x80\x02}q\x00.",
    "picture": b"\xff\xd8\xff\xe0\x00\x10JFIF",
    **{f"first {share} %": WHOLE[: len(WHOLE) * share // 100] for share in (1, 10, 50, 90, 99)},
    "a list": saved([1, 2]),
    "a number": saved(3),
}


@pytest.mark.parametrize("name", NO_CHECKPOINTS)
def test_a_file_that_is_no_checkpoint_is_one_line_wherever_a_checkpoint_is_read(
    name: str, squares: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "a.pt"
    path.write_bytes(NO_CHECKPOINTS[name])
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "last.pt").write_bytes(NO_CHECKPOINTS[name])
    commands = {
        path: (["predict", path, squares], ["val", path, squares], ["train", squares, "--weights", path]),
        tmp_path / "run" / "last.pt": (["train", squares, "--resume", "--out", tmp_path / "run"],),
    }
    for file, of_it in commands.items():
        for command in of_it:
            out = [] if "--out" in command else ["--out", tmp_path / "out"]
            with pytest.raises(SystemExit) as stopped:
                main([*map(str, command), *map(str, out)])
            assert stopped.value.code == 2
            said = capsys.readouterr().err
            assert said.startswith(f"ghmdet: {file}: ") and said.count("\n") == 1
            words = (
                "not a checkpoint",
                "not a dict",
                "no detector",
                "an empty file",
                "cut off, as it is not all of",
            )
            assert any(each in said for each in words)
            assert ("an empty file" in said) == (name == "empty") and ("cut off" in said) <= (
                "zip" in name or "first" in name
            )


def test_no_damage_to_a_file_ends_in_another_error(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    path = tmp_path / "a.pt"
    for _ in range(300):
        damaged = np.frombuffer(WHOLE, dtype=np.uint8).copy()
        damaged[random.integers(0, len(damaged), 3)] = random.integers(0, 256, 3)
        noise = random.integers(32, 127, random.integers(1, 60), dtype=np.uint8)
        for content in (damaged, noise):
            path.write_bytes(content.tobytes())
            with contextlib.suppress(CheckpointError):
                load_checkpoint(path)


def test_one_flipped_bit_of_a_weight_is_noticed(run: Path, tmp_path: Path) -> None:
    whole = (run / "best.pt").read_bytes()
    with zipfile.ZipFile(run / "best.pt") as archive:
        sizes = sorted(
            (one.file_size, one.header_offset) for one in archive.infolist() if "/data/" in one.filename
        )
    random = np.random.default_rng(0)
    for size, offset in (sizes[-1], sizes[len(sizes) // 2], *random.choice(sizes, 18).tolist()):
        damaged = bytearray(whole)
        name, extra = struct.unpack("<HH", whole[offset + 26 : offset + 30])  # before the data
        place = offset + 30 + name + extra + int(random.integers(size))
        damaged[place] ^= 1 << int(random.integers(8))
        (tmp_path / "a.pt").write_bytes(damaged)
        with pytest.raises(CheckpointError, match=r"a\.pt: damaged"):
            Detector.load(tmp_path / "a.pt", device="cpu")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_named_wherever_weights_are_loaded(
    value: float, run: Path, squares: Path, tmp_path: Path
) -> None:
    state = dict(load_checkpoint(run / "best.pt"))
    name = list(state["model"])[7]
    state["model"] = {**state["model"], name: torch.full_like(state["model"][name], value)}
    save_checkpoint(tmp_path / "a.pt", state)
    for load in (
        lambda: Detector.load(tmp_path / "a.pt", device="cpu"),
        lambda: train(
            squares, tmp_path / "x", replace(TINY, weights=str(tmp_path / "a.pt")), say=lambda line: None
        ),
    ):
        with pytest.raises(
            CheckpointError, match=rf"a\.pt: .*'{name}' holds values that are no finite numbers"
        ):
            load()


def test_the_save_before_stays_where_the_last_one_cannot_be_read(run: Path, tmp_path: Path) -> None:
    shutil.copy(run.with_name(PREVIOUS), tmp_path)
    content = bytearray((run / "last.pt").read_bytes())
    content[len(content) // 2] ^= 4
    (tmp_path / "last.pt").write_bytes(content)
    drop_previous(tmp_path)
    assert (tmp_path / PREVIOUS).exists()
    shutil.copy(run / "last.pt", tmp_path)
    drop_previous(tmp_path)
    assert not (tmp_path / PREVIOUS).exists()


@pytest.mark.parametrize("damage", ["bit", "cut", "gone"])
def test_a_run_whose_last_save_is_damaged_goes_on_from_the_one_before_and_ends_alike(
    damage: str, run: Path, squares: Path, tmp_path: Path
) -> None:
    last, said = tmp_path / "run" / "last.pt", list[str]()
    shutil.copytree(run, tmp_path / "run")
    shutil.copy(run.with_name(PREVIOUS), tmp_path / "run")
    before = load_checkpoint(last.with_name(PREVIOUS))["training"]["place"]
    assert before["validated_epoch"] == 0 and before["step"] == 9  # saved before the validation
    content = bytearray(last.read_bytes())
    content[len(content) // 2] ^= 4
    last.write_bytes(content if damage == "bit" else content[:999])
    if damage == "gone":
        last.unlink()
    train(squares, tmp_path / "run", TINY, resume=True, say=said.append)
    assert any(f"goes on from the save before it, {last.with_name(PREVIOUS)}" in line for line in said)
    assert [line for line in said if line.startswith("resuming")] == [f"resuming {last.with_name(PREVIOUS)}"]
    weights = [load_checkpoint(folder / "last.pt")["model"] for folder in (run, tmp_path / "run")]
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())
    # The row of the validation that is made again is there once.
    assert (tmp_path / "run" / "metrics.csv").read_text().count("\n") == 2
    assert not last.with_name(PREVIOUS).exists()  # the run has ended
    train(squares, tmp_path / "run", TINY, resume=True, say=said.append)
    assert f"resuming {last}" in said
    # Only the second resume had nothing left to do.
    finished = (
        "this run was finished already; to train on, begin another: "
        f"--weights {last.with_name('best.pt')} --epochs N"
    )
    assert said.count(finished) == 1 and said.index(finished) > said.index(f"resuming {last}")
    last.with_name(PREVIOUS).write_bytes(b"of a version that kept it")
    train(squares, tmp_path / "run", TINY, resume=True, say=said.append)
    assert not last.with_name(PREVIOUS).exists()
    last.write_bytes(b"")
    last.with_name(PREVIOUS).write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"previous\.pt"):
        train(squares, tmp_path / "run", TINY, resume=True, say=said.append)


def test_a_folder_means_its_best_checkpoint(run: Path, tmp_path: Path) -> None:
    assert load_checkpoint(run)["classes"] == load_checkpoint(run / "best.pt")["classes"]
    assert Detector.load(run, device="cpu").classes == ("red", "blue")
    with pytest.raises(CheckpointError, match=r"this is a folder: give the path of a checkpoint$"):
        load_checkpoint(tmp_path)
    (tmp_path / "last.pt").touch()  # nothing was found yet
    with pytest.raises(CheckpointError, match=rf"the path of a checkpoint, here {tmp_path}/last\.pt$"):
        load_checkpoint(tmp_path)


@pytest.mark.parametrize(
    "damage",
    [
        {"config": 3},
        {"config": {"backbone": "resnet18"}, "classes": 3},
        {"config": {"backbone": 7}},
        {"config": {"backbone": "resnet18", "extra_levels": "two"}},
        {"model": [1]},
        {"model": {"head": 1}},
        {"classes": "cat"},
        {"version": 2},
    ],
)
def test_a_detector_whose_parts_do_not_fit_together_is_named(
    damage: dict[str, object], run: Path, tmp_path: Path
) -> None:
    save_checkpoint(tmp_path / "a.pt", {**load_checkpoint(run / "best.pt"), **damage})
    with pytest.raises(CheckpointError, match=r"a\.pt: "):
        Detector.load(tmp_path / "a.pt", device="cpu")


def test_bare_weights_are_told_where_to_go(tmp_path: Path) -> None:
    torch.save({"conv.weight": torch.zeros(1)}, tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match="--weights"):
        load_checkpoint(tmp_path / "a.pt")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"nothing\.pt"):
        load_checkpoint(tmp_path / "nothing.pt")


def test_a_run_without_a_save_is_not_begun_again_over_its_best_checkpoint(
    squares: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    train(squares, out, replace(TINY, epochs=2, val_every=1), say=lambda line: None)
    whole = (out / "last.pt").read_bytes()
    (out / "last.pt").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CheckpointError, match=r"cut off.*no other save is here: begin in another folder"):
        train(squares, out, replace(TINY, epochs=2, val_every=1), resume=True)
    (out / PREVIOUS).write_text("x")
    both = r"last\.pt: cut off.*; .*previous\.pt: not a checkpoint.*: begin in another folder, from --weights .*best"
    with pytest.raises(CheckpointError, match=both):
        train(squares, out, replace(TINY, epochs=2, val_every=1), resume=True)
    (out / PREVIOUS).unlink()
    (out / "last.pt").rename(out / "best.pt")
    for resume in (True, False):
        with pytest.raises(GhmdetError, match=r"its last\.pt is gone.*--weights .*best\.pt"):
            train(squares, out, replace(TINY, epochs=2, val_every=1), resume=resume)


def test_a_run_made_before_a_setting_was_there_is_resumed_with_its_default(tmp_path: Path) -> None:
    before = run_arguments(Path("data"), tmp_path, TrainConfig(epochs=30))
    del before["ohem_ratio"], before["augment"]["hflip"]
    training = {"arguments": before, "place": {"step": 3}, "fingerprints": {}}
    state = {"format": "ghmdet-detector", "config": {}, "classes": ["a"], "training": training}
    save_checkpoint(tmp_path / "last.pt", state)
    found = saved_run(Path("data"), tmp_path, TrainConfig(), resume=True)
    assert found is not None and found["place"] == {"step": 3}
    with pytest.raises(GhmdetError, match=r"ohem_ratio 10 \(the run has 3\.0\): leave"):
        saved_run(Path("data"), tmp_path, TrainConfig(ohem_ratio=10), resume=True)


@pytest.mark.parametrize("left", ["run.json", "last.pt", PREVIOUS])
def test_a_folder_with_anything_of_a_run_is_not_taken_for_a_new_one(left: str, tmp_path: Path) -> None:
    (tmp_path / left).touch()
    with pytest.raises(GhmdetError, match="holds a run already: add --resume"):
        saved_run(Path("data"), tmp_path, TrainConfig(), resume=False)


def test_a_run_with_settings_that_have_gone_is_resumed_where_they_were_off(tmp_path: Path) -> None:
    arguments = run_arguments(Path("data"), tmp_path, TrainConfig(epochs=30))
    for zoom_out in (0.0, 0.5):
        before = arguments | {"augment": arguments["augment"] | {"zoom_out": zoom_out, "iou_crop": 0.0}}
        state = {
            "format": "ghmdet-detector",
            "config": {},
            "classes": ["a"],
            "training": {"arguments": before, "place": {"step": 3}, "fingerprints": {}},
        }
        save_checkpoint(tmp_path / "last.pt", state)
        if not zoom_out:
            found = saved_run(Path("data"), tmp_path, TrainConfig(), resume=True)
            assert found is not None and found["place"] == {"step": 3}
            with pytest.raises(
                GhmdetError, match=r"epochs 60 \(the run has 30\).*: leave .* --weights .*last\.pt"
            ):
                saved_run(Path("data"), tmp_path, TrainConfig(epochs=60), resume=True)
    with pytest.raises(
        GhmdetError, match=r"with zoom_out 0\.5 cannot be resumed here: it was made by ghmdet"
    ):
        saved_run(Path("data"), tmp_path, TrainConfig(), resume=True)


def test_pictures_that_were_learnt_are_known_in_any_folder_and_format_and_empty_ones_are_not(
    squares: Path, run: Path, tmp_path: Path
) -> None:
    truth = json.loads((squares / "annotations" / "instances_train.json").read_text())

    def known(name: str, truth: dict[str, Any]) -> int:
        (tmp_path / name / "annotations").mkdir(parents=True)
        for image in truth["images"]:
            file = tmp_path / name / "images" / image["file_name"]
            file.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(squares / "images" / file.name, file)
        (tmp_path / name / "annotations" / "instances_train.json").write_text(json.dumps(truth))
        said = trained_on(run, read_data(tmp_path / name, "train")) or "0"
        return int(said.partition(" of these 12 pictures")[0])

    other = copy.deepcopy(truth)
    for number, image in enumerate(other["images"]):
        image["file_name"] = f"day {number % 2}/{image['file_name']}"
        image["id"] += 100
    for one in other["annotations"][::-1]:
        one["area"] *= 0.7
        one["image_id"] += 100
        one["bbox"][0] += 0.1
    other["annotations"].reverse()
    assert known("elsewhere", other) == 12
    yolo = tmp_path / "yolo"
    for folder in ("images", "labels"):
        (yolo / folder / "train").mkdir(parents=True)
    for image in truth["images"]:
        shutil.copy(squares / "images" / image["file_name"], yolo / "images" / "train")
        rows = [
            f"{one['category_id'] - 1} {(x + w / 2) / 96:.4f} {(y + h / 2) / 72:.4f} {w / 96:.4f} {h / 72:.4f}\n"
            for one in truth["annotations"]
            if one["image_id"] == image["id"]
            for x, y, w, h in [one["bbox"]]
        ]
        (yolo / "labels" / "train" / image["file_name"]).with_suffix(".txt").write_text("".join(rows))
    names = ", ".join(one["name"] for one in truth["categories"])
    (yolo / "data.yaml").write_text(f"path: .\ntrain: images/train\nval: images/train\nnames: [{names}]\n")
    assert (trained_on(run, read_data(yolo, "train")) or "").startswith("12 of these 12 pictures")

    mended = copy.deepcopy(truth)
    mended["annotations"][0]["bbox"][0] += 1
    mended["annotations"][2]["category_id"] = 3 - mended["annotations"][2]["category_id"]
    mended["annotations"] = [one for one in mended["annotations"] if one["image_id"] not in (3, 4)]
    assert known("mended", mended) == 8

    shutil.copytree(run, tmp_path / "run")
    state = dict(load_checkpoint(run / "last.pt"))
    empty = read_data(tmp_path / "mended", "train")
    assert len(empty.records) == 12 and len(labelled(empty)) == 10
    state["training"] = {"learnt": labelled(empty)}
    save_checkpoint(tmp_path / "run" / "last.pt", state)
    assert (trained_on(tmp_path / "run", empty) or "").startswith("10 of these 12 pictures")
    state["training"] = {"fingerprints": {"train": fingerprint(empty)}}  # as versions before saved it
    save_checkpoint(tmp_path / "run" / "last.pt", state)
    assert trained_on(tmp_path / "run", empty) is None
