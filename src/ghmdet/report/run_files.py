"""Reading a run's folder, finished or not: what is not there gives None or nothing, and what is damaged is said."""

import math
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import numpy as np

from ghmdet.engine.run_folder import read_json
from ghmdet.errors import GhmdetError
from ghmdet.report.figures import LineData
from ghmdet.spectrum import Floats

MOST_POINTS = 400  # of a loss curve; neighbouring steps of a longer one are averaged
LAST_RATE = 0.05  # share of the peak; a run's learning rate ends at 1 % of it
LOSSES = {"loss": "whole", "classification": "classes", "bbox_regression": "boxes"}  # by column


def require_run(run: Path) -> dict[str, Any]:
    """How a run was made (its run.json); raises GhmdetError where the folder is no run."""
    made = read_json(run / "run.json")
    if made is None:
        there = "it is a file" if run.exists() else "there is no such folder"
        what = "it has no run.json" if run.is_dir() else there
        raise GhmdetError(f"{run}: not a run ({what}): give the --out folder of a `ghmdet train`")
    for name in ("arguments", "versions", "machine", "git", "training_boxes"):
        made[name] = made[name] if isinstance(made.get(name), dict) else {}
    return made | {"started": str(made.get("started") or "")}


def read_metrics(path: Path) -> dict[str, Any]:
    """The best checkpoint's scores on the validation part; raises GhmdetError where the file is damaged."""
    metrics = read_json(path) or {}
    if "AP" not in metrics or not isinstance(metrics.get("per_class"), dict):
        raise GhmdetError(f"{path}: not the scores of a validation: remove it")
    return metrics


def read_curves(run: Path, damage: list[str]) -> tuple[dict[str, LineData], dict[str, LineData], int]:
    """Validation scores and training losses over epochs, by name, and the last epoch that was validated (0: none).

    Rows of metrics.csv and log.csv that are damaged are left out, and counted in `damage`.
    """
    validations = _read_table(run / "metrics.csv", ("epoch", "AP", "AP50"), damage)
    log = _read_table(run / "log.csv", ("step", "epoch", *LOSSES), damage)
    scores = {name: _curve(validations["epoch"], validations[name]) for name in ("AP", "AP50")}
    epoch_length = log["step"][log["epoch"] == 1].max(initial=1)
    losses = {
        name: _curve(log["step"] / epoch_length, log[column], MOST_POINTS) for column, name in LOSSES.items()
    }
    last = validations["epoch"][np.isfinite(validations["epoch"])].max(initial=0)
    return {k: v for k, v in scores.items() if v[0]}, {k: v for k, v in losses.items() if v[0]}, int(last)


class Course(NamedTuple):
    """How a run went: at each validation its epoch, the AP, and the mean training loss of that epoch (NaN: unknown).

    finished: whether the learning rate came to its end, which only an interrupted run's does not. steps: how many
    there were. first_loss: the training loss of the first step that saw an object, without which a loss is near 0.
    last_loss: its median over the last ten such steps.
    """

    epochs: list[int]
    AP: list[float]
    loss: list[float]
    finished: bool
    steps: int = 0
    first_loss: float = math.nan
    last_loss: float = math.nan


def read_course(run: Path) -> Course:
    """How a run went, by what is whole of its metrics.csv and log.csv."""
    validations = _read_table(run / "metrics.csv", ("epoch", "AP"), [])
    log = _read_table(run / "log.csv", ("step", "epoch", "loss", "lr", "bbox_regression"), [])
    epoch, AP = (
        column[np.isfinite(list(validations.values())).all(axis=0)] for column in validations.values()
    )
    loss = [log["loss"][log["epoch"] == one] for one in epoch]
    rate = log["lr"][np.isfinite(log["lr"])]
    logged = np.isfinite(log["loss"])
    losses = log["loss"][logged & (log["bbox_regression"] > 0)].tolist()
    return Course(
        epoch.astype(int).tolist(),
        AP.tolist(),
        [float(one.mean()) if len(one) else math.nan for one in loss],
        finished=bool(len(rate)) and bool(rate[-1] < LAST_RATE * rate.max()),
        steps=int(np.nan_to_num(log["step"][logged]).max(initial=0)),
        first_loss=losses[0] if losses else math.nan,
        last_loss=median(losses[-10:]) if losses else math.nan,
    )


def short_names(paths: Sequence[Path]) -> list[str]:
    """The shortest ends of the paths that tell them apart.

    >>> short_names([Path("runs/ce/seed0"), Path("runs/ghm/seed0")])
    ['ce/seed0', 'ghm/seed0']
    """
    for length in range(1, max(len(path.parts) for path in paths) + 1):
        names = ["/".join(path.parts[-length:]) for path in paths]
        if len(set(names)) == len(paths):
            break
    return names


def _read_table(path: Path, columns: Sequence[str], damage: list[str]) -> dict[str, Floats]:
    """Columns of numbers from a CSV file, NaN where a cell is empty."""
    text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    header, *rows = [line.split(",") for line in text.splitlines() if line] or [[]]
    read = []
    for row in rows:
        try:
            cells = dict(zip(header, row, strict=True))
            read.append([float(cells.get(name) or "nan") for name in columns])
        except ValueError:
            continue
    if lost := len(rows) - len(read):
        damage.append(f"{path}: {lost} damaged {'row is' if lost == 1 else 'rows are'} left out")
    return dict(zip(columns, np.array(read, dtype=float).reshape(-1, len(columns)).T, strict=True))


def _curve(x: Floats, y: Floats, most: int | None = None) -> LineData:
    """The points that are finite, of more than `most` the means of neighbours."""
    kept = np.stack([x, y])[:, np.isfinite(x) & np.isfinite(y)]
    if most and kept.shape[1] > most:
        kept = np.stack([part.mean(axis=1) for part in np.array_split(kept, most, axis=1)], axis=1)
    return kept[0].tolist(), kept[1].tolist()
