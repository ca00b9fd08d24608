"""One pass of a trained detector over a data set, and what it finds: for `ghmdet spectrum`, and for a report."""

import errno
import math
import shutil
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from ghmdet.data import DetectionData, read_data
from ghmdet.data.fingerprint import scored
from ghmdet.data.images import load_image, require_apart
from ghmdet.draw import draw_crop, save_jpeg
from ghmdet.engine.checkpoint import changed_since, trained_on
from ghmdet.engine.detect import Detector
from ghmdet.engine.device import choose_device
from ghmdet.engine.observation import Measured, measure_spectrum
from ghmdet.engine.run_folder import provenance, read_json, require_no_run, write_json, write_predictions
from ghmdet.errors import CheckpointError, GhmdetError
from ghmdet.evaluation.findings import Findings, find
from ghmdet.evaluation.hardest import NOTHING, UNSEEN, Hard, choose, count_kinds, find_hardest
from ghmdet.evaluation.score import THRESHOLD
from ghmdet.files import checkpoint_file, content_digest, hold
from ghmdet.models import ModelConfig
from ghmdet.options import WORKERS
from ghmdet.pictures import resized_size
from ghmdet.progress import counting
from ghmdet.report import figures
from ghmdet.report.advice import SMALL, advise
from ghmdet.report.run_files import read_course, require_run
from ghmdet.report.summary import Summary, summarize, words
from ghmdet.spectrum import SpectrumCounts

VERY_SURE = 0.8  # a score that a weak detector hardly gives to nothing
FORMAT = 4  # of findings.json; findings of another format are made anew
WHOLE = {"data", "split", "pictures", "classes", "metrics", "curves", "confusion", "errors", "reliability"}
WHOLE |= {"sizes", "unseen", "in_words", "hardest", "hardest_total", "unlabelled"}
"""What the page needs of findings.json."""


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
        checkpoint: A training run's folder, which means its `best.pt`, or a `best.pt` or `last.pt`.
        data: Folder of the data set, or its COCO .json or YOLO data.yaml.
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
    require_no_run(out)
    pictures = [f"{name}.{end}" for name in (*figures.OF_SPECTRUM, "reliability") for end in ("svg", "png")]
    there = [name for name in ("spectrum.npz", "spectrum.json", *pictures) if (out / name).exists()]
    if there and not _of_spectrum(out / "spectrum.json"):
        raise GhmdetError(
            f"{out / there[0]} is not of `ghmdet spectrum`, and would be replaced: give another --out"
        )
    checkpoint = checkpoint_file(checkpoint)
    part, _, measured, findings, summary = _look(checkpoint, data, split, device, workers, say)
    require_apart(out, part)
    drawn = {name: draw(measured.spectrum) for name, draw in figures.OF_SPECTRUM.items()}
    if findings.reliability:
        drawn["reliability"] = figures.draw_reliability(findings.reliability)
    about = {"checkpoint": str(checkpoint), "data": str(data), "split": part.split}
    with hold(out):
        for name in ("spectrum.npz", *pictures):  # a kill leaves no old ones beside the new
            (out / name).unlink(missing_ok=True)
        write_json(out / "spectrum.json", about)
        measured.spectrum.save(out / "spectrum.npz")
        for name, figure in drawn.items():
            figures.save_figure(figure, out / name)
        write_json(
            out / "spectrum.json",
            about | {"in_words": summary.sentences} | summary.numbers | {"made": provenance(about)},
        )
    for sentence in summary.sentences:
        say(sentence)
    say(f"written: {out / 'spectrum.npz'}, {out / 'spectrum.json'}, {', '.join(drawn)} (each .svg and .png)")
    return summary


def _of_spectrum(file: Path) -> bool:
    """Whether `ghmdet spectrum` wrote it."""
    with suppress(GhmdetError):
        return {"checkpoint", "data", "split"} <= (read_json(file) or {}).keys()
    return False


def inspect_run(
    run: Path,
    *,
    data: Path | str | None = None,
    split: str | None = None,
    device: str = "auto",
    say: Callable[[str], None] = print,
) -> Inspection:
    """What a run's `best.pt` finds in the validation part, by a pass that is kept in RUN/inspection.

    What is kept says which checkpoint, data, split and labels it was made of, and is made anew where one of them is
    another now. Where the data has gone, the labels cannot be compared. The folder holds spectrum.npz,
    predictions.json, crops/ and, written last, findings.json (docs/evaluation.md). The advice in it follows how the run
    went since.

    Args:
        run: the folder of a training run.
        data: the data set; by default the one it was trained on.
        split: the part to look at; by default the one it was validated on.
        device: auto, cpu or cuda; it runs in float32.
        say: takes each line meant for the user.

    Raises:
        CheckpointError: best.pt is missing, cannot be read, or gives no numbers (NaN).
        DataError: the data cannot be read.
        GhmdetError: run.json is missing or names data that is not there; the device is not there.
    """
    choose_device(device)
    require_run(run)
    try:
        with hold(run / "inspection"):
            return _inspect(run, data, split, device, say)
    except OSError as error:
        if error.errno not in (errno.EROFS, errno.EACCES):
            raise
        return _inspect(run, data, split, device, say, read_only=True)


def _inspect(
    run: Path,
    data: Path | str | None,
    split: str | None,
    device: str,
    say: Callable[[str], None],
    *,
    read_only: bool = False,
) -> Inspection:
    checkpoint, out = run / "best.pt", run / "inspection"
    made = require_run(run)
    arguments = made["arguments"]
    where, split = data or arguments.get("data"), split or arguments.get("val_split")
    if not isinstance(where, (str, Path)) or not isinstance(split, str):
        raise GhmdetError(
            f"{run / 'run.json'}: does not say what the run was trained on: give --data and --split"
        )
    made_of: dict[str, Any] = {
        "format": FORMAT,
        "checkpoint": content_digest(checkpoint),
        "data": str(Path(where).resolve()),
        "split": split,
    }
    kept = _kept(out, made_of)
    advised = partial(_advised, run=run, made=made, read_only=read_only)
    if not Path(where).exists():
        if kept:
            return advised(kept)._replace(
                note=f"These findings were kept: their data, {where}, is no longer there."
            )
        if data is None:
            raise GhmdetError(f"{run / 'run.json'}: the data it names, {where}, is not there: give --data")
    now = read_data(where, split)
    note = " ".join(filter(None, (trained_on(run, now), changed_since(run, where, now))))
    made_of["labels"] = scored(now)
    if kept and kept.findings["made_of"] == made_of:
        return advised(kept)._replace(note=note)
    if read_only:
        raise GhmdetError(
            f"{out}: cannot be written, and holds no findings of best.pt and {where}: copy the run"
        )

    part, config, measured, found, summary = _look(checkpoint, where, split, device, 0, say)
    hard = find_hardest(part, measured.results, measured.seen)
    totals, chosen = count_kinds(hard), choose(hard)
    worst = max(found.errors, key=lambda one: one["AP50_lost"])
    said = words("mistakes", totals=totals, objects=found.metrics.boxes, AP50=found.metrics.AP50, worst=worst)
    labels = [*found.labels, "background"]
    about = {"checkpoint": str(checkpoint), "data": str(where), "split": part.split}
    (out / "findings.json").unlink(missing_ok=True)  # what is there is whole only with this file
    shutil.rmtree(out / "crops", ignore_errors=True)
    measured.spectrum.save(out / "spectrum.npz")
    write_predictions(out / "predictions.json", measured.results, part.to_coco())
    findings = about | {
        "made_of": made_of,
        "pictures": len(part.records),
        "classes": found.labels,
        "metrics": found.metrics.to_dict(),
        "curves": found.curves,
        "confusion": {"labels": labels, "threshold": THRESHOLD, "matrix": found.confusion.tolist()},
        "errors": found.errors,
        "reliability": found.reliability,
        "sizes": found.sizes,
        "unseen": _unseen(hard, part, config),
        "in_words": [*summary.sentences, *said],
        "summary": summary.numbers,
        "hardest": [_with_crop(part, one, f"crops/{i:03}.jpg", out) for i, one in enumerate(chosen)],
        "hardest_total": totals,
        "unlabelled": sum(one.kind == NOTHING and one.score >= VERY_SURE for one in hard),
        "made": provenance(about),
    }
    return advised(Inspection(findings, measured.spectrum, note))


def _advised(inspection: Inspection, run: Path, made: dict[str, Any], read_only: bool) -> Inspection:
    """With the advice that follows from it and from how the run went; written where it was not there yet."""
    found = inspection.findings
    advice = advise(found, made["training_boxes"], read_course(run), made["arguments"])
    if found.get("advice") != advice:
        found["advice"] = advice
        if not read_only:
            write_json(run / "inspection" / "findings.json", found)
    return inspection


def _unseen(hard: list[Hard], part: DetectionData, config: ModelConfig) -> dict[str, Any]:
    """How large the objects that are not seen are in training.

    count: of them. small: of those below 16 pixels. median: of their sizes, in pixels. size: the longest side of a
    picture in training. own_size: the one at which their pictures would keep all their pixels.
    """
    unseen = [one for one in hard if one.kind == UNSEEN]
    scales = [_scale(config, *part.records.sizes[one.picture].tolist()) for one in unseen]
    boxes = [one.box for one in unseen]
    sizes = [
        scale * math.sqrt((x1 - x0) * (y1 - y0))
        for scale, (x0, y0, x1, y1) in zip(scales, boxes, strict=True)
    ]
    return {
        "count": len(unseen),
        "small": sum(size < SMALL for size in sizes),
        "median": round(median(sizes), 4) if sizes else None,
        "size": config.max_size,
        "own_size": round(config.max_size / median(scales)) if scales else None,
    }


def _scale(config: ModelConfig, width: int, height: int) -> float:
    """A picture's sides in training over its own."""
    return math.sqrt(
        math.prod(resized_size(height, width, config.min_size, config.max_size)) / (height * width)
    )


def _look(
    checkpoint: Path, data: Path | str, split: str, device: str, workers: int, say: Callable[[str], None]
) -> tuple[DetectionData, ModelConfig, Measured, Findings, Summary]:
    """A part of a data set, the detector's config, what a pass of a saved detector over it saw, and what that says."""
    WORKERS.check("workers", workers)
    detector = Detector.load(checkpoint, device=device, precision="fp32")
    part = read_data(data, split, classes=detector.classes)
    say(part.describe())
    with counting("pictures", len(part.records)) as advance:
        try:
            measured = measure_spectrum(detector, part, workers=workers, advance=advance)
        except CheckpointError as error:
            raise CheckpointError(f"{checkpoint}: {error}") from None
    config, records = detector.model.config, part.records
    sides = zip(records.image_ids.tolist(), records.sizes.tolist(), strict=True)
    scale = {image_id: _scale(config, width, height) for image_id, (width, height) in sides}
    findings = find(part.to_coco(), measured.results, scale)
    return part, config, measured, findings, summarize(measured.spectrum, findings.metrics.scores)


def _kept(folder: Path, made_of: dict[str, Any]) -> Inspection | None:
    """What a folder holds, if it is whole and was made of this; the labels are not compared."""
    try:
        findings = read_json(folder / "findings.json") or {}
        kept = Inspection(findings, SpectrumCounts.load(folder / "spectrum.npz"))
    except GhmdetError:
        return None
    of = findings.get("made_of") if findings.keys() >= WHOLE else None
    return kept if isinstance(of, dict) and of | made_of == of else None


def _with_crop(part: DetectionData, one: Hard, name: str, out: Path) -> dict[str, Any]:
    """What findings.json says of a hard example; writes its crop."""
    record = part.records[one.picture]
    save_jpeg(draw_crop(load_image(record), one.box, one.label), out / name, quality=85)
    x0, y0, x1, y1 = one.box
    return {
        "file": part.records.name(one.picture),
        "image_id": record.image_id,
        "kind": one.kind,
        "class": part.classes[one.label],
        "other": None if one.other is None else part.classes[one.other],
        "score": round(one.score, 4),
        "g": round(one.g, 4),
        "box": [round(value, 1) for value in (x0, y0, x1 - x0, y1 - y0)],
        "crop": name,
    }
