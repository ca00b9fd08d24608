"""The softmax loss against the formulas in plain numbers, and what it must do at the edges."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

import naive
from ghmdet import functional as ghm

GUARDED = {"min_count": "positives", "normalize": "none", "background": 0}
FORMS = {
    "published": {},
    "the article's": {"normalize": "all", "bins": 7},
    "guarded": GUARDED,
    "guarded, background last": GUARDED | {"background": 3},
    "guarded per class": GUARDED | {"per_class": True},
    "without background": {"min_count": "mean", "normalize": "all"},
    "without background, per class": {"min_count": "mean", "normalize": "all", "per_class": True},
    "weighed": GUARDED | {"class_weight": torch.tensor([0.1, 1.0, 3.0, 0.0])},
    "smoothed": GUARDED | {"label_smoothing": 0.1, "per_class": True},
    "both": GUARDED | {"label_smoothing": 0.2, "class_weight": torch.tensor([0.1, 1.0, 3.0, 2.0])},
}
every_form = pytest.mark.parametrize("form", FORMS)


def example(n: int = 300, *, dtype: torch.dtype = torch.float64, seed: int = 0):
    """Logits [n, 4], mostly right, and labels of which most are 0 and some are ignored."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.multinomial(torch.tensor([0.8, 0.1, 0.05, 0.05]), n, True, generator=generator)
    logits = torch.randn(n, 4, generator=generator, dtype=torch.float64) * 2
    logits[torch.arange(n), labels] += 3
    labels = labels.where(torch.rand(n, generator=generator) < 0.9, -1)
    return logits.to(dtype).requires_grad_(), labels


def by_hand(logits, labels, options):
    plain = {name: x.tolist() if isinstance(x, torch.Tensor) else x for name, x in options.items()}
    value, gradient = naive.softmax_ghm(logits.detach().double().tolist(), labels.tolist(), **plain)
    return value, torch.tensor(gradient, dtype=torch.float64)


@every_form
def test_it_equals_the_formulas_in_value_and_gradient(form):
    logits, labels = example()
    loss = ghm.softmax_ghm_loss(logits, labels, **FORMS[form])
    loss.backward()
    value, gradient = by_hand(logits, labels, FORMS[form])
    assert loss.item() == pytest.approx(value, rel=1e-9)
    torch.testing.assert_close(logits.grad, gradient, rtol=1e-6, atol=1e-12)


@every_form
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_lower_precision_is_the_same_on_the_same_numbers(form, dtype):
    logits, labels = example(dtype=dtype, seed=1)
    loss = ghm.softmax_ghm_loss(logits, labels, **FORMS[form])
    loss.backward()
    value, gradient = by_hand(logits, labels, FORMS[form])
    assert loss.dtype == torch.float32 and loss.item() == pytest.approx(value, rel=1e-4)
    assert logits.grad.dtype == dtype
    torch.testing.assert_close(logits.grad, gradient.to(dtype), rtol=2e-2, atol=1e-5)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("smoothing", [0.0, 0.3])
@pytest.mark.parametrize("weighed", [False, True])
def test_one_region_is_torchs_cross_entropy(reduction, smoothing, weighed):
    options = {"label_smoothing": smoothing, "ignore_index": 2, "reduction": reduction}
    weight = torch.tensor([0.5, 2.0, 7.0, 1.0], dtype=torch.float64) if weighed else None
    logits, labels = example()
    maps, labels = logits[:240].T.reshape(1, 4, 12, 20), labels[:240].clamp_min(0).view(1, 12, 20)
    expected = F.cross_entropy(maps, labels, weight, **options)
    found = ghm.softmax_ghm_loss(maps, labels, bins=1, class_weight=weight, **options)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("per_class", [False, True])
@pytest.mark.parametrize("method", ["unit-region", "exact", "prefix"])
@pytest.mark.parametrize("normalize", ["occupied", "all", "none"])
def test_the_weights_are_those_of_every_method_for_each_population(method, normalize, per_class):
    logits, labels = example()
    options = {"method": method, "normalize": normalize, "bins": 10, "min_count": 3.0}
    found = ghm.softmax_ghm_loss(logits, labels, per_class=per_class, reduction="none", **options)
    plain = F.cross_entropy(logits, labels, ignore_index=-1, reduction="none")
    norm, expected = ghm.softmax_gradient_norm(logits, labels), torch.zeros_like(plain)
    for label in range(4) if per_class else [None]:
        rows = (labels >= 0) if label is None else labels == label
        beta = ghm.harmonizing_weights(norm, valid=rows, **options)
        share = (labels >= 0).sum() / 4 / rows.sum() if per_class else 1
        expected += share * torch.where(rows, beta * plain, 0)
    torch.testing.assert_close(found, expected)


@every_form
def test_what_is_left_out_changes_nothing_even_if_it_is_no_number(form):
    options = FORMS[form]
    logits, labels = example()
    kept = labels >= 0
    rows = logits.detach()[kept].requires_grad_()
    expected = ghm.softmax_ghm_loss(rows, labels[kept], **options)
    expected.backward()
    spoilt = logits.detach().clone()
    spoilt[~kept] = float("nan")
    # Left out as negative, as ignore_index, and by the mask, where the label may be anything.
    for other in (
        {"labels": labels},
        {"labels": labels.where(kept, 255), "ignore_index": 255},
        {"labels": labels.where(kept, 99), "valid": kept},
        {"labels": labels.to(torch.int8)},
    ):
        x = spoilt.clone().requires_grad_()
        loss = ghm.softmax_ghm_loss(x, **other, **options)
        loss.backward()
        torch.testing.assert_close(loss, expected)
        torch.testing.assert_close(x.grad[kept], rows.grad)
        assert (x.grad[~kept] == 0).all()


@every_form
@pytest.mark.parametrize("shape", [(0, 4), (5, 4), (0, 4, 2, 3), (2, 4, 2, 3)])
def test_where_nothing_counts_the_loss_is_0(form, shape):
    x = torch.randn(shape, requires_grad=True)
    labels = torch.full(shape[:1] + shape[2:], -100)
    for reduction in ("mean", "sum"):
        loss = ghm.softmax_ghm_loss(x, labels, reduction=reduction, **FORMS[form])
        loss.backward()
        assert loss.item() == 0 and (x.grad == 0).all()


def test_a_batch_of_background_alone_is_the_sum_of_each_regions_mean():
    logits = torch.tensor([[5.0, 0.0], [5.0, 0.0], [0.0, 1.0]], requires_grad=True)
    loss = ghm.softmax_ghm_loss(logits, torch.zeros(3, dtype=torch.long), **GUARDED)
    easy, hard = F.cross_entropy(logits.detach()[1:], torch.zeros(2, dtype=torch.long), reduction="none")
    torch.testing.assert_close(loss, easy + hard)
    per_class = ghm.softmax_ghm_loss(logits, torch.zeros(3, dtype=torch.long), per_class=True, **GUARDED)
    torch.testing.assert_close(per_class, (easy + hard) / 2)
    loss.backward()
    assert logits.grad.isfinite().all() and logits.grad.abs().sum() > 0


def test_levels_have_one_density():
    logits, labels = example(180)
    weight, valid = torch.rand(180), torch.rand(180) < 0.8
    shapes = [(2, 5, 10), (1, 8, 10)]

    def levels(tensor):
        parts = [tensor[:100], tensor[100:]]
        return [
            part.view(*shape, *part.shape[1:]).movedim(-1, 1) if part.dim() > 1 else part.view(shape)
            for part, shape in zip(parts, shapes, strict=True)
        ]

    for reduction in ("mean", "sum", "none"):
        expected = ghm.softmax_ghm_loss(
            logits, labels, valid=valid, weight=weight, reduction=reduction, **GUARDED
        )
        found = ghm.softmax_ghm_loss(
            levels(logits),
            levels(labels),
            valid=levels(valid),
            weight=levels(weight),
            reduction=reduction,
            **GUARDED,
        )
        torch.testing.assert_close(found, expected)


def test_weight_multiplies_and_does_not_enter_the_counts():
    logits, labels = example()
    weight = torch.rand(300, dtype=torch.float64)
    each = ghm.softmax_ghm_loss(logits, labels, reduction="none", **GUARDED)
    weighed = ghm.softmax_ghm_loss(logits, labels, weight=weight, reduction="none", **GUARDED)
    torch.testing.assert_close(weighed, each * weight)


@every_form
def test_compiled_under_autocast_and_twice_derived_it_is_the_same(form):
    torch.compiler.reset()  # each form is another graph
    logits, labels = example(40, dtype=torch.float32)
    loss = lambda x: ghm.softmax_ghm_loss(x, labels, **FORMS[form])  # noqa: E731
    expected, (gradient,) = loss(logits), torch.autograd.grad(loss(logits), logits)
    compiled = torch.compile(loss, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(logits), expected)
    torch.testing.assert_close(torch.autograd.grad(compiled(logits), logits)[0], gradient)
    torch.testing.assert_close(torch.func.grad(loss)(logits.detach()), gradient)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(loss(logits), expected)
    # β is constant between the ends of regions, so that second derivatives are those of the weighed cross entropy.
    exact, _ = example(8, seed=3)
    few = lambda x: ghm.softmax_ghm_loss(x, labels[:8], **FORMS[form])  # noqa: E731
    assert torch.autograd.gradgradcheck(few, exact.detach().requires_grad_())


rows = st.lists(
    st.tuples(st.lists(st.floats(-30, 30), min_size=3, max_size=3), st.integers(-1, 2)),
    min_size=1,
    max_size=40,
)


@settings(max_examples=60, deadline=None)
@given(rows, st.booleans(), st.sampled_from([0.0, 0.1]))
def test_no_example_outweighs_the_positives_and_no_region_does(pairs, per_class, smoothing):
    logits = torch.tensor([x for x, _ in pairs], dtype=torch.float64)
    labels = torch.tensor([label for _, label in pairs])
    options = GUARDED | {"per_class": per_class, "label_smoothing": smoothing}
    each = ghm.softmax_ghm_loss(logits, labels, reduction="none", **options)
    plain = F.cross_entropy(logits, labels, ignore_index=-1, label_smoothing=smoothing, reduction="none")
    beta = torch.where(plain > 0, each / plain, 0.0)
    region = (ghm.softmax_gradient_norm(logits, labels) * 30).int().clamp_max(29)
    share = (labels >= 0).sum().item() / (3 if per_class else 1)
    for label in (0, 1, 2) if per_class else (None,):
        own = (labels >= 0) if label is None else labels == label
        objects = ((labels > 0) if label in (0, None) else own).sum().clamp_min(1).item()
        assert (beta[own] <= share / objects * (1 + 1e-6)).all()
        for one in range(30):
            assert beta[own & (region == one)].sum() <= share * (1 + 1e-6)


@settings(max_examples=40, deadline=None)
@given(rows, st.sampled_from(list(FORMS)), st.randoms(use_true_random=False))
def test_the_order_of_examples_and_a_constant_on_a_row_change_nothing(pairs, form, random):
    options = {name: x for name, x in FORMS[form].items() if name != "class_weight"}
    options |= {"background": 0} if "background" in options else {}
    shuffled = random.sample(pairs, len(pairs))

    def loss(rows, shift=0.0):
        logits = torch.tensor([x for x, _ in rows], dtype=torch.float64) + shift
        # Away from the ends of regions, where a rounding decides.
        logits = (logits * 8).round() / 8 + torch.tensor([0.0, 0.0317, 0.0711])
        return ghm.softmax_ghm_loss(logits, torch.tensor([label for _, label in rows]), **options)

    torch.testing.assert_close(loss(shuffled), loss(pairs))
    torch.testing.assert_close(loss(pairs, 16.0), loss(pairs))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x, y: ghm.softmax_ghm_loss(x, y + 4), "label 7 is outside 0..3"),
        (lambda x, y: ghm.softmax_ghm_loss(x, y.float()), "must be integers"),
        (lambda x, y: ghm.softmax_ghm_loss(x, F.one_hot(y)), "without dimension 1"),
        (lambda x, y: ghm.softmax_ghm_loss(x[:, 0], y), "without dimension 1"),
        (lambda x, y: ghm.softmax_ghm_loss(x, y, background=4), "background=4 is none of 4 labels"),
        (lambda x, y: ghm.softmax_ghm_loss(x, y, min_count="positives"), "softmax without background"),
        (lambda x, y: ghm.softmax_ghm_loss(x, y, label_smoothing=1.0), r"lie in \[0, 1\)"),
        (lambda x, y: ghm.softmax_ghm_loss(x, y, class_weight=torch.ones(3)), "one weight for each class"),
        (lambda x, y: ghm.softmax_ghm_loss(x, y, weight=torch.ones(4, 4)), "weight has shape"),
        (lambda x, y: ghm.softmax_ghm_loss(x, y, reduction="all"), "unknown reduction"),
        (lambda x, y: ghm.softmax_ghm_loss([x, x], y), "labels must be a list of as many|targets must be a"),
        (lambda x, y: ghm.softmax_ghm_loss([x, x[:, :3]], [y, y]), "differ in more than size"),
        (lambda x, y: ghm.softmax_ghm_loss([x, x], [y, y[:2]]), r"\(2,\).*\(4, 4\)"),
        (lambda x, y: ghm.softmax_ghm_loss(x.long(), y), "must be floating point"),
    ],
)
def test_a_mistake_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call(torch.randn(4, 4), torch.tensor([0, 1, 2, 3]))


@every_form
def test_maps_of_logits_are_the_same_examples_as_rows(form):
    logits, labels = example(2 * 3 * 5)
    maps = logits.detach().view(2, 3, 5, 4).movedim(-1, 1)
    for reduction in ("mean", "sum"):
        rows = ghm.softmax_ghm_loss(logits, labels, reduction=reduction, **FORMS[form])
        found = ghm.softmax_ghm_loss(maps, labels.view(2, 3, 5), reduction=reduction, **FORMS[form])
        torch.testing.assert_close(found, rows)


@pytest.mark.parametrize("ignored", [0, 1, 255, -7])
def test_an_ignored_index_may_be_any_number(ignored):
    logits, labels = example()
    other = labels.masked_fill(labels == 0, -1) if ignored == 0 else labels
    other = other.masked_fill(other == 1, -1) if ignored == 1 else other
    given = labels if ignored in (0, 1) else labels.masked_fill(labels < 0, ignored)
    expected = ghm.softmax_ghm_loss(logits, other)
    assert torch.equal(ghm.softmax_ghm_loss(logits, given, ignore_index=ignored), expected)


def test_a_background_is_counted_from_the_end_too():
    logits, labels = example()
    for label in range(4):
        first, last = (
            ghm.softmax_ghm_loss(logits, labels, **GUARDED | {"background": at}) for at in (label, label - 4)
        )
        assert torch.equal(first, last)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"inputs": [[0.0, 1.0]]}, "inputs"),
        ({"labels": [0, 1]}, "labels"),
        ({"valid": [True, True]}, "valid"),
        ({"weight": 1.0}, "weight"),
        ({"valid": torch.ones(3, dtype=torch.bool)}, r"valid has shape \(3,\), labels \(2,\): give the same"),
        ({"weight": torch.ones(2, 1)}, r"weight has shape \(2, 1\), labels \(2,\): give the same"),
        ({"valid": torch.ones(2)}, "valid"),
        (
            {"background": -5},
            r"background=-5 is none of 4 labels: give one of 0\.\.3, -1 for the last, or None where every",
        ),
        ({"background": 4}, "background=4 is none of 4 labels"),
    ],
)
def test_each_argument_of_another_kind_is_named(changed, message):
    arguments = {"inputs": torch.zeros(2, 4), "labels": torch.tensor([0, 1])} | changed
    with pytest.raises(ValueError, match=message):
        ghm.softmax_ghm_loss(**arguments)
