from __future__ import annotations

import json

import numpy as np
import pytest

import naive
from ghmdet.report.summary import summarize
from ghmdet.spectrum import SpectrumCounts
from spectrum_cases import CLASSES, STRIDES, make_case

CENTRES = (np.arange(30) + 0.5) / 30


def test_the_numbers_are_those_of_the_naive_examples():
    spectrum, examples, coordinates = make_case()
    numbers = summarize(spectrum).numbers
    total = sum(one.g for one in examples)
    assert numbers["examples"] == {
        "background": sum(not one.kind for one in examples),
        "objects": sum(one.kind for one in examples),
    }
    for k, name in enumerate(CLASSES):
        mine = [one for one in examples if one.label == k]
        assert numbers["classes"][name]["objects"] == sum(one.kind for one in mine)
        assert numbers["classes"][name]["gradient"] == pytest.approx(
            sum(one.g for one in mine) / total, rel=1e-5
        )
    for level, stride in enumerate(STRIDES):
        share = sum(one.g for one in examples if one.level == level) / total
        assert numbers["levels"][str(stride)]["gradient"] == pytest.approx(share, rel=1e-5)
    wrong = [one for one in examples if naive.region(one.g, 30) == 29]
    assert sum(numbers["all_but_certainly_wrong"].values()) == len(wrong)
    few = numbers["few_with_most"]
    above = [one.g for one in examples if one.g >= few["from"]]
    assert few["examples"] == pytest.approx(len(above) / len(examples))
    assert few["gradient"] == pytest.approx(sum(above) / total, rel=1e-5)
    assert numbers["box_coordinates"] == len(coordinates)
    assert numbers["box_coordinates_far_off"] == sum(one.gr >= 0.9 for one in coordinates)
    json.dumps(numbers)


def spectrum_of(background: list[int], objects: list[int]) -> SpectrumCounts:
    spectrum = SpectrumCounts.empty(CLASSES[:1], STRIDES[:1])
    spectrum.pictures[0] = 1
    spectrum.examples[0, :, 0, 0] = [background, objects]
    spectrum.gradient[:] = spectrum.examples * CENTRES
    spectrum.boxes[0, 0, 0, 28] = 4 * sum(objects)
    return spectrum


def test_an_outliers_bump_is_said_only_where_there_is_one():
    falling = list(range(300, 0, -10))
    said = " ".join(summarize(spectrum_of(falling, [1] * 30)).sentences)
    assert "11 examples are almost certainly wrong" in said and "outliers" not in said
    bump = [*falling[:-1], 500]
    said = " ".join(summarize(spectrum_of(bump, [1] * 30)).sentences)
    assert "501 examples are almost certainly wrong (g of .97 or more): 500 where nothing is labelled" in said
    assert "The emptiest region below has only 21, so these are outliers" in said


def test_words_fit_sets_that_lack_something():
    assert summarize(SpectrumCounts.empty(CLASSES, STRIDES)).sentences == [
        "Nothing was measured: there are no pictures."
    ]
    said = " ".join(summarize(make_case(absent=(0, 1, 2)).spectrum).sentences)
    assert "The pictures show no object" in said and "nan" not in said
    said = " ".join(summarize(make_case(absent=(1,)).spectrum).sentences)
    assert "No anchor was matched to an object of b." in said
    said = " ".join(summarize(spectrum_of([9] + [0] * 29, [1] + [0] * 29)).sentences)
    assert "No example is almost certainly wrong" in said
    said = " ".join(summarize(spectrum_of([9] + [0] * 29, [0] * 29 + [1])).sentences)
    assert "1 picture gives 10 examples (one anchor and one class each); 1 of them is an object." in said
    assert "1 example is almost certainly wrong" in said and "so this is an outlier" in said
