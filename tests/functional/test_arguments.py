"""What the losses make of arguments at the edges: kinds, sizes and meanings that a user may well give."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch

from ghmdet import GHMC, GHMR
from ghmdet import functional as ghm
from ghmdet.functional.density import count_regions

X, T = torch.zeros(4, 3), torch.zeros(4, 3)
CLASS_LOSSES = {
    "ghm-c": ghm.ghm_c_loss,
    "ghm-c exact": partial(ghm.ghm_c_loss, method="exact"),
    "focal": ghm.sigmoid_focal_loss,
    "ce": ghm.binary_cross_entropy,
    "ohem": ghm.ohem_loss,
    "sigmoid_gradient_norm": ghm.sigmoid_gradient_norm,
    "GHMC": lambda *a, **k: GHMC()(*a, **k),
    "GHMC guarded": lambda x, *a, **k: GHMC.guarded(x.shape[1])(x, *a, **k),
}
BOX_LOSSES = {
    "ghm-r": ghm.ghm_r_loss,
    "asl1": ghm.asl1_loss,
    "smooth-l1": ghm.smooth_l1_loss,
    "GHMR": lambda *a, **k: GHMR()(*a, **k),
}


@pytest.mark.parametrize("name", [name for name in CLASS_LOSSES if name != "sigmoid_gradient_norm"])
def test_labels_of_one_class_are_refused_and_both_mends_do_what_they_say(name):
    call, logits = CLASS_LOSSES[name], torch.randn(6, 1)
    labels = torch.tensor([0, 1, 1, 0, 1, 1])
    for given in (labels, labels.int(), labels * 0, labels - 1):
        with pytest.raises(
            ValueError, match=r"one class.*labels\.unsqueeze\(1\).*\(labels == 0\)\.unsqueeze\(1\)"
        ):
            call(logits, given)
    as_binary = call(logits, labels.unsqueeze(1))
    as_class_0 = call(logits, (labels == 0).unsqueeze(1))
    # A head of two classes, whose second is never seen, says the same of the first as its only class.
    plain = ghm.binary_cross_entropy(logits, labels.float().unsqueeze(1))
    assert not torch.equal(as_binary, as_class_0)
    if name == "ce":
        assert torch.equal(as_binary, plain)


def test_labels_of_one_class_are_refused_on_maps_and_where_no_value_can_be_read():
    maps, labels = torch.randn(2, 1, 3, 3), torch.zeros(2, 3, 3, dtype=torch.long)
    for device in ("cpu", "meta"):
        with pytest.raises(ValueError, match="one class"):
            ghm.ghm_c_loss(maps.to(device), labels.to(device))
        with pytest.raises(ValueError, match="one class"):
            ghm.harmonizing_weights(
                maps.sigmoid().to(device), min_count="positives", targets=labels.to(device)
            )


NO_TENSORS = {
    "list": lambda t: t.tolist(),
    "numpy": lambda t: t.numpy(),
    "tuple": lambda t: tuple(t.tolist()),
}


TAKEN = [
    (name, which)
    for name in CLASS_LOSSES | BOX_LOSSES
    for which in ("inputs", "targets", "labels", "valid", "weight")
    if not (which == "labels" and name in BOX_LOSSES)
    and not (which in ("valid", "weight") and "norm" in name)
]


@pytest.mark.parametrize("kind", NO_TENSORS)
@pytest.mark.parametrize(("name", "which"), TAKEN)
def test_what_is_no_tensor_is_named_with_the_mend(name, which, kind):
    call = (CLASS_LOSSES | BOX_LOSSES)[name]
    if which == "inputs" and name == "GHMC guarded":
        call = lambda *a: GHMC.guarded(3)(*a)  # noqa: E731
    spoil = NO_TENSORS[kind]
    arguments = {"inputs": X, "targets": T}
    extra = {"valid": T > 0, "weight": T} if which in ("valid", "weight") else {}
    if which == "labels":
        which, arguments["targets"] = "targets", torch.zeros(4, dtype=torch.long)
    (extra if which in extra else arguments)[which] = spoil((arguments | extra)[which])
    # The gradient norm's own names.
    named = "inputs|logits" if which == "inputs" else which
    with pytest.raises(ValueError, match=rf"({named}) must be a tensor, not .*: torch\.as_tensor"):
        call(arguments["inputs"], arguments["targets"], **extra)


@pytest.mark.parametrize(
    "call",
    [
        lambda: ghm.gradient_density([0.1, 0.2]),
        lambda: ghm.harmonizing_weights(np.zeros(3)),
        lambda: ghm.harmonizing_weights(torch.zeros(3), min_count="positives", targets=[0, 0, 1]),
        lambda: ghm.softmax_gradient_norm(X, [0, 1, 2, 0]),
        lambda: ghm.softmax_gradient_norm(X.numpy(), torch.zeros(4).long()),
        lambda: ghm.smooth_l1_gradient_norm([0.1]),
        lambda: ghm.asl1_gradient_norm(np.zeros(3)),
        lambda: ghm.binary_cross_entropy(X, T, class_weight=[1.0, 2.0, 3.0]),
    ],
)
def test_what_is_no_tensor_is_named_by_the_other_functions_too(call):
    with pytest.raises(ValueError, match=r"must be a tensor, not (list|ndarray)"):
        call()


@pytest.mark.parametrize("impl", ["torch", "reference"])
def test_more_classes_than_a_block_holds_with_a_masked_example(impl):
    logits = torch.randn(3, 70_000).requires_grad_()
    labels = torch.tensor([69_999, -1, 70_000])
    loss = ghm.ghm_c_loss(logits, labels, per_class=True, impl=impl)
    loss.backward()
    kept = logits.detach()[[0, 2]].requires_grad_()
    expected = ghm.ghm_c_loss(kept, labels[[0, 2]], per_class=True, impl="reference")
    expected.backward()
    torch.testing.assert_close(loss, expected)
    assert (logits.grad[1] == 0).all()
    torch.testing.assert_close(logits.grad[[0, 2]], kept.grad)


def test_more_positives_than_float32_counts_one_by_one_are_all_counted():
    n = 2**24 + 2**20  # counting by ones, float32 stays at 2^24
    labels = torch.zeros(n, dtype=torch.int8)
    logits = torch.full((n, 2), -60.0, dtype=torch.bfloat16)
    logits[:, 0] = 60.0  # an easy positive, but for one in a region of its own
    logits[0, 0] = 0.0
    with torch.no_grad():
        loss = ghm.ghm_c_loss(logits, labels, min_count="positives", normalize="none", reduction="sum")
    assert loss.item() == pytest.approx(2 * n * np.log(2) / n, rel=1e-6)


def test_more_examples_of_a_region_than_float32_counts_one_by_one_are_all_counted():
    n = 2**24 + 8
    counts = count_regions(torch.zeros(n, dtype=torch.int32), None, 2, 1, torch.float64)
    assert counts.table.tolist() == [[n, 0, n, 0]]


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_a_weight_of_another_precision_does_not_change_the_losss(reduction):
    weight = torch.rand(5, 3, dtype=torch.float64)
    for call in (ghm.ghm_c_loss, ghm.ghm_r_loss, ghm.smooth_l1_loss):
        loss = call(torch.zeros(5, 3), torch.zeros(5, 3), weight=weight, reduction=reduction)
        assert loss.dtype == torch.float32


@pytest.mark.parametrize("value", [float("inf"), float("nan"), -1.0])
def test_a_floor_that_is_no_finite_number_of_examples_is_refused(value):
    with pytest.raises(ValueError, match="min_count"):
        ghm.ghm_r_loss(torch.zeros(3, 4), torch.zeros(3, 4), min_count=value)


@pytest.mark.parametrize("impl", ["torch", "reference"])
@pytest.mark.parametrize("size", [1e-15, 1e-6, 1e18, 2e19, 1e30, 3e38])
def test_asl1_of_any_difference_that_is_a_number_is_right(size, impl):
    diff = torch.tensor([[size, -size]]).requires_grad_()
    exact = torch.tensor(size, dtype=torch.float64)
    expected = exact**2 / ((exact**2 + 0.02**2).sqrt() + 0.02)
    for loss in (
        ghm.asl1_loss(diff, torch.zeros(1, 2), reduction="none"),
        ghm.ghm_r_loss(diff, torch.zeros(1, 2), reduction="none", impl=impl),
    ):
        torch.testing.assert_close(loss.double(), expected.expand(1, 2), rtol=1e-6, atol=0, check_dtype=False)
        (slope,) = torch.autograd.grad(loss.sum(), diff)
        torch.testing.assert_close(
            slope[0, 0].item(), (exact / (exact**2 + 0.02**2).sqrt()).item(), rtol=1e-6, atol=0
        )
    norm = ghm.asl1_gradient_norm(diff)
    torch.testing.assert_close(norm[0, 1].item(), min(1.0, size / (size**2 + 4e-4) ** 0.5), rtol=1e-6, atol=0)


@pytest.mark.parametrize("impl", ["torch", "reference"])
@pytest.mark.parametrize("smoothing", [0.02, 0.1, 0.3])
def test_label_smoothing_leaves_the_floor_where_it_is(smoothing, impl):
    # 20 objects among 20,000 places, whose targets smoothing draws towards 1/2.
    targets = torch.zeros(20_000, 1)
    targets[:20] = 1.0
    smoothed = targets * (1 - smoothing) + smoothing / 2
    norm = torch.rand(20_000, 1, generator=torch.Generator().manual_seed(0)) ** 99
    options = {"min_count": "positives", "normalize": "none"}
    hard = ghm.harmonizing_weights(norm, targets=targets, **options)
    assert hard.max() == 20_000 / 20
    assert torch.equal(ghm.harmonizing_weights(norm, targets=smoothed, **options), hard)
    # And in the loss: of one example in a region of its own, 1 / P of cross entropy.
    logits = torch.logit(smoothed)  # a gradient norm of 0 everywhere
    logits[-1] = 1.0
    losses = ghm.ghm_c_loss(logits, smoothed, reduction="none", impl=impl, **options)
    plain = ghm.binary_cross_entropy(logits, smoothed, reduction="none")
    torch.testing.assert_close(losses[-1], 20_000 / 20 * plain[-1])


def test_half_a_target_is_a_positive_as_in_ohem():
    norm = torch.tensor([0.1, 0.5, 0.9, 0.95])
    targets = torch.tensor([0.49, 0.5, 0.51, 1.0])
    weight = ghm.harmonizing_weights(norm, targets=targets, min_count="positives", normalize="none", bins=10)
    torch.testing.assert_close(weight, torch.full((4,), 4 / 3))
    kept = ghm.ohem_loss(torch.zeros(4), targets, ratio=0, reduction="none")
    assert ((kept > 0) == (targets >= 0.5)).all()
