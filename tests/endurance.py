"""Memory of long work: 2,000 steps of training and 20,000 pictures of `predict`, small ones; on Linux.

python tests/endurance.py [--steps 2000] [--pictures 20000]
"""

from __future__ import annotations

import argparse
import csv
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from ghmdet.data.make import SynthConfig, synthesize

SMALL = ("--size=96", "--device=cpu", "--precision=fp32")
TRAIN = (*SMALL, "--batch-size=4", "--weights=none", "--no-report")
MOST = 1.0  # MiB in 100 steps
GROWTH = 50.0  # MiB from the first tenth of the pictures to the last


def run(*words: object) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-m", "ghmdet", *map(str, words)], stdout=subprocess.DEVNULL)


def training(home: Path, steps: int) -> float:
    """MiB that the peak memory grows by in 100 steps, fitted over the validations but for the first few."""
    epochs, every = steps // 6, 17  # 24 pictures in batches of 4
    words = (f"--epochs={epochs}", f"--val-every={every}")
    if run("train", home / "set", "--out", home / "run", *TRAIN, *words).wait():
        raise SystemExit("the training failed")
    with (home / "run" / "metrics.csv").open() as file:
        rows = [(int(row["step"]), float(row["memory"])) for row in csv.DictReader(file)]
    for step, memory in rows:
        print(f"step {step}: peak memory {memory:.0f} MiB", flush=True)
    late = [row for row in rows if row[0] > steps / 10]
    slope = 100 * float(np.polyfit(*zip(*late, strict=True), 1)[0])
    print(f"{slope:.2f} MiB in 100 steps after the first {steps // 10}", flush=True)
    return slope


def predicting(home: Path, pictures: int) -> float:
    """MiB between the memory after a tenth of the pictures and the most ever, links to 24 small ones."""
    many, out = home / "many", home / "found"
    many.mkdir()
    originals = sorted((home / "set").rglob("*.jpg"))
    for number in range(pictures):
        os.link(originals[number % len(originals)], many / f"{number:06}.jpg")
    process = run("predict", home / "run" / "best.pt", many, "--out", out, "--device=cpu")
    done, first, most = 0, 0.0, 0.0
    kept = out / "unfinished.jsonl"
    while process.poll() is None:
        time.sleep(5)
        try:
            status = Path(f"/proc/{process.pid}/status").read_text()
            most = int(status.partition("VmHWM:")[2].split()[0]) / 1024
            done = sum(1 for _ in kept.open("rb")) if kept.exists() else done
        except (OSError, IndexError):
            continue  # it has just ended
        if not first and done >= pictures / 10:
            first = most
            print(f"{done} pictures: peak memory {most:.0f} MiB", flush=True)
    if process.returncode:
        raise SystemExit("predict failed")
    print(f"{pictures} pictures: peak memory {most:.0f} MiB, {most - first:.0f} more", flush=True)
    return most - first


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--pictures", type=int, default=20_000)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        synthesize(home / "set", SynthConfig(images=32, size=(96, 72)))
        slope, growth = training(home, given.steps), predicting(home, given.pictures)
    raise SystemExit(slope > MOST or growth > GROWTH)


if __name__ == "__main__":
    main()
