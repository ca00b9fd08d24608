"""A derivative of a loss is the reference's or an error: what is changed, freed, transformed or traced between."""

from __future__ import annotations

import gc
import warnings
import weakref

import pytest
import torch
from torch.autograd import forward_ad

from ghmdet import GHMC, GHMR
from ghmdet import functional as ghm

K = 3
LOSSES = {
    "ghm-c": ghm.ghm_c_loss,
    "ghm-c per class": lambda *a, **k: ghm.ghm_c_loss(*a, per_class=True, min_count="positives", **k),
    "ghm-c prefix": lambda *a, **k: ghm.ghm_c_loss(*a, method="prefix", **k),
    "ghm-c exact": lambda *a, **k: ghm.ghm_c_loss(*a, method="exact", **k),
    "focal": ghm.sigmoid_focal_loss,
    "ghm-r": ghm.ghm_r_loss,
    "ce": ghm.binary_cross_entropy,
    "ohem": ghm.ohem_loss,
    "qfl": ghm.quality_focal_loss,
    "vfl": ghm.varifocal_loss,
    "asl1": ghm.asl1_loss,
    "smooth-l1": ghm.smooth_l1_loss,
    "balanced-l1": ghm.balanced_l1_loss,
}
NAMES = [*LOSSES, "GHMC", "GHMR"]
every_loss = pytest.mark.parametrize("name", NAMES)
BOXES = ("ghm-r", "asl1", "smooth-l1", "balanced-l1", "GHMR")
HAS_IMPL = ("ghm-c", "ghm-c per class", "ghm-c prefix", "focal", "ghm-r", "GHMC", "GHMR")


def arguments(dtype: torch.dtype = torch.float32):
    """Logits (or offsets), dense targets, a mask and a weight, each in memory of its own."""
    generator = torch.Generator().manual_seed(0)
    x, t, v, w = (torch.randn(20, K, generator=generator) for _ in range(4))
    return x.to(dtype).requires_grad_(), t.sigmoid(), v > -1, w.exp()


def loss_of(name: str, reduction: str = "mean", impl: str | None = None):
    """The loss as a function of inputs, targets, mask and weight; modules in evaluation, where nothing moves."""
    options = {"reduction": reduction} if impl is None else {"reduction": reduction, "impl": impl}
    if name in ("GHMC", "GHMR"):
        return {"GHMC": GHMC, "GHMR": GHMR}[name](**options).eval()
    return lambda x, t, valid=None, weight=None: LOSSES[name](x, t, valid=valid, weight=weight, **options)


@pytest.mark.parametrize("kind", ["float32", "bfloat16", "none", "twice"])
@pytest.mark.parametrize(
    ("name", "changed"),
    [
        (name, changed)
        for name in NAMES
        for changed in ("inputs", "targets", "labels", "valid", "weight")
        if not (changed == "labels" and name in BOXES)
    ],
)
def test_an_argument_changed_before_backward_is_noticed_or_does_not_matter(name, changed, kind):
    def gradient(change: bool):
        leaf, targets, valid, weight = arguments(torch.bfloat16 if kind == "bfloat16" else torch.float32)
        x = leaf * 1  # an inner tensor, as a network gives it
        if changed == "labels":
            targets = torch.arange(20) % (K + 1)
        loss = loss_of(name, "none" if kind == "none" else "sum")(x, targets, valid, weight)
        if kind == "twice":
            torch.autograd.grad(loss, leaf, torch.ones_like(loss), retain_graph=True)
        given = {"inputs": x, "valid": valid, "weight": weight}.get(changed, targets)
        if change:
            with torch.no_grad():
                given.copy_(~given if changed == "valid" else K - given if changed == "labels" else given / 2)
        return torch.autograd.grad(loss, leaf, torch.ones_like(loss))[0]

    expected = gradient(change=False)
    try:
        found = gradient(change=True)
    except RuntimeError as error:
        assert "modified by an inplace operation" in str(error)
    else:
        assert torch.equal(found, expected)


@pytest.mark.parametrize("labels", [False, True])
@every_loss
def test_no_argument_is_kept_after_backward_while_the_loss_lives(name, labels):
    leaf, targets, valid, weight = arguments()
    given = [leaf * 1, torch.arange(20) % (K + 1) if labels and name not in BOXES else targets, valid, weight]
    loss = loss_of(name)(*given)
    alive = [weakref.ref(tensor) for tensor in given]
    loss.backward()
    del given, targets, valid, weight
    gc.collect()
    assert loss.grad_fn is not None and [ref() for ref in alive] == [None] * 4


@pytest.mark.parametrize("impl", ["auto", "torch", "reference"])
@every_loss
def test_a_derivative_by_any_means_is_that_of_backward(name, impl):
    leaf, targets, _, _ = arguments(torch.float64)
    x, direction = (
        leaf.detach(),
        torch.linspace(-1, 1, x_size := leaf.numel(), dtype=torch.float64).view(leaf.shape),
    )
    loss = loss_of(name, impl=impl if name in HAS_IMPL else None)
    call = lambda x: loss(x, targets)  # noqa: E731
    value = call(leaf)
    (gradient,) = torch.autograd.grad(value, leaf)
    slope = (gradient * direction).sum()
    with forward_ad.dual_level():
        dual = forward_ad.unpack_dual(call(forward_ad.make_dual(x, direction))).tangent
    found = {
        "forward_ad": dual,
        "jvp": torch.func.jvp(call, (x,), (direction,))[1],
        "linearize": torch.func.linearize(call, x)[1](direction),
        "grad": (torch.func.grad(call)(x) * direction).sum(),
        "vjp": (torch.func.vjp(call, x)[1](torch.ones_like(value))[0] * direction).sum(),
        "jacfwd": (torch.func.jacfwd(call)(x) * direction).sum(),
        "vmap of grad": (
            torch.func.vmap(torch.func.grad(call))(torch.stack([x + 1, x]))[1] * direction
        ).sum(),
    }
    for means, derivative in found.items():
        torch.testing.assert_close(derivative, slope, msg=lambda text, means=means: f"{means}: {text}")
    hessian = torch.func.hessian(call)(x).view(x_size, x_size)
    reference = loss_of(name, impl="reference" if name in HAS_IMPL else None)
    by_reverse = torch.autograd.functional.hessian(lambda x: reference(x, targets), x).view(x_size, x_size)
    torch.testing.assert_close(hessian, by_reverse)


@every_loss
def test_a_tangent_of_targets_or_weight_is_not_lost(name):
    x, targets, _, weight = (tensor.detach().double() for tensor in arguments())
    loss = loss_of(name)
    for which in (1, 3):
        given = [x, targets, None, weight]

        def call(changed, which=which, given=given):
            return loss(*given[:which], changed, *given[which + 1 :])

        one = torch.ones_like(weight)
        with forward_ad.dual_level():
            found = forward_ad.unpack_dual(call(forward_ad.make_dual(given[which], one))).tangent
        leaf = given[which].clone().requires_grad_()
        torch.testing.assert_close(found, torch.autograd.grad(call(leaf), leaf)[0].sum())


@pytest.mark.parametrize("labels", [False, True])
@every_loss
def test_a_traced_loss_has_the_loss_of_other_inputs(name, labels):
    leaf, targets, _, _ = arguments()
    targets = torch.arange(20) % (K + 1) if labels and name not in BOXES else targets
    loss = loss_of(name)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        traced = torch.jit.trace(lambda x, t: loss(x, t), (leaf.detach(), targets), check_trace=False)
    torch.testing.assert_close(traced(1 - leaf, targets.flip(0)), loss(1 - leaf, targets.flip(0)))
