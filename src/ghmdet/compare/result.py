"""The result of a comparison: every final run judged, and what differs from the first arm beyond chance."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any, NamedTuple

import numpy as np

from ghmdet.compare.arms import settings
from ghmdet.compare.paired import Floats, average_precision, interval, over_classes, resamples
from ghmdet.compare.plan import Plan, Run, Standing
from ghmdet.data import DetectionData
from ghmdet.engine.detect import Detector
from ghmdet.engine.evaluate import validate
from ghmdet.engine.observation import measure_spectrum
from ghmdet.engine.progress import counting
from ghmdet.engine.run_folder import provenance
from ghmdet.errors import GhmdetError
from ghmdet.evaluation.matching import matches
from ghmdet.spectrum import BACKGROUND, OBJECTS, SpectrumCounts

RESAMPLES = 1000
SPECTRUM_PICTURES = 100


class Judged(NamedTuple):
    """The average precision of an arm's S seeds by class: on the images as they are and on R resamples of them.

    AP: [1 + R, S, K], over the ten IoU thresholds. AP50: [S, K], of the images as they are.
    """

    AP: Floats
    AP50: Floats

    def figure(self, k: int | None = None) -> Floats:
        """The AP of class k, or over all classes, [1 + R, S]."""
        return over_classes(self.AP) if k is None else self.AP[..., k]


def judge(
    plan: Plan, judged: DetectionData, failed: dict[str, str], say: Callable[[str], None]
) -> tuple[dict[str, Any], dict[str, SpectrumCounts]]:
    """Judge the last weights of every final run; detections and spectra are kept in the run's folder.

    Args:
        plan: all of whose runs are over, but for those of arms that failed.
        judged: the part of the data to judge on.
        failed: why an arm has no figures, for those that did not diverge.
        say: takes each line meant for the user.

    Returns:
        What `comparison.json` holds, and the spectrum of each arm's first run.

    Raises:
        GhmdetError: every arm failed; the first reason.
    """
    standing = {arm: plan.stand(arm) for arm in plan.arms}
    failed = {name: each.failed for name, each in standing.items() if each.failed} | failed
    first = next(iter(standing))
    if len(failed) == len(standing):
        raise GhmdetError(f"every arm failed; {first}: {failed[first]}")
    say(judged.describe())
    counts = resamples(len(judged.records), RESAMPLES)
    runs = {name: each.runs for name, each in standing.items() if name not in failed}
    with counting("runs judged", sum(map(len, runs.values()))) as advance:
        found = {name: _judge(of_arm, judged, counts, advance) for name, of_arm in runs.items()}
    spectra = {name: _spectrum(of_arm[0], judged) for name, of_arm in runs.items()}
    arms: dict[str, dict[str, Any]] = {name: {"settings": settings(own)} for name, own in plan.arms.items()}
    for name, own in found.items():
        compared = found.get(first) if name != first else None
        arms[name] |= _figures(standing[name], own, compared, spectra[name], judged.classes)
    for name, reason in failed.items():
        arms[name]["failed"] = reason
    figures = {
        "data": str(plan.data),
        "split": judged.split,
        "pictures": len(judged.records),
        "boxes": judged.boxes_per_class(),
        "first": first,
        "seeds": list(plan.seeds),
        "weights_grid": plan.grid,
        "statistics": {
            "level": 0.95,
            "resamples": RESAMPLES,
            "over": "images and seeds" if len(plan.seeds) > 1 else "images only: one seed",
        },
        "arms": arms,
        "made": provenance({"data": str(plan.data), "split": judged.split} | asdict(plan.base)),
    }
    return figures, spectra


def _judge(
    runs: Sequence[Run], judged: DetectionData, counts: Floats, advance: Callable[[int], None]
) -> Judged:
    AP, AP50 = [], []
    truth = judged.to_coco()
    for run in runs:
        folder, config = run.out / judged.split, run.config
        about = {"checkpoint": str(run.out / "last.pt"), "data": str(run.data), "split": judged.split}
        kept = folder / "metrics.json"  # the last thing that `validate` writes
        if not kept.exists() or not about.items() <= json.loads(kept.read_text(encoding="utf-8")).items():
            validate(
                run.out / "last.pt",
                run.data,
                split=judged.split,
                out=folder,
                batch_size=config.batch_size,
                workers=config.workers or 0,
                device=config.device,
                precision=config.precision,
                say=lambda line: None,
            )
        by_name = matches(truth, folder / "predictions.json")
        found = average_precision({name: by_name[name] for name in judged.classes}, counts)
        AP.append(found.mean(axis=2))
        AP50.append(found[0, :, 0])
        advance(1)
    return Judged(np.stack(AP, axis=1), np.stack(AP50))


def _figures(
    arm: Standing, own: Judged, first: Judged | None, spectrum: SpectrumCounts, classes: Sequence[str]
) -> dict[str, Any]:
    """An arm's figures; `first` is what differences are taken from, if from anything."""

    def difference(k: int | None = None) -> dict[str, float] | None:
        return interval(own.figure(k) - first.figure(k))._asdict() if first else None

    outcomes = [outcome for run in arm.runs if (outcome := run.outcome())]
    memory = [outcome.memory for outcome in outcomes if outcome.memory is not None]
    bounds = interval(own.figure())
    return {
        "weight": arm.weight,
        "grid": {f"{weight:g}": score for weight, score in arm.grid.items()} or None,
        "weight_at_edge": arm.at_edge,
        "AP": _spread(own.figure()[0]) | {"low": max(bounds.low, 0.0), "high": min(bounds.high, 1.0)},
        "AP50": _spread(over_classes(own.AP50)),
        "difference": difference(),
        "per_class": {
            name: {
                "AP": _spread(own.figure(k)[0]),
                "AP50": _spread(own.AP50[:, k]),
                "difference": difference(k),
            }
            for k, name in enumerate(classes)
            if not np.isnan(own.AP50[:, k]).any()
        },
        "cost": {
            "minutes": float(np.mean([outcome.minutes for outcome in outcomes])),
            "memory": max(memory, default=None),
        },
        "spectrum": {
            "pictures": int(spectrum.pictures[0]),
            "objects": spectrum.examples[0, OBJECTS].sum(axis=(0, 1)).tolist(),
            "background": spectrum.examples[0, BACKGROUND].sum(axis=(0, 1)).tolist(),
        },
    }


def _spread(values: Floats) -> dict[str, Any]:
    """Mean, standard deviation over the seeds (None for one) and the seeds' own values."""
    deviation = float(values.std(ddof=1)) if len(values) > 1 else None
    return {"mean": float(values.mean()), "std": deviation, "values": values.tolist()}


def _spectrum(run: Run, judged: DetectionData) -> SpectrumCounts:
    """The spectrum of a run's last weights on up to `SPECTRUM_PICTURES` pictures, measured once."""
    kept = run.out / judged.split / "spectrum.npz"
    if kept.exists():
        return SpectrumCounts.load(kept)
    detector = Detector.load(run.out / "last.pt", device=run.config.device, precision="fp32")
    counts = measure_spectrum(detector, judged, pictures=SPECTRUM_PICTURES).spectrum
    counts.save(kept)
    return counts
