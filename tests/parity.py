"""One process and several at the same global batch: how far losses, weights and statistics are apart.

python tests/parity.py [--steps 50] [--ranks 2 3 4] [--precision float64|float32]

Kernels round differently for another number of pictures. In float64 nothing of that is left to see after 50 steps, so
what remains would be the algorithm's. The optimizer is SGD with a small rate: AdamW divides gradients that are nothing
but rounding by their own size, and at a usual rate training itself makes a difference some times larger each step.
"""

from __future__ import annotations

import argparse
import copy
import csv
import json
import os
import socket
import sys
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from engine_cases import TINY
from ghmdet.engine import train as engine
from ghmdet.engine.context import begin_run
from ghmdet.engine.train import Trainer
from ghmdet.models import RetinaNet
from small_sets import Picture, write_coco


@dataclass(frozen=True)
class Case:
    """A training: its pictures, one in two without objects, its batch and its epochs."""

    pictures: int
    val: int
    batch_size: int
    epochs: int


def make_set(root: Path, case: Case) -> Path:
    """A set of pictures of one size (each rank pads its own to a size that others do not know)."""
    random = np.random.default_rng(0)
    for split, count in (("train", case.pictures), ("val", case.val)):
        pictures = []
        for number in range(count):
            corners = random.integers(0, 40, (number % 2 if split == "train" else 1, 2)).tolist()
            boxes = [(number % 3, x, y, x + 30, y + 25) for x, y in corners]
            pictures.append(Picture(f"{split}{number}.png", 96, 72, boxes))
        write_coco(root, pictures, split)
    return root


def in_double() -> None:
    """From now on this process computes in float64, where the product takes float32."""
    torch.set_default_dtype(torch.float64)
    narrow, preprocess = torch.Tensor.float, RetinaNet.preprocess
    torch.Tensor.float = lambda self: self if self.dtype == torch.float64 else narrow(self)

    def wide(self: RetinaNet, images: Any) -> Any:
        batch = preprocess(self, images)
        return batch._replace(images=batch.images.double())

    RetinaNet.preprocess = wide


def work(process: int, ranks: int, port: int, folder: str, cases: dict[str, Case], double: bool) -> None:
    """Train each case: processes before the last are the ranks of one run, the last one trains alone."""
    torch.set_num_threads(1)
    name = f"rank{process}" if process < ranks else "alone"
    if process < ranks:
        place = {"RANK": process, "LOCAL_RANK": process, "WORLD_SIZE": ranks, "MASTER_PORT": port}
        os.environ |= {key: str(value) for key, value in place.items()} | {"MASTER_ADDR": "127.0.0.1"}
    if double:
        in_double()
    for title, case in cases.items():
        home = Path(folder) / title
        settings = {"batch_size": case.batch_size, "epochs": case.epochs, "val_every": case.epochs}
        config = replace(TINY, box_loss="ghm-r", workers=0, optimizer="sgd", lr=1e-4, size=64, **settings)
        out = home / ("alone" if name == "alone" else "ranks")
        trainer = Trainer(begin_run(home / "set", out, config, say=lambda line: None))
        began = copy.deepcopy(trainer.model.state_dict())
        positives: list[int] = []
        count, judge, judged = trainer.model.observe, engine.score, []
        assert count is not None

        def seen(*given: Any, count: Any = count, positives: list[int] = positives) -> None:
            count(*given)
            positives.append(int((given[2].rows >= 0).sum()))

        def scored(truth: Any, results: Any, judge: Any = judge, judged: list[Any] = judged) -> Any:
            judged += results
            return judge(truth, results)

        trainer.model.observe, engine.score = seen, scored
        judged_model = trainer.average.model
        judged_model.config = replace(
            judged_model.config, score_threshold=0.0
        )  # so that there are detections
        trainer.fit()
        engine.score = judge
        kept = {"state": trainer.model.state_dict(), "positives": positives, "results": judged}
        kept["began"] = began
        torch.save(kept, home / f"{name}.pt")
    if process < ranks:
        dist.barrier()
        dist.destroy_process_group()


def train_all(folder: Path, cases: dict[str, Case], ranks: int, *, double: bool) -> dict[str, dict[str, Any]]:
    """What each process of each case has in the end, by name: rank0, rank1 ..., alone; and the losses of the runs."""
    for title, case in cases.items():
        make_set(folder / title / "set", case)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.spawn(work, args=(ranks, port, str(folder), cases, double), nprocs=ranks + 1)
    found: dict[str, dict[str, Any]] = {}
    for title in cases:
        names = ["alone", *(f"rank{rank}" for rank in range(ranks))]
        found[title] = {name: torch.load(folder / title / f"{name}.pt") for name in names}
        for run in ("alone", "ranks"):
            with (folder / title / run / "log.csv").open() as file:
                losses = [float(row["loss"]) for row in csv.DictReader(file)]
            found[title][f"losses {run}"] = np.array(losses)
    return found


def differences(found: dict[str, Any]) -> dict[str, float]:
    """The largest relative difference of a step's loss, and that of the way that the weights have gone."""
    alone, ranks = found["losses alone"], found["losses ranks"]
    (began, one), other = (found["alone"][name] for name in ("began", "state")), found["rank0"]["state"]
    names = [name for name in one if name.endswith(("weight", "bias"))]
    gone = torch.cat([(one[name] - began[name]).double().flatten() for name in names])
    apart = torch.cat([(one[name] - other[name]).double().flatten() for name in names])
    return {
        "steps": len(alone),
        "loss": float(np.abs(ranks / alone - 1).max()),
        "weights": float(apart.norm() / gone.norm()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--ranks", type=int, nargs="+", default=[2, 3, 4])
    parser.add_argument("--precision", choices=("float64", "float32"), default="float64")
    given = parser.parse_args()
    worst, double = 0.0, given.precision == "float64"
    for ranks in given.ranks:
        with tempfile.TemporaryDirectory() as folder:
            case = Case(pictures=12, val=2, batch_size=12, epochs=given.steps)
            found = differences(train_all(Path(folder), {"even": case}, ranks, double=double)["even"])
        print(json.dumps({"ranks": ranks, "precision": given.precision} | found), flush=True)
        worst = max(worst, found["loss"], found["weights"])
    sys.exit(double and not worst < 1e-9)


if __name__ == "__main__":
    main()
