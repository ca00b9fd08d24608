"""Kills trainings and resumes them: each must end bit-equal to one that was left alone.

Every second kill comes while a file is being written, the others at random moments.

python tests/soak.py --kills 30 [--seed 0]
"""

from __future__ import annotations

import argparse
import csv
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ghmdet.data.make import SynthConfig, synthesize
from ghmdet.engine.checkpoint import load_checkpoint

OPTIONS = ("--size=96", "--batch-size=4", "--device=cpu", "--precision=fp32", "--weights=none", "--epochs=6")
MEASURED = ("seconds", "memory")


def command(home: Path, out: str) -> list[str]:
    """A training of the set in `home`, which goes on where it stopped."""
    words = ("train", home / "set", "--out", home / out, *OPTIONS, "--val-every=1", "--no-report", "--resume")
    return [sys.executable, "-m", "ghmdet", *map(str, words)]


def state(run: Path) -> tuple[Any, ...]:
    """What must not depend on how often a run was killed."""
    saved = load_checkpoint(run / "last.pt")
    tables = []
    for name in ("log.csv", "metrics.csv"):
        with (run / name).open() as file:
            tables.append(
                [{k: v for k, v in row.items() if k not in MEASURED} for row in csv.DictReader(file)]
            )
    with np.load(run / "spectrum.npz") as spectrum:
        counts = {
            name: torch.from_numpy(spectrum[name])
            for name in spectrum.files
            if spectrum[name].dtype.kind in "iuf"
        }
    return saved["model"], saved["training"]["optimizer"]["state"], counts, *tables


def same(one: Any, other: Any) -> bool:
    """Whether two nested values are equal, tensors to the last bit."""
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(value, other[key]) for key, value in one.items())
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


def kill(process: subprocess.Popen[bytes], run: Path, after: float, writing: bool) -> bool:
    """Kill a training after so many seconds, or with `writing` in the next file it writes; False if it ended first."""
    try:
        process.wait(after)
        return False
    except subprocess.TimeoutExpired:
        while writing and process.poll() is None and not any(run.glob(".*.tmp")):
            time.sleep(0.0005)
    ended = process.poll() is not None
    process.kill()
    process.wait()
    return not ended


def soak(home: Path, kills: int, seed: int) -> int:
    """Kill a training `kills` times, a new one whenever it is done; gives how many ended otherwise."""
    synthesize(home / "set", SynthConfig(images=24, size=(96, 72)))
    began = time.monotonic()
    subprocess.run(command(home, "whole"), check=True, stdout=subprocess.DEVNULL)
    longest, wrong, killed, number = time.monotonic() - began, 0, 0, 0
    rng = random.Random(seed)
    while killed < kills:
        number += 1
        out = f"killed{number}"
        while True:
            process = subprocess.Popen(command(home, out), stdout=subprocess.DEVNULL)
            if killed < kills and kill(process, home / out, rng.uniform(0.2, 1.0) * longest, killed % 2 == 1):
                killed += 1
                continue
            ended = process.wait()
            wrong += bool(ended) or not same(state(home / "whole"), state(home / out))
            break
        print(f"{killed} kills, {number} runs, {wrong} ended otherwise", flush=True)
    return wrong


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        raise SystemExit(soak(Path(folder), given.kills, given.seed) > 0)
