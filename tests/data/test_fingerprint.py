"""What differs between a data set and what it was, in words."""

from pathlib import Path

import pytest

from ghmdet.data import read_data
from ghmdet.data.fingerprint import differences, fingerprint
from small_sets import three_pictures, write_yolo

A, B, C = (f"images/train/{name}.jpg" for name in "abc")


@pytest.mark.parametrize(
    ("then", "now", "said"),
    [
        ([A, B, C], [A, B, C], ""),
        ([A, B, A, C], [A, B, A, C], ""),
        ([A, B, A, C, A], [A, B, C], f"1 listed more often, or less ({A})"),
        ([A, B, C], [B, A, C, B, C], f"2 listed more often, or less ({B}, {C})"),
        ([A, B, A, C], [A, A, B, C], "listed in another order"),
        ([A, A, B], [C, C, A, A], f"1 new ({C}), 1 gone"),
    ],
)
def test_how_often_a_picture_is_listed_and_where_is_noticed(
    tmp_path: Path, then: list[str], now: list[str], said: str
) -> None:
    write_yolo(tmp_path, three_pictures())

    def listed(names: list[str]):
        (tmp_path / "train.txt").write_text("".join(f"{name}\n" for name in names))
        (tmp_path / "data.yaml").write_text("names: [cat, dog, emu]\ntrain: train.txt\n")
        data = read_data(tmp_path, "train")
        assert len(data.records) == len(names)
        return data, fingerprint(data)

    before = listed(then)[1]
    assert differences(*listed(now), before) == (f"pictures of train: {said}" if said else "")
