"""Draw docs/studies.md and its figures from the rows of studies.py.

python benchmarks/studies_page.py
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path
from statistics import fmean
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from ghmdet.models import BOX_LOSSES, CLS_LOSSES
from rows import all_rows
from studies import DIALS, FACTORS, NOISES, SETTINGS, TURNED, WEIGHED

Row = dict[str, Any]
Cell = dict[str, dict[int, float]]
"""The figures of one setting: by arm, by seed."""

DOCS = Path(__file__).parent.parent / "docs"
COLOURS = {
    "ghm-c": "#e4572e",
    "ce": "#30343b",
    "ohem": "#1b9aaa",
    "focal": "#6a4c93",
    "ghm-c-published": "#f2a65a",
    "ohem-per-class": "#76c3cc",
    "focal-per-class": "#b39ccf",
    "ce-per-class": "#9aa0a8",
    "giou": "#e4572e",
    "smooth-l1": "#30343b",
    "asl1": "#1b9aaa",
    "ghm-r": "#6a4c93",
}
BOXES = ("smooth-l1", "asl1", "ghm-r")
TITLES = {
    "foreground": ("Background to objects", "background anchors for each of an object", "AP"),
    "class_imbalance": (
        "One class to the other",
        "boxes of the common class for each of the rare",
        "AP of the rare class",
    ),
    "hard_share": ("Easy to hard", "usual objects for each unusual one", "AP of the unusual"),
}

HEAD = """# What imbalance and wrong labels do to each loss

This page is drawn from `benchmarks/results/study_dials.jsonl` and `study_noise.jsonl` by `python
benchmarks/studies_page.py`; nothing in it is typed by hand. [choosing.md](choosing.md) says what follows from it. The
runs were made by

    {command}

on {machine}, {dates}: {count} runs,
{seconds:.0f} s of a core each. Only neck and head learn, for 200 steps of 8 pictures, on features of a frozen backbone;
each loss has its default weight, which was chosen on clean blood cells and not for these sets. So AP is below that of a
whole training, and an order found here is to be confirmed by one.

A seed draws the set (or its wrong labels), the first weights and the batches, alike for all losses. Differences are
those within a seed. The intervals are 95 % intervals over seeds (Student's t, with the deviation that the losses of a
setting have in common); a cell of one seed has none. **Bold** is a difference whose interval excludes 0; of many,
some do by chance. The judged pictures are always the same, and their chance is not in the intervals.
"""

DIALS_TEXT = """
## Dials

`ghmdet data synth` draws 400 scenes of 160 x 120 pixels with two classes equally common, four objects in a picture, a
tenth of them of unusual look, and six other things; one dial is turned at a time. All are judged on 200 scenes in which
both classes are equally common and half of the objects are of unusual look, by the AP of what was rare in training:
objects; the second class; the unusual ones.

![AP of what is rare over its rarity, by loss](images/studies/dials.svg)
"""

NOISE_TEXT = """
## Wrong labels

The 205 training pictures of the blood cells at 192 pixels, and of other sets where rows are there; `ghmdet data spoil`
gave a share of their boxes another class, no label, a place half a box away, or one of the three ("mixed"). The
validation part is as published.

![AP over the share of wrong labels, by loss](images/studies/noise.svg)
"""
SETS = {"bccd": "", "cards": "Playing cards: ", "carla": "Driving scenes: "}
"""What the headings of a set begin with."""

WEIGHTS_TEXT = """
## Other weights of the class loss

The class loss at several times its default weight, one seed, at settings where the losses differ. The best of a row is
bold; chosen on the judged pictures, it flatters each loss alike.
"""

DEFAULT = {"bins": 30, "momentum": 0.75, "floor": 1.0, "mu": 0.02}
SETTINGS_TEXT = """
## The settings of GHM

One setting of the loss is changed, at its default weight. The default is bold, with its AP; of the other values, what
they have more, seed by seed. `bins` is M, `momentum` that of the moving average; `floor` times the number of positives
is what a region counts as at least; `mu` is that of ASL1 in GHM-R.
"""

WRONG_TEXT = """
### Where the wrong examples lie

An example is an anchor and a class. It is wrong where its target would be another with the true labels: taught as an
object that is not there, or as background where an object is. At the end of training, on the training pictures as they
are, *g* = |p − target|, averaged over the seeds:

![Wrong examples over g, by loss](images/studies/wrong.svg)

The gradient is that of the class loss, as the sum of its sizes over all examples.
"""


def figure(value: float) -> str:
    """.512 for 0.512, and the minus sign kept."""
    return f"{value:.3f}".replace("0.", ".", 1)


def signed(value: float) -> str:
    return ("+" if value >= 0 else "") + figure(value)


TRAINED_TEXT = """
## Everything trained

The same with `ghmdet train`: all weights learn, from the ImageNet start, with every setting a default but for {epochs}
epochs; each loss at its default weight; AP on the clean validation part after the last epoch, and in brackets minus
`ghm-c`'s. A run is `python benchmarks/studies_trained.py DATA --what class --share .2 --arm ghm-c --seed 0 --work
FOLDER`; rows in `benchmarks/results/study_trained.jsonl`, made on {machine}.
"""


def half_width(groups: Iterable[Iterable[float]], seeds: int) -> float | None:
    """Half of the 95 % interval of a mean over `seeds`, from the deviation within all groups; None for one seed."""
    arrays = [np.array(list(group)) for group in groups]
    freedom = sum(len(group) - 1 for group in arrays)
    if seeds < 2 or freedom < 1:
        return None
    deviation = np.sqrt(sum(((group - group.mean()) ** 2).sum() for group in arrays) / freedom)
    t = np.quantile(np.random.default_rng(0).standard_t(freedom, 400_000), 0.975)
    return float(t * deviation / np.sqrt(seeds))


def differences(cell: Cell, base: str) -> dict[str, list[float]]:
    """What each arm has more than the base, seed by seed."""
    own = cell.get(base, {})
    return {
        arm: [found[seed] - own[seed] for seed in sorted(found.keys() & own.keys())]
        for arm, found in cell.items()
        if arm != base and found.keys() & own.keys()
    }


def cells(rows: list[Row], value: Callable[[Row], float]) -> dict[tuple[str, float], Cell]:
    """The figures of each setting."""
    found: dict[tuple[str, float], Cell] = defaultdict(lambda: defaultdict(dict))
    for row in rows:
        found[row["what"], row["value"]][row["arm"]][row["seed"]] = value(row)
    return found


def table(columns: dict[str, Cell], base: str, what: str) -> list[str]:
    """Lines of a table: an arm a row, a setting a column; the mean, and what it has more than the base."""
    arms = [arm for arm in COLOURS if any(arm in cell for cell in columns.values())]
    lines = ["", f"| {what} | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
    for arm in arms:
        texts = []
        for cell in columns.values():
            if arm not in cell:
                texts.append("")
                continue
            text = figure(fmean(cell[arm].values()))
            paired = differences(cell, base)
            if arm in paired:
                half = half_width(paired.values(), len(paired[arm]))
                mean = fmean(paired[arm])
                clear = half is not None and abs(mean) > half
                text += f" ({'**' if clear else ''}{signed(mean)}{'**' if clear else ''}"
                text += (f" ± {figure(half)}" if half is not None else "") + ")"
            texts.append(text)
        lines.append(f"| `{arm}` | " + " | ".join(texts) + " |")
    return lines


def curve(
    axes: Any, points: dict[float, Cell], arms: Iterable[str], names: dict[str, str] | None = None
) -> None:
    """AP over x with its intervals, an arm a line."""
    for arm in arms:
        found = {x: cell[arm] for x, cell in sorted(points.items()) if arm in cell}
        if not found:
            continue
        means = [fmean(seeds.values()) for seeds in found.values()]
        halves = [
            half_width((one.values() for one in points[x].values()), len(seeds)) or 0.0
            for x, seeds in found.items()
        ]
        axes.errorbar(
            list(found), means, halves, label=(names or {}).get(arm, arm), color=COLOURS[arm], marker="o", markersize=3,
            linewidth=1.2, elinewidth=0.8, capsize=2,
        )  # fmt: skip
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)


def dials_section(rows: list[Row]) -> list[str]:
    base = ("foreground", DIALS["foreground"][0])
    measures: dict[str, Callable[[Row, str], float]] = {
        "foreground": lambda row, suffix: row.get("AP" + suffix, 0.0),
        "class_imbalance": lambda row, suffix: row.get("per_class" + suffix, {}).get("bus", 0.0),
        "hard_share": lambda row, suffix: row.get("AP hard" + suffix, 0.0),
    }
    about = {(row["what"], row["value"]): row for row in rows if "boxes" in row and not row["seed"]}
    shown = Figure(figsize=(11.5, 3.8), layout="constrained")
    lines = [DIALS_TEXT]
    for axes, (dial, measure) in zip(shown.subplots(1, 3), measures.items(), strict=True):
        found, low = (
            cells(rows, lambda row, value=measure, suffix=suffix: value(row, suffix))
            for suffix in ("", " loose")
        )
        points: dict[float, Cell] = {}
        columns: dict[str, Cell] = {}
        loose: dict[str, Cell] = {}
        for value in sorted(DIALS[dial], reverse=dial != "class_imbalance"):
            place = base if value == DIALS[dial][0] else (dial, value)
            if place not in about:
                continue
            boxes, hard = about[place]["boxes"], about[place]["hard"]
            count = sum(boxes.values())
            ratio, head = {
                "foreground": (about[place]["background per positive"], f"{count} objects"),
                "class_imbalance": (value, f"{value:g} : 1, {boxes['bus']} of the rare"),
                "hard_share": ((1 - value) / value, f"{value:.1%}, {hard} unusual"),
            }[dial]
            if dial == "foreground":
                head += f", {ratio} : 1"
            points[ratio] = columns[head] = found[place]
            loose[head] = low[place]
        title, x, y = TITLES[dial]
        curve(axes, points, COLOURS)
        axes.set(xscale="log", title=title, xlabel=x, ylabel=y, ylim=(0, None))
        lines += [
            f"\n### {title}\n",
            f"{y}, and in brackets minus `ghm-c`'s; counts are those of seed 0.",
            *table(columns, "ghm-c", "loss"),
            "\nThe same with candidates for NMS down to a score of .005, where a detector takes those above .05:",
            *table(loose, "ghm-c", "loss"),
        ]
    shown.get_axes()[0].legend(frameon=False, fontsize=8)
    save(shown, "dials")
    return lines


def noise_section(rows: list[Row]) -> list[str]:
    by_set = {data: [row for row in rows if row["data"] == data] for data in SETS}
    by_set = {
        data: of_set for data, of_set in by_set.items() if any(row["what"] == "clean" for row in of_set)
    }
    if not by_set:
        return []
    shown = Figure(figsize=(11.5, 3.2 * len(by_set) + 0.4), layout="constrained")
    grid = shown.subplots(len(by_set), 4, sharey="row", squeeze=False)
    lines = [NOISE_TEXT]
    for places, (data, of_set) in zip(grid, by_set.items(), strict=True):
        found = cells(of_set, lambda row: row["AP"])
        for axes, kind in zip(places, NOISES, strict=True):
            points = {100 * value: cell for (what, value), cell in found.items() if what in (kind, "clean")}
            curve(axes, points, [arm for arm in COLOURS if arm not in BOXES])
            axes.set(title=f"{data}: {kind}", xlabel="wrong training labels, %")
        places[0].set_ylabel("AP on clean labels")
        lines += noise_tables(found, SETS[data])
    grid[0, 0].legend(frameon=False, fontsize=7)
    save(shown, "noise")
    return lines + wrong_section(by_set.get("bccd", []))


def noise_tables(found: dict[tuple[str, float], Cell], title: str) -> list[str]:
    """AP of a set at each share of wrong labels, and of the box losses."""
    clean, lines = found["clean", 0.0], list[str]()
    for share in sorted({value for _, value in found} - {0.0}):
        columns = {"clean": clean} | {kind: found[kind, share] for kind in NOISES if (kind, share) in found}
        of_class = {
            head: {arm: seeds for arm, seeds in cell.items() if arm not in BOXES}
            for head, cell in columns.items()
        }
        lines += [
            f"\n### {title}{share:.0%} of the labels wrong\n",
            "AP, and in brackets minus `ghm-c`'s.",
            *table(of_class, "ghm-c", "loss"),
        ]
    columns = {"clean": clean} | {
        f"{share:.0%} shifted": cell for (what, share), cell in sorted(found.items()) if what == "shifted"
    }
    boxes = {
        head: {("giou" if arm == "ghm-c" else arm): cell[arm] for arm in ("ghm-c", *BOXES) if arm in cell}
        for head, cell in columns.items()
    }
    if any(len(cell) > 1 for cell in boxes.values()):
        lines += [
            f"\n### {title}Box losses, where boxes are shifted\n",
            "With `ghm-c` for the classes; AP, and in brackets minus `giou`'s.",
        ]
        lines += table(boxes, "giou", "box loss")
    return lines


def wrong_section(rows: list[Row]) -> list[str]:
    """Where the wrong examples lie: means over the seeds of the runs with 20 % wrong labels."""
    spoilt = [row for row in rows if row["value"] == 0.2 and "examples" in row and row["arm"] not in BOXES]
    if not spoilt:
        return []
    kinds = [kind for kind in ("class", "missing", "shifted") if any(row["what"] == kind for row in spoilt)]
    shown = Figure(figsize=(3.8 * len(kinds), 3.6), layout="constrained")
    centres = (np.arange(10) + 0.5) / 10
    lines = [
        WRONG_TEXT,
        "| 20 % wrong | loss | taught as objects: at g ≥ .8 | of the gradient | taught as background: at g ≥ .8 |"
        " of the gradient | of all examples at g ≥ .8, wrong | of the gradient there |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for axes, kind in zip(np.atleast_1d(shown.subplots(1, len(kinds))), kinds, strict=True):
        for arm in COLOURS:
            mine = [row for row in spoilt if (row["what"], row["arm"]) == (kind, arm)]
            if not mine:
                continue
            examples, gradient = (
                {name: np.mean([row[key][name] for row in mine], axis=0) for name in mine[0][key]}
                for key in ("examples", "gradient")
            )
            wrong, pull = (each["wrong objects"] + each["wrong background"] for each in (examples, gradient))
            axes.plot(centres, wrong / wrong.sum(), color=COLOURS[arm], label=arm, marker="o", markersize=2.5)
            texts = []
            for name in ("wrong objects", "wrong background"):
                count = examples[name]
                texts += [f"{count[8:].sum() / max(1, count.sum()):.0%}", f"{gradient[name].sum():.1%}"]
            for part, every in ((wrong, examples["all"]), (pull, gradient["all"])):
                texts.append(f"{part[8:].sum() / every[8:].sum():.0%}" if every[8:].sum() else "none there")
            lines.append(f"| {kind} | `{arm}` | {' | '.join(texts)} |")
        axes.set(title=f"{kind}, 20 %", xlabel="g", ylim=(0, None))
        axes.spines[["top", "right"]].set_visible(False)
    first = shown.get_axes()[0]
    first.set_ylabel("share of the wrong examples")
    first.legend(frameon=False, fontsize=7)
    save(shown, "wrong")
    return lines


def weights_section(rows: list[Row]) -> list[str]:
    """AP at each weight that was tried, where the losses differ; of the rare class where one is."""
    lines: list[str] = []
    factors = sorted({*FACTORS, 1.0})
    for _, what, value in WEIGHED:
        rare = what == "class_imbalance"
        tried: dict[str, dict[float, float]] = defaultdict(dict)
        for row in rows:
            if (row["what"], row["value"], row["seed"]) == (what, value, 0) and row["arm"] in CLS_LOSSES:
                factor = min(factors, key=lambda one, row=row: abs(one - row["weight"] / own_weight(row)))  # type: ignore[misc]
                tried[row["arm"]][factor] = row["per_class"]["bus"] if rare else row["AP"]
        if not any(len(one) > 1 for one in tried.values()):
            continue
        lines += [f"\n### {what} {value:g}: {'AP of the rare class' if rare else 'AP'}\n"]
        lines += ["| loss | " + " | ".join(f"x {factor:g}" for factor in factors) + " |"]
        lines += ["|---" * (len(factors) + 1) + "|"]
        for arm, found in tried.items():
            texts = [figure(found[factor]) if factor in found else "" for factor in factors]
            texts[factors.index(max(found, key=lambda factor: found[factor]))] = (
                f"**{figure(max(found.values()))}**"
            )
            lines.append(f"| `{arm}` | " + " | ".join(texts) + " |")
    return [WEIGHTS_TEXT, *lines] if lines else []


def trained_section(rows: list[Row]) -> list[str]:
    """AP of whole trainings on clean and wrong labels."""
    if not rows:
        return []
    columns: dict[str, Cell] = defaultdict(lambda: defaultdict(dict))
    for row in sorted(rows, key=lambda row: (row["data"], row["value"])):
        if row["options"]:
            continue
        wrong = f"{row['value']:.0%} {row['what']}" if row["value"] else "clean"
        columns[f"{row['data']}, {wrong}"][row["arm"]][row["seed"]] = row["AP"]
    text = TRAINED_TEXT.format(epochs=rows[0]["epochs"], machine=rows[0]["machine"])
    return [text, *table(columns, "ghm-c", "loss")]


def settings_section(rows: list[Row]) -> list[str]:
    """AP with one setting of a loss changed, and what that is more than with the default, seed by seed."""
    lines: list[str] = []
    for _, what, value in TURNED:
        measure: Callable[[Row], float] = (
            (lambda row: row["per_class"]["bus"]) if what == "class_imbalance" else (lambda row: row["AP"])
        )
        here = [row for row in rows if (row["what"], row["value"]) == (what, value) and "per_class" in row]
        for arm, settings in SETTINGS.items():
            found: Cell = defaultdict(dict)
            for row in here:
                if row["arm"] == arm and row["weight"] == own_weight(row):
                    found[row.get("setting", "")][row["seed"]] = measure(row)
            if len(found) < 2:
                continue
            paired = differences(found, "")
            title = f"class_imbalance {value:g}: AP of the rare class" if value else "no wrong labels: AP"
            lines += [f"\n### `{arm}`, {title}\n", "| setting | with each value |", "|---|---|"]
            for name, values in settings.items():
                texts = {DEFAULT[name]: f"**{DEFAULT[name]:g}: {figure(fmean(found[''].values()))}**"}
                for each in values:
                    if differs := paired.get(f"{name}={each:g}"):
                        half = half_width(paired.values(), len(differs))
                        width = f" ± {figure(half)}" if half is not None else ""
                        texts[each] = f"{each:g}: {signed(fmean(differs))}{width}"
                lines.append(f"| `{name}` | {'; '.join(texts[each] for each in sorted(texts))} |")
    return [SETTINGS_TEXT, *lines] if lines else []


def own_weight(row: Row) -> float:
    return (CLS_LOSSES | BOX_LOSSES)[row["arm"]]


def save(shown: Figure, name: str) -> None:
    folder = DOCS / "images" / "studies"
    folder.mkdir(parents=True, exist_ok=True)
    with mpl.rc_context({"svg.hashsalt": name}):
        shown.savefig(folder / f"{name}.svg", metadata={"Date": None})


def main() -> None:
    every = {study: all_rows(f"study_{study}") for study in ("dials", "noise")}
    rows = every["dials"] + every["noise"]
    plain = [row for row in rows if "setting" not in row]
    dials, noise = (
        [row for row in plain if row["weight"] == own_weight(row) and row["study"] == study]
        for study in every
    )
    turned = [row for row in rows if row.get("data", "bccd") == "bccd"]
    dates = sorted({row["date"] for row in rows})
    head = HEAD.format(
        command="python benchmarks/studies.py DATA/bccd --work FOLDER",
        machine=" and ".join(dict.fromkeys(row["machine"] for row in rows)),
        dates=" to ".join(dict.fromkeys([dates[0], dates[-1]])),
        count=len(rows),
        seconds=fmean(row["cpu_seconds"] for row in rows),
    )
    page = DOCS / "studies.md"
    parts = (dials_section(dials), noise_section(noise), trained_section(all_rows("study_trained")))
    lines = [
        head,
        *(line for part in parts for line in part),
        *weights_section([row for row in turned if "setting" not in row]),
        *settings_section(turned),
    ]
    page.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print(page)


if __name__ == "__main__":
    main()
