"""Made-up run folders, with as much or as little in them as a test asks for."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from ghmdet.engine.checkpoint import save_checkpoint
from ghmdet.evaluation.findings import find
from ghmdet.models import RetinaNet, model_state, preset
from ghmdet.report.inspection import FORMAT
from ghmdet.spectrum import REGIONS, SpectrumCounts
from spectrum_cases import CLASSES, make_case

KINDS = ("no label here", "other label here", "not seen")


def make_run(
    path: Path,
    *,
    classes: Sequence[str] = CLASSES,
    class_loss: str = "ghm-c",
    logged: bool = True,
    training: SpectrumCounts | None = None,
    inspected: SpectrumCounts | None = None,
    findings: dict[str, Any] | None = None,
) -> Path:
    """A run of four epochs with twelve steps each; its best checkpoint is empty, its data has gone."""
    path.mkdir(parents=True)
    arguments = {
        "data": "sets/made-up",
        "val_split": "val",
        "model": "nano",
        "cls_loss": class_loss,
        "seed": 7,
    }
    made = {
        "command": "ghmdet train sets/made-up --seed 7",
        "arguments": arguments,
        "versions": {"python": "3.12"},
        "machine": {"system": "Linux", "cpus": 2},
        "git": None,
        "started": "2026-01-02T03:04:05+00:00",
    }
    (path / "run.json").write_text(json.dumps(made))
    if logged:
        rows = [f"{s},{(s - 1) // 12 + 1},{2 / s},{1 / s},{1 / s}" for s in range(1, 49)]
        (path / "log.csv").write_text(
            "\n".join(["step,epoch,loss,classification,bbox_regression", *rows, ""])
        )
        scores = [f"{12 * e},{e},{e},0.{e},0.{2 * e}" for e in range(1, 5)]
        (path / "metrics.csv").write_text("\n".join(["step,epoch,seconds,AP,AP50", *scores, ""]))
        (path / "metrics.json").write_text(json.dumps(found(classes)["metrics"]))
    if training is not None:
        training.save(path / "spectrum.npz")
    if findings is not None:
        (path / "best.pt").touch()
        (path / "inspection" / "crops").mkdir(parents=True)
        for one in findings["hardest"]:
            Image.new("RGB", (32, 32), "teal").save(path / "inspection" / one["crop"])
        (epochs(1) if inspected is None else inspected).save(path / "inspection" / "spectrum.npz")
        made_of = {
            "format": FORMAT,
            "checkpoint": hashlib.sha256(b"").hexdigest(),
            "data": str(Path("sets/made-up").resolve()),
            "split": "val",
        }
        (path / "inspection" / "findings.json").write_text(json.dumps(findings | {"made_of": made_of}))
    return path


def make_detector_run(path: Path, data: Path, bias: float) -> Path:
    """The run, without logs, of an untrained detector whose scores are about sigmoid(bias)."""
    torch.manual_seed(0)
    model = RetinaNet(preset("nano", size=96), ("red", "blue"))
    torch.nn.init.constant_(model.head.class_logits.bias, bias)
    save_checkpoint(path / "best.pt", model_state(model) | {"category_ids": [1, 2]})
    (path / "run.json").write_text(json.dumps({"arguments": {"data": str(data), "val_split": "val"}}))
    return path


def found(classes: Sequence[str] = CLASSES, without: Sequence[str] = (), hard: int = 9) -> dict[str, Any]:
    """Findings on two pictures in the form of `inspect_run`; no box of the classes in `without`."""
    truth: dict[str, Any] = {
        "images": [{"id": 1}, {"id": 2}],
        "categories": [{"id": k, "name": name} for k, name in enumerate(classes)],
        "annotations": [
            {"id": k + 1, "image_id": 1 + k % 2, "category_id": k, "bbox": [40 * k, 10, 30, 30], "iscrowd": 0}
            for k, name in enumerate(classes)
            if name not in without
        ],
    }
    results = [
        {
            "image_id": 1 + k % 2,
            "category_id": k,
            "bbox": [40 * k + 2, 10, 30, 30],
            "score": 0.9 - 0.1 * (k % 5),
        }
        for k in range(len(classes))
    ]
    seen = find(truth, results)
    hardest = [
        {
            "file": f"pictures/{number}.jpg",
            "image_id": 1,
            "kind": KINDS[number % 3],
            "class": classes[number % 2 % len(classes)],
            "other": classes[-1] if number % 3 == 1 else None,
            "score": 0.9,
            "g": 0.9,
            "box": [1, 2, 3, 4],
            "crop": f"crops/{number:03}.jpg",
        }
        for number in range(hard)
    ]
    return {
        "data": "sets/made-up",
        "split": "val",
        "pictures": 2,
        "classes": list(classes),
        "metrics": seen.metrics.to_dict(),
        "curves": seen.curves,
        "confusion": {
            "labels": [*classes, "background"],
            "threshold": 0.5,
            "matrix": seen.confusion.tolist(),
        },
        "errors": seen.errors,
        "reliability": seen.reliability,
        "sizes": seen.sizes,
        "unseen": {"count": 0, "small": 0, "median": None, "size": 384, "own_size": None},
        "in_words": ["A sentence of the inspection."],
        "hardest": hardest,
        "hardest_total": {kind: 5 * len(hardest) for kind in KINDS},
        "unlabelled": 0,
    }


def epochs(count: int, **options: Any) -> SpectrumCounts:
    """A spectrum of training with different counts in each epoch; options of `make_case`."""
    return SpectrumCounts.stack([make_case(seed, **options).spectrum for seed in range(count)])


def large(epochs: int, classes: int, pictures: int) -> SpectrumCounts:
    """Counts as of a long training on many pictures with 40,000 anchors each: falling with g, no two alike."""
    random = np.random.default_rng(0)
    cells = (epochs, 2, classes, 1, REGIONS)
    fall = np.exp(-np.linspace(0, 12, REGIONS))
    scale = np.array([8e3 * pictures, 20.0 * pictures / classes]).reshape(1, 2, 1, 1, 1)
    examples = (scale * fall * random.random(cells)).astype(np.int64)
    centres = (np.arange(REGIONS) + 0.5) / REGIONS
    return SpectrumCounts(
        tuple(f"class {k}" for k in range(classes)),
        (8,),
        np.full(epochs, pictures),
        examples,
        examples * centres,
        examples[:, 1],
        examples[:, 1] * centres,
    )
