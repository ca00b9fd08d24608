"""The feature extractor: a timm network that gives features at strides 8, 16 and 32."""

from __future__ import annotations

from typing import Any

import timm
from torch import Tensor, nn

from ghmdet.errors import GhmdetError
from ghmdet.models.depthwise import use_depthwise
from ghmdet.models.strided import use_strided


class Backbone(nn.Module):
    """Features of a picture at strides 8, 16 and 32.

    name: a timm model, with the tag of its weights where it has several (`resnet50.tv_in1k`). The weights
        themselves come from `ghmdet.models.load_weights`; a new backbone is random.
    frozen: batch norm keeps its statistics and its affine, also in training.
    eps: batch norm's epsilon.

    Raises GhmdetError for a name that timm does not know, or a network without those three strides.
    """

    def __init__(self, name: str, *, frozen: bool, eps: float) -> None:
        super().__init__()
        if not timm.is_model(name):
            raise GhmdetError(
                f"unknown backbone '{name}': timm.list_models('*part of a name*') lists the known ones"
            )
        body: Any = timm.create_model(name, pretrained=False, features_only=True)
        strides, channels = body.feature_info.reduction(), body.feature_info.channels()
        if not {8, 16, 32} <= set(strides):
            raise GhmdetError(
                f"backbone '{name}' has features at strides {strides}; the pyramid needs 8, 16 and 32"
            )
        use_depthwise(body)
        use_strided(body)
        self.body: nn.Module = body
        self.levels = [strides.index(stride) for stride in (8, 16, 32)]
        self.channels: list[int] = [channels[level] for level in self.levels]
        for norm in self.batch_norms():
            norm.eps = eps
        self.freeze_batch_norm(frozen)

    def forward(self, images: Tensor) -> list[Tensor]:
        """[B, 3, H, W] -> three features [B, C, H/8, W/8], [.., H/16, W/16], [.., H/32, W/32]."""
        features = self.body(images)
        return [features[level] for level in self.levels]

    def batch_norms(self) -> list[nn.BatchNorm2d]:
        """Every batch norm in it."""
        return [module for module in self.modules() if isinstance(module, nn.BatchNorm2d)]

    def freeze_batch_norm(self, frozen: bool) -> None:
        """Hold batch norm at what it is (or let it learn) from now on."""
        self.frozen = frozen
        for norm in self.batch_norms():
            for parameter in norm.parameters():
                parameter.requires_grad_(not frozen)
        self.train(self.training)

    def train(self, mode: bool = True) -> Backbone:
        """As in torch, but frozen batch norm stays in eval mode."""
        super().train(mode)
        if self.frozen:
            for norm in self.batch_norms():
                norm.eval()
        return self
