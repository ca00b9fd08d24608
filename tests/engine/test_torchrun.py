"""Jobs of several processes that a launcher starts: told to end, gone on with by one, hit by a dead process."""

from __future__ import annotations

import csv
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch

WORDS = ("--size=96", "--batch-size=4", "--device=cpu", "--precision=fp32", "--weights=none", "--lr=0.001")
WORDS = (*WORDS, "--val-every=1", "--no-report", "--epochs=8")
THERE = {"validation": "the validation of epoch 1;", "epoch 2": "epoch 2 after step "}
SLOWLY = """
import os, time
import ghmdet.engine.train as at
from ghmdet.__main__ import main
step, detect = at.Trainer._step, at.detect
def slow_step(*given):
    time.sleep(0.3)
    return step(*given)
def slow_detect(*given, **more):
    time.sleep(2 if os.environ["RANK"] == "0" else 0)
    return detect(*given, **more)
at.Trainer._step, at.detect = slow_step, slow_detect
main()
"""


@contextmanager
def job(place: str, squares: Path, out: Path) -> Iterator[subprocess.Popen[str]]:
    """Two processes in their first validation, of which one waits for the other, or in the epoch after it."""
    script = out.with_name("slowly.py")
    script.write_text(SLOWLY)
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", script)
    process = subprocess.Popen(
        [sys.executable, *map(str, (*launcher, "train", squares, "--out", out, *WORDS))],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    try:
        reached = out / {"validation": "last.pt", "epoch 2": "best.pt"}[place]
        while not reached.exists():
            assert process.poll() is None, process.communicate()[1]
            time.sleep(0.05)
        yield process
    finally:
        process.kill()


@pytest.mark.parametrize("place", ["validation", "epoch 2"])
def test_a_job_that_is_told_to_end_says_so_and_one_process_goes_on(
    place: str, squares: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    with job(place, squares, out) as process:
        process.terminate()
        _, error = process.communicate(timeout=60)
    assert process.returncode
    said = [line for line in error.splitlines() if "ghmdet: " in line]
    assert len(said) == 2 and all(f"stopped in {THERE[place]}" in line for line in said), error
    assert "[rank" not in error  # a traceback of one that trains
    if place == "validation":
        return
    words = ("-m", "ghmdet", "train", squares, "--out", out, *WORDS, "--resume")
    subprocess.run([sys.executable, *map(str, words)], check=True, timeout=120)
    with (out / "log.csv").open() as file:
        assert [int(row["step"]) for row in csv.DictReader(file)] == list(range(1, 25))
    with np.load(out / "spectrum.npz") as spectrum:
        assert spectrum["pictures"].tolist() == [12] * 8  # as many as were seen by all processes


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_process_that_dies_ends_the_job(squares: Path, tmp_path: Path) -> None:
    with job("epoch 2", squares, tmp_path / "run") as process:
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        first, second = map(int, children)
        os.kill(second, signal.SIGKILL)
        process.communicate(timeout=30)  # 2 s on two busy cores
    assert process.returncode
    with pytest.raises(ProcessLookupError):
        os.kill(first, 0)


def free_port() -> int:
    """accelerate 1.6 waits for ever where it is given port 0."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


LAUNCHERS = {
    "torchrun": ("torch.distributed.run", "--standalone", "--nproc-per-node=2"),
    "accelerate": (
        "accelerate.commands.launch",
        "--multi_gpu",
        "--num_processes=2",
        f"--main_process_port={free_port()}",
    ),
}


def test_accelerate_launch_trains_what_torchrun_does(squares: Path, tmp_path: Path) -> None:
    runs = {}
    for name, launcher in LAUNCHERS.items():
        out = tmp_path / name
        words = (*launcher, "-m", "ghmdet", "train", squares, "--out", out, *WORDS[:-1], "--epochs=1")
        done = subprocess.run(
            [sys.executable, "-m", *map(str, words)],
            capture_output=True,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            timeout=120,
        )
        assert done.returncode == 0, done.stderr
        assert "; 2 processes\n" in done.stdout
        rows = list(csv.DictReader((out / "log.csv").open()))
        losses = [(row["loss"], row["grad_norm"]) for row in rows]
        state = torch.load(out / "last.pt", weights_only=True)["model"]
        runs[name] = losses, state
    (losses, state), (others, other) = runs.values()
    assert losses == others and len(losses) == 3
    assert all(torch.equal(state[key], other[key]) for key in state)
