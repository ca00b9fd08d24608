"""A comparison as a page of markdown and two figures; the head of the page is what the terminal shows."""

from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from ghmdet.engine.run_folder import write_json
from ghmdet.files import write_atomic
from ghmdet.report.figures import COLOURS, draw_runs, new_figure, save_figure
from ghmdet.spectrum import SpectrumCounts
from ghmdet.words import many

HEADS = ("arm", "weight", "AP", "AP50", "difference, 95 % interval", "P(better)", "min", "MiB")


def write_comparison(out: Path, result: dict[str, Any], spectra: Mapping[str, SpectrumCounts]) -> list[Path]:
    """Write comparison.json, comparison.md and the figures comparison_ap and comparison_spectra; their paths."""
    write_json(out / "comparison.json", result)
    figures = [
        *save_figure(_draw_AP(result), out / "comparison_ap"),
        *save_figure(draw_runs(spectra), out / "comparison_spectra"),
    ]
    return [out / "comparison.json", write_atomic(out / "comparison.md", page(result, figures)), *figures]


def summary(result: dict[str, Any]) -> str:
    """The arms as a table, and what a reader of it must know, a line each."""
    arms, first, seeds = result["arms"], result["first"], len(result["seeds"])
    notes = [
        f"Judged on {many(result['pictures'], 'picture')} ({result['split']}), the last weights of "
        f"{many(seeds, 'seed')} an arm;"
        f" differences from '{first}' are paired, their 95 % intervals are over {result['statistics']['over']}."
    ]
    if seeds < 3:
        why = ("", "One seed says nothing of another", "Two seeds hardly say how much seeds differ")[seeds]
        notes.append(f"{why}: give --seeds 3 or more.")
    if "failed" in arms[first] and len(arms) > 1:
        notes.append(f"'{first}' failed, so no differences are taken from it: name another arm first.")
    notes += [f"'{name}' failed: {arm['failed']}" for name, arm in arms.items() if "failed" in arm]
    notes += [f"'{name}': {arm['unlearnt']}" for name, arm in arms.items() if arm.get("unlearnt")]
    if any(arm.get("weight_at_edge") for arm in arms.values()):
        notes.append(
            "*: the best weight lies at the edge of the grid even after it was extended: wider may be better."
        )
    return "\n\n".join([_table(HEADS, [_row(name, arm) for name, arm in arms.items()]), *notes])


def page(result: dict[str, Any], figures: Sequence[Path]) -> str:
    """The whole of it in markdown: arms, classes, grids, figures, how it was made."""
    arms, made = _arms(result), result["made"]
    classes = [
        f"{name} ({many(result['boxes'][name], 'box/boxes')})"
        for name in next(iter(arms.values()))["per_class"]
    ]
    by_class = [[name, *map(_score, arm["per_class"].values())] for name, arm in arms.items()]
    sections = [
        f"# Comparison on {result['data']}",
        summary(result),
        "## AP by class",
        _table(("arm", *classes), by_class),
        f"With a sign, the difference from '{result['first']}' and its 95 % interval. Of many intervals one in twenty"
        " misses its value by chance.",
    ]
    if grids := {name: arm["grid"] for name, arm in arms.items() if arm["grid"]}:
        weights = sorted(set().union(*grids.values()), key=float)
        lines = [[name, *(_grid_cell(grid, weight) for weight in weights)] for name, grid in grids.items()]
        sections += ["## AP by weight, on held-out training pictures", _table(("arm", *weights), lines)]
    sections += [f"![{each.stem}]({each.name})" for each in figures if each.suffix == ".svg"]
    sections += [
        f"Made {made['started']} by `{made['command']}`; versions and machine are in comparison.json."
    ]
    return "\n\n".join(sections) + "\n"


def _arms(result: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Those that did not fail."""
    return {name: arm for name, arm in result["arms"].items() if "failed" not in arm}


def _row(name: str, arm: dict[str, Any]) -> Sequence[str]:
    """An arm under `HEADS`; means over the seeds, ± their standard deviation."""
    if "failed" in arm:
        return (name, "failed", *["-"] * 6)
    difference, memory = arm["difference"], arm["cost"]["memory"]
    return (
        name,
        f"{arm['weight']:g}{'*' if arm['weight_at_edge'] else ''}",
        _spread(arm["AP"]),
        _spread(arm["AP50"]),
        _difference(difference) or "-",
        f"{difference['probability_better']:.2f}" if difference else "-",
        f"{arm['cost']['minutes']:.1f}",
        "-" if memory is None else f"{memory:.0f}",
    )


def _spread(of_seeds: dict[str, Any]) -> str:
    return f"{of_seeds['mean']:.3f}" + ("" if of_seeds["std"] is None else f" ± {of_seeds['std']:.3f}")


def _score(one: dict[str, Any]) -> str:
    return f"{_spread(one['AP'])} {_difference(one['difference'])}"


def _difference(one: dict[str, Any] | None) -> str:
    return f"{one['mean']:+.3f} ({one['low']:+.3f} to {one['high']:+.3f})" if one else ""


def _grid_cell(grid: dict[str, float | None], weight: str) -> str:
    AP = grid.get(weight, "")
    return AP if isinstance(AP, str) else "diverged" if AP is None else f"{AP:.3f}"


def _table(heads: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A table in markdown, its columns aligned for who reads it as it is."""
    widths = [max(map(len, column)) for column in zip(heads, *lines, strict=True)]
    rule = ["-" * width for width in widths]
    padded = ([*map(str.ljust, line, widths)] for line in (heads, rule, *lines))
    return "\n".join(f"| {' | '.join(line)} |" for line in padded)


def _draw_AP(result: dict[str, Any]) -> Figure:
    """AP of each arm and seed, and differences from the first arm, with their intervals."""
    arms = _arms(result)
    figure, (left, right) = new_figure("", "AP", "", 2, sharey=True)
    figure.set_size_inches(10, 1.4 + 0.45 * len(arms))
    for row, (arm, colour) in enumerate(zip(arms.values(), cycle(COLOURS), strict=False)):
        left.plot(arm["AP"]["values"], [row] * len(arm["AP"]["values"]), "o", color=colour, alpha=0.5)
        for axes, bounds in ((left, arm["AP"]), (right, arm["difference"])):
            if bounds:
                axes.plot([bounds["low"], bounds["high"]], [row, row], color=colour, linewidth=2)
                axes.plot(bounds["mean"], row, "|", color=colour, markersize=18, markeredgewidth=2.5)
    right.axvline(0, color="black", linewidth=1)
    left.set(title="AP: seeds, mean, 95 % interval", ylim=(len(arms) - 0.5, -0.5))
    left.set_yticks(range(len(arms)), list(arms))
    right.set(title=f"AP less that of {result['first']}, 95 % interval", xlabel="difference")
    return figure
