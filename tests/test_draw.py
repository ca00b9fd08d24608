from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ghmdet.data import read_data
from ghmdet.data.images import load_image
from ghmdet.draw import (
    class_colour,
    contact_sheet,
    draw_batch,
    draw_crop,
    draw_detections,
    draw_results,
    save_jpeg,
    short,
    undrawable,
)

CLASSES = ("car", "bus")
GREY = Image.new("RGB", (320, 240), (90, 90, 90))
BOXES = torch.tensor([[40.0, 60.0, 120.0, 160.0], [200.0, 80.0, 300.0, 200.0]])
LABELS = torch.tensor([0, 1])


def changed(picture: Image.Image) -> np.ndarray:
    return (np.asarray(picture) != 90).any(axis=2)


def test_lines_run_along_the_boxes_in_the_class_colours_and_the_picture_itself_stays() -> None:
    drawn = draw_detections(GREY, BOXES, LABELS, None, CLASSES)
    assert drawn.getpixel((40, 110)) == class_colour(0) and drawn.getpixel((250, 200)) == class_colour(1)
    assert drawn.getpixel((80, 110)) == (90, 90, 90)
    assert not changed(GREY).any()


def test_the_text_stands_over_the_box_and_tells_class_and_score_apart() -> None:
    plain = draw_detections(GREY, BOXES, LABELS, None, CLASSES)
    scored = draw_detections(GREY, BOXES, LABELS, torch.tensor([0.25, 0.75]), CLASSES)
    assert changed(plain)[45:58, 41:55].any() and not changed(plain)[:40].any()
    assert changed(scored)[45:58].sum() > 1.5 * changed(plain)[45:58].sum()
    other = draw_detections(GREY, BOXES, LABELS, torch.tensor([0.26, 0.75]), CLASSES)
    assert scored.tobytes() != other.tobytes()


def test_lines_and_letters_grow_with_the_picture() -> None:
    small = draw_detections(GREY, BOXES, LABELS, None, CLASSES)
    large = draw_detections(GREY.resize((1280, 960)), BOXES * 4, LABELS, None, CLASSES)
    assert changed(large).mean() == pytest.approx(changed(small).mean(), rel=0.4)


def test_the_best_detection_lies_on_top() -> None:
    same = torch.tensor([[40.0, 60.0, 120.0, 160.0]] * 2)
    for scores, top in (((0.9, 0.3), 0), ((0.3, 0.9), 1)):
        drawn = draw_detections(GREY, same, LABELS, torch.tensor(scores), CLASSES)
        assert drawn.getpixel((40, 110)) == class_colour(top)


def test_boxes_partly_outside_and_none_at_all_are_drawn_without_error() -> None:
    outside = torch.tensor(
        [[-50.0, -50.0, 30.0, 30.0], [300.0, 220.0, 900.0, 900.0], [400.0, 400.0, 500.0, 500.0]]
    )
    drawn = draw_detections(GREY, outside, torch.tensor([0, 1, 1]), None, CLASSES)
    assert drawn.size == GREY.size and changed(drawn)[:31, :31].any()
    assert not changed(draw_detections(GREY, torch.zeros(0, 4), torch.zeros(0), None, CLASSES)).any()


def test_tensors_and_pictures_draw_alike() -> None:
    tensor = torch.full((3, 240, 320), 90 / 255)
    from_tensor = draw_detections(tensor, BOXES, LABELS, None, CLASSES)
    assert from_tensor.tobytes() == draw_detections(GREY, BOXES, LABELS, None, CLASSES).tobytes()
    whole = torch.full((3, 240, 320), 90, dtype=torch.uint8)
    assert draw_detections(whole, BOXES, LABELS, None, CLASSES).tobytes() == from_tensor.tobytes()
    assert draw_detections(GREY.convert("L"), BOXES, LABELS, None, CLASSES).mode == "RGB"


def test_the_first_classes_have_colours_that_differ() -> None:
    colours = np.array([class_colour(k) for k in range(12)], dtype=float)
    distance = np.linalg.norm(colours[:, None] - colours[None], axis=2) + 999 * np.eye(12)
    assert distance.min() > 50


def test_a_sheet_holds_every_picture_in_reading_order() -> None:
    pictures = [Image.new("RGB", (40, 30), (10 * i, 200, 0)) for i in range(1, 6)]
    sheet = contact_sheet(pictures, columns=3)
    assert sheet.size == (3 * 44 - 4, 2 * 34 - 4)
    centres = [(20 + 44 * (i % 3), 15 + 34 * (i // 3)) for i in range(5)]
    assert [sheet.getpixel(c) for c in centres] == [(10 * i, 200, 0) for i in range(1, 6)]
    assert contact_sheet(pictures[:2], columns=8).width == 84


def test_a_sheet_of_results_has_the_truth_left_and_what_scores_enough_right(squares: Path) -> None:
    data = read_data(squares, "val")
    first, last = data.records[0], data.records[2]
    results = [
        {"image_id": last.image_id, "category_id": 2, "bbox": [10, 30, 40, 20], "score": score}
        for score in (0.31, 0.29)
    ]
    alone = {
        count: np.asarray(draw_results(data, results[count:], 2)).astype(int) for count in (0, 1, 2)
    }  # both, the one that scores too little, none
    assert alone[0].shape == (72 + 4 + 72, 96 + 4 + 96, 3)
    assert (alone[1] == alone[2]).all()
    added = (alone[0] != alone[1]).any(axis=2)
    assert added[76:, 100:].any() and not added[:76].any() and not added[:, :100].any()
    assert tuple(alone[0][76 + 40, 100 + 10]) == class_colour(1)  # the left edge of the box
    plain = contact_sheet(
        [draw_detections(load_image(one), *[torch.zeros(0, 4)] * 2, None, ()) for one in (first, last)], 1
    )
    labelled = (alone[2][:, :96] != np.asarray(plain)).any(axis=2)
    assert labelled[:72].any() and labelled[76:].any() and (alone[2][:, 100:] == np.asarray(plain)).all()
    assert draw_results(data, results, 4, columns=2).size == (2 * 196 + 4, 148)


def test_a_batch_is_written_with_its_boxes_and_at_most_so_many_pictures(tmp_path: Path) -> None:
    images = [torch.full((3, 64, 64), 0.5)] * 18
    targets = [{"boxes": torch.tensor([[8.0, 24.0, 40.0, 56.0]]), "labels": torch.tensor([1])}] * 18
    with Image.open(draw_batch(tmp_path / "batch.jpg", images, targets, CLASSES)) as sheet:
        assert sheet.size == (4 * 68 - 4, 4 * 68 - 4)
        assert np.abs(np.asarray(sheet, dtype=float)[40, 8] - class_colour(1)).max() < 60
    nothing = [{"boxes": torch.zeros(0, 4), "labels": torch.zeros(0)}] * 18
    draw_batch(tmp_path / "empty.jpg", images, nothing, CLASSES)
    assert (tmp_path / "empty.jpg").read_bytes() != (tmp_path / "batch.jpg").read_bytes()


def test_a_name_is_drawn_in_letters_that_there_are_and_inside_the_picture() -> None:
    def drawn(*names: str) -> np.ndarray:
        return np.asarray(draw_detections(GREY, BOXES, LABELS, None, names))

    unknown = "\U000f0041\U000f0042"  # no font has these
    assert (drawn("car", unknown) == drawn("car", "class 1")).all()
    assert (drawn("автомобиль", "bus") != drawn("class 0", "bus")).any()  # DejaVu Sans has Cyrillic letters
    assert (drawn("x" * 300, "bus") == drawn("x" * 31 + "…", "bus")).all()
    assert short("y" * 32) == "y" * 32
    assert undrawable(["car", "x" * 300, "автомобиль"]) == ""
    said = undrawable(["car", unknown, *(letter + unknown for letter in "abcd")])
    assert said.startswith(
        f"drawings say 'class 1' and so on for {unknown}, a{unknown}, b{unknown} and 2 more: "
    )


@pytest.mark.parametrize(
    ("box", "window"),  # x, y and side of what the crop shows
    [
        ((100, 80, 140, 110), (68, 43, 104)),  # 32 pixels around the longer side
        ((100, 60, 200, 100), (50, -20, 200)),  # half of the longer side; moved down into the picture
        ((0, 0, 20, 20), (0, 0, 84)),  # at the corner
        ((310, 230, 320, 240), (246, 166, 74)),
    ],
)
def test_a_crop_shows_a_box_with_its_surroundings(box: tuple[int, ...], window: tuple[int, int, int]) -> None:
    pixels = np.full((240, 320, 3), 90, np.uint8)
    pixels[box[1] : box[3], box[0] : box[2]] = (0, 0, 255)
    crop = draw_crop(Image.fromarray(pixels), box, label=0)
    assert crop.size == (160, 160)
    x, y, side = window[0], max(window[1], 0), window[2]
    blue = np.asarray(crop)[..., 2] > 200
    seen = [blue.any(axis=0).nonzero()[0], blue.any(axis=1).nonzero()[0]]
    for axis, low in ((0, x), (1, y)):
        inside = [(box[axis + i] - low) * 160 / side for i in (0, 2)]
        assert [seen[axis][0], seen[axis][-1]] == pytest.approx(inside, abs=5)
    corner = [min(int((box[i] - low) * 160 / side), 159) for i, low in ((0, x), (1, y))]
    assert crop.getpixel((corner[0], corner[1])) == class_colour(0)


def test_a_crop_is_black_where_the_picture_is_smaller() -> None:
    crop = draw_crop(Image.new("RGB", (400, 60), (90, 90, 90)), (100, 10, 300, 50), label=1)
    assert crop.size == (160, 160)
    left = np.asarray(crop)[:, :36]  # beside the box
    assert (left[:22] == 90).all() and not left[27:].any()
    assert draw_crop(torch.zeros(3, 8, 8), (2, 2, 4, 4), label=1).size == (160, 160)


def test_a_picture_is_written_whole_and_its_lines_keep_their_colour(tmp_path: Path) -> None:
    path = save_jpeg(draw_detections(GREY, BOXES, LABELS, None, CLASSES), tmp_path / "new" / "a.jpg")
    with Image.open(path) as written:
        assert written.format == "JPEG" and written.size == GREY.size
        assert np.abs(np.asarray(written, dtype=float)[110, 40] - class_colour(0)).max() < 60
    assert [one.name for one in path.parent.iterdir()] == ["a.jpg"]
