from __future__ import annotations

from ghmdet.engine.settings import TrainConfig

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
