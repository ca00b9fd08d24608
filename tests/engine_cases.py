from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ghmdet.engine.detect import Detector
from ghmdet.engine.settings import TrainConfig
from ghmdet.engine.train import Trainer

TINY = TrainConfig(
    size=96,
    weights="none",
    epochs=3,
    batch_size=4,
    val_every=3,
    precision="fp32",
    device="cpu",
    lr=1e-3,
    ema=0.9,
)


class Interrupted(Trainer):
    """A run that receives a stop signal, in the middle of its second epoch if nothing else is said."""

    stop_after = 5

    def _step(self, *batch: object) -> bool:  # type: ignore[override]
        stepped = super()._step(*batch)  # type: ignore[arg-type]
        if self.progress.step == self.stop_after:
            os.kill(os.getpid(), 15)
        return stepped


def film(path: Path, frames: list[np.ndarray], *, codec: str = "ffv1", title: str = "") -> Path:
    """A video of pictures, without loss by default."""
    av = pytest.importorskip("av")
    with av.open(str(path), "w") as container:
        container.metadata["title"] = title
        stream = container.add_stream(codec, rate=10)
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = "bgr0" if codec == "ffv1" else "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode(None))
    return path


def interrupted_at(call: int, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Lets that call of `Detector.predict` be interrupted; how many pictures each call was asked for."""
    detect, asked = Detector.predict, list[int]()

    def stops(self: Detector, images: Any, **options: Any) -> Any:
        asked.append(len(images))
        if len(asked) == call:
            raise KeyboardInterrupt
        return detect(self, images, **options)

    monkeypatch.setattr(Detector, "predict", stops)
    return asked
