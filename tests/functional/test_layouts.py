"""Every function and both modules on tensors of every memory layout, against contiguous ones and the reference."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor

from ghmdet import GHMC, GHMR
from ghmdet import functional as ghm

K = 3
GUARDED = {"min_count": "positives", "normalize": "none"}


def channels_last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)


def packed(x: Tensor) -> Tensor:
    return x.clone(memory_format=torch.contiguous_format)


# From a contiguous tensor [N, K] or [N, K, H, W], a view of some other one with values of its own.
OF_ROWS = {
    "columns of a wider head": lambda x: torch.cat([x, x, x], 1)[:, 1 : K + 1],
    "every other row": lambda x: x.repeat_interleave(2, 0)[::2],
    "transposed": lambda x: x.t().contiguous().t(),
    "split": lambda x: torch.cat([x, x], 1).split(K, 1)[1],
    "expanded rows": lambda x: x[:1].expand(x.shape),
    "expanded columns": lambda x: x[:, :1].expand(x.shape),
    "overlapping": lambda x: x.flatten().unfold(0, K, 1)[: len(x)],
    "all but the last column": lambda x: (
        torch.cat([x, x[:, :1]], 1).view(2, -1, K + 1)[..., :-1].flatten(0, 1)
    ),
    "anchors in images": lambda x: torch.stack([x, x], 1)[:, 0],
}
OF_MAPS = {
    "channels_last": channels_last,
    "slice of channels_last": lambda x: channels_last(torch.cat([x, x], 1))[:, 2 : K + 2],
    "slice of channels": lambda x: torch.cat([x, x], 1)[:, 2 : K + 2],
    "every other place": lambda x: x.repeat_interleave(2, 3)[..., ::2],
    "a crop": lambda x: torch.nn.functional.pad(x, (1, 1, 1, 1))[..., 1:-1, 1:-1],
    "permuted": lambda x: x.permute(2, 1, 0, 3).contiguous().permute(2, 1, 0, 3),
    "expanded image": lambda x: x[:1].expand(x.shape),
}
CLASS_LOSSES = {
    "ghm-c": ghm.ghm_c_loss,
    "ghm-c per class": partial(ghm.ghm_c_loss, per_class=True, **GUARDED),
    "ghm-c prefix": partial(ghm.ghm_c_loss, method="prefix", per_class=True),
    "ghm-c exact": partial(ghm.ghm_c_loss, method="exact"),
    "focal": ghm.sigmoid_focal_loss,
    "ce": ghm.binary_cross_entropy,
    "ohem": partial(ghm.ohem_loss, per_class=True),
    "qfl": ghm.quality_focal_loss,
    "vfl": ghm.varifocal_loss,
    "GHMC": lambda *a, impl="auto", **k: GHMC(impl=impl)(*a, **k),
    "GHMC guarded": lambda *a, impl="auto", **k: GHMC(per_class=True, num_classes=K, impl=impl)(*a, **k),
}
BOX_LOSSES = {
    "ghm-r": ghm.ghm_r_loss,
    "asl1": ghm.asl1_loss,
    "smooth-l1": ghm.smooth_l1_loss,
    "balanced-l1": ghm.balanced_l1_loss,
    "GHMR": lambda *a, impl="auto", **k: GHMR(impl=impl)(*a, **k),
}
HAS_NO_IMPL = ("ce", "ohem", "qfl", "vfl", "balanced-l1", "asl1", "smooth-l1", "ghm-c exact")
layouts = pytest.mark.parametrize(("shape", "layout"), [
    *(((40, K), name) for name in OF_ROWS), *(((2, K, 6, 5), name) for name in OF_MAPS)
])  # fmt: skip
LAYOUTS = OF_ROWS | OF_MAPS


def value_and_gradient(call, lay, base: Tensor, *arguments, **options):
    """The loss of `lay(base)` and its gradient by `base`."""
    leaf = base.clone().requires_grad_()
    value = call(lay(leaf), *arguments, **options)
    value.backward()
    return value.detach(), leaf.grad


def assert_same(name: str, call, lay, base: Tensor, targets: Tensor, **masks):
    """A loss of `lay(base)`, and of everything else as it lies, is the reference's of contiguous copies."""
    found = value_and_gradient(call, lay, base, targets, **masks)
    copies = {key: value.contiguous() for key, value in masks.items()}
    reference = {} if name in HAS_NO_IMPL else {"impl": "reference"}
    expected = value_and_gradient(
        call,
        lambda x: packed(lay(x)),
        base,
        targets.contiguous(),
        **copies,
        **reference,
    )
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


@layouts
@pytest.mark.parametrize("name", CLASS_LOSSES)
def test_logits_and_targets_of_any_layout_give_the_reference(name, shape, layout):
    lay, short = LAYOUTS[layout], shape[:1] + shape[2:]
    logits, soft = torch.randn(shape, dtype=torch.float64) * 3, torch.rand(shape, dtype=torch.float64)
    labels = lay(torch.randint(-1, K + 1, shape))[:, 0]
    assert labels.shape == short
    assert_same(name, CLASS_LOSSES[name], lay, logits, labels)
    assert_same(name, CLASS_LOSSES[name], lay, logits, lay(soft))
    assert_same(name, CLASS_LOSSES[name], lay, logits, labels, valid=lay(soft > 0.3)[:, 1], weight=lay(soft))


@layouts
@pytest.mark.parametrize("name", BOX_LOSSES)
def test_offsets_of_any_layout_give_the_reference(name, shape, layout):
    lay = LAYOUTS[layout]
    offsets, targets = (torch.randn(shape, dtype=torch.float64) * 0.1 for _ in range(2))
    assert_same(name, BOX_LOSSES[name], lay, offsets, lay(targets))
    assert_same(
        name, BOX_LOSSES[name], lay, offsets, targets, valid=lay(targets > 0), weight=lay(targets)[:, 0]
    )


@layouts
def test_norms_densities_and_weights_do_not_depend_on_the_layout(shape, layout):
    lay = LAYOUTS[layout]
    x, soft = torch.randn(shape, dtype=torch.float64), torch.rand(shape, dtype=torch.float64)
    labels = torch.randint(0, K, shape)
    for call in (
        lambda x, t, c: ghm.sigmoid_gradient_norm(x, t),
        lambda x, t, c: ghm.softmax_gradient_norm(x, c[:, 0]),
        lambda x, t, c: ghm.smooth_l1_gradient_norm(x),
        lambda x, t, c: ghm.asl1_gradient_norm(x),
        lambda x, t, c: ghm.gradient_density(t),
        lambda x, t, c: ghm.gradient_density(t, method="prefix", valid=x > 0),
        lambda x, t, c: ghm.harmonizing_weights(t, method="exact", per_class=True, valid=(x > 0)[:, 0]),
        lambda x, t, c: ghm.harmonizing_weights(t, min_count="positives", targets=c[:, 0]),
    ):
        expected = call(*(packed(lay(v)) for v in (x, soft, labels)))
        torch.testing.assert_close(call(lay(x), lay(soft), lay(labels)), expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("reduction", ["sum", "none"])
@layouts
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_half_precision_and_unreduced_losses_of_any_layout_give_the_reference(
    dtype, shape, layout, reduction
):
    lay = LAYOUTS[layout]
    logits, labels = (torch.randn(shape) * 3).to(dtype), torch.randint(-1, K + 1, shape[:1] + shape[2:])
    results = []
    for impl in ("torch", "reference"):
        leaf = logits.clone().requires_grad_()
        value = ghm.ghm_c_loss(lay(leaf), labels, per_class=True, **GUARDED, reduction=reduction, impl=impl)
        # An upstream gradient of a layout of its own.
        value.backward(
            lay(torch.arange(1.0, logits.numel() + 1).view(shape)) if reduction == "none" else None
        )
        results.append((value.detach(), leaf.grad))
    tolerance = {"rtol": 2e-2, "atol": 2e-2} if dtype == torch.bfloat16 else {"rtol": 2e-5, "atol": 1e-5}
    torch.testing.assert_close(*results, **tolerance)
