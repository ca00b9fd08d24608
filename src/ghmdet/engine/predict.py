"""`ghmdet predict`: a trained detector on a folder of pictures."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from contextlib import suppress
from glob import has_magic
from itertools import count, islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import numpy as np
from cyclopts import Parameter
from numpy.typing import NDArray
from PIL import Image

from ghmdet import runtime
from ghmdet.data.annotations import read_annotations
from ghmdet.data.tree import HIDDEN, UNOPENED, UNREAD, Tree
from ghmdet.draw import draw_detections, save_jpeg
from ghmdet.engine import extracts
from ghmdet.engine.run_folder import (
    FAILED,
    UNFINISHED,
    coco_results,
    require_own,
    write_json,
    write_predictions,
)
from ghmdet.engine.sources import MOST_SIDE, VIDEOS, Frame, Reader, Source, file_of, with_frames
from ghmdet.engine.unfinished import Stamp, Unfinished, stamp
from ghmdet.errors import DataError, GhmdetError, PartlyDone, Range
from ghmdet.files import LOCK, checkpoint_file, hold
from ghmdet.options import BATCH_SIZE
from ghmdet.pictures import EXTENSIONS, fitting
from ghmdet.progress import counting
from ghmdet.words import many

if TYPE_CHECKING:
    from ghmdet.engine.detect import Detector

JPEG = (".jpg", ".jpeg")
DRAWN = b"drawn by ghmdet predict"
"""The comment in each drawing, which tells it from the user's own pictures."""
PREDICTIONS = "predictions.json"


def predict(
    checkpoint: Path,
    /,
    *pictures: Annotated[Path, Parameter(required=True)],
    out: Path,
    annotations: Path | None = None,
    threshold: float = runtime.THRESHOLD,
    save_txt: Annotated[bool, Parameter(negative=())] = False,
    crop: Annotated[bool, Parameter(negative=())] = False,
    batch_size: int = 8,
    device: str = "auto",
    precision: str = "auto",
    say: Callable[[str], None] = print,
) -> Path:
    """Detect on pictures, folders of them, or videos; writes predictions.json (COCO results) and drawn pictures.

    A picture that cannot be used is named with the reason, also in `failed.json`, and the others are done all the same;
    the exit status is 1 then. Interrupted, the same command goes on.

    Args:
        checkpoint: A training run's folder, which means its `best.pt`, or a `best.pt` or `last.pt`; or an ONNX file of
            `ghmdet export`, which needs no PyTorch.
        pictures: Pictures, patterns ('shots/*.jpg'), videos (extra `video`), and folders that are searched for both
            with their subfolders. They are named relative to the folder that holds all of them or, if that is /, from
            the ends of the given folders that tell these apart; a frame of clip.mp4 is clip.mp4/000000.jpg and so on,
            and its results have its number as `frame`.
        out: Folder to write. The drawing of a JPEG (.jpg, .jpeg) has its name, that of another picture gets `.jpg`
            added (a.png.jpg); drawings of an earlier predict are removed.
        annotations: COCO annotations, with boxes or without, whose image and category ids the results should carry,
            matched by file and class name, so that `ghmdet score` can compare them; by default pictures are numbered
            from 1 in order of their names.
        threshold: The least score of a box that is drawn, cropped or written by `--save-txt`; predictions.json keeps
            them all with their scores, which AP needs: leave out those below it when you read it.
        save_txt: Also write the boxes as YOLO labels, `labels/NAME.txt`, with their `classes.txt`.
        crop: Also write what is in each box as a picture, `crops/CLASS/NAME-1.jpg` and so on.
        batch_size: Pictures at a time.
        device: auto, cpu or cuda.
        precision: auto, fp32, bf16 or fp16.
        say: Takes each line meant for the user.

    Returns:
        The file predictions.json: COCO results, each with the `file_name` of its picture and its `category_name`.

    Raises:
        DataError: no pictures, or one that the annotations do not know.
        GhmdetError: `out` holds the pictures, or one of another origin where a drawing would be.
        CheckpointError: the checkpoint cannot be read.
        PartlyDone: after all the others are done and written: pictures that cannot be used.
        KeyboardInterrupt: stopped by a signal; what is done is kept.
    """
    Range(0.0, 1.0).check("threshold", threshold)
    BATCH_SIZE.check("batch_size", batch_size)
    checkpoint, out = checkpoint_file(checkpoint), Path(out)
    require_own(out, "predict")
    given = [Path(picture) for picture in pictures]
    sources = with_frames(find_pictures(given, out, say), given, say, passed_over=annotations is not None)
    if not sources:
        raise DataError(f"{given[0]}: only videos, and all were passed over: give pictures")
    files = {name: file_of(each) for name, each in sources.items()}
    found = [Path(name) for name in files]
    opened = stamp(checkpoint)  # before it is read: it may be replaced meanwhile
    detector = _open(checkpoint, device, precision)
    ids, category_ids = list(range(1, len(files) + 1)), detector.category_ids
    if annotations is not None:
        ids, category_ids = known_ids(annotations, found, detector.classes)
    numbers = dict(zip(files, ids, strict=True))
    drawings = {name: out / drawn for name, drawn in zip(files, drawing_names(found), strict=True)}
    asked = (
        (extracts.LABELS, save_txt, extracts.write_labels),
        (extracts.CROPS, crop, extracts.write_crops),
    )
    if taken := {PREDICTIONS, FAILED, UNFINISHED, LOCK} & {name.parts[0] for name in found}:
        raise GhmdetError(
            f"{min(taken)}: a folder of pictures has the name of a file that is written into {out}: rename it"
        )
    extracts.check(out, found, [folder for folder, so, _ in asked if so], detector.classes)
    made = {
        "checkpoint": [str(checkpoint.resolve()), opened],
        "options": [threshold, detector.device.type, detector.device.precision, category_ids],
    }
    about = {
        "images": [
            {"id": number, "file_name": name}
            | ({"frame": each.number} if isinstance(each := sources[name], Frame) else {})
            for name, number in numbers.items()
        ],
        "categories": [
            {"id": i, "name": name} for i, name in zip(category_ids, detector.classes, strict=True)
        ],
    }
    failed: dict[str, str] = {}
    with hold(out):
        for folder, _, _ in asked:
            if extracts.remove(out / folder):
                say(f"{out / folder} of an earlier predict is removed")
        old = earlier_drawings(out, set(drawings.values()))
        with Unfinished(out / UNFINISHED, made, files, drawings) as work:
            if removed := remove_drawings(out, set(old) - {drawings[name] for name in work.lines}):
                said = many(removed, "drawing of an earlier predict is/drawings of an earlier predict are")
                say(f"{said} removed from {out}")
            if work.lines:
                say(f"{len(work.lines)} of {many(len(files), 'picture')} are done already")
            todo = {name: each for name, each in sources.items() if name not in work.lines}
            with counting("pictures", len(todo)) as advance:
                for name, seen in look(detector, todo, batch_size, say):
                    advance(1)
                    if isinstance(seen, DataError):
                        failed[name] = str(seen)
                        continue
                    shown = runtime.above(threshold, seen.found)
                    drawn = draw_detections(Image.fromarray(seen.picture), **shown, classes=detector.classes)
                    save_jpeg(drawn, drawings[name], quality=92, comment=DRAWN)
                    work.add(name, seen.stamp, coco_results(seen.in_file(), numbers[name], category_ids))
            finished = (one | {"image_id": numbers[name]} for name, rows in work.results() for one in rows)
            written = write_predictions(out / PREDICTIONS, finished, about)
            sure = sum(one["score"] >= threshold for _, rows in work.results() for one in rows)
            if failed:
                write_json(out / FAILED, failed)
            for folder, so, write in asked:
                if so:
                    surer = (
                        (name, [one for one in rows if one["score"] >= threshold])
                        for name, rows in work.results()
                    )
                    write(
                        out / folder, surer, sources, dict(zip(category_ids, detector.classes, strict=True))
                    )
    say(f"{many(written, 'box/boxes')}, {sure} of them scored at least {threshold:g} and drawn: {out}")
    for reason in failed.values():
        say(reason)
    if failed:
        others = (
            f"the results of the others are in {out}" if len(failed) < len(files) else "no other was given"
        )
        raise PartlyDone(f"{len(failed)} of {many(len(files), 'picture')} could not be read; {others}")
    return out / PREDICTIONS


class Seen(NamedTuple):
    """What a detector found in a picture.

    picture: uint8 [h, w, 3], as it was looked at. found: detections with boxes in its pixels. size: (height, width) of
    the upright picture in its file. stamp: that of its file before it was read.
    """

    picture: NDArray[np.uint8]
    found: dict[str, NDArray[Any]]
    size: tuple[int, int]
    stamp: Stamp | None

    def in_file(self) -> dict[str, NDArray[Any]]:
        """The detections with boxes in pixels of the file's picture."""
        y, x = (whole / side for whole, side in zip(self.size, self.picture.shape, strict=False))
        return self.found | {"boxes": self.found["boxes"] * np.array([x, y, x, y], np.float32)}


def look(
    detector: Detector | runtime.Detector,
    sources: Mapping[str, Source],
    batch_size: int,
    say: Callable[[str], None] = lambda line: None,
) -> Iterator[tuple[str, Seen | DataError]]:
    """What a detector finds in pictures, by their names, or why one cannot be used; so many at a time are in memory.

    One with a side above `MOST_SIDE` is shrunk to that. say: told at the end of each video that is damaged.
    """
    names, reader = list(sources), Reader()
    for start in range(0, len(names), batch_size):
        batch: dict[str, tuple[NDArray[np.uint8], tuple[int, int]] | DataError] = {}
        stamps = {name: stamp(file_of(sources[name])) for name in names[start : start + batch_size]}
        for name in stamps:
            try:
                if read := reader.read(sources[name], MOST_SIDE):
                    batch[name] = read
            except DataError as error:
                batch[name] = error
        found = iter(_detect(detector, [one[0] for one in batch.values() if not isinstance(one, DataError)]))
        for name, one in batch.items():
            if isinstance(one, DataError):
                yield name, one
            elif isinstance(there := next(found), Exception):
                reason = f"{type(there).__name__}: {str(there).partition(chr(10))[0]}"
                yield name, DataError(f"{sources[name]}: cannot be looked at ({reason}): leave it out")
            else:
                yield name, Seen(one[0], there, one[1], stamps[name])
    for video in reader.damaged.keys() | reader.absent.keys():
        damaged, absent = reader.damaged[video], reader.absent[video]
        if damaged or absent:
            say(f"{video}: frames that are damaged but were looked at: {damaged}; not decoded: {absent}")


def _open(checkpoint: Path, device: str, precision: str) -> Detector | runtime.Detector:
    """The detector in a checkpoint, or in an exported file without importing PyTorch."""
    if checkpoint.suffix.lower() != ".onnx":
        from ghmdet.engine.detect import Detector

        return Detector.load(checkpoint, device=device, precision=precision)
    detector = runtime.Detector(checkpoint, device=device).must_detect()
    if precision not in ("auto", made := detector.device.precision):
        raise GhmdetError(f"--precision {precision}: {checkpoint} is {made}: leave the option out")
    return detector


def _detect(
    detector: Detector | runtime.Detector, pictures: Sequence[NDArray[np.uint8]]
) -> list[dict[str, NDArray[Any]] | Exception]:
    """The detections of each picture; where a batch fails each picture is looked at alone, to know which it was."""
    try:
        found = detector.predict(pictures, threshold=0)
        return [{key: np.asarray(value) for key, value in one.items()} for one in found]
    except Exception as error:  # memory, or whatever the network tripped over
        if len(pictures) == 1:
            return [error]
        return [one for picture in pictures for one in _detect(detector, [picture])]


def find_pictures(
    paths: Sequence[Path], out: Path, say: Callable[[str], None] = lambda line: None
) -> dict[Path, Path]:
    """Where each picture is, by its name relative to the folder that holds all that were given.

    Each once, a video too: those at `paths` or that fit a pattern there, and those in folders there and below, in the
    order of their names; none of `out`. A path where nothing is counts as a picture if others are there. What a pattern
    fits that is no picture, and holds none, is passed over. What is passed over in a folder and may be a picture all
    the same (hidden, a pipe, of an ending that Pillow does not read) is said.

    Raises:
        DataError: no path, nothing at any of them, or a folder without a picture.
        GhmdetError: `out` holds the pictures, which would be overwritten.
    """
    if not paths:
        raise DataError("no picture is given: name pictures, or a folder of them")
    if address := next((path for path in paths if path.parts[:1] in (("http:",), ("https:",))), None):
        raise DataError(f"{address}: an address, and nothing is fetched: download it and give the file")
    fitting = {one: path for path in paths for one in _matching(path)}
    if not any(os.path.lexists(path) for path in fitting):
        raise DataError(f"{next(iter(fitting))}: no such picture or folder")
    own, found, folders = Path(os.path.realpath(out)), dict[Path, Path](), list[Path]()
    useless = set(fitting.values())
    for path, given in fitting.items():
        is_folder = os.path.isdir(path)  # noqa: PTH112 - a name too long for a disk is none
        folder, by_pattern = path if is_folder else path.parent, path != given
        tree = Tree(path)
        files = [Path(file) for file in tree.walk(str(path))] if is_folder else [path]
        if is_folder:
            unread = [str(file) for file in files if file.suffix.lower() in UNREAD]
            hidden = [
                one for one in tree.hidden(EXTENSIONS) if not Path(os.path.realpath(one)).is_relative_to(own)
            ]
            for problem in tree.problems({UNOPENED: unread, HIDDEN: hidden}):
                say(str(problem))
        if is_folder or by_pattern:
            files = [file for file in files if file.suffix.lower() in EXTENSIONS | VIDEOS]
        if Path(os.path.realpath(folder)).is_relative_to(own) and not by_pattern:
            raise GhmdetError(
                f"--out {out} holds the pictures themselves, which would be overwritten: give another folder"
            )
        files = [file for file in files if not Path(os.path.realpath(file)).is_relative_to(own)]
        if files:
            useless.discard(given)
            folders.append(folder)
        elif not by_pattern:
            kinds = ".jpg, .png, .tif, .webp and what else Pillow reads, or videos"
            raise DataError(f"{path}: no pictures here ({kinds}): give a folder of some")
        found = {_upright(file): file for file in files} | found
    if useless:
        raise DataError(f"{min(useless)}: no picture outside --out {out} fits this pattern: correct it")
    tops = {_upright(folder) for folder in folders}
    tops = {top for top in tops if tops.isdisjoint(top.parents)}
    root = Path(os.path.commonpath(tops))
    if root != root.parent or root in tops:
        return {place.relative_to(root): found[place] for place in sorted(found)}
    top_of = {place: next(top for top in tops if place.is_relative_to(top)) for place in found}
    for length in count(1):  # only the whole file system holds all
        ends = {top: Path(*top.parts[1:][-length:]) for top in tops}
        names = {ends[top] / place.relative_to(top): found[place] for place, top in top_of.items()}
        if len({*ends.values()}) == len(tops) and len(names) == len(found):
            break
    return {name: names[name] for name in sorted(names)}


def _matching(path: Path) -> list[Path]:
    """The path, or what is there of a pattern, which a shell leaves alone between quotes."""
    if os.path.lexists(path) or not has_magic(str(path)):
        return [path]
    found = [Path(one) for one in fitting(str(path))]
    if not found:
        raise DataError(f"{path}: nothing fits this pattern: correct it")
    return found


def _upright(path: Path) -> Path:
    """The absolute path without `..`, which would lead a drawing out of its folder; links keep their names."""
    return Path(os.path.normpath(path.absolute()))


def drawing_names(names: Sequence[Path]) -> list[Path]:
    """Names for the drawings of pictures, no two alike: a JPEG keeps its own, others get `.jpg` added.

    It is added once more where a picture has that name. One that is too long for a disk then is cut.

    >>> [name.as_posix() for name in drawing_names([Path("a.png"), Path("a.png.jpg"), Path("b/c.JPEG")])]
    ['a.png.jpg.jpg', 'a.png.jpg', 'b/c.JPEG']
    """
    taken = {parent for name in names for parent in name.parents} | set(names)
    drawings = []
    for name in names:
        drawing = name
        while drawing.suffix.lower() not in JPEG or (drawing != name and drawing in taken):
            drawing = drawing.with_name(f"{drawing.name}.jpg")
        drawing = drawing.with_name(extracts.short(drawing.name, name.name, ".jpg"))
        taken.add(drawing)
        drawings.append(drawing)
    return drawings


def earlier_drawings(out: Path, drawings: Set[Path]) -> list[Path]:
    """The drawings in `out` that an earlier predict left there, and not one into a folder below.

    Raises:
        GhmdetError: there is a file that no predict drew, or another one, where one of `drawings` would be.
    """
    there, others = list[Path](), list[Path]()
    for place, _, names in os.walk(out):
        folder = Path(place)
        if folder != out and {PREDICTIONS, UNFINISHED} & {*names}:
            others.append(folder)
        files = (folder / name for name in names if Path(name).suffix.lower() in JPEG)
        there += [file for file in files if file.is_file()]
    own = (file for file in there if not any(file.is_relative_to(other) for other in others))
    old = [file for file in own if _is_drawing(file)]
    if strangers := set(there) & drawings - set(old):
        raise GhmdetError(
            f"{min(strangers)}: would be overwritten, and is no drawing of an earlier `ghmdet predict` into {out}: give"
            " another --out"
        )
    return old


def remove_drawings(out: Path, old: Set[Path]) -> int:
    """Remove `old` drawings in `out`, with what else an earlier predict left; how many drawings that was."""
    for name in (PREDICTIONS, FAILED):
        (out / name).unlink(missing_ok=True)
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
    told = [problem for problem in truth.problems if problem.severity == "error"]
    for image_id, image in truth.images.items():
        if image_id in truth.left_out:
            continue
        path = Path(str(image.get("file_name")))
        images.setdefault(path, []).append(image_id)
        images.setdefault(path.name, []).append(image_id)
    ids = [images.get(name) or images.get(name.name, []) for name in names]
    for name, found in zip(names, ids, strict=True):
        if len(found) != 1:
            what, mend = f"{len(found)} images", "give the folder that the file names begin at"
            if not found:
                what, mend = "no image", "add it there, or leave the picture out"
                its = re.compile(rf"['/\\]{re.escape(name.name)}'")
                for problem in islice((one for one in told if its.search(f"{one.record} {one.mend}")), 1):
                    mend += f" (not taken: {problem.record}, {problem.kind} {problem.value}: {problem.mend})"
            raise DataError(f"{annotations}: has {what} of file name {name.name}, wanted for {name}: {mend}")
    categories = {label: category_id for category_id, label in truth.categories.items()}
    for label in classes:
        if label not in categories:
            there = ", ".join(categories)
            raise DataError(
                f"{annotations}: has no category '{label}', which the detector finds; it has {there}:"
                " give annotations of its classes"
            )
    own = dict(zip((found[0] for found in ids), names, strict=True))
    for (image_id, *_), name in zip(ids, names, strict=True):
        if own[image_id] != name:
            raise DataError(
                f"{annotations}: its image {image_id} is wanted for {name} and for {own[image_id]}:"
                " leave one out"
            )
    return [found[0] for found in ids], tuple(categories[label] for label in classes)
