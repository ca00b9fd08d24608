"""Studies on a frozen backbone: what imbalance does to each loss, what wrong labels do, and what GHM's settings do.

    python benchmarks/studies.py DATA/bccd --work runs/studies            # all that has no row yet
    python benchmarks/studies.py DATA/bccd --work runs/studies --processes 16
    python benchmarks/studies.py DATA/cards --work runs/studies           # its noise study
    python benchmarks/results_page.py                                     # draws docs/studies.md from the rows

**Dials.** Synthetic scenes in which one thing becomes rare: objects in a picture, one class of two, or objects of
unusual look. All are judged on one set in which nothing is rare, by the AP of what was rare in training.

**Noise.** A real set, with a share of the training boxes given another class, no label, a shifted box, or one of the
three. The pictures and the validation part stay as they are. At the end the examples (an anchor and a class) whose
target differs from that of the true labels are looked at: where they lie in g, and what share of the class loss's
gradient they have.

**Settings.** On one set of each study, the default losses with one of their settings changed.

A run is one of `proxy.py`'s: neck and head learn for 200 steps, each loss at its default weight. A seed decides the
set, its wrong labels, the first weights and the batches, and gives all losses the same. Each run is a row in
`results/`; rows that are there are not made again. What tells most comes first: the ends of the dials.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ghmdet.data import DetectionDataset, read_data
from ghmdet.data.make import SynthConfig, spoil, synthesize
from ghmdet.engine.device import keep_freed_memory
from ghmdet.evaluation.score import score
from ghmdet.functional.density import RegionCounts
from ghmdet.losses import GHMC, GHMR
from ghmdet.models import BOX_LOSSES, CLS_LOSSES, LossConfig, RetinaNet
from ghmdet.models.anchors import make_anchors
from proxy import Proxy, Recipe, draws, machine, of_pictures
from rows import RESULTS, today

ARMS = ("ghm-c", "ce", "ohem", "focal", "ghm-c-published", "ohem-per-class")
MORE_ARMS = ("focal-per-class", "ce-per-class")
BOX_ARMS = ("smooth-l1", "asl1", "ghm-r")
"""Beside giou, which all others have; where boxes are shifted."""
DIALS = {
    "foreground": (4.0, 0.02, 0.06, 1.0, 16.0, 0.25),
    "class_imbalance": (1.0, 3.0, 10.0, 30.0, 100.0),
    "hard_share": (0.1, 0.03, 0.01, 0.003),
}
"""What is set, from the values that all sets have by default on. Objects in a picture; how many times rarer the second
class is; the share of objects of unusual look. The first is that of all other sets; the last and the middle ones come
first."""
SCENES = SynthConfig(images=400, size=(160, 120), classes=2, class_imbalance=1, object_size=0.3, clutter=6)
NOISES = {"class": "class", "missing": "missing", "shifted": "shifted", "mixed": "class,missing,shifted"}
RECIPES = {
    "": Recipe("nano", 200, 8, 3e-3, versions=2, hflip=0.5, vflip=0.0, size=160),
    "bccd": Recipe("nano", 200, 8, 3e-3, versions=6, hflip=0.5, vflip=0.5, size=192),
    "cards": Recipe("nano", 200, 8, 3e-3, versions=4, hflip=0.5, vflip=0.5, size=160),
    "carla": Recipe("nano", 200, 8, 3e-3, versions=3, hflip=0.5, vflip=0.0, size=384),
}
"""How a run of a set trains: of the dials' scenes, and of the sets that get wrong labels. Carla's objects are small."""
STUDIES = ("dials", "noise")
WEIGHED = (("dials", "foreground", 0.25), ("dials", "class_imbalance", 100.0), ("noise", "class", 0.2))
FACTORS = (0.0625, 0.25, 4.0)
"""Where other weights of the class loss are tried, and which, in the losses' own. There `MORE_ARMS` come early, too."""
TURNED = (("noise", "clean", 0.0), ("dials", "class_imbalance", 30.0))
SETTINGS: dict[str, dict[str, tuple[float, ...]]] = {
    "ghm-c": {
        "bins": (5, 10, 100, 300),
        "momentum": (0.0, 0.5, 0.9, 0.97),
        "floor": (0.25, 0.5, 2.0, 4.0),
    },
    "ghm-r": {"mu": (0.005, 0.01, 0.04, 0.08)},
}
"""Where settings of a loss are changed, and which; the floor in its own, the positives."""
LOOSE = 0.005
"""A lower score threshold than the product's: a loss that scores all low still shows what it can tell apart."""


@dataclass(frozen=True)
class Job:
    """One run: of a dial's value, or of a kind and share of wrong labels; at so many times the loss's own weight.

    setting: what is not the loss's default, as `bins=10`. data: the name of the set that gets wrong labels.
    """

    study: str
    what: str
    value: float
    arm: str
    seed: int
    factor: float = 1.0
    setting: str = ""
    data: str = ""

    @property
    def key(self) -> dict[str, Any]:
        """What tells its row from others."""
        own = self.factor * (CLS_LOSSES | BOX_LOSSES)[self.arm]
        asked = {name: value for name, value in vars(self).items() if name != "factor" and value != ""}
        return asked | {"weight": round(own, 6), "recipe": RECIPES[self.data].values()}

    def made(self, rows: list[dict[str, Any]]) -> bool:
        """Whether it is among the rows."""
        return any(self.key.items() <= row.items() and self.setting == row.get("setting", "") for row in rows)

    def change(self, model: RetinaNet) -> None:
        """Give a model's loss the setting."""
        if not self.setting:
            return
        name, _, text = self.setting.partition("=")
        loss, value = model.loss, float(text)
        if self.arm == "ghm-r":
            loss.ghm_r = GHMR(mu=value)
        elif name == "floor":
            loss.ghm_c = Floored.guarded(len(model.classes))
            loss.ghm_c.floor = value
        else:
            given: dict[str, Any] = {name: int(value) if name == "bins" else value}
            loss.ghm_c = GHMC(per_class=True, num_classes=len(model.classes), **given)


class Floored(GHMC):
    """GHM-C whose regions count as at least `floor` times the positives, which are used for nothing else."""

    floor: float

    def _weigh(self, batch: RegionCounts) -> tuple[Tensor, Tensor]:
        table = batch.table.float()
        table[:, -1] *= self.floor
        return super()._weigh(RegionCounts(table))


def plan(seeds: int, data: str) -> list[Job]:
    """All runs, those that tell most first; of the noise study alone for another set than the blood cells."""
    ends, middle, rest = [("foreground", 4.0)], [], []
    for dial, (_, *values) in DIALS.items():
        ends.append((dial, values[-1]))
        middle.append((dial, values[(len(values) - 1) // 2]))
        rest += [(dial, value) for value in values if (dial, value) not in ends + middle]
    spoilt = {share: [(kind, share) for kind in NOISES] for share in (0.2, 0.4, 0.1)}
    stages = [
        {"dials": ends[2:3], "noise": spoilt[0.2][:1]},
        {"noise": [("clean", 0.0)], "dials": ends[1::-1]},
        {"noise": spoilt[0.2][1:], "dials": ends[3:]},
        {"dials": middle, "noise": spoilt[0.4]},
        {"dials": rest, "noise": spoilt[0.1]},
    ]
    found: list[Job] = []
    for arms, seed, stage in sorted(
        ((arms, seed, stage) for arms in range(2) for seed in range(seeds) for stage in range(len(stages))),
        key=lambda each: (each[0], each[1] + 2 * max(0, each[2] - 1), each[1], each[2]),
    ):
        for study, points in stages[stage].items():
            for what, value in points:
                boxes = BOX_ARMS if what in ("clean", "shifted") else ()
                names = (*MORE_ARMS, *boxes) if arms else ARMS
                found += [Job(study, what, value, arm, seed) for arm in names]
    core = [job for job in found if job.arm in ARMS]
    controls = [Job(*place, arm, 0) for place in WEIGHED for arm in MORE_ARMS]
    weights = [Job(*place, arm, 0, factor) for place in WEIGHED for arm in ARMS for factor in FACTORS]
    turned = [
        Job(*place, arm, seed, setting=f"{name}={value:g}")
        for seed in range(seeds)
        for place in TURNED
        for arm, settings in SETTINGS.items()
        if arm != "ghm-r" or place[1] == "clean"
        for name, values in settings.items()
        for value in values
    ]
    of_seed = len(ARMS) * sum(len(points) for stage in stages[:2] for points in stage.values())
    ordered = (
        core[:of_seed]
        + controls
        + core[of_seed : 3 * of_seed]
        + weights
        + core[3 * of_seed :]
        + found
        + turned
    )
    if data != "bccd":
        ordered = [job for job in core + found if job.study == "noise"]
    return [replace(job, data=data) if job.study == "noise" else job for job in dict.fromkeys(ordered)]


class Dialled:
    """A synthetic set with one dial turned, judged on one in which nothing is rare."""

    def __init__(self, job: Job, work: Path) -> None:
        common = work / "judged_on"
        data = work / f"{job.what}-{job.value:g}-{job.seed}"
        if not data.exists():
            synthesize(data, _scenes(**{job.what: job.value}, val_share=0.0, seed=job.seed))
        self.proxy = Proxy(
            data, data / "features", RECIPES[job.data], judged_on=common, parts=("varied", "val")
        )
        annotations = json.loads((common / "annotations" / "instances_val.json").read_text())
        # What is no hard object is neither right nor wrong to find.
        easy = ({**box, "iscrowd": 1 - box["hard"]} for box in annotations["annotations"])
        self.hard = annotations | {"annotations": list(easy)}

    @cached_property
    def about(self) -> dict[str, Any]:
        """Counts of the training set: boxes of each class, hard ones, background anchors for each positive one."""
        proxy, varied = self.proxy, self.proxy.features["varied"]
        labels = torch.cat(
            [varied.targets(rows, proxy.detector).labels for rows in _chunks(len(varied.truth))]
        )
        classes = len(proxy.train.classes)
        annotations = json.loads((proxy.train.root / "annotations" / "instances_train.json").read_text())[
            "annotations"
        ]
        positives = int(((labels >= 0) & (labels < classes)).sum())
        return {
            "boxes": dict(zip(proxy.train.classes, proxy.train.boxes_per_class().values(), strict=True)),
            "hard": sum(box["hard"] for box in annotations),
            "background per positive": round(int((labels == classes).sum()) / max(1, positives)),
        }

    def figures(self, model: RetinaNet) -> dict[str, Any]:
        """AP, by class and of the hard objects, at the product's score threshold and at a lower one."""
        found: dict[str, Any] = {}
        for suffix, threshold in (("", model.config.score_threshold), (" loose", LOOSE)):
            results, metrics = _judged(self.proxy, model, threshold)
            found["AP" + suffix] = _rounded(metrics.AP)
            found["per_class" + suffix] = {
                name: _rounded(one["AP"]) for name, one in metrics.per_class.items()
            }
            found["AP hard" + suffix] = _rounded(score(self.hard, results).AP)
        return found | self.about


class Spoilt:
    """The given set with a share of its training labels made wrong."""

    def __init__(self, job: Job, work: Path, data: Path) -> None:
        self.proxy = proxy = Proxy(data, work / "features", RECIPES[job.data])
        self.true = proxy.features["train"].truth
        if job.what == "clean":
            return
        spoilt = work / f"{job.what}-{job.value:g}-{job.seed}"
        if not spoilt.exists():
            spoil(data, spoilt, share=job.value, kinds=NOISES[job.what], seed=job.seed, say=lambda line: None)
        part = read_data(spoilt, "train", classes=proxy.train.classes)
        for name in ("varied", "train"):
            transforms, versions = proxy.drawn[name]
            # Augmentation does not look at boxes: the pictures come out as they did with the true ones.
            shown = draws(len(part.records), versions)
            proxy.features[name].relabel(DetectionDataset(part, transforms), shown, proxy.detector)

    def figures(self, model: RetinaNet) -> dict[str, Any]:
        """AP, by class, and where the wrong examples lie."""
        _, metrics = _judged(self.proxy, model, model.config.score_threshold)
        per_class = {name: _rounded(one["AP"]) for name, one in metrics.per_class.items()}
        found = {"AP": _rounded(metrics.AP), "AP50": _rounded(metrics.AP50), "per_class": per_class}
        return found | {"ECE": _rounded(metrics.scores["ECE"])} | self.wrong(model)

    def wrong(self, model: RetinaNet) -> dict[str, Any]:
        """Examples of the training pictures in ten regions of g, and their shares of the class loss's gradient: all,
        the wrong ones that are taught as objects, and those taught as background."""
        features, classes = self.proxy.features["train"], len(self.proxy.train.classes)
        given = features.truth
        counts, gradient = np.zeros((3, 10)), np.zeros((3, 10))
        anchors, _ = make_anchors(model.config, *features.picture, torch.device("cpu"))
        model.train()  # so that the losses' moving averages move as in training
        for rows in _chunks(len(self.true)):
            features.truth = self.true
            true = features.targets(rows, model).labels
            features.truth = given
            wanted = features.targets(rows, model)
            with torch.no_grad(), self.proxy.device.autocast():
                logits, deltas = model.head(model.neck(features.batch(rows)))
            logits = logits.float().requires_grad_()
            losses = model.loss(logits, deltas.float(), wanted.labels, wanted.boxes, anchors)
            losses["classification"].backward()
            pull, g = logits.grad.abs(), _norms(logits.detach(), wanted.labels)
            object_, was = (_one_hot(labels, classes) for labels in (wanted.labels, true))
            both = ((wanted.labels >= 0) & (true >= 0))[..., None]
            kinds = (wanted.labels >= 0)[..., None], both & object_ & ~was, both & ~object_ & was
            region = (g * 10).long().clamp(max=9)
            for place, kind in enumerate(kinds):
                mask = kind.expand_as(g)
                counts[place] += torch.bincount(region[mask], minlength=10).numpy()
                gradient[place] += torch.bincount(region[mask], pull[mask].double(), minlength=10).numpy()
        share = gradient / max(gradient[0].sum(), 1e-12)
        names = ("all", "wrong objects", "wrong background")
        return {
            "examples": dict(zip(names, counts.astype(int).tolist(), strict=True)),
            "gradient": dict(zip(names, np.round(share, 6).tolist(), strict=True)),
        }


def prepare(study: str, work: Path, data: Path) -> None:
    """Make what all sets of a study share: the set to be judged on, or the features of the true pictures."""
    work.mkdir(parents=True, exist_ok=True)
    if study == "noise":
        Proxy(data, work / "features", RECIPES[data.name])
    elif not (work / "judged_on").exists():
        synthesize(work / "judged_on", _scenes(images=222, val_share=0.9, hard_share=0.5, seed=1000))


def _scenes(**dials: Any) -> SynthConfig:
    return SynthConfig(**(vars(SCENES) | dials))


def _chunks(count: int) -> Iterator[np.ndarray]:
    yield from np.array_split(np.arange(count), -(-count // 16))


def _one_hot(labels: Tensor, classes: int) -> Tensor:
    return labels[..., None] == torch.arange(classes)


def _norms(logits: Tensor, labels: Tensor) -> Tensor:
    """g = |p - p*| of each anchor and class."""
    return (logits.sigmoid() - _one_hot(labels, logits.shape[-1]).float()).abs()


def _rounded(value: float | None) -> float:
    return round(value or 0.0, 4)


def _judged(proxy: Proxy, model: RetinaNet, threshold: float) -> tuple[list[dict[str, Any]], Any]:
    model.config = replace(proxy.config, score_threshold=threshold)
    rows = list(range(len(proxy.val.records)))
    results = proxy.detections(model, proxy.val, proxy.features["val"], rows)
    model.config = proxy.config
    return results, score(of_pictures(proxy.val, rows), results)


def run(job: Job, data: Dialled | Spoilt) -> dict[str, Any]:
    """Train and judge: the row."""
    cpu = time.process_time()
    box = job.arm if job.arm in BOX_LOSSES else "giou"
    weight = job.key["weight"]
    loss = LossConfig("ghm-c", box) if job.arm in BOX_LOSSES else LossConfig(job.arm, box, weight)
    proxy = data.proxy
    model = proxy.trained(proxy.config, loss, job.seed, proxy.all, job.change)
    found = {"AP": 0.0, "diverged": True} if model is None else data.figures(model)
    made = {"cpu_seconds": round(time.process_time() - cpu, 1), "machine": machine(), "date": today()}
    return job.key | found | made


def run_all(jobs: list[Job], work: Path, data: Path, rows: Path, ends: float) -> None:
    """Run jobs that share a set, each a row of the file, until the clock ends them."""
    keep_freed_memory()
    made: Dialled | Spoilt | None = None
    for job in jobs:
        if time.time() > ends:
            break
        if made is None:
            with contextlib.redirect_stdout(None):
                made = Dialled(job, work) if job.study == "dials" else Spoilt(job, work, data)
        row = run(job, made)
        with rows.open("a") as out:
            out.write(json.dumps(row) + "\n")
        print(
            f"{job.what} {job.value:g} {job.arm} {job.setting} seed {job.seed}: AP {row['AP']}, {row['cpu_seconds']} s",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "data", type=Path, help="the set that gets wrong labels: a folder called bccd, cards or carla"
    )
    parser.add_argument("--work", type=Path, required=True, help="folder for sets and features")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--study", choices=STUDIES, help="only this one")
    parser.add_argument(
        "--out", type=Path, default=RESULTS, help="folder of study_dials.jsonl and study_noise.jsonl"
    )
    parser.add_argument("--minutes", type=float, default=float("inf"), help="begin no run after so long")
    parser.add_argument("--processes", type=int, default=1, help="sets at a time, each on one thread")
    chosen = parser.parse_args()
    ends = time.time() + 60 * chosen.minutes
    files = {study: chosen.out / f"study_{study}.jsonl" for study in STUDIES}
    folders = {"dials": chosen.work / "dials", "noise": chosen.work / "noise" / chosen.data.name}
    rows = [json.loads(line) for file in files.values() if file.exists() for line in file.open()]
    sets: dict[tuple[Any, ...], list[Job]] = {}
    if chosen.data.name not in RECIPES:
        parser.error(f"{chosen.data}: no recipe for a set of this name: add one to RECIPES")
    for job in plan(chosen.seeds, chosen.data.name):
        if job.study == (chosen.study or job.study) and not job.made(rows):
            sets.setdefault((job.study, job.what, job.value, job.seed), []).append(job)
    with ProcessPoolExecutor(
        chosen.processes,
        multiprocessing.get_context("spawn"),
        torch.set_num_threads,
        (1,),
        max_tasks_per_child=1,
    ) as pool:
        for study in dict.fromkeys(study for study, *_ in sets):
            prepare(study, folders[study], chosen.data)
        begun = [
            pool.submit(run_all, jobs, folders[study], chosen.data, files[study], ends)
            for (study, *_), jobs in sets.items()
        ]
        for one in begun:
            one.result()


if __name__ == "__main__":
    main()
