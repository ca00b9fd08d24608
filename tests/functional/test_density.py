from __future__ import annotations

import math
import time

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import naive
from ghmdet.functional import gradient_density


def cases() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    uniform = torch.rand(2000, generator=generator, dtype=torch.float64)
    eighths = torch.arange(9, dtype=torch.float64) / 8
    return {
        "random": uniform,
        "skewed": uniform[:501] ** 12,
        "tied": (uniform[:1000] * 7).floor() / 7,
        "ends": torch.tensor([0.0, 1.0, 0.0, 1.0, 0.5], dtype=torch.float64),
        # With ε = 1/4 every difference below is a whole or half window.
        "window edges": torch.cat([eighths, eighths, eighths[3:5]]),
        "thirtieths": torch.arange(31, dtype=torch.float64) / 30,
        "one": torch.tensor([0.3], dtype=torch.float64),
        "63": uniform[:63],
    }


@pytest.mark.parametrize("epsilon", [1 / 4, 1 / 30, 0.07, 1.0])
@pytest.mark.parametrize("case", cases())
def test_exact_density_equals_the_articles_double_sum(case, epsilon):
    norm = cases()[case]
    if case == "random" and epsilon != 1 / 30:
        norm = norm[:300]
    expected = torch.tensor(naive.density(norm.tolist(), epsilon), dtype=torch.float64)
    assert torch.equal(gradient_density(norm, epsilon=epsilon), expected)


def test_exact_density_of_float32_counts_as_the_article_does():
    norm = (torch.rand(700) * 40).floor() / 40
    expected = torch.tensor(naive.density(norm.tolist(), 0.05))
    assert torch.equal(gradient_density(norm, epsilon=0.05), expected)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.one_of(st.floats(0, 1), st.integers(0, 20).map(lambda i: i / 20)), min_size=0, max_size=40),
    st.sampled_from([0.05, 0.1, 1 / 30, 0.25, 1.0]),
)
def test_exact_density_equals_the_article_for_any_norms(norms, epsilon):
    norm = torch.tensor(norms, dtype=torch.float64)
    expected = torch.tensor(naive.density(norms, epsilon), dtype=torch.float64)
    assert torch.equal(gradient_density(norm, epsilon=epsilon), expected)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(0, 1), max_size=40), st.sampled_from([1, 2, 10, 30]))
def test_unit_region_density_equals_its_definition(norms, bins):
    norm = torch.tensor(norms, dtype=torch.float64)
    expected = torch.tensor(naive.unit_region_density(norms, bins), dtype=torch.float64)
    assert torch.equal(gradient_density(norm, epsilon=1 / bins, method="unit-region"), expected)


def test_the_window_holds_its_lower_end_and_not_its_upper():
    density = gradient_density(torch.tensor([0.5, 0.375, 0.625]), epsilon=0.25)
    assert (density * 0.25).tolist() == [2, 1, 2]


def test_a_norm_of_one_belongs_to_the_last_region():
    density = gradient_density(torch.tensor([1.0, 0.95, 0.5]), epsilon=0.1, method="unit-region")
    assert density.tolist() == [20, 20, 10]


def test_an_epsilon_that_does_not_divide_one_takes_the_nearest_number_of_regions():
    density = gradient_density(torch.tensor([0.1, 0.4, 0.9]), epsilon=0.3, method="unit-region")
    assert density.tolist() == [3, 3, 3]


@pytest.mark.parametrize("method", ["exact", "unit-region", "prefix"])
def test_a_masked_element_changes_nothing(method):
    norm = torch.rand(5, 3, 4)
    valid = torch.rand(5, 4) < 0.6
    everywhere = valid.unsqueeze(1).expand_as(norm)
    spoilt = torch.where(everywhere, norm, torch.nan)
    density = gradient_density(spoilt, epsilon=0.1, method=method, valid=valid)
    alone = gradient_density(norm[everywhere], epsilon=0.1, method=method)
    assert torch.equal(density[everywhere], alone)
    assert (density[~everywhere] == 0).all()


@pytest.mark.parametrize("method", ["exact", "unit-region", "prefix"])
def test_the_order_and_the_layout_of_examples_change_nothing(method):
    norm = torch.rand(6, 5)
    order = torch.randperm(30)
    density = gradient_density(norm, epsilon=0.2, method=method).flatten()[order]
    assert torch.equal(density, gradient_density(norm.flatten()[order], epsilon=0.2, method=method))


@pytest.mark.parametrize("method", ["exact", "unit-region", "prefix"])
def test_no_examples_have_no_density(method):
    assert gradient_density(torch.empty(0, 3), epsilon=0.1, method=method).shape == (0, 3)


def test_a_million_examples_take_less_than_two_seconds():
    norm = torch.rand(10**6) ** 8
    times = []
    for _ in range(2):
        start = time.perf_counter()
        gradient_density(norm, epsilon=1 / 30)
        times.append(time.perf_counter() - start)
    assert min(times) < 2


@pytest.mark.parametrize("epsilon", [0.0, -0.1, 1.5, math.nan])
def test_an_epsilon_outside_its_range_is_refused(epsilon):
    with pytest.raises(ValueError, match=r"epsilon must lie in \(0, 1\]"):
        gradient_density(torch.rand(3), epsilon=epsilon)


def test_a_misspelt_method_gets_a_suggestion():
    with pytest.raises(ValueError, match="did you mean 'exact'"):
        gradient_density(torch.rand(3), epsilon=0.1, method="exakt")


@pytest.mark.parametrize("value", [-0.1, 1.01, math.nan])
def test_values_that_are_no_gradient_norms_are_refused(value):
    with pytest.raises(ValueError, match=r"gradient norms lie in 0\.\.1"):
        gradient_density(torch.tensor([0.5, value]), epsilon=0.1)
