"""`ghmdet predict`: a trained detector on a folder of pictures."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

from ghmdet.data.coco import read_annotations
from ghmdet.data.images import EXTENSIONS
from ghmdet.data.tree import Tree
from ghmdet.draw import draw_detections, save_jpeg
from ghmdet.engine.detect import Detector, coco_results, to_tensor
from ghmdet.engine.progress import counting
from ghmdet.engine.run_folder import write_predictions
from ghmdet.engine.settings import BATCH_SIZE
from ghmdet.errors import DataError, GhmdetError, PartlyDone, Range

JPEG = (".jpg", ".jpeg")
DRAWN = b"drawn by ghmdet predict"
"""The comment in each drawing, which tells it from the user's own pictures."""


def predict(
    checkpoint: Path,
    /,
    *pictures: Path,
    out: Path,
    annotations: Path | None = None,
    threshold: float = 0.3,
    batch_size: int = 8,
    device: str = "auto",
    precision: str = "auto",
    say: Callable[[str], None] = print,
) -> list[dict[str, Any]]:
    """Detect on pictures, or folders of them; writes predictions.json (COCO results) and drawn pictures.

    A picture that cannot be read is named with the reason, the others are done all the same; the exit status is 1 then.

    Args:
        checkpoint: A `best.pt` or `last.pt` of a training run.
        pictures: Pictures, and folders that are searched with their subfolders. They are named relative to the folder
            that holds all of them.
        out: Folder to write. The drawing of a JPEG (.jpg, .jpeg) has its name, that of another picture gets `.jpg`
            added (a.png.jpg); drawings of an earlier predict are removed.
        annotations: COCO annotations, with boxes or without, whose image and category ids the results should carry,
            matched by file and class name, so that `ghmdet score` can compare them; by default pictures are numbered
            from 1 in order of their names.
        threshold: The least score of a box that is drawn; predictions.json keeps them all.
        batch_size: Pictures at a time.
        device: auto, cpu or cuda.
        precision: auto, fp32, bf16 or fp16.
        say: Takes each line meant for the user.

    Returns:
        What predictions.json holds: COCO results, each with the `file_name` of its picture and its `category_name`.

    Raises:
        DataError: no pictures, or one that the annotations do not know.
        GhmdetError: `out` holds the pictures, or one of another origin where a drawing would be.
        CheckpointError: the checkpoint cannot be read.
        PartlyDone: after all the others are done and written: pictures that cannot be read.
    """
    Range(0.0, 1.0).check("threshold", threshold)
    BATCH_SIZE.check("batch_size", batch_size)
    out = Path(out)
    found = find_pictures([Path(picture) for picture in pictures], out)
    names, files = list(found), list(found.values())
    detector = Detector.load(checkpoint, device=device, precision=precision)
    ids, category_ids = list(range(1, len(names) + 1)), detector.category_ids
    if annotations is not None:
        ids, category_ids = known_ids(annotations, names, detector.classes)
    out.mkdir(parents=True, exist_ok=True)
    drawings = [out / name for name in drawing_names(names)]
    if removed := remove_drawings(out, drawings):
        say(f"{removed} drawings of an earlier predict are removed from {out}")
    results: list[dict[str, Any]] = []
    unreadable: list[DataError] = []
    with counting("pictures", len(files)) as advance:
        for start in range(0, len(files), batch_size):
            images: dict[int, Tensor] = {}
            for index, file in enumerate(files[start : start + batch_size], start):
                try:
                    images[index] = to_tensor(file)
                except DataError as error:
                    unreadable.append(error)
            detected = detector.predict(list(images.values()))
            for (index, image), detections in zip(images.items(), detected, strict=True):
                results += coco_results(detections, ids[index], category_ids)
                sure = {key: value[detections["scores"] >= threshold] for key, value in detections.items()}
                drawn = draw_detections(image, **sure, classes=detector.classes)
                save_jpeg(drawn, drawings[index], quality=92, comment=DRAWN)
            advance(min(batch_size, len(files) - start))
    about = {
        "images": [{"id": i, "file_name": name.as_posix()} for i, name in zip(ids, names, strict=True)],
        "categories": [
            {"id": i, "name": name} for i, name in zip(category_ids, detector.classes, strict=True)
        ],
    }
    named = write_predictions(out / "predictions.json", results, about)
    count = sum(result["score"] >= threshold for result in results)
    say(f"{len(results)} boxes, {count} of them scored at least {threshold:g} and drawn: {out}")
    for reason in unreadable:
        say(str(reason))
    if unreadable:
        raise PartlyDone(
            f"{len(unreadable)} of {len(files)} pictures could not be read; the results of the others are in {out}"
        )
    return named


def find_pictures(paths: Sequence[Path], out: Path) -> dict[Path, Path]:
    """Where each picture is, by its name relative to the folder that holds all that were given.

    Each once: those at `paths`, and those in folders there and below, in the order of their names; none of `out`.

    Raises:
        DataError: no path, a path where nothing is, or a folder without a picture.
        GhmdetError: `out` holds the pictures, which would be overwritten.
    """
    own, found, folders = out.resolve(), dict[Path, Path](), list[Path]()
    for path in paths:
        if not path.exists():
            raise DataError(f"{path}: no such picture or folder")
        folders.append(path if path.is_dir() else path.parent)
        if folders[-1].resolve().is_relative_to(own):
            raise GhmdetError(
                f"--out {out} holds the pictures themselves, which would be overwritten: give another folder"
            )
        inside = [Path(file) for file in Tree(path).pictures(str(path))]  # as in data sets: no hidden ones
        files = [file for file in inside if not file.resolve().is_relative_to(own)] or [path]
        if files[0].is_dir():
            raise DataError(f"{path}: no pictures here ({', '.join(sorted(EXTENSIONS))} are looked for)")
        found = {_upright(file): file for file in files} | found
    if not folders:
        raise DataError("no picture is given: name pictures, or a folder of them")
    root = Path(os.path.commonpath([_upright(folder) for folder in folders]))
    return {place.relative_to(root): found[place] for place in sorted(found)}


def _upright(path: Path) -> Path:
    """The absolute path without `..`, which would lead a drawing out of its folder; links keep their names."""
    return Path(os.path.normpath(path.absolute()))


def drawing_names(names: Sequence[Path]) -> list[Path]:
    """Names for the drawings of pictures, no two alike: a JPEG keeps its own, others get `.jpg` added.

    It is added once more where a picture has that name.

    >>> [name.as_posix() for name in drawing_names([Path("a.png"), Path("a.png.jpg"), Path("b/c.JPEG")])]
    ['a.png.jpg.jpg', 'a.png.jpg', 'b/c.JPEG']
    """
    taken = {parent for name in names for parent in name.parents} | set(names)
    drawings = []
    for name in names:
        drawing = name
        while drawing.suffix.lower() not in JPEG or (drawing != name and drawing in taken):
            drawing = drawing.with_name(f"{drawing.name}.jpg")
        taken.add(drawing)
        drawings.append(drawing)
    return drawings


def remove_drawings(out: Path, drawings: Sequence[Path]) -> int:
    """Remove what an earlier predict left in `out`; how many drawings that was.

    Raises:
        GhmdetError: there is a file that no predict drew where one of `drawings` would be.
    """
    there = [file for file in out.rglob("*") if file.suffix.lower() in JPEG and file.is_file()]
    old = [file for file in there if _is_drawing(file)]
    if strangers := set(there) & set(drawings) - set(old):
        raise GhmdetError(
            f"{min(strangers)}: would be overwritten, and is no drawing of `ghmdet predict`: give another --out"
        )
    (out / "predictions.json").unlink(missing_ok=True)
    for file in old:
        file.unlink()
        with suppress(OSError):  # until a folder is not empty
            for folder in file.relative_to(out).parents[:-1]:
                (out / folder).rmdir()
    return len(old)


def _is_drawing(file: Path) -> bool:
    with suppress(Exception), Image.open(file) as picture:
        return bool(picture.info.get("comment") == DRAWN)
    return False


def known_ids(
    annotations: Path, names: Sequence[Path], classes: Sequence[str]
) -> tuple[list[int], tuple[int, ...]]:
    """The image id of each picture, by its path or else by its file name, and the category id of each class.

    Raises:
        DataError: the file is no COCO annotations, or has no such category, or not exactly one such image.
    """
    truth = read_annotations(annotations, boxes=False)
    images: dict[Path | str, list[int]] = {}
    for image_id, image in truth.images.items():
        path = Path(str(image.get("file_name")))
        images.setdefault(path, []).append(image_id)
        images.setdefault(path.name, []).append(image_id)
    ids = [images.get(name) or images.get(name.name, []) for name in names]
    for name, found in zip(names, ids, strict=True):
        if len(found) != 1:
            what = f"{len(found)} images" if found else "no image"
            raise DataError(f"{annotations}: has {what} of file name {name.name}, wanted for {name}")
    categories = {label: category_id for category_id, label in truth.categories.items()}
    for label in classes:
        if label not in categories:
            there = ", ".join(categories)
            raise DataError(
                f"{annotations}: has no category '{label}', which the detector finds; it has {there}"
            )
    own = dict(zip((found[0] for found in ids), names, strict=True))
    for (image_id, *_), name in zip(ids, names, strict=True):
        if own[image_id] != name:
            raise DataError(
                f"{annotations}: its image {image_id} is wanted for {name} and for {own[image_id]}"
            )
    return [found[0] for found in ids], tuple(categories[label] for label in classes)
