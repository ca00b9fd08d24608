"""Wrong labels on purpose: a known share of a part's boxes, to see what a loss or an audit makes of them."""

import json
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from ghmdet.data.images import require_images
from ghmdet.data.make.folder import new_set, write_annotations
from ghmdet.data.read import DataSet, read_data
from ghmdet.errors import DataError, GhmdetError, Range, unknown_name
from ghmdet.files import write_atomic
from ghmdet.words import many

MARKER = "spoiled.json"
TRIES = 50  # places looked at for a box on background
WRONG = "wrong_labels.json"
"""A row for each wrong label: its kind, annotation, picture, what is true and what is given (null: no such label)."""

Kind = Literal["class", "missing", "shifted", "spurious", "duplicate"]
KINDS: tuple[Kind, ...] = get_args(Kind)
Labels = list[dict[str, Any]]


def spoil(
    data: Path,
    out: Path,
    /,
    *,
    share: float,
    kinds: str = ",".join(KINDS),
    split: str = "train",
    seed: int = 0,
    say: Callable[[str], None] = print,
) -> None:
    """Make a set with a known share of wrong labels, to see what a loss makes of them.

    The pictures stay where they are; OUT gets COCO annotations that name them, and wrong_labels.json, which lists what
    was done. Each wrong box is of one of the `kinds`, drawn at random. The same arguments give the same bytes.

    Args:
        data: Folder of the data set, or its COCO .json or YOLO data.yaml.
        out: Folder of the new one, new or empty; one that `spoil` made before is replaced.
        share: Share of the boxes (crowds left out) that get a wrong label, from 0 to .9.
        kinds: What is wrong, with commas between: class: another class. missing: no label. shifted: moved by half of
            its sides. spurious: one more box of its size and class where least is labelled. duplicate: one more box on
            the same object, moved by up to 5 % of its sides.
        split: Part to spoil; the others keep their labels.
        seed: Decides which boxes, and how.
        say: Takes each line meant for the user.

    Raises:
        GhmdetError: a share, a kind or a seed out of range.
        DataError: a set that cannot be read, a picture that is missing, a single class of which no other can be drawn,
            or an `out` that holds something else.
    """
    Range(0.0, 0.9).check("share", share)
    Range(0, 2**32 - 1).check("seed", seed)
    given = kinds.split(",") if kinds else []
    if not given:
        raise GhmdetError(f"no kind of wrong label: give some of {', '.join(KINDS)}")
    for kind in given:
        if kind not in KINDS:
            raise unknown_name("kind of wrong label", kind, KINDS)
    chosen = [kind for kind in KINDS if kind in given]
    if data.resolve().is_relative_to(out.resolve()):
        raise DataError(f"{out}: holds the data set to be spoiled: give another folder")
    part, source = read_data(data, split), DataSet(data)
    if "class" in chosen and len(part.classes) < 2:
        raise DataError(
            f"{data}: has one class, so no label can be given another: give --kinds {','.join(KINDS[1:])}"
        )
    others = [source.read(name, part.classes) for name in source.others(part.split)]
    for each in (part, *others):
        require_images(each)
    content = part.to_coco(absolute=True)
    labels, wrong = spoil_labels(
        content["annotations"],
        content["images"],
        part.category_ids,
        share,
        chosen,
        np.random.default_rng(seed),
    )
    told = {"made by": "ghmdet data spoil", "data": str(data), "split": part.split, "share": share}
    with new_set(out, MARKER, "data spoil") as folder:
        for each in others:
            write_annotations(folder, each.split, each.to_coco(absolute=True))
        write_annotations(folder, part.split, content | {"annotations": labels})
        for file, written in ((MARKER, told | {"kinds": chosen, "seed": seed}), (WRONG, wrong)):
            write_atomic(folder / file, json.dumps(written, indent=1) + "\n")
    counts = Counter(one["kind"] for one in wrong)
    by_kind = ", ".join(f"{kind} {counts[kind]}" for kind in chosen)
    for each in (part, *others):
        say(each.describe())
    say(f"{out}: {many(len(wrong), 'label')} of {part.split} made wrong ({by_kind}), listed in {out / WRONG}")


def spoil_labels(
    labels: Labels,
    images: Labels,
    category_ids: Sequence[int],
    share: float,
    kinds: Sequence[Kind],
    random: np.random.Generator,
) -> tuple[Labels, Labels]:
    """COCO annotations with a share of wrong ones made, and the rows of `WRONG`."""
    picture = {image["id"]: image for image in images}
    free = max((label["id"] for label in labels), default=0) + 1
    of_picture: dict[int, list[list[float]]] = {}
    for label in labels:
        of_picture.setdefault(label["image_id"], []).append(label["bbox"])
    sound = [i for i, label in enumerate(labels) if not label["iscrowd"]]
    chosen = {sound[i] for i in random.permutation(len(sound))[: round(share * len(sound))].tolist()}
    kept, wrong = Labels(), Labels()
    for i, label in enumerate(labels):
        if i not in chosen:
            kept.append(label)
            continue
        kind, image = kinds[int(random.integers(len(kinds)))], picture[label["image_id"]]
        size = image["width"], image["height"]
        true: dict[str, Any] | None = label
        given: dict[str, Any] | None = None
        if kind == "class":
            others = [k for k in category_ids if k != label["category_id"]]
            given = label | {"category_id": int(random.choice(others))}
        elif kind == "shifted":
            given = label | box_of(_shifted(label["bbox"], size, random))
        elif kind != "missing":
            place = _on_background if kind == "spurious" else _beside
            bbox = place(label["bbox"], size, of_picture[label["image_id"]], random)
            true, given = None, label | box_of(bbox) | {"id": free}
            kept.append(label)
            free += 1
        told = {"kind": kind, "annotation_id": (given or label)["id"], "image_id": label["image_id"]}
        both = {"true": true, "given": given}
        said = {
            name: one and {key: one[key] for key in ("category_id", "bbox")} for name, one in both.items()
        }
        wrong.append(told | {"file_name": image["file_name"]} | said)
        if given:
            kept.append(given)
    return kept, wrong


def box_of(bbox: list[float]) -> dict[str, Any]:
    """A COCO annotation's `bbox`, to a tenth of a pixel, and its `area`."""
    bbox = [round(v, 1) for v in bbox]
    return {"bbox": bbox, "area": round(bbox[2] * bbox[3], 2)}


def _shifted(bbox: list[float], size: tuple[int, int], random: np.random.Generator) -> list[float]:
    """The box moved by 40 to 60 % of its sides towards the picture's roomier end, and cut there."""
    start, side = np.array(bbox[:2]), np.array(bbox[2:])
    by = random.uniform(0.4, 0.6, 2) * side * np.where(start + side / 2 < np.array(size) / 2, 1, -1)
    low, high = np.maximum(start + by, 0), np.minimum(start + side + by, size)
    return [*low.tolist(), *(high - low).tolist()]


def _beside(
    bbox: list[float], size: tuple[int, int], boxes: list[list[float]], random: np.random.Generator
) -> list[float]:
    """The box with each corner moved by up to 5 % of its sides, cut to the picture."""
    start, side = np.array(bbox[:2]), np.array(bbox[2:])
    low = np.maximum(start + random.uniform(-0.05, 0.05, 2) * side, 0)
    high = np.minimum(start + side + random.uniform(-0.05, 0.05, 2) * side, size)
    return [*low.tolist(), *(high - low).tolist()]


def _on_background(
    bbox: list[float], size: tuple[int, int], boxes: list[list[float]], random: np.random.Generator
) -> list[float]:
    """A box of the same sides where, of `TRIES` places, it shares least of its area with one of the `boxes`."""
    side, others = np.array(bbox[2:]), np.array(boxes)
    low = random.uniform(0, 1, (TRIES, 1, 2)) * (np.array(size) - side)
    across = np.minimum(low + side, others[:, :2] + others[:, 2:]) - np.maximum(low, others[:, :2])
    best = int(across.clip(min=0).prod(2).max(1).argmin())
    return [*low[best, 0].tolist(), *side.tolist()]
