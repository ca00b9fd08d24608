from __future__ import annotations

from pathlib import Path

import pytest
import torch

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


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"PK\x03\x04 cut off", b"\x80\x02}q\x00."])
def test_a_file_that_is_no_checkpoint_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.pt").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"a\.pt") as error:
        load_checkpoint(tmp_path / "a.pt")
    assert "\n" not in str(error.value)


def test_bare_weights_are_told_where_to_go(tmp_path: Path) -> None:
    torch.save({"conv.weight": torch.zeros(1)}, tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match="--weights"):
        load_checkpoint(tmp_path / "a.pt")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"nothing\.pt"):
        load_checkpoint(tmp_path / "nothing.pt")


def test_a_run_with_settings_that_have_gone_is_resumed_where_they_were_off(tmp_path: Path) -> None:
    arguments = run_arguments(Path("data"), tmp_path, TrainConfig())
    for zoom_out in (0.0, 0.5):
        before = arguments | {"augment": arguments["augment"] | {"zoom_out": zoom_out, "iou_crop": 0.0}}
        state = {"format": "ghmdet-detector", "training": {"arguments": before, "place": zoom_out}}
        save_checkpoint(tmp_path / "last.pt", state)
        if not zoom_out:
            found = saved_run(tmp_path, arguments, resume=True)
            assert found is not None and found["place"] == 0
    with pytest.raises(GhmdetError, match=r"cannot resume .* with other settings: augment .*'zoom_out': 0.5"):
        saved_run(tmp_path, arguments, resume=True)
