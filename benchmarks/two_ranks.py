"""Two processes against one at the same global batch: the largest relative difference of their loss curves.

    python benchmarks/two_ranks.py DATA_ROOT/bccd --epochs 2

Both train on the CPU in fp32 with the same seed; the row goes to results/two_ranks.jsonl.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import subprocess
import sys
import tempfile
from datetime import datetime, timezone
from pathlib import Path

RESULTS = Path(__file__).parent / "results" / "two_ranks.jsonl"


def losses(out: Path) -> list[float]:
    with (out / "log.csv").open() as file:
        return [float(row["loss"]) for row in csv.DictReader(file)]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    options = [f"--epochs={chosen.epochs}", f"--seed={chosen.seed}", "--precision=fp32", "--device=cpu"]
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    environment = os.environ | {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 2) // 2))}
    with tempfile.TemporaryDirectory() as folder:
        curves = []
        for name, launcher in (("one", []), ("two", torchrun)):
            out = Path(folder) / name
            command = [
                sys.executable,
                *launcher,
                "-m",
                "ghmdet",
                "train",
                str(chosen.data),
                "--out",
                str(out),
            ]
            subprocess.run([*command, *options], check=True, env=environment)
            curves.append(losses(out))
    one, two = curves
    assert len(one) == len(two)
    differences = [abs(b / a - 1) for a, b in zip(one, two, strict=True)]
    row = {
        "command": f"ghmdet train {chosen.data.name} {' '.join(options)}",
        "date": datetime.now(timezone.utc).date().isoformat(),
        "steps": len(one),
        "first_loss": one[0],
        "last_loss": one[-1],
        "largest_relative_difference": max(differences),
        "at_step": differences.index(max(differences)) + 1,
    }
    RESULTS.parent.mkdir(exist_ok=True)
    with RESULTS.open("a") as file:
        file.write(json.dumps(row) + "\n")
    print(json.dumps(row, indent=2))


if __name__ == "__main__":
    main()
