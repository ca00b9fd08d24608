"""COCO annotations read a part at a time: what a large file takes is what its boxes are, not what its text is."""

import itertools
import json
import re
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

CHUNK = 1 << 20  # characters
LONGEST = 64  # chunks of one value
TOGETHER = 256  # records
SPACE = re.compile(r"[ \t\n\r]*")
COMMA = re.compile(r"[ \t\n\r]*,[ \t\n\r]*")
HALF = re.compile(r"\\u[dD][89a-fA-F]")
IMAGE = ("id", "file_name", "width", "height")
BOX = ("id", "image_id", "category_id", "bbox", "area", "iscrowd", "ignore")
EXACT = 1 << 53  # up to which a float holds each whole number
WHOLE, NO_AREA, ODD, CROWD = (1, 2, 4, 8, 16), 32, 64, 128  # bits of `kinds`
FLOATS = (float,) * len(WHOLE)


class NotPlain(ValueError):
    """The file is not read this way: for what is wrong or unusual there is `load_json`."""


class Boxes(Sequence[Any]):
    """The list `annotations` in columns; a record comes out as it went in, without what tells nothing of its box.

    Of each record, ids: its own, its image's and its category's; values: x, y, width, height and area; kinds: a byte
    that says which values were whole numbers, whether there is an area and whether it is a crowd (then `ignore` comes
    out as `iscrowd`). A record that these do not hold is in `odd` by its place, and its kind is ODD.
    """

    def __init__(self, records: Iterable[Any]) -> None:
        self.ids, self.values, self.kinds = array("q"), array("d"), bytearray()
        self.odd: dict[int, Any] = {}
        coming = iter(records)
        while some := list(itertools.islice(coming, TOGETHER)):
            if not self._extend(some):
                for record in some:
                    self._append(record)

    def _extend(self, records: Sequence[Any]) -> bool:
        """Append what `_append` would, faster; False, and nothing, where any record is unusual."""
        try:
            ids = [record[key] for record in records for key in BOX[:3]]
            flags = [record.get(key, 0) for record in records for key in BOX[5:]]
            boxes = [record["bbox"] for record in records]
            if {*map(type, (*ids, *flags))} != {int} or not {*flags} <= {0, 1}:
                return False
            if {*map(type, boxes)} != {list} or {*map(len, boxes)} != {4}:
                return False
            values = [value for record in records for value in (*record["bbox"], record["area"])]
            kinds = [
                CROWD * (crowd | ignored) for crowd, ignored in zip(flags[::2], flags[1::2], strict=True)
            ]
            if {*map(type, values)} != {float}:
                kinds = [kind | _whole(values[5 * row : 5 * row + 5]) for row, kind in enumerate(kinds)]
            self.ids.extend(array("q", ids))
        except (AttributeError, KeyError, OverflowError, TypeError):
            return False
        self.values.extend(values)
        self.kinds.extend(kinds)
        return True

    def _append(self, record: Any) -> None:
        try:
            ids = (record["id"], record["image_id"], record["category_id"])
            area, box = record.get("area"), record["bbox"]
            crowd, ignored = record.get("iscrowd", 0), record.get("ignore", 0)
            if not isinstance(box, (list, tuple)):  # a set and a dict have no order, or another
                raise TypeError
            values = (*box, 0.0 if area is None else area)
            kind = (NO_AREA if area is None else 0) | (CROWD if crowd or ignored else 0)
            if tuple(map(type, values)) != FLOATS:
                kind |= _whole(values)
            if {*map(type, (*ids, crowd, ignored))} != {int} or not 0 <= crowd <= 1 or not 0 <= ignored <= 1:
                raise TypeError
            self.ids.extend(ids)
        except (AttributeError, KeyError, OverflowError, TypeError, ValueError):
            del self.ids[3 * len(self) :]  # of which some may have been added
            self.odd[len(self)] = self._short(record)
            values, kind = (0.0,) * 5, ODD
            self.ids.extend((0, 0, 0))
        self.values.extend(values)
        self.kinds.append(kind)

    def columns(self) -> tuple[NDArray[Any], ...]:
        """Of each record its id, image, category, box, area (NaN for none) and whether it is a crowd; 0 where odd."""
        ids, values, kinds = np.array(self.ids), np.array(self.values).reshape(-1, 5), np.asarray(self.kinds)
        values[kinds & NO_AREA > 0, 4] = np.nan
        return *ids.reshape(-1, 3).T, values[:, :4], values[:, 4], kinds & CROWD > 0

    @staticmethod
    def _short(record: Any) -> Any:
        if not isinstance(record, dict):
            return record
        box = record.get("bbox")
        keys = BOX if isinstance(box, list) and box else (*BOX, "segmentation")
        return {key: record[key] for key in keys if key in record}

    def __len__(self) -> int:
        return len(self.kinds)

    def __getitem__(self, place: Any) -> Any:
        kind = self.kinds[place]
        if kind & ODD:
            return self.odd[place]
        found: dict[str, Any] = dict(zip(BOX[:3], self.ids[3 * place : 3 * place + 3], strict=True))
        values: list[float] = self.values[5 * place : 5 * place + 5].tolist()
        values = [int(value) if kind & bit else value for bit, value in zip(WHOLE, values, strict=True)]
        found["bbox"] = values[:4]
        if not kind & NO_AREA:
            found["area"] = values[4]
        found["iscrowd"] = int(kind & CROWD > 0)
        return found


def _whole(values: Sequence[Any]) -> int:
    """Which values are whole numbers, as bits; raises TypeError where one is no number, or not held exactly."""
    kind = 0
    for bit, value in zip(WHOLE, values, strict=True):
        if type(value) is int and -EXACT <= value <= EXACT:
            kind |= bit
        elif type(value) is not float:
            raise TypeError
    return kind


class _Text:
    """The values of a JSON text that is read as they are asked for."""

    def __init__(self, file: Any) -> None:
        self.file, self.text, self.at = file, "", 0
        self.decode = json.JSONDecoder().raw_decode

    def more(self) -> bool:
        """Read on, and forget what was taken; False at the end of the file."""
        new, rest = self.file.read(CHUNK), self.text[self.at :]
        if not new:
            return False
        if len(rest) > LONGEST * CHUNK or HALF.search(rest[-6:] + new):
            raise NotPlain
        self.text, self.at = rest + new, 0
        return True

    def next(self) -> str:
        """The next character that is no space, not yet taken; empty at the end."""
        while True:
            if (found := self.text[self.at : self.at + 1]) and found not in " \t\n\r":
                return found
            space = SPACE.match(self.text, self.at)
            assert space is not None
            self.at = space.end()
            if self.at == len(self.text) and not self.more():
                return ""

    def take(self, wanted: str) -> str:
        """The next character, which must be one of these."""
        found = self.next()
        if not found or found not in wanted:
            raise NotPlain
        self.at += 1
        return found

    def value(self) -> Any:
        """The next value, whole."""
        if self.text[self.at : self.at + 1] <= " ":  # a space or the end
            self.next()
        while True:
            try:
                found, end = self.decode(self.text, self.at)
            except json.JSONDecodeError:
                if self.more():
                    continue
                raise NotPlain from None
            if isinstance(found, (int, float)) and len(self.text) < end + 3 and self.more():
                continue  # a number may go on, as "1" before "e+9" does
            self.at = end
            return found

    def items(self) -> Iterator[Any]:
        """The values of the list that comes next."""
        self.take("[")
        if self.next() == "]":
            self.at += 1
            return
        yield self.value()
        while True:
            if comma := COMMA.match(self.text, self.at):  # nearly always: the rest is slower
                self.at = comma.end()
            elif self.take(",]") == "]":
                return
            yield self.value()


def stream(file: Path) -> Mapping[str, Any]:
    """The lists of a file of COCO annotations, of each record what tells of images and boxes.

    Raises NotPlain, or what reading and decoding raise, where `load_json` has to say what is there.
    """
    if not file.is_file():
        raise NotPlain
    content: dict[str, Any] = {}
    with open(file, encoding="utf-8-sig", newline="") as opened:
        text = _Text(opened)
        text.take("{")
        while text.next() != "}" or content:
            key = text.value()
            text.take(":")
            if not isinstance(key, str) or key in content:
                raise NotPlain
            content[key] = _value(text, key)
            if text.take(",}") == "}":
                break
        else:
            raise NotPlain
        if text.next():
            raise NotPlain
    return content


def _value(text: _Text, key: str) -> Any:
    if text.next() != "[" or key not in ("images", "annotations"):
        return text.value()
    if key == "images":
        return [_image(one) for one in text.items()]
    return Boxes(text.items())


def _image(record: Any) -> Any:
    if not isinstance(record, dict) or not record.get("file_name"):
        return record  # which an error may show, as those below
    if not all(type(record.get(key)) is int and record[key] > 0 for key in ("width", "height")):
        return record
    if type(record.get("id")) is not int:
        return record
    return {key: record[key] for key in IMAGE if key in record}
