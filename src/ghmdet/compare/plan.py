"""What a comparison consists of: its runs, where each stands, and the weight that each arm's tuning settles on."""

import json
import shlex
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from ghmdet.compare.arms import kept, settings, words
from ghmdet.data import DetectionData, share_out
from ghmdet.data.fingerprint import digest
from ghmdet.data.read import no_usable_box
from ghmdet.engine.run_folder import DIVERGED, read_json, read_rows, write_json
from ghmdet.engine.settings import TrainConfig
from ghmdet.errors import DataError, GhmdetError
from ghmdet.files import LOCK
from ghmdet.models import CLS_LOSSES
from ghmdet.report.advice import failure
from ghmdet.words import many

EXTENSIONS = 3
"""How often a grid is extended by a factor of two where its best weight lies at the edge."""
LABELS = "digest of the training pictures"
HELD_OUT = 0.25
"""The share of the training pictures that is held out to judge weights on."""


class Outcome(NamedTuple):
    """What a run that is over has come to: its AP on the part it was validated on, or why it has none."""

    AP: float | None = None
    minutes: float = 0.0
    memory: float | None = None
    failed: str = ""


@dataclass(frozen=True)
class Run:
    """One training run of a comparison, for tuning an arm or to be judged: a `ghmdet train` command of its own."""

    arm: str
    data: Path
    out: Path
    config: TrainConfig
    tuning: bool

    @property
    def command(self) -> list[str]:
        """The words after `ghmdet` that train it, or go on with it; a report of each run would be too much."""
        where = ["train", str(self.data), "--out", str(self.out)]
        return [*where, "--resume", "--no-report", *words(settings(self.config))]

    @property
    def epochs(self) -> int:
        """How many it is trained for."""
        assert self.config.epochs is not None
        return self.config.epochs

    @property
    def work(self) -> float:
        """How many epochs of all the training pictures it amounts to."""
        return self.epochs * (1 - HELD_OUT if self.tuning else 1)

    @property
    def left(self) -> float:
        """What of its work is still to do, the epoch that it is in as a whole."""
        begun = read_rows(self.out / "log.csv")
        return self.work * (1 - (int(begun[-1]["epoch"]) - 1) / self.epochs) if begun else self.work

    def outcome(self) -> Outcome | None:
        """What it has come to; None while it is not over."""
        diverged = self.out / DIVERGED
        if diverged.exists():
            return Outcome(failed=diverged.read_text(encoding="utf-8").strip())
        rows = read_rows(self.out / "metrics.csv")
        if not rows or int(rows[-1]["epoch"]) < self.epochs:
            return None
        AP, seconds, memory = (rows[-1].get(name) for name in ("AP", "seconds", "memory"))
        return Outcome(float(AP or 0), float(seconds or 0) / 60, float(memory) if memory else None)

    def __str__(self) -> str:
        tuning = " (tuning)" if self.tuning else ""
        return f"{self.arm}, weight {self.config.cls_weight:g}, seed {self.config.seed}{tuning}"


def unlearnt(runs: Sequence[Run]) -> str:
    """How many of these runs came to nothing, by what `ghmdet train` ends with 1 for, and why the first; else empty."""
    failed = [f"{run}: {why}" for run in runs if (why := failure(run.out))]
    return f"{len(failed)} of {many(len(runs), 'run')} came to nothing. {failed[0]}" if failed else ""


@dataclass(frozen=True)
class Standing:
    """Where an arm stands.

    weight: of its class loss, once it is settled. grid: the AP of each weight on the held-out pictures, None where it
    diverged. runs: those to be judged. missing: those that can be made now. failed: why the arm has no result.
    """

    weight: float | None = None
    grid: dict[float, float | None] = field(default_factory=dict)
    at_edge: bool = False
    runs: tuple[Run, ...] = ()
    missing: tuple[Run, ...] = ()
    failed: str = ""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """All the runs of a comparison in the folder `out`; their state is what lies in that folder, and nothing else."""

    data: Path
    out: Path
    base: TrainConfig
    arms: dict[str, TrainConfig]
    seeds: range
    grid: tuple[float, ...] | None
    tune_epochs: int | None

    @property
    def tuning_file(self) -> Path:
        """The COCO annotations that tuning trains on; those it is judged on lie beside it."""
        return self.out / "data" / "instances_train.json"

    def stand(self, arm: str) -> Standing:
        """Where an arm stands, as its runs' folders say."""
        tuned = self._tune(arm)
        if tuned.weight is None:
            return tuned
        runs = tuple(self.run(arm, tuned.weight, seed) for seed in self.seeds)
        outcomes = {run: run.outcome() for run in runs}
        for run, outcome in outcomes.items():
            if outcome and outcome.failed:
                return replace(tuned, failed=f"{run}: {outcome.failed}")
        return replace(tuned, runs=runs, missing=tuple(run for run in runs if not outcomes[run]))

    def _tune(self, arm: str) -> Standing:
        """The weight that an arm settled on, or the runs that this needs next.

        The weight is the one with the best AP over the held-out pictures. Where it is the least or the greatest of the
        grid, half or twice of it joins the grid, at most `EXTENSIONS` times.
        """
        config = self.arms[arm]
        if config.cls_weight is not None or self.grid is None:
            return Standing(CLS_LOSSES[config.cls_loss] if config.cls_weight is None else config.cls_weight)
        weights = sorted(self.grid)
        for extended in range(EXTENSIONS + 1):
            runs = {weight: self.run(arm, weight, self.seeds[0], tuning=True) for weight in weights}
            over = {weight: outcome for weight, run in runs.items() if (outcome := run.outcome())}
            if missing := tuple(run for weight, run in runs.items() if weight not in over):
                return Standing(missing=missing)
            grid = {weight: outcome.AP for weight, outcome in over.items()}
            if all(AP is None for AP in grid.values()):
                reason = over[weights[0]].failed
                return Standing(grid=grid, failed=f"every weight of the grid diverged, first: {reason}")
            best = _best(list(grid.values()))
            if 0 < best < len(weights) - 1 or extended == EXTENSIONS:
                break
            weights = [weights[0] / 2, *weights] if best == 0 else [*weights, weights[-1] * 2]
        return Standing(weights[best], grid, at_edge=best in (0, len(weights) - 1))

    def run(self, arm: str, weight: float, seed: int, *, tuning: bool = False) -> Run:
        """The run of an arm at a weight of its class loss: to be judged, or to choose that weight."""
        config = self.arms[arm]
        epochs = (tuning and self.tune_epochs) or config.epochs
        # Validated once, after the last epoch: no choice among checkpoints is made on the judged pictures.
        config = replace(config, cls_weight=weight, seed=seed, epochs=epochs, val_every=epochs)
        data, stage = self.data, "final"
        if tuning:
            config = replace(config, train_split="train", val_split="val")
            data, stage = self.tuning_file, "tune"
        return Run(
            arm, data, self.out / "runs" / stage / arm / f"weight{weight:g}-seed{seed}", config, tuning
        )

    def describe(self, pictures: int) -> str:
        """How many runs there are, how long each is given the number of training pictures, and how many are done."""
        tuned = [arm for arm, own in self.arms.items() if self.grid and own.cls_weight is None]
        stages = []
        for what, arms, times in (
            ("choose weights", tuned, len(self.grid or ())),
            ("judge", self.arms, len(self.seeds)),
        ):
            tuning = what == "choose weights"
            runs = [self.run(arm, 1.0, self.seeds[0], tuning=tuning) for arm in arms]
            share = 1 - HELD_OUT if tuning else 1
            steps = [
                run.epochs * (int(share * pictures) // (run.config.batch_size * run.config.accumulate))
                for run in runs
            ]
            if runs:
                epochs = _span([run.epochs for run in runs])
                stages.append(
                    f"{times * len(runs)} to {what}, epochs: {epochs}, or about {_span(steps)} steps each"
                )
        runs = [
            self.run(arm, weight, self.seeds[0], tuning=True) for arm in tuned for weight in self.grid or ()
        ]
        runs += [run for arm in self.arms for run in self.stand(arm).runs]
        done = sum(run.outcome() is not None for run in runs)
        kept = f"; of these {done} {'is' if done == 1 else 'are'} done" if done else ""
        grows = "; more where a best weight lies at the edge of the grid" if tuned else ""
        time = "" if done == len(runs) else "; the time they take is said after the first steps"
        return f"runs to make: {'; '.join(stages)}{kept}{grows}{time}"

    def commands(self) -> list[str]:
        """The commands that can be run now, in any order; an arm's final runs follow once its grid is done."""
        missing = [run for arm in self.arms for run in self.stand(arm).missing]
        return [shlex.join(["ghmdet", *run.command]) for run in missing]

    def keep(self, train: DetectionData) -> None:
        """Write the plan into `out`, and the pictures for tuning; seeds and arms may join those of before.

        Raises:
            GhmdetError: the folder holds something else, or a comparison with another setting, which is named.
        """
        file = self.out / "plan.json"
        if self.out.is_file():
            raise GhmdetError(f"--out {self.out} is a file: give a folder")
        if not file.exists() and self.out.exists() and {path.name for path in self.out.iterdir()} - {LOCK}:
            raise GhmdetError(
                f"--out {self.out} holds something else, or a comparison without its plan.json: give a new folder"
            )
        now = json.loads(json.dumps(self._described(train)))
        defaults = kept(TrainConfig())  # of settings that have come since
        try:
            before = read_json(file) or now
            before |= {
                LABELS: before.get(LABELS, now[LABELS]),
                "settings": defaults | before["settings"],
                "arms": {name: defaults | own for name, own in before["arms"].items()},
            }
        except (AttributeError, GhmdetError, KeyError, TypeError):
            raise GhmdetError(f"{file}: damaged: copy it back, or give another --out") from None
        arms = before["arms"] | now["arms"]
        # An arm that only one of them has is no difference.
        there, here = (_flat(plan | {"arms": arms | plan["arms"]}) for plan in (before, now))
        for name in [*here, *there]:
            values = [plan.get(name, "as by default") for plan in (here, there)]
            if values[0] != values[1] and name == LABELS:
                raise GhmdetError(
                    f"{self.out}: the training pictures or labels have changed since: give another --out"
                )
            if values[0] != values[1]:
                raise GhmdetError(
                    f"{self.out} holds a comparison with other settings: {name} {values[0]} (there {values[1]}):"
                    " give another --out"
                )
        parts = None
        if self.grid is not None and not self._has_parts():
            parts = tuning_parts(train)
        write_json(file, now | {"arms": arms})  # first: the folder is known by it
        if parts:
            fit, held_out = parts
            write_json(self.tuning_file.with_name("instances_val.json"), held_out.to_coco(absolute=True))
            write_json(self.tuning_file, fit.to_coco(absolute=True))

    def _has_parts(self) -> bool:
        """Whether the parts for tuning are there, whole, and name pictures where they are."""
        with suppress(GhmdetError, IndexError, KeyError, TypeError):
            files = self.tuning_file, self.tuning_file.with_name("instances_val.json")
            return all(Path((read_json(file) or {})["images"][0]["file_name"]).is_file() for file in files)
        return False

    def _described(self, train: DetectionData) -> dict[str, Any]:
        return {
            "classes": train.classes,
            "training pictures": len(train.records),
            "training boxes": len(train.records.boxes),
            LABELS: digest(train),
            "settings": kept(self.base),
            "weights grid": self.grid,
            "tune epochs": self.tune_epochs,
            "tune seeds": 1,  # could be more in earlier versions
            "arms": {name: kept(config) for name, config in self.arms.items()},
        }


def _flat(plan: dict[str, Any]) -> dict[str, Any]:
    arms = {f"arm '{arm}': {name}": value for arm, own in plan["arms"].items() for name, value in own.items()}
    return {**plan["settings"], **plan, "settings": None, "arms": None, **arms}


def _span(values: list[int]) -> str:
    return " to ".join(f"{value}" for value in sorted({min(values), max(values)}))


def _best(scores: list[float | None]) -> int:
    """The place of the best score; of equal ones that nearest the middle.

    >>> _best([0.1, 0.3, 0.3, 0.3, None])
    2
    """
    middle = (len(scores) - 1) / 2
    return max((score, -abs(i - middle), i) for i, score in enumerate(scores) if score is not None)[2]


def tuning_parts(data: DetectionData) -> tuple[DetectionData, DetectionData]:
    """The training pictures as three quarters to train on and one to judge weights on (see `share_out`).

    Raises:
        GhmdetError: too few pictures to hold some out, or no box among those held out.
    """
    with suppress(DataError):
        fit, held_out = share_out(data, HELD_OUT)
        if not no_usable_box(held_out):
            return fit, held_out
    raise GhmdetError(
        f"{data.root}: its training pictures are too few, or too much alike, to hold some out for choosing weights:"
        " give --weights-grid none"
    )
