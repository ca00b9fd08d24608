"""A long-tailed data set from another one: chosen classes keep a share of their boxes, honestly."""

from __future__ import annotations

import io
import json
import os
import shutil
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ghmdet.data.images import load_image, require_images
from ghmdet.data.make.erase import erasable, erase
from ghmdet.data.read import FORMATS, detect_format, find_split, read_data
from ghmdet.data.records import DetectionData, Records
from ghmdet.errors import DataError, GhmdetError, unknown_name
from ghmdet.files import write_atomic

MARKER = "thinned.json"
NOTABLE_LOSS = 0.2  # of a class that was not to be thinned

How = Literal["images", "erase"]
Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Thinned:
    """What `thin` wrote; str() is the table to print."""

    root: Path
    split: str
    how: How
    keep: dict[str, float]
    pictures: tuple[int, int]
    """Of the thinned part: before, after."""
    boxes: dict[str, tuple[int, int]]
    """Of each class in the thinned part: before, after."""
    erased: int
    carried_over: dict[str, int]
    """Pictures of the parts that are as they were."""

    def __str__(self) -> str:
        width = max(len("class"), *map(len, self.boxes))
        before, after = self.pictures
        lines = [
            f"{self.root}, {self.split}: {after} of {before} pictures, {self.erased} objects erased",
            f"{'class':{width}}{'asked':>8}{'before':>8}{'after':>8}{'kept':>8}",
        ]
        lost = []
        for name, (had, has) in self.boxes.items():
            asked = f"{self.keep[name]:.1%}" if name in self.keep else ""
            share = has / had if had else 1.0
            lines.append(f"{name:{width}}{asked:>8}{had:8}{has:8}{share:8.1%}")
            if name not in self.keep and 1 - share > NOTABLE_LOSS:
                lost.append(f"{name} {1 - share:.0%}")
        if lost:
            other = " --how erase keeps more of them." if self.how == "images" else ""
            lines.append(f"Lost with the pictures that were left out: {', '.join(lost)}.{other}")
        if self.carried_over:
            parts = ", ".join(f"{name} ({count} pictures)" for name, count in self.carried_over.items())
            lines.append(f"As they were: {parts}")
        return "\n".join(lines)


def thin(
    data: Path | str,
    out: Path | str,
    keep: Mapping[str, float],
    *,
    how: How = "images",
    split: str = "train",
    seed: int = 0,
    progress: Callable[[int], None] = lambda done: None,
) -> Thinned:
    """Write a COCO data set in which the classes of `keep` have that share of their boxes in one split.

    No object that stays visible loses its label. how="images" leaves pictures out, those first that hold many boxes to
    lose and few others. how="erase" first erases objects that hardly overlap others (drawn at random) from their
    pictures, and leaves out pictures for what cannot be erased. Every class keeps at least one box, which may be more
    than its share. The other splits are copied; of annotations, boxes with class, area and crowd are taken.

    data: a set that `read_data` reads. out: a new or empty folder, or one that `thin` made before, which is replaced in
    one step at the end. keep: class to share in (0, 1]. progress: called with the number of pictures just written. The
    same arguments give the same bytes.

    Raises GhmdetError for an unknown class, a share or a seed out of range; DataError for a set that cannot be read, a
    picture that is missing, or an `out` that holds something else.
    """
    if seed < 0:
        raise GhmdetError(f"seed {seed}: give a number of at least 0")
    data, out = Path(data), Path(out)
    part = read_data(data, split)
    part = DetectionData(**{**vars(part), "split": split})
    others = _other_splits(data, split, part)
    targets = _targets(part, keep)
    _refuse_what_is_not_ours(out, data)
    for each in (part, *others):
        require_images(each)

    random = np.random.default_rng(seed)
    gone = _choose_erased(part.records, targets, random) if how == "erase" else _none(part.records)
    counts = _counts(part, ~gone & ~part.records.crowd)
    stays = choose_pictures(counts, targets, random)
    gone &= np.repeat(stays, np.diff(part.records.offsets))
    before = _counts(part, ~part.records.crowd).sum(0).tolist()
    after = counts[stays].sum(0).tolist()
    summary = Thinned(
        root=out,
        split=split,
        how=how,
        keep=dict(keep),
        pictures=(len(part.records), int(stays.sum())),
        boxes=dict(zip(part.classes, zip(before, after, strict=True), strict=True)),
        erased=int(gone.sum()),
        carried_over={each.split: len(each.records) for each in others},
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    building = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    try:
        for each in others:
            _write(building, each, np.ones(len(each.records), dtype=bool), _none(each.records), progress)
        changes = _write(building, part, stays, gone, progress)
        made = {"made by": "ghmdet data thin", "data": str(data), "seed": seed}
        told = {name: value for name, value in vars(summary).items() if name != "root"}
        write_atomic(building / MARKER, json.dumps(made | told | changes, indent=1) + "\n")
        _put_in_place(building, out)
    finally:
        shutil.rmtree(building, ignore_errors=True)
    return summary


def choose_pictures(
    counts: NDArray[np.int64], targets: Mapping[int, int], random: np.random.Generator
) -> Mask:
    """Which pictures stay so that no class k of `targets` has more than `targets[k]` boxes: [N] bool.

    counts: [N, K] boxes of each class in each picture. Greedy: the picture goes first whose boxes that are to go, as
    shares of their classes, stand against the smallest shares of all others that go with it; `random` decides among
    equals. No class loses its last box, and at the end every picture comes back that fits after all.
    """
    totals = counts.sum(0).clip(1)
    limits = np.array([targets.get(k, np.iinfo(np.int64).max) for k in range(counts.shape[1])])
    order = random.permutation(len(counts))
    stays, dropped = np.ones(len(counts), dtype=bool), []
    has = counts.sum(0)
    while True:
        excess = (has - limits).clip(0)
        rows = order[stays[order]]
        wanted = np.minimum(counts[rows], excess)
        gain = (wanted / totals).sum(1)
        loss = ((counts[rows] - wanted) / totals).sum(1)
        empties = ((counts[rows] >= has) & (counts[rows] > 0)).any(1)
        possible = (gain > 0) & ~empties
        if not possible.any():
            break
        rows, ratio = rows[possible], loss[possible] / gain[possible]
        rows = rows[np.argsort(ratio, kind="stable")]
        together = counts[rows].cumsum(0)
        active = excess > 0
        fit = (together[:, active] <= excess[active]).all(1) & ((together < has) | (has == 0)).all(1)
        rows = rows[: max(1, int(fit.sum()))]
        stays[rows] = False
        dropped += rows.tolist()
        has = has - counts[rows].sum(0)
    for row in reversed(dropped):
        if (has + counts[row] <= limits).all():
            stays[row] = True
            has = has + counts[row]
    return stays


def _targets(part: DetectionData, keep: Mapping[str, float]) -> dict[int, int]:
    """The number of boxes that each class to be thinned should have."""
    if not keep:
        raise GhmdetError("no class to thin: give --keep CLASS=SHARE, several times for several classes")
    boxes = part.boxes_per_class()
    targets = {}
    for name, share in keep.items():
        if name not in boxes:
            raise unknown_name("class", name, boxes)
        if not 0 < share <= 1:
            raise GhmdetError(f"share {share} of class '{name}': give a number above 0 and up to 1")
        if not boxes[name]:
            raise DataError(f"{part.root}: class '{name}' has no box in split {part.split}: nothing to thin")
        targets[part.classes.index(name)] = max(1, round(share * boxes[name]))
    return targets


def _other_splits(data: Path, split: str, part: DetectionData) -> list[DetectionData]:
    """The other splits, but for VOC's trainval, which would hold again what is thinned away."""
    name, splits = detect_format(data)
    own, _ = find_split(data, splits, split)
    read = FORMATS[name].read_split
    return [
        read(data, other, source, part.classes)
        for other, source in splits.items()
        if other not in (own, "trainval")
    ]


def _none(records: Records) -> Mask:
    return np.zeros(len(records.labels), dtype=bool)


def _counts(part: DetectionData, boxes: Mask) -> NDArray[np.int64]:
    """The boxes of a mask in each picture and class: [N, K]."""
    records, classes = part.records, len(part.classes)
    picture = np.repeat(np.arange(len(records)), np.diff(records.offsets))
    cell = picture[boxes] * classes + records.labels[boxes]
    return np.bincount(cell, minlength=len(records) * classes).reshape(len(records), classes)


def _choose_erased(records: Records, targets: Mapping[int, int], random: np.random.Generator) -> Mask:
    """Which boxes to erase: drawn from those that can be, as many of each class as are too many."""
    thinned = np.isin(records.labels, list(targets))
    possible = _none(records)
    for index, (start, end) in enumerate(zip(records.offsets, records.offsets[1:], strict=False)):
        if thinned[start:end].any():
            width, height = records.sizes[index].tolist()
            possible[start:end] = erasable(records.boxes[start:end], (width, height))
    gone = _none(records)
    for label, target in targets.items():
        own = (records.labels == label) & ~records.crowd
        gone[random.permutation(np.flatnonzero(own & possible))[: own.sum() - target]] = True
    return gone


def _refuse_what_is_not_ours(out: Path, data: Path) -> None:
    if out.exists() and not out.is_dir():
        raise DataError(f"{out}: is a file: give a folder to write the data set into")
    if out.resolve() == data.resolve():
        raise DataError(f"{out}: is the data set to be thinned: give another folder")
    found = {entry.name for entry in out.iterdir()} if out.is_dir() else set()
    strange = found - {MARKER, "annotations", "images"} if MARKER in found else found
    if strange:
        raise DataError(
            f"{out}: holds what 'data thin' did not write ({min(strange)}): give a new or an empty folder"
        )


def _write(
    root: Path, part: DetectionData, stays: Mask, gone: Mask, progress: Callable[[int], None]
) -> dict[str, Any]:
    """Write the pictures that stay, without the boxes that are gone, and their annotations; returns what changed."""
    records = part.records
    stems = Counter(Path(records.name(i)).stem for i in range(len(records)))
    folder = root / "images" / part.split
    folder.mkdir(parents=True)
    content = part.to_coco()
    erased = []
    for index, image in enumerate(content["images"]):
        if not stays[index]:
            continue
        source = Path(records.name(index))
        name = source.name if stems[source.stem] == 1 else f"{index:07d}_{source.name}"
        own = slice(records.offsets[index], records.offsets[index + 1])
        if gone[own].any():
            name = Path(name).with_suffix(".png").name
            _erase_into(folder / name, records, index, gone[own])
            for label, box in zip(records.labels[own][gone[own]], records.boxes[own][gone[own]], strict=True):
                erased.append({"file_name": name, "class": part.classes[label], "corners": box.tolist()})
        else:
            shutil.copyfile(records.root / source, folder / name)
        image["file_name"] = f"{part.split}/{name}"
        progress(1)
    boxes_stay = np.repeat(stays, np.diff(records.offsets)) & ~gone
    content["images"] = [image for image, here in zip(content["images"], stays, strict=True) if here]
    content["annotations"] = [
        box for box, here in zip(content["annotations"], boxes_stay, strict=True) if here
    ]
    text = json.dumps(content, separators=(",", ":")) + "\n"
    write_atomic(root / "annotations" / f"instances_{part.split}.json", text)
    left_out = [records.name(i) for i in np.flatnonzero(~stays).tolist()]
    return {"left out": left_out, "erased boxes": erased}


def _erase_into(path: Path, records: Records, index: int, gone: Mask) -> None:
    record = records[index]
    picture = erase(load_image(record), record.boxes[gone], record.boxes[~gone])
    buffer = io.BytesIO()
    Image.fromarray(picture.permute(1, 2, 0).numpy()).save(buffer, "PNG")
    path.write_bytes(buffer.getvalue())


def _put_in_place(building: Path, out: Path) -> None:
    """Give the finished folder its name, in place of an earlier one."""
    if not out.exists():
        building.replace(out)
        return
    earlier = building.with_suffix(".old")
    out.replace(earlier)
    building.replace(out)
    shutil.rmtree(earlier)
