"""Train and judge on real data: each run is one command, resumable, whose figures go to results/real_data.jsonl.

    python benchmarks/real_data.py DATA_ROOT bccd            # DATA_ROOT/bccd, pretrained
    python benchmarks/real_data.py DATA_ROOT bccd-scratch cards --seed 1
    python benchmarks/results_page.py                        # draws docs/results.md from the rows

Where a run names no option, all settings are the defaults. They were chosen on the validation parts of these sets; the
test part, where there is one, is only reported.
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
    "bccd": ("bccd", ["val", "test"], []),
    "bccd-scratch": ("bccd", ["val", "test"], ["--vflip=0.5", "--weights=none", "--epochs=60"]),
    "cards": ("cards", ["val"], []),
    "carla": ("carla", ["val"], []),
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
            validations = list(csv.DictReader(file))
        best = max(validations, key=lambda row: float(row["AP"] or 0))
        row = {
            "run": name,
            "command": f"ghmdet train {folder} {' '.join(command)}",
            "seed": chosen.seed,
            "date": today(),
            "machine": ", ".join(
                [
                    f"{os.cpu_count()} CPU cores, {platform.machine()}",
                    *([torch.cuda.get_device_name()] if torch.cuda.is_available() else []),
                    f"torch {torch.__version__}",
                ]
            ),
            "minutes": round(float(validations[-1]["seconds"]) / 60, 1),
            "minutes_to_best": round(float(best["seconds"]) / 60, 1),
        }
        for part in parts:
            metrics = json.loads((out / part / "metrics.json").read_text())
            row[part] = {key: metrics[key] for key in ("AP", "AP50", "AP75")} | {
                "per_class": {label: values["AP"] for label, values in metrics["per_class"].items()}
            }
        append_row("real_data", row)


if __name__ == "__main__":
    main()
