"""The figures: each function takes numbers and returns a matplotlib Figure (docs/spectrum.md explains them).

Every histogram, bar, line and map has a label, by which tests find what is drawn.
"""

import io
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from cycler import cycler
from markupsafe import Markup, escape
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.font_manager import fontManager
from matplotlib.ticker import MaxNLocator

from ghmdet.draw import WIDE_FONTS, short
from ghmdet.evaluation.findings import Curve
from ghmdet.evaluation.matching import Reliability
from ghmdet.files import write_atomic
from ghmdet.report import reweighting
from ghmdet.report.reweighting import CENTRES, GUARDED, PLAIN, PUBLISHED
from ghmdet.spectrum import BACKGROUND, MU, OBJECTS, REGIONS, Floats, Ints, SpectrumCounts

INK, MUTED, ACCENT = "#000000", "#7a8ca3", "#e4572e"
COLOURS = (ACCENT, "#2e86ab", "#3a9d5d", "#c99a1c", "#b0416b", "#8f5fbf", "#1b998b", MUTED)
KINDS = {"background": MUTED, "objects": ACCENT}
LOSSES = {
    PLAIN: INK,
    "focal": "#2e86ab",
    "OHEM": "#c99a1c",
    PUBLISHED: "#8f5fbf",
    GUARDED: ACCENT,
    "smooth L1": "#2e86ab",
    "authentic smooth L1": INK,
    "GHM-R": ACCENT,
}
STYLE: Any = {
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.prop_cycle": cycler(color=COLOURS),
    "axes.spines.right": False,
    "axes.spines.top": False,
    "figure.constrained_layout.use": True,
    "font.family": [
        "DejaVu Sans",
        *(name for name in fontManager.get_font_names() if WIDE_FONTS.match(name) and name != "DejaVu Sans"),
    ],
    "grid.alpha": 0.25,
}
FARTHEST = 0.3  # |d| in the figure of the box losses
G = "gradient norm g: 0 right, 1 wrong"
LineData = tuple[Sequence[float], Sequence[float]]  # x, y


def draw_examples(spectrum: SpectrumCounts) -> Figure:
    """The article's first figure: the number of examples over g, background and objects apart, on a log scale."""
    figure, (axes,) = new_figure("How many examples are how wrong", G, "examples")
    counts = spectrum.examples[-1].sum(axis=(1, 2))  # [2, M]
    _histograms(axes, dict(zip(KINDS, counts, strict=True)), list(KINDS.values()))
    return figure


def draw_runs(spectra: Mapping[str, SpectrumCounts]) -> Figure:
    """The number of examples over g of several detectors, by name, on a log scale: background left, objects right."""
    figure, both = new_figure("How many examples are how wrong", "gradient norm g", "examples", 2)
    for kind, (name, axes) in enumerate(zip(KINDS, both, strict=True)):
        counts = {run: each.examples[-1, kind].sum(axis=(0, 1)) for run, each in spectra.items()}
        _histograms(axes, counts, [COLOURS[i % len(COLOURS)] for i in range(len(counts))], filled=False)
        axes.set_title(name)
    return figure


def draw_boxes(spectrum: SpectrumCounts) -> Figure:
    """The article's second figure: the number of coordinates of objects' boxes over gr, on a log scale."""
    title, xlabel = "How many box coordinates are how far off", "gradient norm gr: 0 exact, 1 far off"
    figure, (axes,) = new_figure(title, xlabel, "box coordinates")
    _histograms(axes, {"objects": spectrum.boxes[-1].sum(axis=(0, 1))}, [ACCENT])
    return figure


def draw_class_gradients(spectrum: SpectrumCounts) -> Figure:
    """The article's third figure: how strongly an example pulls under each class loss, on a log scale.

    All losses have the same total gradient over the examples of the spectrum.
    """
    figure, (axes,) = new_figure("How strongly a loss lets an example pull", G, "pull of one example")
    _lines_by_region(axes, reweighting.class_gradients(spectrum))
    return figure


def draw_box_gradients(spectrum: SpectrumCounts) -> Figure:
    """The article's fourth figure: how strongly a coordinate that is off by |d| pulls under each box loss.

    GHM-R has authentic smooth L1's total gradient over the coordinates of the spectrum.
    """
    title, xlabel = "How strongly a loss lets a box coordinate pull", "|d|, in sides of the anchor"
    figure, (axes,) = new_figure(title, xlabel, "pull of one coordinate")
    difference = MU * np.tan(np.linspace(0, np.arctan(FARTHEST / MU), 301))  # dense where gr changes
    for loss, values in reweighting.box_gradients(spectrum, difference).items():
        axes.plot(difference, values, color=LOSSES[loss], label=loss, linewidth=2)
    axes.set(xlim=(0, FARTHEST), ylim=(0, None))
    _legend(axes)
    return figure


def draw_shares(spectrum: SpectrumCounts) -> Figure:
    """The share of the whole gradient by region of g, before and after harmonizing, background on top of objects."""
    title, ylabel = "Which examples the gradient comes from", "share of the whole gradient, %"
    figure, panels = new_figure(title, "gradient norm g", ylabel, 3, sharey=True)
    for axes, (loss, shares) in zip(panels, reweighting.gradient_shares(spectrum).items(), strict=True):
        below = np.zeros(REGIONS)
        for kind, name in ((OBJECTS, "objects"), (BACKGROUND, "background")):
            axes.bar(CENTRES, 100 * shares[kind], 1 / REGIONS, bottom=below, color=KINDS[name], label=name)
            below = below + 100 * shares[kind]
        axes.set_title(f"{loss}: objects {100 * shares[OBJECTS].sum():.0f} %")
    _legend(panels[0])
    return figure


def draw_epochs(spectrum: SpectrumCounts) -> Figure:
    """The number of examples over g in each epoch as a heat map, background and objects apart; white: none."""
    figure, both = new_figure("How many examples are how wrong", "gradient norm g", "epoch", 2, sharey=True)
    counts = spectrum.examples.sum(axis=(2, 3)).astype(float)  # [E, 2, M]
    for axes, name, rows in zip(both, KINDS, counts.transpose(1, 0, 2), strict=True):
        least = rows[rows > 0].min(initial=max(rows.max(), 1))
        cells = axes.imshow(  # an image, so that the file does not grow with the epochs
            np.ma.masked_equal(rows, 0),
            norm=LogNorm(least, max(rows.max(), 2 * least)),
            cmap="magma_r",
            origin="lower",
            extent=(0, 1, 0.5, len(rows) + 0.5),
            aspect="auto",
            interpolation="none",
            label=name,
        )
        axes.set_title(name)
        axes.grid(False)
        axes.yaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        figure.colorbar(cells, ax=axes)
    return figure


def draw_weights(spectrum: SpectrumCounts) -> Figure:
    """The weight that GHM-C gives an example by region of g, on a log scale; 1 is its weight in cross entropy.

    The published form has one weight for all classes. Of the guarded form's classes at most eight are drawn, the four
    with the most objects and the four with the fewest.
    """
    figure, (axes,) = new_figure("What harmonizing multiplies an example by", G, "weight of one example")
    axes.axhline(1, color=INK, linewidth=1, label=PLAIN)
    guarded = reweighting.class_weights(spectrum, GUARDED)
    lines = {PUBLISHED: reweighting.class_weights(spectrum, PUBLISHED).max(axis=0)}
    objects = spectrum.examples[-1, OBJECTS].sum(axis=(1, 2))
    for k in _first_and_last(np.argsort(-objects, kind="stable").tolist()):
        lines[f"guarded: {spectrum.classes[k]}"] = guarded[k]
    _lines_by_region(axes, lines)
    return figure


def draw_reliability(reliability: Reliability) -> Figure:
    """The share of detections that hit over their score, and below it how many hit and miss at each score (log scale).

    reliability: as `ghmdet.evaluation.findings.find` gives it.
    """
    figure, (above, below) = new_figure("Do scores mean what they say", "score", "share that hits", rows=2)
    edges, share = np.array(reliability["edges"]), np.array(reliability["share"], dtype=float)
    share = np.nan_to_num(share)
    places = (edges[:-1] + edges[1:]) / 2
    above.bar(places, share, 0.94 * np.diff(edges), color=ACCENT, label="share that hits")
    above.plot([0, 1], [0, 1], color=INK, linewidth=1, label="what scores promise")
    above.set(xlabel="", ylim=(0, 1.02))
    _legend(above, loc="upper left")
    detections = np.array(reliability["detections"], dtype=np.int64)
    hits = np.rint(share * detections).astype(np.int64)
    counts = {"misses": detections - hits, "hits": hits}
    _histograms(below, counts, [MUTED, ACCENT], ncols=2, loc="upper center")
    below.set_ylabel("detections")
    return figure


def draw_precision_recall(curves: Mapping[str, Curve | None]) -> Figure:
    """Precision over recall at IoU .50 of each class, and their mean; of more than eight the four best and worst.

    curves: by class, as `ghmdet.evaluation.findings.find` gives them.
    """
    xlabel, ylabel = (
        "recall: share of the objects found (IoU .50)",
        "precision: share of detections that are right",
    )
    figure, (axes,) = new_figure("Precision over recall", xlabel, ylabel)
    known = {name: np.array(curve["precision"]) for name, curve in curves.items() if curve is not None}
    places = np.linspace(0, 1, 101)
    for name in _first_and_last(sorted(known, key=lambda name: -known[name].mean())):
        axes.plot(places, known[name], label=name, linewidth=1.8)
    if len(known) > 1:
        mean = np.mean(list(known.values()), axis=0)
        axes.plot(places, mean, "--", color=INK, label=f"mean of {len(known)} classes", linewidth=1.8)
    axes.set(xlim=(0, 1), ylim=(0, 1.02))
    _legend(axes, loc="lower left")
    if not known:
        _say_none(axes)
    return figure


def draw_learning(curves: Mapping[str, LineData], what: str) -> Figure:
    """Validation scores in 0..1 or losses (`what` is "score" or "loss", which has a log scale) over epochs, by name."""
    figure, (axes,) = new_figure(f"{what.capitalize()} over the epochs", "epoch", what)
    for name, (x, y) in curves.items():
        axes.plot(x, y, marker="o" if what == "score" else "", markersize=3, label=name, linewidth=1.8)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.set_ylim(0, 1) if what == "score" else _log_scale(axes)
    _legend(axes)
    return figure


OF_SPECTRUM = {
    "examples": draw_examples,
    "shares": draw_shares,
    "class_gradients": draw_class_gradients,
    "weights": draw_weights,
    "boxes": draw_boxes,
    "box_gradients": draw_box_gradients,
}
"""The figures of a trained detector's spectrum, by file name."""


def new_figure(
    title: str, xlabel: str, ylabel: str, columns: int = 1, *, rows: int = 1, sharey: bool = False
) -> tuple[Figure, list[Axes]]:
    """A titled figure in our style and its panels, side by side or in `rows`; the first row is three times as high."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(7, 4.2) if columns == 1 else (1 + 3.5 * columns, 3.8))
        heights = [3, *[1] * (rows - 1)]
        panels = figure.subplots(
            rows, columns, squeeze=False, sharex=rows > 1, sharey=sharey, height_ratios=heights
        )
        figure.suptitle(title)
    for axes in panels.flat:
        axes.set_xlabel(xlabel)
    panels.flat[0].set_ylabel(ylabel)
    return figure, list(panels.flat)


def save_figure(figure: Figure, path: Path) -> list[Path]:
    """Write a figure as PATH.svg and PATH.png, whole or not at all, the same bytes each time; the two paths."""
    return [
        write_atomic(path.with_suffix(".svg"), _svg(figure, "ghmdet")),
        write_atomic(path.with_suffix(".png"), lambda file: _render(figure, file, format="png", dpi=120)),
    ]


def inline_svg(figure: Figure, name: str, label: str) -> Markup:
    """The figure as an <svg> element of an HTML page: transparent, its ink in the colour of the page's text.

    name: begins all ids of the element; no two figures of a page may have the same. label: what screen readers say.
    """
    drawing = _svg(figure, name, transparent=True).partition("<svg")[2].replace(INK, "currentColor")
    for before in (' id="', 'xlink:href="#', "url(#"):
        drawing = drawing.replace(before, f"{before}{name}-")
    return Markup(f'<svg role="img" aria-label="{escape(label)}"{drawing}')  # matplotlib escapes text


def _svg(figure: Figure, salt: str, **options: Any) -> str:
    """The figure as SVG whose text stays text: small, and open to search and to screen readers."""
    drawing = io.StringIO()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": salt}):
        _render(figure, drawing, format="svg", metadata=nothing, **options)
    return drawing.getvalue()


def _render(figure: Figure, file: Any, **options: Any) -> None:
    with warnings.catch_warnings():
        # Letters that no font here has: an SVG is shown with the fonts of whoever opens it.
        warnings.filterwarnings("ignore", "Glyph")
        figure.savefig(file, **options)


def _histograms(
    axes: Axes, counts: Mapping[str, Ints], colours: Sequence[str], *, filled: bool = True, **legend: Any
) -> None:
    """Counts over equal parts of 0..1 by name, on a log scale from just below one; the first of them filled."""
    for number, ((name, row), colour) in enumerate(zip(counts.items(), colours, strict=True)):
        edges = np.linspace(0, 1, len(row) + 1)
        axes.stairs(row, edges, color=colour, label=name, fill=filled and number == 0, linewidth=2)
    axes.set_xlim(0, 1)
    if most := max(row.max() for row in counts.values()):
        axes.set(yscale="log", ylim=(0.7, 2 * most))
    else:
        _say_none(axes)
    _legend(axes, **legend)


def _say_none(axes: Axes) -> None:
    axes.set_yticks([])
    axes.text(0.5, 0.5, "none", ha="center", color=MUTED, transform=axes.transAxes)


def _lines_by_region(axes: Axes, lines: Mapping[str, Floats]) -> None:
    """Values by region of g on a log scale, with gaps where they are 0 or NaN."""
    for name, values in lines.items():
        seen, style = np.where(values > 0, values, np.nan), "--o" if name == PUBLISHED else "-o"
        axes.plot(CENTRES, seen, style, color=LOSSES.get(name), label=name, linewidth=2, markersize=2.5)
    _log_scale(axes)
    _legend(axes)


def _log_scale(axes: Axes) -> None:
    """A log scale, where there is anything to show on it."""
    if any((np.asarray(line.get_ydata(), float) > 0).any() for line in axes.lines):
        axes.set_yscale("log")


def _legend(axes: Axes, **options: Any) -> None:
    """A legend, where there is anything to name, that takes names as they are: a class may be called $x$."""
    if axes.get_legend_handles_labels()[1]:
        for text in axes.legend(frameon=False, **options).get_texts():
            text.set_parse_math(False)
            text.set_text(short(text.get_text()))


def _first_and_last(names: list[Any]) -> list[Any]:
    """At most eight: of more, the first four and the last four."""
    return names if len(names) <= 8 else names[:4] + names[-4:]
