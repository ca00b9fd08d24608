"""What a report says of one run, as plain values for the template: text, tables, figures as SVG, pictures as URIs."""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup
from matplotlib.figure import Figure

from ghmdet.report import figures
from ghmdet.report.inline_svg import inline_svg
from ghmdet.report.run_figures import Curve, draw_calibration, draw_losses, draw_precision_recall, draw_scores
from ghmdet.report.run_files import RunFiles
from ghmdet.report.training_spectrum import (
    Pull,
    form_of,
    pulls,
    seen_epochs,
    spectrum_json,
    training_words,
)
from ghmdet.spectrum import SpectrumCounts

MOST_CONFUSED = 20  # classes in a matrix; of more the commonest confusions are listed


@dataclass(frozen=True)
class Picture:
    """A figure with its title and how to read it."""

    title: str
    svg: Markup
    caption: str
    wide: bool = False


@dataclass(frozen=True)
class Training:
    """What training saw: who pulled, its last epoch's figures, and the counts of all epochs for the slider."""

    epochs: int
    pulls: list[Pull]
    pictures: list[Picture]
    json: Markup


@dataclass(frozen=True)
class Confusion:
    """Columns' names and rows [name, [(count, share of the row)]], or the commonest confusions of many classes."""

    columns: list[str]
    rows: list[tuple[str, list[tuple[int, float]]]]
    pairs: list[tuple[str, str, int]]


@dataclass(frozen=True)
class Sections:
    """All of one run's part of the page; None or empty where the run's folder has nothing for it."""

    key: str
    files: RunFiles
    why_not_inspected: str
    learning: list[Picture]
    trained: list[str]
    """What dominated training, in sentences."""
    found: list[str]
    """What the inspection found, in sentences."""
    training: Training | None
    spectra: list[Picture]
    classes: dict[str, Any]
    curves: list[Picture]
    confusion: Confusion | None
    errors: list[dict[str, Any]]
    hardest: list[dict[str, Any]]


def sections(files: RunFiles, key: str, why_not_inspected: str) -> Sections:
    """Everything that the page shows of a run; `key` begins its ids, the reason stands where findings would."""
    findings = files.findings or {}
    form = form_of(files.class_loss)
    training = files.training if files.training and files.training.pictures.any() else None
    return Sections(
        key=key,
        files=files,
        why_not_inspected=why_not_inspected,
        learning=learning(files.scores, files.losses, key),
        trained=training_words(training, form, files.class_loss) if training else [],
        found=findings.get("in_words", []),
        training=_training(training, key, form) if training else None,
        spectra=_spectra(files.inspected, key) if files.inspected else [],
        classes=(findings.get("metrics") or files.metrics or {}).get("per_class", {}),
        curves=_curves(findings, key),
        confusion=_confusion(findings["confusion"]) if "confusion" in findings else None,
        errors=_errors(findings.get("errors", [])),
        hardest=[_crop(one, files.path / "inspection") for one in findings.get("hardest", [])],
    )


def learning(scores: Mapping[str, Curve], losses: Mapping[str, Curve], key: str) -> list[Picture]:
    """The learning curves over epochs, by name, of what there is."""
    drawn = []
    if scores:
        caption = "On the validation pictures, which it does not train on; higher is better."
        drawn.append(_picture(draw_scores(scores), key, "scores", "Score over the epochs", caption))
    if losses:
        caption = "What training makes small, on a log scale; different losses do not compare."
        drawn.append(_picture(draw_losses(losses), key, "losses", "Loss over the epochs", caption))
    return drawn


def _training(spectrum: SpectrumCounts, key: str, form: Any) -> Training:
    seen = seen_epochs(spectrum)
    last = spectrum[seen[-1] : seen[-1] + 1]
    drawn = [_figure(name, last, f"{key}-training") for name in ("examples", "shares")]
    return Training(len(seen), pulls(spectrum, form), drawn, Markup(spectrum_json(spectrum, form)))


_SPECTRA: dict[str, tuple[Callable[[SpectrumCounts], Figure], str, str]] = {
    "examples": (
        figures.draw_examples,
        "How many examples are how wrong",
        "From left to right the detector is more and more wrong; a rise at the right end is made of examples that it is"
        " sure of and gets wrong. Each line is ten times the one below.",
    ),
    "shares": (
        figures.draw_shares,
        "Whose gradient it is",
        "All columns of a panel are the whole gradient: grey pulls for background, orange for objects. Left as it"
        " comes, then harmonized in the two forms.",
    ),
    "class_gradients": (
        figures.draw_class_gradients,
        "How strongly each loss lets an example pull",
        "Where a line is above the black one, that loss listens more to such examples than cross entropy does.",
    ),
    "weights": (
        figures.draw_weights,
        "What harmonizing multiplies an example by",
        "At 1 nothing changes; below it, examples are held down because there are many of their kind.",
    ),
    "boxes": (
        figures.draw_boxes,
        "How many box coordinates are how far off",
        "Only objects' boxes: at .7 a coordinate is off by 2 % of its anchor's side, at .9 by 4 %.",
    ),
    "box_gradients": (
        figures.draw_box_gradients,
        "How strongly each loss lets a box coordinate pull",
        "From left to right a coordinate is further off; GHM-R takes from where there are many and gives to the few.",
    ),
}


def _spectra(spectrum: SpectrumCounts, key: str) -> list[Picture]:
    return [_figure(name, spectrum, key) for name in _SPECTRA]


def _figure(name: str, spectrum: SpectrumCounts, key: str) -> Picture:
    draw, title, caption = _SPECTRA[name]
    return _picture(draw(spectrum), key, name, title, caption, wide=name in ("examples", "shares"))


def _picture(figure: Figure, key: str, name: str, title: str, caption: str, *, wide: bool = False) -> Picture:
    # About the size in which the page shows it, so that all text is equally large.
    figure.set_size_inches((11, 3.6) if wide else (5, 3.5))
    if len(figure.axes) == 1:
        figure.axes[0].set_title("")  # the page has it
    return Picture(title, inline_svg(figure, f"{key}-{name}", f"{title}. {caption}"), caption, wide)


def _curves(findings: Mapping[str, Any], key: str) -> list[Picture]:
    drawn = []
    if "curves" in findings:
        drawn.append(
            _picture(
                draw_precision_recall(findings["curves"]),
                key,
                "precision-recall",
                "Precision over recall",
                "Keeping more detections finds more objects (to the right) and more that are none (down); the further a"
                " line stays up, the better.",
            )
        )
    if "reliability" in findings:
        drawn.append(
            _picture(
                draw_calibration(findings["reliability"]),
                key,
                "calibration",
                "Calibration",
                "If scores meant what they say, columns would reach the line: above it the detector is too modest,"
                " below it too sure.",
            )
        )
    return drawn


def _confusion(found: Mapping[str, Any]) -> Confusion:
    matrix = np.array(found["matrix"], dtype=np.int64)
    rows_of = [*found["labels"][:-1], "nothing there"]
    columns = [*found["labels"][:-1], "missed"]
    if len(columns) - 1 > MOST_CONFUSED:
        off = matrix * (1 - np.eye(len(matrix), dtype=np.int64))
        places = np.argsort(-off, axis=None, kind="stable")[:MOST_CONFUSED].tolist()
        pairs = [divmod(place, len(matrix)) for place in places]
        return Confusion([], [], [(rows_of[i], columns[j], int(off[i, j])) for i, j in pairs if off[i, j]])
    shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    cells = [list(zip(n, s, strict=True)) for n, s in zip(matrix.tolist(), shares.tolist(), strict=True)]
    return Confusion(columns, list(zip(rows_of, cells, strict=True)), [])


_ERRORS = {
    "wrong class": "in the right place, called something else",
    "badly located": "the right class, but the box overlaps the object by less than half",
    "wrong class and badly located": "called something else, and the box overlaps by less than half",
    "duplicate": "another box on an object that was found already",
    "background": "where the labels have nothing; some may be missing labels",
    "missed": "objects that no detection is near, whatever its score",
}


def _errors(errors: list[dict[str, Any]]) -> list[dict[str, Any]]:
    most = max((one["AP50_lost"] for one in errors), default=0) or 1
    return [
        one | {"meaning": _ERRORS.get(one["kind"], ""), "bar": max(one["AP50_lost"], 0) / most}
        for one in errors
    ]


def _crop(one: dict[str, Any], folder: Path) -> dict[str, Any]:
    crop = folder / one["crop"]
    uri = f"data:image/jpeg;base64,{base64.b64encode(crop.read_bytes()).decode()}" if crop.is_file() else ""
    return one | {"uri": uri, "name": Path(one["file"]).name}
