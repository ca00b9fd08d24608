"""`ghmdet spectrum`: one pass of a trained detector over a data set, as counts, numbers, words and figures."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from ghmdet.engine.observation import measure_checkpoint
from ghmdet.engine.run_folder import provenance, write_json
from ghmdet.evaluation.findings import find
from ghmdet.report import figures
from ghmdet.report.summary import Summary, summarize


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
    out = Path(out)
    part, (spectrum, results, _) = measure_checkpoint(
        checkpoint, data, split, device=device, workers=workers, say=say
    )
    findings = find(part.to_coco(), results)
    summary = summarize(spectrum, findings.metrics.scores)
    spectrum.save(out / "spectrum.npz")
    drawn = {
        "examples": figures.draw_examples(spectrum),
        "boxes": figures.draw_boxes(spectrum),
        "class_gradients": figures.draw_class_gradients(spectrum),
        "box_gradients": figures.draw_box_gradients(spectrum),
        "shares": figures.draw_shares(spectrum),
        "weights": figures.draw_weights(spectrum),
        "reliability": figures.draw_reliability(findings.scores, findings.hit),
    }
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
