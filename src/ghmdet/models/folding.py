"""Batch norm made part of the convolutions before it, for a detector that only detects."""

from __future__ import annotations

import copy
from itertools import pairwise

import torch
from timm.layers.norm_act import BatchNormAct2d
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from ghmdet.models.retinanet import RetinaNet

TOLERANCE = 1e-4
"""Of the largest feature: how far the features may be from those with batch norm."""


def fold_batch_norm(model: RetinaNet) -> RetinaNet:
    """The detector, in eval mode, with the batch norm of its backbone folded into its convolutions.

    Convolution and norm are taken for a pair where they follow each other in a module and fit. In a network where that
    is not so, which its features on noise tell, nothing is changed.
    """
    body, random = copy.deepcopy(model.backbone.body), torch.Generator().manual_seed(0)
    for parent in list(body.modules()):
        for (before, conv), (after, norm) in pairwise(list(parent.named_children())):
            if not isinstance(conv, nn.Conv2d) or not isinstance(norm, nn.BatchNorm2d):
                continue
            if conv.out_channels == norm.num_features:
                setattr(parent, before, fuse_conv_bn_eval(conv, norm))
                setattr(parent, after, norm.act if isinstance(norm, BatchNormAct2d) else nn.Identity())
    noise = torch.randn(1, 3, 64, 64, generator=random)
    with torch.no_grad():
        pairs = zip(model.backbone.body(noise), body(noise), strict=True)
        if all((one - other).abs().max() <= TOLERANCE * one.abs().max() for one, other in pairs):
            model.backbone.body = body
    return model
