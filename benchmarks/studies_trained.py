"""What wrong labels do to each loss, everything trained: one run of `ghmdet train`, one row.

    python benchmarks/studies_trained.py DATA/bccd --what class --share .2 --arm ghm-c --seed 0 --work runs/trained
    python benchmarks/studies_page.py                                     # draws docs/studies.md from the rows

A share of the training boxes is given another class, no label, a shifted box, or one of the three
(`ghmdet data spoil`); the pictures and the validation part stay as they are. Each loss has its default weight, and
everything else is a default but for the epochs. It is judged once, after the last epoch. A run whose row is there is
not made again.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

from ghmdet.data.make import spoil
from proxy import machine
from rows import RESULTS, today
from studies import NOISES


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path)
    parser.add_argument("--what", choices=("clean", *NOISES), default="clean")
    parser.add_argument("--share", type=float, default=0.0)
    parser.add_argument("--arm", default="ghm-c")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=int, default=32)
    parser.add_argument("--work", type=Path, required=True, help="folder for sets and runs")
    parser.add_argument("--rows", type=Path, default=RESULTS / "study_trained.jsonl")
    parser.add_argument("--options", nargs=argparse.REMAINDER, default=[], help="more of `ghmdet train`'s")
    chosen = parser.parse_args()
    key: dict[str, Any] = {"study": "trained", "data": chosen.data.name, "what": chosen.what}
    key |= {"value": chosen.share, "arm": chosen.arm, "seed": chosen.seed, "epochs": chosen.epochs}
    key["options"] = " ".join(option for option in chosen.options if not option.startswith("--workers"))
    rows = [json.loads(line) for line in chosen.rows.open()] if chosen.rows.exists() else []
    if any(key.items() <= row.items() for row in rows):
        return
    work = chosen.work / "-".join(str(value).strip("-") for value in key.values() if value != "")
    data, out = chosen.data, work / "run"
    if chosen.what != "clean":
        data = work / "data"
        if not data.exists():
            spoil(chosen.data, data, share=chosen.share, kinds=NOISES[chosen.what], seed=chosen.seed)
    settings = [f"--cls-loss={chosen.arm}", f"--seed={chosen.seed}", f"--epochs={chosen.epochs}"]
    once = [f"--val-every={chosen.epochs}", "--no-report"]
    command = ["train", str(data), "--out", str(out), "--resume", *settings, *once, *chosen.options]
    begun = time.monotonic()
    subprocess.run([sys.executable, "-m", "ghmdet", *command], check=True)
    metrics = json.loads((out / "metrics.json").read_text())
    per_class = {name: round(one["AP"] or 0, 4) for name, one in metrics["per_class"].items()}
    device = f"{torch.cuda.get_device_name()}, " if torch.cuda.is_available() else ""
    row = key | {"AP": round(metrics["AP"], 4), "AP50": round(metrics["AP50"], 4), "per_class": per_class}
    row |= {"seconds": round(time.monotonic() - begun), "machine": device + machine()}
    with chosen.rows.open("a") as file:
        file.write(json.dumps(row | {"date": today()}) + "\n")


if __name__ == "__main__":
    main()
