from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from ghmdet.compare.paired import average_precision, interval, over_classes, resamples
from ghmdet.evaluation.matching import ClassMatches, matches
from ghmdet.evaluation.score import score
from measured_data import shared_data
from score_cases import random_set


def assert_equals_the_score(truth: Any, results: Any) -> None:
    metrics, found = score(truth, results), matches(truth, results)
    ours = average_precision(found, np.ones((2, len(truth["images"]))))
    for one in ours:
        expected = [figures["AP"] for figures in metrics.per_class.values()]
        np.testing.assert_allclose(one.mean(1), np.array(expected, dtype=float), atol=1e-6)
        expected = [figures["AP50"] for figures in metrics.per_class.values()]
        np.testing.assert_allclose(one[:, 0], np.array(expected, dtype=float), atol=1e-6)
    assert over_classes(ours.mean(2)) == pytest.approx(
        np.nan if metrics.AP is None else metrics.AP, abs=1e-6, nan_ok=True
    )


def test_equals_the_score_on_the_reference_set() -> None:
    folder = shared_data("coco_eval")
    truth = json.loads((folder / "instances_val2014_100_boxes.json").read_text())
    results = json.loads((folder / "instances_val2014_fakebbox100_results.json").read_text())
    assert_equals_the_score(truth, results)


@pytest.mark.parametrize("seed", range(20))
def test_equals_the_score_with_crowds_ties_and_empty_images(seed: int) -> None:
    assert_equals_the_score(*random_set(seed, detections_per_image=8 if seed < 15 else 150))


@pytest.mark.parametrize("seed", range(10))
def test_a_resample_equals_the_score_of_the_images_written_out(seed: int) -> None:
    truth, results = random_set(seed)
    rng = np.random.default_rng(seed)
    for number, result in enumerate(results):  # no ties: among equal scores the order of copies is anyone's
        result["score"] = float(rng.random()) + number * 1e-9
    order = sorted(image["id"] for image in truth["images"])
    counts = resamples(len(order), 1, seed)
    assert (counts[0] == 1).all()
    copied: dict[str, Any] = {"images": [], "annotations": [], "categories": truth["categories"]}
    copied_results = []
    for image, times in zip(order, counts[1].astype(int), strict=True):
        for _ in range(times):
            copy = len(copied["images"]) + 1
            copied["images"].append({"id": copy})
            for record in truth["annotations"]:
                if record["image_id"] == image:
                    copied["annotations"].append(
                        record | {"image_id": copy, "id": len(copied["annotations"]) + 1}
                    )
            copied_results += [r | {"image_id": copy} for r in results if r["image_id"] == image]
    expected = [figures["AP"] for figures in score(copied, copied_results).per_class.values()]
    ours = average_precision(matches(truth, results), counts)[1].mean(1)
    np.testing.assert_allclose(ours, np.array(expected, dtype=float), atol=1e-6)


def test_no_detections_score_zero_and_a_class_without_boxes_is_undefined() -> None:
    truth = {
        "images": [{"id": 1}],
        "categories": [{"id": 1, "name": "seen"}, {"id": 2, "name": "absent"}],
        "annotations": [{"image_id": 1, "category_id": 1, "bbox": [0, 0, 9, 9]}],
    }
    precisions = average_precision(matches(truth, []), np.array([[1.0], [0.0]]))
    assert (precisions[0, 0] == 0).all()
    assert np.isnan(precisions[0, 1]).all()
    assert over_classes(precisions.mean(2))[0] == 0
    assert np.isnan(over_classes(precisions.mean(2))[1])


# ---- the interval, on simulated arms


def simulated_run(
    random: np.random.Generator, difficulty: np.ndarray[Any, Any], quality: float
) -> dict[str, ClassMatches]:
    """A run's detections: 5 boxes and 12 detections an image; hits are likelier in easy images and good runs."""
    hit = np.zeros((len(difficulty), 12), dtype=bool)
    hit[:, :5] = random.random((len(difficulty), 5)) < 1 / (1 + np.exp(-(difficulty + quality)))[:, None]
    scores = random.normal(size=hit.shape) + (1.5 + quality) * hit
    order = np.argsort(-scores.ravel())
    image = np.repeat(np.arange(len(difficulty)), 12)[order]
    return {
        "one": ClassMatches(
            image=image,
            hit=hit.ravel()[order][None],
            ignored=np.zeros((1, hit.size), bool),
            boxes=np.full(len(difficulty), 5),
            score=scores.ravel()[order],
            row=order,
        )
    }


def simulated_difference(trial: int, *, seeds: int, sigma: float, gap: float) -> Any:
    """The interval for two arms on 60 new images and new seeds, whose quality differs by `gap`."""
    random = np.random.default_rng(trial)
    difficulty = random.normal(0, 1, 60)
    counts = resamples(60, 200, trial)
    figures = []
    for arm in range(2):
        runs = [simulated_run(random, difficulty, random.normal(0, sigma) + gap * arm) for _ in range(seeds)]
        figures.append(
            np.stack([over_classes(average_precision(run, counts).mean(2)) for run in runs], axis=1)
        )
    return interval(figures[1] - figures[0])


@pytest.mark.parametrize(("seeds", "sigma"), [(2, 0.3), (3, 0.0), (3, 0.15), (3, 0.5), (5, 0.3)])
def test_intervals_of_identical_arms_cover_zero_at_least_at_the_stated_rate(seeds: int, sigma: float) -> None:
    found = [simulated_difference(trial, seeds=seeds, sigma=sigma, gap=0) for trial in range(150)]
    covered = np.mean([one.low <= 0 <= one.high for one in found])
    # 150 trials at 95 % have a standard deviation of 1.8 %; more than the stated rate is allowed.
    assert covered >= 0.95 - 3 * 0.018
    above = np.array([one.probability_better for one in found])
    assert abs(above.mean() - 0.5) < 0.08


def test_one_seed_covers_the_images_only() -> None:
    same_runs = [simulated_difference(trial, seeds=1, sigma=0.0, gap=0) for trial in range(150)]
    other_runs = [simulated_difference(trial, seeds=1, sigma=0.5, gap=0) for trial in range(150)]
    same, other = (np.mean([one.low <= 0 <= one.high for one in found]) for found in (same_runs, other_runs))
    assert same > 0.85
    assert other < 0.6


def test_a_planted_difference_is_found() -> None:
    found = [simulated_difference(trial, seeds=3, sigma=0.05, gap=1.0) for trial in range(60)]
    assert np.mean([one.low > 0 for one in found]) > 0.9
    assert np.mean([one.probability_better for one in found]) > 0.98
    turned = [simulated_difference(trial, seeds=3, sigma=0.05, gap=-1.0) for trial in range(60)]
    assert np.mean([one.high < 0 for one in turned]) > 0.9


def test_the_same_runs_differ_by_nothing() -> None:
    same = interval(np.zeros((51, 3)))
    assert (same.mean, same.low, same.high, same.probability_better) == (0, 0, 0, 0.5)
