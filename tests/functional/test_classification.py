from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F
from torchvision.ops import sigmoid_focal_loss as torchvision_focal

import naive
from ghmdet import functional as ghm
from ghmdet.functional.equalized import EqlV2, EqualizedFocal

LOSSES = {
    "ce": ghm.binary_cross_entropy,
    "focal": ghm.sigmoid_focal_loss,
    "ohem": ghm.ohem_loss,
    "qfl": ghm.quality_focal_loss,
    "vfl": ghm.varifocal_loss,
    "ghm-c": ghm.ghm_c_loss,
    "ghm-c exact": lambda *a, **k: ghm.ghm_c_loss(*a, method="exact", **k),
    "ghm-c guarded": lambda *a, **k: ghm.ghm_c_loss(
        *a, min_count="positives", normalize="none", per_class=a[0].dim() > 1, **k
    ),
}
every_loss = pytest.mark.parametrize("name", LOSSES)


def example(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 0, soft: bool = False):
    generator = torch.Generator().manual_seed(seed)
    logits = (torch.randn(shape, generator=generator, dtype=torch.float64) * 2 - 2).to(dtype)
    targets = torch.rand(shape, generator=generator, dtype=torch.float64)
    return logits.requires_grad_(), targets if soft else (targets < 0.1).double()


def naive_ghm_c(logits, targets, bins, method, normalize):
    """The value and its gradient by the article's formulas, in plain numbers."""
    x, t = logits.detach().double().flatten().tolist(), targets.flatten().tolist()
    p = [1 / (1 + math.exp(-v)) for v in x]
    norms = [naive.gradient_norm(a, b) for a, b in zip(p, t, strict=True)]
    density = naive.density(norms, 1 / bins) if method == "exact" else naive.unit_region_density(norms, bins)
    beta = naive.harmonizing(density)
    if normalize == "occupied":
        total = sum(beta)
        beta = [b * len(beta) / total for b in beta]
    losses = [naive.cross_entropy(a, b) for a, b in zip(p, t, strict=True)]
    gradient = [b * (pi - ti) / len(p) for b, pi, ti in zip(beta, p, t, strict=True)]
    return naive.ghm(beta, losses), torch.tensor(gradient).view(logits.shape)


@pytest.mark.parametrize("normalize", ["all", "occupied"])
@pytest.mark.parametrize("method", ["unit-region", "exact"])
@pytest.mark.parametrize("shape", [(1,), (63,), (500, 4), (2, 3, 5, 7)])
@pytest.mark.parametrize("soft", [False, True])
def test_ghm_c_equals_the_article_in_value_and_gradient(shape, method, normalize, soft):
    logits, targets = example(*shape, soft=soft)
    loss = ghm.ghm_c_loss(logits, targets, bins=30, method=method, normalize=normalize)
    loss.backward()
    value, gradient = naive_ghm_c(logits, targets, 30, method, normalize)
    assert loss.item() == pytest.approx(value, rel=1e-9)
    torch.testing.assert_close(logits.grad, gradient.double(), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("method", ["unit-region", "exact"])
def test_ghm_c_of_lower_precision_is_the_article_on_the_same_numbers(dtype, method):
    logits, targets = example(300, 3, dtype=dtype)
    loss = ghm.ghm_c_loss(logits, targets, bins=10, method=method)
    loss.backward()
    value, gradient = naive_ghm_c(logits, targets, 10, method, "occupied")
    assert loss.dtype == torch.float32 and loss.item() == pytest.approx(value, rel=1e-4)
    assert logits.grad.dtype == dtype
    torch.testing.assert_close(logits.grad, gradient.to(dtype), rtol=2e-2, atol=1e-5)


def test_the_guarded_loss_equals_its_definition_per_class():
    logits, targets = example(200, 3)
    loss = ghm.ghm_c_loss(logits, targets, min_count="positives", normalize="none", per_class=True)
    p = logits.detach().sigmoid()
    classes = []
    for c in range(3):
        pairs = list(zip(p[:, c].tolist(), targets[:, c].tolist(), strict=True))
        classes.append(
            naive.guarded(
                [naive.gradient_norm(*pair) for pair in pairs],
                targets[:, c].tolist(),
                [naive.cross_entropy(*pair) for pair in pairs],
                30,
            )
        )
    assert loss.item() == pytest.approx(sum(classes) / 3, rel=1e-9)


def test_enough_examples_in_every_region_give_the_article_times_the_occupied_regions():
    logits, targets = example(4000)
    positive = targets.nonzero()[:3]
    targets = torch.zeros(4000).index_fill_(0, positive.flatten(), 1)
    counts = (ghm.sigmoid_gradient_norm(logits, targets) * 10).floor().detach().unique(return_counts=True)[1]
    assert counts.min() >= 3  # as many as there are positives
    guarded = ghm.ghm_c_loss(logits, targets, bins=10, min_count="positives", normalize="none")
    torch.testing.assert_close(guarded, len(counts) * ghm.ghm_c_loss(logits, targets, bins=10))


def test_one_region_is_plain_cross_entropy():
    logits, targets = example(50, 3)
    torch.testing.assert_close(
        ghm.ghm_c_loss(logits, targets, bins=1), F.binary_cross_entropy_with_logits(logits, targets)
    )


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.floats(-12, 12), st.sampled_from([0.0, 1.0])), min_size=1, max_size=40))
def test_ghm_c_equals_the_article_for_any_examples(pairs):
    logits = torch.tensor([x for x, _ in pairs], dtype=torch.float64)
    targets = torch.tensor([t for _, t in pairs], dtype=torch.float64)
    value, _ = naive_ghm_c(logits, targets, 30, "exact", "all")
    loss = ghm.ghm_c_loss(logits, targets, method="exact", normalize="all")
    assert loss.item() == pytest.approx(value, rel=1e-6)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_binary_cross_entropy_is_torchs(reduction):
    logits, targets = example(20, 3, soft=True)
    torch.testing.assert_close(
        ghm.binary_cross_entropy(logits, targets, reduction=reduction),
        F.binary_cross_entropy_with_logits(logits, targets, reduction=reduction),
    )


def test_class_weight_multiplies_its_class():
    logits, targets = example(4, 3, 5)
    loss = ghm.binary_cross_entropy(logits, targets, reduction="none")
    weighted = ghm.binary_cross_entropy(
        logits, targets, class_weight=torch.tensor([1.0, 0.0, 3.0]), reduction="none"
    )
    torch.testing.assert_close(weighted, loss * torch.tensor([1.0, 0.0, 3.0]).view(1, 3, 1))


@pytest.mark.parametrize("alpha", [0.25, 0.9, -1])
@pytest.mark.parametrize("gamma", [0.0, 2.0, 1.5])
@pytest.mark.parametrize("soft", [False, True])
def test_focal_loss_is_torchvisions_in_value_and_gradient(alpha, gamma, soft):
    logits, targets = example(40, 3, soft=soft)
    ours = ghm.sigmoid_focal_loss(logits, targets, alpha=alpha, gamma=gamma)
    theirs = torchvision_focal(logits, targets, alpha=alpha, gamma=gamma, reduction="mean")
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(torch.autograd.grad(ours, logits)[0], torch.autograd.grad(theirs, logits)[0])


@pytest.mark.parametrize("impl", ["reference", "torch"])
@pytest.mark.parametrize("gamma", [0.0, 0.1, 0.5, 0.99, 1.0, 2.0])
def test_focal_loss_at_extreme_logits_is_that_of_double_precision(gamma, impl):
    x = torch.tensor([0.0, 20, 40, 80, 87, 88, 90, 100, 104, 110, 700, 800, 1e4, 1e30])
    found = []
    for dtype in (torch.float32, torch.float64):
        logits = torch.stack((x, -x), 1).to(dtype).requires_grad_()
        values = [
            ghm.sigmoid_focal_loss(logits, torch.full((14,), c), gamma=gamma, reduction="none", impl=impl)
            for c in range(3)
        ]
        gradients = [torch.autograd.grad(value.sum(), logits)[0] for value in values]
        found.append(torch.stack([*values, *gradients]))
    single, double = found
    assert double.isfinite().all()
    torch.testing.assert_close(
        single.double(), double, rtol=2e-6, atol=5e-9
    )  # which cross entropy rounds to 0


def test_soft_targets_of_quality_focal_and_varifocal_loss_by_hand():
    logits, targets = torch.zeros(2), torch.tensor([0.8, 0.0])
    quality = ghm.quality_focal_loss(logits, targets, reduction="none")
    torch.testing.assert_close(quality, torch.tensor([0.3**2, 0.5**2]) * math.log(2))
    varifocal = ghm.varifocal_loss(logits, targets, reduction="none")
    torch.testing.assert_close(varifocal, torch.tensor([0.8, 0.75 * 0.5**2]) * math.log(2))
    plain = ghm.quality_focal_loss(logits, targets, beta=1, reduction="none")
    torch.testing.assert_close(plain, torch.tensor([0.3, 0.5]) * math.log(2))


@pytest.mark.parametrize("loss", [ghm.quality_focal_loss, ghm.varifocal_loss])
def test_gradients_for_soft_targets_are_those_of_differences(loss):
    logits, targets = example(20, 3, soft=True)
    targets = torch.where(targets < 0.5, 0.0, targets)
    assert torch.autograd.gradcheck(lambda x: loss(x, targets), logits)


@pytest.mark.parametrize("form", [EqlV2, EqualizedFocal])
def test_the_gradient_norm_of_an_equalized_loss_is_that_of_backward(form):
    logits, targets = example(50, 3)
    loss = form(torch.tensor([0.0, 0.7, 100.0]))
    (gradient,) = torch.autograd.grad(loss(logits, targets).sum(), logits)
    torch.testing.assert_close(loss.norm(logits, targets), gradient.abs())
    assert torch.autograd.gradcheck(lambda x: loss(x, targets), logits)


@pytest.mark.parametrize("ratio", [0.0, 0.5, 3.0, 1000.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_ohem_keeps_every_positive_and_the_hardest_negatives(ratio, dtype):
    logits, targets = example(100, 4, dtype=dtype)
    loss = F.binary_cross_entropy_with_logits(logits.detach(), targets.to(dtype), reduction="none")
    positives = loss[targets == 1]
    hardest = loss[targets == 0].sort(descending=True).values[: round(ratio * len(positives))]
    kept = torch.cat([positives, hardest])
    torch.testing.assert_close(ghm.ohem_loss(logits, targets, ratio=ratio), kept.mean())
    torch.testing.assert_close(ghm.ohem_loss(logits, targets, ratio=ratio, reduction="sum"), kept.sum())


def test_ohem_keeps_the_first_of_equal_negatives():
    loss = ghm.ohem_loss(torch.zeros(6), torch.tensor([0, 0, 1, 0, 0, 0]), ratio=2, reduction="none")
    assert (loss > 0).tolist() == [True, True, True, False, False, False]


def test_ohem_without_positives_keeps_as_many_negatives_as_with_one():
    loss = ghm.ohem_loss(torch.tensor([-1.0, 2.0, 0.0, -3.0, 1.0]), torch.zeros(5), reduction="none")
    assert (loss > 0).tolist() == [False, True, True, False, True]


def test_ohem_counts_what_it_drops_as_not_there():
    logits = torch.randn(50, requires_grad=True)
    ghm.ohem_loss(logits, (torch.arange(50) < 5).float(), ratio=2).backward()
    assert (logits.grad != 0).sum() == 15


@every_loss
def test_labels_equal_their_one_hot_form(name):
    logits, _ = example(4, 3, 5, 2)
    labels = torch.randint(-1, 4, (4, 5, 2))
    one_hot = F.one_hot(labels.clamp_min(0), 4)[..., :3].movedim(-1, 1)
    loss = LOSSES[name](logits, labels, reduction="none")
    dense = LOSSES[name](logits, one_hot, valid=labels >= 0, reduction="none")
    torch.testing.assert_close(loss, dense)


@every_loss
@pytest.mark.parametrize("spoilt", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("short", [False, True])
def test_a_masked_element_changes_nothing(name, spoilt, short):
    logits, targets = example(40, 3, soft=True)
    valid = torch.arange(40) % 3 > 0 if short else torch.rand(40, 3) < 0.7
    everywhere = valid[:, None].expand(40, 3) if short else valid
    weight = torch.rand(40, 3, dtype=torch.float64)
    results = []
    for fill in (0.25, spoilt):
        x = torch.where(everywhere, logits.detach(), fill).requires_grad_()
        t, w = torch.where(everywhere, targets, fill), torch.where(everywhere, weight, fill)
        loss = LOSSES[name](x, t, valid=valid, weight=w)
        loss.backward()
        assert loss.isfinite() and (x.grad[~everywhere] == 0).all()
        results.append((loss, x.grad))
    assert torch.equal(results[0][0], results[1][0]) and torch.equal(results[0][1], results[1][1])


@every_loss
def test_a_mask_gives_what_leaving_out_gives(name):
    logits, targets = example(40, 3)
    valid = torch.arange(40) % 3 > 0
    torch.testing.assert_close(
        LOSSES[name](logits, targets, valid=valid), LOSSES[name](logits[valid], targets[valid])
    )


@every_loss
def test_the_order_of_examples_changes_nothing(name):
    logits, targets = example(100, 3)
    order = torch.randperm(100)
    torch.testing.assert_close(LOSSES[name](logits[order], targets[order]), LOSSES[name](logits, targets))


@every_loss
def test_weight_multiplies_the_loss_and_does_not_enter_the_counts(name):
    logits, targets = example(30, 3)
    weight = torch.rand(30) * 5
    plain = LOSSES[name](logits, targets, reduction="none")
    torch.testing.assert_close(
        LOSSES[name](logits, targets, weight=weight, reduction="none"), plain * weight[:, None]
    )


@every_loss
def test_reductions_agree(name):
    logits, targets = example(30, 3)
    valid = torch.arange(30) % 2 == 0
    none, total, mean = (
        LOSSES[name](logits, targets, valid=valid, reduction=r) for r in ("none", "sum", "mean")
    )
    kept = (none > 0).sum() if name == "ohem" else valid.sum() * 3
    assert none.shape == logits.shape and (none[~valid] == 0).all()
    torch.testing.assert_close(total, none.sum())
    torch.testing.assert_close(mean, total / kept)


@every_loss
@pytest.mark.parametrize("case", ["no examples", "all masked", "all ignored"])
def test_nothing_to_learn_from_is_exactly_zero_with_zero_gradients(name, case):
    logits = torch.randn(0 if case == "no examples" else 5, 3, requires_grad=True)
    labels = torch.full((len(logits),), -1 if case == "all ignored" else 1)
    valid = torch.zeros(len(logits), dtype=torch.bool) if case == "all masked" else None
    loss = LOSSES[name](logits, labels, valid=valid)
    loss.backward()
    assert loss.item() == 0 and (logits.grad == 0).all()


@every_loss
def test_extreme_half_precision_logits_give_finite_losses_and_gradients(name):
    logits = torch.tensor([[60000.0, -60000.0, 11.0], [-60000.0, 60000.0, 0.0]], dtype=torch.float16)
    logits.requires_grad_()
    loss = LOSSES[name](logits, torch.tensor([1, 0]))
    loss.backward()
    assert loss.isfinite() and logits.grad.isfinite().all() and logits.grad.dtype == torch.float16


@every_loss
def test_autocast_changes_nothing(name):
    logits, targets = example(50, 3, dtype=torch.bfloat16)
    outside = LOSSES[name](logits, targets)
    with torch.autocast("cpu", torch.bfloat16):
        inside = LOSSES[name](logits, targets)
    assert torch.equal(inside, outside) and inside.dtype == torch.float32


@every_loss
def test_it_compiles_without_a_graph_break(name):
    logits, targets = example(20, 3, dtype=torch.float32)
    labels = torch.randint(-1, 4, (20,))
    compiled = torch.compile(LOSSES[name], backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(logits, labels), LOSSES[name](logits, labels))
    torch.testing.assert_close(compiled(logits, targets), LOSSES[name](logits, targets))


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int64, torch.float16])
def test_dense_targets_have_any_dtype(dtype):
    logits, targets = example(9)
    torch.testing.assert_close(ghm.ghm_c_loss(logits, targets.to(dtype)), ghm.ghm_c_loss(logits, targets))


@every_loss
@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"targets": torch.zeros(4, 2)}, r"targets have shape \(4, 2\); inputs of shape \(4, 3\)"),
        ({"targets": torch.zeros(3).long()}, r"targets have shape \(3,\)"),
        ({"targets": torch.zeros(4)}, "must be integers, not torch.float32"),
        ({"targets": torch.tensor([0, 1, 4, 3])}, r"label 4 is outside 0\.\.2"),
        ({"targets": torch.full((4, 3), 1.5)}, r"must lie in 0\.\.1, found 1.5 to 1.5"),
        ({"targets": torch.full((4, 3), math.nan)}, r"must lie in 0\.\.1"),
        ({"inputs": torch.zeros(4, 3).long()}, "inputs must be floating point, not torch.int64"),
        ({"inputs": torch.tensor(0.0), "targets": torch.tensor(0.0)}, "at least one dimension"),
        ({"inputs": torch.zeros(4), "targets": torch.tensor(1)}, r"targets have shape \(\)"),
        ({"valid": torch.ones(4)}, "valid must be a bool mask, not torch.float32"),
        ({"valid": torch.ones(3, dtype=torch.bool)}, r"valid has shape \(3,\); inputs of shape \(4, 3\)"),
        ({"weight": torch.ones(4, 1)}, r"weight has shape \(4, 1\)"),
        ({"weight": torch.ones(4, dtype=torch.bool)}, "weight must be floating point"),
        ({"reduction": "avg"}, "unknown reduction 'avg'.*known: mean, sum, none"),
    ],
)
def test_a_mistake_is_named(name, change, text):
    arguments = {"inputs": torch.zeros(4, 3), "targets": torch.zeros(4, 3)} | change
    inputs, targets = arguments.pop("inputs"), arguments.pop("targets")
    with pytest.raises(ValueError, match=text):
        LOSSES[name](inputs, targets, **arguments)


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda x: ghm.ohem_loss(x, x, ratio=-1), "ratio must be at least 0, not -1"),
        (lambda x: ghm.quality_focal_loss(x, x, beta=0.5), "beta must be at least 1, not 0.5"),
        (lambda x: ghm.varifocal_loss(x, x, gamma=0.5), "gamma must be at least 1, not 0.5"),
        (lambda x: ghm.sigmoid_focal_loss(x, x, gamma=-1), "gamma must be at least 0, not -1"),
        (lambda x: ghm.sigmoid_focal_loss(x, x, alpha=1.5), "alpha must be at most 1"),
        (
            lambda x: ghm.binary_cross_entropy(x, x, class_weight=torch.ones(2)),
            r"class_weight has shape \(2,\)",
        ),
        (lambda x: ghm.ghm_c_loss(x, x, bins=0), "bins must be"),
        (lambda x: ghm.ghm_c_loss(x[0], x[0], per_class=True), "class dimension"),
    ],
)
def test_an_option_out_of_range_is_named(call, text):
    with pytest.raises(ValueError, match=text):
        call(torch.zeros(4, 3))


def test_a_label_above_the_background_is_forgiven_where_it_is_masked():
    labels = torch.tensor([0, 99])
    valid = torch.tensor([True, False])
    logits = torch.zeros(2, 3)
    assert ghm.ghm_c_loss(logits, labels, valid=valid) == ghm.ghm_c_loss(logits[:1], labels[:1])


def test_ohem_for_each_class_is_ohem_of_each_class():
    logits, targets = example(60, 4)
    targets[:, 2] = 0  # a class without positives
    together = ghm.ohem_loss(logits, targets, per_class=True, reduction="none")
    alone = [ghm.ohem_loss(logits[:, c], targets[:, c], reduction="none") for c in range(4)]
    torch.testing.assert_close(together, torch.stack(alone, 1))
    with pytest.raises(ValueError, match="per_class"):
        ghm.ohem_loss(logits[:, 0], targets[:, 0], per_class=True)


def test_fused_focal_loss_has_the_precision_of_double_logits() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(50, 4, dtype=torch.float64, generator=generator)
    labels = torch.randint(0, 5, (50,), generator=generator)
    fused, slow = (
        ghm.sigmoid_focal_loss(logits, labels, alpha=0.9, impl=impl) for impl in ("torch", "reference")
    )
    torch.testing.assert_close(fused, slow, rtol=1e-13, atol=0)


@pytest.mark.parametrize("impl", ["torch", "reference"])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("form", [{}, {"min_count": "positives", "normalize": "none", "per_class": True}])
def test_levels_have_one_density(form, reduction, impl):
    logits, _ = example(2, 3, 10, 10)
    labels = torch.randint(-1, 4, (2, 10, 10))
    valid, weight = torch.rand(2, 10, 10) < 0.9, torch.rand(2, 3, 10, 10)
    cut = {"logits": logits, "labels": labels, "valid": valid, "weight": weight}
    # Two levels of other sizes, the second of which has its places in a row.
    cut = {name: [x[..., :6], x[..., 6:].reshape(*x.shape[:-2], 5, 8)] for name, x in cut.items()}

    def rows(tensor):
        return tensor.movedim(1, -1).reshape(-1, 3) if tensor.dim() == 4 else tensor.flatten()

    together = {name: torch.cat([rows(level) for level in levels]) for name, levels in cut.items()}
    found, expected = (
        ghm.ghm_c_loss(
            x["logits"],
            x["labels"],
            valid=x["valid"],
            weight=x["weight"],
            reduction=reduction,
            impl=impl,
            **form,
        )
        for x in (cut, together)
    )
    torch.testing.assert_close(found, expected)
    ours, theirs = (torch.autograd.grad(x.sum(), logits, retain_graph=True)[0] for x in (found, expected))
    torch.testing.assert_close(ours, theirs)
    apart = sum(
        ghm.ghm_c_loss(level, label, reduction="sum", **form)
        for level, label in zip(cut["logits"], cut["labels"], strict=True)
    )
    assert not torch.isclose(apart, ghm.ghm_c_loss(cut["logits"], cut["labels"], reduction="sum", **form))


@pytest.mark.parametrize("impl", ["torch", "reference"])
@pytest.mark.parametrize("method", ["unit-region", "exact"])
def test_ignore_index_and_class_weight_are_a_mask_and_a_weight(method, impl):
    logits, _ = example(50, 3, 4)
    labels = torch.randint(-1, 4, (50, 4))
    by_class = torch.tensor([0.5, 2.0, 0.0])
    options = {"method": method, "impl": impl, "reduction": "mean", "min_count": 2.0}
    found = ghm.ghm_c_loss(
        logits, labels.where(labels >= 0, 255), ignore_index=255, class_weight=by_class, **options
    )
    expected = ghm.ghm_c_loss(logits, labels, weight=by_class.view(1, 3, 1).expand(50, 3, 4), **options)
    torch.testing.assert_close(found, expected)
    without = ghm.ghm_c_loss(logits, labels.masked_fill(labels == 0, -1), **options)
    torch.testing.assert_close(ghm.ghm_c_loss(logits, labels, ignore_index=0, **options), without)
    # What both say at once multiplies.
    weight = torch.rand(50, 4)
    found = ghm.ghm_c_loss(logits, labels, weight=weight, class_weight=by_class, **options)
    both = weight.unsqueeze(1) * by_class.view(1, 3, 1)
    torch.testing.assert_close(found, ghm.ghm_c_loss(logits, labels, weight=both, **options))
    with pytest.raises(ValueError, match="valid="):
        ghm.ghm_c_loss(logits, logits.detach() * 0, ignore_index=255)


@pytest.mark.parametrize("per_class", [False, True])
@pytest.mark.parametrize("smoothing", [0.05, 0.3, 0.999])
def test_label_smoothing_draws_the_targets_and_no_positive_is_counted_for_it(smoothing, per_class):
    logits, targets = example(400, 3)
    options = {"min_count": "positives", "normalize": "none", "per_class": per_class}
    found = ghm.ghm_c_loss(logits, targets, label_smoothing=smoothing, **options)
    smoothed = targets * (1 - smoothing) + smoothing / 2
    torch.testing.assert_close(found, ghm.ghm_c_loss(logits, smoothed, **options))
    # By hand: g and L of the smoothed targets, P of the targets.
    norm = (logits.sigmoid() - smoothed).abs().detach()
    beta = ghm.harmonizing_weights(norm, targets=targets, **options)
    plain = F.binary_cross_entropy_with_logits(logits, smoothed, reduction="none")
    torch.testing.assert_close(found, (beta * plain).mean())
    labels = torch.where(targets.any(1), targets.argmax(1), 3)
    one_hot = F.one_hot(labels, 4)[:, :3].double()
    torch.testing.assert_close(
        ghm.ghm_c_loss(logits, labels, label_smoothing=smoothing, **options),
        ghm.ghm_c_loss(logits, one_hot, label_smoothing=smoothing, **options),
    )
    (gradient,) = torch.autograd.grad(found, logits)
    torch.testing.assert_close(gradient, beta * (logits.sigmoid() - smoothed).detach() / logits.numel())
    with pytest.raises(ValueError, match="label_smoothing must lie in"):
        ghm.ghm_c_loss(logits, labels, label_smoothing=1.5)


@pytest.mark.parametrize("impl", ["auto", "reference"])
@pytest.mark.parametrize("shape", [(0, 3), (0, 3, 2, 2), (6, 3)])
def test_where_nothing_counts_the_loss_is_0(shape, impl):
    logits = torch.randn(shape, requires_grad=True)
    labels = torch.full(shape[:1] + shape[2:], -100)
    for options in ({}, {"label_smoothing": 0.1}, {"class_weight": torch.ones(3)}, {"ignore_index": 7}):
        given = labels.fill_(7 if "ignore_index" in options else -100)
        loss = ghm.ghm_c_loss(logits, given, min_count="positives", normalize="none", impl=impl, **options)
        loss.backward()
        assert loss.item() == 0 and (logits.grad == 0).all()
