"""One pass of a trained detector over a data set, and what it finds: for `ghmdet spectrum`, and for a report."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ghmdet.data import DetectionData, read_data
from ghmdet.data.images import load_image
from ghmdet.draw import draw_crop, save_jpeg
from ghmdet.engine.observation import Measured, measure_checkpoint
from ghmdet.engine.run_folder import provenance, write_json
from ghmdet.errors import GhmdetError
from ghmdet.evaluation.findings import Findings, find
from ghmdet.evaluation.hardest import Hard, Scored, choose, count_kinds, hard_examples
from ghmdet.evaluation.score import THRESHOLD
from ghmdet.evaluation.tables import Floats
from ghmdet.report import figures
from ghmdet.report.run_files import read_json, require_run
from ghmdet.report.summary import Summary, said_of_errors, said_of_hardest, summarize
from ghmdet.spectrum import SpectrumCounts

FORMAT = 2  # of findings.json; findings of another format are made anew
SHOWN = {
    "pictures",
    "metrics",
    "curves",
    "confusion",
    "errors",
    "reliability",
    "in_words",
    "hardest",
    "hardest_total",
}


class Inspection(NamedTuple):
    """What RUN/inspection holds: findings.json, spectrum.npz (one epoch), and what a reader should know of them."""

    findings: dict[str, Any]
    spectrum: SpectrumCounts
    note: str = ""


def write_spectrum(
    checkpoint: Path,
    data: Path,
    /,
    *,
    out: Path,
    split: str = "val",
    workers: int = 0,
    device: str = "auto",
    say: Callable[[str], None] = print,
) -> Summary:
    """Show which examples pull at a detector: gradient-norm spectra, figures, and what they say (docs/spectrum.md).

    Args:
        checkpoint: A `best.pt` or `last.pt` of a training run.
        data: Folder of the data set, or a COCO annotations file.
        out: Folder to write: spectrum.npz, spectrum.json, and each figure as SVG and PNG.
        split: Part of the data set to measure on.
        workers: Processes that read pictures.
        device: auto, cpu or cuda; it runs in float32.
        say: Takes each line meant for the user.

    Raises:
        CheckpointError: the checkpoint cannot be read, or gives no numbers (NaN).
        DataError: the data cannot be read.
        GhmdetError: the device is not there.
    """
    part, measured, findings, summary = _look(checkpoint, data, split, device, workers, say)
    measured.spectrum.save(out / "spectrum.npz")
    drawn = {name: draw(measured.spectrum) for name, draw in figures.OF_SPECTRUM.items()}
    if findings.reliability:
        drawn["reliability"] = figures.draw_reliability(findings.reliability)
    for name, figure in drawn.items():
        figures.save_figure(figure, out / name)
    about = {"checkpoint": str(checkpoint), "data": str(data), "split": part.split}
    write_json(
        out / "spectrum.json",
        about | {"in_words": summary.sentences} | summary.figures | {"made": provenance(about)},
    )
    for sentence in summary.sentences:
        say(sentence)
    say(f"written: {out / 'spectrum.npz'}, {out / 'spectrum.json'}, {', '.join(drawn)} (each .svg and .png)")
    return summary


def inspect_run(
    run: Path,
    *,
    data: Path | str | None = None,
    split: str | None = None,
    device: str = "auto",
    workers: int = 0,
    say: Callable[[str], None] = print,
) -> Inspection:
    """What a run's `best.pt` finds in the validation part, by a pass that is kept in RUN/inspection.

    What is kept names the checkpoint, data, split and labels it was made of, and is made anew where one of them is
    another now. Where the data has gone, the labels cannot be compared. The folder holds spectrum.npz,
    predictions.json, crops/ and, written last, findings.json (docs/evaluation.md).

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
    arguments = require_run(run).get("arguments", {})
    where, split = data or arguments.get("data"), split or arguments.get("val_split")
    if not isinstance(where, (str, Path)) or not isinstance(split, str):
        raise GhmdetError(
            f"{run / 'run.json'}: does not say what the run was trained on: give the folder of a training run, or"
            " --data and --split"
        )
    made_of: dict[str, Any] = {
        "format": FORMAT,
        "checkpoint": _digest(checkpoint.read_bytes() if checkpoint.is_file() else b""),
        "data": str(Path(where).resolve()),
        "split": split,
    }
    kept = _kept(out, made_of, checkpoint)
    if not Path(where).exists():
        if kept:
            return kept._replace(note=f"These findings were kept: their data, {where}, is no longer there.")
        if data is None:
            raise GhmdetError(f"{run / 'run.json'}: the data it names, {where}, is not there: give --data")
    labels = json.dumps(read_data(where, split).to_coco())
    made_of["labels"] = _digest(labels.encode())
    if kept and kept.findings.get("made_of") == made_of:
        return kept

    part, measured, found, summary = _look(checkpoint, where, split, device, workers, say)
    hard = find_hardest(part, measured)
    totals, chosen = count_kinds(hard), choose(hard)
    crops = [f"crops/{number:03}.jpg" for number in range(len(chosen))]
    about = {"checkpoint": str(checkpoint), "data": str(where), "split": part.split}
    said = [*said_of_hardest(totals, found.metrics.boxes), *said_of_errors(found.metrics.AP50, found.errors)]
    findings = about | {
        "made_of": made_of,
        "pictures": len(part.records),
        "classes": found.labels,
        "metrics": found.metrics.to_dict(),
        "curves": found.curves,
        "confusion": {
            "labels": [*found.labels, "background"],
            "threshold": THRESHOLD,
            "matrix": found.confusion.tolist(),
        },
        "errors": found.errors,
        "reliability": found.reliability,
        "in_words": [*summary.sentences, *said],
        "summary": summary.figures,
        "hardest": [_record(part, one, name) for one, name in zip(chosen, crops, strict=True)],
        "hardest_total": totals,
        "made": provenance(about),
    }
    (out / "findings.json").unlink(missing_ok=True)  # what is there is whole only with this file
    shutil.rmtree(out / "crops", ignore_errors=True)
    measured.spectrum.save(out / "spectrum.npz")
    write_json(out / "predictions.json", measured.results)
    _write_crops(out, part, chosen, crops)
    write_json(out / "findings.json", findings)
    return Inspection(findings, measured.spectrum)


def find_hardest(part: DetectionData, measured: Measured) -> list[Hard]:
    """The hard examples of all pictures that a pass went over."""
    label_of = {category: label for label, category in enumerate(part.category_ids)}
    found: dict[int, list[Mapping[str, Any]]] = {record.image_id: [] for record in part.records}
    for one in measured.results:
        found[one["image_id"]].append(one)
    hard: list[Hard] = []
    start = 0
    for number, record in enumerate(part.records):
        mine = found[record.image_id]
        boxes = np.array([one["bbox"] for one in mine], dtype=np.float64).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        labels = np.array([label_of[one["category_id"]] for one in mine], dtype=np.int64)
        scores = np.array([one["score"] for one in mine], dtype=np.float64)
        given, objects = record.boxes.astype(np.float64), ~record.crowd
        seen: Floats = measured.seen[start : start + objects.sum()]
        start += len(seen)
        hard += hard_examples(
            number,
            Scored(boxes, labels, scores),
            Scored(given[objects], record.labels[objects], seen),
            given[record.crowd],
        )
    return hard


def _look(
    checkpoint: Path | str,
    data: Path | str,
    split: str,
    device: str,
    workers: int,
    say: Callable[[str], None],
) -> tuple[DetectionData, Measured, Findings, Summary]:
    part, measured = measure_checkpoint(checkpoint, data, split, device=device, workers=workers, say=say)
    findings = find(part.to_coco(), measured.results)
    return part, measured, findings, summarize(measured.spectrum, findings.metrics.scores)


def _kept(out: Path, made_of: dict[str, Any], checkpoint: Path) -> Inspection | None:
    """What a folder holds, if it is whole and was made of this; the labels are not compared."""
    file = out / "findings.json"
    try:
        kept = Inspection(read_json(file) or {}, SpectrumCounts.load(out / "spectrum.npz"))
    except GhmdetError:
        return None
    of = kept.findings.get("made_of")
    if of is None and file.is_file() and file.stat().st_mtime >= checkpoint.stat().st_mtime:
        # From before findings said what they were made of.
        data = Path(str(kept.findings.get("data"))).resolve()
        of = {**made_of, "data": str(data), "split": kept.findings.get("split")}
    whole = kept.findings.keys() >= SHOWN and isinstance(of, dict) and of | made_of == of
    return kept if whole else None


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _write_crops(out: Path, part: DetectionData, chosen: Sequence[Hard], names: Sequence[str]) -> None:
    for number in {one.picture for one in chosen}:
        picture = load_image(part.records[number])
        for one, name in zip(chosen, names, strict=True):
            if one.picture == number:
                save_jpeg(draw_crop(picture, one.box, one.label), out / name, quality=85)


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
