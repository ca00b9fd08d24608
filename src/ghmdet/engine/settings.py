"""The settings of a training run: one frozen dataclass, which the command line fills and a checkpoint keeps."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field, replace
from typing import Annotated

from cyclopts import Parameter

from ghmdet.data.transforms import AugmentConfig
from ghmdet.errors import GhmdetError
from ghmdet.models import LossConfig, ModelConfig, preset

EPOCHS = 30
VALIDATIONS = 10
"""About so many validations a run has, where nothing else is asked for."""

WHOLE_NUMBERS = {
    "size": (32, 20_000),
    "epochs": (1, 10**6),
    "batch_size": (1, 10**6),
    "accumulate": (1, 10**6),
    "seed": (0, 2**32 - 1),  # what numpy's generator takes
    "workers": (0, 1000),
    "val_every": (1, 10**6),
    "patience": (0, 10**6),
}
NUMBERS = {
    "anchor_base": (0.01, 1000.0),
    "anchor_ratios": (0.01, 100.0),
    "cls_weight": (0.0, 1e9),
    "box_weight": (0.0, 1e9),
    "lr": (1e-12, 1e3),
    "backbone_lr": (0.0, 1e6),
    "weight_decay": (0.0, 1e6),
    "warmup": (0.0, 0.999),
    "clip_norm": (1e-12, 1e9),
    "ema": (0.0, 0.999999),
    "checkpoint_minutes": (0.0, 1e9),
    "threshold": (0.0, 1.0),
}
"""The least and the greatest value of each numeric option of the commands that train, detect and score."""


@dataclass(frozen=True, kw_only=True)
class DetectorConfig:
    """Which detector, as the command line has it.

    Raises:
        GhmdetError: a value that no detector can have, named with its mend.
    """

    model: str = "nano"
    """Preset: nano, r18, r50 or r50_v2."""
    size: int | None = None
    """Longest side of a training picture in pixels; the preset's own by default. The short side keeps the preset's
    proportion."""
    anchor_base: float | None = None
    """Side of the smallest anchor in strides of its level; the preset's own by default. `ghmdet data anchors` says what
    fits."""
    anchor_ratios: Annotated[tuple[float, ...] | None, Parameter(consume_multiple=True)] = None
    """Shapes of the anchors, height over width; the preset's own by default."""

    def __post_init__(self) -> None:
        check_numbers(
            **{name: value for name, value in vars(self).items() if name in WHOLE_NUMBERS | NUMBERS}
        )

    def network(self) -> ModelConfig:
        """What the detector is made of; raises GhmdetError for an unknown preset."""
        return preset(
            self.model, size=self.size, anchor_base=self.anchor_base, anchor_ratios=self.anchor_ratios
        )


@dataclass(frozen=True, kw_only=True)
class TrainConfig(DetectorConfig):
    """What a training run is made of, apart from its data and its folder.

    Raises:
        GhmdetError: a value that cannot be trained with, named with its mend.
    """

    cls_loss: str = "ghm-c"
    """Class loss: ce, ohem, focal, each also -per-class; ghm-c, ghm-c-joint or ghm-c-published."""
    box_loss: str = "giou"
    """Box loss: smooth-l1, asl1, giou, ghm-r or ghm-r-published."""
    cls_weight: float | None = None
    """Weight of the class loss; by default the loss's own (docs/models.md)."""
    box_weight: float | None = None
    """Weight of the box loss; by default the loss's own (docs/models.md)."""
    weights: str = "auto"
    """Where to start: auto (ImageNet weights for the backbone), none (from scratch), or a checkpoint."""
    epochs: int | None = None
    """Passes over the training pictures; by default 30, or as many as fit into `budget`. With both, what ends first."""
    budget: str | None = None
    """Time for the whole run, such as 90s, 20m or 1.5h: it trains as long as it can and ends within it."""
    batch_size: int = 16
    """Pictures in a batch, over all processes together."""
    accumulate: int = 1
    """Batches whose gradients are averaged into one optimizer step."""
    lr: float = 2e-3
    """Peak learning rate of neck and heads (AdamW)."""
    backbone_lr: float = 0.1
    """Learning rate of the backbone as a share of `lr`; a backbone trained from scratch always takes 1."""
    weight_decay: float = 0.02
    """AdamW's weight decay; none on biases and norms."""
    warmup: float = 0.1
    """Share of the steps in which the learning rate rises."""
    clip_norm: float = 10.0
    """Largest norm of the whole gradient."""
    ema: float = 0.98
    """Decay of the moving average of the weights, which is what is validated and kept; 0 keeps the last weights."""
    augment: Annotated[AugmentConfig, Parameter(name="*")] = field(default_factory=AugmentConfig)
    """How pictures are varied."""
    precision: str = "auto"
    """auto, fp32, bf16 or fp16; auto says what it chose and why."""
    device: str = "auto"
    """auto, cpu or cuda."""
    seed: int = 0
    """Seed of weights, order and augmentation: same seed and machine, same numbers."""
    workers: int | None = None
    """Processes that read pictures; by default none on a CPU, and up to eight a GPU."""
    train_split: str = "train"
    """Name of the part to train on."""
    val_split: str = "val"
    """Name of the part to choose the best checkpoint on."""
    val_every: int | None = None
    """Epochs between two validations; by default so many that a run has at most ten."""
    patience: int = 0
    """Stop after this many epochs without a better AP; 0 never stops early."""
    checkpoint_minutes: float = 10.0
    """Longest time between two saves of `last.pt` within an epoch."""
    tensorboard: bool = False
    """Also write for TensorBoard: all numbers, spectra, what the detector sees (extra `tensorboard`)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.budget is not None:
            seconds_of(self.budget)

    def network(self) -> ModelConfig:
        """What the detector is made of; from scratch its batch norm learns, since frozen it would not normalise."""
        network = super().network()
        return replace(network, freeze_batch_norm=False) if self.weights == "none" else network

    def losses(self) -> LossConfig:
        """What it is trained by; raises GhmdetError for an unknown loss."""
        return LossConfig(
            self.cls_loss, self.box_loss, self.cls_weight, self.box_weight, accumulation_steps=self.accumulate
        )

    @property
    def total_epochs(self) -> int:
        """The epochs of a run without a budget."""
        return EPOCHS if self.epochs is None else self.epochs


def check_numbers(**options: float | tuple[float, ...] | None) -> None:
    """Raise GhmdetError for a value of a numeric option that cannot be used, naming it and its mend.

    options: each a number, several, or None where it was not given.
    """
    for name, given in options.items():
        low, high = WHOLE_NUMBERS.get(name) or NUMBERS[name]
        for value in given if isinstance(given, tuple) else (given,):
            fits = value is None or low <= value <= high
            if not fits or (name in WHOLE_NUMBERS and not isinstance(value, int | None)):
                kind = "a whole number" if name in WHOLE_NUMBERS else "a number"
                raise GhmdetError(
                    f"--{name.replace('_', '-')} {value}: give {kind} from {low:.10g} to {high:.10g}"
                )


def validate_every(epochs: int) -> int:
    """Epochs between two validations where nothing else was asked for: at most `VALIDATIONS` in a run.

    >>> validate_every(9), validate_every(30), validate_every(31)
    (1, 3, 4)
    """
    return math.ceil(epochs / VALIDATIONS)


def seconds_of(budget: str) -> float:
    """The seconds of a time such as 90s, 20m or 1.5h.

    Raises:
        GhmdetError: not a time, none at all, or more than a year.

    >>> seconds_of("20m"), seconds_of("1.5h")
    (1200.0, 5400.0)
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smh])", budget.strip())
    seconds = float(match[1]) * {"s": 1, "m": 60, "h": 3600}[match[2]] if match else 0.0
    if not 0 < seconds <= 366 * 24 * 3600:
        raise GhmdetError(f"--budget {budget}: give a time such as 90s, 20m or 1.5h, a year at most")
    return seconds
