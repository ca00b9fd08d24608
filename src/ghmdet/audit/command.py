"""`ghmdet audit`: what may be wrong with the labels of a data set, as tables and as a page to look at one by one."""

import csv
import hashlib
import io
import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext, suppress
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import IO, Annotated, Any

import numpy as np
from cyclopts import App, Parameter
from jinja2 import ChoiceLoader, PackageLoader
from PIL import Image
from torchvision.transforms.v2.functional import to_pil_image

from ghmdet.audit.folds import agreement, commands, judge_folds, plan, train_all
from ghmdet.audit.mend import mend
from ghmdet.audit.results import ap50, by_results, sample
from ghmdet.audit.suspicion import KINDS, Label, Suspicion, audit, judge_all, rank
from ghmdet.compare.arms import settings
from ghmdet.compare.plan import unlearnt
from ghmdet.data import DetectionData, read_data, require_images
from ghmdet.data.images import load_image, require_apart
from ghmdet.data.records import Record
from ghmdet.draw import save_jpeg, window_around
from ghmdet.engine.checkpoint import trained_on
from ghmdet.engine.detect import Detector
from ghmdet.engine.device import choose_device
from ghmdet.engine.run_folder import provenance, read_json, same_data
from ghmdet.engine.settings import FoldConfig
from ghmdet.errors import DataError, GhmdetError, PartlyDone, Range
from ghmdet.evaluation.matching import overlaps
from ghmdet.files import checkpoint_file, hold, write_atomic
from ghmdet.progress import counting
from ghmdet.report.advice import more_training
from ghmdet.report.summary import script_json, templates

SIDE = 420  # pixels of a crop
COLUMNS = (
    "id",
    "picture",
    "kind",
    "label",
    "class",
    "box",
    "new_class",
    "new_box",
    "score",
    "g",
    "gr",
    "likeliest",
)

app = App(name="audit")


@app.default
def write_audit(
    data: Path,
    /,
    *,
    out: Path,
    checkpoint: Path | None = None,
    results: Path | None = None,
    folds: int | None = None,
    split: str | None = None,
    review: int = 200,
    list_commands: Annotated[bool, Parameter(name="--list", negative=())] = False,
    config: Annotated[FoldConfig | None, Parameter(name="*")] = None,
    say: Callable[[str], None] = print,
) -> list[Suspicion]:
    """Find labels that may be wrong, and write a page to review them on.

    By default the split is cut into three folds, and each is judged by a detector that is trained on the other two.
    Interrupted, the same command continues. docs/audit.md says what is found and what the scores mean.

    Args:
        data: Folder of the data set, or a COCO annotations file.
        out: Folder to write: review.html, audit.csv, audit.json, suggestions.json, and the folds' runs.
        checkpoint: A detector that was trained on other pictures, in place of folds.
        results: Anyone's detections on the split, as COCO results with scores, in place of folds.
        folds: Parts that the split is cut into; by default 3.
        split: Part of the data set to judge; by default train, with a checkpoint that was trained on this data what it
            was validated on, and with results the one that has most of their pictures.
        review: Suspicions on the page, the likeliest; of each kind's own list as many.
        list_commands: Only print the training commands that can be run now, one a line, for other hosts; nothing when
            all are done.
        config: How the folds' detectors are trained; their trainings share a budget; judging comes after it.
        say: Takes each line meant for the user.

    Raises:
        GhmdetError: an option, a checkpoint or the data that cannot be used, or `out` holds something else.
        PartlyDone: after all is written: a fold's run came to nothing.
        KeyboardInterrupt: stopped by a signal; the run of the moment is saved.
    """
    Range(0, 100_000).check("review", review)
    config = config or FoldConfig()
    there = {each.name for each in out.iterdir() if not each.name.startswith(".")} if out.is_dir() else set()
    if there and not there & {"audit.json", "folds"}:  # those of an audit that has ended or begun
        raise GhmdetError(f"--out {out} holds something else: give a new folder")
    if sum(each is not None for each in (checkpoint, results, folds)) > 1:
        raise GhmdetError("give one of --checkpoint, --results and --folds")
    if (checkpoint or results) and (given := settings(config).keys() - {"device"}):
        raise GhmdetError(f"--{min(given).replace('_', '-')} is for training folds: nothing is trained here")
    if not list_commands:  # other hosts may have other devices
        choose_device(config.device)
    learnt, failed, judges = "", "", list[Path]()
    with nullcontext() if list_commands else hold(out):
        if checkpoint:
            checkpoint = checkpoint_file(checkpoint)
            how, judges = f"the detector {checkpoint}", [checkpoint.parent]
            part, found, agrees, learnt = _by_checkpoint(data, checkpoint, split, out, config.device, say)
        elif results:
            how = f"the detections {results}"
            part, detections = by_results(data, results, split, say)
            _tell(part, out, say)
            found, agrees = audit(detections, part), ap50(detections, part)
        else:
            aloud = (lambda line: None) if list_commands else say
            _tell(part := read_data(data, split or "train"), out, aloud)
            how = f"detectors of {folds or 3} folds, none of which learnt the labels it judges"
            runs = plan(part, out, folds or 3, config, aloud)
            if list_commands:
                for command in commands(runs):
                    say(command)
                return []
            train_all(runs, say)
            found, agrees = rank(judge_folds(runs, config.device), part), agreement(runs)
            failed, judges = unlearnt(runs), [run.out for run in runs]
        warnings = list(filter(None, [learnt, failed, too_weak(found, part, agrees, more_training(judges))]))
        about = {"data": str(data.absolute()), "judged_by": how, "learnt": bool(learnt), "AP50": agrees}
        write(out, part, found, about, review, warnings)
    first = [one for one in found if one.likeliest]
    counts = Counter(one.kind for one in first)
    say(f"{len(first)} suspicions: {', '.join(f'{kind} {counts[kind]}' for kind in KINDS)}")
    say(f"the judging detectors agree with the labels to AP50 {agrees:.2f}")
    for line in warnings:
        say(f"Warning: {line}")
    if found and not warnings:
        say(how_far(found, review))
    if found:
        say(f"to review the first {min(review, len(first))}, open {out / 'review.html'}")
    else:
        say("no label looks wrong")
    if failed:
        raise PartlyDone("this list says little of the labels: a fold came to nothing, for the reason above")
    return found


LITTLE = 0.3
WEAK = (
    "AP50 {:.2f} is too little to judge these labels by: most suspicions are the detector's own mistakes. Train"
    " longer, with {}, or on larger pictures (`--size`)."
)
"""Of a detector that has hardly learnt: its AP50 on the labels it judges is below LITTLE."""
LOW = (
    "{} of {} labels look wrong (score {} or more): the detector's scores are too low to judge these labels by. Most"
    " suspicions are its own mistakes. Train longer, with {}."
)
"""Of a detector that puts its boxes right and scores them low: more than half of the labels look wrong to it."""
LEARNT = (
    "it has learnt wrong ones too, and hides them. Leave --checkpoint out, so that none judges what it learnt, or give"
    " another --split."
)
SOME, MOST = 0.7, 0.5
"""Scores that 86 % and 94 % of the planted errors had at least; below the second hardly any suspicion was an error."""


def too_weak(found: Sequence[Suspicion], data: DetectionData, agrees: float, more: str) -> str:
    """Why the suspicions say little of the labels, empty for a good judge.

    agrees: the judges' AP50 on the labels. more: what makes their training longer.
    """
    if agrees < LITTLE:
        return WEAK.format(agrees, more)
    doubted = sum(one.likeliest and one.row is not None and one.score >= MOST for one in found)
    labels = int((~data.records.crowd).sum())
    return LOW.format(doubted, labels, MOST, more) if doubted > labels / 2 else ""


def how_far(found: Sequence[Suspicion], review: int) -> str:
    """How many of the one list are worth a look, and how many of those the page shows."""
    some, most = (sum(one.score >= least for one in found if one.likeliest) for least in (SOME, MOST))
    cut = f" The page shows the first {review}; --review {some} shows all {some}." if some > review else ""
    return (
        f"Worth a look: the first {some} (score {SOME} or more), then as far as number {most} ({MOST} or more).{cut}"
        " Stop earlier once you reject nearly all. Of mistakes that were planted in a measured set, 86 % scored"
        f" {SOME} or more, and 94 % {MOST} or more (docs/audit.md)"
    )


def _tell(part: DetectionData, out: Path, say: Callable[[str], None]) -> None:
    """Say what is judged; raises GhmdetError where its pictures are missing, or crops in `out` would be among them."""
    say(part.describe())
    require_images(part)
    require_apart(out, part)


def _by_checkpoint(
    data: Path, checkpoint: Path, split: str | None, out: Path, device: str, say: Callable[[str], None]
) -> tuple[DetectionData, list[Suspicion], float, str]:
    """The part that is judged, what a detector finds there, its AP50, and that it was trained on it, or nothing."""
    detector = Detector.load(checkpoint, device=device, precision="fp32")
    arguments = (read_json(checkpoint.parent / "run.json") or {}).get("arguments") or {}
    own = same_data(data, arguments.get("data"))
    split = split or (arguments.get("val_split", "val") if own else "train")
    there = read_data(data, split).classes
    if unknown := [name for name in there if name not in detector.classes]:
        raise DataError(
            f"{checkpoint}: does not know class '{unknown[0]}' of {data}; it has {', '.join(detector.classes)}: give a"
            " detector of the same classes, or leave --checkpoint out"
        )
    _tell(part := read_data(data, split, classes=detector.classes), out, say)
    results = list[Mapping[str, Any]]()
    sampled = set(sample(part).records.image_ids.tolist())

    def keep(found: Sequence[Mapping[str, Any]]) -> None:
        results.extend(one for one in found if one["image_id"] in sampled)

    with counting("pictures", len(part.records)) as advance:
        found = rank(judge_all(detector, part, advance, keep), part)
    learnt = (trained_on(checkpoint.parent, part) or "").partition(": ")[0]
    if not learnt and own and part.split == arguments.get("train_split"):
        learnt = (
            "The detector was trained on this part"  # by an older version, which did not keep what it was
        )
    return part, found, ap50(results, part), f"{learnt}: {LEARNT}" if learnt else ""


def write(
    out: Path,
    data: DetectionData,
    found: Sequence[Suspicion],
    about: dict[str, Any],
    review: int,
    warnings: Sequence[str] = (),
) -> None:
    """Write audit.json, audit.csv, suggestions.json (COCO), and the page with the first `review` of them."""

    def rows() -> Iterator[dict[str, Any]]:  # made anew for each file: together they would fill the memory
        return (_row(number, one, data) for number, one in enumerate(found, start=1))

    digest = hashlib.sha256()
    for row in rows():
        digest.update(json.dumps(row).encode())
    told = about | {
        "audit": digest.hexdigest()[:16],
        "split": data.split,
        "classes": data.classes,
        "pictures": len(data.records),
        "labels": int((~data.records.crowd).sum()),
        "warnings": list(warnings),
        "made": provenance(about),
    }
    _require_undecided(out, told["audit"])
    write_atomic(out / "audit.json", partial(_put_json, told, "items", rows()))
    write_atomic(out / "audit.csv", partial(_put_csv, rows()))
    content = {
        "images": [
            {"id": one.image_id, "file_name": data.records.name(i), "width": one.width, "height": one.height}
            for i, one in enumerate(data.records)
        ],
        "categories": [
            {"id": number, "name": name} for number, name in zip(data.category_ids, data.classes, strict=True)
        ],
    }
    suggested = (
        {
            "id": row["id"],
            "image_id": int(data.records.image_ids[one.picture]),
            "category_id": data.category_ids[one.suggested.label],
            "bbox": row["new_box"],
            "area": row["new_box"][2] * row["new_box"][3],
            "iscrowd": 0,
            "kind": row["kind"],
            "score": row["score"],
        }
        for row, one in zip(rows(), found, strict=True)
        if one.suggested and one.likeliest  # those of other kinds contradict them
    )
    write_atomic(out / "suggestions.json", partial(_put_json, content, "annotations", suggested))
    order = sorted(range(len(found)), key=lambda place: -found[place].score)
    lists = [[place for place in order if found[place].kind == kind] for kind in KINDS]
    lists.append([place for place, one in enumerate(found) if one.likeliest])
    shown = sorted({place for each in lists for place in each[:review]})
    about = told | {
        "how_far": how_far(found, review) if found and not warnings else "",
        "review": review,
        "counts": {name: len(each) for name, each in zip([*KINDS, ""], lists, strict=True)},
    }
    items = [_row(place + 1, found[place], data) for place in shown]
    write_review(out, data, [found[place] for place in shown], items, about)


def _require_undecided(out: Path, audit: str) -> None:
    """Raise GhmdetError where a review's decisions are there of an audit that another one would replace."""
    decisions, given = out / "decisions.json", None
    with suppress(GhmdetError):
        given = read_json(decisions) or {}
    if decisions.exists() and (given is None or given.get("audit") != audit):
        raise GhmdetError(
            f"{decisions}: holds decisions on the audit that is there, which this one would replace: apply them"
            f" (ghmdet audit apply {out} --out NEW), then move the file away"
        )


def _put_json(about: dict[str, Any], name: str, rows: Iterable[dict[str, Any]], file: IO[bytes]) -> None:
    """Write `about` as a JSON object whose last key is `name`, a list of rows, one a line."""
    head = json.dumps(about, indent=2, default=str).removesuffix("\n}")
    file.write(f'{head},\n  "{name}": ['.encode())
    for place, row in enumerate(rows):
        file.write(f"{',' if place else ''}\n    {json.dumps(row)}".encode())
    file.write(b"\n  ]\n}\n")


def _put_csv(rows: Iterable[dict[str, Any]], file: IO[bytes]) -> None:
    text = io.TextIOWrapper(file, "utf-8", "backslashreplace", newline="")
    writer = csv.DictWriter(text, COLUMNS)
    writer.writeheader()
    writer.writerows({name: _cell(value) for name, value in row.items()} for row in rows)
    text.detach()  # the file stays open


def _cell(value: Any) -> Any:
    """What it is; before a text that a spreadsheet would take for a formula, an apostrophe."""
    return f"'{value}" if isinstance(value, str) and value.startswith(tuple("=+-@\t\r")) else value


def _row(number: int, one: Suspicion, data: DetectionData) -> dict[str, Any]:
    """What the tables say of a suspicion; boxes are x, y, width, height in pixels, labels numbered from 1."""

    def told(label: Label | None) -> tuple[str | None, list[float] | None]:
        if label is None:
            return None, None
        x1, y1, x2, y2 = label.box
        return data.classes[label.label], [round(value, 2) for value in (x1, y1, x2 - x1, y2 - y1)]

    (given, box), (new, new_box) = told(one.given), told(one.suggested)
    numbers = (None if value is None else round(value, 4) for value in (one.score, one.g, one.gr))
    row = None if one.row is None else one.row + 1
    name = data.records.name(one.picture)
    values = (number, name, one.kind, row, given, box, new, new_box, *numbers, one.likeliest)
    return dict(zip(COLUMNS, values, strict=True))


@app.command(name="apply")
def apply(
    audit: Path,
    /,
    *,
    out: Path,
    decisions: Path | None = None,
    say: Callable[[str], None] = print,
) -> int:
    """Write a copy of a data set with the accepted decisions of an audit, in its own format; the original stays.

    Exits with 1 if a decision no longer fits its annotation; each such one is named, and the others are applied.

    Args:
        audit: Folder of an audit.
        out: Folder of the copy: new, empty or of an earlier copy, which is made anew (other files stay);
            pictures are linked where the disk allows it.
        decisions: What the page exported; by default decisions.json in the audit's folder.
        say: Takes each line meant for the user.
    """
    return mend(audit, out, decisions or audit / "decisions.json", say)


def _twin(record: Record, one: Suspicion) -> int | None:
    """The row of the label that stays where another one on its object goes: of those of the class the nearest one."""
    if one.kind != "duplicate" or one.given is None:
        return None
    iou = overlaps(record.boxes.astype(np.float64), np.array([one.given.box]))[:, 0]
    iou[(record.labels != one.given.label) | record.crowd] = 0
    iou[one.row] = 0
    return int(iou.argmax()) if iou.max() > 0 else None


def write_review(
    out: Path,
    data: DetectionData,
    found: Sequence[Suspicion],
    rows: Sequence[Mapping[str, Any]],
    about: Mapping[str, Any],
) -> None:
    """Write review.html and crops/ into `out`.

    found, rows: the suspicions, and what audit.json says of each. about: what it says of them all.
    """
    shutil.rmtree(out / "crops", ignore_errors=True)
    items = [dict(row) for row in rows]
    by_picture = sorted(range(len(found)), key=lambda place: found[place].picture)  # each is read once
    for number, places in groupby(by_picture, key=lambda place: found[place].picture):
        record = data.records[number]
        picture = to_pil_image(load_image(record))
        for place in places:
            one, item = found[place], items[place]
            twin = _twin(record, one)
            own = [] if twin is None else [record.boxes[twin].tolist()]
            boxes = np.array([*(label.box for label in (one.given, one.suggested) if label), *own])
            around = [*boxes[:, :2].min(axis=0), *boxes[:, 2:].max(axis=0)]
            left, top, side = window_around(around, picture.size)
            crop = picture.crop((left, top, left + side, top + side))
            sides = (min(side, SIDE), min(side, SIDE))
            name = f"{item['id']:05}.jpg"
            save_jpeg(crop.resize(sides, Image.Resampling.BICUBIC), out / "crops" / name, 85)
            inside = (record.boxes[:, :2] < (left + side, top + side)).all(axis=1)
            inside &= (record.boxes[:, 2:] > (left, top)).all(axis=1)
            inside[[row for row in (one.row, twin) if row is not None]] = False
            item["window"], item["around"] = [left, top, side], record.boxes[inside].round(1).tolist()
            item["twin"] = [round(value, 1) for x1, y1, x2, y2 in own for value in (x1, y1, x2 - x1, y2 - y1)]
    both = ChoiceLoader([PackageLoader("ghmdet", "audit"), PackageLoader("ghmdet", "report")])
    page = templates().overlay(loader=both).get_template("review.html.jinja")
    told = {name: about[name] for name in ("audit", "review", "counts")}
    content = script_json(told | {"items": items})
    first = sum(one.likeliest for one in found[: about["review"]])
    write_atomic(out / "review.html", page.render(about=about, shown=first, json=content).lstrip())
