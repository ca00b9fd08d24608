"""The settings of a training run: one frozen dataclass, which the command line fills and a checkpoint keeps."""

import math
import re
from dataclasses import dataclass, field, replace
from typing import Annotated

from cyclopts import Parameter

from ghmdet.data.transforms import AugmentConfig
from ghmdet.engine.optim import OPTIMIZERS
from ghmdet.errors import GhmdetError, Range, check_ranges, unknown_name
from ghmdet.models import LossConfig, ModelConfig, preset
from ghmdet.options import BATCH_SIZE, WORKERS

VALIDATIONS = 10
"""About so many validations a run has, where nothing else is asked for."""


HIDDEN = Parameter(show=False)


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """What a training run is made of, apart from its data and its folder.

    Raises:
        GhmdetError: a value that cannot be trained with, named with its mend.
    """

    model: str = "nano"
    """Preset: nano, r18, r50_small, r50 or r50_v2."""
    size: Annotated[int | None, Range(32, 20_000)] = None
    """Longest side of a training picture in pixels; by default the preset's own, or more where many boxes are small.
    The short side keeps the preset's proportion."""
    cls_loss: str = "ghm-c"
    """Class loss: ce, ohem, focal, each also -per-class; ghm-c (or ghm), ghm-c-joint, ghm-c-published; qfl, vfl, efl,
    eql-v2."""
    box_loss: str = "giou"
    """Box loss: giou, ciou, smooth-l1, balanced-l1, asl1, ghm-r or ghm-r-published."""
    cls_weight: Annotated[float | None, Range(0.0, 1e9)] = None
    """Weight of the class loss; by default the loss's own (docs/models.md)."""
    box_weight: Annotated[float | None, Range(0.0, 1e9)] = None
    """Weight of the box loss; by default the loss's own (docs/models.md)."""
    ohem_ratio: Annotated[float, Range(0.0, 1e9)] = 3.0
    """Negative examples that the class losses `ohem` keep for each positive one."""
    weights: str = "auto"
    """Where to start: auto (ImageNet weights for the backbone), coco (torchvision's detector of COCO, for r50 and
    r50_v2), none (from scratch), or a checkpoint or run."""
    epochs: Annotated[int | None, Range(1, 10**6)] = None
    """Passes over the training pictures; by default about 1600 steps' worth, at least 12, or as many as fit into
    `budget`. With both, what ends first."""
    budget: str | None = None
    """Time for the whole run, such as 90s, 20m or 1.5h: it trains as long as it can and ends within it."""
    batch_size: Annotated[int, BATCH_SIZE] = 8
    """Pictures in a batch, over all processes together."""
    accumulate: Annotated[int, Range(1, 10**6)] = 1
    """Batches whose gradients are averaged into one optimizer step."""
    lr: Annotated[float, Range(1e-12, 1e3)] = 2e-3
    """Peak learning rate of neck and heads."""
    backbone_lr: Annotated[float, Range(0.0, 1e6)] = 0.3
    """Learning rate of the backbone as a share of `lr`; a backbone trained from scratch always takes 1."""
    weight_decay: Annotated[float, Range(0.0, 1e6)] = 0.02
    """Weight decay; adamw has none on biases and norms."""
    optimizer: str = "adamw"
    """adamw, or sgd with momentum .9."""
    drops: Annotated[tuple[int, ...] | None, Range(1, 10**6), Parameter(consume_multiple=True)] = None
    """Epochs after which the learning rate falls to a tenth, in place of the cosine; it then rises from a third."""
    warmup: Annotated[float, Range(0.0, 0.999)] = 0.1
    """Share of the steps in which the learning rate rises."""
    clip_norm: Annotated[float, Range(1e-12, 1e9)] = 10.0
    """Largest norm of the whole gradient."""
    ema: Annotated[float, Range(0.0, 0.999999)] = 0.98
    """Decay of the moving average of the weights, which is what is validated and kept; 0 keeps the last weights."""
    augment: Annotated[AugmentConfig, Parameter(name="*")] = field(default_factory=AugmentConfig)
    """How pictures are varied."""
    precision: str = "auto"
    """auto, fp32, bf16 or fp16; auto says what it chose and why."""
    device: str = "auto"
    """auto, cpu or cuda."""
    seed: Annotated[int, Range(0, 2**32 - 1)] = 0
    """Seed of weights, order and augmentation: same seed and machine, same numbers."""
    workers: Annotated[int | None, WORKERS] = None
    """Processes that read pictures; by default none on a CPU, and up to eight a GPU."""
    train_split: str = "train"
    """Name of the part to train on."""
    val_split: str = "val"
    """Name of the part to choose the best checkpoint on."""
    val_every: Annotated[int | None, Range(1, 10**6)] = None
    """Epochs between two validations; by default so many that a run has at most ten."""
    patience: Annotated[int, Range(0, 10**6)] = 0
    """Stop after this many epochs without a better AP; 0 never stops early."""
    checkpoint_minutes: Annotated[float, Range(0.0, 1e9)] = 10.0
    """Longest time between two saves of `last.pt` within an epoch."""
    tensorboard: bool = False
    """Also write for TensorBoard: all numbers, spectra, what the detector sees (extra `tensorboard`)."""

    def __post_init__(self) -> None:
        check_ranges(self)
        if self.cls_loss == "ghm":
            object.__setattr__(self, "cls_loss", "ghm-c")
        if self.budget is not None:
            seconds_of(self.budget)
        if self.optimizer not in OPTIMIZERS:
            raise unknown_name("optimizer", self.optimizer, OPTIMIZERS)
        drops = self.drops or ()
        if drops and (self.budget or self.epochs is None or [*drops] != sorted({*drops, self.epochs})[:-1]):
            given = " ".join(map(str, drops))
            raise GhmdetError(
                f"--drops {given}, given or of a recipe: they must be rising epochs before the last of --epochs,"
                " without a --budget"
            )

    def network(self) -> ModelConfig:
        """What the detector is made of; from scratch its batch norm learns, since frozen it would not normalise.

        Raises GhmdetError for an unknown preset.
        """
        network = preset(self.model, size=self.size)
        return replace(network, freeze_batch_norm=False) if self.weights == "none" else network

    def losses(self) -> LossConfig:
        """What it is trained by; raises GhmdetError for an unknown loss."""
        return LossConfig(
            self.cls_loss, self.box_loss, self.cls_weight, self.box_weight, self.accumulate, self.ohem_ratio
        )


@dataclass(frozen=True, kw_only=True)
class SharedConfig(TrainConfig):
    """What the runs of a comparison share; the options that it refuses are not in its `--help`."""

    cls_loss: Annotated[str, HIDDEN] = TrainConfig.cls_loss
    val_every: Annotated[int | None, HIDDEN] = None
    patience: Annotated[int, HIDDEN] = 0
    budget: Annotated[str | None, HIDDEN] = None


@dataclass(frozen=True, kw_only=True)
class FoldConfig(TrainConfig):
    """How the detectors of the folds are trained; the options that an audit decides are not in its `--help`."""

    train_split: Annotated[str, HIDDEN] = "train"
    val_split: Annotated[str, HIDDEN] = "val"
    val_every: Annotated[int | None, HIDDEN] = None
    patience: Annotated[int, HIDDEN] = 0


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
