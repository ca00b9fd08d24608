"""A long-tailed set from another: chosen classes keep a share of their boxes, and nothing in sight loses its label."""

import dataclasses
import json
import shutil
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import compress
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor
from torchvision.transforms.v2.functional import to_pil_image

from ghmdet.data.images import load_image, require_apart, require_images
from ghmdet.data.make.folder import new_set, write_annotations
from ghmdet.data.read import DataSet, read_data
from ghmdet.data.records import DetectionData, Records
from ghmdet.errors import DataError, GhmdetError, unknown_name
from ghmdet.files import errors_name, write_atomic
from ghmdet.progress import counting
from ghmdet.words import many

MARGIN = 0.05  # of the box's longer side: objects stick out of their boxes a little
ERASABLE = 0.85  # of a box's area: what belongs to other objects must stay as it is
MARKER = "thinned.json"

How = Literal["images", "erase"]
Mask = NDArray[np.bool_]


def thin(
    data: Path,
    out: Path,
    /,
    *,
    keep: list[str],
    how: How = "images",
    split: str = "train",
    seed: int = 0,
    say: Callable[[str], None] = print,
) -> None:
    """Make a long-tailed set of another: chosen classes keep a share of their boxes in one part.

    No visible object loses its label: pictures are left out, or objects are erased from them. Every class keeps at
    least one box, which may be more than its share. Of annotations, boxes with class, area and crowd are taken. OUT's
    thinned.json holds the numbers, the pictures left out and the boxes erased. The same arguments give the same bytes.

    Args:
        data: Folder of the data set, or its COCO .json or YOLO data.yaml.
        out: Folder of the new one, new or empty; one that `thin` made before is replaced at the end.
        keep: CLASS=SHARE, the share above 0 and up to 1; once for each class.
        how: images: leave pictures out, those first that hold many boxes to lose and few others. erase: fill in objects
            that hardly overlap others, drawn at random, then leave pictures out for what cannot be erased.
        split: Part to thin; the others are copied.
        seed: Decides between objects, and between pictures that are equally good.
        say: Takes the table.

    Raises:
        GhmdetError: an unknown class, a share or a seed out of range.
        DataError: a set that cannot be read, a picture that is missing, or an `out` that holds something else.
    """
    shares = _shares(keep)
    if seed < 0:
        raise GhmdetError(f"seed {seed}: give a number of at least 0")
    if data.resolve().is_relative_to(out.resolve()):
        raise DataError(f"{out}: is the data set to be thinned: give another folder")
    part = dataclasses.replace(read_data(data, split), split=split)
    targets, source = _targets(part, shares), DataSet(data)
    others = [source.read(other, part.classes) for other in source.others(source.find(split))]
    for each in (part, *others):
        require_images(each)
    require_apart(out, part)

    random, records = np.random.default_rng(seed), part.records
    gone = _no_box(records) if how == "images" else _choose_erased(records, targets, random)
    counts = _counts(part, ~gone & ~records.crowd)
    stays = choose_pictures(counts, targets, random)
    gone &= np.repeat(stays, np.diff(records.offsets))
    boxes = zip(part.boxes_per_class().items(), counts[stays].sum(0).tolist(), strict=True)
    told = {
        "made by": "ghmdet data thin",
        "data": str(data),
        "seed": seed,
        "split": split,
        "how": how,
        "keep": shares,
        "pictures": (len(records), int(stays.sum())),
        "boxes": {name: (before, after) for (name, before), after in boxes},
        "erased": int(gone.sum()),
        "carried_over": {each.split: len(each.records) for each in others},
    }
    with new_set(out, MARKER, "data thin") as folder, counting("pictures", None) as advance:
        for each in others:
            _write(folder, each, np.ones(len(each.records), dtype=bool), _no_box(each.records), advance)
        changed = _write(folder, part, stays, gone, advance)
        write_atomic(folder / MARKER, json.dumps(told | changed, indent=1) + "\n")
    say(f"{out}, {_table(told)}")


def _shares(keep: Sequence[str]) -> dict[str, float]:
    """The shares of classes that are written as CLASS=SHARE."""
    shares: dict[str, float] = {}
    for each in keep:
        name, _, share = each.rpartition("=")
        if name in shares:
            raise GhmdetError(f"--keep {each}: class '{name}' is there twice: give one share")
        try:
            shares[name] = float(share) if name else float("none")
        except ValueError:
            raise GhmdetError(f"--keep {each}: give CLASS=SHARE, as in --keep car=0.1") from None
    return shares


def _table(told: Mapping[str, Any]) -> str:
    """What thinned.json tells, as the table to print."""
    width, (before, after) = max(len("class"), *map(len, told["boxes"])), told["pictures"]
    lines = [
        f"{told['split']}: {after} of {many(before, 'picture')}, {many(told['erased'], 'object')} erased",
        f"{'class':{width}}{'asked':>8}{'before':>8}{'after':>8}{'kept':>8}",
    ]
    for name, (had, has) in told["boxes"].items():
        asked = f"{told['keep'][name]:.1%}" if name in told["keep"] else ""
        lines.append(f"{name:{width}}{asked:>8}{had:8}{has:8}{has / had if had else 1:8.1%}")
    gone = ", ".join(
        f"{many(had - has, 'box/boxes')} of {name}"
        for name, (had, has) in told["boxes"].items()
        if has < had and name not in told["keep"]
    )
    if gone:
        other = ": --how erase takes objects out of their pictures instead" if told["how"] == "images" else ""
        lines.append(f"Not asked for, but gone with the pictures left out: {gone}{other}")
    if told["carried_over"]:
        parts = ", ".join(
            f"{name} ({many(count, 'picture')})" for name, count in told["carried_over"].items()
        )
        lines.append(f"As they were: {parts}")
    return "\n".join(lines)


def choose_pictures(
    counts: NDArray[np.int64], targets: Mapping[int, int], random: np.random.Generator
) -> Mask:
    """Which pictures stay so that no class k of `targets` has more than `targets[k]` boxes: [N] bool.

    counts: [N, K] boxes of each class in each picture. Pictures go in the order of what they cost: the shares of the
    other classes over those of the classes with too many boxes that go with them; `random` decides among equals. First
    go those that leave all `targets` enough, then those that leave some too few. No class loses its last box, and at
    the end every picture comes back that fits after all.
    """
    has, enough = counts.sum(0), np.ones(counts.shape[1], dtype=np.int64)
    limits = np.full_like(enough, np.iinfo(np.int64).max)
    enough[list(targets)] = limits[list(targets)] = list(targets.values())
    shares, stays, dropped = counts / has.clip(1), np.ones(len(counts), dtype=bool), []
    for least in (enough, np.ones_like(enough)):
        excess = has > limits
        gain, cost = shares[:, excess].sum(1), shares[:, ~excess].sum(1)
        rows = random.permutation(np.flatnonzero(stays & (gain > 0)))
        for row in rows[np.argsort(cost[rows] / gain[rows], kind="stable")].tolist():
            own, left = counts[row] > 0, has - counts[row]
            if (has > limits)[own].any() and (left >= least)[own].all():
                stays[row], has = False, left
                dropped.append(row)
    for row in reversed(dropped):
        if (has + counts[row] <= limits).all():
            stays[row], has = True, has + counts[row]
    return stays


def _targets(part: DetectionData, keep: Mapping[str, float]) -> dict[int, int]:
    """The number of boxes that each class to be thinned should have."""
    if not keep:
        raise GhmdetError("no class to thin: give --keep CLASS=SHARE, several times for several classes")
    boxes, targets = part.boxes_per_class(), {}
    for name, share in keep.items():
        if name not in boxes:
            raise unknown_name("class", name, boxes)
        if not 0 < share <= 1:
            raise GhmdetError(f"share {share} of class '{name}': give a number above 0 and up to 1")
        if not boxes[name]:
            raise DataError(f"{part.root}: class '{name}' has no box in split {part.split}: nothing to thin")
        targets[part.classes.index(name)] = max(1, round(share * boxes[name]))
    return targets


def _no_box(records: Records) -> Mask:
    return np.zeros(len(records.labels), dtype=bool)


def _counts(part: DetectionData, boxes: Mask) -> NDArray[np.int64]:
    """The boxes of a mask in each picture and class: [N, K]."""
    records, shape = part.records, (len(part.records), len(part.classes))
    picture = np.repeat(np.arange(len(records)), np.diff(records.offsets))
    return np.bincount(picture[boxes] * shape[1] + records.labels[boxes], minlength=np.prod(shape)).reshape(
        shape
    )


def _choose_erased(records: Records, targets: Mapping[int, int], random: np.random.Generator) -> Mask:
    """Which boxes to erase: drawn from those that can be, as many of each class as are too many."""
    possible, gone = (_no_box(records) for _ in range(2))
    for size, start, end in zip(records.sizes.tolist(), records.offsets, records.offsets[1:], strict=False):
        if np.isin(records.labels[start:end], list(targets)).any():
            possible[start:end] = erasable(records.boxes[start:end], size)
    for label, target in targets.items():
        own = (records.labels == label) & ~records.crowd
        gone[random.permutation(np.flatnonzero(own & possible))[: own.sum() - target]] = True
    return gone


def _write(
    root: Path, part: DetectionData, stays: Mask, gone: Mask, progress: Callable[[int], None]
) -> dict[str, Any]:
    """Write the pictures that stay, without the boxes that are gone, and their annotations; returns what changed."""
    records, content = part.records, part.to_coco()
    sources = [Path(records.name(i)) for i in range(len(records))]
    stems = Counter(source.stem for source in sources)
    folder = root / "images" / part.split
    folder.mkdir(parents=True)
    erased = []
    for index in np.flatnonzero(stays).tolist():
        record, source = records[index], sources[index]
        own = gone[records.offsets[index] : records.offsets[index + 1]]
        name = source.name if stems[source.stem] == 1 else f"{index:07d}_{source.name}"
        if own.any():
            name = Path(name).with_suffix(".png").name
            picture = to_pil_image(erase(load_image(record), record.boxes[own], record.boxes[~own]))
            write_atomic(folder / name, partial(picture.save, format="PNG"))
            for label, box in zip(record.labels[own], record.boxes[own], strict=True):
                erased.append({"file_name": name, "class": part.classes[label], "corners": box.tolist()})
        else:
            with errors_name(folder / name):
                shutil.copyfile(record.path, folder / name)
        content["images"][index]["file_name"] = f"{part.split}/{name}"
        progress(1)
    left = np.repeat(stays, np.diff(records.offsets)) & ~gone
    content["images"] = list(compress(content["images"], stays))
    content["annotations"] = list(compress(content["annotations"], left))
    write_annotations(root, part.split, content)
    return {"left out": list(map(str, compress(sources, ~stays))), "erased boxes": erased}


def erasable(boxes: NDArray[np.float32], size: tuple[int, int]) -> NDArray[np.bool_]:
    """Which boxes can be erased: at least .85 of their area lies outside every other box's ellipse. [n] bool.

    What stays of the others would be too much to pass as background. boxes: [n, 4] xyxy pixels of a picture of `size`
    (width, height). A box's ellipse is the one that touches its four sides: objects seldom fill the corners.
    """
    ellipses = [_ellipse(box, size) for box in boxes]
    cover = np.zeros(size[::-1], dtype=np.int32)
    for window, inside in ellipses:
        cover[window] += inside
    others = [cover[window] - inside for window, inside in ellipses]
    return np.array([cells.size and (cells == 0).mean() >= ERASABLE for cells in others], dtype=bool)


def erase(image: Tensor, boxes: NDArray[np.float32], others: NDArray[np.float32]) -> Tensor:
    """The picture with the ground carried on over `boxes`, but for what lies in the ellipse of one of `others`.

    image: uint8 [3, h, w]. boxes, others: [n, 4] xyxy pixels. The ground is what lies in no box (all the rest of the
    picture where there is none), averaged over ever larger squares until each erased pixel has some: the push-pull
    of Gortler et al., The Lumigraph, 1996. Every other pixel stays as it is.
    """
    height, width = image.shape[1:]
    gone, kept, boxed = (np.zeros((height, width), dtype=bool) for _ in range(3))
    for box in boxes:
        gone[_ellipse(box, (width, height), MARGIN)[0]] = True
    for box in others:
        window, inside = _ellipse(box, (width, height))
        kept[window] |= inside
        boxed[window] = True
    gone &= ~kept
    ground = ~(gone | boxed)
    fill = _carried_on(image.float(), torch.from_numpy(ground if ground.any() else ~gone))
    return torch.where(torch.from_numpy(gone), fill.round().to(torch.uint8), image)


def _ellipse(
    box: NDArray[np.float32], size: tuple[int, int], margin: float = 0.0
) -> tuple[tuple[slice, slice], NDArray[np.bool_]]:
    """Rows and columns of the pixels that the box and its margin touch, and which of them lie in its ellipse."""
    x1, y1, x2, y2 = box.tolist()
    more = margin * max(x2 - x1, y2 - y1)
    window, squares = [], []
    for low, high, limit in ((y1, y2, size[1]), (x1, x2, size[0])):
        start, stop = max(0, int(np.floor(low - more))), min(limit, int(np.ceil(high + more)))
        window.append(slice(start, stop))
        squares.append(((np.arange(start, stop) + 0.5 - (low + high) / 2) / ((high - low) / 2)) ** 2)
    return (window[0], window[1]), squares[0][:, None] + squares[1] <= 1


def _carried_on(image: Tensor, known: Tensor) -> Tensor:
    # image [3, h, w] float, known [h, w]: the image where known, elsewhere what a picture of half the size has
    if known.all() or not known.any():
        return image
    height, width = known.shape
    weight = known.to(image.dtype)[None]
    padded = F.pad(torch.cat((image * weight, weight))[None], (0, width % 2, 0, height % 2))
    summed = F.avg_pool2d(padded, 2)[0]
    share = summed[3]
    half = _carried_on(summed[:3] / share.clamp(min=1e-12), share > 0)
    whole = F.interpolate(half[None], size=padded.shape[-2:], mode="bilinear", align_corners=False)[0]
    return torch.where(known, image, whole[:, :height, :width])
