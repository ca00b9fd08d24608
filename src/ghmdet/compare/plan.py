"""What a comparison consists of: its runs, where each stands, and the weight that each arm's tuning settles on."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from ghmdet.compare.arms import Arm, settings, train_command
from ghmdet.data import DetectionData
from ghmdet.engine.checkpoint import MAY_CHANGE
from ghmdet.engine.run_folder import CsvLog, write_json
from ghmdet.engine.settings import TrainConfig
from ghmdet.engine.train import DIVERGED
from ghmdet.engine.validation import COLUMNS
from ghmdet.errors import GhmdetError

EXTENSIONS = 3
"""How often a grid is extended by a factor of two where its best weight lies at the edge."""
HELD_OUT = 4
"""One training picture in this many is held out to judge weights on."""


@dataclass(frozen=True)
class Outcome:
    """What a run that is over has come to: its AP on the part it was validated on, or why it has none."""

    AP: float | None
    minutes: float = 0.0
    memory: float | None = None
    failed: str = ""


@dataclass(frozen=True)
class Run:
    """One training run of a comparison: a `ghmdet train` command of its own."""

    arm: str
    stage: str
    data: Path
    out: Path
    config: TrainConfig

    @property
    def command(self) -> list[str]:
        """The words after `ghmdet` that train it, or go on with it."""
        return train_command(self.data, self.out, self.config)

    def outcome(self) -> Outcome | None:
        """What it has come to; None while it is not over."""
        diverged = self.out / DIVERGED
        if diverged.exists():
            return Outcome(None, failed=diverged.read_text(encoding="utf-8").strip())
        rows = CsvLog(self.out / "metrics.csv", COLUMNS).rows()
        if not rows or int(rows[-1]["epoch"]) < self.config.total_epochs:
            return None
        last = rows[-1]
        memory = float(last["memory"]) if last["memory"] else None
        return Outcome(float(last["AP"] or 0), float(last["seconds"]) / 60, memory)

    def __str__(self) -> str:
        return f"{self.arm}, weight {self.config.cls_weight:g}, seed {self.config.seed}" + (
            " (tuning)" if self.stage == "tune" else ""
        )


@dataclass(frozen=True)
class Tuning:
    """An arm's class-loss weight, and the AP that each weight had on the held-out pictures (None: it diverged)."""

    weight: float | None = None
    grid: dict[float, float | None] = field(default_factory=dict)
    at_edge: bool = False
    failed: str = ""
    missing: tuple[Run, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Plan:
    """All the runs of a comparison in the folder `out`; their state is what lies in that folder, and nothing else."""

    data: Path
    out: Path
    base: TrainConfig
    arms: tuple[Arm, ...]
    seeds: int
    grid: tuple[float, ...] | None
    tune_epochs: int | None

    @cached_property
    def tuning_file(self) -> Path:
        """The COCO annotations that tuning trains on; those it is judged on lie beside it."""
        return self.out / "data" / "instances_train.json"

    def tune(self, arm: Arm) -> Tuning:
        """Where the tuning of an arm stands: the runs that it needs next, or the weight that it settled on.

        The weight is the one with the best AP over the held-out pictures. Where it is the least or the greatest of the
        grid, half or twice of it joins the grid, at most `EXTENSIONS` times.
        """
        if arm.config.cls_weight is not None or self.grid is None:
            fixed = arm.config.cls_weight
            return Tuning(arm.default_weight() if fixed is None else fixed)
        weights = sorted(self.grid)
        for extended in range(EXTENSIONS + 1):
            runs = {weight: self._tuning_run(arm, weight) for weight in weights}
            over = {weight: outcome for weight, run in runs.items() if (outcome := run.outcome())}
            if len(over) < len(runs):
                return Tuning(missing=tuple(run for weight, run in runs.items() if weight not in over))
            scores = {weight: outcome.AP for weight, outcome in over.items()}
            if all(score is None for score in scores.values()):
                reason = over[weights[0]].failed
                return Tuning(grid=scores, failed=f"every weight of the grid diverged, first: {reason}")
            best = _best(list(scores.values()))
            if 0 < best < len(weights) - 1 or extended == EXTENSIONS:
                break
            weights = [weights[0] / 2, *weights] if best == 0 else [*weights, weights[-1] * 2]
        return Tuning(weights[best], scores, at_edge=best in (0, len(weights) - 1))

    def _tuning_run(self, arm: Arm, weight: float) -> Run:
        seed = self.base.seed
        epochs = self.tune_epochs or arm.config.total_epochs
        config = self._run_config(arm, weight, seed)
        config = replace(config, epochs=epochs, val_every=epochs, train_split="train", val_split="val")
        return Run(arm.name, "tune", self.tuning_file, self._folder("tune", arm, weight, seed), config)

    def final_runs(self, arm: Arm, weight: float) -> list[Run]:
        """The runs that are judged: everything in the training part, one run a seed."""
        return [
            Run(
                arm.name,
                "final",
                self.data,
                self._folder("final", arm, weight, seed),
                self._run_config(arm, weight, seed),
            )
            for seed in self._seeds(self.seeds)
        ]

    def missing(self, arm: Arm) -> list[Run]:
        """The runs of an arm that can be made now; none where all are over or one diverged."""
        tuning = self.tune(arm)
        if tuning.missing or tuning.weight is None:
            return list(tuning.missing)
        runs = self.final_runs(arm, tuning.weight)
        outcomes = [run.outcome() for run in runs]
        if any(outcome and outcome.failed for outcome in outcomes):
            return []
        return [run for run, outcome in zip(runs, outcomes, strict=True) if outcome is None]

    def later(self, arm: Arm) -> int:
        """How many more runs of an arm follow those of `missing`, if its grid need not be extended."""
        return self.seeds if self.tune(arm).missing else 0

    def _seeds(self, count: int) -> range:
        return range(self.base.seed, self.base.seed + count)

    def _folder(self, stage: str, arm: Arm, weight: float, seed: int) -> Path:
        return self.out / "runs" / stage / arm.name / f"weight{weight:g}-seed{seed}"

    def _run_config(self, arm: Arm, weight: float, seed: int) -> TrainConfig:
        # Validated once, after the last epoch: no choice among checkpoints is made on the judged pictures.
        return replace(arm.config, cls_weight=weight, seed=seed, val_every=arm.config.total_epochs)

    def keep(self, train: DetectionData) -> None:
        """Write the plan into `out`, and the pictures for tuning; seeds and arms may join those of before.

        Raises:
            GhmdetError: the folder holds something else, or a comparison with other settings, which are named.
        """
        file = self.out / "plan.json"
        if self.out.is_file():
            raise GhmdetError(f"--out {self.out} is a file: give a folder")
        if not file.exists() and self.out.exists() and any(self.out.iterdir()):
            raise GhmdetError(f"--out {self.out} holds something else: give a new folder")
        now = self._as_kept(train)
        before = json.loads(file.read_text(encoding="utf-8")) if file.exists() else now
        if other := _differences(before, now):
            raise GhmdetError(
                f"{self.out} holds a comparison with other settings: {'; '.join(other)}: give another --out"
            )
        if self.grid is not None and not self.tuning_file.exists():
            fit, held_out = tuning_parts(train)
            write_json(self.tuning_file.with_name("instances_val.json"), _part(train, held_out))
            write_json(self.tuning_file, _part(train, fit))
        write_json(file, now | {"arms": before["arms"] | now["arms"]})

    def _as_kept(self, train: DetectionData) -> dict[str, Any]:
        kept = {
            "classes": list(train.classes),
            "training pictures": len(train.records),
            "training boxes": len(train.records.boxes),
            "settings": _kept(self.base),
            "weights grid": self.grid,
            "tune epochs": self.tune_epochs,
            "tune seeds": 1,  # could be more in earlier versions
            "arms": {arm.name: _kept(arm.config) for arm in self.arms},
        }
        plain: dict[str, Any] = json.loads(json.dumps(kept))
        return plain


def _kept(config: TrainConfig) -> dict[str, Any]:
    return {name: value for name, value in settings(config).items() if name not in MAY_CHANGE}


def _differences(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """In words what the two have otherwise; arms that only one of them has are no difference."""
    if settings_differ := _other_values(before["settings"], now["settings"]):
        return settings_differ
    found = _other_values(
        {key: value for key, value in before.items() if key not in ("settings", "arms")},
        {key: value for key, value in now.items() if key not in ("settings", "arms")},
    )
    for arm in now["arms"].keys() & before["arms"].keys():
        found += _other_values(before["arms"][arm], now["arms"][arm], f"arm '{arm}': ")
    return found


def _other_values(before: dict[str, Any], now: dict[str, Any], where: str = "") -> list[str]:
    names = sorted(name for name in before.keys() | now.keys() if before.get(name) != now.get(name))
    return [
        f"{where}{name} {now.get(name, 'as by default')} (there {before.get(name, 'as by default')})"
        for name in names
    ]


def _best(scores: list[float | None]) -> int:
    """The place of the best score; of equal ones that nearest the middle."""
    middle = (len(scores) - 1) / 2
    return max(
        range(len(scores)), key=lambda i: (-1.0 if (score := scores[i]) is None else score, -abs(i - middle))
    )


def tuning_parts(data: DetectionData) -> tuple[list[int], list[int]]:
    """The training pictures split in three quarters to train on and one to judge weights on, as sorted indices.

    Every fourth picture in the order of the rarest class that it shows, then of its number of boxes: both parts have
    about the same classes, and a class that few pictures show is in the larger part. The same pictures give the same
    parts.

    Raises:
        GhmdetError: too few pictures to hold one out, or no box among those held out.
    """
    counts = np.array(list(data.boxes_per_class().values()))
    rarity = np.argsort(np.argsort(counts, kind="stable"), kind="stable")  # 0 for the rarest class

    def order(index: int) -> tuple[int, int]:
        labels = data.records[index].labels
        return (int(rarity[labels].min()) if len(labels) else len(counts)), len(labels)

    ordered = sorted(range(len(data.records)), key=order)
    held_out = sorted(ordered[HELD_OUT - 1 :: HELD_OUT])
    if not any(len(data.records[index].labels) for index in held_out):
        raise GhmdetError(
            f"{data.root}: {len(data.records)} training pictures are too few to hold some out for choosing weights:"
            " give --weights-grid none"
        )
    return sorted(set(ordered) - set(held_out)), held_out


def _part(data: DetectionData, indices: list[int]) -> dict[str, Any]:
    """Some of the pictures as COCO annotations, whose file names are absolute."""
    ids = set(data.records.image_ids[indices].tolist())
    paths = {record.image_id: str(record.path.absolute()) for record in data.records}
    coco = data.to_coco()
    return coco | {
        "images": [
            image | {"file_name": paths[image["id"]]} for image in coco["images"] if image["id"] in ids
        ],
        "annotations": [record for record in coco["annotations"] if record["image_id"] in ids],
    }
