"""What the page shows of one run, as plain values for the template: text, tables, figures as SVG, crops as URIs."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from markupsafe import Markup
from matplotlib.figure import Figure

from ghmdet.errors import GhmdetError
from ghmdet.report import figures
from ghmdet.report.inspection import Inspection
from ghmdet.report.run_files import read_curves, read_metrics, require_run
from ghmdet.report.training import each_epoch, form_of, pulls, slider_json, training_words
from ghmdet.spectrum import SpectrumCounts

MOST_CONFUSED = 20  # classes in a confusion matrix; of more, the commonest confusions are listed
WIDE = ("examples", "shares")
CAPTIONS = {
    "scores": "On the validation pictures, which training does not use; higher is better.",
    "losses": "What training makes small, on a log scale. Different losses cannot be compared.",
    "examples": "From left to right the detector is more and more wrong. A rise at the right end means examples that it"
    " is sure of and gets wrong. Each line is ten times the one below.",
    "shares": "The columns of a panel add up to the whole gradient: grey pulls for background, orange for objects. Left"
    " under cross entropy, then harmonized in both forms.",
    "class_gradients": "Where a line is above the black one, that loss gives such examples more say than cross entropy"
    " does.",
    "weights": "At 1 nothing changes. Below 1, examples are held down because there are many of their kind.",
    "boxes": "Boxes of objects only: at .7 a coordinate is off by 2 % of its anchor's side, at .9 by 4 %.",
    "box_gradients": "From left to right a coordinate is further off. GHM-R takes from the many and gives to the few.",
    "precision-recall": "Keeping more detections finds more objects (further right), but more of the detections are"
    " wrong (further down). The longer a line stays up, the better.",
    "reliability": "If scores meant what they say, the columns would reach the line. Above it the detector is too"
    " modest, below it too sure.",
}
ERRORS = {
    "wrong class": "in the right place, but with another class",
    "badly located": "the right class, but the box overlaps the object by less than half",
    "wrong class and badly located": "another class, and the box overlaps the object by less than half",
    "duplicate": "one more box on an object that was found already",
    "background": "where nothing is labelled; some may be missing labels",
    "missed": "objects that no detection is near, whatever its score",
}


class Plot(NamedTuple):
    """A figure with its title and how to read it."""

    title: str
    svg: Markup
    caption: str
    wide: bool


def sections(run: Path, name: str, key: str, inspection: Inspection | None, note: str) -> dict[str, Any]:
    """Everything that the page shows of a run; parts are None or empty where there is nothing to show.

    Args:
        run: its folder.
        name: what it is called.
        key: begins the ids of its part of the page.
        inspection: what its best checkpoint was found to do, if it could be inspected.
        note: why it could not, or what a reader should know of the inspection.
    """
    made, damage = require_run(run), list[str]()
    metrics = spectrum = None
    try:
        metrics = read_metrics(run)
    except GhmdetError as error:
        damage.append(str(error))
    try:
        spectrum = SpectrumCounts.load(run / "spectrum.npz") if (run / "spectrum.npz").exists() else None
    except GhmdetError as error:
        damage.append(str(error))
    scores, losses, validated = read_curves(run, damage)
    found = inspection.findings if inspection else {}
    return {
        "name": name,
        "key": key,
        "made": made,
        "damage": damage,
        "note": note,
        "metrics": metrics,
        "validated": validated,
        "scores": scores,
        "losses": losses,
        "learning": learning(scores, losses, key),
        "training": _training(spectrum, str(made["arguments"].get("cls_loss")), key) if spectrum else None,
        "found": found,
        "where": _where(found, made["arguments"]),
        "spectra": _of_spectrum(inspection.spectrum, key) if inspection else [],
        "classes": (found.get("metrics") or metrics or {}).get("per_class", {}),
        "curves": _curves(found, key) if found else [],
        "confusion": _confusion(found["confusion"]) if found else {},
        "errors": _errors(found["errors"]) if found else [],
        "hardest": [_with_picture(one, run / "inspection") for one in found.get("hardest", [])],
    }


def learning(
    scores: Mapping[str, figures.LineData], losses: Mapping[str, figures.LineData], key: str
) -> list[Plot]:
    """The learning curves over epochs, by name, of what there is."""
    drawn = {"scores": figures.draw_scores(scores)} if scores else {}
    drawn |= {"losses": figures.draw_losses(losses)} if losses else {}
    return [_plot(figure, key, name) for name, figure in drawn.items()]


def _training(spectrum: SpectrumCounts, class_loss: str, key: str) -> dict[str, Any] | None:
    """Which examples pulled in training, the figures of its last epoch, and all epochs' numbers for the slider."""
    form, epochs = form_of(class_loss), each_epoch(spectrum)
    if not epochs:
        return None
    last = epochs[max(epochs)]
    return {
        "epochs": len(epochs),
        "pulls": pulls(spectrum, form),
        "in_words": training_words(spectrum, form, class_loss),
        "plots": [_plot(figures.OF_SPECTRUM[name](last), f"{key}-training", name) for name in WIDE],
        "json": Markup(slider_json(spectrum, form)),
    }


def _where(found: Mapping[str, Any], arguments: Mapping[str, Any]) -> str:
    """The pictures that were inspected, with the data set unless it is the run's own."""
    if not found:
        return ""
    own = Path(str(arguments.get("data"))).resolve() == Path(found["data"]).resolve()
    return f"‘{found['split']}’" + ("" if own else f" of {found['data']}")


def _of_spectrum(spectrum: SpectrumCounts, key: str) -> list[Plot]:
    return [_plot(draw(spectrum), key, name) for name, draw in figures.OF_SPECTRUM.items()]


def _curves(found: Mapping[str, Any], key: str) -> list[Plot]:
    drawn = [_plot(figures.draw_precision_recall(found["curves"]), key, "precision-recall")]
    if found["reliability"]:
        drawn.append(_plot(figures.draw_reliability(found["reliability"]), key, "reliability"))
    return drawn


def _plot(figure: Figure, key: str, name: str) -> Plot:
    # About the size in which the page shows it, so that all text is equally large.
    wide = name in WIDE
    figure.set_size_inches((11, 3.6) if wide else (5, 3.5))
    title, caption = figure.get_suptitle(), CAPTIONS[name]
    figure.suptitle("")  # the page has it
    return Plot(title, figures.inline_svg(figure, f"{key}-{name}", f"{title}. {caption}"), caption, wide)


def _confusion(found: Mapping[str, Any]) -> dict[str, Any]:
    """Columns' names and rows of (name, [(count, share of the row)]), or the commonest confusions of many classes."""
    matrix, names = np.array(found["matrix"], dtype=np.int64), found["labels"][:-1]
    labelled, detected = [*names, "nothing there"], [*names, "missed"]
    if len(names) > MOST_CONFUSED:
        wrong = matrix * (1 - np.eye(len(matrix), dtype=np.int64))
        places = np.argsort(-wrong, axis=None, kind="stable")[:MOST_CONFUSED]
        pairs = [(i, j) for i, j in zip(*np.unravel_index(places, wrong.shape), strict=True) if wrong[i, j]]
        return {"pairs": [(labelled[i], detected[j], int(wrong[i, j])) for i, j in pairs]}
    shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    cells = [list(zip(*row, strict=True)) for row in zip(matrix.tolist(), shares.tolist(), strict=True)]
    return {"columns": detected, "rows": list(zip(labelled, cells, strict=True))}


def _errors(errors: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    most = max(one["AP50_lost"] for one in errors) or 1
    return [
        {**one, "meaning": ERRORS.get(one["kind"], ""), "bar": max(one["AP50_lost"], 0) / most}
        for one in errors
    ]


def _with_picture(one: dict[str, Any], folder: Path) -> dict[str, Any]:
    crop = folder / one["crop"]
    uri = f"data:image/jpeg;base64,{base64.b64encode(crop.read_bytes()).decode()}" if crop.is_file() else ""
    return one | {"uri": uri, "name": Path(one["file"]).name}
