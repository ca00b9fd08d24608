"""Two gloo processes against one process on the joined batch."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from ghmdet import GHMC, GHMR, SoftmaxGHMC
from ghmdet.functional.equalized import EqlV2, EqualizedFocal
from ghmdet.losses import Equalized
from ghmdet.spectrum import sum_over_ranks, world_size


class Labelled(SoftmaxGHMC):
    """Takes what the other losses take: of targets the first class, 0 being the background."""

    def forward(self, inputs, targets, valid):
        return super().forward(inputs, targets.argmax(1), valid[:, 0])


STEPS = 3
SHARDS = [(30, 10), (0, 25), (17, 17)]  # examples of each rank in each step
MODULES = {
    "GHMC": lambda reduction: GHMC(bins=10, reduction=reduction),
    "GHMC guarded": lambda reduction: GHMC.guarded(3, reduction=reduction),
    "GHMC accumulated": lambda reduction: GHMC(accumulation_steps=2, reduction=reduction),
    "GHMR": lambda reduction: GHMR(reduction=reduction),
    "softmax": lambda reduction: Labelled(3, background=0, per_class=True, reduction=reduction),
    "softmax weighed": lambda reduction: Labelled(
        3, background=0, class_weight=torch.tensor([0.2, 1.0, 3.0]), reduction=reduction
    ),
}
SUMS = {
    "EQL v2": lambda _: Equalized(3, EqlV2),
    "EFL accumulated": lambda _: Equalized(3, EqualizedFocal, accumulation_steps=2),
}


def joined_batch(step: int):
    generator = torch.Generator().manual_seed(step)
    n = sum(SHARDS[step])
    inputs = torch.randn(n, 3, generator=generator) - 1
    targets = (torch.rand(n, 3, generator=generator) < 0.15).float()
    return inputs, targets, torch.rand(n, 3, generator=generator) < 0.9


def run(loss, shard) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Value and gradient of each step over the rows that `shard(step)` selects."""
    results = []
    for step in range(STEPS):
        inputs, targets, valid = (t[shard(step)] for t in joined_batch(step))
        inputs = inputs.requires_grad_()
        value = loss(inputs, targets, valid)
        value.backward()
        results.append((value.detach(), inputs.grad))
    return results


def rows_of(rank: int):
    def shard(step: int) -> slice:
        first = SHARDS[step][0]
        return slice(0, first) if rank == 0 else slice(first, None)

    return shard


def ddp_gradients(rank: int | None) -> list[torch.Tensor]:
    """Gradients of a model that holds its loss, each step; trained under DDP, or alone on the joined batch."""
    torch.manual_seed(0)
    head, loss = nn.Linear(3, 3), GHMC(bins=10)
    model = nn.ModuleDict({"head": head, "loss": loss})
    model.forward = lambda x, t: loss(head(x), t)
    shard = (lambda step: slice(None)) if rank is None else rows_of(rank)
    run_model = model if rank is None else DistributedDataParallel(model)
    gradients = []
    for step in range(STEPS):
        inputs, targets, _ = (t[shard(step)] for t in joined_batch(step))
        head.zero_grad()
        run_model(inputs, targets).backward()
        gradients.append(head.weight.grad.clone())
    return gradients


def worker(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    results = {}
    for name, make in (MODULES | SUMS).items():
        for reduction in ("sum", "mean"):
            loss = make(reduction)
            results[name, reduction] = (run(loss, rows_of(rank)), loss.state_dict())
    results["ddp"] = ddp_gradients(rank)
    lone = GHMC().eval()
    if rank == 0:  # evaluation asks nothing of the other rank, which would hang
        lone(*joined_batch(0)[:2])
    same = torch.tensor([float(rank + 1)])
    assert world_size() == 2 and sum_over_ranks(same).item() == 3 and same.item() == rank + 1
    torch.save(results, f"{folder}/{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory: pytest.TempPathFactory):
    folder: Path = tmp_path_factory.mktemp("ranks")
    mp.spawn(worker, args=(str(folder),), nprocs=2)
    return [torch.load(folder / f"{rank}.pt") for rank in (0, 1)]


@pytest.mark.parametrize("name", MODULES | SUMS)
def test_sums_of_two_ranks_add_up_to_one_process(two_ranks, name):
    alone = run((MODULES | SUMS)[name]("sum"), lambda step: slice(None))
    (first, _), (second, _) = (rank[name, "sum"] for rank in two_ranks)
    for (value, gradient), (value_0, gradient_0), (value_1, gradient_1) in zip(
        alone, first, second, strict=True
    ):
        torch.testing.assert_close(value_0 + value_1, value)
        torch.testing.assert_close(torch.cat([gradient_0, gradient_1]), gradient)


@pytest.mark.parametrize("name", MODULES)
def test_means_of_two_ranks_average_to_one_process(two_ranks, name):
    alone = run(MODULES[name]("mean"), lambda step: slice(None))
    (first, _), (second, _) = (rank[name, "mean"] for rank in two_ranks)
    for (value, gradient), (value_0, gradient_0), (value_1, gradient_1) in zip(
        alone, first, second, strict=True
    ):
        torch.testing.assert_close((value_0 + value_1) / 2, value)
        torch.testing.assert_close(torch.cat([gradient_0, gradient_1]) / 2, gradient)


def test_gradients_under_ddp_are_those_of_one_process(two_ranks):
    for rank in two_ranks:
        for shared, alone in zip(rank["ddp"], ddp_gradients(None), strict=True):
            torch.testing.assert_close(shared, alone)


@pytest.mark.parametrize("name", MODULES | SUMS)
def test_every_rank_keeps_the_spectrum_of_one_process(two_ranks, name):
    loss = (MODULES | SUMS)[name]("sum")
    run(loss, lambda step: slice(None))
    for rank in two_ranks:
        state = rank[name, "sum"][1]
        for key, value in loss.state_dict().items():
            torch.testing.assert_close(state[key], value)


def test_alone_there_is_one_rank_and_nothing_to_sum():
    tensor = torch.tensor([2.0], requires_grad=True)
    assert world_size() == 1
    assert sum_over_ranks(tensor).item() == 2 and not sum_over_ranks(tensor).requires_grad


def test_what_ranks_exchange_grows_with_regions_and_classes_and_not_with_examples(monkeypatch):
    given = []
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "get_world_size", lambda: 2)
    monkeypatch.setattr(dist, "all_reduce", lambda x: given.append(x.numel() * x.element_size()))

    def exchanged(loss, examples, columns):
        given.clear()
        loss(torch.zeros(examples, columns, requires_grad=True), torch.zeros(examples, columns)).backward()
        return sum(given)

    for examples in (7, 7000):
        for classes in (3, 80, 1203):  # float32 counts of each region, all examples, and the positives
            assert exchanged(GHMC.guarded(classes), examples, classes) == 4 * classes * (30 + 2)
            assert exchanged(GHMC(bins=10), examples, classes) == 4 * (10 + 2)
            wide = GHMC(bins=60, per_class=True, num_classes=classes)
            assert exchanged(wide, examples, classes) == 4 * classes * (60 + 2)
        assert exchanged(GHMR(), examples, 4) == 4 * (10 + 2)
