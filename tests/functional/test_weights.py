from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import naive
from ghmdet.functional import ghm_c_loss, harmonizing_weights

METHODS = ["unit-region", "exact", "prefix"]
NORMS = st.lists(
    st.one_of(st.floats(0, 1), st.integers(0, 10).map(lambda i: i / 10)), min_size=1, max_size=60
)


def skewed(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) ** 6


@pytest.mark.parametrize("normalize", ["all", "occupied"])
def test_uniform_gradient_norms_give_a_weight_of_one(normalize):
    norm = (torch.arange(3000) + 0.5) / 3000
    assert torch.equal(harmonizing_weights(norm, normalize=normalize), torch.ones(3000))
    exact = harmonizing_weights(norm, method="exact", normalize=normalize)
    torch.testing.assert_close(exact, torch.ones(3000), atol=0.02, rtol=0)  # windows cut examples at the ends


@pytest.mark.parametrize("normalize", ["all", "occupied", "none"])
def test_one_region_gives_a_weight_of_one(normalize):
    assert torch.equal(harmonizing_weights(torch.rand(50), bins=1, normalize=normalize), torch.ones(50))


@pytest.mark.parametrize("method", METHODS)
@settings(max_examples=50, deadline=None)
@given(norms=NORMS, bins=st.sampled_from([1, 2, 10, 30]))
def test_weights_sum_to_n_over_occupied_regions(method, norms, bins):
    beta = harmonizing_weights(torch.tensor(norms, dtype=torch.float64), bins=bins, method=method)
    assert beta.sum().item() == pytest.approx(len(norms), rel=1e-9)


@pytest.mark.parametrize("method", ["unit-region", "exact"])
@settings(max_examples=50, deadline=None)
@given(norms=NORMS, bins=st.sampled_from([1, 2, 10, 30]))
def test_normalize_all_is_the_articles_weight(method, norms, bins):
    density = naive.density(norms, 1 / bins) if method == "exact" else naive.unit_region_density(norms, bins)
    beta = harmonizing_weights(
        torch.tensor(norms, dtype=torch.float64), bins=bins, method=method, normalize="all"
    )
    expected = torch.tensor(naive.harmonizing(density), dtype=torch.float64)
    torch.testing.assert_close(beta, expected, rtol=1e-9, atol=0)


def test_normalize_occupied_divides_by_the_occupied_regions_as_the_authors_code_does():
    norm = torch.tensor([0.01, 0.02, 0.03, 0.55, 0.99, 0.98])
    torch.testing.assert_close(
        harmonizing_weights(norm, bins=10), torch.tensor([6 / 9] * 3 + [6 / 3] + [6 / 6] * 2)
    )


@pytest.mark.parametrize("method", METHODS)
def test_normalize_none_is_the_number_of_regions_times_all(method):
    norm = skewed(200)
    none = harmonizing_weights(norm, method=method, normalize="none")
    torch.testing.assert_close(none, 30 * harmonizing_weights(norm, method=method, normalize="all"))


def test_without_normalizing_every_occupied_region_carries_a_weight_of_n():
    norm = skewed(200)
    beta = harmonizing_weights(norm, bins=10, normalize="none")
    for region in (norm * 10).floor().unique():
        assert beta[(norm * 10).floor() == region].sum().item() == pytest.approx(200)


def test_each_region_counts_as_at_least_min_count_examples():
    norm = torch.tensor([0.01] * 8 + [0.55] * 2 + [0.99])
    beta = harmonizing_weights(norm, bins=10, normalize="none", min_count=4.0)
    torch.testing.assert_close(beta, 11 / torch.tensor([8.0] * 8 + [4.0] * 3))
    occupied = harmonizing_weights(norm, bins=10, min_count=4.0)
    torch.testing.assert_close(occupied, beta / 3)


def test_the_exact_window_counts_as_at_least_min_count_examples():
    norm = torch.tensor([0.3] * 6 + [0.7], dtype=torch.float64)
    beta = harmonizing_weights(norm, bins=10, method="exact", normalize="all", min_count=3.0)
    torch.testing.assert_close(beta, 7 * 0.1 / torch.tensor([6.0] * 6 + [3.0], dtype=torch.float64))


@pytest.mark.parametrize("method", METHODS)
def test_a_floor_below_every_count_changes_nothing(method):
    norm = skewed(300)
    plain = harmonizing_weights(norm, method=method)
    assert torch.equal(harmonizing_weights(norm, method=method, min_count=1.0), plain)


@pytest.mark.parametrize("method", METHODS)
def test_no_weight_exceeds_that_of_cross_entropy_over_positives(method):
    norm, targets = skewed(400, 3), (skewed(400, 3, seed=1) > 0.7).double()
    options = {"method": method, "normalize": "none", "min_count": "positives", "targets": targets}
    joint = harmonizing_weights(norm, **options)
    assert joint.max() <= norm.numel() / targets.sum() * (1 + 1e-12)
    # Averaged over classes, cross entropy gives an element 1/K · 1/P_c; the mean over elements divides by N.
    per_class = harmonizing_weights(norm, per_class=True, **options) / norm.numel()
    assert (per_class <= 1 / (3 * targets.sum(0)) * (1 + 1e-12)).all()


@pytest.mark.parametrize("method", METHODS)
def test_one_class_makes_per_class_equal_to_joint(method):
    norm, targets = skewed(400, 1), (skewed(400, 1, seed=1) > 0.5).double()
    options = {"method": method, "min_count": "positives", "targets": targets}
    torch.testing.assert_close(
        harmonizing_weights(norm, per_class=True, **options), harmonizing_weights(norm, **options)
    )


@pytest.mark.parametrize("normalize", ["all", "occupied", "none"])
@pytest.mark.parametrize("method", METHODS)
def test_per_class_is_each_class_on_its_own(method, normalize):
    norm, targets = skewed(50, 3, 4), (skewed(50, 3, 4, seed=1) > 0.5).double()
    options = {"method": method, "normalize": normalize, "min_count": "positives"}
    beta = harmonizing_weights(norm, per_class=True, targets=targets, **options)
    for c in range(3):
        alone = harmonizing_weights(norm[:, c], targets=targets[:, c], **options)
        torch.testing.assert_close(beta[:, c], alone)


@pytest.mark.parametrize("method", METHODS)
def test_the_mean_over_elements_is_the_mean_over_classes_of_unequal_size(method):
    logits = torch.randn(90, 3, dtype=torch.float64)
    targets = (torch.rand(90, 3) < 0.2).double()
    valid = torch.rand(90, 3) < torch.tensor([0.9, 0.5, 0.1])
    options = {"method": method, "min_count": "positives", "normalize": "none"}
    joint = ghm_c_loss(logits, targets, per_class=True, valid=valid, **options)
    alone = [ghm_c_loss(logits[:, c], targets[:, c], valid=valid[:, c], **options) for c in range(3)]
    torch.testing.assert_close(joint, torch.stack(alone).mean())


def test_a_class_without_positives_changes_nothing_for_the_others():
    norm, targets = skewed(200, 3), (skewed(200, 3, seed=1) > 0.6).double()
    targets[:, 2] = 0
    options = {"min_count": "positives", "normalize": "none", "per_class": True}
    beta = harmonizing_weights(norm, targets=targets, **options)
    without = harmonizing_weights(norm[:, :2], targets=targets[:, :2], **options)
    torch.testing.assert_close(beta[:, :2], without)
    changed = harmonizing_weights(
        torch.cat([norm[:, :2], skewed(200, 1, seed=5)], 1), targets=targets, **options
    )
    assert torch.equal(changed[:, :2], beta[:, :2])


@pytest.mark.parametrize("per_class", [False, True])
@pytest.mark.parametrize("method", METHODS)
def test_a_masked_element_changes_nothing(method, per_class):
    norm, targets = skewed(60, 3), (skewed(60, 3, seed=1) > 0.5).double()
    options = {"method": method, "min_count": "positives", "per_class": per_class}
    valid = torch.arange(60) % 4 > 0
    beta = harmonizing_weights(
        torch.where(valid[:, None], norm, torch.nan), targets=targets, valid=valid, **options
    )
    torch.testing.assert_close(
        beta[valid], harmonizing_weights(norm[valid], targets=targets[valid], **options)
    )
    assert (beta[~valid] == 0).all()


@pytest.mark.parametrize("per_class", [False, True])
@pytest.mark.parametrize("method", METHODS)
def test_the_order_and_the_layout_of_examples_change_nothing(method, per_class):
    norm = skewed(4, 3, 5, 2)
    rows = norm.movedim(1, -1).reshape(-1, 3)
    order = torch.randperm(len(rows))
    beta = harmonizing_weights(norm, method=method, per_class=per_class)
    torch.testing.assert_close(
        beta.movedim(1, -1).reshape(-1, 3)[order],
        harmonizing_weights(rows[order], method=method, per_class=per_class),
    )


def test_weights_carry_no_gradient():
    assert not harmonizing_weights(torch.rand(5, requires_grad=True)).requires_grad


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"bins": 0}, "bins must be a whole number of at least 1, not 0"),
        ({"bins": 2.5}, "bins .* not 2.5"),
        ({"method": "unit"}, "did you mean 'unit-region'"),
        ({"normalize": "ocupied"}, "did you mean 'occupied'"),
        ({"min_count": -1.0}, "min_count must be at least 0"),
        ({"min_count": float("nan")}, "min_count must be at least 0"),
        ({"min_count": "positive"}, "did you mean 'positives'"),
        ({"min_count": "positives"}, "needs the targets"),
        ({"per_class": True}, r"class dimension .*\(4,\)"),
        ({"valid": torch.ones(4)}, "valid must be a bool mask, not torch.float32"),
        ({"valid": torch.ones(3, dtype=torch.bool)}, r"valid has shape \(3,\).*\(4,\)"),
    ],
)
def test_a_mistake_is_named(options, text):
    with pytest.raises(ValueError, match=text):
        harmonizing_weights(torch.rand(4), **options)
