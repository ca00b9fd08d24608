"""The detector."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ghmdet.errors import CheckpointError, GhmdetError
from ghmdet.models import torchvision_import
from ghmdet.models.anchors import make_anchors
from ghmdet.models.backbone import Backbone
from ghmdet.models.head import Head
from ghmdet.models.loss import DetectionLoss, LossConfig
from ghmdet.models.neck import FeaturePyramid
from ghmdet.models.postprocess import postprocess
from ghmdet.models.preprocess import Batch, make_batch
from ghmdet.models.presets import ModelConfig
from ghmdet.models.targets import AnchorTargets, anchor_targets, check_targets, pad_targets


class RetinaNet(nn.Module):
    """A one-stage detector (Lin et al. 2017), torchvision's contract, but with labels 0..K-1 and no background class.

    config: what it is made of, usually one of `PRESETS`. classes: K distinct names. loss: what trains it.
    A new detector is random, its backbone too: see `ghmdet.models.load_weights`.

    Raises GhmdetError for no classes, one named twice, or an unknown backbone.
    """

    observe: Callable[[Tensor, Tensor, AnchorTargets, Batch], None] | None = None
    """Called at each forward in training, if set, with what the losses get: logits [B, A, K] and box offsets [B, A, 4],
    both detached; the targets; the pictures. On the device, so reading a value would make the host wait."""

    def __init__(self, config: ModelConfig, classes: Sequence[str], loss: LossConfig | None = None) -> None:
        super().__init__()
        self.config = config
        self.classes = _checked_classes(classes)
        self.backbone = Backbone(config.backbone, frozen=config.freeze_batch_norm, eps=config.batch_norm_eps)
        self.neck = FeaturePyramid(
            self.backbone.channels, config.channels, config.extra_levels, config.extra_from
        )
        self.head = Head(
            config.channels,
            depth=config.tower_depth,
            norm_groups=config.norm_groups,
            anchors=config.anchors_per_cell,
            num_classes=len(self.classes),
            prior=config.prior,
        )
        self.loss = DetectionLoss(loss or LossConfig(), len(self.classes))

    @property
    def device(self) -> torch.device:
        """Where its weights are."""
        return self.head.class_logits.weight.device

    def forward(
        self, images: Sequence[Tensor], targets: Sequence[Mapping[str, Tensor]] | None = None
    ) -> dict[str, Tensor] | list[dict[str, Tensor]]:
        """The losses in training, the detections otherwise.

        images: float tensors [3, H, W] in 0..1, RGB, of any sizes.
        targets: in training, for each image a dict with boxes [n, 4] float32 (xyxy pixels) and labels [n] int64 in
            0..K-1; n may be 0.

        Returns in training a dict of scalars `classification` and `bbox_regression`, whose sum is to be minimised;
        otherwise for each image a dict boxes [n, 4] (its own pixels), scores [n] (falling), labels [n].
        Raises GhmdetError naming the image (and box) for pictures or targets that cannot be used.
        """
        if self.training:
            if targets is None:
                raise GhmdetError("in training mode the detector needs targets; call eval() first to detect")
            check_targets(targets, len(images), len(self.classes))
        batch = self.preprocess(images)
        logits, deltas = self.forward_raw(batch.images)
        if not self.training or targets is None:
            return self.postprocess(logits, deltas, batch)

        wanted = self.assign(targets, batch)
        if self.observe is not None:
            self.observe(logits.detach(), deltas.detach(), wanted, batch)
        anchors, _ = self._anchors(batch.images)
        losses: dict[str, Tensor] = self.loss(logits, deltas, wanted.labels, wanted.boxes, anchors)
        return losses

    def assign(self, targets: Sequence[Mapping[str, Tensor]], batch: Batch) -> AnchorTargets:
        """What each anchor of each picture should say: labels [B, A] (K = background, -1 = ignored), boxes [B, A, 4].

        targets: for each picture a dict with boxes [n, 4] (xyxy in its own pixels) and labels [n].
        """
        anchors, _ = self._anchors(batch.images)
        boxes, labels = pad_targets(targets, batch, self.device)
        with torch.autocast(self.device.type, enabled=False):
            return anchor_targets(boxes, labels, anchors, self.config, len(self.classes))

    def preprocess(self, images: Sequence[Tensor]) -> Batch:
        """Pictures of any size, scaled and normalised, in one padded batch on the detector's device."""
        return make_batch(images, self.config, self.device)

    def forward_raw(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Normalised pictures [B, 3, H, W] -> logits [B, A, K] and box offsets [B, A, 4], all levels concatenated.

        Pure tensor code: export, spectrum and audit start from it. The offsets are relative to `make_anchors`.
        """
        logits, deltas = self.head(self.neck(self.backbone(images)))
        return logits, deltas

    def postprocess(self, logits: Tensor, deltas: Tensor, batch: Batch) -> list[dict[str, Tensor]]:
        """The detections of `forward_raw`'s result, in each picture's own pixels."""
        anchors, level_counts = self._anchors(batch.images)
        return postprocess(logits, deltas, anchors, level_counts, batch, self.config)

    def set_classes(self, classes: Sequence[str]) -> None:
        """Detect other classes: a new class layer, whose every score starts at the prior, and a fresh loss."""
        self.classes = _checked_classes(classes)
        self.head.set_classes(len(self.classes))
        self.loss = DetectionLoss(self.loss.config, len(self.classes)).to(self.device)

    def freeze_batch_norm(self, frozen: bool) -> None:
        """Hold the backbone's batch norm at what it was loaded with, or let it learn (as a random backbone needs)."""
        self.config = dataclasses.replace(self.config, freeze_batch_norm=frozen)
        self.backbone.freeze_batch_norm(frozen)

    def network_state(self) -> dict[str, Tensor]:
        """The weights of backbone, neck and head; the losses' moving averages belong to the training run."""
        return {name: value for name, value in self.state_dict().items() if not name.startswith("loss.")}

    def load_network(self, weights: Mapping[str, Tensor]) -> None:
        """Copy in what `network_state` gave; raises CheckpointError naming the first weight that does not fit."""
        self.load_state_dict(fitting(self.network_state(), weights, exact=True), strict=False)

    @classmethod
    def from_torchvision(cls, model: nn.Module, classes: Sequence[str] | None = None) -> RetinaNet:
        """A detector with the same detections as torchvision's `retinanet_resnet50_fpn` or `_v2`, on its device.

        classes: a name for each of its outputs; "class 0", "class 1", ... where absent. Labels stay torchvision's own
            indices: its index 0, which it never trains, is the first class here and needs a name too.

        Raises GhmdetError for another network, or another number of names.
        """
        config, names, weights = torchvision_import.from_model(model, classes)
        detector = cls(config, names)
        detector.load_network(weights)
        return detector.to(next(model.parameters()).device).train(model.training)

    def _anchors(self, images: Tensor) -> tuple[Tensor, tuple[int, ...]]:
        return make_anchors(self.config, images.shape[-2], images.shape[-1], images.device)


def fitting(own: Mapping[str, Tensor], given: Mapping[str, Any], *, exact: bool = False) -> dict[str, Tensor]:
    """Those of the given weights that a network has as its `own`: for `load_state_dict(.., strict=False)`.

    A missing `num_batches_tracked` is no fault: frozen and old batch norms have none, and inference needs none.
    Raises CheckpointError naming the first weight that is missing, misshapen, not finite or, if `exact`, unknown.
    """
    for name, value in own.items():
        if name not in given:
            if not name.endswith("num_batches_tracked"):
                raise CheckpointError(f"'{name}' is missing")
            continue
        tensor = given[name]
        if not isinstance(tensor, Tensor) or tensor.layout != torch.strided:
            raise CheckpointError(f"'{name}' is no dense tensor")
        if tensor.shape != value.shape:
            raise CheckpointError(f"'{name}' is {list(tensor.shape)} where {list(value.shape)} is needed")
        if tensor.is_complex() or not tensor.isfinite().all():
            raise CheckpointError(f"'{name}' holds values that are no finite numbers")
    unknown = next((name for name in given if name not in own), None)
    if exact and unknown is not None:
        raise CheckpointError(f"'{unknown}' is unknown")
    return {name: given[name] for name in own if name in given}


def _checked_classes(classes: Sequence[str]) -> tuple[str, ...]:
    names = tuple(classes)
    if isinstance(classes, str) or not names:
        raise GhmdetError(f"classes must be a list of at least one name, got {classes!r}")
    twice = next((name for name, count in Counter(names).items() if count > 1), None)
    if twice is not None:
        raise GhmdetError(f"class '{twice}' is named twice; every class needs its own name")
    return names
