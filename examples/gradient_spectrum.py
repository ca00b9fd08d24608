"""The README's picture: what a detector sees, where its examples lie, and which of them pull at it.

python examples/gradient_spectrum.py runs/x/best.pt DATA --split val --out spectrum.png
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure

from ghmdet import Detector
from ghmdet.data import DetectionData, read_data
from ghmdet.engine.draw import draw_detections
from ghmdet.engine.predict import to_tensor
from ghmdet.functional import harmonizing_weights, sigmoid_gradient_norm

BINS = 30
INK, BACKGROUND, POSITIVE = "#30343b", "#7a8ca3", "#e4572e"


@torch.no_grad()
def gradient_norms(
    detector: Detector, data: DetectionData, pictures: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """g and the target of each anchor and class, over the first pictures of the data: two tensors [n, K]."""
    norms, wanted = [], []
    for record in data.records[:pictures]:
        target = {"boxes": torch.from_numpy(record.boxes), "labels": torch.from_numpy(record.labels)}
        batch = detector.model.preprocess([to_tensor(record.path)])
        logits = detector.model.forward_raw(batch.images)[0].flatten(0, 1)
        labels = detector.model.assign([target], batch).labels.flatten()
        targets = torch.nn.functional.one_hot(labels.clamp(min=0), logits.shape[1] + 1)[:, :-1].float()
        kept = labels >= 0
        norms.append(sigmoid_gradient_norm(logits, targets)[kept])
        wanted.append(targets[kept])
    return torch.cat(norms), torch.cat(wanted)


def draw(detector: Detector, data: DetectionData, pictures: int, shown: int) -> Figure:
    """Three panels: detections, number of examples over g, and share of the whole gradient over g."""
    g, targets = gradient_norms(detector, data, pictures)
    weights = harmonizing_weights(
        g, bins=BINS, normalize="none", min_count="positives", per_class=True, targets=targets
    )
    region = (g * BINS).long().clamp(max=BINS - 1)

    def per_region(values: torch.Tensor, mask: torch.Tensor) -> np.ndarray:
        return torch.zeros(BINS).index_add_(0, region[mask], values[mask]).numpy()

    figure = Figure(figsize=(13, 3.6), layout="constrained")
    picture, counts, shares = figure.subplots(1, 3, width_ratios=(1.15, 1, 1.25))
    image = to_tensor(data.records[shown].path)
    found = detector.predict(image)[0]
    sure = found["scores"] >= 0.4
    drawn = draw_detections(
        image, found["boxes"][sure], found["labels"][sure], found["scores"][sure], detector.classes
    )
    picture.imshow(drawn)
    picture.set_axis_off()
    picture.set_title("what it sees")

    edges = (np.arange(BINS) + 0.5) / BINS
    positive = targets > 0.5
    background = per_region(torch.ones_like(g), ~positive)
    foreground = per_region(torch.ones_like(g), positive)
    counts.bar(edges, background, 1 / BINS, color=BACKGROUND, label="background")
    counts.bar(edges, foreground, 1 / BINS, color=POSITIVE, label="objects")
    counts.set(yscale="log", xlabel="gradient norm g", title="examples")
    counts.legend(frameon=False)

    for name, pull, colour in (
        ("cross entropy", g, BACKGROUND),
        ("GHM-C, guarded", g * weights, POSITIVE),
    ):
        total = per_region(pull, torch.ones_like(positive))
        shares.plot(edges, 100 * total / total.sum(), color=colour, linewidth=2.5, label=name)
    shares.set(xlabel="gradient norm g", title="share of the whole gradient, %", ylim=(0, None))
    shares.legend(frameon=False)
    for axes in (counts, shares):
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(colors=INK)
    return figure


def main() -> None:
    """Write the picture."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("--split", default="val")
    parser.add_argument("--out", type=Path, default=Path("spectrum.png"))
    parser.add_argument("--pictures", type=int, default=40, help="how many are measured")
    parser.add_argument("--shown", type=int, default=0, help="which one is drawn")
    chosen = parser.parse_args()
    detector = Detector.load(chosen.checkpoint)
    data = read_data(chosen.data, chosen.split, classes=detector.classes)
    draw(detector, data, chosen.pictures, chosen.shown).savefig(chosen.out, dpi=110)
    print(chosen.out)


if __name__ == "__main__":
    main()
