from __future__ import annotations

import logging
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ghmdet import GHMC, GHMR
from ghmdet import functional as ghm
from ghmdet.functional import _fused
from ghmdet.functional import naive as reference
from ghmdet.functional._arguments import Arguments
from ghmdet.functional.density import Weighting
from operations import WAITS, Operations, as_an_accelerator

GUARDED = {"min_count": "positives", "normalize": "none"}
TOLERANCE = {torch.float64: 1e-10, torch.float32: 2e-5, torch.bfloat16: 8e-3, torch.float16: 2e-3}


@pytest.fixture(autouse=True)
def small_fused(monkeypatch):
    """Blocks of 64 elements, so that small examples have many, and parts of one image."""
    monkeypatch.setattr(_fused, "CPU_BLOCK", 64)


def example(*shape: int, dtype=torch.float32, seed: int = 0):
    """Logits with all kinds of gradient norms, labels with ignored and background, masks and weights with NaN."""
    generator = torch.Generator().manual_seed(seed)
    logits = (torch.randn(shape, generator=generator, dtype=torch.float64) * 4 - 2).to(dtype)
    short = shape[:1] + shape[2:]
    labels = torch.randint(-2, 2 * shape[1], short, generator=generator).clamp_max(shape[1])
    return logits, labels, generator


def outcome(call, inputs, *arguments, impl, upstream=3.0, **options):
    """The loss and the gradient of a call."""
    inputs = inputs.detach().clone().requires_grad_()
    loss = call(inputs, *arguments, impl=impl, **options)
    loss.backward(torch.full_like(loss, upstream))
    return loss.detach(), inputs.grad


def assert_same(call, inputs, *arguments, **options):
    loss, gradient = outcome(call, inputs, *arguments, impl="torch", **options)
    expected, slope = outcome(call, inputs, *arguments, impl="reference", **options)
    assert loss.dtype == expected.dtype and gradient.dtype == slope.dtype
    rtol = TOLERANCE[inputs.dtype]
    # In float32 the reference rounds cross entropies near 0 to multiples of 6e-8; the fused form does not.
    for ours, theirs, relative in ((loss, expected, min(rtol, 2e-5)), (gradient, slope, rtol)):
        atol = 1e-6 * theirs.abs().nan_to_num(0, 0, 0).max().item() if theirs.numel() else 0.0
        torch.testing.assert_close(ours, theirs, rtol=relative, atol=atol)


LABEL_LOSSES = {
    "ghm-c": ghm.ghm_c_loss,
    "focal": ghm.sigmoid_focal_loss,
    "focal, no alpha": lambda *a, **k: ghm.sigmoid_focal_loss(*a, alpha=-1, gamma=1.5, **k),
    "focal, all alpha": lambda *a, **k: ghm.sigmoid_focal_loss(*a, alpha=1.0, gamma=0.0, **k),
    "ghm-c guarded": lambda *a, **k: ghm.ghm_c_loss(*a, **GUARDED, **k),
    "ghm-c per class": lambda *a, **k: ghm.ghm_c_loss(*a, per_class=True, **GUARDED, **k),
    "ghm-c prefix": lambda *a, **k: ghm.ghm_c_loss(*a, method="prefix", per_class=True, **GUARDED, **k),
    "ghm-c all": lambda *a, **k: ghm.ghm_c_loss(*a, normalize="all", min_count=2.0, bins=7, **k),
}
SHAPES = [(1, 2), (63, 3), (2, 65), (37, 5, 3), (2, 3, 13, 7), (3, 2, 70), (0, 4), (2, 3, 0)]
every_label_loss = pytest.mark.parametrize("name", LABEL_LOSSES)


@every_label_loss
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("shape", SHAPES)
def test_labels_give_the_reference_in_value_and_gradient(name, dtype, shape):
    logits, labels, _ = example(*shape, dtype=dtype)
    assert_same(LABEL_LOSSES[name], logits, labels)


@pytest.mark.parametrize("name", ["ghm-c", "ghm-c guarded", "ghm-c per class"])
def test_a_few_logits_of_each_region_among_many_easy_ones_give_the_reference(name, monkeypatch):
    monkeypatch.setattr(_fused, "CPU_BLOCK", 1 << 16)
    logits = torch.full((1003, 4), -6.0)  # 1003: the last rows of a block are nobody's
    g = (torch.arange(30) + 0.5) / 30
    logits[::33, 2][:30] = torch.logit(g)
    labels = torch.full((1003,), 4)
    labels[::50] = 1
    assert_same(LABEL_LOSSES[name], logits, labels)


@every_label_loss
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("mask", ["none", "short", "full"])
@pytest.mark.parametrize("shape", [(63, 3), (2, 3, 13, 7)])
def test_masks_weights_and_reductions_give_the_reference(name, reduction, mask, shape):
    logits, labels, generator = example(*shape)
    short = labels.shape
    valid = (
        None if mask == "none" else torch.rand(short if mask == "short" else shape, generator=generator) < 0.7
    )
    for weight_shape in (short, shape):
        weight = torch.rand(weight_shape, generator=generator) * 3
        assert_same(LABEL_LOSSES[name], logits, labels, valid=valid, weight=weight, reduction=reduction)


@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("share", [0.04, 0.5])  # few enough to stand apart, or too many
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("shape", [(1,), (200,), (1, 1), (70, 1), *SHAPES])
def test_dense_targets_give_the_reference(soft, share, dtype, shape):
    generator = torch.Generator().manual_seed(1)
    logits = (torch.randn(shape, generator=generator, dtype=torch.float64) * 4 - 2).to(dtype)
    shown = torch.rand(shape, generator=generator) < share
    targets = torch.rand(shape, generator=generator) * shown if soft else shown
    valid = torch.rand(shape, generator=generator) < 0.8
    assert_same(ghm.ghm_c_loss, logits, targets, **GUARDED)
    assert_same(ghm.ghm_c_loss, logits, targets, valid=valid, reduction="none")


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_any_logits_and_labels_give_the_reference(data):
    n, k = data.draw(st.integers(1, 9)), data.draw(st.integers(2, 20))
    numbers = st.floats(-100, 100, width=32) | st.sampled_from([0.0, -0.0, 88.0, 104.0, -1e4, 6e4])
    logits = torch.tensor(data.draw(st.lists(numbers, min_size=n * k, max_size=n * k))).view(n, k)
    labels = torch.tensor(data.draw(st.lists(st.integers(-1, k), min_size=n, max_size=n)))
    dtype = data.draw(st.sampled_from([torch.float32, torch.float64]))
    per_class = data.draw(st.booleans())
    bins = data.draw(st.integers(1, 40))
    for normalize, min_count in (("occupied", 0.0), ("none", "positives")):
        options = {"bins": bins, "normalize": normalize, "min_count": min_count, "per_class": per_class}
        inputs = logits.to(dtype)
        loss, gradient = outcome(ghm.ghm_c_loss, inputs, labels, impl="torch", **options)
        _, slope = outcome(ghm.ghm_c_loss, inputs, labels, impl="reference", **options)
        atol = 1e-6 * slope.abs().max().item()
        torch.testing.assert_close(gradient, slope, rtol=TOLERANCE[dtype], atol=atol)
        # The reference's weights, but an exact cross entropy: in float32 the reference rounds it to multiples of 6e-8.
        targets = (labels[:, None] == torch.arange(k)).to(dtype)
        counted = (labels >= 0)[:, None].expand(n, k)
        beta = ghm.harmonizing_weights(
            ghm.sigmoid_gradient_norm(inputs, targets), targets=targets, valid=counted, **options
        )
        signed = torch.where(targets > 0, -inputs, inputs).double()
        plain = torch.nn.functional.softplus(signed, threshold=1000)
        expected = (beta.double() * plain)[counted].sum() / counted.sum().clamp(min=1)
        torch.testing.assert_close(loss.double(), expected, rtol=2e-5, atol=1e-43)  # denormal


def test_the_regions_are_exactly_those_of_the_reference():
    # Logits of the borders m/M and of the numbers beside them.
    border = torch.logit(torch.arange(1, 30, dtype=torch.float64) / 30).float()
    logits = torch.cat([border, border.nextafter(torch.tensor(9.0)), border.nextafter(torch.tensor(-9.0))])
    logits = torch.cat([logits, torch.tensor([20.0, 40.0, -104.0])]).unsqueeze(1)
    for label in (0, 1):
        arguments, tables = Arguments(logits, torch.full((len(logits),), label), None, None), []

        def keep(counts, tables=tables):
            tables.append(counts.table)
            return torch.ones(1, 30), None

        for impl in ("torch", "reference"):
            _fused.harmonized(
                reference.CrossEntropy(), arguments, Weighting(), keep, reduction="sum", impl=impl
            )
        assert torch.equal(*tables)


def test_float32_losses_are_right_to_their_last_digits_at_any_logit():
    logits = torch.linspace(-100, 100, 4001).unsqueeze(1).expand(-1, 2)
    labels = torch.zeros(4001, dtype=torch.int64)
    ours = ghm.ghm_c_loss(logits, labels, bins=1, reduction="none", impl="torch")
    exact = torch.nn.functional.softplus(logits.double() * torch.tensor([-1, 1]), threshold=1000)
    shown = exact > 1e-30
    torch.testing.assert_close(ours.double()[shown], exact[shown], rtol=3e-7, atol=0)


def test_ignored_anchors_do_not_matter():
    logits, labels, _ = example(400, 3)
    whole = ghm.ghm_c_loss(logits[labels >= 0], labels[labels >= 0], impl="torch")
    logits[labels < 0] = math.nan
    torch.testing.assert_close(ghm.ghm_c_loss(logits, labels, impl="torch"), whole)


@pytest.mark.parametrize("shape", [(400,), (400, 3), (40, 3, 5)])
def test_sparse_targets_that_are_no_numbers_do_not_matter_where_masked(shape):
    generator = torch.Generator().manual_seed(3)
    logits, targets = torch.randn(shape, generator=generator), torch.zeros(shape)
    targets[0], targets[2] = 0.7, math.nan
    valid = targets == targets
    assert_same(ghm.ghm_c_loss, logits, targets.where(valid, 0), valid=valid)
    expected = ghm.ghm_c_loss(logits, targets.where(valid, 0), valid=valid, impl="reference")
    torch.testing.assert_close(ghm.ghm_c_loss(logits, targets, valid=valid, impl="torch"), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_loss_scaled_before_backward_keeps_small_half_precision_gradients(dtype):
    logits, labels, _ = example(50, 3, dtype=dtype)
    assert_same(ghm.ghm_c_loss, logits, labels, upstream=65536.0)


def test_a_second_backward_gives_the_gradient_again():
    logits, labels, _ = example(50, 3)
    logits.requires_grad_()
    loss = ghm.ghm_c_loss(logits, labels, impl="torch")
    (first,) = torch.autograd.grad(loss, logits, torch.tensor(2.0), retain_graph=True)
    first = first.clone()
    (second,) = torch.autograd.grad(loss, logits, torch.tensor(4.0))
    torch.testing.assert_close(second, 2 * first)


def test_a_second_derivative_is_refused_and_says_what_has_one():
    logits, labels, _ = example(50, 3)
    logits.requires_grad_()
    with pytest.raises(ValueError, match='impl="reference" has one'):
        torch.autograd.grad(ghm.ghm_c_loss(logits, labels), logits, create_graph=True)
    loss = ghm.ghm_c_loss(logits, labels, impl="reference")
    (gradient,) = torch.autograd.grad(loss, logits, create_graph=True)
    gradient.square().sum().backward()
    assert logits.grad.isfinite().all()


@pytest.mark.parametrize("wants", ["nothing", "no_grad"])
def test_no_gradient_is_computed_that_nobody_wants(wants):
    logits, labels, _ = example(2000, 3)
    logits.requires_grad_(wants == "no_grad")
    with torch.set_grad_enabled(wants == "nothing"), Operations() as seen:
        loss = ghm.ghm_c_loss(logits, labels.clamp_min(0), impl="torch")
    assert not loss.requires_grad and seen.largest < 1.01 * logits.numel()


@pytest.mark.parametrize("masked", [False, True])
@every_label_loss
def test_nothing_in_the_accelerators_path_reads_a_value(name, masked, monkeypatch):
    """The path of a device other than the CPU, on the CPU: no operation whose result's size depends on values."""
    as_an_accelerator(monkeypatch)
    monkeypatch.setattr(_fused, "DEVICE_BLOCK", 200)
    for shape in ((63, 3), (5, 3, 13)):
        logits, labels, _ = example(*shape)
        options = {"valid": labels != 2, "weight": torch.rand(labels.shape)} if masked else {}
        with Operations() as seen:
            outcome(LABEL_LOSSES[name], logits, labels, impl="torch", **options)
        assert not seen.names & WAITS
        assert_same(LABEL_LOSSES[name], logits, labels, **options)


@pytest.mark.parametrize("name", ["GHMC", "GHMC guarded", "GHMC mmdet", "GHMC accumulating"])
def test_a_modules_steps_give_the_reference(name):
    make = {
        "GHMC": GHMC,
        "GHMC guarded": lambda **k: GHMC(num_classes=3, per_class=True, **GUARDED, **k),
        "GHMC mmdet": lambda **k: GHMC(compat="mmdet", **k),
        "GHMC accumulating": lambda **k: GHMC(accumulation_steps=2, reduction="sum", **k),
    }[name]
    fused, reference = make(impl="torch"), make(impl="reference")
    for seed in range(4):
        logits, labels, _ = example(40, 3, seed=seed)
        results = []
        for loss in (fused, reference):
            inputs = logits.clone().requires_grad_()
            value = loss(inputs, labels, valid=labels != 1)
            value.backward()
            results.append((value.detach(), inputs.grad))
        torch.testing.assert_close(results[0], results[1], rtol=2e-5, atol=1e-7)
        torch.testing.assert_close(fused.state_dict(), reference.state_dict(), rtol=1e-6, atol=1e-6)


def test_on_a_cpu_labels_and_few_positives_take_the_fused_form(monkeypatch):
    taken = []
    monkeypatch.setattr(_fused, "Passes", lambda *a, real=_fused.Passes: taken.append(a) or real(*a))
    logits, labels = torch.zeros(40, 3), torch.full((40,), 3)
    positive = torch.zeros(40, 3)
    positive[0, 1] = 1
    for targets, fused in ((labels, 1), (positive, 1), (positive * 0 + 0.2, 0)):
        taken.clear()
        ghm.ghm_c_loss(logits, targets)
        assert len(taken) == fused


def test_auto_says_once_what_it_takes_and_why(caplog):
    _fused._say_once.cache_clear()
    with caplog.at_level(logging.DEBUG, "ghmdet"):
        for _ in range(2):
            ghm.ghm_c_loss(torch.zeros(4, 3), torch.tensor([0, 1, 2, 3]))
            ghm.sigmoid_focal_loss(torch.zeros(4, 3), torch.zeros(4, 3))
    said = [record.message for record in caplog.records]
    assert len(said) == 2
    assert '"torch" on cpu' in said[0] and '"reference" on cpu: targets may be soft' in said[1]


def test_targets_that_want_a_gradient_get_one():
    targets = torch.full((4, 3), 0.5, requires_grad=True)
    ghm.ghm_r_loss(torch.zeros(4, 3), targets).backward()
    assert targets.grad.abs().sum() > 0


@pytest.mark.parametrize("make", [GHMC, GHMR, ghm.ghm_c_loss, ghm.ghm_r_loss, ghm.sigmoid_focal_loss])
def test_a_misspelt_implementation_is_named(make):
    arguments = () if isinstance(make, type) else (torch.zeros(3), torch.zeros(3))
    with pytest.raises(ValueError, match="unknown impl 'torhc': did you mean 'torch'"):
        make(*arguments, impl="torhc")
