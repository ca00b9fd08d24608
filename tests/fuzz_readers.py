"""Damages small data sets of every layout and reads them: a reader may refuse, with a DataError, and never crash.

python tests/fuzz_readers.py --count 20000 [--seed 0]
"""

from __future__ import annotations

import argparse
import json
import random
import re
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ghmdet.data import check_data, read_data
from ghmdet.errors import DataError
from small_sets import CLASSES, coco_content, draw, three_pictures, voc_xml, write_coco, write_voc, write_yolo

JUNK: list[Any] = [
    *(
        None,
        True,
        -1,
        0,
        2.5,
        10**20,
        10**400,
        float("nan"),
        float("inf"),
        "",
        "x",
        "yes",
        "1e999",
        "\0",
        "a\nb",
        "é中",
    ),
    *(
        "../..",
        "/",
        "\\",
        ".",
        "C:\\a.jpg",
        "http://h/a.jpg?d=1",
        "a" * 300,
        "%00",
        [],
        {},
        [[]],
        [1, [2]],
        {"a": 1},
    ),
]
WORDS = [
    *(str(value) for value in JUNK),
    "0",
    "1",
    "-0.5",
    ".5",
    "[",
    "]",
    "{",
    "}",
    ":",
    "&a",
    "*a",
    "<",
    ">",
    "<object/>",
]


def write_sets(root: Path) -> list[Path]:
    """One set a layout; gives their folders."""
    pictures = three_pictures()
    write_coco(root / "coco", pictures)
    write_coco(root / "coco", pictures[:1], "val")
    write_voc(root / "voc", pictures)
    write_voc(root / "voc", pictures[:1], "val")
    write_yolo(root / "yolo", pictures)
    write_yolo(root / "yaml", pictures)
    (root / "yaml" / "list.txt").write_text("images/train/a.jpg\n./images/train/b.jpg\n")
    (root / "yaml" / "data.yaml").write_text(
        f"path: .\ntrain: images/train\nval: [list.txt]\nnc: 3\nnames: {list(CLASSES)}\nkpt_shape: [2, 2]\n"
    )
    write_yolo(root / "cvat", pictures)
    (root / "cvat" / "obj.data").write_text("classes = 3\ntrain = data/train.txt\nnames = data/classes.txt\n")
    (root / "cvat" / "train.txt").write_text("data/images/train/a.jpg\ndata/images/train/b.jpg\n")
    for part in ("train", "valid"):
        folder = root / "roboflow" / part
        for picture in pictures:
            draw(folder / picture.name, picture.width, picture.height)
            draw(root / "labelme" / part / picture.name, picture.width, picture.height)
            draw(root / "voc2" / part / "images" / picture.name, picture.width, picture.height)
            xml = root / "voc2" / part / "annotations" / f"{picture.name[0]}.xml"
            xml.parent.mkdir(exist_ok=True)
            xml.write_text(voc_xml(picture))
            shapes = [
                {"label": CLASSES[label], "points": [[x1, y1], [x2, y2]], "shape_type": "rectangle"}
                for label, x1, y1, x2, y2 in picture.boxes
            ]
            content = {"shapes": shapes, "imagePath": picture.name, "imageWidth": 60, "imageHeight": 40}
            (root / "labelme" / part / f"{picture.name[0]}.json").write_text(json.dumps(content))
        (folder / "_annotations.coco.json").write_text(json.dumps(coco_content(pictures)))
    return sorted(root.iterdir())


def damage(raw: bytes, end: str, rng: random.Random) -> bytes:
    """The content of a file with one thing wrong: bytes, a cut, a word or a value of another type."""
    place, other = sorted((rng.randrange(len(raw) + 1), rng.randrange(len(raw) + 1)))
    kind = rng.randrange(8)
    if kind == 0:
        return raw[:place]
    if kind == 1:
        return raw[:place] + rng.randbytes(rng.randint(1, 9)) + raw[place:]
    if kind == 2:
        return raw[:place] + raw[other:]
    if kind == 3:
        return raw[:other] + raw[place:]
    if kind == 4:
        text = raw.decode("utf-8", "replace")
        return text.encode(rng.choice(["utf-16", "utf-16-le", "latin-1", "utf-8-sig", "utf-32"]), "replace")
    if end == ".json" and kind < 7:
        try:
            content = json.loads(raw)
        except ValueError:
            return raw
        swap(content, rng)
        return json.dumps(content).encode()
    words = re.split(rb"([\s<>:,\[\]=/]+)", raw)
    words[rng.randrange(len(words))] = rng.choice(WORDS).encode()
    return b"".join(words)


def swap(content: Any, rng: random.Random) -> None:
    """Put something else in the place of one value somewhere inside, or take it out."""
    while isinstance(content, (dict, list)) and content:
        key = rng.choice(list(content) if isinstance(content, dict) else range(len(content)))
        if not isinstance(content[key], (dict, list)) or not content[key] or rng.random() < 0.25:
            content[key] = rng.choice(JUNK)
            if rng.random() < 0.2:
                del content[key]
            return
        content = content[key]


@contextmanager
def damaged(folder: Path, rng: random.Random) -> Iterator[str]:
    """The set with one to three files damaged, taken away or renamed, as long as the block runs."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    texts = [path for path in files if path.suffix != ".jpg"]
    before: dict[Path, bytes] = {}
    added: list[Path] = []
    told = []
    for _ in range(rng.randint(1, 3)):
        path = rng.choice(texts if rng.random() < 0.9 else files)
        if not path.exists():
            continue
        before.setdefault(path, path.read_bytes())
        action = rng.random()
        if action < 0.85:
            path.write_bytes(damage(path.read_bytes(), path.suffix, rng))
        else:
            content = path.read_bytes()
            path.unlink()
            if action < 0.95:
                name = (
                    rng.choice(["", ".", "é "])
                    + path.stem
                    + rng.choice([path.suffix.upper(), ".txt", ".json", ".xml", ""])
                )
                added.append(path.with_name(name if name.strip(".") else "x"))
                if not added[-1].exists():
                    added[-1].write_bytes(content)
        told.append(f"{path}: {path.read_bytes()[:400]!r}" if path.exists() else f"{path}: gone")
    try:
        yield "\n".join(told)
    finally:
        for path in added:
            path.unlink(missing_ok=True)
        for path, content in before.items():
            path.write_bytes(content)


def fuzz(root: Path, count: int, seed: int = 0, say: Callable[[str], None] = print) -> dict[str, int]:
    """How often a damaged set was read and refused, and how often a reader crashed; tells what crashed it, and each
    5,000 sets how far it is."""
    folders, outcome = write_sets(root), {"read": 0, "refused": 0, "crashed": 0}
    for number in range(count):
        rng = random.Random(f"{seed} {number}")
        folder = rng.choice(folders)
        with damaged(folder, rng) as told:
            result = "read"
            try:
                given = folder / "data.yaml" if folder.name == "yaml" and rng.random() < 0.3 else folder
                if rng.random() < 0.2:
                    for problem in check_data(given):
                        assert "\r" not in str(problem)
                read_data(given, rng.choice(["train", "val"])).describe()
            except DataError:
                result = "refused"
            except Exception:
                result = "crashed"
                say(f"number {number}:\n{told}\n{traceback.format_exc()}")
            outcome[result] += 1
        if (number + 1) % 5000 == 0:
            say(f"{number + 1:,} of {count:,}: {outcome}")
    return outcome


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=20000)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]  # a file too shows how far it is
    with tempfile.TemporaryDirectory() as home:
        found = fuzz(Path(home), given.count, given.seed)
    print(found)
    raise SystemExit(found["crashed"] > 0)
