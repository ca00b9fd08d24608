"""Damages what is read, data sets of every layout, checkpoints, detections, spectra and runs: a reader may refuse, with
a GhmdetError, and never crash, nor take more than 2 s or 1 GiB for what is so small.

python tests/fuzz_readers.py --count 20000 [--seed 0]
"""

from __future__ import annotations

import argparse
import io
import json
import random
import re
import resource
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ghmdet import Detector
from ghmdet.audit.results import by_results
from ghmdet.data import check_data, read_data
from ghmdet.engine.checkpoint import save_checkpoint
from ghmdet.errors import GhmdetError
from ghmdet.evaluation.score import score
from ghmdet.models import RetinaNet, model_state
from ghmdet.models.presets import ModelConfig
from ghmdet.report.run_files import read_course, read_curves, read_metrics, require_run
from ghmdet.spectrum import SpectrumCounts
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
ARRAYS: list[Callable[[Any], Any]] = [
    lambda array: array.reshape(-1)[:-1],
    lambda array: array[None],
    lambda array: (
        array * -1 if not isinstance(array, np.ndarray) or array.dtype.kind in "if" else array[::-1]
    ),
    lambda array: array.reshape(-1)[:0],
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
    write_files(root)
    return sorted(root.iterdir())


def write_files(root: Path) -> None:
    """What ghmdet writes and reads again, and the detections of others, a folder each."""
    write_coco(root / "results", three_pictures())
    found = [
        {"image_id": 1 + i % 3, "category_id": 10 + 10 * (i % 3), "bbox": [5, 5, 20 + i, 30], "score": i / 10}
        for i in range(9)
    ]
    (root / "results" / "detections.json").write_text(json.dumps(found))
    for name in ("checkpoint", "run"):
        (root / name).mkdir()
    torch.manual_seed(0)
    config = ModelConfig(
        "test_efficientnet", channels=8, tower_depth=1, norm_groups=2, min_size=32, max_size=64
    )
    state = model_state(RetinaNet(config, list(CLASSES))) | {"category_ids": [1, 2, 3]}
    save_checkpoint(root / "checkpoint" / "best.pt", state)
    SpectrumCounts.empty(CLASSES, (8, 16)).save(root / "run" / "spectrum.npz")
    made = {name: {} for name in ("arguments", "versions", "machine", "git", "training_boxes")}
    (root / "run" / "run.json").write_text(json.dumps(made | {"started": "2026-11-26"}))
    (root / "run" / "metrics.csv").write_text("epoch,AP,AP50,seconds\n1,0.1,0.2,3\n2,0.2,0.3,6\n")
    log = "".join(f"{step},{1 + step // 4},{9 / step},{8 / step},{1 / step},0.01\n" for step in range(1, 9))
    (root / "run" / "log.csv").write_text("step,epoch,loss,classification,bbox_regression,lr\n" + log)
    (root / "run" / "best_metrics.json").write_text(
        json.dumps({"AP": 0.1, "per_class": {"cat": {"AP": 0.1}}})
    )


def read(folder: Path, rng: random.Random) -> None:
    """Read what is in a folder as the commands do."""
    if folder.name == "checkpoint":
        Detector.load(folder / "best.pt", device="cpu").predict([np.zeros((40, 60, 3), np.uint8)])
    elif folder.name == "run":
        readers: tuple[Callable[[], object], ...] = (
            lambda: require_run(folder),
            lambda: read_metrics(folder / "best_metrics.json"),
            lambda: (read_curves(folder, []), read_course(folder)),
            lambda: SpectrumCounts.load(folder / "spectrum.npz"),
        )
        for reader in rng.sample(readers, len(readers)):
            reader()
    elif folder.name == "results":
        if rng.random() < 0.5:
            score(folder / "annotations" / "instances_train.json", folder / "detections.json").table()
        else:
            by_results(folder, folder / "detections.json", None, lambda line: None)
    else:
        given = folder / "data.yaml" if folder.name == "yaml" and rng.random() < 0.3 else folder
        if rng.random() < 0.2:
            for problem in check_data(given):
                assert "\r" not in str(problem)
        read_data(given, rng.choice(["train", "val"])).describe()


def _written(write: Callable[[io.BytesIO], object]) -> bytes:
    file = io.BytesIO()
    write(file)
    return file.getvalue()


def _array(value: Any) -> Any:
    return (
        value
        if isinstance(value, np.ndarray)
        else np.array(value, object if isinstance(value, (list, dict)) else None)
    )


VALUES: dict[str, tuple[Callable[[bytes], Any], Callable[[Any], bytes]]] = {
    ".json": (json.loads, lambda content: json.dumps(content).encode()),
    ".pt": (
        lambda raw: dict(torch.load(io.BytesIO(raw), weights_only=True)),
        lambda content: _written(lambda file: torch.save(content, file)),
    ),
    ".npz": (
        lambda raw: dict(np.load(io.BytesIO(raw))),
        lambda content: _written(lambda file: np.savez(file, **{k: _array(v) for k, v in content.items()})),
    ),
}
"""How the values in a file are read and written, by the end of its name."""


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
    if end in VALUES and kind < 7:
        decode, encode = VALUES[end]
        try:
            content = decode(raw)
        except Exception:  # damaged before
            return raw
        swap(content, rng)
        return encode(content)
    words = re.split(rb"([\s<>:,\[\]=/]+)", raw)
    words[rng.randrange(len(words))] = rng.choice(WORDS).encode()
    return b"".join(words)


def swap(content: Any, rng: random.Random) -> None:
    """Put something else in the place of one value somewhere inside, or take it out."""
    while isinstance(content, (dict, list)) and content:
        key = rng.choice(list(content) if isinstance(content, dict) else range(len(content)))
        if not isinstance(content[key], (dict, list)) or not content[key] or rng.random() < 0.25:
            if isinstance(array := content[key], (np.ndarray, torch.Tensor)) and rng.random() < 0.8:
                content[key] = rng.choice(ARRAYS)(array)
            else:
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


def fuzz(root: Path, count: int, seed: int = 0, say: Callable[[str], None] = print) -> dict[str, float]:
    """How often what was damaged was read and refused, how often a reader crashed or took more than 2 s of processor
    time, and the longest of these and the growth of memory; tells what crashed it or was slow, and each 5,000 how far
    it is."""
    folders = write_sets(root)
    outcome: dict[str, float] = {"read": 0, "refused": 0, "crashed": 0, "slow": 0, "seconds": 0, "MiB": 0}
    for folder in folders:
        with suppress(GhmdetError):  # not every set has a validation part
            read(folder, random.Random(0))  # what is imported late
    memory = _most_memory()
    for number in range(count):
        rng = random.Random(f"{seed} {number}")
        folder = rng.choice(folders)
        with damaged(folder, rng) as told:
            result, began = "read", time.process_time()
            try:
                read(folder, rng)
            except GhmdetError:
                result = "refused"
            except Exception:
                result = "crashed"
                say(f"number {number}:\n{told}\n{traceback.format_exc()}")
            seconds = time.process_time() - began
            outcome[result] += 1
            if seconds > 2 or _most_memory() - memory > max(1024, outcome["MiB"]):
                outcome["slow"] += 1
                say(f"number {number}: {seconds:.1f} s, {_most_memory() - memory:.0f} MiB:\n{told}")
            outcome["seconds"] = max(outcome["seconds"], round(seconds, 2))
            outcome["MiB"] = round(_most_memory() - memory)
        if (number + 1) % 5000 == 0:
            say(f"{number + 1:,} of {count:,}: {outcome}")
    return outcome


def _most_memory() -> float:
    """The most that this process has had in memory, MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=20000)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]  # a file too shows how far it is
    with tempfile.TemporaryDirectory() as home:
        found = fuzz(Path(home), given.count, given.seed)
    print(found)
    raise SystemExit(found["crashed"] + found["slow"] > 0)
