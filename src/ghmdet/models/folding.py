"""Batch norm and padding made part of the convolutions, for a detector that only detects."""

import copy
from itertools import pairwise

import torch
import torch.nn.functional as F
from timm.layers.conv2d_same import Conv2dSame
from timm.layers.norm_act import BatchNormAct2d
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from ghmdet.errors import GhmdetError
from ghmdet.models.depthwise import DepthwiseConv2d
from ghmdet.models.retinanet import RetinaNet

TOLERANCE = 1e-4
"""Of the largest feature: how far the features may be from those with batch norm."""


def fold_batch_norm(model: RetinaNet) -> RetinaNet:
    """The detector, in eval mode, with the batch norm of its backbone folded into its convolutions.

    Convolution and norm are taken for a pair where they follow each other in a module and fit. In a network where that
    is not so, which its features on noise tell, nothing is changed. What could be trained still can. Padding becomes
    even where pictures are padded to multiples of the largest stride (`pad_evenly`).

    Raises GhmdetError for a detector in train mode, or of less than 32 bits.
    """
    like, random = next(model.backbone.body.parameters()), torch.Generator().manual_seed(0)
    if model.training or like.dtype.itemsize < 4:
        mode = "train" if model.training else "eval"
        raise GhmdetError(
            f"batch norm cannot be folded in a detector in {mode} mode of {like.dtype}: call eval() first, and fold"
            " before its numbers are made shorter than 32 bits"
        )
    body = copy.deepcopy(model.backbone.body)
    for parent in list(body.modules()):
        for (before, conv), (after, norm) in pairwise(list(parent.named_children())):
            if not isinstance(conv, nn.Conv2d) or not isinstance(norm, nn.BatchNorm2d):
                continue
            if conv.out_channels == norm.num_features:
                fused = fuse_conv_bn_eval(conv, norm)
                for new, old in zip(fused.parameters(), (conv.weight, norm.bias), strict=True):
                    new.requires_grad = old is not None and old.requires_grad
                setattr(parent, before, fused)
                setattr(parent, after, norm.act if isinstance(norm, BatchNormAct2d) else nn.Identity())
    if model.config.size_divisible % 32 == 0:
        pad_evenly(body)
    noise = torch.randn(1, 3, 64, 64, generator=random).to(like)
    with torch.no_grad():
        pairs = zip(model.backbone.body(noise), body(noise), strict=True)
        if all((one - other).abs().max() <= TOLERANCE * one.abs().max() for one, other in pairs):
            model.backbone.body = body
    return model


def pad_evenly(body: nn.Module) -> nn.Module:
    """The network, in place, with TensorFlow's "same" padding made equal on all sides, if strides divide the sides.

    That padding has one more after than before. A kernel that begins with a row and a column of zeros, over as much
    before as after, gives the same values, and no padded copy of its input is made.
    """
    for name, conv in body.named_children():
        if isinstance(conv, Conv2dSame) or (isinstance(conv, DepthwiseConv2d) and conv.same):
            whole = [max(k - s, 0) for k, s in zip(conv.kernel_size, conv.stride, strict=True)]
            rows, columns = (each % 2 for each in whole)
            even = nn.Conv2d(
                conv.in_channels,
                conv.out_channels,
                (conv.kernel_size[0] + rows, conv.kernel_size[1] + columns),
                conv.stride,  # type: ignore[arg-type]
                ((whole[0] + rows) // 2, (whole[1] + columns) // 2),
                groups=conv.groups,
            )
            weight = F.pad(conv.weight.detach(), (columns, 0, rows, 0))
            even.weight = nn.Parameter(weight, conv.weight.requires_grad)
            even.bias = conv.bias
            setattr(body, name, even)
        else:
            pad_evenly(conv)
    return body
