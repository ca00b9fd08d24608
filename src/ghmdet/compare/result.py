"""The result of a comparison: every final run judged, and what differs from the first arm beyond chance."""

import hashlib
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ghmdet.compare.arms import settings
from ghmdet.compare.paired import LEVEL, average_precision, interval, over_classes, resamples
from ghmdet.compare.plan import Plan, Run, Standing, unlearnt
from ghmdet.data import DetectionData
from ghmdet.data.fingerprint import scored
from ghmdet.engine.checkpoint import load_checkpoint
from ghmdet.engine.detect import Detector
from ghmdet.engine.evaluate import validate
from ghmdet.engine.observation import measure_spectrum
from ghmdet.engine.run_folder import provenance, read_json
from ghmdet.errors import CheckpointError, GhmdetError
from ghmdet.evaluation.matching import ClassMatches, matches
from ghmdet.evaluation.tables import Floats
from ghmdet.files import content_digest
from ghmdet.progress import counting
from ghmdet.spectrum import BACKGROUND, OBJECTS, SpectrumCounts

RESAMPLES = 1000
SPECTRUM_PICTURES = 100


def judge(
    plan: Plan, part: DetectionData, failed: dict[str, str], say: Callable[[str], None]
) -> tuple[dict[str, Any], dict[str, SpectrumCounts]]:
    """Judge the last weights of every final run; detections and spectra are kept in the run's folder.

    Args:
        plan: all of whose runs are over, but for those of arms that failed.
        part: the data to judge on.
        failed: why an arm has no result, for those that did not diverge.
        say: takes each line meant for the user.

    Returns:
        What `comparison.json` holds, and the spectrum of each arm's first run.

    Raises:
        GhmdetError: every arm failed; the first reason.
    """
    standing = {arm: plan.stand(arm) for arm in plan.arms}
    failed = {arm: each.failed for arm, each in standing.items() if each.failed} | failed
    first = next(iter(standing))
    runs = {arm: each.runs for arm, each in standing.items() if arm not in failed}
    if not runs:
        raise GhmdetError(f"every arm failed; {first}: {failed[first]}")
    say(part.describe())
    counts, of = resamples(len(part.records), RESAMPLES), scored(part)
    with counting("runs judged", sum(map(len, runs.values()))) as advance:
        judged = {arm: _judge(of_arm, part, of, counts, advance, say) for arm, of_arm in runs.items()}
    spectra = {arm: _spectrum(of_arm[0], part, of) for arm, of_arm in runs.items()}
    arms: dict[str, dict[str, Any]] = {arm: {"settings": settings(own)} for arm, own in plan.arms.items()}
    for arm, own in judged.items():
        compared = judged.get(first) if arm != first else None
        arms[arm] |= _arm(standing[arm], own, compared, spectra[arm])
    for arm, reason in failed.items():
        arms[arm]["failed"] = reason
    result = {
        "data": str(plan.data),
        "split": part.split,
        "pictures": len(part.records),
        "boxes": part.boxes_per_class(),
        "first": first,
        "seeds": list(plan.seeds),
        "weights_grid": plan.grid,
        "statistics": {
            "level": LEVEL,
            "resamples": RESAMPLES,
            "over": "images and seeds" if len(plan.seeds) > 1 else "images only: one seed",
        },
        "arms": arms,
        "made": provenance({"data": str(plan.data), "split": part.split} | asdict(plan.base)),
    }
    return result, spectra


class Judged(NamedTuple):
    """The average precision of an arm's S seeds, over all classes (under "") and of each class.

    AP: [1 + R, S], on the pictures as they are and on R resamples of them. AP50: [S], on the pictures as they are.
    """

    AP: dict[str, Floats]
    AP50: dict[str, Floats]


def _judge(
    runs: Sequence[Run],
    part: DetectionData,
    of: str,
    counts: Floats,
    advance: Callable[[int], None],
    say: Callable[[str], None],
) -> Judged:
    AP, AP50 = [], []
    truth = part.to_coco()
    for run in runs:
        by_name = _kept(run, part.split, of, truth)
        if by_name is None:
            config, folder = run.config, run.out / part.split
            earlier = (folder / "metrics.json").exists()
            try:
                load_checkpoint(run.out / "last.pt")
                # Damaged, they would be taken for another tool's.
                for name in ("metrics.json", "predictions.json"):
                    (folder / name).unlink(missing_ok=True)
                validate(
                    run.out / "last.pt",
                    run.data,
                    split=part.split,
                    out=folder,
                    batch_size=config.batch_size,
                    workers=config.workers or 0,
                    device=config.device,
                    precision=config.precision,
                    say=lambda line: None,
                )
            except CheckpointError as error:
                why = str(error).rpartition(": ")[0]
                raise CheckpointError(
                    f"{run}: {why}: remove {run.out}, and the same command trains it anew"
                ) from error
            if earlier:
                say(
                    f"{run}: judged anew: what {folder} held was of other pictures, labels or weights, or damaged"
                )
            by_name = matches(truth, folder / "predictions.json")
        found = average_precision({name: by_name[name] for name in part.classes}, counts)
        AP.append(found.mean(axis=2))
        AP50.append(found[0, :, 0])
        advance(1)
    return Judged(*(_by_class(np.stack(one, axis=-2), part.classes) for one in (AP, AP50)))


def _kept(run: Run, split: str, of: str, truth: dict[str, Any]) -> dict[str, ClassMatches] | None:
    """The matches of the detections that a run's folder keeps; None where they are of other data, or damaged.

    of: the data, as `scored` says it. truth: the same as COCO annotations.
    """
    folder = run.out / split
    about = {"split": split, "checkpoint_digest": content_digest(run.out / "last.pt"), "digest": of}
    with suppress(GhmdetError):
        metrics = read_json(folder / "metrics.json") or {}  # the last thing that `validate` writes
        if about.items() <= metrics.items():
            return matches(truth, folder / "predictions.json")
    return None


def _by_class(values: Floats, classes: Sequence[str]) -> dict[str, Floats]:
    return {"": over_classes(values)} | {name: values[..., k] for k, name in enumerate(classes)}


def _arm(arm: Standing, own: Judged, first: Judged | None, spectrum: SpectrumCounts) -> dict[str, Any]:
    """What `comparison.json` has of an arm; `first` is what differences are taken from, if from anything."""

    def scores(name: str) -> dict[str, Any]:
        difference = interval(own.AP[name] - first.AP[name])._asdict() if first else None
        return {"AP": _spread(own.AP[name][0]), "AP50": _spread(own.AP50[name]), "difference": difference}

    outcomes = [outcome for run in arm.runs if (outcome := run.outcome())]
    memory = [outcome.memory for outcome in outcomes if outcome.memory is not None]
    whole, bounds = scores(""), interval(own.AP[""])
    whole["AP"] |= {"low": max(bounds.low, 0.0), "high": min(bounds.high, 1.0)}
    return {
        "weight": arm.weight,
        "grid": {f"{weight:g}": AP for weight, AP in arm.grid.items()} or None,
        "weight_at_edge": arm.at_edge,
        **whole,
        "unlearnt": unlearnt(arm.runs) or None,
        "per_class": {name: scores(name) for name in own.AP if name and not np.isnan(own.AP50[name]).any()},
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


def spectrum_file(run: Run, split: str, of: str) -> Path:
    """Where the spectrum of a run's last weights on the data is kept: named by both. of: the data, as by `scored`."""
    both = f"{content_digest(run.out / 'last.pt')} {of}"
    return run.out / split / f"spectrum-{hashlib.sha256(both.encode()).hexdigest()[:16]}.npz"


def _spectrum(run: Run, part: DetectionData, of: str) -> SpectrumCounts:
    """The spectrum of a run's last weights on up to `SPECTRUM_PICTURES` pictures, measured once."""
    kept = spectrum_file(run, part.split, of)
    with suppress(GhmdetError):
        return SpectrumCounts.load(kept)
    for old in kept.parent.glob("spectrum*.npz"):
        old.unlink()
    detector = Detector.load(run.out / "last.pt", device=run.config.device, precision="fp32")
    measured = measure_spectrum(detector, part, pictures=SPECTRUM_PICTURES).spectrum
    measured.save(kept)
    return measured
