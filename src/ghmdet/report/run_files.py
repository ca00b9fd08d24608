"""What a run's folder holds, read for a report: plain values, None for what is not there."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ghmdet.engine.run_folder import CsvLog
from ghmdet.errors import GhmdetError
from ghmdet.report.run_figures import Curve
from ghmdet.spectrum import SpectrumCounts

MOST_POINTS = 400  # of a loss curve
LOSSES = {"loss": "whole", "classification": "classes", "bbox_regression": "boxes"}  # by column


@dataclass(frozen=True)
class RunFiles:
    """One run's folder, read."""

    path: Path
    name: str
    made: dict[str, Any]
    """run.json: command, arguments, versions, machine, git, time."""
    metrics: dict[str, Any] | None
    """metrics.json: the best checkpoint's figures on the validation part."""
    validations: list[dict[str, str]]
    """metrics.csv: a row a validation."""
    scores: dict[str, Curve]
    """AP and AP50 over epochs."""
    losses: dict[str, Curve]
    """The losses over epochs, the mean of neighbouring steps where there are more than 400."""
    training: SpectrumCounts | None
    """spectrum.npz: what training saw, a row an epoch."""
    inspected: SpectrumCounts | None
    """inspection/spectrum.npz: what the best checkpoint sees in the validation part."""
    findings: dict[str, Any] | None
    """inspection/findings.json."""

    @property
    def class_loss(self) -> str:
        """The name of the class loss that it trained with."""
        return str(self.made.get("arguments", {}).get("cls_loss", ""))


def require_run(path: Path) -> dict[str, Any]:
    """How the run in a folder was made; raises GhmdetError where there is none."""
    made = read_json(path / "run.json")
    if made is None:
        what = "it has no run.json" if path.is_dir() else "there is no such folder"
        raise GhmdetError(f"{path}: not a run ({what}): give the --out folder of a `ghmdet train`")
    return made


def read_run(path: Path, name: str) -> RunFiles:
    """Read the folder of a run, finished or not; raises GhmdetError naming a file that cannot be read."""
    made = require_run(path)
    validations = CsvLog(path / "metrics.csv", ()).rows()
    log = CsvLog(path / "log.csv", ()).rows()
    return RunFiles(
        path=path,
        name=name,
        made=made,
        metrics=read_json(path / "metrics.json"),
        validations=validations,
        scores={key: curve for key in ("AP", "AP50") if (curve := _column(validations, key, _epoch))[0]},
        losses=_losses(log),
        training=_spectrum(path / "spectrum.npz"),
        inspected=_spectrum(path / "inspection" / "spectrum.npz"),
        findings=read_json(path / "inspection" / "findings.json"),
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


def read_json(path: Path) -> dict[str, Any] | None:
    """An object from a JSON file, None where there is no file; raises GhmdetError where it is something else."""
    if not path.is_file():
        return None
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise GhmdetError(f"{path}: not JSON ({error}): remove it and make it again") from None
    if not isinstance(value, dict):
        raise GhmdetError(f"{path}: not a JSON object: remove it and make it again")
    return value


def _spectrum(path: Path) -> SpectrumCounts | None:
    return SpectrumCounts.load(path) if path.is_file() else None


def _epoch(row: dict[str, str]) -> float:
    return float(row["epoch"])


def _column(rows: list[dict[str, str]], name: str, place: Callable[[dict[str, str]], float]) -> Curve:
    """The finite values of a column, and where they are."""
    found = [(place(row), float(row[name])) for row in rows if row.get(name)]
    found = [(x, y) for x, y in found if math.isfinite(y)]
    return [x for x, _ in found], [y for _, y in found]


def _losses(log: list[dict[str, str]]) -> dict[str, Curve]:
    log = [row for row in log if row.get("loss")]
    first = [int(row["step"]) for row in log if row["epoch"] == "1"]
    steps = max(first, default=1)
    curves = {
        name: _column(log, column, lambda row: int(row["step"]) / steps) for column, name in LOSSES.items()
    }
    return {name: _thinned(curve) for name, curve in curves.items() if curve[0]}


def _thinned(curve: Curve) -> Curve:
    size = math.ceil(len(curve[0]) / MOST_POINTS)
    starts = np.arange(0, len(curve[0]), size)
    counts = np.diff([*starts, len(curve[0])])
    x, y = (np.add.reduceat(np.array(values, float), starts) / counts for values in curve)
    return x.tolist(), y.tolist()
