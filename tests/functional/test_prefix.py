from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ghmdet import functional as ghm

WINDOW = 101  # cells, as the README states
NORMS = st.lists(
    st.floats(0, 1) | st.integers(0, 20).map(lambda i: i / 20) | st.floats(0, 1e-3), min_size=1, max_size=60
)


def prefix_counts(norms: list[float], epsilon: float) -> list[float]:
    """The examples in each example's window, from the density."""
    cells = round(WINDOW / epsilon)
    density = ghm.gradient_density(
        torch.tensor(norms, dtype=torch.float64), epsilon=epsilon, method="prefix"
    ).tolist()
    counts = []
    for g, gd in zip(norms, density, strict=True):
        cell = min(int(g * cells), cells - 1)
        length = (min(cell + WINDOW // 2 + 1, cells) - max(cell - WINDOW // 2, 0)) / cells
        counts.append(gd * length)
    return counts


@settings(max_examples=100, deadline=None)
@given(NORMS, st.sampled_from([1 / 30, 0.05, 0.1, 0.25, 1.0]))
def test_a_count_is_that_of_the_window_around_the_middle_of_the_examples_cell(norms, epsilon):
    cells = round(WINDOW / epsilon)
    places = [min(int(g * cells), cells - 1) for g in norms]
    expected = [sum(abs(k - i) <= WINDOW // 2 for k in places) for i in places]
    assert prefix_counts(norms, epsilon) == pytest.approx(expected)


@settings(max_examples=100, deadline=None)
@given(NORMS, st.sampled_from([1 / 30, 0.05, 0.07, 0.1, 0.3, 1.0]))
def test_a_count_errs_by_the_examples_half_a_cell_from_the_windows_ends_at_most(norms, epsilon):
    cells = round(WINDOW / epsilon)
    reach = (1 / cells + abs(WINDOW / cells - epsilon)) / 2 + 1e-12
    for g, count in zip(norms, prefix_counts(norms, epsilon), strict=True):
        low, high = g - epsilon / 2, g + epsilon / 2
        exact = sum(low <= k < high for k in norms)
        unsure = sum(min(abs(k - low), abs(k - high)) <= reach for k in norms)
        assert abs(count - exact) <= unsure + 1e-9
        inner = sum(low + reach < k < high - reach for k in norms)
        outer = sum(low - reach <= k <= high + reach for k in norms)
        assert max(inner, 1) - 1e-9 <= count <= outer + 1e-9  # its own example is always in it


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_a_smooth_density_is_met_within_a_hundredth(dtype):
    logits = torch.randn(200_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(dtype)
    norm = torch.sigmoid(logits.float() if dtype.itemsize == 2 else logits)
    exact = ghm.gradient_density(norm)
    prefix = ghm.gradient_density(norm, method="prefix")
    assert prefix.dtype == exact.dtype
    well_filled = exact > 20_000
    error = ((prefix - exact).abs() / exact)[well_filled]
    # A logit in half precision lies on a grid of its own, whose lines hold many examples each.
    assert error.mean() < (0.05 if dtype.itemsize == 2 else 0.01)


@pytest.mark.parametrize("n", [0, 1, 63, 500])
def test_losses_and_gradients_are_near_those_of_the_exact_density(n):
    generator = torch.Generator().manual_seed(1)
    logits = (2 * torch.randn(n, 3, generator=generator)).requires_grad_()
    labels = torch.randint(-1, 4, (n,), generator=generator)
    offsets = (0.1 * torch.randn(n, 4, generator=generator)).requires_grad_()
    for loss, inputs, targets, options in (
        (ghm.ghm_c_loss, logits, labels, {"min_count": 20.0}),
        (ghm.ghm_c_loss, logits, labels, {"min_count": "positives", "normalize": "none", "per_class": True}),
        (ghm.ghm_r_loss, offsets, torch.zeros(n, 4), {"min_count": 10.0}),
    ):
        found = []
        for method in ("prefix", "exact"):
            value = loss(inputs, targets, method=method, **options)
            found.append((value, *torch.autograd.grad(value, inputs)))
        (near, slope), (value, exact_slope) = found
        assert math.isclose(near.item(), value.item(), rel_tol=0.02)
        assert (slope - exact_slope).norm() <= 0.05 * exact_slope.norm()
