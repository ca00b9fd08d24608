from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

import naive
from ghmdet import functional as ghm

LOSSES = {
    "smooth-l1": ghm.smooth_l1_loss,
    "balanced-l1": ghm.balanced_l1_loss,
    "asl1": ghm.asl1_loss,
    "ghm-r": ghm.ghm_r_loss,
}
every_loss = pytest.mark.parametrize("name", LOSSES)


def example(*shape: int, dtype: torch.dtype = torch.float64):
    generator = torch.Generator().manual_seed(0)
    inputs = (torch.randn(shape, generator=generator, dtype=torch.float64) * 0.1).to(dtype)
    return inputs.requires_grad_(), torch.randn(shape, generator=generator, dtype=torch.float64).to(
        dtype
    ) * 0.02


def naive_ghm_r(inputs, targets, mu, bins, method):
    diff = (inputs.detach().double() - targets.double()).flatten().tolist()
    norms = [naive.asl1_gradient_norm(d, mu) for d in diff]
    density = naive.density(norms, 1 / bins) if method == "exact" else naive.unit_region_density(norms, bins)
    beta = naive.harmonizing(density)
    gradient = [b * d / math.sqrt(d * d + mu * mu) / len(diff) for b, d in zip(beta, diff, strict=True)]
    return naive.ghm(beta, [naive.asl1(d, mu) for d in diff]), torch.tensor(gradient).view(inputs.shape)


@pytest.mark.parametrize("method", ["unit-region", "exact"])
@pytest.mark.parametrize("shape", [(1,), (63,), (250, 4)])
def test_ghm_r_equals_the_article_in_value_and_gradient(shape, method):
    inputs, targets = example(*shape)
    loss = ghm.ghm_r_loss(inputs, targets, mu=0.05, method=method, normalize="all")
    loss.backward()
    value, gradient = naive_ghm_r(inputs, targets, 0.05, 10, method)
    assert loss.item() == pytest.approx(value, rel=1e-9)
    torch.testing.assert_close(inputs.grad, gradient.double(), rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_ghm_r_of_lower_precision_is_the_article_on_the_same_numbers(dtype):
    inputs, targets = example(200, 4, dtype=dtype)
    loss = ghm.ghm_r_loss(inputs, targets, normalize="all")
    loss.backward()
    value, gradient = naive_ghm_r(inputs, targets, 0.02, 10, "unit-region")
    assert loss.dtype == torch.float32 and loss.item() == pytest.approx(value, rel=1e-4)
    torch.testing.assert_close(inputs.grad, gradient.to(dtype), rtol=2e-2, atol=1e-5)


@pytest.mark.parametrize("beta", [1.0, 1 / 9])
def test_balanced_l1_by_hand(beta):
    # By the article's gradient, alpha ln(b x + 1) up to 1 and gamma beyond, with alpha .5, gamma 1.5: b = e^3 - 1.
    b = math.e**3 - 1
    d = torch.tensor([0.0, 0.5, -0.5, 1.0, 3.0, -3.0], dtype=torch.float64, requires_grad=True)
    loss = ghm.balanced_l1_loss(d * beta, torch.zeros(6), beta=beta, reduction="none") / beta
    inner = 0.5 / b * (b / 2 + 1) * math.log(b / 2 + 1) - 0.25
    corner = 1.5 + 1.5 / b - 0.5
    expected = torch.tensor([0, inner, inner, corner, corner + 3, corner + 3], dtype=torch.float64)
    torch.testing.assert_close(loss, expected)
    (gradient,) = torch.autograd.grad(loss.sum(), d)
    slope = 0.5 * math.log(b / 2 + 1)
    torch.testing.assert_close(gradient.tolist(), [0.0, slope, -slope, 1.5, 1.5, -1.5])


@every_loss
def test_only_the_difference_counts(name):
    inputs, targets = example(40, 4)
    moved = LOSSES[name](inputs.detach() + 0.5, targets + 0.5)
    torch.testing.assert_close(moved, LOSSES[name](inputs.detach(), targets), rtol=1e-9, atol=0)
    assert not torch.isclose(LOSSES[name](inputs.detach() + 0.5, targets), moved)


@pytest.mark.parametrize("name", ["alpha", "gamma", "beta"])
@pytest.mark.parametrize("value", [0.0, -1.0])
def test_a_size_of_balanced_l1_that_is_not_positive_is_named(name, value):
    with pytest.raises(ValueError, match=f"^{name} "):
        ghm.balanced_l1_loss(*example(3), **{name: value})


def test_smooth_l1_equals_the_article():
    inputs, targets = example(200)
    expected = [naive.smooth_l1(d, 1 / 9) for d in (inputs - targets).tolist()]
    loss = ghm.smooth_l1_loss(inputs, targets, reduction="none")
    torch.testing.assert_close(loss.tolist(), expected)


def test_asl1_equals_the_article():
    inputs, targets = example(200)
    expected = [naive.asl1(d, 0.02) for d in (inputs - targets).tolist()]
    torch.testing.assert_close(ghm.asl1_loss(inputs, targets, reduction="none").tolist(), expected)


def test_asl1_of_a_small_difference_is_not_lost_to_rounding():
    loss = ghm.asl1_loss(torch.tensor([1e-6]), torch.zeros(1), mu=0.02)
    assert loss.item() == pytest.approx(naive.asl1(1e-6, 0.02), rel=1e-5)


def test_one_region_is_plain_asl1():
    inputs, targets = example(50, 4)
    torch.testing.assert_close(ghm.ghm_r_loss(inputs, targets, bins=1), ghm.asl1_loss(inputs, targets))


def test_a_floor_limits_the_weight_of_an_outlier():
    diff = torch.cat([torch.full((99,), 0.001), torch.tensor([1.0])])
    free = ghm.ghm_r_loss(diff, torch.zeros(100), normalize="none", reduction="none")
    guarded = ghm.ghm_r_loss(diff, torch.zeros(100), normalize="none", min_count=20.0, reduction="none")
    torch.testing.assert_close(guarded[-1] * 20, free[-1])
    assert torch.equal(guarded[:-1], free[:-1])


@pytest.mark.parametrize("method", ["unit-region", "prefix", "exact"])
def test_no_coordinate_of_the_guarded_form_weighs_more_than_in_asl1(method):
    inputs, targets = example(90, 4)
    options = {"method": method, "normalize": "all", "reduction": "none"}
    guarded = ghm.ghm_r_loss(inputs, targets, min_count="mean", **options)
    plain = ghm.asl1_loss(inputs, targets, reduction="none")
    assert (guarded <= plain * (1 + 1e-6)).all() and (guarded < 0.5 * plain).any()
    # What is crowded is weighed as by the article; the floor N / M = 36 changes the rest alone.
    published = ghm.ghm_r_loss(inputs, targets, **options)
    crowded = published < 0.9 * plain
    torch.testing.assert_close(guarded[crowded], published[crowded])


def test_gradient_norms_spread_evenly_make_the_guarded_form_asl1():
    norm = (torch.arange(200, dtype=torch.float64) + 0.5) / 200
    diff = 0.02 * norm / (1 - norm**2).sqrt()
    guarded = ghm.ghm_r_loss(diff, torch.zeros_like(diff), min_count="mean", normalize="all")
    torch.testing.assert_close(guarded, ghm.asl1_loss(diff, torch.zeros_like(diff)))


@every_loss
@pytest.mark.parametrize("short", [False, True])
def test_a_masked_element_changes_nothing(name, short):
    inputs, targets = example(40, 4)
    valid = torch.arange(40) % 3 > 0 if short else torch.rand(40, 4) < 0.7
    everywhere = valid[:, None].expand(40, 4) if short else valid
    results = []
    for fill in (0.0, math.nan):
        x = torch.where(everywhere, inputs.detach(), fill).requires_grad_()
        loss = LOSSES[name](x, torch.where(everywhere, targets, fill), valid=valid)
        loss.backward()
        results.append((loss, x.grad))
    assert torch.equal(results[0][0], results[1][0]) and torch.equal(results[0][1], results[1][1])
    torch.testing.assert_close(loss, LOSSES[name](inputs[everywhere], targets[everywhere]))


@every_loss
def test_reductions_and_weights_agree(name):
    inputs, targets = example(30, 4)
    weight = torch.rand(30) * 5
    plain = LOSSES[name](inputs, targets, reduction="none")
    torch.testing.assert_close(
        LOSSES[name](inputs, targets, weight=weight, reduction="none"), plain * weight[:, None]
    )
    torch.testing.assert_close(LOSSES[name](inputs, targets, reduction="sum"), plain.sum())
    torch.testing.assert_close(LOSSES[name](inputs, targets), plain.mean())


@every_loss
def test_no_boxes_are_exactly_zero_with_zero_gradients(name):
    inputs = torch.randn(5, 4, requires_grad=True)
    loss = LOSSES[name](inputs, torch.randn(5, 4), valid=torch.zeros(5, dtype=torch.bool))
    loss.backward()
    assert loss.item() == 0 and (inputs.grad == 0).all()
    assert LOSSES[name](torch.zeros(0, 4), torch.zeros(0, 4)).item() == 0


@every_loss
def test_it_compiles_without_a_graph_break(name):
    inputs, targets = example(20, 4, dtype=torch.float32)
    compiled = torch.compile(LOSSES[name], backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(inputs, targets), LOSSES[name](inputs, targets))


def test_smooth_l1_is_torchs():
    inputs, targets = example(30, 4)
    torch.testing.assert_close(
        ghm.smooth_l1_loss(inputs, targets, beta=0.05), F.smooth_l1_loss(inputs, targets, beta=0.05)
    )


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda x: ghm.ghm_r_loss(x, x[:, 0]), r"targets have shape \(4,\), inputs \(4, 3\)"),
        (lambda x: ghm.ghm_r_loss(x, x, mu=0), "mu must be positive, not 0"),
        (lambda x: ghm.ghm_r_loss(x, x, min_count="positives"), "no meaning in a regression"),
        (lambda x: ghm.asl1_loss(x, x, mu=-1.0), "mu must be positive, not -1.0"),
        (lambda x: ghm.smooth_l1_loss(x, x, beta=0.0), "beta must be positive, not 0.0"),
        (lambda x: ghm.smooth_l1_loss(x, x, reduction="summ"), "did you mean 'sum'"),
    ],
)
def test_a_mistake_is_named(call, text):
    with pytest.raises(ValueError, match=text):
        call(torch.zeros(4, 3))


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_levels_have_one_density(reduction):
    inputs, targets = torch.randn(60, 4, requires_grad=True), torch.randn(60, 4)
    valid = torch.rand(60) < 0.7
    expected = ghm.ghm_r_loss(inputs, targets, valid=valid, reduction=reduction)
    cut = ([x[:20], x[20:]] for x in (inputs, targets, valid))
    found = ghm.ghm_r_loss(*(levels := list(cut))[:2], valid=levels[2], reduction=reduction)
    torch.testing.assert_close(found, expected)
    maps = inputs.view(3, 5, 4, 4).movedim(-1, 1), targets.view(3, 5, 4, 4).movedim(-1, 1)
    found = ghm.ghm_r_loss([maps[0]], [maps[1]], valid=[valid.view(3, 5, 4)], reduction=reduction)
    torch.testing.assert_close(found, expected)
