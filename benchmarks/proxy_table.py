"""The rows of benchmarks/proxy.py as a page's section: a table for each kind of loss, and what it shows."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from statistics import fmean
from typing import Any

Row = dict[str, Any]
DEFAULTS = {"cls": "ghm-c", "box": "giou", "assignment": "iou"}
KINDS = {"cls": "Class losses", "box": "Box losses", "assignment": "Assignments"}

HEAD = """
## Losses and assignments on a frozen backbone

`benchmarks/proxy.py` trains only neck and head, on kept features of a frozen pretrained backbone. Each loss's
weight is the best of a grid on a quarter of the training pictures, held out for that; then it is trained on all of
them and judged on *val*, once a seed. Within a seed all losses have the same first weights and batches.
Differences are those within a seed: their mean, and from the least to the greatest. Single runs differ by about .01 by
chance, so nearby weights are not told apart, and three seeds have one sign by chance one time in four. Few steps and
an untrained backbone: AP is below that of a whole training, and an order found here is to be confirmed by one.

An assignment ([which anchors answer for which box](models.md#which-anchors-answer-for-which-box)) is tried in the same
way at the default losses: `iou` is the article's thresholds, `best-9` gives each box its 9 best anchors."""


def figure(value: float | None) -> str:
    """.512 for 0.512, and the minus sign kept."""
    return "-" if value is None else f"{value:.3f}".replace("0.", ".", 1)


def spread(values: Iterable[float]) -> str:
    """The mean, and from the least to the greatest."""
    values = list(values)
    return f"{figure(fmean(values))} ({figure(min(values))} to {figure(max(values))})"


def tuned(rows: list[Row], arm: str, chosen: float) -> tuple[dict[float, float], int]:
    """The mean AP on the held-out pictures at each weight, least first, over the chosen one's seeds; how many."""
    tried: dict[float, dict[int, float]] = defaultdict(dict)
    for row in rows:
        if row["stage"] == "tune" and row["arm"] == arm:
            tried[row["weight"]][row["seed"]] = row["AP"] or 0.0
    seeds = tried[chosen].keys()
    means = {
        weight: fmean(found[seed] for seed in seeds)
        for weight, found in sorted(tried.items())
        if seeds and seeds <= found.keys()
    }
    return means, len(seeds)


def section(files: Iterable[Path]) -> list[str]:
    """The lines of the section; none without files."""
    lines: list[str] = []
    for file in files:
        rows = [json.loads(line) for line in file.read_text().splitlines()]
        recipes = list(dict.fromkeys(json.dumps([row["kind"], row["data"], row["recipe"]]) for row in rows))
        for recipe in recipes:
            same = [row for row in rows if json.dumps([row["kind"], row["data"], row["recipe"]]) == recipe]
            lines += table(same)
    return [HEAD, *lines] if lines else []


def table(rows: list[Row]) -> list[str]:
    """One table: rows of one kind of loss, one data set and one recipe."""
    kind, default = rows[0]["kind"], DEFAULTS[rows[0]["kind"]]
    finals = [row for row in rows if row["stage"] == "final"]
    weights = {row["arm"]: row["weight"] for row in finals}  # the last choice, where it changed
    found = {
        arm: {row["seed"]: row for row in finals if (row["arm"], row["weight"]) == (arm, weight)}
        for arm, weight in weights.items()
    }
    complete = {arm: runs for arm, runs in found.items() if all(run["AP"] for run in runs.values())}
    if default not in complete:
        return []
    reference = complete[default]
    classes = list(next(iter(reference.values()))["per_class"])
    differences = {
        arm: [runs[seed]["AP"] - reference[seed]["AP"] for seed in sorted(runs.keys() & reference.keys())]
        for arm, runs in complete.items()
    }
    recipe = rows[0]["recipe"]
    options = " ".join(
        f"--{name.replace('_', '-')} {recipe[name]}"
        for name in ("model", "size", "steps", "batch_size", "lr", "versions", "hflip", "vflip")
        if name in recipe
    )
    size = f" at {recipe['size']} pixels" if "size" in recipe else ""
    what, arms, column = "loss", "arms", "weight (seeds: held-out AP of each)"
    if kind == "assignment":
        what, arms, column = "assignment", "assignments", "AP of small, medium and large objects"
    lines = [
        f"\n### {KINDS[kind]} on {rows[0]['data']}{size}\n",
        f"`python benchmarks/proxy.py {rows[0]['data']} --{arms} {','.join(weights)} --seeds {len(reference)}"
        f" {options} --cache FOLDER --out FILE`;"
        f" {rows[0]['machine']}; {rows[-1]['date']};"
        f" {fmean(row['cpu_seconds'] for row in finals):.0f} s of one core a run.\n",
        f"| {what} | {column} | val AP | AP50 | minus `{default}`'s | AP by class |",
        "|---|---|---|---|---|---|",
    ]
    for arm in sorted(complete, key=lambda arm: -fmean(run["AP"] for run in complete[arm].values())):
        weight = weights[arm]
        means, seeds = tuned(rows, arm, weight)
        runs = list(complete[arm].values())
        edge = ", at the edge" if means and weight in (min(means), max(means)) else ""
        grid = ", ".join(f"{one:g}: {figure(mean)}" for one, mean in means.items())
        by_class = ", ".join(
            f"{name} {figure(fmean(run['per_class'][name] for run in runs))}" for name in classes
        )
        cell = f"**{weight:g}**{edge}" + (f" ({seeds}: {grid})" if grid else "")
        if kind == "assignment":
            cell = ", ".join(figure(fmean(run[name] or 0 for run in runs)) for name in ("APs", "APm", "APl"))
        lines.append(
            f"| `{arm}` | {cell} | {spread(run['AP'] for run in runs)} |"
            f" {figure(fmean(run['AP50'] for run in runs))} |"
            f" {'' if arm == default else spread(differences[arm])} | {by_class} |"
        )
    others = {arm: values for arm, values in differences.items() if arm != default}
    # Clear: on every seed further from zero than the seeds lie apart.
    clear = {
        arm
        for arm, found in others.items()
        if min(map(abs, found)) > max(found) - min(found) and len(found) > 2
    }
    one_sign = {arm for arm, found in others.items() if max(found) < 0 or min(found) > 0}
    lines.append("")
    for words, arms in (
        (f"Below `{default}` by more than the seeds differ", [a for a in clear if max(others[a]) < 0]),
        (f"Above `{default}` by more than the seeds differ", [a for a in clear if min(others[a]) > 0]),
        (
            "On the same side on every seed, by less than they differ or on too few seeds: not established",
            one_sign - clear,
        ),
        ("Not told apart: the side changes with the seed", others.keys() - one_sign),
    ):
        if arms:
            lines.append(f"- {words}: {_named(arms)}.")
    if failed := [arm for arm in found if arm not in complete]:
        lines.append(f"- Diverged with some seed at its weight: {_named(failed)}.")
    return lines


def _named(arms: Iterable[str]) -> str:
    return ", ".join(f"`{arm}`" for arm in sorted(arms))
