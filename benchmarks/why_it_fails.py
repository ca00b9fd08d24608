"""Watch the class scores of a training run: spectra at several moments, and the stationary point that they obey.

    python benchmarks/why_it_fails.py run DATA --loss ghm-c-published --weights auto --out runs/why-published
    python benchmarks/why_it_fails.py draw runs/why-* --out docs/images/why_it_fails.png

`run` trains as `ghmdet train` does and, at every validation, counts over training pictures without augmentation how
many examples and how many positives have which score p (classes pooled, fine regions), and appends that to
spectra.jsonl. `draw` shows it, and compares each score with the one at which the loss's two pulls balance.

A loss that weighs an example by 1 / R(g) is stationary for the examples of score p where
q (1 - p) / R(1 - p) = (1 - q) p / R(p), so logit p = logit q + log R(p) / R(1 - p), with q the share of positives among
them. Cross entropy has logit p = logit q.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from ghmdet.data import DetectionData
from ghmdet.engine.context import begin_run
from ghmdet.engine.detect import to_tensor
from ghmdet.engine.settings import TrainConfig
from ghmdet.engine.train import Trainer
from ghmdet.models import RetinaNet

RESULTS = Path(__file__).parent / "results" / "why_it_fails.json"
FINE = 120  # regions of the score; the loss has 30 of the gradient norm
PICTURES = 64


@torch.no_grad()
def scores_and_targets(model: RetinaNet, data: DetectionData) -> tuple[Tensor, Tensor]:
    """p and whether it should be 1, of every anchor and class that counts in the first pictures: two tensors [n]."""
    scores, wanted = [], []
    for record in data.records[:PICTURES]:
        target = {"boxes": torch.from_numpy(record.boxes), "labels": torch.from_numpy(record.labels)}
        batch = model.preprocess([to_tensor(record.path)])
        logits = model.forward_raw(batch.images)[0].float()
        labels = model.assign([target], batch).labels
        positive = torch.arange(logits.shape[-1]) == labels[..., None]
        kept = labels >= 0
        scores.append(logits.sigmoid()[kept].flatten())
        wanted.append(positive[kept].flatten())
    return torch.cat(scores), torch.cat(wanted)


class Watched(Trainer):
    """A run that writes its spectrum at every validation."""

    def _validate(self) -> None:
        super()._validate()
        self._record()

    def _record(self) -> None:
        model = self.average.model
        was_training = model.training
        p, positive = scores_and_targets(model.eval(), self.data.train)
        model.train(was_training)
        place = (p * FINE).long().clamp(max=FINE - 1)
        row = {
            "epoch": self.progress.epoch,
            "step": self.progress.step,
            "AP": json.loads((self.run.folder / "metrics.json").read_text())["AP"]
            if self.progress.best_epoch == self.progress.epoch
            else None,
            "examples": torch.bincount(place, minlength=FINE).tolist(),
            "positives": torch.bincount(place[positive], minlength=FINE).tolist(),
        }
        with (self.run.folder / "spectra.jsonl").open("a") as file:
            file.write(json.dumps(row) + "\n")


def regions_of_g(row: dict[str, Any], bins: int = 30) -> np.ndarray:
    """R(g): how many examples have which gradient norm, [bins], from the counts by score."""
    examples, positives = np.array(row["examples"]), np.array(row["positives"])
    by_g = (examples - positives) + positives[::-1]  # g is p of background, 1 - p of positives
    return by_g.reshape(bins, -1).sum(1)


def stationary(row: dict[str, Any], form: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For each fine region of the score with 20 positives and background: logit p, what the formula gives, examples."""
    examples, positives = np.array(row["examples"], float), np.array(row["positives"], float)
    p = (np.arange(FINE) + 0.5) / FINE
    region = np.repeat(np.maximum(regions_of_g(row), 1.0), FINE // 30)
    if form == "guarded":
        region = np.maximum(region, positives.sum())
    elif form == "ce":
        region = np.ones(FINE)
    enough = (positives >= 20) & (examples - positives >= 20)
    p, q = p[enough], positives[enough] / examples[enough]
    shift = np.log(region / region[::-1])[enough]
    return np.log(p / (1 - p)), np.log(q / (1 - q)) + shift, examples[enough]


def form_of(name: str) -> str:
    """Which weights the formula takes: published, guarded, or ce."""
    return {"ghm-c-published": "published", "ghm-c-joint": "guarded"}.get(name, "ce")


def summary(row: dict[str, Any], form: str) -> dict[str, Any]:
    """The figures of one moment."""
    examples, positives = np.array(row["examples"], float), np.array(row["positives"], float)
    middle = slice(round(0.3 * FINE), round(0.7 * FINE))
    measured, predicted, _ = stationary(row, form)
    plain = stationary(row, "ce")[1]
    error = np.abs(measured - predicted)
    return {
        "epoch": row["epoch"],
        "positives": int(positives.sum()),
        "positives with p in .3 to .7": round(float(positives[middle].sum() / positives.sum()), 3),
        "background there for each positive": round(
            float((examples - positives)[middle].sum() / max(positives[middle].sum(), 1)), 1
        ),
        "positives with g >= .9": round(float(positives[: FINE // 10].sum() / positives.sum()), 3),
        "regions": len(measured),
        "mean |logit p - formula|": round(float(error.mean()), 2) if len(error) else None,
        "mean |logit p - logit q|": round(float(np.abs(measured - plain).mean()), 2) if len(error) else None,
    }


def draw(folders: list[Path]) -> Figure:
    """A row for each run: number of examples by score at each moment, and measured against stationary scores."""
    figure = Figure(figsize=(11, 2.9 * len(folders)), layout="constrained")
    panels = figure.subplots(len(folders), 3, squeeze=False)
    p = (np.arange(FINE) + 0.5) / FINE
    for axes, folder in zip(panels, folders, strict=True):
        rows = [json.loads(line) for line in (folder / "spectra.jsonl").read_text().splitlines()]
        arguments = json.loads((folder / "run.json").read_text())["arguments"]
        form = form_of(arguments["cls_loss"])
        start = "scratch" if arguments["weights"] == "none" else "pretrained"
        moments = [rows[index] for index in sorted({0, len(rows) // 3, len(rows) - 1})]
        for row, colour in zip(moments, ("#c9d3df", "#7a8ca3", "#e4572e"), strict=False):
            examples, positives = np.array(row["examples"]), np.array(row["positives"])
            label = f"epoch {row['epoch']}"
            axes[0].step(p, examples - positives, where="mid", color=colour, label=label)
            axes[1].step(p, positives, where="mid", color=colour, label=label)
        axes[0].set(yscale="log", title=f"{arguments['cls_loss']}, {start}: background", xlabel="score p")
        axes[1].set(yscale="symlog", title="positives", xlabel="score p")
        axes[1].legend(frameon=False)
        measured, predicted, _ = stationary(rows[-1], form)
        plain = stationary(rows[-1], "ce")[1]
        if len(measured):
            axes[2].plot(predicted, measured, "o", color="#e4572e", markersize=4, label="by the formula")
            if form != "ce":
                axes[2].plot(plain, measured, "o", color="#c9d3df", markersize=3, label="logit q alone")
            ends = [measured.min(), measured.max()]
            axes[2].plot(ends, ends, color="#30343b", linewidth=1)
            axes[2].legend(frameon=False)
        axes[2].set(title="stationary?", xlabel="logit q + log R(p) / R(1 - p)", ylabel="logit p")
        for one in axes:
            one.spines[["top", "right"]].set_visible(False)
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="train and watch")
    run.add_argument("data", type=Path)
    run.add_argument("--loss", default="ghm-c-published")
    run.add_argument("--weight", type=float)
    run.add_argument("--weights", default="auto")
    run.add_argument("--epochs", type=int, default=20)
    run.add_argument("--size", type=int, default=320)
    run.add_argument("--seed", type=int, default=0)
    run.add_argument("--out", type=Path, required=True)
    picture = commands.add_parser("draw", help="draw runs and print their figures")
    picture.add_argument("folders", type=Path, nargs="+")
    picture.add_argument("--out", type=Path, required=True)
    chosen = parser.parse_args()
    if chosen.command == "run":
        config = TrainConfig(
            cls_loss=chosen.loss,
            cls_weight=chosen.weight,
            weights=chosen.weights,
            epochs=chosen.epochs,
            size=chosen.size,
            seed=chosen.seed,
            val_every=1 if chosen.epochs <= 10 else 2,
        )
        Watched(begin_run(chosen.data, chosen.out, config, resume=True)).fit()
        return
    figures = {}
    for folder in chosen.folders:
        form = form_of(json.loads((folder / "run.json").read_text())["arguments"]["cls_loss"])
        rows = [json.loads(line) for line in (folder / "spectra.jsonl").read_text().splitlines()]
        figures[folder.name] = [summary(row, form) for row in rows]
        for row in figures[folder.name]:
            print(folder.name, row)
    chosen.out.parent.mkdir(parents=True, exist_ok=True)
    draw(chosen.folders).savefig(chosen.out, dpi=80)
    RESULTS.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
