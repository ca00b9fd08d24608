"""Train and judge on real data: each run is one command, resumable, whose figures go to results/real_data.jsonl.

    python benchmarks/real_data.py DATA_ROOT bccd            # DATA_ROOT/bccd, pretrained
    python benchmarks/real_data.py DATA_ROOT bccd-scratch cards --seed 1
    python benchmarks/results_page.py                        # draws docs/results.md from the rows

Settings were chosen on the validation part; the test part, where there is one, is only reported.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import platform
import subprocess
import sys
from pathlib import Path

import torch

from rows import append_row, today

# name: folder below DATA_ROOT, parts to judge, options of `ghmdet train`
RUNS: dict[str, tuple[str, list[str], list[str]]] = {
    "bccd": ("bccd", ["val", "test"], ["--vflip=0.5", "--epochs=30", "--backbone-lr=1"]),
    "bccd-long": (
        "bccd",
        ["val", "test"],
        ["--vflip=0.5", "--epochs=90", "--val-every=10", "--backbone-lr=1", "--scale", "0.6", "1.5"],
    ),
    "bccd-scratch": ("bccd", ["val", "test"], ["--vflip=0.5", "--weights=none", "--epochs=60"]),
    "cards": ("cards", ["val"], ["--hflip=0", "--epochs=45"]),  # letters are not mirrored
}


def ghmdet(*arguments: str) -> None:
    subprocess.run([sys.executable, "-m", "ghmdet", *arguments], check=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("root", type=Path, help="folder that holds the data sets")
    parser.add_argument("names", nargs="+", choices=RUNS, help="runs to make")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="folder for the run folders")
    parser.add_argument(
        "--options", nargs=argparse.REMAINDER, default=[], help="more options of `ghmdet train`"
    )
    chosen = parser.parse_args()
    for name in chosen.names:
        folder, parts, options = RUNS[name]
        out = chosen.runs / f"{name}-seed{chosen.seed}"
        command = [*options, f"--seed={chosen.seed}", *chosen.options]
        ghmdet("train", str(chosen.root / folder), "--out", str(out), "--resume", *command)
        for part in parts:
            ghmdet("val", str(out / "best.pt"), str(chosen.root / folder), "--split", part)
        with (out / "metrics.csv").open() as file:
            minutes = float(list(csv.DictReader(file))[-1]["seconds"]) / 60
        row = {
            "run": name,
            "command": f"ghmdet train {folder} {' '.join(command)}",
            "seed": chosen.seed,
            "date": today(),
            "machine": f"{os.cpu_count()} CPU cores, {platform.machine()}, torch {torch.__version__}",
            "minutes": round(minutes, 1),
        }
        for part in parts:
            metrics = json.loads((out / part / "metrics.json").read_text())
            row[part] = {key: metrics[key] for key in ("AP", "AP50", "AP75")} | {
                "per_class": {label: values["AP"] for label, values in metrics["per_class"].items()}
            }
        append_row("real_data", row)


if __name__ == "__main__":
    main()
