"""`ghmdet report`: runs as one HTML file that needs nothing else; what training saw, epoch by epoch, is in it."""

import base64
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from markupsafe import Markup
from matplotlib.figure import Figure

from ghmdet.engine.device import choose_device
from ghmdet.engine.run_folder import require_no_run, same_data
from ghmdet.errors import CheckpointError, GhmdetError, PartlyDone
from ghmdet.files import require_ending, write_atomic
from ghmdet.report import figures
from ghmdet.report.advice import failure
from ghmdet.report.inspection import Inspection, inspect_run
from ghmdet.report.reweighting import GUARDED, PLAIN, PUBLISHED, reweighted
from ghmdet.report.run_files import read_curves, read_metrics, require_run, short_names
from ghmdet.report.summary import few_with_most, script_json, templates, words
from ghmdet.spectrum import OBJECTS, REGIONS, Floats, SpectrumCounts

MOST_EPOCHS, MOST_CLASSES = 60, 80  # that a page holds
PULLERS = ("easy background", "hard background", "objects seen", "objects not yet seen")
MARK = b"ghmdet report</title>"  # by which a page is known
T = TypeVar("T")
MOST_CONFUSED = 20  # classes in a confusion matrix; of more, the commonest confusions are listed
WIDE = ("examples", "shares")


def write_report(
    runs: Sequence[Path],
    /,
    *,
    out: Path | None = None,
    data: Path | None = None,
    split: str | None = None,
    device: str = "auto",
    say: Callable[[str], None] = print,
) -> Path:
    """Write what runs did, saw and get wrong as one HTML page that opens anywhere (docs/report.md).

    A run whose best checkpoint was not yet inspected on this data is inspected first: a pass over the data.

    Args:
        runs: Folders of training runs, finished or not; several are put side by side.
        out: The file; by default `report.html` in the run's folder, or in the current one for several runs.
        data: Data set to inspect the best checkpoint on, as of `ghmdet train`; by default the one it was trained on.
        split: Part of the data set; by default the one it was validated on.
        device: auto, cpu or cuda, for the inspection.
        say: Takes each line meant for the user.

    Returns:
        The file.

    Raises:
        GhmdetError: a folder that is no run, a device that is not there, or `data` or `split` that cannot be used.
            Without those two, an inspection that fails is told in the report, and so is a file of the run that is
            damaged.
        PartlyDone: after the page is written: a run's best checkpoint cannot be read.
    """
    choose_device(device)
    paths = list(dict.fromkeys(Path(run).resolve() for run in runs))
    if not paths:
        raise GhmdetError("no run is given: name at least one folder of `ghmdet train`")
    if out is None:
        out = paths[0] / "report.html" if len(paths) == 1 else Path("report.html")
    require_ending("--out", out, ".html", ".htm")
    for path in paths:
        require_run(path)
    if paths != [out.parent.resolve()]:
        require_no_run(out.parent)
    if out.resolve() != paths[0] / "report.html":
        _require_own(out)
    shown, failed, damaged = [], list[str](), list[str]()
    for number, (path, name) in enumerate(zip(paths, short_names(paths), strict=True), start=1):
        shown.append(_run(path, name, f"r{number}", *_inspect(path, data, split, device, say, damaged)))
        for damage in shown[-1]["damage"]:
            say(damage)
        if shown[-1]["failure"]:
            failed.append(f"{path}: {shown[-1]['failure']}")
    together = {}
    if len(shown) > 1:
        scores = {one["name"]: one["scores"]["AP"] for one in shown if "AP" in one["scores"]}
        losses = {one["name"]: one["losses"]["whole"] for one in shown if "whole" in one["losses"]}
        together["learning"] = _learning(scores, losses, "together")
        together["classes"] = list(dict.fromkeys(name for one in shown for name in one["classes"]))
    page = templates().get_template("page.html.jinja")
    write_atomic(out, page.render(runs=shown, together=together, pullers=PULLERS).lstrip())
    for line in (f"written: {out}", *failed):
        say(line)
    if damaged:
        raise PartlyDone(f"{out} lacks what best.pt does: {'; '.join(damaged)}")
    return out


def write_gradient_page(spectrum: SpectrumCounts, out: Path, name: str) -> Path:
    """Write a report's sections on what training saw, of any model's spectrum, as one HTML page; the file.

    name: what the model is called.
    """
    require_ending("the page", out, ".html", ".htm")
    _require_own(out)
    shown = {"name": name, "key": "r1", "training": _training(spectrum, "", "r1")}
    page = templates().get_template("page.html.jinja")
    write_atomic(out, page.render(runs=[shown], together={}, pullers=PULLERS).lstrip())
    return out


def _require_own(out: Path) -> None:
    """Raise GhmdetError where a page would replace something else than a report."""
    if out.is_file():
        with out.open("rb") as page:
            if MARK not in (page.read(1 << 16) or MARK):
                raise GhmdetError(f"{out} is no report of ghmdet, and would be replaced: give another name")


def _inspect(
    run: Path,
    data: Path | None,
    split: str | None,
    device: str,
    say: Callable[[str], None],
    damaged: list[str],
) -> tuple[Inspection | None, str]:
    """What a run's best checkpoint does, and a note on it or why it could not be inspected; that of best.pt itself
    is added to `damaged`.
    """
    if not any((run / file).is_file() for file in ("best.pt", "metrics.json")):
        return None, "The run has no best.pt yet: it is written at the first validation that finds an object."
    try:
        inspection = inspect_run(run, data=data, split=split, device=device, say=say)
    except GhmdetError as error:
        if data is not None or split is not None:
            raise
        say(f"{run}: not inspected: {error}")
        damaged += [str(error)] if isinstance(error, CheckpointError) else []
        return None, f"The best checkpoint could not be inspected: {error}."
    if inspection.note:
        say(f"{run}: {inspection.note}")
    return inspection, inspection.note


def _run(run: Path, name: str, key: str, inspection: Inspection | None, note: str) -> dict[str, Any]:
    """Everything that the page shows of a run; None or empty where there is nothing to show.

    Args:
        run: its folder.
        name: what it is called.
        key: begins the ids of its sections.
        inspection: what its best checkpoint was found to do, if it could be inspected.
        note: why it could not, or what a reader should know of the inspection.
    """
    made, damage = require_run(run), list[str]()

    def whole(read: Callable[[Path], T], file: str) -> T | None:
        try:
            return read(run / file) if (run / file).exists() else None
        except GhmdetError as error:
            damage.append(str(error))
            return None

    metrics = whole(read_metrics, "metrics.json")
    training = whole(SpectrumCounts.load, "spectrum.npz")
    scores, losses, validated = read_curves(run, damage)
    shown: dict[str, Any] = {
        "name": name,
        "key": key,
        "made": made,
        "damage": damage,
        "note": note,
        "failure": failure(run),
        "helped": inspection and not failure(run),
        "metrics": metrics,
        "validated": validated,
        "scores": scores,
        "losses": losses,
        "learning": _learning(scores, losses, key),
        "training": _training(training, str(made["arguments"].get("cls_loss")), key) if training else None,
        "classes": (metrics or {}).get("per_class", {}),
    }
    return shown | (_inspected(inspection, run, key) if inspection else {})


def _learning(
    scores: Mapping[str, figures.LineData], losses: Mapping[str, figures.LineData], key: str
) -> list[dict[str, Any]]:
    """The learning curves over epochs, by name, of what there is."""
    curves = {"score": scores, "loss": losses}
    return _plots({name: figures.draw_learning(each, name) for name, each in curves.items() if each}, key)


def _plots(drawn: Mapping[str, Figure], key: str) -> list[dict[str, Any]]:
    """Figures as SVG, with their titles; `key` begins their ids."""
    made = []
    for name, figure in drawn.items():
        wide = name in WIDE
        # About the size in which the page shows it, so that all text is equally large.
        figure.set_size_inches((11, 3.6) if wide else (5, 3.5))
        title = figure.get_suptitle()
        figure.suptitle("")  # the page has it
        svg = figures.inline_svg(figure, f"{key}-{name}", title)
        made.append({"name": name, "title": title, "svg": svg, "wide": wide})
    return made


def _training(spectrum: SpectrumCounts, class_loss: str, key: str) -> dict[str, Any] | None:
    """Which examples pulled in training, the figures of its last epoch, and all epochs' numbers for the slider."""
    epochs = each_epoch(spectrum)
    if not epochs:
        return None
    form = PUBLISHED if class_loss == "ghm-c-published" else GUARDED
    last = epochs[max(epochs)]
    return {
        "epochs": len(epochs),
        "pulls": pulls(spectrum, form),
        "in_words": training_words(spectrum, form, class_loss),
        "plots": _plots({name: figures.OF_SPECTRUM[name](last) for name in WIDE}, f"{key}-training"),
        "json": slider_json(spectrum, form),
    }


def _inspected(inspection: Inspection, run: Path, key: str) -> dict[str, Any]:
    """What the inspection adds: findings, and where they were found, with the data set unless it is the run's own."""
    found = inspection.findings
    arguments = require_run(run)["arguments"]
    own = same_data(found["data"], arguments.get("data"))
    curves = {"precision-recall": figures.draw_precision_recall(found["curves"])}
    if found["reliability"]:
        curves["reliability"] = figures.draw_reliability(found["reliability"])
    spectra = {name: draw(inspection.spectrum) for name, draw in figures.OF_SPECTRUM.items()}
    return {
        "found": found,
        "again": own and found["made_of"]["split"] == arguments.get("val_split"),
        "where": f"‘{found['split']}’" + ("" if own else f" of {found['data']}"),
        "classes": found["metrics"]["per_class"],
        "spectra": _plots(spectra, key),
        "curves": _plots(curves, key),
        "confusion": _confusion(found["confusion"]),
        "costliest": max(one["AP50_lost"] for one in found["errors"]) or 1,
        "hardest": [_with_picture(one, run / "inspection") for one in found["hardest"]],
    }


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


def _with_picture(one: dict[str, Any], folder: Path) -> dict[str, Any]:
    crop = folder / one["crop"]
    uri = f"data:image/jpeg;base64,{base64.b64encode(crop.read_bytes()).decode()}" if crop.is_file() else ""
    return one | {"uri": uri, "name": Path(one["file"]).name}


def each_epoch(spectrum: SpectrumCounts) -> dict[int, SpectrumCounts]:
    """Its epochs by number, from 1, without empty ones (there are some if a run resumed without its file)."""
    return {int(i) + 1: spectrum[i : i + 1] for i in np.flatnonzero(spectrum.pictures)}


def pulls(spectrum: SpectrumCounts, form: str) -> dict[int, dict[str, list[float]]]:
    """The shares of :data:`PULLERS` in the gradient of the first epoch and of the last, by loss: PLAIN and `form`.

    Without epochs that have no gradient.
    """
    epochs = each_epoch(spectrum)
    return {
        number: {loss: _by_puller(reweighted(epochs[number], loss)) for loss in (PLAIN, form)}
        for number in sorted({*list(epochs)[:1], *list(epochs)[-1:]})
        if epochs[number].gradient.any()
    }


def training_words(spectrum: SpectrumCounts, form: str, class_loss: str) -> list[str]:
    """What dominated training, a sentence each, the most telling first."""
    found = pulls(spectrum, form)
    if not found:
        return ["Training saw no examples, so nothing can be said of what dominated it."]
    first, last = found[min(found)], found[max(found)]
    began, top = (PULLERS[int(np.argmax(one[PLAIN]))] for one in (first, last))
    return words(
        "training",
        began=began,
        top=top,
        first=max(first[PLAIN]),
        last=max(last[PLAIN]),
        before=few_with_most(spectrum[min(found) - 1 : min(found)]) if len(found) > 1 else None,
        few=few_with_most(spectrum[max(found) - 1 : max(found)]),
        trained=class_loss.startswith("ghm-c"),
        form=form,
        plain=sum(last[PLAIN][2:]),
        harmonized=sum(last[form][2:]),
    )


def slider_json(spectrum: SpectrumCounts, form: str) -> Markup:
    """What the page's slider shows of training, as compact JSON for a <script>.

    `epochs`: their numbers, at most 60 spread evenly, the first and the last among them. `classes`: "all classes", then
    each of them, or of more than 80 the 40 with the most objects and the 40 with the fewest. `counts` [E, 1 + K, 2, M]:
    1000 log10 of the number of examples, -1 where there are none. `before` and `after`, likewise: thousandths of the
    class's own gradient under cross entropy and harmonized. `share` [E, 1 + K, 2]: percent that the class has of the
    whole gradient, before and after. `objects`, likewise: percent of the class's own gradient that objects have.
    """
    epochs = each_epoch(spectrum)
    places = np.linspace(0, len(epochs) - 1, min(len(epochs), MOST_EPOCHS)).round().astype(int)
    shown = [list(epochs)[place] for place in places]
    order = np.argsort(-spectrum.examples[:, OBJECTS].sum(axis=(0, 2, 3)), kind="stable").tolist()
    if len(order) > MOST_CLASSES:
        order = order[: MOST_CLASSES // 2] + order[-MOST_CLASSES // 2 :]
    order.sort()

    def table(of: Callable[[SpectrumCounts], Floats]) -> Floats:
        """[2, K, M] of each epoch as [E, 1 + classes in `order`, 2, M], the sum over all classes first."""
        by_class = np.stack([of(epochs[number]) for number in shown]).swapaxes(1, 2)
        return np.concatenate([by_class.sum(axis=1, keepdims=True), by_class[:, order]], axis=1)

    counts = table(lambda one: one.examples[0].sum(axis=2).astype(float))
    pair = [table(partial(reweighted, loss=loss)) for loss in (PLAIN, form)]
    sums = [each.sum(axis=(2, 3)) for each in pair]  # [E, 1 + K]
    before, after = (
        np.rint(1000 * each / np.where(whole > 0, whole, 1)[..., None, None])
        for each, whole in zip(pair, sums, strict=True)
    )
    share = 100 * np.stack(sums, axis=2) / np.maximum(sums[0][:, :1, None], np.finfo(float).tiny)
    own = [
        100 * each[:, :, OBJECTS].sum(axis=2) / np.where(whole > 0, whole, 1)
        for each, whole in zip(pair, sums, strict=True)
    ]
    values = {
        "epochs": shown,
        "classes": ["all classes", *(spectrum.classes[k] for k in order)],
        "form": form,
        "counts": np.where(counts > 0, np.rint(1000 * np.log10(np.maximum(counts, 1))), -1)
        .astype(int)
        .tolist(),
        "before": before.astype(int).tolist(),
        "after": after.astype(int).tolist(),
        "share": share.round(4).tolist(),
        "objects": np.stack(own, axis=2).round(4).tolist(),
    }
    return script_json(values)


def _by_puller(gradient: Floats) -> list[float]:
    """The shares of [2, K, M] by kind and half of the regions."""
    parts = gradient.sum(axis=1).reshape(2, 2, REGIONS // 2).sum(axis=2).ravel()
    shares: list[float] = (parts / (parts.sum() or 1.0)).tolist()
    return shares
