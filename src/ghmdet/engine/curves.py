"""The curves of a run as a picture."""

import gc
import math
from array import array
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING

from ghmdet.engine.run_folder import each_row
from ghmdet.files import write_atomic

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def draw_curves(folder: Path) -> None:
    """Draw the losses of `log.csv`, and AP and AP50 of `metrics.csv`, over the steps as `curves.png`."""
    write_atomic(folder / "curves.png", partial(curves_of(folder).savefig, format="png", dpi=120))
    # A figure refers to itself, and the collector comes the later the more objects a process has: those of ten
    # validations would stay, 3 MiB each.
    gc.collect()


def curves_of(folder: Path) -> "Figure":
    """The figure that `draw_curves` writes."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4), layout="constrained")
    losses, scores = figure.subplots(1, 2)
    for axes, file, names, marker in (
        (losses, "log.csv", ("loss", "classification", "bbox_regression"), ""),
        (scores, "metrics.csv", ("AP", "AP50"), "o"),
    ):
        points = {name: (array("d"), array("d")) for name in names}
        for row in each_row(folder / file):
            for name, (steps, values) in points.items():
                with suppress(KeyError, ValueError):  # a column of another version; empty, or damaged
                    step, value = int(row["step"]), float(row[name])
                    steps.append(step)
                    values.append(value)
        for name, (steps, values) in points.items():
            axes.plot(_few(steps), _few(values), label=name, linewidth=1, marker=marker, markersize=3)
        axes.legend(frameon=False)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.3)
    losses.set(xlabel="step", ylabel="loss", yscale="log", title="training")
    scores.set(xlabel="step", ylim=(0, 1), title="validation")
    return figure


def _few(values: Sequence[float], most: int = 2000) -> list[float]:
    """The values, or the means of at most so many equal blocks of them: all that a picture can show."""
    block = max(1, math.ceil(len(values) / most))
    return [fmean(values[first : first + block]) for first in range(0, len(values), block)]
