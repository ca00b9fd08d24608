"""Two processes against one at the same global batch: how far their loss curves are apart.

    python benchmarks/two_ranks.py DATA_ROOT/bccd --epochs 2

All train on the CPU in fp32 with the same seed; the row goes to results/two_ranks.jsonl. The control is one process
whose only change is its number of threads: what rounding alone does. (oneDNN takes other kernels for another batch
size or thread count; features then differ by 1e-6, some rectifiers switch, and gradients differ by 3e-4.)
"""

from __future__ import annotations

import argparse
import csv
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from rows import append_row, today


def losses(out: Path) -> list[float]:
    with (out / "log.csv").open() as file:
        return [float(row["loss"]) for row in csv.DictReader(file)]


def difference(one: list[float], other: list[float], epochs: int) -> dict[str, float]:
    """The largest relative difference of a step's loss and of an epoch's mean loss."""
    assert len(one) == len(other)
    length = len(one) // epochs
    means = [
        [statistics.mean(curve[start : start + length]) for start in range(0, len(curve), length)]
        for curve in (one, other)
    ]
    return {
        "step": max(abs(b / a - 1) for a, b in zip(one, other, strict=True)),
        "epoch": max(abs(b / a - 1) for a, b in zip(*means, strict=True)),
    }


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
    with tempfile.TemporaryDirectory() as folder:
        curves = []
        for name, launcher, threads in (("one", [], 1), ("two", torchrun, 1), ("one-2-threads", [], 2)):
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
            environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
            subprocess.run([*command, *options], check=True, env=environment)
            curves.append(losses(out))
    one, two, threaded = curves
    row = {
        "command": f"ghmdet train {chosen.data.name} {' '.join(options)}",
        "date": today(),
        "steps": len(one),
        "first_loss": one[0],
        "last_loss": one[-1],
        "two_ranks": difference(one, two, chosen.epochs),
        "two_threads": difference(one, threaded, chosen.epochs),
    }
    append_row("two_ranks", row)


if __name__ == "__main__":
    main()
