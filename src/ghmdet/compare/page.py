"""A comparison as a table, a markdown page and pictures."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from ghmdet.files import write_atomic

COLOURS = ("#30343b", "#e4572e", "#2e86ab", "#8f5fbf", "#3a9d5d", "#c99a1c", "#b0416b", "#7a8ca3")
HEADS = ("arm", "weight", "AP", "AP50", "difference", "95 % interval", "P(better)", "min", "MiB")


def rows(figures: dict[str, Any]) -> list[list[str]]:
    """A row an arm under `HEADS`; means over the seeds, ± their standard deviation."""
    found = []
    for name, arm in figures["arms"].items():
        if "failed" in arm:
            found.append([name, "failed", *["-"] * 7])
            continue
        edge = "*" if arm["weight_at_edge"] else ""
        found.append(
            [
                name,
                f"{arm['weight']:g}{edge}",
                _spread(arm["AP"]),
                _spread(arm["AP50"]),
                *_difference(arm["difference"]),
                f"{arm['cost']['minutes']:.1f}",
                "-" if arm["cost"]["memory"] is None else f"{arm['cost']['memory']:.0f}",
            ]
        )
    return found


def _spread(figure: dict[str, Any]) -> str:
    return f"{figure['mean']:.3f}" + ("" if figure["std"] is None else f" ± {figure['std']:.3f}")


def _difference(difference: dict[str, float] | None) -> list[str]:
    if difference is None:
        return ["-"] * 3
    mean, low, high = (difference[key] for key in ("mean", "low", "high"))
    return [f"{mean:+.3f}", f"{low:+.3f} to {high:+.3f}", f"{difference['probability_better']:.2f}"]


def notes(figures: dict[str, Any]) -> list[str]:
    """What a reader of the table must know, a sentence each."""
    seeds, arms = figures["seeds"], figures["arms"]
    first = figures["first"]
    said = [
        f"Judged on {figures['pictures']} pictures ({figures['split']}), the last weights of {len(seeds)} seed(s) an"
        f" arm; differences from '{first}' are paired, their 95 % intervals are over {figures['statistics']['over']}."
    ]
    if len(seeds) == 1:
        said.append(
            "One seed: the intervals say nothing of what another seed would give. Give --seeds 3 or more."
        )
    elif len(seeds) == 2:
        said.append(
            "Two seeds hardly tell how much seeds differ, so the intervals are wide. Give --seeds 3 or more."
        )
    if "failed" in arms[first] and len(arms) > 1:
        said.append(
            f"'{first}' failed, so there is nothing to take differences from: name another arm first."
        )
    said += [
        f"*: the best weight of '{name}' lies at the edge of its grid even after it was extended: wider may be better."
        for name, arm in arms.items()
        if arm.get("weight_at_edge")
    ]
    said += [f"'{name}' failed: {arm['failed']}" for name, arm in arms.items() if "failed" in arm]
    return said


def table(figures: dict[str, Any]) -> str:
    """The arms as lines of plain text, with what to know."""
    lines = [list(HEADS), *rows(figures)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    text = [
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    ]
    return "\n".join([*text, "", *notes(figures)])


def markdown(figures: dict[str, Any], pictures: Sequence[Path]) -> str:
    """The page: arms, classes, grids, pictures, how it was made."""
    made = figures["made"]
    parts = [f"# Comparison on {figures['data']}", *notes(figures), _markdown_table(HEADS, rows(figures))]
    arms = {name: arm for name, arm in figures["arms"].items() if "failed" not in arm}
    if arms:
        classes = list(next(iter(arms.values()))["per_class"])
        heads = ("arm", *(f"{name} ({figures['boxes'][name]} boxes)" for name in classes))
        lines = [
            [name, *(_class_cell(arm["per_class"][one]) for one in classes)] for name, arm in arms.items()
        ]
        parts += ["## AP by class", _markdown_table(heads, lines)]
        parts.append(
            f"In brackets the 95 % interval of the difference from '{figures['first']}'; of many intervals one in"
            " twenty misses its value by chance."
        )
    if grids := {name: arm["grid"] for name, arm in arms.items() if arm["grid"]}:
        weights = sorted({weight for grid in grids.values() for weight in grid}, key=float)
        lines = [[name, *(_grid_cell(grid, weight) for weight in weights)] for name, grid in grids.items()]
        parts += ["## AP by weight, on held-out training pictures", _markdown_table(("arm", *weights), lines)]
    parts += [f"![{picture.stem}]({picture.name})" for picture in pictures]
    versions = ", ".join(f"{name} {version}" for name, version in made["versions"].items() if version)
    git = made["git"]
    commit = f" Commit {git['commit'][:12]}{' with changes' if git['changed'] else ''}." if git else ""
    parts.append(
        f"Made {made['started']} by `{made['command']}` on {made['machine']['system']}, {made['machine']['cpus']} CPUs."
        f"{commit} {versions}."
    )
    return "\n\n".join(parts) + "\n"


def _class_cell(one: dict[str, Any]) -> str:
    difference = one["difference"]
    return _spread(one["AP"]) + (
        f" ({difference['low']:+.3f} to {difference['high']:+.3f})" if difference else ""
    )


def _grid_cell(grid: dict[str, float | None], weight: str) -> str:
    if weight not in grid:
        return ""
    score = grid[weight]
    return "diverged" if score is None else f"{score:.3f}"


def _markdown_table(heads: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    return "\n".join("| " + " | ".join(line) + " |" for line in (heads, ["---"] * len(heads), *lines))


def draw_figures(out: Path, figures: dict[str, Any]) -> list[Path]:
    """Write AP of each arm and seed with differences from the first arm, and the spectra; their paths."""
    arms = {name: arm for name, arm in figures["arms"].items() if "failed" not in arm}
    colours = {name: COLOURS[i % len(COLOURS)] for i, name in enumerate(figures["arms"])}
    return [
        _save(_draw_AP(arms, colours, figures["first"]), out / "comparison_ap.png"),
        _save(_draw_spectra(arms, colours), out / "comparison_spectra.png"),
    ]


def _draw_AP(arms: dict[str, Any], colours: dict[str, str], first: str) -> Figure:
    figure = Figure(figsize=(10, 1.4 + 0.45 * len(arms)), layout="constrained")
    left, right = figure.subplots(1, 2)
    for row, (name, arm) in enumerate(arms.items()):
        colour, score, difference = colours[name], arm["AP"], arm["difference"]
        left.plot([score["low"], score["high"]], [row, row], color=colour, linewidth=2)
        left.plot(score["values"], [row] * len(score["values"]), "o", color=colour, alpha=0.5, markersize=5)
        left.plot(score["mean"], row, "|", color=colour, markersize=18, markeredgewidth=2.5)
        if difference:
            right.plot([difference["low"], difference["high"]], [row, row], color=colour, linewidth=2)
            right.plot(difference["mean"], row, "|", color=colour, markersize=18, markeredgewidth=2.5)
    right.axvline(0, color=COLOURS[0], linewidth=1)
    left.set(title="AP: seeds, mean, 95 % interval", xlabel="AP")
    right.set(title=f"AP less that of {first}, 95 % interval", xlabel="difference")
    for axes in (left, right):
        axes.set_yticks(range(len(arms)), list(arms), fontsize=10)
        axes.set_ylim(len(arms) - 0.5, -0.5)
        axes.grid(axis="x", alpha=0.3)
        axes.spines[["top", "right", "left"]].set_visible(False)
    right.set_yticks(range(len(arms)), [""] * len(arms))
    return figure


def _draw_spectra(arms: dict[str, Any], colours: dict[str, str]) -> Figure:
    figure = Figure(figsize=(10, 3.4), layout="constrained")
    for axes, kind in zip(figure.subplots(1, 2), ("objects", "background"), strict=True):
        for name, arm in arms.items():
            counts = np.array(arm["spectrum"][kind], dtype=float)
            places = (np.arange(len(counts)) + 0.5) / len(counts)
            axes.plot(places, counts, color=colours[name], linewidth=2, label=name)
        axes.set(yscale="symlog", ylim=(0, None), xlabel="gradient norm g", title=f"examples: {kind}")
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.3)
    figure.axes[0].legend(frameon=False)
    return figure


def _save(figure: Figure, path: Path) -> Path:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    return write_atomic(path, buffer.getvalue())
