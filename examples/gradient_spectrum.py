"""The README's picture: what a detector sees, where its examples lie, and which of them pull at it.

python examples/gradient_spectrum.py runs/x/best.pt DATA --split val --out spectrum.png
"""

from __future__ import annotations

import argparse
from pathlib import Path

from matplotlib.figure import Figure

from ghmdet import Detector
from ghmdet.data import DetectionData, read_data
from ghmdet.draw import draw_detections
from ghmdet.engine.detect import to_tensor
from ghmdet.engine.observation import measure_spectrum
from ghmdet.report.reweighting import CENTRES, GUARDED, PLAIN, gradient_shares
from ghmdet.spectrum import REGIONS

INK, BACKGROUND, POSITIVE = "#30343b", "#7a8ca3", "#e4572e"


def draw(detector: Detector, data: DetectionData, pictures: int, shown: int) -> Figure:
    """Three panels: detections, number of examples over g, and share of the whole gradient over g."""
    spectrum = measure_spectrum(detector, data, pictures=pictures).spectrum
    figure = Figure(figsize=(13, 3.6), layout="constrained")
    picture, counts, shares = figure.subplots(1, 3, width_ratios=(1.15, 1, 1.25))
    image = to_tensor(data.records[shown].path)
    found = detector.predict(image, threshold=0.4)[0]
    drawn = draw_detections(image, **found, classes=detector.classes)
    picture.imshow(drawn)
    picture.set_axis_off()
    picture.set_title("what it sees")

    background, foreground = spectrum.examples[-1].sum(axis=(1, 2))
    counts.bar(CENTRES, background, 1 / REGIONS, color=BACKGROUND, label="background")
    counts.bar(CENTRES, foreground, 1 / REGIONS, color=POSITIVE, label="objects")
    counts.set(yscale="log", xlabel="gradient norm g", title="examples")
    counts.legend(frameon=False)

    by_loss = gradient_shares(spectrum)
    for name, colour in ((PLAIN, BACKGROUND), (GUARDED, POSITIVE)):
        shares.plot(CENTRES, 100 * by_loss[name].sum(axis=0), color=colour, linewidth=2.5, label=name)
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
