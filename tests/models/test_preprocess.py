from __future__ import annotations

import dataclasses

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torchvision.models.detection.transform import GeneralizedRCNNTransform

from ghmdet.errors import GhmdetError
from ghmdet.models import preset
from ghmdet.models.preprocess import make_batch, scale_boxes
from ghmdet.models.targets import pad_targets
from ghmdet.pictures import resized_size

CPU = torch.device("cpu")


def test_batch_and_boxes_equal_torchvisions(tiny):
    config = dataclasses.replace(tiny, antialias=False)
    images = [torch.rand(3, 111, 173), torch.rand(3, 60, 47), torch.rand(3, 96, 128)]
    targets = [{"boxes": torch.tensor([[3.0, 4, 40, 45]]), "labels": torch.tensor([0])} for _ in images]
    reference = GeneralizedRCNNTransform(
        config.min_size, config.max_size, list(config.mean), list(config.std)
    ).eval()
    expected, expected_targets = reference(images, targets)
    batch = make_batch(images, config, CPU)
    torch.testing.assert_close(batch.images, expected.tensors, rtol=0, atol=1e-5)
    assert batch.sizes == [tuple(size) for size in expected.image_sizes]
    padded, _ = pad_targets(targets, batch, CPU)
    torch.testing.assert_close(padded, torch.stack([t["boxes"] for t in expected_targets]))


def test_a_picture_of_the_right_size_is_only_normalised(tiny):
    image = torch.rand(3, 96, 128)
    batch = make_batch([image], tiny, CPU)
    torch.testing.assert_close(batch.images[0], (255 * image - 127) / 128)


def test_boxes_come_back_to_the_picture():
    boxes = torch.tensor([[10.0, 20, 30, 40]])
    there = scale_boxes(boxes, (480, 640), (288, 384))
    torch.testing.assert_close(scale_boxes(there, (288, 384), (480, 640)), boxes)


def test_a_thin_picture_keeps_at_least_a_pixel():
    assert resized_size(1, 5000, 96, 128) == (1, 128)


@given(st.integers(1, 5000), st.integers(1, 5000), st.integers(1, 1400), st.integers(0, 800))
def test_a_resized_picture_fits_and_is_not_resized_again(height, width, min_size, more):
    max_size = min_size + more
    size = resized_size(height, width, min_size, max_size)
    assert resized_size(*size, min_size, max_size) == size
    short, long = sorted(size)
    assert 1 <= short <= min_size and long <= max_size
    assert short >= min_size - 1 or long >= max_size - 1


def test_a_picture_that_the_data_resized_is_not_resampled():
    # As a float 107 * (240 / 107) is a little below 240, so that the first resize leaves 239 rows.
    config = preset("nano", size=320)
    image = torch.rand(3, *resized_size(107, 111, config.min_size, config.max_size))
    assert make_batch([image], config, CPU).sizes == [(239, 248)]


def test_sizes_are_torchvisions_but_for_pictures_one_pixel_short():
    resize = GeneralizedRCNNTransform(32, 48, [0.0] * 3, [1.0] * 3).eval()
    for height in range(1, 70):
        for width in range(1, 70):
            if min(height, width) != 31 and max(height, width) != 47:
                try:
                    made, _ = resize.resize(torch.zeros(1, height, width), None)
                except RuntimeError:  # it has no pixels left
                    continue
                assert made.shape[1:] == resized_size(height, width, 32, 48)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.rand(2, 3, 8, 8), "must be a list"),
        ([], "must be a list"),
        ([torch.rand(3, 8, 8), torch.rand(8, 8, 3)], r"image 1 has shape \[8, 8, 3\]"),
        ([torch.rand(1, 8, 8)], r"image 0 has shape \[1, 8, 8\]"),
        ([torch.rand(3, 0, 8)], r"image 0 has shape \[3, 0, 8\]"),
        (
            [torch.zeros(3, 8, 8, dtype=torch.uint8)],
            r"image 0 is torch.uint8; convert it to float and divide by 255",
        ),
        ([torch.full((3, 8, 8), 200.0)], r"image 0 has values 200..200; a picture's are 0..1"),
        ([torch.full((3, 8, 8), float("nan"))], r"image 0 has values nan"),
    ],
)
def test_bad_pictures_are_named(tiny, images, message):
    with pytest.raises(GhmdetError, match=message) as caught:
        make_batch(images, tiny, CPU)
    assert "\n" not in str(caught.value)
