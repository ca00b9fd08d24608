from __future__ import annotations

import numpy as np
import pytest
import torch

from ghmdet.data.make.thinning import erasable, erase


def boxes(*rows: tuple[float, float, float, float]) -> np.ndarray:
    return np.array(rows, dtype=np.float32).reshape(-1, 4)


def scene(height: int = 61, width: int = 83) -> torch.Tensor:
    """Ground that gets brighter to the right, with a black disc around (30, 30) and a white one around (50, 30)."""
    x, y = torch.arange(width) + 0.5, torch.arange(height)[:, None] + 0.5
    image = (100 + x).expand(3, height, width).to(torch.uint8).clone()
    image[:, (x - 30) ** 2 + (y - 30) ** 2 <= 100] = 0
    image[:, (x - 50) ** 2 + (y - 30) ** 2 <= 100] = 255
    return image


def test_an_erased_object_gives_way_to_the_ground_around_it() -> None:
    before = scene()
    after = erase(before, boxes((20, 20, 40, 40)), boxes((40, 20, 60, 40)))
    ground = 100 + torch.arange(83)
    hole = after[:, 19:41, 19:40].float()
    # neither the black of the object nor the white of its neighbour
    assert (hole - ground[19:40]).abs().max() < 4
    assert torch.equal(after[:, :, 42:], before[:, :, 42:])
    outside = torch.ones(61, 83, dtype=torch.bool)
    outside[19:41, 19:41] = False
    assert torch.equal(after[:, outside], before[:, outside])
    assert before[:, 30, 30].tolist() == [0, 0, 0]


def test_what_lies_in_another_objects_ellipse_stays() -> None:
    before = scene()
    after = erase(before, boxes((20, 20, 40, 40)), boxes((35, 20, 55, 40)))
    y, x = torch.arange(61)[:, None] + 0.5, torch.arange(83) + 0.5
    inside = (x - 45) ** 2 + (y - 30) ** 2 <= 100
    assert torch.equal(after[:, inside], before[:, inside])
    assert (after[:, 21, 36] - after[:, 21, 30].int()).abs().max() < 20  # the corner of its box is filled


@pytest.mark.parametrize(
    ("gone", "kept"),
    [
        (boxes((0, 0, 83, 61)), boxes()),  # no ground at all: nothing to carry on
        (boxes((20, 20, 40, 40)), boxes((0, 0, 83, 61))),  # no ground outside boxes
        (boxes((-5, -5, 3, 3), (80, 58, 90, 70)), boxes()),  # at the corners
        (boxes(), boxes((1, 1, 9, 9))),
        (boxes((10, 10, 10.2, 10.2)), boxes()),
    ],
)
def test_at_the_limits_it_still_gives_a_picture(gone: np.ndarray, kept: np.ndarray) -> None:
    before = scene()
    after = erase(before, gone, kept)
    assert after.shape == before.shape and after.dtype == torch.uint8
    if not len(gone):
        assert torch.equal(after, before)


def test_a_box_is_erasable_where_others_hardly_reach_into_it() -> None:
    size = (100, 100)
    assert erasable(boxes(), size).tolist() == []
    assert erasable(boxes((0, 0, 40, 40)), size).tolist() == [True]
    # corners overlap, but nothing of a round object would be in them
    assert erasable(boxes((0, 0, 40, 40), (36, 36, 80, 80)), size).tolist() == [True, True]
    # the small one lies in the large one; of the large one it is a ninth
    assert erasable(boxes((0, 0, 60, 60), (20, 20, 40, 40)), size).tolist() == [True, False]
    assert erasable(boxes((0, 0, 40, 40), (0, 0, 40, 40)), size).tolist() == [False, False]  # labelled twice
    assert erasable(boxes((0, 0, 40, 40), (20, 0, 60, 40)), size).tolist() == [False, False]
