"""The result of a comparison: every final run judged, and what differs from the first arm beyond chance."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ghmdet.compare.arms import Arm, settings
from ghmdet.compare.page import draw_figures, markdown, table
from ghmdet.compare.paired import Floats, average_precision, interval, over_classes, resamples
from ghmdet.compare.plan import Plan, Run
from ghmdet.data import DetectionData
from ghmdet.engine.detect import Detector
from ghmdet.engine.evaluate import validate
from ghmdet.engine.observation import measure_spectrum
from ghmdet.engine.progress import counting
from ghmdet.engine.run_folder import provenance, write_json
from ghmdet.errors import GhmdetError
from ghmdet.evaluation.matching import matches
from ghmdet.files import write_atomic

RESAMPLES = 1000
SPECTRUM_PICTURES = 100


@dataclass(frozen=True)
class Comparison:
    """What `comparison.json` holds (docs/compare.md says what each entry is)."""

    figures: dict[str, Any]

    def table(self) -> str:
        """The arms as lines of plain text for a terminal."""
        return table(self.figures)

    def save(self, out: Path) -> list[Path]:
        """Write comparison.json, comparison.md and the pictures into `out`; their paths."""
        write_json(out / "comparison.json", self.figures)
        pictures = draw_figures(out, self.figures)
        page = write_atomic(out / "comparison.md", markdown(self.figures, pictures))
        return [out / "comparison.json", page, *pictures]


@dataclass(frozen=True)
class _Judged:
    """An arm's average precision: each seed's by class and IoU threshold [S, K, 10], and of resamples [R, S, K]."""

    observed: Floats
    resampled: Floats


def compare_runs(
    plan: Plan, judged: DetectionData, failed: dict[str, str], say: Callable[[str], None]
) -> Comparison:
    """Judge the last weights of every final run on `judged` and put the figures together.

    Detections and spectra are kept in the run's folder, under the name of the part, and not made again.

    Args:
        plan: all of whose runs are over, but for those of arms that failed.
        judged: the part to judge on.
        failed: why an arm has no figures, for those that did not diverge.
        say: takes each line meant for the user.

    Raises:
        GhmdetError: every arm failed.
    """
    counts = resamples(len(judged.records), RESAMPLES)
    runs: dict[str, list[Run]] = {}
    reasons: dict[str, str] = {}
    for arm in plan.arms:
        found = failed.get(arm.name) or _final_runs(plan, arm)
        if isinstance(found, str):
            reasons[arm.name] = found
        else:
            runs[arm.name] = found
    if not runs:
        raise GhmdetError(f"every arm failed; {next(iter(reasons))}: {next(iter(reasons.values()))}")
    say(judged.describe())
    arms = {}
    with counting("runs judged", sum(map(len, runs.values()))) as advance:
        for name, of_arm in runs.items():
            arms[name] = _judge(of_arm, judged, counts, advance)
    first = plan.arms[0].name
    return Comparison(
        {
            "data": str(plan.data),
            "split": judged.split,
            "pictures": len(judged.records),
            "boxes": judged.boxes_per_class(),
            "first": first,
            "seeds": list(range(plan.base.seed, plan.base.seed + plan.seeds)),
            "weights_grid": plan.grid,
            "statistics": {
                "level": 0.95,
                "resamples": RESAMPLES,
                "over": "images and seeds" if plan.seeds > 1 else "images only: one seed",
            },
            "arms": {
                arm.name: {"failed": reasons[arm.name], "settings": settings(arm.config)}
                if arm.name in reasons
                else _figures(plan, arm, runs[arm.name], arms[arm.name], arms.get(first), judged)
                for arm in plan.arms
            },
            "made": provenance({"data": str(plan.data), "split": judged.split} | asdict(plan.base)),
        }
    )


def _final_runs(plan: Plan, arm: Arm) -> list[Run] | str:
    """The final runs of an arm, or why it has none."""
    tuning = plan.tune(arm)
    if tuning.weight is None:
        return tuning.failed or "its weight is not settled"
    runs = plan.final_runs(arm, tuning.weight)
    for run in runs:
        outcome = run.outcome()
        if outcome is None or outcome.AP is None:
            return f"{run}: {outcome.failed if outcome else 'not finished'}"
    return runs


def _judge(
    runs: Sequence[Run], judged: DetectionData, counts: Floats, advance: Callable[[int], None]
) -> _Judged:
    observed, resampled = [], []
    truth = judged.to_coco()
    for run in runs:
        folder = run.out / judged.split
        if not (folder / "metrics.json").exists():  # the last thing that `validate` writes
            validate(
                run.out / "last.pt",
                run.data,
                split=judged.split,
                out=folder,
                device=run.config.device,
                precision=run.config.precision,
                batch_size=run.config.batch_size,
                workers=run.config.workers or 0,
                say=lambda line: None,
            )
        by_name = matches(truth, folder / "predictions.json")
        found = {name: by_name[name] for name in judged.classes}
        observed.append(average_precision(found, np.ones((1, len(judged.records))))[0])
        resampled.append(average_precision(found, counts).mean(axis=2))
        advance(1)
    return _Judged(np.stack(observed), np.stack(resampled, axis=1))


def _figures(
    plan: Plan, arm: Arm, runs: Sequence[Run], own: _Judged, first: _Judged | None, judged: DetectionData
) -> dict[str, Any]:
    tuning = plan.tune(arm)
    outcomes = [outcome for run in runs if (outcome := run.outcome())]
    compared = first if arm.name != plan.arms[0].name else None
    memory = [outcome.memory for outcome in outcomes if outcome.memory is not None]
    own_AP = _AP_of(own)
    return {
        "settings": settings(arm.config),
        "weight": tuning.weight,
        "grid": {f"{weight:g}": score for weight, score in tuning.grid.items()} or None,
        "weight_at_edge": tuning.at_edge,
        "AP": _spread(own_AP[0]) | _interval(*own_AP),
        "AP50": _spread(over_classes(own.observed[:, :, :1])),
        "difference": _difference(own_AP, _AP_of(compared)) if compared else None,
        "per_class": {
            name: {
                "AP": _spread(own.observed[:, k].mean(axis=1)),
                "AP50": _spread(own.observed[:, k, 0]),
                "difference": _difference(_class_of(own, k), _class_of(compared, k)) if compared else None,
            }
            for k, name in enumerate(judged.classes)
            if not np.isnan(own.observed[:, k]).any()
        },
        "cost": {
            "minutes": float(np.mean([outcome.minutes for outcome in outcomes])),
            "memory": max(memory) if memory else None,
        },
        "spectrum": _spectrum(runs[0], judged),
    }


def _AP_of(arm: _Judged) -> tuple[Floats, Floats]:
    """The AP of each seed, [S], and of each resample and seed, [R, S]."""
    by_seed = [over_classes(arm.resampled[:, s, :, None]) for s in range(arm.resampled.shape[1])]
    return over_classes(arm.observed), np.stack(by_seed, axis=1)


def _class_of(arm: _Judged, k: int) -> tuple[Floats, Floats]:
    return arm.observed[:, k].mean(axis=1), arm.resampled[:, :, k]


def _spread(values: Floats) -> dict[str, Any]:
    """Mean, standard deviation over the seeds (None for one) and the seeds' own values."""
    deviation = float(values.std(ddof=1)) if len(values) > 1 else None
    return {"mean": float(values.mean()), "std": deviation, "values": values.tolist()}


def _interval(values: Floats, resampled: Floats) -> dict[str, float]:
    found = interval(values, resampled)
    return {"low": max(found.low, 0.0), "high": min(found.high, 1.0)}


def _difference(own: tuple[Floats, Floats], first: tuple[Floats, Floats]) -> dict[str, float]:
    found = interval(own[0] - first[0], own[1] - first[1])
    return {
        "mean": found.mean,
        "low": found.low,
        "high": found.high,
        "probability_better": found.probability_above,
    }


def _spectrum(run: Run, judged: DetectionData) -> dict[str, Any]:
    kept = run.out / judged.split / "spectrum.json"
    if not kept.exists():
        detector = Detector.load(run.out / "last.pt", device=run.config.device, precision="fp32")
        counts = measure_spectrum(detector, judged, pictures=SPECTRUM_PICTURES).spectrum
        background, objects = counts.examples[0].sum(axis=(1, 2)).tolist()
        seen = int(counts.pictures[0])
        write_json(kept, {"pictures": seen, "objects": objects, "background": background})
    spectrum: dict[str, Any] = json.loads(kept.read_text(encoding="utf-8"))
    return spectrum
