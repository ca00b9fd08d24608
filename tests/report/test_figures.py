"""The figures' numbers, against the article's formulas one example at a time."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

import naive
from ghmdet.evaluation.matching import reliability
from ghmdet.functional import ohem_loss, sigmoid_focal_loss
from ghmdet.report import figures
from ghmdet.report.reweighting import focal_gradient
from ghmdet.spectrum import SpectrumCounts
from spectrum_cases import CLASSES, STRIDES, Case, Example, make_case

M = 30
CENTRES = [(m + 0.5) / M for m in range(M)]
SPECTRUM_FIGURES = [
    figures.draw_examples,
    figures.draw_boxes,
    figures.draw_class_gradients,
    figures.draw_box_gradients,
    figures.draw_shares,
    figures.draw_epochs,
    figures.draw_weights,
]


@pytest.fixture(
    scope="module", params=["all classes", "a class without objects", "one picture", "no objects"]
)
def case(request: pytest.FixtureRequest) -> Case:
    return {
        "all classes": lambda: make_case(0),
        "a class without objects": lambda: make_case(1, absent=(1,)),
        "one picture": lambda: make_case(2, pictures=1),
        "no objects": lambda: make_case(3, absent=(0, 1, 2)),
    }[request.param]()


def stairs(axes: Axes, label: str) -> list[float]:
    return next(patch for patch in axes.patches if patch.get_label() == label).get_data().values.tolist()


def line(axes: Axes, label: str) -> tuple[np.ndarray, np.ndarray]:
    found = next(one for one in axes.lines if one.get_label() == label)
    return np.asarray(found.get_xdata(), float), np.asarray(found.get_ydata(), float)


def bars(axes: Axes, label: str) -> list[float]:
    return [bar.get_height() for bar in next(c for c in axes.containers if c.get_label() == label)]


def by_region(norms: Sequence[float], values: Sequence[float], bins: int = M) -> list[float]:
    sums = [0.0] * bins
    for norm, value in zip(norms, values, strict=True):
        sums[naive.region(norm, bins)] += value
    return sums


def at_the_same_total(weights: Sequence[float], norms: Sequence[float]) -> list[float]:
    pull = sum(weight * norm for weight, norm in zip(weights, norms, strict=True))
    return [weight * sum(norms) / pull for weight in weights] if pull else [0.0] * len(weights)


def published_weights(examples: list[Example]) -> list[float]:
    norms = [one.g for one in examples]
    return at_the_same_total(naive.harmonizing(naive.unit_region_density(norms, M)), norms)


def guarded_weights(examples: list[Example]) -> list[float]:
    weights = []
    for one in examples:
        mine = [other for other in examples if other.label == one.label]
        positives = max(sum(other.kind for other in mine), 1)
        near = sum(naive.region(other.g, M) == naive.region(one.g, M) for other in mine)
        weights.append(1 / max(near, positives))
    return at_the_same_total(weights, [one.g for one in examples])


def mean_by_region(examples: list[Example], weights: Sequence[float]) -> np.ndarray:
    norms = [one.g for one in examples]
    number = np.array(by_region(norms, [1.0] * len(norms)))
    return np.array(by_region(norms, weights)) / np.where(number > 0, number, np.nan)


def same(drawn: np.ndarray, expected: np.ndarray, rtol: float = 1e-5) -> None:
    """Equal, with a gap in the line wherever there is nothing or 0."""
    np.testing.assert_allclose(np.nan_to_num(drawn), np.nan_to_num(expected), rtol=rtol)


def test_runs_are_drawn_side_by_side_by_name() -> None:
    cases = {"ce": make_case(0), "ghm-c": make_case(1, absent=(1,)), "blind": make_case(3, absent=(0, 1, 2))}
    background, objects = figures.draw_runs({name: case.spectrum for name, case in cases.items()}).axes
    for name, case in cases.items():
        for axes, kind in ((background, 0), (objects, 1)):
            mine = [one for one in case.examples if one.kind == kind]
            assert stairs(axes, name) == by_region([one.g for one in mine], [1.0] * len(mine))


def test_examples_are_the_counts_of_the_naive_regions(case: Case) -> None:
    axes = figures.draw_examples(case.spectrum).axes[0]
    for kind, name in enumerate(("background", "objects")):
        norms = [one.g for one in case.examples if one.kind == kind]
        assert stairs(axes, name) == by_region(norms, [1.0] * len(norms))


def test_boxes_are_the_counts_of_the_objects_coordinates(case: Case) -> None:
    axes = figures.draw_boxes(case.spectrum).axes[0]
    norms = [one.gr for one in case.coordinates]
    assert stairs(axes, "objects") == by_region(norms, [1.0] * len(norms))
    assert [text.get_text() for text in axes.texts] == ([] if norms else ["none"])


def test_class_gradients_are_the_mean_of_the_examples_gradients(case: Case) -> None:
    axes = figures.draw_class_gradients(case.spectrum).axes[0]
    norms = [one.g for one in case.examples]
    targets = torch.tensor([float(one.kind) for one in case.examples], dtype=torch.float64)
    logits = torch.tensor([one.logit for one in case.examples], dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(sigmoid_focal_loss(logits, targets, reduction="sum"), logits)
    alpha = [0.25 if one.kind else 0.75 for one in case.examples]
    focal_scale = sum(norms) / float(slope.abs().sum())
    kept = (ohem_loss(logits.detach(), targets, reduction="none") > 0).double().tolist()
    expected = {
        "cross entropy": mean_by_region(case.examples, [1.0] * len(norms)) * CENTRES,
        "GHM-C, published": mean_by_region(case.examples, published_weights(case.examples)) * CENTRES,
        "GHM-C, guarded": mean_by_region(case.examples, guarded_weights(case.examples)) * CENTRES,
    }
    for name, values in expected.items():
        x, drawn = line(axes, name)
        np.testing.assert_allclose(x, CENTRES)
        same(drawn, values)
    # Within a region these two are known by its mean g only.
    focal = mean_by_region(case.examples, alpha) * focal_gradient(np.array(CENTRES)) * focal_scale
    same(line(axes, "focal")[1], focal, rtol=0.02)
    ohem = mean_by_region(case.examples, at_the_same_total(kept, norms)) * CENTRES
    same(line(axes, "OHEM")[1], ohem, rtol=0.05)


def test_focal_gradient_is_the_losses_own() -> None:
    logits = torch.linspace(-9, 9, 41, dtype=torch.float64, requires_grad=True)
    loss = sigmoid_focal_loss(logits, torch.zeros_like(logits), alpha=-1, reduction="sum")
    (slope,) = torch.autograd.grad(loss, logits)
    np.testing.assert_allclose(focal_gradient(logits.detach().sigmoid().numpy()), slope.numpy(), rtol=1e-9)


def test_box_gradients_are_the_naive_slopes(case: Case) -> None:
    axes = figures.draw_box_gradients(case.spectrum).axes[0]
    norms = [one.gr for one in case.coordinates]
    weights = at_the_same_total(naive.harmonizing(naive.unit_region_density(norms, 10)), norms)
    of_region = {naive.region(norm, 10): weight for norm, weight in zip(norms, weights, strict=True)}
    x, smooth = line(axes, "smooth L1")
    step = 1e-7
    slopes = [
        (naive.smooth_l1(d + step, 1 / 9) - naive.smooth_l1(abs(d - step), 1 / 9)) / (2 * step) for d in x
    ]
    np.testing.assert_allclose(smooth, slopes, atol=1e-5)
    authentic = [naive.asl1_gradient_norm(d, 0.02) for d in x]
    np.testing.assert_allclose(line(axes, "authentic smooth L1")[1], authentic)
    harmonized = [gr * of_region.get(naive.region(gr, 10), np.nan) for gr in authentic]
    np.testing.assert_allclose(line(axes, "GHM-R")[1], harmonized, rtol=1e-5)


def test_shares_are_those_of_the_examples_gradients(case: Case) -> None:
    drawn = figures.draw_shares(case.spectrum).axes
    weights = [[1.0] * len(case.examples), published_weights(case.examples), guarded_weights(case.examples)]
    for axes, of_loss in zip(drawn, weights, strict=True):
        total = sum(one.g * weight for one, weight in zip(case.examples, of_loss, strict=True))
        heights = np.zeros(M)
        for kind, name in enumerate(("background", "objects")):
            mine = [
                (one.g, 100 * one.g * w / total)
                for one, w in zip(case.examples, of_loss, strict=True)
                if one.kind == kind
            ]
            expected = by_region([norm for norm, _ in mine], [share for _, share in mine])
            np.testing.assert_allclose(bars(axes, name), expected, rtol=1e-5, atol=1e-9)
            heights += bars(axes, name)
        assert heights.sum() == pytest.approx(100)
        background = next(c for c in axes.containers if c.get_label() == "background")
        assert [bar.get_y() for bar in background] == bars(axes, "objects")


def test_epochs_are_rows_of_the_map_in_their_order() -> None:
    first, second = make_case(0), make_case(5)
    drawn = figures.draw_epochs(SpectrumCounts.stack([first.spectrum, second.spectrum]))
    for kind, name in enumerate(("background", "objects")):
        cells = next(one for axes in drawn.axes for one in axes.images if one.get_label() == name)
        assert cells.get_extent() == [0, 1, 0.5, 2.5] and cells.origin == "lower"
        rows = []
        for one in (first, second):
            norms = [example.g for example in one.examples if example.kind == kind]
            rows.append(by_region(norms, [1.0] * len(norms)))
        assert cells.get_array().filled(0).reshape(2, M).tolist() == rows


def test_weights_are_the_examples_own(case: Case) -> None:
    axes = figures.draw_weights(case.spectrum).axes[0]
    same(line(axes, "GHM-C, published")[1], mean_by_region(case.examples, published_weights(case.examples)))
    guarded = guarded_weights(case.examples)
    for k, name in enumerate(CLASSES):
        mine = [i for i, one in enumerate(case.examples) if one.label == k]
        expected = mean_by_region([case.examples[i] for i in mine], [guarded[i] for i in mine])
        same(line(axes, f"guarded: {name}")[1], expected)


def test_of_many_classes_the_commonest_and_the_rarest_are_drawn() -> None:
    names = [f"class {k}" for k in range(12)]
    spectrum = SpectrumCounts.empty(names, (8,))
    spectrum.examples[0, 0] += 50
    spectrum.examples[0, 1, :, 0, 3] = [3, 14, 15, 92, 65, 35, 89, 79, 32, 38, 46, 26]
    spectrum.gradient[:] = spectrum.examples * np.array(CENTRES)
    labels = [one.get_label() for one in figures.draw_weights(spectrum).axes[0].lines]
    assert labels[2:] == [f"guarded: class {k}" for k in (3, 6, 7, 4, 11, 2, 1, 0)]


def test_reliability_is_the_share_that_hits_in_each_tenth() -> None:
    random = np.random.default_rng(0)
    scores = random.random(200) ** 2
    hit = random.random(200) < scores
    found = reliability(scores, hit)
    assert found
    above, below = figures.draw_reliability(found).axes
    for tenth, height in enumerate(bars(above, "share that hits")):
        mine = [h for s, h in zip(scores, hit, strict=True) if naive.region(s, 10) == tenth]
        assert height == pytest.approx(sum(mine) / len(mine))
    for name, kind in (("misses", False), ("hits", True)):
        mine = [s for s, h in zip(scores, hit, strict=True) if h == kind]
        assert stairs(below, name) == by_region(mine, [1.0] * len(mine), 10)


@pytest.fixture
def no_warning() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        # Matplotlib 3.9 calls what pyparsing 3.3 calls old.
        warnings.filterwarnings("ignore", category=DeprecationWarning, module="matplotlib|pyparsing")
        yield


@pytest.mark.usefixtures("no_warning")
@pytest.mark.parametrize("draw", SPECTRUM_FIGURES, ids=lambda draw: draw.__name__)
def test_nothing_at_all_can_be_drawn_without_a_warning(
    draw: Callable[[SpectrumCounts], Figure], tmp_path: Path
) -> None:
    figure = draw(SpectrumCounts.empty(CLASSES, STRIDES))
    figures.save_figure(figure, tmp_path / "figure")


@pytest.mark.usefixtures("no_warning")
@pytest.mark.parametrize("name", ["红血球", "z" * 300, "$x_1$", "😀"])
def test_any_class_name_can_be_drawn_without_a_warning(name: str, tmp_path: Path) -> None:
    figure = figures.draw_precision_recall({name: {"precision": [0.5] * 101}, "b": None})
    figures.save_figure(figure, tmp_path / "a")
    svg = figures.inline_svg(figure, "a", "b")
    assert (name if len(name) < 32 else "z" * 31 + "…") in svg


@pytest.mark.usefixtures("no_warning")
def test_no_detections_can_be_drawn_without_a_warning(tmp_path: Path) -> None:
    nothing = reliability(np.zeros(0), np.zeros(0, bool))
    assert nothing
    figures.save_figure(figures.draw_reliability(nothing), tmp_path / "figure")


def test_a_figure_is_saved_alike_each_time_and_its_text_is_text(tmp_path: Path) -> None:
    spectrum = make_case().spectrum
    for folder in ("one", "two"):
        svg, png = figures.save_figure(figures.draw_examples(spectrum), tmp_path / folder / "examples")
        assert png.read_bytes().startswith(b"\x89PNG")
    assert svg.read_bytes() == (tmp_path / "one" / "examples.svg").read_bytes()
    words = " ".join(ElementTree.parse(svg).getroot().itertext())
    assert "How many examples are how wrong" in words
