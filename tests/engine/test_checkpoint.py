from __future__ import annotations

import contextlib
import io
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from ghmdet import Detector
from ghmdet.cli import main
from ghmdet.engine.checkpoint import load_checkpoint, run_arguments, save_checkpoint, saved_run
from ghmdet.engine.settings import TrainConfig
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
            assert "not a checkpoint" in said or "not a dict" in said or "no detector" in said


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


def test_a_folder_is_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="this is a folder"):
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


def test_a_run_made_before_a_setting_was_there_is_resumed_with_its_default(tmp_path: Path) -> None:
    before = run_arguments(Path("data"), tmp_path, TrainConfig(epochs=30))
    del before["ohem_ratio"], before["augment"]["hflip"]
    training = {"arguments": before, "place": {"step": 3}, "content": {}}
    state = {"format": "ghmdet-detector", "config": {}, "training": training}
    save_checkpoint(tmp_path / "last.pt", state)
    found = saved_run(Path("data"), tmp_path, TrainConfig(), resume=True)
    assert found is not None and found["place"] == {"step": 3}
    with pytest.raises(GhmdetError, match=r"ohem_ratio 10 \(the run has 3\.0\): leave"):
        saved_run(Path("data"), tmp_path, TrainConfig(ohem_ratio=10), resume=True)


def test_a_run_with_settings_that_have_gone_is_resumed_where_they_were_off(tmp_path: Path) -> None:
    arguments = run_arguments(Path("data"), tmp_path, TrainConfig(epochs=30))
    for zoom_out in (0.0, 0.5):
        before = arguments | {"augment": arguments["augment"] | {"zoom_out": zoom_out, "iou_crop": 0.0}}
        state = {
            "format": "ghmdet-detector",
            "config": {},
            "training": {"arguments": before, "place": {"step": 3}, "content": {}},
        }
        save_checkpoint(tmp_path / "last.pt", state)
        if not zoom_out:
            found = saved_run(Path("data"), tmp_path, TrainConfig(), resume=True)
            assert found is not None and found["place"] == {"step": 3}
    with pytest.raises(GhmdetError, match=r"epochs 60 \(the run has 30\).*: leave .* --weights .*last\.pt"):
        saved_run(Path("data"), tmp_path, TrainConfig(epochs=60), resume=True)
    with pytest.raises(GhmdetError, match=r"cannot resume .* with other settings: augment .*'zoom_out': 0.5"):
        saved_run(Path("data"), tmp_path, TrainConfig(), resume=True)
