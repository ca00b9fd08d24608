"""Augmentation keeps boxes right: a drawn rectangle is still where its box says, whatever happened to the picture."""

from __future__ import annotations

from dataclasses import replace
from typing import Any
from unittest.mock import patch

import pytest
import torch
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2

from ghmdet.data import AugmentConfig, EvalTransforms, TrainTransforms, transforms
from ghmdet.data.dataset import reproducible
from ghmdet.data.transforms import as_boxes, crop_and_place
from ghmdet.errors import GhmdetError
from ghmdet.models import PRESETS
from ghmdet.models.preprocess import make_batch

PLAIN = {"brightness": 0.0, "contrast": 0.0, "saturation": 0.0}


def picture(width: int, height: int, box: tuple[int, int, int, int]) -> tuple[Tensor, dict[str, Any]]:
    """A grey picture with a green rectangle, and its target."""
    image = torch.full((3, height, width), 100, dtype=torch.uint8)
    x1, y1, x2, y2 = box
    image[:, y1:y2, x1:x2] = torch.tensor([0, 255, 0], dtype=torch.uint8)[:, None, None]
    boxes = as_boxes(torch.tensor([box], dtype=torch.float32), (height, width))
    target = {
        "boxes": boxes,
        "labels": torch.tensor([2]),
        "image_id": 7,
        "original_size": torch.tensor([height, width]),
    }
    return tv_tensors.Image(image), target


def green_extent(image: Tensor, fill: Tensor) -> list[float]:
    """x1 y1 x2 y2 of the pixels more green than grey, those of the fill colour left out."""
    fill = (image.as_subclass(Tensor) == fill[:, None, None]).all(0)
    green = ((image[1].float() - image[0].float() > 127) & ~fill).nonzero()
    (y1, x1), (y2, x2) = green.min(0).values.tolist(), (green.max(0).values + 1).tolist()
    return [x1, y1, x2, y2]


@st.composite
def scenes(draw: st.DrawFn) -> tuple[int, int, tuple[int, int, int, int]]:
    width, height = draw(st.integers(60, 200)), draw(st.integers(60, 200))
    w, h = draw(st.integers(16, width)), draw(st.integers(16, height))
    x, y = draw(st.integers(0, width - w)), draw(st.integers(0, height - h))
    return width, height, (x, y, x + w, y + h)


@settings(max_examples=150, deadline=None)
@example((167, 149, (0, 0, 165, 149)), 39)
@given(scenes(), st.integers(0, 2**40))
def test_box_encloses_what_it_enclosed(scene: Any, seed: int) -> None:
    width, height, box = scene
    config = AugmentConfig(vflip=0.5, scale=(0.5, 1.6), **PLAIN)
    with reproducible(seed), patch.object(transforms, "crop_and_place", wraps=crop_and_place) as placed:
        image, target = TrainTransforms(80, 120, config)(*picture(width, height, box))
    fill = placed.call_args.args[0].float().mean((1, 2)).round()  # may be quite green
    evaluated, _ = EvalTransforms(80, 120)(*picture(width, height, box))
    assert image.shape == evaluated.shape and image.dtype == torch.uint8
    assert target["image_id"] == 7 and len(target["boxes"]) == len(target["labels"])
    assume(fill.tolist() != [0, 255, 0])  # the crop shows nothing but the rectangle
    if len(target["boxes"]):
        (kept,) = target["boxes"].tolist()
        # A pixel at the rectangle's edge, a mix of two, may look like a green fill and is left out then.
        most = 2.01 if fill[1] - fill[0] > 127 else 1.01
        assert max(abs(a - b) for a, b in zip(kept, green_extent(image, fill), strict=True)) <= most
        assert 0 <= kept[0] < kept[2] <= image.shape[2] and 0 <= kept[1] < kept[3] <= image.shape[1]
        assert target["labels"].tolist() == [2]


@settings(max_examples=100, deadline=None)
@given(scenes(), st.integers(0, 2**40))
def test_box_is_dropped_only_when_little_of_it_is_left(scene: Any, seed: int) -> None:
    width, height, box = scene
    config = AugmentConfig(hflip=0, scale=(2.0, 3.0), **PLAIN)
    with reproducible(seed):
        image, target = TrainTransforms(80, 120, config)(*picture(width, height, box))
    green = float(((image[1].float() - image[0].float()) / 255 > 0.5).sum())
    largest = (box[2] - box[0]) * (box[3] - box[1]) * (3.0 * image.shape[2] / width) ** 2
    if len(target["boxes"]) == 0:
        assert green <= 0.3 * largest + 2 * (image.shape[1] + image.shape[2])  # soft borders


def test_a_box_at_the_threshold() -> None:
    image, target = picture(100, 100, (0, 0, 100, 100))
    for window, kept in (((70, 0, 170, 100), 1), ((71, 0, 171, 100), 0)):
        _, cropped = crop_and_place(image, target, window, (100, 100), 0.3)
        assert len(cropped["boxes"]) == len(cropped["labels"]) == kept


def test_zoom_out_shows_the_whole_picture_on_its_mean_colour() -> None:
    config = AugmentConfig(hflip=0, scale=(0.5, 0.5), **PLAIN)
    image, target = TrainTransforms(80, 120, config)(*picture(120, 80, (0, 0, 60, 80)))
    x1, y1, x2, y2 = target["boxes"].tolist()[0]
    assert (x2 - x1, y2 - y1) == (30, 40)
    mean = torch.tensor([50, 178, 50])
    outside = (image == mean[:, None, None]).all(0).sum()
    assert outside == 120 * 80 - 60 * 40


def test_same_sized_pictures_stay_same_sized() -> None:
    sizes = set()
    for seed in range(8):
        config = AugmentConfig(scale=(0.5, 1.25), vflip=0.5, hue=0.05)
        with reproducible(seed):
            sizes.add(tuple(TrainTransforms(72, 96, config)(*picture(128, 96, (10, 10, 60, 60)))[0].shape))
    assert sizes == {(3, 72, 96)}


def test_eval_resizes_boxes_with_the_picture() -> None:
    image, target = EvalTransforms(288, 384)(*picture(640, 480, (64, 48, 320, 240)))
    assert image.shape == (3, 288, 384)
    torch.testing.assert_close(target["boxes"].as_subclass(Tensor), torch.tensor([[38.4, 28.8, 192, 144]]))
    small, _ = EvalTransforms(288, 384)(*picture(64, 48, (0, 0, 9, 9)))
    assert small.shape == (3, 288, 384)  # enlarged, too


@pytest.mark.parametrize("sides", [(107, 111), (107, 123), (111, 107), (320, 239), (500, 333)])
def test_a_picture_is_resampled_once(sides: tuple[int, int]) -> None:
    """Though float rounding may leave a side a pixel short, the detector takes what evaluation's resize gives."""
    model = replace(PRESETS["nano"], min_size=240, max_size=320, mean=(0.0,) * 3, std=(1.0,) * 3)
    image, target = EvalTransforms(240, 320)(*picture(*sides, (0, 0, 9, 9)))
    pixels = image.as_subclass(Tensor).float() / 255
    batch = make_batch([pixels], model, torch.device("cpu"))
    assert batch.sizes == [tuple(image.shape[1:])]
    assert torch.equal(batch.images[0, :, : image.shape[1], : image.shape[2]], pixels)
    again, _ = EvalTransforms(240, 320)(image, {"boxes": target["boxes"]})
    assert torch.equal(again.as_subclass(Tensor), image.as_subclass(Tensor))


def test_picture_without_boxes_passes() -> None:
    image, target = picture(100, 60, (0, 0, 10, 10))
    target |= {"boxes": as_boxes(torch.zeros(0, 4), (60, 100)), "labels": torch.zeros(0, dtype=torch.int64)}
    for seed in range(5):
        with reproducible(seed):
            out, after = TrainTransforms(60, 100, AugmentConfig(scale=(0.5, 2)))(image, target)
        assert out.shape == (3, 60, 100) and after["boxes"].shape == (0, 4) and after["labels"].shape == (0,)


def test_colour_changes_but_boxes_do_not() -> None:
    config = AugmentConfig(hflip=0, scale=(1, 1))
    with reproducible(3):
        image, target = TrainTransforms(80, 120, config)(*picture(120, 80, (10, 20, 50, 60)))
    assert target["boxes"].tolist() == [[10, 20, 50, 60]]
    assert not torch.equal(
        image.as_subclass(Tensor), picture(120, 80, (10, 20, 50, 60))[0].as_subclass(Tensor)
    )


def test_pictures_of_a_pixel_or_of_odd_shape() -> None:
    for width, height in ((1, 1), (1, 300), (300, 2)):
        for seed in range(10):
            with reproducible(seed):
                image, _ = TrainTransforms(60, 100)(*picture(width, height, (0, 0, 1, 1)))
            assert image.shape == EvalTransforms(60, 100)(*picture(width, height, (0, 0, 1, 1)))[0].shape


def test_torchvision_transforms_stand_in_their_place() -> None:
    """The contract is v2's: whatever works on (image, target) works here."""
    both = v2.Compose([v2.RandomHorizontalFlip(1.0), v2.RandomPhotometricDistort()])
    _, target = both(*picture(100, 60, (0, 0, 10, 10)))
    assert target["boxes"].tolist() == [[90, 0, 100, 10]]


@pytest.mark.parametrize(
    "setting, said",
    [
        ({"hflip": 1.5}, "augmentation hflip is 1.5: choose it from 0 to 1"),
        ({"hue": 0.7}, "augmentation hue is 0.7: choose it from 0 to 0.5"),
        ({"scale": (1.2, 0.8)}, "augmentation scale is 1.2 to 0.8: choose a low end"),
        ({"scale": (0, 1)}, "augmentation scale is 0 to 1: choose a low end from 0.1 on"),
        ({"scale": (1e-320, 1)}, "augmentation scale is 1e-320 to 1: choose a low end from 0.1 on"),
        ({"scale": (0.5, 1e30)}, "augmentation scale is 0.5 to 1e.30: .* a high end from there to 20"),
    ],
)
def test_impossible_settings(setting: dict[str, Any], said: str) -> None:
    with pytest.raises(GhmdetError, match=said):
        AugmentConfig(**setting)
