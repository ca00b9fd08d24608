"""How well `ghmdet audit` ranks planted wrong labels, beside two peers on the same detections.

    python benchmarks/audit.py DATA --share .2 --seed 0 --out FOLDER [--kinds class,missing] [--size 256 --epochs 20]
        [--judges AUDIT] [--keep FILE] [--loop] [--rows FILE]
    python benchmarks/audit.py --table [--rows FILE]

Wrong labels are planted in the training part (`ghmdet data spoil`), detectors of three folds judge what they did not
learn, and a row is appended to results/audit.jsonl, or to FILE: of each kind's list, and of the one list over all,
average precision, AUROC among the labels, precision of the first 50 and 200, and the share found in the first tenth as
many items as there are boxes. A second label on an object is found with either of the two. The same command goes on
where it was stopped. `--table` prints the tables of docs/audit.md, from the last row of each setting.

The row also holds how the scores of the list divide planted errors from the rest ("scores"). With `--judges`, nothing
is trained: the folds' detectors of a finished audit of DATA itself judge the pictures that they did not learn. `--keep`
writes what was labelled and detected, for peers that run in an environment of their own (audit_cleanlab.py).

`--loop` also trains once on the set with the planted errors, on the mended one and on DATA, with the same seed, and
keeps their AP on the validation part, which is clean. Mended: of as many first items of the one list as errors were
planted, each that points at a planted error is put right, as a reviewer does who sees it.

Plain confidence: a label's score is 1 - the best score of a detection of its class at IoU .5, and a missing label's
that of a detection that overlaps no label at IoU .5; for a kind of wrong label its list is all labels. hotcoco: the
`label_errors` of its `image_diagnostics`, which has no other kinds than "missing" and "class".
"""

from __future__ import annotations

import argparse
import csv
import json
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ghmdet.audit import KINDS
from ghmdet.audit.folds import plan, train_all
from ghmdet.audit.suspicion import judge, rank
from ghmdet.data import DetectionData, read_data
from ghmdet.data.make import spoil
from ghmdet.engine.detect import Detector
from ghmdet.engine.observation import look
from ghmdet.engine.settings import FoldConfig
from ghmdet.evaluation.hardest import scored
from ghmdet.evaluation.matching import evaluate, overlaps
from ghmdet.evaluation.tables import read_tables
from rows import RESULTS, append_row, today

SAME = 1.0  # pixels between the corners of a planted label and of the one that is suspected
TWIN = 0.75  # the IoU of a planted second label with the first


class Item(NamedTuple):
    """A suspicion of a picture (its image id): the score, and the class and corners of the label or what is missing."""

    score: float
    image: int
    missing: bool
    label: int
    box: list[float]


def corners(bbox: list[float]) -> list[float]:
    return [bbox[0], bbox[1], bbox[0] + bbox[2], bbox[1] + bbox[3]]


def find(
    items: list[Item], wrong: list[dict[str, Any]], classes: dict[int, int]
) -> list[dict[str, Any] | None]:
    """The planted error that each item finds, the likeliest first; each error is found once."""
    left: dict[int, list[dict[str, Any]]] = {}
    for one in wrong:
        left.setdefault(one["image_id"], []).append(one)
    found: list[dict[str, Any] | None] = []
    for item in sorted(items, key=lambda one: -one.score):
        here = left.get(item.image, [])
        hit = next((one for one in here if fits(item, one, classes)), None)
        if hit:
            here.remove(hit)
        found.append(hit)
    return found


def fits(item: Item, wrong: dict[str, Any], classes: dict[int, int]) -> bool:
    missing = wrong["kind"] == "missing"
    planted = wrong["true" if missing else "given"]
    if missing != item.missing or classes[planted["category_id"]] != item.label:
        return False
    box = corners(planted["bbox"])
    if not missing and np.abs(np.subtract(box, item.box)).max() < SAME:
        return True
    least = {"missing": 0.5, "duplicate": TWIN}.get(wrong["kind"], 2.0)
    return bool(overlaps(np.array([box]), np.array([item.box]))[0, 0] >= least)


def put_right(spoiled: Path, found: list[dict[str, Any]], mended: Path) -> None:
    """Write a copy of a spoiled set in which these planted errors are put right."""
    shutil.copytree(spoiled / "annotations", mended / "annotations", dirs_exist_ok=True)
    file = mended / "annotations" / "instances_train.json"
    content = json.loads(file.read_text())
    of = {one["id"]: one for one in content["annotations"]}
    for error in found:
        number, true = error["annotation_id"], error["true"]
        if true is None:  # a box on nothing, or a second one
            del of[number]
            continue
        area = true["bbox"][2] * true["bbox"][3]
        plain = {"id": number, "image_id": error["image_id"], "iscrowd": 0}
        of[number] = of.get(number, plain) | true | {"area": area}
    file.write_text(json.dumps(content | {"annotations": list(of.values())}))


def trained_on(data: Path, out: Path, options: argparse.Namespace) -> float:
    """AP on the validation part of one training; a finished one is not repeated."""
    how = {"size": options.size, "epochs": options.epochs, "val-every": options.epochs, "seed": options.seed}
    given = [word for name, value in how.items() for word in (f"--{name}", str(value))]
    command = ["ghmdet", "train", str(data), "--out", str(out), "--resume", "--no-report", *given]
    subprocess.run([sys.executable, "-m", *command], check=True, stdout=sys.stderr)
    with (out / "metrics.csv").open() as file:
        return float(list(csv.DictReader(file))[-1]["AP"])


def figures(
    found: list[dict[str, Any] | None], kinds: set[str], planted: int, boxes: int
) -> dict[str, float]:
    """How a list ranks the errors of some kinds, of which so many were planted among so many boxes.

    AUROC is among the labels, those that are not on the list behind all others and tied; none for missing labels.
    """
    hit = np.array([one is not None and one["kind"] in kinds for one in found], dtype=float)
    precision = np.cumsum(hit) / np.arange(1, len(hit) + 1)
    told = {
        "AP": (precision * hit).sum() / max(planted, 1),
        "precision50": hit[:50].sum() / 50,
        "precision200": hit[:200].sum() / 200,
        "recall_tenth": hit[: boxes // 10].sum() / max(planted, 1),
    }
    if "missing" not in kinds:
        right, wrong = boxes - planted, np.cumsum(1 - hit)
        ahead = ((right - wrong) * hit).sum() + (planted - hit.sum()) * max(right - (1 - hit).sum(), 0) / 2
        told["AUROC"] = ahead / (planted * right)
    return {name: round(float(value), 4) for name, value in told.items()}


def hotcoco_items(data: DetectionData, results: list[dict[str, Any]]) -> dict[str, list[Item]]:
    """hotcoco's candidates, by the kind of error that they mean."""
    tables = read_tables(data.to_coco(), results)
    image_ids = sorted(tables.truth.images)
    items: dict[str, list[Item]] = {kind: [] for kind in KINDS}
    for one in evaluate(tables).image_diagnostics(iou_thr=0.5, score_thr=0.01)["label_errors"]:
        missing = one["type"] == "missing_annotation"
        row = (one["dt_id"] if missing else one["gt_id"]) - 1
        label, box = (
            (tables.dt_class[row], tables.dt_box[row])
            if missing
            else (tables.gt_class[row], tables.truth.box[row])
        )
        image = image_ids[one["image_id"] - 1]
        items["missing" if missing else "class"].append(
            Item(one["dt_score"], image, missing, int(label), corners(box.tolist()))
        )
    return items


def judges_of(audit: Path, data: DetectionData) -> Iterator[tuple[Path, DetectionData]]:
    """The folds' detectors of a finished audit, and the pictures of `data` that each did not learn, by their names."""
    places = {Path(data.records.name(i)).name: i for i in range(len(data.records))}
    for folder in sorted((audit / "folds").glob("fold*")):
        judged = json.loads((folder / "instances_val.json").read_text())["images"]
        chosen = np.array([places[Path(image["file_name"]).name] for image in judged])
        yield audit / "runs" / folder.name / "last.pt", replace(data, records=data.records.take(chosen))


def divided(scores: list[float], hit: list[bool], planted: int) -> dict[str, Any]:
    """How many suspicions of each band of scores are planted errors, and the share of those planted from each on."""
    s, h = np.array(scores), np.array(hit, dtype=bool)
    edges = [0.9, 0.8, 0.7, 0.6, 0.5, 0.0]
    bands = zip(edges, [np.inf, *edges], strict=False)
    return {
        f"{low:g}": {
            "suspicions": int(((s >= low) & (s < high)).sum()),
            "planted": int(h[(s >= low) & (s < high)].sum()),
            "share_from": round(float(h[s >= low].sum() / planted), 4),
        }
        for low, high in bands
    }


def peer_row(kept: dict[str, Any], lists: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """The average precision of each list of a peer, for each kind that was planted."""
    classes = {category: label for label, category in enumerate(kept["categories"])}
    planted = Counter(one["kind"] for one in kept["wrong"])
    boxes = len(kept["labels"])
    found = {
        name: find([Item(**each) for each in each_list], kept["wrong"], classes)
        for name, each_list in lists.items()
    }
    return {
        kind: {name: figures(each, {kind}, planted[kind], boxes)["AP"] for name, each in found.items()}
        for kind in planted
    }


PEERS = ("confidence", "hotcoco", "cleanlab")


def tables(rows: list[dict[str, Any]]) -> str:
    """The tables of docs/audit.md, in markdown: a cell is the mean over the seeds, and the least and the largest."""
    last: dict[tuple[str, ...], dict[str, Any]] = {}
    peers: dict[tuple[str, ...], dict[str, Any]] = {}
    for row in rows:
        kinds = tuple(sorted(kind for kind in KINDS if kind in row))
        key = (row["data"], f"{row['share']:g}", str(row["seed"]), *kinds)
        (peers if "peer" in row else last)[key] = row
    groups: dict[tuple[str, str, bool], list[dict[str, Any]]] = {}
    for (data, share, _, *kinds), row in sorted(last.items()):
        if not kinds:  # of a loop alone
            continue
        other = peers.get((data, share, str(row["seed"]), *kinds))
        for kind in kinds:
            best = {"AP": max(other[kind].values())} if other else {}
            row[kind] = row[kind] | {"cleanlab": best}
        groups.setdefault((data, share, len(kinds) > 1), []).append(row)
    text = [table_of(*key, group) for key, group in sorted(groups.items(), key=lambda one: not one[0][2])]
    looped = [row for row in last.values() if "loop" in row]
    text += [loop_table(looped)] if looped else []
    return "\n\n".join(text)


def table_of(data: str, share: str, mixed: bool, rows: list[dict[str, Any]]) -> str:
    names = [
        name for name in ("audit", *PEERS) if any(row[k].get(name) for row in rows for k in KINDS if k in row)
    ]
    cells: dict[str, dict[str, list[float]]] = {kind: {} for kind in KINDS}
    for row in rows:
        for kind in KINDS:
            for name in names:
                value = row.get(kind, {}).get(name, {}).get("AP")
                if value and (name != "hotcoco" or kind in ("missing", "class")):
                    cells[kind].setdefault(name, []).append(value)
    seeds = len({row["seed"] for row in rows})
    lines = [
        f"{data}, {float(share):.0%} planted {'together' if mixed else 'alone'}, {seeds} seeds (average precision):",
        "",
        f"| kind | {' | '.join(names)} | audit - best peer |",
        "|---" * (len(names) + 2) + "|",
    ]
    means: dict[str, list[float]] = {}
    for kind, of in cells.items():
        if not of:
            continue
        mean = {name: float(np.mean(of[name])) for name in names if name in of}
        for name in names:
            means.setdefault(name, []).append(mean.get(name, 0.0))
        ahead = mean["audit"] - max(value for name, value in mean.items() if name != "audit")
        told = [spread(of.get(name, [])) for name in names]
        lines.append(f"| `{kind}` | {' | '.join(told)} | {ahead:+.2f} |")
    mean = {name: float(np.mean(each)) for name, each in means.items()}
    ratio = mean["audit"] / max(value for name, value in mean.items() if name != "audit")
    lines.append(f"| mean | {' | '.join(f'{mean[name]:.2f}' for name in names)} | {ratio:.2f} times |")
    if mixed:
        for name, key in {
            "all in one list": "AP",
            "its first 50 that are errors": "precision50",
            "its first 200": "precision200",
            "errors found in the first tenth": "recall_tenth",
        }.items():
            told = [spread([row["all"][each][key] for row in rows if each in row["all"]]) for each in names]
            lines.append(f"| {name} | {' | '.join(told)} | |")
    return "\n".join(lines)


def loop_table(rows: list[dict[str, Any]]) -> str:
    lines = ["| data | seed | noisy | mended | clean | of the loss recovered |", "|---|---|---|---|---|---|"]
    for row in rows:
        noisy, mended, clean = (row["loop"][name] for name in ("noisy", "mended", "clean"))
        part = f"{(mended - noisy) / (clean - noisy):.0%}" if clean > noisy else "–"
        lines.append(f"| {row['data']} | {row['seed']} | {noisy:.3f} | {mended:.3f} | {clean:.3f} | {part} |")
    for data in sorted({row["data"] for row in rows}):
        of = [row["loop"] for row in rows if row["data"] == data]
        noisy, mended, clean = (float(np.mean([one[n] for one in of])) for n in ("noisy", "mended", "clean"))
        part = f"{(mended - noisy) / (clean - noisy):.0%}" if clean > noisy else "–"
        lines.append(f"| {data} | mean | {noisy:.3f} | {mended:.3f} | {clean:.3f} | {part} |")
    return "\n".join(lines)


def spread(values: list[float]) -> str:
    """Mean and range, as .79 (.77 to .80); one value alone."""
    if not values:
        return "–"
    short = [f"{value:.2f}".removeprefix("0") for value in (np.mean(values), min(values), max(values))]
    return short[0] if short[1] == short[2] else f"{short[0]} ({short[1]} to {short[2]})"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path, nargs="?")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--share", type=float, default=0.2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", default=",".join(KINDS))
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--judges", type=Path, help="a finished audit of DATA, whose folds' detectors judge")
    parser.add_argument(
        "--keep", type=Path, help="a JSON file to write labels, detections and planted errors into"
    )
    parser.add_argument(
        "--peer", type=Path, nargs=2, help="what --keep wrote, and audit_cleanlab.py's scores of it"
    )
    parser.add_argument("--loop", action="store_true", help="train on the spoiled, mended and clean sets too")
    parser.add_argument("--rows", type=Path, default=RESULTS / "audit.jsonl", help="the file of rows")
    parser.add_argument("--table", action="store_true", help="print the tables of docs/audit.md")
    options = parser.parse_args()
    if options.table:
        print(tables([json.loads(line) for line in options.rows.read_text().splitlines()]))
        return
    if not options.data or not (options.out or options.peer):
        parser.error("give DATA and --out")
    if options.peer:
        kept, lists = (json.loads(file.read_text()) for file in options.peer)
        about = {"data": options.data.name, "share": options.share, "seed": options.seed, "peer": "cleanlab"}
        append_row(options.rows, about | peer_row(kept, lists) | {"date": today()})
        return
    spoiled = options.out / "data"
    kinds = options.kinds.split(",")
    spoil(options.data, spoiled, share=options.share, kinds=options.kinds, seed=options.seed)
    data = read_data(spoiled)
    if options.judges:
        judges = list(judges_of(options.judges, data))
    else:
        runs = plan(data, options.out, 3, FoldConfig(size=options.size, epochs=options.epochs), print)
        train_all(runs, print)
        judges = [(run.out / "last.pt", run.part) for run in runs]

    judged, plain, results = [], list[Item](), list[dict[str, Any]]()
    nothing = np.zeros((0, 4))  # a spoiled set of crowds is not measured
    for checkpoint, part in judges:
        detector = Detector.load(checkpoint, precision="fp32")
        for record, saw in zip(part.records, look(detector, part), strict=True):
            found, boxes = scored(saw.results, data), record.boxes.astype(float)
            results += saw.results
            one = judge(found, boxes, record.labels, len(data.classes), saw.seen, nothing)
            judged.append((record.image_id, one))
            iou = overlaps(found.boxes, boxes)
            on = (iou >= 0.5) & (found.labels[:, None] == record.labels)
            best = np.where(on, found.scores[:, None], 0).max(axis=0, initial=0)
            rows = zip(1 - best, record.labels, boxes.tolist(), strict=True)
            plain += [Item(s, record.image_id, False, int(k), box) for s, k, box in rows]
            away = iou.max(axis=1, initial=0) < 0.5
            rows = zip(found.scores[away], found.labels[away], found.boxes[away].tolist(), strict=True)
            plain += [Item(s, record.image_id, True, int(k), box) for s, k, box in rows]
    ours: dict[str, list[Item]] = {kind: [] for kind in KINDS}
    ranked, whole = rank(judged, data), list[Item]()
    for one in ranked:
        shown = one.given or one.suggested
        image = int(data.records.image_ids[one.picture])
        item = Item(one.score, image, one.kind == "missing", shown.label, list(shown.box))
        whole += [item] if one.likeliest else []
        ours[one.kind].append(item)

    wrong = json.loads((spoiled / "wrong_labels.json").read_text())
    planted = Counter(one["kind"] for one in wrong)
    classes = {category: label for label, category in enumerate(data.category_ids)}
    boxes = len(data.records.labels)
    row: dict[str, Any] = {"data": options.data.name, "share": options.share, "seed": options.seed}
    row |= {"size": options.size, "epochs": options.epochs, "planted": dict(planted), "boxes": boxes}
    peer = hotcoco_items(data, results)
    for kind in kinds:
        of_kind = [one for one in plain if one.missing == (kind == "missing")]
        lists = {"audit": ours[kind], "confidence": of_kind, "hotcoco": peer[kind]}
        row[kind] = {
            name: figures(find(items, wrong, classes), {kind}, planted[kind], boxes)
            for name, items in lists.items()
        }
    lists = {"audit": whole, "confidence": plain, "hotcoco": list(chain.from_iterable(peer.values()))}
    row["all"] = {
        name: figures(find(items, wrong, classes), {*kinds, "missing"}, len(wrong), boxes)
        for name, items in lists.items()
    }
    told = find(whole, wrong, classes)
    row["scores"] = divided([one.score for one in whole], [one is not None for one in told], len(wrong))
    row |= {"judges": "trained on the published labels"} if options.judges else {}
    if options.keep:
        labels = data.to_coco()["annotations"]
        kept = {"labels": labels, "detections": results, "wrong": wrong, "categories": data.category_ids}
        options.keep.write_text(json.dumps(kept))
    if options.loop:
        pointed_at = [one for one in told[: len(wrong)] if one]
        put_right(spoiled, pointed_at, options.out / "mended")
        sets = {"noisy": spoiled, "mended": options.out / "mended", "clean": options.data}
        row["loop"] = {
            name: trained_on(each, options.out / "loop" / f"{name}-{options.seed}", options)
            for name, each in sets.items()
        } | {"put_right": len(pointed_at)}
    append_row(options.rows, row | {"date": today()})


if __name__ == "__main__":
    main()
