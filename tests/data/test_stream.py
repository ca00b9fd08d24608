"""Annotations read a part at a time are what the whole text says."""

from __future__ import annotations

import itertools
import json
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ghmdet.data import annotations, read_data
from ghmdet.data import stream as module
from ghmdet.data.annotations import load_json, read_annotations
from ghmdet.data.collector import judge_box, sound
from ghmdet.data.stream import Boxes, NotPlain, stream
from ghmdet.errors import DataError

WORDS: Any = st.sampled_from(["a.jpg", "b/ü.png", "", '"q"', "x" * 40])
NUMBERS: Any = st.sampled_from([0, 1, 2, 7, -3, 2.5, 1e300, float("nan"), 2**53 + 1, 10**30, "4", None, True])
BOX: Any = st.lists(NUMBERS, max_size=5) | st.lists(st.floats(0, 50), min_size=4, max_size=4) | NUMBERS
RECORD: Any = st.fixed_dictionaries(
    {},
    optional={
        "id": st.integers(0, 9) | NUMBERS,
        "image_id": st.integers(1, 3) | NUMBERS,
        "category_id": st.integers(1, 2) | NUMBERS,
        "bbox": BOX,
        "area": NUMBERS,
        "iscrowd": st.integers(0, 1) | NUMBERS,
        "ignore": st.integers(0, 1) | NUMBERS,
        "segmentation": st.sampled_from([[[1, 1, 9, 1, 9, 8]], [], None]),
        "more": WORDS,
    },
)
CONTENT: Any = st.fixed_dictionaries(
    {
        "info": st.sampled_from([{}, {"a": [1, {"b": "]"}]}, 12345678]),
        "images": st.lists(
            st.fixed_dictionaries(
                {"id": st.integers(1, 4) | NUMBERS, "file_name": WORDS, "url": WORDS},
                optional={"width": NUMBERS, "height": NUMBERS},
            )
            | NUMBERS,
            max_size=5,
        ),
        "annotations": st.lists(RECORD | NUMBERS, max_size=6),
        "categories": st.just([{"id": 1, "name": "one"}, {"id": 2, "name": "two"}]),
    }
)


def outcome(source: Any) -> Any:
    """What reading gives, or what it says."""
    try:
        read = read_annotations(source)
    except DataError as error:
        return str(error).partition(":")[2].removeprefix(" ")
    columns = (read.image, read.category, read.box, read.area, read.crowd, read.rejected)
    problems = [(one.kind, one.record, one.value, one.mend, one.count) for one in read.problems]
    sizes = {number: (image.get("file_name"), image.get("width")) for number, image in read.images.items()}
    return [column.tolist() for column in columns], list(read.record), problems, repr(sizes), read.left_out


@settings(max_examples=200, deadline=None)
@given(content=CONTENT, chunk=st.integers(1, 60), indent=st.sampled_from([None, 1]), ascii=st.booleans())
def test_in_parts_it_says_what_it_says_as_a_whole(
    content: Any, chunk: int, indent: int | None, ascii: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    file = tmp_path_factory.mktemp("stream") / "a.json"
    file.write_text(json.dumps(content, indent=indent, ensure_ascii=ascii), encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "CHUNK", chunk)
        patch.setattr(module, "LONGEST", 10**6)
        stream(file)
        in_parts = outcome(file)
    np.testing.assert_equal(in_parts, outcome(json.loads(file.read_text(encoding="utf-8"))))


NEARLY = st.fixed_dictionaries(
    {
        "id": st.integers(0, 9) | st.sampled_from([2**62, 2**63, -1, 2**80]),
        "image_id": st.integers(1, 3),
        "category_id": st.integers(1, 2),
        "bbox": st.lists(
            st.sampled_from([0, 3, 0.5, 2.0, -0.0, float("nan"), 2**53]), min_size=4, max_size=4
        ),
        "area": st.sampled_from([0.5, 7.0, 9, 2**54]),
    },
    optional={"iscrowd": st.integers(0, 1), "ignore": st.integers(0, 1), "more": WORDS},
)


@settings(max_examples=300, deadline=None)
@given(
    records=st.lists(NEARLY, max_size=9),
    odd=st.lists(RECORD | NUMBERS, max_size=1),
    together=st.integers(1, 5),
)
def test_boxes_taken_together_are_those_taken_one_by_one(records: Any, odd: Any, together: int) -> None:
    records = records[:4] + odd + records[4:]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "TOGETHER", together)
        quick = Boxes(records)
        patch.setattr(Boxes, "_extend", lambda self, records: False)
        slow = Boxes(records)
    assert (quick.ids, bytes(quick.kinds), quick.values.tobytes()) == (
        slow.ids,
        bytes(slow.kinds),
        slow.values.tobytes(),
    )
    assert repr(quick.odd) == repr(slow.odd)
    assert repr(list(quick)) == repr(list(slow))


@pytest.mark.parametrize("box", [[1.5, 2.5, 3.5, 4.5], [1, 2, 3, 4.0]])
def test_plain_boxes_are_taken_together(box: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(Boxes, "_append")
    record = {"id": 1, "image_id": 2, "category_id": 3, "bbox": box, "area": 2.5, "iscrowd": 1}
    assert list(Boxes([record] * 600)) == [record] * 600


def none_is_sound(corners: Any, sizes: Any) -> Any:
    return np.zeros(len(corners), dtype=bool)


@settings(max_examples=200, deadline=None)
@given(content=CONTENT)
def test_boxes_judged_at_once_are_what_each_judged_alone_is(content: Any) -> None:
    at_once = outcome(content)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(annotations, "sound", none_is_sound)
        np.testing.assert_equal(at_once, outcome(content))


SIDES = [-1.0, -0.04, 0.0, 0.5, 0.97, 1.0, 1.5, 9.0, 10.0, 10.04, 11.0, np.inf, np.nan, 1e308]


@pytest.mark.parametrize("size", [(10.0, 10.0), (1.0, 10.0), (np.inf, np.inf)])
def test_of_a_sound_box_nothing_is_to_be_said(size: tuple[float, float]) -> None:
    corners = np.array(list(itertools.product(SIDES, repeat=4)))
    found = corners[sound(corners, np.array(size))].tolist()
    assert all(judge_box(tuple(box), *size) == (None, tuple(box)) for box in found)
    if size == (10.0, 10.0):
        assert len(found) == 11 * 11  # along a side: 0 to 1.5, 9, 10; and 0.5, 0.97, 1 and 1.5 to 9, 10


def test_a_picture_of_sound_boxes_is_read_as_one_of_boxes_judged_alone(tmp_path: Path) -> None:
    image = {"file_name": "a.jpg", "width": 60, "height": 40}
    shapes = [
        [1, 2, 30, 20],
        [0, 0, 60, 40],
        [5, 5, 70, 9],
        [3.5, 4.25, 0.5, 9],
        [30, 20, 30.5, 20],
        [1, 1, 0, 9],
    ]
    boxes = [
        {
            "id": 9 - i,
            "image_id": 1 + i % 3,
            "category_id": 1 + i % 2,
            "bbox": box,
            "area": [7, 1e9, None][i % 3],
        }
        for i, box in enumerate(shapes + shapes[:3])
    ]
    boxes[1]["iscrowd"] = 1
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations" / "instances_train.json").write_text(
        json.dumps(
            {
                "images": [{"id": i, **image, "file_name": f"{i}.jpg"} for i in (2, 1, 3)],
                "annotations": boxes,
                "categories": [{"id": 2, "name": "two"}, {"id": 1, "name": "one"}],
            }
        )
    )

    def read() -> Any:
        data = read_data(tmp_path, "train", classes=("two", "three"))
        records = data.records
        columns = (
            records.image_ids,
            records.offsets,
            records.boxes,
            records.labels,
            records.crowd,
            records.area,
        )
        return [column.tolist() for column in columns], data.problems

    at_once = read()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(annotations, "sound", none_is_sound)
        assert read() == at_once
    assert at_once[0][2] == [[0, 0, 60, 40], [0, 0, 60, 40], [3.5, 4.25, 4, 13.25]]
    assert sorted({problem.kind for problem in at_once[1]}) == [
        "box under one pixel",
        "empty box",
        "picture without a sound label",
        "unknown class",
    ]


@pytest.mark.parametrize(
    "text",
    [
        '{"images": [1, 2',
        '{"images": [1 2]}',
        '{"images": [], "images": []}',
        '{"images": []} more',
        '{"a": 1,}',
        "{}",
        "[]",
        '{"images": [{"file_name": "\\ud83d\\ude00"}]}',
        '{"a": ' + "[" * 10_000,
        '{"a": ' + "9" * 5000 + "}",
        "{1: 2}",
        '{"a" 1}',
        "",
        "\xff",
    ],
)
def test_what_is_unusual_is_left_to_the_reader_of_the_whole(text: str, tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    file.write_bytes(text.encode("latin-1"))
    with pytest.raises((NotPlain, RecursionError, ValueError)):
        stream(file)
    try:
        load_json(file)
    except DataError as error:
        with pytest.raises(DataError) as said:
            read_annotations(file)
        assert str(said.value) == str(error)


def test_memory_is_that_of_the_boxes_and_not_of_the_text(tmp_path: Path) -> None:
    outline = [[float(number) for number in range(60)]]
    boxes = [
        {"id": i, "image_id": 1, "category_id": 1, "bbox": [1.5, 2, 3, 4], "segmentation": outline}
        for i in range(20_000)
    ]
    image = {"id": 1, "file_name": "a.jpg", "width": 60, "height": 40}
    content = {"images": [image], "annotations": boxes, "categories": [{"id": 1, "name": "one"}]}
    file = tmp_path / "a.json"
    file.write_text(json.dumps(content))
    del content, boxes
    tracemalloc.start()
    read = read_annotations(file)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(read.box) == 20_000
    assert peak < 0.9 * file.stat().st_size, peak
