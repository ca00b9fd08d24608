"""What a detector is made of, as plain values, and the presets that users name."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from ghmdet.errors import GhmdetError, Range, check_ranges, unknown_name
from ghmdet.functional.density import check_whole


@dataclass(frozen=True)
class ModelConfig:
    """The plain values that a detector is built from; change them with `dataclasses.replace`.

    Sizes are pixels. The pyramid has levels P3, P4, P5 (strides 8, 16, 32) and `extra_levels` more,
    each at twice the stride of the one before.
    """

    backbone: str
    """Name of a timm model with features at strides 8, 16 and 32, with its weights' tag."""
    channels: Annotated[int, Range(1, 8192)] = 256
    """Channels of the pyramid and of the head's towers."""
    extra_levels: Annotated[int, Range(0, 6)] = 2
    """Levels after P5: 1 gives P6, 2 gives P6 and P7."""
    extra_from: Literal["p5", "c5"] = "p5"
    """What P6 is computed from: the pyramid's P5, or the backbone's last feature."""
    tower_depth: Annotated[int, Range(0, 100)] = 4
    """3x3 convolutions in each of the two towers."""
    norm_groups: Annotated[int, Range(0, 8192)] = 0
    """Groups of the towers' GroupNorm; 0 leaves the norm out."""
    prior: Annotated[float, Range(1e-9, 1.0)] = 0.01
    """Score that every anchor starts with."""

    anchor_base: Annotated[float, Range(0.01, 1000.0)] = 4.0
    """Side of the smallest square anchor in strides of its level."""
    anchor_scales: Annotated[tuple[float, ...], Range(0.001, 1000.0)] = (1.0, 2 ** (1 / 3), 2 ** (2 / 3))
    anchor_ratios: Annotated[tuple[float, ...], Range(0.01, 100.0)] = (0.5, 1.0, 2.0)
    """Height over width."""
    anchor_sizes: tuple[tuple[float, ...], ...] | None = None
    """Sides in pixels for each level, in place of base x stride x scales."""
    anchor_rule: Literal["centred", "torchvision"] = "centred"
    """"centred": at the middle of each cell. "torchvision": at its corner, rounded, with that library's strides."""
    best_anchors: Annotated[int, Range(0, 100_000)] = 0
    """Anchors that answer for each box: its so many best ones. At 0 those that overlap it by `positive_iou`, as in the
    article. See `ghmdet.models.targets`."""
    positive_iou: Annotated[float, Range(0.0, 1.0)] = 0.5
    background_iou: Annotated[float, Range(0.0, 1.0)] = 0.4
    """Anchors that overlap a box so much without answering for it are ignored in training."""

    min_size: Annotated[int, Range(1, 65536)] = 800
    max_size: Annotated[int, Range(1, 65536)] = 1333
    """Pictures are scaled until their short side is `min_size` or their long side `max_size`, whichever is first."""
    size_divisible: Annotated[int, Range(1, 4096)] = 32
    antialias: bool = True
    mean: Annotated[tuple[float, float, float], Range(-1000.0, 1000.0)] = (0.485, 0.456, 0.406)
    std: Annotated[tuple[float, float, float], Range(1e-6, 1000.0)] = (0.229, 0.224, 0.225)
    """Those of ImageNet's pictures, as timm and torchvision have them."""

    freeze_batch_norm: bool = True
    """Keep the backbone's batch norm at the statistics and the affine that it was loaded with."""
    batch_norm_eps: Annotated[float, Range(0.0, 1.0)] = 1e-5

    score_threshold: Annotated[float, Range(-1.0, 1.0)] = 0.05
    nms_iou: Annotated[float, Range(0.0, 1.0)] = 0.5
    soft_nms: bool = False
    """Whether overlapping detections lower each other's scores and candidates vote on each box (`soften`)."""
    topk_candidates: Annotated[int, Range(1, 1 << 30)] = 1000
    """Candidates of each level that go into NMS."""
    detections_per_image: Annotated[int, Range(1, 1 << 30)] = 300

    def __post_init__(self) -> None:
        check_ranges(self)
        if missing := [
            name for name, value in vars(self).items() if value is None and name != "anchor_sizes"
        ]:
            raise GhmdetError(f"{missing[0]} is missing")
        if self.extra_from not in ("p5", "c5") or self.anchor_rule not in ("centred", "torchvision"):
            raise GhmdetError(f"unknown extra_from '{self.extra_from}' or anchor_rule '{self.anchor_rule}'")
        for name in ("anchor_scales", "anchor_ratios", "mean", "std"):
            values, many = getattr(self, name), 3 if name in ("mean", "std") else 0
            if not values or len(values) != (many or len(values)):
                raise GhmdetError(f"{name} {values!r}: give {many or 'one or more'} numbers")
        if self.anchor_sizes is not None and (
            len(self.anchor_sizes) != len(self.strides)
            or len({len(sizes) for sizes in self.anchor_sizes}) != 1
        ):
            raise GhmdetError(
                f"anchor_sizes needs one row of equal length for each of the {len(self.strides)} levels, "
                f"got rows of {[len(sizes) for sizes in self.anchor_sizes]}"
            )
        if self.norm_groups and self.channels % self.norm_groups:
            raise GhmdetError(
                f"channels {self.channels} cannot be divided into norm_groups {self.norm_groups}"
            )

    @property
    def strides(self) -> tuple[int, ...]:
        """Stride of each pyramid level in pixels."""
        return tuple(8 * 2**level for level in range(3 + self.extra_levels))

    @property
    def level_sizes(self) -> tuple[tuple[float, ...], ...]:
        """Sides of each level's anchors in pixels."""
        if self.anchor_sizes is not None:
            return self.anchor_sizes
        return tuple(
            tuple(self.anchor_base * s * scale for scale in self.anchor_scales) for s in self.strides
        )

    @property
    def anchors_per_cell(self) -> int:
        """Anchors at each place of a level."""
        return len(self.level_sizes[0]) * len(self.anchor_ratios)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ModelConfig:
        """The config of `dataclasses.asdict`, also where JSON has made lists of its tuples.

        Raises GhmdetError for a field that this version does not know.
        """
        known = {field.name for field in dataclasses.fields(cls)}
        unknown = sorted(set(values) - known)
        if unknown:
            raise GhmdetError(
                f"unknown model field '{unknown[0]}': it was written by another version of ghmdet"
            )
        return cls(**{name: _tuples(value) for name, value in values.items()})


def _tuples(value: Any) -> Any:
    return tuple(_tuples(item) for item in value) if isinstance(value, list | tuple) else value


# torchvision cuts its sizes to whole pixels, and weights trained there expect exactly these.
_TORCHVISION_SIZES = tuple(
    (float(side), float(int(side * 2 ** (1 / 3))), float(int(side * 2 ** (2 / 3))))
    for side in (32, 64, 128, 256, 512)
)

_R50 = ModelConfig(
    backbone="resnet50.tv_in1k", anchor_sizes=_TORCHVISION_SIZES, anchor_rule="torchvision", antialias=False
)

# What is known by now, where no weights expect otherwise.
_R50_SMALL = dataclasses.replace(_R50, best_anchors=9, min_size=480, max_size=640, nms_iou=0.7, soft_nms=True)

PRESETS: dict[str, ModelConfig] = {
    "nano": ModelConfig(
        backbone="tf_efficientnet_lite0.in1k",
        channels=64,
        extra_levels=1,
        tower_depth=2,
        norm_groups=16,
        anchor_base=3.0,
        best_anchors=9,
        anchor_scales=(1.0, 2**0.5),
        min_size=288,
        max_size=384,
        mean=(127 / 255,) * 3,
        std=(128 / 255,) * 3,
        batch_norm_eps=1e-3,
        nms_iou=0.7,
        soft_nms=True,
    ),
    "r18": dataclasses.replace(_R50_SMALL, backbone="resnet18.tv_in1k", min_size=800, max_size=1333),
    "r50_small": _R50_SMALL,
    "r50": _R50,
    "r50_v2": dataclasses.replace(_R50, extra_from="c5", norm_groups=32),
}
"""`nano` trains on two CPU cores; `r50` is the article's RetinaNet R50-FPN; `r50_v2` is torchvision's second.

The others give each box its best anchors, whatever its size; `r50_small` is `r50` with that, for smaller pictures."""


def preset(name: str, *, size: int | None = None) -> ModelConfig:
    """The preset of this name.

    size: longest side of a picture in pixels, in place of the preset's own; the short side keeps its proportion.
    Raises GhmdetError for an unknown name or a value out of range.

    >>> preset("nano", size=480).min_size
    360
    """
    if name not in PRESETS:
        raise unknown_name("model", name, PRESETS)
    config = PRESETS[name]
    if size is not None:
        size = check_whole("size", size)
        short = max(1, round(size * config.min_size / config.max_size))
        config = dataclasses.replace(config, min_size=short, max_size=size)
    return config
