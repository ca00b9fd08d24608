"""The inspection of a run: one pass of its best checkpoint over its validation part, and what it finds there."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ghmdet.data import DetectionData
from ghmdet.data.images import load_image
from ghmdet.draw import draw_crop, save_jpeg
from ghmdet.engine.observation import measure_checkpoint
from ghmdet.engine.run_folder import provenance, write_json
from ghmdet.errors import GhmdetError
from ghmdet.evaluation.findings import find
from ghmdet.evaluation.hardest import Hard, Scored, choose, count_kinds, hard_examples
from ghmdet.evaluation.tables import Floats
from ghmdet.report.mistakes import said_of_errors, said_of_hardest
from ghmdet.report.summary import summarize


def inspect_run(
    run: Path,
    *,
    data: Path | str | None = None,
    split: str | None = None,
    device: str = "auto",
    workers: int = 0,
    say: Callable[[str], None] = print,
) -> Path:
    """Look at what a run's `best.pt` does on the validation part; writes and returns the folder RUN/inspection.

    It holds spectrum.npz, predictions.json, crops/ and, written last, findings.json (docs/evaluation.md).

    Args:
        run: the folder of a training run.
        data: the data set; by default the one it was trained on.
        split: the part to look at; by default the one it was validated on.
        device: auto, cpu or cuda; it runs in float32.
        workers: processes that read pictures.
        say: takes each line meant for the user.

    Raises:
        CheckpointError: best.pt is missing, cannot be read, or gives no numbers (NaN).
        DataError: the data cannot be read.
        GhmdetError: run.json is missing or names data that is not there; the device is not there.
    """
    run = Path(run)
    checkpoint, out = run / "best.pt", run / "inspection"
    if data is None or split is None:
        arguments = _arguments(run / "run.json")
        split = split or str(arguments["val_split"])
        if data is None:
            data = str(arguments["data"])
            if not Path(data).exists():
                raise GhmdetError(f"{run / 'run.json'}: the data it names, {data}, is not there: give --data")
    part, (spectrum, results, seen) = measure_checkpoint(
        checkpoint, data, split, device=device, workers=workers, say=say
    )
    findings = find(part.to_coco(), results)
    metrics = findings.metrics
    summary = summarize(spectrum, metrics.scores)
    hard = find_hardest(part, results, seen)
    totals, chosen = count_kinds(hard), choose(hard)

    (out / "findings.json").unlink(missing_ok=True)  # what is there is whole only with this file
    shutil.rmtree(out / "crops", ignore_errors=True)
    spectrum.save(out / "spectrum.npz")
    write_json(out / "predictions.json", results)
    names = [f"crops/{number:03}.jpg" for number in range(len(chosen))]
    _write_crops(out, part, chosen, names)
    about = {"checkpoint": str(checkpoint), "data": str(data), "split": part.split}
    said = [*said_of_hardest(totals, metrics.boxes), *said_of_errors(metrics.AP50, findings.errors)]
    write_json(
        out / "findings.json",
        {
            **about,
            "pictures": len(part.records),
            "classes": findings.labels,
            "metrics": metrics.to_dict(),
            "curves": findings.curves,
            "confusion": {
                "labels": [*findings.labels, "background"],
                "threshold": 0.5,
                "matrix": findings.confusion.tolist(),
            },
            "errors": findings.errors,
            "reliability": findings.reliability,
            "scores": metrics.scores,
            "in_words": [*summary.sentences, *said],
            "summary": summary.figures,
            "hardest": [_record(part, one, name) for one, name in zip(chosen, names, strict=True)],
            "hardest_total": totals,
            "made": provenance(about),
        },
    )
    return out


def find_hardest(part: DetectionData, results: Sequence[Mapping[str, Any]], seen: Floats) -> list[Hard]:
    """The hard examples of all pictures: from COCO results, and the best score of each labelled object.

    seen: [N], picture by picture, crowds left out (see `engine.observation.Measured`).
    """
    label_of = {category: label for label, category in enumerate(part.category_ids)}
    found: dict[int, list[Mapping[str, Any]]] = {record.image_id: [] for record in part.records}
    for one in results:
        found[one["image_id"]].append(one)
    hard: list[Hard] = []
    start = 0
    for number, record in enumerate(part.records):
        mine = found[record.image_id]
        boxes = np.array([one["bbox"] for one in mine], dtype=np.float64).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        labels = np.array([label_of[one["category_id"]] for one in mine], dtype=np.int64)
        scores = np.array([one["score"] for one in mine], dtype=np.float64)
        given = record.boxes.astype(np.float64)
        objects = given[~record.crowd]
        best = seen[start : start + len(objects)]
        start += len(objects)
        hard += hard_examples(
            number,
            Scored(boxes, labels, scores),
            Scored(objects, record.labels[~record.crowd], best),
            given[record.crowd],
        )
    return hard


def _arguments(path: Path) -> dict[str, Any]:
    try:
        arguments: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))["arguments"]
        return {name: arguments[name] for name in ("data", "val_split")}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise GhmdetError(
            f"{path}: does not say what the run was trained on ({error!r}): give the folder of a training run,"
            " or --data and --split"
        ) from None


def _write_crops(out: Path, part: DetectionData, chosen: Sequence[Hard], names: Sequence[str]) -> None:
    pictures: dict[int, list[tuple[Hard, str]]] = {}
    for one, name in zip(chosen, names, strict=True):
        pictures.setdefault(one.picture, []).append((one, name))
    for number, examples in pictures.items():
        picture = load_image(part.records[number])
        for one, name in examples:
            save_jpeg(draw_crop(picture, one.box, one.label), out / name, quality=80)


def _record(part: DetectionData, one: Hard, crop: str) -> dict[str, Any]:
    x0, y0, x1, y1 = one.box
    return {
        "file": part.records.name(one.picture),
        "image_id": part.records[one.picture].image_id,
        "kind": one.kind,
        "class": part.classes[one.label],
        "other": None if one.other is None else part.classes[one.other],
        "score": round(one.score, 4),
        "g": round(one.g, 4),
        "box": [round(value, 1) for value in (x0, y0, x1 - x0, y1 - y0)],
        "crop": crop,
    }
